"""Momenta as (px, py, pz) and as (pt, eta, phi), and distances between directions.

Plain numpy on arrays of any (broadcastable) shape. Units: GeV and rad. Rows without transverse momentum give eta = +-inf (0 for a null
vector) without a warning, so that a beam particle or an empty candidate does not stop a whole batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def cartesian(pt: ArrayLike, eta: ArrayLike, phi: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(px, py, pz) in the unit of `pt`, from transverse momentum, pseudorapidity and azimuth."""
    pt64, eta64, phi64 = (np.asarray(a, np.float64) for a in (pt, eta, phi))
    return pt64 * np.cos(phi64), pt64 * np.sin(phi64), pt64 * np.sinh(eta64)


def pt_eta_phi(px: ArrayLike, py: ArrayLike, pz: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(pt, eta, phi) with phi in (-pi, pi], from Cartesian momenta."""
    px64, py64, pz64 = (np.asarray(a, np.float64) for a in (px, py, pz))
    pt = np.hypot(px64, py64)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = pz64 / pt
    null = (pt == 0) & (pz64 == 0)
    eta = np.arcsinh(np.where(null, 0.0, slope))
    return pt, eta, np.arctan2(py64, px64)


def delta_phi(phi1: ArrayLike, phi2: ArrayLike) -> Floats:
    """phi1 - phi2 in rad, wrapped into [-pi, pi)."""
    difference = np.asarray(phi1, np.float64) - np.asarray(phi2, np.float64)
    return (difference + np.pi) % (2.0 * np.pi) - np.pi


def deltaR(eta1: ArrayLike, phi1: ArrayLike, eta2: ArrayLike, phi2: ArrayLike) -> Floats:  # noqa: N802 (the physics name)
    """The distance hypot(delta eta, delta phi) between two directions."""
    return np.hypot(np.asarray(eta1, np.float64) - np.asarray(eta2, np.float64), delta_phi(phi1, phi2))


def invariant_mass(energy: ArrayLike, px: ArrayLike, py: ArrayLike, pz: ArrayLike) -> Floats:
    """The mass in GeV of four-momenta; 0 where rounding (or a candidate with E < |p|) makes its square negative."""
    e64, px64, py64, pz64 = (np.asarray(a, np.float64) for a in (energy, px, py, pz))
    return np.sqrt(np.maximum(e64**2 - px64**2 - py64**2 - pz64**2, 0.0))


def sum_per_event(event: ArrayLike, values: ArrayLike, *, num_events: int) -> Floats:
    """The sum of `values` in every event, shape (num_events,); 0 for events without a row."""
    return np.bincount(np.asarray(event, np.int64), weights=np.asarray(values, np.float64), minlength=num_events).astype(np.float64)
