"""`kvatlas inspect`: what the index holds per endpoint, per model, for one prompt or block."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from kvatlas.cli.index_reader import IndexReader, ModelIndex
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.errors import ConfigError, HttpError, KvatlasError, PromptUnavailable
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.common.keyspace import Holder
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, Prompt, PromptBuilder
from kvatlas.common.settings import ModelSettings, Settings
from kvatlas.router.served_names import ServedNames


class InspectError(KvatlasError):
    """What was asked for cannot be told."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to look at beyond the endpoints.

    Attributes:
        model: only this model; None for all.
        prompt: text of a request body, or None.
        block: a block hash as 16 hex digits, or None.
    """

    model: str | None = None
    prompt: str | None = None
    block: str | None = None


@dataclass(frozen=True, slots=True)
class EndpointMatch:
    """How much of a prompt one endpoint holds.

    Attributes:
        blocks: leading blocks, of the endpoint's own size.
        tokens: the same in tokens.
        weighted_tokens: the same, weighed by the tiers that they are in.
    """

    blocks: int
    tokens: int
    weighted_tokens: float


NO_MATCH = EndpointMatch(0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class PromptMatch:
    """Who holds how much of a prompt.

    Attributes:
        blocks: full blocks of the prompt, by block size.
        matches: per endpoint; who holds none is absent.
    """

    model: str
    prompt_tokens: int
    blocks: Mapping[int, int]
    matches: Mapping[EndpointName, EndpointMatch]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was read.

    Attributes:
        block_holders: None when no block was asked for.
    """

    models: Sequence[ModelIndex]
    prompt: PromptMatch | None
    block_holders: Sequence[Holder] | None


def find(settings: Settings, question: Question) -> Findings:
    """Read the index.

    Args:
        settings: where Redis is; for a prompt also the model and its tokenizer.
        question: what to look at.

    Raises:
        ConfigError: the question does not fit the configuration.
        InspectError: the index does not know enough to answer.
        IndexUnavailable: Redis did not answer.
    """
    block = _block_hash(question.block) if question.block else None
    body = _body(question.prompt) if question.prompt is not None else None

    async def read() -> Findings:
        weights = {model.model: model.tier_weights.by_tier() for model in settings.models}
        reader = IndexReader(settings.redis, weights)
        try:
            models = await reader.models(question.model)
            return Findings(
                models,
                await _match(reader, settings, models, body, question.model)
                if body is not None
                else None,
                None
                if block is None
                else [one for m in models for one in await reader.holders(m, block)],
            )
        finally:
            await reader.aclose()

    return asyncio.run(read())


def _block_hash(text: str) -> BlockHash:
    if not re.fullmatch(r"[0-9a-fA-F]{16}", text):
        raise ConfigError([f"--block {text!r}: a block hash has 16 hex digits"])
    return BlockHash(int(text, 16))


def _body(text: str) -> dict[str, Any]:
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError([f"--prompt: is not JSON: {error}"]) from None
    if not isinstance(body, dict):
        raise ConfigError(["--prompt: is not a JSON object"])
    return body


async def _match(
    reader: IndexReader,
    settings: Settings,
    models: Sequence[ModelIndex],
    body: dict[str, Any],
    only: str | None,
) -> PromptMatch:
    model, adapter = _model_of(settings, body, only)
    index = next((one for one in models if one.model == model.name), None)
    if index is None:
        raise InspectError(f"the index knows no model {model.name!r}")
    sizes = index.block_sizes or ([model.block_size] if model.block_size else [])
    if not sizes:
        raise InspectError(f"no block size is known for {model.name!r} yet")
    prompt = prompt_of(model, body)
    tokens = len(prompt.sequences[0])
    blocks, matches = {}, {}
    for size in sizes:
        hashes = prompt_hashes(model, size, prompt, adapter)
        blocks[size] = len(hashes)
        for name, match in (await reader.match(index, hashes)).items():
            weighted = round(match.weighted_blocks * size, 1)
            matches[name] = EndpointMatch(match.blocks, match.blocks * size, weighted)
    return PromptMatch(model.name, tokens, blocks, matches)


def _model_of(
    settings: Settings, body: Mapping[str, Any], only: str | None
) -> tuple[ModelSettings, str | None]:
    """Find the model that a body names, or the only one there is; and the adapter, if it is one.

    Which adapters engines have loaded is not known here: a name that the configuration does not
    know is taken for one of the model that `--model` names.
    """
    names = [model.name for model in settings.models]
    name = body.get("model", names[0] if len(names) == 1 else None)
    if isinstance(name, str):
        served = ServedNames(settings.models).find(name)
        if served is not None:
            return settings.model_named(served.model), served.adapter
        if only in names:
            return settings.model_named(str(only)), name
    configured = ", ".join(names)
    raise ConfigError(
        [f"--prompt: model is not one of the configured: {configured}; of an adapter, give --model"]
    )


def prompt_of(model: ModelSettings, body: Mapping[str, Any]) -> Prompt:
    """Make the token ids of a request body as the router does.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
        InspectError: the body makes no prompt here.
    """
    builder = PromptBuilder.load(model)
    path = CHAT_PATH if "messages" in body else COMPLETIONS_PATH
    try:
        return builder.tokenize(builder.prepare(path, body))
    except PromptUnavailable as error:
        raise InspectError(f"no token ids for this body: {error.reason}") from None
    except HttpError as error:
        raise InspectError(f"the body is refused: {error.message}") from None


def prompt_hashes(
    model: ModelSettings, block_size: int, prompt: Prompt, adapter: str | None = None
) -> list[BlockHash]:
    """Hash the full blocks of a prompt as the router does."""
    extras = [(prompt.cache_salt,)] if prompt.cache_salt else []
    root = root_hash(model.model, block_size, adapter)
    return chain(root, prompt.sequences[0], block_size, extras)


def as_json(findings: Findings) -> bytes:
    """Write everything as JSON."""
    return orjson.dumps(asdict(findings), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)


def show(console: Console, findings: Findings) -> None:
    """Print everything for people."""
    if not findings.models:
        console.print("the index knows no such model; has an indexer run?")
    else:
        console.print(models_table(findings.models))
    for model in findings.models:
        console.print(endpoints_table(model, time.time()))
        if model.gauges:
            console.print(gauges_table(model))
    if findings.prompt is not None:
        console.print(prompt_table(findings.prompt, findings.models))
    if findings.block_holders is not None:
        lines = [holder.to_text() for holder in findings.block_holders] or ["nobody holds it"]
        console.print("holders of the block:", *lines, sep="\n", markup=False)


def models_table(models: Sequence[ModelIndex]) -> Table:
    """Sum up, a row per model."""
    table = Table(title="models")
    table.add_column("model")
    for head in ("shards", "endpoints", "block size", "blocks"):
        table.add_column(head, justify="right")
    for model in models:
        blocks = sum(one.blocks for one in model.endpoints)
        size = ", ".join(map(str, model.block_sizes)) or "?"
        row = (str(model.shards), str(len(model.endpoints)), size, f"{blocks:,}")
        table.add_row(model.model, *row)
    return table


def endpoints_table(model: ModelIndex, now_s: float) -> Table:
    """List a model's endpoints; ages are told from `now_s`, Unix seconds."""
    table = Table(title=f"endpoints of {model.model}")
    table.add_column("endpoint", no_wrap=True)
    for head in ("shard", "epoch", "seq", "blocks"):
        table.add_column(head, justify="right")
    table.add_column("epoch began")
    table.add_column("newest event", justify="right")
    table.add_column("lag", justify="right")
    table.add_column("followed")
    table.add_column("by")
    table.add_column("pools")
    for one in model.endpoints:
        table.add_row(
            one.name,
            str(one.shard),
            str(one.epoch),
            str(one.seq),
            f"{one.blocks:,}",
            f"{one.reason}, {age(one.since_s, now_s)}",
            age(one.event_s, now_s),
            f"{one.lag_s * 1e3:.0f} ms",
            f"not indexed: {one.unmatched}" if one.unmatched else one.phase or "?",
            one.owner or "nobody",
            " ".join(one.pools),
        )
    return table


def gauges_table(model: ModelIndex) -> Table:
    """List what indexers tell of the engines' load, and how old it is."""
    table = Table(title=f"gauges of {model.model}")
    table.add_column("endpoint", no_wrap=True)
    for head in ("running", "waiting", "cache in use", "blocks", "seen"):
        table.add_column(head, justify="right")
    table.add_column("adapters")
    for one in model.gauges:
        usage = (f"{one.running:g}", f"{one.waiting:g}", f"{one.kv_usage:.0%}")
        blocks = f"{one.blocks:,}" if one.blocks else "?"
        told = (*usage, blocks) if one.is_up else ("away", "", "", "")
        seen = f"{one.age_s:.1f} s ago" + (", stale" if one.is_stale else "")
        table.add_row(one.name, *told, seen, " ".join(one.adapters))
    return table


def prompt_table(match: PromptMatch, models: Sequence[ModelIndex]) -> Table:
    """List who holds how much of a prompt, the longest first."""
    sizes = ", ".join(f"{count} full blocks of {size}" for size, count in match.blocks.items())
    table = Table(title=f"prompt for {match.model}: {match.prompt_tokens} tokens, {sizes}")
    table.add_column("endpoint", no_wrap=True)
    for head in ("match blocks", "match tokens", "weighed by tier"):
        table.add_column(head, justify="right")
    names = [one.name for m in models if m.model == match.model for one in m.endpoints]
    held = {name: match.matches.get(name, NO_MATCH) for name in names}
    for name, one in sorted(held.items(), key=lambda item: -item[1].tokens):
        table.add_row(name, str(one.blocks), str(one.tokens), f"{one.weighted_tokens:g}")
    return table


def age(then_s: float, now_s: float) -> str:
    """Write how long ago something was, roughly; both in Unix seconds, 0 for never."""
    if not then_s:
        return "never"
    seconds = max(0.0, now_s - then_s)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.1f} s ago"
