"""What is counted of watches; a service's table of metrics has these declarations among its own."""

from __future__ import annotations

from typing import Final, Protocol

from kvatlas.common.metrics import Counter, Gauge, Metrics, counter, gauge

KUBE_GOOD: Final = gauge(
    "kubernetes_watches_good",
    "watch",
    "0 or 1",
    "0 while the API server does not let us follow these objects: what was last known counts.",
    "0: the log says why (`kubernetes.failed`, and `kubernetes.denied` with the rule that is"
    " missing)",
)
KUBE_SILENT: Final = gauge(
    "kubernetes_silent_seconds",
    "watch",
    "seconds",
    "Since the API server last told or confirmed anything of these objects.",
    "over 300: endpoints that come and go are not seen; look at the API server",
)
KUBE_OBJECTS: Final = gauge(
    "kubernetes_objects",
    "watch",
    "objects",
    "Objects that are known of a watch.",
    "0 pods where some run: look at the selector",
)
KUBE_EVENTS: Final = counter(
    "kubernetes_events", "watch", "events", "Events that watches told, bookmarks among them."
)
KUBE_LISTS: Final = counter(
    "kubernetes_lists",
    "watch",
    "lists",
    "Whole lists that were read: at the start, every `kubernetes.resync_s`, and after a watch that"
    " could not go on.",
)
KUBE_FAILURES: Final = counter(
    "kubernetes_failures",
    "watch reason",
    "failures",
    "Lists and watches that failed: `unreachable`, `timeout`, `tls`, `torn`, `credentials` (ours"
    " cannot be read), `unauthorized`, `forbidden`, `absent` (the resource type is not installed),"
    " `expired` (listed anew), `throttled`, `failed` (5xx), `refused` (other 4xx), `malformed`,"
    " `too_large`, `short` (a watch that ended at once).",
    "`forbidden`: mend the Role; `absent` of a legacy group is as it should be",
)
KUBE_IGNORED: Final = counter(
    "kubernetes_ignored",
    "watch reason",
    "objects",
    "Objects, or annotations of them, that were ignored: `malformed`, `too_many` (beyond 10,000),"
    " `annotation`.",
    "the log names the pod (`pod.annotation_ignored`)",
)


class KubeTable(Protocol):
    """A table of metrics with these."""

    kube_good: Gauge
    kube_silent: Gauge
    kube_objects: Gauge
    kube_events: Counter
    kube_lists: Counter
    kube_failures: Counter
    kube_ignored: Counter


class KubeCounts(Metrics):
    """A table with nothing else, for those who show it to nobody."""

    prefix = "kvatlas_"
    kube_good = KUBE_GOOD
    kube_silent = KUBE_SILENT
    kube_objects = KUBE_OBJECTS
    kube_events = KUBE_EVENTS
    kube_lists = KUBE_LISTS
    kube_failures = KUBE_FAILURES
    kube_ignored = KUBE_IGNORED
