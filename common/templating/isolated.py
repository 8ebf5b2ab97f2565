"""Render a template that nobody vouches for: in processes that can be killed.

A thread that renders cannot be stopped, and a sandbox bounds neither time nor memory. So such a
template lives in a few processes of its own, with a bound on memory (`worker`). One that does not
answer in time is killed and started anew; meanwhile the others render, or the request goes by load.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from threading import Lock
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.templating.frames import DONE, TOO_LONG, Closed, receive, send

_KEPT: Final = ("TZ", "LD_LIBRARY_PATH")
"""Variables that Python itself may need, and what the date in a prompt depends on."""


class IsolatedTemplate:
    """One template, and the processes that render it. Thread-safe; every method may block.

    Args:
        source: of the template.

    Attributes:
        limit_s: for one rendering; a trial of its cost is given more.
    """

    def __init__(self, source: str) -> None:
        self.limit_s = limits.TEMPLATE_LOAD_S
        self._lock = Lock()
        self._workers = [_Worker(source) for _ in range(limits.TEMPLATE_WORKERS)]
        self._idle = list(self._workers)

    def begin(self) -> frozenset[str] | None:
        """Wait until the processes have compiled it.

        Returns:
            The variables that it reads; None if it cannot be compiled.

        Raises:
            PromptUnavailable: not in time.
        """
        told = [worker.begin(limits.TEMPLATE_LOAD_S) for worker in self._workers]
        return told[0] if all(each is not None for each in told) else None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render in one of the processes.

        Args:
            variables: what JSON can say.

        Raises:
            PromptUnavailable: the template failed; or its process had to be killed, or none is
                there at the moment.

        Cost: 0.2 ms more than in this process, and the variables and the text as JSON.
        """
        payload = json.dumps(variables, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(payload) > limits.TEMPLATE_FRAME_BYTES_MAX:
            raise PromptUnavailable("too_long")
        worker = self._taken()
        try:
            return worker.render(payload, self.limit_s)
        except Closed:
            raise PromptUnavailable("template_killed") from None
        finally:
            with self._lock:
                self._idle.append(worker)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def _taken(self) -> _Worker:
        with self._lock:
            for worker in self._idle:
                if worker.is_ready():
                    self._idle.remove(worker)
                    return worker
        raise PromptUnavailable("template_busy")


class _Worker:
    """A process, and the next one when it is gone."""

    def __init__(self, source: str) -> None:
        self._source = source.encode()
        self._failures = 0
        self._start_at_s = 0.0
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._variables: frozenset[str] | None = None
        self._start()

    def is_ready(self) -> bool:
        """Tell whether it can render; start it if it is gone and has been for long enough."""
        if self._connection is None and not self._is_closed and monotonic() >= self._start_at_s:
            self._start()
        try:
            return self.begin(0.0) is not None
        except PromptUnavailable:
            return False

    def begin(self, limit_s: float) -> frozenset[str] | None:
        """Wait until the template is compiled; give its variables, None if it cannot be.

        Raises:
            PromptUnavailable: not yet.
        """
        if self._variables is not None:
            return self._variables
        if self._connection is None:
            raise PromptUnavailable("template_busy")
        self._connection.settimeout(limit_s)
        try:
            kind, told = receive(self._connection, limits.TEMPLATE_CHARS_MAX)
        except (TimeoutError, BlockingIOError):
            if monotonic() - self._started_s > limits.TEMPLATE_LOAD_S:
                self._kill()
            raise PromptUnavailable("template_busy") from None
        except Closed:
            self._kill()
            raise PromptUnavailable("template_killed") from None
        if kind == DONE:
            self._variables = frozenset(map(str, json.loads(told)))
        return self._variables

    def render(self, payload: bytes, limit_s: float) -> str:
        """Render.

        Raises:
            PromptUnavailable: the template failed.
            Closed: the process died, or was killed.
        """
        assert self._connection is not None  # noqa: S101 - is_ready has said so
        deadline = monotonic() + limit_s
        try:
            self._connection.settimeout(limit_s)
            send(self._connection, DONE, payload)
            self._connection.settimeout(max(1e-3, deadline - monotonic()))
            kind, text = receive(self._connection, limits.TEMPLATE_FRAME_BYTES_MAX)
            rendered = text.decode("utf-8", "surrogatepass")
        except (TimeoutError, UnicodeDecodeError, Closed):
            self._kill()
            raise Closed from None
        self._failures = 0
        if kind == DONE:
            return rendered
        raise PromptUnavailable("too_long" if kind == TOO_LONG else "template_error")

    def close(self) -> None:
        """End the process for good."""
        self._is_closed = True
        self._kill()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # Nothing else of our environment: it may hold keys.
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment |= {name: os.environ[name] for name in _KEPT if name in os.environ}
        module = "kvatlas.common.templating.worker"
        command = [sys.executable, "-B", "-P", "-m", module, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no text of others
                command,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._connection = ours
        self._variables = None
        self._started_s = monotonic()
        ours.settimeout(limits.TEMPLATE_LOAD_S)
        send(ours, DONE, self._source)

    def _kill(self) -> None:
        """End the process; the next one may start after a pause that doubles."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        self._variables = None
        pause_s = limits.TEMPLATE_PAUSE_S * 2.0**self._failures
        self._start_at_s = monotonic() + min(pause_s, limits.TEMPLATE_PAUSE_MAX_S)
        self._failures += 1
