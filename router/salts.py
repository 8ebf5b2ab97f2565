"""Keep tenants' caches apart: each has a `cache_salt` of its own that nobody can guess. Pure.

The salt is part of a block's identity, for engines and for the index alike, so no prefix of one
tenant is ever a match, or a cached token, of another's.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

import orjson

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, InvalidRequest
from kvatlas.router.body import ClientBody, add, cut, without

MEMBER: Final = "cache_salt"


class Salts:
    """Salt bodies.

    Args:
        secret: that the salts are made with; the same at all routers, for as long as caches are
            to stay warm.

    Raises:
        ConfigError: it is too short to be a secret.
    """

    def __init__(self, secret: str) -> None:
        if len(secret) < limits.SALT_SECRET_CHARS_MIN:
            least = limits.SALT_SECRET_CHARS_MIN
            raise ConfigError([f"router.tenant_salt_file: is under {least} characters"])
        self._secret = secret.encode()

    def salted(self, body: ClientBody, tenant: str) -> ClientBody:
        """Give a body the salt of its tenant.

        A client's own salt goes into it, so that it still tells caches apart within the tenant.

        Raises:
            InvalidRequest: the client's salt is no text, or of a length that engines refuse.

        Cost: 5 us and a copy of the body, and what `cut` costs where the client brings a salt.
        """
        given = _given(body.fields)
        raw = body.raw
        if MEMBER in body.fields:
            raw = cut(raw, (MEMBER,))
        salt = self.salt(tenant, given)
        fields = {**without(body.fields, (MEMBER,)), MEMBER: salt}
        return ClientBody(add(raw, MEMBER, orjson.dumps(salt)), fields, body.cut)

    def salt(self, tenant: str, given: str | None) -> str:
        """Make the salt of a tenant, and of what a client gave as one: 64 hex digits."""
        # No name of a tenant holds a NUL, so no two pairs read alike.
        message = tenant if given is None else f"{tenant}\0{given}"
        return hmac.new(
            self._secret, message.encode("utf-8", "surrogatepass"), hashlib.sha256
        ).hexdigest()


def _given(fields: Mapping[str, Any]) -> str | None:
    salt = fields.get(MEMBER)
    if salt is None:
        return None
    if not isinstance(salt, str) or not 1 <= len(salt) <= limits.CACHE_SALT_CHARS_MAX:
        most = limits.CACHE_SALT_CHARS_MAX
        raise InvalidRequest(f"{MEMBER} is a text of 1 to {most} characters", MEMBER)
    return salt
