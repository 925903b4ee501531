"""Charged pions and kaons that decay on their way to the calorimeter, as new particles with generatorStatus 0.

Generators leave these to the detector. Two-body decays only: a muon and a neutrino, or, of kaons, two pions, whose pi0 goes into photons
at once; the 15% of a kaon's decays into three particles are shared out to these. What flies on has no further decay, no interaction.
"""

from __future__ import annotations

import numpy as np
from particle import Particle
from particle.pdgid import literals as pid

from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import C_LIGHT, FloatArray, IntArray, Particles
from pfscale.simulation.helix import CURVATURE, MAX_ARC, move, to_calorimeter
from pfscale.simulation.secondaries import Flight, Secondaries, append_secondaries

PION, KAON, MUON, NEUTRINO, PHOTON = int(pid.pi_plus), int(pid.K_plus), int(pid.mu_minus), int(pid.nu_mu), int(pid.gamma)
GEV = 1e-3  # `particle` has MeV
LENGTHS = {code: float(Particle.from_pdgid(code).ctau) for code in (PION, KAON)}  # mm
MASSES = {code: float(Particle.from_pdgid(code).mass) * GEV for code in (PION, KAON, MUON, int(pid.pi_0))}
KAON_TO_MUON = 0.6356 / (0.6356 + 0.2067)  # the PDG's branching fractions of mu nu and pi pi0


def decay_in_flight(particles: Particles, flight: Flight, detector: DetectorModel, rng: np.random.Generator) -> tuple[Particles, Flight]:
    """The particles with those from decays in flight added (ordered by event again), and how each flies on."""
    absolute = np.abs(particles.pdg)
    candidates = np.flatnonzero(np.isin(absolute, list(LENGTHS)) & (particles.status != 2) & ~flight.is_destroyed)
    momentum = flight.momentum[candidates]
    length = np.where(absolute[candidates] == PION, LENGTHS[PION], LENGTHS[KAON])
    arc = rng.exponential(size=len(candidates)) * length * np.hypot(momentum[:, 0], momentum[:, 1]) / particles.mass[candidates]
    end = to_calorimeter(
        flight.vertex[candidates], momentum, particles.charge[candidates], detector.b_field, detector.ecal_radius, detector.ecal_z
    )[2]
    decays = arc < np.where(end >= 0.0, end, MAX_ARC)
    is_inside = np.hypot(*flight.vertex[candidates, :2].T) < detector.ecal_radius
    is_inside &= np.abs(flight.vertex[candidates, 2]) < detector.ecal_z
    chosen, arc = candidates[decays & is_inside], arc[decays & is_inside]
    flight.is_destroyed[chosen] = flight.has_decayed[chosen] = True
    flight.end[chosen] = flight.arc[chosen] + arc
    point, momentum = _moved(particles, flight, chosen, arc, detector.b_field)
    pt = np.hypot(momentum[:, 0], momentum[:, 1])
    energy = np.sqrt((momentum**2).sum(axis=1) + particles.mass[chosen] ** 2)
    time = flight.time[chosen] + arc * energy / pt / C_LIGHT
    return append_secondaries(particles, flight, chosen, point, time, _products(particles.pdg[chosen], momentum, rng))


def _moved(particles: Particles, flight: Flight, index: IntArray, arc: FloatArray, b_field: float) -> tuple[FloatArray, FloatArray]:
    """Points (n, 3) and momenta (n, 3) after the transverse path `arc` (n,)."""
    point, momentum = np.empty((len(index), 3)), flight.momentum[index].copy()
    for k, i in enumerate(index):
        px, py, pz = momentum[k]
        pt = np.hypot(px, py)
        omega = particles.charge[i] * CURVATURE * b_field / pt
        *point[k], phi = move(*flight.vertex[i], np.arctan2(py, px), omega, pz / pt, arc[k])
        momentum[k, :2] = pt * np.cos(phi), pt * np.sin(phi)
    return point, momentum


def _products(pdg: IntArray, momentum: FloatArray, rng: np.random.Generator) -> Secondaries:
    """What mesons with these momenta (n, 3) decay into."""
    sign, number = np.sign(pdg), np.arange(len(pdg))
    to_muon = (np.abs(pdg) == PION) | (rng.random(len(pdg)) < KAON_TO_MUON)
    mass = np.where(np.abs(pdg) == PION, MASSES[PION], MASSES[KAON])
    charged_mass = np.where(to_muon, MASSES[MUON], MASSES[PION])
    neutral_mass = np.where(to_muon, 0.0, MASSES[int(pid.pi_0)])
    charged, neutral = _two_body(mass, charged_mass, neutral_mass, momentum, rng)
    muons, pions = number[to_muon], number[~to_muon]
    first, second = _two_body(neutral_mass[pions], np.zeros(len(pions)), np.zeros(len(pions)), neutral[pions], rng)
    photons = np.full(2 * len(pions), PHOTON)
    none = np.zeros(len(muons) + len(photons))
    return Secondaries(
        source=np.concatenate([number, muons, pions, pions]),
        pdg=np.concatenate([np.where(to_muon, -sign * MUON, sign * PION), sign[muons] * NEUTRINO, photons]),  # mu- has the number 13
        mass=np.concatenate([charged_mass, none]),
        charge=np.concatenate([sign.astype(np.float64), none]),
        momentum=np.concatenate([charged, neutral[muons], first, second]),
    )


def _two_body(
    mass: FloatArray, first: FloatArray, second: FloatArray, momentum: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Momenta (n, 3) of the two particles, of masses `first` and `second`, that those of `mass` and `momentum` (n, 3) decay into."""
    absolute = np.sqrt((mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2)) / (2.0 * mass)
    axis = rng.standard_normal((len(mass), 3))
    at_rest = axis * (absolute / np.linalg.norm(axis, axis=1))[:, None]
    energy = np.sqrt(absolute**2 + first**2)
    total = np.sqrt((momentum**2).sum(axis=1) + mass**2)
    along = (at_rest * momentum).sum(axis=1)
    boosted = at_rest + momentum * ((along / (total + mass) + energy) / mass)[:, None]
    return boosted, momentum - boosted
