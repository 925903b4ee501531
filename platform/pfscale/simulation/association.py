"""Which clusters belong to which tracks: straight lines behind the calorimeter's face, shared sections, and energy over momentum.

Tracks that share the cluster that their lines run into make a group. A group takes further clusters, nearest first, as long as its energy
then agrees better with its momentum, or not much worse: fragments of hadron showers. Units: GeV, mm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pfscale.simulation.compiled import compiled
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.hadron_resolution import Energy, shower_variance
from pfscale.simulation.shower_shapes import INNER_SECTIONS, ClusterHits, Layers, Shapes, layers

# Weights of the energies in ECAL and HCAL for hadrons, of all detectors: from single K0L of 2 to 50 GeV (calibration.py)
HADRON_WEIGHTS = (1.04, 1.02)
LEAST_SIGMA = 0.1  # GeV: of the energy of a hadron shower, for soft ones
TUBE_CELLS = (1.25, 0.75)  # radius around a line in cells of ECAL and HCAL: hits within are on it
NEAR = (60.0, 150.0)  # mm between a fragment and a hit or line of the group, for a fragment that begins in ECAL or HCAL
MIDDLE = (150.0, 350.0)
FAR = (250.0, 600.0)
# How much less likely a group may become with a fragment (in units of chi2 / 2), at these distances
ALLOWANCE = (0.5, -0.5, -1.0)
ELECTROMAGNETIC_ALLOWANCE = -3.0  # added for a fragment that looks like a photon
OVERLAP_COST = 3.0  # most that too much energy costs: it may be a neutral particle on top
TIE = 1e-6  # per mm: of clusters with equally many sections on a line, the one whose middle is nearer, not the one that comes first
TOO_FAR = 1e9
ROUNDS = 2  # so that fragments of fragments are found


class Rules(NamedTuple):
    """The numbers of a detector that particle flow needs (a named tuple, because compiled code takes no dataclass)."""

    layers: Layers
    ecal_cell: float
    hcal_cell: float
    stochastic: float  # of the hadronic resolution, ...
    uncompensated: float  # ... at low energies, ...
    constant: float  # ... at high ones
    em_stochastic: float
    em_constant: float
    ecal_mip: float  # per section
    hcal_mip: float
    depth: float  # of both calorimeters
    has_chambers: bool


def rules(detector: DetectorModel) -> Rules:
    """The numbers of `detector`."""
    return Rules(
        layers=layers(detector),
        ecal_cell=detector.ecal_cell,
        hcal_cell=detector.hcal_cell,
        stochastic=detector.hcal_stochastic,
        uncompensated=detector.hcal_uncompensated,
        constant=detector.hcal_constant,
        em_stochastic=detector.ecal_stochastic,
        em_constant=detector.ecal_constant,
        ecal_mip=detector.ecal_mip,
        hcal_mip=detector.hcal_mip,
        depth=detector.ecal_thickness + detector.hcal_gap + detector.hcal_thickness,
        has_chambers=detector.muon_layers > 0,
    )


class Lines(NamedTuple):
    """Tracks behind the calorimeter's face, (T,) or (T, 3)."""

    reaches: npt.NDArray[np.bool_]  # the face
    point: FloatArray
    direction: FloatArray
    momentum: FloatArray  # absolute value
    sigma: FloatArray  # its error


class OnLine(NamedTuple):
    """Hits on the line of a track; muon chambers count among the sections only."""

    number: int
    sections: int  # as bits
    energy: float
    depth: float  # path along the line to the last


class Groups(NamedTuple):
    """Groups of one event: group g < num_clusters is that of the tracks that enter cluster g, later ones have one track and no cluster."""

    of_track: IntArray  # (T,)
    of_cluster: IntArray  # (C,), -1: none
    expected: FloatArray  # (G,) energy that the tracks leave
    variance: FloatArray  # (G,) of the difference to `found`
    found: FloatArray  # (G,)
    is_electron: npt.NDArray[np.bool_]  # (G,) whether a track is an electron's: clusters then have the electromagnetic scale


@compiled
def hadronic_energy(ecal: Energy, total: Energy) -> Energy:
    """The energy of clusters as those of hadrons, from what is in the ECAL and in all: one number or an array of them."""
    return HADRON_WEIGHTS[0] * ecal + HADRON_WEIGHTS[1] * (total - ecal)


@compiled
def group_energy(groups: Groups, g: int, shapes: Shapes, c: int) -> float:
    """The energy of cluster `c` on the scale of group `g`."""
    return shapes.energy[c] if groups.is_electron[g] else hadronic_energy(shapes.ecal[c], shapes.energy[c])


@compiled
def hadronic_variance(rules: Rules, energy: float) -> float:
    """The variance of the measured energy of a hadron of `energy`."""
    return shower_variance(energy, rules.stochastic, rules.uncompensated, rules.constant) + LEAST_SIGMA**2


@compiled
def distance_to_line(lines: Lines, t: int, point: FloatArray) -> tuple[float, float]:
    """(distance from the line of track `t`, path along it) of a point."""
    x, y, z = point[0] - lines.point[t, 0], point[1] - lines.point[t, 1], point[2] - lines.point[t, 2]
    along = x * lines.direction[t, 0] + y * lines.direction[t, 1] + z * lines.direction[t, 2]
    return np.sqrt(max(x * x + y * y + z * z - along * along, 0.0)), along


@compiled
def tube_radius(rules: Rules, section: int) -> float:
    """How far from a line a hit may be in this section to be on it; in chambers, behind much material, three times the HCAL's."""
    if section < rules.layers.ecal:
        return TUBE_CELLS[0] * rules.ecal_cell
    return TUBE_CELLS[1] * rules.hcal_cell * (1.0 if section < rules.layers.both else 3.0)


@compiled
def on_line(rules: Rules, lines: Lines, t: int, hits: ClusterHits, shapes: Shapes, c: int) -> tuple[OnLine, float]:
    """(hits of cluster `c` on the line of track `t`, smallest distance of its inner hits to the line)."""
    number, sections, energy, depth, nearest = 0, 0, 0.0, 0.0, 1e9
    px, py, pz = lines.point[t, 0], lines.point[t, 1], lines.point[t, 2]
    ux, uy, uz = lines.direction[t, 0], lines.direction[t, 1], lines.direction[t, 2]
    inner_end = shapes.front[c] + INNER_SECTIONS
    for h in range(hits.first[c], hits.first[c + 1]):
        x, y, z = hits.position[h, 0] - px, hits.position[h, 1] - py, hits.position[h, 2] - pz
        along = x * ux + y * uy + z * uz
        section = hits.section[h]
        tube = tube_radius(rules, section)
        d2 = x * x + y * y + z * z - along * along
        if along < -tube:
            continue
        if d2 < tube * tube:
            sections |= 1 << section
            energy += hits.energy[h]
            if section < rules.layers.both:
                number += 1
                depth = max(depth, along)
        if section < inner_end and d2 < nearest * nearest:
            nearest = np.sqrt(d2)
    return OnLine(number, sections, energy, depth), nearest


@compiled
def count_bits(bits: int) -> int:
    """How many bits are set."""
    count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count


@compiled
def entered_cluster(rules: Rules, lines: Lines, t: int, hits: ClusterHits, shapes: Shapes, c0: int, c1: int) -> tuple[int, OnLine]:
    """(the cluster among c0:c1 that the line of track `t` enters or -1, the hits of all of them on the line).

    That is the one with hits on the line in most sections, those of the ECAL before those of the HCAL, else the nearest within three
    tubes. A cluster that looks like a photon counts only if its middle is on the line: many tracks graze a photon's halo.
    """
    ecal_bits = (1 << rules.layers.ecal) - 1
    tube = tube_radius(rules, 0)
    best, best_score, nearest, near = -1, 0.0, -1, 3.0 * tube
    number, all_sections, all_energy, depth = 0, 0, 0.0, 0.0
    for c in range(c0, c1):
        d, along = distance_to_line(lines, t, shapes.centre[c])
        if d > shapes.radius[c] + TUBE_CELLS[1] * rules.hcal_cell or along < -shapes.radius[c]:
            continue
        found, inner = on_line(rules, lines, t, hits, shapes, c)
        number += found.number
        all_sections |= found.sections
        all_energy += found.energy
        depth = max(depth, found.depth)
        if shapes.is_electromagnetic[c] and d > tube:
            continue
        in_ecal = count_bits(found.sections & ecal_bits)
        score = in_ecal + 0.3 * (count_bits(found.sections) - in_ecal) - 0.5 * min(inner / tube, 1.0) - TIE * d
        if found.sections and score > best_score:
            best, best_score = c, score
        if inner < near and shapes.front[c] < rules.layers.ecal:
            nearest, near = c, inner
    return (best if best >= 0 else nearest), OnLine(number, all_sections, all_energy, depth)


@compiled
def cost(chi: float) -> float:
    """How unlikely a difference of `chi` standard deviations between a group's energy and momentum is, in units of chi2 / 2."""
    return 0.5 * chi * chi if chi < 0.0 else min(0.5 * chi * chi, OVERLAP_COST)


@compiled
def make_groups(
    entered: IntArray, expected: FloatArray, variance: FloatArray, is_electron: npt.NDArray[np.bool_], shapes: Shapes, c0: int, c1: int
) -> Groups:
    """The groups of tracks with these entered clusters (-1: none), energies and variances, before any fragment is taken."""
    num_tracks, num_clusters = len(entered), c1 - c0
    size = num_clusters + num_tracks
    groups = Groups(
        np.empty(num_tracks, dtype=np.int64),
        np.full(num_clusters, -1, dtype=np.int64),
        np.zeros(size),
        np.zeros(size),
        np.zeros(size),
        np.zeros(size, dtype=np.bool_),
    )
    for t in range(num_tracks):
        g = entered[t] - c0 if entered[t] >= 0 else num_clusters + t
        groups.of_track[t] = g
        groups.expected[g] += expected[t]
        groups.variance[g] += variance[t]
        groups.is_electron[g] |= is_electron[t]
        if entered[t] >= 0:
            groups.of_cluster[g] = g
            groups.found[g] = group_energy(groups, g, shapes, c0 + g)
    return groups


@compiled
def take_fragments(lines: Lines, t0: int, hits: ClusterHits, shapes: Shapes, c0: int, groups: Groups, rules: Rules) -> None:
    """Adds to the groups the clusters that are fragments of theirs."""
    num_clusters = len(groups.of_cluster)
    distances = _distances_to_lines(lines, t0, shapes, c0, groups, rules)
    is_new = groups.of_cluster >= 0
    for _ in range(ROUNDS):
        for k in range(num_clusters):
            if is_new[k]:
                g = groups.of_cluster[k]
                for c in range(num_clusters):
                    if groups.of_cluster[c] < 0:
                        most = min(distances[c, g], FAR[0] if shapes.front[c0 + c] < rules.layers.ecal else FAR[1])
                        d = distance_to_hits(hits, shapes, c0 + k, shapes.inner[c0 + c], most)
                        if d < most:
                            distances[c, g] = d
        is_new[:] = False
        pairs = np.flatnonzero(distances < TOO_FAR)
        for pair in pairs[np.argsort(distances.ravel()[pairs], kind="mergesort")]:
            c, g = pair // len(groups.found), pair % len(groups.found)
            kind = 0 if shapes.front[c0 + c] < rules.layers.ecal else 1
            if groups.of_cluster[c] >= 0:
                continue
            allowance = ALLOWANCE[0] if distances[c, g] < NEAR[kind] else ALLOWANCE[1] if distances[c, g] < MIDDLE[kind] else ALLOWANCE[2]
            if shapes.is_electromagnetic[c0 + c]:
                allowance += ELECTROMAGNETIC_ALLOWANCE
            sigma = np.sqrt(groups.variance[g])
            missing = groups.found[g] - groups.expected[g]
            added = group_energy(groups, g, shapes, c0 + c)
            if cost((missing + added) / sigma) - cost(missing / sigma) < allowance:
                groups.of_cluster[c] = g
                groups.found[g] += added
                is_new[c] = True


@compiled
def _distances_to_lines(lines: Lines, t0: int, shapes: Shapes, c0: int, groups: Groups, rules: Rules) -> FloatArray:
    """Distances (C, G) of the inner parts of free clusters from the lines of a group's tracks, TOO_FAR where that is beyond FAR."""
    distances = np.full((len(groups.of_cluster), len(groups.found)), TOO_FAR)
    for c in range(len(groups.of_cluster)):
        if groups.of_cluster[c] >= 0:
            continue
        far = FAR[0] if shapes.front[c0 + c] < rules.layers.ecal else FAR[1]
        for t in range(len(groups.of_track)):
            if lines.reaches[t0 + t]:
                d, along = distance_to_line(lines, t0 + t, shapes.inner[c0 + c])
                if along > -NEAR[0] and d < min(far, distances[c, groups.of_track[t]]):
                    distances[c, groups.of_track[t]] = d
    return distances


@compiled
def distance_to_hits(hits: ClusterHits, shapes: Shapes, c: int, point: FloatArray, most: float) -> float:
    """Distance from a point to the nearest hit of cluster `c`, or `most` if that is nearer."""
    x, y, z = point[0], point[1], point[2]
    dx, dy, dz = shapes.centre[c, 0] - x, shapes.centre[c, 1] - y, shapes.centre[c, 2] - z
    if dx * dx + dy * dy + dz * dz > (most + shapes.radius[c]) ** 2:
        return most
    best = most * most
    for h in range(hits.first[c], hits.first[c + 1]):
        dx, dy, dz = hits.position[h, 0] - x, hits.position[h, 1] - y, hits.position[h, 2] - z
        best = min(best, dx * dx + dy * dy + dz * dz)
    return np.sqrt(best)
