"""The whole way from a request to a decision: prompt, hash, lookup, score, pick.

No failure on the way changes an answer's status: without a prompt or an index the request goes by
load, and the decision says why.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import IndexUnavailable, NoEndpoints, PromptUnavailable
from kvatlas.common.ids import BlockHash, EndpointName, Epoch, ModelName
from kvatlas.common.keyspace import Shard, shards_of
from kvatlas.common.llm_d.headers import TEST_SELECTION
from kvatlas.common.prompt import COMPLETIONS_PATH, PROMPT_PATHS, RESPONSES_PATH, Prompt
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.records import record
from kvatlas.common.settings import Settings
from kvatlas.router.accuracy import reads_cache
from kvatlas.router.breaker import Breaker
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.flight_log import OwnFlight
from kvatlas.router.flight_logs import FlightLogs
from kvatlas.router.flights import Board, Launch
from kvatlas.router.holders import Match
from kvatlas.router.lookup import BlockIndex
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.predictions import sketch_of
from kvatlas.router.profiles import build_profile
from kvatlas.router.prompts import Prompts
from kvatlas.router.render_service import RenderServices
from kvatlas.router.response_ids import able
from kvatlas.router.saturation import saturation
from kvatlas.router.scheduling import (
    Candidate,
    Work,
)
from kvatlas.router.scheduling.named import named_in
from kvatlas.router.served_names import Served
from kvatlas.router.sessions import Session, read, resolve

STAGES: Final = ("render", "tokenize", "hash", "lookup", "score")
NO_PROMPT: Final = "path:no_prompt"
"""Why a request goes by load whose path is none of those that become prompts."""
CACHE_UNREAD: Final = "lookup:cache_unread"
"""Why a request goes by load whose engine will not look into its cache."""
NO_FAULT_OF_REDIS: Final = frozenset({"pool", "foreign_entry", "schema", "wrongtype"})
"""Reasons of lookups that failed for themselves; the next one may well be answered."""


@dataclass(slots=True)
class _Matches:
    """What is known of the prompt when candidates are scored."""

    token_ids: Sequence[int] | None = None
    sequences: int = 0
    is_own_prompt: bool = True
    blocks: dict[int, int] = field(default_factory=dict)
    chains: dict[int, Sequence[BlockHash]] = field(default_factory=dict)
    by_endpoint: dict[EndpointName, Match] = field(default_factory=dict)
    reading: asyncio.Task[None] | None = None

    @property
    def draw(self) -> int | None:
        """Draw from what follows the longest match: prompts often begin alike, all of them."""
        longest = max(self.chains.values(), key=len, default=())
        matched = max((match.blocks for match in self.by_endpoint.values()), default=0)
        return longest[: matched + limits.DRAW_BLOCKS][-1] if longest else None

    fallback: str | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)


@record
class Asked:
    """A request to be decided on.

    Attributes:
        path: without the query.
        body: its JSON object; `model` names a known model.
        body_bytes: its size.
        headers: that may tell which conversation it belongs to; any spelling finds a name.
        may_take: tells of an endpoint whether the request may go there; None where to any.
    """

    path: str
    body: Mapping[str, Any]
    body_bytes: int
    headers: Mapping[str, str] = field(default_factory=dict)
    may_take: Callable[[Endpoint], bool] | None = None


@record
class _Request:
    """A request as the stages take it."""

    served: Served
    path: str
    body: Mapping[str, Any]
    body_bytes: int
    session: Session
    named: frozenset[str]


@record
class Ground:
    """What decisions about a request are made of, beside the state of the fleet."""

    request: _Request
    endpoints: Sequence[Endpoint]
    matches: _Matches


@record
class Judged:
    """A candidate as the decision saw it.

    Attributes:
        match_blocks: leading blocks that the request would hit there.
        match_tokens: the same in tokens: the predicted hit.
        predicted_blocks: that it is about to hold, those at least.
        epoch: the epoch that the match is from; None where nothing matched.
        terms: what the score is made of, where that was asked for.
    """

    endpoint: Endpoint
    match_blocks: int
    match_tokens: int
    predicted_blocks: int
    epoch: Epoch | None
    score: float
    terms: Mapping[str, float]


@record
class Decision:
    """Where a request goes, and why.

    Attributes:
        order: candidates, the chosen one first, then whom to try next.
        candidates: all, in the order of the configuration.
        token_ids: of the first sub-prompt; None where they are not known.
        sequences: sub-prompts of the request; 0 where they are not known.
        is_own_prompt: whether the token ids are our own; those of a render service predict a
            match, but are never handed to an engine.
        block_size: of the chosen endpoint; None where it is not known.
        chain: hashes of the prompt's blocks that can be hit, in that size.
        blocks: full blocks of the prompt, in that size.
        work: what was asked of the profile.
        asked: whom it was asked of, in the order of `candidates`.
        first: position of the chosen one among them.
        ground: what it was made of, to make it again.
        fallback: why the request goes by load alone, or None.
        timings_ms: per stage that ran.
        adapter: the LoRA adapter of the model that is asked for, or None.
    """

    model: ModelName
    order: Sequence[Judged]
    candidates: Sequence[Judged]
    token_ids: Sequence[int] | None
    sequences: int
    block_size: int | None
    chain: Sequence[BlockHash]
    blocks: int
    work: Work
    asked: Sequence[Candidate]
    first: int
    ground: Ground
    fallback: str | None
    timings_ms: Mapping[str, float]
    is_own_prompt: bool = True
    adapter: str | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """Count the tokens of the prompt; None where they are not known."""
        return None if self.token_ids is None else len(self.token_ids)

    @property
    def chosen(self) -> Judged:
        """Give the best candidate."""
        return self.order[0]


@dataclass(frozen=True, slots=True)
class Stages:
    """What a pipeline is put together from.

    Attributes:
        renders: for prompts that `prompts` cannot have, or that engines tokenize otherwise.
        flights: what all routers have under way.
    """

    prompts: Prompts
    renders: RenderServices
    index: BlockIndex
    flights: FlightLogs


class Pipeline:
    """Decide for requests. Holds no state of its own but the turn of round robin."""

    def __init__(
        self, settings: Settings, stages: Stages, endpoints: Endpoints, metrics: RouterMetrics
    ) -> None:
        self._prompts = stages.prompts
        self._renders = stages.renders
        self._index = stages.index
        self._flights = stages.flights
        self._endpoints = endpoints
        self._metrics = metrics
        self._shards: dict[ModelName, tuple[Shard, ...]] = {
            m.model: shards_of(m.model, m.index_shards) for m in settings.models
        }
        self._breakers = {
            model: Breaker(limits.LOOKUP_FAILURES_MAX, limits.LOOKUP_PAUSE_S, monotonic)
            for model in self._shards
        }
        self._profile = build_profile(settings.router, metrics)
        self._sessions = settings.router.session
        self._turn = 0
        self._chance = random.Random()  # noqa: S311 - spreads load, guards nothing

    def served(self, name: str) -> Served | None:
        """Give the model, and adapter, that a name stands for; None for one that is not served."""
        return self._endpoints.names.find(name)

    def saturation(self, model: ModelName) -> float:
        """Tell how full a model's endpoints are: 1 or more is full."""
        return saturation(self._endpoints.of(model), monotonic())

    def adapters(self) -> Sequence[Served]:
        """List the adapters that are known."""
        return self._endpoints.names.adapters()

    async def decide(self, asked: Asked, *, explains: bool = False) -> Decision:
        """Choose an endpoint.

        Args:
            asked: the request.
            explains: say what scores are made of.

        Raises:
            InvalidRequest: a field has a wrong type, or refers to a response that no endpoint
                keeps. The client's.
            NoEndpoints: the model has none, or none that the request may go to.
        """
        path, body = asked.path, asked.body
        served = self.served(body["model"])
        endpoints: Sequence[Endpoint] = self._endpoints.candidates(served) if served else []
        if asked.may_take is not None:
            endpoints = [each for each in endpoints if asked.may_take(each)]
        if served is None or not endpoints:
            raise NoEndpoints("no endpoint serves this model")
        if path == RESPONSES_PATH:
            endpoints = able(body, endpoints)
        session = read(self._sessions, asked.headers)
        named = named_in(asked.headers.get(TEST_SELECTION.name))
        request = _Request(served, path, body, asked.body_bytes, session, named)
        matches = await self._match(request, endpoints)
        log = self._flights.of(served.model)
        if (reading := matches.reading or log.begin_hearing()) is not None:
            await log.end_refresh(reading)
        return self._choose(Ground(request, endpoints, matches), explains=explains)

    def flight(self, decision: Decision, *, is_silent: bool) -> OwnFlight:
        """Count a request in with the chosen endpoint, for all routers to see.

        Args:
            decision: that it follows.
            is_silent: its answer comes as a whole, so that the first byte tells nothing of the
                prompt.
        """
        launch = _launch(decision, decision.chosen, is_silent=is_silent)
        return self._flights.of(decision.model).flight(launch)

    async def settle(self, decision: Decision, flight: OwnFlight) -> Decision:
        """Decide again where other routers decided at the same moment and were heard first.

        Args:
            decision: that `flight` follows.
            flight: of the request.
        """
        for _ in range(limits.DECISIONS_MAX - 1):
            if not await flight.is_contested():
                break
            flight.lift()
            decision = self._choose(decision.ground)
            self._metrics.contested.labels(decision.model).inc()
            self.fly(flight, decision, decision.chosen)
        return decision

    def fly(self, flight: OwnFlight, decision: Decision, judged: Judged) -> None:
        """Put a flight that was lifted on the board again, with any endpoint."""
        is_silent = flight.launch.is_silent
        flight.fly_to(_launch(decision, judged, is_silent=is_silent))

    def _choose(self, ground: Ground, *, explains: bool = False) -> Decision:
        """Rank the endpoints by what is known at this moment."""
        request, endpoints, matches = ground.request, ground.endpoints, ground.matches
        served, session = request.served, request.session
        log, begun = self._flights.of(served.model), monotonic()
        tokens = matches.token_ids
        estimate = request.body_bytes // limits.BYTES_PER_TOKEN_ESTIMATE
        work = Work(
            estimate if tokens is None else len(tokens),
            now_s=begun,
            turn=self._turn,
            adapter=served.adapter,
            session=resolve(session, (each.name for each in endpoints), log.board),
            trust=log.trust(begun),
            pressure=log.board.pressure(len(endpoints), begun),
            is_matched=matches.fallback is None,
            draw=matches.draw,
            named=request.named,
        )
        predicted = _predicted(log.board, matches, begun)
        candidates = [_candidate(endpoint, matches, predicted) for endpoint in endpoints]
        ranking = self._profile.run(work, candidates, self._chance)
        terms = self._profile.terms(work, candidates) if explains else [{}] * len(candidates)
        judged = [
            _judged(endpoint, matches, predicted, verdict)
            for endpoint, *verdict in zip(endpoints, ranking.scores, terms, strict=True)
        ]
        matches.timings_ms["score"] = (monotonic() - begun) * 1e3
        order = [judged[position] for position in ranking.order]
        size = order[0].endpoint.block_size or 0
        return Decision(
            model=served.model,
            adapter=served.adapter,
            order=order,
            candidates=judged,
            token_ids=tokens,
            sequences=matches.sequences,
            is_own_prompt=matches.is_own_prompt,
            block_size=size or None,
            chain=matches.chains.get(size, ()),
            blocks=matches.blocks.get(size, 0),
            work=work,
            asked=candidates,
            first=ranking.order[0],
            ground=ground,
            fallback=matches.fallback,
            timings_ms=matches.timings_ms,
        )

    def note(self, decision: Decision) -> None:
        """Note a decision that a request follows, for those that come after it."""
        self._turn += 1
        self._profile.note(decision.work, decision.asked, decision.first)

    def count(self, decision: Decision) -> None:
        """Count it."""
        for stage, spent_ms in decision.timings_ms.items():
            self._metrics.stage_seconds.labels(stage).observe(spent_ms / 1e3)
        if decision.fallback is not None:
            stage, _, reason = decision.fallback.partition(":")
            self._metrics.fallbacks.labels(stage, reason).inc()
        if decision.prompt_tokens is not None:
            self._metrics.prompt_tokens.labels(decision.model).inc(decision.prompt_tokens)
            self._metrics.match_tokens.labels(decision.model).inc(decision.chosen.match_tokens)

    async def _match(self, request: _Request, endpoints: Sequence[Endpoint]) -> _Matches:
        """Find how much of the prompt each endpoint holds, or why that is not known."""
        matches = _Matches()
        model = request.served.model
        if request.path not in PROMPT_PATHS:
            matches.fallback = NO_PROMPT
            return matches
        try:
            prompt = await self._prompt(request, matches)
        except PromptUnavailable as error:
            matches.fallback = f"prompt:{error.reason}"
            return matches
        if not prompt.sequences:
            matches.fallback = "prompt:empty"
            return matches
        matches.token_ids = prompt.sequences[0]
        matches.sequences = len(prompt.sequences)
        begun = monotonic()
        sizes = {each.block_size for each in endpoints if each.block_size}
        chains = _chains(request.served, prompt, sizes, matches)
        hashed = monotonic()
        matches.timings_ms["hash"] = (hashed - begun) * 1e3
        if not reads_cache(request.path, request.body):
            matches.fallback = CACHE_UNREAD
            return matches
        # Along with the lookup: it tells what others have decided until this moment.
        matches.reading = self._flights.of(model).begin_hearing()
        try:
            for part in await self._look_up(model, chains):
                matches.by_endpoint.update(part)
        except IndexUnavailable as error:
            matches.fallback = f"lookup:{error.reason}"
        matches.timings_ms["lookup"] = (monotonic() - hashed) * 1e3
        return matches

    async def _look_up(
        self, model: ModelName, chains: Sequence[Sequence[BlockHash]]
    ) -> list[dict[EndpointName, Match]]:
        """Ask the index, unless it is to be left alone for a while.

        Raises:
            IndexUnavailable: it did not answer, or is not asked ("paused").
        """
        breaker, asked_at = self._breakers[model], monotonic()
        if not breaker.lets_through():
            raise IndexUnavailable("paused")
        shards = self._shards[model]
        try:
            if len(chains) == 1:
                found = [await self._index.match(shards, chains[0])]
            else:
                found = await asyncio.gather(*(self._index.match(shards, each) for each in chains))
        except IndexUnavailable as error:
            if error.reason not in NO_FAULT_OF_REDIS:
                breaker.failed(asked_at)
            raise
        breaker.succeeded()
        return found

    def _demand_trust(self, model: ModelName, path: str, body: Mapping[str, Any]) -> None:
        """Refuse to believe in our token ids where an engine was found to have others.

        Raises:
            PromptUnavailable: "tokenizer_differs".
        """
        prompt = body.get("prompt") if path == COMPLETIONS_PATH else None
        # No tokenizer has a say in the ids that a completion brings itself.
        brings_ids = isinstance(prompt, list) and not isinstance(prompt[0], str)
        if not brings_ids and self._endpoints.distrusts(model):
            unavailable("tokenizer_differs")

    async def _prompt(self, request: _Request, matches: _Matches) -> Prompt:
        """Get the token ids: our own where they are to be had and trusted, else the service's.

        Raises:
            PromptUnavailable: there are none.
        """
        model, path, body = request.served.model, request.path, request.body
        begun = monotonic()
        try:
            timed = await self._prompts.token_ids(model, path, body, request.body_bytes)
            self._demand_trust(model, path, body)
        except PromptUnavailable as error:
            if not self._renders.may_help(model, error.reason):
                raise
        else:
            matches.timings_ms.update(render=timed.render_ms, tokenize=timed.tokenize_ms)
            return timed.prompt
        matches.is_own_prompt = False
        left_s = limits.MATCH_S_MAX - limits.LOOKUP_S - (monotonic() - begun)
        try:
            return await self._renders.prompt(model, path, body, left_s)
        finally:
            matches.timings_ms["render"] = (monotonic() - begun) * 1e3


def _chains(
    served: Served, prompt: Prompt, sizes: Iterable[int], matches: _Matches
) -> list[list[BlockHash]]:
    """Hash the prompt once per block size that its endpoints have."""
    tokens = prompt.sequences[0]
    extras = [(prompt.cache_salt,)] if prompt.cache_salt else []
    chains = []
    for size in sizes:
        hashes = chain(root_hash(served.model, size, served.adapter), tokens, size, extras)
        matches.blocks[size] = len(hashes)
        # An engine computes at least the last token, so a prompt never hits in full.
        chains.append(hashes[: max(0, len(tokens) - 1) // size])
        matches.chains[size] = chains[-1]
    return chains


def _launch(decision: Decision, judged: Judged, *, is_silent: bool) -> Launch:
    """Say what a request will do at an endpoint."""
    size = judged.endpoint.block_size or 0
    held = judged.predicted_blocks
    # It computes what neither the endpoint nor the prompts before it in the queue have.
    tokens = max(0, decision.work.prompt_tokens - held * size)
    chain = decision.chain if size == decision.block_size else ()
    session = decision.ground.request.session.number
    return Launch(0, judged.endpoint.name, tokens, is_silent, sketch_of(chain, held), session)


_Predicted = Mapping[EndpointName, int]


def _predicted(board: Board, matches: _Matches, now_s: float) -> _Predicted:
    """Tell how many blocks of the prompt endpoints are about to hold."""
    if matches.fallback == CACHE_UNREAD:
        return {}
    # What is on its way is known also where the index is not.
    found = [board.predicted(chain, now_s) for chain in matches.chains.values()]
    return found[0] if len(found) == 1 else {k: v for each in found for k, v in each.items()}


def _candidate(endpoint: Endpoint, matches: _Matches, predicted: _Predicted) -> Candidate:
    match = matches.by_endpoint.get(endpoint.name)
    size = endpoint.block_size or 0
    tokens = int(match.weighted_blocks * size) if match else 0
    soon = max(tokens, predicted.get(endpoint.name, 0) * size)
    return Candidate(endpoint.name, tokens, soon, endpoint, endpoint.labels)


def _judged(
    endpoint: Endpoint,
    matches: _Matches,
    predicted: _Predicted,
    verdict: Sequence[Any],
) -> Judged:
    score, terms = verdict
    match = matches.by_endpoint.get(endpoint.name)
    soon = predicted.get(endpoint.name, 0)
    if match is None:
        return Judged(endpoint, 0, 0, soon, None, score, terms)
    tokens = match.blocks * (endpoint.block_size or 0)
    epoch = match.epochs[endpoint.name]
    return Judged(endpoint, match.blocks, tokens, max(soon, match.blocks), epoch, score, terms)
