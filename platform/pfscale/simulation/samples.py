"""Simulated events in memory, for measurements and tests: of a process, or one particle each."""

from __future__ import annotations

import numpy as np

from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, Particles, generate, make_pythia
from pfscale.simulation.processes import decay_settings, find_process
from pfscale.simulation.response import DetectorEvents, detector_response


def sample(detector: DetectorModel, process: str, higgs: str | None, z: str | None, num_events: int, seed: int = 1) -> DetectorEvents:
    """`num_events` simulated events in memory."""
    hard = find_process(process)
    pythia = make_pythia(hard, decay_settings(hard, higgs, z), detector.sqrt_s[process], seed)
    rng = np.random.default_rng(seed)
    return detector_response(generate(pythia, num_events, detector, detector.sqrt_s[process], rng), detector, rng)


def particle_gun(pdg: int, mass: float, charge: float, energy: FloatArray, seed: int = 1) -> Particles:
    """One particle per event from the origin, isotropic in abs(cos theta) < 0.95, with the given energies (n,)."""
    num = len(energy)
    rng = np.random.default_rng(seed)
    cosine, phi = rng.uniform(-0.95, 0.95, num), rng.uniform(-np.pi, np.pi, num)
    sine = np.sqrt(1.0 - cosine**2)
    momentum = np.sqrt(energy**2 - mass**2)[:, None] * np.stack([sine * np.cos(phi), sine * np.sin(phi), cosine], axis=1)
    none = np.zeros(0, dtype=np.int64)
    return Particles(
        num_events=num,
        event=np.arange(num),
        pdg=np.full(num, pdg),
        status=np.ones(num, dtype=np.int64),
        charge=np.full(num, float(charge)),
        mass=np.full(num, float(mass)),
        momentum=momentum,
        vertex=np.zeros((num, 3)),
        time=np.zeros(num),
        endpoint=np.zeros((num, 3)),
        has_decay=np.zeros(num, dtype=bool),
        parent=none,
        child=none,
    )
