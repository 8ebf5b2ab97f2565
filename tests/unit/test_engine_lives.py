"""When an engine counts as another one, and who may take a request meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvatlas.common import limits
from kvatlas.common.gauges import Sample
from kvatlas.common.ids import ModelName
from kvatlas.common.settings import Settings
from kvatlas.common.tls import TlsGauges
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.endpoint import Engine, EngineFacts
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.flight_logs import boards_of
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.served_names import Served

MODEL = ModelName("m")
ASKED = EngineFacts(asked=True, serves=True, tokenizer="agrees")


SILENT = Sample(is_up=False)
UNTOLD = Sample(is_up=True)


def page(start: float) -> Sample:
    """Give a look at a page that tells when the process began."""
    return Sample(is_up=True, start=str(start))


def fleet(adapters: tuple[str, ...] = ()) -> Endpoints:
    """Configure three engines of one model."""
    settings = Settings.model_validate({
        "models": [{"name": "m", "tokenizer": "t", "lora_adapters": list(adapters)}],
        "endpoints": [{"url": f"http://e:{n}", "model": "m"} for n in (1, 2, 3)],
    })  # fmt: skip
    return Endpoints(
        settings, RouterMetrics(), boards_of(settings), EngineIdentities(settings, TlsGauges())
    )


def lives(looks: list[Sample]) -> list[int]:
    """Count an engine's lives along looks at its page."""
    engine = next(iter(fleet().engines()))
    found = []
    for at_s, each in enumerate(looks):
        engine.seen(each, float(at_s))
        found.append(engine.lives)
    return found


def test_the_first_page_is_a_first_life() -> None:
    """And silence before it is none."""
    assert lives([SILENT, page(5.0), page(5.0)]) == [0, 1, 1]


def test_another_process_is_another_life() -> None:
    """Whether it was seen to be away or not; the same process is the same life."""
    assert lives([page(5.0), page(6.0), SILENT, page(6.0), SILENT, page(7.0)]) == [1, 2, 2, 2, 2, 3]


def test_who_does_not_tell_begins_anew_after_every_absence() -> None:
    """A page without the start of the process proves nothing."""
    assert lives([UNTOLD, UNTOLD, SILENT, UNTOLD, UNTOLD]) == [1, 1, 1, 2, 2]


def test_a_new_life_is_asked_again_and_keeps_what_was_wrong() -> None:
    """Adapters stay known to clients, a difference stays one until it is found to be none."""
    engine = next(iter(fleet().engines()))
    for verdict, kept in (("agrees", "unknown"), ("differs", "differs"), ("unasked", "unknown")):
        engine.learn(replace(ASKED, tokenizer=verdict, adapters=frozenset("x")))  # type: ignore[arg-type]  # one of its words
        engine.joined.clear()
        engine.seen(page(engine.lives + 1.0), 1.0)
        assert engine.facts == EngineFacts(tokenizer=kept, adapters=frozenset("x"))  # type: ignore[arg-type]  # alike
        assert engine.joined.is_set()


def told(endpoints: Endpoints, *facts: EngineFacts) -> list[Engine]:
    """Let engines tell of themselves."""
    engines = list(endpoints.engines())
    for engine, each in zip(engines, facts, strict=True):
        endpoints.learn(engine, each)
    return engines


def ports(endpoints: Endpoints, adapter: str | None = None) -> str:
    """Name the candidates by their ports."""
    return "".join(e.name[-1] for e in endpoints.candidates(Served(MODEL, adapter)))


@pytest.mark.parametrize(
    ("serves", "candidates"),
    [
        ([True, False, True], "13"),
        ([None, False, None], "13"),
        ([False, False, False], ""),
    ],
)
def test_who_serves_another_model_is_no_candidate(
    serves: list[bool | None], candidates: str
) -> None:
    """Who does not tell is one."""
    endpoints = fleet()
    told(endpoints, *(replace(ASKED, serves=each) for each in serves))
    assert ports(endpoints) == candidates


def test_who_has_not_been_asked_is_a_candidate_when_nobody_has() -> None:
    """What it serves is verified before its first use, while others can take requests."""
    endpoints = fleet()
    assert ports(endpoints) == "123"
    told(endpoints, EngineFacts(), ASKED, EngineFacts())
    assert ports(endpoints) == "2"


def test_adapters_choose_their_endpoints() -> None:
    """Learned ones only where they are, configured ones where they may be."""
    endpoints = fleet(("conf",))
    assert ports(endpoints, "conf") == "123"
    has = replace(ASKED, adapters=frozenset({"conf", "x"}))
    told(endpoints, has, ASKED, replace(ASKED, serves=None))
    assert (ports(endpoints, "conf"), ports(endpoints, "x")) == ("1", "1")
    told(endpoints, ASKED, ASKED, replace(ASKED, serves=None))
    assert (ports(endpoints, "conf"), ports(endpoints, "x")) == ("3", "")
    told(endpoints, ASKED, ASKED, ASKED)
    assert ports(endpoints, "conf") == "123"


def test_one_that_differs_spoils_the_model_while_it_takes_requests() -> None:
    """Not when it is away, nor when it serves something else."""
    endpoints = fleet()
    odd = replace(ASKED, tokenizer="differs")
    engines = told(endpoints, ASKED, odd, ASKED)
    assert endpoints.distrusts(MODEL)
    for _ in range(limits.UNANSWERED_MAX):
        endpoints.health.unanswered(engines[1].endpoints[0])
    assert not endpoints.distrusts(MODEL)
    told(endpoints, replace(odd, serves=False), ASKED, ASKED)
    assert not endpoints.distrusts(MODEL)
