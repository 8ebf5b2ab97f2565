"""The flags of llm-d's endpoint picker become settings of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kvatlas.cli.flag_table import METRICS, READERS, SETTINGS, WITHOUT, boolean
from kvatlas.cli.llm_d import ConfigFiles, configure
from kvatlas.cli.main import app
from kvatlas.cli.picker_flags import PickerFlags, read_flags
from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import Settings
from tests.fakes.llm_d import HERMETIC

POOL = ("--pool-name", "pool")
MODEL = ("--model", "m", "--tokenizer", "/models/m")


def read(*arguments: str, **environment: str) -> PickerFlags:
    """Read flags that are in order."""
    flags = read_flags(arguments, environment)
    assert flags.faults == []
    return flags


def faults(*arguments: str) -> list[str]:
    """Give what is wrong with flags."""
    return read_flags(arguments, {}).faults


# --- how they are written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grpc-port=9100"],
        ["--grpc-port", "9100"],
        ["-grpc-port=9100"],
        ["-grpc-port", "9100"],
        ["--grpcPort", "9100"],
        ["--grpc-port=1", "--grpc-port=9100"],
    ],
)
def test_a_flag_is_written_in_several_ways(arguments: list[str]) -> None:
    """Expect one dash or two, a space or a sign between, older names, and the last to count."""
    assert read(*arguments).overrides == {"picker": {"port": 9100}}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--secure-serving", True),
        ("--secure-serving=true", True),
        ("--secure-serving=T", True),
        ("--secure-serving=false", False),
        ("-secure-serving=0", False),
    ],
)
def test_what_is_true_or_false_needs_no_value(argument: str, value: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Expect true without one, and what follows to be a flag of its own."""
    found = read(argument, "--metrics-port=9091").overrides
    assert found == {"picker": {"secure_serving": value}, "router": {"admin_port": 9091}}


def test_every_fault_is_told_at_once() -> None:
    """Expect a line for each, beginning with the flag."""
    assert faults(
        "--nonsense",
        "3",
        "--other=1",
        "word",
        "--",
        "-",
        "--secure-serving=maybe",
        "--grpc-port=x",
        "--metrics-port=70000",
        "--v=x",
        "--drain-timeout=5",
        "--endpoint-target-ports=1,2,x",
        "--grpc-max-recv-msg-size=big",
        "--zap-log-level=loud",
        "--zap-encoder=xml",
        "--tls-min-version=TLS1",
        "--pool-group=g",
        "--metrics-client-ca-file=/ca",
        "--tokenizer=t",
        "--feature-gates=flowControl,new",
        "--pool-name",
    ) == [
        "--nonsense: unknown flag",
        "--other: unknown flag",
        "word: is no flag",
        "--: is no flag",
        "-: is no flag",
        "--pool-name: needs a value",
        "--secure-serving: is true or false",
        "--grpc-port: is a port",
        "--metrics-port: is a port",
        "--v: is a whole number",
        "--drain-timeout: is a duration such as 500ms or 1m30s",
        "--endpoint-target-ports: is a port",
        "--grpc-max-recv-msg-size: is a quantity such as 5000, 1G or 8Gi",
        "--metrics-client-ca-file: needs --metrics-cert-dir",
        "--tls-min-version: is VersionTLS12 or VersionTLS13",
        "--zap-log-level: is debug, info, error or a number",
        "--zap-encoder: is json or console",
        "--feature-gates: unknown feature gate 'new'",
        "--pool-group: is one of inference.networking.k8s.io, inference.networking.x-k8s.io",
        "--tokenizer: needs --model",
    ]


def test_what_excludes_each_other_is_a_fault() -> None:
    """Expect it of pools and selectors, of text and file, and of too many ports."""
    assert faults(
        "--pool-name=p", "--endpoint-selector=a=b", "--config-text=x", "--config-file=y"
    ) == [
        "--config-text: excludes --config-file",
        "--pool-name: excludes --endpoint-selector",
        "--endpoint-target-ports: is needed with --endpoint-selector",
    ]
    nine = ",".join(str(port) for port in range(1, 10))
    for ports in (nine, "0"):
        assert faults(f"--endpoint-target-ports={ports}") == [
            "--endpoint-target-ports: is up to 8 ports with commas between"
        ]


def test_unknown_flags_take_their_values_with_them() -> None:
    """Expect no second fault of a value, nor a flag to be taken for one."""
    assert faults("--odd", "value", "--even", "--v=1") == [
        "--odd: unknown flag",
        "--even: unknown flag",
    ]


# --- what they mean -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--grpc-health-port=9103"], {"picker": {"health_port": 9103}}),
        (["--grpc-max-recv-msg-size=10MiB"], {"picker": {"message_bytes_max": 10 * 2**20}}),
        (["--emit-endpoint-scores"], {"picker": {"emit_scores": True}}),
        (["--disable-endpoint-subset-filter"], {"picker": {"subset_hint": False}}),
        (["--disable-endpoint-subset-filter=false"], {"picker": {"subset_hint": True}}),
        (["--refresh-metrics-interval=50ms"], {"router": {"metrics_interval_s": 0.05}}),
        (["--drain-timeout=1m30s"], {"router": {"drain_s": 90.0}}),
        (["--drain-timeout=0"], {"router": {"drain_s": 0.001}}),
        (["--kubeconfig=/k"], {"kubernetes": {"kubeconfig": Path("/k")}}),
        (["--tracing=false"], {"router": {"trace_url": None}}),
        (["--tls-min-version=VersionTLS12"], {}),
        (["--cert-path="], {}),
        (
            ["--cert-path=/c"],
            {"picker": {"tls": {"cert_file": Path("/c/tls.crt"), "key_file": Path("/c/tls.key")}}},
        ),
        (
            ["--metrics-cert-dir=/m", "--metrics-client-ca-file=/ca"],
            {
                "router": {
                    "admin_tls": {
                        "cert_file": Path("/m/tls.crt"),
                        "key_file": Path("/m/tls.key"),
                        "client_ca_file": Path("/ca"),
                    }
                }
            },
        ),
        (["--v=2"], {"log": {"level": "info"}}),
        (["-v", "5"], {"log": {"level": "debug"}}),
        (["--zap-devel"], {"log": {"level": "debug", "json_lines": False}}),
        (["--zap-devel=false"], {}),
        (
            ["--zap-log-level=error", "--zap-encoder=console"],
            {"log": {"level": "error", "json_lines": False}},
        ),
        (
            ["--zap-log-level=4", "--v=1", "--zap-encoder=json"],
            {"log": {"level": "debug", "json_lines": True}},
        ),
        (["--zap-log-level=3"], {"log": {"level": "info"}}),
    ],
)
def test_flags_are_settings(arguments: list[str], overrides: dict[str, Any]) -> None:
    """Expect the setting of each, without a warning."""
    found = read(*arguments)
    assert found.overrides == overrides
    assert found.warnings == []


def test_every_flag_is_read_and_every_setting_is_one() -> None:
    """Expect all flags to have a reader, and their settings to be there."""
    for section, name in ((section, name) for _, section, name in SETTINGS.values()):
        inner: Any = Settings.model_fields[section].annotation
        assert name in inner.model_fields
    assert {*SETTINGS, *WITHOUT, *METRICS} <= set(READERS)
    assert not set(SETTINGS) & set(WITHOUT)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--pool-name=p"], {"kind": "inference-pool", "name": "p"}),
        (
            ["--pool-name=p", "--pool-namespace=n", "--pool-group=inference.networking.x-k8s.io"],
            {
                "kind": "inference-pool",
                "name": "p",
                "namespace": "n",
                "group": "inference.networking.x-k8s.io",
            },
        ),
        (
            ["--endpoint-selector=app in (a,b),!c", "--endpoint-target-ports=8000,8001,8000"],
            {"kind": "pods", "selector": "app in (a,b),!c", "ports": [8000, 8001]},
        ),
    ],
)
def test_endpoints_are_found_where_flags_say(arguments: list[str], place: dict[str, Any]) -> None:
    """Expect a pool or pods, in the namespace of the flag, else of the environment."""
    assert read(*arguments).added == {"discovery": [place]}
    named = {**place, "namespace": place.get("namespace", "e")}
    assert read(*arguments, NAMESPACE="e").added == {"discovery": [named]}


def test_a_model_can_be_named() -> None:
    """Expect the tokenizer of the same name where none is given."""
    assert read("--model=m").added == {"models": [{"name": "m", "tokenizer": "m"}]}
    assert read(*MODEL).added == {"models": [{"name": "m", "tokenizer": "/models/m"}]}


def test_flags_without_a_counterpart_are_one_warning() -> None:
    """Expect all of them in it, except those that say what is so anyway."""
    durations = ("interval", "threshold")
    given = []
    for name, (reads, _) in WITHOUT.items():
        value = "5s" if name.endswith(durations) else "1"
        given.append(f"--{name}={'true' if reads is boolean else value}")
    same = {name for name, (_, value) in WITHOUT.items() if value == "true"}
    found = read(*given)
    assert found.overrides == {}
    (warning,) = found.warnings
    assert warning.startswith("flags that change nothing here (--allow-experimental-plugins, ")
    named = warning.partition("(")[2].removesuffix(")").split(", ")
    assert set(named) == {f"--{name}" for name in WITHOUT if name not in same}
    as_here = [f"--{name}={value}" for name, (_, value) in WITHOUT.items() if value]
    assert read(*as_here).warnings == []


def test_names_of_metrics_are_vllm_s() -> None:
    """Expect its own to be taken, and others to be refused."""
    assert read(*(f"--{name}={own}" for name, own in METRICS.items())).overrides == {}
    assert faults("--kv-cache-usage-percentage-metric=sglang:token_usage") == [
        "--kv-cache-usage-percentage-metric: only vLLM's own name is read, vllm:kv_cache_usage_perc"
    ]


def test_some_flags_are_warned_of() -> None:
    """Expect to hear of gates, of traces, and of TLS that is older or newer than can be had."""
    found = read(
        "--feature-gates=flowControl=true,dataLayer=false",
        "--tracing",
        "--tls-min-version=VersionTLS10",
    )
    assert found.warnings == [
        "TLS below 1.2 is spoken nowhere (--tls-min-version)",
        "traces go where router.trace_url says (--tracing)",
        "a feature gate without a counterpart (flowControl)",
    ]
    assert faults("--tls-min-version=VersionTLS13") == [
        "--tls-min-version: TLS 1.2 cannot be refused, only older ones"
    ]


# --- with configurations --------------------------------------------------------------------------


def test_a_picker_takes_the_place_of_llm_d_s(tmp_path: Path) -> None:
    """Expect its ports on all interfaces, its default profile, and flags over the environment."""
    found = configure([*POOL, *MODEL, "--metrics-port=9191"], None, {"NAMESPACE": "n"})
    settings = found.settings()
    assert (settings.picker.host, settings.router.admin_host) == ("0.0.0.0", "0.0.0.0")  # noqa: S104 - where it listens
    assert (settings.picker.port, settings.router.admin_port) == (9002, 9191)
    assert settings.models[0].tokenizer == "/models/m"
    assert settings.router.profile is not None
    assert settings.picker.passthrough
    assert found.warnings
    file = tmp_path / "epp.yaml"
    file.write_text(HERMETIC)
    found = configure([*POOL, *MODEL, "--config-file", str(file)], None, {})
    profile = found.settings().router.profile
    assert profile is not None
    assert len(profile["plugins"]) == 5


def test_our_own_file_counts_for_what_flags_do_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expect its way to choose without llm-d's configuration, and where it listens."""
    own = tmp_path / "kvatlas.yaml"
    own.write_text(
        "models: [{name: m, tokenizer: t}]\n"
        "endpoints: [{url: 'http://e:1', model: m}]\n"
        "router: {policy: least-load, admin_port: 1, metrics_interval_s: 2}\n"
    )
    monkeypatch.setenv("KVATLAS_ROUTER__METRICS_INTERVAL_S", "3")
    found = configure(["--metrics-port=2"], own, {})
    settings = found.settings()
    assert settings.router.policy == "least-load"
    assert (settings.router.admin_host, settings.router.admin_port) == ("127.0.0.1", 2)
    assert settings.router.metrics_interval_s == 3
    assert found.warnings == []
    with pytest.raises(ConfigError, match=r"router\.policy"):
        configure(["--config-text", HERMETIC], own, {})
    own.write_text("router: {admin_host: '::1', admin_port: 1}\npicker: 5\n")
    with pytest.raises(ConfigError, match="picker"):
        configure([*POOL, *MODEL, "--config-text", HERMETIC], own, {}).settings()
    own.write_text("router: {admin_host: '::1'}")
    found = configure([*POOL, *MODEL, "--config-text", HERMETIC], own, {})
    assert found.settings().router.admin_host == "::1"


def test_a_file_of_endpoints_counts_more_than_a_pool() -> None:
    """Expect the file alone, as with llm-d, and to be told so."""
    text = yaml.safe_dump(
        {
            **yaml.safe_load(HERMETIC),
            "plugins": [
                *yaml.safe_load(HERMETIC)["plugins"],
                {"type": "file-discovery", "parameters": {"path": "/e.yaml"}},
            ],
            "dataLayer": {"discovery": {"pluginRef": "file-discovery"}},
        }
    )
    found = configure([*POOL, *MODEL, "--config-text", text], None, {})
    (place,) = found.settings().discovery
    assert place.kind == "file"
    assert found.warnings[-1] == (
        "endpoints are those of the file, as with llm-d (--pool-name, --endpoint-selector)"
    )


def test_models_and_endpoints_must_be_named() -> None:
    """Expect a fault for each, which says how."""
    with pytest.raises(ConfigError) as caught:
        configure([], None, {}).settings()
    assert [each.partition(":")[0] for each in caught.value.faults] == ["models", "discovery"]


def test_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    """Expect those of the flags, of our file and of llm-d's."""
    own = tmp_path / "kvatlas.yaml"
    own.write_text("- 1")
    with pytest.raises(ConfigError) as caught:
        configure(["--odd", "--config-text", "kind: Other"], own, {})
    assert caught.value.faults == [
        "--odd: unknown flag",
        f"{own}: is not a mapping of settings",
        "apiVersion: Field required",
        "kind: Input should be 'EndpointPickerConfig'",
    ]
    missing, binary = tmp_path / "missing", tmp_path / "binary"
    binary.write_bytes(b"\xff")
    for file, reason in ((missing, "No such file or directory"), (binary, "is not text")):
        with pytest.raises(ConfigError) as caught:
            configure(["--config-file", str(file)], None, {})
        assert caught.value.faults == [f"--config-file: {file}: {reason}"]


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    """Expect nothing without a change, unless it is asked for, and faults to be raised."""
    own, theirs = tmp_path / "kvatlas.yaml", tmp_path / "epp.yaml"
    own.write_text("router: {drain_s: 1}")
    theirs.write_text(HERMETIC)
    arguments = [*POOL, *MODEL, "--config-file", str(theirs)]
    files = ConfigFiles(arguments, own, {})
    assert files.first.settings().router.drain_s == 1
    assert files.read(is_asked=False) is None
    own.write_text("router: {drain_s: 2}")
    changed = files.read(is_asked=False)
    assert changed is not None
    assert changed.router.drain_s == 2
    assert files.read(is_asked=False) is None
    assert files.read(is_asked=True) == changed
    theirs.write_text("kind: Other")
    with pytest.raises(ConfigError, match="kind"):
        files.read(is_asked=False)


def test_the_command_prints_a_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect YAML that is a configuration, warnings on the other stream, and 78 for faults."""
    for name in [each for each in os.environ if each.startswith("KVATLAS_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NAMESPACE", raising=False)
    file = tmp_path / "epp.yaml"
    file.write_text(HERMETIC)
    arguments = ["-config-file", str(file), *POOL, *MODEL, "-cert-path=/c", "--v=5"]
    ran = CliRunner().invoke(app, ["translate-config", *arguments])
    assert ran.exit_code == 0
    assert ran.stderr.startswith("warning: ")
    settings = Settings.model_validate(yaml.safe_load(ran.stdout))
    assert settings == configure(arguments, None, {}).settings()
    assert settings.picker.tls is not None
    ran = CliRunner().invoke(app, ["translate-config", "--odd"])
    assert (ran.exit_code, ran.stdout) == (78, "")
    assert "--odd: unknown flag" in ran.stderr
