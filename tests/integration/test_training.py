"""Training on synthetic events: engines and numbers of workers agree, killed runs resume exactly, modes train what they say."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pfscale.config import RunConfig
from pfscale.errors import ModelNotFoundError, NotEnoughDataError, ResourceError, ShardError, StoppedError, TrainingError
from pfscale.models.bundle import load_bundle
from pfscale.training.config import DataConfig, DeepSpeedEngineConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.downstream import DownstreamConfig, HeadDataConfig, downstream, load_head
from pfscale.training.finetune import FinetuneConfig, finetune
from pfscale.training.pretrain import pretrain
from pfscale.training.progress import read_evaluations
from pfscale.training.run import Run
from pfscale.training.session import Wish
from pfscale.training.storage import claimed
from training_runs import (
    MODEL,
    QUIET_MODEL,
    Killed,
    PretrainProcess,
    Shards,
    committed_step,
    config,
    elsewhere,
    kill_before_step,
    tags,
    weights,
)


def test_loss_falls_and_the_best_model_is_registered(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches a training that does not learn, and a registered model that is not the best evaluation's."""
    run = pretrain(config(make_shards(), run_config, num_steps=80))
    losses = [loss for _, loss in run.history["train"]]
    assert losses[-1] < 0.6 * losses[0]
    assert run.metrics["validation_loss"] == min(loss for _, loss in run.history["validation"])
    assert run.model is not None
    assert run.model.uri == "models:/mlpf-clic/1"
    card = load_bundle(run.checkpoint).card  # type: ignore[arg-type]
    assert (card["detector"], card["simulation"]) == ("clic", "builtin")


def test_a_training_tells_how_far_it_is_and_whom_it_replaces(
    make_shards: Shards, run_config: RunConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a training that is mute for hours, and a candidate that is replaced without a word."""
    from pfscale.training import progress

    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.01)
    caplog.set_level("INFO", logger="pfscale")
    pretrain(config(make_shards(), run_config))
    assert "24 steps" in caplog.text
    assert "of 24: loss" in caplog.text
    second = pretrain(config(make_shards(), run_config, seed=2))
    assert second.model is not None
    assert second.model.version == 2
    assert any("@candidate was version 1" in note for note in second.notes)


def test_the_same_config_again_returns_the_finished_run(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches a second registration, or a second training, of the same thing."""
    first, second = (pretrain(config(make_shards(), run_config)) for _ in range(2))
    assert not first.resumed
    assert second.resumed
    assert (second.run_id, second.model) == (first.run_id, first.model)


@pytest.mark.parametrize("kill_at", [1, 6, 13])
def test_an_interrupted_run_ends_with_the_weights_of_an_unbroken_one(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Catches a data position, optimizer state, schedule, dropout or best model that is lost in a checkpoint."""
    unbroken = pretrain(elsewhere(config(make_shards(), run_config), tmp_path / "other"))
    kill_before_step(monkeypatch, kill_at)
    with pytest.raises(Killed):
        pretrain(config(make_shards(), run_config))
    resumed = pretrain(config(make_shards(), run_config))
    for name, value in weights(unbroken).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert resumed.history == unbroken.history


@pytest.mark.parametrize("stop_at", [13, 16])
def test_who_asks_to_stop_does_not_wait_for_an_evaluation(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Catches a batch system that kills before the checkpoint is there, and an evaluation that is then left out for good."""
    unbroken = pretrain(elsewhere(config(make_shards(), run_config), tmp_path / "other"))
    looks = iter(range(1, 1000))
    with monkeypatch.context() as patched:
        patched.setattr(Wish, "is_there", lambda _: next(looks) >= stop_at)
        with pytest.raises(StoppedError, match=f"step {stop_at}"):
            pretrain(config(make_shards(), run_config))
    (folder,) = Path(run_config.storage).glob("pretrain-*")
    assert [values["step"] for values in read_evaluations(folder)] == [8]
    resumed = pretrain(config(make_shards(), run_config))
    assert not [name for name, value in weights(unbroken).items() if not torch.equal(value, weights(resumed)[name])]
    assert resumed.history == unbroken.history
    assert [values["step"] for values in read_evaluations(folder)] == [8, 16, 24]


def test_an_interrupted_training_of_heads_is_exact_too(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a frozen encoder whose dropout is on until the first evaluation, and off after a resume."""
    pretrain(config(make_shards(), run_config))
    cld = make_shards(200, seed=2, detector="cld", smear=0.1)

    def heads(run: RunConfig) -> Run:
        few = OptimisationConfig(num_steps=20, evaluate_every=8)
        data = DataConfig(shards=str(cld), tokens_per_step=512, num_validation_events=None)
        return finetune(FinetuneConfig(mode="heads", engine=TorchEngineConfig(), optimisation=few, data=data, checkpoint_every=3, run=run))

    unbroken = heads(run_config.model_copy(update={"storage": str(tmp_path / "other")}))
    kill_before_step(monkeypatch, 13)
    with pytest.raises(Killed):
        heads(run_config)
    resumed = heads(run_config)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(unbroken).items())


def test_a_reused_name_is_another_run(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches old weights registered under a new config because somebody chose the same name twice."""
    named = run_config.model_copy(update={"name": "mine"})
    first = pretrain(config(make_shards(), named))
    second = pretrain(config(make_shards(), named, seed=2))
    assert not second.resumed
    assert any(not torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_a_backbone_is_known_by_its_weights(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a transfer that counts as finished although the model in the backbone's place is another one."""
    cld = make_shards(200, seed=2, detector="cld", smear=0.1)
    found = []
    for seed in (1, 2):
        backbone = pretrain(config(make_shards(), run_config, seed=seed)).checkpoint
        assert backbone is not None
        shutil.copytree(backbone, tmp_path / "backbone", dirs_exist_ok=True)
        few = OptimisationConfig(num_steps=4, evaluate_every=4)
        wanted = {"engine": TorchEngineConfig(), "optimisation": few, "data": DataConfig(shards=str(cld)), "run": run_config}
        found.append([finetune(FinetuneConfig(backbone=str(tmp_path / "backbone"), mode=mode, **wanted)) for mode in ("full", "scratch")])  # type: ignore[arg-type]
    assert not found[1][0].resumed
    assert found[1][1].resumed  # `scratch` takes the architecture only


def test_a_finished_run_can_be_registered_later(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches `register_as` that is ignored because the training itself is done."""
    assert pretrain(config(make_shards(), run_config, register_as="")).model is None
    later = pretrain(config(make_shards(), run_config, register_as="my-model"))
    assert later.resumed
    assert later.model is not None
    assert later.model.uri == "models:/my-model/1"


def test_a_run_belongs_to_one_process(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches two processes in one folder."""
    finished = pretrain(config(make_shards(), run_config, register_as=""))
    assert finished.checkpoint is not None
    with claimed(finished.checkpoint.parent), pytest.raises(ResourceError, match="in progress"):
        pretrain(config(make_shards(), run_config, register_as=""))


def test_a_validation_loss_that_is_not_finite_registers_nothing(
    make_shards: Shards, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches untrained weights that are registered because no evaluation was ever the best."""
    from pfscale.training import loop

    monkeypatch.setattr(loop, "evaluate_loss", lambda *_args, **_kwargs: {"loss": float("nan")})
    with pytest.raises(TrainingError, match="validation loss"):
        pretrain(config(make_shards(), run_config))


def test_a_data_set_without_validation_or_training_events_is_refused(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches an endless loop over no events, and a best model chosen by a loss of nothing."""
    with pytest.raises(NotEnoughDataError, match="no validation events"):
        pretrain(config(make_shards(7), run_config))


def test_a_loss_that_is_not_finite_stops_and_names_the_events(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches a NaN that is trained through, or replaced."""
    wild = OptimisationConfig(num_steps=200, learning_rate=1e18, clip_norm=1e30, warmup_fraction=0)
    with pytest.raises(TrainingError, match="not finite"):
        pretrain(config(make_shards(), run_config, optimisation=wild))


def test_modes_train_what_they_say(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches a frozen encoder that moves, a `full` that starts from random weights, a `scratch` that does not."""
    backbone = weights(pretrain(config(make_shards(), run_config, num_steps=80)))
    cld = make_shards(200, seed=2, detector="cld", smear=0.1)

    def transfer(mode: str) -> Run:
        few = OptimisationConfig(num_steps=10, learning_rate=1e-3, evaluate_every=10)
        data = DataConfig(shards=str(cld), num_events=50, tokens_per_step=512, num_validation_events=None)
        return finetune(
            FinetuneConfig(
                backbone="mlpf-clic@candidate", mode=mode, engine=TorchEngineConfig(), optimisation=few, data=data, run=run_config
            )  # type: ignore[arg-type]
        )

    zero, heads, full, scratch = (transfer(mode) for mode in ("zero-shot", "heads", "full", "scratch"))
    assert zero.checkpoint is None
    changed = {name for name, value in weights(heads).items() if not torch.equal(value, backbone[name])}
    assert changed
    assert all(name.startswith("heads.") for name in changed)
    normalisation = [name for name in backbone if "standardise" in name]
    assert all(torch.equal(weights(full)[name], backbone[name]) for name in normalisation)
    assert not all(torch.equal(weights(scratch)[name], backbone[name]) for name in normalisation)
    assert any("encoder.blocks" in name and not torch.equal(value, backbone[name]) for name, value in weights(full).items())
    assert full.metrics["validation_loss"] < 0.5 * scratch.metrics["validation_loss"]
    assert full.metrics["validation_loss"] < zero.metrics["validation_loss"] * 1.5


def test_a_linear_layer_on_latents_is_not_worse_than_the_plain_sum(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches latents attached to the wrong candidates: the layer could then only add noise to a sum that it starts from."""
    shards = make_shards(600)
    pretrain(config(shards, run_config, num_steps=80))
    wanted = DownstreamConfig(backbone="mlpf-clic@candidate", arm="latents-linear", data=HeadDataConfig(shards=str(shards)), run=run_config)
    run = downstream(wanted)
    assert run.model is not None
    assert run.model.name == "missing-momentum-clic"
    names = ("test/met_resolution", "test/baseline/met_resolution", "test/baseline/met_resolution_error")
    linear, plain, error = (run.metrics[name] for name in names)
    assert linear < plain + 2 * error
    assert run.metrics["num_parameters"] == MODEL.width + 1
    assert run.checkpoint is not None
    assert load_head(run.checkpoint).card["parent"] == "models:/mlpf-clic/1"
    assert downstream(wanted).resumed
    elsewhere_made = wanted.model_copy(update={"data": HeadDataConfig(shards=str(make_shards(detector="cld")))})
    with pytest.raises(ShardError, match="trained on clic"):
        downstream(elsewhere_made)


def test_mistakes_are_found_before_anything_starts(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a sample size or backbone that fails only in a worker, or is silently replaced."""
    shards = make_shards()
    with pytest.raises(NotEnoughDataError, match="5000 train events"):
        pretrain(config(shards, run_config, data=DataConfig(shards=str(shards), num_events=5000)))
    with pytest.raises(ModelNotFoundError, match="mlpf-nowhere"):
        finetune(FinetuneConfig(backbone="models:/mlpf-nowhere@candidate", data=DataConfig(shards=str(shards)), run=run_config))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValidationError, match="gradient_clipping"):
        DeepSpeedEngineConfig(options={"gradient_clipping": 2.0})


def test_more_workers_than_cpus_is_an_error_not_a_hang(make_shards: Shards, run_config: RunConfig) -> None:
    """Catches Ray's silence: it would wait for CPUs for ever."""
    with pytest.raises(ResourceError, match="500 workers"):
        pretrain(config(make_shards(), run_config.model_copy(update={"num_workers": 500})))
    with pytest.raises(ResourceError, match="1 GPU"):
        pretrain(config(make_shards(), run_config.model_copy(update={"num_workers": 1, "use_gpu": True}), seed=2))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265", "nonsense"])
def test_a_cluster_that_is_not_there_is_an_error_not_a_hang(
    make_shards: Shards, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Catches minutes of retries, and the address for `ray job submit` in the wrong place."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match="no Ray cluster"):
        pretrain(config(make_shards(), run_config.model_copy(update={"num_workers": 1})))


def test_workers_and_engines_give_the_same_loss_trace(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a physics that depends on the number of workers: means of means, batches planned per worker, another clipping."""
    traces = []
    for workers, engine in ((0, TorchEngineConfig()), (0, DeepSpeedEngineConfig(zero_stage=3)), (2, DeepSpeedEngineConfig(zero_stage=1))):
        changes = {"num_workers": workers, "cpus_per_worker": 0.5, "storage": str(tmp_path / f"storage_{len(traces)}")}
        traces.append(pretrain(config(make_shards(), run_config.model_copy(update=changes), model=QUIET_MODEL, engine=engine)).history)
    for other in traces[1:]:
        for kind in ("train", "validation"):
            np.testing.assert_allclose(np.array(other[kind]), np.array(traces[0][kind]), rtol=2e-5)


def test_a_driver_that_is_killed_resumes_from_its_last_checkpoint(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a kill -9 that loses the run: the same command again must go on, to the result of an unbroken run."""
    run = run_config.model_copy(update={"num_workers": 1, "cpus_per_worker": 0.5})
    wanted = config(make_shards(), run, engine=DeepSpeedEngineConfig(), num_steps=300, checkpoint_every=10)
    first = PretrainProcess(wanted, tmp_path / "process")
    first.wait_until(lambda: committed_step(tmp_path / "runs") > 0, "a checkpoint")
    os.killpg(first.process.pid, signal.SIGKILL)
    first.wait()
    committed = committed_step(tmp_path / "runs")
    assert 0 < committed < 300
    second = PretrainProcess(wanted, tmp_path / "process")
    assert second.wait() == 0, second.log.read_text()
    (record,) = (tmp_path / "runs").glob("*/run.json")
    resumed = json.loads(record.read_text())
    assert int(tags(run, resumed["run_id"])["pfscale.resumed_from_step"]) >= committed
    assert committed_step(tmp_path / "runs") == 300
    assert len(list((tmp_path / "runs").glob("*-train/checkpoint_*/"))) == wanted.keep_checkpoints
    unbroken = pretrain(elsewhere(wanted, tmp_path / "other"))
    np.testing.assert_allclose(resumed["history"]["train"], np.array(unbroken.history["train"]), rtol=1e-6)
