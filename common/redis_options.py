"""What every connection to Redis is made with: timeouts, TLS, user and password.

redis-py's defaults wait for minutes, retry ten times and tell the server about themselves; here
every option is said. Passwords are read from their files for each connection, so that they can
be changed without a restart, and stand in no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.setting_sections import RedisSettings

CLIENT_NAME = "kvatlas"

Node = tuple[str, int]
"""Host and port of a Redis server."""

Options = dict[str, Any]
"""Keyword arguments of a redis-py connection."""


@dataclass(frozen=True, slots=True)
class Login(CredentialProvider):
    """A user and where its password is.

    Attributes:
        user: None for the server's default user.
        file: read for each connection; without it `password` counts.
    """

    user: str | None = None
    file: Path | None = None
    password: str | None = field(default=None, repr=False)

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Give (user, password), or (password,) for the default user."""
        password = self.password or ""
        if self.file is not None:
            with self.file.open(encoding="utf-8") as file:
                password = file.read(limits.REDIS_PASSWORD_BYTES_MAX).strip()
        return (self.user, password) if self.user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Give the same; the file is a short one."""
        return self.get_credentials()


def connection_options(settings: RedisSettings, *, timeout_s: float) -> Options:
    """Give the options of a connection to a Redis server, but for its address.

    Args:
        settings: where Redis is, and as whom to log in.
        timeout_s: for one reply.

    Raises:
        ConfigError: a file that the settings name cannot be read.
    """
    url = parse_url(settings.url)
    _check_files(settings)
    options = _bare(timeout_s) | {"db": url.get("db", 0)}
    login = Login(
        settings.user or url.get("username"),
        settings.password_file,
        None if settings.user or settings.password_file else url.get("password"),
    )
    if login != Login():
        options["credential_provider"] = login
    if "connection_class" in url:
        options["connection_class"] = url["connection_class"]
    if options.get("connection_class") is SSLConnection:
        options |= _tls(settings)
    return options


def sentinel_options(settings: RedisSettings) -> Options:
    """Give the options of a connection to a sentinel, but for its address."""
    options = _bare(limits.REDIS_CONNECT_S)
    if settings.sentinel_password_file is not None:
        login = Login(settings.sentinel_user, settings.sentinel_password_file)
        options["credential_provider"] = login
    if settings.url.startswith("rediss:"):
        options |= {"ssl": True, **_tls(settings)}
    return options


def address(settings: RedisSettings) -> Options:
    """Give the address in the URL as options: host and port, or path."""
    url = parse_url(settings.url)
    if "path" in url:
        return {"path": url["path"]}
    return {"host": url.get("host", "localhost"), "port": url.get("port", 6379)}


def seeds(settings: RedisSettings) -> list[Node]:
    """List the nodes of a cluster that the settings name."""
    url = address(settings)
    return [(url["host"], url["port"]), *map(node_of, settings.nodes)]


def node_of(text: str) -> Node:
    """Read `host:port`, `[::1]:port`."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _bare(timeout_s: float) -> Options:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": limits.REDIS_CONNECT_S,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "health_check_interval": 0,
        "decode_responses": False,
        "client_name": CLIENT_NAME,
        "driver_info": None,
        "protocol": 2,
    }


def _tls(settings: RedisSettings) -> Options:
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": _text(settings.ca_file),
        "ssl_certfile": _text(settings.cert_file),
        "ssl_keyfile": _text(settings.key_file),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _check_files(settings: RedisSettings) -> None:
    """Say at once which files are missing; each connection needs them."""
    faults = []
    for name in ("password_file", "sentinel_password_file", "ca_file", "cert_file", "key_file"):
        path: Path | None = getattr(settings, name)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            faults.append(f"redis.{name}: {path}: {error.strerror}")
    if faults:
        raise ConfigError(faults)
