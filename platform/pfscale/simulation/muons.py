"""Muon chambers in the yoke: the hits of muons that get through the calorimeters, and the clusters that these hits are added to."""

from __future__ import annotations

import numpy as np

from pfscale.simulation.cells import MUON_COLLECTION, Geometry, muon_cell
from pfscale.simulation.compiled import compiled
from pfscale.simulation.generator import FloatArray, IntArray

MAX_ANGLE = 0.15  # rad, between a hit in the yoke and the cluster's hits in the HCAL, as seen from the interaction point


@compiled
def chamber_hits(
    geo: Geometry, rng: np.random.Generator, spots: FloatArray, n: int, energy: float,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> int:  # fmt: skip
    """The number of spots after those of a muon with `energy` (GeV) left behind the calorimeter, on a straight line as far as it gets."""
    for layer in range(geo.muon_layers):
        energy -= geo.muon_loss * (2.0 if layer == 0 else 1.0)  # the coil, or the endcap's thicker back, lies in front of the first
        if energy < 0.0:
            return n
        endcap, path = 0, 0.0
        radius = geo.muon_radius + layer * geo.muon_pitch
        inward, square = x * dx + y * dy, dx * dx + dy * dy
        if square > 1e-12:
            path = (-inward + np.sqrt(max(inward * inward - square * (x * x + y * y - radius * radius), 0.0))) / square
        if square <= 1e-12 or abs(z + path * dz) > geo.muon_z:
            endcap = 1
            path = (geo.muon_z + layer * geo.muon_pitch_z - abs(z)) / max(abs(dz), 1e-6)
            r = np.hypot(x + path * dx, y + path * dy)
            if not geo.muon_inner_radius < r < geo.muon_outer_radius:
                continue
        if rng.random() < geo.muon_efficiency:
            spots[n, 0] = muon_cell(geo, endcap, layer, x + path * dx, y + path * dy, z + path * dz)
            spots[n, 1], spots[n, 2] = geo.muon_hit * (0.5 + 0.5 * rng.standard_exponential()), path
            n += 1
    return n


@compiled
def attach_chamber_hits(position: FloatArray, collection: IntArray, labels: IntArray, bounds: IntArray) -> None:
    """Gives hits in the muon chambers, ordered last in their events, the cluster numbers (`labels`) of the nearest HCAL hit in angle."""
    least = np.cos(MAX_ANGLE)
    for event in range(len(bounds) - 1):
        start, end = bounds[event], bounds[event + 1]
        for i in range(end - 1, start - 1, -1):
            if collection[i] != MUON_COLLECTION:
                break
            best = least * np.sqrt(np.sum(position[i] ** 2))
            for j in range(start, end):
                if (collection[j] == 2 or collection[j] == 3) and labels[j] >= 0:
                    norm = np.sqrt(np.sum(position[j] ** 2))
                    along = (position[i, 0] * position[j, 0] + position[i, 1] * position[j, 1] + position[i, 2] * position[j, 2]) / norm
                    if along > best:
                        best = along
                        labels[i] = labels[j]
