"""E3, an engine is killed and starts anew; E4, one whose new life has run ahead of the old one."""

from __future__ import annotations

import time

import pytest

from tests.chaos.conftest import Report, epochs_of
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import Options, Scale, chaos_place
from tests.fakes.publisher_process import PublisherProcess, publisher_processes

PHANTOMS_MAX_S = 2.0


@pytest.mark.parametrize("row", ["E3", "E4"])
async def test_e3_e4_a_new_life_is_noticed(scale: Scale, canary: Canary, row: str) -> None:
    """Nothing of the old life is claimed after 2 s; all of the new one is known."""
    recovered, phantoms = [], []
    async with (
        publisher_processes(scale.engines) as processes,
        chaos_place(scale, canary, Options(publishers=[*processes])) as place,
    ):
        *victims, spared = place.engines
        for turn in range(scale.rounds):
            await place.batches()
            await place.settled()
            old = {engine.name: engine.longest() for engine in victims}
            for engine, process in zip(victims, processes, strict=False):
                await process.die()
                engine.lose_all()
            for engine, process in zip(victims, processes, strict=False):
                await process.open()
                await run_ahead(engine, process, scale.batches, ahead=row == "E4")
            started = time.monotonic()
            for name, chain in old.items():
                while await place.match_of(name, chain):
                    assert time.monotonic() - started < PHANTOMS_MAX_S
            phantoms.append(time.monotonic() - started)
            recovered.append(await place.recovered(started))
            assert [epochs_of(place, e, "restart") for e in victims] == [turn + 1] * len(victims)
            assert epochs_of(place, spared, "restart") == 0
    assert max(phantoms) <= PHANTOMS_MAX_S, phantoms
    Report(
        row,
        "kill -9 of all publishers but one, start anew"
        + (" with more batches sent than before" if row == "E4" else ""),
        f"new epoch (`restart`), no block of the old life after {max(phantoms):.2f} s",
        recovered,
    ).tell()


async def run_ahead(
    engine: ChaosEngine, process: PublisherProcess, batches: int, *, ahead: bool
) -> None:
    """Send batches in the new life; with `ahead` more than the old one had, most unheard."""
    count = batches * 2 + 20 if ahead else batches // 2
    for _ in range(count):
        await engine.step()
    await process.call("sync")
