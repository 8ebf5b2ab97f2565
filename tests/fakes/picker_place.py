"""A picker, a gateway's connection to it, and engines of which only the load is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.picker_app import Running, picker
from tests.fakes.ext_proc_client import Ask, Call, Picked, gateway
from tests.fakes.gauged_engine import GaugedEngine

MODEL = "m"
SCORERS = [
    "queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer", "lora-affinity-scorer",
]  # fmt: skip


def profile_of(scorers: Sequence[str], *filters: str) -> dict[str, Any]:
    """Write a profile of filters, scorers of weight 1 and the picker of the best score."""
    return {
        "plugins": [{"type": each} for each in [*filters, *scorers, "max-score-picker"]],
        "schedulingProfiles": [
            {
                "name": "default",
                "plugins": [
                    *({"pluginRef": each} for each in filters),
                    *({"pluginRef": each, "weight": 1} for each in scorers),
                    {"pluginRef": "max-score-picker"},
                ],
            }
        ],
    }


PROFILE = profile_of(SCORERS)
"""The four scorers of weight 1 with which the cases of llm-d's own tests are told."""


@dataclass(frozen=True)
class Pod:
    """An engine as the cases tell of it."""

    queue: int = 0
    kv_usage: float = 0.0
    adapters: Sequence[str] = ()
    waiting_adapters: Sequence[str] = ()

    def engine(self) -> GaugedEngine:
        """Make it."""
        lora = (
            f'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="'
            f'{",".join(self.adapters)}",waiting_lora_adapters='
            f'"{",".join(self.waiting_adapters)}"}} 1795420000.0\n'
        )
        usage = f'vllm:kv_cache_usage_perc{{engine="0",model_name="{MODEL}"}} {self.kv_usage}\n'
        return GaugedEngine(running=[0], waiting=[self.queue], more=usage + lora)


@dataclass
class PickerPlace:
    """A picker that has looked at its engines.

    Attributes:
        addresses: of the engines, in their order.
    """

    running: Running
    channel: grpc.aio.Channel
    addresses: list[str]

    def call(self, ask: Ask) -> Call:
        """Begin an exchange."""
        return Call(self.channel, ask)

    async def pick(self, ask: Ask) -> Picked:
        """Show a request, and end the exchange."""
        call = self.call(ask)
        picked = await call.pick()
        call.cancel()
        return picked

    def number_of(self, picked: Picked) -> int:
        """Give the position of the engine that was picked."""
        return self.addresses.index(picked.destination)

    def value(self, name: str, **labels: str) -> float:
        """Read a metric."""
        registry = self.running.service.metrics.registry
        return registry.get_sample_value(f"kvatlas_router_{name}", labels) or 0.0

    async def quiet(self) -> None:
        """Wait until nothing is under way, as the picker counts it everywhere."""
        endpoints = list(self.running.service.cores.current.endpoints.all())
        desk = self.running.service.cores.current.desk
        for _ in range(300):
            counts = [each.requests for each in endpoints]
            if not any(counts) and not self.running.picker.open and not desk.open_requests:
                return
            await asyncio.sleep(0.01)
        raise AssertionError((counts, self.running.picker.open, desk.open_requests))


def picker_settings(urls: Sequence[str], redis_url: str, **sections: Any) -> Settings:
    """Configure a picker for engines that serve the demo model."""
    options = {"port": 0, "health_port": 0, "secure_serving": False}
    router = {
        "port": 0, "admin_port": 0, "metrics_interval_s": 0.05, "pre_stop_s": 0, "drain_s": 2,
    }  # fmt: skip
    model = {"name": MODEL, "tokenizer": str(demo_model_path()), "block_size": 16}
    return Settings.model_validate({
        "redis": {"url": redis_url},
        "models": [model | sections.pop("model", {})],
        "endpoints": [{"url": url, "model": MODEL} for url in urls],
        "router": router | sections.pop("router", {}),
        "picker": options | sections.pop("picker", {}),
        "indexer": {"admin_port": 0},
        **sections,
    })  # fmt: skip


@asynccontextmanager
async def picking(settings: Settings) -> AsyncIterator[PickerPlace]:
    """Run a picker that has looked at its engines, and connect to it."""
    async with picker(settings) as running:
        for _ in range(300):
            if running.readiness() is None:
                break
            await asyncio.sleep(0.02)
        async with gateway(running.port) as channel:
            addresses = [each.host_port for each in settings.endpoints]
            yield PickerPlace(running, channel, addresses)


@asynccontextmanager
async def pods(redis_url: str, *all_pods: Pod, **sections: Any) -> AsyncIterator[PickerPlace]:
    """Run a picker with llm-d's scorers before engines as the cases tell of them."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(pod.engine().serving()) for pod in all_pods]
        router = {"profile": PROFILE} | sections.pop("router", {})
        settings = picker_settings([e.url for e in engines], redis_url, router=router, **sections)
        yield await stack.enter_async_context(picking(settings))
