"""Which metrics tell a better model from a worse one, in which direction, and how sure a difference between two models is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from pfscale.errors import unknown_name
from pfscale.physics.bootstrap import Estimate, estimate
from pfscale.physics.evaluation import MLPF
from pfscale.physics.kinematics import Floats
from pfscale.physics.response import PT_BINS

Best = Literal["lower", "higher", "closest to 1"]
VALIDATION_LOSS = "validation_loss"
DEFAULT_METRIC = "jet_response_iqr_over_median"
_PREFIX = f"{MLPF}/"
_RESPONSE: dict[str, Best] = {"median": "closest to 1", "iqr_over_median": "lower"}

# name, as in `EvaluationResult.to_dict` without its `mlpf/` -> which value is best
_BEST: dict[str, Best] = {
    "jet_response_median": "closest to 1",
    "jet_response_iqr": "lower",
    "jet_response_iqr_over_median": "lower",
    "jet_energy_response_median": "closest to 1",
    "jet_energy_response_iqr_over_median": "lower",
    "jet_matched_fraction": "higher",
    "jet_spurious_fraction": "lower",
    "met_response": "closest to 1",
    "met_resolution": "lower",
    "met_resolution_parallel": "lower",
    "met_resolution_perpendicular": "lower",
    "visible_energy_ratio_median": "closest to 1",
    "visible_energy_ratio_iqr": "lower",
    "visible_mass_ratio_median": "closest to 1",
    "visible_mass_ratio_iqr": "lower",
    VALIDATION_LOSS: "lower",
}
_OF_CLASSES: dict[str, Best] = {
    "efficiency": "higher",
    "fake_rate": "lower",
    "energy_response_median": "closest to 1",
    "energy_response_iqr": "lower",
}
_BEST |= {f"{name}_{kind}": best for name, best in _OF_CLASSES.items() for kind in ("211", "130", "22", "11", "13")}
_BEST |= {f"jet_response_{name}_pt_{low:.0f}_{high:.0f}": best for low, high in pairwise(PT_BINS) for name, best in _RESPONSE.items()}


@dataclass(frozen=True)
class Metric:
    """A number that two models can be compared by. `key`: its name in a model card and in MLflow; there may be a `<key>_error`."""

    name: str
    best: Best

    @property
    def key(self) -> str:
        return self.name if self.name == VALIDATION_LOSS else f"{_PREFIX}{self.name}"


@dataclass(frozen=True)
class Difference:
    """Two models by one metric.

    Attributes:
        difference: B - A.
        improvement: how much better B is, in the metric's unit: negative where it is worse.
    """

    metric: Metric
    a: Estimate
    b: Estimate
    difference: Estimate
    improvement: Estimate

    def is_better(self, sigmas: float = 1.0) -> bool:
        """Whether B is better by more than so many standard deviations of the difference; never where that is not known."""
        return math.isfinite(self.improvement.error) and self.improvement.value > sigmas * self.improvement.error

    def verdict(self, sigmas: float = 1.0) -> str:
        """The comparison in words."""
        if not math.isfinite(self.improvement.value):
            return "not measured"
        if not math.isfinite(self.improvement.error):
            return "uncertainty not known"
        if abs(self.improvement.value) <= sigmas * self.improvement.error:
            return "no difference beyond the uncertainty"
        return "B better" if self.improvement.value > 0 else "A better"


def metrics() -> tuple[Metric, ...]:
    """All metrics that models can be compared by."""
    return tuple(Metric(name, best) for name, best in _BEST.items())


def find_metric(name: str) -> Metric:
    """The metric of this name, with or without `mlpf/`.

    Raises:
        UnknownNameError: there is none, or it tells nothing of which model is better; names the closest.
    """
    short = name.removeprefix(_PREFIX)
    if short not in _BEST:
        raise unknown_name("metric", short, [n for n in _BEST if not re.search(r"_pt_\d", n)])
    return Metric(short, _BEST[short])


def paired_difference(metric: Metric, a: Estimate, b: Estimate) -> Difference:
    """The difference of two models on the same events and replicas: what both owe to the events cancels.

    Numbers without replicas (fractions of 0 or 1) are taken for independent.
    """
    if a.replicas is None or b.replicas is None:
        return independent_difference(metric, a, b)
    improvement = estimate(_improvement(metric, a.value, b.value), _cost(metric, a.replicas) - _cost(metric, b.replicas))
    return Difference(metric, a, b, estimate(b.value - a.value, b.replicas - a.replicas), improvement)


def independent_difference(metric: Metric, a: Estimate, b: Estimate) -> Difference:
    """The same with the errors added in quadrature: too large an error where both were measured on the same events."""
    error = math.hypot(a.error, b.error)
    return Difference(metric, a, b, Estimate(b.value - a.value, error), Estimate(_improvement(metric, a.value, b.value), error))


def _improvement(metric: Metric, a: float, b: float) -> float:
    return float(np.subtract(*_cost(metric, np.array([a, b]))))


def _cost(metric: Metric, values: Floats) -> Floats:
    """What a better model has less of."""
    if metric.best == "lower":
        return values
    return -values if metric.best == "higher" else np.abs(values - 1.0)
