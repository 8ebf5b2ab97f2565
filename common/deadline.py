"""A limit of time that a stall of our own loop does not use up."""

from __future__ import annotations

import asyncio
from typing import Self


class Deadline:
    """End what the current task does in this context, by TimeoutError, when its time is over.

    As `asyncio.timeout`, but after a stall of the loop, when the time is over and the answer lies
    unread, that gets a last look.

    Args:
        limit_s: the time.
        grace_s: the last part of it, which begins when the loop has come to it.
    """

    __slots__ = ("_before", "_grace_s", "_is_over", "_limit_s", "_task", "_timer")

    def __init__(self, limit_s: float, grace_s: float) -> None:
        self._limit_s = limit_s
        self._grace_s = min(grace_s, limit_s)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - narrows the type
        self._task = task
        self._before = task.cancelling()
        self._is_over = False
        delay_s = self._limit_s - self._grace_s
        self._timer = task.get_loop().call_later(delay_s, self._late)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        del error, trace
        self._timer.cancel()
        if not self._is_over:
            return
        # Somebody else may have cancelled the task as well: then that is what it ends by.
        is_ours = self._task.uncancel() <= self._before
        if is_ours and kind is asyncio.CancelledError:
            raise TimeoutError

    def _late(self) -> None:
        self._timer = self._task.get_loop().call_later(self._grace_s, self._end)

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()
