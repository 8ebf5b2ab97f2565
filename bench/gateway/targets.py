"""Envoy with the picker, Envoy alone, and the proxy, on the same engines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Final

import yaml

from bench.index.machine import BenchError
from bench.proxy.fleet import TARGETS, Start, Target
from bench.routing.routers import indexed
from bench.routing.site import Site, await_ok, kvatlas
from deploy.local_envoy import Config, Ports, command, configured, full_duplex, manager

ENVOY: Final = "envoy"
PICKER_START_S: Final = 60.0


def _gateway(
    stack: contextlib.ExitStack, site: Site, _name: str, *, edit: Callable[[Config], None] | None
) -> Target:
    """Start Redis, an indexer, a picker, and an Envoy that asks it."""
    take = site.ports.take
    port, health_port, admin_port = take(), take(), take()
    options = {"port": port, "health_port": health_port, "message_bytes_max": 32 * 1024 * 1024}
    config, shared = indexed(stack, site, {"picker": options})
    picker, _ = site.start(
        stack, "picker", kvatlas("picker", "--config", config, "--admin-port", str(admin_port))
    )
    await_ok(admin_port, "/readyz", "the picker", PICKER_START_S)
    clients, envoy = _envoy(stack, site, [port], edit)
    return Target("gateway", [clients], [picker], shared, {ENVOY: envoy})


def _alone(stack: contextlib.ExitStack, site: Site, name: str) -> Target:
    """Start an Envoy that asks nobody and spreads requests over all engines."""

    def without_picker(config: Config) -> None:
        del manager(config)["http_filters"][0]
        config["layered_runtime"]["layers"][0]["static_layer"]["kvatlas.fail_open"] = 100

    clients, envoy = _envoy(stack, site, [1], without_picker)
    return Target(name, [clients], [envoy], [])


def _envoy(
    stack: contextlib.ExitStack,
    site: Site,
    pickers: list[int],
    edit: Callable[[Config], None] | None,
) -> tuple[int, int]:
    """Start an Envoy; give its port for clients and its process."""
    ports = Ports(site.ports.take(), site.ports.take(), pickers, [e.port for e in site.engines])
    config = configured(ports)
    if edit is not None:
        edit(config)
    path = site.folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        pid, _ = site.start(stack, ENVOY, command(path))
    except FileNotFoundError as error:
        raise BenchError(str(error)) from None
    await_ok(ports.admin, "/ready", "Envoy")
    return ports.clients, pid


GATEWAYS: Final[dict[str, Start]] = {
    "envoy": _alone,
    "kvatlas": TARGETS["kvatlas"],
    "gateway": partial(_gateway, edit=None),
    "gateway, full duplex": partial(_gateway, edit=full_duplex),
}
