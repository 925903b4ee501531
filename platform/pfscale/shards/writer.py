"""One shard: the events of one entry range of one source, extracted and written to Parquet in one step.

What became of the range (events kept, dropped and why, class counts, energies) is kept in the file's own metadata, so that a rerun reads
it from a complete shard instead of making the shard again.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError
from pfscale.shards.events import DroppedEvent, EventTable, stream_events
from pfscale.shards.manifest import content_hash
from pfscale.shards.schema import CLASSES, SPLITS, arrow_schema, discrete_leaves
from pfscale.shards.sources import Source, not_the_network, require_unchanged
from pfscale.shards.storage import Folder

RECORD_KEY = b"pfscale_shard"
PARQUET_OPTIONS: dict[str, Any] = {
    # The files are read by many and written once: zstd is 20% smaller than snappy at the same reading speed.
    "compression": "zstd",
    # Floats hardly ever repeat: trying a dictionary for them doubles the time of writing and makes files a third larger.
    "use_dictionary": discrete_leaves(),
    "write_page_checksum": True,
}


@dataclass(frozen=True, slots=True)
class Unit:
    """The work of one task: entries [start, stop) of a source become the shard `file`.

    Attributes:
        version, digest: of the source when it was examined.
        identity: of source contents and settings: a shard with another one is not this unit's.
    """

    path: str
    name: str
    version: str
    digest: str
    detector: str
    start: int
    stop: int
    rows_per_group: int
    file: str
    identity: str


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


def make_units(source: Source, detector: str, *, rows_per_shard: int, rows_per_group: int, extraction_version: int) -> list[Unit]:
    """The entry ranges of a source; they do not depend on the number of workers."""
    identity = content_hash("shard", source.digest, source.name, detector, rows_per_group, extraction_version)
    return [
        Unit(
            path=source.path,
            name=source.name,
            version=source.version,
            digest=source.digest,
            detector=detector,
            start=start,
            stop=min(start + rows_per_shard, source.num_entries),
            rows_per_group=rows_per_group,
            file=shard_file(source.name, source.digest, start, min(start + rows_per_shard, source.num_entries)),
            identity=identity,
        )
        for start in range(0, source.num_entries, rows_per_shard)
    ]


def shard_file(name: str, digest: str, start: int, stop: int) -> str:
    """The name of a shard: readable, the same for the same entries of the same file, and no other's; in ASCII, for any file system."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "_" for c in name.removesuffix(".root"))[:80]
    # what is left of a name need not be unique, so the whole of it is in the hash
    return f"{stem}-{content_hash(name, digest)}-{start:09d}-{stop:09d}.parquet"


def write_shard(unit: Unit, folder: Folder) -> ShardContents:
    """The contents of the unit's shard in `folder`, written unless it is there already.

    Raises:
        InputFileError: the source cannot be read, or has changed since it was examined; nothing is left behind.
        ResourceError: the disk is full, or the source or the folder cannot be reached; nothing is left behind.
    """
    done = _complete(unit, folder)
    if done is not None:
        return done
    with folder.draft(unit.file) as file:
        try:
            contents = _write(unit, file)
        except InputFileError as error:
            error = not_the_network(unit.path, error)
            require_unchanged(unit.path, version=unit.version, digest=unit.digest)  # a file that is being written looks damaged
            raise error from None
        require_unchanged(unit.path, version=unit.version, digest=unit.digest)
    return contents


def _complete(unit: Unit, folder: Folder) -> ShardContents | None:
    """What a finished shard of this unit says of itself; None: there is none."""
    try:
        with folder.open_parquet(unit.file) as parquet:
            values = json.loads((parquet.metadata.metadata or {})[RECORD_KEY])
    except (OSError, KeyError, ValueError):  # pyarrow's own errors are ValueErrors
        return None
    contents = ShardContents(**{**values, "dropped": tuple((entry, reason) for entry, reason in values["dropped"])})
    return contents if contents.identity == unit.identity else None


def _write(unit: Unit, file: IO[bytes]) -> ShardContents:
    detector = find_detector(unit.detector)
    totals = _Totals()
    waiting: list[pa.Table] = []
    with (
        open_source(unit.path) as source,
        pq.ParquetWriter(file, arrow_schema(), **PARQUET_OPTIONS) as writer,
    ):
        for events in stream_events(source, detector, unit.start, unit.stop, with_truth=True):
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


Outcome = ShardContents | InputFileError  # a source that cannot be read is an outcome, too


def write_or_tell(unit: Unit, folder: Folder) -> Outcome:
    """What came of a unit. Everything but a source that cannot be read (disk, memory, network, bugs) raises."""
    try:
        return write_shard(unit, folder)
    except InputFileError as error:
        return error
