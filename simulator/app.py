"""The simulated engine, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kvatlas.common import admin, clock
from kvatlas.common.errors import ConfigError
from kvatlas.common.log import configure_logs, logger
from kvatlas.common.prompt import PromptBuilder
from kvatlas.common.settings import EngineSettings, ModelSettings, Settings
from kvatlas.common.tasks import Supervisor, run_service
from kvatlas.simulator.events import Sources, publishing
from kvatlas.simulator.generation import find_vocabulary
from kvatlas.simulator.http import engine_app
from kvatlas.simulator.metrics import EngineMetrics
from kvatlas.simulator.scheduler import Scheduler
from kvatlas.simulator.serving import Engine

_LOG = logger("engine")


@dataclass(frozen=True, slots=True)
class Running:
    """Where an engine is to be found, with real ports."""

    url: str
    sources: Sources


def run(settings: Settings) -> int:
    """Run an engine until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a clean stop, 78 for a bad configuration, 1 when a task died.
    """
    configure_logs(settings.log.level, json=settings.log.json_lines)

    async def main(stop: asyncio.Event) -> None:
        async with engine(settings):
            await stop.wait()

    return run_service(main)


@asynccontextmanager
async def engine(settings: Settings) -> AsyncIterator[Running]:
    """Run an engine in this event loop until the context ends.

    Raises:
        ConfigError: there is no such model, its tokenizer cannot be loaded, or an address
            cannot be bound.
    """
    chosen, model = settings.engine, _model(settings)
    prompts = PromptBuilder.load(model)
    vocabulary = find_vocabulary(
        prompts.vocab_size,
        prompts.decode,
        lambda text: prompts.encode_text(text, add_special_tokens=False),
    )
    metrics = EngineMetrics(model.name, _cache_config(chosen))
    with publishing(chosen) as publisher:
        scheduler = Scheduler(chosen, publisher, metrics, clock.monotonic)
        parts = Engine(
            settings=chosen,
            model=model,
            max_model_len=min(chosen.max_model_len, (chosen.num_blocks - 1) * chosen.block_size),
            prompts=prompts,
            vocabulary=vocabulary,
            scheduler=scheduler,
            metrics=metrics,
            sources=publisher.sources,
        )
        async with (
            Supervisor() as tasks,
            admin.serving(engine_app(parts), chosen.host, chosen.port) as port,
        ):
            tasks.start(scheduler.run(), "scheduler")
            tasks.start(publisher.serve_replays(), "replays")
            running = Running(f"http://{chosen.host}:{port}", publisher.sources)
            _LOG.info(
                "engine.started",
                url=running.url,
                events=running.sources.events,
                replay=running.sources.replay,
                model=model.name,
                num_blocks=chosen.num_blocks,
                block_size=chosen.block_size,
            )
            yield running


def _model(settings: Settings) -> ModelSettings:
    """Find the model that the engine serves."""
    if not settings.models:
        raise ConfigError(["models: at least one is needed for an engine"])
    name = settings.engine.model or settings.models[0].name
    try:
        return settings.model_named(name)
    except KeyError:
        raise ConfigError([f"engine.model: {name!r} is not one of models"]) from None


def _cache_config(settings: EngineSettings) -> dict[str, str]:
    """Describe the cache as vLLM's metric does."""
    return {
        "block_size": str(settings.block_size),
        "effective_attention_block_size": str(settings.block_size),
        "hash_block_size": "None",
        "num_gpu_blocks": str(settings.num_blocks),
        "kv_cache_size_tokens": str(settings.num_blocks * settings.block_size),
        "enable_prefix_caching": "True",
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": "None",
        "cache_dtype": "auto",
    }
