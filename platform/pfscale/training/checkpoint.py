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

import safetensors.torch
import torch.distributed as dist
from torch import nn

from pfscale.tasks.reconstruction import LOSS_TERMS
from pfscale.training.batches import Place
from pfscale.training.config import TrainingConfig
from pfscale.training.engine import Engine, Weights, make_engine, needs_universal, to_universal
from pfscale.training.session import Session, World

JET_IQR, JET_IQR_ERROR = "jet_iqr", "jet_iqr_error"  # entries of the history, beside "train" and "validation"
BEST, AVERAGED, STATE = "best.safetensors", "averaged.safetensors", "state.json"


@dataclass
class Unlogged:
    """Of the steps since the last point that was logged; the same on all workers.

    Attributes:
        terms: sum of each loss term.
        norms: of the gradients.
    """

    terms: list[float] = field(default_factory=lambda: [0.0] * len(LOSS_TERMS))
    num_elements: int = 0
    norms: list[float] = field(default_factory=list)

    def add(self, terms: list[float], num_elements: int, norm: float) -> None:
        """One step's."""
        self.terms = [before + now for before, now in zip(self.terms, terms, strict=True)]
        self.num_elements += num_elements
        self.norms.append(norm)

    def means(self) -> dict[str, float]:
        """Loss terms per element, their sum as `loss`, and the gradient's norm."""
        means = [term / max(self.num_elements, 1) for term in self.terms]
        norm = math.fsum(self.norms) / len(self.norms) if self.norms else math.nan
        return {**dict(zip(LOSS_TERMS, means, strict=True)), "loss": math.fsum(means), "gradient_norm": norm}


@dataclass
class LoopState:
    """What a checkpoint holds beside the engine's state and the best and averaged weights.

    Attributes:
        place: of the next step's data.
        elements, events: learned from so far, repetitions counted; `flops` of all steps, by formula.
        seconds: in steps and waiting for their data, of all attempts up to the checkpoints that they went on from.
        best_score: of the best evaluation, the quantity that `optimisation.best_by` names; `best_loss` is its loss.
        losses: of the last steps, for the guard.
        num_workers: that wrote the checkpoint.
    """

    step: int = 0
    place: Place = field(default_factory=Place)
    best_score: float = math.inf
    best_loss: float = math.inf
    best_step: int = -1
    elements: int = 0
    events: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    unlogged: Unlogged = field(default_factory=Unlogged)
    losses: list[float] = field(default_factory=list)
    history: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: {"train": [], "validation": []})
    num_workers: int = 1


@dataclass(frozen=True)
class Restored:
    """Where a training begins: an engine with its state, and all else that a checkpoint holds.

    Attributes:
        best: those of the best evaluation; empty on all workers but the first.
        averaged: None without an average.
    """

    engine: Engine
    state: LoopState
    best: Weights
    averaged: Weights | None


def loop_start(config: TrainingConfig, module: nn.Module, session: Session) -> Restored:
    """The state of the session's last committed checkpoint, or that of a new training."""
    with session.latest() as folder:
        if folder is None:
            engine = make_engine(config.engine, module, config.optimisation, session.device)
            state, best = LoopState(num_workers=session.world_size), of_first(session, engine.weights())
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
        best = safetensors.torch.load_file(folder / BEST) if session.rank == 0 else {}
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
    found = json.loads((folder / STATE).read_text())
    return LoopState(**{**found, "place": Place(**found["place"]), "unlogged": Unlogged(**found["unlogged"])})


def parameters(engine: Engine) -> Weights:
    """A copy of the parameters as they are, by name."""
    return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def of_first(world: World, weights: Weights) -> Weights:
    """Only the worker that writes the best weights keeps them."""
    return weights if world.rank == 0 else {}


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
