"""Filling a model folder from a hub: a local HTTP server speaks the hub's file endpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt import PromptBuilder, demo_model_path, fetch_tokenizer
from kvatlas.common.settings import ModelSettings

HUB_ID = "acme/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_only_for_this_test"  # noqa: S105 - a made-up token for a made-up hub


@dataclass
class Hub:
    """What the server holds and what it was asked.

    Attributes:
        files: by path, of one repository at one commit.
        asked: path and authorization of every request for the repository.
    """

    files: dict[str, bytes]
    token: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Make the request handler for a hub."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            authorization = self.headers.get("authorization")
            if HUB_ID in path:
                hub.asked.append((path, authorization))
            allowed = hub.token is None or authorization == f"Bearer {hub.token}"
            content = find(path) if allowed else None
            self.send_response(200 if content is not None else 404 if allowed else 401)
            self.send_header("content-length", str(len(content or b"")))
            if content is not None:
                self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("x-repo-commit", COMMIT)
            self.end_headers()
            if with_body and content:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Stay quiet."""

    def find(path: str) -> bytes | None:
        if path == f"/api/models/{HUB_ID}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in hub.files.items()
            ]
            return json.dumps(entries).encode()
        prefix = f"/{HUB_ID}/resolve/{COMMIT}/"
        return hub.files.get(path.removeprefix(prefix)) if path.startswith(prefix) else None

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve a hub on a port of its own and give its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the demo model's files, weights beside them, and point the library there."""
    files = {path.name: path.read_bytes() for path in demo_model_path().iterdir()}
    hub = Hub({**files, "model.safetensors": b"weights"})
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def test_only_the_tokenizers_files_are_fetched(hub: Hub, tmp_path: Path) -> None:
    """The folder then works as a model, and holds neither weights nor left-overs."""
    folder = tmp_path / "model"
    assert fetch_tokenizer(HUB_ID, COMMIT, folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    builder = PromptBuilder.load(ModelSettings(name="m", tokenizer=str(folder)))
    assert builder.encode_text("hello", add_special_tokens=False)
    assert not [path for path, _ in hub.asked if path.endswith("safetensors")]


def test_a_filled_folder_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    """Where there is a tokenizer, nobody asks the hub."""
    (tmp_path / "tokenizer.json").write_text("mine")
    assert not fetch_tokenizer(HUB_ID, COMMIT, tmp_path)
    assert hub.asked == []
    assert (tmp_path / "tokenizer.json").read_text() == "mine"


@pytest.mark.parametrize("by_environment", [True, False])
def test_the_token_opens_gated_models(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_environment: bool
) -> None:
    """It is sent to the hub, whether it comes from the environment or from the caller."""
    hub.token = TOKEN
    if by_environment:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch_tokenizer(HUB_ID, COMMIT, tmp_path, None if by_environment else TOKEN)
    assert {authorization for _, authorization in hub.asked} == {f"Bearer {TOKEN}"}


def test_a_refusal_shows_no_token(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong token is a fault of the configuration; it is in no message and no output."""
    hub.token = "another"  # noqa: S105 - made up as well
    with pytest.raises(ConfigError) as caught:
        fetch_tokenizer(HUB_ID, COMMIT, tmp_path, TOKEN)
    assert HUB_ID in caught.value.faults[0]
    assert TOKEN not in caught.value.faults[0] + "".join(capfd.readouterr())


def test_a_model_without_tokenizer_json(hub: Hub, tmp_path: Path) -> None:
    """It cannot be used here, and the folder does not look filled."""
    del hub.files["tokenizer.json"]
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        fetch_tokenizer(HUB_ID, COMMIT, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_try_fills_the_folder(hub: Hub, tmp_path: Path) -> None:
    """What a broken fetch left behind does not stand in the way."""
    (tmp_path / ".fetching").mkdir()
    (tmp_path / ".fetching" / "tokenizer.json").write_text("half")
    (tmp_path / "chat_template.jinja").mkdir()
    assert fetch_tokenizer(HUB_ID, COMMIT, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == hub.files["tokenizer.json"]
    assert (tmp_path / "chat_template.jinja").is_file()


def test_neither_hub_id_nor_writable_folder(tmp_path: Path) -> None:
    """Both are faults of the configuration."""
    with pytest.raises(ConfigError, match="no hub id"):
        fetch_tokenizer("../x", COMMIT, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        fetch_tokenizer(HUB_ID, COMMIT, tmp_path / "file")


def test_a_model_may_be_configured_by_its_hub_id(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer is fetched into the library's cache when the model is loaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = ModelSettings(name="m", tokenizer=HUB_ID, revision=COMMIT)
    assert PromptBuilder.load(model).eos_token_id == 2
    assert hub.asked
    assert not list(tmp_path.rglob("model.safetensors"))
