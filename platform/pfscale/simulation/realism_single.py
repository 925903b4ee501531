"""What single particles leave: photons and neutral hadrons in the calorimeters, and how often particles interact in the tracker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from particle import literals

from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import IntArray
from pfscale.simulation.material import interact
from pfscale.simulation.response import DetectorEvents, detector_response
from pfscale.simulation.samples import particle_gun


@dataclass(frozen=True)
class PhotonResponse:
    """Single photons that did not convert: mean and width of clustered energy / true energy, mean number of clusters, median of hits.

    `identified`: the part whose rule-based candidate of highest energy is a photon.
    """

    mean: float
    width: float
    clusters: float
    hits: float
    identified: float


def photon_response(detector: DetectorModel, energy: float, num_events: int = 500) -> PhotonResponse:
    """The response to photons of `energy` GeV."""
    gun = particle_gun(int(literals.photon.pdgid), 0.0, 0.0, np.full(num_events, energy))
    events = detector_response(gun, detector, np.random.default_rng(2))
    unconverted = np.bincount(events.particles.event, minlength=num_events) == 1
    response = np.bincount(events.clusters.event, weights=events.clusters.energy, minlength=num_events)[unconverted] / energy
    clusters, hits = (np.bincount(found.event, minlength=num_events)[unconverted] for found in (events.clusters, events.hits))
    is_photon = _main_candidate(events) == int(literals.photon.pdgid)
    return PhotonResponse(
        float(response.mean()), float(response.std()), float(clusters.mean()), float(np.median(hits)), float(is_photon[unconverted].mean())
    )


def _main_candidate(events: DetectorEvents) -> IntArray:
    """The PDG number (num_events,) of each event's candidate of highest energy; 0: none."""
    candidates = events.candidates
    order = np.argsort(candidates.energy, kind="stable")
    found = np.zeros(events.particles.num_events, dtype=np.int64)
    found[candidates.event[order]] = candidates.pdg[order]  # of several in an event the last counts
    return found


def hadron_response(detector: DetectorModel, energy: float, num_events: int = 500) -> tuple[float, float, float]:
    """(mean of the energy in hits / true energy, its width, share of events below 0.7) for K0L that reach the calorimeter."""
    kaon = literals.K_L_0
    events = detector_response(
        particle_gun(int(kaon.pdgid), kaon.mass / 1000.0, 0.0, np.full(num_events, energy)), detector, np.random.default_rng(2)
    )
    untouched = np.bincount(events.particles.event, minlength=num_events) == 1
    response = np.bincount(events.hits.event, weights=events.hits.energy, minlength=num_events)[untouched] / energy
    return float(response.mean()), float(response.std()), float(np.mean(response < 0.7))


def interaction_rates(detector: DetectorModel, num_events: int = 4000) -> tuple[float, float, float]:
    """Fractions of 5 GeV photons that convert, pi+ that interact and electrons that radiate in the tracker, abs(cos theta) < 0.95."""
    fractions = []
    for particle in (literals.photon, literals.pi_plus, literals.e_minus):
        gun = particle_gun(int(particle.pdgid), particle.mass / 1000.0, float(particle.charge), np.full(num_events, 5.0))
        made, _ = interact(gun, detector, np.random.default_rng(3))
        fractions.append(len(np.unique(made.event[made.parent])) / num_events)
    return fractions[0], fractions[1], fractions[2]
