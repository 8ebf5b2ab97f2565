"""An API server of Kubernetes over real HTTP: lists in pages, watches, and everything that fails.

What it does not do: admission, conversion between versions, several servers behind one address
whose caches differ, flow control with queues. docs/KUBERNETES.md says what follows from that.
"""

from __future__ import annotations

import asyncio
import copy
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.fakes.api_objects import Json

TOKEN = "token-of-the-test"  # noqa: S105 - of no server but this
PLURALS = {
    "Pod": "pods",
    "InferencePool": "inferencepools",
    "InferenceObjective": "inferenceobjectives",
    "InferenceModelRewrite": "inferencemodelrewrites",
}
Kind = tuple[str, str]
"""Of objects: apiVersion and plural."""
Key = tuple[str, str]
"""Of an object: namespace and name."""
ALL_KINDS: frozenset[Kind] = frozenset(
    {
        ("v1", "pods"),
        ("inference.networking.k8s.io/v1", "inferencepools"),
        ("inference.networking.x-k8s.io/v1alpha2", "inferencepools"),
        *(
            (f"{group}/v1alpha2", plural)
            for group in ("llm-d.ai", "inference.networking.x-k8s.io")
            for plural in ("inferenceobjectives", "inferencemodelrewrites")
        ),
    }
)


@dataclass(frozen=True)
class Change:
    """What happened to an object."""

    version: int
    kind: Kind
    before: Json | None
    after: Json | None


@dataclass(eq=False)
class Watcher:
    """A watch that is open."""

    request: web.Request
    changes: asyncio.Queue[Change | None] = field(default_factory=asyncio.Queue)


@dataclass
class Faults:
    """How the server misbehaves.

    Attributes:
        denied: plurals that may not be read.
        answers: status of all answers; 0 for none.
        times: how often yet.
        gone_as_event: a version that is too old is told by an event, not by a status.
        delay_s: before each answer.
        is_silent: watches tell nothing, and do not end.
        ends_at_once: watches end when they begin.
        retry_after: header of refusals.
    """

    denied: set[str] = field(default_factory=set)
    answers: int = 0
    times: int = 10**9
    gone_as_event: bool = True
    delay_s: float = 0.0
    is_silent: bool = False
    ends_at_once: bool = False
    retry_after: str | None = None


class ApiServer:
    """The server.

    Attributes:
        asked: all requests, as path and query.
        token: that clients must show.
        bookmark_s: between two bookmarks of a watch.
    """

    def __init__(self) -> None:
        self.installed: set[Kind] = set(ALL_KINDS)
        self.faults = Faults()
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.token = TOKEN
        self.bookmark_s = 60.0
        self.port = 0
        self.version = 1_000
        self.objects: dict[Kind, dict[Key, Json]] = {}
        self.watchers: set[Watcher] = set()
        self._history: list[Change] = []
        self._forgotten = 0
        self._pages: dict[str, tuple[int, list[Json]]] = {}
        self._runner: web.AppRunner | None = None
        self._tls: ssl.SSLContext | None = None

    # --- what is in the cluster -----------------------------------------------------------------

    def put(self, *objects: Json) -> None:
        """Create or change objects."""
        for given in objects:
            made = copy.deepcopy(given)
            kind = made["apiVersion"], PLURALS[made["kind"]]
            key = made["metadata"]["namespace"], made["metadata"]["name"]
            before = self.objects.setdefault(kind, {}).get(key)
            uid = before["metadata"]["uid"] if before else f"uid-{self.version}"
            made["metadata"] |= {"uid": uid}
            self._happened(kind, key, before, made)

    def delete(self, given: Json) -> None:
        """Delete an object at once, as when its last finalizer is gone."""
        kind = given["apiVersion"], PLURALS[given["kind"]]
        key = given["metadata"]["namespace"], given["metadata"]["name"]
        before = self.objects[kind][key]
        self._happened(kind, key, before, None)

    def edit(self, given: Json, change: Callable[[Json], None]) -> None:
        """Change what is there of an object."""
        kind = given["apiVersion"], PLURALS[given["kind"]]
        key = given["metadata"]["namespace"], given["metadata"]["name"]
        made = copy.deepcopy(self.objects[kind][key])
        change(made)
        self._happened(kind, key, self.objects[kind][key], made)

    def compact(self) -> None:
        """Forget what happened so far: older versions and half-read lists are gone."""
        self._forgotten = self.version
        self._history.clear()
        self._pages.clear()

    def uninstall(self, kind: Kind) -> None:
        """Take a type away, with its objects; its watches end."""
        self.installed.discard(kind)
        self.objects.pop(kind, None)
        for watcher in list(self.watchers):
            watcher.changes.put_nowait(None)

    def _happened(self, kind: Kind, key: Key, before: Json | None, after: Json | None) -> None:
        self.version += 1
        last = after if after is not None else copy.deepcopy(before)
        assert last is not None
        last["metadata"]["resourceVersion"] = str(self.version)
        if after is None:
            del self.objects[kind][key]
        else:
            self.objects[kind][key] = after
        change = Change(self.version, kind, before, after)
        if after is None:
            change = Change(self.version, kind, last, None)
        self._history.append(change)
        for watcher in self.watchers:
            watcher.changes.put_nowait(change)

    # --- how it fails ---------------------------------------------------------------------------

    def tear(self) -> None:
        """Cut all watches in the middle of a line."""
        for watcher in list(self.watchers):
            transport = watcher.request.transport
            if transport is not None:
                half = b'{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"na'
                transport.write(b"%x\r\n%s\r\n" % (len(half), half))
                transport.close()
            watcher.changes.put_nowait(None)

    async def go_away(self) -> None:
        """Listen no more, and cut all connections."""
        runner, self._runner = self._runner, None
        if runner is not None:
            # A connection that is accepted while the server closes is never closed (CPython 3.11).
            for site in runner.sites:
                listening = site._server
                assert isinstance(listening, asyncio.Server)
                for each in listening.sockets:
                    asyncio.get_running_loop().remove_reader(each.fileno())
            await asyncio.sleep(0.01)
        for watcher in list(self.watchers):
            if watcher.request.transport is not None:
                watcher.request.transport.abort()
            watcher.changes.put_nowait(None)
        if runner is not None:
            await runner.cleanup()

    async def come(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen, at the same port as before."""
        self._tls = tls or self._tls
        app = web.Application()
        app.router.add_get("/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    @property
    def url(self) -> str:
        """Give its URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    # --- HTTP -----------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append((request.path, query))
        if self.faults.delay_s:
            await asyncio.sleep(self.faults.delay_s)
        if self.faults.answers and self.faults.times > 0:
            self.faults.times -= 1
            return self._status(self.faults.answers, "InternalError", "etcdserver: no leader")
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._status(401, "Unauthorized", "Unauthorized")
        match = re.fullmatch(r"/apis?/(.+)/namespaces/([^/]+)/([a-z]+)", request.path)
        kind = (match[1], match[3]) if match else ("", "")
        if match is None or kind not in self.installed:
            return self._status(404, "NotFound", "the server could not find the requested resource")
        if kind[1] in self.faults.denied:
            return self._denied(kind, match[2], "watch" if "watch" in query else "list")
        if query.get("watch") == "true":
            return await self._watch(request, kind, match[2], query)
        return self._list(kind, match[2], query)

    def _list(self, kind: Kind, namespace: str, query: dict[str, str]) -> web.Response:
        if (token := query.get("continue")) is not None:
            if token not in self._pages:
                text = "The provided continue parameter is too old to display a consistent list"
                return self._status(410, "Expired", text)
            version, left = self._pages.pop(token)
        else:
            fits = _fits(namespace, query)
            version = self.version
            left = [each for _, each in sorted(self.objects.get(kind, {}).items()) if fits(each)]
        limit = int(query.get("limit", "0")) or len(left)
        page, rest = left[:limit], left[limit:]
        metadata: Json = {"resourceVersion": str(version)}
        if rest:
            metadata |= {
                "continue": f"page-{version}-{len(rest)}-{len(self.asked)}",
                "remainingItemCount": len(rest),
            }
            self._pages[metadata["continue"]] = version, rest
        listed = {"kind": "List", "apiVersion": kind[0], "metadata": metadata, "items": page}
        return web.Response(body=orjson.dumps(listed), content_type="application/json")

    async def _watch(
        self, request: web.Request, kind: Kind, namespace: str, query: dict[str, str]
    ) -> web.StreamResponse:
        version = int(query["resourceVersion"])
        if version < self._forgotten and not self.faults.gone_as_event:
            return self._status(410, "Expired", f"too old resource version: {version}")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if version < self._forgotten:
            gone = _status_of(410, "Expired", f"too old resource version: {version}")
            await response.write(_line("ERROR", gone))
            return response
        watcher = Watcher(request)
        for change in self._history:
            if change.version > version:
                watcher.changes.put_nowait(change)
        self.watchers.add(watcher)
        try:
            await self._tell(watcher, response, kind, _fits(namespace, query))
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self.watchers.discard(watcher)
        return response

    async def _tell(
        self,
        watcher: Watcher,
        response: web.StreamResponse,
        kind: Kind,
        fits: Callable[[Json], bool],
    ) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + float(watcher.request.query.get("timeoutSeconds", "1800"))
        bookmarks = watcher.request.query.get("allowWatchBookmarks") == "true"
        if self.faults.ends_at_once:
            return
        while loop.time() < ends:
            wait_s = min(self.bookmark_s, ends - loop.time())
            try:
                change = await asyncio.wait_for(watcher.changes.get(), wait_s)
            except TimeoutError:
                if bookmarks and not self.faults.is_silent:
                    await response.write(self._bookmark(kind))
                continue
            if change is None:
                return
            if self.faults.is_silent:
                await asyncio.sleep(3_600)
            event = _event(change, kind, fits)
            if event is not None:
                await response.write(event)

    def _bookmark(self, kind: Kind) -> bytes:
        # Of an object it has the kind and the version only.
        named = {plural: name for name, plural in PLURALS.items()}
        metadata = {"resourceVersion": str(self.version), "creationTimestamp": None}
        at = {"kind": named[kind[1]], "apiVersion": kind[0], "metadata": metadata}
        return _line("BOOKMARK", at)

    def _denied(self, kind: Kind, namespace: str, verb: str) -> web.Response:
        group = kind[0].rpartition("/")[0]
        return self._status(
            403,
            "Forbidden",
            f'{kind[1]} is forbidden: User "system:serviceaccount:demo:kvatlas" cannot {verb}'
            f' resource "{kind[1]}" in API group "{group}" in the namespace "{namespace}"',
        )

    def _status(self, code: int, reason: str, message: str) -> web.Response:
        retry = self.faults.retry_after
        return web.Response(
            status=code,
            body=orjson.dumps(_status_of(code, reason, message)),
            content_type="application/json",
            headers={"Retry-After": retry} if retry else None,
        )


@asynccontextmanager
async def api_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[ApiServer]:
    """Run a server until the context ends."""
    server = ApiServer()
    await server.come(tls)
    try:
        yield server
    finally:
        await server.go_away()


def _event(change: Change, kind: Kind, fits: Callable[[Json], bool]) -> bytes | None:
    """Write a change as one watch sees it: what does not fit any more is deleted for it."""
    if change.kind != kind:
        return None
    fitted = change.before is not None and fits(change.before)
    if change.after is not None and fits(change.after):
        return _line("MODIFIED" if fitted else "ADDED", change.after)
    if not fitted:
        return None
    last = change.after if change.after is not None else change.before
    assert last is not None
    return _line("DELETED", last)


def _line(kind: str, content: Json) -> bytes:
    return orjson.dumps({"type": kind, "object": content}) + b"\n"


def _status_of(code: int, reason: str, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _fits(namespace: str, query: dict[str, str]) -> Callable[[Json], bool]:
    wanted = [_requirement(each) for each in _split(query.get("labelSelector", ""))]
    field_, _, name = query.get("fieldSelector", "").partition("=")
    assert field_ in ("", "metadata.name"), field_

    def fits(given: Json) -> bool:
        metadata: dict[str, Any] = given["metadata"]
        labels = metadata.get("labels") or {}
        return (
            metadata["namespace"] == namespace
            and (not field_ or metadata["name"] == name)
            and all(check(labels) for check in wanted)
        )

    return fits


def _split(selector: str) -> list[str]:
    """Split at commas that are not in parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", selector) if part.strip()]


def _requirement(text: str) -> Callable[[dict[str, str]], bool]:
    if found := re.fullmatch(r"(\S+) (in|notin) \(([^)]*)\)", text):
        key, values = found[1], {value.strip() for value in found[3].split(",")}
        is_in = found[2] == "in"
        return lambda labels: (labels.get(key) in values) == is_in
    if text.startswith("!"):
        return lambda labels: text[1:] not in labels
    if found := re.fullmatch(r"([^=!\s]+)\s*(==|=|!=)\s*(\S*)", text):
        name, value, is_equal = found[1], found[3], found[2] != "!="
        return lambda labels: (labels.get(name) == value) == is_equal
    return lambda labels: text in labels
