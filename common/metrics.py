"""Metrics, each declared once: what it is called, what it says, and what an operator does with it.

The instruments are our own, since they are on the way of every request and one event loop needs no
locks; prometheus_client writes the page. Values of labels are resolved to a child once each.
"""

from __future__ import annotations

import collections
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar, cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kvatlas.common import limits

Kind = Literal["counter", "gauge", "histogram"]
OTHER: Final = "other"
"""Value of every label of what is counted beyond METRIC_CHILDREN_MAX."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is known of a metric before anything is counted.

    Attributes:
        name: without prefix and `_total`.
        labels: in the order in which their values are given.
        unit: of its values.
        says: one or two sentences.
        do: what an operator does with it.
        buckets: upper bounds of a histogram, without +Inf.
    """

    kind: Kind
    name: str
    labels: tuple[str, ...]
    unit: str
    says: str
    do: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def shown_name(self) -> str:
        """Give the name as the page has it, without prefix."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


class CounterChild:
    """A number that only grows. Cost: 0.05 us per `inc`."""

    __slots__ = ("value",)

    def __init__(self, _declared: Declaration) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        """Add."""
        self.value += by


class GaugeChild:
    """A number, or a function that gives it when the page is written."""

    __slots__ = ("_number", "_source")

    def __init__(self, _declared: Declaration) -> None:
        self._number = 0.0
        self._source: Callable[[], float] | None = None

    def set(self, number: float) -> None:
        """Set the number."""
        self._number = number

    def set_function(self, source: Callable[[], float]) -> None:
        """Ask for the number from here on."""
        self._source = source

    def asks(self, source: Callable[[], float]) -> bool:
        """Tell whether this function is asked."""
        return self._source is source

    @property
    def value(self) -> float:
        """Give the number."""
        return self._number if self._source is None else self._source()


class HistogramChild:
    """How often which values occurred. Cost: 0.2 us per `observe`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, declared: Declaration) -> None:
        self.bounds = declared.buckets
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def value(self) -> float:
        """Count the values that were observed."""
        return sum(self.counts)

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Give how many values were at most as large as each bound."""
        below = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            yield "+Inf" if bound == float("inf") else str(bound), below


Child = TypeVar("Child", CounterChild, GaugeChild, HistogramChild)


class Family(Generic[Child]):
    """A metric with its children, one per combination of labels' values.

    Args:
        declared: what it is.
        prefix: of its name.
    """

    make: ClassVar[type[Any]]

    def __init__(self, declared: Declaration, prefix: str) -> None:
        self.declared = declared
        self.name = prefix + declared.name
        self._children: dict[tuple[str, ...], Child] = {}
        if not declared.labels:
            self._children[()] = self.make(declared)

    def labels(self, *values: str) -> Child:
        """Give the child of these values, always the same one. Cost: 0.1 us."""
        child = self._children.get(values)
        return self._add(values) if child is None else child

    def remove(self, *values: str) -> None:
        """Forget a child, if there is one."""
        self._children.pop(values, None)

    def forget(self, label: str, gone: Collection[str]) -> None:
        """Forget all children that have one of some values for a label."""
        if self.declared.labels == (label,):
            for value in gone:
                self._children.pop((value,), None)
        elif label in self.declared.labels:
            at = self.declared.labels.index(label)
            for values in [each for each in self._children if each[at] in gone]:
                del self._children[values]

    def collect(self) -> Iterable[Metric]:
        """Write it for prometheus_client."""
        family = _FAMILIES[self.declared.kind](
            self.name, self.declared.says, labels=self.declared.labels
        )
        for values, child in self._children.items():
            if isinstance(child, HistogramChild):
                family.add_metric(values, list(child.buckets()), child.sum)
            else:
                family.add_metric(values, child.value)
        return (family,)

    def _add(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self.declared.labels):
            raise ValueError(f"{self.name} has the labels {self.declared.labels}")
        if len(self._children) >= limits.METRIC_CHILDREN_MAX:
            values = (OTHER,) * len(values)
        return self._children.setdefault(values, self.make(self.declared))

    @property
    def _only(self) -> Child:
        return self._children[()]


class Counter(Family[CounterChild]):
    """Counts what happened."""

    make = CounterChild

    def inc(self, by: float = 1.0) -> None:
        """Add to one without labels."""
        self._only.inc(by)


class Gauge(Family[GaugeChild]):
    """Says how much there is."""

    make = GaugeChild

    def set(self, number: float) -> None:
        """Set one without labels."""
        self._only.set(number)

    def set_function(self, source: Callable[[], float]) -> None:
        """Ask for the number of one without labels."""
        self._only.set_function(source)


class Histogram(Family[HistogramChild]):
    """Counts values by their size."""

    make = HistogramChild


_FAMILIES: Final[dict[Kind, Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_CLASSES: Final[dict[Kind, Callable[[Declaration, str], Any]]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": Histogram,
}


def counter(name: str, labels: str, unit: str, says: str, do: str = "") -> Counter:
    """Declare a counter in the body of a `Metrics`; labels are separated by spaces."""
    return cast("Counter", Declaration("counter", name, tuple(labels.split()), unit, says, do))


def gauge(name: str, labels: str, unit: str, says: str, do: str = "") -> Gauge:
    """Declare a gauge, alike."""
    return cast("Gauge", Declaration("gauge", name, tuple(labels.split()), unit, says, do))


def histogram(
    name: str, labels: str, buckets: tuple[float, ...], says: str, do: str = ""
) -> Histogram:
    """Declare a histogram of seconds, alike."""
    declared = Declaration(
        "histogram", name, tuple(labels.split()), "seconds", says, do, buckets=buckets
    )
    return cast("Histogram", declared)


class Metrics(Collector):
    """The metrics of a service, on a registry of their own.

    Its class body is the table of declarations, those of tables that it derives from behind them;
    each attribute is a metric in instances.
    """

    prefix: ClassVar[str]

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._families: list[Family[Any]] = []
        self._held: collections.Counter[tuple[str, str]] = collections.Counter()
        for attribute, declared in self._table().items():
            family = _CLASSES[declared.kind](declared, self.prefix)
            setattr(self, attribute, family)
            self._families.append(family)
        self.registry.register(self)

    @classmethod
    def declarations(cls) -> list[Declaration]:
        """Give the table."""
        return list(cls._table().values())

    @classmethod
    def _table(cls) -> dict[str, Declaration]:
        tables = (vars(each).items() for each in cls.__mro__)
        return {name: each for table in tables for name, each in table
                if isinstance(each, Declaration)}  # fmt: skip

    def hold(self, label: str, value: str) -> None:
        """Keep what is counted for a value of a label, until it is released as often."""
        self._held[label, value] += 1

    def release(self, label: str, values: Iterable[str]) -> None:
        """Forget what was counted for values of a label that nobody else holds."""
        self._held.subtract((label, value) for value in values)
        gone = {value for of, value in self._held if of == label and self._held[of, value] <= 0}
        self._held = +self._held
        self.forget(label, gone)

    def forget(self, label: str, gone: Collection[str]) -> None:
        """Forget what was counted for values of a label that there are no more."""
        for family in self._families if gone else ():
            family.forget(label, gone)

    def collect(self) -> Iterable[Metric]:
        """Write all of them."""
        for family in self._families:
            yield from family.collect()


def markdown(table: type[Metrics]) -> str:
    """Write a table of declarations as docs/METRICS.md has it."""
    head = f"| `{table.prefix}...` | type, unit | says | do |\n| --- | --- | --- | --- |\n"
    return head + "".join(
        f"| `{each.shown_name}{_braces(each.labels)}` | {each.kind}, {each.unit} "
        f"| {each.says} | {each.do} |\n"
        for each in table.declarations()
    )


def _braces(labels: tuple[str, ...]) -> str:
    return f"{{{', '.join(labels)}}}" if labels else ""
