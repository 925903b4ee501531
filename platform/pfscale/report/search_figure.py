"""The figure of a hyper-parameter search: the best so far against compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfscale.report.style import Drawn, look, new_figure, say_empty, styled

_NAMES = {"jet_response_iqr_over_median": "jet response IQR / median", "met_resolution": "missing-momentum resolution [GeV]"}


@dataclass(frozen=True)
class SearchStep:
    """After a trial: floating-point operations of all trials so far, by formula, and the best value of the metric so far."""

    flops: float
    best: float


@styled
def search_progress(curves: Mapping[str, Sequence[SearchStep]], *, metric: str, lower_is_better: bool) -> Drawn:
    """One step line per search, against the operations of all of its trials."""
    figure = new_figure(width=6.6, height=4.8)
    axes = figure.subplots()
    power = 3 * int(math.log10(max([1.0, *(step.flops for steps in curves.values() for step in steps)])) // 3)
    for key, steps in curves.items():
        style = look(key, among=list(curves))
        x, y = [step.flops / 10**power for step in steps], [step.best for step in steps]
        axes.step(x, y, where="post", color=style.colour, linestyle=style.line, marker=style.marker, label=style.label)
    better = "lower" if lower_is_better else "higher"
    of_data = "validation " if metric.startswith("validation_") else "test " if metric.startswith("test/") else ""
    name = metric.removeprefix("validation_").removeprefix("test/")
    label = _NAMES.get(name, name.replace("_", " "))
    axes.set_xlabel(f"Operations of all trials so far [$10^{{{power}}}$]")
    axes.set_ylabel(f"Best {of_data}{label} ({better} is better)", fontsize="small")
    if curves:
        axes.legend(title="one value per trial, no uncertainty")
    else:
        say_empty(axes, "no trial has finished")
    return figure, {key: {"flops": [s.flops for s in steps], "best": [s.best for s in steps]} for key, steps in curves.items()}
