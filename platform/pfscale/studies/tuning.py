"""Trials on Ray Tune: how many at once, what stops them early, and how an experiment that was killed is taken up."""

from __future__ import annotations

import getpass
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pfscale.errors import StoppedError, TrainingError
from pfscale.studies.asha import MarkingAsha
from pfscale.studies.config import AshaScheduler, Draw, PbtScheduler, tune_space
from pfscale.studies.plan import SweepPlan
from pfscale.studies.rows import Row, missing, read_rows
from pfscale.studies.trial import DRAW, Trial, TrialPlan, write_stopped

_log = logging.getLogger(__name__)
_SEARCHED = "searched"  # file that says that all trials of a search have ended


def run_arm(plan: SweepPlan, folder: Path, parent_run: str, wanted: list[Draw], group: str = "", *, name: str = "own") -> list[Row]:
    """All rows of the sweep so far, after running those of the wanted draws that have none.

    Args:
        group: arm of the sweep.
        name: of Tune's experiment, where it has no group.

    Raises:
        TrainingError: trials failed more often than `max_failures` allows; what is complete is kept.
        StoppedError: SIGTERM; KeyboardInterrupt: Ctrl-C. Trials have written checkpoints.
    """
    sweep = plan.question.sweep
    if not (num_left := _num_left(plan, wanted, folder, group)):
        return read_rows(folder)
    arm = f"{plan.name} ({group})" if group else plan.name
    _log.info("%s: %d of %d trials to do, %d at once", arm, num_left, _num_wanted(plan, wanted, group), plan.concurrency)
    trial_plan = TrialPlan(
        question=plan.question,
        folder=folder,
        directory=Path.cwd(),
        run=(f"run.parent_run={parent_run}", "register_as=''", *_cache(plan)),
        parent_run=parent_run,
        tags={"pfscale.sweep": plan.name, "pfscale.question": sweep.question, **({"pfscale.group": group} if group else {})},
        group=group,
    )
    todo = missing(wanted, read_rows(folder), group)
    tuner = _tuner(plan, trial_plan, folder / "tune" / (group or name), todo)
    with _graceful_stop() as asked_by:
        results = tuner.fit()
    for result in results:
        write_stopped(trial_plan, result.config or {}, str((result.metrics or {}).get("trial_id", "")))
    if results.errors:
        told = "; ".join(sorted({str(error).strip().splitlines()[-1] for error in results.errors}))
        hint = "the same command tries them again; what is complete is kept"
        raise TrainingError(f"{len(results.errors)} of {len(wanted)} trials failed: {told}", where=plan.name, hint=hint)
    if _adapts(plan, group) and not asked_by and len(results) >= plan.question.sweep.num_samples:
        (folder / _SEARCHED).touch()
    rows = read_rows(folder)
    if num_left := _num_left(plan, wanted, folder, group):
        count = _num_wanted(plan, wanted, group)
        told = f"{count - num_left} of {count} trials complete"
        if signal.SIGINT in asked_by:
            _log.info("stopped with %s", told)
            raise KeyboardInterrupt
        if not asked_by:
            raise TrainingError(f"{told}, the others left no result", where=plan.name)
        raise StoppedError(f"stopped with {told}", where=plan.name, hint="the same command goes on")
    return rows


def _num_wanted(plan: SweepPlan, wanted: list[Draw], group: str) -> int:
    """Trials in all."""
    return plan.question.sweep.num_samples if _adapts(plan, group) else len(wanted)


def _num_left(plan: SweepPlan, wanted: list[Draw], folder: Path, group: str) -> int:
    """Trials that have not ended: draws without a row, or as many as are missing where draws are made or changed on the way."""
    rows = [row for row in read_rows(folder) if row.group == group]
    if _adapts(plan, group):  # which may draw the same twice, so that rows do not count its trials
        return 0 if (folder / _SEARCHED).exists() else max(1, _num_wanted(plan, wanted, group) - len(rows))
    if not group and plan.question.sweep.scheduler.kind == "pbt":
        return max(0, len(wanted) - len(rows))
    return len(missing(wanted, rows, group))


def _adapts(plan: SweepPlan, group: str) -> bool:
    """Whether draws are made on the way, by what was found so far."""
    return not group and plan.question.sweep.search == "optuna"


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
    if getattr(plan.trials[0].launch.config.data, "cache", "no such key"):
        return []
    return [f"data.cache={tempfile.gettempdir()}/pfscale-events-{getpass.getuser()}"]


def _tuner(plan: SweepPlan, trial_plan: TrialPlan, place: Path, todo: list[Draw]) -> Any:
    """A Ray Tune experiment: anew, or where it was, if its search or scheduler has learned something."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # rows and MLflow say it all
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours asks for the same, and tells it from SIGTERM
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # it would move a process while the training that ends in it still reads relative paths
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    _give_trials_time()
    sweep, run = plan.question.sweep, plan.trials[0].launch.config.run
    adapts = _adapts(plan, trial_plan.group)
    scheduler = None if trial_plan.group else _scheduler(plan, trial_plan)
    resources = {"CPU": float(max(1, run.threads_per_worker)) if run.num_workers == 0 else 0.01}
    trainable = tune.with_resources(tune.with_parameters(Trial, plan=trial_plan), resources)
    learns = adapts or scheduler is not None
    if learns and tune.Tuner.can_restore(str(place)):
        return tune.Tuner.restore(str(place), trainable, resume_unfinished=True, resume_errored=True)
    return tune.Tuner(
        trainable,
        param_space=tune_space(sweep.space[0]) if adapts else {DRAW: tune.grid_search([draw.values for draw in todo])},
        tune_config=tune.TuneConfig(
            # Tune wants a metric that it knows in every report, also where nobody looks at it on the way
            metric=sweep.metric if learns else None,
            mode=sweep.mode if learns else None,
            search_alg=OptunaSearch(seed=sweep.search_seed) if adapts else None,
            scheduler=scheduler,
            num_samples=sweep.num_samples if adapts else 1,
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


def _give_trials_time() -> None:
    """Trials that are asked to stop get as long for their checkpoints as Tune gives them elsewhere; at the end it would be 10 s."""
    from ray.tune.execution.tune_controller import TuneController

    patient = property(lambda controller: controller._actor_cleanup_timeout, lambda *_: None)
    TuneController._actor_force_cleanup_timeout = patient


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
