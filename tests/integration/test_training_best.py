"""Which weights a training ends with: the best evaluation's, or their running mean; and how many checkpoints it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pfscale.config import RunConfig
from pfscale.models.bundle import load_bundle
from pfscale.shards.dataset import load_index, select_events
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training import loop
from pfscale.training.checkpoint import AVERAGED
from pfscale.training.config import OptimisationConfig
from pfscale.training.engine import TorchEngine
from pfscale.training.loop import model_weights
from pfscale.training.module import TaskModule
from pfscale.training.pretrain import PretrainConfig, pretrain
from pfscale.training.run import Run
from pfscale.training.session import Alone
from pfscale.training.validation import Validation, evaluate_loss
from training_runs import Killed, Shards, config, differing, elsewhere, kill_before_step, weights

AVERAGING = OptimisationConfig(num_steps=24, learning_rate=3e-3, evaluate_every=8, ema_decay=0.9)


def evaluated(run: Run, wanted: PretrainConfig) -> dict[str, float]:
    """The validation loss of a run's model, computed anew."""
    assert run.checkpoint is not None
    index = load_index(wanted.data.shards)
    engine = TorchEngine(TaskModule(load_bundle(run.checkpoint).model, ReconstructionConfig(), trainable="all"), wanted.optimisation)
    return evaluate_loss(engine, Validation(index, select_events(index, "validation")), Alone())


@pytest.mark.parametrize("best_by", ["loss", "eta"])
def test_the_model_is_that_of_the_best_evaluation(
    make_shards: Shards, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch, best_by: str
) -> None:
    """Catches the last weights in place of the best, and a best by another quantity than asked for."""
    scores: list[float] = []

    def worse_in_the_end(*args: Any) -> dict[str, float]:
        penalty = 100.0 if len(scores) > 2 else 0.0
        found = {name: loss + penalty * (name == best_by) for name, loss in evaluate_loss(*args).items()}
        scores.append(found[best_by])
        return found

    monkeypatch.setattr(loop, "evaluate_loss", worse_in_the_end)
    steps = OptimisationConfig(num_steps=24, learning_rate=3e-3, evaluate_every=4, best_by=best_by)  # type: ignore[arg-type]
    wanted = config(make_shards(), run_config, optimisation=steps)
    run = pretrain(wanted)
    best = 4 * (scores.index(min(scores)) + 1)
    assert best <= 12
    assert run.metrics["best_step"] == best
    assert run.metrics["validation_loss"] == dict(run.history["validation"])[best]
    assert evaluated(run, wanted)["loss"] == pytest.approx(run.metrics["validation_loss"], rel=1e-6)


def test_the_running_mean_is_what_is_evaluated_and_kept(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a mean that is computed and not used, or raw weights that are registered under the loss of the mean."""
    wanted = config(make_shards(), run_config, optimisation=AVERAGING.model_copy(update={"evaluate_every": 24}))
    run = pretrain(wanted)
    (last,) = (tmp_path / "runs").glob("*/checkpoints/checkpoint_*24")
    averaged = model_weights(safetensors.torch.load_file(last / AVERAGED))
    trained = model_weights(torch.load(last / "engine.pt", weights_only=True)["module"])
    kept = {name: value for name, value in weights(run).items() if name in averaged}
    assert not differing(kept, averaged)
    assert differing(kept, {name: trained[name] for name in averaged})
    assert evaluated(run, wanted)["loss"] == pytest.approx(run.metrics["validation_loss"], rel=1e-6)


def test_an_interrupted_run_keeps_its_running_mean(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a mean that starts anew from the weights of the checkpoint."""
    wanted = config(make_shards(), run_config, optimisation=AVERAGING)
    unbroken = pretrain(elsewhere(wanted, tmp_path / "other"))
    kill_before_step(monkeypatch, 13)
    with pytest.raises(Killed):
        pretrain(wanted)
    resumed = pretrain(wanted)
    assert not differing(weights(resumed), weights(unbroken))
    assert resumed.history == unbroken.history


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for(make_shards: Shards, run_config: RunConfig, tmp_path: Path, keep: int) -> None:
    """Catches a disk that fills up, and a last checkpoint that is deleted in place of the oldest."""
    pretrain(config(make_shards(), run_config, keep_checkpoints=keep))
    kept = sorted(int(path.name.removeprefix("checkpoint_")) for path in (tmp_path / "runs").glob("*/checkpoints/checkpoint_*"))
    assert kept == [10, 15, 20, 24][-keep:]


def test_shards_are_read_from_an_object_store(make_shards: Shards, run_config: RunConfig, s3: str, tmp_path: Path) -> None:
    """Would catch an address that is taken for a folder somewhere on the way to the workers; the weights are those of local shards."""
    import s3fs

    shards = make_shards()
    s3fs.S3FileSystem().put(f"{shards}/", f"{s3.removeprefix('s3://')}/shards/", recursive=True)
    remote = config(shards, run_config, num_steps=4)
    remote = remote.model_copy(update={"data": remote.data.model_copy(update={"shards": f"{s3}/shards"})})
    assert not differing(
        weights(pretrain(remote)), weights(pretrain(elsewhere(config(shards, run_config, num_steps=4), tmp_path / "local")))
    )
