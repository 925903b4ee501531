"""Pythia 8 events as flat arrays in the laboratory frame."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
from particle.pdgid import literals as pid

from pfscale.errors import ResourceError
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.processes import Process

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Beyond these a particle is left to the detector to stop; inside, Pythia decays it (mm).
DECAY_RADIUS = 2250.0
DECAY_HALF_LENGTH = 2500.0
MIN_PHOTON_ENERGY = 1e-6  # GeV; below are the empty beam remnants of events without initial-state radiation
C_LIGHT = 299.792458  # mm/ns


@dataclass(frozen=True)
class Particles:
    """MC particles of several events: flat arrays, ordered by event; relations as pairs of indices into these arrays.

    Shapes: (N,) or (N, 3); `parent` and `child`: (R,), sorted by child. Units: GeV, mm, ns.
    """

    num_events: int
    event: IntArray
    pdg: IntArray
    status: IntArray  # 1 stable, 2 decayed, 0 made in the detector
    charge: FloatArray
    mass: FloatArray
    momentum: FloatArray
    vertex: FloatArray
    time: FloatArray  # at the vertex, ns
    endpoint: FloatArray
    has_decay: npt.NDArray[np.bool_]  # has daughters
    parent: IntArray
    child: IntArray

    @property
    def energy(self) -> FloatArray:
        """Energies (N,), GeV."""
        return np.sqrt(np.sum(self.momentum**2, axis=1) + self.mass**2)

    def __len__(self) -> int:
        return len(self.pdg)


def require_pythia() -> None:
    """Nothing, if Pythia 8 is there.

    Raises:
        ResourceError: pythia8mc is not installed.
    """
    if importlib.util.find_spec("pythia8mc") is None:
        raise ResourceError("the built-in event source needs Pythia 8", hint="pip install 'pfscale[sim]'")


def make_pythia(process: Process, decays: tuple[str, ...], sqrt_s: float, seed: int) -> Any:
    """An initialised, silent Pythia for e+e- -> `process` at `sqrt_s` GeV.

    Raises:
        ResourceError: pythia8mc is not installed, or Pythia refuses the settings.
    """
    require_pythia()
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    settings = (
        "Print:quiet = on",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
        "Beams:idA = 11",
        "Beams:idB = -11",
        f"Beams:eCM = {sqrt_s}",
        "PDF:lepton = on",
        "PhaseSpace:mHatMin = 40.",
        "ParticleDecays:limitCylinder = on",
        f"ParticleDecays:xyMax = {DECAY_RADIUS}",
        f"ParticleDecays:zMax = {DECAY_HALF_LENGTH}",
        *process.settings,
        *decays,
    )
    for line in settings:
        if not pythia.readString(line):
            raise ResourceError(f"Pythia does not know the setting '{line}'", where="pythia8mc")
    if not pythia.init():
        raise ResourceError(f"Pythia cannot start process '{process.name}' at {sqrt_s} GeV", where="pythia8mc")
    return pythia


def generate(pythia: Any, num_events: int, detector: DetectorModel, sqrt_s: float, rng: np.random.Generator) -> Particles:
    """The next `num_events` events in the laboratory: luminous region at `sqrt_s` GeV and crossing-angle boost applied."""
    batch = pythia.nextBatch(num_events)
    counts = np.asarray(ak.num(batch.prt, axis=1))
    flat = ak.flatten(batch.prt, axis=1)
    event = np.repeat(np.arange(num_events), counts)
    start = np.cumsum(counts) - counts
    line = np.arange(len(event)) - start[event]
    pdg = np.asarray(flat.id).astype(np.int64)
    code = np.asarray(flat.status).astype(np.int64)
    momentum = np.stack([np.asarray(flat.p.px), np.asarray(flat.p.py), np.asarray(flat.p.pz)], axis=1)
    mass = np.maximum(np.asarray(flat.m), 0.0)
    produced = ak.fill_none(flat.vProd.px, 0.0), ak.fill_none(flat.vProd.py, 0.0), ak.fill_none(flat.vProd.pz, 0.0)
    vertex = np.stack([np.asarray(p) for p in produced], axis=1)
    time = np.asarray(ak.fill_none(flat.vProd.e, 0.0))
    child, parent = _relations(np.asarray(flat.mother1), np.asarray(flat.mother2), code, start[event])

    energy = np.sqrt(np.sum(momentum**2, axis=1) + mass**2)
    keep = (line > 0) & ~((pdg == int(pid.gamma)) & (code > 0) & (energy < MIN_PHOTON_ENERGY))
    new_index = np.cumsum(keep) - 1
    kept_pair = keep[child] & keep[parent]
    child, parent = new_index[child[kept_pair]], new_index[parent[kept_pair]]
    event, pdg, code, momentum, mass, vertex, time = (a[keep] for a in (event, pdg, code, momentum, mass, vertex, time))

    momentum = boost(np.sqrt(np.sum(momentum**2, axis=1) + mass**2), momentum, detector.crossing_angle)[1]
    time, vertex = boost(time, vertex, detector.crossing_angle)
    vertex = vertex + (rng.standard_normal((num_events, 3)) * np.asarray(detector.beam_sigma[sqrt_s]))[event]
    has_decay = np.zeros(len(pdg), dtype=bool)
    has_decay[parent] = True
    endpoint = vertex.copy()
    endpoint[parent[::-1]] = vertex[child[::-1]]  # the first daughter's vertex wins
    return Particles(
        num_events=num_events,
        event=event,
        pdg=pdg,
        status=np.where(code > 0, 1, 2),
        charge=_charges(pythia, pdg),
        mass=mass,
        momentum=momentum,
        vertex=vertex,
        time=time / C_LIGHT,
        endpoint=endpoint,
        has_decay=has_decay,
        parent=parent,
        child=child,
    )


def boost(t: FloatArray, x: FloatArray, crossing_angle: float) -> tuple[FloatArray, FloatArray]:
    """The four-vectors (t, x) seen from the laboratory, where the two beams cross with `crossing_angle` towards +x.

    The boost has beta gamma = tan(angle / 2), as DD4hep's `crossingAngleBoost`.
    """
    beta_gamma = np.tan(crossing_angle / 2)
    gamma = np.sqrt(1 + beta_gamma**2)
    boosted = x.copy()
    boosted[:, 0] = gamma * x[:, 0] + beta_gamma * t
    return gamma * t + beta_gamma * x[:, 0], boosted


def _relations(mother1: IntArray, mother2: IntArray, code: IntArray, first_line: IntArray) -> tuple[IntArray, IntArray]:
    """(child, parent) pairs from Pythia's mother numbers: a range for hadrons made from strings, otherwise one or two lines."""
    lines = np.arange(len(mother1))
    kind = np.abs(code)
    is_range = (mother1 > 0) & (mother2 > mother1) & (((kind >= 81) & (kind <= 86)) | ((kind >= 101) & (kind <= 106)))
    second = (mother2 > 0) & (mother2 != mother1) & ~is_range
    first = (mother1 > 0) & ~is_range
    lengths = np.where(is_range, mother2 - mother1 + 1, 0)
    in_range = np.repeat(lines, lengths)
    offset = np.arange(len(in_range)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    child = np.concatenate([lines[first], lines[second], in_range])
    parent = np.concatenate([(mother1 + first_line)[first], (mother2 + first_line)[second], (mother1 + first_line)[in_range] + offset])
    order = np.lexsort((parent, child))
    return child[order], parent[order]


def _charges(pythia: Any, pdg: IntArray) -> FloatArray:
    """Charges (n,) in units of e, from Pythia's table."""
    kinds, inverse = np.unique(pdg, return_inverse=True)
    return np.array([pythia.particleData.charge(int(kind)) for kind in kinds])[inverse]
