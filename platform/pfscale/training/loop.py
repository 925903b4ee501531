"""The training loop, as every worker runs it.

Batches are planned globally: a step has the same events whatever the number of workers, and worker r takes every `world_size`-th of them.
All state is the engine's, plus a step count and the best weights so far: plans, learning rate and random numbers follow from the step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pfscale.errors import TrainingError
from pfscale.models.batch import Batch, collate
from pfscale.models.bundle import load_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.shards.dataset import EventIndex, Window, cut_by_tokens, load_index, plan_epoch, read_events, select_events
from pfscale.shards.ragged import INPUT_COLUMNS, TARGET_COLUMNS, RaggedEvents
from pfscale.tasks.reconstruction import LOSS_TERMS
from pfscale.tracking.runs import RunLogger, Tracker
from pfscale.training.config import TrainingConfig
from pfscale.training.engine import Engine, learning_rate, make_engine
from pfscale.training.module import TaskModule
from pfscale.training.progress import write_progress
from pfscale.training.session import Session, World

BEST, STATE = "best.safetensors", "state.json"
_NORMALISATION_EVENTS = 2000


@dataclass(frozen=True)
class LoopInputs:
    """Everything a worker needs, picklable.

    Attributes:
        model: architecture.
        folder: of the run, shared by all nodes.
        backbone: folder of the bundle to start from; None: random initialisation.
        trainable: `all` or `heads` (the encoder stays as it is, in evaluation mode, without weight decay).
    """

    config: TrainingConfig
    model: MlpfConfig
    tracker: Tracker
    run_id: str
    folder: Path
    backbone: Path | None = None
    trainable: str = "all"


@dataclass
class LoopState:
    """What a checkpoint holds beside the engine's state; `recent`: what was not logged yet."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = -1
    elements: int = 0
    seconds: float = 0.0
    recent: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: {"train": [], "validation": []})


def run_loop(inputs: LoopInputs, session: Session) -> None:
    """Trains to the config's last step, resuming from the session's last checkpoint.

    Raises:
        TrainingError: a loss that is not finite; names the events of the batch.
        ShardError, NotEnoughDataError: as the readers.
    """
    config = inputs.config
    index = load_index(config.data.shards)
    train = select_events(index, "train", config.data.num_events)
    validation = validation_events(index, config.data.num_validation_events)
    torch.manual_seed(config.seed)
    module = TaskModule(_build_model(inputs, index, train), config.task, trainable=inputs.trainable)
    engine = make_engine(config.engine, module, config.optimisation, session.device)
    state, best = LoopState(), engine.weights()
    logger = inputs.tracker.attach(inputs.run_id) if session.rank == 0 else None
    with session.latest() as folder:
        if folder is not None:
            engine.load(folder)
            state = LoopState(**json.loads((folder / STATE).read_text()))
            best = safetensors.torch.load_file(folder / BEST)
            if logger is not None:
                logger.set_tags({"pfscale.resumed_from_step": str(state.step)})
    with _flushed(logger):
        _train(inputs, session, engine, state, best, index=index, train=train, validation=validation, logger=logger)


def _train(
    inputs: LoopInputs,
    session: Session,
    engine: Engine,
    state: LoopState,
    best: dict[str, Tensor],
    *,
    index: EventIndex,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    logger: RunLogger | None,
) -> None:
    config, last = inputs.config, inputs.config.optimisation.num_steps
    recent = _Recent(state.recent, session)
    committed = resumed_from = state.step
    for rows, events in _steps(index, train, config, start=state.step):
        if state.step >= last:
            break
        begin = time.perf_counter()
        torch.manual_seed((config.seed * 1_000_003 + state.step) * 4096 + session.rank)
        num_elements = int(events.lengths[rows].sum())
        batch = worker_part(events, rows, session).to(session.device)
        rate = learning_rate(config.optimisation, state.step)
        terms, norm = engine.step(batch, num_elements=max(num_elements, 1), learning_rate=rate)
        _check_finite(terms, norm, events.uid[rows], step=state.step)
        state.step += 1
        state.elements += num_elements
        state.seconds += time.perf_counter() - begin
        recent.add(terms, num_elements, norm)
        if state.step % config.run.log_every == 0 or state.step == last:
            means = recent.means()
            if logger is not None:
                speed = {"learning_rate": rate, "elements_per_second": state.elements / max(state.seconds, 1e-9)}
                logger.log_metrics({**{f"train_{k}": v for k, v in means.items()}, **speed}, step=state.step)
            state.history["train"].append((state.step, means["loss"]))
            if session.rank == 0:
                _report_progress(inputs.folder, state, resumed_from)
        if state.step % config.optimisation.evaluate_every == 0 or state.step == last:
            losses = evaluate_loss(engine, index, validation, session, tokens=config.data.tokens_per_step)
            if not math.isfinite(losses["loss"]):
                raise TrainingError(f"the validation loss is not finite at step {state.step}", hint="lower optimisation.learning_rate")
            state.history["validation"].append((state.step, losses["loss"]))
            if logger is not None:
                logger.log_metrics({f"validation_{k}": v for k, v in losses.items()}, step=state.step)
            if losses["loss"] < state.best_loss:
                state.best_loss, state.best_step, best = losses["loss"], state.step, engine.weights()
        if state.step - committed >= config.checkpoint_every or state.step == last:
            committed, state.recent = state.step, recent.save()
            if logger is not None:  # what is logged before a checkpoint would not be logged again after it
                logger.flush()
            session.commit(partial(_write, engine=engine, state=state, best=best, rank=session.rank), _report(state))


def worker_part(events: RaggedEvents, rows: NDArray[np.int64], world: World) -> Batch:
    """This worker's share of a step: every world_size-th event by length, so that all workers get as much to do.

    A worker without an event gets one whose elements do not count, so that it can take part in the collectives.
    """
    by_length = rows[np.argsort(events.lengths[rows], kind="stable")]
    mine = by_length[world.rank :: world.world_size]
    if len(mine):
        return collate(events, mine)
    batch = collate(events, by_length[:1])
    return Batch(batch.features_BNF, batch.is_track_BN, torch.zeros_like(batch.mask_BN), batch.targets, batch.rows_B)


def evaluate_loss(engine: Engine, index: EventIndex, members: NDArray[np.int64], world: World, *, tokens: int) -> dict[str, float]:
    """Mean of each loss term per element over the given events, and their sum as `loss`; the same on all workers."""
    total = torch.zeros(len(LOSS_TERMS) + 1, dtype=torch.float64)
    for events in _in_chunks(index, members):
        order = np.argsort(events.lengths, kind="stable")
        for run in cut_by_tokens(events.lengths[order], tokens):
            batch = worker_part(events, order[run], world).to(world.device)
            total[:-1] += engine.evaluate(batch).double().cpu()
            total[-1] += batch.num_elements
    _sum_over_workers(total, world)
    means = (total[:-1] / total[-1]).tolist()
    return {**dict(zip(LOSS_TERMS, means, strict=True)), "loss": math.fsum(means)}


class _Recent:
    """Loss terms since the last point that was logged; `saved` are those of the checkpoint that the run resumed from."""

    def __init__(self, saved: dict[str, Any], world: World) -> None:
        self.world = world
        self.terms = torch.zeros(len(LOSS_TERMS), dtype=torch.float64)
        self.num_elements = int(saved.get("num_elements", 0))
        self.norms: list[float] = list(saved.get("norms", []))
        if saved and world.rank == 0:
            self.terms += torch.tensor(saved["terms"], dtype=torch.float64)

    def add(self, terms: Tensor, num_elements: int, norm: float) -> None:
        self.terms += terms.double().cpu()
        self.num_elements += num_elements
        self.norms.append(norm)

    def save(self) -> dict[str, Any]:
        """What a checkpoint keeps; moves all workers' sums to rank 0 (collective), which leaves their total as it was."""
        _sum_over_workers(self.terms, self.world)
        saved = {"terms": self.terms.tolist(), "num_elements": self.num_elements, "norms": self.norms}
        if self.world.rank != 0:
            self.terms.zero_()
        return saved

    def means(self) -> dict[str, float]:
        """Mean per element over all workers (collective), and starts anew."""
        _sum_over_workers(self.terms, self.world)
        means = (self.terms / max(self.num_elements, 1)).tolist()
        norm = float(np.mean(self.norms)) if self.norms else math.nan
        self.terms.zero_()
        self.num_elements, self.norms = 0, []
        return {**dict(zip(LOSS_TERMS, means, strict=True)), "loss": math.fsum(means), "gradient_norm": norm}


def _build_model(inputs: LoopInputs, index: EventIndex, train: NDArray[np.int64]) -> Mlpf:
    """The model at step 0: the backbone's weights with its normalisation, or random ones with that of the training events."""
    if inputs.backbone is not None:
        return load_bundle(inputs.backbone).model.train()
    model = Mlpf(inputs.model)
    sample = read_events(index, train[:_NORMALISATION_EVENTS], INPUT_COLUMNS)
    model.encoder.standardise.fit(sample.features, sample.is_track)
    return model


def validation_events(index: EventIndex, num_events: int | None) -> NDArray[np.int64]:
    """The validation events of lowest hash; all where there are fewer than asked for.

    Raises:
        NotEnoughDataError: there are none.
    """
    members = select_events(index, "validation")
    return members if num_events is None else members[:num_events]


def _steps(
    index: EventIndex, train: NDArray[np.int64], config: TrainingConfig, *, start: int
) -> Iterator[tuple[NDArray[np.int64], RaggedEvents]]:
    """(rows, events) of every step from `start` on, epoch after epoch; the next window is read while this one is learned from."""
    columns = (*INPUT_COLUMNS, *TARGET_COLUMNS)
    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for window, skip in _windows(index, train, config, start=start):
            following = (pool.submit(read_events, index, window.events, columns), window, skip)
            if ahead is not None:
                yield from _rows_of(*ahead)
            ahead = following


def _rows_of(future: Any, window: Window, skip: int) -> Iterator[tuple[NDArray[np.int64], RaggedEvents]]:
    events = future.result()
    for rows in window.steps[skip:]:
        yield rows, events


def _windows(index: EventIndex, train: NDArray[np.int64], config: TrainingConfig, *, start: int) -> Iterator[tuple[Window, int]]:
    """(window, steps of it to skip), for ever; whole windows before step `start` are left out."""
    passed, epoch = 0, 0
    while True:
        plan = plan_epoch(
            index,
            train,
            tokens_per_step=config.data.tokens_per_step,
            window_events=config.data.window_events,
            seed=config.seed,
            epoch=epoch,
        )
        for window in plan:
            if passed + len(window.steps) > start:
                yield window, max(0, start - passed)
            passed += len(window.steps)
        epoch += 1


def _in_chunks(index: EventIndex, members: NDArray[np.int64], *, size: int = 4096) -> Iterator[RaggedEvents]:
    for first in range(0, len(members), size):
        yield read_events(index, np.sort(members[first : first + size]), (*INPUT_COLUMNS, *TARGET_COLUMNS))


def _check_finite(terms: Tensor, norm: float, uid: NDArray[np.uint64], *, step: int) -> None:
    # DeepSpeed's ZeRO optimizers give -1 for a norm that is not finite.
    if bool(torch.isfinite(terms).all()) and math.isfinite(norm) and norm >= 0:
        return
    named = {name: float(value) for name, value in zip(LOSS_TERMS, terms, strict=True)}
    raise TrainingError(
        f"loss or gradient is not finite at step {step}: {named}, gradient norm {norm}",
        where=f"events {', '.join(f'{u:016x}' for u in uid[:8])}{' ...' if len(uid) > 8 else ''}",
        hint="lower optimisation.learning_rate, or look at these events with pfscale inspect",
    )


def _sum_over_workers(values: Tensor, world: World) -> None:
    if world.world_size > 1:
        dist.all_reduce(values)


def _report_progress(folder: Path, state: LoopState, resumed_from: int) -> None:
    validation = state.history["validation"]
    write_progress(
        folder,
        step=state.step,
        resumed_from=resumed_from,
        loss=state.history["train"][-1][1],
        validation_loss=validation[-1][1] if validation else None,
        elements_per_second=state.elements / max(state.seconds, 1e-9),
    )


def _report(state: LoopState) -> dict[str, float]:
    return {"step": state.step, "best_loss": state.best_loss, "best_step": state.best_step}


def _write(folder: Path, *, engine: Engine, state: LoopState, best: dict[str, Tensor], rank: int) -> None:
    engine.save(folder)
    if rank == 0:
        safetensors.torch.save_file({k: v.contiguous().cpu() for k, v in best.items()}, folder / BEST)
        (folder / STATE).write_text(json.dumps(asdict(state)))


@contextmanager
def _flushed(logger: RunLogger | None) -> Iterator[None]:
    try:
        yield
    finally:
        if logger is not None:
            logger.flush()
