"""Conversions, bremsstrahlung and hadronic interactions in the tracker's material, as new particles with generatorStatus 0.

A simple form: the chance follows the material at the particle's angle, the place the layers' parts of it; a conversion makes an
e+e- pair, an interaction a few pions, photons and neutrons that share the energy. Energy is kept, momentum to the pions' masses.
An electron radiates at most one photon (spectrum of the PDG review, passage of particles) and goes on with what it has left.
"""

from __future__ import annotations

import numpy as np
from particle.pdgid import literals as pid

from pfscale.simulation.compiled import compiled
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import C_LIGHT, FloatArray, IntArray, Particles
from pfscale.simulation.helix import CURVATURE, arc_to_radius, move
from pfscale.simulation.secondaries import Flight, Secondaries, append_secondaries, undisturbed

PION, PHOTON, ELECTRON, NEUTRON = int(pid.pi_plus), int(pid.gamma), int(pid.e_minus), int(pid.n)
LEAST_HADRON = 100  # PDG numbers of hadrons are larger
BIT_CREATED, BIT_NOT_AT_ENDPOINT = 1 << 30, 1 << 28
BIT_DECAYED_TRACKER, BIT_DECAYED_CALO, BIT_LEFT, BIT_STOPPED = 1 << 27, 1 << 26, 1 << 25, 1 << 24
MASS_PION, MASS_NEUTRON, MASS_ELECTRON = 0.13957, 0.93957, 0.000511
MAX_PATH = 4.0  # the material seen grows as 1 / sin(theta) up to this
MIN_ENERGY = 0.3  # GeV: below, particles stop or scatter without secondaries that count
MIN_RADIATED = 0.02  # of the electron's energy
LAST_DISK = 0.95  # of the half length of the tracker
MIN_PT = 0.05  # GeV: softer ones curl up before they are through
# A hadronic interaction: 3 to 8 secondaries, sharing the energy; chosen, and too rare (3% of the hadrons) to matter more
LEAST_SECONDARIES, MULTIPLICITY_SLOPE, MOST_MORE = 3, 0.7, 5  # more: Poisson of the slope times ln(1 + E / GeV), at most
PION_SHARE, PHOTON_SHARE = 0.6, 0.25  # of the secondaries; the rest are neutrons
SHARE_FLOOR = 0.05  # of the energy's, so that none is empty
TRANSVERSE = 0.25  # GeV, scale of the transverse momentum
PAIR_TRANSVERSE = 0.001  # GeV, same of conversions and radiated photons: about the electron's mass
# Photons above MIN_RADIATED per radiation length: the integral of 4/(3y) - 4/3 + y
PHOTONS_PER_X0 = 4.0 / 3.0 * np.log(1.0 / MIN_RADIATED) - 4.0 / 3.0 * (1.0 - MIN_RADIATED) + 0.5 * (1.0 - MIN_RADIATED**2)


def interact(particles: Particles, detector: DetectorModel, rng: np.random.Generator) -> tuple[Particles, Flight]:
    """The particles with secondaries added (ordered by event again), and how each flies on."""
    absolute = np.abs(particles.pdg)
    momentum = np.linalg.norm(particles.momentum, axis=1)
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    path = np.minimum(momentum / np.maximum(pt, 1e-9), MAX_PATH)
    is_stable = (particles.status == 1) & (particles.energy > MIN_ENERGY)
    length = np.select(
        [is_stable & (absolute == PHOTON), is_stable & (absolute == ELECTRON), is_stable & (absolute > LEAST_HADRON)],
        [7.0 / 9.0 * detector.tracker_x0, PHOTONS_PER_X0 * detector.tracker_x0, detector.tracker_lambda],
        0.0,
    )
    hits_material = rng.random(len(particles)) < 1.0 - np.exp(-length * path)
    drawn = rng.random(len(particles))
    chosen = np.flatnonzero(hits_material & (pt > MIN_PT))
    radius = _material_radius(drawn[chosen], pt[chosen], particles.momentum[chosen, 2], detector)
    point, direction, time, arc = _crossings(particles, chosen, radius, detector)
    inside = (np.abs(point[:, 2]) < detector.ecal_z * 0.99) & (time >= 0)
    chosen, point, direction, time, arc = chosen[inside], point[inside], direction[inside], time[inside], arc[inside]
    flight = undisturbed(particles)
    if not len(chosen):
        return particles, flight
    is_electron = absolute[chosen] == ELECTRON
    flight.is_destroyed[chosen] = ~is_electron
    flight.end[chosen[~is_electron]] = arc[~is_electron]
    share = _radiated_share(int(is_electron.sum()), rng)
    electron = chosen[is_electron]
    left = np.sqrt(np.maximum(((1.0 - share) * particles.energy[electron]) ** 2 - particles.mass[electron] ** 2, 1e-12))
    flight.vertex[electron], flight.time[electron], flight.arc[electron] = point[is_electron], time[is_electron], arc[is_electron]
    flight.momentum[electron], flight.radiated[electron] = left[:, None] * direction[is_electron], share
    radiated = np.zeros(len(chosen))
    radiated[is_electron] = share
    secondaries = _secondaries(particles, chosen, direction, radiated, rng)
    return append_secondaries(particles, flight, chosen, point, time, secondaries)


def _material_radius(drawn: FloatArray, pt: FloatArray, pz: FloatArray, detector: DetectorModel) -> FloatArray:
    """Radii (n,) of the material that particles meet, from uniform numbers `drawn`: a layer, as likely as its part of the material.

    Particles that leave through the end of the tracker meet disks instead of the layers outside the vertex detector: the layers' radii
    are shrunk to what such a particle passes.
    """
    assert len(detector.material_shares) == len(detector.barrel_layers)
    layers = np.array([radius for radius, _ in detector.barrel_layers])
    number = np.minimum(np.searchsorted(np.cumsum(detector.material_shares), drawn, side="right"), len(layers) - 1)
    passed = LAST_DISK * detector.ecal_z * pt / np.maximum(np.abs(pz), 1e-9)
    shrink = np.where(number < detector.vertex_layers, 1.0, np.minimum(passed / layers[-1], 1.0))
    return layers[number] * shrink


def _radiated_share(num: int, rng: np.random.Generator) -> FloatArray:
    """Parts of the energy (num,) that go to the photon, from 4/(3y) - 4/3 + y above MIN_RADIATED."""
    share = np.empty(num)
    missing = np.arange(num)
    while len(missing):
        y = MIN_RADIATED ** rng.random(len(missing))
        share[missing] = y
        missing = missing[rng.random(len(missing)) > 1.0 - y + 0.75 * y**2]
    return share


def _crossings(
    particles: Particles, chosen: IntArray, radius: FloatArray, detector: DetectorModel
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Points (n, 3), directions (n, 3), times and arcs where `chosen` cross cylinders of `radius`; time -1 where they do not."""
    return _crossings_kernel(
        particles.vertex[chosen], particles.momentum[chosen], particles.charge[chosen], particles.mass[chosen], particles.time[chosen],
        radius, detector.b_field,
    )  # fmt: skip


@compiled
def _crossings_kernel(
    vertex: FloatArray, momentum: FloatArray, charge: FloatArray, mass: FloatArray, time: FloatArray, radius: FloatArray, b_field: float
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """`_crossings`, particle by particle."""
    num = len(charge)
    point, direction, when, arcs = np.zeros((num, 3)), np.zeros((num, 3)), np.full(num, -1.0), np.zeros(num)
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
        arcs[i] = arc
    return point, direction, when, arcs


def _secondaries(
    particles: Particles, chosen: IntArray, direction: FloatArray, radiated: FloatArray, rng: np.random.Generator
) -> Secondaries:
    """Secondaries of the chosen particles, which fly in `direction` and, if they are electrons, lose a part `radiated` of their energy."""
    pdg, charge, energy = particles.pdg[chosen], particles.charge[chosen], particles.energy[chosen]
    is_electron = radiated > 0
    is_photon = pdg == PHOTON
    more = np.minimum(rng.poisson(MULTIPLICITY_SLOPE * np.log1p(energy)), MOST_MORE)
    multiplicity = np.select([is_photon, is_electron], [2, 1], LEAST_SECONDARIES + more)
    source = np.repeat(np.arange(len(chosen)), multiplicity)
    number = np.arange(len(source)) - np.repeat(np.cumsum(multiplicity) - multiplicity, multiplicity)
    share = rng.exponential(size=len(source)) + SHARE_FLOOR
    share /= np.bincount(source, weights=share)[source]
    share = np.where(is_electron[source], radiated[source], share)
    kind = rng.random(len(source))
    pion = np.where(rng.random(len(source)) < 0.5, PION, -PION)
    new_pdg = np.select([kind < PION_SHARE, kind < PION_SHARE + PHOTON_SHARE], [pion, PHOTON], NEUTRON)
    leading = (number == 0) & (charge[source] != 0)
    new_pdg = np.where(leading, np.where(charge[source] > 0, PION, -PION), new_pdg)
    pair_or_photon = np.where(number == 0, ELECTRON, -ELECTRON), PHOTON
    new_pdg = np.select([is_photon[source], is_electron[source]], pair_or_photon, new_pdg)
    kinds = [np.abs(new_pdg) == PION, new_pdg == NEUTRON, np.abs(new_pdg) == ELECTRON]
    mass = np.select(kinds, [MASS_PION, MASS_NEUTRON, MASS_ELECTRON], 0.0)
    # Neutrons are knocked out of nuclei: their mass is not taken from the incoming energy.
    available = energy[source] * share + np.where(new_pdg == NEUTRON, MASS_NEUTRON, 0.0)
    available = np.maximum(available, mass * 1.001)
    absolute = np.sqrt(available**2 - mass**2)
    transverse = np.where((is_photon | is_electron)[source], PAIR_TRANSVERSE, rng.rayleigh(TRANSVERSE, len(source)))
    transverse = np.minimum(transverse, 0.7 * absolute)
    angle = rng.uniform(0, 2 * np.pi, len(source))
    along = np.sqrt(absolute**2 - transverse**2)
    axis = direction[source]
    across = np.cross(axis, np.where(np.abs(axis[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    third = np.cross(axis, across)
    side = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * third
    charges = np.select([np.abs(new_pdg) == PION, np.abs(new_pdg) == ELECTRON], [np.sign(new_pdg), -np.sign(new_pdg)], 0.0)
    return Secondaries(source, new_pdg.astype(np.int64), mass, charges, along[:, None] * axis + transverse[:, None] * side)
