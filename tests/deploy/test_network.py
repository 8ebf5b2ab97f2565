"""Policies are read as Kubernetes reads them: what is not said is closed, or open, by its rules."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.kube.documents import matches
from deploy.kube.network import OURS, Place, Port, may_reach

HTTP = Port(8000, "http")
SERVER = Place("server", "10.1.0.1", {"app": "server"}, OURS, (HTTP,))
CLIENT = Place("client", "10.1.0.2", {"app": "client"}, OURS)
FAR = Place("far", "10.9.0.1", {"app": "client"}, {"kubernetes.io/metadata.name": "far", "t": "x"})
WORLD = Place("world", "203.0.113.7", ports=(Port(443),))


def policy(**spec: Any) -> dict[str, Any]:
    """Write a policy of our namespace for the server."""
    spec.setdefault("podSelector", {"matchLabels": {"app": "server"}})
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "kvatlas"},
        "spec": spec,
    }


def ingress(*rules: dict[str, Any]) -> dict[str, Any]:
    """Write a policy for what comes to the server."""
    return policy(policyTypes=["Ingress"], ingress=list(rules))


def test_without_a_policy_everything_is_open() -> None:
    """A pod that no policy selects is reached by all, and reaches all."""
    elsewhere = policy(podSelector={"matchLabels": {"app": "other"}}, policyTypes=["Ingress"])
    assert may_reach([], (CLIENT, SERVER), HTTP)
    assert may_reach([elsewhere], (CLIENT, SERVER), HTTP)


def test_policies_of_another_namespace_do_not_count() -> None:
    """The same labels elsewhere are other pods."""
    theirs = ingress()
    theirs["metadata"]["namespace"] = "far"
    assert may_reach([theirs], (CLIENT, SERVER), HTTP)


def test_a_policy_without_rules_closes() -> None:
    """One that speaks of a direction, and opens nothing."""
    assert not may_reach([ingress()], (CLIENT, SERVER), HTTP)
    assert may_reach([ingress()], (SERVER, CLIENT), HTTP)


def test_types_are_implied() -> None:
    """Ingress always, egress where there are rules for it."""
    closed = policy()
    assert not may_reach([closed], (CLIENT, SERVER), HTTP)
    assert may_reach([closed], (SERVER, CLIENT), HTTP)
    assert not may_reach([policy(egress=[])], (SERVER, CLIENT), HTTP)


def test_both_ends_must_agree() -> None:
    """The source's egress and the target's ingress."""
    out = policy(podSelector={"matchLabels": {"app": "client"}}, policyTypes=["Egress"])
    assert not may_reach([ingress({}), out], (CLIENT, SERVER), HTTP)
    out["spec"]["egress"] = [{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}]
    assert may_reach([ingress({}), out], (CLIENT, SERVER), HTTP)
    assert not may_reach([ingress(), out], (CLIENT, SERVER), HTTP)


def test_rules_add_up() -> None:
    """One policy that opens is enough, whatever others close."""
    assert may_reach([ingress(), ingress({})], (CLIENT, SERVER), HTTP)


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        ({"podSelector": {}}, {"client"}),
        ({"namespaceSelector": {}}, {"client", "far"}),
        ({"namespaceSelector": {"matchLabels": {"t": "x"}}}, {"far"}),
        ({"namespaceSelector": {"matchLabels": {"t": "x"}},
          "podSelector": {"matchLabels": {"app": "client"}}}, {"far"}),
        ({"namespaceSelector": {"matchLabels": {"t": "x"}},
          "podSelector": {"matchLabels": {"app": "server"}}}, set()),
        ({"ipBlock": {"cidr": "0.0.0.0/0"}}, {"client", "far", "world"}),
        ({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}, {"world"}),
    ],
)  # fmt: skip
def test_peers_are_who_they_select(peer: dict[str, Any], who: set[str]) -> None:
    """Pods near, pods far, both together, and blocks of addresses."""
    rules = [ingress({"from": [peer]})]
    found = {each.name for each in (CLIENT, FAR, WORLD) if may_reach(rules, (each, SERVER), HTTP)}
    assert found == who


@pytest.mark.parametrize(
    ("ports", "is_open"),
    [
        ([{"port": "http"}], True),
        ([{"port": "https"}], False),
        ([{"port": 8000}], True),
        ([{"port": 8001}], False),
        ([{"port": 7000, "endPort": 9000}], True),
        ([{"port": 7000, "endPort": 7999}], False),
        ([{"port": 8000, "protocol": "UDP"}], False),
        ([{"protocol": "TCP"}], True),
        ([{"port": 1}, {"port": "http"}], True),
        ([], True),
    ],
)
def test_ports_are_named_numbered_or_all(*, ports: list[dict[str, Any]], is_open: bool) -> None:
    """A name is that of the target's container; none at all opens every port."""
    assert may_reach([ingress({"ports": ports})], (CLIENT, SERVER), HTTP) == is_open


@pytest.mark.parametrize(
    ("rule", "selects"),
    [
        ({"key": "app", "operator": "In", "values": ["a", "client"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["a", "client"]}, False),
        ({"key": "no", "operator": "NotIn", "values": ["a"]}, True),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
    ],
)
def test_selectors(*, rule: dict[str, Any], selects: bool) -> None:
    """The four operators."""
    assert matches({"matchExpressions": [rule]}, {"app": "client"}) == selects


def test_unknown_operators_do_not_pass() -> None:
    """Else a typing error would select nothing, or everything."""
    with pytest.raises(ValueError, match="Inn"):
        matches({"matchExpressions": [{"key": "a", "operator": "Inn"}]}, {})
