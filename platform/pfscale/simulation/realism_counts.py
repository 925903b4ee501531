"""What an EDM4hep file shows of its events: counts, hit energies, merged and split particles, by the same code for real and built-in files.

Particles are those of the truth definition: generator particles with all that they made in the detector, so that the shower of a
secondary belongs to the particle that it comes from, in Geant4's files as in ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pfscale.edm4hep import layout
from pfscale.edm4hep.ancestry import descendant_pairs
from pfscale.edm4hep.chunk import EventChunk, read_chunk, read_particles
from pfscale.edm4hep.deposits import read_deposits
from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import EventSource
from pfscale.edm4hep.truth import Particles, associate
from pfscale.physics.kinematics import Floats
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import IntArray

PURE = 0.8  # a cluster (a particle) counts as merged (split) if its largest particle (cluster) has less than this of it
LEAST_COUNTED = 1.0  # GeV in clusters, of merged clusters and split particles
LEAST_PARTICLE = 0.1  # GeV, of particles whose mean energy is quoted


@dataclass(frozen=True)
class Realism:
    """Means over events of one sample. Units: GeV, `ecal_hit` and `hcal_hit` MeV."""

    particles: float  # MC particles
    tracks: float
    clusters: float
    candidates: float  # rule-based
    hits: float
    hits_per_cluster: float  # median
    ecal_hit: float  # median, of the barrel
    hcal_hit: float  # same
    ecal: float
    hcal: float
    clustered: float
    visible: float  # true energy of stable particles without neutrinos, that point at the calorimeter
    energy_per_cluster: float
    energy_per_particle: float  # of the same particles, above LEAST_PARTICLE
    merged: float  # fraction of `counted_clusters`
    split: float  # fraction of `counted_particles`
    counted_clusters: int  # above LEAST_COUNTED, in all events
    counted_particles: int


def measure_file(source: EventSource, detector: DetectorModel) -> Realism:
    """The figures of all events of a file of `detector`, or of the detector that it is a model of.

    Raises:
        InputFileError: the file lacks a collection that is needed.
    """
    chunk = read_chunk(source, find_detector(detector.name), 0, source.num_entries)
    particles = read_particles(chunk)
    energy = {
        name: source.rows(name, layout.CALO_HIT, *chunk.span)["energy"] for name in ("ECALBarrel", "ECALEndcap", "HCALBarrel", "HCALEndcap")
    }
    num, clustered = chunk.num_events, chunk.clusters["energy"]
    visible = _visible_energies(particles, detector)
    merged, split = _impurities(chunk, particles)
    return Realism(
        particles=len(particles) / num,
        tracks=len(chunk.tracks) / num,
        clusters=len(clustered) / num,
        candidates=len(chunk.candidates.rows) / num,
        hits=len(chunk.hit_event) / num,
        hits_per_cluster=float(np.median(np.bincount(chunk.cluster_of_member, minlength=len(clustered)))),
        ecal_hit=1000.0 * float(np.median(energy["ECALBarrel"])),
        hcal_hit=1000.0 * float(np.median(energy["HCALBarrel"])),
        ecal=float(energy["ECALBarrel"].sum() + energy["ECALEndcap"].sum()) / num,
        hcal=float(energy["HCALBarrel"].sum() + energy["HCALEndcap"].sum()) / num,
        clustered=float(clustered.sum()) / num,
        visible=float(visible.sum()) / num,
        energy_per_cluster=float(clustered.mean()),
        energy_per_particle=float(visible[visible > LEAST_PARTICLE].mean()),
        merged=float(merged.mean()),
        split=float(split.mean()),
        counted_clusters=len(merged),
        counted_particles=len(split),
    )


def _visible_energies(particles: Particles, detector: DetectorModel) -> Floats:
    """Energies of the stable particles that point at the calorimeter, without neutrinos."""
    is_visible = (particles.generator_status == 1) & ~particles.is_neutrino
    is_visible &= np.hypot(particles.px, particles.py) * detector.ecal_z > np.abs(particles.pz) * detector.endcap_inner_radius
    return particles.energy[is_visible]


def _impurities(chunk: EventChunk, particles: Particles) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(is merged, is split) of the clusters, and of the particles, with more than LEAST_COUNTED in clusters."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(particles.event, minlength=chunk.num_events))]).astype(np.int64)
    deposits = read_deposits(chunk, offsets, particles.energy)
    visible = associate(particles, deposits, num_events=chunk.num_events).visible
    position, member = descendant_pairs(particles.ancestry, visible)
    root = np.full(len(particles), -1)
    root[member] = position
    counted = (deposits.hit_cluster >= 0) & (root[deposits.hit_particle] >= 0)
    of_hit = np.stack([deposits.hit_cluster[counted], root[deposits.hit_particle[counted]]])
    pair, inverse = np.unique(of_hit, axis=1, return_inverse=True)
    shared = np.bincount(inverse.reshape(-1), weights=deposits.hit_energy[counted])

    def is_impure(side: IntArray) -> npt.NDArray[np.bool_]:
        total = np.bincount(side, weights=shared)
        largest = np.zeros(len(total))
        np.maximum.at(largest, side, shared)
        return (largest < PURE * total)[total > LEAST_COUNTED]

    return is_impure(pair[0]), is_impure(pair[1])
