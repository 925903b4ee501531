"""Training of a downstream network in one process: small, many at once in a sweep, exact on resume.

Everything that a checkpoint must hold is the engine's state and `LoopState`; learning rate and batches follow from the step count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pfscale.errors import DivergedError
from pfscale.models.batch import Batch, collate
from pfscale.models.mlpf import LatentConfig, Mlpf
from pfscale.models.sets import SetBatch, SetOutputs
from pfscale.shards.ragged import RaggedEvents
from pfscale.tasks.sets import DownstreamTask, SetData, TargetBatch, epoch_batches
from pfscale.tracking.runs import RunLogger
from pfscale.training.batches import Place
from pfscale.training.checkpoint import BEST, LoopState, read_state, write_checkpoint
from pfscale.training.config import OptimisationConfig
from pfscale.training.engine import TorchEngine, Weights, learning_rate
from pfscale.training.progress import forget_evaluations, write_evaluation, write_progress
from pfscale.training.session import LocalSession

_EVALUATION_SETS = 512  # sets that are evaluated at once
_LOG_SECONDS = 1.0  # between two points in MLflow, at least: a step takes milliseconds


@dataclass(frozen=True)
class Elements:
    """Inputs of an encoder that is trained along.

    Attributes:
        events: of the data's objects, in the same order.
        element: (n,) row in `events` of the element that carries each constituent.
    """

    events: RaggedEvents
    element: NDArray[np.int64]


@dataclass(frozen=True)
class HeadBatch:
    """Sets with what is to be learned; with an encoder, the elements of their events and where each constituent's latents are, (B, N)."""

    sets: SetBatch
    targets: TargetBatch
    elements: Batch | None = None
    place_BN: Tensor | None = None

    def to(self, device: torch.device) -> HeadBatch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        s, t = self.sets, self.targets
        mask, momenta = s.mask_BN.to(device), s.momenta_BN4.to(device)
        moved = TargetBatch(
            {k: v.to(device) for k, v in t.of_set.items()}, {k: v.to(device) for k, v in t.of_constituent.items()}, momenta, mask
        )
        elements = None if self.elements is None else self.elements.to(device)
        place = None if self.place_BN is None else self.place_BN.to(device)
        return HeadBatch(SetBatch(s.features_BNF.to(device), momenta, mask), moved, elements, place)


class HeadModule(nn.Module):
    """Standardisation, network and loss. With an encoder, latents are computed instead of read, and trained along.

    Args:
        num_inputs: features and latents of a constituent.
    """

    def __init__(
        self, task: DownstreamTask, network: nn.Module, num_inputs: int, *, encoder: Mlpf | None = None, latents: LatentConfig | None = None
    ) -> None:
        super().__init__()
        self.task, self.network, self.encoder, self.latents = task, network, encoder, latents
        self.register_buffer("mean", torch.zeros(num_inputs))
        self.register_buffer("scale", torch.ones(num_inputs))
        self.mean: Tensor
        self.scale: Tensor

    def fit(self, data: SetData) -> None:
        """Mean and width of every input, over the constituents of all examples."""
        parts = [data.features] if data.latents is None else [data.features, data.latents.astype(np.float32)]
        values = np.concatenate(parts, 1)
        if not len(values):
            return
        self.mean.copy_(torch.from_numpy(values.mean(0)))
        spread = torch.from_numpy(values.std(0))
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def outputs(self, batch: HeadBatch) -> SetOutputs:
        """What the network says."""
        raw_BNF, mask_BN1 = batch.sets.features_BNF, batch.sets.mask_BN[..., None]
        if self.encoder is not None:
            assert batch.elements is not None
            assert batch.place_BN is not None
            latents_TK = self.encoder.encode(batch.elements, self.latents)
            raw_BNF = torch.cat([raw_BNF, latents_TK[batch.place_BN]], -1)
        standard_BNF = torch.where(mask_BN1, ((raw_BNF - self.mean) / self.scale).clamp(-10, 10), raw_BNF.new_zeros(()))
        found: SetOutputs = self.network(SetBatch(standard_BNF, batch.sets.momenta_BN4, batch.sets.mask_BN))
        return found

    def forward(self, batch: HeadBatch) -> Tensor:
        return self.task.loss(self.outputs(batch), batch.targets)

    def predict(self, batch: HeadBatch) -> Tensor:
        """What users get."""
        return self.task.predict(self.outputs(batch), batch.targets)


@dataclass(frozen=True)
class HeadData:
    """Examples of one split, with elements where an encoder is trained along."""

    sets: SetData
    elements: Elements | None = None

    def __len__(self) -> int:
        return len(self.sets.examples)

    def batch(self, members: NDArray[np.integer]) -> HeadBatch:
        """The given examples."""
        sets, targets = self.sets.batch(members)
        if self.elements is None:
            return HeadBatch(sets, targets)
        examples, source = self.sets.examples, self.elements.events
        events = np.unique(examples.event[members])
        offsets, mask = examples.offsets[:-1][members], sets.mask_BN.numpy()
        rows = np.where(mask, offsets[:, None] + np.arange(mask.shape[1]), 0)
        of_row = np.searchsorted(events, examples.event[members])[:, None]  # which of the batch's events
        lengths = source.lengths[events]
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        within = self.elements.element[rows] - source.offsets[events][of_row]
        place = np.where(mask, starts[of_row] + within, 0)
        return HeadBatch(sets, targets, collate(source, events), torch.from_numpy(place))

    def epoch(self, batch_size: int, *, seed: int, epoch: int, skip: int) -> Iterator[NDArray[np.int64]]:
        """Members of each batch; with an encoder all examples of an event come together, so that it is encoded once."""
        examples = self.sets.examples
        if self.elements is None:
            yield from epoch_batches(examples.lengths, batch_size, seed=seed, epoch=epoch, skip=skip)
            return
        events, counts = np.unique(examples.event, return_counts=True)
        order = np.argsort(examples.event, kind="stable")
        starts = np.searchsorted(examples.event[order], events)
        per_batch = max(1, round(batch_size / counts.mean()))
        for chosen in epoch_batches(self.elements.events.lengths[events], per_batch, seed=seed, epoch=epoch, skip=skip):
            yield np.concatenate([order[starts[c] : starts[c] + counts[c]] for c in chosen])


@dataclass(frozen=True)
class HeadTraining:
    """One training to be done.

    Attributes:
        batch_size: examples of a step.
        checkpoint_every: steps.
    """

    module: HeadModule
    train: HeadData
    validation: HeadData
    optimisation: OptimisationConfig
    batch_size: int
    seed: int
    checkpoint_every: int
    device: torch.device


def train_head(training: HeadTraining, session: LocalSession, folder: Path, logger: RunLogger | None) -> tuple[Weights, LoopState]:
    """(best weights, final state); it stops early where it is asked to, with a checkpoint.

    Raises:
        DivergedError: the loss or the gradient is not finite.
    """
    optimisation = training.optimisation
    engine = TorchEngine(training.module.to(training.device), optimisation)
    state, best = LoopState(), engine.weights()
    with session.latest() as latest:
        if latest is not None:
            state, best = read_state(latest), safetensors.torch.load_file(latest / BEST)
            engine.load(latest)
    forget_evaluations(folder, after=state.step)
    if state.step == 0:  # where a network begins at the baseline, that is a model, too
        best = _evaluated(training, engine, state, best, folder, logger)
    begun, logged, resumed_from, before = time.monotonic(), 0.0, state.step, state.elements
    batches = _batches(training, state.place)
    while state.step < optimisation.num_steps:
        begin = time.monotonic()
        members, following = next(batches)
        batch = training.train.batch(members).to(training.device)
        torch.manual_seed(training.seed * 1_000_003 + state.step)
        loss = _step(engine, batch, state.step, optimisation)
        state.seconds += time.monotonic() - begin
        state.step, state.place = state.step + 1, following
        state.events += len(members)
        state.elements += int(batch.sets.mask_BN.sum())
        is_last = state.step == optimisation.num_steps
        is_stopping = session.wish.is_there()
        if is_last or time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            rate = (state.elements - before) / max(logged - begun, 1e-9)
            if logger is not None:
                logger.log_metrics({"train_loss": loss, "elements_per_second": rate}, step=state.step)
            validation = state.best_loss if math.isfinite(state.best_loss) else None
            write_progress(
                folder, step=state.step, resumed_from=resumed_from, loss=loss, validation_loss=validation, elements_per_second=rate
            )
        if is_last or state.step % optimisation.evaluate_every == 0:
            best = _evaluated(training, engine, state, best, folder, logger)
        if is_last or is_stopping or state.step % training.checkpoint_every == 0:
            if logger is not None:
                logger.flush()
            with session.commit({"step": state.step}) as draft:
                write_checkpoint(draft, engine, state, best, None, rank=0)
        if is_stopping:
            break
    session.finish()
    return best, state


def predictions(module: HeadModule, data: HeadData, device: torch.device) -> NDArray[np.float32]:
    """(B, ...) in the order of the examples."""
    module.eval()
    found: list[Tensor | None] = [None] * len(data)
    with torch.no_grad():
        for members in _in_order(data):
            for member, row in zip(members, module.predict(data.batch(members).to(device)).cpu().unbind(0), strict=True):
                found[member] = row
    module.train()
    return torch.stack([row for row in found if row is not None]).numpy() if found else np.zeros((0, 1), np.float32)


def losses(engine: TorchEngine, data: HeadData, terms: tuple[str, ...], device: torch.device) -> dict[str, float]:
    """Mean of each loss term and their sum `loss`; NaN of no examples."""
    total = torch.zeros(len(terms))
    for members in _in_order(data):
        total += engine.evaluate(data.batch(members).to(device)).cpu()
    means = (total / max(len(data), 1)).tolist() if len(data) else [math.nan] * len(terms)
    return {"loss": math.fsum(means), **dict(zip(terms, means, strict=True))}


def _step(engine: TorchEngine, batch: HeadBatch, number: int, optimisation: OptimisationConfig) -> float:
    """The mean loss of the batch before the step."""
    terms = engine.accumulate(batch, num_elements=len(batch.targets), is_last=True)
    loss = float(terms.sum()) / len(batch.targets)
    norm = engine.apply(learning_rate=learning_rate(optimisation, number))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(f"the loss is not finite at step {number}", hint="a lower optimisation.learning_rate")
    return loss


def _evaluated(
    training: HeadTraining, engine: TorchEngine, state: LoopState, best: Weights, folder: Path, logger: RunLogger | None
) -> Weights:
    """The best weights after an evaluation."""
    found = losses(engine, training.validation, training.module.task.terms, training.device)
    metrics = {f"validation_{name}": value for name, value in found.items()}
    state.history["validation"].append((state.step, found["loss"]))
    if logger is not None:
        logger.log_metrics(metrics, step=state.step)
    if found["loss"] < state.best_loss or state.best_step < 0:
        state.best_loss = state.best_score = found["loss"]
        state.best_step, best = state.step, engine.weights()
    write_evaluation(folder, step=state.step, metrics=metrics)
    return best


def _batches(training: HeadTraining, start: Place) -> Iterator[tuple[NDArray[np.int64], Place]]:
    """(members, place of the next batch), for ever."""
    epoch, step = start.epoch, start.step
    while True:
        for members in training.train.epoch(training.batch_size, seed=training.seed, epoch=epoch, skip=step):
            step += 1
            yield members, Place(epoch, 0, step)
        epoch, step = epoch + 1, 0


def _in_order(data: HeadData) -> Iterator[NDArray[np.int64]]:
    """All examples, those of similar length together; with an encoder, those of an event."""
    key = data.sets.examples.lengths if data.elements is None else data.sets.examples.event
    order = np.argsort(key, kind="stable")
    for start in range(0, len(order), _EVALUATION_SETS):
        yield order[start : start + _EVALUATION_SETS]


def described(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Flat value and `..._error` of every estimate that is finite."""
    flat: dict[str, float] = {}
    for name, number in metrics.items():
        for key, value in ((name, number.value), (f"{name}_error", number.error)):
            if math.isfinite(value):
                flat[key] = float(value)
    return flat
