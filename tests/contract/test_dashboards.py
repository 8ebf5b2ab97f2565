"""Dashboard and alert rules name only what a running router and indexer really show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvatlas.common.metrics import Metrics
from tests.fakes.place import CHAT, STREAM, Place, simulated
from tests.fakes.promql import Selector, selectors

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
pytestmark = pytest.mark.usefixtures("patient")


def panels() -> Iterator[tuple[str, set[str]]]:
    """List the dashboard's expressions, and the labels that their legends show."""
    board: dict[str, Any] = json.loads((DEPLOY / "grafana/kvatlas.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], set(re.findall(r"{{(\w+)}}", target["legendFormat"]))


def rules() -> Iterator[tuple[str, set[str]]]:
    """List the rules' expressions, and the labels that their texts show."""
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            summary = rule["annotations"]["summary"]
            yield rule["expr"], set(re.findall(r"{{ \$labels\.(\w+) }}", summary))


async def scraped(place: Place) -> dict[str, set[str]]:
    """Scrape both services; give the labels of each name."""
    assert place.indexer is not None
    tables: list[Metrics] = [place.running.metrics, place.indexer.metrics]
    for table in tables:
        # What has happened to nobody in this test has labels, too.
        for attribute in vars(table).values():
            declared = getattr(attribute, "declared", None)
            if declared is not None and not next(iter(attribute.collect())).samples:
                attribute.labels(*("x" for _ in declared.labels))
    page = await place.metrics() + generate_latest(place.indexer.metrics.registry).decode()
    families = text_string_to_metric_families(page)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.fixture
async def labels_of(redis_url: str) -> dict[str, set[str]]:
    """Give what is shown after some requests, good and bad, whole and streamed."""
    async with simulated(redis_url) as place:
        await place.chat()
        await place.settled()
        await place.post(STREAM)
        await place.post(STREAM)
        await place.post({**CHAT, "model": "no such one"}, status=404)
        await place.post({**CHAT, "max_tokens": -1}, status=400)
        metrics = place.running.metrics
        assert place.count(metrics.errors, "unknown", "model_not_found") == 1
        assert place.count(metrics.errors, "m", "engine_4xx") == 1
        assert place.count(metrics.output_tokens, "m") >= 2 * CHAT["max_tokens"]
        assert place.count(metrics.input_tokens, "m") > place.count(metrics.cached_tokens, "m") > 0
        assert metrics.gap_seconds.labels("m").value > 0
        assert metrics.request_seconds.labels("m").value == 4
        return await scraped(place)


async def test_every_expression_finds_what_it_names(labels_of: dict[str, set[str]]) -> None:
    """Each metric is shown, with every label that is filtered by, grouped by or written out."""
    read = [(each, shown) for source in (panels(), rules()) for each, shown in source]
    assert len(read) > 30
    for expression, shown in read:
        found = selectors(expression)
        for each in found:
            assert each.metric in labels_of, expression
            assert each.labels <= labels_of[each.metric], expression
            assert shown <= each.labels, expression


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("max(a)", [Selector("a", set())]),
        ('sum by (x, y) (rate(a{b="}", c=~"d"}[5m])) > 0', [Selector("a", {"x", "y", "b", "c"})]),
        ("min by (x) (a) - time() < 5", [Selector("a", {"x"})]),
        ("sum by (x) (a) / sum(b)", [Selector("a", {"x"}), Selector("b", set())]),
    ],
)
def test_expressions_are_read(expression: str, found: list[Selector]) -> None:
    """Braces in texts, groups that end with their parenthesis, two metrics in one."""
    assert selectors(expression) == found


@pytest.mark.parametrize("expression", ["sum(", "a{b=c}", "a ? b", "5"])
def test_what_is_not_understood_does_not_pass(expression: str) -> None:
    """Else a typing error would be a panel without data."""
    with pytest.raises(ValueError, match=r".*"):
        selectors(expression)
