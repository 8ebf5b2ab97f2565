"""What objectives and llm-d's headers do to a request, through the picker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvatlas.common.llm_d.headers import MODEL_REWRITE, OBJECTIVE
from tests.contract.test_kube_rules import kubeconfig
from tests.contract.test_picker import chat
from tests.fakes.api_objects import objective
from tests.fakes.api_server import api_server
from tests.fakes.ext_proc_client import BUFFERED
from tests.fakes.following import until
from tests.fakes.picker_place import MODEL, Pod, pods

DROPPED = "x-llm-d-request-dropped-reason"
FULL, CALM = Pod(queue=6, kv_usage=0.85), Pod()


@pytest.mark.parametrize("name", [OBJECTIVE.name, *OBJECTIVE.aliases])
async def test_who_is_sheddable_is_refused_while_all_is_full(
    redis_url: str, tmp_path: Path, name: str
) -> None:
    """Others are served; one endpoint that is calm makes room; the reason is told."""
    async with api_server() as server:
        server.put(objective("batch", "qwen", -1), objective("gold", "qwen", 10))
        more = {
            "discovery": [{"kind": "inference-pool", "name": "qwen"}],
            "kubernetes": {"kubeconfig": kubeconfig(tmp_path, server)},
        }
        async with pods(redis_url, FULL, FULL, **more) as place:
            rules = place.running.service.cores.current.rules
            await until(lambda: rules.current.priority("batch") == -1)
            refused = await place.pick(chat(ask={"headers": {name: "batch"}}))
            assert (refused.head.status, refused.head.headers[DROPPED]) == (
                429, "rejected-saturated",
            )  # fmt: skip
            for other in ("gold", "nobody"):
                found = await place.pick(chat(ask={"headers": {name: other}}))
                assert found.destination in place.addresses
            assert place.value("shed_total", reason="priority") == 1
            await place.quiet()
        async with pods(redis_url, FULL, CALM, CALM, **more) as place:
            rules = place.running.service.cores.current.rules
            await until(lambda: rules.current.priority("batch") == -1)
            found = await place.pick(chat(ask={"headers": {name: "batch"}}))
            assert found.destination in place.addresses


@pytest.mark.parametrize("name", [MODEL_REWRITE.name, *MODEL_REWRITE.aliases])
async def test_a_header_may_name_the_model(redis_url: str, name: str) -> None:
    """The engine gets that name, the client reads its own, and the header ends here."""
    async with pods(redis_url, CALM) as place:
        asked = {"headers": {name: MODEL}, "mode": BUFFERED}
        found = await place.pick(chat("whatever", ask=asked))
        assert json.loads(found.body)["model"] == MODEL
        assert name in found.head.removed
        assert found.head.headers["accept-encoding"] == "identity"


async def test_what_a_header_names_is_no_label(redis_url: str) -> None:
    """Neither a model that engines may have, nor one that nobody serves."""
    words = ("secret-one", "secret-two")
    for options in ({}, {"unknown_models": "refuse"}):
        async with pods(redis_url, CALM, picker=options) as place:
            for word in words:
                await place.pick(chat(ask={"headers": {MODEL_REWRITE.name: word}}))
            metrics = place.running.service.metrics
            samples = (each for family in metrics.collect() for each in family.samples)
            assert not {w for each in samples for w in words if w in each.labels.values()}
