"""What `kvatlas doctor` thinks of the way from an engine's events to the index. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from kvatlas.cli.doctor_engine import block_size_of
from kvatlas.cli.doctor_facts import FAULT, OK, WARN, EngineFound, EventsFound, Finding, Found
from kvatlas.cli.index_reader import EndpointState

DOUBTS: Final = (
    "gap",
    "lost",
    "replay_failed",
    "malformed",
    "reconnect",
    "overpredicted",
    "overclaimed",
)
"""Reasons of epochs that cost what was known without the engine having forgotten it."""
_PORT: Final = re.compile(r":(\d+)$")


def judge_events(events: EventsFound, engine: EngineFound, found: Found) -> Iterator[Finding]:
    """Judge one endpoint's events, replays and place in the index."""
    if events.events is None:
        yield Finding(
            WARN,
            events.name,
            "events",
            "No events are configured: the endpoint is routed to by load alone.",
            "Start the engine with --kv-events-config and set events and replay.",
        )
        return
    if engine.silence is None:
        yield _flow(events, engine)
    if events.accepts:
        yield _replay(events)
    if found.redis.silence is None:
        yield _position(events)
        yield from _state(events)
        yield from _block_size(events, engine)
    yield from _counters(events.name, found)


def _flow(events: EventsFound, engine: EngineFound) -> Finding:
    moved = _elsewhere(events, engine)
    if moved:
        return Finding(
            FAULT,
            events.name,
            "events",
            f"The engine has {moved[0]}, configured is {moved[1]}.",
            f"Set {moved[2]} of the endpoint to that port.",
        )
    if not events.accepts:
        silent = engine.silence is None and engine.sources == {}
        why = "the engine says that it publishes none" if silent else "nothing publishes there"
        return Finding(
            FAULT,
            events.name,
            "events",
            f"No events can be had from {events.events}: {why}.",
            "Start the engine with --kv-events-config (publisher zmq, endpoint with a star), or "
            "correct events.",
        )
    return Finding(OK, events.name, "events", f"Events can be had from {events.events}.")


def _elsewhere(events: EventsFound, engine: EngineFound) -> tuple[str, str, str] | None:
    """Hold the configured ports against those that the engine names."""
    source = (engine.sources or {}).get(events.rank)
    if source is None:
        return None
    pairs = (
        (source.events, events.events, "events"),
        (source.replay, events.replay_address, "replay"),
    )
    for told, configured, setting in pairs:
        port, expected = _port(told), _port(configured)
        if port and expected and port != expected:
            return f"its {setting} socket on port {port}", f"{configured}", setting
    return None


def _port(address: str | None) -> str | None:
    found = _PORT.search(address or "")
    return found[1] if found else None


def _replay(events: EventsFound) -> Finding:
    if events.replay_address is None:
        return Finding(
            WARN,
            events.name,
            "replay",
            "No replay socket is configured: each lost message costs what was known.",
            "Start the engine with replay_endpoint in --kv-events-config, and set replay.",
        )
    if events.replay is None or not events.replay.is_complete:
        return Finding(
            FAULT,
            events.name,
            "replay",
            f"The replay socket {events.replay_address} does not answer.",
            "Correct replay: it is replay_endpoint of the engine's --kv-events-config.",
        )
    return Finding(OK, events.name, "replay", "The replay socket answers.")


def behind(events: EventsFound) -> int | None:
    """Count the batches that the engine has sent and the index does not have; None: unknown."""
    replay, after = events.replay, events.after
    if replay is None or after is None or not replay.is_complete:
        return None
    return 0 if replay.newest is None else max(0, replay.newest - after.seq)


def _position(events: EventsFound) -> Finding:
    after = events.after
    if after is None:
        return Finding(
            FAULT,
            events.name,
            "index",
            "The index knows nothing of the endpoint.",
            "See that an indexer runs with this configuration and this Redis.",
        )
    if _restart_missed(events):
        return Finding(
            FAULT,
            events.name,
            "index",
            f"The index stands at batch {after.seq}, which the engine does not know: it has "
            "restarted.",
            "See that the indexer runs; it notices within seconds.",
        )
    lag = behind(events)
    if lag:
        return Finding(
            FAULT,
            events.name,
            "index",
            f"The index is {lag} batches behind the engine, and does not catch up.",
            "See that the indexer runs and reaches engine and Redis; its log says more.",
        )
    state = f"epoch {after.epoch}, batch {after.seq}, {after.blocks} blocks"
    if lag is None:
        return Finding(OK, events.name, "index", f"The index has {state}; lag is not known.")
    return Finding(OK, events.name, "index", f"The index has all of it: {state}.")


def _state(events: EventsFound) -> Iterator[Finding]:
    """Judge how the indexer itself says that it follows the endpoint."""
    after = events.after
    if after is None:
        return
    if after.unmatched:
        yield Finding(
            WARN,
            events.name,
            "groups",
            f"Nothing of it is indexed ({after.unmatched}): it is routed to by load alone.",
            "Its KV-cache groups are not of kinds or sizes that can be matched; see docs/REDIS.md.",
        )
    if after.phase == "waiting":
        yield Finding(
            WARN,
            events.name,
            "doubt",
            f"It is in doubt ({after.reason}) and will be learned anew.",
            "Wait a minute; if it stays so, see docs/EVENTS.md and the indexer's log.",
        )
    if after.phase == "stale":
        yield Finding(
            WARN,
            events.name,
            "stale",
            "The indexer has lost its feed: it has no matches and is routed to by load alone.",
            "See whether the engine is there, and whether the indexer may reach its event ports.",
        )


def _restart_missed(events: EventsFound) -> bool:
    """Tell whether the index stands where this life of the engine has not been."""
    replay, before, after = events.replay, events.before, events.after
    if replay is None or before is None or after is None or not replay.is_complete:
        return False
    unchanged = (before.epoch, before.seq) == (after.epoch, after.seq)
    return unchanged and before.seq >= 0 and replay.newest is None


def _block_size(events: EventsFound, engine: EngineFound) -> Iterator[Finding]:
    after: EndpointState | None = events.after
    size = block_size_of(engine.caches.get(events.rank, {}))
    if after is not None and after.block_size and size and after.block_size != size:
        yield Finding(
            FAULT,
            events.name,
            "block_size",
            f"Its events have blocks of {after.block_size} tokens, its metrics say {size}.",
            "See that events and url of the endpoint are of the same engine.",
        )


def _counters(name: str, found: Found) -> Iterator[Finding]:
    """Judge what the indexers have counted since they started."""
    troubles: list[str] = []
    for page in found.indexers:
        samples = page.samples
        told = {
            "batches could not be read": samples.sum(
                "kvatlas_indexer_batches_rejected_total", endpoint=name
            ),
            "blocks had no known parent": samples.sum(
                "kvatlas_indexer_orphan_blocks_total", endpoint=name
            ),
            "blocks were beyond the bounds": samples.sum(
                "kvatlas_indexer_blocks_over_limit_total", endpoint=name
            ),
            "gaps in the sequence": samples.sum(
                "kvatlas_indexer_sequence_events_total", endpoint=name, what="gap"
            ),
            "holes in replays": samples.sum(
                "kvatlas_indexer_sequence_events_total", endpoint=name, what="replay_hole"
            ),
        }
        epochs = samples.by("kvatlas_indexer_epochs_total", "reason", endpoint=name)
        told["epochs were begun in doubt"] = sum(epochs.get(reason, 0.0) for reason in DOUBTS)
        troubles += [f"{count:.0f} {what}" for what, count in told.items() if count]
    if troubles:
        yield Finding(
            WARN,
            name,
            "sequence",
            f"Since the indexer started: {', '.join(troubles)}.",
            "If these grow, see docs/EVENTS.md for what each means; the network or the engine "
            "loses messages.",
        )
    elif any(page.silence is None for page in found.indexers):
        yield Finding(OK, name, "sequence", "No gap, no orphan and no doubt was counted.")
