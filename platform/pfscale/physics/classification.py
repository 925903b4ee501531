"""How well two classes are told apart: AUC, and background rejection at given signal efficiencies, with errors from resampled events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfscale.physics.bootstrap import Estimate, EventBootstrap, estimate
from pfscale.physics.kinematics import Floats

EFFICIENCIES = (0.5, 0.7, 0.8, 0.9)


def auc(score: ArrayLike, is_signal: ArrayLike, event: ArrayLike, bootstrap: EventBootstrap) -> Estimate:
    """The probability that a signal has a larger score than a background, ties counted half; NaN without one of them.

    Args:
        event: of each row.
    """
    sorted_score, signal_N, event_N = _sorted(score, is_signal, event)
    if not 0 < signal_N.sum() < len(signal_N):
        return Estimate(np.nan, np.nan)
    # of equal scores all count as one step
    last = np.flatnonzero(np.append(np.diff(sorted_score) != 0, True))

    def area(weight_N: Floats) -> float:
        signal, background = np.cumsum(weight_N * signal_N)[last], np.cumsum(weight_N * ~signal_N)[last]
        if signal[-1] == 0 or background[-1] == 0:
            return np.nan
        below = background - 0.5 * np.diff(background, prepend=0.0)
        return float((np.diff(signal, prepend=0.0) * below).sum() / (signal[-1] * background[-1]))

    replicas = np.array([area(counts[event_N].astype(np.float64)) for counts in bootstrap.counts])
    return estimate(area(np.ones(len(signal_N))), replicas)


def rejections(
    score: ArrayLike, is_signal: ArrayLike, event: ArrayLike, bootstrap: EventBootstrap, efficiencies: Sequence[float] = EFFICIENCIES
) -> list[Estimate]:
    """One over the fraction of background that passes, where the given fractions of the signal do; NaN where none passes."""
    _, signal_N, event_N = _sorted(score, is_signal, event)
    if not 0 < signal_N.sum() < len(signal_N):
        return [Estimate(np.nan, np.nan) for _ in efficiencies]

    def at(weight_N: Floats) -> Floats:
        signal, background = np.cumsum((weight_N * signal_N)[::-1]), np.cumsum((weight_N * ~signal_N)[::-1])
        if signal[-1] == 0:
            return np.full(len(efficiencies), np.nan)
        place = np.minimum(np.searchsorted(signal, np.asarray(efficiencies) * signal[-1]), len(signal) - 1)
        passing = background[place]
        return np.divide(background[-1], passing, out=np.full(len(place), np.nan), where=passing > 0)

    replicas = np.array([at(counts[event_N].astype(np.float64)) for counts in bootstrap.counts])
    return [estimate(value, column) for value, column in zip(at(np.ones(len(signal_N))), replicas.T, strict=True)]


def roc(score: ArrayLike, is_signal: ArrayLike, efficiencies: ArrayLike) -> Floats:
    """The fraction of background that passes at each signal efficiency."""
    score_N, signal_N = np.asarray(score, np.float64), np.asarray(is_signal, bool)
    thresholds = np.quantile(score_N[signal_N], 1 - np.asarray(efficiencies))
    background = np.sort(score_N[~signal_N])
    passing: Floats = 1 - np.searchsorted(background, thresholds, side="left") / len(background)
    return passing


def _sorted(score: ArrayLike, is_signal: ArrayLike, event: ArrayLike) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    score_N = np.asarray(score, np.float64)
    order = np.argsort(score_N, kind="stable")
    return score_N[order], np.asarray(is_signal, bool)[order], np.asarray(event, np.int64)[order]
