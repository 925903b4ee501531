"""What a checkpoint holds, and how a training begins from one, whatever number of workers wrote it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch.distributed as dist
from torch import nn

from pfscale.training.config import TrainingConfig
from pfscale.training.engine import Engine, Weights, make_engine, needs_universal, to_universal
from pfscale.training.session import Session, World

JET_IQR = "jet_iqr"  # entry of the history, beside "train" and "validation"
BEST, AVERAGED, STATE = "best.safetensors", "averaged.safetensors", "state.json"


@dataclass
class LoopState:
    """What a checkpoint holds beside the engine's state and the best and averaged weights.

    Attributes:
        elements, events: learned from so far, repetitions counted.
        best_score: of the best evaluation, the quantity that `optimisation.best_by` names; `best_loss` is its loss.
        recent: what was not logged yet.
        losses: of the last steps, for the guard.
        num_workers: that wrote the checkpoint.
    """

    step: int = 0
    best_score: float = math.inf
    best_loss: float = math.inf
    best_step: int = -1
    elements: int = 0
    events: int = 0
    recent: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    history: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: {"train": [], "validation": []})
    num_workers: int = 1


@dataclass(frozen=True)
class Restored:
    """Where a training begins: an engine with its state, and all else that a checkpoint holds; `averaged` is None without an average."""

    engine: Engine
    state: LoopState
    best: Weights
    averaged: Weights | None


def loop_start(config: TrainingConfig, module: nn.Module, session: Session) -> Restored:
    """The state of the session's last committed checkpoint, or that of a new training."""
    with session.latest() as folder:
        if folder is None:
            engine = make_engine(config.engine, module, config.optimisation, session.device)
            state, best = LoopState(num_workers=session.world_size), engine.weights()
            averaged = parameters(engine) if config.optimisation.ema_decay else None
            return Restored(engine, state, best, averaged)
        state = read_state(folder)
        is_cut_otherwise = needs_universal(config.engine, saved_by=state.num_workers, world_size=session.world_size)
        engine = make_engine(config.engine, module, config.optimisation, session.device, from_universal=is_cut_otherwise)
        if is_cut_otherwise:
            with _universal(folder, session) as converted:
                engine.load(converted)
        else:
            engine.load(folder)
        best = safetensors.torch.load_file(folder / BEST)
        averaged = safetensors.torch.load_file(folder / AVERAGED, device=str(session.device)) if config.optimisation.ema_decay else None
        state.num_workers = session.world_size
        return Restored(engine, state, best, averaged)


def write_checkpoint(folder: Path, engine: Engine, state: LoopState, best: Weights, averaged: Weights | None, *, rank: int) -> None:
    """Writes this worker's part; all workers' folders together are the checkpoint."""
    engine.save(folder)
    if rank:
        return
    _save(best, folder / BEST)
    if averaged is not None:
        _save(averaged, folder / AVERAGED)
    (folder / STATE).write_text(json.dumps(asdict(state)))


def read_state(folder: Path) -> LoopState:
    """The state in a checkpoint's folder."""
    return LoopState(**json.loads((folder / STATE).read_text()))


def parameters(engine: Engine) -> Weights:
    """A copy of the parameters as they are, by name."""
    return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def _save(weights: Weights, path: Path) -> None:
    safetensors.torch.save_file({name: value.contiguous().cpu() for name, value in weights.items()}, path)


@contextmanager
def _universal(folder: Path, world: World) -> Iterator[Path]:
    """The checkpoint in a form for any number of workers, made once per node, deleted when all have read it."""
    is_first_of_node = world.local_rank == 0
    digest = hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest()  # another storage may hold a run of the same name
    path = Path(tempfile.gettempdir()) / f"pfscale-universal-{os.getuid()}-{digest}"
    try:
        if is_first_of_node:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            to_universal(folder, path)
        _barrier(world)
        yield path
        _barrier(world)
    finally:
        if is_first_of_node:
            shutil.rmtree(path, ignore_errors=True)


def _barrier(world: World) -> None:
    if world.world_size > 1:
        dist.barrier()
