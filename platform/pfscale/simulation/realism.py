"""The realism table: what simulated events look like, beside figures of real full-simulation files.

    python -m pfscale.simulation.realism [events per sample]

200 events per sample take about 15 s. Real figures: one CLD Z(nunu)H(bb) event, and the published CLICdet ttbar validation.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from pfscale.simulation.detectors import DetectorModel, detector_model
from pfscale.simulation.generator import FloatArray, IntArray, Particles, generate, make_pythia
from pfscale.simulation.processes import decay_settings, find_process
from pfscale.simulation.response import DetectorEvents, detector_response

SAMPLES = (
    ("clic", "ttbar", None, None),
    ("clic", "qq", None, None),
    ("cld", "ttbar", None, None),
    ("cld", "ZH", "bb", "nunu"),
)
REAL = {  # per event
    ("clic", "ttbar"): "60 tracks, 90 clusters, 8484 hits",
    ("cld", "ZH"): "24 tracks, 48 clusters, 3767 hits, 40 hits per cluster, ECAL 67 GeV, HCAL 39 GeV",
}
PURE = 0.8  # a cluster (a particle) counts as merged (split) if its largest particle (cluster) has less than this of it


@dataclass(frozen=True)
class Realism:
    """Means over events of one sample. Units: GeV."""

    tracks: float
    clusters: float
    hits: float
    hits_per_cluster: float  # median
    particles: float  # MC particles
    ecal: float
    hcal: float
    visible: float  # true energy of stable particles without neutrinos, that point at the calorimeter
    clustered: float
    merged: float  # fraction of clusters above 1 GeV
    split: float  # fraction of particles above 1 GeV
    d0_pull: float
    efficiency: tuple[float, ...]  # tracking efficiency in bins of `PT_EDGES`


PT_EDGES = (0.1, 0.2, 0.5, 1.0, 5.0, 200.0)


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


def measure(events: DetectorEvents, detector: DetectorModel) -> Realism:
    """The table's row of a sample."""
    num = events.particles.num_events
    hits, clusters, tracks, particles = events.hits, events.clusters, events.tracks, events.particles
    is_visible = (particles.status == 1) & ~np.isin(np.abs(particles.pdg), (12, 14, 16))
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    is_visible &= pt * detector.ecal_z > np.abs(particles.momentum[:, 2]) * detector.endcap_inner_radius
    merged, split = _confusion(events)
    pull = (tracks.parameters[:, 0] - tracks.true_parameters[:, 0]) / np.sqrt(tracks.covariance[:, 0])
    return Realism(
        tracks=len(tracks) / num,
        clusters=len(clusters.energy) / num,
        hits=len(hits.energy) / num,
        hits_per_cluster=float(np.median(clusters.num_hits)),
        particles=len(particles) / num,
        ecal=float(hits.energy[hits.collection < 2].sum() / num),
        hcal=float(hits.energy[hits.collection >= 2].sum() / num),
        visible=float(particles.energy[is_visible].sum() / num),
        clustered=float(clusters.energy.sum() / num),
        merged=merged,
        split=split,
        d0_pull=float(pull.std()),
        efficiency=_efficiency(events),
    )


def _confusion(events: DetectorEvents) -> tuple[float, float]:
    """(merged clusters, split particles) as fractions of those above 1 GeV."""
    hits, clusters = events.hits, events.clusters
    owner = np.full(len(hits.energy), -1)
    owner[clusters.member] = np.repeat(np.arange(len(clusters.energy)), clusters.num_hits)
    cluster, particle, energy = owner[hits.link_hit], hits.link_particle, hits.link_energy
    inside = cluster >= 0
    pair, inverse = np.unique(np.stack([cluster[inside], particle[inside]]), axis=1, return_inverse=True)
    shared = np.bincount(inverse.reshape(-1), weights=energy[inside])

    def impure(side: IntArray) -> float:
        total = np.bincount(side, weights=shared)
        largest = np.zeros(len(total))
        np.maximum.at(largest, side, shared)
        counted = total > 1.0
        return float(np.mean(largest[counted] < PURE * total[counted]))

    return impure(pair[0]), impure(pair[1])


def _efficiency(events: DetectorEvents) -> tuple[float, ...]:
    """Tracking efficiency of stable charged particles from within 30 mm with abs(cos theta) < 0.9, in bins of pt."""
    particles = events.particles
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    is_central = np.abs(particles.momentum[:, 2]) < 0.9 * np.linalg.norm(particles.momentum, axis=1)
    chosen = (particles.status == 1) & (particles.charge != 0) & is_central & (np.linalg.norm(particles.vertex, axis=1) < 30)
    has_track = np.zeros(len(particles), dtype=bool)
    has_track[events.tracks.particle] = True
    which = np.digitize(pt, PT_EDGES)
    return tuple(float(has_track[chosen & (which == k)].mean()) for k in range(1, len(PT_EDGES)))


def photon_response(detector: DetectorModel, energy: float, num_events: int = 500) -> tuple[float, float, float]:
    """(mean of clustered energy / true energy, its width, clusters per photon) for photons that did not convert."""
    rng = np.random.default_rng(2)
    events = detector_response(particle_gun(22, 0.0, 0.0, np.full(num_events, energy)), detector, rng)
    unconverted = np.bincount(events.particles.event, minlength=num_events) == 1
    response = np.bincount(events.clusters.event, weights=events.clusters.energy, minlength=num_events)[unconverted] / energy
    count = np.bincount(events.clusters.event, minlength=num_events)[unconverted]
    return float(response.mean()), float(response.std()), float(count.mean())


def main(num_events: int = 200) -> None:
    """Prints the table as Markdown."""
    head = (
        "sample", "MC", "tracks", "clusters", "hits", "hits/cl", "ECAL", "HCAL", "visible", "clustered", "merged", "split", "D0 pull",
        f"efficiency in pt bins {PT_EDGES}",
    )  # fmt: skip
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, process, higgs, z in SAMPLES:
        detector = detector_model(name)
        row = measure(sample(detector, process, higgs, z, num_events), detector)
        cells = [
            f"{name} {process} {higgs or ''}", f"{row.particles:.0f}", f"{row.tracks:.1f}", f"{row.clusters:.1f}", f"{row.hits:.0f}",
            f"{row.hits_per_cluster:.0f}", f"{row.ecal:.0f}", f"{row.hcal:.0f}", f"{row.visible:.0f}", f"{row.clustered:.0f}",
            f"{row.merged:.2f}", f"{row.split:.2f}", f"{row.d0_pull:.2f}", " ".join(f"{e:.2f}" for e in row.efficiency),
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
        if (name, process) in REAL:
            print(f"| (real: {REAL[name, process]}) |")
    print("\n| photons | mean E/E_true | width | clusters |\n|---|---|---|---|")
    for name in ("clic", "cld"):
        for energy in (1.0, 3.74, 5.76, 9.98, 50.0):
            mean, width, count = photon_response(detector_model(name), energy)
            print(f"| {name} {energy} GeV | {mean:.3f} | {width:.3f} | {count:.2f} |")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
