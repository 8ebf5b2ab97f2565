"""Write docs/METRICS.md from the tables of declarations.

PYTHONPATH=. python deploy/metrics_page.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kvatlas.common.metrics import markdown
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.router.metrics import RouterMetrics

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "METRICS.md"
HEAD: Final = """\
# Metrics, and what to do

On the admin ports, `/metrics` in Prometheus' text format. This page is written from the tables in
`router/metrics.py` and `indexer/metrics.py` (`deploy/metrics_page.py`). Labels come from the
configuration and closed sets only; a model that is not served is `unknown`. Should a metric have
over 10,000 combinations of labels, the rest is counted as `other`. Histograms have the usual
`_bucket`, `_sum` and `_count`.

`deploy/grafana/kvatlas.json` is a dashboard to import into Grafana, `deploy/prometheus/alerts.yaml`
are alert rules for Prometheus.
"""
AFTER_INDEXER: Final = """
`/readyz` says why not: Redis is not reached, refuses the user or a command, or holds a key of ours
that is of another type. A full Redis and an unsafe policy are no reasons: another indexer would
fare no better.
"""


def page() -> str:
    """Write the page."""
    indexer, router = markdown(IndexerMetrics), markdown(RouterMetrics)
    return f"{HEAD}\n## Indexer\n\n{indexer}{AFTER_INDEXER}\n## Router\n\n{router}"


if __name__ == "__main__":
    PAGE.write_text(page())
