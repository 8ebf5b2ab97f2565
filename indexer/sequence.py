"""The order of one endpoint's batches: gaps, replays, restarts and doubts. Pure.

It guarantees that batches come out in order and each at most once, and that a `NewEpoch` comes
out before the first batch for which what was known can no longer be vouched for. It makes no
guarantee that no batch is missing at the start of an epoch: engines keep only the newest ones.

The wire tells no engine's life from another (sequences begin at 0 again), so every replay asks
for the last applied batch once more: the same bytes mean the same life. Replays lose messages
without a word (vLLM up to 0.32), so what comes must be contiguous; the END mark proves nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Final, Literal

from msgspec import Struct
from xxhash import xxh3_128_digest

from kvatlas.common import limits
from kvatlas.indexer.digests import Digests

Phase = Literal["connecting", "replaying", "live", "waiting"]
Cause = Literal["start", "reconnect", "gap", "audit"]

BAD_BATCHES_REMEMBERED: Final = 1_024


class Ready(Struct, frozen=True):
    """A batch whose turn it is.

    Attributes:
        digest: of the payload; the same bytes prove the same life.
        is_replayed: it came in a replay, so in a new epoch it is the oldest that the engine has.
    """

    seq: int
    payload: bytes
    digest: bytes
    is_replayed: bool = False


class NewEpoch(Struct, frozen=True):
    """What is known of the endpoint's cache is forgotten.

    Attributes:
        reason: one of a closed set of words: "start", "restart", "reconnect", "gap", "lost",
            "replay_failed", "malformed", "overpredicted", "overclaimed".
    """

    reason: str


Step = Ready | NewEpoch


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where somebody else has followed the endpoint to, in a life that may still go on.

    Attributes:
        first: sequence of the first batch that is wanted, at most one after `proven`.
        proven: sequence of the last batch that was applied.
        digest: of that batch.
    """

    first: int
    proven: int
    digest: bytes


class Sequencer:
    """Put one endpoint's messages in order.

    Inputs are methods that take the monotonic time in seconds; outputs are `next_step`, and
    `replay_from` with `replay_id`: while `replay_from` is not None, a replay from that sequence is
    wanted, and a changed `replay_id` means that a running one is of no use any more.

    Args:
        has_replay: whether the endpoint has a replay socket at all.
        resumption: where to go on; None to begin with a `NewEpoch`. Batches up to the proven one
            come out before it is known whether the engine's life is the same; if it is not, a
            `NewEpoch` takes them back.
    """

    def __init__(self, *, has_replay: bool, resumption: Resumption | None = None) -> None:
        self._has_replay = has_replay
        self._steps: deque[Step] = deque([] if resumption else [NewEpoch("start")])
        self._next: int | None = None
        self._digests = Digests(limits.DIGESTS_KEPT)
        self._resumed = resumption
        if resumption:
            self._next = resumption.first
            if resumption.first > resumption.proven:
                self._digests[resumption.proven] = resumption.digest
        self._held: deque[tuple[int, bytes]] = deque()
        self._held_bytes = 0
        self._held_lost = False
        self._verifying = False
        self._attempts = 0
        self._cause: Cause = "start"
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._doubts = 0
        self._epoch_at = float("-inf")
        self._resume_at = 0.0
        self._audit_at = float("inf")
        self._is_connected = False
        self.phase: Phase = "connecting"
        self.replay_from: int | None = None
        self.replay_id = 0
        self.counts: Counter[str] = Counter()
        """Of "gap", "duplicate", "replay", "replay_hole", "replay_failed", "skipped", "dropped"."""

    @property
    def is_resuming(self) -> bool:
        """Tell whether the batches up to the proven one are still to come."""
        resumed, following = self._resumed, self._next
        return resumed is not None and following is not None and following <= resumed.proven

    @property
    def last_seq(self) -> int | None:
        """Give the sequence of the newest batch that came out, if any did in this epoch."""
        return None if self._next is None or self._next == 0 else self._next - 1

    def next_step(self) -> Step | None:
        """Take the next batch, or the word to forget."""
        return self._steps.popleft() if self._steps else None

    # --- inputs -----------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """Note that the live socket is connected; what was sent before may be missing."""
        self._is_connected = True
        if self.phase == "waiting":
            return
        if self._has_replay:
            self._ask("start" if self._next is None else "reconnect")
        else:
            if self._next is not None:
                self._new_epoch("reconnect", now)
            self._go_live(now)

    def disconnected(self) -> None:
        """Note that the live socket lost its peer; what is held will be replayed."""
        self._is_connected = False
        self._drop_held()
        self._stop_replay()
        if self.phase != "waiting":
            self.phase = "connecting"

    def live(self, seq: int, payload: bytes, now: float) -> None:
        """Take a message from the live socket."""
        if self.phase == "waiting":
            self.counts["dropped"] += 1
        elif self.phase == "live":
            self._audit_at = now + limits.AUDIT_S
            self._take_live(seq, payload, now)
        else:
            self._hold(seq, payload)

    def replayed(self, seq: int, payload: bytes, now: float) -> None:
        """Take a message of the replay that was asked for."""
        if self.phase != "replaying":
            return
        if self._verifying:
            self._verify(seq, payload, now)
        elif self._next is None or seq == self._next:
            if self._is_another_life(seq, payload):
                self._another_life(now)
                return
            self._accept(seq, payload)
            self._attempts = 0
        elif seq > self._next:
            self.counts["replay_hole"] += 1
            self._ask_again("lost", now)

    def replay_ended(self, now: float, *, complete: bool) -> None:
        """Note that the replay has ended.

        Args:
            now: seconds.
            complete: the END mark came; else time ran out or the socket failed.
        """
        if self.phase != "replaying":
            return
        if not complete:
            self._replay_failed(now)
        elif self._verifying or self.is_resuming:
            # The engine knows nothing of the last batch: it is another life, and a young one.
            self._another_life(now)
        else:
            if self._next is None:
                self._next = 0
            if self._held and self._held[0][0] > self._next:
                # The engine says that this was all, and has sent more: not all of it is held.
                self.counts["replay_hole"] += 1
                self._ask_again("lost", now)
            else:
                self._drain(now)

    def rejected(self, step: Ready, now: float) -> bool:
        """Note that a batch could not be read.

        Returns:
            True when it had been rejected before, here or where this was resumed from, and is
            skipped; else the endpoint is in doubt.
        """
        digest = xxh3_128_digest(step.payload)
        if digest in self._bad or (self._resumed and step.seq <= self._resumed.proven):
            self.counts["skipped"] += 1
            return True
        self._bad[digest] = None
        if len(self._bad) > BAD_BATCHES_REMEMBERED:
            self._bad.popitem(last=False)
        self._doubt("malformed", now)
        return False

    def unreadable(self, now: float) -> None:
        """Note that a message came that does not even have a sequence."""
        if self.phase != "waiting":
            self._doubt("malformed", now)

    def overpredicted(self, now: float) -> None:
        """Note that the engine was found to hold less than its batches say."""
        if self.phase != "waiting":
            self._doubt("overpredicted", now)

    def overclaimed(self, now: float) -> None:
        """Note that the engine's batches store more than its cache can hold."""
        if self.phase != "waiting":
            self._doubt("overclaimed", now)

    def tick(self, now: float) -> None:
        """Let time pass; call it a few times a second."""
        if self.phase == "waiting" and now >= self._resume_at:
            self.phase = "connecting"
            if self._is_connected:
                self._resume(now)
        elif self.phase == "live" and self._has_replay and now >= self._audit_at:
            self._ask("audit")

    # --- the live socket --------------------------------------------------------------------

    def _take_live(self, seq: int, payload: bytes, now: float) -> None:
        if self._next is None or seq == self._next:
            self._accept(seq, payload)
        elif seq > self._next:
            self.counts["gap"] += 1
            self._gap(seq, payload, now)
        elif self._digests.get(seq) == xxh3_128_digest(payload):
            self.counts["duplicate"] += 1
        else:
            self._another_life(now)
            self.live(seq, payload, now)

    def _gap(self, seq: int, payload: bytes, now: float) -> None:
        if self._has_replay:
            self._hold(seq, payload)
            self._ask("gap")
        else:
            self._new_epoch("gap", now)
            self._accept(seq, payload)

    def _accept(self, seq: int, payload: bytes) -> None:
        self._next = seq + 1
        self._digests[seq] = digest = xxh3_128_digest(payload)
        is_replayed = self.phase == "replaying"
        self._steps.append(Ready(seq, payload, digest, is_replayed=is_replayed))

    def _is_another_life(self, seq: int, payload: bytes) -> bool:
        """Tell whether a batch is not the one that was applied under its sequence."""
        resumed = self._resumed
        if resumed is None or seq != resumed.proven:
            return False
        return resumed.digest != xxh3_128_digest(payload)

    def _hold(self, seq: int, payload: bytes) -> None:
        self._held.append((seq, payload))
        self._held_bytes += len(payload)
        full = len(self._held) > limits.HELD_BATCHES_MAX
        if full or self._held_bytes > limits.HELD_BYTES_MAX:
            self.counts["dropped"] += len(self._held)
            self._drop_held()
            self._held_lost = True

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        self._held_lost = False

    # --- replays ----------------------------------------------------------------------------

    def _ask(self, cause: Cause) -> None:
        """Want a replay, from the last applied batch inclusive where there is one."""
        self.counts["replay"] += 1
        self._cause = cause
        self.phase = "replaying"
        last = self.last_seq
        # Of the batch before the first that is resumed from, nothing is known.
        self._verifying = last is not None and last in self._digests
        self.replay_from = last if self._verifying else self._next or 0
        self.replay_id += 1

    def _stop_replay(self) -> None:
        self._verifying = False
        self.replay_from = None
        self.replay_id += 1

    def _verify(self, seq: int, payload: bytes, now: float) -> None:
        last = self.last_seq
        if last is None or seq > last:
            self.counts["replay_hole"] += 1
            self._ask_again("lost", now)
        elif seq == last and self._digests.get(seq) == xxh3_128_digest(payload):
            self._verifying = False
        elif seq == last:
            self._another_life(now)

    def _ask_again(self, reason: str, now: float) -> None:
        """Ask once more for what a replay left out; after some attempts it counts as lost."""
        self._attempts += 1
        if self._attempts < limits.REPLAY_ATTEMPTS_MAX:
            self._ask(self._cause)
        else:
            self._doubt(reason, now)

    def _replay_failed(self, now: float) -> None:
        self.counts["replay_failed"] += 1
        self._attempts += 1
        if self._attempts < limits.REPLAY_ATTEMPTS_MAX and self._cause != "audit":
            self._ask(self._cause)
            return
        # Live events alone serve on; what was missed or not vouched for is forgotten.
        if self._cause in ("gap", "reconnect"):
            self._new_epoch("replay_failed", now)
        self._drain(now)

    def _drain(self, now: float) -> None:
        """Go on with what came in while the replay ran."""
        held, lost = self._held, self._held_lost
        self._held = deque()
        self._drop_held()
        self._go_live(now)
        if lost:
            self._ask("gap")
            return
        for seq, payload in held:
            self.live(seq, payload, now)

    def _go_live(self, now: float) -> None:
        settling = self._cause != "audit"
        self._stop_replay()
        self._attempts = 0
        self.phase = "live"
        # A subscription takes effect some time after it is made: look once more, soon.
        self._audit_at = now + (limits.SETTLE_S if settling else limits.AUDIT_S)

    # --- epochs -----------------------------------------------------------------------------

    def _another_life(self, now: float) -> None:
        """The engine has started anew: forget, and read what its new life has sent so far."""
        if now - self._epoch_at < limits.DOUBT_BACKOFF_S:
            self._doubt("restart", now)
            return
        self._new_epoch("restart", now)
        # Some of it may be of the old life; what is of the new one will be replayed.
        self._drop_held()
        self._resume(now)

    def _resume(self, now: float) -> None:
        if self._has_replay:
            self._ask("start")
        else:
            self._go_live(now)

    def _doubt(self, reason: str, now: float) -> None:
        """Forget, wait (longer each time), then read everything that the engine still has."""
        if now - self._epoch_at > 2 * limits.DOUBT_BACKOFF_MAX_S:
            self._doubts = 0
        delay = min(limits.DOUBT_BACKOFF_S * 2**self._doubts, limits.DOUBT_BACKOFF_MAX_S)
        self._doubts = min(self._doubts + 1, 16)
        self._new_epoch(reason, now)
        self._drop_held()
        self._stop_replay()
        self.phase = "waiting"
        self._resume_at = now + delay

    def _new_epoch(self, reason: str, now: float) -> None:
        """Forget; batches that were about to come out belong to what is forgotten."""
        self._steps.clear()
        self._steps.append(NewEpoch(reason))
        self._digests.clear()
        self._next = self._resumed = None
        self._attempts = 0
        self._epoch_at = now
