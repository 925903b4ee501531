"""Trainings that several tests share: small configs on synthetic events, runs in this process or in one of their own, how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pfscale.config import RunConfig, dump_yaml
from pfscale.models.bundle import WEIGHTS
from pfscale.models.mlpf import MlpfConfig
from pfscale.training.config import DataConfig, GuardConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.pretrain import PretrainConfig
from pfscale.training.progress import PROGRESS
from pfscale.training.run import Run
from pfscale.training.session import STOP

MODEL = MlpfConfig(width=16, num_layers=1, num_heads=2, dropout=0.1)
QUIET_MODEL = MODEL.model_copy(update={"dropout": 0.0})  # dropout masks differ between numbers of workers
Shards = Callable[..., Path]
_PATIENCE_S = 900.0


def config(shards: Path, run: RunConfig, **changes: object) -> PretrainConfig:
    """A pre-training of a tiny model that takes a second."""
    steps = int(changes.pop("num_steps", 24))  # type: ignore[call-overload]
    log_every = changes.pop("log_every", 4)
    values = {
        "model": MODEL,
        "engine": TorchEngineConfig(),
        "optimisation": OptimisationConfig(num_steps=steps, learning_rate=3e-3, evaluate_every=8),
        "data": DataConfig(shards=str(shards), tokens_per_step=512, num_validation_events=None),
        "guard": GuardConfig(spike_factor=0),  # few events are learned by heart; a loss near zero jumps easily
        "checkpoint_every": 5,  # not at the points that are logged: those must come out the same too
        "run": run.model_copy(update={"log_every": log_every}),
    }
    return PretrainConfig(**{**values, **changes})


def elsewhere(wanted: PretrainConfig, folder: Path, **run_changes: object) -> PretrainConfig:
    """The same training as a run of its own, which knows nothing of the first."""
    changes = {"storage": str(folder), "experiment": "other", **run_changes}
    return wanted.model_copy(update={"run": wanted.run.model_copy(update=changes)})


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The weights of a finished run's model."""
    assert run.checkpoint is not None
    return safetensors.torch.load_file(run.checkpoint / WEIGHTS)


def stored_weights(storage: Path) -> dict[str, torch.Tensor]:
    """Those of the model of the only run below a storage folder."""
    (path,) = storage.glob(f"*/model/{WEIGHTS}")
    return safetensors.torch.load_file(path)


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the weights that are not the same bit for bit."""
    return sorted(one.keys() ^ other.keys()) + [name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])]


def progress_step(storage: Path) -> int:
    """The step that the only training below a storage folder logged last; 0 before the first."""
    for path in storage.glob(f"*/{PROGRESS}"):
        return int(json.loads(path.read_text())["step"])
    return 0


@contextmanager
def one_thread() -> Iterator[None]:
    """While it lasts, torch has one thread, as `PretrainProcess` has: another number adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stopped_at(storage: Path, step: int) -> Iterator[None]:
    """Asks the only training below a storage folder to stop once it has logged this step."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.005):
            if progress_step(storage) >= step:
                next(storage.glob(f"*/{PROGRESS}")).with_name(STOP).touch()
                return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_before_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ends the first training that comes to this step, in the middle of it."""
    from pfscale.training.guard import Guard

    check, calls = Guard.check_loss, iter(range(10_000))

    def kill(self: Guard, *args: Any) -> None:
        if next(calls) == number:
            raise Killed
        check(self, *args)

    monkeypatch.setattr(Guard, "check_loss", kill)


class PretrainProcess:
    """`pfscale pretrain` as a process of its own, with one thread, leader of its group; what it says is in a file."""

    def __init__(self, wanted: PretrainConfig, folder: Path, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "pretrain.yaml").write_text(dump_yaml(wanted))
        self.storage, self.log = Path(wanted.run.storage), folder / "output.txt"
        command = [sys.executable, "-c", "from pfscale.cli import main; main()", "pretrain", str(folder / "pretrain.yaml")]
        # Another number of threads would not give the same weights bit for bit.
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        with self.log.open("a") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=variables)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=_PATIENCE_S)

    def wait_until(self, is_there: Callable[[], bool], what: str) -> None:
        """Returns when something is so; the test fails where the process ends before."""
        deadline = time.monotonic() + _PATIENCE_S
        while not is_there():
            if self.process.poll() is not None:
                pytest.fail(f"the run ended before {what}:\n{self.log.read_text()}")
            if time.monotonic() > deadline:
                pytest.fail(f"no {what} within {_PATIENCE_S:.0f} s:\n{self.log.read_text()}")
            time.sleep(0.01)


def tags(run: RunConfig, run_id: str) -> dict[str, str]:
    """The tags of a run in MLflow."""
    from mlflow import MlflowClient

    return dict(MlflowClient(run.tracking_uri).get_run(run_id).data.tags)


def committed_step(storage: Path) -> int:
    """The step of the last checkpoint that counts: Ray's own bookkeeping says so for workers, its name in the calling process."""
    steps = [int(path.name.removeprefix("checkpoint_")) for path in storage.glob("*/checkpoints/checkpoint_*")]
    for snapshot in storage.glob("*-train/checkpoint_manager_snapshot.json"):
        try:
            found = json.loads(snapshot.read_text())["checkpoint_results"]
        except (json.JSONDecodeError, KeyError):  # Ray is writing it
            continue
        steps += [int(item["metrics"]["step"]) for item in found]
    return max(steps, default=0)
