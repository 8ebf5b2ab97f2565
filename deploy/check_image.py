"""Build the image with buildah and run a fleet in it, without Docker (make check-image).

The base is a minimal Debian made by debootstrap and kept in .cache/. An engine, an indexer and a
router run from the image as its user, against a private redis-server on loopback; a chat request
goes through. Needs root, buildah and debootstrap; buildah's `chroot` isolation shares the host's
network, so every port is a free one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from deploy.chroot_fleet import (
    IMAGE,
    ROOT,
    UID,
    CheckFailed,
    await_ready,
    check_chat,
    check_user,
    container,
    inside,
    run,
    say,
    service,
    write_config,
)
from kvatlas.cli.redis_server import running_redis

SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
CACHE = ROOT / ".cache" / f"base-{SUITE}"
BASE = "localhost/kvatlas-base:check"
BUILD_S = 900


def require_tools() -> None:
    """Refuse early, with everything that is missing.

    Raises:
        CheckFailed: it cannot work here.
    """
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing:
        raise CheckFailed(f"needs {' and '.join(missing)} (apt-get install {' '.join(missing)})")
    if os.geteuid() != 0:
        raise CheckFailed("needs root: debootstrap and chroot do")


def forget_former() -> None:
    """Remove what a former check built; the last image stays, to be looked at."""
    named = run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").split()
    for image in (IMAGE, BASE):
        if image in named:
            run("buildah", "rmi", image)


def make_base() -> None:
    """Make the base image, from a file system that is bootstrapped once."""
    archive = CACHE.with_suffix(".tar")
    if not archive.exists():
        say(f"bootstrapping {SUITE} into {archive.relative_to(ROOT)}")
        archive.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kva-base-") as folder:
            tree = f"{folder}/tree"
            run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, tree,
                timeout_s=BUILD_S)  # fmt: skip
            # Downloaded packages and the builder's own name server do not belong into a base.
            run("tar", "-C", tree, "--numeric-owner", "--exclude=./var/cache/apt/*",
                "--exclude=./var/lib/apt/lists/*", "--exclude=./etc/resolv.conf",
                "--exclude=./dev/*", "-cf", f"{archive}.part", ".")  # fmt: skip
        Path(f"{archive}.part").rename(archive)
    container = run("buildah", "from", "scratch")
    try:
        run("buildah", "add", container, str(archive), "/")
        run("buildah", "commit", "--quiet", container, BASE, timeout_s=300)
    finally:
        run("buildah", "rm", container)


def pip_volumes(folder: Path) -> list[str]:
    """Let pip in the build reach packages as it does here, with nothing of it in the image."""
    listed = run(sys.executable, "-m", "pip", "config", "list")
    settings = dict(
        re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
    )
    config = folder / "pip.conf"
    config.write_text(
        "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()),
        encoding="utf-8",
    )
    config.chmod(0o600)
    paths = {
        Path(urlsplit(word).path)
        for value in settings.values()
        for word in value.split()
        if word.startswith(("/", "file:///"))
    }
    # The folder that an index of files lies in: its pages link to files beside it.
    roots = {path.parent if path.name == "simple" else path for path in paths if path.exists()}
    return [f"{config}:/etc/pip.conf:ro", *(f"{root}:{root}:ro" for root in sorted(roots))]


def build() -> None:
    """Build the image from the Dockerfile."""
    with tempfile.TemporaryDirectory(prefix="kva-pip-") as folder:
        volumes = [f"--volume={volume}" for volume in pip_volumes(Path(folder))]
        run("buildah", "bud", "--isolation", "chroot", "--layers=false", "--pull-never",
            "--build-arg", f"BASE={BASE}", *volumes, "--tag", IMAGE, ".",
            timeout_s=BUILD_S)  # fmt: skip


def check_metadata() -> None:
    """See that the image says what Kubernetes and compose rely on.

    Raises:
        CheckFailed: it does not.
    """
    config = json.loads(run("buildah", "inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    if config.get("User") != f"{UID}:{UID}":
        raise CheckFailed(f"the image's user is {config.get('User')!r}")
    if config.get("Entrypoint") != ["/opt/kvatlas/bin/kvatlas"]:
        raise CheckFailed(f"the image's entry point is {config.get('Entrypoint')!r}")


def check_fleet(name: str, folder: Path, redis_url: str) -> None:
    """Run engine, indexer and router in the image and use them."""
    urls = write_config(folder / "config.json", redis_url)
    with contextlib.ExitStack() as stack:
        for role in ("engine", "indexer", "router"):
            process = stack.enter_context(service(name, role, folder))
            await_ready(role, urls[role], process, folder / f"{role}.log")
            check_user(role, process)
            say(f"the {role} is ready, as uid {UID}")
        check_chat(urls["chat"])


def check() -> None:
    """Do all of it."""
    require_tools()
    forget_former()
    make_base()
    say(f"building {IMAGE}")
    build()
    check_metadata()
    with container() as name:
        # The image's entry point by hand: `buildah run` does not use it.
        if "Usage" not in run(*inside(name, "/opt/kvatlas/bin/kvatlas", "--help")):
            raise CheckFailed("kvatlas --help shows no usage")
        with tempfile.TemporaryDirectory(prefix="kva-") as temporary:
            folder = Path(temporary)
            (folder / "redis").mkdir()
            with running_redis(folder / "redis", tcp=True) as redis:
                check_fleet(name, folder, redis.url)


def main() -> int:
    """Check the image; the exit status is 1 when it fails."""
    start = time.monotonic()
    try:
        check()
    except CheckFailed as error:
        print(f"check-image: FAILED: {error}", file=sys.stderr)
        return 1
    say(f"passed in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
