"""What `kvatlas doctor` thinks of an engine's answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvatlas.cli.doctor_facts import FAULT, OK, WARN, EngineFound, Finding
from kvatlas.router.probe import TokenizerCheck


def judge_engine(engine: EngineFound) -> Iterator[Finding]:
    """Judge an engine: does it answer, with which model, tokens and cache."""
    where = engine.names[0]
    if engine.silence is not None:
        yield Finding(
            FAULT,
            where,
            "reachable",
            f"The engine does not answer ({engine.silence}).",
            "Start it, or correct its url in endpoints.",
        )
        return
    version = ".".join(map(str, engine.version)) if engine.version else "unknown"
    yield Finding(OK, where, "reachable", f"The engine answers, version {version}.")
    yield _model(engine)
    if engine.models is not None and not engine.models.serves:
        return
    yield _tokenizer(where, engine.tokenizer or TokenizerCheck(why="absent"))
    if engine.tells_cached is False:
        yield Finding(
            WARN,
            where,
            "cached_tokens",
            "The engine does not report cached_tokens, so no prediction can be checked.",
            "Start it with --enable-prompt-tokens-details.",
        )
    elif engine.tells_cached:
        yield Finding(OK, where, "cached_tokens", "The engine reports cached_tokens.")
    for rank, name in enumerate(engine.names):
        yield from _cache(name, engine, engine.caches.get(rank))


def _model(engine: EngineFound) -> Finding:
    where = engine.names[0]
    if engine.models is None:
        return Finding(
            WARN,
            where,
            "model",
            "The engine does not list its models.",
            "See that api_key_file holds its key.",
        )
    if not engine.models.serves:
        return Finding(
            FAULT,
            where,
            "model",
            f"The engine does not serve {engine.model}: it gets no requests.",
            "Correct endpoints[].model, or start it with --served-model-name.",
        )
    count = len(engine.models.adapters)
    beside = f" and {count} adapters" if count else ""
    return Finding(OK, where, "model", f"The engine serves {engine.model}{beside}.")


def _tokenizer(where: str, check: TokenizerCheck) -> Finding:
    if check.verdict == "agrees":
        return Finding(
            OK, where, "tokenizer", f"Its token ids are ours on {check.answered} probes."
        )
    if check.verdict == "unasked":
        return Finding(
            WARN,
            where,
            "tokenizer",
            f"The engine cannot be asked for token ids ({check.why}); its matches count unproven.",
            "Let routers reach its /tokenize.",
        )
    count = f"{len(check.differing)} of {check.answered} probes"
    if "text" in check.kinds:
        return Finding(
            FAULT,
            where,
            "tokenizer",
            f"Its token ids differ on {count}: all requests of the model go by load.",
            "Give routers the engine's own tokenizer, exported with its transformers "
            "(docs/OPERATIONS.md), or set render_url.",
        )
    return Finding(
        FAULT,
        where,
        "tokenizer",
        f"Its chats differ on {count}, its texts do not: all requests of the model go by load.",
        "Set chat_template to the engine's template, or set render_url.",
    )


def _cache(name: str, engine: EngineFound, cache: Mapping[str, str] | None) -> Iterator[Finding]:
    if cache is None:
        yield Finding(
            WARN,
            name,
            "cache",
            "The engine's metrics do not tell how its cache is set up.",
            "Let routers reach its /metrics, and set block_size.",
        )
        return
    if cache.get("enable_prefix_caching", "True") != "True":
        yield Finding(
            FAULT,
            name,
            "cache",
            "Prefix caching is off: the engine caches nothing and sends no events.",
            "Start it with --enable-prefix-caching.",
        )
        return
    size = block_size_of(cache)
    algorithm = cache.get("prefix_caching_hash_algo", "unknown")
    if engine.block_size is not None and size not in (None, engine.block_size):
        yield Finding(
            FAULT,
            name,
            "block_size",
            f"Its blocks have {size} tokens, configured are {engine.block_size}: nothing matches.",
            "Leave block_size out, so that it is learned, or start the engine with --block-size.",
        )
    else:
        yield Finding(
            OK,
            name,
            "block_size",
            # Blocks are hashed here from their tokens, so its hashes and their seed may be any.
            f"Its blocks have {size or 'untold'} tokens, hashed with {algorithm}, which may be "
            "any; so may PYTHONHASHSEED.",
        )


def block_size_of(cache: Mapping[str, str]) -> int | None:
    """Read the tokens per block that hashes are made for."""
    for label in ("hash_block_size", "block_size"):
        text = cache.get(label, "")
        if text.isascii() and text.isdigit() and 0 < len(text) < 9:
            return int(text)
    return None
