"""A sweep: all trials of a question on Ray Tune, below one MLflow run; killed and repeated, it goes on and ends with the same table."""

from __future__ import annotations

import getpass
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from pfscale.config import dump_yaml
from pfscale.errors import StoppedError, TrainingError
from pfscale.ray_cluster import ray_cluster
from pfscale.report.style import Drawn
from pfscale.studies.asha import MarkingAsha
from pfscale.studies.config import AshaScheduler, Draw, PbtScheduler, draws, repeated, tune_space
from pfscale.studies.plan import SweepPlan, concurrency_of
from pfscale.studies.rows import DIVERGED, FINISHED, Row, missing, read_rows
from pfscale.studies.trial import DRAW, Trial, TrialPlan
from pfscale.tracking.runs import RunLogger, ended
from pfscale.training.storage import claimed, storage_folder

_log = logging.getLogger(__name__)
BEST_CONFIG = "best.yaml"
CONTROL, WINNER = "control", "winner"  # groups of trials beside the sweep's own


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
        for row in ranked(self.rows, self.plan):
            value = row.metrics.get(sweep.metric, math.nan)
            cells = [_shown(row[key]) for key in keys]
            status = f"{row.status} at step {row.last_step}" if row.status != FINISHED else row.group or row.status
            table.add_row(*cells, f"{value:.4g}", status, f"{row.elements:.3g}", f"{row.seconds:.0f}")
        return table


def run_sweep(plan: SweepPlan) -> SweepResult:
    """Runs what is missing of the sweep and makes the answer of all trials.

    Raises:
        TrainingError: trials failed more often than `max_failures` allows; what is complete is kept.
        StoppedError: Ctrl-C or SIGTERM; the same command goes on.
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
    finished = [row for row in ranked(rows, plan) if row.status == FINISHED]
    if not finished:
        raise TrainingError("no trial finished: every one diverged or was stopped", where=plan.name)
    return finished[0]


def ranked(rows: Sequence[Row], plan: SweepPlan) -> list[Row]:
    """Finished rows, best first; then the others."""
    sweep = plan.question.sweep
    sign = 1.0 if sweep.mode == "min" else -1.0

    def order(row: Row) -> tuple[bool, float]:
        value = row.metrics.get(sweep.metric, math.nan)
        return row.status != FINISHED, sign * value if math.isfinite(value) else math.inf

    return sorted(rows, key=order)


def _run_all(plan: SweepPlan, folder: Path, parent_run: str) -> None:
    """The sweep's own trials, then its control, then its winners with further seeds."""
    sweep = plan.question.sweep
    _run_arm(plan, folder, parent_run, [trial.draw for trial in plan.trials])
    if sweep.control:
        _run_arm(plan, folder, parent_run, _control_draws(plan, read_rows(folder)), group=CONTROL)
    if sweep.winners:
        own = [row for row in ranked(read_rows(folder), plan) if row.status == FINISHED and row.group != WINNER]
        first = int(plan.trials[0].launch.config.seed)
        repeats = [
            again
            for row in own[: sweep.winners]
            for again in repeated(Draw(tuple(row.settings.items())), first_seed=first + 1, count=sweep.winner_seeds - 1)
        ]
        _run_arm(plan, folder, parent_run, repeats, group=WINNER)


def _control_draws(plan: SweepPlan, rows: Sequence[Row]) -> list[Draw]:
    """So many random draws as can run to their end with the elements that the search has seen."""
    seen = sum(row.elements for row in rows if not row.group)
    whole = [row.elements for row in rows if not row.group and row.status == FINISHED and row.elements]
    count = max(1, round(seen / (sum(whole) / len(whole)))) if whole else len(plan.trials)
    sweep = plan.question.sweep
    return draws(sweep.model_copy(update={"num_samples": count, "search": "random", "search_seed": sweep.search_seed + 1}))


def _run_arm(plan: SweepPlan, folder: Path, parent_run: str, wanted: list[Draw], group: str = "") -> None:
    """Runs what has no row yet."""
    sweep = plan.question.sweep
    is_searching = not group and (sweep.search == "optuna" or sweep.scheduler.kind != "none")
    rows = [row for row in read_rows(folder) if row.group == group]
    todo = missing(wanted, rows, group)
    if (len(rows) >= len(wanted)) if is_searching and sweep.search == "optuna" else not todo:
        return
    _log.info(
        "%s%s: %d of %d trials to do, %d at once",
        plan.name,
        f" ({group})" if group else "",
        len(wanted) - len(rows),
        len(wanted),
        plan.concurrency,
    )
    trial_plan = TrialPlan(
        question=plan.question,
        folder=folder,
        run=(f"run.parent_run={parent_run}", "register_as=''", *_cache(plan)),
        tags={"pfscale.sweep": plan.name, "pfscale.question": sweep.question, **({"pfscale.group": group} if group else {})},
        group=group,
    )
    tuner = _tuner(plan, trial_plan, folder / "tune" / (group or "own"), todo, len(wanted), is_searching=is_searching)
    with _graceful_stop() as asked_by:
        results = tuner.fit()
    if results.errors:
        told = "; ".join(sorted({str(error).strip().splitlines()[-1] for error in results.errors}))
        hint = "the same command tries them again; what is complete is kept"
        raise TrainingError(f"{len(results.errors)} of {len(wanted)} trials failed: {told}", where=plan.name, hint=hint)
    done = [row for row in read_rows(folder) if row.group == group]
    if len(done) < len(wanted):
        told = f"{len(done)} of {len(wanted)} trials complete"
        if signal.SIGINT in asked_by:
            _log.info("stopped with %s", told)
            raise KeyboardInterrupt
        if not asked_by:
            raise TrainingError(f"{told}, the others left no result", where=plan.name)
        raise StoppedError(f"stopped with {told}", where=plan.name, hint="the same command goes on")


@contextmanager
def _graceful_stop() -> Iterator[list[int]]:
    """While it lasts, SIGTERM and Ctrl-C end the experiment after its trials have written checkpoints; yields the signals that came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def ask(number: int, _: object) -> None:
        came.append(number)
        os.kill(os.getpid(), signal.SIGUSR1)  # for which Tune has a handler that ends the experiment

    handlers: dict[int, Any] = {signal.SIGUSR1: signal.SIG_IGN, signal.SIGTERM: ask, signal.SIGINT: ask}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cache(plan: SweepPlan) -> list[str]:
    """Where decoded events are kept, unless the base config says it."""
    if plan.trials[0].launch.config.data.cache:
        return []
    return [f"data.cache={tempfile.gettempdir()}/pfscale-events-{getpass.getuser()}"]


def _tuner(plan: SweepPlan, trial_plan: TrialPlan, place: Path, todo: list[Draw], count: int, *, is_searching: bool) -> Any:
    """A Ray Tune experiment: anew, or where it was, if its search or scheduler has learned something."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # rows and MLflow say it all
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours asks for the same, and tells it from SIGTERM
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    sweep, run = plan.question.sweep, plan.trials[0].launch.config.run
    is_inside = run.num_workers == 0
    resources = {"CPU": float(max(1, run.threads_per_worker)) if is_inside else 0.01}
    trainable = tune.with_resources(tune.with_parameters(Trial, plan=trial_plan), resources)
    if is_searching and tune.Tuner.can_restore(str(place)):
        return tune.Tuner.restore(str(place), trainable, resume_unfinished=True, resume_errored=True)
    is_optuna = is_searching and sweep.search == "optuna"
    space = tune_space(sweep.space[0]) if is_optuna else {DRAW: tune.grid_search([draw.values for draw in todo])}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            search_alg=_optuna(sweep) if is_optuna else None,
            scheduler=_scheduler(plan, trial_plan) if is_searching else None,
            num_samples=count if is_optuna else 1,
            max_concurrent_trials=plan.concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=place.name,
            storage_path=str(place.parent),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            verbose=0,
        ),
    )


def _optuna(sweep: Any) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=sweep.search_seed)


def _scheduler(plan: SweepPlan, trial_plan: TrialPlan) -> Any:
    """What stops trials early, or makes them take over from others; None: nothing."""
    from ray.tune.schedulers import PopulationBasedTraining

    sweep = plan.question.sweep
    wanted = sweep.scheduler
    if isinstance(wanted, AshaScheduler):
        return MarkingAsha(
            trial_plan.folder,
            time_attr="step",
            max_t=max(trial.num_steps for trial in plan.trials) + 1,
            grace_period=wanted.grace_steps,
            reduction_factor=wanted.reduction_factor,
        )
    if isinstance(wanted, PbtScheduler):
        drawn = {key: value for key, value in tune_space(sweep.space[0]).items() if key in plan.varied and key != "seed"}
        return PopulationBasedTraining(
            time_attr="step",
            perturbation_interval=wanted.perturb_steps,
            quantile_fraction=wanted.quantile,
            hyperparam_mutations={DRAW: drawn},
        )
    return None


def _log_question(plan: SweepPlan, logger: RunLogger) -> None:
    logger.log_text(dump_yaml(plan.question.sweep), "sweep.yaml")
    logger.log_text(plan.question.base.read_text(), "base.yaml")
    logger.log_params({"trials": len(plan.trials), "varied": ", ".join(plan.varied), "metric": plan.question.sweep.metric})


def _result(plan: SweepPlan, folder: Path, logger: RunLogger, seconds: float) -> SweepResult:
    from pfscale.studies.answers import ANSWERS

    rows = tuple(read_rows(folder))
    answer = ANSWERS[plan.question.sweep.answer](plan, rows)
    return SweepResult(plan, rows, answer.sentences, answer.numbers, answer.figures, folder, logger.link, seconds)


def _log_result(result: SweepResult, logger: RunLogger) -> None:
    """Table, answer and figures, in MLflow and in the sweep's folder."""
    import json
    from dataclasses import asdict

    from pfscale.tracking.runs import jsonable

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
        logger.log_figure(figure, f"figures/{name}.png")
        logger.log_json(numbers, f"figures/{name}.json")
    metric = result.plan.question.sweep.metric
    counts = {status: sum(row.status == status for row in result.rows) for status in (FINISHED, "stopped", DIVERGED)}
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
