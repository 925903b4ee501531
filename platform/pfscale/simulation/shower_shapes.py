"""What the hits of clusters say about showers: where they begin, how deep and wide they are, how much of them is in the ECAL.

Everything is measured: positions, energies and sections of hits. Sections count from the front; those of the HCAL follow those of the
ECAL, and muon chambers those of the HCAL. Units: GeV, mm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfscale.simulation.compiled import compiled
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.showers import CRITICAL_ENERGY, LEAST_COSINE, MAXIMUM_SHIFT, MAXIMUM_SPREAD, PROFILE_B

START_SHARE = 0.05  # a shower starts in the section where this part of its energy has been left
INNER_SECTIONS = 4  # how many sections from its first hit on are the inner part of a cluster
MAX_SECTIONS = 63  # of all calorimeters and chambers: the bits of a positive integer
CORE_RADIUS = 20.0  # mm: the Moliere radius of the tungsten ECAL with its gaps
# Electromagnetic showers, in parts of their energy or of the ECAL's sections. Of single photons of 0.7 to 150 GeV 99% pass, of charged
# pions and K0L of 2 to 50 GeV 2 to 4%. The mean depth grows with the logarithm of the energy, and sections of endcaps and of a barrel's
# ends are crossed at an angle: with one number of sections for all, 54% of photons of 150 GeV pass, and twice as many hadrons.
EM_SHARE = 0.9  # least part in the ECAL
EM_CORE = 0.5  # least part of that within CORE_RADIUS
EM_START = 0.25  # latest start
EM_DEPTH_SIGMA = 2.5  # most that the mean depth is beyond that of photons of this energy, in its standard deviations
EM_DEPTH_SAMPLING = 0.67  # part of that deviation from sampling, radiation lengths at 1 GeV; the other is MAXIMUM_SPREAD


class Layers(NamedTuple):
    """How many sections the calorimeters have, how thick those of the ECAL are, and where its endcaps begin."""

    ecal: int
    both: int  # ECAL and HCAL
    ecal_x0: float  # radiation lengths of a section at normal incidence
    ecal_z: float


class ClusterHits(NamedTuple):
    """Hits in the order of their clusters: those of cluster c are `first[c]:first[c + 1]`."""

    first: IntArray  # (C + 1,)
    position: FloatArray  # (H, 3)
    energy: FloatArray  # (H,)
    section: IntArray  # (H,)


class Shapes(NamedTuple):
    """One row per cluster, (C,) or (C, 3); muon chambers do not count."""

    energy: FloatArray
    ecal: FloatArray  # part of `energy` in the ECAL
    centre: FloatArray  # energy-weighted
    inner: FloatArray  # same, of the first INNER_SECTIONS sections
    radius: FloatArray  # distance of the farthest hit from `centre`
    front: IntArray  # section of the first hit
    core: FloatArray  # part of `ecal` within CORE_RADIUS of the line from the interaction point
    is_electromagnetic: IntArray  # 1 or 0


def layers(detector: DetectorModel) -> Layers:
    """The sections of `detector`."""
    total = detector.ecal_sections + detector.hcal_sections
    assert total + detector.muon_layers <= MAX_SECTIONS, "more sections and chambers than a bit mask holds"
    return Layers(detector.ecal_sections, total, detector.ecal_x0 / detector.ecal_sections, detector.ecal_z)


@compiled
def cluster_shapes(hits: ClusterHits, layers: Layers) -> Shapes:
    """The shapes of all clusters."""
    num = len(hits.first) - 1
    energy, ecal, radius, core = np.zeros(num), np.zeros(num), np.zeros(num), np.zeros(num)
    centre, inner = np.zeros((num, 3)), np.zeros((num, 3))
    front, is_electromagnetic = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
    profile, axis = np.zeros(layers.both), np.zeros(3)
    for c in range(num):
        profile[:], axis[:] = 0.0, 0.0
        a, b = hits.first[c], hits.first[c + 1]
        for h in range(a, b):
            e, s = hits.energy[h], hits.section[h]
            if s >= layers.both:
                continue
            profile[s] += e
            for k in range(3):
                centre[c, k] += e * hits.position[h, k]
                if s < layers.ecal:
                    axis[k] += e * hits.position[h, k]
        energy[c], ecal[c] = profile.sum(), profile[: layers.ecal].sum()
        centre[c] /= max(energy[c], 1e-12)
        while front[c] < layers.both - 1 and profile[front[c]] == 0.0:
            front[c] += 1
        core[c] = _spread(hits, layers, a, b, front[c], centre[c], axis, inner[c], radius[c : c + 1]) / max(ecal[c], 1e-12)
        if ecal[c] > EM_SHARE * energy[c] and core[c] > EM_CORE:
            is_electromagnetic[c] = _has_electromagnetic_profile(profile, energy[c], centre[c], layers)
    return Shapes(energy, ecal, centre, inner, radius, front, core, is_electromagnetic)


@compiled
def _spread(
    hits: ClusterHits,
    layers: Layers,
    a: int,
    b: int,
    front: int,
    centre: FloatArray,
    axis: FloatArray,
    inner: FloatArray,
    radius: FloatArray,
) -> float:  # fmt: skip
    """The ECAL energy within CORE_RADIUS of the line from the interaction point along `axis`; fills `inner` (3,) and `radius` (1,)."""
    length = max(np.sqrt((axis**2).sum()), 1e-12)
    inner_energy, core = 0.0, 0.0
    for h in range(a, b):
        e, s = hits.energy[h], hits.section[h]
        if s >= layers.both:
            continue
        x, y, z = hits.position[h, 0], hits.position[h, 1], hits.position[h, 2]
        radius[0] = max(radius[0], np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2))
        if s < front + INNER_SECTIONS:
            inner_energy += e
            for k in range(3):
                inner[k] += e * hits.position[h, k]
        if s < layers.ecal:
            along = (x * axis[0] + y * axis[1] + z * axis[2]) / length
            if x * x + y * y + z * z - along * along < CORE_RADIUS**2:
                core += e
    inner /= max(inner_energy, 1e-12)
    return core


@compiled
def _has_electromagnetic_profile(profile: FloatArray, energy: float, centre: FloatArray, layers: Layers) -> int:
    """1 if a shower with these energies per section starts early and has its mean no deeper than electromagnetic ones, else 0."""
    total, depth, start = 0.0, 0.0, -1
    for s in range(len(profile)):
        total += profile[s]
        depth += profile[s] * (s + 0.5)
        if start < 0 and total >= START_SHARE * energy:
            start = s
    if start > EM_START * layers.ecal:
        return 0
    mean = depth / energy * layers.ecal_x0 / _cosine(centre, layers)
    expected = np.log(energy / CRITICAL_ENERGY) + MAXIMUM_SHIFT + 1.0 / PROFILE_B  # mean of the gamma profile of a photon
    sigma = np.sqrt(MAXIMUM_SPREAD**2 + EM_DEPTH_SAMPLING**2 / energy)
    return 1 if mean < expected + EM_DEPTH_SIGMA * sigma else 0


@compiled
def _cosine(centre: FloatArray, layers: Layers) -> float:
    """Cosine of the angle at which a line from the interaction point to a cluster's centre crosses sections of the barrel or an endcap."""
    rho = np.hypot(centre[0], centre[1])
    along = abs(centre[2]) if abs(centre[2]) > layers.ecal_z else rho
    return max(along / max(np.hypot(rho, centre[2]), 1e-12), LEAST_COSINE)
