"""Metrics: declared once, described once, bounded, and written as Prometheus reads them."""

from __future__ import annotations

import math

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.metrics_page import PAGE, page
from kvatlas.common import limits
from kvatlas.common.metrics import Metrics, counter, gauge, histogram
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.trip import Trip


class _Some(Metrics):
    """Three metrics."""

    prefix = "some_"
    seen = counter("seen", "what", "things", "Things seen.")
    heard = counter("heard", "", "things", "Things heard.")
    depth = gauge("depth", "", "things", "Things there.")
    spent = histogram("spent_seconds", "stage", (0.1, 1.0), "Time.")


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read the page as Prometheus does."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_the_page_is_written_from_the_declarations() -> None:
    """Whoever declares a metric runs deploy/metrics_page.py."""
    assert PAGE.read_text() == page()


@pytest.mark.parametrize("table", [RouterMetrics, IndexerMetrics])
def test_every_declaration_is_on_the_page_that_is_scraped(table: type[Metrics]) -> None:
    """Name and type; each says something, and no name is declared twice."""
    text = generate_latest(table().registry).decode()
    declared = table.declarations()
    assert len({each.name for each in declared}) == len(declared)
    for each in declared:
        assert f"# TYPE {table.prefix}{each.shown_name} {each.kind}\n" in text
        assert each.says
        assert each.unit
        assert "|" not in each.says + each.do


def test_what_was_counted_is_what_is_scraped() -> None:
    """Values, labels and buckets arrive."""
    some = _Some()
    some.seen.labels("cat").inc()
    some.seen.labels("cat").inc(2)
    some.heard.inc()
    some.depth.set(4)
    for value in (0.05, 0.1, 0.5, 7.0):
        some.spent.labels("x").observe(value)
    read = samples(some)
    assert read["some_seen_total", (("what", "cat"),)] == 3
    assert read["some_heard_total", ()] == 1
    assert read["some_depth", ()] == 4
    buckets = [read["some_spent_seconds_bucket", (("le", le), ("stage", "x"))] for le in LES]
    assert buckets == [2, 3, 4]
    assert read["some_spent_seconds_count", (("stage", "x"),)] == 4
    assert math.isclose(read["some_spent_seconds_sum", (("stage", "x"),)], 7.65)


LES = ("0.1", "1.0", "+Inf")


def test_a_gauge_may_ask_a_function_and_be_forgotten() -> None:
    """The newest number is asked for at each scrape."""
    router = RouterMetrics()
    router.in_flight.labels("e").set_function(lambda: 7.0)
    assert samples(router)["kvatlas_router_in_flight", (("endpoint", "e"),)] == 7
    indexer = IndexerMetrics()
    indexer.lag.labels("e").set(1)
    indexer.leave("e")
    indexer.leave("e")
    assert ("kvatlas_indexer_lag_seconds", (("endpoint", "e"),)) not in samples(indexer)


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound everything is one more child, and nothing that was counted is lost."""
    monkeypatch.setattr(limits, "METRIC_CHILDREN_MAX", 2)
    some = _Some()
    for name in ("a", "b", "c", "d", "a"):
        some.seen.labels(name).inc()
    read = {labels[0][1]: n for (name, labels), n in samples(some).items() if "seen" in name}
    assert read == {"a": 2, "b": 1, "other": 2}


def test_wrong_labels_are_a_fault_of_ours() -> None:
    """A value too many would make a page that Prometheus refuses as a whole."""
    with pytest.raises(ValueError, match="what"):
        _Some().seen.labels("a", "b")


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        ("answered", 200, None),
        ("answered", 404, "engine_4xx"),
        ("answered", 503, "engine_5xx"),
        ("torn", 200, "torn"),
        ("no_endpoints", 503, "no_endpoints"),
    ],
)
def test_reasons_of_errors_are_a_closed_set(outcome: str, status: int, reason: str | None) -> None:
    """An engine's own refusal is told from ours."""
    assert Trip("id", "/", outcome=outcome, status=status).error() == reason


def test_what_is_held_twice_is_released_twice() -> None:
    """As an endpoint that several configurations have, or that has come back."""
    metrics = RouterMetrics()
    metrics.healthy.labels("a:1").set(1)
    metrics.doubts.labels("a:1", "noted").inc()
    for _ in range(2):
        metrics.hold("endpoint", "a:1")
    left = []
    for _ in range(2):
        metrics.release("endpoint", ["a:1"])
        left.append(len(metrics.healthy._children) + len(metrics.doubts._children))
    assert left == [2, 0]
