"""What a gate measures: numbers with their uncertainties and expected ranges; pass, fail, or too few entries to say.

One rule for all: inside its range a value passes; outside it fails, unless the range is within reach of SIGNIFICANCE standard errors or
there are fewer than MIN_ENTRIES entries. The table and the figures show one standard error of the very same interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfscale.physics.bootstrap import Estimate, EventBootstrap, event_bootstrap, ratio
from pfscale.physics.response import summarise

MIN_ENTRIES = 10  # fewer have no median worth the name
MIN_EVENTS_TO_RESAMPLE = 10  # with fewer events the error comes from resampling entries, as if they were independent
SIGNIFICANCE = 3.0  # a value outside its range by less than this many standard errors is a fluctuation: more events will tell
BOOTSTRAP_SEED = 1
SAME_ERRORS = 0.1  # relative difference up to which two errors are written as one
SHORT_DECIMALS, MAX_DECIMALS = 3, 5  # of a fraction: up to which its error gets a second digit, and none beyond; the counts say it exactly


class Status(StrEnum):
    """What a gate says: TOO_FEW is too few entries to tell, neither pass nor fail. Only FAIL makes the command fail."""

    PASS = "pass"
    FAIL = "FAIL"
    TOO_FEW = "too few"
    NOT_APPLICABLE = "n/a"


_WORST_FIRST = (Status.FAIL, Status.TOO_FEW, Status.PASS, Status.NOT_APPLICABLE)


def worst(statuses: list[Status]) -> Status:
    """FAIL if any is, else TOO_FEW if any is, else PASS if any is."""
    return next((status for status in _WORST_FIRST if status in statuses), Status.NOT_APPLICABLE)


@dataclass(frozen=True)
class Fraction:
    """`num_found` of `num_entries`, of which `num_independent` are worth counting: entries of one event go together.

    Its interval is Wilson's (J. Am. Stat. Assoc. 22 (1927) 209): all expectations p from which the fraction is less than so many standard
    errors sqrt(p (1 - p) / n) away. The error is thus that of the expectation, not that of what happened to be seen, and is not zero for
    0 of n or n of n. `num_independent` for n is Korn and Graubard's effective sample size (Surv. Methodol. 24 (1998) 193).
    """

    num_found: int
    num_entries: int
    num_independent: float

    @property
    def value(self) -> float:
        """NaN of no entries."""
        return self.num_found / self.num_entries if self.num_entries else math.nan

    def interval(self, num_sigma: float = 1.0) -> tuple[float, float]:
        """(low, high) of the Wilson interval; 68.3% for one standard deviation."""
        p, n, z2 = self.value, self.num_independent, num_sigma**2
        if not n > 0:
            return math.nan, math.nan
        centre, half = (p + z2 / (2 * n)) / (1 + z2 / n), math.sqrt(z2 * p * (1 - p) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
        low, high = min(centre - half, p), max(centre + half, p)  # equal at the ends, but for rounding
        return (0.0 if not self.num_found else low), (1.0 if self.num_found == self.num_entries else high)

    def __str__(self) -> str:
        """`value ± error`, or `value +up −down` where they differ; one digit of the smaller error, two if short; `-` of no entries."""
        if not self.num_entries:
            return "-"
        down, up = errors_of(self)
        smaller = min(error for error in (down, up) if error > 0)
        one_digit = -math.floor(math.log10(smaller))
        decimals = min(MAX_DECIMALS, max(one_digit, min(one_digit + 1, SHORT_DECIMALS)))
        if abs(up - down) <= SAME_ERRORS * max(up, down) or round(up, decimals) == round(down, decimals):
            return f"{self.value:.{decimals}f} ± {max(up, down):.{decimals}f}"
        words = [f"{error:.{decimals}f}" if error > 0 else "0" for error in (up, down)]
        return f"{self.value:.{decimals}f} +{words[0]} −{words[1]}"


def errors_of(value: Estimate | Fraction, num_sigma: float = 1.0) -> tuple[float, float]:
    """(down, up): how far the interval of so many standard deviations reaches; NaN where nothing is known of it."""
    if isinstance(value, Fraction):
        low, high = value.interval(num_sigma)
        return value.value - low, high - value.value
    return num_sigma * value.error, num_sigma * value.error


@dataclass(frozen=True)
class Measurement:
    """One number of a gate: `value` is expected in [low, high] (inclusive, `unit`); `num_entries` went into it."""

    what: str
    low: float
    high: float
    value: Estimate | Fraction
    num_entries: int
    status: Status
    unit: str = ""

    @property
    def expected(self) -> str:
        """The range in words."""
        unit = f" {self.unit}" if self.unit else ""
        if math.isnan(self.low):
            return ""
        if self.low == self.high:
            return f"{self.low:g}{unit}"
        if math.isinf(self.high):
            return f"≥ {self.low:g}{unit}"
        return f"≤ {self.high:g}{unit}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}{unit}"

    @property
    def observed(self) -> str:
        """The value with its uncertainty in words."""
        if isinstance(self.value, Fraction):
            return str(self.value)
        value, error = self.value.value, self.value.error
        if math.isnan(value):
            return "" if self.status is Status.NOT_APPLICABLE else "-"
        if math.isfinite(error):
            return str(self.value) if error >= 1e-5 else f"{value:.5f}"
        return f"{value:.0f}" if value == round(value) else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}"

    @property
    def entries(self) -> str:
        """How many entries there are; of a fraction also how many of them count: `17/18`."""
        return f"{self.value.num_found}/{self.num_entries}" if isinstance(self.value, Fraction) else str(self.num_entries)


def judge(value: Estimate | Fraction, num_entries: int, low: float, high: float) -> Status:
    """PASS inside [low, high], FAIL outside; TOO_FEW below MIN_ENTRIES entries, or if the distance may be a fluctuation."""
    if num_entries < MIN_ENTRIES:
        return Status.TOO_FEW
    if low <= value.value <= high:
        return Status.PASS
    down, up = errors_of(value, SIGNIFICANCE)
    is_within_reach = low - value.value <= up if value.value < low else value.value - high <= down
    return Status.TOO_FEW if is_within_reach else Status.FAIL


def count_violations(what: str, found: int, checked: int) -> Measurement:
    """A measurement that passes if nothing was found, and is not applicable where nothing could be checked."""
    status = Status.FAIL if found else Status.PASS if checked else Status.NOT_APPLICABLE
    return Measurement(what, 0.0, 0.0, Estimate(float(found), math.nan), checked, status)


def at_most(what: str, value: float, limit: float, num_entries: int) -> Measurement:
    """A measurement that passes if an exact `value` is not above `limit`, and is not applicable without entries."""
    status = Status.NOT_APPLICABLE if not num_entries else Status.PASS if value <= limit else Status.FAIL
    return Measurement(what, -math.inf, limit, Estimate(value, math.nan), num_entries, status)


class Entries:
    """Values with the event that each belongs to, gathered batch by batch."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.float32]] = []
        self._events: list[NDArray[np.int32]] = []
        self._num_events = 0

    def add(self, values: ArrayLike, event: ArrayLike, num_events: int) -> None:
        """Takes in values of the events 0 ... num_events - 1 of the next batch."""
        self._values.append(np.asarray(values, np.float32))
        self._events.append((np.asarray(event, np.int64) + self._num_events).astype(np.int32))
        self._num_events += num_events

    @property
    def values(self) -> NDArray[np.float32]:
        """All values."""
        return np.concatenate([*self._values, np.zeros(0, np.float32)])

    def median(self, what: str, low: float, high: float, *, unit: str = "") -> Measurement:
        """The median, expected in [low, high], with its error from resampling events (entries, where there are few events)."""
        values = self.values
        event, bootstrap = self._resampling()
        estimate = summarise(values, event, bootstrap).median
        return Measurement(what, low, high, estimate, len(values), judge(estimate, len(values), low, high), unit)

    def fraction_within(self, what: str, low: float, high: float, *, at_least: float) -> Measurement:
        """The fraction of values in [low, high], expected to be `at_least` so large: sees mix-ups, which a median does not."""
        values = self.values
        is_inside = (values >= low) & (values <= high)
        fraction = Fraction(int(is_inside.sum()), len(values), self._num_independent(is_inside))
        return Measurement(what, at_least, math.inf, fraction, len(values), judge(fraction, len(values), at_least, math.inf))

    def _num_independent(self, is_inside: NDArray[np.bool_]) -> float:
        """The entries that would have, if they were independent, the error that resampling events gives; all of them at most."""
        num_all, p = float(len(is_inside)), float(is_inside.mean()) if len(is_inside) else 0.0
        event, bootstrap = self._resampling()
        inside_E, all_E = (np.bincount(event, weights, minlength=bootstrap.num_events)[:, None] for weights in (is_inside, None))
        if not 0 < p < 1 or all_E.max() <= 1:  # all alike, which says nothing of correlations; or none has a companion
            return num_all
        (resampled,) = ratio(inside_E, all_E, bootstrap)
        return min(num_all, p * (1 - p) / resampled.error**2) if resampled.error > 0 else num_all

    def _resampling(self) -> tuple[NDArray[np.int32], EventBootstrap]:
        """(what each value is resampled with, the replicas): its event, or itself where there are few events."""
        event, num_events = np.concatenate([*self._events, np.zeros(0, np.int32)]), self._num_events
        if len(np.unique(event)) < MIN_EVENTS_TO_RESAMPLE:
            event, num_events = np.arange(len(event), dtype=np.int32), len(event)
        return event, event_bootstrap(num_events, seed=BOOTSTRAP_SEED)
