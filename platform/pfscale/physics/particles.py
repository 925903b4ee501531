"""Particle-level metrics from what each element carries and what is predicted for it: efficiency, fake rate, confusion, energy response.

Definitions, per class c (index 0 means that an element carries no particle):
- identification efficiency: of the elements whose target is c, the fraction predicted as c; `found_fraction`: predicted as any particle;
- fake rate: of the elements predicted as c, the fraction that carry no particle (a particle of another class is confusion, not a fake).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfscale.physics.bootstrap import Estimate, EventBootstrap, event_bootstrap, ratio
from pfscale.physics.kinematics import Floats
from pfscale.physics.ragged import Indices
from pfscale.physics.response import ResponseSummary, response, summarise

PARTICLE_PT_BINS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 200.0)  # GeV
PARTICLE_ETA_BINS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class ElementPredictions:
    """Target and prediction of each element, flat over a batch of events; classes are indices, 0: no particle. GeV.

    Values of absent particles (class 0) are not looked at.
    """

    event: Indices
    target_class: NDArray[np.integer]
    target_pt: Floats
    target_eta: Floats
    target_energy: Floats
    pred_class: NDArray[np.integer]
    pred_pt: Floats
    pred_eta: Floats
    pred_energy: Floats


@dataclass(frozen=True)
class BinnedRate:
    """A fraction in bins [edges[i], edges[i + 1]) of `variable`, with bootstrap errors."""

    variable: str
    unit: str
    edges: tuple[float, ...]
    bins: tuple[Estimate, ...]


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one particle class; efficiencies against the target's, fake rates against the prediction's pt and eta."""

    efficiency: Estimate
    found_fraction: Estimate
    fake_rate: Estimate
    energy_response: ResponseSummary
    efficiency_vs_pt: BinnedRate
    efficiency_vs_eta: BinnedRate
    fake_rate_vs_pt: BinnedRate
    fake_rate_vs_eta: BinnedRate


@dataclass(frozen=True)
class ParticleResult:
    """Metrics per class name, and `confusion[target, predicted]`: counts of elements, class 0 included."""

    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    classes: dict[str, ClassMetrics]

    def to_dict(self) -> dict[str, float]:
        """Flat metric names such as `efficiency_211` -> value and `efficiency_211_error`."""
        flat: dict[str, float] = {}
        for name, m in self.classes.items():
            numbers = {
                "efficiency": m.efficiency,
                "found_fraction": m.found_fraction,
                "fake_rate": m.fake_rate,
                "energy_response_median": m.energy_response.median,
                "energy_response_iqr": m.energy_response.iqr,
            }
            for metric, number in numbers.items():
                flat[f"{metric}_{name}"], flat[f"{metric}_{name}_error"] = number.value, number.error
        return flat


def evaluate_particles(elements: ElementPredictions, *, num_events: int, class_names: Sequence[str], seed: int) -> ParticleResult:
    """The particle-level metrics of every class but the first, which means no particle."""
    bootstrap = event_bootstrap(num_events, seed=seed)
    target, pred = np.asarray(elements.target_class, np.int64), np.asarray(elements.pred_class, np.int64)
    num_classes = len(class_names)
    confusion = np.bincount(target * num_classes + pred, minlength=num_classes**2).reshape(num_classes, num_classes)
    classes = {name: _class_metrics(elements, index, bootstrap) for index, name in enumerate(class_names) if index > 0}
    return ParticleResult(tuple(class_names), confusion, classes)


def _class_metrics(elements: ElementPredictions, index: int, bootstrap: EventBootstrap) -> ClassMetrics:
    is_target = np.asarray(elements.target_class) == index
    is_pred = np.asarray(elements.pred_class) == index
    is_found = is_target & (np.asarray(elements.pred_class) != 0)
    is_fake = is_pred & (np.asarray(elements.target_class) == 0)

    def rate(passing: NDArray[np.bool_], total: NDArray[np.bool_]) -> Estimate:
        everything = np.zeros(len(total))
        return _binned_rate(elements.event, passing, total, everything, (-1.0, 1.0), bootstrap)[0]

    def against(passing: NDArray[np.bool_], total: NDArray[np.bool_], values: Floats, variable: str) -> BinnedRate:
        edges, unit = (PARTICLE_PT_BINS, "GeV") if variable.endswith("pt") else (PARTICLE_ETA_BINS, "")
        return BinnedRate(variable, unit, edges, tuple(_binned_rate(elements.event, passing, total, values, edges, bootstrap)))

    both = is_target & is_pred
    energies = response(np.asarray(elements.pred_energy)[both], np.asarray(elements.target_energy)[both])
    return ClassMetrics(
        efficiency=rate(both, is_target),
        found_fraction=rate(is_found, is_target),
        fake_rate=rate(is_fake, is_pred),
        energy_response=summarise(energies, np.asarray(elements.event)[both], bootstrap),
        efficiency_vs_pt=against(both, is_target, elements.target_pt, "target pt"),
        efficiency_vs_eta=against(both, is_target, elements.target_eta, "target eta"),
        fake_rate_vs_pt=against(is_fake, is_pred, elements.pred_pt, "predicted pt"),
        fake_rate_vs_eta=against(is_fake, is_pred, elements.pred_eta, "predicted eta"),
    )


def _binned_rate(
    event: Indices,
    passing: NDArray[np.bool_],
    total: NDArray[np.bool_],
    values: Floats,
    edges: Sequence[float],
    bootstrap: EventBootstrap,
) -> list[Estimate]:
    """passing / total in each bin of `values`, counted per event first, so that the bootstrap is one matrix product."""
    num_bins = len(edges) - 1
    rows = np.flatnonzero(total)
    which = np.digitize(np.asarray(values, np.float64)[rows], edges) - 1
    inside = (which >= 0) & (which < num_bins)
    rows, which = rows[inside], which[inside]
    cell = np.asarray(event, np.int64)[rows] * num_bins + which
    shape = (bootstrap.num_events, num_bins)
    size = shape[0] * shape[1]
    below = np.bincount(cell, minlength=size).reshape(shape)
    above = np.bincount(cell, weights=passing[rows], minlength=size).reshape(shape)
    return ratio(above, below, bootstrap)
