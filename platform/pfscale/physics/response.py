"""Response of a reconstruction: median, spread, and their uncertainties, in total and in bins of the true value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pfscale.physics.bootstrap import Estimate, EventBootstrap, estimate, quantiles
from pfscale.physics.kinematics import Floats

PT_BINS = (10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0)  # GeV; physics-spec 4
ETA_BINS = (-2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
IQR_PER_SIGMA = 1.3489795003921634  # p75 - p25 of a Gaussian of unit width
_QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class ResponseSummary:
    """Median and IQR = p75 - p25 of a distribution (of a response, or of a residual in GeV) with bootstrap errors over events.

    `iqr_over_median` is NaN where the median is not positive. `count` is the number of values.
    """

    median: Estimate
    iqr: Estimate
    iqr_over_median: Estimate
    count: int

    @property
    def resolution(self) -> Estimate:
        """The IQR as the width of a Gaussian: IQR / 1.349."""
        return self.iqr.scaled(1 / IQR_PER_SIGMA)


@dataclass(frozen=True)
class BinnedResponse:
    """One `ResponseSummary` per bin [edges[i], edges[i + 1]) of `variable`, whose unit is `unit`."""

    variable: str
    unit: str
    edges: tuple[float, ...]
    bins: tuple[ResponseSummary, ...]


def summarise(values: ArrayLike, event: ArrayLike, bootstrap: EventBootstrap) -> ResponseSummary:
    """Median and IQR of `values`, whose events are `event`; NaN without values, NaN errors if all are of one event."""
    values_N = np.asarray(values, np.float64)
    (p25, median, p75), replicas = quantiles(values_N, event, _QUARTILES, bootstrap)
    if len(np.unique(event)) < 2:  # nothing to resample: every replica is the same, which is not an error of zero
        replicas = np.full_like(replicas, np.nan)
    iqr_B = replicas[:, 2] - replicas[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_B = iqr_B / np.where(replicas[:, 1] > 0, replicas[:, 1], np.nan)
    relative = (p75 - p25) / median if median > 0 else math.nan
    return ResponseSummary(
        median=estimate(median, replicas[:, 1]),
        iqr=estimate(p75 - p25, iqr_B),
        iqr_over_median=estimate(relative, relative_B),
        count=len(values_N),
    )


def summarise_in_bins(
    values: ArrayLike,
    event: ArrayLike,
    binned_by: ArrayLike,
    bootstrap: EventBootstrap,
    *,
    edges: Sequence[float],
    variable: str,
    unit: str,
) -> BinnedResponse:
    """`summarise` in each bin of `binned_by`; values outside all bins are left out."""
    values_N, event_N = np.asarray(values, np.float64), np.asarray(event, np.int64)
    which = np.digitize(np.asarray(binned_by, np.float64), edges) - 1
    bins = [summarise(values_N[which == i], event_N[which == i], bootstrap) for i in range(len(edges) - 1)]
    return BinnedResponse(variable, unit, tuple(edges), tuple(bins))


def response(reco: ArrayLike, gen: ArrayLike) -> Floats:
    """reco / gen, NaN where gen is not positive."""
    reco_N, gen_N = np.asarray(reco, np.float64), np.asarray(gen, np.float64)
    return np.divide(reco_N, gen_N, out=np.full(np.broadcast(reco_N, gen_N).shape, np.nan), where=gen_N > 0)
