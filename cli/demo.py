"""`kvatlas demo`: the same conversations through kvatlas, round robin and least load.

Each policy gets a fleet of its own, so that all begin with cold caches. The demo fails when
kvatlas does not reach the share of cached tokens that it promises.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from kvatlas.cli.best_share import best_cached_tokens, percentile
from kvatlas.cli.console import progress
from kvatlas.cli.conversations import Load
from kvatlas.cli.fleet import BLOCK_SIZE, MODEL, FleetPlan, running_fleet
from kvatlas.cli.users import Asked, Users

KVATLAS: Final = "kvatlas"
POLICIES: Final = {
    KVATLAS: "prefix",
    "round robin": "round-robin",
    "least load": "least-load",
}
PROMISED_SHARE: Final = 0.95
"""Of the best possible share of cached tokens."""

LEGEND: Final = """\
cached         prompt tokens that the engines had in their caches
best possible  those that any request finished before had left in a cache, were all caches one and
               without bounds; more than all of it comes from requests that were still running
TTFT           time to first token"""

ENGINE: Final[dict[str, Any]] = {
    "num_blocks": 8_192,
    "prefill_tokens_per_s": 8_000.0,
    "decode_step_ms": 15.0,
    "decode_step_ms_per_seq": 0.25,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy achieved.

    Attributes:
        best_tokens: prompt tokens that shared caches without bounds could have served.
        ttft_s: times to first token, one per request, at least one.
        requests: how many each engine got.
    """

    prompt_tokens: int
    cached_tokens: int
    best_tokens: int
    ttft_s: Sequence[float]
    requests: Mapping[str, int]

    @property
    def share(self) -> float:
        """Give the share of prompt tokens that were cached."""
        return self.cached_tokens / self.prompt_tokens

    @property
    def best_share(self) -> float:
        """Give the best share possible."""
        return self.best_tokens / self.prompt_tokens

    @property
    def of_best(self) -> float:
        """Give how much of the best possible share was reached; 1 when nothing was possible."""
        return self.cached_tokens / self.best_tokens if self.best_tokens else 1.0


def outcome_of(asked: Sequence[Asked], engines: Sequence[str], block_size: int) -> Outcome:
    """Sum up a policy's requests; `engines` are listed even when they got none."""
    counts = Counter(dict.fromkeys(engines, 0))
    counts.update(one.endpoint for one in asked)
    return Outcome(
        prompt_tokens=sum(len(one.served.prompt) for one in asked),
        cached_tokens=sum(one.cached_tokens for one in asked),
        best_tokens=best_cached_tokens((one.served for one in asked), block_size),
        ttft_s=[one.ttft_s for one in asked],
        requests=dict(counts),
    )


def run_policy(console: Console, name: str, load: Load, plan: FleetPlan) -> Outcome:
    """Hold the conversations on a fleet of its own.

    Raises:
        FleetError: a part did not start, or died.
        DemoError: a request failed.
    """
    router = {"policy": POLICIES[name], "debug_headers": True, **plan.router}
    own = FleetPlan(plan.engines, plan.routers, router, {**ENGINE, **plan.engine})
    with progress(console) as bars:
        starting = bars.add_task(f"{name:12} starting", total=own.parts)
        with running_fleet(own, lambda _part: bars.advance(starting)) as fleet:
            talking = bars.add_task(f"{name:12} requests", total=load.requests)
            urls = [f"http://{router.name}/v1" for router in fleet.routers]
            users = Users(urls, MODEL, load)
            asked = asyncio.run(users.talk(lambda: bars.advance(talking)))
            fleet.check()
    return outcome_of(asked, [engine.name for engine in fleet.engines], BLOCK_SIZE)


def outcome_table(outcomes: Mapping[str, Outcome]) -> Table:
    """Write the table, a row per policy."""
    table = Table(title="The same conversations, three ways to route them")
    table.add_column("policy")
    heads = ("cached", "best possible", "of best", "TTFT mean", "TTFT p90", "requests per engine")
    for head in heads:
        table.add_column(head, justify="right")
    for name, outcome in outcomes.items():
        mean_s = sum(outcome.ttft_s) / len(outcome.ttft_s)
        table.add_row(
            name,
            f"{outcome.share:.1%}",
            f"{outcome.best_share:.1%}",
            f"{outcome.of_best:.1%}",
            f"{mean_s * 1e3:.0f} ms",
            f"{percentile(outcome.ttft_s, 0.9) * 1e3:.0f} ms",
            " / ".join(str(count) for count in outcome.requests.values()),
        )
    return table


def verdict(outcome: Outcome) -> str | None:
    """Say what kvatlas fell short of, or None when it kept its promise."""
    if outcome.of_best >= PROMISED_SHARE:
        return None
    return (
        f"kvatlas reached {outcome.of_best:.1%} of the best possible share of cached tokens, "
        f"{PROMISED_SHARE:.0%} are promised"
    )


def run_demo(console: Console, told: Console, load: Load, plan: FleetPlan) -> int:
    """Run every policy, print the table, and judge kvatlas.

    Args:
        console: for the table.
        told: for what is under way.
        load: the conversations.
        plan: the fleet; each policy gets one like it.

    Returns:
        The exit status: 0 when the promise is kept, else 1.
    """
    told.print(
        f"{load.conversations} conversations of {load.turns} turns over {load.systems} shared "
        f"system prompts, {load.users} at a time; {plan.engines} engines, {plan.routers} routers"
    )
    outcomes = {name: run_policy(told, name, load, plan) for name in POLICIES}
    console.print(outcome_table(outcomes))
    console.print(LEGEND)
    fault = verdict(outcomes[KVATLAS])
    if fault:
        told.print(f"error: {fault}")
    return 1 if fault else 0
