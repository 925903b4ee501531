"""Which tracks close neighbours spoil: one with a wrong hit, or found as two, its part in the vertex detector and that in the tracker.

From the one real CLD event: of its 18 stable charged particles above 0.5 GeV three are less than 0.25 mm from their neighbours on the
innermost layer, and all three are spoilt; of the 15 others two are. The four tracks with hits of several particles have a chi2 / ndf of
20 to 115, and three of them are vertex parts whose momenta are far too low: a straight track with a wrong hit looks bent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pfscale.simulation.compiled import compiled
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray, Particles

BROKEN = 0.5  # part of the spoilt tracks that are found as two
WRONG_CHI2 = 50.0  # mean of what a wrong hit adds to chi2 / ndf
BREAK_MARGIN = 1.2  # tracks break at this times the radius of the last vertex layer


@dataclass(frozen=True)
class Confusion:
    """What happens to the tracks of some charged particles, (n,): the particle that owns one of the hits (-1: none), is it two tracks."""

    neighbour: IntArray
    is_broken: npt.NDArray[np.bool_]


def confuse(particles: Particles, index: IntArray, detector: DetectorModel, rng: np.random.Generator) -> Confusion:
    """What their neighbours do to the tracks of the particles `index`, ordered by event."""
    px, py, pz = particles.momentum[index].T
    distance, nearest = _nearest(particles.event[index], np.arcsinh(pz / np.hypot(px, py)), np.arctan2(py, px))
    on_first_layer = distance * detector.barrel_layers[0][0]
    is_spoilt = rng.random(len(index)) < np.exp(-on_first_layer / detector.track_separation)
    return Confusion(np.where(is_spoilt, index[nearest], -1), is_spoilt & (rng.random(len(index)) < BROKEN))


def break_radius(detector: DetectorModel) -> float:
    """Where tracks break, mm from the beam."""
    return BREAK_MARGIN * detector.barrel_layers[detector.vertex_layers - 1][0]


@compiled
def _nearest(event: IntArray, eta: FloatArray, phi: FloatArray) -> tuple[FloatArray, IntArray]:
    """Distance in (eta, phi) to the nearest other direction of the same event, and which that is; far and 0 where there is none."""
    num = len(event)
    distance, nearest = np.full(num, 1e9), np.zeros(num, dtype=np.int64)
    for i in range(num):
        for j in range(i + 1, num):
            if event[j] != event[i]:
                break
            turn = abs(phi[i] - phi[j])
            d = np.hypot(eta[i] - eta[j], min(turn, 2.0 * np.pi - turn))
            if d < distance[i]:
                distance[i], nearest[i] = d, j
            if d < distance[j]:
                distance[j], nearest[j] = d, i
    return distance, nearest
