"""Uncertainties by resampling events: jets, candidates and elements of one event stay together, so that their correlation is kept.

The replicas are drawn once per evaluation and shared by all its numbers (and by all reconstructions of the same events), so differences
between two reconstructions can be resampled too. Everything is vectorised over replicas. B. Efron, Ann. Statist. 7 (1979) 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from pfscale.physics.kinematics import Floats

NUM_REPLICAS = 200
_MAX_ENTRIES = 4_000_000  # of one replica-by-value block: 32 MB of counts


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty (one standard deviation over bootstrap replicas); NaN where there is nothing to measure.

    `replicas`: the number in every replica, shape (num_replicas,), where it was resampled: the difference of two numbers of the same events
    then has an error of its own.
    """

    value: float
    error: float
    replicas: Floats | None = field(default=None, compare=False, repr=False)

    def scaled(self, factor: float) -> Estimate:
        """The number in another unit."""
        return Estimate(self.value * factor, self.error * abs(factor), None if self.replicas is None else self.replicas * factor)

    def __str__(self) -> str:
        """`value ± error` with two digits of the error (five decimals at most), `-` for NaN."""
        if not math.isfinite(self.value):
            return "-"
        if not math.isfinite(self.error):
            return f"{self.value:.3f}"
        decimals = min(5, max(0, 1 - math.floor(math.log10(self.error)))) if self.error > 0 else 3
        return f"{self.value:.{decimals}f} ± {self.error:.{decimals}f}"


@dataclass(frozen=True)
class EventBootstrap:
    """How often each event occurs in each replica: `counts` uint8, shape (num_replicas, num_events)."""

    counts: NDArray[np.uint8]

    @property
    def num_events(self) -> int:
        return self.counts.shape[1]


def event_bootstrap(num_events: int, *, seed: int, num_replicas: int = NUM_REPLICAS) -> EventBootstrap:
    """Replicas of `num_events` events drawn with replacement."""
    rng = np.random.default_rng(seed)
    counts = np.empty((num_replicas, num_events), np.uint8)
    for row in counts:  # one replica at a time: the draws of all together would be num_replicas * num_events * 8 bytes
        row[:] = np.bincount(rng.integers(0, num_events, num_events), minlength=num_events) if num_events else 0
    return EventBootstrap(counts)


def quantiles(values: ArrayLike, event: ArrayLike, probabilities: Sequence[float], bootstrap: EventBootstrap) -> tuple[Floats, Floats]:
    """The quantiles of `values`, shape (num_probabilities,), and of every replica, shape (num_replicas, num_probabilities).

    Linear between order statistics, as numpy. NaN where there are no values. `event` is the event of each value.
    """
    p = np.asarray(probabilities, np.float64)
    values_N = np.asarray(values, np.float64)
    replicas = np.full((len(bootstrap.counts), len(p)), np.nan)
    if not len(values_N):
        return np.full(len(p), np.nan), replicas
    order = np.argsort(values_N, kind="stable")
    values_N, event_N = values_N[order], np.asarray(event, np.int64)[order]
    _replica_quantiles(values_N, event_N, bootstrap.counts, p, replicas)
    return np.quantile(values_N, p), replicas


@njit(cache=True)
def _replica_quantiles(values_N: Floats, event_N: NDArray[np.int64], counts_BE: NDArray[np.uint8], p: Floats, found_BP: Floats) -> None:
    """Writes the quantiles of sorted values, each as often as its event occurs in a replica, into `found_BP`; no sample is copied."""
    num_ranks = 2 * len(p)  # of the order statistics below and above each quantile
    ranks, at_rank = np.empty(num_ranks, np.int64), np.empty(num_ranks)
    for b in range(len(counts_BE)):
        counts_E = counts_BE[b]
        total = 0
        for i in range(len(event_N)):
            total += counts_E[event_N[i]]
        if total == 0:
            continue
        for k in range(len(p)):
            lower = math.floor(p[k] * (total - 1))
            ranks[2 * k], ranks[2 * k + 1] = lower, min(lower + 1, total - 1)
        running, num_found = 0, 0
        for i in range(len(event_N)):
            before = running
            running += counts_E[event_N[i]]
            if running == before:
                continue
            for k in range(num_ranks):
                if before <= ranks[k] < running:
                    at_rank[k] = values_N[i]
                    num_found += 1
            if num_found == num_ranks:
                break
        for k in range(len(p)):
            low, high = at_rank[2 * k], at_rank[2 * k + 1]
            found_BP[b, k] = low + (p[k] * (total - 1) - ranks[2 * k]) * (high - low)


def ratio(numerator: ArrayLike, denominator: ArrayLike, bootstrap: EventBootstrap) -> list[Estimate]:
    """sum(numerator) / sum(denominator) over events, for each of K columns; both of shape (num_events, K).

    NaN where the denominator is 0; NaN errors where only one event contributes to it.
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    sums = np.concatenate([_resampled_sums(above, bootstrap), _resampled_sums(below, bootstrap)], axis=1)
    above_BK, below_BK = np.split(sums, 2, axis=1)
    central = _divide(above.sum(axis=0), below.sum(axis=0))
    replicas_BK = _divide(above_BK, below_BK)
    replicas_BK[:, (below != 0).sum(axis=0) < 2] = np.nan  # one event resampled is always itself, which is not an error of zero
    return [estimate(value, column) for value, column in zip(central, replicas_BK.T, strict=True)]


def _resampled_sums(values_EK: Floats, bootstrap: EventBootstrap) -> Floats:
    blocks = _blocks(len(bootstrap.counts), bootstrap.num_events)
    return np.concatenate([bootstrap.counts[block].astype(np.float64) @ values_EK for block in blocks])


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def estimate(value: float, replicas: Floats) -> Estimate:
    """A value with the standard deviation of those of its replicas that exist; NaN error if they are fewer than two."""
    finite = replicas[np.isfinite(replicas)]
    error = float(np.std(finite, ddof=1)) if len(finite) > 1 and math.isfinite(value) else math.nan
    return Estimate(float(value), error, np.array(replicas))


def _blocks(num_replicas: int, num_values: int) -> Iterator[slice]:
    step = max(1, _MAX_ENTRIES // max(num_values, 1))
    return (slice(start, start + step) for start in range(0, num_replicas, step))
