"""What a particle-flow model makes of events, for downstream tasks: candidates, their jets and latents, with the truth of both.

One Parquet file for every event shard, one row per event. Floats are float32 (latents float16), units GeV and mm; nothing is nullable: no
track is NaN, no partner is -1. In memory it is flat arrays with offsets per event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pfscale.shards.schema import SPLITS, ShardField

OBJECTS_VERSION = 1  # raised whenever the same events and models would give other files


def _f(name: str, unit: str, source: str, dtype: str = "float32") -> ShardField:
    return ShardField(name, dtype, unit, source)


# column -> (is a list, fields)
OBJECT_COLUMNS: dict[str, tuple[bool, tuple[ShardField, ...]]] = {
    "event": (
        False,
        (
            _f("uid", "", "of the event shard", "uint64"),
            _f("split", "", f"index into {SPLITS}", "int8"),
            _f("split_hash", "", "order of nested subsets", "uint64"),
        ),
    ),
    "candidate": (
        True,
        (
            _f("element_index", "", "element that carries it, tracks first", "int32"),
            _f("pdg", "", "predicted", "int32"),
            _f("charge", "e", "predicted", "int8"),
            _f("px", "GeV", "predicted"),
            _f("py", "GeV", "predicted"),
            _f("pz", "GeV", "predicted"),
            _f("energy", "GeV", "predicted"),
            _f("jet_idx", "", "index into jet, -1: none", "int32"),
            _f("d0", "mm", "of its track"),
            _f("z0", "mm", "of its track"),
            _f("d0_error", "mm", "of its track, from the covariance"),
            _f("z0_error", "mm", "of its track, from the covariance"),
            _f("phi", "rad", "of its track"),
            _f("origin", "", "of the particle that the element carries, as gen_particle.origin; -1: none", "int8"),
        ),
    ),
    "jet": (
        True,
        (
            _f("px", "GeV", "of the candidates: FastJet, as gen_jet of the event shard"),
            _f("py", "GeV", "same"),
            _f("pz", "GeV", "same"),
            _f("energy", "GeV", "same"),
            _f("gen_energy", "GeV", "of the gen jet matched one to one within deltaR 0.1; none: NaN"),
            _f("gen_pt", "GeV", "same"),
            _f("flavour", "", "of that gen jet; -1: none", "int8"),
            _f("top_role", "", "of that gen jet; 0: none", "int8"),
        ),
    ),
    "gen_met": (
        False,
        (
            _f("px", "GeV", "of the event shard"),
            _f("py", "GeV", "of the event shard"),
        ),
    ),
}
_LATENT = "latent"


@dataclass(frozen=True)
class EventObjects:
    """Events with their candidates, jets and latents.

    Shapes: E events, n candidates, m jets, K width of the latents.
        event: field -> (E,).
        candidate: field -> (n,); candidates of event i are rows candidate_offsets[i]:candidate_offsets[i + 1].
        jet: field -> (m,), likewise.
        gen_met: field -> (E,).
        latents: (n, K) float16, in the order of the candidates.
    """

    event: Mapping[str, NDArray]
    candidate_offsets: NDArray[np.int64]
    candidate: Mapping[str, NDArray]
    jet_offsets: NDArray[np.int64]
    jet: Mapping[str, NDArray]
    gen_met: Mapping[str, NDArray]
    latents: NDArray[np.float16]

    @property
    def num_events(self) -> int:
        return len(self.candidate_offsets) - 1

    @property
    def event_of_candidate(self) -> NDArray[np.int64]:
        """(n,)"""
        return np.repeat(np.arange(self.num_events), np.diff(self.candidate_offsets))

    @property
    def event_of_jet(self) -> NDArray[np.int64]:
        """(m,)"""
        return np.repeat(np.arange(self.num_events), np.diff(self.jet_offsets))

    @property
    def jet_of_candidate(self) -> NDArray[np.int64]:
        """(n,) row of the jet that holds each candidate, -1: none."""
        within = self.candidate["jet_idx"].astype(np.int64)
        return np.where(within < 0, -1, within + self.jet_offsets[self.event_of_candidate])

    def select(self, events: NDArray[np.integer]) -> EventObjects:
        """The given events, in that order."""
        candidates, candidate_offsets = _rows_of(self.candidate_offsets, events)
        jets, jet_offsets = _rows_of(self.jet_offsets, events)
        return EventObjects(
            event={name: values[events] for name, values in self.event.items()},
            candidate_offsets=candidate_offsets,
            candidate={name: values[candidates] for name, values in self.candidate.items()},
            jet_offsets=jet_offsets,
            jet={name: values[jets] for name, values in self.jet.items()},
            gen_met={name: values[events] for name, values in self.gen_met.items()},
            latents=self.latents[candidates],
        )


def object_schema(width: int) -> pa.Schema:
    """The Arrow schema; `width`: of the latents."""
    fields = []
    for column, (is_list, leaves) in OBJECT_COLUMNS.items():
        struct = pa.struct([pa.field(leaf.name, pa.type_for_alias(leaf.dtype), nullable=False) for leaf in leaves])
        fields.append(pa.field(column, _list_of(struct) if is_list else struct, nullable=False))
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), width)
    fields.append(pa.field(_LATENT, _list_of(vector), nullable=False))
    return pa.schema(fields, metadata={"pfscale_objects_version": str(OBJECTS_VERSION)})


def objects_to_arrow(objects: EventObjects) -> pa.Table:
    """One row per event."""
    schema = object_schema(objects.latents.shape[1])
    offsets = {"candidate": objects.candidate_offsets, "jet": objects.jet_offsets}
    arrays = []
    for column, (is_list, leaves) in OBJECT_COLUMNS.items():
        values = getattr(objects, column)
        kind = schema.field(column).type
        struct = kind.value_type if is_list else kind
        children = [pa.array(np.asarray(values[leaf.name]).astype(leaf.dtype), pa.type_for_alias(leaf.dtype)) for leaf in leaves]
        array = pa.StructArray.from_arrays(children, fields=list(struct))
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets[column].astype(np.int32)), array, type=kind) if is_list else array)
    kind = schema.field(_LATENT).type
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(objects.latents.ravel(), pa.float16()), type=kind.value_type)
    arrays.append(pa.ListArray.from_arrays(pa.array(objects.candidate_offsets.astype(np.int32)), vectors, type=kind))
    return pa.Table.from_arrays(arrays, schema=schema)


def objects_from_arrow(table: pa.Table) -> EventObjects:
    """The events of a table in the schema."""
    flat: dict[str, dict[str, NDArray]] = {}
    offsets: dict[str, NDArray[np.int64]] = {}
    for column, (is_list, leaves) in OBJECT_COLUMNS.items():
        array = table.column(column).combine_chunks()
        if is_list:
            offsets[column], array = _unlisted(array)
        flat[column] = {leaf.name: array.field(leaf.name).to_numpy(zero_copy_only=False) for leaf in leaves}
    _, vectors = _unlisted(table.column(_LATENT).combine_chunks())
    width = vectors.type.list_size
    latents = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float16, copy=False).reshape(-1, width)
    return EventObjects(
        event=flat["event"],
        candidate_offsets=offsets["candidate"],
        candidate=flat["candidate"],
        jet_offsets=offsets["jet"],
        jet=flat["jet"],
        gen_met=flat["gen_met"],
        latents=latents,
    )


def joined_objects(parts: Sequence[EventObjects]) -> EventObjects:
    """The events of all parts, in order."""

    def joined(maps: Iterable[Mapping[str, NDArray]]) -> dict[str, NDArray]:
        found = list(maps)
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def chained(offsets: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part) for part in offsets]))])

    return EventObjects(
        event=joined(part.event for part in parts),
        candidate_offsets=chained(part.candidate_offsets for part in parts),
        candidate=joined(part.candidate for part in parts),
        jet_offsets=chained(part.jet_offsets for part in parts),
        jet=joined(part.jet for part in parts),
        gen_met=joined(part.gen_met for part in parts),
        latents=np.concatenate([part.latents for part in parts]),
    )


def _unlisted(array: pa.ListArray) -> tuple[NDArray[np.int64], pa.Array]:
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], array.values.slice(offsets[0], offsets[-1] - offsets[0])


def _rows_of(offsets: NDArray[np.int64], events: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows of the given events, their offsets)."""
    lengths = offsets[1:][events] - offsets[:-1][events]
    found = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.repeat(offsets[:-1][events] - found[:-1], lengths) + np.arange(found[-1]), found


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))
