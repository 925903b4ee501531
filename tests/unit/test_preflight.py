"""What is found before a training starts: memory by formula, limits of containers, disks, folders and stores out of reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfscale.errors import PfscaleError, ResourceError, TrackingError
from pfscale.models.batch import collate
from pfscale.models.memory import activation_bytes, checkpoint_bytes, count_from, state_bytes
from pfscale.models.mlpf import SIZES, Mlpf, MlpfConfig, count_parameters
from pfscale.shards.ragged import from_arrow
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.config import DataConfig, DeepSpeedEngineConfig, TorchEngineConfig, TrainingConfig
from pfscale.training.module import TaskModule
from pfscale.training.preflight import preflight, require_disk, require_memory, what_a_worker_needs
from pfscale.training.probe import Findings, memory_limit, probe
from synthetic_events import synthetic_table

GB = 1e9
ROOMY = Findings("here", memory=64 * GB, storage_free=1000 * GB, temporary_free=1000 * GB, problem=None)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config", [MlpfConfig(size=1), MlpfConfig(size=3, feedforward=2), MlpfConfig(size=2, num_layers=6), MlpfConfig(size=2, dropout=0.1)]
)
def test_activations_are_what_torch_keeps(config: MlpfConfig, precision: str, recomputes: bool) -> None:
    """Catches a formula that a change of the model has left behind: the check of memory would then refuse what fits, or let pass."""
    events = from_arrow(synthetic_table(60, seed=5, max_particles=40))
    model = Mlpf(config)
    model.encoder.standardise.fit(events.features, events.is_track)
    model.encoder.block_dtype = torch.bfloat16 if precision == "bf16" else None
    model.encoder.recomputes = recomputes
    batch = collate(events, np.arange(60))
    kept = kept_bytes(TaskModule(model, ReconstructionConfig(), trainable="all"), batch)
    # What is not kept from forward to backward: gradients under way, and with recomputation all of one block.
    block = activation_bytes(config, batch.num_elements, precision=precision) / config.num_layers if recomputes else 0.0
    under_way = 4 * 2.0 * config.feedforward * config.width * batch.num_elements
    predicted = activation_bytes(config, batch.num_elements, precision=precision, recomputes=recomputes) - under_way
    assert 0.88 * kept - 1 < predicted < 1.15 * kept + block


def kept_bytes(module: TaskModule, batch: object) -> int:
    """Bytes of all tensors that torch keeps for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(batch)  # type: ignore[arg-type]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("size", sorted(SIZES)[:3])
def test_parameters_are_counted_without_a_model(size: int) -> None:
    """Catches a count that is not that of the model."""
    assert count_from(MlpfConfig(size=size)) == count_parameters(Mlpf(MlpfConfig(size=size)))


def test_sharding_saves_memory_only_with_workers_to_share() -> None:
    """Catches a formula in which ZeRO helps a single worker, or more workers help plain torch."""
    alone, many = (
        {stage: state_bytes(10**8, zero_stage=stage, num_workers=workers) for stage in (None, 0, 1, 2, 3)} for workers in (1, 1000)
    )
    assert many[None] == alone[None]
    assert alone[1] > alone[0]
    assert many[1] < many[0]
    assert state_bytes(10**8, zero_stage=1, num_workers=2, has_average=True) - state_bytes(10**8, zero_stage=1, num_workers=2) == 4e8


def training(**changes: object) -> TrainingConfig:
    values = {"precision": "fp32", "engine": TorchEngineConfig(), "data": DataConfig(tokens_per_step=100_000)}
    return TrainingConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_too_many_elements_at_once_are_told_with_a_number_that_fits() -> None:
    """Catches advice after which the same error comes again."""
    model = MlpfConfig(size=3)
    need = what_a_worker_needs(training(), model, np.array([500]))
    small = replace(ROOMY, memory=5 * GB)
    with pytest.raises(ResourceError, match="here") as told:
        require_memory(need, small, 1)
    assert told.value.hint is not None
    budget = int(told.value.hint.split("data.tokens_per_pass=")[1].split()[0])
    fewer = training(data=DataConfig(tokens_per_step=100_000, tokens_per_pass=budget))
    require_memory(what_a_worker_needs(fewer, model, np.array([500])), small, 1)
    require_memory(need, ROOMY, 1)


def test_a_model_that_is_too_large_is_not_told_to_take_fewer_elements() -> None:
    """Catches advice that cannot help."""
    need = what_a_worker_needs(training(), MlpfConfig(width=4096, num_layers=12, num_heads=32), np.array([500]))
    for num_workers in (1, 2):
        with pytest.raises(ResourceError) as told:
            require_memory(need, replace(ROOMY, memory=20 * GB), num_workers)
        assert "tokens_per_pass" not in str(told.value.hint)


def test_workers_of_one_machine_share_its_memory() -> None:
    """Catches a check of one worker where four land on the machine."""
    need = what_a_worker_needs(training(engine=DeepSpeedEngineConfig(zero_stage=1)), MlpfConfig(size=2), np.array([500]))
    machine = replace(ROOMY, memory=1.5 * need.memory)
    require_memory(need, machine, 1)
    with pytest.raises(ResourceError, match="4 workers"):
        require_memory(need, machine, 4)


def test_an_event_longer_than_a_pass_counts_whole() -> None:
    """Catches a budget that is taken as a promise although one event is longer."""
    config = training(data=DataConfig(tokens_per_step=8192, tokens_per_pass=64))
    assert what_a_worker_needs(config, MlpfConfig(), np.array([5000])).num_elements == 5000


def test_room_for_checkpoints_counts_those_that_are_there(tmp_path: Path) -> None:
    """Catches a run that could not be resumed on the disk that it has filled itself, and one that fills the disk."""
    need = what_a_worker_needs(training(), MlpfConfig(size=2), np.array([100]))
    assert need.checkpoint == checkpoint_bytes(count_from(MlpfConfig(size=2)))
    full = replace(ROOMY, storage_free=2.5 * need.checkpoint)
    with pytest.raises(ResourceError, match="checkpoints"):
        require_disk(need, full, tmp_path / "run", keep=2, is_written_elsewhere=True)
    for step in (1, 2):
        (tmp_path / "run" / "checkpoints" / f"checkpoint_{step}").mkdir(parents=True)
    require_disk(need, full, tmp_path / "run", keep=2, is_written_elsewhere=True)
    with pytest.raises(ResourceError, match="temporary"):
        require_disk(need, replace(ROOMY, temporary_free=need.checkpoint), tmp_path / "run", keep=2, is_written_elsewhere=True)
    require_disk(need, replace(ROOMY, temporary_free=need.checkpoint), tmp_path / "run", keep=2, is_written_elsewhere=False)


def test_a_window_of_many_events_counts() -> None:
    """Catches memory that grows with data.window_events and is not looked at: the kernel would end the training in its first minute."""
    lengths = np.full(400_000, 150, np.int32)
    large, small = (training(data=DataConfig(window_events=events)) for events in (400_000, 10_000))
    with pytest.raises(ResourceError) as told:
        require_memory(what_a_worker_needs(large, MlpfConfig(size=1), lengths), replace(ROOMY, memory=16 * GB), 1)
    assert "data.window_events" in str(told.value.hint)
    require_memory(what_a_worker_needs(small, MlpfConfig(size=1), lengths), replace(ROOMY, memory=16 * GB), 1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/b/memory.max": "9000\n"}, 5000),
        ({"proc/self/cgroup": "3:memory:/j\n2:cpu:/\n", "sys/fs/cgroup/memory/j/memory.limit_in_bytes": "7000\n"}, 7000),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/memory.max": "6000\n"}, 6000),
    ],
)
def test_a_container_has_less_memory_than_its_machine(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    """Catches a batch job's limit that is overlooked: the kernel would kill what the machine as a whole has room for."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == (expected or memory_limit(tmp_path / "nothing"))


def test_what_a_worker_cannot_reach_is_named(tmp_path: Path, empty_store: str) -> None:
    """Catches a training that starts, and loses its first checkpoint or point because only the driver sees the folder or the store."""
    assert probe(str(tmp_path), empty_store).problem is None
    cases: list[tuple[str, str, type[PfscaleError], str]] = [
        (str(tmp_path / "other"), empty_store, ResourceError, "not there"),
        ("/proc", empty_store, ResourceError, "cannot write"),
        (str(tmp_path), f"sqlite:///{tmp_path}/none.db", TrackingError, "cannot reach"),
        (str(tmp_path), "http://127.0.0.1:9", TrackingError, "cannot reach"),
    ]
    for folder, store, kind, text in cases:
        problem = probe(folder, store).problem
        assert isinstance(problem, kind)
        assert text in str(problem)
        assert problem.hint


def test_the_check_of_this_process_passes_and_fails(tmp_path: Path, empty_store: str) -> None:
    """Catches a check that is not made without workers, or one that leaves files behind."""
    config = training(run={"num_workers": 0}, data=DataConfig())
    preflight(config, MlpfConfig(width=16, num_layers=1, num_heads=2), tmp_path, empty_store, np.array([100]))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(ResourceError, match="memory"):
        preflight(config, MlpfConfig(width=65536, num_layers=9, num_heads=64), tmp_path, empty_store, np.array([100]))
