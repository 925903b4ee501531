"""What a gate on a data set is: events go in, measurements with their expected ranges come out; pass, fail, or too few entries to say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pfscale.physics.bootstrap import Estimate, EventBootstrap, event_bootstrap, ratio
from pfscale.physics.response import summarise
from pfscale.shards.manifest import Manifest
from pfscale.shards.ragged import list_leaves, struct_leaf
from pfscale.shards.schema import COLUMNS

MIN_ENTRIES = 10  # fewer have no median worth the name
MIN_EVENTS_TO_RESAMPLE = 10  # with fewer events the error comes from resampling entries, as if they were independent
SIGNIFICANCE = 3.0  # a value outside its range by less than this many standard errors is a fluctuation: more events will tell
BOOTSTRAP_SEED = 1
MAX_EXAMPLES = 3  # of violations named for each kind

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Status(StrEnum):
    """What a gate says: TOO_FEW is too few entries to tell, neither pass nor fail. Only FAIL makes the command fail."""

    PASS = "pass"
    FAIL = "FAIL"
    TOO_FEW = "too few"
    NOT_APPLICABLE = "n/a"


_WORST_FIRST = (Status.FAIL, Status.TOO_FEW, Status.PASS, Status.NOT_APPLICABLE)


def worst(statuses: list[Status]) -> Status:
    """FAIL if any is, else TOO_FEW if any is, else PASS if any is."""
    return next((status for status in _WORST_FIRST if status in statuses), Status.NOT_APPLICABLE)


@dataclass(frozen=True)
class Measurement:
    """One number of a gate: `value` is expected in [low, high] (inclusive, `unit`); `num_entries` went into it."""

    what: str
    low: float
    high: float
    value: Estimate
    num_entries: int
    status: Status
    unit: str = ""

    @property
    def expected(self) -> str:
        """The range in words."""
        unit = f" {self.unit}" if self.unit else ""
        if math.isnan(self.low):
            return ""
        if self.low == self.high:
            return f"{self.low:g}{unit}"
        if math.isinf(self.high):
            return f"≥ {self.low:g}{unit}"
        return f"≤ {self.high:g}{unit}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}{unit}"

    @property
    def observed(self) -> str:
        """The value with its uncertainty in words."""
        value, error = self.value.value, self.value.error
        if math.isnan(value):
            return "" if self.status is Status.NOT_APPLICABLE else "-"
        if math.isfinite(error):
            return str(self.value) if error >= 1e-5 else f"{value:.5f}"
        return f"{value:.0f}" if value == round(value) else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3f}"


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


class Gate:
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

    def add(self, batch: EventBatch) -> None:
        """Takes a batch of events in."""
        raise NotImplementedError

    def result(self) -> GateResult:
        """What all events together say."""
        raise NotImplementedError

    def _result(self, *measurements: Measurement, **others: Any) -> GateResult:
        return GateResult(self.name, self.title, self.definition, measurements, **others)

    def _not_applicable(self, note: str) -> GateResult:
        nothing = Measurement(note, math.nan, math.nan, Estimate(math.nan, math.nan), 0, Status.NOT_APPLICABLE)
        return self._result(nothing, note=note)


class Entries:
    """Values with the event that each belongs to, gathered batch by batch."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.float32]] = []
        self._events: list[NDArray[np.int32]] = []
        self._num_events = 0

    def add(self, values: ArrayLike, event: ArrayLike, num_events: int) -> None:
        """Takes in values of the events 0 ... num_events - 1 of the next batch."""
        self._values.append(np.asarray(values, np.float32))
        self._events.append((np.asarray(event, np.int64) + self._num_events).astype(np.int32))
        self._num_events += num_events

    @property
    def values(self) -> NDArray[np.float32]:
        """All values."""
        return np.concatenate([*self._values, np.zeros(0, np.float32)])

    def median(self, what: str, low: float, high: float, *, unit: str = "") -> Measurement:
        """The median, expected in [low, high], with its error from resampling events (entries, where there are few events)."""
        values = self.values
        event, bootstrap = self._resampling()
        estimate = summarise(values, event, bootstrap).median
        return Measurement(what, low, high, estimate, len(values), judge(estimate, len(values), low, high), unit)

    def fraction_within(self, what: str, low: float, high: float, *, at_least: float) -> Measurement:
        """The fraction of values in [low, high], expected to be `at_least` so large: sees mix-ups, which a median does not."""
        values = self.values
        event, bootstrap = self._resampling()
        inside = (values >= low) & (values <= high)
        num_inside, num_all = (np.bincount(event, weights, minlength=bootstrap.num_events)[:, None] for weights in (inside, None))
        (estimate,) = ratio(num_inside, num_all, bootstrap)
        return Measurement(what, at_least, math.inf, estimate, len(values), judge(estimate, len(values), at_least, math.inf))

    def _resampling(self) -> tuple[NDArray[np.int32], EventBootstrap]:
        """(what each value is resampled with, the replicas): its event, or itself where there are few events."""
        event, num_events = np.concatenate([*self._events, np.zeros(0, np.int32)]), self._num_events
        if len(np.unique(event)) < MIN_EVENTS_TO_RESAMPLE:
            event, num_events = np.arange(len(event), dtype=np.int32), len(event)
        return event, event_bootstrap(num_events, seed=BOOTSTRAP_SEED)


def judge(estimate: Estimate, num_entries: int, low: float, high: float) -> Status:
    """PASS inside [low, high], FAIL outside; TOO_FEW below MIN_ENTRIES entries, or if the distance may be a fluctuation."""
    if num_entries < MIN_ENTRIES:
        return Status.TOO_FEW
    if low <= estimate.value <= high:
        return Status.PASS
    distance = max(low - estimate.value, estimate.value - high)
    return Status.TOO_FEW if distance <= SIGNIFICANCE * estimate.error else Status.FAIL


class Violations:
    """Counts of what must not happen, kind by kind, with the first events in which it did."""

    def __init__(self) -> None:
        self._checked: dict[str, int] = {}
        self._found: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, is_bad: Mask, event: ArrayLike, batch: EventBatch) -> None:
        """Takes in whether each of some rows, whose events are `event`, is bad."""
        self._checked[kind] = self._checked.get(kind, 0) + len(is_bad)
        self._found[kind] = self._found.get(kind, 0) + int(is_bad.sum())
        examples = self._examples.setdefault(kind, [])
        if is_bad.any() and len(examples) < MAX_EXAMPLES:
            for number in np.unique(np.asarray(event)[is_bad])[: MAX_EXAMPLES - len(examples)]:
                examples.append(f"{kind}: {batch.name_event(int(number))}")

    def measurements(self) -> tuple[Measurement, ...]:
        """One per kind: how often it happened, expected 0."""
        return tuple(count_violations(kind, self._found[kind], checked) for kind, checked in self._checked.items())

    def examples(self) -> tuple[str, ...]:
        """The first violations."""
        return tuple(example for examples in self._examples.values() for example in examples)


def count_violations(what: str, found: int, checked: int) -> Measurement:
    """A measurement that passes if nothing was found, and is not applicable where nothing could be checked."""
    status = Status.FAIL if found else Status.PASS if checked else Status.NOT_APPLICABLE
    return Measurement(what, 0.0, 0.0, Estimate(float(found), math.nan), checked, status)
