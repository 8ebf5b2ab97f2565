"""Requests that generate: a prompt through the scheduler, its answer in the words of an API."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from kvatlas.common.prompt import Prompt
from kvatlas.simulator.answers import Choice, Voice
from kvatlas.simulator.generation import Wish, answer
from kvatlas.simulator.request import Options, answer_tokens_max
from kvatlas.simulator.scheduler import Run, Spec
from kvatlas.simulator.serving import Engine, json_answer


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be generated.

    Attributes:
        adapter: that the client named; None for the model itself.
    """

    prompt: Prompt
    options: Options
    adapter: str | None


async def generate(
    request: web.Request, engine: Engine, wanted: Wanted, voice: Voice
) -> web.StreamResponse:
    """Answer a request. A client that leaves cancels this, and what runs for it.

    Raises:
        InvalidRequest: prompt and answer are longer than the model's context.
    """
    run = engine.scheduler.submit(_specs(engine, wanted))
    try:
        if wanted.options.stream:
            return await _stream(request, run, voice)
        while any(not sequence.finished for sequence in run.sequences):
            await run.progress.get()
        return json_answer(voice.whole(_choices(run)))
    finally:
        engine.scheduler.leave(run)


def _specs(engine: Engine, wanted: Wanted) -> list[Spec]:
    options, specs = wanted.options, []
    for sequence in wanted.prompt.sequences:
        tokens = list(sequence)
        limit = answer_tokens_max(options, tokens, engine.max_model_len)
        for number in range(options.choices):
            wish = Wish(
                index=number,
                limit=limit,
                natural_end=options.max_tokens is None,
                opening=options.chat,
                stop=options.stop,
            )
            said = answer(engine.vocabulary, tokens, wish)
            salt = wanted.prompt.cache_salt
            specs.append(Spec(tokens, salt, said, wanted.adapter, options.announces_hits))
    return specs


async def _stream(request: web.Request, run: Run, voice: Voice) -> web.StreamResponse:
    """Send pieces as tokens come out."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    if opening := voice.opening():
        await response.write(opening)
    sent = [0] * len(run.specs)
    while any(at < len(spec.answer.tokens) for at, spec in zip(sent, run.specs, strict=True)):
        index = await run.progress.get()
        sent[index] += 1
        if piece := voice.token(_choice(run, index, sent[index])):
            await response.write(piece)
    await response.write(voice.ending(_choices(run)))
    await response.write_eof()
    return response


def _choices(run: Run) -> list[Choice]:
    return [_choice(run, index, run.sequences[index].generated) for index in range(len(run.specs))]


def _choice(run: Run, index: int, sent: int) -> Choice:
    sequence, spec = run.sequences[index], run.specs[index]
    return Choice(
        index=index,
        prompt=spec.prompt,
        answer=spec.answer,
        cached_tokens=sequence.cached_tokens or 0,
        sent=sent,
    )
