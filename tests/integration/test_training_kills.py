"""kill -9 of a training, again and again: it goes on from its last committed checkpoint to the result of an unbroken run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kills import children_named, kill_with_children
from pfscale.config import RunConfig
from pfscale.training.config import DeepSpeedEngineConfig
from pfscale.training.pretrain import PretrainConfig
from pfscale.training.progress import PROGRESS
from training_runs import PretrainProcess, Shards, committed_step, config, differing, elsewhere, progress_step, stored_weights

SEED = 20261126  # of the moments at which processes are killed
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("victim", "num_kills", "num_workers"), [("worker", 8, 1), ("driver", 4, 1), ("everything", 4, 1), ("worker", 4, 2)]
)
def test_killed_in_ray(make_shards: Shards, run_config: RunConfig, tmp_path: Path, victim: str, num_kills: int, num_workers: int) -> None:
    """Catches a resume from a checkpoint that was not complete, older than the last one, or of other data, and a run that is lost."""
    run = run_config.model_copy(update={"num_workers": num_workers, "cpus_per_worker": 0.5, "max_failures": 100})
    wanted = config(make_shards(), run, engine=DeepSpeedEngineConfig(), num_steps=100 * (num_kills + 1), checkpoint_every=7, log_every=1)
    draw, storage = random.Random(f"{SEED} {victim} {num_workers}"), tmp_path / "runs"
    process = PretrainProcess(wanted, tmp_path / "process")
    for number, step in enumerate(moments(draw, wanted, num_kills), 1):
        process.wait_until(lambda step=step: progress_step(storage) >= step, f"step {step}")  # type: ignore[misc]
        time.sleep(0.1 * draw.random())
        if victim == "worker":
            workers = children_named(process.process.pid, "ray::RayTrainWorker")
            assert len(workers) == num_workers
            draw.choice(workers).kill()
        elif victim == "driver":
            process.process.kill()
        else:
            kill_with_children(process.process)
        committed = committed_step(storage)
        if victim != "worker":
            process.wait()
            process = PretrainProcess(wanted, tmp_path / "process")
        process.wait_until(lambda before=committed: resumed_from(storage) >= before, f"resume {number}")  # type: ignore[misc]
        tell(f"{victim} of {num_workers}", number, storage, step, committed)
    require_unbroken(process, wanted, tmp_path)


def test_killed_while_it_writes(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a checkpoint in the calling process that counts before all of it is on the disk."""
    num_kills = 8
    wanted = config(make_shards(), run_config, num_steps=60 * (num_kills + 1), checkpoint_every=1, log_every=1)
    draw, storage = random.Random(f"{SEED} writing"), tmp_path / "runs"
    process = PretrainProcess(wanted, tmp_path / "process")
    for number, step in enumerate(moments(draw, wanted, num_kills), 1):
        process.wait_until(lambda step=step: progress_step(storage) >= step, f"step {step}")  # type: ignore[misc]
        process.wait_until(lambda: any(storage.glob("*/checkpoints/.draft_*")), "a checkpoint that is being written")
        time.sleep(0.01 * draw.random())
        process.process.kill()
        process.wait()
        committed = committed_step(storage)
        drafts = len(list(storage.glob("*/checkpoints/.draft_*")))
        process = PretrainProcess(wanted, tmp_path / "process")
        process.wait_until(lambda before=committed: resumed_from(storage) == before, f"resume {number}")  # type: ignore[misc]
        tell(f"writing ({drafts} half written)", number, storage, step, committed)
    require_unbroken(process, wanted, tmp_path)


def moments(draw: random.Random, wanted: PretrainConfig, count: int) -> Iterator[int]:
    """Steps at which to kill, spread over the run."""
    stretch = wanted.optimisation.num_steps // (count + 1)
    return (int(stretch * (number + draw.random())) for number in range(count))


def resumed_from(storage: Path) -> int:
    """The step from which the training that runs now went on; -1 before it has logged a point."""
    for path in storage.glob(f"*/{PROGRESS}"):
        return int(json.loads(path.read_text())["resumed_from"])
    return -1


def tell(victim: str, number: int, storage: Path, step: int, committed: int) -> None:
    print(
        f"{victim}: kill {number} after step {step}, committed {committed}, went on from {resumed_from(storage)}, seed {SEED}", flush=True
    )


def require_unbroken(process: PretrainProcess, wanted: PretrainConfig, folder: Path) -> None:
    """Lets the training finish and compares it with one that nobody killed."""
    assert process.wait() == 0, process.log.read_text()
    unbroken = PretrainProcess(elsewhere(wanted, folder / "other"), folder / "unbroken")
    assert unbroken.wait() == 0, unbroken.log.read_text()
    assert not differing(stored_weights(folder / "runs"), stored_weights(folder / "other"))
    histories = [json.loads(next((folder / name).glob("*/run.json")).read_text())["history"] for name in ("runs", "other")]
    assert histories[0] == histories[1]
