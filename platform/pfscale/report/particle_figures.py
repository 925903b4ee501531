"""Figures of particles by class: efficiency and fake rate, energy response, confusion; the model beside the rule-based candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray

from pfscale.physics.particles import PARTICLE_ETA_BINS, PARTICLE_PT_BINS, ClassMetrics, ParticleResult
from pfscale.report.binned import (
    MIN_ENTRIES,
    Points,
    draw_points,
    finish_axis,
    rate_numbers,
    rate_points,
    response_numbers,
    response_points,
)
from pfscale.report.style import Drawn, new_figure, say_empty, styled

CLASS_LABELS = {
    "none": "none",
    "211": "charged\nhadron",
    "130": "neutral\nhadron",
    "22": "photon",
    "11": "electron",
    "13": "muon",
}
Variable = Literal["pt", "eta"]


@styled
def particle_rates(results: Mapping[str, ParticleResult], variable: Variable, *, title: str = "") -> Drawn:
    """Efficiency of every class against the target's pt or eta (left), and fake rate against the prediction's (right)."""

    def efficiency(m: ClassMetrics) -> Points:
        return rate_points(getattr(m, f"efficiency_vs_{variable}"))

    def fake_rate(m: ClassMetrics) -> Points:
        return rate_points(getattr(m, f"fake_rate_vs_{variable}"))

    columns = (("Efficiency", "target's", efficiency), ("Fake rate", "candidate's", fake_rate))
    figure, numbers = _by_class(results, variable, columns, title)
    for key, result in results.items():
        for name, m in result.classes.items():
            rates = {"efficiency": getattr(m, f"efficiency_vs_{variable}"), "fake_rate": getattr(m, f"fake_rate_vs_{variable}")}
            numbers[key][name] = {what: rate_numbers(rate) for what, rate in rates.items()}
    for axes in figure.axes:
        axes.set_ylim(0, 1.05)
    return figure, numbers


@styled
def particle_energies(results: Mapping[str, ParticleResult], variable: Variable, *, title: str = "") -> Drawn:
    """Median (left) and IQR (right) of predicted over target energy, of every class, against the target's pt or eta."""

    def binned(m: ClassMetrics) -> Any:
        return getattr(m, f"energy_response_vs_{variable}")

    columns: tuple[tuple[str, str, Callable[[ClassMetrics], Points]], ...] = (
        ("E response, median", "target's", lambda m: response_points(binned(m), lambda s: s.median)),
        ("E response, IQR", "target's", lambda m: response_points(binned(m), lambda s: s.iqr)),
    )
    figure, numbers = _by_class(results, variable, columns, title)
    for key, result in results.items():
        numbers[key] = {name: response_numbers(binned(m)) for name, m in result.classes.items()}
    for axes in figure.axes[::2]:
        axes.axhline(1.0, color="0.7", linewidth=1, zorder=0)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), high)
    for axes in figure.axes[1::2]:
        axes.set_ylim(bottom=0)
    return figure, numbers


@styled
def confusion_matrix(confusion: NDArray[np.integer], class_names: tuple[str, ...], *, title: str = "") -> Drawn:
    """Elements by target class (rows) and predicted class (columns): colour and percentage within the row, and counts."""
    counts = np.asarray(confusion, np.int64)
    totals = counts.sum(axis=1, keepdims=True)
    fraction = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    figure = new_figure(width=7.4, height=6.2)
    axes = figure.subplots()
    image = axes.imshow(np.nan_to_num(fraction), cmap=matplotlib.colormaps["Blues"], vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        share = fraction[row, column]
        text = f"{100 * share:.1f}%\n{counts[row, column]}" if np.isfinite(share) else "-"
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if share > 0.55 else "black")
    labels = [CLASS_LABELS.get(name, name) for name in class_names]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.set(xlabel="Predicted class of the element", ylabel="Target class of the element", title=title)
    figure.colorbar(image, ax=axes, label="Fraction of the target class", shrink=0.85)
    return figure, {"class_names": list(class_names), "counts": counts, "fraction": fraction}


def _by_class(
    results: Mapping[str, ParticleResult],
    variable: Variable,
    columns: tuple[tuple[str, str, Callable[[ClassMetrics], Points]], ...],
    title: str,
) -> tuple[Any, dict[str, Any]]:
    """One row of panels per class with every reconstruction in each, and room for their numbers."""
    names = next(iter(results.values())).class_names[1:]
    is_log, edges = (True, PARTICLE_PT_BINS) if variable == "pt" else (False, PARTICLE_ETA_BINS)
    label = r"$p_T$ [GeV]" if variable == "pt" else r"$\eta$"
    height = 2.05 * len(names) + 1.2
    figure = new_figure(width=7.4, height=height)
    figure.set_layout_engine("none")  # to find the best layout of so many panels takes seconds; this one is known
    edges_of = {"left": 0.11, "right": 0.965, "bottom": 1.15 / height, "top": 1 - 0.45 / height, "hspace": 0.28, "wspace": 0.32}
    grid = figure.subplots(len(names), len(columns), sharex=True, squeeze=False, gridspec_kw=edges_of)
    handles: dict[str, Any] = {}
    for row, name in enumerate(names):
        for axes, (what, whose, points_of) in zip(grid[row], columns, strict=True):
            drawn = draw_points(axes, {key: points_of(result.classes[name]) for key, result in results.items()}, is_log=is_log)
            axes.set_ylabel(what)
            if not drawn:
                say_empty(axes, f"no bin has {MIN_ENTRIES} entries")
            handles |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
            if row == len(names) - 1:
                axes.set_xlabel(f"{whose[0].upper()}{whose[1:]} {label}")
            axes.set_title(CLASS_LABELS.get(name, name).replace("\n", " "), fontsize=10, loc="left")
            finish_axis(axes, edges, is_log=is_log)
            axes.minorticks_off()
    if title:
        figure.suptitle(title, fontsize=12)
    words = f"errors: bootstrap over events; bins with ≥ {MIN_ENTRIES} entries"
    figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=max(len(handles), 1), title=words)
    return figure, {key: {} for key in results}
