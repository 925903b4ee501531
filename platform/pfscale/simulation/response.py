"""One batch of events through the detector: generator particles in, tracks, hits, clusters and their truth out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from particle.pdgid import literals as pid

from pfscale.simulation import cells, showers
from pfscale.simulation.clustering import cluster_events
from pfscale.simulation.compiled import compiled
from pfscale.simulation.decays import decay_in_flight
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import C_LIGHT, FloatArray, IntArray, Particles
from pfscale.simulation.helix import to_calorimeter
from pfscale.simulation.material import (
    BIT_CREATED,
    BIT_DECAYED_CALO,
    BIT_DECAYED_TRACKER,
    BIT_LEFT,
    BIT_NOT_AT_ENDPOINT,
    BIT_STOPPED,
    LEAST_HADRON,
    interact,
)
from pfscale.simulation.muons import attach_chamber_hits
from pfscale.simulation.particle_flow import Candidates, find_candidates
from pfscale.simulation.secondaries import Flight
from pfscale.simulation.shower_shapes import ClusterHits
from pfscale.simulation.tracks import Tracks, reconstruct_tracks

BoolArray = npt.NDArray[np.bool_]
NEUTRINOS = (int(pid.nu_e), int(pid.nu_mu), int(pid.nu_tau))
PHOTON, ELECTRON, MUON, TAU = int(pid.gamma), int(pid.e_minus), int(pid.mu_minus), int(pid.tau_minus)
FAR = 7000.0  # mm, where particles that leave the detector end
MIN_SHOWER_ENERGY = 0.01  # GeV
STOP_DEPTH = 50.0  # mm behind the face where particles that shower are said to end


@dataclass(frozen=True)
class Hits:
    """Calorimeter hits, ordered by event and collection, with the energy that each particle left on each.

    `collection`: 0 ECALBarrel, 1 ECALEndcap, 2 HCALBarrel, 3 HCALEndcap, 4 MUON. Links are sorted by hit. Units: GeV, mm, ns.
    """

    event: IntArray
    collection: IntArray
    cell: IntArray
    energy: FloatArray
    time: FloatArray  # of the first deposit, behind light from the origin to there
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
    candidates: Candidates


def detector_response(particles: Particles, detector: DetectorModel, rng: np.random.Generator) -> DetectorEvents:
    """The reconstructed events of `detector` for generated `particles` (what is made in the tracker is added to them)."""
    particles, flight = decay_in_flight(*interact(particles, detector, rng), detector, rng)
    position, direction, arc, _ = to_calorimeter(
        flight.vertex, flight.momentum, particles.charge, detector.b_field, detector.ecal_radius, detector.ecal_z
    )
    ends_inside = (np.hypot(particles.endpoint[:, 0], particles.endpoint[:, 1]) < detector.ecal_radius) & (
        np.abs(particles.endpoint[:, 2]) < detector.ecal_z
    )
    is_neutrino = np.isin(np.abs(particles.pdg), NEUTRINOS)
    reaches = (arc >= 0) & ~flight.is_destroyed & ~is_neutrino & ~(particles.has_decay & ends_inside)
    reaches &= (np.abs(position[:, 2]) < detector.ecal_z - 1e-6) | (np.hypot(position[:, 0], position[:, 1]) > detector.endcap_inner_radius)
    is_final = particles.status != 2
    tracks = reconstruct_tracks(particles, flight, detector, rng)
    hits = _hits(particles, flight, np.flatnonzero(reaches), position, direction, arc, detector, rng)
    hits, clusters = _clusters(hits, particles.num_events, detector)
    candidates = _candidates(tracks, hits, clusters, detector, particles.num_events)
    # Charged particles that spiral until they stop; those that fly down the beam pipe leave instead.
    stops_in_tracker = flight.is_destroyed | ((particles.charge != 0) & (arc < 0) & ends_inside)
    status = _simulator_status(particles, flight, stops_in_tracker, reaches, ends_inside, is_neutrino)
    endpoint = particles.endpoint.copy()
    stops = reaches & is_final
    endpoint[stops] = position[stops] + STOP_DEPTH * direction[stops]
    leaves = is_final & ~reaches & ends_inside & ~stops_in_tracker
    momentum = np.linalg.norm(particles.momentum, axis=1, keepdims=True)
    endpoint[leaves] = (particles.vertex + FAR * particles.momentum / np.maximum(momentum, 1e-9))[leaves]
    return DetectorEvents(replace(particles, endpoint=endpoint), status, tracks, hits, clusters, candidates)


def _simulator_status(
    particles: Particles,
    flight: Flight,
    stops_in_tracker: BoolArray,
    reaches: BoolArray,
    ends_inside: BoolArray,
    is_neutrino: BoolArray,
) -> IntArray:
    """simulatorStatus: bits 24 stopped, 25 left, 26 decayed in the calorimeter, 27 in the tracker, 30 made in the simulation; 28: not where
    its parent ends, a radiated photon."""
    absolute = np.abs(particles.pdg)
    is_final = particles.status != 2
    is_muon = absolute == MUON
    final = np.select(
        [is_neutrino | (is_muon & reaches), flight.has_decayed, stops_in_tracker, reaches | ~ends_inside],
        [BIT_LEFT, BIT_DECAYED_TRACKER, BIT_DECAYED_TRACKER | BIT_STOPPED, BIT_DECAYED_CALO | BIT_STOPPED],
        BIT_LEFT,
    )
    decays = (absolute > LEAST_HADRON) | np.isin(absolute, (MUON, TAU))
    decayed = np.where(decays, np.where(ends_inside, BIT_DECAYED_TRACKER, BIT_DECAYED_CALO), 0)
    bits: IntArray = np.where(is_final, final, decayed) + np.where(particles.status == 0, BIT_CREATED, 0)
    bits[particles.child[flight.radiated[particles.parent] > 0]] += BIT_NOT_AT_ENDPOINT
    return bits


def _shower_kind(pdg: IntArray, charge: FloatArray) -> IntArray:
    """The kind of shower (n,) that particles make, as showers.py numbers them."""
    absolute = np.abs(pdg)
    return np.select(
        [absolute == PHOTON, absolute == ELECTRON, absolute == MUON, charge != 0],
        [showers.PHOTON, showers.ELECTRON, showers.MUON, showers.CHARGED_HADRON],
        showers.NEUTRAL_HADRON,
    )


def _energy(particles: Particles, flight: Flight, index: IntArray) -> FloatArray:
    """Energies on the last leg, GeV."""
    return np.sqrt((flight.momentum[index] ** 2).sum(axis=1) + particles.mass[index] ** 2)


def _deposited_energy(particles: Particles, flight: Flight, index: IntArray) -> FloatArray:
    """What a particle can leave in the calorimeter: baryons keep their mass, antibaryons bring that of their partner."""
    energy = _energy(particles, flight, index)
    pdg = particles.pdg[index]
    is_baryon = (np.abs(pdg) > 1000) & (np.abs(pdg) < 10000)
    return np.where(is_baryon, energy - np.sign(pdg) * particles.mass[index], energy)


def _hits(
    particles: Particles,
    flight: Flight,
    index: IntArray,
    position: FloatArray,
    direction: FloatArray,
    arc: FloatArray,
    detector: DetectorModel,
    rng: np.random.Generator,
) -> Hits:
    """The hits above threshold of the particles `index` that enter the calorimeters at `position` in `direction`, not yet in clusters.

    What comes later than showers.TIME_WINDOW is not read out.
    """
    geometry = cells.geometry(detector)
    energy = _deposited_energy(particles, flight, index)
    index, energy = index[energy > MIN_SHOWER_ENERGY], energy[energy > MIN_SHOWER_ENERGY]
    kind, time = _shower_kind(particles.pdg[index], particles.charge[index]), _arrival(particles, flight, index, arc)
    found = showers.shower_deposits(geometry, rng, kind, particles.event[index], energy, time, position[index], direction[index])
    num_hits, num_parts = found.used[:2]
    key, hit_energy = found.hit_key[:num_hits], found.hit_energy[:num_hits]
    system = (key & ((1 << cells.CELL_BITS) - 1)) >> 31
    threshold = np.array([detector.ecal_threshold, detector.hcal_threshold, 0.0])[system]
    kept = np.flatnonzero(hit_energy > threshold)
    kept = kept[np.argsort(key[kept])]
    new_hit = np.full(num_hits, -1, dtype=np.int64)
    new_hit[kept] = np.arange(len(kept))
    order, link_hit = _grouped(new_hit, found.part_hit[:num_parts], len(kept))
    cell = key[kept] & ((1 << cells.CELL_BITS) - 1)
    centre = cells.cell_position(geometry, cell)
    return Hits(
        event=key[kept] >> cells.CELL_BITS,
        collection=cells.cell_collection(cell),
        cell=cell,
        energy=hit_energy[kept],
        time=found.hit_time[kept],
        position=centre,
        cluster=np.full(len(kept), -1, dtype=np.int64),
        link_hit=link_hit,
        link_particle=index[found.part_shower[order]],
        link_energy=found.part_energy[order],
    )


@compiled
def _grouped(new_hit: IntArray, part_hit: IntArray, num_hits: int) -> tuple[IntArray, IntArray]:
    """The parts of kept hits ordered by hit, and the hit of each."""
    counts = np.zeros(num_hits + 1, dtype=np.int64)
    for part in range(len(part_hit)):
        counts[new_hit[part_hit[part]] + 1] += 1  # those of lost hits (-1) are counted at 0
    counts[0] = 0
    place = np.cumsum(counts)
    order = np.empty(place[num_hits], dtype=np.int64)
    hits = np.empty(place[num_hits], dtype=np.int64)
    for part in range(len(part_hit)):
        hit = new_hit[part_hit[part]]
        if hit >= 0:
            order[place[hit]] = part
            hits[place[hit]] = hit
            place[hit] += 1
    return order, hits


def _sums(group: IntArray, values: FloatArray, num_groups: int) -> FloatArray:
    """Sums (num_groups,) of values by group."""
    return np.bincount(group, weights=values, minlength=num_groups).astype(np.float64)


def _arrival(particles: Particles, flight: Flight, index: IntArray, arc: FloatArray) -> FloatArray:
    """Times (n,) at which particles enter the calorimeter, ns; `arc` is counted from the start of the last leg."""
    momentum = np.linalg.norm(flight.momentum[index], axis=1)
    pt = np.hypot(flight.momentum[index, 0], flight.momentum[index, 1])
    return flight.time[index] + arc[index] * (momentum / pt) * _energy(particles, flight, index) / momentum / C_LIGHT


def _clusters(hits: Hits, num_events: int, detector: DetectorModel) -> tuple[Hits, Clusters]:
    """The hits with their cluster numbers, and the clusters: energy sums and energy-weighted positions."""
    layer = cells.cell_section(hits.cell) + np.where(hits.collection >= 2, detector.ecal_sections, 0)
    in_calorimeter = hits.collection < cells.MUON_COLLECTION
    of_event = np.searchsorted(hits.event[in_calorimeter], np.arange(num_events + 1))
    labels = np.full(len(hits.event), -1, dtype=np.int64)
    labels[in_calorimeter], counts = cluster_events(
        hits.position[in_calorimeter], hits.energy[in_calorimeter], layer[in_calorimeter], detector.ecal_sections, of_event
    )
    attach_chamber_hits(hits.position, hits.collection, labels, np.searchsorted(hits.event, np.arange(num_events + 1)))
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


def _candidates(tracks: Tracks, hits: Hits, clusters: Clusters, detector: DetectorModel, num_events: int) -> Candidates:
    """The particle-flow candidates of tracks and clusters."""
    in_front = np.array([0, 0, detector.ecal_sections, detector.ecal_sections, detector.ecal_sections + detector.hcal_sections])
    section = cells.cell_section(hits.cell) + in_front[hits.collection]
    member = clusters.member
    first = np.concatenate([[0], np.cumsum(clusters.num_hits)])
    of_clusters = ClusterHits(first, hits.position[member], hits.energy[member], section[member])
    return find_candidates(tracks, of_clusters, clusters.event, detector, num_events)
