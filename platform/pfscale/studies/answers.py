"""What is made of a sweep's rows, by the `answer` that its file asks for: sentences, numbers and figures. One entry of ANSWERS each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pfscale.physics.bootstrap import Estimate
from pfscale.report.figures import TransferPoint, transfer_curves
from pfscale.report.search_figure import SearchStep, search_progress
from pfscale.report.style import Drawn
from pfscale.studies.compute import flops_of
from pfscale.studies.heads_answer import heads_answer
from pfscale.studies.ladder import MODE, events_of
from pfscale.studies.measure import PREFIX
from pfscale.studies.multiplier import LEVEL, Multiplier, curve_of, data_multiplier, multiplier_curve
from pfscale.studies.plan import SweepPlan
from pfscale.studies.references import references_on_test
from pfscale.studies.rows import CONTROL, FINISHED, Row, best_settings, ranked, winners, without_seed

_LADDER = {  # metric of the trials -> (what it is, unit, name in sentences)
    "validation_loss": ("validation loss", "", "validation loss"),
    f"{PREFIX}jet_response_iqr_over_median": ("jet response IQR / median", "", "jet resolution"),
    f"{PREFIX}met_resolution": ("missing-momentum resolution", "GeV", "missing-momentum resolution"),
    f"{PREFIX}efficiency_211": ("charged-hadron efficiency", "", ""),
    f"{PREFIX}fake_rate_211": ("charged-hadron fake rate", "", ""),
    f"{PREFIX}efficiency_22": ("photon efficiency", "", ""),
    f"{PREFIX}fake_rate_22": ("photon fake rate", "", ""),
    f"{PREFIX}efficiency_130": ("neutral-hadron efficiency", "", ""),
    f"{PREFIX}fake_rate_130": ("neutral-hadron fake rate", "", ""),
}


@dataclass(frozen=True)
class Answer:
    """Sentences for the terminal, numbers for JSON, figures by name."""

    sentences: tuple[str, ...]
    numbers: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Drawn] = field(default_factory=dict)


def best_setting(plan: SweepPlan, rows: Sequence[Row]) -> Answer:
    """The best settings, in words."""
    metric = plan.question.sweep.metric
    finished = [row for row in rows if row.status == FINISHED and metric in row.metrics]
    best = best_settings(finished, plan.question.sweep)
    if not best:
        return Answer(("no trial finished",))
    values = [row.metrics[metric] for row in best]
    spread = f" ± {np.std(values, ddof=1):.2g} over {len(values)} seeds" if len(values) > 1 else ""
    settings = ", ".join(f"{key}={_shown(best[0][key])}" for key in plan.varied if key != "seed" or len(values) == 1)
    sentence = f"best of {len(finished)} finished trials: {metric} {np.mean(values):.4g}{spread} with {settings}"
    return Answer((sentence,), {"best": without_seed(best[0]) if len(values) > 1 else best[0].settings})


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def transfer(plan: SweepPlan, rows: Sequence[Row]) -> Answer:
    """Curves against the number of events by mode, the data multiplier of `full` over `scratch`, and what it cost."""
    rows = _chosen(plan, [row for row in rows if row.status == FINISHED])
    references = references_on_test(plan)
    detector, sentences = plan.detector, []
    numbers: dict[str, Any] = {"cost": _cost(rows), "trainings": [{**row.settings, **row.metrics} for row in rows]}
    figures: dict[str, Drawn] = {}
    for metric, (label, unit, in_words) in _LADDER.items():
        points = [
            TransferPoint(str(row[MODE]), events_of(row), row.metrics[metric], row.metrics.get(f"{metric}_error", math.nan))
            for row in rows
            if metric in row.metrics
        ]
        if not points:
            continue
        lines = {key: Estimate(*found[metric]) for key, found in references.items() if metric in found}
        figures[f"ladder_{metric.rpartition('/')[2]}"] = transfer_curves(points, metric=label, unit=unit, references=lines)
        if in_words:
            found = _multipliers(rows, metric)
            if found is not None:
                headline, curve = found
                numbers[metric] = {"multiplier": asdict(headline), "curve": [asdict(m) for m in curve]}
                sentences.append(_sentence(headline, in_words, detector))
    return Answer(tuple(sentences) or ("modes full and scratch are not both there: no data multiplier",), numbers, figures)


def search(plan: SweepPlan, rows: Sequence[Row]) -> Answer:
    """The winner, its seeds, and the best so far against compute, beside the control's."""
    first = best_setting(plan, [row for row in rows if row.group != CONTROL])
    sweep = plan.question.sweep
    arms = {"": sweep.search + ("" if sweep.scheduler.kind == "none" else f" + {sweep.scheduler.kind}"), CONTROL: "random search"}
    curves = {label: _best_so_far(plan, [row for row in rows if row.group == group]) for group, label in arms.items()}
    curves = {label: steps for label, steps in curves.items() if steps}
    figures = {"search": search_progress(curves, metric=sweep.metric, lower_is_better=sweep.mode == "min")}
    sentences, numbers = list(first.sentences), dict(first.numbers)
    numbers["best_so_far"] = {label: [asdict(step) for step in steps] for label, steps in curves.items()}
    arms_best = [next((r for r in ranked(rows, sweep) if r.group == group and r.status == FINISHED), None) for group in ("", CONTROL)]
    own, control = (row.metrics.get(sweep.metric, math.nan) if row is not None else math.nan for row in arms_best)
    if arms_best[1] is not None:
        flops = {group: sum(flops_of(plan, row) for row in rows if row.group == group) for group in ("", CONTROL)}
        times = f"{flops[CONTROL] / max(flops[''], 1):.2f} times the operations"
        sentences.append(f"best single trial of the search {own:.4g}; of random search with {times} {control:.4g}")
    for settings, values in _winners(plan, rows):
        sentences.append(f"{settings}: {np.mean(values):.4g} ± {np.std(values, ddof=1):.2g} over {len(values)} seeds")
    return Answer(tuple(sentences), numbers, figures)


def downstream(plan: SweepPlan, rows: Sequence[Row]) -> Answer:
    """Tables of arms, curves against labels, and whether latents help."""
    return Answer(*heads_answer(plan, rows))


ANSWERS: dict[str, Callable[[SweepPlan, Sequence[Row]], Answer]] = {
    "table": best_setting,
    "transfer": transfer,
    "search": search,
    "downstream": downstream,
}


def _chosen(plan: SweepPlan, rows: Sequence[Row]) -> list[Row]:
    """The rows with the settings that won, and those that nothing was trained for; all, where the sweep lets none win."""
    sweep = plan.question.sweep
    if not sweep.winners:
        return list(rows)
    won = [without_seed(same[0]) for same in winners(rows, sweep)]
    return [row for row in rows if not row.elements or without_seed(row) in won]


def _multipliers(rows: Sequence[Row], metric: str) -> tuple[Multiplier, list[Multiplier]] | None:
    curves = {}
    for mode in ("full", "scratch"):
        points = [
            (float(events_of(row)), row.metrics[metric], row.replicas.get(metric))
            for row in rows
            if row[MODE] == mode and metric in row.metrics
        ]
        if not points:
            return None
        curves[mode] = curve_of(points)
    return data_multiplier(curves["full"], curves["scratch"]), multiplier_curve(curves["full"], curves["scratch"])


def _sentence(found: Multiplier, in_words: str, detector: str) -> str:
    events = f"{detector.upper()} events"
    interval = f"{LEVEL:.0%} interval of the bootstrap over {found.resampled}" if found.resampled else "one training each, so no interval"
    return f"at equal {in_words} ({found.at:.4g}), fine-tuning needs {found} times fewer {events} than training from scratch ({interval})"


def _cost(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By mode and size: trainings, events seen, passes, hours."""
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((str(row[MODE]), events_of(row)), []).append(row)
    return [
        {
            "mode": mode,
            "num_events": size,
            "trainings": len(found),
            "passes": float(np.mean([row.events for row in found])) / size if size else 0.0,
            "elements": float(np.mean([row.elements for row in found])),
            "hours": float(np.mean([row.training_seconds for row in found])) / 3600,
        }
        for (mode, size), found in sorted(cells.items())
    ]


def _best_so_far(plan: SweepPlan, rows: Sequence[Row]) -> list[SearchStep]:
    """After every trial, in the order of their ends: operations of all so far, and the best value so far."""
    sweep = plan.question.sweep
    sign = 1.0 if sweep.mode == "min" else -1.0
    seen, best, steps = 0.0, math.inf, []
    for row in sorted(rows, key=lambda row: row.ended):
        seen += flops_of(plan, row)
        value = row.metrics.get(sweep.metric, math.nan)
        if math.isfinite(value):
            best = min(best, sign * value)
            steps.append(SearchStep(seen, sign * best))
    return steps


def _winners(plan: SweepPlan, rows: Sequence[Row]) -> list[tuple[str, list[float]]]:
    """(settings, values over seeds) of the trials that were repeated."""
    metric = plan.question.sweep.metric
    found: dict[str, list[float]] = {}
    for row in rows:
        settings = ", ".join(f"{key}={_shown(row[key])}" for key in plan.varied if key != "seed")
        if row.status == FINISHED and metric in row.metrics:
            found.setdefault(settings, []).append(row.metrics[metric])
    return [(settings, values) for settings, values in found.items() if len(values) > 1]
