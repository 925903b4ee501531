"""Clusters of calorimeter hits by "nearest hit of higher density", which knows nothing of particles.

Each hit gets a local energy density; it follows its nearest neighbour of higher density, and hits without one are seeds (the idea
of CLUE, arXiv:2001.09761). ECAL and HCAL are linked across the gap with the larger search radius. A group that begins right behind
another, as seen from the interaction point, is then joined to it, which reconnects ionising tracks with their showers.
Showers that overlap share a maximum and merge; a hadron shower with distant maxima stays split. Electromagnetic cores in what has merged
become groups of their own (cores.py). Hits that are left over and groups that are too small go to the cluster with the nearest hit, which
gathers the halo of a shower without making clusters of it.
"""

from __future__ import annotations

import numpy as np

from pfscale.simulation.compiled import compiled
from pfscale.simulation.cores import separate_cores
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.neighbours import ShortArray, SingleArray, close_pairs, make_grid, nearest_point, points_in_box

DENSITY_RADIUS = (28.0, 100.0)  # mm, ECAL and HCAL
LINK_RADIUS = (45.0, 150.0)
SEED_DENSITY = (0.045, 0.09)  # GeV
CONE_LENGTH = (120.0, 400.0)  # mm: how far behind another group a group may begin and still be joined
CONE_WIDTH = (18.0, 70.0)  # mm, plus CONE_SLOPE times the distance
CONE_SLOPE = 0.2
CONE_GRID = 130.0  # mm
MIN_CLUSTER_ENERGY = 0.10  # GeV
MIN_CLUSTER_HITS = 4
ISOLATED_RADIUS = 250.0  # mm: isolated hits farther than this from every cluster stay alone (the distance that PandoraPFA's merging uses)


@compiled
def _add_density(
    density: FloatArray, energy: FloatArray, is_hcal: IntArray, i: ShortArray, j: ShortArray, d2: SingleArray, kind: int
) -> None:
    """Adds to the density of both hits of each pair in one calorimeter half of the energy of the other."""
    for k in range(len(i)):
        if d2[k] < DENSITY_RADIUS[kind] ** 2 and is_hcal[i[k]] == is_hcal[j[k]]:
            density[i[k]] += 0.5 * energy[j[k]]
            density[j[k]] += 0.5 * energy[i[k]]


@compiled
def _link(density: FloatArray, nearest: FloatArray, higher: IntArray, i: ShortArray, j: ShortArray, d2: SingleArray) -> None:
    """Writes for the less dense hit of each pair (of equal ones, the later) the other one, if none denser is nearer."""
    for k in range(len(i)):
        low, high = i[k], j[k]
        if density[low] > density[high] or (density[low] == density[high] and low < high):
            low, high = high, low
        if d2[k] < nearest[low]:
            nearest[low] = d2[k]
            higher[low] = high


@compiled
def cluster_event(xyz: FloatArray, energy: FloatArray, layer: IntArray, num_ecal: int) -> tuple[IntArray, int]:
    """The cluster number of each hit of one event (-1: isolated), and the number of clusters.

    `layer` counts sections from the front, HCAL sections after the `num_ecal` of the ECAL.
    """
    num = len(energy)
    is_hcal = (layer >= num_ecal).astype(np.int64)
    ecal = np.flatnonzero(is_hcal == 0)
    back = np.flatnonzero(layer >= num_ecal // 2)
    i0, j0, d0 = close_pairs(xyz, ecal, 1 - is_hcal, LINK_RADIUS[0])
    i1, j1, d1 = close_pairs(xyz, back, is_hcal, LINK_RADIUS[1])  # pairs in the ECAL have their own, smaller radius
    density = energy.copy()
    _add_density(density, energy, is_hcal, i0, j0, d0, 0)
    _add_density(density, energy, is_hcal, i1, j1, d1, 1)
    nearest = np.full(num, 1e30)
    higher = np.full(num, -1, dtype=np.int64)
    _link(density, nearest, higher, i0, j0, d0)
    _link(density, nearest, higher, i1, j1, d1)
    own, count = _follow(density, is_hcal, higher)
    joined, count = separate_cores(xyz, energy, layer, num_ecal, _join(xyz, layer, is_hcal, own, count), count)
    labels, kept = _drop_small(joined, energy, count)
    _attach_isolated(xyz, labels)
    return labels, kept


@compiled
def _follow(density: FloatArray, is_hcal: IntArray, higher: IntArray) -> tuple[IntArray, int]:
    """The group of each hit, which is that of its neighbour of higher density, and the number of groups; -1: it leads to no seed.

    Groups are numbered by the density of their seeds, highest first.
    """
    own = np.full(len(density), -1, dtype=np.int64)
    seeds = np.empty(len(density), dtype=np.int64)
    count = 0
    for i in range(len(density)):
        if higher[i] < 0 and density[i] > SEED_DENSITY[is_hcal[i]]:
            seeds[count] = i
            count += 1
    seeds = seeds[:count]
    seeds = seeds[np.argsort(-density[seeds], kind="mergesort")]
    for c in range(count):
        own[seeds[c]] = c
    state = np.zeros(len(density), dtype=np.int64)  # 1: its group is known
    for i in range(len(density)):
        end = i
        while state[end] == 0 and higher[end] >= 0:
            end = higher[end]
        group = own[end]
        step = i
        while step != end:
            own[step], state[step] = group, 1
            step = higher[step]
        state[end] = 1
    return own, count


@compiled
def _join(xyz: FloatArray, layer: IntArray, is_hcal: IntArray, own: IntArray, count: int) -> IntArray:
    """Group numbers after joining each group to the one that lies right in front of its first hit."""
    first = np.full(count, -1, dtype=np.int64)
    for i in range(len(own)):
        c = own[i]
        if c >= 0 and (first[c] < 0 or layer[i] < layer[first[c]]):
            first[c] = i
    grid = make_grid(xyz, np.flatnonzero(own >= 0), CONE_GRID)
    near = np.empty(len(own), dtype=np.int64)
    target = np.arange(count)
    for c in range(count):
        a = first[c]
        kind = is_hcal[a]
        x, y, z = xyz[a, 0], xyz[a, 1], xyz[a, 2]
        norm = np.sqrt(x * x + y * y + z * z)
        width = CONE_WIDTH[kind] + CONE_SLOPE * CONE_LENGTH[kind]
        tip = xyz[a] * (1.0 - CONE_LENGTH[kind] / norm)
        best = 1.0
        for n in range(points_in_box(grid, np.minimum(tip, xyz[a]) - width, np.maximum(tip, xyz[a]) + width, near)):
            b = near[n]
            if own[b] == c or layer[b] >= layer[a]:
                continue
            dx, dy, dz = x - xyz[b, 0], y - xyz[b, 1], z - xyz[b, 2]
            along = (dx * x + dy * y + dz * z) / norm
            if along <= 0.0 or along > CONE_LENGTH[kind]:
                continue
            across = np.sqrt(max(dx * dx + dy * dy + dz * dz - along * along, 0.0))
            score = across / (CONE_WIDTH[kind] + CONE_SLOPE * along) * (0.5 + 0.5 * along / CONE_LENGTH[kind])
            if across < CONE_WIDTH[kind] + CONE_SLOPE * along and score < best:
                best = score
                target[c] = own[b]
    # Groups are joined to groups that begin further in front, so following the targets ends.
    joined = own.copy()
    for i in range(len(own)):
        c = own[i]
        steps = 0
        while c >= 0 and target[c] != c and steps < count:
            c = target[c]
            steps += 1
        joined[i] = c
    return joined


@compiled
def _drop_small(own: IntArray, energy: FloatArray, count: int) -> tuple[IntArray, int]:
    """Group numbers without gaps, groups that are too small dissolved into isolated hits (-1), and how many are left."""
    total = np.zeros(count)
    hits = np.zeros(count, dtype=np.int64)
    for i in range(len(own)):
        if own[i] >= 0:
            total[own[i]] += energy[i]
            hits[own[i]] += 1
    renumber = np.full(count, -1, dtype=np.int64)
    kept = 0
    for c in range(count):
        if total[c] >= MIN_CLUSTER_ENERGY and hits[c] >= MIN_CLUSTER_HITS:
            renumber[c] = kept
            kept += 1
    labels = np.full(len(own), -1, dtype=np.int64)
    for i in range(len(own)):
        if own[i] >= 0:
            labels[i] = renumber[own[i]]
    return labels, kept


@compiled
def _attach_isolated(xyz: FloatArray, labels: IntArray) -> None:
    """Gives each isolated hit the number of the cluster with the nearest hit within ISOLATED_RADIUS; hits attached here attract none."""
    isolated = np.flatnonzero(labels < 0)
    clustered = np.flatnonzero(labels >= 0)
    if len(isolated) == 0 or len(clustered) == 0:
        return
    grid = make_grid(xyz, clustered, ISOLATED_RADIUS)
    found = np.full(len(isolated), -1, dtype=np.int64)
    for k in range(len(isolated)):
        nearest = nearest_point(grid, xyz[isolated[k], 0], xyz[isolated[k], 1], xyz[isolated[k], 2])
        if nearest >= 0:
            found[k] = labels[nearest]
    for k in range(len(isolated)):
        labels[isolated[k]] = found[k]


@compiled
def cluster_events(position: FloatArray, energy: FloatArray, layer: IntArray, num_ecal: int, bounds: IntArray) -> tuple[IntArray, IntArray]:
    """Cluster numbers within their events (-1: isolated) of hits ordered by event, and clusters per event; `bounds` (events + 1,)."""
    labels = np.full(len(energy), -1, dtype=np.int64)
    counts = np.zeros(len(bounds) - 1, dtype=np.int64)
    for k in range(len(bounds) - 1):
        start, end = bounds[k], bounds[k + 1]
        if end > start:
            labels[start:end], counts[k] = cluster_event(position[start:end], energy[start:end], layer[start:end], num_ecal)
    return labels, counts
