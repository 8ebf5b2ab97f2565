"""The simulation of fleets: known answers by hand, nothing lost, the same seed the same figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from kvatlas.cli.main import app
from kvatlas.common.errors import ConfigError
from kvatlas.planner import choices
from kvatlas.planner.engine import EngineModel
from kvatlas.planner.jobs import Job, ceiling, make_jobs
from kvatlas.planner.makers import MAKERS, made
from kvatlas.planner.plan import Cut, jobs_of, records_of
from kvatlas.planner.policy import Choice, Policy, Sight
from kvatlas.planner.results import figures
from kvatlas.planner.routers import Sharing
from kvatlas.planner.simulation import Fleet, Outcome, simulate
from kvatlas.planner.trace import Record, read_trace

MODEL = EngineModel(
    prefill_tokens_per_s=1_000.0,
    decode_step_ms=10.0,
    decode_step_ms_per_job=1.0,
    step_tokens_max=512,
    cache_blocks=200,
)


class First:
    """Send everything to the first endpoint."""

    shares = False
    scrapes = False

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Choose it."""
        del sight
        return Choice(0, job.prompt_tokens)

    def launched(self, *_told: object) -> None:
        """Hear nothing."""

    began = ended = launched


def record(at_s: float, prompt: int, output: int, *ids: int) -> Record:
    """Write a request of a trace."""
    return Record(at_s * 1e3, prompt, output, ids)


def served(records: Sequence[Record], model: EngineModel = MODEL) -> Outcome:
    """Serve requests on one engine."""
    jobs = make_jobs(records, model.block_size, [each.at_ms / 1e3 for each in records])
    policy: Policy = First()
    return simulate(jobs, Fleet(1, engine=model), lambda _world: policy, Random(1))


def times(outcome: Outcome) -> list[tuple[float, float, int]]:
    """Give when requests began and ended, and what they hit."""
    return [
        (round(each.began_s, 6), round(each.ended_s, 6), each.hit_tokens) for each in outcome.served
    ]


# --- the engine -----------------------------------------------------------------------------------


def test_a_prompt_takes_its_tokens_and_an_answer_its_steps() -> None:
    """1,024 tokens at 1,000 per second in two steps, then two steps of 10 ms for two more."""
    assert times(served([record(0, 1_024, 3, 1, 2)])) == [(1.024, 1.044, 0)]


def test_prompts_are_computed_in_order_within_the_budget_of_a_step() -> None:
    """The second one's share of the first step is what the first leaves of 512 tokens."""
    outcome = served([record(0, 256, 1, 1), record(0, 512, 1, 2)])
    assert times(outcome) == [(0.256, 0.256, 0), (0.768, 0.768, 0)]


def test_what_is_cached_is_not_computed_but_for_one_token() -> None:
    """A prompt of 512 tokens that was there before computes its last block."""
    outcome = served([record(0, 512, 1, 1), record(1, 512, 1, 1)])
    assert times(outcome) == [(0.512, 0.512, 0), (1.016, 1.016, 496)]


def test_decodes_slow_a_prefill() -> None:
    """The step that runs ends first, and a prompt beside a decoding job takes 10 ms more."""
    first, second = times(served([record(0, 256, 100, 1), record(0.256, 256, 1, 2)]))
    assert first[0] == 0.256
    assert second[0] == pytest.approx(0.256 + 0.010 + 0.256 + 0.010)


def test_a_full_cache_makes_requests_wait() -> None:
    """Two requests of 120 blocks do not fit into 200: the second begins when the first is done."""
    small = replace(MODEL, step_tokens_max=8_192)
    ids = (1, 2, 3, 4)
    first, second = served(
        [record(0, 1_900, 20, *ids), record(0, 1_900, 20, *(i + 10 for i in ids))], small
    ).served
    assert first.began_s < second.began_s
    assert second.began_s >= first.ended_s + 1.9


def test_the_least_recently_used_goes_first() -> None:
    """A third prompt evicts the first one from its end, and the second is still there."""
    model = replace(MODEL, cache_blocks=70)
    records = [record(n, 480, 1, n % 3) for n in (0, 1, 2)] + [record(3, 480, 1, 1)]
    records.append(record(4, 480, 1, 0))
    hits = [each.hit_tokens for each in served(records, model).served]
    assert hits == [0, 0, 0, 464, 144]


# --- traces ---------------------------------------------------------------------------------------


def line(**changes: object) -> bytes:
    """Write a line of a trace."""
    fields = {"timestamp": 5, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}
    return json.dumps(fields | changes).encode()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (b"spam", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (line(timestamp=-1), "timestamp is not a whole number"),
        (line(timestamp=3), "timestamp is before"),
        (line(input_length=True), "input_length is not a whole number"),
        (line(input_length=0, hash_ids=[]), "input_length is not between"),
        (line(output_length=0), "output_length is not between"),
        (line(hash_ids="12"), "hash_ids is not a list"),
        (line(hash_ids=[1, 2, 3]), "hash_ids has 3 ids"),
        (b"\xff", "is not JSON"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(wrong: bytes, what: str) -> None:
    """Expect the file, the line and the fault."""
    with pytest.raises(ConfigError, match=f"t.jsonl, line 3: {what}"):
        read_trace("t.jsonl", [line(), b"\n", wrong])


def test_an_empty_trace_is_none() -> None:
    """Expect to be told."""
    with pytest.raises(ConfigError, match="holds no request"):
        read_trace("t.jsonl", [b"\n"])


def test_equal_prefixes_are_the_same_runs() -> None:
    """Prompts share what they have in common, to the block, and nothing else."""
    jobs = make_jobs(
        [record(0, 1_500, 1, 1, 2, 3), record(0, 1_100, 1, 1, 2, 4), record(0, 600, 1, 9, 2)],
        16,
        [0.0, 0.0, 0.0],
    )
    runs = [{run.number: run.length for run in job.runs} for job in jobs]
    assert [sum(each.values()) for each in runs] == [job.prompt_tokens // 16 for job in jobs]
    common = runs[0].keys() & runs[1].keys()
    assert sum(runs[0][number] for number in common) == 1_024 // 16
    assert not runs[2].keys() & (runs[0].keys() | runs[1].keys())


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_ceiling_is_that_of_a_cache_of_blocks_without_end(name: str) -> None:
    """Counted by runs it is what a set of all prefixes gives."""
    records = made(name, 200, Random(3))
    jobs = make_jobs(records, 16, [each.at_ms for each in records])
    seen: set[tuple[int, ...]] = set()
    hit = 0
    for each in records:
        # The last id stands for fewer tokens, and is the same only where as many follow.
        whole = [each.hash_ids[:n] for n in range(1, len(each.hash_ids))]
        last = (*each.hash_ids, -each.prompt_tokens)
        blocks = 32 * sum(1 for prefix in whole if prefix in seen)
        if last in seen:
            blocks = each.prompt_tokens // 16
        hit += min(blocks, (each.prompt_tokens - 1) // 16) * 16
        seen.update(whole, [last])
        if each.prompt_tokens % 512 == 0:
            seen.add(each.hash_ids)
    assert ceiling(jobs, 16) == pytest.approx(
        hit / sum(each.prompt_tokens for each in records), abs=0.002
    )


# --- whole simulations ----------------------------------------------------------------------------


def made_jobs(name: str, speedup: float = 1.0, requests: int = 300) -> list[Job]:
    """Make a trace's jobs."""
    cut = Cut(requests=requests, speedup=speedup)
    records = records_of(f"made:{name}", cut, Random(2), list)
    return jobs_of(records, cut, EngineModel(), Random(2))


@pytest.mark.parametrize("policy", choices.NAMES)
def test_every_request_is_served_once_and_nothing_is_held(policy: str) -> None:
    """Whoever chooses: times are in order, hits within the prompt, and the sums are right."""
    jobs = made_jobs("documents", 4.0)
    fleet = Fleet(4, routers=3, sharing=Sharing(0.002))
    outcome = choices.run(policy, jobs, fleet, lambda: Random(1))
    assert [each.job for each in outcome.served] == jobs
    for each in outcome.served:
        assert each.job.at_s <= each.began_s <= each.ended_s
        assert 0 <= each.hit_tokens < each.job.prompt_tokens
        assert 0 <= each.endpoint < fleet.endpoints
    computed = sum(each.job.prompt_tokens - each.hit_tokens for each in outcome.served)
    assert sum(outcome.prefilled) == computed
    again = choices.run(policy, jobs, fleet, lambda: Random(1))
    assert figures(again, 5.0) == figures(outcome, 5.0)


def mean_s(jobs: Sequence[Job], routers: int, sharing: Sharing) -> float:
    """Give the product's mean time to first token."""
    fleet = Fleet(8, routers=routers, sharing=sharing)
    return figures(choices.run("kvatlas", jobs, fleet, lambda: Random(1)), 5.0).ttft_mean_s


def test_routers_that_share_are_as_good_as_one() -> None:
    """Sixteen that hear of each other 2 ms late are within a tenth of one, the herd is not."""
    jobs = made_jobs("agents", 12.0, 1_500)
    one = mean_s(jobs, 1, Sharing())
    assert mean_s(jobs, 16, Sharing(0.002)) < 1.1 * one
    assert mean_s(jobs, 16, Sharing(own_only=True)) > 1.3 * one


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_product_is_close_to_who_knows_everything(name: str) -> None:
    """On each made trace its mean is within a tenth of the oracle's, and round robin's not below."""
    jobs = made_jobs(name, requests=800)
    fleet = Fleet(8)
    mean = {
        policy: figures(choices.run(policy, jobs, fleet, lambda: Random(1)), 5.0).ttft_mean_s
        for policy in ("kvatlas", "oracle", "round-robin")
    }
    assert mean["kvatlas"] < 1.1 * mean["oracle"]
    assert mean["kvatlas"] < 1.02 * mean["round-robin"] + 0.002


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Give a way to run the command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_bytes(b"\n".join([line(), line(timestamp=9)]))

    def run(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["simulate", *options], env={"COLUMNS": "300"})
        return result.exit_code, result.output

    return run


def test_the_command_writes_figures(simulated: Callable[..., tuple[int, str]]) -> None:
    """Expect both policies of the default in the table and in the file, and a picture."""
    code, text = simulated(
        *("--trace", "t.jsonl", "--endpoints", "2", "--json", "o.json", "--plot", "o.png")
    )
    assert code == 0, text
    assert "kvatlas" in text
    assert "oracle" in text
    written = json.loads(Path("o.json").read_text())
    assert written["policies"]["kvatlas"]["requests"] == 2
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--trace", "away.jsonl"), "away.jsonl"),
        (("--trace", "made:spam"), "is none of made:"),
        (("--trace", "t.jsonl", "--policy", "spam"), "--policy spam: is none of"),
        (("--trace", "t.jsonl", "--block-size", "48"), "does not divide 512"),
        (("--trace", "t.jsonl", "--cache-blocks", "10"), "needs 38"),
        (("--trace", "t.jsonl", "--start-s", "100"), "no request between"),
        (("--trace", "t.jsonl", "--speedup", "nan"), "speedup"),
        (("--trace", "t.jsonl", "--json", "no/where.json"), "--json no/where.json"),
    ],
)
def test_what_is_wrong_is_told(
    simulated: Callable[..., tuple[int, str]], options: tuple[str, ...], what: str
) -> None:
    """Expect a status that is not 0 and a line that names it."""
    code, text = simulated(*options)
    assert code != 0
    assert what in text, text
