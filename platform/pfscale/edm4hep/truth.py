"""Truth of an event: which particles are targets, and which track or cluster carries each (physics-spec 3, points 1 to 7).

Everything works on flat arrays over all events of a chunk: sparse matrices for the sums, whole-generation steps for the ancestry, and
rounds of proposals for the exclusive assignment, which gives exactly what a loop in descending energy gives (see `assign`).
Energies in GeV. Elements are numbered tracks first, then clusters, over the whole chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from particle.pdgid import literals as pid
from scipy import sparse

from pfscale.edm4hep.ancestry import Ancestry, ancestors_of, descendant_pairs, descendants_of, nearest_ancestor

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

NEUTRINOS = (int(pid.nu_e), int(pid.nu_mu), int(pid.nu_tau))
MIN_ENERGY_FRACTION = 0.10  # of the particle's energy, in hits
MIN_CHARGED_ENERGY = 0.5  # GeV in hits
MIN_TRACK_WEIGHT = 0.2
MAX_SURROGATE_DEPTH = 8
# EDM4hep SimulatorStatus: stopped (24), left the detector (25), decayed in the calorimeter (26), decayed in the tracker (27)
REACHED_DETECTOR_BITS = 0x0F000000


@dataclass(frozen=True)
class Particles:
    """MC particles of a chunk, flat, ordered by event; momenta and energies in GeV."""

    event: Indices
    pdg: Indices
    generator_status: Indices
    simulator_status: Indices
    charge: Floats
    px: Floats
    py: Floats
    pz: Floats
    energy: Floats
    ancestry: Ancestry

    def __len__(self) -> int:
        return len(self.event)

    @property
    def is_neutrino(self) -> Mask:
        """Whether it is one of the three neutrinos or their antiparticles."""
        return np.isin(np.abs(self.pdg), NEUTRINOS)


@dataclass(frozen=True)
class Deposits:
    """What the detector saw of each particle itself, without its descendants.

    Attributes:
        hit_particle, hit_energy: one row per (hit, particle): the particle's share of the hit's energy.
        hit_cluster: cluster that the hit belongs to, -1: none.
        link_particle, link_track, link_weight: one row per track link.
    """

    hit_particle: Indices
    hit_energy: Floats
    hit_cluster: Indices
    link_particle: Indices
    link_track: Indices
    link_weight: Floats
    num_tracks: int
    num_clusters: int


@dataclass(frozen=True)
class Truth:
    """Targets of a chunk. "Visible" arrays have one row per visible particle, in the order of the MC collection.

    Attributes:
        is_gen_level: (particles,) in the reference that gen jets and missing momentum are made of.
        is_replaced: (particles,) decay product that a surrogate stands for; it did not happen in the simulation.
        visible: (visible,) row of the particle.
        is_surrogate: (visible,) stands in for its decay products.
        owner: (visible,) element that carries it, or that it was merged into; -1: dropped.
        carried: (elements,) position in `visible` of the particle that the element carries; -1: none.
        four_momentum: (elements, 4) px, py, pz, energy of the particle carried and of those merged into it; 0 where none.
        track_weight: (elements,) largest link weight of the particle carried to this track; 0 on clusters.
        cluster_energy: (elements,) summed hit energy of the particle carried in this cluster; 0 on tracks.
    """

    is_gen_level: Mask
    is_replaced: Mask
    visible: Indices
    is_surrogate: Mask
    owner: Indices
    carried: Indices
    four_momentum: Floats
    track_weight: Floats
    cluster_energy: Floats


def associate(particles: Particles, deposits: Deposits, *, num_events: int) -> Truth:
    """The truth of all events of a chunk (physics-spec 3)."""
    surrogate, is_replaced = _surrogates(particles, deposits)
    is_stable = (particles.generator_status == 1) & ~particles.is_neutrino
    roots = np.flatnonzero(is_stable | surrogate)
    sums = _sum_descendants(particles, deposits, roots)

    energy = particles.energy[roots]
    is_visible = (sums.hits > MIN_ENERGY_FRACTION * energy) & (sums.hits > 0)
    is_visible |= (sums.hits > MIN_CHARGED_ENERGY) & (particles.charge[roots] != 0)
    is_visible |= sums.largest_track_weight >= MIN_TRACK_WEIGHT
    is_visible |= surrogate[roots]
    tracks, clusters = sums.tracks[is_visible], sums.clusters[is_visible]
    visible = roots[is_visible]

    preferences = _preferences(tracks, clusters)
    chosen = assign(*preferences, priority=_priority(particles.energy[visible]), num_elements=deposits.num_tracks + deposits.num_clusters)
    carried = np.full(deposits.num_tracks + deposits.num_clusters, -1, np.int64)
    matched = chosen >= 0
    carried[chosen[matched]] = np.flatnonzero(matched)
    owner = _merge_into(chosen, clusters, carried, deposits.num_tracks)
    return Truth(
        is_gen_level=_gen_level(particles, surrogate, is_replaced, num_events),
        is_replaced=is_replaced,
        visible=visible,
        is_surrogate=surrogate[visible],
        owner=owner,
        carried=carried,
        four_momentum=_merged_momenta(particles, visible, owner, len(carried)),
        **_weights_of_carried(chosen, tracks, clusters, deposits),
    )


@dataclass(frozen=True)
class _Sums:
    """Hits and tracks of each root with those of all its descendants: matrices of shape (roots, tracks) and (roots, clusters)."""

    hits: Floats
    largest_track_weight: Floats
    tracks: sparse.csr_matrix
    clusters: sparse.csr_matrix


def _surrogates(particles: Particles, deposits: Deposits) -> tuple[Mask, Mask]:
    """(is a surrogate, is a descendant of one) per particle.

    A surrogate may be charged as well: a kaon that showers before the decay that its generator foresaw is the same case.
    """
    graph, num = particles.ancestry, len(particles)
    has_deposit = np.zeros(num, bool)
    has_deposit[deposits.hit_particle[deposits.hit_energy > 0]] = True
    has_deposit[deposits.link_particle[deposits.link_weight > 0]] = True
    is_seen = has_deposit | ancestors_of(graph, has_deposit)
    is_stable = particles.generator_status == 1
    has_seen_daughter = ancestors_of(graph, is_stable & is_seen)
    unseen = np.flatnonzero(is_stable & ~is_seen & ~particles.is_neutrino)
    allowed = is_seen & ~is_stable & ~has_seen_daughter
    nearest = nearest_ancestor(graph, unseen, is_seen, allowed, max_depth=MAX_SURROGATE_DEPTH)
    candidate = np.zeros(num, bool)
    candidate[nearest[nearest >= 0]] = True
    surrogate = candidate & ~ancestors_of(graph, candidate)
    return surrogate, descendants_of(graph, surrogate)


def _sum_descendants(particles: Particles, deposits: Deposits, roots: Indices) -> _Sums:
    """Energies in hits and clusters, and track weights, of the roots and all their descendants."""
    num = len(particles)
    root, member = descendant_pairs(particles.ancestry, roots)
    reach = sparse.csr_matrix((np.ones(len(root)), (root, member)), shape=(len(roots), num))
    hits = reach @ np.bincount(deposits.hit_particle, deposits.hit_energy, minlength=num)
    inside = deposits.hit_cluster >= 0
    own = (deposits.hit_energy[inside], (deposits.hit_particle[inside], deposits.hit_cluster[inside]))
    clusters = (reach @ sparse.csr_matrix(own, shape=(num, deposits.num_clusters))).tocsr()
    tracks = _largest_weights(reach.tocsc(), deposits, len(roots))
    largest = np.zeros(len(roots))
    np.maximum.at(largest, np.repeat(np.arange(len(roots)), np.diff(tracks.indptr)), tracks.data)
    return _Sums(hits, largest, tracks, clusters)


def _largest_weights(reach: sparse.csc_matrix, deposits: Deposits, num_roots: int) -> sparse.csr_matrix:
    """(roots, tracks): the largest weight of any link from the root or a descendant to the track."""
    counts = reach.indptr[deposits.link_particle + 1] - reach.indptr[deposits.link_particle]
    link = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(link)) - np.repeat(np.cumsum(counts) - counts, counts)
    root = reach.indices[reach.indptr[deposits.link_particle][link] + within]
    track, weight = deposits.link_track[link], deposits.link_weight[link]
    order = np.lexsort((-weight, track, root))
    root, track, weight = root[order], track[order], weight[order]
    first = np.ones(len(root), bool)
    first[1:] = (root[1:] != root[:-1]) | (track[1:] != track[:-1])
    return sparse.csr_matrix((weight[first], (root[first], track[first])), shape=(num_roots, deposits.num_tracks))


def _priority(energy: Floats) -> Indices:
    """Rank of each particle in descending energy; of equal ones the first in the file goes first."""
    rank = np.empty(len(energy), np.int64)
    rank[np.argsort(-energy, kind="stable")] = np.arange(len(energy))
    return rank


def _preferences(tracks: sparse.csr_matrix, clusters: sparse.csr_matrix) -> tuple[Indices, Indices]:
    """(offsets, elements) of what each particle would take, best first: tracks by weight, then clusters by energy."""
    rows, elements, values, is_cluster = [], [], [], []
    for number, matrix in enumerate((tracks, clusters)):
        positive = matrix.data > 0
        rows.append(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[positive])
        elements.append(matrix.indices[positive] + number * tracks.shape[1])
        values.append(matrix.data[positive])
        is_cluster.append(np.full(int(positive.sum()), number))
    row, element = np.concatenate(rows), np.concatenate(elements).astype(np.int64)
    order = np.lexsort((element, -np.concatenate(values), np.concatenate(is_cluster), row))
    counts = np.bincount(row, minlength=tracks.shape[0])
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), element[order]


def assign(offsets: Indices, preferences: Indices, *, priority: Indices, num_elements: int) -> Indices:
    """The element that each particle gets when all choose in order of `priority` (0 first) the best unused of their preferences; -1: none.

    In every round each particle without an element asks for the next of its preferences; an element keeps the asker of highest priority
    and sends the others on. As all elements rank particles alike, this ends in the one stable matching (Gale and Shapley, 1962), which is
    what choosing one after the other gives; the number of rounds does not grow with the number of events.
    """
    num = len(priority)
    holder_rank = np.full(num_elements, num, np.int64)  # rank of the particle that holds the element; num: nobody
    by_rank = np.empty(num, np.int64)
    by_rank[priority] = np.arange(num)
    next_choice = offsets[:-1].copy()
    asking = np.flatnonzero(next_choice < offsets[1:])
    while len(asking):
        wanted = preferences[next_choice[asking]]
        before = holder_rank[wanted]
        np.minimum.at(holder_rank, wanted, priority[asking])
        refused = asking[holder_rank[wanted] != priority[asking]]
        # whoever was displaced from one of the wanted elements asks again, too
        replaced = np.unique(before[(before < num) & (holder_rank[wanted] != before)])
        asking = np.concatenate([refused, by_rank[replaced]])
        next_choice[asking] += 1
        asking = asking[next_choice[asking] < offsets[asking + 1]]
    chosen = np.full(num, -1, np.int64)
    held = np.flatnonzero(holder_rank < num)
    chosen[by_rank[holder_rank[held]]] = held
    return chosen


def _merge_into(chosen: Indices, clusters: sparse.csr_matrix, carried: Indices, num_tracks: int) -> Indices:
    """`chosen`, and for the particles without an element the cluster that holds most of their energy, if it carries a particle; else -1."""
    offsets, preferences = _preferences(sparse.csr_matrix((clusters.shape[0], num_tracks)), clusters)
    owner = chosen.copy()
    homeless = np.flatnonzero((chosen < 0) & (offsets[1:] > offsets[:-1]))
    best = preferences[offsets[homeless]]
    owner[homeless] = np.where(carried[best] >= 0, best, -1)
    return owner


def _merged_momenta(particles: Particles, visible: Indices, owner: Indices, num_elements: int) -> Floats:
    owned = owner >= 0
    columns = (particles.px, particles.py, particles.pz, particles.energy)
    return np.stack([np.bincount(owner[owned], column[visible][owned], minlength=num_elements) for column in columns], axis=1)


def _weights_of_carried(chosen: Indices, tracks: sparse.csr_matrix, clusters: sparse.csr_matrix, deposits: Deposits) -> dict[str, Floats]:
    """Track weight and cluster energy between each element and the particle that it carries."""
    num_tracks = deposits.num_tracks
    weights = {"track_weight": np.zeros(num_tracks + deposits.num_clusters), "cluster_energy": np.zeros(num_tracks + deposits.num_clusters)}
    for name, matrix, shift in (("track_weight", tracks, 0), ("cluster_energy", clusters, num_tracks)):
        row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        taken = chosen[row] == matrix.indices + shift
        weights[name][matrix.indices[taken] + shift] = matrix.data[taken]
    return weights


def _gen_level(particles: Particles, surrogate: Mask, is_replaced: Mask, num_events: int) -> Mask:
    """Which particles make the gen-level reference: surrogates stand in for their decay products here as well as among the targets."""
    reached = (particles.simulator_status & REACHED_DETECTOR_BITS) != 0
    # fast simulation sets no status bits at all: there every stable particle counts
    has_bits = np.bincount(particles.event, reached, minlength=num_events) > 0
    stable = (particles.generator_status == 1) & ~particles.is_neutrino & (reached | ~has_bits[particles.event])
    return (stable & ~is_replaced) | surrogate
