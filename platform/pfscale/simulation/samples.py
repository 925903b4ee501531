"""Simulated events for measurements and tests: of a process, or one particle each; in memory, or as a file that ingest can read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pfscale.edm4hep.reader import EventSource, open_source
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, Particles, generate, make_pythia
from pfscale.simulation.processes import decay_settings, find_process
from pfscale.simulation.response import DetectorEvents, detector_response
from pfscale.simulation.writer import EventFile

BATCH_EVENTS = 500  # in memory at once


def sample(detector: DetectorModel, process: str, higgs: str | None, z: str | None, num_events: int, seed: int = 1) -> DetectorEvents:
    """`num_events` simulated events in memory."""
    return next(batches(detector, process, higgs, z, num_events, seed=seed, batch_events=num_events))


def batches(
    detector: DetectorModel,
    process: str,
    higgs: str | None,
    z: str | None,
    num_events: int,
    *,
    seed: int = 1,
    batch_events: int = BATCH_EVENTS,
) -> Iterator[DetectorEvents]:
    """`num_events` simulated events, `batch_events` at a time: as many as are wanted, in memory that does not grow with them."""
    hard, energy = find_process(process), detector.sqrt_s[process]
    pythia = make_pythia(hard, decay_settings(hard, higgs, z), energy, seed)
    rng = np.random.default_rng(seed)
    for done in range(0, num_events, batch_events):
        particles = generate(pythia, min(batch_events, num_events - done), detector, energy, rng)
        yield detector_response(particles, detector, rng)


@contextmanager
def as_file(events: DetectorEvents) -> Iterator[EventSource]:
    """The events as an open EDM4hep file, as ingest sees them; it is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.root"
        with EventFile(path, {"simulation": "builtin"}) as file:
            file.extend(events, 0, 0)
        with open_source(path) as source:
            yield source


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
