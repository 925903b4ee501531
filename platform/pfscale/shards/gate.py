"""What a gate on a data set is: events go in, measurements with their expected ranges come out.

Most gates are a few lines on top of one of two: a `ViolationGate` names the rows that break a rule, a `RatioGate` gives ratios whose median
and core have to be where its `expectations` say.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pfscale.physics.bootstrap import Estimate
from pfscale.shards.manifest import Manifest
from pfscale.shards.measurement import Entries, Measurement, Status, count_violations, worst
from pfscale.shards.ragged import list_leaves, struct_leaf
from pfscale.shards.schema import COLUMNS

MAX_EXAMPLES = 3  # of violations named for each kind

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class GateResult:
    """What one gate found.

    Attributes:
        name: of the gate and of its figure's file.
        title: what is looked at, in a few words; `definition`: exactly what, in a sentence or two.
        measurements: the numbers; the gate's status is the worst of theirs.
        distributions: label -> values behind the measurements, for the figure.
        numbers: further numbers for the figure and for JSON.
        examples: the first violations, each with its event.
        note: why a gate is not applicable.
    """

    name: str
    title: str
    definition: str
    measurements: tuple[Measurement, ...]
    distributions: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    note: str = ""

    @property
    def status(self) -> Status:
        """The worst of the measurements'."""
        return worst([measurement.status for measurement in self.measurements])


@dataclass(frozen=True)
class Rows:
    """One list column, flat: `offsets` (E + 1,), `event` (n,) index in the batch, and the fields by name."""

    offsets: Indices
    event: Indices
    fields: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.event)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    @property
    def counts(self) -> Indices:
        """(E,) rows of each event."""
        return np.diff(self.offsets)

    @property
    def within(self) -> Indices:
        """(n,) index of each row within its event."""
        return np.arange(len(self.event)) - self.offsets[self.event]


class EventBatch:
    """Events of one row group as flat arrays. `shard` is their file, `first_row` their place in it."""

    def __init__(self, table: pa.Table, shard: str, first_row: int) -> None:
        self.table = table.combine_chunks()
        self.shard = shard
        self.rows_in_shard = np.arange(first_row, first_row + table.num_rows)

    def select(self, keep: Mask) -> EventBatch:
        """The batch of the events where `keep` is set."""
        if keep.all():
            return self
        chosen = EventBatch(self.table.filter(pa.array(keep)), self.shard, 0)
        chosen.rows_in_shard = self.rows_in_shard[keep]
        return chosen

    @property
    def num_events(self) -> int:
        """E, the number of events."""
        return self.table.num_rows

    def of_event(self, name: str, column: str = "event") -> NDArray[Any]:
        """(E,) values of a field of a struct column."""
        return struct_leaf(self.table, column, name)

    @cached_property
    def lists(self) -> Mapping[str, Rows]:
        """Every list column."""
        rows = {}
        for column, (is_list, _) in COLUMNS.items():
            if is_list:
                offsets, fields = list_leaves(self.table, column)
                rows[column] = Rows(offsets, np.repeat(np.arange(self.num_events), np.diff(offsets)), fields)
        return rows

    @cached_property
    def targets(self) -> Rows:
        """Track targets, then cluster targets, with `element` (index within the event, tracks first), `is_track` and `gen`.

        `gen` is the row in `gen_particle` of the particle that the element carries, -1: none. `offsets` are meaningless here.
        """
        tracks, clusters = self.lists["track_target"], self.lists["cluster_target"]
        fields = {name: np.concatenate([tracks[name], clusters[name]]) for name in tracks.fields}
        event = np.concatenate([tracks.event, clusters.event])
        fields["is_track"] = np.arange(len(event)) < len(tracks)
        fields["element"] = np.concatenate([tracks.within, clusters.within + tracks.counts[clusters.event]])
        first = self.lists["gen_particle"].offsets[:-1][event]
        fields["gen"] = np.where(fields["class"] > 0, first + fields["particle_number"], -1)
        return Rows(np.zeros(0, np.int64), event, fields)

    def name_event(self, event: int) -> str:
        """Where event number `event` of the batch is, for a person to look at it."""
        file, entry = self.of_event("file")[event], self.of_event("entry")[event]
        return f"{file}:{entry} (row {self.rows_in_shard[event]} of {self.shard})"


class Gate(ABC):
    """Sums over batches of events, then the result. A subclass says its name, title and definition, adds batches and measures.

    Attributes:
        is_physics: looks at a sample of very large data sets; the others look at every event.
        needs_usable_events: is shown only events whose indices and numbers are in order.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    definition: ClassVar[str]
    is_physics: ClassVar[bool] = False
    needs_usable_events: ClassVar[bool] = True

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def add(self, batch: EventBatch) -> None:
        """Takes a batch of events in."""

    @abstractmethod
    def result(self) -> GateResult:
        """What all events together say."""

    def _result(self, *measurements: Measurement, **others: Any) -> GateResult:
        return GateResult(self.name, self.title, self.definition, measurements, **others)

    def _not_applicable(self, note: str) -> GateResult:
        nothing = Measurement(note, math.nan, math.nan, Estimate(math.nan, math.nan), 0, Status.NOT_APPLICABLE)
        return self._result(nothing, note=note)


@dataclass(frozen=True)
class Rule:
    """One rule applied to the rows of a batch: which are bad, and the event of each. `kind` is what bad ones are called.

    `spoils_event`: an event with a bad row is not usable by gates that rely on the rule.
    """

    kind: str
    is_bad: Mask
    event: Indices
    spoils_event: bool = True


class ViolationGate(Gate):
    """Counts rows that break a rule, kind by kind, with the first events in which one did. Expected are none.

    Attributes:
        is_guard: events that it finds spoiled are shown to no gate that needs usable ones.
    """

    is_guard: ClassVar[bool] = False

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._checked: dict[str, int] = {}
        self._found: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    @abstractmethod
    def rules(self, batch: EventBatch) -> Iterator[Rule]:
        """Every rule applied to a batch; called once for each."""

    def add(self, batch: EventBatch) -> None:
        self.spoiled(batch)

    def spoiled(self, batch: EventBatch) -> Mask:
        """Takes a batch in and returns (E,) which of its events are not usable."""
        is_spoiled = np.zeros(batch.num_events, bool)
        for rule in self.rules(batch):
            self._count(rule, batch)
            if rule.spoils_event:
                is_spoiled[rule.event[rule.is_bad]] = True
        return is_spoiled

    def result(self) -> GateResult:
        return self._result(*self.counted(), examples=self.examples())

    def counted(self) -> tuple[Measurement, ...]:
        """One measurement per kind: how often it happened, expected 0."""
        return tuple(count_violations(kind, self._found[kind], checked) for kind, checked in self._checked.items())

    def examples(self) -> tuple[str, ...]:
        """The first violations."""
        return tuple(example for examples in self._examples.values() for example in examples)

    def _count(self, rule: Rule, batch: EventBatch) -> None:
        kind = rule.kind
        self._checked[kind] = self._checked.get(kind, 0) + len(rule.is_bad)
        self._found[kind] = self._found.get(kind, 0) + int(rule.is_bad.sum())
        examples = self._examples.setdefault(kind, [])
        if rule.is_bad.any() and len(examples) < MAX_EXAMPLES:
            for number in np.unique(rule.event[rule.is_bad])[: MAX_EXAMPLES - len(examples)]:
                examples.append(f"{kind}: {batch.name_event(int(number))}")


@dataclass(frozen=True)
class Median:
    """The median of the entries called `of` is expected in [low, high], in `unit`."""

    of: str
    low: float
    high: float
    unit: str = ""

    def measure(self, entries: Entries) -> Measurement:
        return entries.median(f"{self.of}, median", self.low, self.high, unit=self.unit)


@dataclass(frozen=True)
class Most:
    """Of the entries called `of` at least the fraction `at_least` is expected in [low, high]; `what` is this in words."""

    of: str
    low: float
    high: float
    at_least: float
    what: str = ""

    def measure(self, entries: Entries) -> Measurement:
        what = self.what or f"{self.of} in {self.low:g} to {self.high:g}"
        return entries.fraction_within(what, self.low, self.high, at_least=self.at_least)


class RatioGate(Gate):
    """Ratios (or differences) of what should be the same. `expectations`: the medians first, each drawn as a histogram, then the others."""

    is_physics = True
    expectations: ClassVar[tuple[Median | Most, ...]]

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.entries: defaultdict[str, Entries] = defaultdict(Entries)

    @abstractmethod
    def ratios(self, batch: EventBatch) -> Mapping[str, tuple[ArrayLike, ArrayLike]]:
        """(values, event of each) in a batch, by what they are of."""

    def add(self, batch: EventBatch) -> None:
        for of, (values, event) in self.ratios(batch).items():
            self.entries[of].add(values, event, batch.num_events)

    def expected(self) -> tuple[Median | Most, ...]:
        """The expectations that apply to these data."""
        return self.expectations

    def result(self) -> GateResult:
        expected = self.expected()
        distributions = {e.of: self.entries[e.of].values for e in expected if isinstance(e, Median)}
        return self._result(*(e.measure(self.entries[e.of]) for e in expected), distributions=distributions)
