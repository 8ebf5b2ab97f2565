"""TLS to Redis: only a server that our CA vouches for is spoken to."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kvatlas.common.errors import ConfigError, IndexUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.indexer.store import IndexStore
from tests.fakes.authority import Authority
from tests.fakes.redis_servers import Server, free_port, plain_options, redis7

MODELS = {ModelName("m"): 1}


@dataclass(frozen=True)
class Keys:
    """A CA that is trusted, and what it vouches for."""

    folder: Path
    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    """Make a CA; the server's certificate is for 127.0.0.1, not for localhost."""
    with tempfile.TemporaryDirectory(prefix="kva-") as name:
        ours = Authority(Path(name), "ours")
        server = ours.issue("server", "subjectAltName=IP:127.0.0.1")
        yield Keys(Path(name), ours.ca, server, ours.issue("client", "extendedKeyUsage=clientAuth"))


@asynccontextmanager
async def terminated(redis_url: str, keys: Keys, *, asks: bool) -> AsyncIterator[int]:
    """Put TLS before a Redis on a unix socket; give the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(keys.ca))
    context.load_cert_chain(*keys.server)
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(urlsplit(redis_url).path)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.05)  # the pumps see that their clients have left


async def written(url: str, **more: Any) -> str:
    """Write through TLS; say how that went."""
    store = IndexStore.connect(RedisSettings(url=url, **more))
    try:
        await store.prepare(MODELS)
    except IndexUnavailable as error:
        return error.reason
    finally:
        await store.aclose()
    return "done"


async def check(port: int, keys: Keys, *, asks: bool) -> None:
    """Reach a server through TLS in right and wrong ways."""
    url = f"rediss://127.0.0.1:{port}/0"
    shown = {"cert_file": keys.client[0], "key_file": keys.client[1]}
    assert await written(url, ca_file=keys.ca, **shown) == "done"
    assert await written(url, ca_file=keys.ca) == ("connection" if asks else "done")
    stranger = Authority(keys.folder, "stranger").ca
    assert await written(url, ca_file=stranger, **shown) == "connection"
    assert await written(url, **shown) == "connection", "the system's CAs do not know it"
    assert await written(f"rediss://localhost:{port}/0", ca_file=keys.ca, **shown) == "connection"
    assert await written(f"redis://127.0.0.1:{port}/0") != "done"


@pytest.mark.parametrize("asks", [True, False])
async def test_tls_with_any_redis(redis_url: str, keys: Keys, asks: bool) -> None:  # noqa: FBT001
    """A server of another CA, of another name or without TLS is not spoken to."""
    async with terminated(redis_url, keys, asks=asks) as port:
        await check(port, keys, asks=asks)


async def test_tls_of_redis_itself(keys: Keys) -> None:
    """The same with a Redis that does TLS, and asks for our certificate."""
    port = free_port()
    cert, key = map(str, keys.server)
    options = [
        *(*plain_options(), "--tls-port", str(port), "--tls-cert-file", cert),
        *("--tls-key-file", key, "--tls-ca-cert-file", str(keys.ca)),
        *("--tls-auth-clients", "yes"),
    ]
    server = Server(keys.folder / "redis", options, redis7())
    try:
        server.start()
    except AssertionError as error:
        if "TLS support" in str(error):
            pytest.skip("this redis-server was built without TLS")
        raise
    try:
        await check(port, keys, asks=True)
    finally:
        server.kill()


def test_files_that_are_not_there_are_faults_of_the_configuration() -> None:
    """Each is named, with its setting."""
    missing = Path("/no/such/file")
    settings = RedisSettings(
        url="rediss://127.0.0.1:1/0", ca_file=missing, password_file=missing, user="u"
    )
    with pytest.raises(ConfigError) as caught:
        IndexStore.connect(settings)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "redis.password_file",
        "redis.ca_file",
    ]
