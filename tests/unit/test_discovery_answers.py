"""What engines say of their models and events, trusted with nothing."""

from __future__ import annotations

import pytest

from kvatlas.common.discovery.answers import (
    EventSource,
    read_event_sources,
    read_model_names,
)
from kvatlas.common.discovery.found import endpoint_at, label_of
from kvatlas.common.discovery_settings import DnsDiscovery, FileDiscovery


@pytest.mark.parametrize(
    ("told", "events"),
    [
        ("tcp://*:5557", "tcp://[fd00::1]:5557"),
        ("tcp://0.0.0.0:5557", "tcp://[fd00::1]:5557"),
        ("tcp://[::]:5557", "tcp://[fd00::1]:5557"),
        ("tcp://10.1.2.3:1", "tcp://10.1.2.3:1"),
        ("tcp://[fd00::2]:1", "tcp://[fd00::2]:1"),
        ("tcp://*:0", None),
        ("tcp://*:70000", None),
        ("ipc:///tmp/x", None),
        ("inproc://x_dp0", None),
        ("tcp://*", None),
        ("", None),
        (None, None),
    ],
)
def test_an_address_is_where_it_is_reached(told: str | None, events: str | None) -> None:
    """Where an engine binds everywhere its own host; what is no address of TCP is none."""
    found = EventSource(told, "tcp://*:9").seen_from("[fd00::1]")
    assert found == (None if events is None else (events, "tcp://[fd00::1]:9"))


def test_sources_are_read_by_rank() -> None:
    """As vLLM 0.32 writes them; what else is in them does not count."""
    content = (
        b'{"0": {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557",'
        b' "replay_endpoint": "tcp://*:5558", "buffer_steps": 10000, "hwm": 100000,'
        b' "max_queue_size": 100000, "topic": ""}, "11": {"endpoint": 5}}'
    )
    assert read_event_sources(content) == {
        0: EventSource("tcp://*:5557", "tcp://*:5558"),
        11: EventSource(None, None),
    }
    assert read_event_sources(b"{}") == {}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": {}}', b'{"\xc2\xb2": {}}', b'{"-1": {}}'])
def test_what_is_no_answer_is_none(content: bytes) -> None:
    """Then the engine is asked again."""
    assert read_event_sources(content) is None
    assert read_model_names(content) is None


def test_adapters_are_no_models() -> None:
    """Nor is what has no name."""
    content = b'{"data": [{"id": "m"}, {"id": "a", "parent": "m"}, {"id": 5}, {}, 7, {"id": "n"}]}'
    assert read_model_names(content) == ("m", "n")


def test_an_address_becomes_an_endpoint() -> None:
    """IPv6 in brackets, events one port higher per place, labels of the configuration first."""
    entry = DnsDiscovery(kind="dns", host="engines", scheme="https", labels={"zone": "a"})
    made = endpoint_at(entry, "fd00::1", 8001, 1, {"zone": "b", "app": "x"})
    assert made.url == "https://[fd00::1]:8001"
    assert (made.events, made.replay) == ("tcp://[fd00::1]:5558", "tcp://[fd00::1]:5559")
    assert (made.model, made.labels) == ("", {"zone": "a", "app": "x"})
    asked = endpoint_at(entry.model_copy(update={"events_port": "ask"}), "h", 1)
    assert (asked.events, asked.replay) == (None, None)


def test_places_are_named_by_the_configuration() -> None:
    """By position, kind and what they look at."""
    assert label_of(0, DnsDiscovery(kind="dns", host="engines")) == "0/dns/engines"
    assert label_of(3, FileDiscovery.model_validate({"kind": "file", "path": "/x"})) == "3/file//x"
