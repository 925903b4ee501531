"""Events as flat numpy arrays: all elements of all events in one table, tracks first, then clusters, with offsets per event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pfscale.shards.schema import COLUMNS, field_names

TRACK_FEATURES = tuple(name for name in field_names("track") if name not in ("cov", "ref_x", "ref_y", "ref_z"))
CLUSTER_FEATURES = field_names("cluster")
NUM_FEATURES = max(len(TRACK_FEATURES), len(CLUSTER_FEATURES))
NUM_MOMENTUM_FEATURES = 5  # pt (et), eta, sin phi, cos phi, p (energy): they are never missing, predictions are relative to them
TARGET_FIELDS = ("class", "charge", "pt", "eta", "sin_phi", "cos_phi", "energy", "jet_idx")

INPUT_COLUMNS = (
    "event.uid",
    *(f"track.list.element.{name}" for name in TRACK_FEATURES),
    *(f"cluster.list.element.{name}" for name in CLUSTER_FEATURES),
)
TARGET_COLUMNS = tuple(f"{column}.list.element.{name}" for column in ("track_target", "cluster_target") for name in TARGET_FIELDS)
GEN_COLUMNS = ("gen_met.px", "gen_met.py", *(f"gen_jet.list.element.{name}" for name in ("pt", "eta", "phi", "energy")))


@dataclass(frozen=True)
class RaggedEvents:
    """Events with their elements.

    Shapes: E events, n elements in all.
        offsets: (E + 1,) int64; the elements of event i are offsets[i]:offsets[i + 1].
        features: (n, 16) float32, raw units as in the shards: TRACK_FEATURES or CLUSTER_FEATURES by column; NaN where missing.
        is_track: (n,) bool.
        targets: field of TARGET_FIELDS -> (n,) float32, empty without truth.
        uid: (E,) uint64.
        table: the Arrow rows that the events came from, for what is not per element.
    """

    offsets: NDArray[np.int64]
    features: NDArray[np.float32]
    is_track: NDArray[np.bool_]
    targets: dict[str, NDArray[np.float32]]
    uid: NDArray[np.uint64]
    table: pa.Table

    @property
    def num_events(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) number of elements of each event."""
        return np.diff(self.offsets)

    @property
    def event(self) -> NDArray[np.int64]:
        """(n,) index of the event of each element."""
        return np.repeat(np.arange(self.num_events), self.lengths)


def from_arrow(table: pa.Table) -> RaggedEvents:
    """The events of an Arrow table in the shard schema (any projection that holds the element features).

    Targets are filled where the target columns are present.
    """
    track_offsets, tracks = list_leaves(table, "track")
    cluster_offsets, clusters = list_leaves(table, "cluster")
    num_tracks, num_clusters = np.diff(track_offsets), np.diff(cluster_offsets)
    offsets = np.concatenate([[0], np.cumsum(num_tracks + num_clusters)])
    track_rows = _interleave(offsets[:-1], num_tracks)
    cluster_rows = _interleave(offsets[:-1] + num_tracks, num_clusters)

    features = np.full((offsets[-1], NUM_FEATURES), np.nan, np.float32)
    for rows, leaves, names in ((track_rows, tracks, TRACK_FEATURES), (cluster_rows, clusters, CLUSTER_FEATURES)):
        for column, name in enumerate(names):
            features[rows, column] = leaves[name]
    is_track = np.zeros(offsets[-1], bool)
    is_track[track_rows] = True

    targets: dict[str, NDArray[np.float32]] = {}
    if "track_target" in table.column_names:
        parts = [(track_rows, list_leaves(table, "track_target")[1]), (cluster_rows, list_leaves(table, "cluster_target")[1])]
        for name in (name for name in TARGET_FIELDS if name in parts[0][1]):
            targets[name] = np.zeros(offsets[-1], np.float32)
            for rows, leaves in parts:
                targets[name][rows] = leaves[name]
    uid = struct_leaf(table, "event", "uid")
    return RaggedEvents(offsets, features, is_track, targets, uid, table)


def list_leaves(table: pa.Table, column: str) -> tuple[NDArray[np.int64], dict[str, NDArray]]:
    """(offsets, {field: flat values}) of a list-of-struct column, for the fields that the table holds."""
    array = table.column(column).combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    names = [f.name for f in COLUMNS[column][1]] if column in COLUMNS else [f.name for f in array.type.value_type]
    leaves = {}
    for name in names:
        if array.type.value_type.get_field_index(name) < 0:
            continue
        leaf = values.field(name)
        leaves[name] = leaf.to_numpy(zero_copy_only=False) if not pa.types.is_nested(leaf.type) else leaf
    return offsets - offsets[0], leaves


def struct_leaf(table: pa.Table, column: str, name: str) -> NDArray:
    """The values of one field of a struct column, (E,)."""
    array = table.column(column).combine_chunks()
    return array.field(name).to_numpy(zero_copy_only=False)


def concatenate(parts: Sequence[RaggedEvents]) -> RaggedEvents:
    """The events of all parts, in order."""
    return from_arrow(pa.concat_tables([part.table for part in parts]))


def _interleave(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions starts[i], starts[i] + 1, ... (counts[i] of them) for all i, flat."""
    total = int(counts.sum())
    first = np.cumsum(counts) - counts
    return np.repeat(starts - first, counts) + np.arange(total)
