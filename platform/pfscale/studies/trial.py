"""One trial of a sweep as Ray Tune runs it: a training in a thread, its evaluations reported one by one, its row written at the end.

A small training (`run.num_workers=0`) runs in the trial's own process, which Tune uses again for the next trial: no start-up but the first.
A large one starts Ray Train workers as always; the trial then only watches its folder.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from pfscale.config import Config
from pfscale.errors import ConfigError, DivergedError, InProgressError, StoppedError
from pfscale.studies.config import Draw, Question, draws
from pfscale.studies.measure import measure_on_test
from pfscale.studies.rows import DIVERGED, FINISHED, INVALID, STOPPED, Row, Status, find_row, write_row
from pfscale.tracking.records import PART_OF_TAG
from pfscale.training.checkpoint import STATE, read_state
from pfscale.training.progress import read_evaluations
from pfscale.training.run import Run
from pfscale.training.session import STOP
from pfscale.training.storage import claimed
from pfscale.training.verbs import find_verb

_log = logging.getLogger(__name__)
DRAW = "draw"  # the one key of Tune's space where draws are made beforehand
_POLL_SECONDS = 0.1
_PEDIGREE = "pedigree.json"  # of a member of a population, in its checkpoint
_WAIT_SECONDS = 1.0
_WORST = 1e9  # what a search is told of a training that stopped itself


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep share, picklable.

    Attributes:
        folder: of the sweep.
        directory: that the sweep was started in, which relative paths count from.
        run: settings that do not change the result, as overrides.
        tags: of the trials' MLflow runs.
        parent_run: the sweep's MLflow run.
        group: arm of the sweep.
    """

    question: Question
    folder: Path
    directory: Path
    run: tuple[str, ...]
    tags: dict[str, str]
    parent_run: str
    group: str = ""

    @property
    def is_population(self) -> bool:
        """Whether its trials take over from one another."""
        return not self.group and self.question.sweep.scheduler.kind == "pbt"

    @property
    def draws_on_the_way(self) -> bool:
        """Whether a sampler draws by what was found so far: it may draw twice, or what is no config."""
        return not self.group and self.question.sweep.search == "optuna"

    def require_base(self) -> None:
        """Returns where a draw that was looked at beforehand still gives a config: another draw that gives none is then at fault itself.

        Raises:
            ConfigError: it is not: the base config has changed, or cannot be read here; or no sampler draws in this sweep.
        """
        if not self.draws_on_the_way:
            raise ConfigError("the config of a trial has changed since the sweep began", where=str(self.question.base))
        self.config(draws(self.question.sweep)[0].values)

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """One trial's, from what Tune gives it."""
        plain = {key: value.item() if hasattr(value, "item") else value for key, value in drawn.items()}
        return dict(plain.get(DRAW, plain))

    def config(self, settings: Mapping[str, Any], *, name: str = "") -> Config:
        """The config of a trial.

        Args:
            name: of its run; empty: the verb's.

        Raises:
            ConfigError: the settings do not fit it.
        """
        draw = Draw(tuple(settings.items()))
        note = f"Repeat it: `{self.question.command(draw)}`"
        tags = {**self.tags, "mlflow.note.content": note, "pfscale.trial": " ".join(draw.overrides)}
        named = [f"run.name={name}"] if name else []
        return self.question.config(draw, *self.run, *named, f"run.tags={json.dumps(tags)}")


class Trial(tune.Trainable):
    """See the module."""

    def setup(self, config: dict[str, Any], plan: TrialPlan | None = None) -> None:
        if plan is not None:  # Tune gives it to the first trial of a process
            self.plan = plan
        if self.plan.directory.is_dir():  # not on every node of a cluster
            os.chdir(self.plan.directory)
        self.settings = self.plan.settings(config)
        self.own_id = self.trial_id  # Tune has changed it when it asks to end a trial that it stopped
        self.takeovers, self.last_step, self.begin = 0, 0, time.monotonic()
        self.inherited: Path | None = None
        self.training: _Training | None = None

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the end."""
        while True:
            if (row := self._complete()) is not None:
                return self._repeated(row)
            try:
                return self._next()
            except InProgressError:
                if not self.plan.draws_on_the_way:
                    raise
                self.training = None  # it is another trial's, for which the same was drawn: its row will be there
                time.sleep(_WAIT_SECONDS)

    def _next(self) -> dict[str, Any]:
        """The next evaluation of the training, or its end."""
        try:
            training = self._started()
        except ConfigError as error:
            self.plan.require_base()
            _log.warning("what the search drew is no config and counts as the worst: %s", error)
            row = Row(settings=self.settings, status=INVALID, run_id="", model="", metrics={}, ended=time.time(), note=str(error))
            write_row(self.plan.folder, row)
            return self._over({"step": 0.0})
        while True:
            if isinstance(training.error, InProgressError):
                raise training.error
            is_over = not training.thread.is_alive()  # asked first: what it wrote last is then read
            found = next((values for values in read_evaluations(training.folder) if values["step"] > self.last_step), None)
            if found is not None:
                self.last_step = int(found["step"])
                return self._reported(_finite(found))
            if is_over:
                return self._end(training)
            time.sleep(_POLL_SECONDS)

    def _complete(self) -> Row | None:
        """Its row, where it has ended: before a kill, which Tune's record need not know, or as another trial with this draw."""
        if self.training is not None or self.plan.is_population:
            return None
        row = find_row(self.plan.folder, self.settings, self.plan.group)
        return row if row is not None and row.status != STOPPED else None  # a scheduler may decide otherwise this time

    def _repeated(self, row: Row) -> dict[str, Any]:
        """What a complete trial reported, again."""
        for values in row.evaluations:
            if values["step"] > self.last_step:
                self.last_step = int(values["step"])
                return self._reported(_finite(values))
        final = row.metrics if row.status == FINISHED else {}
        return self._over({**final, "step": row.last_step})

    def _over(self, values: dict[str, float]) -> dict[str, Any]:
        """The last report."""
        return self._reported(values) | {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For population based training: the state that another member may go on from."""
        folder = Path(checkpoint_dir)
        last = self.training.last_checkpoint() if self.training is not None else self.inherited
        if last is not None:
            shutil.copytree(last, folder / last.name)
        (folder / _PEDIGREE).write_text(json.dumps({"takeovers": self.takeovers, "last_step": self.last_step}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from another member's state, or from this one's own after an interruption, with the settings of now."""
        folder = Path(str(checkpoint))
        found = json.loads((folder / _PEDIGREE).read_text())
        self.takeovers, self.last_step = found["takeovers"] + 1, found["last_step"]
        states = sorted(path for path in folder.iterdir() if path.is_dir())
        if not states:
            return
        # Tune deletes the folder when this returns.
        self.inherited = Path(tempfile.mkdtemp(prefix="pfscale-takeover-")) / states[-1].name
        shutil.copytree(states[-1], self.inherited)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._stop()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self._stop()

    def _started(self) -> _Training:
        """The training, which begins with the first step: until then Tune may give a state to begin from."""
        if self.training is None:
            name = f"pbt-{self.own_id.replace('_', '-')}-{self.takeovers}" if self.plan.is_population else ""
            config = self.plan.config(self.settings, name=name)
            torch.set_num_threads(max(1, config.run.threads_per_worker))  # type: ignore[attr-defined]
            if self.plan.draws_on_the_way:
                with claimed(_Attempts(self.plan.question.sweep.verb, config).folder):
                    pass  # else it is another trial's, and so are the evaluations there
            self.training = _Training(self.plan.question.sweep.verb, config, begin_from=self.inherited)
        return self.training

    def _end(self, training: _Training) -> dict[str, Any]:
        sweep = self.plan.question.sweep
        try:
            run = training.result()
        except DivergedError:  # such settings do not work: a result, not a failure of the sweep
            training.has_ended = True
            row = self._write(DIVERGED)
            return self._over({"step": row.last_step})
        training.has_ended = True
        test = measure_on_test(sweep, training.launch, run)
        on_the_way = _at_step(training.folder, run.metrics.get("best_step"))
        row = self._write(FINISHED, run, {**on_the_way, **run.metrics, **test.metrics}, test.replicas)
        training.tag({f"{PART_OF_TAG}{self.plan.parent_run}": "true"})  # found finished, it may be a child of another sweep
        return self._over({**row.metrics, "step": row.last_step})

    def _reported(self, values: dict[str, float]) -> dict[str, Any]:
        """With the sweep's metric, which Tune wants in every report: the worst where it could not be measured."""
        sweep = self.plan.question.sweep
        return {sweep.metric: _WORST if sweep.mode == "min" else -_WORST, **values}

    def _stop(self) -> None:
        """Ends a training that goes on, with a checkpoint; where the scheduler wanted it, with a row of what it has shown."""
        training = self.training
        if training is None or training.has_ended:
            return
        ended_early = training.stop()
        if not stop_mark(self.plan.folder, self.own_id).exists() or isinstance(training.error, InProgressError):
            return
        if not ended_early:  # it was faster than the word of its end
            self._end(training)
            return
        self._write(STOPPED)
        training.tag({"pfscale.stopped_by": self.plan.question.sweep.scheduler.kind})

    def _write(
        self,
        status: Status,
        run: Run | None = None,
        metrics: Mapping[str, float] | None = None,
        replicas: dict[str, list[float]] | None = None,
    ) -> Row:
        """The trial's row, which is kept; without metrics, those of the last evaluation."""
        row = _row_of(self._started(), self.plan, self.settings, status)
        member = self.own_id if self.plan.is_population else ""
        row = replace(row, seconds=time.monotonic() - self.begin, replicas=replicas or {}, member=member)
        if run is not None:
            row = replace(row, run_id=run.run_id, model=str(run.checkpoint or ""))
        if metrics is not None:
            row = replace(row, metrics=_finite(metrics))
        write_row(self.plan.folder, row)
        return row


def write_stopped(plan: TrialPlan, drawn: Mapping[str, Any], trial_id: str) -> None:
    """The row of a trial that the scheduler stopped and whose process ended, or was ended, before it could write one."""
    settings = plan.settings(drawn)
    if not stop_mark(plan.folder, trial_id).exists() or find_row(plan.folder, settings, plan.group) is not None:
        return
    config = plan.config(settings)
    write_row(plan.folder, _row_of(_Attempts(plan.question.sweep.verb, config), plan, settings, STOPPED))


def _row_of(training: _Attempts, plan: TrialPlan, settings: Mapping[str, Any], status: Status) -> Row:
    """What a training has shown so far."""
    evaluations = [_finite(values) for values in read_evaluations(training.folder)]
    last = {name: value for name, value in evaluations[-1].items() if name != "step"} if evaluations else {}
    return Row(
        settings=dict(settings),
        status=status,
        run_id=training.run_id,
        model="",
        metrics=last,
        evaluations=evaluations,
        **training.work(),
        ended=time.time(),
        group=plan.group,
    )


def stop_mark(folder: Path, trial_id: str) -> Path:
    """The file that says that the scheduler stopped a trial: an interrupted one is stopped as well, but goes on another time."""
    return folder / "stopped" / trial_id


class _Attempts:
    """What a training has left so far, in its folder and in MLflow."""

    def __init__(self, verb: str, config: Config) -> None:
        self.verb, self.config = find_verb(verb), config
        self.launch, self.tracker = self.verb.launch(config)
        self.folder: Path = self.launch.folder

    def work(self) -> dict[str, Any]:
        """Elements, events and seconds of its steps, as its last checkpoint says, repetitions counted; nothing where it has none."""
        last = self.last_checkpoint()
        if last is None:
            return {}
        state = read_state(last)
        return {"elements": state.elements, "events": state.events, "training_seconds": state.seconds}

    def last_checkpoint(self) -> Path | None:
        """The folder of the last complete one."""
        return max((path for path in self.launch.checkpoints.glob("checkpoint_*") if (path / STATE).is_file()), default=None)

    def tag(self, tags: dict[str, str]) -> None:
        """Sets tags of its MLflow run, where there is one."""
        if self.run_id:
            self.tracker.attach(self.run_id).set_tags(tags)

    @property
    def run_id(self) -> str:
        """Of its MLflow run; empty before there is one."""
        return self.tracker.find_run(self.launch.fingerprint) or ""


class _Training(_Attempts):
    """A training in a thread of its own."""

    def __init__(self, verb: str, config: Config, *, begin_from: Path | None = None) -> None:
        super().__init__(verb, config)
        if begin_from is not None and self.last_checkpoint() is None:
            shutil.copytree(begin_from, self.folder / "checkpoints" / begin_from.name)
        self.has_ended = False  # its row is written
        self.found: Run | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.found = self.verb.run(self.config)
        except BaseException as error:  # of any kind: it is raised where somebody can act on it
            self.error = error

    def result(self) -> Run:
        """What came of it; raises what it raised."""
        self.thread.join()
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found

    def stop(self) -> bool:
        """Asks it to end after its current step, and waits; whether it did end early."""
        while self.thread.is_alive():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / STOP).touch()  # again and again: a training that begins takes away an old wish
            self.thread.join(0.2)
        (self.folder / STOP).unlink(missing_ok=True)
        return isinstance(self.error, StoppedError)


def _at_step(folder: Path, step: float | None) -> dict[str, float]:
    """What was evaluated at the step of the model that is kept: jets on the way, say, which the end does not measure again."""
    found = next((values for values in read_evaluations(folder) if values["step"] == step), {})
    return {name: value for name, value in found.items() if name != "step"}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
