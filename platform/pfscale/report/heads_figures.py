"""Figures of downstream heads: ROC curves, resolutions in bins, latents on their first two principal axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale.physics.classification import EFFICIENCIES
from pfscale.report.style import Drawn, axis_label, look, new_figure, say_empty, styled

_POINTS_SHOWN = 4000  # of a scatter plot
_FEWEST_PASSING = 10  # background jets
Floats = NDArray[np.float64]


@styled
def roc_bands(curves: Mapping[str, Sequence[Floats]], *, efficiencies: Floats, signal: str, background: str, num_background: int) -> Drawn:
    """Background efficiency against signal efficiency: one line per arm, the mean over seeds, and a band of one standard deviation.

    Where fewer than ten background jets are left nothing is drawn, and no rejection is given.

    Args:
        curves: arm -> per seed, the background efficiency at each signal efficiency.
        num_background: jets that the background efficiency is a fraction of.
    """
    figure = new_figure(width=6.6, height=5.4)
    axes = figure.subplots()
    numbers: dict[str, Any] = {"efficiencies": efficiencies.tolist()}
    for arm, seeds in curves.items():
        style = look(arm, among=list(curves))
        stacked = np.stack(seeds)
        mean, spread = stacked.mean(0), stacked.std(0, ddof=1) if len(seeds) > 1 else np.zeros(stacked.shape[1])
        mean = np.where(mean * num_background >= _FEWEST_PASSING, mean, np.nan)
        axes.plot(efficiencies, mean, color=style.colour, linestyle=style.line, label=style.label)
        axes.fill_between(
            efficiencies, np.maximum(mean - spread, 0.1 * mean), np.minimum(mean + spread, 1), color=style.colour, alpha=0.2, linewidth=0
        )
        at = [1 / float(np.interp(e, efficiencies, mean)) for e in EFFICIENCIES]
        numbers[arm] = {"mean": mean, "spread": spread, "rejection": dict(zip(map(str, EFFICIENCIES), at, strict=True))}
    axes.set(
        xlabel=f"Efficiency of {signal} jets", ylabel=f"Efficiency of {background} jets", yscale="log", xlim=(float(efficiencies[0]), 1)
    )
    if curves:
        figure.legend(loc="outside lower center", ncols=2, title="mean ± standard deviation over seeds")
    else:
        say_empty(axes, "no trainings")
    return figure, numbers


@styled
def binned_bands(curves: Mapping[str, Sequence[Floats]], *, edges: Sequence[float], variable: str, metric: str, unit: str = "") -> Drawn:
    """A metric in bins of `variable` (GeV): one line per arm, mean and standard deviation over seeds.

    Args:
        curves: arm -> per seed, a value in each bin; NaN where there are too few entries.
    """
    figure = new_figure(width=6.6, height=5.4)
    axes = figure.subplots()
    centres = 0.5 * (np.asarray(edges[1:]) + np.asarray(edges[:-1]))
    numbers: dict[str, Any] = {"edges": list(edges)}
    for i, (arm, seeds) in enumerate(curves.items()):
        style = look(arm, among=list(curves))
        stacked = np.stack(seeds)
        mean, spread = stacked.mean(0), stacked.std(0, ddof=1) if len(seeds) > 1 else np.zeros(stacked.shape[1])
        offset = 0.03 * (i - (len(curves) - 1) / 2) * np.diff(edges)
        x, colour = centres + offset, style.colour
        axes.errorbar(x, mean, spread, color=colour, marker=style.marker, fillstyle=style.fill, linestyle=style.line, label=style.label)
        numbers[arm] = {"mean": mean, "spread": spread}
    axes.set(xlabel=axis_label(variable, "GeV"), ylabel=axis_label(metric, unit))
    if curves and not any(np.isfinite(seeds).any() for seeds in curves.values()):
        say_empty(axes, "too few entries in every bin")
    elif curves:
        figure.legend(loc="outside lower center", ncols=2, title="mean ± standard deviation over seeds")
    else:
        say_empty(axes, "no trainings")
    return figure, numbers


@styled
def latent_axes(latents: NDArray[np.floating], classes: Sequence[str], *, of: str) -> Drawn:
    """Latents (n, K) on their first two principal axes, one colour per class of `classes` (n)."""
    figure = new_figure(width=6.6, height=5.4)
    axes = figure.subplots()
    names, labels = sorted(set(classes)), np.asarray(classes)
    if len(latents) < 3:
        say_empty(axes, "too few to show")
        return figure, {}
    values = latents.astype(np.float64) - latents.astype(np.float64).mean(0)
    _, singular, basis = np.linalg.svd(values[np.random.default_rng(1).permutation(len(values))[:20_000]], full_matrices=False)
    share = singular**2 / max(float((singular**2).sum()), 1e-30)
    points = values @ basis[:2].T
    shown = np.random.default_rng(2).permutation(len(points))[:_POINTS_SHOWN]
    for name in names:
        members = shown[labels[shown] == name]
        style = look(name, among=names)
        axes.scatter(points[members, 0], points[members, 1], s=4, alpha=0.5, color=style.colour, label=name, linewidths=0)
    axes.set(xlabel=f"First principal axis of {of} ({share[0]:.0%} of the variance)", ylabel=f"Second ({share[1]:.0%})")
    figure.legend(loc="outside lower center", ncols=min(6, len(names)), markerscale=3)
    return figure, {"variance_share": share[:10], "classes": {name: int((labels == name).sum()) for name in names}}
