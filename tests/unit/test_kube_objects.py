"""Objects of Kubernetes are read whatever their shape: it is what is kept, or a ValueError."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.errors import KubernetesUnavailable
from kvatlas.common.kube.lines import Lines
from kvatlas.common.kube.objects import Objects, refused
from kvatlas.common.kube.pauses import Pauses
from kvatlas.common.kube.pod import Pod, read_pod
from kvatlas.common.kube.pool import read_pool
from kvatlas.common.kube.resources import PODS, POOLS
from kvatlas.common.kube.rules import read_objective, read_rewrite
from tests.fakes.api_objects import Json, legacy_pool, objective, pod, pool, rewrite, rule

READERS = (read_pod, read_pool, read_objective, read_rewrite)


def changed(given: Json, path: str, value: Any) -> bytes:
    """Write an object with another value at a path; the value `...` takes it out."""
    *way, last = path.split(".")
    at = given
    for name in way:
        at = at[name]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return orjson.dumps(given)


@pytest.mark.parametrize(
    ("path", "value", "host"),
    [
        ("kind", "Pod", "10.0.0.1"),
        ("status", None, None),
        ("status", ..., None),
        ("status.conditions", None, None),
        ("status.conditions", [], None),
        ("status.conditions", [{}], None),
        ("status.conditions", [{"type": "Ready", "status": "Unknown"}], None),
        ("status.podIPs", None, "10.0.0.1"),
        ("status.podIPs", [], "10.0.0.1"),
        ("status.podIPs", [{}, {"ip": "10.0.0.7"}], "10.0.0.7"),
        ("status.podIPs", [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}], "[fd00::1]"),
        ("status.podIPs", [{"ip": ""}], "10.0.0.1"),
        ("metadata.deletionTimestamp", "2026-08-03T10:00:00Z", None),
        ("metadata.labels", None, "10.0.0.1"),
        ("metadata.annotations", None, "10.0.0.1"),
        ("spec", None, "10.0.0.1"),
        ("spec", ["anything"], "10.0.0.1"),
        ("status.new", {"field": 1}, "10.0.0.1"),
    ],
)
def test_a_pod_takes_requests_while_it_is_ready(path: str, value: Any, host: str | None) -> None:
    """At the first of its addresses, and not while it terminates."""
    assert read_pod(changed(pod("a", "10.0.0.1"), path, value)).host == host


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata", None),
        ("metadata.name", ...),
        ("metadata.name", ""),
        ("metadata.name", 7),
        ("metadata.labels", {"a": 1}),
        ("metadata.labels", ["a"]),
        ("status", 7),
        ("status.conditions", {}),
        ("status.conditions", [{"type": "Ready", "status": True}]),
        ("status.podIPs", [{"ip": "no address"}]),
        ("status.podIPs", ["10.0.0.1"]),
    ],
)
def test_what_is_no_pod_is_said(path: str, value: Any) -> None:
    """By a ValueError, and by no other."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_pod(changed(pod("a", "10.0.0.1"), path, value))


def test_of_a_pod_only_what_is_needed_is_kept() -> None:
    """Of annotations ours; of one that takes no requests the name."""
    kept = read_pod(orjson.dumps(pod("a", "10.0.0.1", annotations={"kvatlas.dev/model": "m"})))
    assert kept.annotations == {"kvatlas.dev/model": "m"}
    assert kept.namespace == "demo"
    assert read_pod(orjson.dumps(pod("a", "10.0.0.1", ready=False))) == Pod("a")


def test_pools_of_both_shapes_say_the_same() -> None:
    """A selector and ports."""
    new = read_pool(orjson.dumps(pool("q", labels={"b": "2", "a": "1"}, ports=(8000, 8001))))
    old = read_pool(orjson.dumps(legacy_pool("q", labels={"a": "1"}, port=9000)))
    assert (new.labels(), new.ports, new.namespace) == ("a=1,b=2", (8000, 8001), "demo")
    assert (old.labels(), old.ports) == ("a=1", (9000,))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec", ...),
        ("spec.selector", None),
        ("spec.selector", {}),
        ("spec.selector", {"matchLabels": {}}),
        ("spec.selector", {"matchLabels": {"a": 1}}),
        ("spec.selector", {"a": None}),
        ("spec.targetPorts", None),
        ("spec.targetPorts", []),
        ("spec.targetPorts", [{"number": 0}]),
        ("spec.targetPorts", [{"number": "8000"}]),
        ("spec.targetPorts", [{"number": 65_536}]),
        ("spec.targetPorts", [{"number": 8000}, {"number": 8000}]),
        ("spec.targetPorts", [{"number": port} for port in range(8000, 8009)]),
    ],
)
def test_what_is_no_pool_is_said(path: str, value: Any) -> None:
    """Above all one that would select every pod."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_pool(changed(pool("q"), path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.rules", [{"targets": [{"modelRewrite": ""}]}]),
        ("spec.rules", [{"targets": [{"weight": 1}]}]),
        ("spec.rules", [{"targets": [{"modelRewrite": "a", "weight": -1}]}]),
        ("spec.rules", [{"matches": [{"model": {"type": "Prefix", "value": "a"}}]}]),
        ("spec.rules", [{"matches": [{}]}]),
        ("spec.rules", "all"),
        ("spec.poolRef", {"kind": "InferencePool"}),
        ("metadata.name", None),
    ],
)
def test_what_is_no_rewrite_is_said(path: str, value: Any) -> None:
    """Half of a rewrite would send requests where nobody meant them to go."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_rewrite(changed(rewrite("r", "q", [rule(("m",), a=None)]), path, value))


@pytest.mark.parametrize("priority", [2**31, "1", 1.5, True])
def test_what_is_no_objective_is_said(priority: Any) -> None:
    """A priority is a number of 32 bits."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_objective(changed(objective("o", "q", 1), "spec.priority", priority))


def test_pools_are_named_by_one_reference_or_several() -> None:
    """References to other things name none, and what is being deleted rules nothing."""
    several = [{"name": "p"}, {"name": "r", "kind": "Service"}]
    read = read_objective(changed(objective("o", "q", 1), "spec.poolRefs", several))
    assert read.identity.pools == {"p", "q"}
    gone = changed(objective("o", "q", 1), "metadata.deletionTimestamp", "2026-08-03T10:00:00Z")
    assert read_objective(gone).identity.pools == frozenset()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        *("metadata", "metadata.name", "metadata.labels", "metadata.creationTimestamp", "spec"),
        *("spec.selector", "spec.targetPorts", "spec.rules", "spec.poolRef", "spec.priority"),
        *("status", "status.conditions", "status.podIPs", "status.podIP"),
    ]
)
OBJECTS = st.sampled_from(
    [
        lambda: pod("a", "10.0.0.1"),
        lambda: pool("q"),
        lambda: objective("o", "q", 1),
        lambda: rewrite("r", "q", [rule(("m",), a=1, b=2)]),
    ]
)


@given(OBJECTS, PATHS, JSON)
def test_nothing_crashes_a_reader(make: Any, path: str, value: Any) -> None:
    """Any value anywhere: something is kept, or a ValueError is raised."""
    made = make()
    if "." in path and not isinstance(made.get(path.partition(".")[0]), dict):
        return
    try:
        content = changed(made, path, value)
    except (TypeError, orjson.JSONEncodeError):
        return
    objects: list[Objects[Any]] = [Objects(read, 10) for read in READERS]
    for each in objects:
        each.begin()
        each.add(b'{"metadata":{"resourceVersion":"1"},"items":[' + content + b"]}")
        each.end()
        assert len(each.by_name) + each.malformed == 1


@given(st.binary(max_size=80))
def test_lines_that_are_no_events_end_the_watch(line: bytes) -> None:
    """Whatever they are; the next watch begins with a list."""
    objects = Objects(read_pod, 10)
    objects.version = "7"
    with pytest.raises(KubernetesUnavailable) as caught:
        objects.apply(line)
    assert caught.value.reason == "malformed"
    assert objects.version is None


@pytest.mark.parametrize(
    "page", [b"", b"[]", b"{}", b'{"metadata":{}}', b'{"metadata":null}', b'{"items":[]}', b"\xff"]
)
def test_what_is_no_list_replaces_nothing(page: bytes) -> None:
    """Not even what it seemed to hold."""
    objects = Objects(read_pod, 10)
    objects.by_name = {"a": Pod("a")}
    objects.begin()
    with pytest.raises(KubernetesUnavailable):
        objects.add(page)
    assert set(objects.by_name) == {"a"}


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (b"", 401, "unauthorized"),
        (b"no JSON", 403, "forbidden"),
        (b'{"reason":"NotFound"}', 404, "absent"),
        (b"{}", 410, "expired"),
        (b'{"reason":"Expired"}', 400, "expired"),
        (b"{}", 429, "throttled"),
        (b"{}", 400, "refused"),
        (b"{}", 302, "failed"),
        (b"{}", 503, "failed"),
        (b'{"code":410}', None, "expired"),
        (b'{"reason":"Gone"}', None, "expired"),
        (b'{"code":500,"message":null}', None, "failed"),
        (b"[]", None, "failed"),
    ],
)
def test_refusals_have_a_reason(answer: bytes, status: int | None, reason: str) -> None:
    """One of a closed set, by status or by what the answer says."""
    assert refused(answer, status).reason == reason


def test_a_refusal_says_when_to_ask_again() -> None:
    """In its head, or in its body."""
    body = b'{"code":429,"details":{"retryAfterSeconds":3}}'
    assert refused(body, 429).retry_after_s == 3
    assert refused(body, 429, 5.0).retry_after_s == 5
    assert len(refused(orjson.dumps({"message": "x" * 9_999}), 500).message) == 512


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=20), st.data())
def test_lines_come_whole_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    """What has no end yet waits for it."""
    lines = [line.replace(b"\n", b"_") for line in lines]
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    taker, taken = Lines(100), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        taken += taker.add(stream[:size])
        stream = stream[size:]
    assert taken == lines


@pytest.mark.parametrize("piece", [b"x" * 11, b"x" * 11 + b"\n", b"a\n" + b"x" * 11])
def test_a_line_that_is_too_long_is_refused(piece: bytes) -> None:
    """Whether it has ended or not."""
    with pytest.raises(KubernetesUnavailable) as caught:
        Lines(10).add(piece)
    assert caught.value.reason == "too_large"


def test_pauses_grow_up_to_a_bound_and_begin_anew() -> None:
    """Drawn from the upper half, longer after refusals, and never shorter than asked for."""
    failed = KubernetesUnavailable("failed")
    pauses = Pauses(lambda: 0.0)
    assert [pauses.after(failed) for _ in range(4)] == [0.1, 0.2, 0.4, 0.8]
    assert [pauses.after(failed) for _ in range(2_000)][-1] == 30
    pauses.went_on()
    assert pauses.after(failed) == 0.1
    assert Pauses(lambda: 0.999).after(failed) == pytest.approx(0.05, abs=0.001)
    assert Pauses(lambda: 0.0).after(KubernetesUnavailable("forbidden")) == 1
    assert Pauses(lambda: 0.0).after(KubernetesUnavailable("absent")) == 30
    assert Pauses(lambda: 0.0).after(KubernetesUnavailable("throttled", "", 7.0)) == 7
    assert Pauses(lambda: 0.0).after(KubernetesUnavailable("throttled", "", 700.0)) == 30


def test_resources_know_their_path_and_their_rule() -> None:
    """Of the core group, and of one with a name."""
    assert PODS.path("demo") == "/api/v1/namespaces/demo/pods"
    legacy = POOLS["inference.networking.x-k8s.io"]
    assert legacy.path("x").startswith("/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/x/")
    assert '"inferencepools"' in legacy.rule()
