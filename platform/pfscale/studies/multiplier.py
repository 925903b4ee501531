"""The data multiplier: how many times fewer events one way of training needs than another, at equal metric (arXiv:2102.01293, 2503.00131).

Curves of a metric against the number of events are averaged over seeds, made monotone (pool adjacent violators), and read between their
points by a monotone cubic in ln D and the logarithm of the metric (F. N. Fritsch, R. E. Carlson, SIAM J. Numer. Anal. 17 (1980) 238). Where
one curve never reaches what is asked, there is a bound and no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float64]
NUM_REPLICAS = 1000
LEVEL = 0.95  # of the intervals
_GRID = 65  # points between two sizes at which a curve is looked at
_TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """A metric (lower is better) against the number of events.

    Attributes:
        sizes: (S,) ascending.
        values: per size, one value per seed.
        replicas: per size, (seeds, R) values in the replicas of the test events; None where there are none.
    """

    sizes: Floats
    values: tuple[Floats, ...]
    replicas: tuple[Floats, ...] | None = None

    def mean(self) -> Floats:
        """(S,) over seeds."""
        return np.array([seeds.mean() for seeds in self.values])

    def resampled(self, rng: np.random.Generator, replica: int | None) -> Floats:
        """(S,) means over seeds drawn with replacement, in one replica of the test events.

        Few seeds drawn with replacement spread too little, by sqrt((n - 1) / n): their deviations are stretched by as much.
        """
        source = self.values if self.replicas is None or replica is None else tuple(rows[:, replica] for rows in self.replicas)
        return np.array([_stretched(seeds, seeds[rng.integers(0, len(seeds), len(seeds))].mean()) for seeds in source])


@dataclass(frozen=True)
class Multiplier:
    """D(slow) / D(fast) at one value of the metric.

    Attributes:
        at: the value.
        fast, slow: events that each needs.
        value: their ratio.
        low, high: interval of the bootstrap.
        bound: what is known of `value` where a curve ends: "at least" (the fast one is below `at` with its smallest sample already, or the
            slow one never is), "at most" (the other way round), "none" (both, so nothing); empty: it is a number.
        low_bound, high_bound: the same of the interval's edges.
        resampled: what the interval is of: seeds, test events, both, or nothing.
    """

    at: float
    fast: float
    slow: float
    value: float
    low: float
    high: float
    bound: str = ""
    low_bound: str = ""
    high_bound: str = ""
    resampled: str = ""

    def __str__(self) -> str:
        """`8.9 [7.1, at least 12]`."""
        shown = (
            f"{bound + ' ' if bound else ''}{_two_digits(value)}"
            for value, bound in ((self.value, self.bound), (self.low, self.low_bound), (self.high, self.high_bound))
        )
        return "{} [{}, {}]".format(*shown)


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"


def _stretched(seeds: Floats, drawn: float) -> float:
    mean = seeds.mean()
    return float(mean + (drawn - mean) * np.sqrt(len(seeds) / max(len(seeds) - 1, 1)))


def monotone(values: Floats) -> Floats:
    """The closest sequence (least squares) that never rises."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] < mean:
            before, number = blocks.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        blocks.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in blocks])


def events_needed(sizes: Floats, values: Floats, at: float) -> float:
    """The number of events at which a falling curve reaches `at`; 0 where it is below from the start, infinity where it never does."""
    falling = monotone(values)
    if falling[0] < at or (falling[0] == falling[-1] == at and len(sizes) > 1):  # a flat curve may have begun earlier
        return 0.0
    if falling[-1] > at:
        return float("inf")
    after = int(np.argmax(falling <= at))
    if falling[after] == at:
        return float(sizes[after])
    between = np.linspace(np.log(sizes[after - 1]), np.log(sizes[after]), _GRID)
    curve = PchipInterpolator(np.log(sizes), np.log(np.maximum(falling, _TINY)))(between)
    return float(np.exp(np.interp(-np.log(at), -curve, between)))


def data_multiplier(fast: Curve, slow: Curve, *, at: float | None = None, seed: int = 1) -> Multiplier:
    """How many times fewer events `fast` needs, with an interval from the bootstrap over seeds and test events.

    Args:
        at: the value of the metric; None: the best that the slow curve reaches, or the fast one's if that is worse.
    """
    rng = np.random.default_rng(seed)
    fast_mean, slow_mean = fast.mean(), slow.mean()
    value = _ratio(fast, fast_mean, slow, slow_mean, at)
    num = min(r[0].shape[1] for r in (fast.replicas, slow.replicas)) if fast.replicas and slow.replicas else 0
    found = []
    for _ in range(NUM_REPLICAS):
        replica = int(rng.integers(0, num)) if num else None
        found.append(_ratio(fast, fast.resampled(rng, replica), slow, slow.resampled(rng, replica), at))
    order = sorted(found, key=lambda r: r.value)
    tail = (1 - LEVEL) / 2
    low, high = order[int(tail * (len(order) - 1))], order[int(np.ceil((1 - tail) * (len(order) - 1)))]
    has_seeds = any(len(values) > 1 for curve in (fast, slow) for values in curve.values)
    resampled = " and ".join([*(["seeds"] if has_seeds else []), *(["test events"] if num else [])])
    return replace(value, low=low.value, high=high.value, low_bound=low.bound, high_bound=high.bound, resampled=resampled)


def multiplier_curve(fast: Curve, slow: Curve, *, seed: int = 1) -> list[Multiplier]:
    """The multiplier at the value that the fast curve has with each of its sample sizes, where the slow curve reaches it, too.

    Read at their own values, the sizes of the fast curve have no "at least" of their own; replicas that begin below the value still have.
    """
    values = monotone(fast.mean())
    within = [value for value in values if events_needed(slow.sizes, slow.mean(), float(value)) not in (0.0, float("inf"))]
    return [data_multiplier(fast, slow, at=float(value), seed=seed) for value in dict.fromkeys(within)]


def _ratio(fast: Curve, fast_values: Floats, slow: Curve, slow_values: Floats, at: float | None) -> Multiplier:
    """Of two curves as they are; where a number is not reached, the end of the curve stands for it."""
    target = max(monotone(fast_values)[-1], monotone(slow_values)[-1]) if at is None else at
    needed_fast = events_needed(fast.sizes, fast_values, target)
    needed_slow = events_needed(slow.sizes, slow_values, target)
    is_least = needed_fast == 0.0 or needed_slow == float("inf")
    is_most = needed_slow == 0.0 or needed_fast == float("inf")
    bound = "none" if is_least and is_most else "at least" if is_least else "at most" if is_most else ""
    needed_fast = float(np.clip(needed_fast, fast.sizes[0], fast.sizes[-1]))
    needed_slow = float(np.clip(needed_slow, slow.sizes[0], slow.sizes[-1]))
    ratio = needed_slow / needed_fast
    return Multiplier(float(target), needed_fast, needed_slow, ratio, ratio, ratio, bound)


def curve_of(points: Sequence[tuple[float, float, Sequence[float] | None]]) -> Curve:
    """The curve of (events, value, replicas or None) of every training."""
    by_size: dict[float, list[tuple[float, Sequence[float] | None]]] = {}
    for size, value, replicas in points:
        by_size.setdefault(float(size), []).append((value, replicas))
    sizes = sorted(by_size)
    values = tuple(np.array([value for value, _ in by_size[size]]) for size in sizes)
    has_replicas = all(replicas is not None for found in by_size.values() for _, replicas in found)
    by_event = tuple(np.array([replicas for _, replicas in by_size[size]], np.float64) for size in sizes) if has_replicas else None
    return Curve(np.array(sizes), values, by_event)
