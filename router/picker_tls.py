"""Who the picker is over TLS: files that may change, or a certificate that it signs itself."""

from __future__ import annotations

import datetime as dt
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kvatlas.common.errors import ConfigError
from kvatlas.common.tls import Credentials

SETTING: Final = "picker.tls"
_VALID_DAYS: Final = 3_650
_NAME: Final = "kvatlas-picker"


def server_credentials(files: Credentials | None) -> grpc.ServerCredentials:
    """Give what the gateways' port shows; new connections see files that have changed.

    Args:
        files: that are checked, and followed; None to sign a certificate ourselves, for gateways
            that ask for TLS but check nothing, as llm-d's do.
    """
    if files is None:
        return grpc.ssl_server_credentials([_self_signed()])
    seen = files.made

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        if files.made is seen:
            return None
        try:
            found = _configuration(files)
        except ConfigError:
            # Changed again, for the worse: `files` will say so.
            return None
        seen = files.made
        return found

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files),
        changed,  # type: ignore[arg-type]  # None for no change, as gRPC's documentation has it
        require_client_authentication=files.pem("client_ca_file") is not None,
    )


def _configuration(files: Credentials) -> grpc.ServerCertificateConfiguration:
    pair = (files.pem("key_file") or b"", files.pem("cert_file") or b"")
    return grpc.ssl_server_certificate_configuration([pair], files.pem("client_ca_file"))


def _self_signed() -> tuple[bytes, bytes]:
    """Make a key and its certificate, both in PEM; nothing is written to a file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    begun = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begun)
        .not_valid_after(begun + dt.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private, made.public_bytes(serialization.Encoding.PEM)
