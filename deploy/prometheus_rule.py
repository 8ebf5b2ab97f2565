"""Write the PrometheusRule of k8s/ from the alert rules, which Prometheus itself reads as they are.

python -m deploy.prometheus_rule
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
RULES: Final = ROOT / "deploy/prometheus/alerts.yaml"
OBJECT: Final = ROOT / "k8s/components/monitoring/alerts.yaml"
HEAD: Final = """\
# Written from deploy/prometheus/alerts.yaml by `python -m deploy.prometheus_rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: kvatlas
spec:
"""


def text() -> str:
    """Write the object."""
    rules = RULES.read_text("utf-8").splitlines()
    return HEAD + "".join(f"  {line}\n" for line in rules if not line.startswith("#"))


if __name__ == "__main__":
    OBJECT.write_text(text(), "utf-8")
