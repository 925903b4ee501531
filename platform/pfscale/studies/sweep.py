"""A sweep: all trials of a question on Ray Tune, below one MLflow run; killed and repeated, it goes on and ends with the same table."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from pfscale.config import dump_yaml
from pfscale.errors import TrainingError
from pfscale.ray_cluster import ray_cluster
from pfscale.report.style import Drawn
from pfscale.studies.answers import ANSWERS
from pfscale.studies.compute import flops_of, flops_of_draw
from pfscale.studies.config import Draw, draws, repeated
from pfscale.studies.ladder import climb
from pfscale.studies.plan import SweepPlan, concurrency_of
from pfscale.studies.rows import CONTROL, DIVERGED, FINISHED, STOPPED, WINNER, Row, ranked, read_rows, winners, without_seed
from pfscale.studies.tuning import run_arm
from pfscale.tracking.runs import RunLogger, ended, jsonable
from pfscale.training.storage import claimed, storage_folder

_log = logging.getLogger(__name__)
BEST_CONFIG = "best.yaml"
_MOST_CONTROLS = 4  # draws of the control for each trial of the search


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        rows: one per trial, by settings.
        answer: sentences.
        numbers: of the answer, ready for JSON.
        seconds: wall time of this call.
    """

    plan: SweepPlan
    rows: tuple[Row, ...]
    answer: tuple[str, ...]
    numbers: dict[str, Any]
    figures: dict[str, Drawn]
    folder: Path
    link: str
    seconds: float

    @property
    def best(self) -> Row:
        """The finished trial with the best value of the metric."""
        return best_of(self.rows, self.plan)

    def table(self) -> Table:
        """One row per trial, best first."""
        sweep = self.plan.question.sweep
        keys = list(self.plan.varied)
        table = Table(
            *[key.rpartition(".")[2] for key in keys], sweep.metric, "status", "elements", "s", title=sweep.question, title_justify="left"
        )
        for row in ranked(self.rows, sweep):
            value = row.metrics.get(sweep.metric, math.nan)
            cells = [_shown(row[key]) for key in keys]
            status = f"{row.status} at step {row.last_step}" if row.status != FINISHED else row.group or row.status
            table.add_row(*cells, f"{value:.4g}", status, f"{row.elements:.3g}", f"{row.seconds:.0f}")
        return table


def run_sweep(plan: SweepPlan) -> SweepResult:
    """Runs what is missing of the sweep and makes the answer of all trials.

    Raises:
        TrainingError: trials failed more often than `max_failures` allows; what is complete is kept.
        StoppedError: SIGTERM; KeyboardInterrupt: Ctrl-C; the same command goes on.
        ResourceError: the sweep is in progress in another process, or the cluster has no room for one trial.
    """
    begin = time.monotonic()
    sweep = plan.question.sweep
    folder = storage_folder(plan.trials[0].launch.config.run) / plan.name
    with claimed(folder), ray_cluster():
        plan = replace(plan, concurrency=concurrency_of(plan))
        tags = {"pfscale.verb": "sweep", "pfscale.question": sweep.question, "pfscale.sweep": plan.question.name}
        logger = plan.tracker.start_run(plan.name, fingerprint=plan.fingerprint, tags=tags)
        with ended(logger):
            _log_question(plan, logger)
            for launch in {launch.folder: launch for launch in (trial.launch for trial in plan.trials)}.values():
                launch.prepare()
            plan.tracker.end_children(logger.run_id)  # of an attempt that was killed: they are opened again if they go on
            _run_all(plan, folder, logger.run_id)
            result = _result(plan, folder, logger, time.monotonic() - begin)
            _log_result(result, logger)
    return result


def best_of(rows: Sequence[Row], plan: SweepPlan) -> Row:
    """The finished row with the best value of the metric.

    Raises:
        TrainingError: none has finished.
    """
    finished = [row for row in ranked(rows, plan.question.sweep) if row.status == FINISHED]
    if not finished:
        raise TrainingError("no trial finished: every one diverged or was stopped", where=plan.name)
    return finished[0]


def _run_all(plan: SweepPlan, folder: Path, parent_run: str) -> None:
    """The sweep's own trials, then its control, then its winners with further seeds."""
    sweep = plan.question.sweep
    wanted = [trial.draw for trial in plan.trials]
    if sweep.stop_ladder:
        climb(sweep, wanted, lambda some, name: run_arm(plan, folder, parent_run, some, name=name))
    else:
        run_arm(plan, folder, parent_run, wanted)
    if sweep.control:
        run_arm(plan, folder, parent_run, _control_draws(plan, read_rows(folder)), group=CONTROL)
    if sweep.winners:
        first = int(plan.trials[0].launch.config.seed)
        repeats = [
            again
            for row in winners(read_rows(folder), sweep)
            for again in repeated(
                Draw(tuple(without_seed(row).items())), first_seed=int(row["seed"] or first) + 1, count=sweep.winner_seeds - 1
            )
        ]
        run_arm(plan, folder, parent_run, repeats, group=WINNER)


def _control_draws(plan: SweepPlan, rows: Sequence[Row]) -> list[Draw]:
    """So many random draws as can run to their end with the operations of the search; one at least."""
    left = sum(flops_of(plan, row) for row in rows if not row.group)
    sweep = plan.question.sweep
    wanted: list[Draw] = []
    count = len(rows) * _MOST_CONTROLS
    for draw in draws(sweep.model_copy(update={"num_samples": count, "search": "random", "search_seed": sweep.search_seed + 1})):
        left -= flops_of_draw(plan, draw)
        if wanted and left < 0:
            break
        wanted.append(draw)
    return wanted


def _log_question(plan: SweepPlan, logger: RunLogger) -> None:
    logger.log_text(dump_yaml(plan.question.sweep), "sweep.yaml")
    logger.log_text(plan.question.base.read_text(), "base.yaml")
    logger.log_params({"trials": len(plan.trials), "varied": ", ".join(plan.varied), "metric": plan.question.sweep.metric})


def _result(plan: SweepPlan, folder: Path, logger: RunLogger, seconds: float) -> SweepResult:
    rows = tuple(read_rows(folder))
    answer = ANSWERS[plan.question.sweep.answer](plan, rows)
    return SweepResult(plan, rows, answer.sentences, answer.numbers, answer.figures, folder, logger.link, seconds)


def _log_result(result: SweepResult, logger: RunLogger) -> None:
    """Table, answer and figures, in MLflow and in the sweep's folder."""
    table = [{k: v for k, v in asdict(row).items() if k not in ("evaluations", "replicas")} for row in result.rows]
    documents = {"table.json": table, "answer.json": {"sentences": list(result.answer), **result.numbers}}
    for name, content in documents.items():
        (result.folder / name).write_text(json.dumps(jsonable(content), indent=1))
        logger.log_json(content, name)
    best = _best_config(result)
    (result.folder / BEST_CONFIG).write_text(best)
    logger.log_text(best, BEST_CONFIG)
    for name, (figure, numbers) in result.figures.items():
        figure.savefig(result.folder / f"{name}.png", dpi=150)
        (result.folder / f"{name}.json").write_text(json.dumps(jsonable(numbers), indent=1))
        logger.log_figure(figure, f"figures/{name}.png")
        logger.log_json(numbers, f"figures/{name}.json")
    metric = result.plan.question.sweep.metric
    counts = {status: sum(row.status == status for row in result.rows) for status in (FINISHED, STOPPED, DIVERGED)}
    logger.log_metrics({f"trials_{status}": float(count) for status, count in counts.items()}, step=0)
    if metric in result.best.metrics:
        logger.log_metrics({f"best_{metric}": result.best.metrics[metric]}, step=0)


def _best_config(result: SweepResult) -> str:
    """The config of the best trial, ready for its verb, with where it comes from."""
    plan, best = result.plan, result.best
    sweep = plan.question.sweep
    draw = Draw(tuple(best.settings.items()))
    values = plan.question.config(draw).model_dump(mode="json", exclude={"run", "register_as", "physics_events"})
    value = best.metrics.get(sweep.metric, math.nan)
    head = [
        f"# {sweep.question}",
        f"# Best of {len(result.rows)} trials of {plan.name}: {sweep.metric} {value:.4g}, MLflow run {best.run_id}",
        f"# {plan.question.command(draw)}",
    ]
    return "\n".join([*head, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)])


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
