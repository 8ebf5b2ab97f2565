"""What a router counts. Labels come from configuration and closed sets only."""

from __future__ import annotations

from kvatlas.common.discovery.gauges import DiscoveryMetrics
from kvatlas.common.log_writer import DROPPED
from kvatlas.common.metrics import counter, gauge, histogram
from kvatlas.common.tls import CERTIFICATES_GOOD, NOT_AFTER

STAGE_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
TTFT_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
GAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
WHOLE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class RouterMetrics(DiscoveryMetrics):
    """The table of the router's metrics."""

    prefix = "kvatlas_router_"

    # --- requests ---------------------------------------------------------------------------
    requests = counter(
        "requests",
        "model path status",
        "requests",
        "Requests by outcome; those for a model that is not served are of the model `unknown`.",
        "5xx: see `errors_total`",
    )
    errors = counter(
        "errors",
        "model reason",
        "requests",
        "Requests that were not answered well: the error's code, `torn` behind the first byte,"
        " `client_closed`, or `engine_4xx`, `engine_5xx` for what an engine answered itself.",
        "`torn`, `upstream_...`: which engine, say `upstream_errors_total`. `no_endpoints`: all"
        " of a model's engines are away. `exhausted`: the router has no file left to connect with",
    )
    first_byte_seconds = histogram(
        "first_byte_seconds",
        "model",
        TTFT_BUCKETS,
        "From the request's arrival to the first byte of the answer (of a response's stream: of its"
        " first token): TTFT of streams, all of it for other answers.",
        "rises with `awaiting`: add engines. Without it: see `stage_seconds`",
    )
    gap_seconds = histogram(
        "inter_token_seconds",
        "model",
        GAP_BUCKETS,
        "Between two pieces of a stream as they come from the engine: a token, or some that came"
        " together.",
        "rises with `in_flight`: engines are full",
    )
    request_seconds = histogram(
        "request_seconds",
        "model",
        WHOLE_BUCKETS,
        "From the request's arrival to the end of the answer.",
    )
    prompt_tokens = counter(
        "prompt_tokens",
        "model",
        "tokens",
        "Prompt tokens routed, where they are known.",
    )
    match_tokens = counter(
        "match_tokens",
        "model",
        "tokens",
        "Prompt tokens predicted to be cached where they went.",
        "its share of `prompt_tokens_total` falls: other traffic, too small caches, or an index"
        " that lags",
    )
    input_tokens = counter(
        "input_tokens", "model", "tokens", "Prompt tokens as engines reported them."
    )
    cached_tokens = counter(
        "cached_tokens", "model", "tokens", "Those of them that engines found in their caches."
    )
    output_tokens = counter(
        "output_tokens", "model", "tokens", "Tokens of answers as engines reported them."
    )
    # --- who is let in ------------------------------------------------------------------------
    keys_refused = counter(
        "keys_refused",
        "reason",
        "requests",
        "Requests refused for their API key: `missing`, `unknown`, `disabled`, `model`.",
        "`unknown` at a rate: somebody's key was taken out, or somebody guesses",
    )
    api_keys = gauge("api_keys", "", "keys", "API keys that are known.")
    api_keys_good = gauge(
        "api_keys_good",
        "",
        "0 or 1",
        "0 when the file of keys cannot be used as it stands (`keys.refused`): the former count.",
        "0: mend the file; nothing of the change is in force",
    )
    tls_good = CERTIFICATES_GOOD
    tls_not_after = NOT_AFTER
    rate_limited = counter(
        "rate_limited",
        "tenant kind",
        "requests",
        "Requests refused with 429 at their tenant's limit of `requests` or `tokens`.",
        "raise the limit, or talk to the tenant",
    )
    limit_failures = counter(
        "limit_failures",
        "reason",
        "calls",
        "Requests let in without being counted, or tokens that were not, since Redis did not say.",
        "as for lookups; `noperm`: the user that routers write as lacks the rights of"
        " `deploy/redis`",
    )
    shed = counter(
        "shed",
        "reason",
        "requests",
        "Requests refused with 429 before their body was read: `requests`, `bytes`,"
        " `tenant_requests`, `tenant_bytes`, `lag`; `model_requests` behind it;"
        " `priority`: sheddable, while engines are full.",
        "`lag`: this router's core is full, add routers. The others: raise the bound if the memory"
        " is there, or add routers and engines",
    )
    connections = gauge("connections", "", "connections", "Of clients, open.")
    connections_refused = gauge(
        "connections_refused",
        "",
        "connections",
        "Of clients, closed at once since there were too many.",
        "rises: raise the limit of open files, add routers, or find out who opens them",
    )
    connections_cut = gauge(
        "connections_cut",
        "reason",
        "connections",
        "Of clients, broken off since a head did not come in time (`head`) or an answer was not"
        " read (`unread`); idle ones are closed and not counted.",
        "`head` rises: somebody holds connections open. `unread`: clients hang, or are far away",
    )
    config_good = gauge(
        "config_good",
        "",
        "0 or 1",
        "0 when the configuration file cannot be used as it stands (`config.refused`): the former"
        " one counts.",
        "0: mend the file",
    )
    admitted = gauge("admitted", "", "requests", "Requests let in and not done.")
    held_bytes = gauge("held_bytes", "", "bytes", "Of their bodies.")
    log_dropped = DROPPED
    loop_lag = gauge(
        "loop_lag_seconds",
        "",
        "seconds",
        "Lateness of the event loop, the least of the latest few.",
        "near `router.shed_lag_s`: this router's core is full, add routers",
    )
    # --- decisions --------------------------------------------------------------------------
    stage_seconds = histogram(
        "stage_seconds",
        "stage",
        STAGE_BUCKETS,
        "Time in each stage of a decision: `render`, `tokenize`, `hash`, `lookup`, `score`.",
        "`lookup` near `router.lookup_s`: Redis is slow",
    )
    fallbacks = counter(
        "fallbacks",
        "stage reason",
        "requests",
        "Requests routed by load alone.",
        "OPERATIONS.md has a line per reason; `lookup:paused`: Redis failed five lookups in a row"
        " and is asked once a second",
    )
    contested = counter(
        "contested",
        "model",
        "decisions",
        "Decisions made again, since other routers decided at the same moment.",
        "as often as requests: they come in bursts; nothing to do",
    )
    plugin_faults = counter(
        "plugin_faults",
        "plugin fault",
        "calls",
        "Calls of scheduling plugins that failed and were done without: `raised`, `count`,"
        " `range`, `positions` (`plugin.failed`).",
        "mend the plugin; those of ours: tell us",
    )
    windows_undecided = gauge(
        "windows_undecided",
        "",
        "matches",
        "Matches of hybrid endpoints given up because their windows lie too far back.",
    )
    renders = counter(
        "renders",
        "model outcome",
        "prompts",
        "Prompts asked from a render service; `cached` cost it nothing, what begins with `render_`"
        " went by load.",
        "`render_...` at a rate: is the service there, and fast enough?",
    )
    members_cut = counter(
        "members_cut", "member", "members", "Members that steer engines, cut out of bodies."
    )
    rewrites = counter(
        "rewrites",
        "asked target",
        "requests",
        "Requests whose model's name was rewritten (`aliases`, `router.rewrites`,"
        " InferenceModelRewrites); `asked` is `*` where a rule for every name did it.",
        "shows the shares of a canary",
    )
    rewrites_unserved = counter(
        "rewrites_unserved",
        "target",
        "requests",
        "Requests refused with 404 because an InferenceModelRewrite names a model that is not"
        " served.",
        "any: mend the rewrite, or serve the model",
    )
    # --- engines ----------------------------------------------------------------------------
    upstream_errors = counter(
        "upstream_errors",
        "endpoint kind",
        "attempts",
        "Engines that failed: `connect`, `connect_timeout`, `tls` (no handshake: a certificate was"
        " refused, its or ours), `disconnected`, `protocol`, `first_byte_timeout`, and behind the"
        " first byte `idle`, `broken`.",
        "one endpoint only: look at that engine; all at once: look at the network",
    )
    retries = counter(
        "retries",
        "model outcome",
        "requests",
        "Requests whose engine failed before the first byte: `sent` once more, or not, since too"
        " many were being sent again (`budget`, see `router.retries_share`).",
        "`sent` at a rate: see `upstream_errors_total`. `budget`: many engines fail at once",
    )
    ejections = counter(
        "ejections",
        "endpoint reason",
        "ejections",
        "Endpoints taken out: `unreachable` (nothing answers, back with the next answer), or for a"
        " while since requests failed: `failures` in a row, or a `share` of the latest.",
        "see OPERATIONS.md, Engines that fail",
    )
    streams_not_done = counter(
        "streams_not_done",
        "endpoint",
        "streams",
        "Streams that ended cleanly, but without [DONE].",
        "at a rate: something between router and engine cuts answers short",
    )
    exchanges = gauge(
        "exchanges",
        "",
        "exchanges",
        "Of the picker: requests of gateways from their headers to the end of their answers.",
    )
    in_flight = gauge("in_flight", "endpoint", "requests", "Own requests under way.")
    awaiting = gauge(
        "awaiting",
        "endpoint",
        "requests",
        "The queue: requests of all routers that await their first byte there.",
        "rises everywhere: add engines; at one only: look at it",
    )
    queued_tokens = gauge(
        "queued_tokens",
        "endpoint",
        "tokens",
        "Their prompt tokens that have to be computed.",
    )
    engine_waiting = gauge(
        "engine_waiting",
        "endpoint",
        "requests",
        "Requests that wait there, as the engine itself says; as old as `gauges_age_seconds`.",
    )
    healthy = gauge(
        "endpoint_healthy",
        "endpoint",
        "0 or 1",
        "1 when it answers.",
        "0: see OPERATIONS.md",
    )
    ejected = gauge(
        "endpoint_ejected",
        "endpoint",
        "0 or 1",
        "1 while it is left out since requests failed there, though it answers.",
        "1: see OPERATIONS.md, Engines that fail",
    )
    panic = gauge(
        "panic",
        "model",
        "0 or 1",
        "1 while fewer than half of a model's endpoints are left: ejected ones are asked too.",
        "1: most engines fail; what do they log?",
    )
    serves_model = gauge(
        "endpoint_serves_model",
        "endpoint",
        "0 or 1",
        "1 when it lists the model that it is configured for, 0 when it does not: then it gets no"
        " requests. Absent where it does not tell.",
        "0: see OPERATIONS.md",
    )
    tokenizer_agrees = gauge(
        "tokenizer_agrees",
        "endpoint",
        "0 or 1",
        "1 when its /tokenize gives our token ids, 0 when it does not: then its model's requests"
        " go by load. Absent while it has not been asked or cannot be.",
        "0: see OPERATIONS.md",
    )
    gauges_age = gauge(
        "gauges_age_seconds",
        "endpoint",
        "seconds",
        "Since the newest look at an engine's gauges, ours or an indexer's; +Inf before one.",
        "above 3 s: nobody reaches the engine's metrics",
    )
    looks = counter(
        "looks",
        "outcome",
        "looks",
        "Looks of our own at engines, since nothing fresh was shared or they failed us.",
        "at a rate: no indexer tells of some engines, Redis is away, or engines fail",
    )
    gauge_errors = counter(
        "gauge_errors",
        "reason",
        "readings",
        "Readings of shared gauges that failed.",
        "`noperm`: the ACL file is older than the router",
    )
    probes = counter(
        "probes",
        "endpoint outcome",
        "rounds",
        "Rounds of tokenizer probes.",
        "`differs`: see OPERATIONS.md",
    )
    idle_probes = counter(
        "idle_probes",
        "endpoint outcome",
        "requests",
        "Requests of one token to idle engines: answered or failed.",
    )
    # --- routers together ---------------------------------------------------------------------
    routers = gauge(
        "routers",
        "model",
        "routers",
        "Routers known to live, this one among them.",
        "fewer than run: one cannot write its flights (`board_errors_total` there)",
    )
    board_errors = counter(
        "board_errors",
        "reason",
        "calls",
        "Reads and writes of the flight log that failed; `dropped`: Redis does not keep up;"
        " `foreign_entry`: entries that cannot be read.",
        "at a rate: this router is blind, counts its own requests for all, and looks at engines"
        " itself",
    )
    # --- belief and truth -----------------------------------------------------------------------
    predictions = counter(
        "predictions",
        "endpoint outcome",
        "answers",
        "Predicted hits against the engine's cached_tokens: `exact`, `over`, `under`, or of"
        " `other_prompt` (its tokens are not ours).",
        "`over` for long becomes a doubt by itself; `under` for long: the index lags",
    )
    predicted_hit_tokens = counter(
        "predicted_hit_tokens",
        "endpoint",
        "tokens",
        "Cached tokens as predicted, of compared answers.",
    )
    actual_hit_tokens = counter(
        "actual_hit_tokens",
        "endpoint",
        "tokens",
        "Cached tokens as the engine reported them, of these.",
    )
    over_tokens = counter(
        "over_tokens", "endpoint", "tokens", "Tokens predicted and not there.", "for long: doubt"
    )
    under_tokens = counter(
        "under_tokens",
        "endpoint",
        "tokens",
        "Tokens there and not predicted.",
        "for long: the index lags",
    )
    usage_reports = counter(
        "usage_reports",
        "endpoint kind",
        "answers",
        "Answers that were read for usage, by whether it tells the cached tokens.",
        "only `without_cached`: start the engine with `--enable-prompt-tokens-details`",
    )
    doubts = counter(
        "doubts",
        "endpoint outcome",
        "doubts",
        "Endpoints put into doubt: noted, failed or dropped.",
        "`failed`: the router may not write its notes",
    )
    relearned = counter(
        "relearned",
        "endpoint",
        "requests",
        "Requests that made an engine announce what they hit.",
    )
    handovers = counter(
        "handovers",
        "model outcome",
        "requests",
        "Chats of models with token_handover: `handed_over`, `refused` by the engine and sent"
        " again without, or why not.",
        "`refused` at a rate: is the engine vLLM 0.32 or later?",
    )
    handover_checks = counter(
        "handover_checks",
        "model outcome",
        "comparisons",
        "Comparisons with the engine's own token ids.",
    )
    handover_on = gauge(
        "handover_on",
        "model",
        "0 or 1",
        "0 when a comparison found a difference: no more handovers.",
        "0: see OPERATIONS.md",
    )
    spans_lost = counter(
        "spans_lost",
        "reason",
        "spans",
        "Spans that no collector will see: the queue was full (`queue_full`), or it did not take"
        " them (`not_sent`).",
        "is the collector at `router.trace_url` up, and fast enough? requests do not wait for it",
    )
