"""Render one template for another process: `python -P -m kvatlas.common.templating.worker FD`.

What arrives over the socket FD is the template, once, and then variables; what goes back is text.
Before it sees any of it the process gives up what it can do without: memory beyond a bound, new
files and sockets, writing, children. Rendering for long costs it its life: the other side kills it,
or, if that is gone, the kernel does.
"""

from __future__ import annotations

import importlib
import json
import resource
import socket
import sys
import time
from contextlib import suppress
from typing import Final

from jinja2 import TemplateError

from kvatlas.common import limits
from kvatlas.common.templating.frames import DONE, FAILED, TOO_LONG, Closed, receive, send
from kvatlas.common.templating.sandbox import compiled, environment, read_variables

_LAZY: Final = (
    "jinja2.debug", "jinja2.constants", "_strptime", "encodings.ascii", "encodings.latin_1",
    "encodings.raw_unicode_escape", "encodings.unicode_escape", "encodings.utf_16",
)  # fmt: skip


def main() -> None:
    """Serve until the other side closes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    # What Python and Jinja read only when they need it, which cannot be opened later.
    time.localtime()
    for name in _LAZY:
        importlib.import_module(name)
    with suppress(TemplateError):
        environment().from_string("{{ raise_exception('\\n') }}").render()
    _give_up()
    with suppress(Closed):
        _serve(connection)


def _serve(connection: socket.socket) -> None:
    source = receive(connection, limits.TEMPLATE_FRAME_BYTES_MAX)[1].decode("utf-8")
    _allow_seconds(limits.TEMPLATE_LOAD_S)
    try:
        template = compiled(source)
        variables = read_variables(source)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the other side is told
        send(connection, FAILED, b"")
        return
    send(connection, DONE, json.dumps(sorted(variables)).encode("utf-8"))
    while True:
        _, raw = receive(connection, limits.TEMPLATE_FRAME_BYTES_MAX)
        _allow_seconds(limits.TEMPLATE_LOAD_S)
        try:
            text = template.render(**json.loads(raw.decode("utf-8", "surrogatepass")))
        except Exception:  # noqa: BLE001 - a template may raise whatever Python can
            send(connection, FAILED, b"")
            continue
        if len(text) > limits.PROMPT_CHARS_MAX:
            send(connection, TOO_LONG, b"")
        else:
            send(connection, DONE, text.encode("utf-8", "surrogatepass"))


def _give_up() -> None:
    for what, most in (
        (resource.RLIMIT_AS, limits.TEMPLATE_MEMORY_BYTES_MAX),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (most, most))


def _allow_seconds(seconds: float) -> None:
    """Have the kernel end this process if it computes for longer, should nobody else do so."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))


if __name__ == "__main__":
    main()
