"""Files of TLS settings that cannot be used: which is named, and that nothing of a key is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import Settings
from kvatlas.common.tls import Credentials, TlsGauges
from kvatlas.common.tls_engines import PLAIN, EngineIdentities
from kvatlas.router.metrics import RouterMetrics
from tests.fakes.authority import LOCALHOST, Authority, openssl

MODELS = [{"name": "m", "tokenizer": "t"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make certificates: of a server, of another, an expired one, a weak one."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder, "ours")
    authority.issue("server", LOCALHOST)
    authority.issue("other", LOCALHOST)
    authority.issue("old", LOCALHOST, days=-1)
    weak = ("-newkey", "rsa:1024", "-nodes", "-subj", "/CN=weak", "-days", "2")
    openssl("req", "-x509", *weak, "-keyout", folder / "weak.key", "-out", folder / "weak.crt")
    locked = ("-topk8", "-in", folder / "ours-server.key", "-passout", "pass:canary")
    openssl("pkcs8", *locked, "-out", folder / "locked.key")
    openssl("genrsa", "-out", folder / "rsa.key", "2048")
    (folder / "garbage").write_text("canary-garbage")
    (folder / "cut.key").write_bytes((folder / "ours-server.key").read_bytes()[:120])
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> dict[str, Path]:
    """Give good files that a test may change."""
    named = {"cert_file": "ours-server.crt", "key_file": "ours-server.key"}
    copies = {name: tmp_path / file for name, file in named.items()}
    for path in copies.values():
        shutil.copy(made / path.name, path)
    return copies


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"cert_file": "none"}, "cert_file: {}: No such file or directory"),
        ({"key_file": "none"}, "key_file: {}: No such file or directory"),
        ({"key_file": "."}, "key_file: {}: Is a directory"),
        ({"cert_file": "garbage"}, "cert_file: {}: holds no certificate in PEM"),
        ({"key_file": "garbage"}, "key_file: {}: holds no private key in PEM that can be read"),
        ({"key_file": "cut.key"}, "key_file: {}: holds no private key in PEM that can be read"),
        ({"key_file": "ours-other.key"}, "key_file: {}: is not the key of cert_file"),
        ({"key_file": "rsa.key"}, "key_file: {}: is not the key of cert_file"),
        ({"key_file": "locked.key"}, "key_file: {}: is encrypted; it is read without a passphrase"),
        ({"cert_file": "ours-old.crt"}, "cert_file: {}: is expired"),
        (
            {"key_file": "weak.key", "cert_file": "weak.crt"},
            "cert_file: {}: is too weak (EE_KEY_TOO_SMALL)",
        ),
        ({"client_ca_file": "garbage"}, "client_ca_file: {}: holds no CA certificates in PEM"),
        ({"client_ca_file": "none"}, "client_ca_file: {}: No such file or directory"),
    ],
)
def test_each_fault_names_its_setting_and_its_file(
    made: Path, files: dict[str, Path], changed: dict[str, str], fault: str
) -> None:
    """The operator's; nothing that stands in a file is told, and no terminal is asked."""
    given = files | {name: made / file for name, file in changed.items()}
    with pytest.raises(ConfigError) as caught:
        Credentials("router.tls", "server", given, TlsGauges())
    name = fault.partition(":")[0]
    assert caught.value.faults == [f"router.tls.{fault.format(given[name])}"]
    assert "canary" not in repr(caught.value)


def test_a_certificate_of_the_future_is_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is wrong is noticed, too."""
    monkeypatch.setattr("kvatlas.common.tls.time", lambda: 1_000_000.0)
    with pytest.raises(ConfigError, match="is not valid yet"):
        Credentials("router.tls", "server", files, TlsGauges())


def shown(metrics: RouterMetrics) -> tuple[float, float]:
    """Read both gauges."""
    return metrics.tls_good.labels("s").value, metrics.tls_not_after.labels("s").value


def replaced(made: Path, name: str) -> Callable[[dict[str, Path]], None]:
    """Put another certificate, and its key, in place."""

    def do(files: dict[str, Path]) -> None:
        shutil.copy(made / f"{name}.crt", files["cert_file"])
        shutil.copy(made / f"{name}.key", files["key_file"])

    return do


def test_changed_files_are_taken_over_and_bad_ones_are_not(
    made: Path, files: dict[str, Path]
) -> None:
    """The former context stays through a half-made change, an expired one, and a missing file."""
    metrics = RouterMetrics()
    credentials = Credentials(
        "s", "server", files, TlsGauges(metrics.tls_good, metrics.tls_not_after)
    )
    credentials.announce()
    first, until = credentials.made.context, credentials.made.not_after_s
    credentials.look()
    assert credentials.made.context is first
    shutil.copy(made / "ours-other.key", files["key_file"])
    credentials.look()
    assert (credentials.made.context, shown(metrics)) == (first, (0.0, until))
    shutil.copy(made / "ours-other.crt", files["cert_file"])
    credentials.look()
    second = credentials.made.context
    assert (second is first, shown(metrics)) == (False, (1.0, credentials.made.not_after_s))
    replaced(made, "ours-old")(files)
    credentials.look()
    assert (credentials.made.context, shown(metrics)[0]) == (second, 0.0)
    files["key_file"].unlink()
    credentials.look()
    assert credentials.made.context is second


def settings_with(urls: list[dict[str, Any]], **more: Any) -> Settings:
    """Configure engines."""
    return Settings.model_validate(
        {"models": MODELS, "endpoints": [{"model": "m", **url} for url in urls], **more}
    )


def test_engines_share_what_is_the_same(made: Path) -> None:
    """Their own setting counts instead of the default; HTTP takes nothing of it."""
    ca = str(made / "ours-ca.crt")
    urls: list[dict[str, Any]] = [
        {"url": "http://e:1"},
        {"url": "https://e:2"},
        {"url": "https://e:3", "tls": {"server_name": "engines"}},
        {"url": "https://e:4", "tls": {"ca_file": ca, "server_name": "engines"}},
    ]
    settings = settings_with(urls, endpoint_tls={"ca_file": ca})
    identities = EngineIdentities(settings, TlsGauges())
    plain, default, own, same = (identities.of(each["url"]) for each in urls)
    assert plain is PLAIN
    assert plain.ssl is True
    assert default.credentials is same.credentials is not own.credentials
    assert (default.server_name, own.server_name, same.server_name) == (None, "engines", "engines")
    assert [each.setting for each in identities.credentials()] == [
        "endpoint_tls",
        "endpoints.2.tls",
    ]


def test_every_fault_of_engines_is_told_at_once() -> None:
    """And each once."""
    urls: list[dict[str, Any]] = [
        {"url": "https://e:1"},
        {"url": "https://e:2"},
        {"url": "https://e:3", "tls": {"ca_file": "/no/own"}},
    ]
    settings = settings_with(urls, endpoint_tls={"ca_file": "/no/default"})
    with pytest.raises(ConfigError) as caught:
        EngineIdentities(settings, TlsGauges())
    assert caught.value.faults == [
        "endpoint_tls.ca_file: /no/default: No such file or directory",
        "endpoints.2.tls.ca_file: /no/own: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            {"endpoints": [{"url": "http://e:1", "model": "m", "tls": {}}]},
            "endpoints.0: tls needs an https:// url",
        ),
        (
            {"endpoint_tls": {"cert_file": "c"}},
            "endpoint_tls: cert_file and key_file go together",
        ),
        ({"router": {"tls": {"cert_file": "c"}}}, "router.tls.key_file: Field required"),
    ],
)
def test_what_does_not_go_together(content: dict[str, Any], fault: str) -> None:
    """Each is named with its path."""
    with pytest.raises(ConfigError) as caught:
        Settings.model_validate({"models": MODELS, **content})
    assert caught.value.faults == [fault]


def test_a_setting_that_is_gone_is_told_of_no_more(made: Path) -> None:
    """Else its certificate would expire for ever."""
    metrics = RouterMetrics()
    gauges = TlsGauges(metrics.tls_good, metrics.tls_not_after)
    tls = {"cert_file": str(made / "ours-server.crt"), "key_file": str(made / "ours-server.key")}
    before = EngineIdentities(settings_with([{"url": "https://e:1", "tls": tls}]), gauges)
    after = EngineIdentities(settings_with([{"url": "https://e:1"}]), gauges)
    before.give_way(after)
    (family,) = metrics.tls_good.collect()
    assert [sample.labels["setting"] for sample in family.samples] == ["endpoint_tls"]
    (family,) = metrics.tls_not_after.collect()
    assert family.samples == []
