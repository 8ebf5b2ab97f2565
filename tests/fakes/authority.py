"""Certificates for tests, made on the spot."""

from __future__ import annotations

import subprocess
from pathlib import Path

LOCALHOST = "subjectAltName=IP:127.0.0.1"
CLIENT = "extendedKeyUsage=clientAuth"


class Authority:
    """A CA, with certificates for a server and for a client."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ca = folder / f"{name}-ca.crt"
        self._key = folder / f"{name}-ca.key"
        self._folder, self._name = folder, name
        subject = ("-subj", f"/CN={name} CA", "-days", "2")
        openssl("req", "-x509", *EC, "-keyout", self._key, "-out", self.ca, *subject)

    def issue(self, owner: str, extension: str, days: int = 2) -> tuple[Path, Path]:
        """Make a certificate and its key; with negative days one that has expired."""
        base = self._folder / f"{self._name}-{owner}"
        request, key, made = (base.with_suffix(end) for end in (".csr", ".key", ".crt"))
        extensions = base.with_suffix(".ext")
        extensions.write_text(extension)
        openssl("req", *EC, "-keyout", key, "-out", request, "-subj", f"/CN={owner}")
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key),
            *("-CAcreateserial", "-days", str(days), "-extfile", extensions, "-out", made),
        )
        return made, key


EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*words: str | Path) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *words], check=True, capture_output=True)
