"""One batch of events through the detector: generator particles in, tracks, hits, clusters and their truth out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pfscale.simulation import showers
from pfscale.simulation.clustering import cluster_events
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import C_LIGHT, FloatArray, IntArray, Particles
from pfscale.simulation.helix import to_calorimeter
from pfscale.simulation.material import BIT_CREATED, BIT_DECAYED_CALO, BIT_DECAYED_TRACKER, BIT_LEFT, BIT_STOPPED, interact
from pfscale.simulation.tracks import Tracks, reconstruct_tracks

BoolArray = npt.NDArray[np.bool_]
SHOWER_BITS = 12  # showers per event that the sort key has room for
CELL_BITS = 32
NEUTRINOS = (12, 14, 16)
FAR = 7000.0  # mm, where particles that leave the detector end


@dataclass(frozen=True)
class Hits:
    """Calorimeter hits, ordered by event and collection, with the energy that each particle left on each.

    `collection`: 0 ECALBarrel, 1 ECALEndcap, 2 HCALBarrel, 3 HCALEndcap. Links are sorted by hit. Units: GeV, mm, ns.
    """

    event: IntArray
    collection: IntArray
    cell: IntArray
    energy: FloatArray
    time: FloatArray
    position: FloatArray
    cluster: IntArray  # number within the event, -1: isolated
    link_hit: IntArray
    link_particle: IntArray
    link_energy: FloatArray


@dataclass(frozen=True)
class Clusters:
    """Clusters ordered by event; `member` are indices into the hits, ordered by cluster."""

    event: IntArray
    energy: FloatArray
    position: FloatArray
    num_hits: IntArray
    member: IntArray


@dataclass(frozen=True)
class DetectorEvents:
    """Everything that is written for a batch of events."""

    particles: Particles
    simulator_status: IntArray
    tracks: Tracks
    hits: Hits
    clusters: Clusters


def detector_response(particles: Particles, detector: DetectorModel, rng: np.random.Generator) -> DetectorEvents:
    """The reconstructed events of `detector` for generated `particles` (secondaries of the tracker's material are added to them)."""
    particles, destroyed = interact(particles, detector, rng)
    position, direction, arc, _ = to_calorimeter(
        particles.vertex, particles.momentum, particles.charge, detector.b_field, detector.ecal_radius, detector.ecal_z
    )
    ends_inside = (np.hypot(particles.endpoint[:, 0], particles.endpoint[:, 1]) < detector.ecal_radius) & (
        np.abs(particles.endpoint[:, 2]) < detector.ecal_z
    )
    is_neutrino = np.isin(np.abs(particles.pdg), NEUTRINOS)
    reaches = (arc >= 0) & (destroyed == 0) & ~is_neutrino & ~(particles.has_decay & ends_inside)
    reaches &= (np.abs(position[:, 2]) < detector.ecal_z - 1e-6) | (np.hypot(position[:, 0], position[:, 1]) > detector.endcap_inner_radius)
    is_final = particles.status != 2
    tracks = reconstruct_tracks(particles, destroyed, np.where(reaches, arc, -1.0), detector, rng)
    hits = _hits(particles, np.flatnonzero(reaches), position, direction, arc, detector, rng)
    hits, clusters = _clusters(hits, particles.num_events, detector.ecal_sections)
    # Charged particles that spiral until they stop; those that fly down the beam pipe leave instead.
    stops_in_tracker = (destroyed == 1) | ((particles.charge != 0) & (arc < 0) & ends_inside)
    status = _simulator_status(particles, stops_in_tracker, reaches, ends_inside, is_neutrino)
    endpoint = particles.endpoint.copy()
    stops = reaches & is_final
    endpoint[stops] = position[stops] + 50.0 * direction[stops]
    leaves = is_final & ~reaches & ends_inside & ~stops_in_tracker
    momentum = np.linalg.norm(particles.momentum, axis=1, keepdims=True)
    endpoint[leaves] = (particles.vertex + FAR * particles.momentum / np.maximum(momentum, 1e-9))[leaves]
    return DetectorEvents(replace(particles, endpoint=endpoint), status, tracks, hits, clusters)


def _simulator_status(
    particles: Particles, stops_in_tracker: BoolArray, reaches: BoolArray, ends_inside: BoolArray, is_neutrino: BoolArray
) -> IntArray:
    """simulatorStatus: bits 24 stopped, 25 left, 26 decayed in the calorimeter, 27 in the tracker, 30 made in the simulation."""
    absolute = np.abs(particles.pdg)
    is_final = particles.status != 2
    is_muon = absolute == 13
    final = np.select(
        [is_neutrino | (is_muon & reaches), stops_in_tracker, reaches | ~ends_inside],
        [BIT_LEFT, BIT_DECAYED_TRACKER | BIT_STOPPED, BIT_DECAYED_CALO | BIT_STOPPED],
        BIT_LEFT,
    )
    decays = (absolute > 100) | np.isin(absolute, (13, 15))
    decayed = np.where(decays, np.where(ends_inside, BIT_DECAYED_TRACKER, BIT_DECAYED_CALO), 0)
    bits: IntArray = np.where(is_final, final, decayed) + np.where(particles.status == 0, BIT_CREATED, 0)
    return bits


def _shower_kind(pdg: IntArray, charge: FloatArray) -> IntArray:
    absolute = np.abs(pdg)
    return np.select(
        [absolute == 22, absolute == 11, absolute == 13, charge != 0],
        [showers.PHOTON, showers.ELECTRON, showers.MUON, showers.CHARGED_HADRON],
        showers.NEUTRAL_HADRON,
    )


def _deposited_energy(particles: Particles, index: IntArray) -> FloatArray:
    """What a particle can leave in the calorimeter: baryons keep their mass, antibaryons bring that of their partner."""
    energy = particles.energy[index]
    pdg = particles.pdg[index]
    is_baryon = (np.abs(pdg) > 1000) & (np.abs(pdg) < 10000)
    return np.where(is_baryon, energy - np.sign(pdg) * particles.mass[index], energy)


def _hits(
    particles: Particles,
    index: IntArray,
    position: FloatArray,
    direction: FloatArray,
    arc: FloatArray,
    detector: DetectorModel,
    rng: np.random.Generator,
) -> Hits:
    geometry = showers.calorimeter(detector)
    energy = _deposited_energy(particles, index)
    index, energy = index[energy > 0.01], energy[energy > 0.01]
    capacity = int(3.0 * energy.sum() / min(geometry.ecal_spot, showers.HADRON_SPOT)) + 400 * len(index) + 1000
    spots = showers.shower_spots(
        geometry, rng, _shower_kind(particles.pdg[index], particles.charge[index]), energy, position[index], direction[index], capacity
    )
    used = int(spots.used[0])
    assert used < capacity, "more calorimeter spots than their energies allow"
    cell, shower, spot_energy = spots.cell[:used], spots.shower[:used], spots.energy[:used]
    event = particles.event[index]
    local = np.arange(len(index)) - np.searchsorted(event, event)
    assert len(local) == 0 or local.max() < 1 << SHOWER_BITS, "too many showers in one event for the sort key"
    key = (((event[shower] << CELL_BITS) | cell) << SHOWER_BITS) | local[shower]
    order = np.argsort(key, kind="stable")
    key = key[order]
    pair_start = np.flatnonzero(np.diff(key, prepend=-1))
    pair_energy = np.add.reduceat(spot_energy[order], pair_start) if used else np.zeros(0)
    pair_path = np.minimum.reduceat(spots.path[:used][order], pair_start) if used else np.zeros(0)
    pair_shower = shower[order][pair_start]
    hit_key = key[pair_start] >> SHOWER_BITS
    hit_start = np.flatnonzero(np.diff(hit_key, prepend=-1))
    hit_of_pair = np.repeat(np.arange(len(hit_start)), np.diff(hit_start, append=len(hit_key)))
    hit_energy = _sums(hit_of_pair, pair_energy, len(hit_start))
    cell = hit_key[hit_start] & ((1 << CELL_BITS) - 1)
    centre = showers.cell_position(geometry, cell)
    pair_time = _arrival(particles, index, arc)[pair_shower] + pair_path / C_LIGHT
    time = np.minimum.reduceat(pair_time, hit_start) if used else np.zeros(0)
    keep = hit_energy > np.where(cell >> 31 == 1, detector.hcal_threshold, detector.ecal_threshold)
    new_hit = np.cumsum(keep) - 1
    kept = keep[hit_of_pair]
    return Hits(
        event=(hit_key[hit_start] >> CELL_BITS)[keep],
        collection=(cell >> 30)[keep],
        cell=cell[keep],
        energy=hit_energy[keep],
        time=(time - np.linalg.norm(centre, axis=1) / C_LIGHT)[keep],
        position=centre[keep],
        cluster=np.full(int(keep.sum()), -1, dtype=np.int64),
        link_hit=new_hit[hit_of_pair[kept]],
        link_particle=index[pair_shower[kept]],
        link_energy=pair_energy[kept],
    )


def _sums(group: IntArray, values: FloatArray, num_groups: int) -> FloatArray:
    """Sums (num_groups,) of values by group."""
    return np.bincount(group, weights=values, minlength=num_groups).astype(np.float64)


def _arrival(particles: Particles, index: IntArray, arc: FloatArray) -> FloatArray:
    """Times (n,) at which particles enter the calorimeter, ns."""
    momentum = np.linalg.norm(particles.momentum[index], axis=1)
    pt = np.hypot(particles.momentum[index, 0], particles.momentum[index, 1])
    return particles.time[index] + arc[index] * (momentum / pt) * particles.energy[index] / momentum / C_LIGHT


def _clusters(hits: Hits, num_events: int, ecal_sections: int) -> tuple[Hits, Clusters]:
    """The hits with their cluster numbers, and the clusters: energy sums and energy-weighted positions."""
    bounds = np.searchsorted(hits.event, np.arange(num_events + 1))
    layer = showers.cell_section(hits.cell) + np.where(hits.collection >= 2, ecal_sections, 0)
    labels, counts = cluster_events(hits.position, hits.energy, layer, ecal_sections, bounds)
    number = np.where(labels >= 0, labels + (np.cumsum(counts) - counts)[hits.event], -1)
    total = int(counts.sum())
    order = np.argsort(number, kind="stable")
    member = order[number[order] >= 0]
    owner = number[member]
    energy = _sums(owner, hits.energy[member], total)
    weighted = [_sums(owner, hits.energy[member] * hits.position[member, k], total) for k in range(3)]
    clusters = Clusters(
        event=np.repeat(np.arange(num_events), counts),
        energy=energy,
        position=np.stack(weighted, axis=1) / energy[:, None],
        num_hits=np.bincount(owner, minlength=total),
        member=member,
    )
    return replace(hits, cluster=labels), clusters
