"""What is made of the records of many trainings: laws, rivals, hold-out, advice; as sentences, numbers, figures and a page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale.errors import NotEnoughDataError
from pfscale.report.html import Page, PageCode, PageSection, PageTable, page_figure
from pfscale.report.scaling_figures import law_curves, law_hold_out, law_residuals
from pfscale.report.style import Drawn
from pfscale.studies.records import NotUsed, TrainingRecord
from pfscale.studies.scaling import Grid, Prices, Scaling, advice, study, training_cost
from pfscale.studies.transfer_law import TransferLaw, fit_transfer

Floats = NDArray[np.float64]
_LOSS = "validation_loss"
_CURVE_POINTS = 60
_ISO_BUDGETS = 4


@dataclass(frozen=True)
class ScalingAnswer:
    """What was found.

    Attributes:
        sentences: the law, what speaks against it, advice.
        figures: name -> figure with its numbers.
        captions: of the figures.
    """

    metric: str
    sentences: tuple[str, ...]
    doubts: tuple[str, ...]
    tables: tuple[PageTable, ...]
    numbers: dict[str, Any]
    figures: dict[str, Drawn]
    captions: dict[str, str]
    left_out: tuple[NotUsed, ...]

    def page(self, *, question: str, command: Sequence[str]) -> Page:
        """All of it as one page."""
        shown = tuple(page_figure(name, drawn, self.captions[name]) for name, drawn in self.figures.items())
        rows = [(run.name, run.run_id, run.reason) for run in self.left_out]
        listed = (PageTable(("run", "id", "why"), rows, "runs that no law was fitted to"),) if rows else ()
        sections = [
            PageSection("The law", tables=self.tables, figures=shown),
            PageSection("Runs left out", paragraphs=() if rows else ("none",), tables=listed),
            PageSection("Again", code=(PageCode("command", shlex.join(command)),)),
        ]
        return Page(f"Scaling of {self.metric.replace('_', ' ')}", question, self.sentences, self.doubts, sections)


def answer_of(
    records: Sequence[TrainingRecord],
    left_out: Sequence[NotUsed],
    *,
    metric: str = _LOSS,
    budgets: Sequence[float] = (),
    prices: Prices | None = None,
    money: float = 0.0,
) -> ScalingAnswer:
    """The laws that the records allow: of N and D over trainings of one kind, and of transfer where `full` and `scratch` are both there.

    Raises:
        NotEnoughDataError: no law can be fitted, with what there is.
    """
    measured = [record for record in records if (record.value(metric) or 0.0) > 0]
    unmeasured = [NotUsed(r.run_id, r.name, f"has no {metric}") for r in records if r not in measured]
    by_kind: dict[tuple[str, str], list[TrainingRecord]] = {}
    for record in measured:
        by_kind.setdefault((record.mode, record.data), []).append(record)
    found = _Found(metric)
    for (mode, data), same in by_kind.items():
        of = mode if len(by_kind) == 1 else f"{mode} on {data[:8]}"
        _joint(found, of, same, budgets, prices, money)
    for data in dict.fromkeys(data for _, data in by_kind):
        arms = [by_kind.get((mode, data), []) for mode in ("scratch", "full")]
        if all(arms):
            _transfer(found, arms[0], arms[1])
    if not found.sentences:
        have = ", ".join(f"{len(same)} runs ({mode})" for (mode, _), same in by_kind.items()) or "no finished training"
        hint = f"there are: {have}; a law of N and D needs six, of several sizes"
        raise NotEnoughDataError("no law can be fitted", where=metric, hint=hint)
    return ScalingAnswer(
        metric,
        tuple(found.sentences),
        tuple(found.doubts),
        tuple(found.tables),
        found.numbers,
        found.figures,
        found.captions,
        (*left_out, *unmeasured),
    )


class _Found:
    """What is gathered."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.sentences: list[str] = []
        self.doubts: list[str] = [] if metric == _LOSS else [f"a power law of {metric} is empirical: nothing says that it should be one"]
        self.tables: list[PageTable] = []
        self.numbers: dict[str, Any] = {"metric": metric}
        self.figures: dict[str, Drawn] = {}
        self.captions: dict[str, str] = {}

    def draw(self, name: str, drawn: Drawn, caption: str) -> None:
        self.figures[name], self.captions[name] = drawn, caption


def _joint(
    found: _Found, of: str, records: Sequence[TrainingRecord], budgets: Sequence[float], prices: Prices | None, money: float
) -> None:
    values = [record.value(found.metric) or 0.0 for record in records]
    parameters, events = [record.parameters for record in records], [record.events for record in records]
    grid = Grid.of(parameters, events, values, [record.flops for record in records], [record.passes for record in records])
    if len(grid) < 6 or len(np.unique(grid.parameters)) < 2 or len(np.unique(grid.events)) < 2:  # five parameters
        return
    result = study(grid)
    said = result.intervals
    found.sentences.append(
        f"{of}: {found.metric} = E + A / N^alpha + B / D^beta over {len(grid)} runs: "
        + ", ".join(f"{name} = {edges}" for name, edges in said.items())
        + " (90% intervals of the bootstrap over runs)"
    )
    hold = result.hold_out
    if hold is not None:
        found.sentences.append(
            f"{of}: the largest models ({hold.parameters:.3g} parameters), left out and predicted: "
            f"{np.abs(hold.errors).mean():.2%} off in the mean, {np.abs(hold.errors).max():.2%} at most"
        )
    found.sentences += [f"{of}: {line}" for line in advice(result, budgets=budgets, prices=prices, money=money)]
    found.doubts += [f"{of}: {doubt}" for doubt in result.doubts]
    rivals = [(one.name, str(one.num_parameters), f"{one.error:.3%}", f"{one.worst:.2%}") for one in result.alternatives]
    caption = "runs left out one by one: median and largest error of their prediction"
    found.tables.append(PageTable((f"law ({of})", "parameters", "error", "worst"), rivals, caption))
    found.numbers[of] = {
        "law": {name: asdict(edges) for name, edges in said.items()},
        "runs": [{"N": r.parameters, "D": r.events, "value": r.value(found.metric), "flops": r.flops, "seed": r.seed} for r in records],
        "agreeing": result.fit.agreeing,
        "seed_spread": grid.seed_spread,
        "alternatives": [asdict(one) for one in result.alternatives],
        "hold_out": None if hold is None else {**{k: getattr(hold, k) for k in vars(hold)}, "errors": hold.errors},
        "doubts": result.doubts,
    }
    _draw(found, of, result)


def _draw(found: _Found, of: str, result: Scaling) -> None:
    grid, law = result.grid, result.fit.law
    label, name = found.metric.replace("_", " "), of.replace(" ", "_")
    sizes, events = np.unique(grid.parameters), np.unique(grid.events)
    along_d, along_n = (np.geomspace(values.min(), values.max(), _CURVE_POINTS) for values in (events, sizes))

    def rows(of_sizes: Floats, value: float) -> NDArray[np.bool_]:
        return of_sizes == value

    by_n = {f"{n:.3g}": n for n in sizes}
    found.draw(
        f"{name}_against_events",
        law_curves(
            {k: (grid.events[rows(grid.parameters, n)], grid.loss[rows(grid.parameters, n)]) for k, n in by_n.items()},
            {k: (along_d, law(np.full(_CURVE_POINTS, n), along_d)) for k, n in by_n.items()},
            x_label="Unique training events",
            y_label=label,
            legend="parameters; lines: the law",
        ),
        "Against the number of training events, by model size.",
    )
    by_d = {f"{d:,.0f}": d for d in events}
    found.draw(
        f"{name}_against_parameters",
        law_curves(
            {k: (grid.parameters[rows(grid.events, d)], grid.loss[rows(grid.events, d)]) for k, d in by_d.items()},
            {k: (along_n, law(along_n, np.full(_CURVE_POINTS, d))) for k, d in by_d.items()},
            x_label="Parameters",
            y_label=label,
            legend="training events; lines: the law",
        ),
        "Against model size, by the number of training events.",
    )
    found.draw(f"{name}_iso_flops", _iso_flops(result, label), "The law along fixed numbers of operations; stars: the lowest of each.")
    drawn = law_residuals(grid.flops, result.fit.residuals, x_label="Training FLOPs", spread=grid.seed_spread)
    found.draw(f"{name}_residuals", drawn, "What the law leaves over.")
    if result.hold_out is not None:
        h = result.hold_out
        drawn = law_hold_out(h.events, h.measured, h.predicted, h.low, h.high, y_label=label, of=f"models of {h.parameters:.3g} parameters")
        found.draw(f"{name}_hold_out", drawn, "The largest models, predicted by a law of the others.")


def _iso_flops(result: Scaling, label: str) -> Drawn:
    grid, spent = result.grid, training_cost(result.grid)
    parameters = np.geomspace(grid.parameters.min(), grid.parameters.max(), _CURVE_POINTS)
    events = np.geomspace(grid.events.min(), grid.events.max(), 4000)
    curves, minima = {}, []
    for budget in np.geomspace(grid.flops.min(), grid.flops.max(), _ISO_BUDGETS + 2)[1:-1]:
        # the cost rises with D: the largest D that the budget pays for
        reach = np.array([np.searchsorted(spent(np.full(len(events), n), events), budget) for n in parameters])
        inside = (reach > 0) & (reach < len(events))
        if inside.sum() < 2:  # a line has two points
            continue
        losses = result.fit.law(parameters[inside], events[reach[inside]])
        curves[f"{budget:.2g} FLOPs"] = (parameters[inside], losses)
        lowest = int(np.argmin(losses))
        if 0 < lowest < len(losses) - 1:
            minima.append((float(parameters[inside][lowest]), float(losses[lowest])))
    return law_curves({}, curves, x_label="Parameters", y_label=label, legend="the law at equal operations", minima=minima)


def _transfer(found: _Found, scratch: Sequence[TrainingRecord], full: Sequence[TrainingRecord]) -> None:
    try:
        arms = [([r.events for r in arm], [r.value(found.metric) or 0.0 for r in arm]) for arm in (scratch, full)]
        law = fit_transfer(arms[0], arms[1])
    except ValueError:
        return
    sizes = np.unique([r.events for r in full])
    curve = {float(size): law.multiplier(float(size)) for size in sizes}
    found.sentences.append(
        f"transfer: {found.metric} of fine-tuning is that of scratch with D + k D^a events, k = {np.exp(law.theta[3]):.3g}, "
        f"a = {law.theta[4]:.2g}; the data multiplier at "
        + ", ".join(f"{size:,.0f} events: {edges.value:.3g} [{edges.low:.3g}, {edges.high:.3g}]" for size, edges in curve.items())
    )
    if law.behind:
        found.doubts.append("transfer: fine-tuning ends worse than from scratch at the largest size, which the law cannot describe")
    found.numbers["transfer"] = {
        "theta": law.theta,
        "behind": law.behind,
        "multiplier": [{"events": size, **asdict(edges)} for size, edges in curve.items()],
    }
    found.draw("transfer_law", _transfer_figure(law, scratch, full, found.metric), "Both arms and the law of transfer.")


def _transfer_figure(law: TransferLaw, scratch: Sequence[TrainingRecord], full: Sequence[TrainingRecord], metric: str) -> Drawn:
    points, curves = {}, {}
    for name, arm in (("from scratch", scratch), ("fine-tuned", full)):
        sizes = np.array([r.events for r in arm], np.float64)
        along = np.geomspace(sizes.min(), sizes.max(), _CURVE_POINTS)
        points[name] = (sizes, np.array([r.value(metric) or 0.0 for r in arm]))
        curves[name] = (along, law.curve(along, is_tuned=name == "fine-tuned"))
    y_label = metric.replace("_", " ")
    return law_curves(points, curves, x_label="Unique training events of the target", y_label=y_label, legend="lines: the law of transfer")
