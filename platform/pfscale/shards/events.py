"""Events of a file as an Arrow table in the shard schema: what ingest writes and what reconstruction reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.extraction import Column, ExtractedEvents, Lists, extract
from pfscale.edm4hep.reader import EventSource
from pfscale.shards.manifest import NO_VISIBLE_PARTICLE
from pfscale.shards.schema import SCHEMA_VERSION, arrow_schema
from pfscale.shards.splits import event_uids, split_hashes, splits_of

EXTRACTION_VERSION = 4  # raised whenever the same file would give other rows


@dataclass(frozen=True)
class DroppedEvent:
    """An entry of a source file that is not in the shards, and why."""

    entry: int
    reason: str


@dataclass(frozen=True)
class EventTable:
    """Events in the shard schema, those left out, and sums over the events kept (GeV; zero without truth)."""

    table: pa.Table
    dropped: tuple[DroppedEvent, ...]
    energy_visible: float = 0.0
    energy_targets: float = 0.0
    energy_dropped: float = 0.0
    num_particles: int = 0
    num_surrogates: int = 0


def stream_events(source: EventSource, detector: Detector, start: int, stop: int, *, with_truth: bool) -> Iterator[EventTable]:
    """The entries [start, stop) of a file in order, as `extract_events` gives them, in parts that fit into a worker's memory.

    Raises:
        InputFileError: as `extract_events`.
    """
    # No entries: this reads no data, but shows which branches are needed, so that a remote file sends them together from the start.
    extract_events(source, detector, start, start, with_truth=with_truth)
    for first, last in source.spans(start, stop):
        yield extract_events(source, detector, first, last, with_truth=with_truth)


def extract_events(source: EventSource, detector: Detector, start: int, stop: int, *, with_truth: bool) -> EventTable:
    """The entries [start, stop) of a file as rows of the shard schema.

    With truth, events that cannot be used or show no particle are left out and named. Without, only the columns `event`, `track`,
    `cluster` and `baseline` are there, and there is a row for every entry: one that cannot be used has no elements and is named.

    Raises:
        InputFileError: a needed collection is missing, or the data cannot be read.
    """
    extracted = extract(source, detector, start, stop, with_truth=with_truth)
    table = _to_arrow(extracted)
    reasons = extracted.problems | {int(event): NO_VISIBLE_PARTICLE for event in extracted.invisible}
    dropped = tuple(DroppedEvent(start + event, reason) for event, reason in sorted(reasons.items()))
    if not with_truth:
        return EventTable(_emptied(table, sorted(reasons)), dropped)
    kept = np.ones(extracted.num_events, bool)
    kept[list(reasons)] = False
    account = extracted.account
    assert account is not None
    return EventTable(
        table=table if kept.all() else table.filter(pa.array(kept)),
        dropped=dropped,
        energy_visible=float(account.visible[kept].sum()),
        energy_targets=float(account.targets[kept].sum()),
        energy_dropped=float(account.dropped[kept].sum()),
        num_particles=extracted.num_particles,
        num_surrogates=extracted.num_surrogates,
    )


def _to_arrow(extracted: ExtractedEvents) -> pa.Table:
    schema = arrow_schema()
    columns = dict(extracted.columns)
    columns["event"] = _identified(columns["event"])
    names = [name for name in schema.names if name in columns]
    arrays = [_column_array(columns[name], schema.field(name).type) for name in names]
    fields = pa.schema([schema.field(name) for name in names], metadata={"pfscale_schema_version": str(SCHEMA_VERSION)})
    return pa.Table.from_arrays(arrays, schema=fields)


def _identified(column: Column) -> Column:
    """The event column with uid, split and split hash."""
    fields = column.fields
    identity: Sequence[Any] = [fields["entry"].tolist(), fields["run"].tolist(), fields["number"].tolist()]  # type: ignore[union-attr]
    files = list(fields["file"])  # type: ignore[arg-type]
    file = files[0] if files else ""
    hashes = split_hashes(file, *identity)
    return Column({**fields, "uid": event_uids(file, *identity), "split_hash": hashes, "split": splits_of(hashes)})


def _column_array(column: Column, kind: pa.DataType) -> pa.Array:
    struct = kind.value_type if pa.types.is_list(kind) else kind
    children = [_leaf(column.fields[leaf.name], leaf.type) for leaf in struct]
    values = pa.StructArray.from_arrays(children, fields=list(struct))
    if column.offsets is None:
        return values
    return pa.ListArray.from_arrays(pa.array(column.offsets.astype(np.int32)), values, type=kind)


def _leaf(values: NDArray[Any] | Lists | Sequence[str], kind: pa.DataType) -> pa.Array:
    if isinstance(values, Lists):
        flat = pa.array(values.values.astype(np.int32))
        return pa.ListArray.from_arrays(pa.array(values.offsets.astype(np.int32)), flat, type=kind)
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.asarray(values, np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    if not isinstance(values, np.ndarray):
        return pa.array(values, kind)
    return pa.array(values.astype(kind.to_pandas_dtype()), kind)


def _emptied(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """The table with every list of the given rows empty."""
    if not rows:
        return table
    spoiled = np.isin(np.arange(table.num_rows), rows)
    arrays = []
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_list(column.type):
            # a list masked as null has no elements; rebuilding it from the lengths makes it empty instead of null
            kept = pa.ListArray.from_arrays(column.offsets, column.values, mask=pa.array(spoiled)).drop_null()
            offsets = np.concatenate([[0], np.cumsum(np.where(spoiled, 0, np.diff(column.offsets.to_numpy())))])
            column = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), kept.flatten(), type=column.type)
        arrays.append(column)
    return pa.Table.from_arrays(arrays, schema=table.schema)
