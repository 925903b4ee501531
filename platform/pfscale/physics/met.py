"""Missing transverse momentum of candidates, and how well it follows the generator-level one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pfscale.physics.bootstrap import EventBootstrap
from pfscale.physics.kinematics import Floats, sum_per_event
from pfscale.physics.response import PT_BINS, BinnedResponse, ResponseSummary, summarise, summarise_in_bins

MIN_RESPONSE_MET = PT_BINS[0]  # GeV: below, the direction and the ratio to the true value mean nothing


@dataclass(frozen=True)
class MetMetrics:
    """Missing momentum against the generator-level one; residuals in GeV, their `resolution` is IQR / 1.349.

    `parallel`, `perpendicular`: residual (reco - gen) along and across the true direction; `response`: component along it over the true
    value. These three take the events with true missing momentum above 10 GeV, `..._vs_met` in bins of it.
    `residual`: both components pooled, of all events: the one number for how well the missing momentum is known.
    """

    residual: ResponseSummary
    parallel: ResponseSummary
    perpendicular: ResponseSummary
    response: ResponseSummary
    parallel_vs_met: BinnedResponse
    perpendicular_vs_met: BinnedResponse
    response_vs_met: BinnedResponse


def missing_momentum(event: ArrayLike, px: ArrayLike, py: ArrayLike, *, num_events: int) -> tuple[Floats, Floats]:
    """(px, py) of minus the vector sum of the candidates of each event, GeV, shape (num_events,)."""
    return -sum_per_event(event, px, num_events=num_events), -sum_per_event(event, py, num_events=num_events)


def evaluate_met(met_px: ArrayLike, met_py: ArrayLike, gen_px: ArrayLike, gen_py: ArrayLike, bootstrap: EventBootstrap) -> MetMetrics:
    """Response and resolution of a missing momentum, one entry per event, however it was estimated."""
    px, py, true_px, true_py = (np.asarray(a, np.float64) for a in (met_px, met_py, gen_px, gen_py))
    true = np.hypot(true_px, true_py)
    phi = np.arctan2(true_py, true_px)  # 0 where nothing is missing: any direction will do
    along = px * np.cos(phi) + py * np.sin(phi)
    across = py * np.cos(phi) - px * np.sin(phi)
    pooled = summarise(np.concatenate([along - true, across]), np.tile(np.arange(len(px)), 2), bootstrap)
    event = np.flatnonzero(true > MIN_RESPONSE_MET)
    true, along, across = true[event], along[event], across[event]

    def in_bins(values: Floats) -> BinnedResponse:
        return summarise_in_bins(values, event, true, bootstrap, edges=PT_BINS, variable="gen missing pt", unit="GeV")

    return MetMetrics(
        residual=pooled,
        parallel=summarise(along - true, event, bootstrap),
        perpendicular=summarise(across, event, bootstrap),
        response=summarise(along / true, event, bootstrap),
        parallel_vs_met=in_bins(along - true),
        perpendicular_vs_met=in_bins(across),
        response_vs_met=in_bins(along / true),
    )
