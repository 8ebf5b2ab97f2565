"""Ids of responses that tell which endpoint keeps them, so that no router need remember. Pure.

Only the endpoint that made a response can go on from it. vLLM takes the id of a response from the
request, so the router gives it one with the endpoint's token in it, and finds the endpoint in the
`previous_response_id` of a later request, whichever router that comes to. As with sessions, an id
only ever selects among the candidates, and tells no address.
Source: vLLM 0.32, entrypoints/openai/responses (ResponsesRequest.request_id).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from kvatlas.common.errors import InvalidRequest
from kvatlas.common.ids import EndpointName
from kvatlas.router.sessions import token_of

MEMBER: Final = "request_id"
PREVIOUS: Final = "previous_response_id"
_BEGIN: Final = "resp_"


class _Named(Protocol):
    @property
    def name(self) -> EndpointName:
        """Give the endpoint's name."""


E = TypeVar("E", bound=_Named)


def new_id(endpoint: EndpointName, random_hex: str) -> str:
    """Make the id of a response that an endpoint is going to make."""
    return f"{_BEGIN}{token_of(endpoint)}{random_hex}"


def able(body: Mapping[str, Any], candidates: Sequence[E]) -> Sequence[E]:
    """Choose those candidates that can go on from what a request refers to.

    Raises:
        InvalidRequest: none of them made it. The client's.
    """
    previous = body.get(PREVIOUS)
    if previous is None:
        return candidates
    if not isinstance(previous, str):
        raise InvalidRequest(f"{PREVIOUS} is not a string", PREVIOUS)
    made = [each for each in candidates if previous.startswith(_BEGIN + token_of(each.name))]
    if not made:
        raise InvalidRequest("no endpoint of this model keeps the previous response", PREVIOUS)
    return made
