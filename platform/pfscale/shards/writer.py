"""One shard: the events of one entry range of one source, extracted and written to Parquet in one step.

What became of the range (events kept, dropped and why, class counts, energies) is kept in the file's own metadata, so that a rerun reads
it from a complete shard instead of making the shard again.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError, PfscaleError, ResourceError
from pfscale.shards.events import DroppedEvent, EventTable, extract_events
from pfscale.shards.manifest import content_hash
from pfscale.shards.schema import CLASSES, SPLITS, arrow_schema

RECORD_KEY = b"pfscale_shard"
UNFINISHED = ".shard.tmp"
EVENTS_AT_ONCE = 128  # bounds the memory of a worker whatever the size of files, shards and row groups
# The Parquet files are read by many and written once: zstd is 20% smaller than snappy at the same reading speed.
COMPRESSION = "zstd"


@dataclass(frozen=True)
class Unit:
    """The work of one task: entries [start, stop) of a source become the shard `file`."""

    path: str
    detector: str
    start: int
    stop: int
    rows_per_group: int
    file: str
    identity: str  # of source contents and settings: a shard with another one is not this unit's


@dataclass(frozen=True)
class ShardContents:
    """What is in a shard and what was left out."""

    identity: str
    num_events: int
    splits: dict[str, int]
    track_classes: dict[str, int]
    cluster_classes: dict[str, int]
    energy_visible: float
    energy_targets: float
    energy_dropped: float
    num_particles: int
    num_surrogates: int
    dropped: tuple[tuple[int, str], ...]


def shard_file(name: str, digest: str, start: int, stop: int) -> str:
    """The name of a shard: readable, and the same for the same entries of the same file."""
    stem = "".join(c if c.isalnum() or c in "-." else "_" for c in name.partition(".")[0])[:80]
    return f"{stem}-{digest[:8]}-{start:09d}-{stop:09d}.parquet"


def unit_identity(digest: str, name: str, detector: str, rows_per_group: int, version: int) -> str:
    """Names everything that the contents of a shard depend on, besides its entry range."""
    return content_hash("shard", digest, name, detector, rows_per_group, version)


def write_shard(unit: Unit, directory: Path) -> ShardContents:
    """The contents of the unit's shard in `directory`, written unless it is there already.

    Raises:
        InputFileError: the source cannot be read; nothing is left behind.
        ResourceError: the disk is full; nothing is left behind.
    """
    final = directory / unit.file
    done = _complete(final, unit)
    if done is not None:
        return done
    unfinished = directory / f".{unit.file}.{os.getpid()}{UNFINISHED}"
    try:
        contents = _write(unit, unfinished)
        unfinished.replace(final)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "make room and run the same command again: complete shards are kept"
            raise ResourceError("the disk is full", where=str(directory), hint=hint) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)
    return contents


def _complete(path: Path, unit: Unit) -> ShardContents | None:
    """What a finished shard of this unit says of itself; None: there is none."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        values = json.loads(metadata[RECORD_KEY])
    except (OSError, KeyError, ValueError):  # pyarrow's own errors are ValueErrors
        return None
    contents = ShardContents(**{**values, "dropped": tuple((entry, reason) for entry, reason in values["dropped"])})
    return contents if contents.identity == unit.identity else None


def _write(unit: Unit, path: Path) -> ShardContents:
    detector = find_detector(unit.detector)
    totals = _Totals()
    waiting: list[pa.Table] = []
    with open_source(unit.path) as source, pq.ParquetWriter(path, arrow_schema(), compression=COMPRESSION) as writer:
        for start in range(unit.start, unit.stop, EVENTS_AT_ONCE):
            events = extract_events(source, detector, start, min(start + EVENTS_AT_ONCE, unit.stop), with_truth=True)
            totals.add(events)
            waiting = _write_full_groups(writer, [*waiting, events.table], unit.rows_per_group)
        rest = pa.concat_tables(waiting) if waiting else arrow_schema().empty_table()
        if rest.num_rows:
            writer.write_table(rest, row_group_size=unit.rows_per_group)
        contents = totals.contents(unit.identity)
        writer.add_key_value_metadata({RECORD_KEY.decode(): json.dumps(contents.__dict__)})
    return contents


def _write_full_groups(writer: pq.ParquetWriter, tables: list[pa.Table], size: int) -> list[pa.Table]:
    """Writes the row groups of exactly `size` that the tables fill; returns what is left. Dropped events leave no short groups."""
    table = pa.concat_tables(tables)
    full = table.num_rows - table.num_rows % size
    if full:
        writer.write_table(table.slice(0, full), row_group_size=size)
    return [table.slice(full)] if full < table.num_rows else []


class _Totals:
    """Sums over the extracted parts of a shard."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.splits: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
        self.classes = {column: np.zeros(len(CLASSES), np.int64) for column in ("track_target", "cluster_target")}
        self.dropped: list[DroppedEvent] = []

    def add(self, events: EventTable) -> None:
        table = events.table
        self.sums["num_events"] += table.num_rows
        for name in ("energy_visible", "energy_targets", "energy_dropped", "num_particles", "num_surrogates"):
            self.sums[name] += getattr(events, name)
        self.splits.update(table.column("event").combine_chunks().field("split").to_pylist())
        for column, counts in self.classes.items():
            codes = table.column(column).combine_chunks().flatten().field("class").to_numpy()
            counts += np.bincount(codes, minlength=len(CLASSES))
        self.dropped += events.dropped

    def contents(self, identity: str) -> ShardContents:
        by_class = {column: dict(zip(CLASSES, counts.tolist(), strict=True)) for column, counts in self.classes.items()}
        sums: dict[str, Any] = dict(self.sums)
        return ShardContents(
            identity=identity,
            splits=dict(self.splits),
            track_classes=by_class["track_target"],
            cluster_classes=by_class["cluster_target"],
            dropped=tuple((event.entry, event.reason) for event in self.dropped),
            **sums,
        )


@dataclass(frozen=True)
class UnitResult:
    """What came of a unit: its contents, or the error that its source raised."""

    unit: Unit
    contents: ShardContents | None = None
    error: PfscaleError | None = None


def run_unit(unit: Unit, directory: Path) -> UnitResult:
    """The result of a unit; a source that cannot be read is a result, too. Everything else (disk, memory, bugs) raises."""
    try:
        return UnitResult(unit, contents=write_shard(unit, directory))
    except InputFileError as error:
        return UnitResult(unit, error=error)
