"""The scripts of redis-sentinel and redis-cluster do with real servers what their pods rely on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from deploy.kube.render import K8S
from kvatlas.cli.bound import bound_command
from tests.fakes.redis_servers import (
    SLOTS,
    Server,
    free_ports,
    plain_options,
    redis7,
    running,
    wait_until,
)

SENTINEL = K8S / "components/redis-sentinel"
NODES = 3
pytestmark = pytest.mark.timeout(60)


def binaries_in(folder: Path) -> str:
    """Put a redis-server and a redis-cli of one version into a folder; give a PATH for scripts."""
    home = redis7().parent
    binaries = home / "usr/bin" if (home / "usr/bin").exists() else home
    libraries = ":".join(str(each) for each in (home / "usr/lib").glob("*-linux-gnu"))
    for name in ("redis-server", "redis-cli"):
        if not (binaries / name).exists():
            pytest.skip(f"no {name} beside the redis-server")
        exported = f"export LD_LIBRARY_PATH={libraries}" if libraries else ":"
        script = folder / name
        script.write_text(f'#!/bin/sh\n{exported}\nexec {binaries / name} "$@"\n')
        script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


class Pods:
    """Three servers and three sentinels, each started by its script as its pod would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = free_ports(2 * NODES)
        self.nodes, self.sentinels = ports[:NODES], ports[NODES:]
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        settings = (K8S / "components/redis-settings/redis.conf").read_text("utf-8")
        (folder / "redis.conf").write_text(f"{settings}\nrepl-diskless-sync-delay 0\n")
        self.path = binaries_in(folder)

    def start(self, port: int) -> None:
        """Start a pod, a server or a sentinel."""
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        script = "redis.sh" if port in self.nodes else "sentinel.sh"
        environment = {
            "PATH": self.path,
            "NODES": " ".join(f"127.0.0.1:{each}" for each in self.nodes),
            "SENTINELS": " ".join(f"127.0.0.1:{each}" for each in self.sentinels),
            "SELF": f"127.0.0.1:{port}",
            "CONFIG": str(self.folder / "redis.conf"),
            "FOLDER": str(folder),
            "DOWN_AFTER_MS": "2500",
            "FAILOVER_MS": "3000",
        }
        command = ["/bin/sh", str(SENTINEL / script), "--bind", "127.0.0.1"]
        with (folder / "log").open("ab") as log:
            self.running[port] = subprocess.Popen(
                bound_command(command), cwd=folder, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def kill(self, port: int) -> None:
        """End a pod at once."""
        process = self.running.pop(port)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)

    def role(self, port: int) -> tuple[str, int]:
        """Tell what a server is, and of what port a replica is one, or how many a master has."""
        with Redis(port=port, socket_timeout=2) as client:
            told = client.info("replication")
        if told["role"] == "slave":
            return "replica", told["master_port"] if told["master_link_status"] == "up" else 0
        return "master", told["connected_slaves"]

    def master(self) -> int:
        """Ask all sentinels for the master; 0 while they differ."""
        said = set()
        for port in self.sentinels:
            with Redis(port=port, socket_timeout=2) as client:
                found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            said.add(int(found[1]))
        return said.pop() if len(said) == 1 else 0

    def is_well(self) -> bool:
        """Tell whether all agree: one master, two replicas, sentinels that know each other."""
        for port in self.sentinels:
            with Redis(port=port, socket_timeout=2) as client:
                told = client.sentinel_masters()["mymaster"]
            if told["num-other-sentinels"] != NODES - 1 or told["num-slaves"] < NODES - 1:
                return False
        return self.role(self.master()) == ("master", NODES - 1)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    """Start all at once, as parallel stateful sets do."""
    pods = Pods(tmp_path)
    try:
        for port in (*pods.nodes, *pods.sentinels):
            pods.start(port)
        wait_until(pods.is_well, "one master and its replicas", 20)
        yield pods
    finally:
        for port in list(pods.running):
            pods.kill(port)


def test_a_master_that_is_gone_comes_back_as_a_replica(pods: Pods) -> None:
    """The first is the master; when it is gone another is, which all follow."""
    first = pods.nodes[0]
    assert pods.master() == first
    pods.kill(first)
    wait_until(lambda: pods.master() not in (0, first), "another master", 20)
    wait_until(lambda: pods.role(pods.master()) == ("master", 1), "a replica that follows it", 20)
    pods.start(first)
    wait_until(lambda: pods.role(first) == ("replica", pods.master()), "a replica", 20)
    # A sentinel that has forgotten everything learns it from the others.
    pods.kill(pods.sentinels[0])
    pods.start(pods.sentinels[0])
    wait_until(pods.is_well, "all agree again", 20)


def test_servers_are_joined_once(tmp_path: Path) -> None:
    """Six become three masters with a replica each; a Job that runs again finds a cluster."""
    options = [*plain_options(), "--cluster-enabled", "yes"]
    servers = [
        Server(tmp_path / str(port), options, redis7(), port=port)
        for port in free_ports(6, bus=True)
    ]
    script = ["/bin/sh", str(K8S / "components/redis-cluster/join.sh")]
    nodes = " ".join(server.address for server in servers)
    environment = {"PATH": binaries_in(tmp_path), "NODES": nodes}

    def join() -> str:
        done = subprocess.run(
            script, env=environment, capture_output=True, text=True, timeout=40, check=True
        )
        return done.stdout

    with running(servers):
        assert f"All {SLOTS} slots covered" in join()
        roles = [server.client().info("replication")["role"] for server in servers]
        assert sorted(roles) == ["master"] * 3 + ["slave"] * 3
        assert join() == "is a cluster\n"
