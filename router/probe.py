"""Before an engine is believed: does it serve this model, and are its token ids ours?

Each engine is asked when it joins or comes back: `/version`, `/v1/models`, and `/tokenize` for a
dozen small probes. Its list of models is looked at again every few seconds, since adapters come
and go; its token ids only while they differ or could not be had. Until an engine has answered,
its matches count, so that one without `/tokenize` is not worse off for it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import aiohttp

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.engine_client import Asked, Silence, ask
from kvatlas.common.ids import ModelName
from kvatlas.common.log import logger
from kvatlas.common.prompt.probe_set import Kind, Probe
from kvatlas.router.endpoint import Engine, TokenizerVerdict
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.engine_answers import (
    ServedModels,
    read_models,
    read_token_ids,
    read_version,
)
from kvatlas.router.metrics import RouterMetrics

_LOG = logger("probe")

OK: Final = 200
REFUSALS: Final = frozenset({400, 413, 422})
"""The engine will not have such a request at all, so nothing can match wrongly."""
CLOSED: Final = {401: "key", 403: "forbidden", 404: "absent", 405: "absent", 501: "absent"}


@dataclass(frozen=True, slots=True)
class TokenizerCheck:
    """What a round of probes found.

    Attributes:
        answered: probes that got token ids.
        differing: numbers of the probes whose token ids are not ours.
        kinds: what they are: texts (the tokenizer differs), chats (the template does, too).
        why: why no further answers were had, or None: "timeout", "connection", "protocol",
            "key", "forbidden", "absent", "status", "answer".
    """

    answered: int = 0
    differing: tuple[int, ...] = ()
    kinds: frozenset[Kind] = frozenset()
    why: str | None = None

    @property
    def verdict(self) -> TokenizerVerdict:
        """Sum up."""
        if self.differing:
            return "differs"
        return "agrees" if self.answered and self.why is None else "unasked"


async def check_tokenizer(
    session: aiohttp.ClientSession, asked: Asked, probes: Sequence[Probe]
) -> TokenizerCheck:
    """Compare an engine's token ids with ours, one probe after the other."""
    differing: list[int] = []
    answered, why = 0, None
    for number, probe in enumerate(probes):
        try:
            reply = await ask(session, asked, "/tokenize", probe.body)
        except Silence as silence:
            why = silence.why
            break
        if reply.status in REFUSALS:
            continue
        if reply.status != OK:
            why = CLOSED.get(reply.status, "status")
            break
        ids = read_token_ids(reply.content)
        if ids is None:
            why = "answer"
            break
        answered += 1
        if tuple(ids) != probe.token_ids:
            differing.append(number)
    kinds = frozenset(probes[number].kind for number in differing)
    return TokenizerCheck(answered, tuple(differing), kinds, why)


async def ask_version(session: aiohttp.ClientSession, asked: Asked) -> tuple[int, ...] | None:
    """Ask for the version of vLLM; None where it is not told."""
    with suppress(Silence):
        reply = await ask(session, asked, "/version")
        return read_version(reply.content) if reply.status == OK else None
    return None


async def ask_models(
    session: aiohttp.ClientSession, asked: Asked, model: str
) -> ServedModels | None:
    """Ask for the list of models; None where it is not told."""
    with suppress(Silence):
        reply = await ask(session, asked, "/v1/models")
        return read_models(reply.content, model) if reply.status == OK else None
    return None


@dataclass(slots=True)
class _Course:
    """How far the questions to one engine are.

    Attributes:
        lives: of the engine when it was last asked; 0 before.
        attempts: rounds of probes in this life without a verdict.
        due: when the next round of probes is.
        asked: when the last one was.
    """

    lives: int = 0
    attempts: int = 0
    due: float = 0.0
    asked: float = -math.inf


class Prober:
    """Ask all engines, for ever.

    Args:
        session: what they are asked with.
        endpoints: whose engines are asked, and told what was found.
        probes: of each model.
        metrics: told of verdicts.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoints: Endpoints,
        probes: Mapping[ModelName, Sequence[Probe]],
        metrics: RouterMetrics,
    ) -> None:
        self._session = session
        self._endpoints = endpoints
        self._probes = probes
        self._metrics = metrics
        self._slots = asyncio.Semaphore(limits.PROBES_AT_ONCE_MAX)

    def is_settled(self) -> bool:
        """Tell whether every engine that is there has been asked once."""
        there = (engine for engine in self._endpoints.engines() if not engine.is_away)
        return all(engine.is_asked for engine in there)

    async def run(self) -> None:
        """Follow every engine until cancelled, those that come, too."""
        followed: dict[Engine, asyncio.Task[None]] = {}
        changed = self._endpoints.changed
        async with asyncio.TaskGroup() as group:
            while True:
                changed.clear()
                there = list(self._endpoints.engines())
                for engine in followed.keys() - there:
                    followed.pop(engine).cancel()
                for engine in there:
                    if engine not in followed:
                        followed[engine] = group.create_task(self._follow(engine))
                await changed.wait()

    async def _follow(self, engine: Engine) -> None:
        course = _Course()
        while True:
            engine.joined.clear()
            if not engine.is_away:
                async with self._slots:
                    await self._round(engine, course)
                engine.is_asked = True
            # Spread, so that many routers do not ask in step.
            refresh = limits.MODELS_REFRESH_S * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
            pause = min(refresh, max(0.1, course.due - monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await engine.joined.wait()

    async def _round(self, engine: Engine, course: _Course) -> None:
        asked = Asked(engine.url, engine.api_key, tls=engine.tls)
        if engine.lives != course.lives:
            course.lives, course.attempts = engine.lives, 0
            # Several engines may take turns behind one address.
            course.due = course.asked + limits.PROBE_REST_S
            version = await ask_version(self._session, asked)
            self._endpoints.learn(engine, replace(engine.facts, version=version))
        self._note_models(engine, await ask_models(self._session, asked, engine.model))
        if engine.facts.serves is False or monotonic() < course.due:
            return
        check = await check_tokenizer(self._session, asked, self._probes[engine.model])
        course.attempts += 1
        course.asked = monotonic()
        self._note_check(engine, check, is_first=course.attempts == 1)
        course.due = monotonic() + _pause_s(check.verdict, course.attempts)

    def _note_models(self, engine: Engine, models: ServedModels | None) -> None:
        facts = engine.facts
        if models is None:
            self._endpoints.learn(engine, replace(facts, asked=True))
            return
        learned = replace(
            facts,
            asked=True,
            serves=models.serves,
            adapters=models.adapters,
            max_model_len=models.max_model_len,
        )
        self._endpoints.learn(engine, learned)
        if models.serves != facts.serves:
            for endpoint in engine.endpoints:
                self._metrics.serves_model.labels(endpoint.name).set(models.serves)
                if not models.serves:
                    _LOG.error("endpoint.serves_other_model", endpoint=endpoint.name)
        if models.adapters_left_out and models.adapters != facts.adapters:
            left_out = models.adapters_left_out
            _LOG.warning("adapters.left_out", endpoint=engine.endpoints[0].name, count=left_out)

    def _note_check(self, engine: Engine, check: TokenizerCheck, *, is_first: bool) -> None:
        verdict = check.verdict
        # Who was found to differ does so until it has said otherwise.
        if verdict != "unasked" or engine.facts.tokenizer != "differs":
            self._endpoints.note_tokenizer(engine, verdict)
        for endpoint in engine.endpoints:
            name = endpoint.name
            self._metrics.probes.labels(name, verdict).inc()
            if verdict != "unasked":
                self._metrics.tokenizer_agrees.labels(name).set(verdict == "agrees")
        name = engine.endpoints[0].name
        if verdict == "differs":
            # Every round: nothing matches for its model until somebody has mended it.
            _LOG.error(
                "endpoint.tokenizer_differs",
                endpoint=name,
                probes=list(check.differing),
                kinds=sorted(check.kinds),
                answered=check.answered,
            )
        elif verdict == "agrees":
            _LOG.info("endpoint.tokenizer_agreed", endpoint=name, answered=check.answered)
        elif is_first:
            _LOG.warning("endpoint.tokenizer_unasked", endpoint=name, why=check.why)


def _pause_s(verdict: TokenizerVerdict, attempts: int) -> float:
    """Choose when to ask for token ids again."""
    if verdict == "agrees":
        return math.inf
    if verdict == "differs":
        return limits.PROBE_DIFFERS_S
    return limits.PROBE_RETRY_S if attempts < limits.PROBE_ATTEMPTS else limits.PROBE_SLOWLY_S
