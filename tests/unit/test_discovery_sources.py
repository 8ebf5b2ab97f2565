"""Files and names in the DNS as places where endpoints are found, and what becomes of faults."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvatlas.cli.doctor_judge import judge_place
from kvatlas.common import limits
from kvatlas.common.discovery.dns import DnsSource
from kvatlas.common.discovery.files import FileSource, read_entries
from kvatlas.common.discovery.gauges import SourceGauges
from kvatlas.common.discovery.merging import Fleet
from kvatlas.common.discovery.once import look_once
from kvatlas.common.discovery.source import EndpointSource, SourceFailed
from kvatlas.common.discovery.watching import Watching
from kvatlas.common.discovery_settings import DnsDiscovery, FileDiscovery
from kvatlas.common.settings import EndpointSettings, Settings
from kvatlas.common.tasks import Supervisor, ended
from kvatlas.common.tls import TlsGauges
from kvatlas.common.tls_engines import PLAIN, EngineIdentities
from kvatlas.indexer.metrics import IndexerMetrics
from tests.fakes.engines import until

Told = list[Sequence[EndpointSettings]]


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and try again often."""
    for name in ("FILE_LOOK_S", "GATHER_S", "RETRY_S", "RETRY_MAX_S"):
        monkeypatch.setattr(limits, f"DISCOVERY_{name}", 0.01)


@asynccontextmanager
async def running(source: EndpointSource, told: Told) -> AsyncIterator[asyncio.Task[None]]:
    """Run a source on its own, until it fails."""
    task = asyncio.ensure_future(source.run(told.append))
    try:
        yield task
    finally:
        await ended(task)


def urls(endpoints: Sequence[EndpointSettings]) -> list[str]:
    """List where they serve."""
    return [each.url for each in endpoints]


# --- names in the DNS ---------------------------------------------------------------------------


def answering(*answers: list[str] | OSError) -> Callable[[str], Any]:
    """Make a resolver that answers so, and goes on with its last answer."""
    left = list(answers)

    async def resolve(_host: str) -> Sequence[str]:
        await asyncio.sleep(0)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    return resolve


def dns(**more: Any) -> DnsDiscovery:
    """Configure a name that is asked for often."""
    return DnsDiscovery.model_validate({"kind": "dns", "host": "h", "interval_s": 0.1, **more})


async def test_a_name_has_an_endpoint_per_address_and_port() -> None:
    """Of both families, each address once, in an order that does not change."""
    told: Told = []
    found = ["10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2", "fe80::1%eth0"]
    async with running(DnsSource(dns(ports=[1, 2]), answering(found)), told):
        await until(lambda: bool(told))
    hosts = ("10.0.0.1", "10.0.0.2", "[fd00::1]")
    assert urls(told[0]) == [f"http://{host}:{port}" for host in hosts for port in (1, 2)]
    assert [each.events for each in told[0][:2]] == ["tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558"]


async def test_an_empty_answer_is_believed_when_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third in a row; one between two that are not empty changes nothing."""
    monkeypatch.setattr(asyncio, "sleep", _soon(asyncio.sleep))
    told: Told = []
    answers = answering(["10.0.0.1"], [], [], ["10.0.0.1"], [], [], [])
    async with running(DnsSource(dns(), answers), told):
        await until(lambda: bool(told) and not told[-1])
    assert [urls(each) for each in told] == [["http://10.0.0.1:8000"]] * 2 + [[]]


def _soon(sleep: Callable[[float], Any]) -> Callable[[float], Any]:
    return lambda _seconds: sleep(0)


async def test_no_answer_is_a_failure() -> None:
    """Of a name that is not there, too: nothing is told, so what was before stays."""
    told: Told = []
    absent = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    async with running(DnsSource(dns(), answering(absent)), told) as task:
        with pytest.raises(SourceFailed, match="h: Name or service"):
            await task
    assert told == []


async def test_the_systems_resolver_knows_localhost() -> None:
    """Asked for real."""
    told: Told = []
    async with running(DnsSource(dns(host="localhost")), told):
        await until(lambda: bool(told))
    assert set(urls(told[0])) & {"http://127.0.0.1:8000", "http://[::1]:8000"}


async def test_the_systems_resolver_knows_no_such_name() -> None:
    """A name that nobody can have is a failure, or no answer at all where nobody can be asked."""
    told: Told = []
    async with running(DnsSource(dns(host="engines.invalid")), told) as task:
        with pytest.raises(SourceFailed, match=r"engines\.invalid"):
            await task


# --- files --------------------------------------------------------------------------------------

ONE = {"url": "http://a:1"}
TWO = {"url": "http://b:2", "model": "n", "events": "tcp://b:9", "labels": {"gpu": "h100"}}


def file(path: Path, **more: Any) -> FileDiscovery:
    """Configure a file."""
    return FileDiscovery.model_validate({"kind": "file", "path": path, **more})


def put(path: Path, content: Any) -> None:
    """Replace a file, as mounted ones are."""
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps])
def test_a_file_lists_endpoints(write: Callable[[Any], str], tmp_path: Path) -> None:
    """In YAML or JSON; what an entry leaves out is as the configuration has it."""
    entry = file(tmp_path / "f", model="m", labels={"zone": "a"}, api_key_file="/key")
    first, second = read_entries(write([ONE, TWO]).encode(), entry)
    assert (first.model, first.events, first.replay) == ("m", "tcp://a:5557", "tcp://a:5558")
    assert (second.model, second.events, second.replay) == ("n", "tcp://b:9", None)
    assert second.labels == {"zone": "a", "gpu": "h100"}
    assert str(first.api_key_file) == "/key"
    (asked,) = read_entries(write([ONE]).encode(), file(tmp_path / "f", events_port="ask"))
    assert (asked.model, asked.events) == ("", None)


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"{", ["is neither YAML nor JSON in line "]),
        (b"\xff", ["is neither YAML nor JSON"]),
        (b"a: 1", ["is not a list of endpoints"]),
        (b"", ["is not a list of endpoints"]),
        (b"[1, {url: x}, {url: 'http://a:1', z: 1}]", [
            "0: is not a mapping", "1.url: is written http", "2.z: Extra inputs",
        ]),
        (b"[{url: 'https://a:1', tls: {}}]", ["0: tls: endpoints in a file"]),
        (b"[" * 5_000, ["is neither YAML nor JSON"]),
        (b"[]" + b" " * 1024 * 1024, ["has over 1048576 bytes"]),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_every_fault(content: bytes, faults: list[str]) -> None:
    """Whole: half a fleet would be worse than the former one."""
    with pytest.raises(SourceFailed) as refused:
        read_entries(content, file(Path("/f")))
    assert len(refused.value.faults) == len(faults)
    for told, expected in zip(refused.value.faults, faults, strict=True):
        assert told.startswith(f"/f: {expected}")


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """By its content: one that is written anew without a change tells nothing."""
    told: Told = []
    path = tmp_path / "f"
    put(path, [ONE])
    async with running(FileSource(file(path)), told):
        await until(lambda: len(told) == 1)
        put(path, [ONE])
        await asyncio.sleep(0.05)
        put(path, [ONE, TWO])
        await until(lambda: len(told) == 2)
    assert [urls(each) for each in told] == [["http://a:1"], ["http://a:1", "http://b:2"]]


# --- places -------------------------------------------------------------------------------------


class Place:
    """A place that is watched, and what was told of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fleets: list[Fleet] = []
        self.metrics = IndexerMetrics()

    @property
    def hosts(self) -> list[str]:
        """List who is there."""
        return [each.host_port for each in self.fleets[-1].endpoints] if self.fleets else []

    def read(self, metric: str) -> float | None:
        """Read what is told of the first source."""
        (label,) = [f"0/file/{entry.path}" for entry in self.settings.discovery]  # type: ignore[union-attr]
        name = f"kvatlas_indexer_discovery_{metric}"
        return self.metrics.registry.get_sample_value(name, {"source": label})


def configured(path: Path, *models: str, **more: Any) -> Settings:
    """Configure a file as the only place."""
    return Settings.model_validate({
        "models": [{"name": name, "tokenizer": "-"} for name in models or ("m",)],
        "discovery": [{"kind": "file", "path": str(path), **more}],
    })  # fmt: skip


@asynccontextmanager
async def watched(settings: Settings) -> AsyncIterator[tuple[Place, Watching]]:
    """Watch what a configuration names."""
    place = Place(settings)
    async with Supervisor() as tasks:
        watching = Watching(tasks, SourceGauges(place.metrics))
        with watching.following(settings, lambda _url: PLAIN, place.fleets.append):
            yield place, watching


async def test_a_file_that_becomes_faulty_changes_nothing(tmp_path: Path) -> None:
    """The last good one counts; that it is not in sync is told, and ends when it is good again."""
    path = tmp_path / "f"
    async with watched(configured(path)) as (place, _):
        await until(lambda: (place.read("failures_total") or 0) > 0)
        assert (place.fleets, place.read("in_sync"), place.read("endpoints")) == ([], 0, 0)
        put(path, [ONE])
        await until(lambda: place.hosts == ["a:1"])
        assert (place.read("in_sync"), place.read("endpoints")) == (1, 1)
        for broken in ("]", None):
            put(path, broken) if broken else path.unlink()
            await until(lambda: place.read("in_sync") == 0)
            assert place.hosts == ["a:1"]
            put(path, [ONE])
            await until(lambda: place.read("in_sync") == 1)
        assert len(place.fleets) == 1


async def test_what_comes_together_is_told_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of changes is one list."""
    monkeypatch.setattr(limits, "DISCOVERY_GATHER_S", 0.2)
    path = tmp_path / "f"
    put(path, [])
    async with watched(configured(path)) as (place, _):
        await until(lambda: len(place.fleets) == 1)
        for count in range(1, 5):
            put(path, [{"url": f"http://h{i}:1"} for i in range(count)])
            await asyncio.sleep(0.03)
        await until(lambda: len(place.hosts) == 4)
        assert len(place.fleets) <= 3


async def test_who_comes_later_starts_with_what_is_known(tmp_path: Path) -> None:
    """A place that two follow is looked at once, and ends with the last of them."""
    path = tmp_path / "f"
    put(path, [ONE])
    async with watched(configured(path)) as (place, watching):
        await until(lambda: place.hosts == ["a:1"])
        later: list[Fleet] = []
        with watching.following(place.settings, lambda _url: PLAIN, later.append) as following:
            assert [each.host_port for each in following.fleet.endpoints] == ["a:1"]
            assert len(later) == len(watching._looked) == 1
        (looked,) = watching._looked.values()
    assert looked.task.cancelled()


async def test_a_configuration_without_places_runs_nothing() -> None:
    """Nor is anybody told anything: who is there is what it names."""
    settings = Settings.model_validate({
        "models": [{"name": "m", "tokenizer": "-"}],
        "endpoints": [{"url": "http://a:1", "model": "m"}],
    })  # fmt: skip
    async with Supervisor() as tasks:
        watching, before = Watching(tasks, SourceGauges()), len(asyncio.all_tasks())
        told: list[Fleet] = []
        with watching.following(settings, lambda _url: PLAIN, told.append) as following:
            assert following.fleet == Fleet(settings.endpoints)
            assert len(asyncio.all_tasks()) == before
        assert told == []


# --- once, for kvatlas doctor -------------------------------------------------------------------


async def test_a_command_looks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At all places, as long as one may take; what is wrong is told, and nothing is logged."""
    monkeypatch.setattr(limits, "DISCOVERY_ONCE_S", 0.2)
    put(tmp_path / "good", [ONE])
    put(tmp_path / "bad", "]")
    settings = configured(tmp_path / "good")
    settings = settings.model_copy(
        update={"discovery": [*settings.discovery, file(tmp_path / "bad")]}
    )
    fleet, places = await look_once(settings, EngineIdentities(settings, TlsGauges()))
    assert [each.host_port for each in fleet.endpoints] == ["a:1"]
    good, bad = places
    assert (good.endpoints, good.faults) == (1, ())
    assert (bad.endpoints, len(bad.faults)) == (None, 1)
    assert [judge_place(each).level for each in places] == ["ok", "fault"]
    assert capsys.readouterr().out == ""
