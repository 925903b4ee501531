"""The events of one entry range as flat arrays with every relation resolved to row numbers, ready for features and truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep import layout
from pfscale.edm4hep.ancestry import ancestry
from pfscale.edm4hep.candidates import Candidates, read_candidates
from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.layout import Kind
from pfscale.edm4hep.reader import EventSource, Rows
from pfscale.edm4hep.relations import Indices, Merged, Pairs, Problems, Targets, identity_of, members, merge, no_pairs, targets_of
from pfscale.edm4hep.truth import Particles

NONE = Rows(np.zeros(1, np.int64))
OF_ITS_HITS = -1  # stands for the subdetector of a cluster whose hits say where its energy is


@dataclass(frozen=True)
class EventChunk:
    """What the detector saw in the entries [start, stop), without truth.

    Attributes:
        clusters: of all the detector's collections, event by event; `cluster_subdetector` is what the energy of each counts as where its
            hits carry none, or OF_ITS_HITS.
        hits: calorimeter hits of all collections, one collection after another; `hit_event`, `hit_subdetector` per hit.
        cluster_of_member, hit_of_member: one row per (cluster, member hit).
        candidates: rule-based candidates with their tracks and clusters.
        track_targets, calo_targets: to resolve further references to tracks and hits.
    """

    source: EventSource
    detector: Detector
    start: int
    stop: int
    header: Rows
    tracks: Rows
    states: Rows
    dqdx: Rows
    dqdx_track: Indices
    clusters: Rows
    cluster_subdetector: Indices
    hits: dict[str, NDArray[np.float64]]
    hit_event: Indices
    hit_subdetector: Indices
    cluster_of_member: Indices
    hit_of_member: Indices
    candidates: Candidates
    track_targets: Targets
    calo_targets: Targets
    problems: Problems

    @property
    def num_events(self) -> int:
        """Number of events."""
        return self.stop - self.start

    @property
    def span(self) -> tuple[int, int]:
        """First entry and the one after the last."""
        return self.start, self.stop


def read_chunk(source: EventSource, detector: Detector, start: int, stop: int) -> EventChunk:
    """The detector's view of the entries [start, stop) of a file.

    Raises:
        InputFileError: a collection or member that is needed is missing, or the data cannot be read.
    """
    span, num_events, problems = (start, stop), stop - start, Problems(stop - start)
    tracks = source.rows(detector.tracks, layout.TRACK, *span, why="tracks")
    track_targets = targets_of(source, [(detector.tracks, tracks)], num_events=num_events)
    states_name = source.generation.vector_branch(detector.tracks, layout.TRACK_STATES)
    # a missing collection of hits that is required raises where it is read
    present = [c for c in detector.calo_hits if c.required or source.has(c.name)]
    calo = [(c, source.rows(c.name, layout.CALO_HIT, *span, why="the hits of clusters")) for c in present]
    calo_targets = targets_of(source, [(c.name, rows) for c, rows in calo], num_events=num_events)
    names = [member.name for member in layout.CALO_HIT.members]
    hits = {name: np.concatenate([np.zeros(0), *[rows[name] for _, rows in calo]]) for name in names}
    clusters, (cluster, hit) = _clusters(source, detector, span, calo_targets, hits, problems)
    dqdx, dqdx_track = NONE, np.zeros(0, np.int64)
    if detector.dqdx and source.has(detector.dqdx):
        dqdx = source.rows(detector.dqdx, layout.DQDX, *span)
        references = source.references(detector.dqdx, layout.DQDX.relations[0], *span)
        dqdx_track = track_targets.resolve(references, problems, what="a dE/dx value")
    no_hits = np.zeros(0, np.int64)
    return EventChunk(
        source=source,
        detector=detector,
        start=start,
        stop=stop,
        header=_optional(source, detector.header, layout.HEADER, start, stop),
        tracks=tracks,
        states=source.rows(states_name, layout.TRACK_STATE, *span, why="track parameters"),
        dqdx=dqdx,
        dqdx_track=dqdx_track,
        clusters=clusters.rows,
        cluster_subdetector=_subdetectors(detector, clusters),
        hits=hits,
        hit_event=np.concatenate([no_hits, *[rows.event for _, rows in calo]]),
        hit_subdetector=np.concatenate([no_hits, *[np.full(len(rows), int(c.subdetector)) for c, rows in calo]]),
        cluster_of_member=cluster,
        hit_of_member=hit,
        candidates=read_candidates(source, detector, span, track_targets, clusters.targets, problems),
        track_targets=track_targets,
        calo_targets=calo_targets,
        problems=problems,
    )


def _clusters(
    source: EventSource,
    detector: Detector,
    span: tuple[int, int],
    calo: Targets,
    hits: dict[str, NDArray[np.float64]],
    problems: Problems,
) -> tuple[Merged, Pairs]:
    """All clusters of the detector, and (cluster, member hit) pairs."""
    tables = [(c.name, source.rows(c.name, layout.CLUSTER, *span, why="clusters")) for c in detector.clusters]
    merged = merge(source, tables)
    pairs = [no_pairs()]
    if detector.calo_hits:
        to_hits = layout.CLUSTER.relations[0]
        for (name, rows), place in zip(tables, merged.place, strict=True):
            owner, hit = members(source, name, to_hits, rows, calo, span, problems, must_know=True)
            pairs.append((place[owner], hit))
    cluster, hit = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    if len(tables) > 1:
        by_cluster = np.argsort(cluster, kind="stable")  # the features are sums over consecutive members of a cluster
        cluster, hit = cluster[by_cluster], hit[by_cluster]
    is_at_hits = np.zeros(len(merged.rows), bool)
    for collection, place in zip(detector.clusters, merged.place, strict=True):
        is_at_hits[place] = collection.is_at_hits
    if is_at_hits.any():
        moved = _at_hits(merged.rows, is_at_hits, (cluster, hit), hits)
        merged = Merged(moved, merged.targets, merged.place)
    return merged, (cluster, hit)


def _at_hits(clusters: Rows, may_move: NDArray[np.bool_], pairs: Pairs, hits: dict[str, NDArray[np.float64]]) -> Rows:
    """The clusters, those that are at (0, 0, 0) and `may_move` at the mean of their hits, which weigh alike if they carry no energy."""
    cluster, hit = pairs
    num = len(clusters)
    position = np.stack([clusters[f"position_{axis}"] for axis in "xyz"])
    moves = may_move & (position == 0).all(axis=0) & (np.bincount(cluster, minlength=num) > 0)
    weight = hits["energy"][hit]
    weight = np.where((np.bincount(cluster, weight, minlength=num) > 0)[cluster], weight, 1.0)
    total = np.bincount(cluster, weight, minlength=num)[moves]
    position[:, moves] = [np.bincount(cluster, weight * hits[f"position_{axis}"][hit], minlength=num)[moves] / total for axis in "xyz"]
    itheta = np.where(moves, np.arctan2(np.hypot(position[0], position[1]), position[2]), clusters["iTheta"])
    moved = {f"position_{axis}": values for axis, values in zip("xyz", position, strict=True)}
    return Rows(clusters.offsets, {**clusters.columns, **moved, "iTheta": itheta})


def _subdetectors(detector: Detector, clusters: Merged) -> Indices:
    subdetector = np.full(len(clusters.rows), OF_ITS_HITS, np.int64)
    for collection, place in zip(detector.clusters, clusters.place, strict=True):
        if collection.subdetector is not None:
            subdetector[place] = int(collection.subdetector)
    return subdetector


def read_particles(chunk: EventChunk) -> Particles:
    """The MC particles of the chunk with their ancestry, from parents and daughters together.

    Raises:
        InputFileError: the file holds no MC particles.
    """
    source, name, span = chunk.source, chunk.detector.particles, chunk.span
    rows = source.rows(name, layout.PARTICLE, *span, why="truth")
    tables = particle_targets(source, chunk.detector, rows.offsets)
    edges = [members(source, name, relation, rows, tables, span, chunk.problems) for relation in layout.PARTICLE.relations]
    (child, parent), (mother, daughter) = edges
    momentum = [rows[f"momentum_{axis}"] for axis in "xyz"]
    energy = np.sqrt(rows["mass"] ** 2 + sum(p**2 for p in momentum))
    finite = np.isfinite(energy.astype(np.float32)) & np.isfinite(rows["charge"])  # as they are stored
    chunk.problems.add(rows.event[~finite], f"a number in '{name}' is not finite")
    return Particles(
        event=rows.event,
        pdg=rows["pdg"],
        generator_status=rows["generator_status"],
        simulator_status=rows["simulator_status"],
        charge=np.where(finite, rows["charge"], 0.0),
        px=np.where(finite, momentum[0], 0.0),
        py=np.where(finite, momentum[1], 0.0),
        pz=np.where(finite, momentum[2], 0.0),
        energy=np.where(finite, energy, 0.0),
        ancestry=ancestry(np.concatenate([parent, mother]), np.concatenate([child, daughter]), num_particles=len(rows)),
    )


def particle_targets(source: EventSource, detector: Detector, offsets: Indices) -> Targets:
    """The MC particles as targets, under all names by which the file refers to them."""
    aliases = [name for name in detector.particle_aliases if not source.has(name)]
    ids = identity_of(source, [detector.particles, *aliases], num_rows=int(offsets[-1]))
    return Targets(ids, count=np.stack([np.diff(offsets)] * len(ids)), first=np.stack([offsets[:-1]] * len(ids)))


def _optional(source: EventSource, collection: str, kind: Kind, start: int, stop: int) -> Rows:
    return source.rows(collection, kind, start, stop) if source.has(collection) else Rows(np.zeros(stop - start + 1, np.int64))
