"""EDM4hep ROOT files from simulated events, in podio 1.2's branch names (README.md lists where uproot forces a difference)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from pfscale.edm4hep.event_tree import (
    ID_TABLE,
    Columns,
    begin_end,
    first_of_event,
    header,
    id_table,
    jagged,
    listed,
    per_event,
    references,
    vector,
    write_ids,
    write_strings,
)
from pfscale.edm4hep.layout import collection_id
from pfscale.edm4hep.reader import OWN_METADATA
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.particle_flow import Candidates
from pfscale.simulation.response import Clusters, DetectorEvents, Hits
from pfscale.simulation.tracks import Tracks

HIT_COLLECTIONS = ("ECALBarrel", "ECALEndcap", "HCALBarrel", "HCALEndcap", "MUON")
COLLECTIONS = (
    "EventHeader",
    "MCParticles",
    "SiTracks_Refitted",
    "SiTracks_Refitted_dQdx",
    "SiTracksMCTruthLink",
    *HIT_COLLECTIONS,
    "CalohitMCTruthLink",
    "PandoraClusters",
    "RuleBasedPFOs",
)
TRACK_STATES = (1, 2, 4)  # edm4hep::TrackState: at the interaction point, the first hit, the calorimeter
NO_TIME = -1.0  # ns, of track states, which no detector here measures: as in the real CLD file
NUM_COVARIANCES = 21  # of a track state: lower triangle by row of D0, phi, omega, Z0, tanLambda, time
COVARIANCE_BRANCH = "_SiTracks_Refitted_trackStates.covMatrix.values"


class EventFile:
    """A ROOT file that grows by batches of events; use as a context manager."""

    def __init__(self, path: Path, metadata: Mapping[str, str], *, file_format: str = "ttree") -> None:
        self._file = uproot.recreate(path, compression=uproot.LZ4(1))
        self._tree: Any = None
        self._metadata = dict(metadata)
        self._is_ntuple = file_format == "rntuple"

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._write_metadata()
        self._file.close()

    def extend(self, events: DetectorEvents, first_number: int, run_number: int) -> None:
        """Append a batch of events, numbered from `first_number`."""
        columns = event_columns(events, first_number, run_number)
        if self._is_ntuple:
            self._extend_ntuple("events", _records(columns))
            return
        arrays = {name: jagged(counts, values) for name, (counts, values) in columns.items()}
        if self._tree is None:
            types = {name: array.type.content for name, array in arrays.items()}
            self._tree = self._file.mktree("events", types, counter_name=_counter)
        self._tree.extend(arrays)

    def _extend_ntuple(self, name: str, records: ak.Array) -> None:
        if self._tree is None:
            self._tree = self._file.mkrntuple(name, records.layout.form)
        self._tree.extend(records)

    def _write_metadata(self) -> None:
        if self._is_ntuple:
            record = ak.zip({member: ak.Array([values]) for member, values in id_table(COLLECTIONS).items()})
            self._file.mkrntuple("podio_metadata", ak.zip({ID_TABLE: record}, depth_limit=1))
        else:
            write_ids(self._file, COLLECTIONS)
        write_strings(self._file, OWN_METADATA, self._metadata)


def _counter(branch: str) -> str:
    """One counter branch per collection, but the covariance has NUM_COVARIANCES numbers per track state."""
    return f"n{branch}" if branch == COVARIANCE_BRANCH else f"n{branch.split('.')[0]}"


def _records(columns: Columns) -> ak.Array:
    """The events as podio's nested records: `MCParticles.momentum.x` is the field x of the field momentum of a particle."""
    heads: dict[str, dict[str, Any]] = {}
    counts: dict[str, IntArray] = {}
    for name, (sizes, values) in columns.items():
        head, *path = name.split(".")
        if name == COVARIANCE_BRANCH:
            sizes, values = sizes // NUM_COVARIANCES, values.reshape(-1, NUM_COVARIANCES)
        counts[head] = sizes
        members = heads.setdefault(head, {})
        for outer in path[:-1]:
            members = members.setdefault(outer, {})
        members[path[-1]] = values
    return ak.Array(
        ak.contents.RecordArray(
            [listed(counts[head], _record(members)) for head, members in heads.items()],
            list(heads),
        )
    )


def _record(members: Mapping[str, Any]) -> ak.contents.Content:
    """Nested members as a record."""
    contents = [_record(part) if isinstance(part, dict) else ak.from_numpy(part, regulararray=True).layout for part in members.values()]
    return ak.contents.RecordArray(contents, list(members))


def event_columns(events: DetectorEvents, first_number: int, run_number: int) -> Columns:
    """Every branch of a batch: objects per event and the flat values."""
    num = events.particles.num_events
    head = header(first_number + np.arange(num), np.full(num, run_number), np.ones(num))
    first_particle = first_of_event(events.particles.event, num)
    tracks = _track_columns(events.tracks, first_particle, num)
    calorimeter = _hit_columns(events.hits, first_particle, num) | _cluster_columns(events.clusters, events.hits, num)
    candidates = _candidate_columns(events.candidates, events.tracks, events.clusters, num)
    return head | _particle_columns(events, first_particle) | tracks | calorimeter | candidates


def _float(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return values.astype(np.float32)


def _particle_columns(events: DetectorEvents, first: IntArray) -> Columns:
    """MC particles with their parents and daughters."""
    particles = events.particles
    counts = per_event(particles.event, particles.num_events)
    columns: Columns = {
        "MCParticles.PDG": (counts, particles.pdg.astype(np.int32)),
        "MCParticles.generatorStatus": (counts, particles.status.astype(np.int32)),
        "MCParticles.simulatorStatus": (counts, events.simulator_status.astype(np.int32)),
        "MCParticles.charge": (counts, _float(particles.charge)),
        "MCParticles.time": (counts, _float(particles.time)),
        "MCParticles.mass": (counts, particles.mass),
    }
    for name, values in (("vertex", particles.vertex), ("endpoint", particles.endpoint), ("momentum", particles.momentum)):
        columns |= vector(f"MCParticles.{name}", counts, values, np.float64)
    by_parent = np.lexsort((particles.child, particles.parent))
    for name, owner, other in (
        ("parents", particles.child, particles.parent),
        ("daughters", particles.parent[by_parent], particles.child[by_parent]),
    ):
        per_particle = np.bincount(owner, minlength=len(particles))
        columns |= begin_end(f"MCParticles.{name}", counts, per_particle, particles.event)
        event = particles.event[owner]
        columns |= references(
            f"_MCParticles_{name}", per_event(event, particles.num_events), other - first[event], collection_id("MCParticles")
        )
    return columns


def _track_columns(tracks: Tracks, first_particle: IntArray, num: int) -> Columns:
    """Tracks, their states, dE/dx and links to particles; the weight of a link is the part of the hits."""
    counts = per_event(tracks.event, num)
    states = np.full(len(tracks), len(TRACK_STATES))
    columns: Columns = {
        "SiTracks_Refitted.type": (counts, np.full(len(tracks), 42, dtype=np.int32)),
        "SiTracks_Refitted.chi2": (counts, _float(tracks.chi2)),
        "SiTracks_Refitted.ndf": (counts, tracks.ndf.astype(np.int32)),
        "SiTracks_Refitted.Nholes": (counts, np.zeros(len(tracks), dtype=np.int32)),
    }
    columns |= begin_end("SiTracks_Refitted.trackStates", counts, states, tracks.event)
    columns |= _track_state_columns(tracks, counts)
    columns |= {
        "SiTracks_Refitted_dQdx.dQdx.type": (counts, np.zeros(len(tracks), dtype=np.int16)),
        "SiTracks_Refitted_dQdx.dQdx.value": (counts, _float(tracks.dedx)),
        "SiTracks_Refitted_dQdx.dQdx.error": (counts, _float(tracks.dedx_error)),
    }
    number = np.arange(len(tracks)) - first_of_event(tracks.event, num)[tracks.event]
    columns |= references("_SiTracks_Refitted_dQdx_track", counts, number, collection_id("SiTracks_Refitted"))
    confused = np.flatnonzero(tracks.confused_with >= 0)
    share = np.where(tracks.confused_with >= 0, 1.0 / tracks.num_hits, 0.0)
    track = np.concatenate([np.arange(len(tracks)), confused])
    particle = np.concatenate([tracks.particle, tracks.confused_with[confused]])
    weight = np.concatenate([1.0 - share, share[confused]])
    order = np.argsort(track, kind="stable")
    track, particle, weight = track[order], particle[order], weight[order]
    event = tracks.event[track]
    link_counts = per_event(event, num)
    columns |= {"SiTracksMCTruthLink.weight": (link_counts, _float(weight))}
    columns |= references("_SiTracksMCTruthLink_from", link_counts, number[track], collection_id("SiTracks_Refitted"))
    columns |= references("_SiTracksMCTruthLink_to", link_counts, particle - first_particle[event], collection_id("MCParticles"))
    return columns


def _track_state_columns(tracks: Tracks, counts: IntArray) -> Columns:
    """The states of every track, in the order of `TRACK_STATES`; the later ones' reference points lie on the measured helix."""
    name = "_SiTracks_Refitted_trackStates"
    num = len(tracks)
    counts = counts * len(TRACK_STATES)
    zero = np.zeros(num)
    d0, phi, omega, z0, tan_lambda = tracks.parameters.T
    has_end = np.isfinite(tracks.calorimeter_phi)
    # A helix that never reaches the calorimeter repeats its first-hit state there, so that every track has the same states.
    end_phi = np.where(has_end, tracks.calorimeter_phi, tracks.first_phi)
    end = np.where(has_end[:, None], tracks.calorimeter, tracks.first_hit)

    def interleave(*per_state: FloatArray) -> FloatArray:
        return np.stack(per_state, axis=1).reshape(num * len(TRACK_STATES), *per_state[0].shape[1:])

    def wrap(angle: FloatArray) -> FloatArray:
        return (angle + np.pi) % (2 * np.pi) - np.pi

    covariance = np.zeros((num, len(TRACK_STATES), NUM_COVARIANCES))
    covariance[:, :, :15] = tracks.covariance[:, None, :]
    reference = interleave(np.zeros((num, 3)), tracks.first_hit, end)
    columns: Columns = {
        f"{name}.location": (counts, np.tile(np.array(TRACK_STATES, dtype=np.int32), num)),
        f"{name}.D0": (counts, _float(interleave(d0, zero, zero))),
        f"{name}.phi": (counts, _float(interleave(phi, wrap(phi + tracks.first_phi), wrap(phi + end_phi)))),
        f"{name}.omega": (counts, _float(interleave(omega, omega, omega))),
        f"{name}.Z0": (counts, _float(interleave(z0, zero, zero))),
        f"{name}.tanLambda": (counts, _float(interleave(tan_lambda, tan_lambda, tan_lambda))),
        f"{name}.time": (counts, np.full(num * len(TRACK_STATES), NO_TIME, dtype=np.float32)),
    }
    columns |= vector(f"{name}.referencePoint", counts, reference, np.float32)
    columns[COVARIANCE_BRANCH] = (counts * NUM_COVARIANCES, _float(covariance.reshape(-1)))
    return columns


def _number_in_collection(hits: Hits) -> IntArray:
    """Index (n,) of each hit within its collection and event; hits are ordered by both."""
    group = hits.event * len(HIT_COLLECTIONS) + hits.collection
    counts = np.bincount(group)
    number: IntArray = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    return number


def _hit_columns(hits: Hits, first_particle: IntArray, num: int) -> Columns:
    """Hits by collection, and their links to particles; the weight of a link is an energy, GeV."""
    columns: Columns = {}
    energy, time, position = _float(hits.energy), _float(hits.time), _float(hits.position)
    for k, name in enumerate(HIT_COLLECTIONS):
        chosen = np.flatnonzero(hits.collection == k)
        counts = per_event(hits.event[chosen], num)
        columns |= {
            f"{name}.cellID": (counts, hits.cell[chosen].astype(np.uint64)),
            f"{name}.energy": (counts, energy[chosen]),
            f"{name}.energyError": (counts, np.zeros(len(chosen), dtype=np.float32)),
            f"{name}.time": (counts, time[chosen]),
            f"{name}.type": (counts, np.full(len(chosen), k, dtype=np.int32)),
        }
        columns |= {f"{name}.position.{axis}": (counts, position[chosen, i]) for i, axis in enumerate("xyz")}
    event = hits.event[hits.link_hit]
    counts = per_event(event, num)
    columns["CalohitMCTruthLink.weight"] = (counts, _float(hits.link_energy))
    columns |= _hit_relation("_CalohitMCTruthLink_from", counts, hits, hits.link_hit)
    columns |= references("_CalohitMCTruthLink_to", counts, hits.link_particle - first_particle[event], collection_id("MCParticles"))
    return columns


def _hit_relation(name: str, counts: IntArray, hits: Hits, index: IntArray) -> Columns:
    ids = np.array([collection_id(collection) for collection in HIT_COLLECTIONS], dtype=np.uint32)
    return references(name, counts, _number_in_collection(hits)[index], ids[hits.collection[index]])


def _cluster_columns(clusters: Clusters, hits: Hits, num: int) -> Columns:
    """Clusters with their hits."""
    counts = per_event(clusters.event, num)
    x, y, z = clusters.position.T
    columns: Columns = {
        "PandoraClusters.type": (counts, np.zeros(len(clusters.event), dtype=np.int32)),
        "PandoraClusters.energy": (counts, _float(clusters.energy)),
        "PandoraClusters.energyError": (counts, np.zeros(len(clusters.event), dtype=np.float32)),
        "PandoraClusters.iTheta": (counts, _float(np.arctan2(np.hypot(x, y), z))),
        "PandoraClusters.phi": (counts, _float(np.arctan2(y, x))),
    }
    columns |= vector("PandoraClusters.position", counts, clusters.position, np.float32)
    columns |= begin_end("PandoraClusters.hits", counts, clusters.num_hits, clusters.event)
    member_counts = per_event(hits.event[clusters.member], num)
    return columns | _hit_relation("_PandoraClusters_hits", member_counts, hits, clusters.member)


def _candidate_columns(candidates: Candidates, tracks: Tracks, clusters: Clusters, num: int) -> Columns:
    """The rule-based candidates, each with its tracks and clusters."""
    name, counts = "RuleBasedPFOs", per_event(candidates.event, num)
    columns: Columns = {
        f"{name}.PDG": (counts, candidates.pdg.astype(np.int32)),
        f"{name}.charge": (counts, _float(candidates.charge)),
        f"{name}.mass": (counts, _float(candidates.mass)),
        f"{name}.energy": (counts, _float(candidates.energy)),
    }
    columns |= vector(f"{name}.momentum", counts, candidates.momentum, np.float32)
    for relation, (owner, index), event, collection in (
        ("tracks", candidates.track_of, tracks.event, "SiTracks_Refitted"),
        ("clusters", candidates.cluster_of, clusters.event, "PandoraClusters"),
    ):
        columns |= begin_end(f"{name}.{relation}", counts, np.bincount(owner, minlength=len(candidates)), candidates.event)
        in_event = index - first_of_event(event, num)[event[index]]
        columns |= references(f"_{name}_{relation}", per_event(candidates.event[owner], num), in_event, collection_id(collection))
    return columns
