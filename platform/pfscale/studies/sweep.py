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

import numpy as np
import yaml
from rich.table import Table

from pfscale.config import dump_yaml
from pfscale.errors import ConfigError, TrainingError
from pfscale.ray_cluster import ray_cluster
from pfscale.report.style import Drawn
from pfscale.studies.answers import ANSWERS
from pfscale.studies.compute import flops_of, flops_of_draw
from pfscale.studies.config import Draw, draws, repeated
from pfscale.studies.ladder import climb
from pfscale.studies.plan import SweepPlan, concurrency_of
from pfscale.studies.rows import (
    CONTROL,
    DIVERGED,
    FINISHED,
    INVALID,
    STOPPED,
    WINNER,
    Row,
    best_settings,
    key_of,
    ranked,
    read_rows,
    winners,
    without_seed,
)
from pfscale.studies.tuning import run_arm
from pfscale.tracking.runs import RunLogger, ended, jsonable
from pfscale.tracking.store import shown
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
        """A trial with the best settings, the one of lowest seed; see `best_of`."""
        return best_of(self.rows, self.plan)[0]

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
            try:
                _run_all(plan, folder, logger.run_id)
            finally:
                plan.tracker.end_children(logger.run_id)  # of trials whose process died for good
            result = _result(plan, folder, logger, time.monotonic() - begin)
            _log_result(result, logger)
    return result


def best_of(rows: Sequence[Row], plan: SweepPlan) -> list[Row]:
    """The finished rows of the best settings, lowest seed first; see `best_settings`.

    Raises:
        TrainingError: none has finished.
    """
    found = best_settings(rows, plan.question.sweep)
    if not found:
        raise TrainingError("no trial finished: every one diverged or was stopped", where=plan.name)
    return found


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
        run_arm(plan, folder, parent_run, _further_seeds(plan, read_rows(folder)), group=WINNER)


def _further_seeds(plan: SweepPlan, rows: Sequence[Row]) -> list[Draw]:
    """What won, with as many further seeds as are missing to `winner_seeds`."""
    sweep = plan.question.sweep
    default = int(plan.trials[0].launch.config.seed)
    wanted = []
    for same in winners(rows, sweep):
        key = key_of(without_seed(same[0]))
        tried = [row for row in rows if row.group not in (WINNER, CONTROL) and key_of(without_seed(row)) == key]
        last = max(int(row["seed"] or default) for row in tried)  # a seed that diverged would do so again
        count = max(0, sweep.winner_seeds - len(same))
        wanted += repeated(Draw(tuple(without_seed(same[0]).items())), first_seed=last + 1, count=count)
    return wanted


def _control_draws(plan: SweepPlan, rows: Sequence[Row]) -> list[Draw]:
    """So many random draws, of all parts of the space, as can run to their end with the operations of the search; one at least."""
    left = sum(flops_of(plan, row) for row in rows if not row.group)
    sweep = plan.question.sweep
    count = max(len(plan.trials), sweep.num_samples) * _MOST_CONTROLS
    found = draws(sweep.model_copy(update={"num_samples": count, "search": "random", "search_seed": sweep.search_seed + 1}))
    wanted: list[Draw] = []
    for position in np.random.default_rng(sweep.search_seed).permutation(len(found)):
        try:
            left -= flops_of_draw(plan, found[position])
        except ConfigError:  # nobody has looked at so many draws before
            continue
        if wanted and left < 0:
            break
        wanted.append(found[position])
    return wanted


def _log_question(plan: SweepPlan, logger: RunLogger) -> None:
    logger.log_text(dump_yaml(plan.question.sweep), "sweep.yaml")
    logger.log_text(shown(plan.question.base.read_text()), "base.yaml")
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
    for name, (figure, numbers) in result.figures.items():
        figure.savefig(result.folder / f"{name}.png", dpi=150)
        (result.folder / f"{name}.json").write_text(json.dumps(jsonable(numbers), indent=1))
        logger.log_figure(figure, f"figures/{name}.png")
        logger.log_json(numbers, f"figures/{name}.json")
    counts = {status: sum(row.status == status for row in result.rows) for status in (FINISHED, STOPPED, DIVERGED, INVALID)}
    logger.log_metrics({f"trials_{status}": float(count) for status, count in counts.items()}, step=0)
    best = _best_config(result)
    (result.folder / BEST_CONFIG).write_text(best)
    logger.log_text(best, BEST_CONFIG)
    metric = result.plan.question.sweep.metric
    values = [row.metrics[metric] for row in best_of(result.rows, result.plan) if metric in row.metrics]
    if values:
        logger.log_metrics({f"best_{metric}": float(np.mean(values))}, step=0)


def _best_config(result: SweepResult) -> str:
    """The config of the best settings, ready for its verb, with where it comes from."""
    plan, same = result.plan, best_of(result.rows, result.plan)
    sweep = plan.question.sweep
    draw = Draw(tuple(same[0].settings.items()))
    values = plan.question.config(draw).model_dump(mode="json", exclude={"run", "register_as", "physics_events"})
    found = [row.metrics.get(sweep.metric, math.nan) for row in same]
    spread = f" ± {np.std(found, ddof=1):.2g} over {len(found)} seeds" if len(found) > 1 else ""
    head = [
        f"# {sweep.question}",
        f"# Best of {len(result.rows)} trials of {plan.name}: {sweep.metric} {np.mean(found):.4g}{spread}; MLflow run {same[0].run_id}",
        f"# {plan.question.command(draw)}",
    ]
    return "\n".join([*head, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)])


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
