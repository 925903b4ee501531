"""What is made of many downstream heads: a table per task, curves against labels, and whether latents help, with the control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfscale.models.mlpf import LatentConfig
from pfscale.report.arms_figure import ArmPoint, arm_curves
from pfscale.report.style import Drawn
from pfscale.studies.config import Draw
from pfscale.studies.heads_figures import figures_of, latents_figures, said
from pfscale.studies.measure import is_larger_better
from pfscale.studies.plan import SweepPlan
from pfscale.studies.rows import FINISHED, Row
from pfscale.tasks.arms import has_latents
from pfscale.training.downstream import DownstreamConfig, HeadLaunch
from pfscale.training.latents import load_objects

# task -> (metric, what it is, unit), the first one in sentences
METRICS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "jet_flavour": (
        ("cross_entropy", "cross entropy", ""),
        ("auc_b_vs_c", "AUC, b against c", ""),
        ("auc_b_vs_ud", "AUC, b against u, d", ""),
        ("auc_c_vs_ud", "AUC, c against u, d", ""),
        ("auc_g_vs_ud", "AUC, g against u, d", ""),
    ),
    "jet_energy": (("energy_response_iqr_over_median", "jet energy response IQR / median", ""),),
    "missing_momentum": (("met_resolution", "missing-momentum resolution", "GeV"),),
    "event_assignment": (("event_efficiency", "events with both tops right", ""),),
}
_REFERENCE = "kinematics"  # arm that the others are compared with


@dataclass(frozen=True)
class Cell:
    """Trainings that differ in their seed only.

    Attributes:
        latents: which, where they are not the usual ones.
        labels: training events; 0: all.
        values: metric -> one per seed; `errors`: of the test events, by the bootstrap, mean over seeds.
        models: folder of each seed's.
    """

    task: str
    arm: str
    state: str
    latents: str
    labels: int
    parameters: int
    values: dict[str, list[float]]
    errors: dict[str, float]
    models: list[str]

    @property
    def name(self) -> str:
        """Of the curve."""
        of_state = "" if self.state == "pretrained-frozen" else self.state.removeprefix("pretrained-")
        said = ", ".join(filter(None, (of_state, self.latents)))
        return f"{self.arm} ({said})" if said else self.arm

    def shown(self, metric: str) -> str:
        """Mean and standard deviation over seeds."""
        found = self.values.get(metric, [])
        if not found:
            return "-"
        spread = f" ± {np.std(found, ddof=1):.2g}" if len(found) > 1 else ""
        return f"{np.mean(found):.4g}{spread}"


def cells_of(plan: SweepPlan, rows: Sequence[Row]) -> list[Cell]:
    """The finished trainings by everything but their seed."""
    groups: dict[tuple[str, str, str, str, int], list[Row]] = {}
    for row in rows:
        if row.status != FINISHED:
            continue
        config = plan.question.config(Draw(tuple(row.settings.items())))
        assert isinstance(config, DownstreamConfig)
        whose: str = config.state if has_latents(config.arm) else "pretrained-frozen"
        key = (config.task.kind, config.arm, whose, _latents_of(config), config.data.num_events or 0)
        groups.setdefault(key, []).append(row)
    found = []
    for (task, arm, state, latents, labels), same in sorted(groups.items()):
        values: dict[str, list[float]] = {}
        errors: dict[str, float] = {}
        for name, *_ in METRICS[task]:
            for metric in (name, f"baseline/{name}"):
                of_rows = [row.metrics[f"test/{metric}"] for row in same if f"test/{metric}" in row.metrics]
                if of_rows:
                    values[metric] = of_rows
                    errors[metric] = float(np.mean([row.metrics.get(f"test/{metric}_error", math.nan) for row in same]))
        found.append(
            Cell(
                task,
                arm,
                state,
                latents,
                labels,
                int(same[0].metrics.get("num_parameters", 0)),
                values,
                errors,
                [row.model for row in same],
            )
        )
    return found


def _latents_of(config: DownstreamConfig) -> str:
    """Which latents a head saw, in a word or two; nothing for the usual ones, and for none."""
    if not has_latents(config.arm) or config.latents == LatentConfig():
        return ""
    return config.latents.part if config.latents.part != "encoder" else f"layer {config.latents.layer}"


def heads_answer(plan: SweepPlan, rows: Sequence[Row]) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Drawn]]:
    """(sentences, numbers, figures)."""
    cells = cells_of(plan, rows)
    sentences: list[str] = []
    numbers: dict[str, Any] = {"cells": [vars(cell) for cell in cells]}
    figures: dict[str, Drawn] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        of_task = [cell for cell in cells if cell.task == task]
        sentences += _table(task, of_task)
        sentences += _verdict(task, of_task)
        for metric, label, unit in METRICS[task]:
            points = [ArmPoint(cell.name, cell.labels, value) for cell in of_task for value in cell.values.get(metric, ())]
            if points:
                plain = [value for cell in of_task for value in cell.values.get(f"baseline/{metric}", ())]
                baseline = float(np.mean(plain)) if plain else None
                figures[f"{task}_{metric}"] = arm_curves(points, metric=label, unit=unit, baseline=baseline)
        most = max((cell.labels or math.inf) for cell in of_task)
        figures |= figures_of(task, {cell.name: said(cell.models) for cell in of_task if (cell.labels or math.inf) == most})
    launches = [trial.launch for trial in plan.trials if isinstance(trial.launch, HeadLaunch) and has_latents(trial.launch.config.arm)]
    for launch in {launch.cache: launch for launch in launches}.values():
        encoder = launch.plan.encoder_name.replace(":", "_").replace("/", "_")
        figures |= latents_figures(load_objects(launch.cache)[1], encoder)
    return tuple(sentences), numbers, figures


def _table(task: str, cells: Sequence[Cell]) -> list[str]:
    """Lines of a table: arm, backbone, labels, parameters, metrics."""
    names = [name for name, *_ in METRICS[task] if any(name in cell.values for cell in cells)]
    lines = [f"{task}: arm | labels | parameters | " + " | ".join(names)]
    lines += [
        f"  {cell.name} | {cell.labels or 'all'} | {cell.parameters} | " + " | ".join(cell.shown(name) for name in names)
        for cell in sorted(cells, key=lambda c: (c.labels or math.inf, c.name))
    ]
    baselines = {name: cells[0].values.get(f"baseline/{name}") for name in names}
    if any(baselines.values()):
        lines.append("  without the task | | | " + " | ".join(f"{v[0]:.4g}" if v else "-" for v in baselines.values()))
    return lines


def _verdict(task: str, cells: Sequence[Cell]) -> list[str]:
    """Whether latents help, at every number of labels, beside kinematics and beside untrained latents.

    Better or worse is what differs by more than two standard errors of the means over seeds.
    """
    metric, label, _ = METRICS[task][0]
    is_lower = not is_larger_better(metric)
    lines = []
    for labels in sorted({cell.labels for cell in cells}, key=lambda count: count or math.inf):
        here = {cell.name: cell.values.get(metric, []) for cell in cells if cell.labels == labels}
        for arm in ("kinematics+latents", "kinematics+tracks+latents", "latents-linear"):
            for other in (arm.removesuffix("+latents") if "+latents" in arm else _REFERENCE, f"{arm} (random-frozen)"):
                if here.get(arm) and here.get(other):
                    gain, error = _gain(here[arm], here[other], is_lower=is_lower)
                    helps = "better" if gain > 2 * error else "worse" if gain < -2 * error else "not told apart"
                    how = f"{gain:+.2%} ± {error:.2%}" if math.isfinite(error) else f"{gain:+.2%}; one seed says nothing of its error"
                    lines.append(f"{task}, {labels or 'all'} events: {arm} against {other}: {label} {helps} ({how})")
    return lines


def _gain(values: Sequence[float], others: Sequence[float], *, is_lower: bool) -> tuple[float, float]:
    """(relative improvement of the means, its standard error over seeds; infinite with one seed)."""
    mean, other = float(np.mean(values)), float(np.mean(others))
    variance = sum(np.var(v, ddof=1) / len(v) if len(v) > 1 else math.inf for v in (values, others))
    gain = (other - mean if is_lower else mean - other) / abs(other)
    return gain, float(np.sqrt(variance)) / abs(other)
