"""Where the API server is, and how we show it who we are: in a pod, or by a kubeconfig file."""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.discovery_settings import KubernetesSettings
from kvatlas.common.errors import KubernetesUnavailable

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its own token, the cluster's CA and the name of its namespace."""
_HOST, _PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a TLS context is made of; another content makes another context.

    Attributes:
        ca: certificates in PEM, None for those of the system.
        cert_file, key_file: to show who we are.
        cert, key: their contents.
        is_checked: False where the file says that no certificate is to be checked.
    """

    ca: bytes | None = None
    cert_file: str | None = None
    key_file: str | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    is_checked: bool = True

    def context(self) -> ssl.SSLContext:
        """Make the context.

        Raises:
            OSError, ValueError: the files cannot be used; `ssl.SSLError` is an OSError.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.is_checked:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cadata=self.ca.decode("ascii", "ignore"))
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """How requests are made.

    Attributes:
        url: of the API server, without a slash at its end.
        namespace: our own.
        authorization: value of that header.
        tls: None for http://.
        server_name: that its certificate must be for, instead of the host in the URL.
        proxy: URL of one on the way.
    """

    url: str
    namespace: str
    authorization: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    server_name: str | None = None
    proxy: str | None = None


async def find_access(
    settings: KubernetesSettings,
    account: Path = SERVICE_ACCOUNT,
    environment: Mapping[str, str] = os.environ,
) -> ApiAccess:
    """Read how the API server is reached, anew each time: tokens are renewed, files replaced.

    Raises:
        KubernetesUnavailable: with reason "credentials"; we are not in a pod, or a file is at
            fault.
    """
    if settings.kubeconfig is None:
        return await asyncio.to_thread(_of_pod, account, environment)
    return await _of_kubeconfig(settings.kubeconfig, settings.context)


def _of_pod(account: Path, environment: Mapping[str, str]) -> ApiAccess:
    host, port = environment.get(_HOST), environment.get(_PORT)
    if not host or not port:
        raise _at_fault(f"{_HOST} is not set: not in a pod, and kubernetes.kubeconfig is not given")
    token = _read(account / "token").strip()
    if not token:
        raise _at_fault(f"{account / 'token'} is empty")
    return ApiAccess(
        url=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=_read(account / "namespace").strip().decode("utf-8", "replace") or "default",
        authorization=f"Bearer {token.decode('ascii', 'replace')}",
        tls=TlsFiles(ca=_read(account / "ca.crt")),
    )


async def _of_kubeconfig(path: Path, context: str | None) -> ApiAccess:
    _read(path)
    # It imports its classes for every type of the API: nothing for the loop to wait for.
    library: Any = await asyncio.to_thread(importlib.import_module, "kubernetes_asyncio")
    found = library.client.Configuration()
    try:
        loader = await library.config.load_kube_config(
            config_file=str(path), context=context, client_configuration=found, persist_config=False
        )
        return _configured(found, loader.current_context)
    except library.config.ConfigException as error:
        raise _at_fault(f"{path}: {error}") from None
    except KubernetesUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - of strangers' plugins and files: anything
        raise _at_fault(f"{path}: {type(error).__name__}") from None


def _configured(found: Any, context: Mapping[str, Any]) -> ApiAccess:
    url = str(found.host).rstrip("/")
    tls = None
    if url.startswith("https:"):
        cert, key = found.cert_file, found.key_file
        tls = TlsFiles(
            ca=_read(Path(found.ssl_ca_cert)) if found.ssl_ca_cert else None,
            cert_file=cert,
            key_file=key,
            cert=_read(Path(cert)) if cert else None,
            key=_read(Path(key)) if key else None,
            is_checked=bool(found.verify_ssl),
        )
    return ApiAccess(
        url=url,
        namespace=context.get("context", {}).get("namespace") or "default",
        authorization=found.api_key.get("BearerToken"),
        tls=tls,
        server_name=found.tls_server_name,
        proxy=found.proxy,
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.KUBE_FILE_BYTES_MAX)
    except OSError as error:
        raise _at_fault(f"{path}: {error.strerror}") from None


def _at_fault(what: str) -> KubernetesUnavailable:
    return KubernetesUnavailable("credentials", what)
