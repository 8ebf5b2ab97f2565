"""The order of batches, without sockets: each fault that an engine or its wire can show."""

from __future__ import annotations

import pytest
from xxhash import xxh3_128_digest

from kvatlas.common import limits
from kvatlas.indexer.sequence import NewEpoch, Ready, Resumption, Sequencer, Step


def body(seq: int, life: int = 1) -> bytes:
    """Write a payload that tells its sequence and the engine's life."""
    return f"{life}/{seq}".encode()


def steps(sequencer: Sequencer) -> list[Step]:
    """Take all that is ready."""
    taken = []
    while (step := sequencer.next_step()) is not None:
        taken.append(step)
    return taken


def phase(sequencer: Sequencer) -> str:
    """Give the phase; a call, so that mypy takes no earlier look for the last word."""
    return sequencer.phase


def wanted(sequencer: Sequencer) -> int | None:
    """Give where a wanted replay begins, alike."""
    return sequencer.replay_from


def seqs(sequencer: Sequencer) -> list[int | str]:
    """Take all that is ready, as sequences and reasons."""
    return [s.seq if isinstance(s, Ready) else s.reason for s in steps(sequencer)]


def replay(sequencer: Sequencer, *numbers: int, life: int = 1, now: float = 0.0) -> None:
    """Answer the replay that is wanted with these sequences and END."""
    wanted = sequencer.replay_id
    for number in numbers:
        if sequencer.replay_id == wanted:
            sequencer.replayed(number, body(number, life), now)
    if sequencer.replay_id == wanted:
        sequencer.replay_ended(now, complete=True)


def live(sequencer: Sequencer, *numbers: int, life: int = 1, now: float = 0.0) -> None:
    """Receive live messages."""
    for number in numbers:
        sequencer.live(number, body(number, life), now)


@pytest.fixture
def synced() -> Sequencer:
    """Give a sequencer that is live after batches 0 to 2, in its first epoch."""
    sequencer = Sequencer(has_replay=True)
    sequencer.connected(0.0)
    replay(sequencer, 0, 1, 2)
    steps(sequencer)
    return sequencer


def test_it_begins_with_an_epoch_and_a_replay_from_zero() -> None:
    """Nothing is known before the engine's buffer has been read."""
    sequencer = Sequencer(has_replay=True)
    assert steps(sequencer) == [NewEpoch("start")]
    assert wanted(sequencer) is None
    sequencer.connected(0.0)
    assert wanted(sequencer) == 0
    assert phase(sequencer) == "replaying"


def test_live_messages_wait_for_the_replay_and_overlap_it() -> None:
    """What came during the replay follows it, each batch once."""
    sequencer = Sequencer(has_replay=True)
    live(sequencer, 2)
    sequencer.connected(0.0)
    live(sequencer, 3)
    replay(sequencer, 0, 1, 2)
    assert seqs(sequencer) == ["start", 0, 1, 2, 3]
    assert sequencer.phase == "live"
    assert sequencer.counts["duplicate"] == 1


def test_a_replay_may_begin_late() -> None:
    """An engine remembers only its newest batches."""
    sequencer = Sequencer(has_replay=True)
    sequencer.connected(0.0)
    replay(sequencer, 70, 71)
    assert seqs(sequencer) == ["start", 70, 71]
    assert sequencer.last_seq == 71


def test_a_gap_is_asked_for_from_the_last_batch_on(synced: Sequencer) -> None:
    """The last batch is asked for again, to know that it is the same life."""
    live(synced, 5)
    assert synced.replay_from == 2
    replay(synced, 2, 3, 4, 5)
    assert seqs(synced) == [3, 4, 5]
    assert synced.counts["gap"] == 1


def test_a_gap_that_was_another_life_ends_the_epoch(synced: Sequencer) -> None:
    """The same sequence with other bytes is another engine process."""
    live(synced, 9, life=2, now=10.0)
    replay(synced, 2, life=2, now=10.0)
    assert seqs(synced) == ["restart"]
    assert synced.replay_from == 0
    replay(synced, *range(10), life=2, now=10.0)
    assert seqs(synced) == list(range(10))


def test_a_replay_that_knows_nothing_of_the_last_batch_is_another_life(synced: Sequencer) -> None:
    """An engine that answers only END is younger than what was seen."""
    synced.disconnected()
    assert synced.phase == "connecting"
    synced.connected(5.0)
    replay(synced, now=5.0)
    assert seqs(synced) == ["restart"]
    replay(synced, now=5.0)
    live(synced, 0, life=2, now=6.0)
    assert seqs(synced) == [0]


def test_a_reconnect_to_the_same_life_forgets_nothing(synced: Sequencer) -> None:
    """What was missed follows."""
    synced.disconnected()
    synced.connected(5.0)
    replay(synced, 2, 3)
    assert seqs(synced) == [3]


def test_a_lower_sequence_with_other_bytes_is_a_restart(synced: Sequencer) -> None:
    """A new life that was not seen to disconnect is known by its first message."""
    live(synced, 0, life=2, now=5.0)
    assert seqs(synced) == ["restart"]
    assert synced.replay_from == 0
    replay(synced, 0, life=2, now=5.0)
    assert seqs(synced) == [0]


def test_a_second_restart_within_a_second_waits(synced: Sequencer) -> None:
    """An engine that flaps, or a liar, cannot make epochs as fast as it likes."""
    live(synced, 0, life=2, now=5.0)
    replay(synced, 0, life=2, now=5.0)
    live(synced, 0, life=3, now=5.5)
    assert synced.phase == "waiting"
    live(synced, 1, life=3, now=5.6)
    assert synced.counts["dropped"] == 2
    synced.tick(5.7)
    assert synced.phase == "waiting"
    synced.tick(7.0)
    assert synced.replay_from == 0


def test_a_hole_in_a_replay_is_asked_for_again(synced: Sequencer) -> None:
    """Contiguity decides, not the END mark."""
    live(synced, 6)
    replay(synced, 2, 3, 5)
    assert synced.replay_from == 3
    replay(synced, 3, 4, 5, 6)
    assert seqs(synced) == [3, 4, 5, 6]
    assert synced.counts["replay_hole"] == 1


def test_what_stays_missing_is_lost(synced: Sequencer) -> None:
    """After some attempts without progress the epoch ends and what is left is read."""
    live(synced, 6)
    for _ in range(limits.REPLAY_ATTEMPTS_MAX):
        replay(synced, 5, 6)
    assert synced.phase == "waiting"
    synced.tick(limits.DOUBT_BACKOFF_S)
    replay(synced, 5, 6)
    assert seqs(synced) == ["lost", 5, 6]


def test_messages_of_other_replays_are_ignored(synced: Sequencer) -> None:
    """Late answers and old numbers change nothing."""
    synced.replayed(3, body(3), 0.0)
    synced.replay_ended(0.0, complete=True)
    assert steps(synced) == []
    live(synced, 4)
    synced.replayed(1, body(1), 0.0)
    replay(synced, 2, 1, 3, 4)
    assert seqs(synced) == [3, 4]


def test_a_silent_feed_is_audited(synced: Sequencer) -> None:
    """Soon after the start and then now and then it is asked whether something was missed."""
    synced.tick(limits.SETTLE_S / 2)
    assert synced.phase == "live"
    synced.tick(limits.SETTLE_S)
    assert synced.replay_from == 2
    replay(synced, 2, 3, now=1.0)
    assert seqs(synced) == [3]
    synced.tick(1.0 + limits.AUDIT_S)
    assert synced.replay_from == 3


def test_a_failed_audit_is_no_doubt(synced: Sequencer) -> None:
    """Without an answer live events serve on."""
    synced.tick(1.0)
    synced.replay_ended(2.0, complete=False)
    assert synced.phase == "live"
    assert steps(synced) == []


def test_a_gap_that_nobody_answers_ends_the_epoch(synced: Sequencer) -> None:
    """What came behind the gap opens the next one."""
    live(synced, 6)
    for _ in range(limits.REPLAY_ATTEMPTS_MAX):
        assert synced.phase == "replaying"
        synced.replay_ended(0.0, complete=False)
    assert seqs(synced) == ["replay_failed", 6]
    assert synced.phase == "live"


def test_a_start_without_an_answer_takes_live_events() -> None:
    """An endpoint whose replay socket is dead is still followed."""
    sequencer = Sequencer(has_replay=True)
    sequencer.connected(0.0)
    live(sequencer, 40)
    for _ in range(limits.REPLAY_ATTEMPTS_MAX):
        sequencer.replay_ended(0.0, complete=False)
    assert seqs(sequencer) == ["start", 40]


def test_a_rejected_batch_is_a_doubt_and_then_skipped(synced: Sequencer) -> None:
    """It costs an epoch and a replay; when it comes again, it is left out."""
    live(synced, 3, 4)
    bad = synced.next_step()
    assert isinstance(bad, Ready)
    assert synced.rejected(bad, 0.0) is False
    assert seqs(synced) == ["malformed"]
    synced.tick(limits.DOUBT_BACKOFF_S)
    replay(synced, 0, 1, 2, 3, 4, now=1.0)
    taken = [step for step in steps(synced) if isinstance(step, Ready)]
    assert [step.seq for step in taken] == [0, 1, 2, 3, 4]
    assert synced.rejected(taken[3], 1.0) is True
    assert synced.phase == "live"


def test_an_engine_that_claims_too_much_is_doubted_once(synced: Sequencer) -> None:
    """While it waits nothing of it is believed anyway."""
    live(synced, 3, 4)
    synced.overclaimed(0.0)
    synced.overclaimed(0.5)
    assert seqs(synced) == ["overclaimed"]
    assert synced.phase == "waiting"
    synced.tick(limits.DOUBT_BACKOFF_S)
    assert synced.replay_from == 0


def test_doubts_back_off(synced: Sequencer) -> None:
    """Each doubt waits twice as long as the one before, up to a bound, until it has been quiet."""
    now, waits = 0.0, []
    for _ in range(8):
        synced.unreadable(now)
        synced.unreadable(now)
        begun = now
        while synced.phase == "waiting":
            now += 0.5
            synced.tick(now)
        waits.append(now - begun)
        replay(synced, now=now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    now += 2 * limits.DOUBT_BACKOFF_MAX_S + 1
    synced.unreadable(now)
    synced.tick(now + limits.DOUBT_BACKOFF_S)
    assert synced.phase != "waiting"


def test_a_doubt_outlives_a_disconnect(synced: Sequencer) -> None:
    """Waiting goes on while the connection comes and goes."""
    synced.unreadable(0.0)
    synced.disconnected()
    synced.tick(5.0)
    assert phase(synced) == "connecting"
    synced.unreadable(6.0)
    synced.connected(6.0)
    assert phase(synced) == "waiting"
    synced.tick(20.0)
    assert synced.replay_from == 0


def test_too_much_to_hold_is_dropped_and_asked_for(
    synced: Sequencer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood during a replay costs a second replay, not memory."""
    monkeypatch.setattr(limits, "HELD_BATCHES_MAX", 3)
    live(synced, 4, 5, 6, 7)
    replay(synced, 2, 3, 4)
    assert synced.replay_from == 4
    replay(synced, *range(4, 8))
    assert seqs(synced) == [3, 4, 5, 6, 7]
    assert synced.counts["dropped"] == 4


def test_digests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones are forgotten; a late copy of a batch that old counts as another life."""
    monkeypatch.setattr(limits, "DIGESTS_KEPT", 2)
    sequencer = Sequencer(has_replay=False)
    sequencer.connected(0.0)
    live(sequencer, 3, 4, 5, 4)
    assert (seqs(sequencer), sequencer.counts["duplicate"]) == (["start", 3, 4, 5], 1)
    live(sequencer, 3, now=5.0)
    assert seqs(sequencer) == ["restart", 3]


def test_rejects_are_bounded(synced: Sequencer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones are forgotten, and rejected anew."""
    monkeypatch.setattr("kvatlas.indexer.sequence.BAD_BATCHES_REMEMBERED", 1)
    synced.rejected(Ready(5, b"a", b""), 5.0)
    synced.rejected(Ready(5, b"b", b""), 5.0)
    assert synced.rejected(Ready(5, b"a", b""), 5.0) is False


def test_without_replay_everything_starts_where_it_can() -> None:
    """Gaps, restarts and reconnects are epochs of their own."""
    sequencer = Sequencer(has_replay=False)
    sequencer.connected(0.0)
    live(sequencer, 5, 6)
    assert seqs(sequencer) == ["start", 5, 6]
    live(sequencer, 8)
    assert seqs(sequencer) == ["gap", 8]
    sequencer.disconnected()
    sequencer.connected(10.0)
    live(sequencer, 9, now=10.0)
    assert seqs(sequencer) == ["reconnect", 9]
    live(sequencer, 0, life=2, now=20.0)
    assert seqs(sequencer) == ["restart", 0]
    sequencer.unreadable(30.0)
    sequencer.tick(31.0)
    live(sequencer, 7, now=31.0)
    assert seqs(sequencer) == ["malformed", 7]
    sequencer.tick(100.0)
    assert sequencer.phase == "live"


def resuming(sequencer: Sequencer) -> bool:
    """Tell whether batches of before are to come; a call, alike."""
    return sequencer.is_resuming


def resumed(first: int, proven: int) -> Sequencer:
    """Give one that goes on where another had applied batch `proven`."""
    sequencer = Sequencer(
        has_replay=True,
        resumption=Resumption(first, proven, xxh3_128_digest(body(proven))),
    )
    sequencer.connected(0.0)
    return sequencer


def test_it_resumes_with_the_batches_that_lead_to_the_proven_one() -> None:
    """And goes on behind it, with no epoch between."""
    sequencer = resumed(4, 6)
    assert wanted(sequencer) == 4
    live(sequencer, 8)
    sequencer.replayed(4, body(4), 0.0)
    assert resuming(sequencer)
    sequencer.replayed(5, body(5), 0.0)
    sequencer.replayed(6, body(6), 0.0)
    assert not resuming(sequencer)
    sequencer.replayed(7, body(7), 0.0)
    sequencer.replay_ended(0.0, complete=True)
    assert (seqs(sequencer), phase(sequencer)) == ([4, 5, 6, 7, 8], "live")


def test_it_resumes_behind_the_proven_batch() -> None:
    """Where every page is as new as the index, the proven batch alone is asked for."""
    sequencer = resumed(7, 6)
    assert (wanted(sequencer), sequencer.is_resuming) == (6, False)
    replay(sequencer, 6, 7)
    assert (seqs(sequencer), phase(sequencer)) == ([7], "live")


def test_it_resumes_an_endpoint_whose_first_batch_is_wanted() -> None:
    """Nothing comes before batch 0, so nothing is asked for to prove it."""
    sequencer = resumed(0, 1)
    assert wanted(sequencer) == 0
    replay(sequencer, 0, 1, 2)
    assert seqs(sequencer) == [0, 1, 2]


@pytest.mark.parametrize("numbers", [(4, 5, 6, 7), (4, 5), ()])
def test_what_is_resumed_may_be_another_life(numbers: tuple[int, ...]) -> None:
    """It has another batch under the proven sequence, or has not come so far."""
    sequencer = resumed(4, 6)
    replay(sequencer, *numbers, life=2)
    assert seqs(sequencer) == ["restart"]
    assert wanted(sequencer) == 0
    replay(sequencer, 0, life=2)
    assert (seqs(sequencer), sequencer.is_resuming) == ([0], False)


def test_a_resumption_that_breaks_off_asks_for_the_rest() -> None:
    """From the last batch that came."""
    sequencer = resumed(4, 6)
    sequencer.replayed(4, body(4), 0.0)
    sequencer.disconnected()
    sequencer.connected(1.0)
    assert wanted(sequencer) == 4
    replay(sequencer, 4, 5, 6)
    assert (seqs(sequencer), phase(sequencer)) == ([4, 5, 6], "live")


def test_what_can_no_longer_be_resumed_is_lost() -> None:
    """The engine's buffer does not reach back to the oldest page."""
    sequencer = resumed(4, 6)
    for _ in range(limits.REPLAY_ATTEMPTS_MAX):
        assert wanted(sequencer) == 4
        replay(sequencer, 5, 6)
    assert (seqs(sequencer), phase(sequencer)) == (["lost"], "waiting")


def test_a_batch_that_was_skipped_before_is_skipped_again() -> None:
    """What could not be read was a doubt of the one before; behind the proven batch it is one."""
    sequencer = resumed(4, 6)
    replay(sequencer, 4, 5, 6, 7)
    taken = [step for step in steps(sequencer) if isinstance(step, Ready)]
    assert sequencer.rejected(taken[1], 0.0)
    assert not sequencer.rejected(taken[3], 0.0)


def test_a_replay_that_ends_before_what_is_held_is_asked_for_a_few_times(
    synced: Sequencer,
) -> None:
    """The engine says that this is all, which cannot be: it is lost after some attempts."""
    live(synced, 7)
    for _ in range(limits.REPLAY_ATTEMPTS_MAX):
        assert phase(synced) == "replaying"
        replay(synced, 2, now=100.0)
    assert phase(synced) == "waiting"
    assert seqs(synced) == ["lost"]
    assert synced.counts["replay"] <= 2 + limits.REPLAY_ATTEMPTS_MAX


def test_what_was_held_of_the_old_life_does_not_outlive_it(synced: Sequencer) -> None:
    """A message that still lay in the socket when the engine died is no hole in its new life."""
    synced.disconnected()
    live(synced, 7)
    synced.connected(100.0)
    replay(synced, now=100.0)
    assert seqs(synced) == ["restart"]
    replay(synced, 0, 1, life=2, now=100.0)
    assert seqs(synced) == [0, 1]
    assert phase(synced) == "live"
    assert synced.counts["gap"] == 0
