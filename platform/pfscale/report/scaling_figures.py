"""Figures of scaling laws: measured points with the law's curves, residuals, and the largest models predicted from the smaller ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from numpy.typing import NDArray

from pfscale.report.style import Drawn, look, new_figure, styled

_COLOURS = "viridis"  # ordered: sizes are


@styled
def law_curves(
    points: Mapping[str, tuple[NDArray, NDArray]],
    curves: Mapping[str, tuple[NDArray, NDArray]],
    *,
    x_label: str,
    y_label: str,
    legend: str,
    minima: Sequence[tuple[float, float]] = (),
) -> Drawn:
    """One colour per size: points as measured, the law as a line, against x on logarithmic axes.

    Args:
        points, curves: name of a size -> (x, y), in the order of the sizes.
        legend: what the names are, and what the lines are.
        minima: (x, y) of lowest points of the curves, joined by a line.
    """
    figure = new_figure(width=6.6, height=5.4)
    axes = figure.subplots()
    names = list(dict.fromkeys([*points, *curves]))
    colour_of = matplotlib.colormaps[_COLOURS]
    numbers: dict[str, Any] = {"points": {}, "curves": {}}
    for i, name in enumerate(names):
        colour = colour_of(0.9 * i / max(len(names) - 1, 1))
        marker = "os^vDPX<>"[i % 9]
        if name in curves:
            axes.plot(*curves[name], color=colour, label=None if name in points else name)
            numbers["curves"][name] = {"x": curves[name][0], "y": curves[name][1]}
        if name in points:
            axes.plot(*points[name], color=colour, marker=marker, linestyle="", label=name)
            numbers["points"][name] = {"x": points[name][0], "y": points[name][1]}
    if minima:
        axes.plot(*zip(*minima, strict=True), color="black", marker="*", markersize=10, linestyle=":", label="lowest of each")
        numbers["minima"] = [list(at) for at in minima]
    axes.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=8)
    figure.legend(loc="outside lower center", ncols=3, title=legend)
    return figure, numbers


@styled
def law_residuals(x: NDArray, residuals: NDArray, *, x_label: str, spread: float) -> Drawn:
    """ln measured - ln law of every run; the band is the spread of runs that differ in their seed only."""
    figure = new_figure(width=6.6, height=4.4)
    axes = figure.subplots()
    style = look("mlpf")
    axes.axhline(0.0, color="black", linewidth=1.0)
    if spread == spread:  # not NaN
        axes.axhspan(-100 * spread, 100 * spread, color="0.85", label=f"± {spread:.2%}: standard deviation over seeds")
    axes.plot(x, 100 * residuals, color=style.colour, marker="o", linestyle="", label="runs")
    axes.set(xlabel=x_label, ylabel="measured / law - 1 [%]", xscale="log")
    axes.legend()
    return figure, {"x": x, "residual": residuals, "seed_spread": spread}


@styled
def law_hold_out(events: NDArray, measured: NDArray, predicted: NDArray, low: NDArray, high: NDArray, *, y_label: str, of: str) -> Drawn:
    """The runs of the largest models beside what a law of the others says of them, with its 90% interval."""
    figure = new_figure(width=6.6, height=4.8)
    axes = figure.subplots()
    axes.errorbar(
        events * 1.03,
        predicted,
        [predicted - low, high - predicted],
        color="#D55E00",
        marker="s",
        linestyle="",
        label="law of the smaller models, 90% interval",
    )
    axes.plot(events, measured, color="#0072B2", marker="o", linestyle="", label="measured")
    axes.set(xlabel="Unique training events", ylabel=y_label, xscale="log")
    axes.legend(title=of)
    return figure, {"events": events, "measured": measured, "predicted": predicted, "low": low, "high": high}
