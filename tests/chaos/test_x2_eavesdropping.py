"""X2, events are overheard: only the indexer reaches them, and keeps no token of them."""

from __future__ import annotations

import gc
import io
import json

from deploy.kube.needs import OTHERS
from deploy.kube.network import flows
from deploy.kube.render import K8S, raw_documents
from kvatlas.common.block_hash import chain, root_hash
from tests.chaos.conftest import Report
from tests.fakes.block_fleet import MODEL, SIZE
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.publisher import stored

SECRET_TOKEN = 1_987_654_321


def test_x2_only_indexers_reach_events() -> None:
    """No other pod, no Service, and nobody from outside, by the policies that are shipped."""
    for mode in ("standalone", "gateway"):
        documents = raw_documents(K8S / "overlays" / mode)
        for port in ("events", "replay"):
            open_to = {f.source for f in flows(documents, OTHERS) if f[1:] == ("engine", port)}
            assert open_to == {"indexer", "doctor"}
            for service in (each for each in documents if each["kind"] == "Service"):
                assert port not in [each["targetPort"] for each in service["spec"]["ports"]]
    said = "indexers, and a doctor while it runs"
    Report("X2", "who may reach the ports of events", said).tell()


async def test_x2_token_ids_are_dropped(scale: Scale, canary: Canary, log: io.StringIO) -> None:
    """After a batch is applied its token ids are nowhere: memory, log, metrics, Redis."""
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        tokens = [SECRET_TOKEN + number for number in range(2 * SIZE)]
        wanted = set(chain(root_hash(MODEL, SIZE), tokens, SIZE))
        await engine.publisher.publish(stored([1 << 50, (1 << 50) + 1], tokens, block_size=SIZE))
        del tokens
        feed, last = place.feed(engine), engine.publisher.next_seq - 1
        await until(lambda: feed.sequencer.last_seq == last and feed.mirror.is_current)
        assert wanted <= (await place.indexed())[engine.name]
        gc.collect()
        assert [type(each) for each in gc.get_objects() if holds(each, SECRET_TOKEN + 1)] == []
        marked = Canary(str(SECRET_TOKEN + 1))
        with place.server.client() as client:
            marked.look_into(client)
        marked.look_at_metrics(place.indexer.metrics.registry)
        marked.look("log", log.getvalue())
        assert marked.seen_in == []
    assert json.loads(log.getvalue().splitlines()[0])
    Report("X2", "token ids in events", "gone once they are hashed").tell()


def holds(thing: object, token: int) -> bool:
    """Tell whether a list or tuple has a token id in it."""
    if not isinstance(thing, list | tuple):
        return False
    return any(type(each) is int and each == token for each in thing)
