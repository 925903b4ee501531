"""Calorimeter showers as energy spots in cells.

A spot is a small deposit; a shower throws a Poisson number of spots, so the stochastic term of the resolution is the number of spots
and needs no smearing of its own. Spots are not all alike: sums of equal ones would tell photons and hadrons apart by their last digits.
Electromagnetic showers follow the gamma profile (PDG review, passage of particles) with a two-component radial profile; hadrons cross as
minimum-ionising particles up to their first interaction, then split into electromagnetic, hadronic and neutron-like parts that start,
tilt and travel on their own: that is where fragments come from. What travels beyond the back of the calorimeter is lost.

Every spot has the time of a straight way to it at the speed of light, from the point where the particle entered, by the hadron's first
interaction: never earlier than light from the origin. Times are counted from that light; spots after TIME_WINDOW are dropped, energy and
all, as by the readout of the real files, where no hit is later than 10 ns (CLD's one event: 0.10 to 10.00 ns).
"""

from __future__ import annotations

import numpy as np

from pfscale.simulation.cells import Deposits, Geometry, add_shower, cell_of, empty_deposits, with_room
from pfscale.simulation.compiled import compiled
from pfscale.simulation.generator import C_LIGHT, FloatArray, IntArray
from pfscale.simulation.hadron_resolution import shower_variance
from pfscale.simulation.muons import chamber_hits

PHOTON, ELECTRON, MUON, CHARGED_HADRON, NEUTRAL_HADRON = 0, 1, 2, 3, 4
PI0, HADRONIC, NEUTRONS = 0, 1, 2  # parts of hadron showers
HADRON_SPOT = 0.05  # GeV, mean
SPOT_SPREAD = 0.5  # spots are uniform in mean * (1 +- this) ...
SPOT_VARIANCE = 1.0 + SPOT_SPREAD**2 / 3.0  # ... which raises the variance of their sum by this factor
TIME_WINDOW = 10.0  # ns
SPOTS_BESIDES = 200  # ionisation and muon chambers
LEAST_COSINE = 0.3  # of the angle of incidence, so that no path is endless
MIP_FLOOR = 0.75  # a minimum-ionising deposit is at least this part of its mean; the rest has an exponential tail, like a Landau's

# Electromagnetic showers: the gamma profile dE/dt ~ t^(b t_max) e^(-b t) of the PDG review, t_max = ln(E / E_c) +- 0.5 for photons
# and electrons, and the radial density 2 r R^2 / (r^2 + R^2)^2 of Grindhammer and Peters (hep-ex/0001020) with a core and a tail: the
# numbers leave 90% within a Moliere radius.
CRITICAL_ENERGY = 0.010  # GeV: 8 MeV of tungsten, more with silicon and gaps
PROFILE_B = 0.5
MAXIMUM_SHIFT = 0.5
MAXIMUM_SPREAD = 0.5  # radiation lengths, from shower to shower
LEAST_MAXIMUM = 0.5  # radiation lengths
MOLIERE_RADIUS = 20.0  # mm, of the sandwich with its gaps
CORE, TAIL, CORE_SHARE = 0.22, 0.8, 0.85  # Moliere radii
MAX_TAILS = 8.0  # the density is cut at this many tail radii

# Hadron showers. Only the length's growth with energy is taken from a fit; the others are chosen: what they lead to in hits per cluster,
# merged and split showers and the energies of jets is shown beside full simulation by the realism tables.
STRETCH = 0.3  # a shower of E GeV is longer by 1 + STRETCH ln(1 + E / STRETCH_ENERGY), near the fit of Bock et al., NIM 186 (1981) 533
STRETCH_ENERGY = 3.0  # GeV
RANGE_SHARE, RANGE_ENERGY = 0.2, 1.5  # slow hadrons stop before they interact: the free path is shorter by min(1, this + E / GeV)
PARTS_SLOPE = 0.8  # mean number of parts beyond the first, per ln(1 + E / GeV)
PART_FLOOR = 0.1  # of a part's share, so that none is empty
PART_TILT = 0.35  # mean sine of a part's angle, per share of the energy: soft parts go astray
NEUTRON_SHARE = 0.12
ELECTROMAGNETIC_SHARE = 0.38  # chance of a part to be a pi0
PI0_CORE, PI0_TAIL, PI0_CORE_SHARE = 0.3, 1.0, 0.8  # Moliere radii: wider than a photon's
HADRONIC_START = 0.5  # interaction lengths to where a hadronic part begins
HADRONIC_SHAPE, HADRONIC_SCALE = 1.2, 0.45  # of its gamma profile; interaction lengths
HADRONIC_CORE, HADRONIC_TAIL, HADRONIC_CORE_SHARE = 15.0, 50.0, 0.5  # mm
TRACK_LOSS, TRACK_SHARE, TRACK_WIDTH = 6e-4, 0.4, 2.0  # GeV/mm that a hadronic part ionises on its way, at most this share; mm
NEUTRON_LENGTH, NEUTRON_BACK, NEUTRON_RADIUS = 250.0, 0.4, 70.0  # mm forward, of it back, mm across: a cloud around the interaction
MAX_FLUCTUATION = 0.9  # of a shower's energy
LEAST_SHOWER = 0.02  # GeV
LEAST_SMEARED = 0.2  # GeV: below, the resolution is that of this energy


@compiled(forceinline=True)
def _add(geo: Geometry, spots: FloatArray, n: int, energy: float, x: float, y: float, z: float, path: float) -> int:
    """Writes a spot as (cell, energy, `path` less its distance from the origin, mm) behind the first `n` unless it falls outside.

    Returns how many there are then. `path`: from the particle's entry to the spot, on the way that was taken.
    """
    cell = cell_of(geo, x, y, z)
    if cell < 0:
        return n
    spots[n, 0], spots[n, 1], spots[n, 2] = cell, energy, path - np.sqrt(x * x + y * y + z * z)
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
        return max(abs(dz), LEAST_COSINE)
    return max(abs(x * dx + y * dy) / np.hypot(x, y), LEAST_COSINE)


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
    """Distances (u, v) from the axis with the density 2 r R^2 / (r^2 + R^2)^2 of r, R = core or tail, cut at MAX_TAILS."""
    scale = core if rng.random() < share else tail
    a, b, square = _in_disc(rng)
    factor = min(scale / np.sqrt(1.0 - square), MAX_TAILS * tail / np.sqrt(square))
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
    number = rng.poisson(energy * max(1.0 + geo.ecal_constant * rng.standard_normal(), 1.0 - MAX_FLUCTUATION) / mean)
    shift = -MAXIMUM_SHIFT if is_electron else MAXIMUM_SHIFT
    t_max = max(np.log(energy / CRITICAL_ENERGY) + shift + MAXIMUM_SPREAD * rng.standard_normal(), LEAST_MAXIMUM)
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    for _ in range(number):
        depth = rng.standard_gamma(1.0 + PROFILE_B * t_max) / PROFILE_B
        path = _to_path(geo, depth, cosine, geo.ecal_x0, geo.hcal_x0)
        u, v = _across(rng, CORE * MOLIERE_RADIUS, TAIL * MOLIERE_RADIUS, CORE_SHARE)
        n = _add(geo, spots, n, _spot(rng, mean), x + path * dx + u * ax + v * bx, y + path * dy + u * ay + v * by,
                 z + path * dz + u * az + v * bz, np.sqrt(path * path + u * u + v * v))  # fmt: skip
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
        deposit = (geo.ecal_mip if in_ecal else geo.hcal_mip) / cosine * (MIP_FLOOR + (1.0 - MIP_FLOOR) * rng.standard_exponential())
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
    """One part of a hadron shower from the interaction point (x, y, z), `kind` PI0, HADRONIC or NEUTRONS.

    `stretch`: how much longer than the average the hadronic parts of this shower are.
    """
    number = rng.poisson(energy / HADRON_SPOT)
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    r = np.hypot(x, y)
    depth = abs(z) - geo.z if abs(z) > geo.z else r - geo.radius
    in_ecal = depth < geo.ecal_thickness
    mm_per_x0 = geo.ecal_thickness / geo.ecal_x0 if in_ecal else geo.hcal_thickness / geo.hcal_x0
    mm_per_lambda = geo.ecal_thickness / geo.ecal_lambda if in_ecal else geo.hcal_thickness / geo.hcal_lambda
    t_max = max(np.log(energy / CRITICAL_ENERGY) + MAXIMUM_SHIFT, LEAST_MAXIMUM)
    start = rng.standard_exponential() * HADRONIC_START * stretch * mm_per_lambda if kind == HADRONIC else 0.0
    ionising = min(TRACK_LOSS * start, TRACK_SHARE * energy) / max(energy, 1e-9) if kind == HADRONIC else 0.0
    for _ in range(number):
        if kind == PI0:
            along = rng.standard_gamma(1.0 + PROFILE_B * t_max) / PROFILE_B * mm_per_x0
            u, v = _across(rng, PI0_CORE * MOLIERE_RADIUS, PI0_TAIL * MOLIERE_RADIUS, PI0_CORE_SHARE)
        elif kind == HADRONIC and rng.random() < ionising:
            along = rng.random() * start
            a, b, square = _in_disc(rng)
            u, v = TRACK_WIDTH * a / np.sqrt(square), TRACK_WIDTH * b / np.sqrt(square)
        elif kind == HADRONIC:
            along = start + rng.standard_gamma(HADRONIC_SHAPE) * HADRONIC_SCALE * stretch * mm_per_lambda
            u, v = _across(rng, HADRONIC_CORE, HADRONIC_TAIL, HADRONIC_CORE_SHARE)
        else:
            along = NEUTRON_LENGTH * (rng.standard_exponential() - NEUTRON_BACK)
            a, b, square = _in_disc(rng)
            factor = NEUTRON_RADIUS * (rng.standard_exponential() + rng.standard_exponential()) / np.sqrt(square)
            u, v = factor * a, factor * b
        n = _add(geo, spots, n, _spot(rng, HADRON_SPOT), x + along * dx + u * ax + v * bx, y + along * dy + u * ay + v * by,
                 z + along * dz + u * az + v * bz, path + np.sqrt(along * along + u * u + v * v))  # fmt: skip
    return n


@compiled
def _hadronic(
    geo: Geometry, rng: np.random.Generator, spots: FloatArray, n: int, energy: float, is_charged: bool,
    x: float, y: float, z: float, dx: float, dy: float, dz: float,
) -> int:  # fmt: skip
    """A hadron: ionisation up to the first interaction, then parts that share what is left."""
    cosine = _cosine(geo, x, y, z, dx, dy, dz)
    free = rng.standard_exponential() * min(1.0, RANGE_SHARE + energy / RANGE_ENERGY)
    path = _to_path(geo, free, cosine, geo.ecal_lambda, geo.hcal_lambda)
    if is_charged:
        n, energy = _ionise(geo, rng, spots, n, energy, path, x, y, z, dx, dy, dz)
    if energy < LEAST_SHOWER or path > (geo.ecal_thickness + geo.gap + geo.hcal_thickness) / cosine:
        return n
    stretch = 1.0 + STRETCH * np.log1p(energy / STRETCH_ENERGY)
    smeared = max(energy, LEAST_SMEARED)
    variance = shower_variance(smeared, geo.hcal_stochastic, geo.hcal_uncompensated, geo.hcal_constant)
    sigma = np.sqrt(max(variance - HADRON_SPOT * SPOT_VARIANCE * smeared, 0.0)) / smeared  # number and size of spots vary by themselves
    energy *= 1.0 + min(max(sigma * rng.standard_normal(), -MAX_FLUCTUATION), MAX_FLUCTUATION)
    px, py, pz = x + path * dx, y + path * dy, z + path * dz
    ax, ay, az, bx, by, bz = _frame(dx, dy, dz)
    number = 1 + rng.poisson(PARTS_SLOPE * np.log1p(energy))
    weights = np.empty(number)
    for k in range(number):
        weights[k] = PART_FLOOR + rng.standard_exponential()
    weights *= (1.0 - NEUTRON_SHARE) * energy / weights.sum()
    n = _part(geo, rng, spots, n, NEUTRON_SHARE * energy, NEUTRONS, stretch, path, px, py, pz, dx, dy, dz)
    for k in range(number):
        tilt = min(PART_TILT * rng.standard_exponential() / weights[k], 1.0)
        a, b, square = _in_disc(rng)
        u, v = tilt * a / np.sqrt(square), tilt * b / np.sqrt(square)
        tx, ty, tz = dx + u * ax + v * bx, dy + u * ay + v * by, dz + u * az + v * bz
        norm = np.sqrt(tx * tx + ty * ty + tz * tz)
        kind = PI0 if rng.random() < ELECTROMAGNETIC_SHARE else HADRONIC
        n = _part(geo, rng, spots, n, weights[k], kind, stretch, path, px, py, pz, tx / norm, ty / norm, tz / norm)
    return n


@compiled
def _most_spots(geo: Geometry, energy: float) -> int:
    """A number of spots that a shower of this energy does not exceed: energies fluctuate by less than a factor of 2, counts by 8 sigma."""
    mean = 2.0 * energy / min(geo.ecal_stochastic**2 / SPOT_VARIANCE, HADRON_SPOT)
    return int(mean + 8.0 * np.sqrt(mean)) + SPOTS_BESIDES


@compiled
def _in_window(spots: FloatArray, num_spots: int, start: float) -> int:
    """How many spots of a shower that begins at `start` (ns) come within TIME_WINDOW; these are moved to the front."""
    latest = (TIME_WINDOW - start) * C_LIGHT
    kept = 0
    for n in range(num_spots):
        if spots[n, 2] <= latest:
            if kept < n:
                spots[kept, 0], spots[kept, 1], spots[kept, 2] = spots[n, 0], spots[n, 1], spots[n, 2]
            kept += 1
    return kept


@compiled
def shower_deposits(
    geo: Geometry, rng: np.random.Generator, kind: IntArray, event: IntArray, energy: FloatArray, time: FloatArray,
    position: FloatArray, direction: FloatArray,
) -> Deposits:  # fmt: skip
    """The hits of all incident particles, ordered by event; a part's shower is the index into the inputs.

    `energy` (n,) GeV, `time` (n,) ns at the face, `position` and `direction` (n, 3); ordered by `event`. Times of hits are those of their
    first spots, behind light from the origin.
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
            first = n
            n = chamber_hits(geo, rng, spots, n, left, x, y, z, dx, dy, dz)
            for k in range(first, n):  # these come with their paths
                path = spots[k, 2]
                spots[k, 2] = path - np.sqrt((x + path * dx) ** 2 + (y + path * dy) ** 2 + (z + path * dz) ** 2)
        else:
            n = _hadronic(geo, rng, spots, 0, energy[i], kind[i] == CHARGED_HADRON, x, y, z, dx, dy, dz)
        add_shower(deposits, spots, _in_window(spots, n, time[i]), event[i], i, time[i])
    return deposits
