"""Read objectives and rewrites. Pure."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from kvatlas.common import limits
from kvatlas.common.kube.objects import Metadata, Text
from kvatlas.common.pool_rules import Identity, Objective, Rewrite, Rule
from kvatlas.common.weighted_names import WeightedNames

_POOL_KIND: Final = "InferencePool"

Name = Annotated[str, Meta(min_length=1, max_length=limits.MODEL_NAME_CHARS_MAX)]
Int32 = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Weight = Annotated[int, Meta(ge=0, lt=2**31)]


class _PoolRef(Struct):
    name: str
    kind: Text = None


class _OfPools(Struct, rename="camel"):
    """How both say which pools they are for; `poolRefs` is the newer form of objectives."""

    pool_ref: _PoolRef | None = None
    pool_refs: list[_PoolRef] | None = None


class _ObjectiveSpec(_OfPools, rename="camel"):
    priority: Int32 | None = None


class _Objective(Struct):
    metadata: Metadata
    spec: _ObjectiveSpec


class _Model(Struct):
    value: Name
    type: Text = None


class _Match(Struct):
    model: _Model


class _Target(Struct, rename="camel"):
    model_rewrite: Name
    weight: Weight | None = None


class _Rule(Struct):
    matches: list[_Match] | None = None
    targets: list[_Target] | None = None


class _RewriteSpec(_OfPools, rename="camel"):
    rules: list[_Rule] | None = None


class _Rewrite(Struct):
    metadata: Metadata
    spec: _RewriteSpec


_OBJECTIVES: Final = Decoder(_Objective)
_REWRITES: Final = Decoder(_Rewrite)


def read_objective(item: bytes | Raw) -> Objective:
    """Read an InferenceObjective; without a priority it is 0.

    Raises:
        ValueError: it is none.
    """
    read = _OBJECTIVES.decode(item)
    return Objective(_identity(read.metadata, read.spec), read.spec.priority or 0)


def read_rewrite(item: bytes | Raw) -> Rewrite:
    """Read an InferenceModelRewrite; rules that rewrite to nothing are left out.

    Raises:
        ValueError: it is none, or matches in a way that is not known.
    """
    read = _REWRITES.decode(item)
    rules = [rule for each in read.spec.rules or () if (rule := _rule(each)) is not None]
    return Rewrite(_identity(read.metadata, read.spec), tuple(rules))


def _identity(metadata: Metadata, spec: _OfPools) -> Identity:
    refs = [*(spec.pool_refs or ()), *([spec.pool_ref] if spec.pool_ref else [])]
    pools = frozenset(ref.name for ref in refs if ref.kind in (None, "", _POOL_KIND))
    # One that is being deleted rules nothing any more.
    pools = pools if metadata.deletion_timestamp is None else frozenset()
    return Identity(metadata.namespace or "", metadata.name, metadata.created, pools)


def _rule(rule: _Rule) -> Rule | None:
    matches = rule.matches or ()
    if any(match.model.type not in (None, "Exact") for match in matches):
        raise ValueError("another match than Exact")
    targets = _weighted(rule.targets or [])
    if targets is None:
        return None
    models = frozenset(match.model.value for match in matches) if matches else None
    return Rule(models, targets)


def _weighted(targets: list[_Target]) -> WeightedNames | None:
    """Give each target its share.

    Without any weight, or with zeros alone, they are equal; where some have one, the others get
    nothing, as with llm-d.
    """
    if not targets:
        return None
    whole = sum(target.weight or 0 for target in targets)
    weights: dict[str, float] = {}
    for target in targets:
        share = (target.weight or 0) if whole else 1
        if share:
            weights[target.model_rewrite] = weights.get(target.model_rewrite, 0.0) + share
    return WeightedNames.of(weights)
