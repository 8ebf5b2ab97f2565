"""Validate documents: Kubernetes' own kinds by its published schemas, others by ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import jsonschema  # type: ignore[import-untyped] # it ships no types
import kubernetes_validate

from deploy.kube.crds import SCHEMAS
from deploy.kube.documents import Document, title


def schema_faults(documents: list[Document]) -> Iterator[str]:
    """List what schemas refuse; a kind that has none is a fault."""
    for document in documents:
        fault = _fault(json.dumps(document, sort_keys=True))
        if fault is not None:
            yield f"{title(document)}: {fault}"


@cache
def _fault(text: str) -> str | None:
    """Validate one document, which most kustomizations have in common: 20 ms."""
    document: Document = json.loads(text)
    schema = SCHEMAS.get((document["apiVersion"], document["kind"]))
    try:
        if schema is None:
            version = kubernetes_validate.latest_version()
            kubernetes_validate.validate(document, version, strict=True)
        else:
            jsonschema.validate(document, schema)
    except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
        where = ".".join(str(part) for part in error.path)
        return f"{where}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    return None
