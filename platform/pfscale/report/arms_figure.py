"""The figure of downstream arms: a metric against the number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from pfscale.report.style import Drawn, axis_label, look, new_figure, say_empty, styled


@dataclass(frozen=True)
class ArmPoint:
    """One training: its arm, its training events (0: all), and a metric on the test events."""

    arm: str
    labels: int
    value: float


@styled
def arm_curves(points: Sequence[ArmPoint], *, metric: str, unit: str = "", baseline: float | None = None) -> Drawn:
    """One curve per arm, mean and standard deviation over seeds; `baseline`: what there is without the task, as a line."""
    figure = new_figure(width=6.6, height=5.4)
    axes = figure.subplots()
    arms = list(dict.fromkeys(point.arm for point in points))
    ticks = sorted({point.labels for point in points}, key=lambda count: count or np.inf)
    numbers: dict[str, Any] = {}
    for i, arm in enumerate(arms):
        style = look(arm, among=arms)
        groups = [[p.value for p in points if p.arm == arm and p.labels == tick] for tick in ticks]
        x = np.array([number for number, group in enumerate(groups) if group]) + 0.02 * (i - (len(arms) - 1) / 2)
        mean = [float(np.mean(group)) for group in groups if group]
        spread = [float(np.std(group, ddof=1)) if len(group) > 1 else 0.0 for group in groups if group]
        axes.errorbar(
            x, mean, spread, color=style.colour, marker=style.marker, fillstyle=style.fill, linestyle=style.line, label=style.label
        )
        numbers[arm] = {"labels": [tick for tick, group in zip(ticks, groups, strict=True) if group], "mean": mean, "spread": spread}
    if baseline is not None:
        axes.axhline(baseline, color="black", linestyle=":", label="without the task")
        numbers["baseline"] = baseline
    axes.set(xlabel="Labelled training events", ylabel=axis_label(metric, unit))
    axes.set_xticks(range(len(ticks)), [f"{tick:,}" if tick else "all" for tick in ticks])
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.xaxis.set_minor_locator(NullLocator())
    if arms:
        figure.legend(loc="outside lower center", ncols=2, title="mean ± standard deviation over seeds")
    else:
        say_empty(axes, "no trainings")
    return figure, numbers
