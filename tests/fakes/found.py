"""A file that tells who is there, for routers and indexers that follow it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings


@dataclass
class FoundFile:
    """A list of endpoints, replaced as mounted files are."""

    path: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, url: str, **more: Any) -> None:
        """Let an engine come, or be something else than before."""
        self.entries[url] = {"url": url, **more}
        self.write()

    def remove(self, url: str) -> None:
        """Let one go."""
        del self.entries[url]
        self.write()

    def write(self) -> None:
        """Write who is there."""
        beside = self.path.with_suffix(".new")
        beside.write_text(yaml.safe_dump(list(self.entries.values())))
        beside.replace(self.path)

    def settings(self, redis_url: str, *models: str, **options: Any) -> Settings:
        """Configure a router, or an indexer, that finds its engines in the file.

        Args:
            redis_url: of the index.
            models: names of the demo model; "demo" where there are none.
            options: of the router; `discovery` is of the place.
        """
        return Settings.model_validate({
            "redis": {"url": redis_url},
            "models": [
                {"name": name, "tokenizer": str(demo_model_path())} for name in models or ("demo",)
            ],
            "discovery": [
                {
                    "kind": "file",
                    "path": str(self.path),
                    "events_port": None,
                    **options.pop("discovery", {}),
                }
            ],
            "indexer": {"admin_port": 0, "lease_s": 0.3},
            "router": {
                "port": 0, "admin_port": 0, "debug_headers": True, "metrics_interval_s": 0.05,
                "pre_stop_s": 0, "drain_s": 1, **options,
            },
        })  # fmt: skip
