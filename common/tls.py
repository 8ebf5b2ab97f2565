"""Who we are and whom we trust over TLS, from files that may change while we run.

From every change a whole new context is made, so that what was taken out is out, and a key that
does not fit breaks nothing. Connections that stand keep what they were made with.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Final, Literal

from kvatlas.common import limits
from kvatlas.common.certificate import read_validity
from kvatlas.common.errors import ConfigError
from kvatlas.common.log import logger
from kvatlas.common.metrics import Gauge, gauge
from kvatlas.common.reload import WatchedFile
from kvatlas.common.tls_settings import ListenTls

_LOG = logger("tls")

Side = Literal["server", "client"]
HTTP_1: Final = ("http/1.1",)
HTTP_2: Final = ("h2",)
"""What is spoken (ALPN)."""
_OF_THE_CERTIFICATE: Final = frozenset({"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"})
_OF_ANOTHER: Final = frozenset({
    "KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED",
})  # fmt: skip
"""Reasons of OpenSSL: the numbers differ, or already the kinds of the keys."""

CERTIFICATES_GOOD: Final = gauge(
    "tls_certificates_good",
    "setting",
    "0 or 1",
    "0 when the files of a TLS setting cannot be used as they stand (`tls.refused`): the former"
    " ones count.",
    "0: mend the files; the log names the one",
)
NOT_AFTER: Final = gauge(
    "tls_not_after_seconds",
    "setting",
    "seconds since 1970",
    "When the certificate of a TLS setting expires, of those in force.",
    "renew it: it is read again without a restart ([OPERATIONS.md](OPERATIONS.md), TLS)",
)


class TlsGauges:
    """Where it is told how certificates are; by default nowhere.

    Args:
        good: of CERTIFICATES_GOOD.
        not_after: of NOT_AFTER.
    """

    def __init__(self, good: Gauge | None = None, not_after: Gauge | None = None) -> None:
        self._good, self._not_after = good, not_after

    def tell(self, setting: str, not_after_s: float | None) -> None:
        """Say that files are in force, and until when their certificate is good."""
        if self._good is not None:
            self._good.labels(setting).set(1)
        if self._not_after is not None and not_after_s is not None:
            self._not_after.labels(setting).set(not_after_s)

    def refused(self, setting: str) -> None:
        """Say that changed files cannot be used."""
        if self._good is not None:
            self._good.labels(setting).set(0)

    def forget(self, setting: str) -> None:
        """Say nothing more of a setting that is gone."""
        for each in (self._good, self._not_after):
            if each is not None:
                each.remove(setting)


@dataclass(frozen=True, slots=True)
class Made:
    """What files came to.

    Attributes:
        context: for new connections.
        not_after_s: when the certificate expires, since 1970; None without one.
        trusted: the CAs that are trusted; None for those of the system, or nobody.
    """

    context: ssl.SSLContext
    not_after_s: float | None
    trusted: bytes | None


class Credentials:
    """A context for one side of connections, made again when its files change.

    Args:
        setting: whose files they are, such as "router.tls".
        side: that we are.
        files: of `ListenTls` or `EndpointTls`.
        gauges: told of it.
        alpn: what is spoken.

    Attributes:
        made: of the newest files that could be used.

    Raises:
        ConfigError: the operator's: the files cannot be used; nothing of a key is in it.
    """

    def __init__(
        self,
        setting: str,
        side: Side,
        files: Mapping[str, Path],
        gauges: TlsGauges,
        alpn: Sequence[str] = HTTP_1,
    ) -> None:
        self.setting = setting
        self._side: Side = side
        self._files = files
        self._gauges = gauges
        self._alpn = alpn
        # Before they are read: what changes meanwhile is seen at the next look.
        self._watched = [WatchedFile(path) for path in files.values()]
        self.made = self._make()

    def announce(self) -> None:
        """Tell the gauges that these are in force."""
        self._gauges.tell(self.setting, self.made.not_after_s)

    def silence(self) -> None:
        """Tell nothing more: others have come in their place."""
        self._gauges = TlsGauges()

    def look(self) -> None:
        """Take over files that have changed; such that cannot be used change nothing."""
        if not [each for each in self._watched if each.changed() is not None]:
            return
        try:
            self.made = self._make()
        except ConfigError as error:
            self._gauges.refused(self.setting)
            _LOG.error("tls.refused", faults=error.faults)
            return
        self.announce()
        _LOG.info("tls.reloaded", setting=self.setting)

    def _make(self) -> Made:
        is_server = self._side == "server"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(self._alpn)
        trusted = self._trust(context)
        not_after_s = self._show(context) if "cert_file" in self._files else None
        return Made(context, not_after_s, trusted)

    def _trust(self, context: ssl.SSLContext) -> bytes | None:
        """Load the CAs that peers must show certificates of."""
        name = "client_ca_file" if self._side == "server" else "ca_file"
        path = self._files.get(name)
        if path is None:
            if self._side == "client":
                context.load_default_certs()
            return None
        trusted = self._read(name)
        try:
            context.load_verify_locations(cadata=trusted.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):
            raise self._fault(name, "holds no CA certificates in PEM") from None
        if self._side == "server":
            context.verify_mode = ssl.CERT_REQUIRED
            # A session is resumed without a look at the client's certificate.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return trusted

    def _show(self, context: ssl.SSLContext) -> float:
        """Load our certificate and its key; give when it expires."""
        cert, _ = self._read("cert_file"), self._read("key_file")
        try:
            validity = read_validity(cert)
        except ValueError:
            raise self._fault("cert_file", "holds no certificate in PEM") from None
        if validity.not_after_s <= time():
            raise self._fault("cert_file", "is expired")
        if validity.not_before_s > time():
            raise self._fault("cert_file", "is not valid yet")
        try:
            # Without a function for it, OpenSSL asks the terminal for the passphrase, and waits.
            context.load_cert_chain(
                self._files["cert_file"], self._files["key_file"], password=_no_passphrase
            )
        except _KeyIsEncryptedError:
            raise self._fault("key_file", "is encrypted; it is read without a passphrase") from None
        except ssl.SSLError as error:
            raise self._pair_fault(error.reason) from None
        except OSError as error:
            raise self._fault("key_file", str(error.strerror)) from None
        return validity.not_after_s

    def _pair_fault(self, reason: str | None) -> ConfigError:
        """Say what OpenSSL does not like about a certificate and a key."""
        if reason in _OF_THE_CERTIFICATE:
            return self._fault("cert_file", f"is too weak ({reason})")
        if reason in _OF_ANOTHER:
            return self._fault("key_file", "is not the key of cert_file")
        return self._fault("key_file", "holds no private key in PEM that can be read")

    def _read(self, name: str) -> bytes:
        try:
            return self._files[name].read_bytes()
        except OSError as error:
            raise self._fault(name, str(error.strerror)) from None

    def _fault(self, name: str, what: str) -> ConfigError:
        return ConfigError([f"{self.setting}.{name}: {self._files[name]}: {what}"])


class _KeyIsEncryptedError(Exception):
    """OpenSSL asked for a passphrase."""


def _no_passphrase() -> str:
    raise _KeyIsEncryptedError


async def watch(credentials: Callable[[], Iterable[Credentials]]) -> None:
    """Follow the files, for ever.

    Args:
        credentials: gives whose files.
    """
    while True:
        await asyncio.sleep(limits.TLS_LOOK_S)
        await asyncio.to_thread(_look, list(credentials()))


def _look(credentials: list[Credentials]) -> None:
    for each in credentials:
        each.look()


def listen_credentials(
    setting: str, tls: ListenTls | None, gauges: TlsGauges, alpn: Sequence[str] = HTTP_1
) -> Credentials | None:
    """Make what a port of ours shows; None where it speaks HTTP.

    Raises:
        ConfigError: the files cannot be used.
    """
    if tls is None:
        return None
    credentials = Credentials(setting, "server", tls.files(), gauges, alpn)
    credentials.announce()
    return credentials


def port_context(credentials: Credentials | None) -> ssl.SSLContext | None:
    """Give the context of a port, which hands each connection to the newest; None for HTTP."""
    if credentials is None:
        return None
    first = credentials.made

    def newest(
        connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        # TLS 1.2 resumes sessions without a look at the client's certificate, and they are kept
        # with the first context: who was let in by a CA that is gone must not come back so.
        if connection.session_reused and credentials.made.trusted != first.trusted:
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        connection.context = credentials.made.context
        return None

    # Called for every hello of a client, with or without a name in it.
    first.context.sni_callback = newest
    return first.context
