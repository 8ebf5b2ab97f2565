"""What the indexer counts. Labels come from configuration and closed sets only."""

from __future__ import annotations

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge


class IndexerMetrics:
    """The indexer's metrics, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.batches = self._counter("batches", "Batches of events applied.", "endpoint")
        self.events = self._counter("events", "Events applied.", "endpoint")
        self.unknown_events = self._counter("unknown_events", "Events with an unknown tag.")
        self.rejected = self._counter(
            "batches_rejected", "Batches that could not be read.", "endpoint", "reason"
        )
        self.orphans = self._counter(
            "orphan_blocks", "Stored blocks without a known parent, not indexed.", "endpoint"
        )
        self.unknown_removed = self._counter(
            "unknown_removals", "Removals of blocks that were not present.", "endpoint"
        )
        self.over_limit = self._counter(
            "blocks_over_limit", "Stored blocks beyond the bounds, not indexed.", "endpoint"
        )
        self.sequence = self._counter(
            "sequence_events",
            "Gaps, duplicates, replays, holes in replays, batches skipped or dropped.",
            "endpoint",
            "what",
        )
        self.epochs = self._counter("epochs", "Epochs opened.", "endpoint", "reason")
        self.doubts = self._counter(
            "doubts", "Times routers found an endpoint's predictions too long.", "endpoint"
        )
        self.unmatched = Gauge(
            "kvatlas_indexer_unmatched",
            "1 for an endpoint that cannot match: its KV-cache groups cannot be followed, or its"
            " blocks are of another size than configured.",
            ("endpoint",),
            registry=self.registry,
        )
        self.rewrites = self._counter(
            "rewrites", "Times an endpoint was written from memory.", "reason"
        )
        self.store_errors = self._counter(
            "store_errors", "Writes that Redis did not confirm.", "reason"
        )
        self.foreign = self._counter(
            "foreign_entries", "Entries left out, their buckets being keys of another type."
        )
        self.full = Gauge(
            "kvatlas_indexer_store_full",
            "Endpoints whose new blocks wait because Redis is at its maxmemory.",
            registry=self.registry,
        )
        self.policy_unsafe = Gauge(
            "kvatlas_indexer_store_policy_unsafe",
            "1 when the policy of a Redis lets it drop keys of the index.",
            registry=self.registry,
        )
        self.entries_written = self._counter("entries_written", "Entries changed in Redis.")
        self.entries_swept = self._counter("entries_swept", "Entries of past epochs cleaned.")
        self.lag = Gauge(
            "kvatlas_indexer_lag_seconds",
            "From the newest event's time stamp to its being in Redis.",
            ("endpoint",),
            registry=self.registry,
        )
        self.endpoints = Gauge(
            "kvatlas_indexer_endpoints",
            "Endpoints by phase.",
            ("phase",),
            registry=self.registry,
        )

        self.epoch = self._gauge("epoch", "Epoch that readers see.", "endpoint")
        self.seq = self._gauge("sequence", "Newest batch that has been taken in.", "endpoint")
        self.blocks = self._gauge("blocks", "Blocks that an endpoint holds, by pool.", "endpoint")
        self.owned = Gauge(
            "kvatlas_indexer_owned_endpoints",
            "Endpoints that this indexer follows.",
            registry=self.registry,
        )
        self.scraped = Gauge(
            "kvatlas_indexer_scraped_engines",
            "Engines whose gauges this indexer reads for all.",
            registry=self.registry,
        )
        self.scrapes = self._counter("scrapes", "Looks at engines' gauges, by outcome.", "outcome")
        self.claims = self._counter(
            "claims", "Endpoints taken: their memory was resumed, or begun anew.", "how"
        )
        self.lost = self._counter("lost_endpoints", "Endpoints that another indexer has taken.")

    def forget(self, endpoint: str) -> None:
        """Drop the gauges of an endpoint that is followed no longer."""
        for gauge in (self.lag, self.unmatched, self.epoch, self.seq, self.blocks):
            with contextlib.suppress(KeyError):
                gauge.remove(endpoint)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"kvatlas_indexer_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvatlas_indexer_{name}", text, labels, registry=self.registry)
