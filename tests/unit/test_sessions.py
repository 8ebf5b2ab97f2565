"""Which conversation a request belongs to, and what that may decide."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from multidict import CIMultiDict
from pydantic import ValidationError

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName
from kvatlas.common.settings import RouterSettings, SessionSettings
from kvatlas.router.flights import Launch
from kvatlas.router.sessions import (
    NO_SESSION,
    Session,
    answer_headers,
    read,
    resolve,
    token_of,
)

HERE, THERE = EndpointName("10.0.0.1:8000"), EndpointName("10.0.0.2:8000#1")
BOTH = [HERE, THERE]
ALL_ON = SessionSettings(
    header="x-session-token", cookie="kvatlas", id_headers=["x-session-id", "session_id"]
)


@dataclass
class Board:
    """A board that knows some conversations."""

    known: dict[int, EndpointName] = field(default_factory=dict)

    def session_endpoint(self, session: int) -> EndpointName | None:
        """Tell where one was."""
        return self.known.get(session)


def headers(**given: str) -> CIMultiDict[str]:
    """Make headers as the server has them; `_` stands for `-`."""
    return CIMultiDict({name.replace("_", "-"): value for name, value in given.items()})


def test_nothing_is_read_unless_it_is_switched_on() -> None:
    """Expect no session by default, whatever the headers say."""
    sent = headers(x_session_token=token_of(HERE), x_session_id="a", cookie="kvatlas=b")
    assert read(RouterSettings().session, sent) is NO_SESSION
    assert resolve(NO_SESSION, BOTH, Board()) is None
    assert answer_headers(SessionSettings(), HERE) == []


def test_a_token_leads_back_to_its_endpoint_and_nowhere_else() -> None:
    """Expect the endpoint while it is a candidate, and nobody for what is no token of one."""
    (sent,) = answer_headers(SessionSettings(header="x-session-token"), THERE)
    session = read(ALL_ON, CIMultiDict([sent]))
    assert resolve(session, BOTH, Board()) == THERE
    assert resolve(session, [HERE], Board()) is None
    for forged in (THERE, "10.0.0.2:8000", token_of(THERE).upper(), "", "0" * 16, "x" * 9_999):
        session = read(ALL_ON, headers(X_Session_Token=forged))
        assert resolve(session, BOTH, Board()) is None


def test_only_what_is_configured_is_read() -> None:
    """Expect neither cookie nor id where only the header counts."""
    only = SessionSettings(header="x-session-token")
    sent = headers(cookie=f"kvatlas={token_of(HERE)}", x_session_id="a")
    assert read(only, sent) == NO_SESSION
    assert resolve(read(only, sent), BOTH, Board()) is None


def test_a_token_tells_no_address() -> None:
    """Expect sixteen hexadecimal digits that differ from endpoint to endpoint."""
    assert re.fullmatch("[0-9a-f]{16}", token_of(HERE))
    assert len({token_of(EndpointName(f"10.0.0.{i}:8000")) for i in range(250)}) == 250


def test_a_cookie_does_the_same() -> None:
    """Expect it to be set for the whole site, out of scripts' reach, and to be found again."""
    (sent,) = answer_headers(SessionSettings(cookie="kvatlas"), THERE)
    assert sent == ("Set-Cookie", f"kvatlas={token_of(THERE)}; Path=/; HttpOnly; SameSite=Lax")
    cookie = f"a=b; kvatlas={token_of(THERE)};c"
    assert resolve(read(ALL_ON, headers(Cookie=cookie)), BOTH, Board()) == THERE
    assert read(ALL_ON, headers(Cookie="xkvatlas=1; b")).token is None
    long = "a=b; " * limits.COOKIES_CHARS_MAX + cookie
    assert read(ALL_ON, headers(Cookie=long)).token is None


def test_the_header_counts_more_than_the_cookie() -> None:
    """Expect the token of the header where both are sent, the cookie's where it is empty."""
    cookie = f"kvatlas={token_of(HERE)}"
    sent = headers(x_session_token=token_of(THERE), cookie=cookie)
    assert read(ALL_ON, sent).token == token_of(THERE)
    assert read(ALL_ON, headers(x_session_token="", cookie=cookie)).token == token_of(HERE)


def test_an_id_is_known_by_its_digest() -> None:
    """Expect 64 bits that are the same in every router, differ between ids, and fit a launch."""
    first = read(ALL_ON, headers(x_session_id="abc"))
    assert first == Session(None, first.number)
    assert first.number is not None
    assert 0 <= first.number < 2**64
    assert read(ALL_ON, headers(X_SESSION_ID="abc")) == first
    assert read(ALL_ON, headers(x_session_id="abd")) != first
    assert read(ALL_ON, headers(x_session_id="\udcff")).number is not None
    assert Launch(1, HERE, 1, session=first.number).session == first.number


def test_the_first_header_that_is_there_names_the_conversation() -> None:
    """Expect the order of the configuration to count, and empty values not to."""
    other = CIMultiDict({"session_id": "b", "x-session-id": ""})
    assert read(ALL_ON, other).number == read(ALL_ON, CIMultiDict({"session_id": "b"})).number
    both = CIMultiDict({"session_id": "b", "x-session-id": "a"})
    assert read(ALL_ON, both).number == read(ALL_ON, headers(x_session_id="a")).number


def test_an_id_leads_to_where_its_conversation_was() -> None:
    """Expect what the board says, if that is a candidate."""
    session = read(ALL_ON, headers(x_session_id="abc"))
    assert session.number is not None
    board = Board({session.number: THERE})
    assert resolve(session, BOTH, board) == THERE
    assert resolve(session, [HERE], board) is None
    assert resolve(session, BOTH, Board()) is None


def test_a_token_counts_more_than_an_id() -> None:
    """Expect the token's endpoint, and the id's where the token's is gone."""
    session = Session(token_of(HERE), 7)
    board = Board({7: THERE})
    assert resolve(session, BOTH, board) == HERE
    assert resolve(session, [THERE], board) == THERE


@pytest.mark.parametrize(
    "wrong",
    [
        {"header": "two words"},
        {"header": ""},
        {"header": "Authorization"},
        {"cookie": "a=b"},
        {"id_headers": ["x-api-key"]},
        {"id_headers": ["a:b"]},
        {"id_headers": ["a"] * 9},
        {"ids": []},
    ],
)
def test_headers_that_cannot_be_used_are_faults(wrong: dict[str, object]) -> None:
    """Expect names that are none, hold keys, or are too many to be refused at the start."""
    with pytest.raises(ValidationError):
        SessionSettings.model_validate(wrong)


def test_settings_show_what_is_on() -> None:
    """Expect nothing but what differs from the default."""
    assert str(SessionSettings()) == "{}"
    assert str(SessionSettings(header="a")) == "{header: a}"
