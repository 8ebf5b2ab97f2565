"""Every bound of the product, with its unit and its reason.

What an operator may need to move is a setting whose default stands here; the rest is fixed.
"""

from __future__ import annotations

from typing import Final

# --- requests ---------------------------------------------------------------------------------
BODY_BYTES_MAX: Final = 32 * 1024 * 1024
"""Largest request body; a million tokens of text are about 4 MB, images come inline."""
BODY_READ_S: Final = 30.0
"""Time for a client to send its body; aiohttp has no limit of its own."""
CONNECTIONS_MAX: Final = 16_384
"""Of clients to one router, where the limit of open files allows as many; each takes 5 KB."""
FILES_KEPT: Final = 256
"""Open files that connections of clients and engines leave to everything else."""
SCHEMA_LOOK_S: Final = 2.0
"""Between a router's two looks at the version of the index: one GET each."""
CORES_MAX: Final = 4
"""Configurations that requests are under way with; the next change waits for one to end."""
CORE_LOOK_S: Final = 0.05
CONFIG_LOOK_S: Final = 1.0
"""Between two looks at the configuration file."""
HEADERS_BYTES_MAX: Final = 16 * 1024
"""Request line and headers together."""
HEADERS_MAX: Final = 100
HEAD_READ_S: Final = 10.0
"""For a client to send a head, from its first byte or the connection on; alike for a handshake."""
FRAMING_BYTES_MAX: Final = 16 * 1024
"""Between two pieces of a body in chunks, or behind its last: extensions and trailers, unread."""
JSON_CONTAINERS_MAX: Final = 200_000
"""Lists and objects in a body: 20 to 100 ms to read; a long chat with tools has some thousands."""
JSON_MEMBERS_MAX: Final = 4_096
"""Outermost members of a body: each costs 1 us where one is cut; engines know about 80."""
TRUSTED_PROXIES_MAX: Final = 100
"""Networks of `router.trusted_proxies`."""
PEERS_REMEMBERED_MAX: Final = 1_024
"""Addresses of which it is remembered whether they are in one of them."""
PIPELINED_MAX: Final = 16
"""Requests that a client sends ahead, before the answer to the first."""
WRITE_IDLE_S: Final = 60.0
"""For a client to read on, once what we wrote fills the buffers between us."""
WRITE_BYTES_LEAST: Final = 16 * 1024
"""That it must have read in that time; who reads a large answer slowly may take longer."""
LINGER_S: Final = 2.0
"""For a client to read an answer whose request we did not read to its end."""
ANSWER_HEAD_BYTES_MAX: Final = 16 * 1024
"""Status line and headers of an engine's answer."""
SENT_TOGETHER_BYTES_MAX: Final = 64 * 1024
"""Body of a request that is copied behind its head, so that they leave in one packet."""
ROOTS_CACHED_MAX: Final = 4_096
"""First hashes of chains, one per model, block size and adapter."""
MESSAGES_MAX: Final = 2_000
"""Messages rendered for matching; a quadratic template takes over a second beyond it."""
PROMPT_CHARS_MAX: Final = 4_000_000
"""Characters tokenized for matching: about a million tokens."""
PROMPT_TOKENS_MAX: Final = 1_048_576
"""Tokens hashed for matching, on the event loop: 5 ms."""
COMPLETION_PROMPTS_MAX: Final = 1_024
"""Prompts in one completion request that are looked at; only the first decides the endpoint."""
MODEL_NAME_CHARS_MAX: Final = 256
CACHE_SALT_CHARS_MAX: Final = 128
"""vLLM's own bound."""

# --- admission --------------------------------------------------------------------------------
REQUESTS_MAX: Final = 8_192
"""Requests under way in one router: each takes about 50 kB beside its body."""
BODIES_BYTES_MAX: Final = 512 * 1024 * 1024
"""Bodies of requests under way in one router."""
SHED_LAG_S: Final = 0.25
"""Of the loop's lateness above which nothing more is let in."""
LAG_LOOK_S: Final = 0.05
"""Between two measurements of it."""
LAGS_KEPT: Final = 3
"""Measurements that must all be late: one stall, of a collection or a long text, is no overload."""

# --- keys of clients --------------------------------------------------------------------------
API_KEYS_MAX: Final = 10_000
"""Keys in the file."""
API_KEYS_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of the file: 10,000 entries take under 2 MB."""
API_KEY_CHARS_MAX: Final = 1_024
"""Of a key that a client shows; a longer one is no key."""
API_KEY_FAULTS_MAX: Final = 16
"""Faults of the file that are told at once."""
SALT_SECRET_CHARS_MIN: Final = 32
"""Of the secret that tenants' salts are made with: 128 bits where they are hex digits."""
RATES_DEBT_MINUTES: Final = 10
"""Of its limits that a tenant can be behind by answers that were longer than what it had left."""
RATE_MAX: Final = 10**9
"""Requests or tokens per minute that can be a limit; above it sums in Lua would lose digits."""
RATES_SETTLE_S: Final = 0.5
"""After which what requests used is told to Redis, if no request of the tenant took it along."""
HTTP_ERRORS_FROM: Final = 400
"""Statuses from here on are errors."""
API_KEYS_LOOK_S: Final = 1.0
"""Between two looks at the file: a key that is taken out is refused so soon."""

TLS_HANDSHAKE_S: Final = 10.0
"""For a client to be greeted: two round trips take a slow one a second or two."""
TLS_SHUTDOWN_S: Final = 2.0
"""For a client to take its leave; asyncio would wait for half a minute."""
TLS_LOOK_S: Final = 2.0
"""Between two looks at the files: whoever takes them out waits minutes anyway."""
TLS_SERVER_NAME_CHARS_MAX: Final = 253
"""A name in the DNS."""

# --- deadlines --------------------------------------------------------------------------------
LOOKUP_S: Final = 0.020
"""For Redis, per request; then the request goes by load."""
LOOKUP_GRACE_S: Final = 0.002
"""The last part of it; begins anew after a stall of our own loop, when the answer lies unread."""
LOOKUP_FAILURES_MAX: Final = 5
"""Lookups of a model that fail one after the other; then Redis is left alone for a while."""
LOOKUP_PAUSE_S: Final = 1.0
"""That while; then one request tries again."""
LOOKUP_WHOLE_BLOCKS_MAX: Final = 1_024
"""Longest chain that Redis is sent whole; a longer one is read in two steps."""
LOOKUP_THINNED_BLOCKS: Final = 512
"""Of which the first sends so many blocks at most: 4 KiB, which cost a script 5 us."""
MATCH_S_PER_1K_TOKENS: Final = 0.005
"""For rendering, tokenizing and hashing, per thousand estimated tokens (at least one)."""
MATCH_S_MAX: Final = 1.0
"""Most that matching may take in all, however long the prompt."""
BYTES_PER_TOKEN_ESTIMATE: Final = 4
"""To estimate tokens from the size of a body before anything is known of it."""
INLINE_CHARS_MAX: Final = 40_960
"""Longest text that is tokenized on the event loop: 0.2 ms of words, 5 ms at worst (letters drawn
at random). Above it a thread does it, which costs 50 us more."""
INLINE_CHARS_SLOW_MAX: Final = 2_048
"""The same where only the slower tokenizer can be used: about 1 ms, 4 ms at worst."""
TOKENIZE_PENDING_MAX: Final = 32
"""Texts waiting for a tokenizer thread; more are routed by load at once."""
SEGMENT_CACHE_BYTES: Final = 64 * 1024 * 1024
"""Ids of text between added tokens that a tokenizer keeps: 16 M tokens of chats, per model."""
SEGMENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest segment that is kept; one of a whole document would push out a thousand turns."""
TEMPLATE_CHARS_MAX: Final = 100_000
"""Of a template that nobody vouches for; the longest of a known model has about 30,000."""
TEMPLATE_ASSIGNMENTS_MAX: Final = 256
"""In one: what it does with messages is followed through them, at a cost that grows cubically."""
TEMPLATE_NUMBER_MAX: Final = 1_000_000
"""Largest number in one, and largest product of constants: no chat needs more."""
TEMPLATE_RENDER_S: Final = 0.05
"""For one to render, in a process of its own; then the process is killed."""
TEMPLATE_LOAD_S: Final = 5.0
"""For it to be compiled there, the start of the process included, and for a trial of its cost."""
TEMPLATE_WORKERS: Final = 2
"""Processes per template that nobody vouches for: 15 MB each."""
TEMPLATE_MEMORY_BYTES_MAX: Final = 512 * 1024 * 1024
"""Address space of such a process."""
TEMPLATE_FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Largest variables, and largest text, that pass between it and us: twice the largest body."""
TEMPLATE_PAUSE_S: Final = 0.25
"""Until a process that was killed is started anew; doubles with each that is killed at once."""
TEMPLATE_PAUSE_MAX_S: Final = 30.0
TEMPLATE_TRIAL_MESSAGES: Final = 100
"""Messages of the smaller of two chats that show how a template's cost grows; the other has four
times as many."""
TEMPLATE_TRIAL_GROWTH_MAX: Final = 8.0
"""Growth of its cost by which it counts as more than linear: linear is 4, quadratic 16."""
TEMPLATE_TRIAL_LEAST_S: Final = 0.001
"""Cost of the larger chat below which nothing is made of its growth."""
VARIABLES_CHARS_MAX: Final = 1_000_000
"""Of tools, documents and variables of a template that are rendered for matching."""
ADDED_TOKENS_CHECKED_MAX: Final = 512
"""Added tokens that two tokenizers must agree on at start-up; some models reserve thousands."""

# --- engines as the router sees them ----------------------------------------------------------
CONNECT_S: Final = 1.0
FIRST_BYTE_S: Final = 600.0
"""To the first byte of an answer; queues may be long, so this only ends what is dead."""
STREAM_IDLE_S: Final = 120.0
"""Between two reads of a stream."""
UPSTREAM_KEEPALIVE_S: Final = 2.0
"""vLLM closes idle connections after 5 s; reusing one at that moment fails the request."""
CLIENT_KEEPALIVE_S: Final = 75.0
DRAIN_S: Final = 60.0
"""For streams in flight at shutdown."""
PRE_STOP_S: Final = 5.0
"""Until load balancers have heard that a router is not ready; it serves as ever meanwhile."""
RETRIES_SHARE: Final = 0.2
"""Of the requests under way that may be retries: each has one at most, before its first byte."""
RETRIES_AT_LEAST: Final = 3
"""Retries that may be under way however few requests there are."""
UNANSWERED_MAX: Final = 3
"""Connections and looks in a row without an answer after which an endpoint is away."""
OUTCOMES_KEPT: Final = 40
"""Latest requests of an endpoint whose share of failures is looked at."""
EJECTION_FAILURES: Final = 5
"""Requests in a row that fail; then the endpoint is left out for a while."""
EJECTION_SHARE: Final = 0.5
"""Of its latest requests that fail; alike."""
EJECTION_REQUESTS_MIN: Final = 20
"""Requests below which a share says nothing."""
EJECTION_S: Final = 30.0
"""Of the first ejection; the n-th in short succession takes n times as long."""
EJECTION_MAX_S: Final = 300.0
EJECTION_JITTER: Final = 0.2
"""By which an ejection may be shorter, so that routers do not return in step."""
EJECTED_SHARE_MAX: Final = 0.5
"""Of a model's endpoints that may be out when one is ejected: the others must bear its load."""
PANIC_SHARE: Final = 0.5
"""Of a model's endpoints that must be in; else those ejected are asked all the same."""
ANSWER_TAIL_BYTES_MAX: Final = 16 * 1024
"""End of an answer that is kept to read its usage; a usage is under 1 KB."""
STREAM_EVENT_BYTES_MAX: Final = 64 * 1024
"""Largest event of a stream that is held until it is whole; a larger one passes unread."""
METRICS_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest page of engine metrics that is read."""
METRICS_TIMEOUT_S: Final = 2.0
HEALTH_TIMEOUT_S: Final = 1.0
"""For /health of an engine whose page of metrics does not come."""
PROBES_AT_ONCE_MAX: Final = 16
"""Engines that are asked for their models and token ids at the same time."""
PROBE_TIMEOUT_S: Final = 2.0
"""For one answer to such a question."""
PROBE_ANSWER_BYTES_MAX: Final = 2 * 1024 * 1024
"""Largest such answer that is read; a list of a thousand adapters is about 700 KB."""
PROBE_REST_S: Final = 5.0
"""Least time between two rounds of probes with one address, however often its engine changes."""
PROBE_ATTEMPTS: Final = 3
"""Rounds in quick succession before an engine that does not answer is asked slowly."""
PROBE_RETRY_S: Final = 3.0
PROBE_SLOWLY_S: Final = 60.0
"""Between two rounds with an engine that cannot be asked for token ids."""
PROBE_DIFFERS_S: Final = 120.0
"""Between two rounds with one whose token ids differ, so that a mended engine is noticed."""
MODELS_REFRESH_S: Final = 10.0
"""Between two looks at an engine's list of models, in which adapters come and go."""
ADAPTERS_PER_ENDPOINT_MAX: Final = 1_000
"""Adapters of one engine that are known; those listed beyond it are not."""
ADAPTERS_PER_MODEL_MAX: Final = 1_000
"""Adapters of one model in the configuration."""
ALIASES_PER_MODEL_MAX: Final = 100
"""Further names of one model; all are in the answer of /v1/models."""
REWRITES_MAX: Final = 1_000
"""Names that are rewritten; alike."""
REWRITE_TARGETS_MAX: Final = 16
"""Names that one may become: canaries are few, and the choice goes through them."""
RENDERS_AT_ONCE_MAX: Final = 64
"""Requests under way with one model's render service; more go by load at once."""
RENDER_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest answer of a render service: a million token ids are about 7 MB."""
RENDER_CACHE_ENTRIES_MAX: Final = 4_096
"""Rendered prompts kept per process."""
RENDER_CACHE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Token ids in them, four bytes each."""
RENDER_CACHE_S: Final = 300.0
"""For which they are kept: some models' prompts hold the date."""
RENDER_FAILURES_MAX: Final = 5
"""Failures in a row after which a render service is left alone for a while."""
RENDER_PAUSE_S: Final = 5.0
"""That while; then one request tries again."""
ENDPOINTS_MAX: Final = 2_000
DISCOVERIES_MAX: Final = 64
"""Places where endpoints are found; each watches, or asks, on its own."""
LABELS_PER_ENDPOINT_MAX: Final = 64
MODELS_MAX: Final = 1_000
DATA_PARALLEL_MAX: Final = 256

# --- endpoints that are found -----------------------------------------------------------------
DISCOVERY_GATHER_S: Final = 0.03
"""In which changes gather: a rolling update tells of many pods within moments."""
DISCOVERY_RETRY_S: Final = 0.25
"""Until a place that failed is asked again; doubles with each failure in a row."""
DISCOVERY_RETRY_MAX_S: Final = 15.0
DISCOVERY_JITTER: Final = 0.5
"""Share by which such a pause may be shorter, so that many processes do not ask in step."""
DISCOVERY_FILE_BYTES_MAX: Final = 1024 * 1024
"""Of a file with endpoints: 2,000 of them take about 300 KB."""
DISCOVERY_FILE_LOOK_S: Final = 0.5
"""Between two looks at it."""
DISCOVERY_FAULTS_MAX: Final = 32
"""Faults of it that are told at once."""
DISCOVERY_EMPTY_ANSWERS: Final = 3
"""Of a name in the DNS, one after the other, until they are believed."""
DISCOVERY_ASK_MAX_S: Final = 10.0
"""Longest pause between two questions to an engine that has not said what it serves."""
DISCOVERY_REFRESH_S: Final = 30.0
"""Between two questions to one that has: another may have come in its place."""
DISCOVERY_ASKS_AT_ONCE_MAX: Final = 16
"""Engines of one place that are asked at the same time."""
DISCOVERY_ONCE_S: Final = 5.0
"""For all places to tell, where they are looked at only once."""
FAREWELL_S: Final = 3.0
"""After the last request at an endpoint that is gone until what was counted of it goes, too."""

# --- gauges shared by indexers ----------------------------------------------------------------
GAUGES_STALE_S: Final = 1.0
"""Beyond the time when the next look is due: after it a shared sample is no longer believed."""
SCRAPE_IDLE_S: Final = 2.0
"""Between two looks at an engine that has nothing to do and whose gauges do not change."""
SCRAPE_PAUSE_MAX_S: Final = 60.0
"""Longest pause between two looks that may be set, and that a sample may claim."""
SCRAPE_AWAY_S: Final = 1.0
"""Between two looks at an engine that does not answer; routers look at it themselves meanwhile."""
SCRAPES_PER_S_MAX: Final = 400
"""Looks of one indexer: 13 % of a core; with more engines each is looked at less often."""
SCRAPES_AT_ONCE_MAX: Final = 32
"""Engines that an indexer is looking at; with more, slow ones would keep it from the others."""
SCRAPES_OF_SILENT_MAX: Final = 8
"""Engines of which the last look found nothing, looked at beside these: each may take 2 s."""
SCRAPE_KEEPALIVE_S: Final = 4.0
"""Above SCRAPE_IDLE_S, and below the 5 s after which vLLM closes idle connections."""
LOOKS_AT_ONCE_MAX: Final = 256
"""Engines that a router is looking at itself; those that hang must not keep it from others."""
GAUGES_WRITE_S: Final = 0.05
"""In which samples gather before they are written together."""
GAUGES_PER_WRITE_MAX: Final = 500
"""Samples in one call: 100 kB, under 1 ms of Redis."""
GAUGES_READ_S: Final = 0.25
"""Between two readings of shared samples by a router."""
GAUGES_READ_MAX_S: Final = 0.75
"""The same where they are many; below GAUGES_STALE_S."""
GAUGES_READ_BYTES_PER_S: Final = 512 * 1024
"""Of shared samples that a router reads; 2,000 endpoints without adapters are 250 kB."""
REQUESTS_NOTED_S: Final = 0.05
"""Between two notes of how many requests our routers have under way at an endpoint: so exactly it
is known how many of those in a sample are ours."""
GAUGES_TURN: Final = 64
"""Samples that are taken in one turn of the loop: 0.5 ms."""
GAUGE_ADAPTERS_MAX: Final = 64
"""Adapters in use that are known of an endpoint, running and waiting ones each."""
GAUGE_NAMES_CHARS_MAX: Final = 1_024
"""Their quoted names, running and waiting ones each."""
GAUGE_TEXT_CHARS_MAX: Final = 4_096
"""Longest text of a sample that is read."""
GAUGES_KEPT_S: Final = 60
"""After which all that was told of a model goes, without an indexer that tells."""
GAUGES_FORGET_S: Final = 10.0
"""After which the sample of an endpoint that is not configured is taken out."""

# --- load shared by routers -------------------------------------------------------------------
SKETCH_HASHES_MAX: Final = 32
"""Hashes that tell of a chain that is about to be cached: a prefix is known to a 32nd of it."""
DRAW_BLOCKS: Final = 16
"""Prompts that share so many blocks behind the longest match draw alike."""
EVENT_DUE_S: Final = 0.25
"""After a first byte until the event that follows it is in the index; 20 ms are usual."""
PRESSURE_S: Final = 5.0
"""Over which the requests that wait in all queues are averaged: some busy periods of an engine."""
ROUTER_SILENT_S: Final = 3.0
"""Without a sign of life of a router until what it had under way no longer counts."""
ROUTER_STATE_S: Final = 1.0
"""Between two states of a router: everything that it has under way."""
ROUTER_ID_CHARS_MAX: Final = 128
STATE_FLIGHTS_MAX: Final = 8_192
"""Flights that await their first byte in one state, the newest."""
FLIGHTS_TOLD_S: Final = 0.002
"""First bytes and ends of flights wait so long for company; launches do not wait."""
FLIGHT_WRITES_MAX: Final = 64
"""Entries on their way to Redis; what comes beyond them is told with the next state."""
FLIGHT_ENTRIES_MAX: Final = 16_384
"""Entries that a stream keeps: seconds of them, at about 0.5 KB."""
FLIGHT_LOG_S: Final = 60
"""Without a router until a stream is gone."""
LAUNCHES_HEARD_MAX: Final = 1_024
"""Entries with launches of others whose place is known, to find decisions of the same moment."""
DECISIONS_MAX: Final = 3
"""Times that a request is decided on when others decide at the same moments."""
FLIGHTS_READ_MAX: Final = 4_096
"""Entries read at once; the rest is read next time."""
FLIGHTS_LATE_S: Final = 0.05
"""From a first byte until all routers can have read of it; speeds are learned after that."""
HEARD_ENOUGH_S: Final = 0.0005
"""Age of a reading of the flight log that a decision makes do with: others tell no faster."""
BOARD_POLL_S: Final = 0.25
"""Between two looks while nobody decides."""
BOARD_FRESH_S: Final = 0.3
"""Age of the board up to which it is trusted in full."""
BOARD_BLIND_S: Final = 1.0
"""Age from which on it is not trusted at all."""
SESSIONS_MAX: Final = 65_536
"""Conversations whose endpoint is known, per model."""

# --- scheduling -------------------------------------------------------------------------------
PLUGINS_MAX: Final = 64
"""Plugins that a profile is made of; each is run for each request."""
PLUGIN_NAME_CHARS_MAX: Final = 128
"""Of a plugin's name, which is a label of metrics."""
LLM_D_ENTRIES_MAX: Final = 1_000
"""Of a list in a configuration of llm-d's."""
LLM_D_CONFIG_BYTES_MAX: Final = 2 * 1024 * 1024
"""Of such a configuration; a ConfigMap has 1 MiB."""
SESSION_HEADERS_MAX: Final = 8
"""Headers that may tell which conversation a request belongs to."""
SESSION_HEADER_CHARS_MAX: Final = 64
"""Of the name of one, or of the cookie."""
COOKIES_CHARS_MAX: Final = 8_192
"""Of a Cookie header that is looked through for ours; browsers keep to 4 KB per cookie."""

# --- proof ------------------------------------------------------------------------------------
ACCURACY_ANSWERS_MAX: Final = 40
"""Latest answers of an endpoint whose predictions are judged."""
ACCURACY_WINDOW_S: Final = 300.0
"""How long an answer counts among them."""
DOUBT_ANSWERS_MIN: Final = 20
"""Answers that must be compared before an endpoint is doubted."""
DOUBT_SPAN_S: Final = 5.0
"""How long the latest answers must run over, so that one burst against a full cache is none."""
DOUBT_COOLDOWN_S: Final = 60.0
"""After a doubt of an endpoint until the next; doubles, since a doubt costs a whole replay."""
DOUBT_COOLDOWN_MAX_S: Final = 3_600.0
DOUBTS_QUEUED_MAX: Final = 64
HANDOVER_CHECK_SHARE: Final = 0.01
HANDOVER_CHECK_S: Final = 5.0
"""For an engine to tokenize a prompt that is checked."""
HANDOVER_CHECKS_QUEUED_MAX: Final = 16
HANDOVER_CHECKS_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bodies that wait for their check; two of the largest."""
TOKENIZE_ANSWER_BYTES_PER_TOKEN: Final = 16
"""Most that an answer of /tokenize may take per token; an id and its comma are under 10."""
IDLE_PROBES_MAX: Final = 64
"""Requests of one token to idle engines at once; the others wait for another idle time."""

# --- Redis ------------------------------------------------------------------------------------
REDIS_CONNECT_S: Final = 1.0
REDIS_WRITE_S: Final = 1.0
REDIS_SEEDS_MAX: Final = 64
"""Nodes or sentinels that a configuration names."""
REDIS_NODES_MAX: Final = 1_000
"""Nodes of a cluster; Redis itself advises no more."""
REDIS_PARTING_S: Final = 10.0
"""After which connections to a server that left are closed; no call takes so long."""
REDIS_REDIRECTS_MAX: Final = 3
"""MOVED and ASK that one command follows; more are a cluster that has not settled."""
TOPOLOGY_ASK_S: Final = 0.1
"""After this long without an answer the next node or sentinel is asked as well."""
TOPOLOGY_PAUSE_S: Final = 0.25
"""Between two questions who serves what, however many commands fail meanwhile."""
TOPOLOGY_AGE_MAX_S: Final = 10.0
"""After which it is asked again without a failure: new replicas, a moved slot."""
REPLICA_AVOID_S: Final = 5.0
"""For which lookups leave a replica alone that has failed."""
REDIS_PASSWORD_BYTES_MAX: Final = 4_096
REDIS_RECONNECT_S: Final = 0.1
"""Pause after a connection that could not be made."""
REDIS_WAITING_MAX: Final = 10_000
"""Commands under way on one shared connection; more are refused at once."""
REDIS_UNSENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of these, waiting for a server that does not read; a lookup of 100,000 tokens is 50 kB."""
REDIS_WRITE_CONNECTIONS_MAX: Final = 4
"""For the indexer's commands that are rare; scripts share a connection."""
REDIS_WRITES_AT_ONCE_MAX: Final = 64
"""Scripts of an indexer under way: 2 MB of keys at most, 130 ms of Redis."""
OPS_PER_SCRIPT_MAX: Final = 400
"""Entries that one call of the writer script changes: about 1 ms of Redis."""
EVICTED_REST_S: Final = 10.0
"""Least time between two times that a shard is written anew because Redis drops its keys."""
SWEEP_BUCKETS_PER_CALL: Final = 64
"""Buckets that one call of the sweep script looks through at most."""
SWEEP_BYTES_PER_CALL: Final = 16 * 1024
"""Of fields and values in them: 1,000 blocks of one holder, or 90 of 64 each; 2 ms of Redis."""
SWEEP_HOLDERS_MAX: Final = 1_000
"""Dead holders that one pass takes out, and then frees at once: under 1 ms of Redis per call."""
DOUBTS_PER_SHARD_MAX: Final = 4_000
"""Notes of doubt that an indexer reads at once: twice as many as there can be endpoints."""
WINDOW_BLOCKS_FIRST: Final = 256
"""Most that a lookup reads of windows at first: a window of 4,096 tokens in blocks of 16."""
WINDOW_BLOCKS_MAX: Final = 4_096
"""Blocks of windows that one lookup reads in all; an endpoint undecided by then has no match."""
HOLDER_VALUES_CACHED_MAX: Final = 65_536
"""Distinct holder lists that a router keeps parsed."""

# --- events -----------------------------------------------------------------------------------
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
"""Largest batch of events; a million tokens stored in one step are about 3 MB."""
EVENTS_PER_BATCH_MAX: Final = 100_000
HASHES_PER_BATCH_MAX: Final = 100_000
TOKENS_PER_BATCH_MAX: Final = 4_000_000
BLOCK_SIZE_MAX: Final = 65_536
EXTRA_KEYS_PER_BLOCK_MAX: Final = 1_024
HELD_BATCHES_MAX: Final = 1_000
"""Live batches held back while a replay runs; more are dropped and replayed."""
HELD_BYTES_MAX: Final = 64 * 1024 * 1024
DIGESTS_KEPT: Final = 16_384
"""Digests of applied batches, to tell a duplicate from a restart; above vLLM's 10,000."""
FORGOTTEN_HASHES_MIN: Final = 10_000
"""Engine hashes kept per endpoint after their last copy is gone, to place later children."""
REMEMBERED_TO_HELD: Final = 1.25
"""Engine hashes kept in all, of those that an endpoint held at most: a doubt forgets none."""
RELEARN_S: Final = 600.0
"""For which routers have an endpoint announce its hits after an epoch that began without what it
had cached before; what stays hot is hit within it."""
RELEARN_GRACE_S: Final = 60.0
"""For which announced hits may still come, from requests that waited."""
RELEARN_POLL_S: Final = 1.0
"""Between two looks of a router at which endpoints are relearned."""
PRESENT_HASHES_MAX: Final = 4_000_000
"""Blocks that one endpoint may claim to hold; more is a lie or a fault."""
GPU_BLOCKS_SLACK: Final = 0.1
"""Part of `num_gpu_blocks` by which an endpoint may hold more on its GPU: announcements that look
like stores, and a restart with a larger cache that its gauges do not tell yet."""
GPU_BLOCKS_SLACK_MIN: Final = 64
"""The same of small caches, in blocks."""
GPU_BLOCKS_KEPT_S: Final = 60.0
"""For which that number is believed when nobody can look any more: the engine may be another."""
POOLS_PER_ENDPOINT_MAX: Final = 64
PENDING_OPS_MAX: Final = 500_000
"""Entries waiting for Redis per endpoint; above it they are dropped and rewritten from memory."""
PAGE_BATCHES: Final = 64
"""Batches after which a page of an endpoint's memory is written; so after 64 times as many each
page has been, within the 10,000 that engines replay."""
PAGES_PER_WRITE_MAX: Final = 8
"""Pages that one write takes along; those of an endpoint of a million blocks are 300 kB each."""
MEMORY_IDLE_S: Final = 0.5
"""Without events after which pages that are behind are written, a few at a time."""
MEMORY_BEHIND_BATCHES: Final = 512
"""By which they must be behind for that: so many are replayed in an instant, and an endpoint that
sends little need not write all of its memory after every batch."""
RECALLS_AT_ONCE_MAX: Final = 8
"""Endpoints whose memory is read at the same time; each may take 100 MB while it is."""
LEAVE_S: Final = 2.0
"""For an endpoint that is given back to be written down; below a lease."""
RETIRE_AFTER_S: Final = 10.0
"""For which nobody has followed an endpoint that is not configured before it is forgotten."""
TURN_S: Final = 0.004
"""Of events that are taken in one turn of the loop, from all sockets together."""
TOLD_AT_ONCE_MAX: Final = 64
"""Endpoints whose stand is written at the same time."""
REPLAY_IDLE_S: Final = 1.0
REPLAY_TOTAL_S: Final = 10.0
REPLAYS_AT_ONCE_MAX: Final = 4
REPLAY_ATTEMPTS_MAX: Final = 3
"""Replays without progress after which what is missing counts as lost."""
DOUBT_BACKOFF_S: Final = 1.0
DOUBT_BACKOFF_MAX_S: Final = 60.0
AUDIT_S: Final = 5.0
"""A silent feed is asked after this long whether the last batch seen is the last one sent."""
SETTLE_S: Final = 0.25
"""The same right after a subscription, which takes effect some time after it is made."""
HEARTBEAT_S: Final = 1.0
HEARTBEAT_TIMEOUT_S: Final = 2.0
"""After a heartbeat without an answer; with the time between them a loss is noticed in 3 s."""
FEED_LOST_S: Final = 10.0
"""After which an endpoint whose feed is lost has no matches: its cache may be any by then."""
FEED_CONNECT_S: Final = 2.0
"""For a connection to an engine; the kernel would try ever more seldom, for minutes."""
FEED_HANDSHAKE_S: Final = 3.0
"""For an engine that is connected to say so itself; ZMQ would wait for half a minute."""
RECONNECT_S: Final = 0.1
RECONNECT_MAX_S: Final = 1.0
"""Between two attempts; an engine that has come back is to be heard within 2 s."""

# --- the API server of Kubernetes --------------------------------------------------------------
KUBE_PAGE_OBJECTS: Final = 100
"""Objects of a list that are asked for at once: pods of 8 KB take 3 ms of the loop."""
KUBE_PAGE_BYTES_MAX: Final = 32 * 1024 * 1024
"""Such a page; one object takes at most 1.5 MB, which is what etcd keeps."""
KUBE_LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""One event of a watch; after a longer one everything is listed anew."""
KUBE_PIECE_BYTES: Final = 64 * 1024
"""Of a watch that are read at once: some 3 ms of events."""
KUBE_STATUS_BYTES_MAX: Final = 64 * 1024
"""Of an answer that says why not."""
KUBE_STATUS_CHARS_MAX: Final = 512
"""Of its message, in the log."""
KUBE_OBJECTS_MAX: Final = 10_000
"""Objects of one watch that are kept: 1 KB each, and five times the endpoints that there can be."""
KUBE_FILE_BYTES_MAX: Final = 1024 * 1024
"""Token, CA or namespace of a service account."""
KUBE_CONNECT_S: Final = 5.0
"""For a connection to the API server; also for a handshake."""
KUBE_LIST_S: Final = 30.0
"""For a page of a list, and for a watch to begin."""
KUBE_WATCH_S: Final = 120.0
"""For which a watch is asked for, give or take a quarter; the next one goes on where it ended."""
KUBE_WATCH_SLACK_S: Final = 10.0
"""Beyond it a watch that has not ended is given up."""
KUBE_WATCH_SHORT_S: Final = 1.0
"""A watch that ends sooner, without anything new, counts as failed."""
KUBE_KEEPALIVE_S: Final = 5
"""Until an idle connection is probed, and between probes; after the fourth in vain it is dead."""
KUBE_KEEPALIVE_PROBES: Final = 4
KUBE_PAUSE_S: Final = 0.1
"""After a first failure; doubles with each further one, less up to a half drawn at random."""
KUBE_PAUSE_MAX_S: Final = 30.0
KUBE_DENIED_PAUSE_S: Final = 1.0
"""The same after a refusal: at an installation the rights may come a moment after the process."""
KUBE_ABSENT_PAUSE_S: Final = 30.0
"""Until it is asked again for a resource type that is not installed."""
KUBE_ABSENT_SURE_S: Final = 10.0
"""For which a type must be away before what was known of its objects goes: an API server that
starts may not have all types yet."""
KUBE_CREDENTIALS_S: Final = 60.0
"""Age of token and certificates from which on they are read again before they are used; kubelets
renew tokens minutes before they expire."""

# --- traces -----------------------------------------------------------------------------------
SPANS_QUEUED_MAX: Final = 8_192
"""Spans that wait for the collector: those of about 900 requests, 8 MB."""
SPANS_PER_BATCH_MAX: Final = 256
"""Spans that are written and sent at once: 4 ms, in which the event loop has to share."""
SPANS_EVERY_S: Final = 1.0
"""Between two looks at what is queued."""
SPANS_SEND_S: Final = 5.0
"""For a collector to take a batch, with all that is tried again."""
SPANS_CLOSE_S: Final = 3.0
"""For what is queued when the router stops, or its configuration is replaced."""

# --- the simulated engine ---------------------------------------------------------------------
ENGINE_EVENTS_QUEUED_MAX: Final = 100_000
"""Batches that wait for one slow subscriber; vLLM's own default."""
ENGINE_CHOICES_MAX: Final = 128
"""Answers to one prompt (`n`)."""
ENGINE_STOP_WORDS_MAX: Final = 16
ENGINE_RESPONSES_MAX: Final = 1_024
"""Responses that the simulated engine keeps for those that go on from them, the latest ones."""
ENGINE_ANSWER_TOKENS_DEFAULT: Final = 256
"""Longest answer to a chat that names no limit; vLLM would fill its context."""

# --- the picker -------------------------------------------------------------------------------
SATURATED_WAITING: Final = 5
"""Requests that wait at an endpoint that is full; llm-d's figure, as the next."""
SATURATED_KV_USAGE: Final = 0.8
SATURATION_STALE_S: Final = 2.0
"""Age of gauges above which an endpoint counts as full."""
DESTINATIONS_WRITTEN_MAX: Final = 4_096
"""Destinations whose metadata are kept as bytes: of a fleet each endpoint, or pair of them."""
PASS_OVER_S: Final = 1.0
"""For the rest of a body that was refused to arrive, and be passed over."""
PICKER_DESTINATIONS_MAX: Final = 8
"""Endpoints that a gateway is told for one request."""
PICKER_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one message of a gateway; one that buffers sends a body as one."""
PATHS_KNOWN_MAX: Final = 1_024
"""Paths of clients behind a gateway that are remembered for what they end with."""
PICKER_PING_S: Final = 30.0
"""Without a word of a gateway until it is asked whether it is there; as long for its answer."""
HEALTH_MESSAGE_BYTES_MAX: Final = 4_096
"""Of a question for a service's health, which is its name."""
GRPC_CONNECTIONS_MAX: Final = 1_024
"""Of gateways to one port: each of their workers has one or a few."""
GRPC_STREAMS_MAX: Final = 4_096
"""Calls at once on one connection, a request of a client each; a gateway opens another for more."""
GRPC_FRAME_BYTES_MAX: Final = 16 * 1024
"""Of a frame that is taken: HTTP/2's least, and what gateways send whatever more is allowed."""
GRPC_SENT_FRAME_BYTES_MAX: Final = 256 * 1024
"""Of a frame that is sent to those who take more than that."""
GRPC_STREAM_WINDOW_BYTES: Final = 256 * 1024
"""Of a call, received and not read: a body of 128 KB comes without a pause."""
GRPC_CONNECTION_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""The same of all calls of a connection."""
GRPC_UNSENT_BYTES_MAX: Final = 256 * 1024
"""Written and not taken by the system; above it nothing more is read of that peer, nor written."""
GRPC_WRITE_BYTES: Final = 64 * 1024
"""Of data gathered in one turn of the loop, above which they leave at once."""
GRPC_CONTINUATIONS_MAX: Final = 8
"""Frames that go on with a block of headers; 16 KB fit into the first one."""
GRPC_HEADS_KNOWN_MAX: Final = 16
"""Heads of calls kept per connection; a gateway has one or two."""
GRPC_HEAD_KNOWN_BYTES_MAX: Final = 512
"""Of one that is kept."""
GRPC_TEXT_BYTES_MAX: Final = 512
"""Of a status's text."""
GRPC_IDLE_FRAMES_MAX: Final = 1_000
"""Frames of a peer at once that cost it nothing: pings, empty data, priorities, window updates."""
GRPC_IDLE_FRAMES_PER_S: Final = 200.0
"""Of them, besides: a gateway sends some, 200 cost us a millisecond."""
GRPC_IDLE_FRAMES_PER_SENT: Final = 4
"""Of them, for each message that it is sent: gRPC's own client widens two windows for one."""
GRPC_RESETS_MAX: Final = 1_000
"""Calls given up at once before we have answered anything (CVE-2023-44487): clients that leave."""
GRPC_RESETS_PER_S: Final = 200.0
"""The same, besides: of 1,500 clients in a second so many do not leave within milliseconds."""
GRPC_SETTINGS_MAX: Final = 64
"""Times at once that a peer changes its settings: each may wake all its calls."""
GRPC_SETTINGS_PER_S: Final = 2.0
"""The same, besides: gRPC's own client follows the delay of the line so."""
GRPC_DRAIN_PING_S: Final = 1.0
"""For a peer to hear that it is to call elsewhere, before what it still calls is refused."""

# --- the planner ------------------------------------------------------------------------------
TRACE_LINES_MAX: Final = 2_000_000
"""Requests of a trace; each takes about 1 KB."""
TRACE_TOKENS_MAX: Final = 10_000_000
"""Of one prompt, or of one answer."""
SIMULATED_ENDPOINTS_MAX: Final = 4_096
SIMULATED_ROUTERS_MAX: Final = 256

# --- memory -----------------------------------------------------------------------------------
GC_THRESHOLDS: Final = (20_000, 20, 50)
"""Objects of a router that are new before it looks for cycles among them, and how often it looks
among older ones; some 10 MB of garbage at most."""

# --- labels and logs --------------------------------------------------------------------------
METRIC_CHILDREN_MAX: Final = 10_000
"""Combinations of labels' values per metric; more are counted as "other". Values come from the
configuration and closed sets, so that only a fleet beyond every plan gets there."""
LOG_LINES_QUEUED_MAX: Final = 10_000
"""Lines that wait to be written; more are dropped and counted."""
LOG_GATHER_S: Final = 0.02
"""Between two writes: lines that come in between share one."""
LOG_WRITE_BYTES: Final = 64 * 1024
"""Of lines that are written at once; a line more may be."""
LOG_CLOSE_S: Final = 1.0
"""For the last lines of a process to be written."""
LOG_LINE_CHARS_MAX: Final = 8_192
