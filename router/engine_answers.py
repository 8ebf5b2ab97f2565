"""What engines say of themselves, read from JSON that is trusted with nothing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from kvatlas.common import limits

TOKEN_ID_END: Final = 2**32
_VERSION_PARTS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class ServedModels:
    """What `/v1/models` lists.

    Attributes:
        serves: whether the model in question is one of them.
        adapters: LoRA adapters whose parent it is.
        max_model_len: of the model, if it is told.
        adapters_left_out: adapters beyond the bound.
    """

    serves: bool
    adapters: frozenset[str] = frozenset()
    max_model_len: int | None = None
    adapters_left_out: int = 0


def read_json(content: bytes) -> Any:
    """Read JSON; None where it is none."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def read_version(content: bytes) -> tuple[int, ...] | None:
    """Read the answer of `/version`: the numbers at its start, `0.32.0+cpu` is (0, 32, 0)."""
    answer = read_json(content)
    text = answer.get("version") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        return None
    numbers: list[int] = []
    for part in text.split("+")[0].split(".")[:_VERSION_PARTS_MAX]:
        if not (part.isascii() and part.isdigit() and len(part) < 9):
            break
        numbers.append(int(part))
    return tuple(numbers) or None


def read_models(content: bytes, model: str) -> ServedModels | None:
    """Read the answer of `/v1/models`; None where it is no list of models."""
    answer = read_json(content)
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list):
        return None
    cards = [card for card in cards if isinstance(card, dict) and _is_name(card.get("id"))]
    # One engine may list its model under several names, and adapters under any of them.
    roots = {card["id"] for card in cards if card.get("parent") is None}
    own = next((card for card in cards if card["id"] == model), None)
    length = own.get("max_model_len") if own else None
    names = sorted(card["id"] for card in cards if own and card.get("parent") in roots)
    kept = frozenset(names[: limits.ADAPTERS_PER_ENDPOINT_MAX])
    return ServedModels(
        serves=own is not None,
        adapters=kept,
        max_model_len=length if type(length) is int and length > 0 else None,
        adapters_left_out=len(names) - len(kept),
    )


def read_token_ids(content: bytes) -> list[int] | None:
    """Read the answer of `/tokenize`; None where it holds no token ids."""
    answer = read_json(content)
    return token_ids_of(answer.get("tokens")) if isinstance(answer, dict) else None


def token_ids_of(value: Any) -> list[int] | None:
    """Give a list of token ids back if it is one."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        return None
    if value and not (min(value) >= 0 and max(value) < TOKEN_ID_END):
        return None
    return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= limits.MODEL_NAME_CHARS_MAX
