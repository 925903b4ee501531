"""Particle-level metrics from what each element carries and what is predicted for it: efficiency, fake rate, confusion, energy response.

Definitions, per class c (index 0 means that an element carries no particle):
- identification efficiency: of the elements whose target is c, the fraction predicted as c; `found_fraction`: predicted as any particle;
- fake rate: of the elements predicted as c, the fraction that carry no particle (a particle of another class is confusion, not a fake).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfscale.physics.bootstrap import Estimate, EventBootstrap, event_bootstrap
from pfscale.physics.ragged import Indices
from pfscale.physics.rates import BinnedRate, rate, rate_in_bins
from pfscale.physics.response import BinnedResponse, ResponseSummary, response, summarise, summarise_in_bins

PARTICLE_PT_BINS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 200.0)  # GeV
PARTICLE_ETA_BINS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class ElementPredictions:
    """Target and prediction of each element, flat over a batch of events; classes are indices, 0: no particle. GeV.

    Values of absent particles (class 0) are not looked at.
    """

    event: Indices
    target_class: NDArray[np.integer]
    target_pt: NDArray[np.floating]
    target_eta: NDArray[np.floating]
    target_energy: NDArray[np.floating]
    pred_class: NDArray[np.integer]
    pred_pt: NDArray[np.floating]
    pred_eta: NDArray[np.floating]
    pred_energy: NDArray[np.floating]


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one particle class; efficiencies and responses against the target's, fake rates against the prediction's pt and eta.

    `energy_response`: predicted over target energy of the elements with both of this class.
    """

    efficiency: Estimate
    found_fraction: Estimate
    fake_rate: Estimate
    energy_response: ResponseSummary
    efficiency_vs_pt: BinnedRate
    efficiency_vs_eta: BinnedRate
    fake_rate_vs_pt: BinnedRate
    fake_rate_vs_eta: BinnedRate
    energy_response_vs_pt: BinnedResponse
    energy_response_vs_eta: BinnedResponse


@dataclass(frozen=True)
class ParticleResult:
    """Metrics per class name, and `confusion[target, predicted]`: counts of elements, class 0 included."""

    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    classes: dict[str, ClassMetrics]

    def to_dict(self) -> dict[str, float]:
        """Flat metric names such as `efficiency_211` -> value and `efficiency_211_error`."""
        flat: dict[str, float] = {}
        for name, number in self.named_estimates():
            flat[name], flat[f"{name}_error"] = number.value, number.error
        return flat

    def named_estimates(self) -> Iterator[tuple[str, Estimate]]:
        """(metric name, number) of every class."""
        for name, m in self.classes.items():
            yield f"efficiency_{name}", m.efficiency
            yield f"found_fraction_{name}", m.found_fraction
            yield f"fake_rate_{name}", m.fake_rate
            yield f"energy_response_median_{name}", m.energy_response.median
            yield f"energy_response_iqr_{name}", m.energy_response.iqr


def particle_table(results: Mapping[str, ParticleResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows) for the terminal and the report: one row per reconstruction and class, `value ± error`."""
    header = ("", "class", "targets", "efficiency", "found as any", "fake rate", "energy response", "IQR")
    rows = []
    for key, result in results.items():
        for index, (name, m) in enumerate(result.classes.items(), 1):
            numbers = (m.efficiency, m.found_fraction, m.fake_rate, m.energy_response.median, m.energy_response.iqr)
            rows.append((key, name, str(int(result.confusion[index].sum())), *(str(number) for number in numbers)))
    return header, rows


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

    def against(passing: NDArray[np.bool_], total: NDArray[np.bool_], values: NDArray[np.floating], variable: str) -> BinnedRate:
        edges, unit = _binning(variable)
        return rate_in_bins(elements.event, passing, total, values, bootstrap, edges=edges, variable=variable, unit=unit)

    both = is_target & is_pred
    energies = response(np.asarray(elements.pred_energy)[both], np.asarray(elements.target_energy)[both])
    event = np.asarray(elements.event)[both]

    def energies_against(values: NDArray[np.floating], variable: str) -> BinnedResponse:
        edges, unit = _binning(variable)
        return summarise_in_bins(energies, event, np.asarray(values)[both], bootstrap, edges=edges, variable=variable, unit=unit)

    return ClassMetrics(
        efficiency=rate(elements.event, both, is_target, bootstrap),
        found_fraction=rate(elements.event, is_found, is_target, bootstrap),
        fake_rate=rate(elements.event, is_fake, is_pred, bootstrap),
        energy_response=summarise(energies, event, bootstrap),
        efficiency_vs_pt=against(both, is_target, elements.target_pt, "target pt"),
        efficiency_vs_eta=against(both, is_target, elements.target_eta, "target eta"),
        fake_rate_vs_pt=against(is_fake, is_pred, elements.pred_pt, "predicted pt"),
        fake_rate_vs_eta=against(is_fake, is_pred, elements.pred_eta, "predicted eta"),
        energy_response_vs_pt=energies_against(elements.target_pt, "target pt"),
        energy_response_vs_eta=energies_against(elements.target_eta, "target eta"),
    )


def _binning(variable: str) -> tuple[tuple[float, ...], str]:
    return (PARTICLE_PT_BINS, "GeV") if variable.endswith("pt") else (PARTICLE_ETA_BINS, "")
