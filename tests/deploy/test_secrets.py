"""The Secrets of Redis' users are what Redis takes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.exceptions import AuthenticationError

from deploy.kube.render import ROOT
from deploy.kube.schemas import schema_faults
from tests.fakes.redis_servers import Server, plain_options, redis7, running

USERS = ("indexer", "router-read", "router-write")


def made() -> dict[str, dict[str, str]]:
    """Run the script; give the Secrets by name."""
    command = [str(ROOT / "deploy/redis/secrets.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(done.stdout))
    assert list(schema_faults(documents)) == []
    return {each["metadata"]["name"]: each["stringData"] for each in documents}


def test_redis_lets_in_who_has_the_passwords(tmp_path: Path) -> None:
    """Each user by its own, nobody without, and the ACL file holds none of them."""
    secrets = made()
    logins, acl = secrets["redis-logins"], secrets["redis-users"]["users.acl"]
    assert set(logins) == {*USERS}
    assert len({*logins.values()}) == len(USERS)
    assert not [password for password in logins.values() if password in acl]
    file = tmp_path / "users.acl"
    file.write_text(f"{acl}user test on nopass ~* &* +@all\n")
    server = Server(tmp_path, [*plain_options(), "--aclfile", str(file)], redis7())
    server.login = {"username": "test", "password": "any"}
    with running([server]):
        for user in USERS:
            with server.client(username=user, password=logins[user]) as client:
                assert client.ping()
        with (
            server.client(username="indexer", password=logins["router-read"]) as client,
            pytest.raises(AuthenticationError),
        ):
            client.ping()


def test_each_run_makes_others() -> None:
    """Passwords are random, and long."""
    first, second = made()["redis-logins"], made()["redis-logins"]
    assert not {*first.values()} & {*second.values()}
    assert {len(each) for each in first.values()} == {64}
