"""Engines, passes, recomputation and precisions are ways to compute the same thing: they give the same loss trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfscale.config import RunConfig
from pfscale.training.config import DataConfig, DeepSpeedEngineConfig
from pfscale.training.pretrain import PretrainConfig, pretrain
from training_runs import QUIET_MODEL, PretrainProcess, Shards, config, elsewhere

FP32, BF16 = 2e-5, 3e-2
slow = pytest.mark.slow


def in_passes(shards: Path) -> dict[str, Any]:
    """A third of a step at once."""
    return {"data": DataConfig(shards=str(shards), tokens_per_step=512, tokens_per_pass=180, num_validation_events=None)}


def deepspeed(zero_stage: int, **options: Any) -> DeepSpeedEngineConfig:
    return DeepSpeedEngineConfig(zero_stage=zero_stage, options=options)  # type: ignore[arg-type]


def history(process: PretrainProcess) -> dict[str, list[tuple[int, float]]]:
    """That of a process that has done its only run."""
    assert process.wait() == 0, process.log.read_text()
    (record,) = process.storage.glob("*/run.json")
    found: dict[str, list[tuple[int, float]]] = json.loads(record.read_text())["history"]
    return found


def require_same(wanted: PretrainConfig, found: dict[str, list[tuple[int, float]]], folder: Path, *, rtol: float) -> None:
    """Compares with plain torch in one pass."""
    expected = pretrain(elsewhere(wanted, folder)).history
    for kind in ("train", "validation"):
        np.testing.assert_allclose(np.array(found[kind]), np.array(expected[kind]), rtol=rtol)


@pytest.mark.parametrize("change", ["passes", "recomputation", "both"])
def test_memory_is_saved_without_another_result(make_shards: Shards, run_config: RunConfig, tmp_path: Path, change: str) -> None:
    """Catches gradients of passes that are averaged instead of summed or lost, and activations that are computed again otherwise."""
    plain = config(make_shards(), run_config, model=QUIET_MODEL)
    passes = in_passes(make_shards()) if change != "recomputation" else {}
    changed = config(make_shards(), run_config, model=QUIET_MODEL, **passes, recompute_activations=change != "passes")
    require_same(plain, pretrain(changed).history, tmp_path / "plain", rtol=FP32)


def test_deepspeed_in_passes_on_a_machine_without_compiler(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a DeepSpeed that compiles something at its start, and one that steps after every pass."""
    (tmp_path / "empty").mkdir()
    changed = config(make_shards(), run_config, model=QUIET_MODEL, engine=deepspeed(1), **in_passes(make_shards()))
    process = PretrainProcess(changed, tmp_path / "process", PATH=str(tmp_path / "empty"))
    require_same(config(make_shards(), run_config, model=QUIET_MODEL), history(process), tmp_path / "plain", rtol=FP32)


@pytest.mark.parametrize(
    ("zero_stage", "changes", "rtol"),
    [
        *(pytest.param(stage, {}, FP32, marks=slow, id=f"{stage}") for stage in range(4)),
        *(pytest.param(stage, {"tokens_per_pass": 180}, FP32, marks=slow, id=f"{stage}-passes") for stage in (0, 2, 3)),
        pytest.param(1, {"precision": "bf16"}, BF16, marks=slow, id="1-bf16"),
        pytest.param(3, {"recompute_activations": True}, FP32, marks=slow, id="3-recomputation"),
        pytest.param(1, {"options": {"zero_optimization": {"overlap_comm": False}}}, FP32, marks=slow, id="1-option"),
    ],
)
def test_deepspeed_gives_the_trace_of_plain_torch(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, zero_stage: int, changes: dict[str, Any], rtol: float
) -> None:
    """Catches a stage, precision or option with which gradients are scaled, clipped or accumulated otherwise."""
    changes = dict(changes)
    engine = deepspeed(zero_stage, **changes.pop("options", {}))
    passes = in_passes(make_shards()) if changes.pop("tokens_per_pass", None) else {}
    changed = config(make_shards(), run_config, model=QUIET_MODEL, engine=engine, **passes, **changes)
    plain = config(make_shards(), run_config, model=QUIET_MODEL)
    require_same(plain, history(PretrainProcess(changed, tmp_path / "process")), tmp_path / "plain", rtol=rtol)


@slow
def test_an_option_that_deepspeed_refuses_is_named(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches options that never reach DeepSpeed, and a refusal that is shown as a bug of ours."""
    wrong = config(make_shards(), run_config, engine=deepspeed(1, zero_optimization={"reduce_bucket_size": -1}))
    process = PretrainProcess(wrong, tmp_path / "process")
    assert process.wait() == 2
    assert "engine.options" in process.log.read_text()
    assert "reduce_bucket_size" in process.log.read_text()
