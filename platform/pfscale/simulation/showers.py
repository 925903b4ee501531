"""Calorimeter showers as energy spots in cells.

A spot is a small deposit; a shower throws a Poisson number of spots, so the stochastic term of the resolution is the number of spots
and needs no smearing of its own. Spots are not all alike: sums of equal ones would tell photons and hadrons apart by their last digits.
Electromagnetic showers follow the gamma profile (PDG review, passage of particles) with a two-component radial profile; hadrons cross as
minimum-ionising particles up to their first interaction, then split into electromagnetic, hadronic and neutron-like parts that start,
tilt and travel on their own: that is where fragments come from. What travels beyond the back of the calorimeter is lost.
"""

from __future__ import annotations

import numpy as np

from pfscale.simulation.cells import Deposits, Geometry, add_shower, cell_of, empty_deposits, with_room
from pfscale.simulation.compiled import compiled
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.muons import chamber_hits

PHOTON, ELECTRON, MUON, CHARGED_HADRON, NEUTRAL_HADRON = 0, 1, 2, 3, 4
MOLIERE_RADIUS = 20.0  # mm, of the sandwich with its gaps
HADRON_SPOT = 0.05  # GeV, mean
SPOT_SPREAD = 0.5  # spots are uniform in mean * (1 +- this) ...
SPOT_VARIANCE = 1.0 + SPOT_SPREAD**2 / 3.0  # ... which raises the variance of their sum by this factor
NEUTRON_SHARE = 0.12
STRETCH = 0.3  # a shower of E GeV is longer by 1 + STRETCH ln(1 + E / 3 GeV), near the fit of Bock et al., NIM 186 (1981) 533
ELECTROMAGNETIC_SHARE = 0.38  # chance of a part of a hadron shower to be a pi0
SPOTS_BESIDES = 200  # ionisation and muon chambers


@compiled(forceinline=True)
def _add(geo: Geometry, spots: FloatArray, n: int, energy: float, x: float, y: float, z: float, path: float) -> int:
    """Writes a spot as (cell, energy, path) behind the first `n` unless it falls outside; how many there are then."""
    cell = cell_of(geo, x, y, z)
    if cell < 0:
        return n
    spots[n, 0], spots[n, 1], spots[n, 2] = cell, energy * (geo.ecal_scale if cell < (1 << 31) else geo.hcal_scale), path
    return n + 1


@compiled
def _frame(dx: float, dy: float, dz: float) -> tuple[float, float, float, float, float, float]:
    """Two unit vectors across a direction."""
    if abs(dz) < 0.9:
        norm = np.sqrt(dx * dx + dy * dy)
        ax, ay, az = -dy / norm, dx / norm, 0.0
    else:
        norm = np.sqrt(dy * dy + dz * dz)
        ax, ay, az = 0.0, -dz / norm, dy / norm
    return ax, ay, az, dy * az - dz * ay, dz * ax - dx * az, dx * ay - dy * ax


@compiled
def _cosine(geo: Geometry, x: float, y: float, z: float, dx: float, dy: float, dz: float) -> float:
    """Cosine of the angle of incidence on the face (bounded, so that no path is endless)."""
    if abs(z) >= geo.z - 1e-6:
        return max(abs(dz), 0.3)
    return max(abs(x * dx + y * dy) / np.hypot(x, y), 0.3)


@compiled(forceinline=True)
def _to_path(geo: Geometry, depth: float, cosine: float, ecal_total: float, hcal_total: float) -> float:
    """Path in mm behind the face after `depth` radiation or interaction lengths."""
    in_ecal = ecal_total / cosine
    if depth <= in_ecal:
        return depth / ecal_total * geo.ecal_thickness
    return (geo.ecal_thickness + geo.gap) / cosine + (depth - in_ecal) / hcal_total * geo.hcal_thickness


@compiled(forceinline=True)
def _in_disc(rng: np.random.Generator) -> tuple[float, float, float]:
    """A point (a, b) uniform in the unit disc, and its squared radius, which is uniform in (0, 1): an angle without sine and cosine."""
    while True:
        a, b = 2.0 * rng.random() - 1.0, 2.0 * rng.random() - 1.0
        square = a * a + b * b
        if 0.0 < square < 1.0:
            return a, b, square


@compiled(forceinline=True)
def _across(rng: np.random.Generator, core: float, tail: float, share: float) -> tuple[float, float]:
    """Distances (u, v) from the axis with the density 2 r R^2 / (r^2 + R^2)^2 of r, R = core or tail, cut at eight tail radii."""
    scale = core if rng.random() < share else tail
    a, b, square = _in_disc(rng)
    factor = min(scale / np.sqrt(1.0 - square), 8.0 * tail / np.sqrt(square))
    return factor * a, factor * b


@compiled(forceinline=True)
def _spot(rng: np.random.Generator, mean: float) -> float:
    """The energy of one spot, GeV."""
    return mean * (1.0 + SPOT_SPREAD * (2.0 * rng.random() - 1.0))


@compiled
def _electromagnetic(
    geo: Geometry, rng: np.random.Generator, spots: FloatArray, n: int, energy: float, is_electron: bool,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> int:  # fmt: skip
    """An electromagnetic shower that starts at the face. This and the following return the number of spots after theirs."""
    mean = geo.ecal_stochastic**2 / SPOT_VARIANCE
    number = rng.poisson(energy * max(1.0 + geo.ecal_constant * rng.standard_normal(), 0.1) / mean)
    t_max = max(np.log(energy / 0.010) + (-0.5 if is_electron else 0.5) + 0.5 * rng.standard_normal(), 0.5)
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    for _ in range(number):
        depth = rng.standard_gamma(1.0 + 0.5 * t_max) / 0.5
        path = _to_path(geo, depth, cosine, geo.ecal_x0, geo.hcal_x0)
        u, v = _across(rng, 0.22 * MOLIERE_RADIUS, 0.8 * MOLIERE_RADIUS, 0.85)
        n = _add(geo, spots, n, _spot(rng, mean), x + path * dx + u * ax + v * bx, y + path * dy + u * ay + v * by,
                 z + path * dz + u * az + v * bz, path)  # fmt: skip
    return n


@compiled
def _ionise(
    geo: Geometry, rng: np.random.Generator, spots: FloatArray, n: int, energy: float, stop: float,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> tuple[int, float]:  # fmt: skip
    """The number of spots, and the energy that is left after minimum-ionising deposits in every section up to the path `stop`."""
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    path = 0.5 * geo.ecal_pitch / cosine
    back = geo.ecal_thickness / cosine
    end = (geo.ecal_thickness + geo.gap + geo.hcal_thickness) / cosine
    while path < min(stop, end) and energy > 0.0:
        in_ecal = path < back
        deposit = (geo.ecal_mip if in_ecal else geo.hcal_mip) / cosine * (0.75 + 0.25 * rng.standard_exponential())
        deposit = min(deposit, energy)
        n = _add(geo, spots, n, deposit, x + path * dx, y + path * dy, z + path * dz, path)
        energy -= deposit
        path += (geo.ecal_pitch if in_ecal else geo.hcal_pitch) / cosine
        if in_ecal and path >= back:
            path = (geo.ecal_thickness + geo.gap + 0.5 * geo.hcal_pitch) / cosine
    return n, energy


@compiled
def _part(
    geo: Geometry, rng: np.random.Generator, spots: FloatArray, n: int, energy: float, kind: int, stretch: float, path: float,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> int:  # fmt: skip
    """One part of a hadron shower from the interaction point (x, y, z): 0 electromagnetic, 1 hadronic, 2 neutrons.

    `stretch`: how much longer than the average the hadronic parts of this shower are.
    """
    number = rng.poisson(energy / HADRON_SPOT)
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    r = np.hypot(x, y)
    depth = abs(z) - geo.z if abs(z) > geo.z else r - geo.radius
    in_ecal = depth < geo.ecal_thickness
    mm_per_x0 = geo.ecal_thickness / geo.ecal_x0 if in_ecal else geo.hcal_thickness / geo.hcal_x0
    mm_per_lambda = geo.ecal_thickness / geo.ecal_lambda if in_ecal else geo.hcal_thickness / geo.hcal_lambda
    t_max = max(np.log(energy / 0.010) + 0.5, 0.5)
    start = rng.standard_exponential() * 0.5 * stretch * mm_per_lambda if kind == 1 else 0.0
    ionising = min(start / 50.0 * 0.03, 0.4 * energy) / max(energy, 1e-9) if kind == 1 else 0.0
    for _ in range(number):
        if kind == 0:
            along = rng.standard_gamma(1.0 + 0.5 * t_max) / 0.5 * mm_per_x0
            u, v = _across(rng, 0.3 * MOLIERE_RADIUS, MOLIERE_RADIUS, 0.8)
        elif kind == 1 and rng.random() < ionising:
            along = rng.random() * start
            a, b, square = _in_disc(rng)
            u, v = 2.0 * a / np.sqrt(square), 2.0 * b / np.sqrt(square)
        elif kind == 1:
            along = start + rng.standard_gamma(1.2) * 0.45 * stretch * mm_per_lambda
            u, v = _across(rng, 15.0, 50.0, 0.5)
        else:
            along = 250.0 * (rng.standard_exponential() - 0.4)
            a, b, square = _in_disc(rng)
            factor = 70.0 * (rng.standard_exponential() + rng.standard_exponential()) / np.sqrt(square)
            u, v = factor * a, factor * b
        n = _add(geo, spots, n, _spot(rng, HADRON_SPOT), x + along * dx + u * ax + v * bx, y + along * dy + u * ay + v * by,
                 z + along * dz + u * az + v * bz, path + max(along, 0.0))  # fmt: skip
    return n


@compiled
def _hadronic(
    geo: Geometry, rng: np.random.Generator, spots: FloatArray, n: int, energy: float, is_charged: bool,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> int:  # fmt: skip
    """A hadron: ionisation up to the first interaction, then parts that share what is left."""
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    # Slow hadrons stop by ionisation before they interact: the free path shrinks with the range.
    free = rng.standard_exponential() * min(1.0, 0.2 + energy / 1.5)
    path = _to_path(geo, free, cosine, geo.ecal_lambda, geo.hcal_lambda)
    if is_charged:
        n, energy = _ionise(geo, rng, spots, n, energy, path, x, y, z, dx, dy, dz)
    if energy < 0.02 or path > (geo.ecal_thickness + geo.gap + geo.hcal_thickness) / cosine:
        return n
    stretch = 1.0 + STRETCH * np.log1p(energy / 3.0)
    smear = max(geo.hcal_stochastic**2 - HADRON_SPOT * SPOT_VARIANCE, 0.0)
    sigma = np.sqrt(smear / max(energy, 0.2) + geo.hcal_constant**2)
    energy *= min(max(1.0 + sigma * rng.standard_normal(), 0.1), 1.9)
    px, py, pz = x + path * dx, y + path * dy, z + path * dz
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    number = 1 + rng.poisson(0.8 * np.log1p(energy))
    weights = np.empty(number)
    for k in range(number):
        weights[k] = 0.1 + rng.standard_exponential()
    weights *= (1.0 - NEUTRON_SHARE) * energy / weights.sum()
    n = _part(geo, rng, spots, n, NEUTRON_SHARE * energy, 2, stretch, path, px, py, pz, dx, dy, dz)
    for k in range(number):
        tilt = min(0.35 * rng.standard_exponential() / weights[k], 1.0)
        a, b, square = _in_disc(rng)
        u, v = tilt * a / np.sqrt(square), tilt * b / np.sqrt(square)
        tx, ty, tz = dx + u * ax + v * bx, dy + u * ay + v * by, dz + u * az + v * bz
        norm = np.sqrt(tx * tx + ty * ty + tz * tz)
        kind = 0 if rng.random() < ELECTROMAGNETIC_SHARE else 1
        n = _part(geo, rng, spots, n, weights[k], kind, stretch, path, px, py, pz, tx / norm, ty / norm, tz / norm)
    return n


@compiled
def _most_spots(geo: Geometry, energy: float) -> int:
    """A number of spots that a shower of this energy does not exceed: energies fluctuate by less than a factor of 2, counts by 8 sigma."""
    mean = 2.0 * energy / min(geo.ecal_stochastic**2 / SPOT_VARIANCE, HADRON_SPOT)
    return int(mean + 8.0 * np.sqrt(mean)) + SPOTS_BESIDES


@compiled
def shower_deposits(
    geo: Geometry, rng: np.random.Generator, kind: IntArray, event: IntArray, energy: FloatArray, time: FloatArray,
    position: FloatArray, direction: FloatArray,
) -> Deposits:  # fmt: skip
    """The hits of all incident particles, ordered by event; a part's shower is the index into the inputs.

    `energy` (n,) GeV, `time` (n,) ns at the face, `position` and `direction` (n, 3); ordered by `event`.
    """
    deposits = empty_deposits(1 << 16)
    spots = np.empty((4096, 3))
    for i in range(len(kind)):
        most = _most_spots(geo, energy[i])
        if most > len(spots):
            spots = np.empty((2 * most, 3))
        deposits = with_room(deposits, most)
        x, y, z = position[i]
        dx, dy, dz = direction[i]
        if kind[i] <= ELECTRON:
            n = _electromagnetic(geo, rng, spots, 0, energy[i], kind[i] == ELECTRON, x, y, z, dx, dy, dz)
        elif kind[i] == MUON:
            n, left = _ionise(geo, rng, spots, 0, energy[i], 1e9, x, y, z, dx, dy, dz)
            n = chamber_hits(geo, rng, spots, n, left, x, y, z, dx, dy, dz)
        else:
            n = _hadronic(geo, rng, spots, 0, energy[i], kind[i] == CHARGED_HADRON, x, y, z, dx, dy, dz)
        add_shower(deposits, spots, n, event[i], i, time[i])
    return deposits
