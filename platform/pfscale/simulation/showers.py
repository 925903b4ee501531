"""Calorimeter showers as energy spots in cells.

A spot is a small deposit; a shower throws a Poisson number of spots, so the stochastic term of the resolution is the number of spots
and needs no smearing of its own. Spots are not all alike: sums of equal ones would tell photons and hadrons apart by their last digits.
Electromagnetic showers follow the gamma profile (PDG review, passage of particles) with a two-component radial profile; hadrons cross as
minimum-ionising particles up to their first interaction, then split into electromagnetic, hadronic and neutron-like parts that start,
tilt and travel on their own: that is where fragments come from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray

PHOTON, ELECTRON, MUON, CHARGED_HADRON, NEUTRAL_HADRON = 0, 1, 2, 3, 4
CELL_OFFSET = 2048  # index of the cell at the origin of a signed axis
MOLIERE_RADIUS = 20.0  # mm, of the sandwich with its gaps
HADRON_SPOT = 0.05  # GeV, mean
SPOT_SPREAD = 0.5  # spots are uniform in mean * (1 +- this) ...
SPOT_VARIANCE = 1.0 + SPOT_SPREAD**2 / 3.0  # ... which raises the variance of their sum by this factor
NEUTRON_SHARE = 0.12


class Calorimeter(NamedTuple):
    """The numbers of a detector that the shower code needs (a named tuple, because compiled code takes no dataclass)."""

    radius: float
    z: float
    inner_radius: float
    outer_radius: float
    ecal_thickness: float
    ecal_pitch: float
    ecal_cell: float
    ecal_x0: float
    ecal_lambda: float
    ecal_mip: float
    ecal_spot: float
    ecal_constant: float
    gap: float
    hcal_thickness: float
    hcal_pitch: float
    hcal_cell: float
    hcal_x0: float
    hcal_lambda: float
    hcal_mip: float
    hcal_smear: float
    hcal_constant: float
    ecal_scale: float
    hcal_scale: float


def calorimeter(detector: DetectorModel) -> Calorimeter:
    """The calorimeter numbers of `detector`."""
    return Calorimeter(
        radius=detector.ecal_radius,
        z=detector.ecal_z,
        inner_radius=detector.endcap_inner_radius,
        outer_radius=detector.calorimeter_outer_radius,
        ecal_thickness=detector.ecal_thickness,
        ecal_pitch=detector.ecal_thickness / detector.ecal_sections,
        ecal_cell=detector.ecal_cell,
        ecal_x0=detector.ecal_x0,
        ecal_lambda=detector.ecal_lambda,
        ecal_mip=detector.ecal_mip,
        ecal_spot=detector.ecal_stochastic**2 / SPOT_VARIANCE,
        ecal_constant=detector.ecal_constant,
        gap=detector.hcal_gap,
        hcal_thickness=detector.hcal_thickness,
        hcal_pitch=detector.hcal_thickness / detector.hcal_sections,
        hcal_cell=detector.hcal_cell,
        hcal_x0=detector.hcal_x0,
        hcal_lambda=detector.hcal_lambda,
        hcal_mip=detector.hcal_mip,
        hcal_smear=float(np.sqrt(max(detector.hcal_stochastic**2 - HADRON_SPOT * SPOT_VARIANCE, 0.0))),
        hcal_constant=detector.hcal_constant,
        ecal_scale=detector.ecal_calibration,
        hcal_scale=detector.hcal_calibration,
    )


class Spots(NamedTuple):
    """Growing columns of spots; `used` (1,) counts the filled ones."""

    cell: IntArray
    shower: IntArray
    energy: FloatArray
    path: FloatArray  # mm behind the calorimeter's face
    used: IntArray


@njit(cache=True)
def cell_of(geo: Calorimeter, x: float, y: float, z: float) -> int:
    """The cell that contains a point: bits calo (1), endcap (1), side (1), section (5), i (12), j (12); -1 outside."""
    r = np.hypot(x, y)
    endcap = 1 if abs(z) > geo.z else 0
    if r > geo.outer_radius or (endcap == 1 and r < geo.inner_radius):
        return -1
    depth = abs(z) - geo.z if endcap == 1 else r - geo.radius
    if depth < -geo.ecal_pitch:
        return -1
    calo = 0
    size = geo.ecal_cell
    pitch = geo.ecal_pitch
    front = geo.radius
    if depth >= geo.ecal_thickness:
        calo, size, pitch = 1, geo.hcal_cell, geo.hcal_pitch
        front = geo.radius + geo.ecal_thickness + geo.gap
        depth -= geo.ecal_thickness + geo.gap
        if depth >= geo.hcal_thickness:
            return -1
    section = int(max(depth, 0.0) / pitch)
    if endcap == 1:
        i = int(np.floor(x / size)) + CELL_OFFSET
        j = int(np.floor(y / size)) + CELL_OFFSET
    else:
        num_phi = int(2.0 * np.pi * (front + (section + 0.5) * pitch) / size)
        i = min(int((np.arctan2(y, x) + np.pi) / (2.0 * np.pi) * num_phi), num_phi - 1)
        j = int(np.floor(z / size)) + CELL_OFFSET
    side = 1 if z > 0 else 0
    return ((((calo * 2 + endcap) * 2 + side) * 32 + section) * 4096 + i) * 4096 + j


@njit(cache=True)
def _add(geo: Calorimeter, spots: Spots, shower: int, energy: float, x: float, y: float, z: float, path: float) -> None:
    cell = cell_of(geo, x, y, z)
    n = spots.used[0]
    if cell < 0 or n >= len(spots.cell):
        return
    spots.cell[n] = cell
    spots.shower[n] = shower
    spots.energy[n] = energy * (geo.ecal_scale if cell < (1 << 31) else geo.hcal_scale)
    spots.path[n] = path
    spots.used[0] = n + 1


@njit(cache=True)
def _frame(dx: float, dy: float, dz: float) -> tuple[float, float, float, float, float, float]:
    """Two unit vectors across a direction."""
    if abs(dz) < 0.9:
        norm = np.hypot(dx, dy)
        ax, ay, az = -dy / norm, dx / norm, 0.0
    else:
        norm = np.hypot(dy, dz)
        ax, ay, az = 0.0, -dz / norm, dy / norm
    return ax, ay, az, dy * az - dz * ay, dz * ax - dx * az, dx * ay - dy * ax


@njit(cache=True)
def _cosine(geo: Calorimeter, x: float, y: float, z: float, dx: float, dy: float, dz: float) -> float:
    """Cosine of the angle of incidence on the face (bounded, so that no path is endless)."""
    if abs(z) >= geo.z - 1e-6:
        return max(abs(dz), 0.3)
    return max(abs(x * dx + y * dy) / np.hypot(x, y), 0.3)


@njit(cache=True)
def _to_path(geo: Calorimeter, depth: float, cosine: float, ecal_total: float, hcal_total: float) -> float:
    """Path in mm behind the face after `depth` radiation or interaction lengths."""
    in_ecal = ecal_total / cosine
    if depth <= in_ecal:
        return depth / ecal_total * geo.ecal_thickness
    return (geo.ecal_thickness + geo.gap) / cosine + (depth - in_ecal) / hcal_total * geo.hcal_thickness


@njit(cache=True)
def _radial(rng: np.random.Generator, core: float, tail: float, share: float) -> float:
    """A radius from the density 2 r R^2 / (r^2 + R^2)^2 with R = core or tail, cut at eight tail radii."""
    scale = core if rng.random() < share else tail
    u = rng.random()
    return min(scale * np.sqrt(u / (1.0 - u + 1e-12)), 8.0 * tail)


@njit(cache=True)
def _spot(rng: np.random.Generator, mean: float) -> float:
    """The energy of one spot, GeV."""
    return mean * (1.0 + SPOT_SPREAD * (2.0 * rng.random() - 1.0))


@njit(cache=True)
def _electromagnetic(
    geo: Calorimeter, rng: np.random.Generator, spots: Spots, shower: int, energy: float, is_electron: bool,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> None:  # fmt: skip
    """An electromagnetic shower that starts at the face."""
    number = rng.poisson(energy * max(1.0 + geo.ecal_constant * rng.standard_normal(), 0.1) / geo.ecal_spot)
    t_max = max(np.log(energy / 0.010) + (-0.5 if is_electron else 0.5) + 0.5 * rng.standard_normal(), 0.5)
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    for _ in range(number):
        depth = rng.standard_gamma(1.0 + 0.5 * t_max) / 0.5
        path = _to_path(geo, depth, cosine, geo.ecal_x0, geo.hcal_x0)
        r = _radial(rng, 0.22 * MOLIERE_RADIUS, 0.8 * MOLIERE_RADIUS, 0.85)
        angle = 2.0 * np.pi * rng.random()
        u, v = r * np.cos(angle), r * np.sin(angle)
        _add(geo, spots, shower, _spot(rng, geo.ecal_spot), x + path * dx + u * ax + v * bx, y + path * dy + u * ay + v * by,
             z + path * dz + u * az + v * bz, path)  # fmt: skip


@njit(cache=True)
def _ionise(
    geo: Calorimeter, rng: np.random.Generator, spots: Spots, shower: int, energy: float, stop: float,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> float:  # fmt: skip
    """The energy that is left after minimum-ionising deposits in every section up to the path `stop`."""
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    path = 0.5 * geo.ecal_pitch / cosine
    back = geo.ecal_thickness / cosine
    end = (geo.ecal_thickness + geo.gap + geo.hcal_thickness) / cosine
    while path < min(stop, end) and energy > 0.0:
        in_ecal = path < back
        deposit = (geo.ecal_mip if in_ecal else geo.hcal_mip) / cosine * (0.75 + 0.25 * rng.standard_exponential())
        deposit = min(deposit, energy)
        _add(geo, spots, shower, deposit, x + path * dx, y + path * dy, z + path * dz, path)
        energy -= deposit
        path += (geo.ecal_pitch if in_ecal else geo.hcal_pitch) / cosine
        if in_ecal and path >= back:
            path = (geo.ecal_thickness + geo.gap + 0.5 * geo.hcal_pitch) / cosine
    return energy


@njit(cache=True)
def _part(
    geo: Calorimeter, rng: np.random.Generator, spots: Spots, shower: int, energy: float, kind: int, path: float,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> None:  # fmt: skip
    """One part of a hadron shower from the interaction point (x, y, z): 0 electromagnetic, 1 hadronic, 2 neutrons."""
    number = rng.poisson(energy / HADRON_SPOT)
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    r = np.hypot(x, y)
    depth = abs(z) - geo.z if abs(z) > geo.z else r - geo.radius
    in_ecal = depth < geo.ecal_thickness
    mm_per_x0 = geo.ecal_thickness / geo.ecal_x0 if in_ecal else geo.hcal_thickness / geo.hcal_x0
    mm_per_lambda = geo.ecal_thickness / geo.ecal_lambda if in_ecal else geo.hcal_thickness / geo.hcal_lambda
    t_max = max(np.log(energy / 0.010) + 0.5, 0.5)
    start = rng.standard_exponential() * 0.5 * mm_per_lambda if kind == 1 else 0.0
    ionising = min(start / 50.0 * 0.03, 0.4 * energy) / max(energy, 1e-9) if kind == 1 else 0.0
    for _ in range(number):
        if kind == 0:
            along = rng.standard_gamma(1.0 + 0.5 * t_max) / 0.5 * mm_per_x0
            across = _radial(rng, 0.3 * MOLIERE_RADIUS, MOLIERE_RADIUS, 0.8)
        elif kind == 1 and rng.random() < ionising:
            along, across = rng.random() * start, 2.0
        elif kind == 1:
            along = start + rng.standard_gamma(1.2) * 0.45 * mm_per_lambda
            across = _radial(rng, 15.0, 50.0, 0.5)
        else:
            along = 250.0 * (rng.standard_exponential() - 0.4)
            across = rng.standard_gamma(2.0) * 70.0
        angle = 2.0 * np.pi * rng.random()
        u, v = across * np.cos(angle), across * np.sin(angle)
        _add(geo, spots, shower, _spot(rng, HADRON_SPOT), x + along * dx + u * ax + v * bx, y + along * dy + u * ay + v * by,
             z + along * dz + u * az + v * bz, path + max(along, 0.0))  # fmt: skip


@njit(cache=True)
def _hadronic(
    geo: Calorimeter, rng: np.random.Generator, spots: Spots, shower: int, energy: float, is_charged: bool,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> None:  # fmt: skip
    """A hadron: ionisation up to the first interaction, then parts that share what is left."""
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    # Slow hadrons stop by ionisation before they interact: the free path shrinks with the range.
    free = rng.standard_exponential() * min(1.0, 0.2 + energy / 1.5)
    path = _to_path(geo, free, cosine, geo.ecal_lambda, geo.hcal_lambda)
    if is_charged:
        energy = _ionise(geo, rng, spots, shower, energy, path, x, y, z, dx, dy, dz)
    if energy < 0.02 or path > (geo.ecal_thickness + geo.gap + geo.hcal_thickness) / cosine:
        return
    sigma = np.sqrt(geo.hcal_smear**2 / max(energy, 0.2) + geo.hcal_constant**2)
    energy *= min(max(1.0 + sigma * rng.standard_normal(), 0.1), 1.9)
    px, py, pz = x + path * dx, y + path * dy, z + path * dz
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    number = 1 + rng.poisson(0.8 * np.log1p(energy))
    weights = np.empty(number)
    for k in range(number):
        weights[k] = 0.1 + rng.standard_exponential()
    weights *= (1.0 - NEUTRON_SHARE) * energy / weights.sum()
    _part(geo, rng, spots, shower, NEUTRON_SHARE * energy, 2, path, px, py, pz, dx, dy, dz)
    for k in range(number):
        tilt = min(0.35 * rng.standard_exponential() / weights[k], 1.0)
        angle = 2.0 * np.pi * rng.random()
        u, v = tilt * np.cos(angle), tilt * np.sin(angle)
        tx, ty, tz = dx + u * ax + v * bx, dy + u * ay + v * by, dz + u * az + v * bz
        norm = np.sqrt(tx * tx + ty * ty + tz * tz)
        kind = 0 if rng.random() < 0.38 else 1
        _part(geo, rng, spots, shower, weights[k], kind, path, px, py, pz, tx / norm, ty / norm, tz / norm)


@njit(cache=True)
def shower_spots(
    geo: Calorimeter,
    rng: np.random.Generator,
    kind: IntArray,
    energy: FloatArray,
    position: FloatArray,
    direction: FloatArray,
    capacity: int,
) -> Spots:
    """The spots of all incident particles; `shower` is the index into the inputs. Overflows show as `used == capacity`."""
    spots = Spots(
        np.empty(capacity, dtype=np.int64),
        np.empty(capacity, dtype=np.int64),
        np.empty(capacity),
        np.empty(capacity),
        np.zeros(1, dtype=np.int64),
    )
    for i in range(len(kind)):
        x, y, z = position[i]
        dx, dy, dz = direction[i]
        if kind[i] <= ELECTRON:
            _electromagnetic(geo, rng, spots, i, energy[i], kind[i] == ELECTRON, x, y, z, dx, dy, dz)
        elif kind[i] == MUON:
            _ionise(geo, rng, spots, i, energy[i], 1e9, x, y, z, dx, dy, dz)
        else:
            _hadronic(geo, rng, spots, i, energy[i], kind[i] == CHARGED_HADRON, x, y, z, dx, dy, dz)
    return spots


def cell_section(cell: IntArray) -> IntArray:
    """Longitudinal section (n,) of cells, counted from the front of their calorimeter."""
    return (cell >> 24) & 31


def cell_position(geo: Calorimeter, cell: IntArray) -> npt.NDArray[np.float64]:
    """Centres (n, 3) of cells, mm."""
    j = (cell & 4095) - CELL_OFFSET
    i = (cell >> 12) & 4095
    section = cell_section(cell)
    side = (cell >> 29) & 1
    is_endcap = ((cell >> 30) & 1) == 1
    is_hcal = ((cell >> 31) & 1) == 1
    size = np.where(is_hcal, geo.hcal_cell, geo.ecal_cell)
    depth = np.where(is_hcal, geo.ecal_thickness + geo.gap + (section + 0.5) * geo.hcal_pitch, (section + 0.5) * geo.ecal_pitch)
    radius = geo.radius + depth
    num_phi = np.maximum((2.0 * np.pi * radius / size).astype(np.int64), 1)
    phi = (i + 0.5) / num_phi * 2.0 * np.pi - np.pi
    x = np.where(is_endcap, (i - CELL_OFFSET + 0.5) * size, radius * np.cos(phi))
    y = np.where(is_endcap, (j + 0.5) * size, radius * np.sin(phi))
    z = np.where(is_endcap, np.where(side == 1, 1.0, -1.0) * (geo.z + depth), (j + 0.5) * size)
    return np.stack([x, y, z], axis=1)
