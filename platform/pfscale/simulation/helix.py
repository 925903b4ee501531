"""Helices in a solenoid field along z: from a vertex to the calorimeter face, and to cylinders and planes on the way.

Sign convention of EDM4hep: omega > 0 for positive charge, the direction turns as phi(s) = phi0 - omega s.
"""

from __future__ import annotations

import numpy as np

from pfscale.simulation.compiled import compiled
from pfscale.simulation.generator import FloatArray

CURVATURE = 2.99792458e-4  # GeV / (tesla mm)
MAX_ARC = 30000.0  # mm in the transverse plane; a particle that spirals longer has lost its energy in the tracker


@compiled
def arc_to_radius(x: float, y: float, phi: float, omega: float, radius: float) -> float:
    """Transverse path length from (x, y) along `phi` to the cylinder of `radius` seen from inside; -1: never reached."""
    if abs(omega) < 1e-9:
        along = x * np.cos(phi) + y * np.sin(phi)
        inside = along * along - (x * x + y * y - radius * radius)
        return -along + np.sqrt(inside) if inside > 0 else -1.0
    # centre of the circle, and the angle of the crossing as seen from it
    cx = x + np.sin(phi) / omega
    cy = y - np.cos(phi) / omega
    distance = np.hypot(cx, cy)
    rho = 1.0 / abs(omega)
    if distance < 1e-12:
        return -1.0
    cosine = (radius * radius - distance * distance - rho * rho) / (2.0 * distance * rho)
    if abs(cosine) >= 1.0:
        return -1.0
    towards = np.arctan2(cy, cx)
    now = np.arctan2(y - cy, x - cx)
    opening = np.arccos(cosine)
    best = 1e30
    for side in (-1.0, 1.0):
        turn = (now - (towards + side * opening)) * np.sign(omega)  # clockwise for omega > 0
        turn = turn % (2.0 * np.pi)
        best = min(best, turn * rho)
    return best


@compiled
def move(x: float, y: float, z: float, phi: float, omega: float, tan_lambda: float, arc: float) -> tuple[float, float, float, float]:
    """(x, y, z, phi) after a transverse path `arc`."""
    new_phi = phi - omega * arc
    if abs(omega) < 1e-9:
        return x + arc * np.cos(phi), y + arc * np.sin(phi), z + arc * tan_lambda, phi
    return x + (np.sin(phi) - np.sin(new_phi)) / omega, y + (np.cos(new_phi) - np.cos(phi)) / omega, z + arc * tan_lambda, new_phi


@compiled
def to_calorimeter(
    vertex: FloatArray, momentum: FloatArray, charge: FloatArray, b_field: float, radius: float, half_length: float
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Where particles enter the calorimeter: position (N, 3), direction (N, 3), transverse arc (N,), omega (N,).

    `arc` is -1 for particles made outside the tracker or that spiral until they stop. Loopers reach the endcap after many turns.
    """
    num = len(charge)
    position = np.zeros((num, 3))
    direction = np.zeros((num, 3))
    arcs = np.full(num, -1.0)
    omegas = np.zeros(num)
    for i in range(num):
        x, y, z = vertex[i]
        px, py, pz = momentum[i]
        pt = np.hypot(px, py)
        if pt < 1e-9 or np.hypot(x, y) >= radius or abs(z) >= half_length:
            continue
        phi = np.arctan2(py, px)
        tan_lambda = pz / pt
        omega = charge[i] * CURVATURE * b_field / pt
        omegas[i] = omega
        arc = arc_to_radius(x, y, phi, omega, radius)
        if abs(tan_lambda) > 1e-12:
            to_end = (np.sign(tan_lambda) * half_length - z) / tan_lambda
            if arc < 0 or to_end < arc:
                arc = to_end
        if arc < 0 or (charge[i] != 0.0 and arc > MAX_ARC):
            continue
        ex, ey, ez, new_phi = move(x, y, z, phi, omega, tan_lambda, arc)
        norm = np.sqrt(1.0 + tan_lambda * tan_lambda)
        position[i, 0], position[i, 1], position[i, 2] = ex, ey, ez
        direction[i, 0], direction[i, 1], direction[i, 2] = np.cos(new_phi) / norm, np.sin(new_phi) / norm, tan_lambda / norm
        arcs[i] = arc
    return position, direction, arcs, omegas
