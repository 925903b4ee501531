"""Each particle's own share of the hits and tracks of a chunk, from whatever truth its detector's files hold (physics-spec 3.1).

Full simulation links calorimeter hits and tracks to particles, and tracker hits by way of their simulated hits. Fast simulation has no
hits: there a candidate is linked to the particles that made it, which says whose its tracks and clusters are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep import layout
from pfscale.edm4hep.candidates import baseline_collection
from pfscale.edm4hep.chunk import EventChunk, particle_targets
from pfscale.edm4hep.detectors import TrackerChain
from pfscale.edm4hep.reader import Rows
from pfscale.edm4hep.relations import Indices, Pairs, Targets, links, targets_of
from pfscale.edm4hep.truth import Deposits

Floats = NDArray[np.float64]
Shares = tuple[Indices, Floats, Indices]  # particle, GeV, cluster (-1: none)
TrackLinks = tuple[Indices, Indices, Floats]  # particle, track, weight


def read_deposits(chunk: EventChunk, particle_offsets: Indices, particle_energy: Floats) -> Deposits:
    """Each particle's own share of hits and tracks, from the truth links; `particle_energy` (GeV) shares where links have no weights.

    Raises:
        InputFileError: there are hits or tracks but not the link that tells whose they are.
    """
    detector = chunk.detector
    particles = particle_targets(chunk.source, detector, particle_offsets)
    shares: list[Shares] = [_of_tracker(chunk, chain, particles) for chain in detector.tracker_chains]
    track_links: list[TrackLinks] = []
    if detector.calo_link:
        shares.insert(0, _of_hits(chunk, detector.calo_link, particles))
    if detector.track_link:
        track_links.append(_of_tracks(chunk, detector.track_link, particles))
    if detector.candidate_link:
        share, link = _of_candidates(chunk, detector.candidate_link, particles, particle_energy)
        shares.append(share)
        track_links.append(link)
    hit_particle, hit_energy, hit_cluster = (np.concatenate(parts) for parts in zip(_no_shares(), *shares, strict=True))
    none: TrackLinks = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    link_particle, link_track, link_weight = (np.concatenate(parts) for parts in zip(none, *track_links, strict=True))
    finite = np.isfinite(hit_energy)
    event_of = np.searchsorted(particle_offsets, hit_particle, side="right") - 1
    chunk.problems.add(event_of[~finite], "the energy or link weight of a hit is not finite")
    return Deposits(
        hit_particle=hit_particle,
        hit_energy=np.where(finite, hit_energy, 0.0),
        hit_cluster=hit_cluster,
        link_particle=link_particle,
        link_track=link_track,
        link_weight=np.nan_to_num(link_weight, nan=0.0, posinf=0.0, neginf=0.0),
        num_tracks=len(chunk.tracks),
        num_clusters=len(chunk.clusters),
    )


def _no_shares() -> Shares:
    return np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)


def _of_hits(chunk: EventChunk, collection: str, particles: Targets) -> Shares:
    """Shares in calorimeter hits: each hit's energy by the fractions of its links."""
    num_hits = len(chunk.hit_event)
    linked = (chunk.calo_targets, particles)
    hit, particle, weight = links(chunk.source, collection, chunk.span, linked, chunk.problems, num_from=num_hits)
    cluster_of_hit = np.full(num_hits, -1, np.int64)
    cluster_of_hit[chunk.hit_of_member] = chunk.cluster_of_member
    return particle, chunk.hits["energy"][hit] * _fractions(hit, weight, num_hits), cluster_of_hit[hit]


def _of_tracks(chunk: EventChunk, collection: str, particles: Targets) -> TrackLinks:
    linked = (chunk.track_targets, particles)
    track, particle, weight = links(chunk.source, collection, chunk.span, linked, chunk.problems, num_from=len(chunk.tracks))
    return particle, track, weight


def _of_tracker(chunk: EventChunk, chain: TrackerChain, particles: Targets) -> Shares:
    """Shares in the hits of one tracker part; none where the file lacks the chain (track links remain)."""
    source, span = chunk.source, chunk.span
    sim_relation = layout.SIM_TRACKER_HIT.relations[0]
    # simulated hits are often dropped from reconstructed files
    if not (source.has(chain.hits) and source.has(chain.relation) and source.has_relation(chain.sim_hits, sim_relation)):
        return _no_shares()
    owners = source.references(chain.sim_hits, sim_relation, *span)
    hits = source.rows(chain.hits, layout.TRACKER_HIT, *span)
    particle_of_sim = particles.resolve(owners, chunk.problems, what=f"'{chain.sim_hits}'")
    linked = (
        targets_of(source, [(chain.hits, hits)], num_events=chunk.num_events),
        targets_of(source, [(chain.sim_hits, Rows(owners.offsets))], num_events=chunk.num_events),
    )
    hit, sim, weight = links(source, chain.relation, span, linked, chunk.problems, num_from=len(hits))
    particle = particle_of_sim[sim]
    deposit = hits["energy"][hit] * _fractions(hit, weight, len(hits))
    known = particle >= 0
    return particle[known], deposit[known], np.full(int(known.sum()), -1, np.int64)


def _of_candidates(chunk: EventChunk, collection: str, particles: Targets, particle_energy: Floats) -> tuple[Shares, TrackLinks]:
    """Shares in the clusters and links to the tracks of the candidates that particles made.

    A cluster's energy is shared by the fractions of its links; the weight of a track link is the link's own. Converters that do not set
    weights leave them 0 (k4SimDelphes): then a cluster is shared by the energies of its particles, which made it, and a track equally.
    """
    candidates = chunk.candidates
    rows = candidates.rows
    baseline = baseline_collection(chunk.source, chunk.detector)
    assert baseline is not None, "a detector with `candidate_link` requires its baseline"
    linked = (targets_of(chunk.source, [(baseline, rows)], num_events=chunk.num_events), particles)
    num_from = len(chunk.tracks) + len(chunk.clusters)
    candidate, particle, weight = links(chunk.source, collection, chunk.span, linked, chunk.problems, num_from=num_from)
    link, cluster = _through(candidate, candidates.clusters, len(rows))
    fraction = _fractions(cluster, weight[link], len(chunk.clusters), if_unset=particle_energy[particle[link]])
    share = (particle[link], chunk.clusters["energy"][cluster] * fraction, cluster)
    link, track = _through(candidate, candidates.tracks, len(rows))
    is_unset = np.bincount(track, np.abs(weight[link]), minlength=len(chunk.tracks))[track] == 0
    fraction = _fractions(track, weight[link], len(chunk.tracks), if_unset=np.ones(len(link)))
    return share, (particle[link], track, np.where(is_unset, fraction, weight[link]))


def _through(candidate: Indices, pairs: Pairs, num_candidates: int) -> tuple[Indices, Indices]:
    """(position of the link, element) for every element of every link's candidate."""
    owner, element = pairs
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=num_candidates)
    first = np.cumsum(counts) - counts
    link = np.repeat(np.arange(len(candidate)), counts[candidate])
    within = np.arange(len(link)) - np.repeat(np.cumsum(counts[candidate]) - counts[candidate], counts[candidate])
    return link, element[order][first[candidate[link]] + within]


def _fractions(owner: Indices, weight: Floats, num_owners: int, *, if_unset: Floats | None = None) -> Floats:
    """Each link's part of its hit or cluster: raw weights are not comparable between sub-detectors, their fractions are.

    Where all weights are 0 the parts are 0, too, or those of `if_unset` in place of the weights.
    """
    if if_unset is not None:
        is_unset = np.bincount(owner, np.abs(weight), minlength=num_owners)[owner] == 0
        weight = np.where(is_unset, if_unset, weight)
    total = np.bincount(owner, weight, minlength=num_owners)[owner]
    return np.divide(weight, total, out=np.zeros(len(weight)), where=total > 0)
