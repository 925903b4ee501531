"""Figures of trainings: learning curves and transfer curves, each with its numbers (for JSON).

Error bars are one standard deviation of the bootstrap over events, or the spread over seeds where the legend says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from pfscale.physics.bootstrap import Estimate
from pfscale.report.style import Drawn, axis_label, look, new_figure, say_empty, styled


@dataclass(frozen=True)
class TransferPoint:
    """One training of the transfer ladder: `mode` (zero-shot, heads, full, scratch), target sample size, and the metric it reached.

    `error` is the metric's own uncertainty; where several seeds share mode and size, their spread is drawn instead.
    """

    mode: str
    num_events: int
    value: float
    error: float = float("nan")


@styled
def learning_curves(
    history: Mapping[str, Sequence[tuple[float, float]]], *, references: Mapping[str, float] | None = None, title: str = ""
) -> Drawn:
    """Loss against optimizer step; below it, where there is such a history, the resolution of jets.

    Args:
        history: "train", "validation" -> (step, loss) points; "jet_iqr" -> (step, IQR / median of the jets' response),
            "jet_iqr_error" -> its bootstrap errors at the same steps.
        references: reconstruction -> its IQR / median, drawn as lines.
    """
    losses = {key: points for key, points in history.items() if not key.startswith("jet_iqr")}
    jets = history.get("jet_iqr", ())
    figure = new_figure(width=6.4, height=6.4 if jets else 4.4)
    axes, *below = figure.subplots(2 if jets else 1, sharex=True, squeeze=False)[:, 0]
    drawn = [value for key, points in losses.items() for value in _curve(axes, key, points, among=list(losses))]
    if not drawn:
        say_empty(axes, "no losses logged")
    elif min(drawn) > 0 and max(drawn) > 5 * min(drawn):
        axes.set_yscale("log")
    axes.set(ylabel="Loss", title=title)
    if drawn:
        axes.legend()
    for lower in below:
        _curve(lower, "mlpf", jets, among=(), errors=history.get("jet_iqr_error", ()))
        for key, value in (references or {}).items():
            lower.axhline(value, color=look(key).colour, linestyle=look(key).line, label=look(key).label)
        lower.set(ylabel="Jet response IQR / median", ylim=(0, None))
        lower.legend()
    (below or [axes])[-1].set_xlabel("Optimizer step")
    names = {"jet_iqr": "iqr_over_median", "jet_iqr_error": "error"}
    numbers: dict[str, Any] = {
        key: {"step": [p[0] for p in points], names.get(key, "loss"): [p[1] for p in points]} for key, points in history.items()
    }
    return figure, {**numbers, **({"references": dict(references)} if references else {})}


def _curve(
    axes: Axes, key: str, points: Sequence[tuple[float, float]], *, among: Sequence[str], errors: Sequence[tuple[float, float]] = ()
) -> list[float]:
    """Draws the finite points, with errors where there are any; their values."""
    finite = np.array([p for p in points if np.isfinite(p[1])], np.float64).reshape(-1, 2)
    style = look(key, among=among)
    axes.plot(*finite.T, color=style.colour, linestyle=style.line, marker=style.marker, markersize=4, label=style.label)
    bars = dict(errors)
    if bars:
        sizes = [bars.get(step, np.nan) for step in finite[:, 0]]
        axes.errorbar(finite[:, 0], finite[:, 1], yerr=sizes, color=style.colour, linestyle="none", capsize=2)
    values: list[float] = finite[:, 1].tolist()
    return values


@styled
def transfer_curves(
    points: Sequence[TransferPoint],
    *,
    metric: str,
    unit: str = "",
    references: Mapping[str, Estimate] | None = None,
    title: str = "",
) -> Drawn:
    """`metric` against the number of target events, one curve per mode, zero-shot and `references` (baseline, ceiling) as lines."""
    figure = new_figure(width=6.6, height=5.4)
    axes = figure.subplots()
    numbers: dict[str, Any] = {}
    modes = list(dict.fromkeys(p.mode for p in points))
    curves = [mode for mode in modes if mode != "zero-shot"]
    lines = dict(references or {})
    num_seeds = 1
    for i, mode in enumerate(modes):
        sizes, values, errors, seeds = _over_seeds([p for p in points if p.mode == mode])
        num_seeds = max(num_seeds, int(seeds.max()))
        numbers[mode] = {"num_events": sizes, "value": values, "error": errors, "num_seeds": seeds}
        if mode == "zero-shot":
            lines = {"zero-shot": Estimate(float(values[0]), float(errors[0])), **lines}
            continue
        style = look(mode, among=modes)
        offset = 1.03 ** (i - len(curves) / 2)  # curves with equal sizes would hide each other's error bars
        bars = np.nan_to_num(errors)
        axes.errorbar(sizes * offset, values, bars, color=style.colour, marker=style.marker, linestyle=style.line, label=style.label)
    for key, reference in lines.items():
        style = look(key, among=list(lines))
        axes.axhline(reference.value, color=style.colour, linestyle=style.line, label=style.label)
        if np.isfinite(reference.error):
            axes.axhspan(reference.value - reference.error, reference.value + reference.error, color=style.colour, alpha=0.12, linewidth=0)
        numbers.setdefault(key, {"value": reference.value, "error": reference.error})
    axes.set(xlabel="Training events of the target detector", ylabel=axis_label(metric, unit), title=title)
    if curves:
        ticks = sorted({p.num_events for p in points if p.mode in curves})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if numbers:
        has_errors = any(np.isfinite(p.error) for p in points)
        one_seed = "one seed; errors: bootstrap over events" if has_errors else "one seed, no uncertainty shown"
        errors_are = f"mean ± standard deviation of up to {num_seeds} seeds" if num_seeds > 1 else one_seed
        figure.legend(loc="outside lower center", ncols=2, title=errors_are)
    else:
        say_empty(axes, "no trainings")
    return figure, numbers


def _over_seeds(points: Sequence[TransferPoint]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """(sizes, mean values, errors, number of seeds) with one entry per sample size, ascending."""
    sizes = sorted({p.num_events for p in points})
    values, errors, seeds = [], [], []
    for size in sizes:
        same = [p for p in points if p.num_events == size]
        values.append(np.mean([p.value for p in same]))
        errors.append(np.std([p.value for p in same], ddof=1) if len(same) > 1 else same[0].error)
        seeds.append(len(same))
    return np.array(sizes), np.array(values, float), np.array(errors, float), np.array(seeds)
