"""Candidates as EDM4hep-style ReconstructedParticles in a ROOT file (uproot): a flat tree `events` in podio's naming.

What it is: collections `EventHeader` and `MLPFCandidates` with the members of edm4hep::ReconstructedParticle but the covariance, relations
to the tracks and clusters of the source file by their index in its collections, and podio's table of collection ids. Entries are those of
the source file. uproot and pfscale's own reader take it.
What it is not: a file that podio opens as a frame. The branches are plain lists instead of split classes, and podio's other metadata
(version, data model, parameters) are missing. Two branches are no EDM4hep: `MLPFScores`, six numbers per candidate, and `MLPFLatents`, W
per element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.event_tree import (
    Columns,
    IntArray,
    begin_end,
    header,
    jagged,
    per_event,
    references,
    vector,
    write_ids,
    write_strings,
)
from pfscale.edm4hep.layout import Kind, Member, collection_id
from pfscale.edm4hep.reader import OWN_METADATA, EventSource

COLLECTION = "MLPFCandidates"
SCORES, LATENTS = "MLPFScores", "MLPFLatents"
_NUMBER = "EventHeader.eventNumber"
_EVENTS_AT_ONCE = 1000
_SIZE = Kind((Member("energy", ("energy",)),))


@dataclass(frozen=True)
class CandidateEvents:
    """Candidates of E events as flat arrays, ordered by event and element; n elements, k candidates.

    Attributes:
        number, run: (E,) of the event header; weight (E,).
        event: (k,) event of each candidate.
        num_tracks: (E,) tracks of each event, which come before its clusters.
        num_clusters: (C, E) clusters of each event in each of the detector's collections, in their order.
        element_index: (k,) element within its event.
        pdg, charge, energy: (k,); momentum (k, 3), GeV.
        scores: (k, 6) probabilities of the classes.
        latents: (n, W); None without.
    """

    number: IntArray
    run: IntArray
    weight: NDArray[np.float64]
    event: IntArray
    num_tracks: IntArray
    num_clusters: IntArray
    element_index: IntArray
    pdg: NDArray[np.int32]
    charge: NDArray[np.int8]
    energy: NDArray[np.float32]
    momentum: NDArray[np.float32]
    scores: NDArray[np.float32]
    latents: NDArray[np.float32] | None = None


class CandidateTree:
    """A ROOT file of candidates that grows by batches of events; use as a context manager, `write_metadata` before its end."""

    def __init__(self, path: Path, detector: Detector) -> None:
        self._file = uproot.recreate(path, compression=uproot.LZ4(1))
        self._detector = detector
        self._tree: Any = None
        self._waiting: list[Columns] = []

    def __enter__(self) -> CandidateTree:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def extend(self, events: CandidateEvents) -> None:
        """Appends events; they are written by the thousand, because uproot takes as long for few as for many."""
        self._waiting.append(_columns(events, self._detector))
        if sum(len(columns[_NUMBER][0]) for columns in self._waiting) >= _EVENTS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        """Writes what waits."""
        if not self._waiting:
            return
        joined = {
            name: tuple(np.concatenate([columns[name][part] for columns in self._waiting]) for part in (0, 1)) for name in self._waiting[0]
        }
        self._waiting = []
        arrays = {name: jagged(counts, values) for name, (counts, values) in joined.items()}
        if self._tree is None:
            types = {name: array.type.content for name, array in arrays.items()}
            self._tree = self._file.mktree("events", types, counter_name=lambda branch: f"n{branch.split('.')[0]}")
        self._tree.extend(arrays)

    def write_metadata(self, values: Mapping[str, str]) -> None:
        """Writes the last events, the collection ids and what the file says of itself: keys and values."""
        self._write()
        write_ids(self._file, ["EventHeader", COLLECTION, self._detector.tracks, *(c.name for c in self._detector.clusters)])
        write_strings(self._file, OWN_METADATA, values)


def clusters_per_collection(source: EventSource, detector: Detector, start: int, stop: int) -> IntArray:
    """(C, E) clusters of each event in each of the detector's collections.

    Raises:
        InputFileError: they cannot be read.
    """
    return np.stack([np.diff(source.rows(c.name, _SIZE, start, stop).offsets) for c in detector.clusters])


def read_own_metadata(path: str | Path) -> dict[str, str]:
    """What a ROOT file of ours says of itself; empty where it says nothing, or is none (torn, missing)."""
    try:
        with uproot.open({str(path): None}, array_cache=None) as file:
            tree = file[OWN_METADATA]
            keys, values = (ak.flatten(tree[branch].array(), axis=None).to_list() for branch in ("key", "value"))
            return dict(zip(keys, values, strict=True))
    except Exception:  # a damaged file fails anywhere in uproot, in many types
        return {}


def _columns(events: CandidateEvents, detector: Detector) -> Columns:
    num_events, counts = len(events.number), per_event(events.event, len(events.number))
    momentum = events.momentum.astype(np.float64)
    mass = np.sqrt(np.maximum(events.energy.astype(np.float64) ** 2 - (momentum**2).sum(axis=1), 0.0))
    columns = header(events.number, events.run, events.weight) | {
        f"{COLLECTION}.PDG": (counts, events.pdg.astype(np.int32)),
        f"{COLLECTION}.energy": (counts, events.energy),
        f"{COLLECTION}.charge": (counts, events.charge.astype(np.float32)),
        f"{COLLECTION}.mass": (counts, mass.astype(np.float32)),
        f"{COLLECTION}.goodnessOfPID": (counts, events.scores[:, 1:].max(axis=1, initial=0.0).astype(np.float32)),
    }
    columns |= vector(f"{COLLECTION}.momentum", counts, events.momentum, np.float32)
    columns |= vector(f"{COLLECTION}.referencePoint", counts, np.zeros_like(events.momentum), np.float32)
    columns |= _relations(events, detector, counts)
    columns[SCORES] = (counts * events.scores.shape[1], events.scores.ravel())
    if events.latents is not None:
        elements = events.num_tracks + events.num_clusters.sum(axis=0)
        columns[LATENTS] = (elements * events.latents.shape[1], events.latents.ravel())
    assert all(len(per) == num_events for per, _ in columns.values())
    return columns


def _relations(events: CandidateEvents, detector: Detector, counts: IntArray) -> Columns:
    """The track or cluster of every candidate, as podio keeps it: ranges per candidate, references per event."""
    event, num_events = events.event, len(events.number)
    index = events.element_index - events.num_tracks[event]
    is_track = index < 0
    ends = np.cumsum(events.num_clusters, axis=0)  # (C, E)
    collection = (index[None, :] >= ends[:, event]).sum(axis=0)
    before = (ends - events.num_clusters)[np.minimum(collection, len(ends) - 1), event]
    identities = np.array([collection_id(c.name) for c in detector.clusters], np.uint32)
    columns: Columns = {}
    for name, chosen, number, identity in (
        ("tracks", is_track, events.element_index, np.full(len(event), collection_id(detector.tracks), np.uint32)),
        ("clusters", ~is_track, index - before, identities[np.minimum(collection, len(ends) - 1)]),
    ):
        columns |= begin_end(f"{COLLECTION}.{name}", counts, chosen.astype(np.int64), event)
        columns |= references(f"_{COLLECTION}_{name}", per_event(event[chosen], num_events), number[chosen], identity[chosen])
    return columns
