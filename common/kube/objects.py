"""The objects of a watch, as its list and its events tell of them. Pure.

What cannot be read is no object: it is counted, and what was known of it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Generic, TypeVar

from msgspec import Meta, Raw, Struct, field
from msgspec.json import Decoder

from kvatlas.common import limits
from kvatlas.common.errors import KubernetesUnavailable

T = TypeVar("T")
Text = str | None
Texts = dict[str, str] | None

_NEVER: Final = "9999"
_OK: Final = 200
_GONE: Final = 410


class Metadata(Struct, rename="camel"):
    """What is read of every object's metadata."""

    name: Annotated[str, Meta(min_length=1, max_length=253)]
    namespace: Text = None
    resource_version: Text = None
    creation_timestamp: Text = None
    deletion_timestamp: Text = None
    labels: Texts = None
    annotations: Texts = None

    @property
    def created(self) -> str:
        """Give when it was created, in a form that sorts; the unknown is the youngest."""
        return self.creation_timestamp or _NEVER


class Any_(Struct):  # noqa: N801 - of any type
    """Of an object the metadata alone."""

    metadata: Metadata


class _Version(Struct, rename="camel"):
    resource_version: str


class _Bookmark(Struct):
    metadata: _Version


class _ListMetadata(Struct, rename="camel"):
    resource_version: Text = None
    continue_: Text = field(default=None, name="continue")


class _Page(Struct):
    metadata: _ListMetadata
    items: list[Raw] | None = None


class _Event(Struct):
    type: str
    object: Raw


class _Details(Struct, rename="camel"):
    retry_after_seconds: float | None = None


class Status(Struct):
    """How the API server says why not."""

    code: int | None = None
    reason: Text = None
    message: Text = None
    details: _Details | None = None


_PAGES: Final = Decoder(_Page)
_EVENTS: Final = Decoder(_Event)
_BOOKMARKS: Final = Decoder(_Bookmark)
_ANY: Final = Decoder(Any_)
_STATUS: Final = Decoder(Status)

Read = Callable[[bytes | Raw], T]
"""Makes of an object what is kept of it.

Raises:
    ValueError: it cannot be read; msgspec's errors are such.
"""


class Objects(Generic[T]):
    """All objects of one selection, as far as they are known.

    Args:
        read: makes of each what is kept.
        count_max: how many are kept.

    Attributes:
        by_name: what is kept of each.
        version: up to which everything is known; None until a list was whole, and when a watch
            cannot go on from it.
        malformed: objects and events that could not be read, so far.
        left_out: objects beyond the bound, so far.
    """

    def __init__(self, read: Read[T], count_max: int) -> None:
        self._read = read
        self._count_max = count_max
        self._listed: dict[str, T] = {}
        self.by_name: dict[str, T] = {}
        self.version: str | None = None
        self.malformed = 0
        self.left_out = 0

    # --- lists ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a list; what is known stays until it is whole."""
        self._listed = {}

    def add(self, page: bytes) -> str | None:
        """Take a page; give what the next is asked with, None if it was the last.

        Raises:
            KubernetesUnavailable: it is no list.
        """
        try:
            read = _PAGES.decode(page)
        except ValueError:
            raise KubernetesUnavailable("malformed", "not a list") from None
        for item in read.items or ():
            self._keep(self._listed, item)
        if read.metadata.continue_:
            return read.metadata.continue_
        if not read.metadata.resource_version:
            raise KubernetesUnavailable("malformed", "a list without a version")
        self.version = read.metadata.resource_version
        return None

    def end(self) -> bool:
        """Take over the list that was added; tell whether anything is other than before."""
        is_other = self._listed != self.by_name
        self.by_name, self._listed = self._listed, {}
        return is_other

    def clear(self) -> bool:
        """Know that there are none; tell whether there were any."""
        self.version = None
        had = bool(self.by_name)
        self.by_name = {}
        return had

    # --- events ---------------------------------------------------------------------------------

    def apply(self, line: bytes) -> bool:
        """Take an event; tell whether anything is other than before.

        Raises:
            KubernetesUnavailable: the watch cannot go on; with reason "expired" or "malformed"
                everything must be listed anew.
        """
        try:
            event = _EVENTS.decode(line)
            if event.type == "BOOKMARK":
                self.version = _BOOKMARKS.decode(event.object).metadata.resource_version
                return False
            if event.type == "ERROR":
                raise refused(bytes(event.object), None)
            metadata = _ANY.decode(event.object).metadata
        except ValueError:
            self.version = None
            self.malformed += 1
            raise KubernetesUnavailable("malformed", "not an event") from None
        self.version = metadata.resource_version or self.version
        before = self.by_name.get(metadata.name)
        if event.type == "DELETED":
            self.by_name.pop(metadata.name, None)
            return before is not None
        self._keep(self.by_name, event.object, metadata.name)
        return self.by_name.get(metadata.name) != before

    def _keep(self, among: dict[str, T], item: Raw, name: str | None = None) -> None:
        try:
            name = name or _ANY.decode(item).metadata.name
            kept = self._read(item)
        except ValueError:
            self.malformed += 1
            if name is not None:
                among.pop(name, None)
            return
        if (former := self.by_name.get(name)) == kept:
            # Whoever made something of it sees that it is the same.
            kept = former
        if name not in among and len(among) >= self._count_max:
            self.left_out += 1
            return
        among[name] = kept


def refused(
    answer: bytes, status: int | None, retry_after_s: float | None = None
) -> KubernetesUnavailable:
    """Make an error of the API server's word for it.

    Args:
        answer: a Status object, if it can be read as one.
        status: of HTTP; None for an event of a watch, whose code counts.
        retry_after_s: of the answer's head.
    """
    said = _said(answer)
    code = status if status is not None else said.code or _OK
    if retry_after_s is None and said.details is not None:
        retry_after_s = said.details.retry_after_seconds
    message = (said.message or "")[: limits.KUBE_STATUS_CHARS_MAX]
    return KubernetesUnavailable(_reason(code, said.reason), message, retry_after_s)


def _said(answer: bytes) -> Status:
    try:
        return _STATUS.decode(answer)
    except ValueError:
        return Status()


_REASONS: Final = {401: "unauthorized", 403: "forbidden", 404: "absent", _GONE: "expired"}


def _reason(code: int, said: str | None) -> str:
    if code in _REASONS:
        return _REASONS[code]
    if said in ("Expired", "Gone"):
        return "expired"
    if code == 429:
        return "throttled"
    return "refused" if 400 <= code < 500 else "failed"
