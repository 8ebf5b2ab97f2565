"""What a call costs our gRPC server, and grpc.aio's with the same handler and the same client.

python -m bench.grpc_server

A call is an exchange of a picker without its work: three messages each way. CPU is that of the
server's process, all of its threads; the client is grpcio's, in this process.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

from bench.proxy.usage import cpu_ns
from kvatlas.cli.bound import bound_command
from kvatlas.router.exchange import Stream
from kvatlas.router.grpc.server import GrpcServer

METHOD: Final = "/bench.Exchange/Process"
ASKED, TOLD = b"x" * 400, b"y" * 200
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
CALLS: Final = 3_000
ROUNDS: Final = 3
AT_ONCE: Final = (1, 16)
KINDS: Final = ("grpc.aio", "ours")


async def answer(stream: Stream) -> None:
    """Answer the second message with two, and the third with one."""
    number = 0
    while await stream.read() is not None:
        number += 1
        for _ in range(max(0, 4 - number) if number > 1 else 0):
            await stream.write(TOLD)


class _Theirs:
    """A call of grpc.aio as a stream."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        """Give the next message; None at the end."""
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        """Send one."""
        await self._context.write(message)


class _Handlers(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        """Answer every call."""
        del handler_call_details
        return grpc.stream_stream_rpc_method_handler(self._process)

    async def _process(self, _messages: Any, context: Any) -> None:
        await answer(_Theirs(context))


async def serve(kind: str) -> None:
    """Serve for ever; print the port."""
    if kind == "ours":
        server = GrpcServer({METHOD: answer}, MESSAGE_BYTES_MAX)
        async with server.listening("127.0.0.1", 0) as port:
            print(port, flush=True)
            await asyncio.Event().wait()
    theirs = grpc.aio.server()
    theirs.add_generic_rpc_handlers((_Handlers(),))
    port = theirs.add_insecure_port("127.0.0.1:0")
    await theirs.start()
    print(port, flush=True)
    await asyncio.Event().wait()


async def call(port: int, calls: int, at_once: int) -> None:
    """Make so many calls."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.stream_stream(METHOD)

        async def some() -> None:
            for _ in range(calls // at_once):
                stream: Any = method()
                for replies in (0, 2, 1):
                    await stream.write(ASKED)
                    for _ in range(replies):
                        await stream.read()
                await stream.done_writing()
                await stream.read()

        await asyncio.gather(*(some() for _ in range(at_once)))


def measure(kind: str) -> list[float]:
    """Give microseconds of CPU per call, for each number of calls at once."""
    command = bound_command([sys.executable, "-m", "bench.grpc_server", kind])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port, found = int(server.stdout.readline()), []
        asyncio.run(call(port, CALLS // 10, 1))
        for at_once in AT_ONCE:
            before = cpu_ns(server.pid)
            asyncio.run(call(port, CALLS, at_once))
            found.append((cpu_ns(server.pid) - before) / CALLS / 1e3)
        server.kill()
    return found


def main() -> int:
    """Serve, or measure both in turns; print medians."""
    if len(sys.argv) > 1:
        uvloop.run(serve(sys.argv[1]))
        return 0
    rounds = [{kind: measure(kind) for kind in KINDS} for _ in range(ROUNDS)]
    print(f"| CPU us per call | {' | '.join(f'{n} at once' for n in AT_ONCE)} |")
    print(f"| --- |{' --- |' * len(AT_ONCE)}")
    for kind in KINDS:
        cells = (
            f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"
            for values in zip(*(each[kind] for each in rounds), strict=True)
        )
        print(f"| {kind} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
