"""`kvatlas explain`: what a router would decide for a request body, and why."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from rich.console import Console
from rich.table import Table

from kvatlas.common.errors import ConfigError, KvatlasError

TIMEOUT_S: Final = 10.0


class ExplainError(KvatlasError):
    """The router did not explain: it was not reached, or refused the body."""


def ask_router(url: str, path: str, body: str) -> dict[str, Any]:
    """Ask a router's admin port; nothing is sent to an engine.

    Args:
        url: the admin port, as `http://host:port`.
        path: where the body would be sent.
        body: the request body, JSON.

    Raises:
        ConfigError: the URL cannot be used, or the body is not JSON.
        ExplainError: the router was not reached, or refused.
    """
    host, port = _address(url)
    try:
        content = orjson.dumps({"path": path, "body": orjson.loads(body)})
    except orjson.JSONDecodeError as error:
        raise ConfigError([f"the body is not JSON: {error}"]) from None
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/explain", content, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = orjson.loads(reply.read())
    except (OSError, http.client.HTTPException) as error:
        raise ExplainError(f"{url} was not reached: {error}") from None
    except orjson.JSONDecodeError:
        raise ExplainError(f"{url} is not the admin port of a router") from None
    finally:
        connection.close()
    if not isinstance(answer, dict) or "candidates" not in answer:
        fault = answer.get("error") if isinstance(answer, dict) else None
        message = (
            fault.get("message") if isinstance(fault, dict) else "no explanation in the answer"
        )
        raise ExplainError(f"{url} refused with status {reply.status}: {message}")
    return answer


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None:
        raise ConfigError([f"--url {url}: is written http://host:port"])
    return parts.hostname, port


def show(console: Console, answer: Mapping[str, Any]) -> None:
    """Print an explanation for people."""
    console.print(_summary(answer), markup=False, soft_wrap=True)
    console.print(candidates_table(answer["candidates"], answer["endpoint"]))
    timings = "  ".join(f"{name} {ms:.2f}" for name, ms in answer["timings_ms"].items())
    console.print(f"milliseconds: {timings}", markup=False)


def _summary(answer: Mapping[str, Any]) -> str:
    adapter = f" with {answer['adapter']}" if answer.get("adapter") else ""
    name = f"{answer['model']}{adapter}"
    if answer["fallback"]:
        return f"{name}: by load, no match was looked up ({answer['fallback']})"
    by = "" if answer.get("is_own_prompt", True) else ", rendered by the service"
    return (
        f"{name}: {answer['prompt_tokens']} prompt tokens{by}, {answer['blocks']} full "
        f"blocks of {answer['block_size']}"
    )


def candidates_table(candidates: Sequence[Mapping[str, Any]], chosen: str) -> Table:
    """List the candidates, best first, with the terms of their scores."""
    terms = sorted({term for candidate in candidates for term in candidate["scores"]})
    table = Table()
    table.add_column("endpoint", no_wrap=True)
    for head in ("match blocks", "match tokens", "score", *terms):
        table.add_column(head, justify="right")
    for one in sorted(candidates, key=lambda c: (c["endpoint"] != chosen, -c["score"])):
        mark = " (chosen)" if one["endpoint"] == chosen else ""
        table.add_row(
            one["endpoint"] + mark,
            str(one["match_blocks"]),
            str(one["match_tokens"]),
            f"{one['score']:.3f}",
            *(_term(one["scores"].get(term)) for term in terms),
        )
    return table


def _term(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
