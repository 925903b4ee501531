"""Files of candidates, one for each source file: their schema, and how they are written and recognised, as Parquet and as ROOT."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pfscale.edm4hep.candidate_writer import CandidateEvents, CandidateTree, read_own_metadata
from pfscale.edm4hep.detectors import Detector
from pfscale.shards.ragged import RaggedEvents, struct_leaf
from pfscale.shards.storage import Folder
from pfscale.training.head_chain import ChainColumns, HeadChain
from pfscale.training.inference import Prediction

FORMATS = ("parquet", "root")
CANDIDATES_VERSION = 1  # raised whenever the same source and model would give another file
_RECORD, _PREFIX = "candidates", "pfscale_"  # Parquet's keys have a prefix, because other programs put theirs beside them
_CANDIDATE_FIELDS = {
    "element_index": pa.int32(),
    "is_track": pa.bool_(),
    "pdg": pa.int32(),
    "charge": pa.int8(),
    "px": pa.float32(),
    "py": pa.float32(),
    "pz": pa.float32(),
    "energy": pa.float32(),
    "scores": pa.list_(pa.field("element", pa.float32(), nullable=False), 6),
}
# Floats hardly ever repeat: trying a dictionary for them only takes time.
_DISCRETE = [f"candidate.list.element.{name}" for name, kind in _CANDIDATE_FIELDS.items() if pa.types.is_primitive(kind)][:4]
_DISCRETE += ["event.run", "event.file"]


class CandidateFile(BaseModel):
    """What a file of candidates says of itself, and what the manifest says of it.

    Attributes:
        file: its name in the output folder.
        identity: of source contents, model and options: a file with another one is of something else.
        path, name, size, digest: of the source.
        detector, simulation: of the source, as it was read.
        on_trust: nothing in the source says or shows that it is of this detector, and nobody else has said so.
        unusable: (entry, reason) of events that could not be used; they have no candidates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    identity: str
    path: str
    name: str
    size: int
    digest: str
    detector: str
    simulation: str
    on_trust: bool = False
    num_events: int = 0
    num_candidates: int = 0
    unusable: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class FoundCandidates:
    """Candidates of consecutive events of a source.

    Attributes:
        table: the events' rows (column `event`).
        num_clusters: (C, E) clusters of each event in each of the detector's collections; None where ROOT is not written.
        said: by downstream heads; None where there are none.
    """

    table: pa.Table
    events: RaggedEvents
    prediction: Prediction
    num_clusters: NDArray[np.int64] | None = None
    said: ChainColumns | None = None


class CandidateWriter(ABC):
    """A file of candidates that is being written."""

    @abstractmethod
    def add(self, found: FoundCandidates) -> None:
        """Appends events."""

    @abstractmethod
    def finish(self, record: CandidateFile, about: dict[str, str]) -> None:
        """Writes what the file says of itself: its record, and what else somebody who finds it wants to know."""


@contextmanager
def candidate_writer(
    folder: Folder, name: str, file_format: str, detector: Detector, *, width: int | None, chain: HeadChain
) -> Iterator[CandidateWriter]:
    """The writer of the file `name`, which has its name when the block ends, and leaves nothing behind when the block raises.

    Args:
        width: of the latents; None without.
        chain: heads whose columns there are, too.
    """
    if file_format == "root":
        with tempfile.TemporaryDirectory() as scratch:  # uproot goes back and forth in a file: none that a store could take
            path = Path(scratch) / "candidates.root"
            with CandidateTree(path, detector) as tree:
                yield _RootWriter(tree)
            folder.put(path, name)
        return
    with folder.draft(name) as file, _parquet_writer(file, width, chain) as writer:
        yield _ParquetWriter(writer, chain)


def read_record(folder: Folder, name: str, file_format: str) -> CandidateFile | None:
    """What a complete file of candidates says of itself; None where there is none."""
    try:
        if file_format == "root":
            text = read_own_metadata(folder.locate(name)).get(_RECORD, "")
        else:
            with folder.open_parquet(name) as parquet:
                text = (parquet.metadata.metadata or {}).get(f"{_PREFIX}{_RECORD}".encode(), b"").decode()
        return CandidateFile.model_validate_json(text)
    except (OSError, pa.ArrowException, ValidationError):
        return None


def candidate_schema(width: int | None, chain: HeadChain | None = None) -> pa.Schema:
    """The schema of the Parquet files; `width`: of the latents, None without; `chain`: heads, None: without."""
    event = pa.struct([pa.field(n, t, nullable=False) for n, t in (("uid", pa.uint64()), ("run", pa.int64()), ("number", pa.int64()))])
    event = pa.struct([*event, pa.field("file", pa.string(), nullable=False), pa.field("entry", pa.int64(), nullable=False)])
    candidate = pa.struct([pa.field(name, kind, nullable=False) for name, kind in _CANDIDATE_FIELDS.items()])
    fields = [pa.field("event", event, nullable=False), pa.field("candidate", _list_of(candidate), nullable=False)]
    if width is not None:
        fields.append(pa.field("latent", _list_of(pa.list_(pa.field("element", pa.float16(), nullable=False), width)), nullable=False))
    if chain is not None and chain.heads:
        fields += chain.schema_fields()
    return pa.schema(fields)


class _ParquetWriter(CandidateWriter):
    def __init__(self, writer: pq.ParquetWriter, chain: HeadChain) -> None:
        self._writer, self._chain = writer, chain

    def add(self, found: FoundCandidates) -> None:
        self._writer.write_table(_to_arrow(found, self._writer.schema, self._chain))

    def finish(self, record: CandidateFile, about: dict[str, str]) -> None:
        values = {**about, _RECORD: record.model_dump_json()}
        self._writer.add_key_value_metadata({f"{_PREFIX}{key}": value for key, value in values.items()})


class _RootWriter(CandidateWriter):
    def __init__(self, tree: CandidateTree) -> None:
        self._tree = tree

    def add(self, found: FoundCandidates) -> None:
        self._tree.extend(_to_events(found))

    def finish(self, record: CandidateFile, about: dict[str, str]) -> None:
        self._tree.write_metadata({**about, _RECORD: record.model_dump_json()})


def _parquet_writer(file: IO[bytes], width: int | None, chain: HeadChain) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, candidate_schema(width, chain), compression="zstd", use_dictionary=_DISCRETE, write_page_checksum=True)


def _to_arrow(found: FoundCandidates, schema: pa.Schema, chain: HeadChain) -> pa.Table:
    event = found.table.column("event").combine_chunks()
    kind = schema.field("event").type
    arrays: list[pa.Array] = [pa.StructArray.from_arrays([event.field(f.name) for f in kind], fields=list(kind))]
    candidates, latents = found.prediction.candidates, found.prediction.latents
    children = []
    for name, dtype in _CANDIDATE_FIELDS.items():
        values = getattr(candidates, name)
        if pa.types.is_fixed_size_list(dtype):
            children.append(pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), type=dtype))
        else:
            children.append(pa.array(values.astype(dtype.to_pandas_dtype()), dtype))
    struct = schema.field("candidate").type.value_type
    starts = np.searchsorted(candidates.event, np.arange(found.table.num_rows + 1)).astype(np.int32)
    listed = pa.StructArray.from_arrays(children, fields=list(struct))
    arrays.append(pa.ListArray.from_arrays(pa.array(starts), listed, type=schema.field("candidate").type))
    if latents is not None:
        vector = schema.field("latent").type.value_type
        flat = pa.FixedSizeListArray.from_arrays(pa.array(latents.astype(np.float16).ravel()), type=vector)
        arrays.append(pa.ListArray.from_arrays(pa.array(found.events.offsets.astype(np.int32)), flat, type=schema.field("latent").type))
    if found.said is not None:
        arrays += chain.arrays(found.said)
    return pa.Table.from_arrays(arrays, schema=schema)


def _to_events(found: FoundCandidates) -> CandidateEvents:
    candidates, events = found.prediction.candidates, found.events
    num_tracks = np.bincount(events.event[events.is_track], minlength=events.num_events)
    in_all = events.lengths - num_tracks
    # an event that cannot be used has no elements, whatever its collections hold
    num_clusters = in_all[None, :] if found.num_clusters is None else np.where(in_all > 0, found.num_clusters, 0)
    return CandidateEvents(
        number=struct_leaf(found.table, "event", "number"),
        run=struct_leaf(found.table, "event", "run"),
        weight=struct_leaf(found.table, "event", "weight"),
        event=candidates.event,
        num_tracks=num_tracks,
        num_clusters=num_clusters,
        element_index=candidates.element_index,
        pdg=np.asarray(candidates.pdg, np.int32),
        charge=np.asarray(candidates.charge, np.int8),
        energy=np.asarray(candidates.energy, np.float32),
        momentum=np.stack([candidates.px, candidates.py, candidates.pz], axis=1).astype(np.float32),
        scores=candidates.scores,
        latents=found.prediction.latents,
    )


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))
