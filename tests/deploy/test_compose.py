"""The compose file starts the fleet of DEPLOY.md, and nothing reaches what it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from kvatlas.cli.redis_server import LISTPACK_ENTRIES, LISTPACK_VALUE_BYTES
from kvatlas.common.settings import load

ROOT = Path(__file__).resolve().parents[2]
OWN = ["indexer", "router-1", "router-2", "engine-1", "engine-2", "engine-3", "engine-4"]
ALL = ["redis", *OWN]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Read the file with its anchors merged."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return content


def test_fleet_is_complete(compose: dict[str, Any]) -> None:
    """Redis, an indexer, two routers and four engines are there, and only one builds the image."""
    services = compose["services"]
    assert sorted(services) == sorted(ALL)
    assert [name for name, service in services.items() if "build" in service] == ["indexer"]
    assert len({services[name]["image"] for name in OWN}) == 1


@pytest.mark.parametrize("name", ALL)
def test_services_are_locked_down(compose: dict[str, Any], name: str) -> None:
    """Each service is no root, has a read-only root, no capabilities, bounds and a healthcheck."""
    service = compose["services"][name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"pids_limit", "mem_limit", "healthcheck"} <= set(service)
    assert not {"privileged", "network_mode", "pid", "cap_add"} & set(service)


def test_only_routers_and_admin_ports_are_published(compose: dict[str, Any]) -> None:
    """Redis and events have no port on the host, and admin ports only one on loopback."""
    published = {
        name: service["ports"]
        for name, service in compose["services"].items()
        if "ports" in service
    }
    assert published == {
        "indexer": ["127.0.0.1:9091:9091"],
        "router-1": ["8080:8080", "127.0.0.1:9090:9090"],
        "router-2": ["8081:8080", "127.0.0.1:9092:9090"],
    }


def test_networks_part_who_must_not_meet(compose: dict[str, Any]) -> None:
    """All but the edge are internal, and only indexer and routers share a network with Redis."""
    networks, services = compose["networks"], compose["services"]
    assert {name for name, network in networks.items() if not network.get("internal")} == {"edge"}
    on_index = {name for name, service in services.items() if "index" in service["networks"]}
    assert on_index == {"redis", "indexer", "router-1", "router-2"}
    on_events = {name for name, service in services.items() if "events" in service["networks"]}
    assert on_events == {"indexer", "engine-1", "engine-2", "engine-3", "engine-4"}


def test_configuration_fits_the_services(compose: dict[str, Any]) -> None:
    """The mounted file loads, and every host in it is a service of the file."""
    settings = load(ROOT / "deploy/compose.yaml")
    services = set(compose["services"])
    hosts = {urlsplit(endpoint.url).hostname for endpoint in settings.endpoints}
    assert hosts == {name for name in services if name.startswith("engine")}
    assert urlsplit(settings.redis.url).hostname in services
    mounts = compose["services"]["router-1"]["volumes"]
    assert [mount["source"] for mount in mounts] == ["./deploy/compose.yaml"]


def test_redis_keeps_buckets_compact(compose: dict[str, Any]) -> None:
    """Compose, Kubernetes and the private server of the tests give Redis the same bounds."""
    command = compose["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--hash-max-listpack-entries"] == str(LISTPACK_ENTRIES)
    assert options["--hash-max-listpack-value"] == str(LISTPACK_VALUE_BYTES)
    assert options["--maxmemory-policy"] == "noeviction"
    lines = (ROOT / "k8s/components/redis-settings/redis.conf").read_text("utf-8").splitlines()
    in_pods = {
        f"--{name}": value for name, value in (each.split() for each in lines if each[0] != "#")
    }
    for name in ("--hash-max-listpack-entries", "--hash-max-listpack-value", "--maxmemory-policy"):
        assert in_pods[name] == options[name]
    assert {*options} <= {*in_pods}


def test_dockerfile_takes_no_root_and_no_index() -> None:
    """The image has a numbered user and locked packages, and names no package index."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert "USER 10001:10001" in text
    assert "--require-hashes" in text
    assert "index-url" not in text
