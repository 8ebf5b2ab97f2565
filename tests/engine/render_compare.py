"""Does kvatlas see the prompt that vLLM sees? Random requests to both, for many kinds of models.

    python -m tests.engine.render_compare --vllm PATH [--requests N] [--seed S] [--models a,b]

For each model folder of `models.py` a real `vllm launch render` is started, one after the other.
A request that it accepts must get its token ids, or a fallback with a reason; one that it refuses
must get a fallback. Exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
from rich.console import Console
from rich.table import Table

from kvatlas.cli.processes import free_port
from kvatlas.common.errors import KvatlasError, PromptUnavailable
from kvatlas.common.prompt import PromptBuilder
from kvatlas.common.settings import ModelSettings
from tests.engine.fleet import await_ok, child, vllm_environment
from tests.engine.models import MAX_MODEL_LEN, MODELS, Model
from tests.engine.random_requests import Request, Requests

OUT = Console()
REQUESTS = 500
SEED = 20_261_125
START_S = 240.0
DIFFERENCES_SHOWN = 5
BODY_CHARS_SHOWN = 2_000
FALLBACK_SHARE_MAX = 0.05
"""Of the requests that vLLM accepts. The generator draws far more odd ones than clients send."""


@dataclass(slots=True)
class Tally:
    """What was seen of one model."""

    accepted: int = 0
    equal: int = 0
    refused: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, request: Request, theirs: list[list[int]] | None, ours: Any) -> None:
        """Compare: lists of ids, or None (theirs) and a reason (ours) where there are none."""
        if theirs is None:
            self.refused += 1
            if not isinstance(ours, str):
                self.wrong.append(f"ids for what vLLM refuses: {_shown(request)}")
            return
        self.accepted += 1
        if isinstance(ours, str):
            self.fallbacks[ours] += 1
        elif ours == theirs:
            self.equal += 1
        else:
            self.wrong.append(f"other ids: {_shown(request)}\n  vLLM {theirs}\n  ours {ours}")


def main() -> int:
    """Compare all models, print a table, and give the exit code."""
    options = _options()
    models = [model for model in MODELS if model.name in options.models]
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="kva-render-") as scratch:
        folder = Path(scratch)
        for model in models:
            model.write(folder / model.name)
        _export(options.vllm, [folder / model.name for model in models])
        for model in models:
            tallies[model.name] = _compare(model, folder / model.name, options)
    OUT.print(_table(tallies))
    return _verdict(tallies)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True, type=Path, help="the command of vLLM")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="per model")
    parser.add_argument("--seed", type=int, default=SEED)
    names = [model.name for model in MODELS]
    parser.add_argument("--models", type=lambda text: text.split(","), default=names)
    options = parser.parse_args()
    unknown = set(options.models) - set(names)
    if unknown:
        parser.error(f"no such models: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


def _export(vllm: Path, folders: list[Path]) -> None:
    script = Path(__file__).with_name("export_tokenizers.py")
    command = [str(vllm.parent / "python"), str(script), *map(str, folders)]
    subprocess.run(command, check=True, env=vllm_environment(), capture_output=True)


def _compare(model: Model, folder: Path, options: argparse.Namespace) -> Tally:
    started = time.monotonic()
    settings = ModelSettings(
        name="m", tokenizer=str(folder), max_model_len=MAX_MODEL_LEN, **model.settings
    )
    builder = PromptBuilder.load(settings)
    requests = Requests(random.Random(f"{options.seed} {model.name}"), MAX_MODEL_LEN)
    tally = Tally()
    with _render_server(options.vllm, folder, model.flags) as client:
        for _ in range(options.requests):
            request = requests.draw()
            raw = json.dumps(request.body, ensure_ascii=False).encode()
            tally.add(request, _theirs(client, request.path, raw), _ours(builder, request, raw))
    took = time.monotonic() - started
    OUT.print(f"{model.name}: {options.requests} requests, {took:.0f} s")
    return tally


@contextmanager
def _render_server(vllm: Path, folder: Path, flags: tuple[str, ...]) -> Iterator[httpx2.Client]:
    port = free_port()
    command = [
        *(str(vllm), "launch", "render", str(folder), "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", *flags),
    ]
    log = folder.with_suffix(".log")
    url = f"http://127.0.0.1:{port}"
    with child(command, log, vllm_environment()) as server:
        try:
            await_ok(f"{url}/health", server, START_S)
        except RuntimeError:
            OUT.print(log.read_text(errors="replace")[-4_000:], markup=False)
            raise
        with httpx2.Client(base_url=url, timeout=30.0) as client:
            yield client


def _theirs(client: httpx2.Client, path: str, raw: bytes) -> list[list[int]] | None:
    headers = {"content-type": "application/json"}
    answer = client.post(f"{path}/render", content=raw, headers=headers)
    if answer.status_code != 200:
        return None
    content = answer.json()
    return [one["token_ids"] for one in (content if isinstance(content, list) else [content])]


def _ours(builder: PromptBuilder, request: Request, raw: bytes) -> list[list[int]] | str:
    try:
        rendered = builder.prepare(request.path, orjson.loads(raw))
        return [list(ids) for ids in builder.tokenize(rendered).sequences]
    except PromptUnavailable as error:
        return error.reason
    except KvatlasError:
        return "invalid_request"


def _shown(request: Request) -> str:
    body = json.dumps(request.body, ensure_ascii=False)
    return f"{request.path} {body[:BODY_CHARS_SHOWN]}"


def _table(tallies: dict[str, Tally]) -> Table:
    table = Table("model", "accepted", "equal", "fallbacks", "refused by vLLM", "wrong")
    for name, tally in tallies.items():
        reasons = ", ".join(f"{why} {count}" for why, count in tally.fallbacks.most_common())
        share = sum(tally.fallbacks.values()) / max(tally.accepted, 1)
        table.add_row(
            name,
            str(tally.accepted),
            str(tally.equal),
            f"{share:.1%} ({reasons or 'none'})",
            str(tally.refused),
            str(len(tally.wrong)),
        )
    return table


def _verdict(tallies: dict[str, Tally]) -> int:
    wrong = [f"{name}: {what}" for name, tally in tallies.items() for what in tally.wrong]
    accepted = sum(tally.accepted for tally in tallies.values())
    fallbacks = sum(sum(tally.fallbacks.values()) for tally in tallies.values())
    share = fallbacks / max(accepted, 1)
    OUT.print(f"{accepted} accepted, {share:.1%} of them by load, {len(wrong)} differences")
    for what in wrong[:DIFFERENCES_SHOWN]:
        OUT.print(what, markup=False)
    return int(bool(wrong) or accepted == 0 or share > FALLBACK_SHARE_MAX)


if __name__ == "__main__":
    sys.exit(main())
