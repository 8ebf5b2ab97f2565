"""The sections of the configuration that say who we are and whom we trust over TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from kvatlas.common import limits
from kvatlas.common.section import STRICT


class ListenTls(BaseModel):
    """TLS on a port of ours.

    Attributes:
        cert_file, key_file: who we are, in PEM: the certificate with those that lead to its CA.
        client_ca_file: CAs whose certificates clients must show; without it they need none.
    """

    model_config = STRICT

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    def files(self) -> dict[str, Path]:
        """Give the files by their settings."""
        named = {"cert_file": self.cert_file, "key_file": self.key_file}
        return named | ({"client_ca_file": self.client_ca_file} if self.client_ca_file else {})


class EndpointTls(BaseModel):
    """TLS to engines.

    Attributes:
        ca_file: whom to trust, in PEM; without it the system's CAs.
        cert_file, key_file: who we are, for engines that ask.
        server_name: that the certificate must be for, instead of the host in the URL.
    """

    model_config = STRICT

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: (
        Annotated[
            str, Field(pattern=r"^[A-Za-z0-9._:-]+$", max_length=limits.TLS_SERVER_NAME_CHARS_MAX)
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _come_in_pairs(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self

    def files(self) -> dict[str, Path]:
        """Give the files by their settings."""
        names = ("ca_file", "cert_file", "key_file")
        return {name: path for name in names if (path := getattr(self, name)) is not None}
