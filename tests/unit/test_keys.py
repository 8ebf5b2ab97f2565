"""Keys of clients: found by their hash, never repeated."""

from __future__ import annotations

import pytest

from kvatlas.cli.hash_key import line_of, new_key
from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.router.keys import Client, hash_key, read_keys, shown_key

KEY = "a key of some length"


def written(*entries: str) -> bytes:
    """Write a file of keys."""
    return ("keys:\n" + "\n".join(f"- {entry}" for entry in entries)).encode()


def entry(key: str = KEY, more: str = "") -> str:
    """Write an entry."""
    return f"{{hash: '{hash_key(key)}', tenant: a{more}}}"


def test_a_key_is_found_by_its_hash() -> None:
    """And no other one is; the hash is what sha256sum prints."""
    assert hash_key("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ring = read_keys(written(entry(), entry("other", ", enabled: false, models: [m]")))
    assert ring.find(KEY) == Client("a")
    other = ring.find("other")
    assert other == Client("a", is_enabled=False, models=frozenset({"m"}))
    assert [ring.find(key) for key in ("", KEY + " ", hash_key(KEY), "\udcff")] == [None] * 4
    assert KEY not in repr(ring)
    assert hash_key(KEY) not in repr(ring)


def test_a_key_that_is_too_long_is_none() -> None:
    """It is not even hashed, whatever the file says."""
    long = "k" * (limits.API_KEY_CHARS_MAX + 1)
    ring = read_keys(written(entry(long), entry(long[1:])))
    assert (ring.find(long), ring.find(long[1:])) == (None, Client("a"))


def test_models_narrow_a_key() -> None:
    """Without a list all names are good; an empty one is good for none."""
    assert Client("a").may_ask_for("m")
    narrow = Client("a", models=frozenset({"m"}))
    assert (narrow.may_ask_for("m"), narrow.may_ask_for("n")) == (True, False)
    assert not Client("a", models=frozenset()).may_ask_for("m")


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"Authorization": "Bearer k"}, "k"),
        ({"Authorization": "bearer  k "}, "k"),
        ({"Authorization": "Basic k"}, None),
        ({"Authorization": "k"}, None),
        ({"Authorization": "Bearer"}, None),
        ({"Authorization": "Bearer ", "x-api-key": "x"}, "x"),
        ({"x-api-key": "x"}, "x"),
        ({"x-api-key": ""}, None),
        ({"Authorization": "Bearer k", "x-api-key": "x"}, "k"),
    ],
)
def test_where_a_key_is_shown(headers: dict[str, str], key: str | None) -> None:
    """A bearer token comes first, then Anthropic's header."""
    assert shown_key(headers) == key


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{", "is not YAML"),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"", ": model_type"),
        (b"- canary", ": model_type"),
        (b"keys: canary", "keys: list_type"),
        (b"keys: []\ncanary: 1", ": extra_forbidden"),
        (b"keys: [{hash: canary, tenant: a}]", "keys.0.hash: string_pattern_mismatch"),
        (written("{tenant: a}"), "keys.0.hash: missing"),
        (written(entry(more=", canary: 1")), "keys.0: extra_forbidden"),
        (written(entry(more=", enabled: 'canary'")), "keys.0.enabled: bool_type"),
        (written(entry().replace("tenant: a", "tenant: 'can ary'")), "keys.0.tenant: string_"),
        (written(entry(), entry(more=", enabled: false")), "keys.1: its hash is there twice"),
        (b"keys: []" + b" " * limits.API_KEYS_BYTES_MAX, "is over"),
        (b"!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_bad_file_is_told_without_what_it_says(text: bytes, fault: str) -> None:
    """It may hold keys that somebody forgot to hash."""
    with pytest.raises(ConfigError) as caught:
        read_keys(text)
    assert caught.value.faults[0].startswith(fault)
    assert "canary" not in str(caught.value)


def test_hash_key_writes_an_entry() -> None:
    """Its line is good below `keys:`; made keys differ; short ones and odd tenants are refused."""
    key = new_key()
    assert key != new_key()
    ring = read_keys(b"keys:\n" + line_of(key, "team-a").encode())
    assert ring.find(key) == Client("team-a")
    assert key not in line_of(key, "team-a")
    with pytest.raises(ConfigError):
        line_of("short", "team-a")
    with pytest.raises(ConfigError):
        line_of(key, "a', enabled: 'no")
