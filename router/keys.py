"""API keys: who a client is, by the hash of the key that it shows. Pure.

The file that says so holds no key, only SHA-256 of keys: whoever reads it can show none. A key is
found by its digest, so how long that takes tells nothing of the keys that there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.setting_sections import ModelId

KEY_HEADERS: Final = frozenset({"authorization", "x-api-key"})
"""Where clients show their key: OpenAI's SDKs in the first, Anthropic's in the second."""

_BEARER: Final = "bearer"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


Rate = Annotated[int, Field(ge=0, le=limits.RATE_MAX)]
EveryOther = Literal["*"]
EVERY_OTHER: Final = "*"
"""Stands for tenants that have no limits of their own."""


class KeyEntry(BaseModel):
    """One key of the file.

    Attributes:
        hash: SHA-256 of the key, in hex.
        tenant: whose it is.
        enabled: false keeps the entry and refuses the key.
        models: names that it may ask for; all where it is left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)

    hash: Hash = Field(repr=False)
    tenant: TenantName
    enabled: bool = True
    models: Annotated[list[ModelId], Field(max_length=limits.MODELS_MAX)] | None = None


class Rates(BaseModel):
    """What a tenant may use per minute; 0 for as much as it likes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)

    requests_per_minute: Rate = 0
    tokens_per_minute: Rate = 0


Entries = Annotated[list[KeyEntry], Field(max_length=limits.API_KEYS_MAX)]
RatesByTenant = Annotated[
    dict[TenantName | EveryOther, Rates], Field(max_length=limits.API_KEYS_MAX)
]


class KeyFile(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)

    keys: Entries
    limits: RatesByTenant = {}

    def rates_of(self, tenant: str) -> Rates | None:
        """Give a tenant's limits: its own, else everybody else's; None for no limit."""
        rates = self.limits.get(tenant, self.limits.get(EVERY_OTHER))
        return None if rates == Rates() else rates


@dataclass(frozen=True, slots=True)
class Client:
    """Who sent a request.

    Attributes:
        tenant: whose key it showed.
        is_enabled: whether the key may be used.
        models: names that it may ask for; None for all.
        rates: what its tenant may use; None for as much as it likes.
    """

    tenant: str
    is_enabled: bool = True
    models: frozenset[str] | None = None
    rates: Rates | None = None

    def may_ask_for(self, model: str) -> bool:
        """Tell whether the key is good for a name that a client may give as `model`."""
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are known, by their digest."""

    clients: Mapping[bytes, Client] = field(default_factory=dict, repr=False)

    def find(self, key: str) -> Client | None:
        """Give whose key it is; None for one that is not known.

        Cost: 1 us along with `shown_key`, whoever's it is.
        """
        if len(key) > limits.API_KEY_CHARS_MAX:
            return None
        return self.clients.get(_digest(key))


def hash_key(key: str) -> str:
    """Give what stands in the file for a key."""
    return _digest(key).hex()


def _digest(key: str) -> bytes:
    # Headers that are no UTF-8 arrive with surrogates in them.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def shown_key(headers: Mapping[str, str]) -> str | None:
    """Find the key that a client shows: a bearer token, else `x-api-key`.

    Args:
        headers: any spelling finds a name.
    """
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == _BEARER and (token := token.strip()):
        return token
    return headers.get("x-api-key") or None


def read_keys(text: bytes) -> KeyRing:
    """Read the file.

    Args:
        text: YAML, or JSON: `keys`, a list of entries, and `limits` by tenant.

    Raises:
        ConfigError: with every fault, none of which repeats what the file says.
    """
    if len(text) > limits.API_KEYS_BYTES_MAX:
        raise ConfigError([f"is over {limits.API_KEYS_BYTES_MAX} bytes"])
    try:
        content: Any = yaml.load(text, _LOADER)  # noqa: S506 - a safe loader, in C where there is one
        file = KeyFile.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise ConfigError(["is not YAML"]) from None
    except ValidationError as error:
        raise ConfigError(_faults(error)) from None
    clients: dict[bytes, Client] = {}
    for number, entry in enumerate(file.keys):
        digest = bytes.fromhex(entry.hash)
        if digest in clients:
            raise ConfigError([f"keys.{number}: its hash is there twice"])
        models = None if entry.models is None else frozenset(entry.models)
        clients[digest] = Client(entry.tenant, entry.enabled, models, file.rates_of(entry.tenant))
    return KeyRing(clients)


def _faults(error: ValidationError) -> list[str]:
    """Name what is at fault; what stands there may be a key that was not hashed."""
    known = {*KeyFile.model_fields, *KeyEntry.model_fields, *Rates.model_fields}
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        ".".join(str(part) for part in fault["loc"] if isinstance(part, int) or part in known)
        + f": {fault['type']}"
        for fault in faults[: limits.API_KEY_FAULTS_MAX]
    ]
