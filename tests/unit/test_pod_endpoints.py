"""Which endpoints a pod is, by its ports, its annotations and the configuration."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.discovery.pod_endpoints import Found, Place, endpoints_of
from kvatlas.common.discovery_settings import PodsDiscovery
from kvatlas.common.kube.pod import Pod

OURS = ("kvatlas.dev/pod", "kvatlas.dev/pool")
EVENTS, REPLAY = "kvatlas.dev/events-port", "kvatlas.dev/replay-port"
ACTIVE, ACTIVE_ONCE = "llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports"


def found(
    annotations: dict[str, str] | None = None,
    *,
    ports: tuple[int, ...] = (8000,),
    pod_labels: dict[str, str] | None = None,
    **settings: Any,
) -> Found:
    """Give what a pod at 10.0.0.1 is."""
    place = PodsDiscovery.model_validate({"kind": "pods", "selector": "a", **settings})
    made = Pod("p", "10.0.0.1", "demo", "2026", pod_labels or {}, annotations or {})
    return endpoints_of(made, Place(place, ports, "demo/q"))


@pytest.mark.parametrize(
    ("annotations", "settings", "events", "replay"),
    [
        ({}, {}, 5557, 5558),
        ({}, {"events_port": None}, None, None),
        ({}, {"events_port": "ask"}, None, None),
        ({}, {"replay_port": None}, 5557, None),
        ({EVENTS: " 6000 "}, {}, 6000, 5558),
        ({EVENTS: "none"}, {}, None, None),
        ({EVENTS: "6000"}, {"events_port": "ask", "replay_port": None}, 6000, None),
        ({REPLAY: "none"}, {}, 5557, None),
        ({REPLAY: "6001"}, {}, 5557, 6001),
        ({EVENTS: "0", REPLAY: "65536"}, {}, 5557, 5558),
        ({EVENTS: "-1", REPLAY: "٣"}, {}, 5557, 5558),
        ({EVENTS: "", REPLAY: "1e3"}, {}, 5557, 5558),
    ],
)
def test_ports_of_events_are_the_pods_or_the_settings(
    annotations: dict[str, str], settings: dict[str, Any], events: int | None, replay: int | None
) -> None:
    """What cannot be read is as if it were not there."""
    made = found(annotations, **settings).endpoints[0]
    assert made.events == (f"tcp://10.0.0.1:{events}" if events else None)
    assert made.replay == (f"tcp://10.0.0.1:{replay}" if replay else None)


def test_ranks_beyond_the_last_port_have_no_events() -> None:
    """Two ranks, and 65535 for the first."""
    first, second = found({EVENTS: "65535", REPLAY: "none"}, ports=(1, 2)).endpoints
    assert (first.events, second.events) == ("tcp://10.0.0.1:65535", None)


@pytest.mark.parametrize(
    ("annotations", "active", "ignored"),
    [
        ({}, [8000, 8001, 8002], ()),
        ({ACTIVE: "8001"}, [8001], ()),
        ({ACTIVE: " 8002, 8000,"}, [8000, 8002], ()),
        ({ACTIVE_ONCE: "8000"}, [8000], ()),
        ({ACTIVE: "8001", ACTIVE_ONCE: "8000"}, [8001], ()),
        ({ACTIVE: ""}, [], ()),
        ({ACTIVE: "9000"}, [], (ACTIVE,)),
        ({ACTIVE: "8000,x"}, [8000], (ACTIVE,)),
        ({ACTIVE: "all"}, [8000, 8001, 8002], (ACTIVE,)),
    ],
)
def test_active_ports_restrict_the_ranks(
    annotations: dict[str, str], active: list[int], ignored: tuple[str, ...]
) -> None:
    """Each keeps its place, and so its event port."""
    made = found(annotations, ports=(8000, 8001, 8002))
    assert [each.url for each in made.endpoints] == [f"http://10.0.0.1:{p}" for p in active]
    assert [each.events for each in made.endpoints] == [
        f"tcp://10.0.0.1:{p - 2443}" for p in active
    ]
    assert made.ignored == ignored


def test_a_pod_without_an_address_is_nothing() -> None:
    """Nor does it complain of anything."""
    place = Place(PodsDiscovery(kind="pods", selector="a"), (8000,))
    assert endpoints_of(Pod("p", annotations={EVENTS: "x"}), place) == Found(())


def test_a_model_is_the_pods_or_the_settings_or_to_be_learned() -> None:
    """An annotation that is too long is ignored."""
    named = {"kvatlas.dev/model": "theirs"}
    assert found(named, model="ours").endpoints[0].model == "theirs"
    assert found(model="ours").endpoints[0].model == "ours"
    assert found().endpoints[0].model == ""
    odd = found({"kvatlas.dev/model": "x" * 257})
    assert (odd.endpoints[0].model, odd.ignored) == ("", ("kvatlas.dev/model",))


def test_so_many_labels_are_kept_and_those_that_matter_first() -> None:
    """Where it is from and what is configured, then llm-d's, then plain ones, then the rest."""
    many = {f"example.com/{n:03}": "x" for n in range(100)}
    wanted = {"llm-d.ai/role": "decode", "app": "vllm", "kvatlas.dev/pool": "forged/pool"}
    made = found(pod_labels={**many, **wanted, "zone": "pod"}, labels={"zone": "set"})
    labels = made.endpoints[0].labels
    assert len(labels) == limits.LABELS_PER_ENDPOINT_MAX
    assert list(labels)[:5] == [*OURS, "zone", "llm-d.ai/role", "app"]
    assert (labels["zone"], labels["kvatlas.dev/pool"]) == ("set", "demo/q")
    full = {f"l{n}": "x" for n in range(limits.LABELS_PER_ENDPOINT_MAX)}
    kept = found(labels=full).endpoints[0].labels
    assert len(kept) == limits.LABELS_PER_ENDPOINT_MAX
    assert kept["kvatlas.dev/pod"] == "demo/p"
