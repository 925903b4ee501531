"""Reconstructed tracks: acceptance, efficiency, and five helix parameters drawn from a full covariance.

The efficiency falls at low pt, at the edge of the acceptance and for particles made far from the beam. The covariance depends on
momentum, angle and the radius of the innermost hit; its size and its correlations follow the precise tracks of the real CLD event
(D0-phi and Z0-tanLambda about -0.88). Parameters are drawn from the covariance at their true values; the one that is kept is that of the
measured values for a hadron, as a fit would give it: it must not tell the truth, nor what is an electron. So pulls are 1 but for the
curvature of electrons, whose momenta are worse than their errors say and too low where they have radiated. States at the first hit and
at the calorimeter are on the measured helix, of every track: where a particle went, or whether it got there, they do not tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from particle.pdgid import literals as pid

from pfscale.simulation.compiled import compiled
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray, Particles
from pfscale.simulation.helix import CURVATURE, arc_to_radius, move, to_calorimeter
from pfscale.simulation.material import Flight

MIN_HITS = 4
MIN_PT = 0.1  # GeV, of the Delphes card
MAX_START = 1500.0  # mm from the origin: farther out too few layers are left in both detectors
MIN_FLIGHT = 30.0  # mm that a particle must fly before it decays
# sigma(phi) = PHI_ASYMPTOTIC (+) PHI_SCATTERING / (p sqrt(sin theta)), growing with the innermost hit's radius as sqrt(1 + r / PHI_RADIUS):
# from the errors of the precise tracks of the real CLD event
PHI_ASYMPTOTIC, PHI_SCATTERING, PHI_RADIUS = 2e-5, 1.05e-3, 200.0  # rad, rad GeV, mm
VERTEX_MARGIN = 1.8  # a first hit beyond this times the last vertex layer's radius is none of the vertex detector's, ...
STRIP_FACTOR = 1.8  # ... whose Z0 is worse than its D0 by this: strips of 7 x 90 um
WRONG_HITS = 0.1  # part of the tracks that have one hit of another particle
# Correlations of (D0, phi, omega, Z0, tanLambda)
CORRELATION = np.array(
    [
        [1.0, -0.88, -0.03, 0.0, 0.0],
        [-0.88, 1.0, 0.03, 0.0, 0.0],
        [-0.03, 0.03, 1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, -0.88],
        [0.0, 0.0, 0.0, -0.88, 1.0],
    ]
)
LOWER_TRIANGLE = np.tril_indices(5)
BETHE_SCALE = 3.9e-4  # GeV/mm, the minimum of the energy loss in silicon


@dataclass(frozen=True)
class Tracks:
    """Tracks of several events, ordered by event, in descending measured pt. Shapes: (T,), or as said. Units: mm, rad, GeV, ns."""

    event: IntArray
    particle: IntArray
    parameters: FloatArray  # (T, 5): D0, phi, omega, Z0, tanLambda at the origin
    true_parameters: FloatArray  # same
    covariance: FloatArray  # (T, 15): lower triangle by row
    first_hit: FloatArray  # (T, 3), on the measured helix
    first_phi: FloatArray  # change of phi up to the first hit
    calorimeter: FloatArray  # (T, 3), on the measured helix; NaN where that does not get there
    calorimeter_phi: FloatArray  # same, up to the calorimeter
    num_hits: IntArray
    chi2: FloatArray
    ndf: IntArray
    dedx: FloatArray  # GeV/mm; 0 with error 0: not measured
    dedx_error: FloatArray
    confused_with: IntArray  # another particle that owns one of the hits, or -1

    def __len__(self) -> int:
        return len(self.event)


def reconstruct_tracks(particles: Particles, flight: Flight, detector: DetectorModel, rng: np.random.Generator) -> Tracks:
    """The tracks of all charged particles that the tracker sees."""
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    eta = np.arcsinh(particles.momentum[:, 2] / np.maximum(pt, 1e-9))
    decays_in_flight = (particles.status == 2) | flight.is_destroyed
    candidates = np.flatnonzero(
        (particles.charge != 0)
        & (pt > MIN_PT)
        & (np.abs(eta) < detector.track_eta_max)
        & (np.linalg.norm(particles.vertex, axis=1) < MAX_START)
    )
    length = np.linalg.norm(particles.endpoint - particles.vertex, axis=1)
    candidates = candidates[~decays_in_flight[candidates] | (length[candidates] > MIN_FLIGHT)]
    true, arcs_to_origin = _at_origin(particles, candidates, detector.b_field)
    layers = np.array(detector.barrel_layers)
    disks = np.array(detector.disks)
    stop = np.where(decays_in_flight, length * pt / np.maximum(np.linalg.norm(particles.momentum, axis=1), 1e-9), 1e30)[candidates]
    num_hits, first_hit, first_arc = _hits(
        particles.vertex[candidates], true[:, 1] - true[:, 2] * arcs_to_origin, true[:, 2], true[:, 4], layers, disks, stop
    )
    found = (num_hits >= MIN_HITS) & (rng.random(len(candidates)) < _efficiency(particles, candidates, pt, eta, detector))
    keep = np.flatnonzero(found)
    radius = np.hypot(first_hit[:, 0], first_hit[:, 1])
    is_electron = np.abs(particles.pdg[candidates[keep]]) == int(pid.e_minus)
    measured = _measured(_as_seen(true[keep], flight, candidates[keep], detector), radius[keep], is_electron, detector, rng)
    # In the order of the particles, neighbours would be siblings and the first tracks those of the hard process.
    by_pt = np.lexsort((np.abs(measured[:, 2]), particles.event[candidates[keep]]))
    keep, measured = keep[by_pt], measured[by_pt]
    index = candidates[keep]
    true, num_hits = true[keep], num_hits[keep]
    sigma = _resolutions(measured, radius[keep], np.zeros(len(keep), dtype=bool), detector)
    covariance = sigma[:, :, None] * sigma[:, None, :] * CORRELATION
    ndf = 2 * num_hits - 5
    dedx = _dedx(particles, index, detector.dedx_resolution, rng)
    at_first, first_phi = _after(measured, first_arc[keep] + arcs_to_origin[keep])
    position, phi_change = _at_calorimeter(measured, detector)
    return Tracks(
        event=particles.event[index],
        particle=index,
        parameters=measured,
        true_parameters=true,
        covariance=covariance[:, LOWER_TRIANGLE[0], LOWER_TRIANGLE[1]],
        first_hit=at_first,
        first_phi=first_phi,
        calorimeter=position,
        calorimeter_phi=phi_change,
        num_hits=num_hits,
        chi2=rng.chisquare(np.maximum(ndf, 1)),
        ndf=ndf,
        dedx=dedx,
        dedx_error=dedx * (detector.dedx_resolution or 0.0),
        confused_with=_confusion(particles.event[index], index, rng),
    )


def _efficiency(particles: Particles, index: IntArray, pt: FloatArray, eta: FloatArray, detector: DetectorModel) -> FloatArray:
    """Chance (n,) that the track of a charged particle with enough hits is found."""
    low_pt = 1.0 - np.exp(-((pt[index] / detector.track_pt_turn_on) ** 2))
    edge = 1.0 - np.exp(-(detector.track_eta_max - np.abs(eta[index])) / detector.track_eta_edge)
    made_at = np.hypot(particles.vertex[index, 0], particles.vertex[index, 1])
    displaced = 1.0 / (1.0 + (made_at / detector.track_displacement) ** 2)
    return detector.track_efficiency * low_pt * edge * displaced


def _as_seen(true: FloatArray, flight: Flight, index: IntArray, detector: DetectorModel) -> FloatArray:
    """The helix parameters (n, 5) with the curvature that the tracker sees of particles that have radiated on their way through it.

    It lies between that before and that after, by the radius where they did: a photon from the first layer is missing in the whole track.
    """
    radius = np.hypot(flight.vertex[index, 0], flight.vertex[index, 1])
    before = np.clip(radius / detector.ecal_radius, 0.0, 1.0)
    seen = true.copy()
    seen[:, 2] /= 1.0 - flight.radiated[index] * (1.0 - before)
    return seen


def _at_origin(particles: Particles, index: IntArray, b_field: float) -> tuple[FloatArray, FloatArray]:
    """Helix parameters (n, 5) at the point closest to the origin, and the transverse path (n,) from there to the vertex."""
    x, y, z = particles.vertex[index].T
    px, py, pz = particles.momentum[index].T
    pt = np.hypot(px, py)
    phi = np.arctan2(py, px)
    omega = particles.charge[index] * CURVATURE * b_field / pt
    cx, cy = x + np.sin(phi) / omega, y - np.cos(phi) / omega
    sign = np.sign(omega)
    phi0 = np.arctan2(sign * cx, -sign * cy)
    d0 = 1.0 / omega - sign * np.hypot(cx, cy)
    turn = (phi0 - phi + np.pi) % (2 * np.pi) - np.pi
    path = turn / omega
    tan_lambda = pz / pt
    return np.stack([d0, phi0, omega, z - path * tan_lambda, tan_lambda], axis=1), path


@compiled
def _hits(
    vertex: FloatArray, phi: FloatArray, omega: FloatArray, tan_lambda: FloatArray, layers: FloatArray, disks: FloatArray, stop: FloatArray
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Number of hits (n,), position of the innermost (n, 3) and its transverse path from the vertex (n,)."""
    num = len(phi)
    counts, first, arcs = np.zeros(num, dtype=np.int64), np.zeros((num, 3)), np.zeros(num)
    for i in range(num):
        x, y, z = vertex[i]
        best = 1e30
        half_turn = np.pi / max(abs(omega[i]), 1e-9)
        for k in range(len(layers)):
            if layers[k, 0] <= np.hypot(x, y):
                continue
            arc = arc_to_radius(x, y, phi[i], omega[i], layers[k, 0])
            if arc < 0 or arc > min(half_turn, stop[i]) or abs(z + arc * tan_lambda[i]) > layers[k, 1]:
                continue
            counts[i] += 1
            best = min(best, arc)
        for k in range(len(disks)):
            if abs(tan_lambda[i]) < 1e-6:
                break
            arc = (np.sign(tan_lambda[i]) * disks[k, 0] - z) / tan_lambda[i]
            if arc < 0 or arc > min(half_turn, stop[i]):
                continue
            hx, hy, _, _ = move(x, y, z, phi[i], omega[i], tan_lambda[i], arc)
            r = np.hypot(hx, hy)
            if disks[k, 1] <= r <= disks[k, 2]:
                counts[i] += 1
                best = min(best, arc)
        if counts[i] > 0:
            first[i, 0], first[i, 1], first[i, 2], _ = move(x, y, z, phi[i], omega[i], tan_lambda[i], best)
            arcs[i] = best
    return counts, first, arcs


def _measured(
    true: FloatArray, radius: FloatArray, is_electron: npt.NDArray[np.bool_], detector: DetectorModel, rng: np.random.Generator
) -> FloatArray:
    """Helix parameters (n, 5) drawn around the true ones; `radius` is that of the innermost hit."""
    sigma = _resolutions(true, radius, is_electron, detector)
    measured: FloatArray = true + sigma * (rng.standard_normal((len(true), 5)) @ np.linalg.cholesky(CORRELATION).T)
    measured[:, 1] = (measured[:, 1] + np.pi) % (2 * np.pi) - np.pi
    return measured


def _resolutions(parameters: FloatArray, radius: FloatArray, is_electron: npt.NDArray[np.bool_], detector: DetectorModel) -> FloatArray:
    """Standard deviations (n, 5) of helix parameters (n, 5); `radius` is that of the innermost hit."""
    omega, tan_lambda = parameters[:, 2], parameters[:, 4]
    pt, eta = CURVATURE * detector.b_field / np.abs(omega), np.arcsinh(tan_lambda)
    bins = detector.momentum_resolution
    which = np.searchsorted([b.eta_max for b in bins[:-1]], np.abs(eta), side="right")
    slope = np.array([b.slope for b in bins])[which]
    constant = np.where(is_electron, np.array([b.electron_constant for b in bins])[which], np.array([b.constant for b in bins])[which])
    momentum = pt * np.cosh(eta)
    sin_theta = 1.0 / np.cosh(eta)
    lever = np.maximum(radius / detector.barrel_layers[0][0], 1.0)
    d0 = lever * np.hypot(detector.d0_asymptotic, detector.d0_scattering / (momentum * sin_theta**1.5))
    outside_vertex = radius > detector.barrel_layers[detector.vertex_layers - 1][0] * VERTEX_MARGIN
    phi = np.hypot(PHI_ASYMPTOTIC, PHI_SCATTERING / (momentum * np.sqrt(sin_theta))) * np.sqrt(1.0 + radius / PHI_RADIUS)
    z0 = d0 / sin_theta * np.where(outside_vertex, STRIP_FACTOR, 1.0)
    return np.stack([d0, phi, np.abs(omega) * np.hypot(slope * pt, constant), z0, phi / sin_theta], axis=1)


def _after(measured: FloatArray, length: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Helices after the transverse path `length` (n,) from the origin: position (n, 3) and change of phi (n,)."""
    d0, phi, omega, z0, tan_lambda = measured.T
    end = phi - omega * length
    x = -d0 * np.sin(phi) + (np.sin(phi) - np.sin(end)) / omega
    y = d0 * np.cos(phi) + (np.cos(end) - np.cos(phi)) / omega
    return np.stack([x, y, z0 + length * tan_lambda], axis=1), -omega * length


def _at_calorimeter(measured: FloatArray, detector: DetectorModel) -> tuple[FloatArray, FloatArray]:
    """The measured helix at the calorimeter face: position (n, 3) and change of phi (n,); NaN where it does not get there."""
    d0, phi, omega, z0, tan_lambda = measured.T
    pt = CURVATURE * detector.b_field / np.abs(omega)
    origin = np.stack([-d0 * np.sin(phi), d0 * np.cos(phi), z0], axis=1)
    momentum = pt[:, None] * np.stack([np.cos(phi), np.sin(phi), tan_lambda], axis=1)
    position, _, arc, _ = to_calorimeter(origin, momentum, np.sign(omega), detector.b_field, detector.ecal_radius, detector.ecal_z)
    reaches = arc >= 0
    return np.where(reaches[:, None], position, np.nan), np.where(reaches, -omega * arc, np.nan)


def _dedx(particles: Particles, index: IntArray, resolution: float | None, rng: np.random.Generator) -> FloatArray:
    """A Bethe-like energy loss (GeV/mm) with a relative spread of `resolution`; 0 where the detector does not measure it.

    1 / beta^2 with a relativistic rise of 8% per e-fold up to a plateau: the form of the PDG review, not its numbers.
    """
    if resolution is None:
        return np.zeros(len(index))
    beta_gamma = np.linalg.norm(particles.momentum[index], axis=1) / np.maximum(particles.mass[index], 1e-4)
    beta2 = beta_gamma**2 / (1.0 + beta_gamma**2)
    loss = BETHE_SCALE * (1.0 + 0.08 * np.log1p(np.minimum(beta_gamma, 300.0) / 3.5)) / np.maximum(beta2, 0.02)
    return loss * (1.0 + resolution * rng.standard_normal(len(index)))


def _confusion(event: IntArray, particle: IntArray, rng: np.random.Generator) -> IntArray:
    """For WRONG_HITS of the tracks, the particle of the neighbouring track in the same event that owns one of its hits; else -1."""
    other = np.roll(particle, 1)
    same_event = np.roll(event, 1) == event
    return np.where((rng.random(len(particle)) < WRONG_HITS) & same_event & (other != particle), other, -1)
