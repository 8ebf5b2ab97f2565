"""The board: what all routers have under way, queues, predictions, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.router.flight_messages import Outbox, apply_entry, state_fields
from kvatlas.router.flights import Board, Launch, RouterId
from kvatlas.router.predictions import Sketch, sketch_of

ME, OTHER = RouterId("me"), RouterId("other")
A, B = EndpointName("a:1"), EndpointName("b:1")
RATE = 1_000.0


def board(me: RouterId = ME) -> Board:
    """Make a board whose endpoints prefill a thousand tokens per second and nothing beside."""
    return Board(me, RATE, 0.0)


def chain(length: int, seed: int = 1) -> list[BlockHash]:
    """Make a chain of hashes."""
    return [BlockHash(seed * 1_000_000 + i) for i in range(length)]


def counts(seen: Board, *names: EndpointName) -> list[tuple[int, int, int]]:
    """Give requests, those that wait, and their tokens, per endpoint."""
    stands = [seen.stand(name) for name in names]
    return [(stand.requests, stand.awaiting, stand.tokens) for stand in stands]


# --- load -----------------------------------------------------------------------------------------


def test_a_flight_counts_until_it_ends() -> None:
    """Its tokens count until the first byte, the request until the end."""
    seen = board()
    seen.launched(ME, Launch(1, A, 100), 0.0)
    assert counts(seen, A) == [(1, 1, 100)]
    seen.began(ME, 1, 0.1)
    seen.began(ME, 1, 0.2)
    assert counts(seen, A) == [(1, 0, 0)]
    seen.ended(ME, 1, A)
    seen.ended(ME, 1, A)
    assert counts(seen, A) == [(0, 0, 0)]


def test_a_flight_that_fails_leaves_nothing() -> None:
    """Neither load nor prediction stays of what ended before its first byte."""
    seen = board()
    seen.launched(OTHER, Launch(1, A, 100, sketch=sketch_of(chain(10), 0)), 0.0)
    seen.ended(OTHER, 1, A)
    assert counts(seen, A) == [(0, 0, 0)]
    assert seen.predicted(chain(10), 0.0) == {}
    assert not seen._predictions._groups


def test_the_wait_is_the_queue_less_what_was_done_since() -> None:
    """The first in the queue progresses with time, no further than to its end."""
    seen = board()
    stand = seen.stand(A)
    assert stand.wait_s(0.0) == 0.0
    seen.launched(ME, Launch(1, A, 1_000), 0.0)
    seen.launched(OTHER, Launch(1, A, 500), 0.1)
    assert stand.wait_s(0.0) == pytest.approx(1.5)
    assert stand.wait_s(0.4) == pytest.approx(1.1)
    assert stand.wait_s(9.0) == pytest.approx(0.5)
    seen.began(ME, 1, 1.0)
    assert stand.wait_s(1.2) == pytest.approx(0.3)


def test_silent_answers_leave_the_queue_when_they_should_be_done() -> None:
    """The first byte of an answer that comes as a whole says nothing about its prompt."""
    seen = board()
    seen.launched(ME, Launch(1, A, 1_000, is_silent=True), 0.0)
    seen.launched(ME, Launch(2, A, 500), 0.0)
    stand = seen.stand(A)
    assert stand.wait_s(0.5) == pytest.approx(1.0)
    assert stand.wait_s(1.2) == pytest.approx(0.3)
    assert counts(seen, A) == [(2, 1, 500)]
    speed = stand.speed.line.tokens_per_s
    seen.began(ME, 1, 60.0)
    assert stand.speed.line.tokens_per_s == speed, "nothing is learned from it"
    seen.ended(ME, 1, A)
    assert counts(seen, A) == [(1, 1, 500)]


def test_the_speed_is_learned_from_all_routers() -> None:
    """An engine at half the believed rate is found out, whoever sent the requests."""
    seen, now = board(), 0.0
    for number in range(80):
        tokens = 200 + 40 * (number % 20)
        seen.launched(OTHER, Launch(number, A, tokens), now)
        now += tokens / 500.0
        seen.began(OTHER, number, now)
        seen.ended(OTHER, number, A)
        seen.learn(now)
    assert seen.stand(A).speed.line.tokens_per_s == pytest.approx(500.0, rel=0.05)


def test_speeds_are_learned_in_the_order_of_times() -> None:
    """What is told late does not make what was before it look slow: it is waited for."""
    late, prompt = board(), board()
    for seen in (late, prompt):
        for number in range(80):
            router = (ME, OTHER)[number % 2]
            seen.launched(router, Launch(number, A, 200 + 40 * (number % 20)), 0.0)
    done = list(accumulate((200 + 40 * (number % 20)) / 500.0 for number in range(80)))
    for number in range(80):
        prompt.began((ME, OTHER)[number % 2], number, done[number])
    for number in (*range(0, 80, 2), *range(1, 80, 2)):
        late.began((ME, OTHER)[number % 2], number, done[number])
    for seen in (late, prompt):
        seen.learn(999.0)
    learned = [seen.stand(A).speed.line.tokens_per_s for seen in (late, prompt)]
    assert learned[0] == learned[1]
    assert learned[0] == pytest.approx(500.0, rel=0.05)


def test_a_dead_router_is_buried() -> None:
    """What it had under way counts no more once it has been silent for long; own flights stay."""
    seen = board()
    seen.heard(OTHER, 10.0)
    seen.launched(OTHER, Launch(1, A, 100, sketch=sketch_of(chain(10), 0)), 0.0)
    seen.launched(OTHER, Launch(2, B, 100), 0.0)
    seen.began(OTHER, 2, 0.5)
    seen.launched(ME, Launch(1, A, 7), 0.0)
    assert seen.routers == 2
    assert seen.bury(10.0 + limits.ROUTER_SILENT_S) == []
    assert seen.bury(10.1 + limits.ROUTER_SILENT_S) == [OTHER]
    assert counts(seen, A, B) == [(1, 1, 7), (0, 0, 0)]
    assert seen.predicted(chain(10), 1.0) == {}


def test_a_state_makes_good_what_was_missed() -> None:
    """Flights that it lacks are gone, those that it has are there, running ones are counted."""
    seen = board()
    seen.launched(OTHER, Launch(1, A, 100), 0.0)
    seen.launched(OTHER, Launch(2, A, 50, sketch=sketch_of(chain(10), 0)), 0.0)
    seen.restated(OTHER, [Launch(2, A, 50), Launch(3, B, 30)], {A: 4}, 1.0)
    assert counts(seen, A, B) == [(5, 1, 50), (1, 1, 30)]
    assert seen.predicted(chain(10), 1.0) == {A: 10}, "what is known of a flight stays known"
    seen.restated(OTHER, [], {}, 2.0)
    assert counts(seen, A, B) == [(0, 0, 0), (0, 0, 0)]


def test_a_blind_board_takes_others_to_do_as_it_does() -> None:
    """Nothing of others is kept, and the own queue counts for all."""
    seen = board()
    for router in (OTHER, RouterId("third")):
        seen.launched(router, Launch(1, A, 500), 0.0)
    seen.launched(ME, Launch(1, A, 100), 0.0)
    seen.go_blind()
    assert counts(seen, A) == [(1, 1, 100)]
    assert seen.stand(A).wait_s(0.0) == pytest.approx(0.3)
    seen.launched(ME, Launch(2, B, 10), 0.0)
    assert seen.stand(B).wait_s(0.0) == pytest.approx(0.03)
    seen.see()
    assert seen.stand(A).wait_s(0.0) == pytest.approx(0.1)


# --- predictions ----------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_a_prefix_is_predicted_to_a_step(length: int, match: int, shared: int) -> None:
    """A sketch tells of a common prefix within a step of its length, never beyond it."""
    match, shared = min(match, length), min(shared, length)
    mine = chain(length)
    sketch = sketch_of(mine, match)
    if sketch is None:
        assert match == length
        return
    assert len(sketch.hashes) <= limits.SKETCH_HASHES_MAX
    seen = board()
    seen.launched(OTHER, Launch(1, A, 1, sketch=sketch), 0.0)
    asked = [*mine[:shared], *chain(40, seed=2)]
    found = seen.predicted(asked, 0.0).get(A, 0)
    step = -(-(length - match) // limits.SKETCH_HASHES_MAX)
    assert found <= shared
    if shared == length:
        assert found == length
    elif shared - match >= step:
        assert found > shared - step
    elif shared < match:
        assert found == 0


def test_a_prediction_lives_until_its_event_is_due() -> None:
    """It outlives the first byte for a moment, however long it waited for it."""
    seen = board()
    seen.launched(OTHER, Launch(1, A, 100, sketch=sketch_of(chain(5), 0)), 0.0)
    assert seen.predicted(chain(5), 500.0) == {A: 5}
    seen.began(OTHER, 1, 500.0)
    assert seen.predicted(chain(5), 500.0 + 0.9 * limits.EVENT_DUE_S) == {A: 5}
    assert seen.predicted(chain(5), 500.0 + limits.EVENT_DUE_S) == {}
    assert not seen._predictions._groups


def test_equal_prompts_are_predicted_as_long_as_one_of_them_is_there() -> None:
    """Two flights with one chain are counted, and each endpoint has its own."""
    seen = board()
    for number, name in ((1, A), (2, A), (3, B)):
        seen.launched(OTHER, Launch(number, name, 9, sketch=sketch_of(chain(4), 0)), 0.0)
    seen.ended(OTHER, 1, A)
    assert seen.predicted(chain(4), 0.0) == {A: 4, B: 4}
    seen.ended(OTHER, 2, A)
    assert seen.predicted(chain(4), 0.0) == {B: 4}
    assert seen.predicted([], 0.0) == {}


def test_what_is_computed_anyway_counts_once() -> None:
    """Two that decided at the same moment for one prefix do not make the queue twice as long."""
    seen = board()
    for router in (OTHER, ME):
        seen.launched(router, Launch(1, A, 1_000, sketch=sketch_of(chain(64), 0)), 0.0)
    assert counts(seen, A) == [(2, 2, 1_000)]
    half = [*chain(32), *chain(32, seed=2)]
    seen.launched(ME, Launch(2, A, 1_000, sketch=sketch_of(half, 0)), 0.0)
    assert counts(seen, A) == [(3, 3, 1_500)]
    seen.launched(ME, Launch(3, B, 1_000, sketch=sketch_of(half, 0)), 0.0)
    assert counts(seen, B) == [(1, 1, 1_000)]


# --- sessions -------------------------------------------------------------------------------------


def test_conversations_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest ones are known, by where they were sent last."""
    monkeypatch.setattr(limits, "SESSIONS_MAX", 2)
    seen = board()
    for number, (session, name) in enumerate([(1, A), (2, A), (1, B), (3, A)]):
        seen.launched(OTHER, Launch(number, name, 9, session=session), 0.0)
    assert [seen.session_endpoint(n) for n in (1, 2, 3)] == [B, None, A]


# --- messages -------------------------------------------------------------------------------------


def told(fields: Sequence[bytes | str]) -> list[bytes]:
    """Write fields as Redis gives them back."""
    return [each.encode() if isinstance(each, str) else each for each in fields]


def test_what_one_router_tells_another_one_knows() -> None:
    """Launches with their sketches and sessions, first bytes and ends arrive as they were."""
    mine, others, outbox = board(ME), board(OTHER), Outbox()
    launches = [
        Launch(1, A, 100, sketch=sketch_of(chain(100), 40), session=2**64 - 1),
        Launch(2, A, 50, is_silent=True),
        Launch(3, B, 7),
    ]
    for launch in launches:
        mine.launched(ME, launch, 5.0)
        outbox.launched.append(launch)
    assert apply_entry(others, told(outbox.take(ME)), 1.0, 5.0) is True
    assert counts(others, A, B) == counts(mine, A, B)
    assert others.predicted(chain(100), 5.0) == mine.predicted(chain(100), 5.0) == {A: 100}
    assert others.session_endpoint(2**64 - 1) == A
    mine.began(ME, 1, 6.0)
    mine.ended(ME, 3, B)
    outbox.began.append(1)
    outbox.ended.append((3, B))
    assert apply_entry(others, told(outbox.take(ME)), 1.0, 6.0) is False
    assert counts(others, A, B) == counts(mine, A, B) == [(2, 1, 50), (0, 0, 0)]
    assert outbox.take(ME) == []
    fresh = board(RouterId("fresh"))
    assert apply_entry(fresh, told(state_fields(ME, *mine.under_way())), 1.0, 6.0) is False
    assert counts(fresh, A, B) == counts(mine, A, B)


def test_own_entries_are_not_counted_twice() -> None:
    """A router reads what it has written itself, and lets it pass."""
    seen, outbox = board(ME), Outbox()
    outbox.launched.append(Launch(1, A, 100))
    assert apply_entry(seen, told(outbox.take(ME)), 1.0, 0.0) is False
    assert counts(seen, A) == [(0, 0, 0)]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b"router"],
        [b"router", b"\xff"],
        [b"router", b"x" * 1_000],
        [b"launched", b"[]"],
        [b"router", b"r", b"launched", b"[[1]]"],
        [b"router", b"r", b"launched", b'[[1,"a:1",5,false,null,"zz","zz"]]'],
        [b"router", b"r", b"began", b"{}"],
        [b"router", b"r", b"ended", b"[1]"],
        [b"router", b"r", b"state", b'{"awaiting": 3}'],
    ],
)
def test_what_cannot_be_read_is_left_out(fields: list[bytes]) -> None:
    """An entry of another hand raises nothing and counts nothing."""
    seen = board()
    assert apply_entry(seen, fields, 1.0, 0.0) is None
    assert counts(seen, A) == [(0, 0, 0)]


FLIGHTS = st.lists(
    st.tuples(
        st.sampled_from(["launch", "begin", "end", "state"]),
        st.integers(1, 6),
        st.sampled_from([A, B]),
        st.integers(0, 50),
        st.booleans(),
    ),
    max_size=40,
)


@given(FLIGHTS)
def test_two_boards_agree_and_empty_out(
    steps: list[tuple[str, int, EndpointName, int, bool]],
) -> None:
    """Whatever happens in whatever order, both count the same, and nothing in the end."""
    mine, others, outbox = board(ME), board(OTHER), Outbox()
    live: dict[int, EndpointName] = {}
    number, now = 0, 0.0
    for kind, pick, name, tokens, is_silent in steps:
        now += 0.01
        if kind == "launch":
            number += 1
            sketch = sketch_of(chain(tokens, seed=pick), 0)
            launch = Launch(number, name, tokens, is_silent, sketch)
            live[number] = name
            mine.launched(ME, launch, now)
            outbox.launched.append(launch)
        elif kind == "state":
            outbox = Outbox()
            apply_entry(others, told(state_fields(ME, *mine.under_way())), 1.0, now)
        elif live:
            chosen = sorted(live)[pick % len(live)]
            if kind == "begin":
                mine.began(ME, chosen, now)
                outbox.began.append(chosen)
            else:
                mine.ended(ME, chosen, live[chosen])
                outbox.ended.append((chosen, live.pop(chosen)))
        if fields := outbox.take(ME):
            assert apply_entry(others, told(fields), 1.0, now) is not None
        for each in (A, B):
            mine.stand(each).wait_s(now)
            others.stand(each).wait_s(now)
        assert [x[0] for x in counts(mine, A, B)] == [x[0] for x in counts(others, A, B)]
    for left, name in live.items():
        mine.ended(ME, left, name)
    others.forget(ME) if others.routers > 1 else None
    assert counts(mine, A, B) == counts(others, A, B) == [(0, 0, 0), (0, 0, 0)]
    mine.predicted([BlockHash(1)], now + 60)
    assert not mine._predictions._groups


def test_a_sketch_names_the_root_and_the_end() -> None:
    """Equal prefixes begin with the same block; the whole chain is known to its end."""
    blocks = chain(100)
    sketch = sketch_of(blocks, 0)
    assert isinstance(sketch, Sketch)
    assert sketch.root == blocks[0]
    assert sketch.hashes[-1] == blocks[-1]
    assert sketch_of([], 0) is None


def test_flights_at_an_endpoint_count_before_it_is_known_here() -> None:
    """Another router learned of it first: who joins later finds them on its stand."""
    seen, other = board(), RouterId("other")
    seen.launched(other, Launch(1, A, 100), 0.0)
    seen.tidy()
    stand = seen.join(A)
    assert (stand.requests, stand.tokens) == (1, 100)
    seen.ended(other, 1, A)
    seen.tidy()
    assert seen.join(A) is stand


def test_a_stand_goes_with_the_last_flight_of_an_endpoint_that_left() -> None:
    """Others may tell of some for a while; nothing of it is kept after that."""
    seen, other = board(), RouterId("other")
    stand = seen.join(A)
    seen.launched(other, Launch(1, A, 100), 0.0)
    seen.launched(seen.me, Launch(1, A, 100), 0.0)
    seen.leave(A)
    seen.ended(seen.me, 1, A)
    seen.tidy()
    assert seen.stand(A) is stand
    seen.restated(other, [], {}, 1.0)
    seen.tidy()
    assert seen.stand(A) is not stand
