"""The flags of llm-d's endpoint picker: how each is read, and which setting it is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kvatlas.common.llm_d.values import duration_s, size_bytes

Read = Callable[[str], Any]
"""Reads a value; raises ValueError with what it should be."""

POOL_GROUPS: Final = ("inference.networking.k8s.io", "inference.networking.x-k8s.io")
PORTS_MAX: Final = 8
"""Of a pod, as in an InferencePool."""

# --- values -------------------------------------------------------------------------------------


def _text(value: str) -> str:
    return value


def boolean(value: str) -> bool:
    """Read true or false as Go does."""
    if value.lower() in ("1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise ValueError("is true or false")


def _path(value: str) -> Path | None:
    return Path(value) if value else None


def _port(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) <= 65_535):
        raise ValueError("is a port")
    return int(value)


def _ports(value: str) -> list[int]:
    ports = list(dict.fromkeys(_port(each.strip()) for each in value.split(",")))
    if len(ports) > PORTS_MAX or 0 in ports:
        raise ValueError("is up to 8 ports with commas between")
    return ports


def _number(value: str) -> int:
    if not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError("is a whole number")
    return int(value)


def _texts(value: str) -> list[str]:
    return [each.strip() for each in value.split(",") if each.strip()]


# --- flags --------------------------------------------------------------------------------------

SETTINGS: Final[Mapping[str, tuple[Read, str, str]]] = {
    "grpc-port": (_port, "picker", "port"),
    "grpc-health-port": (_port, "picker", "health_port"),
    "grpc-max-recv-msg-size": (size_bytes, "picker", "message_bytes_max"),
    "secure-serving": (boolean, "picker", "secure_serving"),
    "emit-endpoint-scores": (boolean, "picker", "emit_scores"),
    "metrics-port": (_port, "router", "admin_port"),
    "refresh-metrics-interval": (duration_s, "router", "metrics_interval_s"),
    "kubeconfig": (_path, "kubernetes", "kubeconfig"),
}
"""Flags that are settings, with how they are read, and the section and name of each."""

SPECIAL: Final[Mapping[str, Read]] = {
    "pool-name": _text,
    "pool-namespace": _text,
    "pool-group": _text,
    "endpoint-selector": _text,
    "endpoint-target-ports": _ports,
    "config-file": _path,
    "config-text": _text,
    "model": _text,
    "tokenizer": _text,
    "cert-path": _path,
    "drain-timeout": duration_s,
    "disable-endpoint-subset-filter": boolean,
    "metrics-cert-dir": _path,
    "metrics-client-ca-file": _path,
    "tracing": boolean,
    "tls-min-version": _text,
    "feature-gates": _texts,
    "v": _number,
    "zap-log-level": _text,
    "zap-encoder": _text,
    "zap-devel": boolean,
}
"""Flags that together, or in some other way, become settings. `model` and `tokenizer` are ours."""

WITHOUT: Final[Mapping[str, tuple[Read, str]]] = {
    "allow-experimental-plugins": (boolean, ""),
    "enable-cert-reload": (boolean, "true"),
    "enable-grpc-stream-metrics": (boolean, ""),
    "enable-pprof": (boolean, "false"),
    "fairness-id-metric-label-limit": (_number, ""),
    "grpc-max-send-msg-size": (size_bytes, ""),
    "ha-enable-leader-election": (boolean, "false"),
    "health-checking": (boolean, "true"),
    "metrics-endpoint-auth": (boolean, "false"),
    "metrics-staleness-threshold": (duration_s, ""),
    "model-server-metrics-https-insecure-skip-verify": (boolean, "false"),
    "model-server-metrics-path": (_text, "/metrics"),
    "model-server-metrics-port": (_port, "0"),
    "model-server-metrics-scheme": (_text, "http"),
    "plugin-state-staleness-threshold": (duration_s, ""),
    "refresh-prometheus-metrics-interval": (duration_s, ""),
    "tls-cipher-suites": (_texts, ""),
    "zap-stacktrace-level": (_text, ""),
    "zap-time-encoding": (_text, ""),
}
"""Flags that change nothing here, with the value, if there is one, that says what is so anyway."""

METRICS: Final[Mapping[str, str]] = {
    "total-queued-requests-metric": "vllm:num_requests_waiting",
    "total-running-requests-metric": "vllm:num_requests_running",
    "kv-cache-usage-percentage-metric": "vllm:kv_cache_usage_perc",
    "lora-info-metric": "vllm:lora_requests_info",
    "cache-info-metric": "vllm:cache_config_info",
}
"""Flags that name an engine's metrics, and what vLLM calls them."""

READERS: Final[Mapping[str, Read]] = {
    **{name: read for name, (read, _, _) in SETTINGS.items()},
    **SPECIAL,
    **{name: read for name, (read, _) in WITHOUT.items()},
    **dict.fromkeys(METRICS, _text),
}


def kebab(name: str) -> str:
    """Write a name of an older version's flag, such as `poolName`, as it is since."""
    return "".join(f"-{each.lower()}" if each.isupper() else each for each in name)
