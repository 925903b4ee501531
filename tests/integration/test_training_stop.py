"""SIGTERM, a batch system's last word: a checkpoint where the training stands, and the same command goes on from there."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pfscale.config import RunConfig
from pfscale.training.pretrain import pretrain
from training_runs import (
    PretrainProcess,
    Shards,
    committed_step,
    config,
    differing,
    elsewhere,
    one_thread,
    progress_step,
    stored_weights,
    tags,
    weights,
)

NUM_STEPS = 400


@pytest.mark.parametrize(
    ("number", "code", "num_workers"),
    [
        pytest.param(signal.SIGTERM, 143, 0, id="SIGTERM-alone"),
        pytest.param(signal.SIGINT, 130, 0, id="SIGINT-alone", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 1, id="SIGTERM-worker", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 1, id="SIGINT-worker"),
    ],
)
def test_a_signal_costs_no_step(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, number: int, code: int, num_workers: int
) -> None:
    """Catches a signal that ends the driver before its workers have saved anything, and a run that counts as failed."""
    run = run_config.model_copy(update={"num_workers": num_workers, "cpus_per_worker": 0.5})
    wanted = config(make_shards(), run, num_steps=NUM_STEPS, checkpoint_every=NUM_STEPS, log_every=1)
    storage = tmp_path / "runs"
    first = PretrainProcess(wanted, tmp_path / "process")
    first.wait_until(lambda: progress_step(storage) >= 20, "step 20")
    first.process.send_signal(number)
    assert first.wait() == code, first.log.read_text()
    stopped = committed_step(storage)
    assert 20 <= stopped < NUM_STEPS
    assert stopped == progress_step(storage)
    client = MlflowClient(run.tracking_uri)
    (experiment,) = client.search_experiments(filter_string=f"name = '{run.experiment}'")
    (known,) = client.search_runs([experiment.experiment_id])
    assert known.info.status == "KILLED"

    second = PretrainProcess(wanted, tmp_path / "process")
    assert second.wait() == 0, second.log.read_text()
    (record,) = storage.glob("*/run.json")
    assert json.loads(record.read_text())["run_id"] == known.info.run_id
    assert tags(run, known.info.run_id)["pfscale.resumed_from_step"] == str(stopped)
    with one_thread():
        unbroken = pretrain(elsewhere(wanted, tmp_path / "other", num_workers=0))
    assert not differing(stored_weights(storage), weights(unbroken))
