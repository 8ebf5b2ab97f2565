"""Services that run from the image in a chroot of buildah's, as the image's user."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "localhost/kvatlas:check"
UID = 10001
START_S = 60
STOP_S = 15


class CheckFailed(Exception):
    """What was built does not do what it should."""


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"check-image: {text}", flush=True)


def run(*command: str, timeout_s: float = 120) -> str:
    """Run a command and give its output.

    Raises:
        CheckFailed: it fails or takes too long.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{' '.join(command[:3])} took over {timeout_s} s") from None
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise CheckFailed(f"{' '.join(command[:3])} ended with {done.returncode}:\n{tail}")
    return done.stdout.strip()


@contextlib.contextmanager
def container() -> Iterator[str]:
    """Make a working container of the image, and remove it."""
    name = run("buildah", "from", "--pull-never", IMAGE)
    try:
        yield name
    finally:
        run("buildah", "rm", name)


def inside(name: str, *command: str, volume: str | None = None) -> list[str]:
    """Give the command that runs another one in a container, as the image's user."""
    volumes = [f"--volume={volume}"] if volume else []
    return ["buildah", "run", "--isolation", "chroot", *volumes, name, "--", *command]


def free_ports(count: int) -> list[int]:
    """Find free loopback ports, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def write_config(path: Path, redis_url: str) -> dict[str, str]:
    """Write the configuration of the fleet; give where each service says that it is ready."""
    engine, events, replay, router, admin, indexer = free_ports(6)
    config = {
        "redis": {"url": redis_url},
        "models": [{"name": "demo", "tokenizer": "demo", "block_size": 16}],
        "endpoints": [{
            "url": f"http://127.0.0.1:{engine}", "model": "demo",
            "events": f"tcp://127.0.0.1:{events}", "replay": f"tcp://127.0.0.1:{replay}",
        }],
        "router": {"port": router, "admin_port": admin, "debug_headers": True},
        "indexer": {"admin_port": indexer},
        "engine": {
            "port": engine, "model": "demo", "events": f"tcp://127.0.0.1:{events}",
            "replay": f"tcp://127.0.0.1:{replay}", "time_scale": 10,
        },
    }  # fmt: skip
    path.write_text(json.dumps(config), encoding="utf-8")
    path.chmod(0o644)
    return {
        "engine": f"http://127.0.0.1:{engine}/health",
        "indexer": f"http://127.0.0.1:{indexer}/readyz",
        "router": f"http://127.0.0.1:{admin}/readyz",
        "chat": f"http://127.0.0.1:{router}/v1/chat/completions",
    }


def descendants(pid: int) -> list[int]:
    """List the processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def service_pid(pid: int) -> int | None:
    """Find our own process below buildah's.

    Matched by its interpreter: the helpers of buildah carry the whole command line, too.
    """
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if words[0].startswith(b"/opt/kvatlas/bin/python"):
                return child
    return None


@contextlib.contextmanager
def service(name: str, role: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service from the image until the context ends."""
    mount = f"{folder / 'config.json'}:/etc/kvatlas/config.yaml:ro"
    command = ("/opt/kvatlas/bin/kvatlas", role, "--config", "/etc/kvatlas/config.yaml")
    with (folder / f"{role}.log").open("wb") as log:
        process = subprocess.Popen(
            inside(name, *command, volume=mount), stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a service and the buildah around it."""
    own = service_pid(process.pid)
    below = descendants(process.pid)
    if own:
        with contextlib.suppress(ProcessLookupError):
            os.kill(own, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        for pid in (*below, process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(STOP_S)


def await_ready(role: str, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a service is ready.

    Raises:
        CheckFailed: it ends, or is not ready in time.
    """
    deadline, last = time.monotonic() + START_S, "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            last = error.read(500).decode(errors="replace")
        except OSError as error:
            last = type(error).__name__
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise CheckFailed(f"the {role} is not ready ({last}):\n{tail}")


def check_user(role: str, process: subprocess.Popen[bytes]) -> None:
    """See that a service runs as the image's user, with no way to more.

    Raises:
        CheckFailed: it runs as somebody else.
    """
    pid = service_pid(process.pid)
    if pid is None:
        raise CheckFailed(f"the {role}'s process is not to be found")
    status = Path(f"/proc/{pid}/status").read_text()
    uids = re.search(r"^Uid:\s+(.*)$", status, re.MULTILINE)
    if uids is None or set(uids[1].split()) != {str(UID)}:
        raise CheckFailed(f"the {role} runs as {uids and uids[1]}, not as {UID}")


def check_chat(url: str) -> None:
    """Send a chat request through the router.

    Raises:
        CheckFailed: it is not answered.
    """
    body = {"model": "demo", "messages": [{"role": "user", "content": "hello " * 40}],
            "max_tokens": 4}  # fmt: skip
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            usage = json.load(answer)["usage"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckFailed(f"the router does not answer a chat request: {error!r}") from None
    say(f"a chat request came back through the router: {usage['prompt_tokens']} prompt tokens")
