"""Entries that wait to be written: per pool and block only the newest state. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from kvatlas.common import limits
from kvatlas.indexer.apply import Present
from kvatlas.indexer.targets import Change

Pending = Present


def overlay(pending: Pending, newer: Pending) -> Pending:
    """Lay newer entries over older ones."""
    for pool, blocks in newer.items():
        if blocks:
            pending.setdefault(pool, {}).update(blocks)
    return pending


def size(pending: Pending) -> int:
    """Count the entries."""
    return sum(map(len, pending.values()))


def parts_of(changes: Iterable[Change]) -> list[list[Change]]:
    """Cut changes into parts that one script call takes."""
    parts: list[list[Change]] = [[]]
    room = limits.OPS_PER_SCRIPT_MAX
    for change in changes:
        start = 0
        while start < len(change.blocks):
            if room == 0:
                parts.append([])
                room = limits.OPS_PER_SCRIPT_MAX
            blocks = change.blocks[start : start + room]
            parts[-1].append(replace(change, blocks=blocks))
            start, room = start + len(blocks), room - len(blocks)
    return parts


def removals(pending: Pending) -> Pending:
    """Give those that are to be removed."""
    gone = {
        pool: {block: False for block, is_there in blocks.items() if not is_there}
        for pool, blocks in pending.items()
    }
    return {pool: blocks for pool, blocks in gone.items() if blocks}
