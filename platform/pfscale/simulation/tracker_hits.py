"""Where helices cross the tracker's layers and disks: the number of hits, the first one, and how long a track they make."""

from __future__ import annotations

import numpy as np

from pfscale.simulation.compiled import compiled
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.helix import arc_to_radius, move

NEVER = 1e30  # mm
LEAST_LEVER = 0.01  # of a whole track's


def tracker_hits(
    vertex: FloatArray,
    phi: FloatArray,
    omega: FloatArray,
    tan_lambda: FloatArray,
    detector: DetectorModel,
    start: FloatArray,
    stop: FloatArray,
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Number of hits (n,), position of the innermost (n, 3), its transverse path from the vertex (n,) and that of the last one (n,).

    Only hits between the paths `start` and `stop` (n,) count. Helices start at `vertex` (n, 3) in the direction `phi` (n,).
    """
    return _hits_kernel(vertex, phi, omega, tan_lambda, np.array(detector.barrel_layers), np.array(detector.disks), start, stop)


@compiled
def _hits_kernel(
    vertex: FloatArray, phi: FloatArray, omega: FloatArray, tan_lambda: FloatArray, layers: FloatArray, disks: FloatArray,
    start: FloatArray, stop: FloatArray,
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:  # fmt: skip
    """`tracker_hits`, helix by helix."""
    num = len(phi)
    counts, first, arcs, last = np.zeros(num, dtype=np.int64), np.zeros((num, 3)), np.zeros(num), np.zeros(num)
    for i in range(num):
        x, y, z = vertex[i]
        best = NEVER
        half_turn = np.pi / max(abs(omega[i]), 1e-9)
        for k in range(len(layers)):
            if layers[k, 0] <= np.hypot(x, y):
                continue
            arc = arc_to_radius(x, y, phi[i], omega[i], layers[k, 0])
            if arc < start[i] or arc > min(half_turn, stop[i]) or abs(z + arc * tan_lambda[i]) > layers[k, 1]:
                continue
            counts[i] += 1
            best, last[i] = min(best, arc), max(last[i], arc)
        for k in range(len(disks)):
            if abs(tan_lambda[i]) < 1e-6:
                break
            arc = (np.sign(tan_lambda[i]) * disks[k, 0] - z) / tan_lambda[i]
            if arc < start[i] or arc > min(half_turn, stop[i]):
                continue
            hx, hy, _, _ = move(x, y, z, phi[i], omega[i], tan_lambda[i], arc)
            r = np.hypot(hx, hy)
            if disks[k, 1] <= r <= disks[k, 2]:
                counts[i] += 1
                best, last[i] = min(best, arc), max(last[i], arc)
        if counts[i] > 0:
            first[i, 0], first[i, 1], first[i, 2], _ = move(x, y, z, phi[i], omega[i], tan_lambda[i], best)
            arcs[i] = best
    return counts, first, arcs, last


def lever_arm(length: FloatArray, tan_lambda: FloatArray, detector: DetectorModel) -> FloatArray:
    """Transverse path (n,) between the first and the last hit, in that of a whole, straight track of the same angle; at most 1."""
    num = len(length)
    straight = np.full(num, 1e-12)
    _, _, first, last = tracker_hits(np.zeros((num, 3)), np.zeros(num), straight, tan_lambda, detector, np.zeros(num), np.full(num, NEVER))
    return np.clip(length / np.maximum(last - first, 1e-9), LEAST_LEVER, 1.0)
