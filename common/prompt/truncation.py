"""How many tokens of a prompt the engine keeps, and which of them."""

from __future__ import annotations

from typing import Literal, get_args

from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.lax import as_int
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.prompt.rendered import Truncation

_Side = Literal["left", "right"]
_INT64_MAX = 2**63 - 1


def truncation_of(
    body: Body, *, max_model_len: int | None, answer_tokens: int | None
) -> Truncation | None:
    """Read the truncation of a request; None where all tokens are kept.

    Args:
        body: its `truncate_prompt_tokens` of -1 stands for what the model takes, less one token
            if an answer is wanted by number.
        max_model_len: tokens that the engine takes at most, or None if unknown.
        answer_tokens: the longest answer asked for, None where the request says nothing.

    Raises:
        PromptUnavailable: the engine would refuse it, or what it keeps is not known here.
    """
    side: _Side | None = body.get("truncation_side")
    if side is not None and side not in get_args(_Side):
        unavailable("refused")
    if body.get("truncate_prompt_tokens") is None:
        return None
    keep = as_int(body["truncate_prompt_tokens"])
    if keep == -1:
        if max_model_len is None:
            unavailable("unsure")
        keep = max_model_len - (1 if answer_tokens else 0)
    if not 0 < keep <= (_INT64_MAX if max_model_len is None else max_model_len):
        unavailable("refused")
    return Truncation(keep, side)
