"""A real `vllm launch render` as render service: its token ids, through the router's own stage.

The router is given a copy of the model that claims to be rendered by code of the engine, so that
it has to ask. Each answer must be what the plain model renders here, and the probes must agree.
Exits 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from kvatlas.cli.processes import free_port
from kvatlas.common.engine_client import Asked
from kvatlas.common.errors import KvatlasError
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, PromptBuilder
from kvatlas.common.prompt.probe_set import probe_set
from kvatlas.common.settings import ModelSettings, Settings
from kvatlas.common.tls import TlsGauges
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.probe import check_tokenizer
from kvatlas.router.prompts import Prompts
from kvatlas.router.render_service import RenderServices
from tests.engine.fleet import MAX_MODEL_LEN, await_ok, child, vllm_environment

NAME = "tiny"
REQUESTS = 60
START_S = 120.0
TEXT = "block cache 2.0 naïve 東京 <|im_end|>  router 1,000 don't 🙂 {'a': 1}"
WORDS = [*TEXT.split(), "", " ", "\n\n"]


def requests(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Draw requests: chats with and without tools, completions of one or several texts."""
    source = random.Random(seed)

    def text() -> str:
        return " ".join(source.choices(WORDS, k=source.randint(1, 40)))

    tool = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": [2.0]}}}
    for _ in range(REQUESTS):
        sampling = {"temperature": source.random(), "max_tokens": source.randint(1, 9)}
        if source.random() < 0.3:
            prompt: Any = text() if source.random() < 0.5 else [text(), text()]
            yield COMPLETIONS_PATH, {"model": NAME, "prompt": prompt, **sampling}
            continue
        messages = [{"role": "system", "content": text()}] if source.random() < 0.5 else []
        messages.append({"role": "user", "content": text()})
        body: dict[str, Any] = {"model": NAME, "messages": messages, **sampling}
        if source.random() < 0.3:
            body |= {"tools": [tool], "tool_choice": "none"}
        if source.random() < 0.3:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        yield CHAT_PATH, body


def own_renderer(model: Path, folder: Path) -> Path:
    """Copy a model and let it claim that engines render it by code."""
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v32"}))
    return folder


class Comparison:
    """Ask for every request through the router's stages, and hold the answer against ours."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: Path, copy: Path) -> None:
        plain = ModelSettings(name=NAME, tokenizer=str(model), max_model_len=MAX_MODEL_LEN)
        self.builder = PromptBuilder.load(plain)
        self._prompts = Prompts([plain.model_copy(update={"tokenizer": str(copy)})])
        self._services = {
            api: RenderServices(
                [
                    ModelSettings(
                        name=NAME,
                        tokenizer="demo",
                        render_url=url,
                        render_api=api,
                        render_timeout_s=1.0,
                    )
                ],
                session,
                RouterMetrics(),
                EngineIdentities(Settings(), TlsGauges()),
            )
            for api in ("render", "tokenize")
        }
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.ms: list[float] = []

    async def one(self, number: int, path: str, body: dict[str, Any]) -> None:
        """Compare one request by both ways to ask."""
        prompt = self.builder.tokenize(self.builder.prepare(path, body))
        ours = [list(ids) for ids in prompt.sequences]
        for api, stage in self._services.items():
            begun = time.monotonic()
            try:
                found = await stage.prompt(ModelName(NAME), path, body, 1.0)
            except KvatlasError as error:
                self.seen[f"{api}: {error}"] += 1
                continue
            self.ms.append((time.monotonic() - begun) * 1e3)
            self.seen[f"{api}: answered"] += 1
            if [list(ids) for ids in found.sequences] != ours:
                self.wrong.append(f"request {number} by {api}")

    async def why(self, path: str, body: dict[str, Any]) -> str:
        """Tell why the router does not render a request itself."""
        try:
            await self._prompts.token_ids(ModelName(NAME), path, body, 1)
        except KvatlasError as error:
            return str(error)
        return "own"

    def close(self) -> None:
        """End the threads."""
        self._prompts.close()


async def compare(url: str, model: Path, copy: Path) -> list[str]:
    """Run everything; give what is wrong."""
    async with aiohttp.ClientSession() as session:
        comparison = Comparison(session, url, model, copy)
        reasons: Counter[str] = Counter()
        for number, (path, body) in enumerate(requests(seed=7)):
            reasons[await comparison.why(path, body) + path] += 1
            await comparison.one(number, path, body)
        comparison.close()
        probes = probe_set(comparison.builder, NAME)
        check = await check_tokenizer(session, Asked(url, None), probes)
    wrong = list(comparison.wrong)
    if set(reasons) != {f"own_renderer{CHAT_PATH}", f"own{COMPLETIONS_PATH}"}:
        wrong.append(f"why the router asks: {dict(reasons)}")
    if (check.verdict, check.answered) != ("agrees", len(probes)):
        wrong.append(f"probes: {check}")
    expected = {"render: answered", "tokenize: answered", "tokenize: render_unsupported"}
    if set(comparison.seen) != expected or comparison.seen["render: answered"] != REQUESTS:
        wrong.append(f"answers: {dict(comparison.seen)}")
    show(comparison, f"{check.verdict} on {check.answered}")
    return wrong


def show(comparison: Comparison, probes: str) -> None:
    """Print what was seen."""
    table = Table(title="a real vllm launch render")
    table.add_column("what")
    table.add_column("value", justify="right")
    for what, count in sorted(comparison.seen.items()):
        table.add_row(what, str(count))
    table.add_row("other token ids than ours", str(len(comparison.wrong)))
    table.add_row("tokenizer probes", probes)
    table.add_row("median of an answer", f"{statistics.median(comparison.ms):.1f} ms")
    Console(width=100).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the service, compare, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args(arguments)
    port = free_port()
    command = [
        *(options.vllm, "launch", "render", str(options.model), "--served-model-name", NAME),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(MAX_MODEL_LEN)),
    ]
    with tempfile.TemporaryDirectory(prefix="kva-render-") as folder:
        copy = Path(folder, "copy")
        copy.mkdir()
        with child(command, Path(folder, "render.log"), vllm_environment()) as process:
            url = f"http://127.0.0.1:{port}"
            await_ok(f"{url}/health", process, START_S)
            wrong = asyncio.run(compare(url, options.model, own_renderer(options.model, copy)))
    for each in wrong:
        Console(stderr=True).print(f"wrong: {each}", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
