"""A registered model on ROOT files: candidates (and latents) for every event, from files with or without truth."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pfscale.edm4hep.detectors import Detector, find_detector
from pfscale.edm4hep.reader import EventSource, open_source, require_detector
from pfscale.errors import OutputExistsError, PfscaleError
from pfscale.models.bundle import Bundle
from pfscale.shards.events import stream_events
from pfscale.shards.ragged import from_arrow
from pfscale.shards.sources import expand_sources
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.inference import Prediction, run_model
from pfscale.training.lookup import load_model, mismatches

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


@dataclass(frozen=True)
class Reconstruction:
    """What was written: one Parquet file per source file, in the order of the sources."""

    model: str
    files: tuple[Path, ...]
    num_events: int
    num_candidates: int
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        """Lines for the terminal."""
        mean = self.num_candidates / max(self.num_events, 1)
        head = f"{self.model}: {self.num_candidates} candidates in {self.num_events} events ({mean:.1f} per event)"
        return "\n".join([head, *(f"warning: {text}" for text in self.warnings), *(str(file) for file in self.files)])


def reconstruct(
    model: str,
    sources: Sequence[str],
    *,
    output: str | Path,
    detector: str | None = None,
    latents: bool = False,
    tracking_uri: str = "sqlite:///mlflow.db",
    progress: Callable[[int], None] | None = None,
) -> Reconstruction:
    """The files of candidates that the model finds in EDM4hep ROOT files, one row per event; truth is never read.

    Columns: `event`, `candidate` (list of structs: element_index, is_track, pdg, charge, px, py, pz, energy in GeV, scores of 6 classes)
    and, with `latents`, `latent` (per element, float16). An event that cannot be read has a row without candidates.

    Args:
        model: `models:/name@alias`, `models:/name/version`, or a folder with a model bundle.
        sources: paths and globs.
        detector: whose tables name the collections; None: the model's own. A mismatch is a warning in the result.

    Raises:
        ModelNotFoundError, InputFileError, UnknownNameError, OutputExistsError.
    """
    bundle = load_model(model, tracking_uri=tracking_uri)
    table = find_detector(detector or bundle.card["detector"])
    paths = expand_sources(sources)
    targets = _claim(Path(output), paths)
    notes: dict[str, None] = {}  # each once, in order
    num_events = num_candidates = 0
    for path, target in zip(paths, targets, strict=True):
        with open_source(path) as source:
            require_detector(source, table)
            simulation = source.metadata.get("simulation", table.simulation)
            notes |= dict.fromkeys(mismatches(bundle.card, detector=table.name, simulation=simulation, what=Path(path).name))
            events, candidates = _reconstruct_file(bundle, source, table, target, latents=latents, progress=progress)
        num_events, num_candidates = num_events + events, num_candidates + candidates
    return Reconstruction(model, tuple(targets), num_events, num_candidates, tuple(notes))


def output_schema(width: int | None) -> pa.Schema:
    """The schema of the written files; `width`: of the latents, None without."""
    event = pa.struct([pa.field(n, t, nullable=False) for n, t in (("uid", pa.uint64()), ("run", pa.int64()), ("number", pa.int64()))])
    event = pa.struct([*event, pa.field("file", pa.string(), nullable=False), pa.field("entry", pa.int64(), nullable=False)])
    candidate = pa.struct([pa.field(name, kind, nullable=False) for name, kind in _CANDIDATE_FIELDS.items()])
    fields = [pa.field("event", event, nullable=False), pa.field("candidate", _list_of(candidate), nullable=False)]
    if width is not None:
        fields.append(pa.field("latent", _list_of(pa.list_(pa.field("element", pa.float16(), nullable=False), width)), nullable=False))
    return pa.schema(fields)


def _reconstruct_file(
    bundle: Bundle, source: EventSource, detector: Detector, target: Path, *, latents: bool, progress: Callable[[int], None] | None
) -> tuple[int, int]:
    """(events, candidates) written to `target`; under a temporary name until all is there."""
    task = ReconstructionConfig(**bundle.card["task"])
    schema = output_schema(bundle.model.config.width if latents else None)
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    num_candidates = 0
    try:
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            for part in stream_events(source, detector, 0, source.num_entries, with_truth=False):
                table = part.table
                events = from_arrow(table)
                prediction = run_model(bundle.model, events, task, with_latents=latents)
                writer.write_table(_to_arrow(table, events.offsets, prediction, schema))
                num_candidates += len(prediction.candidates.event)
                if progress is not None:
                    progress(events.num_events)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return source.num_entries, num_candidates


def _to_arrow(table: pa.Table, offsets: np.ndarray, prediction: Prediction, schema: pa.Schema) -> pa.Table:
    event = table.column("event").combine_chunks()
    kind = schema.field("event").type
    arrays: list[pa.Array] = [pa.StructArray.from_arrays([event.field(f.name) for f in kind], fields=list(kind))]
    found = prediction.candidates
    children = []
    for name, dtype in _CANDIDATE_FIELDS.items():
        values = getattr(found, name)
        if pa.types.is_fixed_size_list(dtype):
            children.append(pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), type=dtype))
        else:
            children.append(pa.array(values.astype(dtype.to_pandas_dtype()), dtype))
    struct = schema.field("candidate").type.value_type
    starts = np.searchsorted(found.event, np.arange(table.num_rows + 1)).astype(np.int32)
    values = pa.StructArray.from_arrays(children, fields=list(struct))
    arrays.append(pa.ListArray.from_arrays(pa.array(starts), values, type=schema.field("candidate").type))
    if prediction.latents is not None:
        vector = schema.field("latent").type.value_type
        flat = pa.FixedSizeListArray.from_arrays(pa.array(prediction.latents.astype(np.float16).ravel()), type=vector)
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, type=schema.field("latent").type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _claim(output: Path, paths: Sequence[str]) -> list[Path]:
    """The file to write for each source: candidates of earlier calls may be replaced, anything else in the folder is not ours."""
    names = [f"{Path(path).name.removesuffix('.root')}.candidates.parquet" for path in paths]
    if len(set(names)) < len(names):
        raise PfscaleError("two input files have the same name", where=str(output), hint="reconstruct them into two folders")
    if output.exists() and not output.is_dir():
        raise OutputExistsError("this is a file, not a folder", where=str(output), hint="choose another --output")
    strangers = [p.name for p in output.iterdir() if not p.name.endswith((".candidates.parquet", ".draft"))] if output.is_dir() else []
    if strangers:
        raise OutputExistsError(
            f"the folder holds other files ({', '.join(sorted(strangers)[:3])})", where=str(output), hint="choose an empty --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    return [output / name for name in names]


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))
