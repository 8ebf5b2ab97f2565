"""How long a decision takes: `python -m bench.scheduling` from the root of the repository.

Prints the CPU time of `Profile.run` in microseconds, of several rounds the quickest, over fleets of
several sizes whose speeds have been learned, in which every other endpoint has a request under way
and every eighth holds part of the prompt.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.common.settings import RouterSettings
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.flights import Board, Launch, RouterId
from kvatlas.router.prefill_speed import ANSWERS_LEAST
from kvatlas.router.profiles import build_profile
from kvatlas.router.scheduling import Candidate, Profile, Work
from kvatlas.router.scheduling.build import Builder
from kvatlas.router.scheduling.guard import Fault

SIZES: Final = (8, 64, 512, 1_024)
ROUNDS: Final = 9
ROUND_S: Final = 0.05
MODEL: Final = ModelName("model")

LLM_D: Final[Mapping[str, float]] = {
    "active-request-scorer": 4,
    "kv-cache-utilization-scorer": 2,
    "prefix-cache-scorer": 2,
    "no-hit-lru-scorer": 2,
    "max-score-picker": 0,
}
"""llm-d's example of a profile over an exact index, with its weights."""


class ThirdParty:
    """A plugin of strangers that scores as cheaply as one can, to see what holding it costs."""

    def score(self, _work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give 1 to each."""
        return [1.0] * len(candidates)


def profiles() -> dict[str, Profile]:
    """Make what is measured."""
    strangers = {"third-party": 1.0, "max-score-picker": 0.0}
    return {
        **{name: build_profile(RouterSettings(policy=name)) for name in ("prefix", "least-load")},
        "softmax": profile_of({"cost-scorer": 1.0, "softmax-picker": 0.0}),
        "llm-d's weights": profile_of(LLM_D),
        "a third party's": profile_of(strangers),
    }


def profile_of(weights: Mapping[str, float]) -> Profile:
    """Make a profile of plugins without parameters; those of weight 0 are no scorers."""
    refs = [
        {"pluginRef": name, **({"weight": weight} if weight else {})}
        for name, weight in weights.items()
    ]
    config: dict[str, Any] = {
        "plugins": [{"type": name} for name in weights],
        "schedulingProfiles": [{"name": "default", "plugins": refs}],
    }
    return Builder(lambda _kind: lambda _parameters: ThirdParty(), refuse).build(config)


def refuse(plugin: str, fault: Fault, error: Exception | None) -> None:
    """Stop at a fault: what is measured must be right."""
    raise AssertionError(plugin, fault) from error


def fleet(size: int) -> list[Candidate]:
    """Make candidates with the router's own endpoints and board behind them."""
    board = Board(RouterId("me"), 8_000.0)
    candidates = []
    for i in range(size):
        name = EndpointName(f"10.0.{i // 256}.{i % 256}:8000")
        endpoint = Endpoint(
            name, MODEL, f"http://{name}", 0, Shard(MODEL, 0), None, 16, board.stand(name)
        )
        endpoint.others_running = i % 3
        for answer in range(ANSWERS_LEAST):
            number = size + i * ANSWERS_LEAST + answer
            board.launched(board.me, Launch(number, name, 800), 0.0)
            board.began(board.me, number, 0.1)
            board.ended(board.me, number, name)
        if i % 2:
            board.launched(board.me, Launch(i, name, 100 + i), 1.0)
        match = 1_600 if i % 8 == 0 else 0
        candidates.append(Candidate(name, match, match, endpoint))
    return candidates


def time_us(profile: Profile, candidates: Sequence[Candidate]) -> float:
    """Measure a decision."""
    chance, work = random.Random(1), Work(4_000, now_s=1.001)
    times = []
    for _ in range(ROUNDS):
        runs, begun = 0, time.process_time()
        while (spent := time.process_time() - begun) < ROUND_S:
            profile.run(work, candidates, chance)
            runs += 1
        times.append(spent / runs * 1e6)
    return min(times)


def main() -> None:
    """Print the table."""
    print("| profile | " + " | ".join(f"{size:,}" for size in SIZES) + " |")
    print("| --- |" + " ---: |" * len(SIZES))
    fleets = [fleet(size) for size in SIZES]
    for name, profile in profiles().items():
        cells = [f"{time_us(profile, each):.0f} us" for each in fleets]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
