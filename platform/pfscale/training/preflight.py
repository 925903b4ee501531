"""What would stop a training later, found before it starts: CPUs, memory, disk, a folder or tracking store that workers do not reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale.errors import ResourceError
from pfscale.models.memory import PROCESS, WINDOW, activation_bytes, checkpoint_bytes, count_from, state_bytes
from pfscale.models.mlpf import MlpfConfig
from pfscale.ray_cluster import require_resources, room_on_nodes
from pfscale.training.config import DeepSpeedEngineConfig, TrainingConfig
from pfscale.training.probe import Findings, probe

_ANSWER_SECONDS = 60.0
_WRITTEN_AT_ONCE = 3  # checkpoints in the temporary folder: two on their way to the storage, one that is being written
_GB = 1e9


@dataclass(frozen=True)
class Need:
    """What one worker needs, in bytes.

    Attributes:
        state: weights, gradients, optimizer.
        activations: of `num_elements` elements taken at once, of which `longest` are one event.
        window: of the events that are read at once.
        checkpoint: one checkpoint of all workers.
    """

    state: float
    activations: float
    window: float
    num_elements: int
    longest: int
    checkpoint: float

    @property
    def memory(self) -> float:
        return PROCESS + self.state + self.activations + self.window


def what_a_worker_needs(config: TrainingConfig, model: MlpfConfig, lengths: NDArray[np.integer[Any]], held: float | None = None) -> Need:
    """By formula (`pfscale.models.memory`), from the config and the lengths of the events alone.

    Args:
        lengths: (E,) elements of the data set's events.
        held: events of a window that a worker holds; None: all of `data.window_events`.
    """
    longest = int(lengths.max())
    num_events = min(config.data.num_events or len(lengths), len(lengths))
    num_parameters, num_workers = count_from(model), max(1, config.run.num_workers)
    window = min(num_events, config.data.window_events) if held is None else held
    has_average = config.optimisation.ema_decay > 0
    zero_stage = config.engine.zero_stage if isinstance(config.engine, DeepSpeedEngineConfig) else None
    share = math.ceil(config.data.tokens_per_step / num_workers)
    num_elements = max(longest, min(share, config.data.tokens_per_pass or share))
    recomputes = config.recompute_activations
    return Need(
        state=state_bytes(num_parameters, zero_stage=zero_stage, num_workers=num_workers, has_average=has_average),
        activations=activation_bytes(model, num_elements, precision=config.precision, recomputes=recomputes),
        window=WINDOW * window * float(lengths.mean()),
        num_elements=num_elements,
        longest=longest,
        checkpoint=checkpoint_bytes(num_parameters, has_average=has_average),
    )


def preflight(
    config: TrainingConfig,
    model: MlpfConfig,
    folder: Path,
    tracking_uri: str,
    lengths: NDArray[np.integer[Any]],
    held: float | None = None,
) -> None:
    """Returns when the training can start; with workers, a Ray cluster is connected. Costs a second or two.

    Memory is not checked with run.use_gpu: what counts there is the accelerator's.

    Args:
        folder: of the run, there already.
        lengths, held: as `what_a_worker_needs`.

    Raises:
        ResourceError: too few CPUs, too little memory or disk, a folder that a worker cannot write to.
        TrackingError: a worker does not reach the tracking store.
    """
    run, need = config.run, what_a_worker_needs(config, model, lengths, held)
    if run.num_workers == 0:
        machines = [(probe(str(folder), tracking_uri), 1)]  # drafts of checkpoints lie beside them
    else:
        bundle = worker_resources(config)
        require_resources(bundle, run.num_workers, hint="lower run.num_workers or run.cpus_per_worker, or set run.use_gpu=false")
        machines = [(found, min(room, run.num_workers)) for found, room in _probed(bundle, folder, tracking_uri)]
    for found, num_workers in machines:
        if found.problem is not None:
            raise found.problem
        if not run.use_gpu:
            require_memory(need, found, num_workers)
        require_disk(need, found, folder, keep=config.keep_checkpoints, is_written_elsewhere=run.num_workers > 0)


def worker_resources(config: TrainingConfig) -> dict[str, float]:
    """What Ray reserves for each worker."""
    return {"CPU": config.run.cpus_per_worker, **({"GPU": 1.0} if config.run.use_gpu else {})}


def require_memory(need: Need, found: Findings, num_workers: int) -> None:
    """Checks that so many workers fit into a machine's memory.

    Raises:
        ResourceError: they do not; names the number of elements at once with which they would, where there is one.
    """
    room = found.memory / num_workers
    if need.memory <= room:
        return
    per_element = need.activations / need.num_elements
    fitting = int((room - PROCESS - need.state - need.window) / per_element) // 64 * 64
    if need.window > need.memory / 2:
        hint = "a smaller data.window_events (events that are read and shuffled at once)"
    elif fitting >= max(64, need.longest):
        hint = f"data.tokens_per_pass={fitting} gives the same result in parts"
    elif num_workers > 1:
        hint = "fewer workers on a machine (run.num_workers, run.cpus_per_worker), or a smaller model"
    else:
        hint = "a smaller model, more workers with engine.zero_stage of 1 to 3, or a machine with more memory"
    parts = [
        f"{need.state / _GB:.1f} GB for the model and its optimizer",
        f"{need.activations / _GB:.1f} GB for {need.num_elements} elements at once",
        f"{need.window / _GB:.1f} GB for a window of events",
    ]
    workers = f"{num_workers} workers" if num_workers > 1 else "the training"
    raise ResourceError(
        f"{workers} would need about {num_workers * need.memory / _GB:.1f} GB of memory ({', '.join(parts)}), the machine has "
        f"{found.memory / _GB:.1f} GB",
        where=found.node,
        hint=hint,
    )


def require_disk(need: Need, found: Findings, folder: Path, *, keep: int, is_written_elsewhere: bool) -> None:
    """Checks that there is room for the checkpoints: those kept, one that is written, one more.

    Args:
        is_written_elsewhere: to the temporary folder first, as workers do.

    Raises:
        ResourceError: there is not.
    """
    there = len([*folder.glob("checkpoints/checkpoint_*"), *folder.parent.glob(f"{folder.name}-train/checkpoint_*/")])
    count = max(2, keep + 2 - there)
    size = f"{count} checkpoints of {need.checkpoint / _GB:.2g} GB"
    if found.storage_free < count * need.checkpoint:
        hint = "make room, or choose another run.storage or a smaller keep_checkpoints"
        raise ResourceError(f"{found.storage_free / _GB:.2g} GB are free there, not enough for {size}", where=str(folder), hint=hint)
    if is_written_elsewhere and found.temporary_free < _WRITTEN_AT_ONCE * need.checkpoint:
        what = f"{found.temporary_free / _GB:.2g} GB are free in the temporary folder, not enough for {_WRITTEN_AT_ONCE} checkpoints"
        raise ResourceError(what, where=found.node, hint="make room there, or set TMPDIR to another folder before Ray is started")


def _probed(bundle: dict[str, float], folder: Path, tracking_uri: str) -> list[tuple[Findings, int]]:
    """(what it says, how many workers it has room for) of every node that has room for one, all asked at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    rooms = room_on_nodes(bundle)
    asked = {
        ray.remote(num_cpus=0, max_retries=1)(probe)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(str(folder), tracking_uri): room
        for node, room in rooms.items()
    }
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    if silent:
        hint = "is a node down, or very busy? `ray status` shows them"
        raise ResourceError(f"{len(silent)} of {len(asked)} nodes start no process within {_ANSWER_SECONDS:.0f} s", hint=hint)
    try:
        return [(ray.get(answer), asked[answer]) for answer in done]
    except ray.exceptions.RayError as error:
        hint = "is its memory full? Ray ends processes when it is; `ray status` and `ray memory` show what is there"
        raise ResourceError(f"a node could not run a small task: {type(error).__name__}", hint=hint) from error
