"""Objects are followed whatever the API server does, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from statistics import median

import pytest
from structlog.testing import capture_logs

from kvatlas.common import limits
from kvatlas.common.kube.pod import Pod, read_pod
from kvatlas.common.kube.resources import PODS, Selection
from kvatlas.common.kube.watch import Watch
from tests.fakes.api_objects import Json, pod
from tests.fakes.api_server import ApiServer, Faults, api_server
from tests.fakes.following import KubeMetrics, following, running, until

NAME = "pods demo"


@dataclass
class Followed:
    """A server whose pods are followed."""

    server: ApiServer
    metrics: KubeMetrics
    watch: Watch[Pod] = field(init=False)
    told: int = 0

    @property
    def hosts(self) -> dict[str, str | None]:
        """Give what is known."""
        return {name: each.host for name, each in self.watch.objects.by_name.items()}

    @property
    def lists(self) -> int:
        """Count the whole lists."""
        return int(self.metrics.kube_lists.labels(NAME).value)

    @property
    def good(self) -> float:
        """Tell how the watch is."""
        return self.metrics.kube_good.labels(NAME).value

    async def watched(self) -> None:
        """Wait until the server has the watch."""
        await until(lambda: bool(self.server.watchers))


@asynccontextmanager
async def followed(
    *pods: Json, labels: str = "app=vllm", resync_s: float = 300.0, waits: bool = True
) -> AsyncIterator[Followed]:
    """Follow the pods of a server that has these."""
    async with api_server() as server:
        server.put(*pods)
        made = Followed(server, KubeMetrics())
        by = following(server, made.metrics, resync_s)

        def told() -> None:
            made.told += 1

        made.watch = Watch(by, Selection(PODS, "demo", NAME, labels=labels), read_pod, told)
        async with running(made.watch.run(), by):
            if waits:
                await until(lambda: made.watch.is_known)
                await made.watched()
            yield made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a tenth as long everywhere."""
    monkeypatch.setattr(limits, "KUBE_DENIED_PAUSE_S", 0.05)
    monkeypatch.setattr(limits, "KUBE_ABSENT_PAUSE_S", 0.2)
    monkeypatch.setattr(limits, "KUBE_ABSENT_SURE_S", 0.3)
    monkeypatch.setattr(limits, "KUBE_PAUSE_MAX_S", 0.2)
    monkeypatch.setattr(limits, "KUBE_PAUSE_S", 0.01)


async def test_a_list_comes_in_pages_and_is_told_once() -> None:
    """250 pods of which 240 fit: three pages, each with the word for the next."""
    pods = [pod(f"p{n}", f"10.0.0.{n}") for n in range(240)]
    others = [pod(f"x{n}", f"10.0.1.{n}", labels={"app": "other"}) for n in range(10)]
    async with followed(*pods, *others) as it:
        assert len(it.hosts) == 240
        assert it.told == it.lists == 1
        lists = [query for _, query in it.server.asked if "watch" not in query]
    assert [query.get("limit") for query in lists] == ["100"] * 3
    assert ["continue" in query for query in lists] == [False, True, True]
    assert {query["labelSelector"] for query in lists} == {"app=vllm"}


async def test_events_are_followed() -> None:
    """Created, ready, moved out of the selector and back, deleted."""
    first, second = pod("a", "10.0.0.1"), pod("b", None, ready=False)
    async with followed(first) as it:
        it.server.put(second)
        await until(lambda: it.hosts == {"a": "10.0.0.1", "b": None})
        it.server.put(pod("b", "10.0.0.2"))
        await until(lambda: it.hosts == {"a": "10.0.0.1", "b": "10.0.0.2"})
        it.server.put(pod("a", "10.0.0.1", labels={"app": "other"}))
        await until(lambda: it.hosts == {"b": "10.0.0.2"})
        it.server.put(first)
        await until(lambda: set(it.hosts) == {"a", "b"})
        it.server.delete(second)
        await until(lambda: set(it.hosts) == {"a"})
        assert it.lists == 1
        assert it.metrics.kube_events.labels(NAME).value == 5


async def test_a_pod_that_terminates_is_out_within_100_ms() -> None:
    """From the deletion's timestamp on, long before the pod is gone."""
    pods = [pod(f"p{n}", f"10.0.0.{n}") for n in range(50)]
    async with followed(*pods) as it:
        took_s = []
        for each in pods[:20]:
            name = each["metadata"]["name"]
            it.server.edit(each, _terminate)
            took_s.append(await until(lambda: it.hosts[name] is None))  # noqa: B023
            assert name in it.hosts
        # The machine may be busy with other tests for a moment.
        assert median(took_s) < 0.1


def _terminate(given: Json) -> None:
    given["metadata"] |= {
        "deletionTimestamp": "2026-08-03T10:00:00Z",
        "deletionGracePeriodSeconds": 60,
    }


async def test_a_torn_watch_goes_on_where_it_was() -> None:
    """In the middle of a line; what happened meanwhile comes, and nothing is listed anew."""
    async with followed(pod("a", "10.0.0.1")) as it:
        for number in range(5):
            it.server.tear()
            it.server.put(pod(f"b{number}", f"10.0.1.{number}"))
            await until(lambda: len(it.hosts) == number + 2)  # noqa: B023
            await it.watched()
            assert it.watch.objects.version == str(it.server.version)
        assert it.lists == 1
        assert it.metrics.failures() == {"torn"}


async def test_bookmarks_keep_a_quiet_watch_young() -> None:
    """Its version is forgotten for others' changes; with bookmarks it goes on without a list."""
    async with followed(pod("a", "10.0.0.1")) as it:
        before = it.watch.objects.version
        it.server.bookmark_s = 0.02
        it.server.tear()
        await it.watched()
        it.server.put(pod("other", "10.0.9.9", labels={"app": "other"}))
        await until(lambda: it.watch.objects.version != before)
        it.server.compact()
        it.server.tear()
        it.server.put(pod("b", "10.0.0.2"))
        await until(lambda: set(it.hosts) == {"a", "b"})
        assert it.lists == 1


@pytest.mark.parametrize("as_event", [True, False])
async def test_a_version_that_is_too_old_is_listed_anew(*, as_event: bool) -> None:
    """Be it told by an event or by a status; what is gone meanwhile is gone."""
    first = pod("a", "10.0.0.1")
    async with followed(first) as it:
        it.server.faults.gone_as_event = as_event
        it.server.tear()
        it.server.delete(first)
        it.server.put(pod("b", "10.0.0.2"))
        it.server.compact()
        await until(lambda: set(it.hosts) == {"b"})
        assert it.lists == 2
        assert "expired" in it.metrics.failures()
        assert it.good == 1


async def test_a_list_whose_pages_expire_begins_anew() -> None:
    """And replaces nothing before it is whole."""
    pods = [pod(f"p{n}", f"10.0.0.{n}") for n in range(150)]
    async with followed(*pods, waits=False) as it:
        await until(lambda: len(it.server._pages) == 1)
        it.server.compact()
        await until(lambda: it.watch.is_known)
        assert len(it.hosts) == 150
        assert it.metrics.failures() <= {"expired"}


@pytest.mark.usefixtures("hasty")
async def test_what_was_known_stays_while_the_server_is_away() -> None:
    """It is said once; back again, it is followed as before."""
    async with followed(pod("a", "10.0.0.1")) as it:
        with capture_logs() as logs:
            await it.server.go_away()
            await until(lambda: it.good == 0)
            await asyncio.sleep(0.3)
            assert it.hosts == {"a": "10.0.0.1"}
            it.server.put(pod("b", "10.0.0.2"))
            await it.server.come()
            await until(lambda: len(it.hosts) == 2)
        assert it.good == 1
        assert it.told == 2
    said = [line["event"] for line in logs]
    assert said.count("kubernetes.recovered") == 1
    assert 1 <= said.count("kubernetes.failed") <= 2
    assert it.metrics.failures() <= {"torn", "unreachable"}


@pytest.mark.usefixtures("hasty")
async def test_a_refusal_names_the_rule_that_is_missing() -> None:
    """In the log, once; with the rule in place it goes on by itself."""
    with capture_logs() as logs:
        async with followed(pod("a", "10.0.0.1"), waits=False) as it:
            it.server.faults.denied = {"pods"}
            await until(lambda: len(it.server.asked) > 2)
            assert not it.watch.is_known
            assert it.good == 0
            it.server.faults.denied = set()
            await until(lambda: it.watch.is_known)
    denied = [line for line in logs if line["event"] == "kubernetes.denied"]
    assert len(denied) == 1
    rule = '{apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "watch"]}'
    assert denied[0]["needs_rule"] == rule
    assert 'cannot list resource "pods"' in denied[0]["message"]
    assert it.metrics.failures() == {"forbidden"}


@pytest.mark.usefixtures("hasty")
async def test_a_type_that_is_not_installed_has_no_objects() -> None:
    """Known at once; when it is installed its objects are found."""
    async with followed(waits=False) as it:
        it.server.uninstall(("v1", "pods"))
        await until(lambda: it.watch.is_known)
        assert it.hosts == {}
        assert it.good == 1
        it.server.installed.add(("v1", "pods"))
        it.server.put(pod("a", "10.0.0.1"))
        await until(lambda: set(it.hosts) == {"a"})


@pytest.mark.usefixtures("hasty")
async def test_a_type_that_was_there_must_be_away_for_a_while() -> None:
    """An API server that starts may say 404 for a moment."""
    async with followed(pod("a", "10.0.0.1")) as it:
        it.server.uninstall(("v1", "pods"))
        await until(lambda: "absent" in it.metrics.failures())
        assert set(it.hosts) == {"a"}
        assert 0.2 < await until(lambda: not it.hosts) < 1.5
        assert it.told == 2


async def test_a_watch_that_went_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that it was asked for, and some slack."""
    monkeypatch.setattr(limits, "KUBE_WATCH_S", 0.5)
    monkeypatch.setattr(limits, "KUBE_WATCH_SLACK_S", 0.1)
    async with followed(pod("a", "10.0.0.1"), waits=False) as it:
        it.server.faults.is_silent = True
        await it.watched()
        it.server.put(pod("b", "10.0.0.2"))
        await asyncio.sleep(0.3)
        it.server.faults.is_silent = False
        await until(lambda: set(it.hosts) == {"a", "b"})
        assert it.metrics.failures() == {"timeout"}


async def test_everything_is_listed_anew_after_a_while() -> None:
    """Whatever watches told; what had not changed is not told again."""
    async with followed(pod("a", "10.0.0.1"), resync_s=1.0) as it:
        await until(lambda: it.lists >= 2)
        assert it.told == 1


async def test_an_event_that_is_too_long_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since a page may be larger."""
    monkeypatch.setattr(limits, "KUBE_LINE_BYTES_MAX", 20_000)
    async with followed(pod("a", "10.0.0.1")) as it:
        it.server.put(pod("b", "10.0.0.2", annotations={"x": "y" * 30_000}))
        await until(lambda: set(it.hosts) == {"a", "b"})
        assert it.metrics.failures() == {"too_large"}
        assert it.lists == 2


async def test_so_many_objects_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list and of events; the rest is counted."""
    monkeypatch.setattr(limits, "KUBE_OBJECTS_MAX", 10)
    pods = [pod(f"p{n}", f"10.0.0.{n}") for n in range(15)]
    async with followed(*pods) as it:
        assert len(it.hosts) == 10
        it.server.put(pod("q", "10.0.1.1"))
        await until(lambda: it.metrics.kube_ignored.labels(NAME, "too_many").value == 6)
        assert len(it.hosts) == 10


async def test_objects_that_cannot_be_read_are_counted_and_left_out() -> None:
    """Of a list and of events; one that was good before is out."""
    odd = pod("odd", "10.0.0.9")
    odd["status"]["podIPs"] = "none"
    async with followed(pod("a", "10.0.0.1"), odd, pod("b", "10.0.0.2")) as it:
        assert set(it.hosts) == {"a", "b"}
        broken = pod("b", "10.0.0.2")
        broken["status"] = 7
        it.server.put(broken)
        await until(lambda: set(it.hosts) == {"a"})
        assert it.metrics.kube_ignored.labels(NAME, "malformed").value == 2
        it.server.put(pod("b", "10.0.0.2"))
        await until(lambda: set(it.hosts) == {"a", "b"})


async def test_fast_refusals_are_not_asked_for_fast() -> None:
    """Within a second there are a handful of requests, and what was known stays.

    Of a watch that ends at once, however politely, and of one that can never go on, too.
    """

    async def asked(faults: Faults, *, forgets: bool = False) -> None:
        async with followed(pod("a", "10.0.0.1")) as it:
            before = len(it.server.asked)
            it.server.faults = faults
            it.server._forgotten = 10**9 if forgets else 0
            it.server.tear()
            await asyncio.sleep(1.0)
            assert 1 <= len(it.server.asked) - before <= 12, faults
            assert it.hosts == {"a": "10.0.0.1"}
            assert it.metrics.failures() - {"torn"}

    statuses = (401, 403, 404, 410, 429, 500, 503)
    await asyncio.gather(
        *(asked(Faults(answers=status)) for status in statuses),
        asked(Faults(ends_at_once=True)),
        asked(Faults(), forgets=True),
    )


async def test_the_server_says_when_to_ask_again() -> None:
    """A Retry-After of two seconds is heeded."""
    async with followed(pod("a", "10.0.0.1")) as it:
        it.server.faults.answers, it.server.faults.times = 429, 1
        it.server.faults.retry_after = "2"
        before = len(it.server.asked)
        it.server.tear()
        await until(lambda: len(it.server.asked) == before + 1)
        await asyncio.sleep(0.5)
        assert len(it.server.asked) == before + 1


async def test_a_slow_server_is_waited_for() -> None:
    """A third of a second per answer is no failure."""
    async with followed(pod("a", "10.0.0.1"), waits=False) as it:
        it.server.faults.delay_s = 0.3
        await until(lambda: it.watch.is_known)
        await it.watched()
        assert it.metrics.failures() == set()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(2))
async def test_churn_with_disconnects_ends_in_the_same_state(seed: int) -> None:
    """200 pods, 1,000 changes, torn watches, forgotten versions and a server that goes away."""
    draw = Random(seed)
    pods = [pod(f"p{n}", f"10.0.0.{n}") for n in range(200)]
    async with followed(*pods, resync_s=2.0) as it:
        for step in range(1_000):
            _change_one(it.server, draw)
            if draw.random() < 0.02:
                it.server.tear()
            if draw.random() < 0.008:
                it.server.compact()
            if step in (300, 700):
                await it.server.go_away()
                await asyncio.sleep(0.05)
                await it.server.come()
            if draw.random() < 0.2:
                await asyncio.sleep(0)
        it.server.put(pod("last", "10.9.9.9"))
        await until(lambda: "last" in it.hosts, within_s=10)
        assert it.hosts == _truth(it.server)


def _change_one(server: ApiServer, draw: Random) -> None:
    """Create, delete, or change a pod that is drawn."""
    number = draw.randrange(200)
    there = server.objects[("v1", "pods")].get(("demo", f"p{number}"))
    what = draw.random()
    if there is not None and what < 0.3:
        server.delete(there)
    elif there is not None and what < 0.5:
        server.edit(there, _terminate)
    else:
        app = "other" if what > 0.95 else "vllm"
        ready = what < 0.85
        made = pod(f"p{number}", f"10.0.{draw.randrange(9)}.{number}", ready=ready)
        made["metadata"]["labels"]["app"] = app
        server.put(made)


def _truth(server: ApiServer) -> dict[str, str | None]:
    """Give what must be known, read by nothing of ours."""
    known: dict[str, str | None] = {}
    for (_, name), each in server.objects[("v1", "pods")].items():
        if each["metadata"]["labels"]["app"] != "vllm":
            continue
        conditions = {c["type"]: c["status"] for c in each["status"]["conditions"]}
        takes = conditions["Ready"] == "True" and "deletionTimestamp" not in each["metadata"]
        known[name] = each["status"]["podIP"] if takes else None
    return known
