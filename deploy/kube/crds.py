"""Schemas of the custom resources that we write: only the fields that we use, and no others.

Kubernetes publishes schemas for its own kinds. These say the same for kinds of other projects, in
as far as our manifests have them, so that a field with a typing error is found without a cluster.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]


def _text(**more: Any) -> Schema:
    return {"type": "string", "minLength": 1, **more}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def _object(needed: dict[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": needed | optional,
        "required": sorted(needed),
        "additionalProperties": False,
    }


def _list(items: Schema, **more: int) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, **more}


_DNS: Final = _text(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", maxLength=253)
_PORT: Final = {"type": "integer", "minimum": 1, "maximum": 65_535}
_LABELS: Final = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
_MATCH_LABELS: Final = _object({"matchLabels": _LABELS})
_DURATION: Final = _text(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")
_META: Final = _object({"name": _DNS}, namespace=_DNS, labels=_LABELS)
_POOL: Final = _object(
    {
        "group": _one_of("inference.networking.k8s.io"),
        "kind": _one_of("InferencePool"),
        "name": _DNS,
    }
)
_PICKER: Final = _object(
    {"name": _DNS, "port": _object({"number": _PORT})},
    group={"const": ""},
    kind=_one_of("Service"),
    failureMode=_one_of("FailOpen", "FailClose"),
)
_POOL_SPEC: Final = _object(
    {
        "selector": _MATCH_LABELS,
        "targetPorts": _list(_object({"number": _PORT}), maxItems=8) | {"uniqueItems": True},
        "endpointPickerRef": _PICKER,
    },
    appProtocol=_one_of("http", "kubernetes.io/h2c"),
)
_OBJECTIVE_SPEC: Final = _object(
    {"poolRef": _POOL},
    priority={"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
)
_REWRITE_RULE: Final = _object(
    {
        "targets": _list(
            _object(
                {"modelRewrite": _text(maxLength=256)},
                weight={"type": "integer", "minimum": 0, "maximum": 1_000_000},
            )
        )
    },
    matches=_list(
        _object({"model": _object({"value": _text(maxLength=256)}, type=_one_of("Exact"))})
    ),
)
_ROUTE_RULE: Final = _object(
    {"backendRefs": _list(_POOL)},
    matches=_list(
        _object(
            {
                "path": _object(
                    {"type": _one_of("Exact", "PathPrefix"), "value": _text(pattern="^/")}
                )
            }
        )
    ),
    timeouts=_object({"request": _DURATION}),
)
_PARENT: Final = _object(
    {"name": _DNS},
    group=_one_of("gateway.networking.k8s.io"),
    kind=_one_of("Gateway"),
    namespace=_DNS,
)
_LISTENER: Final = _object(
    {"name": _DNS, "port": _PORT, "protocol": _one_of("HTTP", "HTTPS")},
    allowedRoutes=_object(
        {
            "namespaces": _object(
                {"from": _one_of("All", "Same", "Selector")}, selector=_MATCH_LABELS
            )
        }
    ),
)
_MONITOR_SPEC: Final = _object(
    {
        "selector": _MATCH_LABELS,
        "endpoints": _list(
            _object(
                {"port": _text()},
                path=_text(pattern="^/"),
                interval=_DURATION,
                scrapeTimeout=_DURATION,
            )
        ),
    }
)
_ALERT: Final = _object(
    {"alert": _text(pattern="^[A-Za-z0-9]+$"), "expr": _text()},
    labels=_LABELS,
    annotations=_LABELS,
    **{"for": _DURATION},
)
_RULES_SPEC: Final = _object({"groups": _list(_object({"name": _text(), "rules": _list(_ALERT)}))})
_SPECS: Final[dict[tuple[str, str], Schema]] = {
    ("inference.networking.k8s.io/v1", "InferencePool"): _POOL_SPEC,
    ("llm-d.ai/v1alpha2", "InferenceObjective"): _OBJECTIVE_SPEC,
    ("llm-d.ai/v1alpha2", "InferenceModelRewrite"): _object(
        {"poolRef": _POOL, "rules": _list(_REWRITE_RULE)}
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _object(
        {"parentRefs": _list(_PARENT), "rules": _list(_ROUTE_RULE)}
    ),
    ("gateway.networking.k8s.io/v1", "Gateway"): _object(
        {"gatewayClassName": _DNS, "listeners": _list(_LISTENER)}
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _MONITOR_SPEC,
    ("monitoring.coreos.com/v1", "PrometheusRule"): _RULES_SPEC,
}
SCHEMAS: Final[dict[tuple[str, str], Schema]] = {
    (version, kind): _object(
        {
            "apiVersion": _one_of(version),
            "kind": _one_of(kind),
            "metadata": _META,
            "spec": spec,
        }
    )
    for (version, kind), spec in _SPECS.items()
}
"""By apiVersion and kind."""
