"""What the figures of a study of heads are drawn from: what every head said of the test events, kept beside its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfscale.physics.bootstrap import event_bootstrap
from pfscale.physics.classification import roc
from pfscale.physics.response import PT_BINS, summarise_in_bins
from pfscale.report.heads_figures import binned_bands, latent_axes, roc_bands
from pfscale.report.style import Drawn
from pfscale.shards.objects import EventObjects
from pfscale.tasks.arms import jet_latents
from pfscale.tasks.jet_flavour import FLAVOURS
from pfscale.training.downstream import PREDICTIONS

_EFFICIENCIES = np.linspace(0.3, 1.0, 71)
_ROC_PAIRS = (("b", "c"), ("b", "ud"), ("c", "b"), ("c", "ud"), ("g", "ud"))
_MIN_ENTRIES = 30
_MOST_LATENTS = 40_000
Floats = NDArray[np.float64]


def said(models: Sequence[str]) -> list[Mapping[str, NDArray]]:
    """What heads said, by the folders of their models; those without are left out."""
    paths = [Path(model).parent / PREDICTIONS for model in models]
    return [dict(np.load(path, allow_pickle=False)) for path in paths if path.is_file()]


def figures_of(task: str, by_arm: Mapping[str, Sequence[Mapping[str, NDArray]]]) -> dict[str, Drawn]:
    """The figures of a task.

    Args:
        by_arm: arm -> per seed, what the head said.
    """
    found = {arm: seeds for arm, seeds in by_arm.items() if seeds}
    if not found:
        return {}
    if task == "jet_flavour":
        return _rocs(found)
    if task == "jet_energy":
        curves = {arm: [_spread_in_bins(s["energy"] * _middle(s["predictions"]), s) for s in seeds] for arm, seeds in found.items()}
        first = next(iter(found.values()))[0]
        curves = {"as reconstructed": [_spread_in_bins(first["energy"], first)], **curves}
        return {"jet_energy_vs_pt": binned_bands(curves, edges=PT_BINS, variable="gen jet pt", metric="energy response IQR / median")}
    if task == "missing_momentum":
        curves = {arm: [_residual_in_bins(s["predictions"], s["met"]) for s in seeds] for arm, seeds in found.items()}
        first = next(iter(found.values()))[0]
        curves = {"plain sum": [_residual_in_bins(first["plain"], first["met"])], **curves}
        drawn = binned_bands(curves, edges=PT_BINS, variable="gen missing pt", metric="resolution of both components", unit="GeV")
        return {"missing_momentum_vs_met": drawn}
    return {}


def latents_figures(objects: EventObjects, encoder: str) -> dict[str, Drawn]:
    """Latents of candidates by what they are, and of jets (mean over candidates weighted by pt) by their flavour."""
    rows = np.random.default_rng(1).permutation(len(objects.latents))[:_MOST_LATENTS]
    particles = [str(abs(code)) for code in objects.candidate["pdg"][rows]]
    figures = {
        f"latents_of_candidates_{encoder}": latent_axes(objects.latents[rows].astype(np.float32), particles, of="candidates' latents")
    }
    name_of = {code: name for name, codes in FLAVOURS.items() for code in codes}
    known = np.isin(objects.jet["flavour"], list(name_of))
    flavours = [name_of[int(code)] for code in objects.jet["flavour"][known]]
    figures[f"latents_of_jets_{encoder}"] = latent_axes(jet_latents(objects)[known], flavours, of="jets' mean latents")
    return figures


def _rocs(by_arm: Mapping[str, Sequence[Mapping[str, NDArray]]]) -> dict[str, Drawn]:
    classes = [str(name) for name in next(iter(by_arm.values()))[0]["classes"]]
    figures: dict[str, Drawn] = {}
    for signal, background in _ROC_PAIRS:
        if signal not in classes or background not in classes:
            continue
        s, b = classes.index(signal), classes.index(background)
        curves: dict[str, list[Floats]] = {}
        for arm, seeds in by_arm.items():
            for one in seeds:
                rows = np.flatnonzero(np.isin(one["class"], (s, b)))
                probability = np.log(np.maximum(one["predictions"][rows].astype(np.float64), 1e-12))
                curve = roc(probability[:, s] - probability[:, b], one["class"][rows] == s, _EFFICIENCIES)
                curves.setdefault(arm, []).append(curve)
        count = int((next(iter(by_arm.values()))[0]["class"] == b).sum())
        figures[f"roc_{signal}_vs_{background}"] = roc_bands(
            curves, efficiencies=_EFFICIENCIES, signal=signal, background=background, num_background=count
        )
    return figures


def _middle(predictions: NDArray) -> NDArray:
    return predictions[:, predictions.shape[1] // 2]


def _spread_in_bins(energy: NDArray, one: Mapping[str, NDArray]) -> Floats:
    event = np.arange(len(energy))
    bootstrap = event_bootstrap(len(energy), seed=1, num_replicas=2)
    binned = summarise_in_bins(
        energy / one["gen_energy"], event, one["gen_pt"], bootstrap, edges=PT_BINS, variable="gen jet pt", unit="GeV"
    )
    return np.array([part.iqr_over_median.value if part.count >= _MIN_ENTRIES else np.nan for part in binned.bins])


def _residual_in_bins(met: NDArray, true: NDArray) -> Floats:
    residual, size = (met - true).ravel(), np.hypot(*true.T)
    event = np.repeat(np.arange(len(true)), 2)
    bootstrap = event_bootstrap(len(true), seed=1, num_replicas=2)
    binned = summarise_in_bins(residual, event, np.repeat(size, 2), bootstrap, edges=PT_BINS, variable="gen missing pt", unit="GeV")
    return np.array([part.resolution.value if part.count >= _MIN_ENTRIES else np.nan for part in binned.bins])
