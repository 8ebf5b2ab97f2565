"""The configuration: every fault at once, with its path, and the environment over the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import RedisSettings, Settings, load

GOOD = """
redis: {url: "redis://127.0.0.1:6379/0"}
models:
  - {name: qwen3, tokenizer: ./models/qwen3, block_size: 16}
endpoints:
  - {url: "http://127.0.0.1:8101", model: qwen3, events: "tcp://127.0.0.1:5557", replay: "tcp://127.0.0.1:5558"}
router: {host: 127.0.0.1, port: 8080, admin_host: 127.0.0.1, admin_port: 9090, debug_headers: false}
indexer: {admin_host: 127.0.0.1, admin_port: 9091}
"""
BAD = """
redis: {url: "http://x"}
models:
  - {name: qwen3, tokenizer: ./models/qwen3, block_size: 0}
  - {name: qwen3, tokenizer: x, typo: 3}
endpoints:
  - {url: "127.0.0.1:8101", model: qwen4, events: "tcp://*:5557"}
  - {url: "http://127.0.0.1:8101/v1", model: qwen3, replay: "tcp://127.0.0.1:5558"}
router: {port: x, foo: 1}
bar: 3
"""


def write(folder: Path, text: str) -> Path:
    """Write a configuration."""
    path = folder / "kvatlas.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_contract_is_read(tmp_path: Path) -> None:
    """The file that others rely on."""
    settings = load(write(tmp_path, GOOD))
    assert settings.endpoints[0].names() == ("127.0.0.1:8101",)
    assert settings.model_named("qwen3").block_size == 16
    assert settings.router.port == 8080
    with pytest.raises(KeyError):
        settings.model_named("other")


def test_every_fault_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong values, unknown settings, names that do not fit, variables that name nothing."""
    monkeypatch.setenv("KVATLAS_ROTER__PORT", "1")
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, BAD))
    begun = {fault.split(": ", 1)[0] for fault in caught.value.faults}
    assert begun == {
        "KVATLAS_ROTER__PORT",
        "redis.url",
        "models.0.block_size",
        "models.1.typo",
        "models",
        "endpoints.0.url",
        "endpoints.0.events",
        "endpoints.0.model",
        "endpoints.1.url",
        "router.port",
        "router.foo",
        "bar",
    }


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single settings by path, lists as JSON."""
    path = write(tmp_path, GOOD)
    monkeypatch.setenv("KVATLAS_ROUTER__PORT", "1234")
    monkeypatch.setenv("KVATLAS_REDIS__URL", "redis://elsewhere:6379/1")
    monkeypatch.setenv("KVATLAS_MODELS", '[{"name": "qwen3", "tokenizer": "x"}]')
    settings = load(path, {"router": {"admin_port": 5}})
    assert (settings.router.port, settings.router.admin_port) == (1234, 5)
    assert settings.redis.url == "redis://elsewhere:6379/1"
    assert settings.models[0].block_size is None
    assert load(path, {"router": {"port": 7}}).router.port == 7


def test_ranks_are_endpoints_of_their_own() -> None:
    """Written with # and the rank above 0."""
    settings = Settings.model_validate(
        {
            "models": [{"name": "m", "tokenizer": "t"}],
            "endpoints": [{"url": "http://h:1", "model": "m", "data_parallel_size": 3}],
        }
    )
    assert settings.endpoints[0].names() == ("h:1", "h:1#1", "h:1#2")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1, 2]", "not a mapping"),
        ("{a: [", "not YAML in line"),
        ("- \x00", "not YAML"),
        ("endpoints: [{url: 'http://h:1', model: m}, {url: 'http://h:1', model: m}]", "twice"),
        ("endpoints: [{url: 'http://h:1', model: m, replay: 'tcp://h:2'}]", "no events"),
        ("redis: {url: 'redis://:secret@h/0'}\nrouter: {port: -1}", "router.port"),
        ("models: 7", "models: "),
        ("models: [7]", "models.0"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, fault: str) -> None:
    """A clear word for each, and no value of a secret."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)


def test_faults_of_the_command_line_and_of_variables_name_their_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As those of the file."""
    with pytest.raises(ConfigError, match=r"router\.port"):
        load(None, {"router": {"port": -1}})
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")
    monkeypatch.setenv("KVATLAS_MODELS", "not json")
    with pytest.raises(ConfigError, match="environment"):
        load(None)


def test_secrets_are_not_shown() -> None:
    """A URL may hold a password."""
    settings = Settings.model_validate({"redis": {"url": "redis://:secret@h/0"}})
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"mode": "sentinel"}, "redis: mode sentinel needs sentinels"),
        ({"mode": "cluster", "url": "unix:///s"}, "redis: mode cluster needs a redis"),
        ({"mode": "cluster", "url": "redis://h:1/2"}, "redis: a cluster has database 0 only"),
        ({"url": "rediss://h:1", "cert_file": "c"}, "redis: cert_file and key_file go together"),
        ({"ca_file": "c"}, "redis: ca_file and cert_file need a rediss"),
        ({"read_from_replicas": True}, "redis: read_from_replicas needs mode"),
        ({"nodes": ["h"]}, "redis.nodes.0: "),
        ({"nodes": ["user:secret@h:1"]}, "redis.nodes.0: "),
        ({"url": "http://h:1"}, "redis.url: scheme is one of"),
    ],
)
def test_faults_of_the_redis_section(section: dict[str, object], fault: str) -> None:
    """What does not fit together is said, without what was given."""
    with pytest.raises(ConfigError) as caught:
        Settings.model_validate({"redis": section})
    (line,) = caught.value.faults
    assert line.startswith(fault)
    assert "secret" not in line


def test_routers_write_as_they_read_unless_told() -> None:
    """Another user is taken where one is named."""
    same = RedisSettings.model_validate({"user": "a"})
    assert same.for_router_writes() == same
    other = RedisSettings.model_validate({"user": "a", "router_write_user": "b"})
    assert other.for_router_writes().user == "b"
