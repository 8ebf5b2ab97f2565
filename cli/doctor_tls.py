"""When the certificates expire that a configuration names, for `kvatlas doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import time

from kvatlas.cli.doctor_facts import CertificateFound
from kvatlas.common.certificate import read_validity
from kvatlas.common.settings import Settings
from kvatlas.common.tls_engines import EngineIdentities


def certificates(settings: Settings, identities: EngineIdentities) -> list[CertificateFound]:
    """List the certificates that can be read here; those of services may be elsewhere."""
    now_s = time()
    ends = [(each.setting, each.made.not_after_s) for each in identities.credentials()]
    ends += [(setting, _not_after_s(path)) for setting, path in _shown(settings)]
    return [CertificateFound(setting, end - now_s) for setting, end in ends if end is not None]


def _shown(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Go through the certificates that our services show."""
    for setting, tls in (
        ("router.tls", settings.router.tls),
        ("router.admin_tls", settings.router.admin_tls),
        ("indexer.admin_tls", settings.indexer.admin_tls),
    ):
        if tls is not None:
            yield setting, tls.cert_file


def _not_after_s(path: Path) -> float | None:
    try:
        return read_validity(path.read_bytes()).not_after_s
    except (OSError, ValueError):
        return None
