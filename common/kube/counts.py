"""What is counted of watches; services' tables of metrics derive from this one."""

from __future__ import annotations

from kvatlas.common.metrics import Metrics, counter, gauge


class KubeMetrics(Metrics):
    """The table of what watches tell; by itself shown to nobody."""

    prefix = "kvatlas_"

    kube_good = gauge(
        "kubernetes_watches_good",
        "watch",
        "0 or 1",
        "0 while the API server does not let us follow these objects: what was last known counts.",
        "0: the log says why (`kubernetes.failed`, and `kubernetes.denied` with the rule that is"
        " missing)",
    )
    kube_silent = gauge(
        "kubernetes_silent_seconds",
        "watch",
        "seconds",
        "Since the API server last told or confirmed anything of these objects.",
        "over 300: endpoints that come and go are not seen; look at the API server",
    )
    kube_objects = gauge(
        "kubernetes_objects",
        "watch",
        "objects",
        "Objects that are known of a watch.",
        "0 pods where some run: look at the selector",
    )
    kube_events = counter(
        "kubernetes_events", "watch", "events", "Events that watches told, bookmarks among them."
    )
    kube_lists = counter(
        "kubernetes_lists",
        "watch",
        "lists",
        "Whole lists that were read: at the start, every `kubernetes.resync_s`, and after a watch"
        " that could not go on.",
    )
    kube_failures = counter(
        "kubernetes_failures",
        "watch reason",
        "failures",
        "Lists and watches that failed: `unreachable`, `timeout`, `tls`, `torn`, `credentials`"
        " (ours cannot be read), `unauthorized`, `forbidden`, `absent` (the resource type is not"
        " installed), `expired` (listed anew), `throttled`, `failed` (5xx), `refused` (other 4xx),"
        " `malformed`, `too_large`, `short` (a watch that ended at once).",
        "`forbidden`: mend the Role; `absent` of a legacy group is as it should be",
    )
    kube_ignored = counter(
        "kubernetes_ignored",
        "watch reason",
        "objects",
        "Objects, or annotations of them, that were ignored: `malformed`, `too_many` (beyond"
        " 10,000), `annotation`.",
        "the log names the pod (`pod.annotation_ignored`)",
    )
