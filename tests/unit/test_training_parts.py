"""Parts of a training that need no data: what is filled into a config, schedules, averages of weights, the meter's figures."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from torch import nn

from pfscale.config import RunConfig, fingerprint
from pfscale.errors import ResourceError, TrainingError
from pfscale.models.flops import forward_flops, training_flops
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.training import launch
from pfscale.training.config import DeepSpeedEngineConfig, OptimisationConfig, resolved
from pfscale.training.engine import learning_rate, optimizer_for, update_average
from pfscale.training.launch import own_error
from pfscale.training.memory import FreedMemory, resident_memory_mb
from pfscale.training.meter import DATA, EVALUATION, WORK, Meter
from pfscale.training.pretrain import PretrainConfig
from pfscale.training.session import STOP, Alone, Wish
from pfscale.training.storage import require_same_place


def test_what_is_left_open_is_filled_in_before_a_run_gets_its_name() -> None:
    """Catches two names for one training, or one name for two: a rate that is the default's, a precision that is the hardware's."""
    config = PretrainConfig(model=MlpfConfig(size=3))
    full = resolved(config, config.model)
    assert full.optimisation.learning_rate is not None
    explicit = PretrainConfig(
        model=MlpfConfig(size=3), precision="fp32", optimisation=OptimisationConfig(learning_rate=full.optimisation.learning_rate)
    )
    assert fingerprint(full) == fingerprint(resolved(explicit, explicit.model))
    on_accelerator = resolved(config.model_copy(update={"run": RunConfig(use_gpu=True, num_workers=1)}), config.model)
    assert on_accelerator.precision == "bf16"
    assert fingerprint(on_accelerator) != fingerprint(full)
    wider = resolved(config, MlpfConfig(size=6)).optimisation.learning_rate
    assert wider is not None
    assert wider < full.optimisation.learning_rate


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [
        ({"recompute_activations": True}, False),
        ({"physics_every": 100}, False),
        ({"engine": DeepSpeedEngineConfig(options={"zero_optimization": {"overlap_comm": False}})}, True),
        ({"optimisation": OptimisationConfig(ema_decay=0.99)}, True),
    ],
)
def test_only_what_changes_the_result_changes_the_name(changes: dict[str, Any], is_another: bool) -> None:
    """Catches a run that starts afresh because it was given less memory, and one that resumes another's weights."""
    assert (fingerprint(PretrainConfig(**changes)) != fingerprint(PretrainConfig())) == is_another


def test_a_look_at_physics_that_no_evaluation_takes_is_refused() -> None:
    """Catches curves that are silently missing, or come less often than asked for."""
    with pytest.raises(ValidationError, match="multiple of optimisation"):
        PretrainConfig(physics_every=150)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gradient_cliping": 1.0}, "no option 'gradient_cliping'"),
        ({"zero_optimisation": {}}, "did you mean zero_optimization"),
        ({"zero_optimization": None}, "zero_optimization must be a mapping"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage: set by pfscale"),
        ({"checkpoint": {"load_universal": True}}, "checkpoint.load_universal: set by pfscale"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op: set by pfscale"),
    ],
)
def test_options_that_deepspeed_would_ignore_are_refused(options: dict[str, Any], text: str) -> None:
    """Catches a month of training with a setting that did nothing, or that undoes one of ours."""
    with pytest.raises(ValidationError, match=text):
        DeepSpeedEngineConfig(options=options)


def test_an_accelerator_that_nobody_would_use_is_refused() -> None:
    """Catches a training that was promised an accelerator and computes on the CPU, in half precision at that."""
    with pytest.raises(ValidationError, match=r"run\.num_workers=1 or more"):
        PretrainConfig(run=RunConfig(use_gpu=True, num_workers=0))


def test_the_largest_seed_works() -> None:
    """Catches seeds like a date that overflow at the first step."""
    with pytest.raises(ValidationError, match="seed"):
        PretrainConfig(seed=20261126120000)
    torch.manual_seed(((2**31 - 1) * 1_000_003 + 10**9) * 4096 + 4095)  # as the loop makes it of seed, step and rank


def test_a_run_goes_on_where_its_checkpoints_are(tmp_path: Path) -> None:
    """Catches a training that starts at step 0, because it was given workers after it had begun without."""
    (tmp_path / "run" / "checkpoints" / "checkpoint_000000005").mkdir(parents=True)
    require_same_place(tmp_path / "run", 0)
    with pytest.raises(TrainingError, match="cannot be taken up"):
        require_same_place(tmp_path / "run", 2)


def test_an_average_of_weights_that_no_worker_has_whole_is_refused() -> None:
    """Catches an average of shards that is taken for one of weights."""
    with pytest.raises(ValidationError, match="zero_stage 3"):
        PretrainConfig(optimisation=OptimisationConfig(ema_decay=0.9), engine=DeepSpeedEngineConfig(zero_stage=3))


def test_the_rate_rises_falls_and_ends_with_the_run() -> None:
    """Catches a schedule that is not tied to the run's own steps."""
    config = OptimisationConfig(num_steps=200, learning_rate=1.0, warmup_fraction=0.1, final_fraction=0.1)
    rates = [learning_rate(config, step) for step in range(200)]
    assert max(rates) == rates[20] == 1.0
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


def test_norms_and_biases_do_not_decay() -> None:
    """Catches weight decay that pulls the scale of a norm to zero."""
    model = Mlpf(MlpfConfig())
    decaying, others = optimizer_for(model, OptimisationConfig(weight_decay=0.1)).param_groups
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decaying["params"])
    norms_and_biases = {id(p) for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name}
    assert {id(p) for p in others["params"]} == norms_and_biases


def test_the_average_follows_the_weights() -> None:
    """Catches an average that is stuck at the random start, or that is the weights themselves."""
    module = nn.Linear(2, 2)
    averaged = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        module.weight.fill_(1.0)
    for step in range(50):
        update_average(averaged, SimpleNamespace(module=module), 0.999, step=step)  # type: ignore[arg-type]
    assert bool((averaged["weight"] > 0.95).all())
    before = averaged["bias"].clone()
    with torch.no_grad():
        module.bias += 1.0
    update_average(averaged, SimpleNamespace(module=module), 0.999, step=10**6)  # type: ignore[arg-type]
    torch.testing.assert_close(averaged["bias"], before + 0.001 * (module.bias.detach() - before))


def test_the_meters_shares_and_rates_are_those_of_its_times() -> None:
    """Catches waiting that counts as work, evaluation that slows the rate of learning, a utilisation of the wrong number of workers."""
    model = Mlpf(MlpfConfig())
    world = Alone()
    world.world_size = 2
    meter = Meter(model, world, precision="fp32")
    meter.count([10, 30])
    meter.seconds |= {WORK: 3.0, DATA: 1.0, EVALUATION: 4.0}
    found = meter.metrics()
    assert found["elements_per_second"] == pytest.approx(10)
    assert found["events_per_second"] == pytest.approx(0.5)
    assert (found["data_share"], found["evaluation_share"]) == pytest.approx((1 / 8, 1 / 2))
    assert found["mfu"] == pytest.approx(training_flops(model, [10, 30]) / 2 / 3.0 / meter.matrix_rate)
    assert found["peak_memory_mb"] > 50
    meter.count([20])
    meter.seconds[WORK] += 1.0
    found = meter.metrics()
    assert (found["elements_per_second"], found["recent_elements_per_second"]) == pytest.approx((12, 20))


def test_what_was_freed_is_given_back_once_memory_has_doubled() -> None:
    """Catches a heap that only grows, and page faults that every step pays for."""
    freed = FreedMemory()
    if freed._trim is None:
        pytest.skip("this C library cannot give memory back")
    blocks = [np.ones(8000) for _ in range(4000)]  # 64 kB each: of the heap, not mapped one by one
    del blocks[::2]
    before = resident_memory_mb()
    freed.give_back()
    assert resident_memory_mb() < before - 60
    calls: list[int] = []
    freed._trim = calls.append
    freed.give_back()
    assert calls == []
    freed._kept_mb = resident_memory_mb() / 2.1
    freed.give_back()
    assert calls == [0]
    assert len(blocks) == 2000


def test_a_frozen_encoder_has_no_backward_pass() -> None:
    """Catches a utilisation that counts work which nobody does."""
    model, lengths = Mlpf(MlpfConfig()), [10, 30]
    whole, forward = training_flops(model, lengths), forward_flops(model, lengths)
    assert whole == pytest.approx(3 * forward)
    model.encoder.requires_grad_(False)
    heads = 3 * 2 * 40 * sum(p.numel() for name, p in model.heads.named_parameters() if name.endswith("weight"))
    assert training_flops(model, lengths) == pytest.approx(forward - heads / 3 + heads)


def test_one_model_has_one_name() -> None:
    """Catches a model that is trained twice, once by its size and once by its widths."""
    by_size = PretrainConfig(model=MlpfConfig(size=2))
    by_widths = PretrainConfig(model=MlpfConfig(width=128, num_layers=3, num_heads=8))
    assert fingerprint(by_size) == fingerprint(by_widths)


def test_what_a_worker_said_in_our_words_is_what_the_user_reads() -> None:
    """Catches a page of Ray's traceback around a lack of memory that we know how to mend."""
    told = ResourceError("out of memory", hint="less")
    failures = {0: RuntimeError("connection reset"), 1: UserExceptionWithTraceback(told, "traceback")}
    assert own_error(WorkerGroupError("rank 1", failures)) is told
    assert own_error(WorkerGroupError("rank 0", {0: RuntimeError("bug")})) is None
    assert own_error(RuntimeError("bug")) is None


def test_one_worker_looks_for_the_wish_to_stop_and_not_too_often(tmp_path: Path) -> None:
    """Catches a file system that is asked by every worker at every step, and a wish that is overlooked."""
    first, other = Wish(tmp_path, is_first=True), Wish(tmp_path, is_first=False)
    assert not first.is_there()
    (tmp_path / STOP).touch()
    assert not first.is_there()
    assert not other.is_there()
    time.sleep(1.1 * Wish.SECONDS)
    assert first.is_there()
    assert not other.is_there()


def test_threads_of_the_calling_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches `run.threads_per_worker` without effect where there is no worker: two trainings on two cores then wait for each other."""
    seen: list[int] = []
    monkeypatch.setattr(launch, "run_loop", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    for number in (0, before + 1):
        run = RunConfig(num_workers=0, threads_per_worker=number)
        inputs = SimpleNamespace(config=SimpleNamespace(run=run, keep_checkpoints=1))
        with pytest.raises(AssertionError), launch._last_checkpoint(inputs, tmp_path):  # type: ignore[arg-type]
            pass
    assert seen == [before, before + 1]
    assert torch.get_num_threads() == before
