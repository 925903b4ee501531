"""A training that goes on with another number of workers: the physics, and so the loss, must not notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfscale.config import RunConfig
from pfscale.errors import StoppedError
from pfscale.training.config import DataConfig, DeepSpeedEngineConfig, GuardConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.finetune import FinetuneConfig, finetune
from pfscale.training.pretrain import pretrain
from training_runs import QUIET_MODEL, Shards, config, elsewhere, stopped_at

NUM_STEPS, STOPS = 90, (25, 55)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("zero_stage", "tokens_per_pass", "ema_decay", "lanes"),
    [
        pytest.param(1, None, 0.0, 2, id="1-lanes"),
        *(pytest.param(stage, None, 0.0, 1, marks=pytest.mark.slow, id=f"{stage}") for stage in (0, 2, 3)),
        pytest.param(1, 100, 0.9, 2, marks=pytest.mark.slow, id="1-passes-averaged"),
        pytest.param(3, 100, 0.0, 1, marks=pytest.mark.slow, id="3-passes"),
        pytest.param(None, None, 0.0, 1, marks=pytest.mark.slow, id="torch"),
        pytest.param(None, 100, 0.9, 1, marks=pytest.mark.slow, id="torch-passes-averaged"),
    ],
)
def test_two_workers_then_one_then_two(
    make_shards: Shards,
    run_config: RunConfig,
    tmp_path: Path,
    zero_stage: int | None,
    tokens_per_pass: int | None,
    ema_decay: float,
    lanes: int,
) -> None:
    """Catches optimizer state or weights that are lost, mixed up or averaged when a checkpoint is cut for another number of workers."""
    engine = TorchEngineConfig() if zero_stage is None else DeepSpeedEngineConfig(zero_stage=zero_stage)  # type: ignore[arg-type]
    quick = run_config.model_copy(update={"num_workers": 2, "cpus_per_worker": 0.5})
    wanted = config(make_shards(600), quick, model=QUIET_MODEL, engine=engine, num_steps=NUM_STEPS, checkpoint_every=1000, log_every=1)
    wanted = wanted.model_copy(
        update={
            "data": wanted.data.model_copy(update={"tokens_per_pass": tokens_per_pass, "lanes": lanes}),
            "optimisation": wanted.optimisation.model_copy(update={"ema_decay": ema_decay}),
        }
    )
    steps = []
    for stop, num_workers in zip((*STOPS, None), (2, 1, 2), strict=True):
        attempt = wanted.model_copy(update={"run": wanted.run.model_copy(update={"num_workers": num_workers})})
        if stop is None:
            run = pretrain(attempt)
            continue
        with stopped_at(tmp_path / "runs", stop), pytest.raises(StoppedError, match="checkpoint at step") as stopped:
            pretrain(attempt)
        steps.append(int(stopped.value.what.split()[-1]))
    assert STOPS[0] <= steps[0] < STOPS[1] <= steps[1] < NUM_STEPS
    unbroken = pretrain(elsewhere(wanted, tmp_path / "other", num_workers=0).model_copy(update={"engine": TorchEngineConfig()}))
    for kind in ("train", "validation"):
        np.testing.assert_allclose(np.array(run.history[kind]), np.array(unbroken.history[kind]), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_heads_alone_then_with_fewer_workers(make_shards: Shards, run_config: RunConfig, tmp_path: Path, zero_stage: int) -> None:
    """Catches weights that are not trained, and so in no optimizer's state, lost when a checkpoint is cut for another number of workers."""
    backbone = pretrain(elsewhere(config(make_shards(), run_config, model=QUIET_MODEL), tmp_path / "backbone")).checkpoint
    engine = DeepSpeedEngineConfig(zero_stage=zero_stage)  # type: ignore[arg-type]
    few = OptimisationConfig(num_steps=60, learning_rate=3e-3, evaluate_every=8)
    data = DataConfig(shards=str(make_shards(200, seed=2, detector="cld", smear=0.1)), tokens_per_step=512)
    quick = run_config.model_copy(update={"num_workers": 2, "cpus_per_worker": 0.5, "log_every": 1})
    never = GuardConfig(spike_factor=0)
    wanted = FinetuneConfig(backbone=str(backbone), mode="heads", engine=engine, optimisation=few, data=data, guard=never, run=quick)
    with stopped_at(tmp_path / "runs", 20), pytest.raises(StoppedError):
        finetune(wanted)
    run = finetune(wanted.model_copy(update={"run": quick.model_copy(update={"num_workers": 1})}))
    alone = quick.model_copy(update={"num_workers": 0, "storage": str(tmp_path / "other"), "experiment": "other"})
    unbroken = finetune(wanted.model_copy(update={"run": alone, "engine": TorchEngineConfig()}))
    for kind in ("train", "validation"):
        np.testing.assert_allclose(np.array(run.history[kind]), np.array(unbroken.history[kind]), rtol=2e-5)
