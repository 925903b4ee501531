"""One trial of a sweep as Ray Tune runs it: a training in a thread, its evaluations reported one by one, its row written at the end.

A small training (`run.num_workers=0`) runs in the trial's own process, which Tune uses again for the next trial: no start-up but the first.
A large one starts Ray Train workers as always; the trial then only watches its folder.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from pfscale.config import Config
from pfscale.errors import StoppedError, TrainingError
from pfscale.studies.config import Draw, Question
from pfscale.studies.measure import measure_on_test
from pfscale.studies.rows import DIVERGED, FINISHED, STOPPED, Row, Status, write_row
from pfscale.training.checkpoint import STATE, read_state
from pfscale.training.progress import PROGRESS, read_evaluations
from pfscale.training.run import Run
from pfscale.training.session import STOP
from pfscale.training.verbs import find_verb

DRAW = "draw"  # the one key of Tune's space where draws are made beforehand
_POLL_SECONDS = 0.1
_WORST = 1e9  # what a search is told of a training that stopped itself


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep share, picklable.

    Attributes:
        folder: of the sweep.
        run: settings that do not change the result, as overrides.
        tags: of the trials' MLflow runs.
        group: arm of the sweep.
    """

    question: Question
    folder: Path
    run: tuple[str, ...]
    tags: dict[str, str]
    group: str = ""

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """One trial's, from what Tune gives it."""
        plain = {key: value.item() if hasattr(value, "item") else value for key, value in drawn.items()}
        return dict(plain.get(DRAW, plain))

    def config(self, settings: Mapping[str, Any]) -> Config:
        """The config of a trial.

        Raises:
            ConfigError: the settings do not fit it.
        """
        draw = Draw(tuple(settings.items()))
        note = f"Repeat it: `{self.question.command(draw)}`"
        tags = {**self.tags, "mlflow.note.content": note, "pfscale.trial": " ".join(draw.overrides)}
        return self.question.config(draw, *self.run, f"run.tags={json.dumps(tags)}")


class Trial(tune.Trainable):
    """See the module."""

    def setup(self, config: dict[str, Any], plan: TrialPlan | None = None) -> None:
        import torch

        if plan is not None:  # Tune gives it to the first trial of a process
            self.plan = plan
        self.settings = self.plan.settings(config)
        wanted = self.plan.config(self.settings)
        torch.set_num_threads(max(1, wanted.run.threads_per_worker))  # type: ignore[attr-defined]
        self.reported, self.begin = 0, time.monotonic()
        self.training = _Training(self.plan.question.sweep.verb, wanted)

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the end."""
        while True:
            is_over = not self.training.thread.is_alive()  # asked first: what it wrote last is then read
            found = read_evaluations(self.training.folder)
            if len(found) > self.reported:
                self.reported += 1
                return _finite(found[self.reported - 1])
            if is_over:
                return self._end()
            time.sleep(_POLL_SECONDS)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._stop()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self._stop()

    def _end(self) -> dict[str, Any]:
        sweep = self.plan.question.sweep
        try:
            run = self.training.result()
        except TrainingError:  # such settings do not work: a result, not a failure of the sweep
            row = self._write(DIVERGED)
            worst = _WORST if sweep.mode == "min" else -_WORST
            return {**row.metrics, "step": row.last_step, sweep.metric: worst, "done": True}
        test = measure_on_test(sweep, self.training.launch, run)
        row = self._write(FINISHED, run, {**run.metrics, **test.metrics}, test.replicas)
        return {**row.metrics, "step": row.last_step, "done": True}

    def _stop(self) -> None:
        """Ends a training that goes on, with a checkpoint; where the scheduler wanted it, with a row of what it has shown."""
        if self.training.stop() and stop_mark(self.plan.folder, self.trial_id).exists():
            self._write(STOPPED)
            self.training.tag({"pfscale.stopped_by": self.plan.question.sweep.scheduler.kind})

    def _write(
        self,
        status: Status,
        run: Run | None = None,
        metrics: Mapping[str, float] | None = None,
        replicas: dict[str, list[float]] | None = None,
    ) -> Row:
        """The trial's row, which is kept; without metrics, those of the last evaluation."""
        evaluations = [_finite(values) for values in read_evaluations(self.training.folder)]
        last = {name: value for name, value in evaluations[-1].items() if name != "step"} if evaluations else {}
        row = Row(
            settings=self.settings,
            status=status,
            run_id=run.run_id if run is not None else self.training.run_id,
            model=str(run.checkpoint or "") if run is not None else "",
            metrics=_finite(metrics if metrics is not None else last),
            evaluations=evaluations,
            replicas=replicas or {},
            **self.training.work(),
            seconds=time.monotonic() - self.begin,
            ended=time.time(),
            group=self.plan.group,
        )
        write_row(self.plan.folder, row)
        return row


def stop_mark(folder: Path, trial_id: str) -> Path:
    """The file that says that the scheduler stopped a trial: an interrupted one is stopped as well, but goes on another time."""
    return folder / "stopped" / trial_id


class _Training:
    """A training in a thread of its own."""

    def __init__(self, verb: str, config: Config) -> None:
        self.verb, self.config = find_verb(verb), config
        self.launch, self.tracker = self.verb.launch(config)
        self.folder: Path = self.launch.folder
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

    def work(self) -> dict[str, Any]:
        """Elements, events and seconds of its steps, as its last checkpoint says, repetitions counted; nothing where it has none."""
        num_workers = self.launch.config.run.num_workers
        of_run = self.folder / "checkpoints" if num_workers == 0 else self.folder.parent / f"{self.folder.name}-train"
        checkpoints = sorted(path for path in of_run.glob("checkpoint_*") if (path / STATE).is_file())
        if not checkpoints:
            return {}
        state = read_state(checkpoints[-1])
        rate = json.loads((self.folder / PROGRESS).read_text())["elements_per_second"] if (self.folder / PROGRESS).is_file() else math.inf
        return {"elements": state.elements, "events": state.events, "training_seconds": state.elements / rate}

    def tag(self, tags: dict[str, str]) -> None:
        """Sets tags of its MLflow run, where there is one."""
        if self.run_id:
            self.tracker.attach(self.run_id).set_tags(tags)

    @property
    def run_id(self) -> str:
        """Of its MLflow run; empty before there is one."""
        return self.tracker.find_run(self.launch.fingerprint) or ""


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
