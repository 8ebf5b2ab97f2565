"""The models that clients may ask for: `/v1/models`."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from kvatlas.common.errors import ModelNotFound
from kvatlas.common.settings import Settings
from kvatlas.router.pipeline import Pipeline
from kvatlas.router.request import Request, Response
from kvatlas.router.rewrites import Rewrites

MODELS_PATH: Final = "/v1/models"
CREATED: Final = 1_795_000_000
"""`created` of every model: a constant, so that replicas answer the same."""

Entry = dict[str, Any]


class Catalog:
    """Answer for all models of the configuration, their adapters and the names that stand for them.

    What a name stands for, and in which shares, is nobody's business but the operator's: it is
    listed like a model.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline, rewrites: Rewrites) -> None:
        self._models = {model.name: model for model in settings.models}
        self._pipeline = pipeline
        self._rewrites = rewrites

    async def models(self, request: Request) -> Response:
        """List them: models, adapters, other names."""
        return Response.json({"object": "list", "data": list(self._entries(request).values())})

    async def model(self, request: Request) -> Response:
        """Describe one; its id may hold slashes, as they are or escaped.

        Raises:
            ModelNotFound: there is none of this name.
        """
        name = unquote(request.path[len(MODELS_PATH) + 1 :])
        if (entry := self._entries(request).get(name)) is None:
            raise model_not_found()
        return Response.json(entry)

    def _entries(self, request: Request) -> dict[str, Entry]:
        """List them by name: those that the client's key is good for."""
        lengths = {name: model.max_model_len for name, model in self._models.items()}
        entries = {name: _entry(name, length) for name, length in lengths.items()}
        for served in self._pipeline.adapters():
            if served.adapter is not None:
                entries[served.adapter] = _entry(served.adapter, None) | {"parent": served.model}
        for name, targets in self._rewrites.names().items():
            known = [lengths.get(target) for target in targets]
            shortest = min((each for each in known if each), default=None) if all(known) else None
            entries[name] = _entry(name, shortest)
        client = request.client
        if client is None or client.models is None:
            return entries
        return {name: entry for name, entry in entries.items() if client.may_ask_for(name)}


def model_not_found() -> ModelNotFound:
    """Say that there is no such model; what was asked for is not repeated."""
    return ModelNotFound(f"there is no such model; {MODELS_PATH} lists those that are", "model")


def target_not_served() -> ModelNotFound:
    """Say that a name stands for a model that is not here; its own is nobody's business."""
    return ModelNotFound("no engine serves the model that this name stands for", "model")


def _entry(name: str, max_model_len: int | None) -> Entry:
    entry: Entry = {"id": name, "object": "model", "created": CREATED, "owned_by": "kvatlas"}
    return entry | ({"max_model_len": max_model_len} if max_model_len else {})
