"""Photon conversions and hadronic interactions in the tracker's material, as new particles with generatorStatus 0.

A simple form: the chance follows the material at the particle's angle, the radius the tracker's layers; a conversion makes an
e+e- pair, an interaction a few pions, photons and neutrons that share the energy. Energy is kept, momentum to the pions' masses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit

from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import C_LIGHT, FloatArray, IntArray, Particles
from pfscale.simulation.helix import CURVATURE, arc_to_radius, move

BIT_CREATED, BIT_DECAYED_TRACKER, BIT_DECAYED_CALO, BIT_LEFT, BIT_STOPPED = 1 << 30, 1 << 27, 1 << 26, 1 << 25, 1 << 24
MASS_PION, MASS_NEUTRON, MASS_ELECTRON = 0.13957, 0.93957, 0.000511
MAX_PATH = 4.0  # the material seen grows as 1 / sin(theta) up to this
MIN_ENERGY = 0.3  # GeV: below, particles stop or scatter without secondaries that count


def interact(particles: Particles, detector: DetectorModel, rng: np.random.Generator) -> tuple[Particles, IntArray]:
    """The particles with secondaries added (ordered by event again), and a flag (N,): 1 where a particle was destroyed in the tracker."""
    absolute = np.abs(particles.pdg)
    momentum = np.linalg.norm(particles.momentum, axis=1)
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    path = np.minimum(momentum / np.maximum(pt, 1e-9), MAX_PATH)
    is_stable = (particles.status == 1) & (particles.energy > MIN_ENERGY)
    is_hadron = is_stable & (absolute > 100)
    length = np.where(is_stable & (absolute == 22), 7.0 / 9.0 * detector.tracker_x0, np.where(is_hadron, detector.tracker_lambda, 0.0))
    hits_material = rng.random(len(particles)) < 1.0 - np.exp(-length * path)
    layers = np.array([radius for radius, _ in detector.barrel_layers])
    layer = layers[rng.integers(0, len(layers), len(particles))]
    chosen = np.flatnonzero(hits_material & (pt > 0.05))
    point, direction, time = _crossings(particles, chosen, layer[chosen], detector)
    inside = (np.abs(point[:, 2]) < detector.ecal_z * 0.95) & (time >= 0)
    chosen, point, direction, time = chosen[inside], point[inside], direction[inside], time[inside]
    if not len(chosen):
        return particles, np.zeros(len(particles), dtype=np.int64)
    source, pdg, mass, charge, momenta = _secondaries(
        chosen, particles.pdg[chosen], particles.charge[chosen], particles.energy[chosen], direction, rng
    )
    return _append(particles, chosen, point, time, source, pdg, mass, charge, momenta)


def _crossings(
    particles: Particles, chosen: IntArray, radius: FloatArray, detector: DetectorModel
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points (n, 3), directions (n, 3) and times where `chosen` cross cylinders of `radius`; time -1 where they do not."""
    return _crossings_kernel(
        particles.vertex[chosen], particles.momentum[chosen], particles.charge[chosen], particles.mass[chosen], particles.time[chosen],
        radius, detector.b_field,
    )  # fmt: skip


@njit(cache=True)
def _crossings_kernel(
    vertex: FloatArray, momentum: FloatArray, charge: FloatArray, mass: FloatArray, time: FloatArray, radius: FloatArray, b_field: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    num = len(charge)
    point, direction, when = np.zeros((num, 3)), np.zeros((num, 3)), np.full(num, -1.0)
    for i in range(num):
        x, y, z = vertex[i]
        px, py, pz = momentum[i]
        pt = np.hypot(px, py)
        if np.hypot(x, y) >= radius[i]:
            continue
        omega = charge[i] * CURVATURE * b_field / pt
        tan_lambda = pz / pt
        phi = np.arctan2(py, px)
        arc = arc_to_radius(x, y, phi, omega, radius[i])
        if arc < 0:
            continue
        point[i, 0], point[i, 1], point[i, 2], phi = move(x, y, z, phi, omega, tan_lambda, arc)
        norm = np.sqrt(1.0 + tan_lambda * tan_lambda)
        direction[i, 0], direction[i, 1], direction[i, 2] = np.cos(phi) / norm, np.sin(phi) / norm, tan_lambda / norm
        p = pt * norm
        when[i] = time[i] + arc * norm * np.sqrt(p * p + mass[i] * mass[i]) / p / C_LIGHT
    return point, direction, when


def _secondaries(
    chosen: IntArray, pdg: IntArray, charge: FloatArray, energy: FloatArray, direction: FloatArray, rng: np.random.Generator
) -> tuple[IntArray, IntArray, FloatArray, FloatArray, FloatArray]:
    """Secondaries of the chosen particles: index into `chosen`, PDG, mass, charge and momentum (M, 3)."""
    is_photon = pdg == 22
    multiplicity = np.where(is_photon, 2, 3 + np.minimum(rng.poisson(0.7 * np.log1p(energy)), 5))
    source = np.repeat(np.arange(len(chosen)), multiplicity)
    number = np.arange(len(source)) - np.repeat(np.cumsum(multiplicity) - multiplicity, multiplicity)
    share = rng.exponential(size=len(source)) + 0.05
    share /= np.bincount(source, weights=share)[source]
    kind = rng.random(len(source))
    new_pdg = np.select([kind < 0.6, kind < 0.85], [np.where(rng.random(len(source)) < 0.5, 211, -211), 22], 2112)
    leading = (number == 0) & (charge[source] != 0)
    new_pdg = np.where(leading, np.where(charge[source] > 0, 211, -211), new_pdg)
    new_pdg = np.where(is_photon[source], np.where(number == 0, 11, -11), new_pdg)
    mass = np.select([np.abs(new_pdg) == 211, new_pdg == 2112, np.abs(new_pdg) == 11], [MASS_PION, MASS_NEUTRON, MASS_ELECTRON], 0.0)
    # Neutrons are knocked out of nuclei: their mass is not taken from the incoming energy.
    available = energy[source] * share + np.where(new_pdg == 2112, MASS_NEUTRON, 0.0)
    available = np.maximum(available, mass * 1.001)
    absolute = np.sqrt(available**2 - mass**2)
    transverse = np.where(is_photon[source], 0.001, rng.rayleigh(0.25, len(source)))
    transverse = np.minimum(transverse, 0.7 * absolute)
    angle = rng.uniform(0, 2 * np.pi, len(source))
    along = np.sqrt(absolute**2 - transverse**2)
    axis = direction[source]
    across = np.cross(axis, np.where(np.abs(axis[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    third = np.cross(axis, across)
    side = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * third
    charges = np.select([new_pdg == 211, new_pdg == -211, new_pdg == 11, new_pdg == -11], [1.0, -1.0, -1.0, 1.0], 0.0)
    return source, new_pdg.astype(np.int64), mass, charges, along[:, None] * axis + transverse[:, None] * side


def _append(
    old: Particles,
    chosen: IntArray,
    point: FloatArray,
    time: FloatArray,
    source: IntArray,
    pdg: IntArray,
    mass: FloatArray,
    charge: FloatArray,
    momentum: FloatArray,
) -> tuple[Particles, IntArray]:
    """`old` with the secondaries behind the other particles of their events, and the flag of destroyed particles."""
    num = len(old)
    event = np.concatenate([old.event, old.event[chosen][source]])
    order = np.argsort(event, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    endpoint, has_decay = old.endpoint.copy(), old.has_decay.copy()
    endpoint[chosen], has_decay[chosen] = point, True
    destroyed = np.zeros(len(event), dtype=np.int64)
    destroyed[chosen] = 1
    child = position[np.concatenate([old.child, num + np.arange(len(source))])]
    parent = position[np.concatenate([old.parent, chosen[source]])]
    pairs = np.lexsort((parent, child))
    merged = replace(
        old,
        event=event[order],
        pdg=np.concatenate([old.pdg, pdg])[order],
        status=np.concatenate([old.status, np.zeros(len(source), dtype=np.int64)])[order],
        charge=np.concatenate([old.charge, charge])[order],
        mass=np.concatenate([old.mass, mass])[order],
        momentum=np.concatenate([old.momentum, momentum])[order],
        vertex=np.concatenate([old.vertex, point[source]])[order],
        time=np.concatenate([old.time, time[source]])[order],
        endpoint=np.concatenate([endpoint, point[source]])[order],
        has_decay=np.concatenate([has_decay, np.zeros(len(source), dtype=bool)])[order],
        parent=parent[pairs],
        child=child[pairs],
    )
    return merged, destroyed[order]
