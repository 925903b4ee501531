"""Reconstructed tracks: acceptance, efficiency, and five helix parameters drawn from a full covariance.

The efficiency falls at low pt, at the edge of the acceptance and for particles made far from the beam; close neighbours spoil tracks
(confusion.py). The covariance depends on momentum, angle, the radius of the innermost hit and the lever arm between the first and the
last one; its size and its correlations follow the precise tracks of the real CLD event (D0-phi and Z0-tanLambda about -0.88). Parameters
are drawn from the covariance at their true values; the one that is kept is that of the measured values for a hadron, as a fit would give
it: it must not tell the truth, nor what is an electron. So pulls are 1 but for tracks with a wrong hit, and for the curvature of
electrons, whose momenta are worse than their errors say and too low where they have radiated. States at the first hit and at the
calorimeter are on the measured helix, of every track: where a particle went, or whether it got there, they do not tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from particle.pdgid import literals as pid

from pfscale.simulation.confusion import WRONG_CHI2, break_radius, confuse
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray, Particles
from pfscale.simulation.helix import CURVATURE, to_calorimeter
from pfscale.simulation.secondaries import Flight
from pfscale.simulation.tracker_hits import lever_arm, tracker_hits

MIN_HITS = 4
MIN_PT = 0.1  # GeV, of the Delphes card
MAX_START = 1500.0  # mm from the origin: farther out too few layers are left in both detectors
MIN_FLIGHT = 30.0  # mm that a particle must fly before it decays
# sigma(phi) = PHI_ASYMPTOTIC (+) PHI_SCATTERING / (p sqrt(sin theta)), growing with the innermost hit's radius as sqrt(1 + r / PHI_RADIUS):
# from the errors of the precise tracks of the real CLD event
PHI_ASYMPTOTIC, PHI_SCATTERING, PHI_RADIUS = 2e-5, 1.05e-3, 200.0  # rad, rad GeV, mm
VERTEX_MARGIN = 1.8  # a first hit beyond this times the last vertex layer's radius is none of the vertex detector's, ...
STRIP_FACTOR = 1.8  # ... whose Z0 is worse than its D0 by this: strips of 7 x 90 um
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
    seen = _seen(particles, flight, detector, rng)
    spoilt = np.where(seen.neighbour >= 0, 1.0 + WRONG_CHI2 * rng.exponential(size=len(seen.particle)), 1.0)
    measured = _measured(particles, flight, seen, spoilt, detector, rng)
    # In the order of the particles, neighbours would be siblings and the first tracks those of the hard process.
    by_pt = np.lexsort((np.abs(measured[:, 2]), particles.event[seen.particle]))
    seen, measured, spoilt = seen.ordered(by_pt), measured[by_pt], spoilt[by_pt]
    sigma = _errors(measured, seen, detector)
    covariance = sigma[:, :, None] * sigma[:, None, :] * CORRELATION
    ndf = 2 * seen.num_hits - 5
    dedx = _dedx(particles, seen.particle, detector.dedx_resolution, rng)
    first_hit, first_phi = _after(measured, seen.first_arc)
    position, phi_change = _at_calorimeter(measured, detector)
    return Tracks(
        event=particles.event[seen.particle],
        particle=seen.particle,
        parameters=measured,
        true_parameters=seen.parameters,
        covariance=covariance[:, LOWER_TRIANGLE[0], LOWER_TRIANGLE[1]],
        first_hit=first_hit,
        first_phi=first_phi,
        calorimeter=position,
        calorimeter_phi=phi_change,
        num_hits=seen.num_hits,
        chi2=spoilt * rng.chisquare(ndf),
        ndf=ndf,
        dedx=dedx,
        dedx_error=dedx * (detector.dedx_resolution or 0.0),
        confused_with=seen.neighbour,
    )


class _Seen(NamedTuple):
    """What the tracker sees of tracks to be, (n,) or (n, 5)."""

    particle: IntArray
    neighbour: IntArray  # see Tracks.confused_with
    parameters: FloatArray  # true ones at the origin
    num_hits: IntArray
    radius: FloatArray  # of the innermost hit
    first_arc: FloatArray  # transverse path from the origin to there
    lever: FloatArray  # see lever_arm

    def ordered(self, order: IntArray) -> _Seen:
        """The same tracks in another order."""
        columns: Any = (column[order] for column in self)
        return _Seen(*columns)


def _seen(particles: Particles, flight: Flight, detector: DetectorModel, rng: np.random.Generator) -> _Seen:
    """The tracks with enough hits that are found."""
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    eta = np.arcsinh(particles.momentum[:, 2] / np.maximum(pt, 1e-9))
    length = np.linalg.norm(particles.endpoint - particles.vertex, axis=1)
    ends = (particles.status == 2) | flight.is_destroyed
    candidates = np.flatnonzero(
        (particles.charge != 0)
        & (pt > MIN_PT)
        & (np.abs(eta) < detector.track_eta_max)
        & (np.linalg.norm(particles.vertex, axis=1) < MAX_START)
        & (~ends | (length > MIN_FLIGHT))
    )
    straight = length * pt / np.maximum(np.linalg.norm(particles.momentum, axis=1), 1e-9)
    stop = np.where(particles.status == 2, straight, flight.end)[candidates]
    confusion = confuse(particles, candidates, detector, rng)
    is_found = rng.random(len(candidates)) < _efficiency(particles, candidates, pt, eta, detector)
    piece, start, stop = _pieces(confusion.is_broken, stop, break_radius(detector))
    found = is_found[piece]
    piece, start, stop = piece[found], start[found], stop[found]
    index = candidates[piece]
    true, to_vertex = _at_origin(particles, index, detector.b_field)
    num_hits, first_hit, first_arc, last_arc = tracker_hits(
        particles.vertex[index], true[:, 1] - true[:, 2] * to_vertex, true[:, 2], true[:, 4], detector, start, stop
    )
    keep = np.flatnonzero(num_hits >= MIN_HITS)
    return _Seen(
        particle=index[keep],
        neighbour=np.where(start > 0, -1, confusion.neighbour[piece])[keep],  # the outer part of a broken track has its own hits
        parameters=true[keep],
        num_hits=num_hits[keep],
        radius=np.hypot(first_hit[:, 0], first_hit[:, 1])[keep],
        first_arc=(first_arc + to_vertex)[keep],
        lever=lever_arm(last_arc - first_arc, true[:, 4], detector)[keep],
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


def _pieces(is_broken: npt.NDArray[np.bool_], stop: FloatArray, radius: float) -> tuple[IntArray, FloatArray, FloatArray]:
    """(particle, start, stop) of each track of particles that end at `stop` (n,), all as transverse paths from where they are made."""
    broken = np.flatnonzero(is_broken)
    row = np.concatenate([np.arange(len(stop)), broken])
    start = np.concatenate([np.zeros(len(stop)), np.full(len(broken), radius)])
    return row, start, np.concatenate([np.where(is_broken, np.minimum(stop, radius), stop), stop[broken]])


def _measured(
    particles: Particles, flight: Flight, seen: _Seen, spoilt: FloatArray, detector: DetectorModel, rng: np.random.Generator
) -> FloatArray:
    """Helix parameters (n, 5) drawn around the true ones.

    A wrong hit, which raises chi2 by the factor `spoilt` (n,), moves them by its root, and the curvature away from a straight line.
    """
    middle = _as_seen(seen.parameters, flight, seen.particle, detector)
    is_electron = np.abs(particles.pdg[seen.particle]) == int(pid.e_minus)
    sigma = _resolutions(middle, seen.radius, seen.lever, is_electron, detector) * np.sqrt(spoilt)[:, None]
    shift = sigma * (rng.standard_normal((len(middle), 5)) @ np.linalg.cholesky(CORRELATION).T)
    shift[:, 2] = np.where(spoilt > 1.0, np.abs(shift[:, 2]) * np.sign(middle[:, 2]), shift[:, 2])
    measured: FloatArray = middle + shift
    measured[:, 1] = (measured[:, 1] + np.pi) % (2 * np.pi) - np.pi
    return measured


def _errors(measured: FloatArray, seen: _Seen, detector: DetectorModel) -> FloatArray:
    """Standard deviations (n, 5) as a fit to a hadron's hits gives them: those of the curvature that is to be expected, given the measured.

    Its mean square is that of the measured value plus its variance. A short track that happens to look straight is not known to have the
    momentum that it seems to have, and so not to scatter as little.
    """
    is_electron = np.zeros(len(measured), dtype=bool)
    omega_error = _resolutions(measured, seen.radius, seen.lever, is_electron, detector)[:, 2]
    expected = measured.copy()
    expected[:, 2] = np.hypot(measured[:, 2], omega_error)
    return _resolutions(expected, seen.radius, seen.lever, is_electron, detector)


def _resolutions(
    parameters: FloatArray, radius: FloatArray, lever: FloatArray, is_electron: npt.NDArray[np.bool_], detector: DetectorModel
) -> FloatArray:
    """Standard deviations (n, 5) of helix parameters (n, 5); `radius` is that of the innermost hit, `lever` as in `lever_arm`.

    The curvature's error grows with the inverse square of the lever arm where points limit it, with the inverse where scattering does.
    """
    omega, tan_lambda = parameters[:, 2], parameters[:, 4]
    pt, eta = CURVATURE * detector.b_field / np.abs(omega), np.arcsinh(tan_lambda)
    bins = detector.momentum_resolution
    which = np.searchsorted([b.eta_max for b in bins[:-1]], np.abs(eta), side="right")
    slope = np.array([b.slope for b in bins])[which]
    constant = np.where(is_electron, np.array([b.electron_constant for b in bins])[which], np.array([b.constant for b in bins])[which])
    momentum = pt * np.cosh(eta)
    sin_theta = 1.0 / np.cosh(eta)
    far = np.maximum(radius / detector.barrel_layers[0][0], 1.0)
    d0 = far * np.hypot(detector.d0_asymptotic, detector.d0_scattering / (momentum * sin_theta**1.5))
    outside_vertex = radius > detector.barrel_layers[detector.vertex_layers - 1][0] * VERTEX_MARGIN
    phi = np.hypot(PHI_ASYMPTOTIC, PHI_SCATTERING / (momentum * np.sqrt(sin_theta))) * np.sqrt(1.0 + radius / PHI_RADIUS)
    z0 = d0 / sin_theta * np.where(outside_vertex, STRIP_FACTOR, 1.0)
    return np.stack([d0, phi, np.abs(omega) * np.hypot(slope * pt / lever**2, constant / lever), z0, phi / sin_theta], axis=1)


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
