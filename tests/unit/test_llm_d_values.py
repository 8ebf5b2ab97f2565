"""Durations, quantities, headers and lists of endpoints, as llm-d has them."""

from __future__ import annotations

import pytest

from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d import entries_of
from kvatlas.common.llm_d.endpoints_file import is_llm_d
from kvatlas.common.llm_d.headers import FAIRNESS_ID, KNOWN, OWNED, SESSION_TOKEN, first
from kvatlas.common.llm_d.values import duration_s, quantity, size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("2s", 2.0),
        ("1m30s", 90.0),
        ("1h2m3.5s", 3_723.5),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("250us", 250e-6),
        ("250µs", 250e-6),
        ("7ns", 7e-9),
        ("0", 0.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_go_s(text: str, seconds: float) -> None:
    """Expect the seconds that Go reads."""
    assert duration_s(text) == pytest.approx(seconds, rel=1e-12)


NO_DURATIONS = ("", "5", "s", "-1s", "1 s", "1s ", "1d", "1s2", "²s", 5, None, "9" * 99 + "s")
NO_QUANTITIES = ("", "G", "-1", "1 G", "1g", "1.5", "1K", "1Q", True, 1.5, None, "9" * 99)


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_what_is_no_duration_is_refused(text: object) -> None:
    """Expect no number to be guessed."""
    with pytest.raises(ValueError, match="is a duration"):
        duration_s(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (5_000, 5_000),
        ("5000", 5_000),
        ("1k", 1_000),
        ("1G", 10**9),
        ("8Gi", 8 * 2**30),
        ("1.5Ki", 1_536),
        ("2Pi", 2 * 2**50),
        ("0", 0),
    ],
)
def test_quantities_are_kubernetes_s(text: object, number: int) -> None:
    """Expect decimal and binary units."""
    assert quantity(text) == number


@pytest.mark.parametrize("text", NO_QUANTITIES)
def test_what_is_no_quantity_is_refused(text: object) -> None:
    """Expect fractions and units that are none to be faults."""
    with pytest.raises(ValueError, match="is a quantity"):
        quantity(text)


def test_sizes_of_flags_may_end_in_a_b() -> None:
    """Expect 10MiB and 25MB, and the same without a B; a B alone is no size."""
    assert [size_bytes(each) for each in ("10MiB", "25MB", "4Mi", "65536")] == [
        10 * 2**20,
        25 * 10**6,
        4 * 2**20,
        65_536,
    ]
    with pytest.raises(ValueError, match="is a quantity"):
        size_bytes("B")


# --- headers --------------------------------------------------------------------------------------


def test_each_header_has_one_meaning() -> None:
    """Expect names and aliases in lower case, each once, and all but answers to have a sender."""
    names = [name for each in KNOWN for name in (each.name, *each.aliases)]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)
    assert all(each.senders and each.meaning for each in KNOWN)


def test_the_machinery_s_headers_are_never_passed_on() -> None:
    """Expect those of llm-d's list, the older names among them, and no header of a client's own."""
    assert {
        "content-length",
        "x-gateway-destination-endpoint",
        "x-gateway-destination-endpoint-served",
        "x-gateway-destination-endpoint-subset",
        "x-gateway-inference-fairness-id",
        "x-gateway-inference-objective",
        "x-gateway-model-name-rewrite",
        "x-llm-d-inference-fairness-id",
        "x-llm-d-inference-objective",
        "x-llm-d-model-name-rewrite",
        "x-llm-d-request-dropped-reason",
        "x-llm-d-slo-tpot-ms",
        "x-llm-d-slo-ttft-ms",
        "x-llm-d-video-duration-seconds",
        "x-llm-d-video-fps",
        "x-llm-d-video-resolution",
        "x-slo-tpot-ms",
        "x-slo-ttft-ms",
    } <= OWNED
    assert not OWNED & {"x-request-id", "x-session-id", SESSION_TOKEN.name, "authorization"}


def test_the_newer_name_counts_more() -> None:
    """Expect the value of the name, else of an older one, else nothing."""
    both = {"x-llm-d-inference-fairness-id": "new", "x-gateway-inference-fairness-id": "old"}
    assert first(both, FAIRNESS_ID) == "new"
    del both["x-llm-d-inference-fairness-id"]
    assert first(both, FAIRNESS_ID) == "old"
    assert first({}, FAIRNESS_ID) is None


# --- lists of endpoints ---------------------------------------------------------------------------


def test_a_list_of_endpoints_becomes_one_of_ours() -> None:
    """Expect addresses, ports and labels; names are not needed here."""
    content = {
        "endpoints": [
            {"name": "a", "address": "10.0.0.1", "port": "8000", "labels": {"gpu": "h100"}},
            {"name": "b", "namespace": "n", "address": "::1", "port": "8001", "metricsHost": "x:1"},
        ]
    }
    assert is_llm_d(content)
    assert not is_llm_d([])
    assert entries_of(content) == [
        {"url": "http://10.0.0.1:8000", "labels": {"gpu": "h100"}},
        {"url": "http://[::1]:8001", "labels": {}},
    ]
    assert entries_of({"endpoints": []}) == []


def test_every_fault_of_a_list_is_told() -> None:
    """Expect a line for each, with its path."""
    content = {
        "endpoints": [
            {"name": "a", "address": "host.example", "port": "8000"},
            {"name": "b", "address": "10.0.0.1", "port": "0"},
            {"name": "c", "address": "10.0.0.1", "port": 8000},
            {"address": "10.0.0.1", "port": "8000", "odd": 1},
        ]
    }
    with pytest.raises(ConfigError) as caught:
        entries_of(content)
    assert [each.partition(":")[0] for each in caught.value.faults] == [
        "endpoints.0.address",
        "endpoints.1.port",
        "endpoints.2.port",
        "endpoints.3.name",
        "endpoints.3.odd",
    ]
    odd: tuple[dict[str, object], ...] = ({"endpoints": {}}, {"endpoints": [], "more": 1})
    for each in odd:
        with pytest.raises(ConfigError, match="endpoints: is a list"):
            entries_of(each)
