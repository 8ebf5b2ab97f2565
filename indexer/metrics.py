"""What the indexer counts. Labels come from configuration and closed sets only."""

from __future__ import annotations

from kvatlas.common.discovery.gauges import DiscoveryMetrics
from kvatlas.common.log_writer import DROPPED
from kvatlas.common.metrics import counter, gauge
from kvatlas.common.tls import CERTIFICATES_GOOD, NOT_AFTER


class IndexerMetrics(DiscoveryMetrics):
    """The table of the indexer's metrics."""

    prefix = "kvatlas_indexer_"

    # --- endpoints --------------------------------------------------------------------------
    endpoints = gauge(
        "endpoints",
        "phase",
        "endpoints",
        "Endpoints by how they are followed.",
        "`stale` or `connecting` for long: is the engine there, does a policy block its event"
        " ports? They are sent requests by load. `waiting` for long: see"
        " `batches_rejected_total` and `epochs_total`",
    )
    owned = gauge(
        "owned_endpoints",
        "",
        "endpoints",
        "Endpoints that this indexer follows.",
        "far from its share for minutes: do all indexers read the same configuration?",
    )
    claims = counter(
        "claims",
        "how",
        "endpoints",
        "Endpoints taken: `resumed` where another stopped, or `anew`.",
        "`anew` at a rate: successors find nothing to go on with (no replay socket, a Redis that"
        " loses data)",
    )
    lost = counter(
        "lost_endpoints",
        "",
        "endpoints",
        "Endpoints that another indexer took, because a lease ran out.",
        "this process was paused, starved, or cut off from Redis for longer than `indexer.lease_s`",
    )
    epoch = gauge("epoch", "endpoint", "number", "Epoch that readers see.")
    seq = gauge(
        "sequence",
        "endpoint",
        "number",
        "Newest batch that has been taken in.",
        "behind the engine's: see `lag_seconds`",
    )
    blocks = gauge("blocks", "endpoint", "blocks", "Blocks that an endpoint holds.")
    lag = gauge(
        "lag_seconds",
        "endpoint",
        "seconds",
        "From the newest event's time stamp to its being in Redis.",
        "above a second: Redis is slow, or the indexer's core is full",
    )
    # --- events -----------------------------------------------------------------------------
    batches = counter("batches", "endpoint", "batches", "Batches of events applied.")
    events = counter("events", "endpoint", "events", "Events applied.")
    sequence = counter(
        "sequence_events",
        "endpoint what",
        "times",
        "`gap`, `duplicate`, `replay`, `replay_hole`, `replay_failed`, `skipped`, `dropped`.",
        "`replay_failed`: the replay socket does not answer. `dropped` at a rate: one endpoint"
        " sends more than can be read",
    )
    epochs = counter(
        "epochs",
        "endpoint reason",
        "epochs",
        "How often what was known was forgotten (reasons: [REDIS.md](REDIS.md)).",
        "`gap`, `lost`, `replay_failed`, `malformed`, `overclaimed` at a rate: that engine's feed"
        " is bad",
    )
    doubts = counter(
        "doubts", "endpoint", "notes", "Notes of doubt from routers.", "see OPERATIONS.md"
    )
    rejected = counter(
        "batches_rejected",
        "endpoint reason",
        "batches",
        "Batches that could not be read: `frames`, `msgpack`, `schema`, `too_large`.",
        "an engine of another version, or something else at its address",
    )
    unknown_events = counter(
        "unknown_events", "", "events", "Events with an unknown tag.", "nothing; vLLM grows"
    )
    unmatched = gauge(
        "unmatched",
        "endpoint",
        "0 or 1",
        "1: nothing of it can match: groups that cannot be followed, or blocks of another size"
        " than `models[].block_size` (`endpoint.incompatible`).",
        "correct the configuration, or leave `block_size` out",
    )
    orphans = counter(
        "orphan_blocks",
        "endpoint",
        "blocks",
        "Stored blocks without a known parent, not indexed.",
        "at a rate after the start: doubt that endpoint's feed",
    )
    unknown_removed = counter(
        "unknown_removals",
        "endpoint",
        "blocks",
        "Removals of blocks that were not present.",
        "alike",
    )
    over_limit = counter(
        "blocks_over_limit",
        "endpoint",
        "blocks",
        "Stored blocks beyond the bounds, not indexed.",
        "alike",
    )
    overclaimed = counter(
        "blocks_overclaimed",
        "endpoint",
        "blocks",
        "Stored blocks beyond what the engine's `num_gpu_blocks` can hold, not indexed; each time"
        " the endpoint is in doubt (`endpoint.overclaimed`).",
        "something else publishes at its event port, or its gauges are another engine's; an engine"
        " whose number does not count all of its GPU: `indexer.bound_by_gpu_blocks: false`",
    )
    gpu_blocks_max = gauge(
        "gpu_blocks_max",
        "endpoint",
        "blocks",
        "Most that an endpoint may hold on its GPU: its `num_gpu_blocks` and a slack; 0 where its"
        " engine does not tell it.",
    )
    # --- Redis ------------------------------------------------------------------------------
    rewrites = counter(
        "rewrites",
        "reason",
        "endpoints",
        "Endpoints written again from memory.",
        "`index_lost`: Redis came back empty or lost keys; `evicted`: it drops them; `overflow`:"
        " it is too slow",
    )
    store_errors = counter(
        "store_errors",
        "reason",
        "calls",
        "Calls that Redis did not confirm.",
        "`oom`, `noperm`, `wrongtype` need an operator; the others pass",
    )
    full = gauge(
        "store_full",
        "",
        "endpoints",
        "Endpoints whose new blocks wait: Redis is at `maxmemory` (`store.full`).",
        "raise `maxmemory`; what is removed is still applied, so nothing is matched wrongly",
    )
    policy_unsafe = gauge(
        "store_policy_unsafe",
        "",
        "0 or 1",
        "1: `maxmemory-policy` may drop keys of the index (`store.policy_unsafe`).",
        "set `noeviction`; keys that went are written again at most every 10 s (`store.evicted`)",
    )
    foreign = counter(
        "foreign_entries",
        "",
        "entries",
        "Entries left out, their buckets being keys of another type (`store.foreign_keys`).",
        "find who writes under `kvatlas:`, delete the key",
    )
    entries_written = counter("entries_written", "", "entries", "Entries changed in Redis.")
    entries_swept = counter("entries_swept", "", "entries", "Entries of past epochs cleaned.")
    # --- TLS --------------------------------------------------------------------------------
    tls_good = CERTIFICATES_GOOD
    tls_not_after = NOT_AFTER
    # --- engines' gauges ----------------------------------------------------------------------
    scraped = gauge(
        "scraped_engines",
        "",
        "engines",
        "Engines whose gauges this indexer reads for all.",
        "their sum over all indexers is the number of engines; less for longer than a lease: an"
        " owner is gone",
    )
    log_dropped = DROPPED
    scrapes = counter(
        "scrapes",
        "outcome",
        "looks",
        "Looks at engines' gauges: `answered`, `no_page` (it is there, without metrics), `silent`.",
        "`silent` for engines that are well: may the indexer reach their HTTP port?",
    )

    def leave(self, endpoint: str) -> None:
        """Drop the gauges of an endpoint that is followed no longer; its counts stay."""
        for each in (
            self.lag,
            self.unmatched,
            self.epoch,
            self.seq,
            self.blocks,
            self.gpu_blocks_max,
        ):
            each.remove(endpoint)
