"""What places tell becomes one list, behind what is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.discovery.answers import EventSource
from kvatlas.common.discovery.merging import EngineTold, Fleet, Merger, PlaceTold
from kvatlas.common.settings import EndpointSettings

NOTHING_TOLD: Mapping[str, EngineTold] = {}


def endpoint(host_port: str, model: str = "", **more: Any) -> EndpointSettings:
    """Make an endpoint as a source tells it."""
    return EndpointSettings(url=f"http://{host_port}", model=model, **more)


def place(*endpoints: EndpointSettings, **told: EngineTold) -> PlaceTold:
    """Make what a place tells; engines' answers by host."""
    by_url = {e.url: told[name] for e in endpoints for name in told if f"/{name}:" in e.url}
    return PlaceTold(endpoints, by_url, asks_events=bool(told))


def merged(
    places: Sequence[PlaceTold],
    configured: Sequence[EndpointSettings] = (),
    models: Sequence[str] = ("m",),
) -> Fleet:
    """Merge once."""
    return Merger(configured, models).merge(places)


def names(fleet: Fleet) -> list[str]:
    """List who is there."""
    return [each.host_port for each in fleet.endpoints]


def test_what_is_configured_comes_first_and_an_address_counts_once() -> None:
    """Whoever names it first wins, be the scheme another; each is said to be left out."""
    configured = [endpoint("b:1", "m")]
    fleet = merged(
        [place(endpoint("a:1"), endpoint("b:1")), place(endpoint("a:1"), endpoint("c:1"))],
        configured,
    )
    assert names(fleet) == ["b:1", "a:1", "c:1"]
    assert fleet.endpoints[0] is configured[0]
    assert fleet.left_out["repeated"] == {"a:1", "b:1"}
    assert fleet.is_known


def test_a_place_that_has_not_told_is_waited_for() -> None:
    """Until then anybody may turn up."""
    silent = PlaceTold(None, NOTHING_TOLD, asks_events=False)
    fleet = merged([silent, place(endpoint("a:1"))])
    assert (names(fleet), fleet.is_known, fleet.may_hold("x:1")) == (["a:1"], False, True)
    assert not merged([place()]).may_hold("x:1")


def test_the_list_is_cut_at_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those told last are left out, and named."""
    monkeypatch.setattr(limits, "ENDPOINTS_MAX", 2)
    fleet = merged([place(*(endpoint(f"h{i}:1") for i in range(4)))])
    assert names(fleet) == ["h0:1", "h1:1"]
    assert fleet.left_out["over_limit"] == {"h2:1", "h3:1"}


@pytest.mark.parametrize(
    ("told", "models", "model", "reason"),
    [
        ("other", ("m",), None, "other_model"),
        ("", ("m",), "m", None),
        ("n", ("m", "n"), "n", None),
        ("", ("m", "n"), None, "unasked"),
    ],
)
def test_the_model_is_what_is_told_or_the_only_one(
    told: str, models: tuple[str, ...], model: str | None, reason: str | None
) -> None:
    """One that is not configured is of no use, and among several the engine must say which."""
    fleet = merged([place(endpoint("a:1", told))], models=models)
    assert [each.model for each in fleet.endpoints] == ([model] if model else [])
    assert [why for why, which in fleet.left_out.items() if which] == ([reason] if reason else [])
    assert fleet.may_hold("a:1") == (reason == "unasked")


def test_an_engine_says_which_of_several_models_it_serves() -> None:
    """The first of its names that is configured; with none it is left out, and not waited for."""
    asked = [
        place(endpoint("a:1"), a=EngineTold(("alias", "n"), {})),
        place(endpoint("b:1"), b=EngineTold(("x",), {})),
    ]
    fleet = merged(asked, models=("m", "n"))
    assert [(each.host_port, each.model) for each in fleet.endpoints] == [("a:1", "n")]
    assert fleet.left_out["other_model"] == {"b:1"}
    assert not fleet.awaited


EVENTS = EventSource("tcp://*:5557", "tcp://*:5558")


def test_events_are_where_the_engine_says() -> None:
    """A rank of its own whatever its number; the star stands for its host; until then none."""
    answer = EngineTold(None, {3: EVENTS})
    (known,) = merged([place(endpoint("a:1"), a=answer)]).endpoints
    assert known.streams() == (("tcp://a:5557", "tcp://a:5558"),)
    assert (known.data_parallel_size, known.names()) == (1, ("a:1",))
    fleet = merged([place(endpoint("a:1"), a=EngineTold())])
    assert [each.streams() for each in fleet.endpoints] == [()]
    assert fleet.may_hold("a:1")


def test_an_engine_of_several_ranks_has_them_all() -> None:
    """Each with its own address, whatever its port; one with a gap has not said all yet."""
    ranks = {0: EVENTS, 1: EventSource("tcp://10.0.0.1:40001", None)}
    (known,) = merged([place(endpoint("a:1"), a=EngineTold(None, ranks))]).endpoints
    assert known.streams() == (("tcp://a:5557", "tcp://a:5558"), ("tcp://10.0.0.1:40001", None))
    assert known.names() == ("a:1", "a:1#1")
    (unknown,) = merged(
        [place(endpoint("a:1"), a=EngineTold(None, {0: EVENTS, 2: EVENTS}))]
    ).endpoints
    assert unknown.streams() == ()


def test_what_has_not_changed_stays_the_same_object() -> None:
    """So that who is told need not look at all of them."""
    merger = Merger([], ["m"])
    first, second = endpoint("a:1"), endpoint("b:1")
    before = merger.merge([place(first, second)])
    after = merger.merge([place(second, first)])
    assert names(after) == ["b:1", "a:1"]
    assert after.endpoints[1] is before.endpoints[0]
