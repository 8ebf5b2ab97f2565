"""Filling a model folder from the hub: the files of the tokenizer, never the weights.

`HF_ENDPOINT` and `HF_TOKEN` are honoured. Where a folder holds a tokenizer, nothing is fetched.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt.demo import demo_model_path

DEMO: Final = "demo"
"""The tokenizer that is installed with the package, by name; a folder is written `./demo`."""

_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja", "tekken.json",
)  # fmt: skip
_LAST: Final = "tokenizer.json"
_STAGING: Final = ".fetching"
_HUB_ID: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def tokenizer_folder(tokenizer: str, revision: str | None) -> Path:
    """Find the folder of a tokenizer; a hub id's files are fetched unless they are cached.

    The word `demo` names the tokenizer that comes with the package.

    Raises:
        ConfigError: there is no such folder and no such hub id, or the hub does not answer.
    """
    if tokenizer == DEMO:
        return demo_model_path()
    folder = Path(tokenizer)
    if folder.is_dir():
        return folder
    if tokenizer.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(tokenizer):
        raise ConfigError([f"tokenizer: {tokenizer} is no folder"])
    return _snapshot(tokenizer, revision, None, None)


def fetch_tokenizer(
    hub_id: str, revision: str | None, folder: Path, token: str | None = None
) -> bool:
    """Fill a folder with the files of a tokenizer, unless it holds one.

    Args:
        hub_id: as in "owner/name".
        revision: a commit; None takes the hub's default branch, whatever that is today.
        folder: made if it is not there; a fetch that is cut short leaves it unfilled.
        token: for gated models; None reads HF_TOKEN. It is not logged.

    Returns:
        Whether anything was fetched.

    Raises:
        ConfigError: the hub does not answer, or has no such files.
    """
    if (folder / _LAST).is_file():
        return False
    if not _HUB_ID.fullmatch(hub_id):
        raise ConfigError([f"tokenizer: {hub_id} is no hub id"])
    staging = folder / _STAGING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _snapshot(hub_id, revision, staging, token)
        if not (staging / _LAST).is_file():
            raise ConfigError([f"tokenizer: {hub_id} has no {_LAST}"])
        _move_all(staging, folder)
    except OSError as error:
        raise ConfigError([f"{folder}: {error.strerror}"]) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def _move_all(staging: Path, folder: Path) -> None:
    """Move what was fetched into place; what marks the folder as filled comes last."""
    names = [path.name for path in staging.iterdir() if not path.name.startswith(".")]
    for name in sorted(names, key=lambda name: name == _LAST):
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        (staging / name).replace(target)


def _snapshot(hub_id: str, revision: str | None, folder: Path | None, token: str | None) -> Path:
    # Imported here: it takes a third of a second, which a mounted folder need not cost.
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - see above

    try:
        path = snapshot_download(
            hub_id,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(_FILES),
            token=token or os.environ.get("HF_TOKEN") or False,
            # The library reads the variable when it is imported; here it counts when used.
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated kinds
        kind = type(error).__name__
        raise ConfigError([f"tokenizer: {hub_id} cannot be fetched ({kind})"]) from None
    return Path(path)
