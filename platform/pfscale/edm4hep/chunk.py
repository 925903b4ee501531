"""The events of one entry range as flat arrays with every relation resolved to row numbers, ready for features and truth.

A reference that points outside its event, or a number that is not finite, spoils its event only: the event is named in `Problems` and
left out later, the rest of the chunk goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep import layout
from pfscale.edm4hep.ancestry import ancestry
from pfscale.edm4hep.detectors import Detector, TrackerChain
from pfscale.edm4hep.layout import Kind, Relation
from pfscale.edm4hep.reader import EventSource, References, Rows
from pfscale.edm4hep.truth import Deposits, Particles
from pfscale.errors import InputFileError

Indices = NDArray[np.int64]
NONE = Rows(np.zeros(1, np.int64))


@dataclass
class Problems:
    """Why events of a chunk cannot be used: first reason per event."""

    num_events: int
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, events: Indices, reason: str) -> None:
        """Marks events; the first reason of each stays."""
        if len(events):
            for event in np.unique(events):
                self.reasons.setdefault(int(event), reason)

    @property
    def is_good(self) -> NDArray[np.bool_]:
        """(num_events,) whether nothing is wrong with the event."""
        good = np.ones(self.num_events, bool)
        good[list(self.reasons)] = False
        return good


@dataclass(frozen=True)
class EventChunk:
    """What the detector saw in the entries [start, stop), without truth.

    Attributes:
        hits: calorimeter hits of all collections, one collection after another; `hit_event`, `hit_subdetector` per hit.
        cluster_of_member, hit_of_member: one row per (cluster, member hit).
        baseline, baseline_tracks, baseline_clusters: rule-based candidates; (candidate row, track or cluster row) pairs.
        calo_tables: (collection id, offsets, first row) of each hit collection, to resolve further references to hits.
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
    hits: dict[str, NDArray[np.float64]]
    hit_event: Indices
    hit_subdetector: Indices
    cluster_of_member: Indices
    hit_of_member: Indices
    baseline: Rows
    baseline_tracks: tuple[Indices, Indices]
    baseline_clusters: tuple[Indices, Indices]
    calo_tables: Targets
    problems: Problems

    @property
    def num_events(self) -> int:
        """Number of events."""
        return self.stop - self.start


@dataclass(frozen=True)
class Targets:
    """Collections that a relation may point to, as one table of rows: id, event offsets and first row of each."""

    ids: Indices
    offsets: NDArray[np.int64]  # (collections, num_events + 1)
    first_row: Indices

    def resolve(self, references: References, problems: Problems, *, what: str, must_know: bool = False) -> Indices:
        """The row that each reference points to; -1: empty, or a collection that is not among the targets."""
        event = references.event
        collection = np.full(len(references), -1, np.int64)
        for number, identity in enumerate(self.ids):
            collection[references.collection_id == identity] = number
        if len(self.ids) == 1 and self.ids[0] == -1:
            collection[:] = 0  # without metadata there are no ids: a relation that can point to one collection only needs none
        is_known = collection >= 0
        is_set = is_known & (references.index >= 0)
        place = collection * (self.offsets.shape[1] - 1) + event
        is_inside = references.index < np.diff(self.offsets).ravel()[place]
        problems.add(event[is_set & ~is_inside], f"{what} points outside its collection")
        if must_know:
            problems.add(event[~is_known & (references.index >= 0)], f"{what} points to a collection that the file lacks")
        first = (self.first_row[:, None] + self.offsets[:, :-1]).ravel()[place]
        return np.where(is_set & is_inside, first + references.index, -1)


def targets_of(source: EventSource, tables: Sequence[tuple[str, Rows]]) -> Targets:
    """The targets table of collections (name, rows), one after another."""
    sizes = [len(rows) for _, rows in tables]
    return Targets(
        ids=np.array([source.collection_ids.get(name, -1) for name, _ in tables], np.int64),
        offsets=np.stack([rows.offsets for _, rows in tables]),
        first_row=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64),
    )


def read_chunk(source: EventSource, detector: Detector, start: int, stop: int) -> EventChunk:
    """The detector's view of the entries [start, stop) of a file.

    Raises:
        InputFileError: a collection or member that is needed is missing, or the data cannot be read.
    """
    problems = Problems(stop - start)
    tracks = source.rows(detector.tracks, layout.TRACK, start, stop, why="tracks")
    states_name = source.generation.vector_branch(detector.tracks, "trackStates", layout.TRACK_STATES_POSITION)
    clusters = source.rows(detector.clusters, layout.CLUSTER, start, stop, why="clusters")
    calo = [(c, source.rows(c.name, layout.CALO_HIT, start, stop, why="the hits of clusters")) for c in _calo_collections(source, detector)]
    calo_tables = targets_of(source, [(c.name, rows) for c, rows in calo])
    cluster, hit = _members(
        source, detector.clusters, layout.CLUSTER.relations[0], clusters, calo_tables, (start, stop), problems, must_know=True
    )
    track_tables = targets_of(source, [(detector.tracks, tracks)])
    dqdx, dqdx_track = NONE, np.zeros(0, np.int64)
    if detector.dqdx and source.has(detector.dqdx):
        dqdx = source.rows(detector.dqdx, layout.DQDX, start, stop)
        references = source.references(detector.dqdx, layout.DQDX.relations[0], start, stop)
        dqdx_track = track_tables.resolve(references, problems, what="a dE/dx value")
    baseline, pairs = _baseline(
        source, detector, (start, stop), track_tables, targets_of(source, [(detector.clusters, clusters)]), problems
    )
    return EventChunk(
        source=source,
        detector=detector,
        start=start,
        stop=stop,
        header=_optional(source, detector.header, layout.HEADER, start, stop),
        tracks=tracks,
        states=source.rows(states_name, layout.TRACK_STATE, start, stop, why="track parameters"),
        dqdx=dqdx,
        dqdx_track=dqdx_track,
        clusters=clusters,
        hits={name: np.concatenate([rows[name] for _, rows in calo]) for name in calo[0][1].columns},
        hit_event=np.concatenate([rows.event for _, rows in calo]),
        hit_subdetector=np.concatenate([np.full(len(rows), int(c.subdetector)) for c, rows in calo]),
        cluster_of_member=cluster,
        hit_of_member=hit,
        baseline=baseline,
        baseline_tracks=pairs[0],
        baseline_clusters=pairs[1],
        calo_tables=calo_tables,
        problems=problems,
    )


def read_particles(chunk: EventChunk) -> Particles:
    """The MC particles of the chunk with their ancestry, from parents and daughters together.

    Raises:
        InputFileError: the file holds no MC particles.
    """
    source, name, span = chunk.source, chunk.detector.particles, (chunk.start, chunk.stop)
    rows = source.rows(name, layout.PARTICLE, *span, why="truth")
    tables = _particle_targets(source, chunk.detector, rows.offsets)
    edges = [_members(source, name, relation, rows, tables, span, chunk.problems) for relation in layout.PARTICLE.relations]
    (child, parent), (mother, daughter) = edges
    momentum = [rows[f"momentum_{axis}"] for axis in "xyz"]
    energy = np.sqrt(rows["mass"] ** 2 + sum(p**2 for p in momentum))
    finite = np.isfinite(energy) & np.isfinite(rows["charge"])
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


def read_deposits(chunk: EventChunk, particle_offsets: Indices) -> Deposits:
    """Each particle's own share of hits and tracks, from the truth links (physics-spec 3.1).

    Raises:
        InputFileError: there are hits or tracks but not the link that tells whose they are.
    """
    source, detector, span = chunk.source, chunk.detector, (chunk.start, chunk.stop)
    particles = _particle_targets(source, detector, particle_offsets)
    hit, hit_particle, weight = _link(source, detector.calo_link, span, chunk.calo_tables, particles, chunk.problems, len(chunk.hit_event))
    energy = chunk.hits["energy"][hit] * _shares(hit, weight, len(chunk.hit_event))
    cluster_of_hit = np.full(len(chunk.hit_event), -1, np.int64)
    cluster_of_hit[chunk.hit_of_member] = chunk.cluster_of_member
    in_tracker = [_tracker_deposits(source, chain, span, particles, chunk.problems) for chain in detector.tracker_chains]
    tracker_particle = [particle for particle, _ in in_tracker]
    tracks = targets_of(source, [(detector.tracks, chunk.tracks)])
    track, link_particle, link_weight = _link(source, detector.track_link, span, tracks, particles, chunk.problems, len(chunk.tracks))
    hit_particle = np.concatenate([hit_particle, *tracker_particle])
    hit_energy = np.concatenate([energy, *[deposit for _, deposit in in_tracker]])
    finite = np.isfinite(hit_energy)
    event_of = np.searchsorted(particle_offsets, hit_particle, side="right") - 1
    chunk.problems.add(event_of[~finite], "the energy or link weight of a hit is not finite")
    return Deposits(
        hit_particle=hit_particle,
        hit_energy=np.where(finite, hit_energy, 0.0),
        hit_cluster=np.concatenate([cluster_of_hit[hit], *[np.full(len(p), -1, np.int64) for p in tracker_particle]]),
        link_particle=link_particle,
        link_track=track,
        link_weight=np.nan_to_num(link_weight, nan=0.0, posinf=0.0, neginf=0.0),
        num_tracks=len(chunk.tracks),
        num_clusters=len(chunk.clusters),
    )


def _calo_collections(source: EventSource, detector: Detector) -> list:
    """The detector's hit collections that the file has; a missing one that is required raises where it is read."""
    return [c for c in detector.calo_hits if c.required or source.has(c.name)]


def _particle_targets(source: EventSource, detector: Detector, offsets: Indices) -> Targets:
    """The MC particles as targets, under all names by which the file refers to them."""
    aliases = [name for name in detector.particle_aliases if name in source.collection_ids and not source.has(name)]
    names = [detector.particles, *aliases]
    return Targets(
        ids=np.array([source.collection_ids.get(name, -1) for name in names], np.int64),
        offsets=np.stack([offsets] * len(names)),
        first_row=np.zeros(len(names), np.int64),
    )


def _optional(source: EventSource, collection: str, kind: Kind, start: int, stop: int) -> Rows:
    return source.rows(collection, kind, start, stop) if source.has(collection) else Rows(np.zeros(stop - start + 1, np.int64))


def _members(
    source: EventSource,
    collection: str,
    relation: Relation,
    rows: Rows,
    targets: Targets,
    span: tuple[int, int],
    problems: Problems,
    *,
    must_know: bool = False,
) -> tuple[Indices, Indices]:
    """(row of the object, row of what it refers to) for every resolved reference of a one-to-many relation."""
    references = source.references(collection, relation, *span)
    begin, end = source.ranges(collection, relation, *span)
    what = f"'{relation.name}' of '{collection}'"
    row = targets.resolve(references, problems, what=what, must_know=must_know)
    event = rows.event
    in_event = np.diff(references.offsets)[event]
    is_valid = (begin >= 0) & (begin <= end) & (end <= in_event)
    problems.add(event[~is_valid], f"{what} runs past its list")
    count = np.where(is_valid, end - begin, 0)
    owner = np.repeat(np.arange(len(rows)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    other = row[(references.offsets[event] + begin)[owner] + within]
    return owner[other >= 0], other[other >= 0]


def _link(
    source: EventSource,
    collection: str,
    span: tuple[int, int],
    reconstructed: Targets,
    particles: Targets,
    problems: Problems,
    num_reconstructed: int,
) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """(reconstructed row, particle row, weight) of every link whose ends are both known."""
    if not source.has(collection):
        if num_reconstructed:
            raise source.missing(collection, why="truth: whose the hits and tracks are")
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    weight = source.rows(collection, layout.LINK, *span)["weight"]
    ends = [source.references(collection, relation, *span) for relation in layout.LINK.relations]
    if not len(ends[0]) == len(ends[1]) == len(weight):
        raise InputFileError(f"the two ends of '{collection}' do not match", where=source.path)
    row = reconstructed.resolve(ends[0], problems, what=f"'{collection}'")
    particle = particles.resolve(ends[1], problems, what=f"'{collection}'")
    both = (row >= 0) & (particle >= 0)
    problems.add(ends[0].event[both & ~np.isfinite(weight)], f"a weight of '{collection}' is not finite")
    return row[both], particle[both], weight[both]


def _shares(hit: Indices, weight: NDArray[np.float64], num_hits: int) -> NDArray[np.float64]:
    """Each link's part of its hit: raw weights are not comparable between sub-detectors, their fractions are."""
    total = np.bincount(hit, weight, minlength=num_hits)[hit]
    return np.divide(weight, total, out=np.zeros(len(weight)), where=total > 0)


def _tracker_deposits(
    source: EventSource, chain: TrackerChain, span: tuple[int, int], particles: Targets, problems: Problems
) -> tuple[Indices, NDArray[np.float64]]:
    """(particle row, deposit in GeV) of the hits of one tracker part; none where the file lacks the chain (track links remain)."""
    sim_relation = layout.SIM_TRACKER_HIT.relations[0]
    # simulated hits are often dropped from reconstructed files
    if not (source.has(chain.hits) and source.has(chain.relation) and source.has_relation(chain.sim_hits, sim_relation)):
        return np.zeros(0, np.int64), np.zeros(0)
    owners = source.references(chain.sim_hits, sim_relation, *span)
    hits = source.rows(chain.hits, layout.TRACKER_HIT, *span)
    particle_of_sim = particles.resolve(owners, problems, what=f"'{chain.sim_hits}'")
    hit, sim, weight = _link(
        source,
        chain.relation,
        span,
        targets_of(source, [(chain.hits, hits)]),
        targets_of(source, [(chain.sim_hits, Rows(owners.offsets))]),
        problems,
        len(hits),
    )
    particle = particle_of_sim[sim]
    deposit = hits["energy"][hit] * _shares(hit, weight, len(hits))
    return particle[particle >= 0], deposit[particle >= 0]


def _baseline(
    source: EventSource, detector: Detector, span: tuple[int, int], tracks: Targets, clusters: Targets, problems: Problems
) -> tuple[Rows, tuple[tuple[Indices, Indices], tuple[Indices, Indices]]]:
    """Rule-based candidates and their (candidate, track) and (candidate, cluster) pairs; none where the file has none."""
    if detector.baseline is None or not source.has(detector.baseline):
        nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        return _optional(source, "", layout.CANDIDATE, *span), (nothing, nothing)
    rows = source.rows(detector.baseline, layout.CANDIDATE, *span)
    by_name = {relation.name: relation for relation in layout.CANDIDATE.relations}
    pairs = [
        _members(source, detector.baseline, by_name[name], rows, targets, span, problems)
        for name, targets in (("tracks", tracks), ("clusters", clusters))
    ]
    return rows, (pairs[0], pairs[1])
