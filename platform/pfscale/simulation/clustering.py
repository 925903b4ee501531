"""Clusters of calorimeter hits by "nearest hit of higher density", which knows nothing of particles.

Each hit gets a local energy density; it follows its nearest neighbour of higher density, and hits without one are seeds (the idea
of CLUE, arXiv:2001.09761). ECAL and HCAL are linked across the gap with the larger search radius. A group that begins right behind
another, as seen from the interaction point, is then joined to it, which reconnects ionising tracks with their showers.
Showers that overlap share a maximum and merge; a hadron shower with distant maxima stays split.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pfscale.simulation.generator import FloatArray, IntArray

DENSITY_RADIUS = (28.0, 100.0)  # mm, ECAL and HCAL
LINK_RADIUS = (45.0, 150.0)  # also the size of the search grid
SEED_DENSITY = (0.045, 0.09)  # GeV
CONE_LENGTH = (120.0, 400.0)  # mm: how far behind another group a group may begin and still be joined
CONE_WIDTH = (18.0, 70.0)  # mm, plus CONE_SLOPE times the distance
CONE_SLOPE = 0.2
MIN_CLUSTER_ENERGY = 0.10  # GeV
MIN_CLUSTER_HITS = 4


@njit(cache=True)
def _grid(position: FloatArray, size: float) -> tuple[IntArray, IntArray, IntArray]:
    """Points sorted into cubes: order of the points, code of each cube, first point of each cube (and the end)."""
    num = len(position)
    codes = np.empty(num, dtype=np.int64)
    for i in range(num):
        code = 0
        for k in range(3):
            code = code * 1024 + int(np.floor(position[i, k] / size)) + 512
        codes[i] = code
    order = np.argsort(codes, kind="mergesort")
    cubes = np.empty(num, dtype=np.int64)
    starts = np.empty(num + 1, dtype=np.int64)
    count = 0
    for k in range(num):
        code = codes[order[k]]
        if count == 0 or cubes[count - 1] != code:
            cubes[count] = code
            starts[count] = k
            count += 1
    starts[count] = num
    return order, cubes[:count], starts[: count + 1]


@njit(cache=True)
def _pairs(xyz: FloatArray, chosen: IntArray, is_hcal: IntArray, kind: int) -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs (i < j in the search order) of `chosen` points closer than the link radius of `kind`, with squared distances.

    For the HCAL's radius, pairs of two ECAL points are left out: they have their own search.
    """
    radius2 = LINK_RADIUS[kind] ** 2
    order, cubes, starts = _grid(xyz[chosen], LINK_RADIUS[kind])
    points = chosen[order]
    first = np.empty(16 * len(chosen) + 16, dtype=np.int64)
    second = np.empty(len(first), dtype=np.int64)
    squared = np.empty(len(first))
    count = 0
    for c in range(len(cubes)):
        for shift in range(13, 27):
            code = cubes[c] + (shift // 9 - 1) * 1048576 + (shift // 3 % 3 - 1) * 1024 + shift % 3 - 1
            n = np.searchsorted(cubes, code)
            if n >= len(cubes) or cubes[n] != code:
                continue
            for a in range(starts[c], starts[c + 1]):
                i = points[a]
                x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
                for b in range(max(starts[n], a + 1) if n == c else starts[n], starts[n + 1]):
                    j = points[b]
                    d2 = (x - xyz[j, 0]) ** 2 + (y - xyz[j, 1]) ** 2 + (z - xyz[j, 2]) ** 2
                    if d2 >= radius2 or (kind == 1 and is_hcal[i] + is_hcal[j] == 0):
                        continue
                    if count == len(first):
                        first = np.concatenate((first, np.empty_like(first)))
                        second = np.concatenate((second, np.empty_like(second)))
                        squared = np.concatenate((squared, np.empty_like(squared)))
                    first[count], second[count], squared[count] = i, j, d2
                    count += 1
    return first[:count], second[:count], squared[:count]


@njit(cache=True)
def _add_density(density: FloatArray, energy: FloatArray, is_hcal: IntArray, i: IntArray, j: IntArray, d2: FloatArray, kind: int) -> None:
    for k in range(len(i)):
        if d2[k] < DENSITY_RADIUS[kind] ** 2 and is_hcal[i[k]] == is_hcal[j[k]]:
            density[i[k]] += 0.5 * energy[j[k]]
            density[j[k]] += 0.5 * energy[i[k]]


@njit(cache=True)
def _link(density: FloatArray, nearest: FloatArray, higher: IntArray, i: IntArray, j: IntArray, d2: FloatArray) -> None:
    for k in range(len(i)):
        low, high = i[k], j[k]
        if density[low] > density[high] or (density[low] == density[high] and low < high):
            low, high = high, low
        if d2[k] < nearest[low]:
            nearest[low] = d2[k]
            higher[low] = high


@njit(cache=True)
def cluster_event(xyz: FloatArray, energy: FloatArray, layer: IntArray, num_ecal: int) -> tuple[IntArray, int]:
    """The cluster number of each hit of one event (-1: isolated), and the number of clusters.

    `layer` counts sections from the front, HCAL sections after the `num_ecal` of the ECAL.
    """
    num = len(energy)
    is_hcal = (layer >= num_ecal).astype(np.int64)
    ecal = np.flatnonzero(is_hcal == 0)
    back = np.flatnonzero(layer >= num_ecal // 2)
    i0, j0, d0 = _pairs(xyz, ecal, is_hcal, 0)
    i1, j1, d1 = _pairs(xyz, back, is_hcal, 1)
    density = energy.copy()
    _add_density(density, energy, is_hcal, i0, j0, d0, 0)
    _add_density(density, energy, is_hcal, i1, j1, d1, 1)
    nearest = np.full(num, 1e30)
    higher = np.full(num, -1, dtype=np.int64)
    _link(density, nearest, higher, i0, j0, d0)
    _link(density, nearest, higher, i1, j1, d1)
    own = np.full(num, -1, dtype=np.int64)
    count = 0
    for i in np.argsort(-density, kind="mergesort"):
        if higher[i] >= 0:
            own[i] = own[higher[i]]
        elif density[i] > SEED_DENSITY[is_hcal[i]]:
            own[i] = count
            count += 1
    return _drop_small(_join(xyz, layer, is_hcal, own, count), energy, count)


@njit(cache=True)
def _join(xyz: FloatArray, layer: IntArray, is_hcal: IntArray, own: IntArray, count: int) -> IntArray:
    """Group numbers after joining each group to the one that lies right in front of its first hit."""
    first = np.full(count, -1, dtype=np.int64)
    for i in range(len(own)):
        c = own[i]
        if c >= 0 and (first[c] < 0 or layer[i] < layer[first[c]]):
            first[c] = i
    target = np.arange(count)
    for c in range(count):
        a = first[c]
        kind = is_hcal[a]
        x, y, z = xyz[a, 0], xyz[a, 1], xyz[a, 2]
        norm = np.sqrt(x * x + y * y + z * z)
        best = 1.0
        for b in range(len(own)):
            if own[b] < 0 or own[b] == c or layer[b] >= layer[a]:
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


@njit(cache=True)
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


@njit(cache=True)
def cluster_events(position: FloatArray, energy: FloatArray, layer: IntArray, num_ecal: int, bounds: IntArray) -> tuple[IntArray, IntArray]:
    """Cluster numbers within their events (-1: isolated) of hits ordered by event, and clusters per event; `bounds` (events + 1,)."""
    labels = np.full(len(energy), -1, dtype=np.int64)
    counts = np.zeros(len(bounds) - 1, dtype=np.int64)
    for k in range(len(bounds) - 1):
        start, end = bounds[k], bounds[k + 1]
        if end > start:
            labels[start:end], counts[k] = cluster_event(position[start:end], energy[start:end], layer[start:end], num_ecal)
    return labels, counts
