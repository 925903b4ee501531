"""The weights of ECAL and HCAL energies for hadrons, from single K0L: what `association.HADRON_WEIGHTS` are rounded from.

python -m pfscale.simulation.calibration      # 10 s; prints the weights of each detector and the response at each energy
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from particle import literals

from pfscale.simulation.association import HADRON_WEIGHTS
from pfscale.simulation.detectors import DETECTORS, DetectorModel
from pfscale.simulation.generator import FloatArray
from pfscale.simulation.hadron_resolution import shower_variance
from pfscale.simulation.response import detector_response
from pfscale.simulation.samples import particle_gun

ENERGIES = (2.0, 5.0, 10.0, 20.0, 50.0)  # GeV


def hadron_sums(detector: DetectorModel, energy: float, num_events: int) -> FloatArray:
    """Energies in clusters in ECAL and HCAL (num_events, 2) of single K0L of `energy` GeV that do not interact in the tracker."""
    model = replace(detector, tracker_lambda=0.0)
    gun = particle_gun(int(literals.K_L_0.pdgid), literals.K_L_0.mass / 1000.0, 0.0, np.full(num_events, energy))
    events = detector_response(gun, model, np.random.default_rng(6))
    hits, member = events.hits, events.clusters.member
    sums = [
        np.bincount(hits.event[member], weights=hits.energy[member] * chosen[member], minlength=num_events)
        for chosen in (hits.collection < 2, (hits.collection >= 2) & (hits.collection < 4))
    ]
    return np.stack(sums, axis=1)


def hadron_weights(detector: DetectorModel, num_events: int = 500) -> tuple[float, float]:
    """Weights of the energies in ECAL and HCAL with the least spread around the energies of single K0L, and the right mean."""
    sums = np.concatenate([hadron_sums(detector, energy, num_events) for energy in ENERGIES])
    truth = np.repeat(ENERGIES, num_events)
    sigma = np.sqrt(shower_variance(truth, detector.hcal_stochastic, detector.hcal_uncompensated, detector.hcal_constant))
    weights, *_ = np.linalg.lstsq(sums / sigma[:, None], truth / sigma, rcond=None)
    mean = float(np.mean(sums @ weights / truth))
    return float(weights[0]) / mean, float(weights[1]) / mean


def main() -> None:
    """Prints the weights and the response."""
    for name, detector in DETECTORS.items():
        print(f"{name}: weights {hadron_weights(detector)}, in use {HADRON_WEIGHTS}")
        for energy in ENERGIES:
            total = hadron_sums(detector, energy, 500) @ np.array(HADRON_WEIGHTS) / energy
            print(f"  {energy:4.0f} GeV: mean {total.mean():.3f}, width {total.std():.3f}")


if __name__ == "__main__":
    main()
