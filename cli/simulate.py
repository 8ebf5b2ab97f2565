"""`kvatlas simulate`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvatlas.cli.console import faults_told
from kvatlas.common import limits

DEFAULT = ["kvatlas", "oracle"]
Above = Annotated[float, typer.Option(min=1e-6)]


def simulate(
    *,
    trace: Annotated[str, typer.Option(help="A file in Mooncake's format, or made:NAME.")],
    endpoints: Annotated[int, typer.Option(min=1, max=limits.SIMULATED_ENDPOINTS_MAX)] = 8,
    routers: Annotated[int, typer.Option(min=1, max=limits.SIMULATED_ROUTERS_MAX)] = 1,
    policy: Annotated[
        list[str] | None, typer.Option(help="Once for each; kvatlas and oracle when left out.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Whose router section kvatlas goes by.")
    ] = None,
    speedup: Annotated[float, typer.Option(min=1e-6, help="Of arrivals.")] = 1.0,
    requests: Annotated[int | None, typer.Option(min=1, help="Only the first ones.")] = None,
    start_s: Annotated[float, typer.Option(min=0, help="By the trace's clock.")] = 0.0,
    duration_s: Annotated[float | None, typer.Option(min=0, help="By the trace's clock.")] = None,
    spread_ms: Annotated[
        float, typer.Option(min=0, help="Move arrivals by up to so much, by the trace's clock.")
    ] = 0.0,
    copies: Annotated[int, typer.Option(min=1, max=1_024, help="Laid over each other.")] = 1,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens; divides 512.")] = 16,
    cache_blocks: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 32_000,
    prefill_tokens_per_s: Above = 15_928.0,
    decode_step_ms: Annotated[float, typer.Option(min=0)] = 10.0,
    decode_step_ms_per_job: Annotated[float, typer.Option(min=0)] = 0.25,
    step_tokens: Annotated[int, typer.Option(min=1, help="max_num_batched_tokens")] = 8_192,
    running_jobs: Annotated[int, typer.Option(min=1, help="max_num_seqs")] = 256,
    event_delay_ms: Annotated[float, typer.Option(min=0, help="Until the index knows.")] = 50.0,
    scrape_ms: Annotated[float, typer.Option(min=1, help="Between looks at gauges.")] = 200.0,
    share_delay_ms: Annotated[
        float, typer.Option(min=0, help="Until other routers know of a decision.")
    ] = 2.0,
    own_only: Annotated[bool, typer.Option(help="Routers hear nothing of each other.")] = False,
    races: Annotated[bool, typer.Option(help="Decisions of one moment stay as they are.")] = False,
    ttft_limit_s: Annotated[float, typer.Option(min=0, help="For `in time`.")] = 5.0,
    seed: Annotated[int, typer.Option(help="The same seed, the same figures.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures there, too; - for stdout.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture; needs matplotlib.")] = None,
) -> None:
    """Simulate a trace on a fleet in virtual time and compare policies."""
    from kvatlas.cli.simulation import Question, answer  # noqa: PLC0415 - `--help` stays quick
    from kvatlas.planner.engine import EngineModel  # noqa: PLC0415 - alike
    from kvatlas.planner.plan import Cut  # noqa: PLC0415 - alike
    from kvatlas.planner.routers import Sharing  # noqa: PLC0415 - alike
    from kvatlas.planner.simulation import Fleet  # noqa: PLC0415 - alike

    engine = EngineModel(
        prefill_tokens_per_s,
        decode_step_ms,
        decode_step_ms_per_job,
        step_tokens,
        running_jobs,
        cache_blocks,
        block_size,
    )
    sharing = Sharing(share_delay_ms / 1e3, own_only, races)
    fleet = Fleet(endpoints, routers, engine, event_delay_ms / 1e3, scrape_ms / 1e3, sharing)
    cut = Cut(requests, start_s, duration_s, speedup, spread_ms, copies)
    question = Question(trace, cut, fleet, policy or DEFAULT, seed, ttft_limit_s, config)
    with faults_told():
        answer(question, json_file, plot)
