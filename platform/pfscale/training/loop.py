"""The training loop, as every worker runs it.

All state is the engine's, plus what `LoopState` holds: learning rate and random numbers follow from the step count, data from its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pfscale.models.bundle import MLPF_KIND, Bundle, load_bundle, save_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.shards.dataset import EventIndex, load_index, read_events, read_identities, select_events
from pfscale.shards.ragged import INPUT_COLUMNS
from pfscale.tasks.reconstruction import LOSS_TERMS
from pfscale.tracking.runs import RunLogger, Tracker
from pfscale.training.batches import Step, training_steps
from pfscale.training.checkpoint import JET_IQR, JET_IQR_ERROR, Restored, Unlogged, loop_start, of_first, write_checkpoint
from pfscale.training.config import TrainingConfig
from pfscale.training.engine import Weights, learning_rate, swapped, update_average
from pfscale.training.guard import Guard, explained_memory
from pfscale.training.memory import FreedMemory
from pfscale.training.meter import CHECKPOINT, DATA, EVALUATION, LOGGING, WORK, Meter
from pfscale.training.module import TaskModule
from pfscale.training.progress import forget_evaluations, write_evaluation, write_progress
from pfscale.training.reading import ReadLog
from pfscale.training.session import Session, agree_on, sum_over_workers
from pfscale.training.validation import Validation, evaluate_loss, first_not_finite, validation_events

_NORMALISATION_EVENTS = 2000
_PHYSICS_EVENTS = 500  # of those that the losses are evaluated on, while it trains
_JET_IQR = "mlpf/jet_response_iqr_over_median"
_PHYSICS_METRICS = (_JET_IQR, f"{_JET_IQR}_error", "mlpf/jet_response_median", "mlpf/met_resolution", "mlpf/jet_matched_fraction")


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


def run_loop(inputs: LoopInputs, session: Session) -> None:
    """Trains to the config's last step, or until it is asked to stop, resuming from the session's last checkpoint.

    Raises:
        DivergedError: a loss or gradient that is not finite, or a loss that jumps; names the events of the batch.
        ResourceError: a step that does not fit into memory.
        ShardError, NotEnoughDataError: as the readers.
    """
    config = inputs.config
    index = load_index(config.data.shards)
    train = select_events(index, "train", config.data.num_events)
    validation = Validation(
        index, validation_events(index, config.data.num_validation_events), config.data.tokens_per_pass, config.data.cache
    )
    module = build_module(inputs, index, train)
    with ExitStack() as stack:
        logger = stack.enter_context(_flushed(inputs.tracker.attach(inputs.run_id))) if session.rank == 0 else None
        restored = loop_start(config, module, session)
        if session.rank == 0:
            forget_evaluations(inputs.folder, after=restored.state.step)
        if logger is not None and restored.state.step:
            logger.set_tags({"pfscale.resumed_from_step": str(restored.state.step)})
        stack.callback(session.finish)  # whatever happens: a commit under way belongs to this run
        _Training(inputs, session, module, restored, index, train, validation, logger).run()


class _Training:
    """A training under way; one per worker. Everything that a checkpoint must hold is in `state`, `best`, `averaged` and the engine."""

    def __init__(
        self,
        inputs: LoopInputs,
        session: Session,
        module: TaskModule,
        restored: Restored,
        index: EventIndex,
        train: NDArray[np.int64],
        validation: Validation,
        logger: RunLogger | None,
    ) -> None:
        self.inputs, self.config, self.session, self.logger = inputs, inputs.config, session, logger
        self.index, self.train, self.validation = index, train, validation
        self.engine, self.state = restored.engine, restored.state
        self.best, self.averaged = restored.best, restored.averaged
        self.freed = FreedMemory()
        self.meter = Meter(module.model, session, precision=self.config.precision)
        self.guard = Guard(
            self.config,
            inputs.folder,
            self.state.losses,
            data=index.manifest.hash,
            uid_of=lambda events: read_identities(index, events),
            save_model=self._save_model,
            is_first=session.rank == 0,
        )
        self.committed = self.resumed_from = self.state.step
        self.before = (self.state.flops, self.state.seconds)

    def run(self) -> None:
        seed, place = self.config.seed, self.state.place
        log = ReadLog(self.inputs.folder, self.session)
        with closing(training_steps(self.index, self.train, self.config.data, self.session, seed=seed, start=place, read_log=log)) as steps:
            is_ending = self.state.step >= self.config.optimisation.num_steps
            if self._lacks_evaluation():
                with self.meter.time(EVALUATION):
                    self._evaluate()
            while not is_ending:
                with self.meter.time(DATA):
                    step = next(steps)
                    if step.is_first:
                        agree_on(step.problem, self.session)
                with self.meter.time(WORK), explained_memory(step):
                    is_stopping = self._step(step)
                self.meter.count(step.lengths.tolist())
                is_ending = is_stopping or self.state.step == self.config.optimisation.num_steps
                self._between_steps(is_stopping=is_stopping)

    def _lacks_evaluation(self) -> bool:
        """Whether the step that this attempt begins at is to be evaluated, and the attempt before was stopped first."""
        step, done = self.state.step, self.state.history["validation"]
        return step > 0 and step % self.config.optimisation.evaluate_every == 0 and (not done or done[-1][0] < step)

    def _between_steps(self, *, is_stopping: bool) -> None:
        """Logs, evaluates and commits where it is time to; who asks to stop may not wait for an evaluation: the next attempt makes it."""
        config, step = self.config, self.state.step
        is_last = step == config.optimisation.num_steps
        if step % config.run.log_every == 0 or is_last:
            with self.meter.time(LOGGING):
                self._log()
                self.freed.give_back()
        if is_last or (step % config.optimisation.evaluate_every == 0 and not is_stopping):
            with self.meter.time(EVALUATION):
                self._evaluate()
        if step - self.committed >= config.checkpoint_every or is_last or is_stopping:
            with self.meter.time(CHECKPOINT):
                self._commit()

    def _step(self, step: Step) -> bool:
        """One optimizer step; whether the run was asked to stop after it (agreed on by all workers)."""
        number = self.state.step
        torch.manual_seed((self.config.seed * 1_000_003 + number) * 4096 + self.session.rank)
        num_elements = max(step.num_elements, 1)
        terms = torch.zeros(len(LOSS_TERMS), device=self.session.device)
        for i, batch in enumerate(step.passes):
            is_last = i == len(step.passes) - 1
            terms += self.engine.accumulate(batch.to(self.session.device), num_elements=num_elements, is_last=is_last)
        agreed = torch.tensor([*terms.tolist(), float(self.session.wish.is_there())], dtype=torch.float64)
        sum_over_workers(agreed, self.session)
        means = dict(zip(LOSS_TERMS, (agreed[:-1] / num_elements).tolist(), strict=True))
        self.guard.check_loss(number, step, means)
        rate = learning_rate(self.config.optimisation, number)
        norm = self.engine.apply(learning_rate=rate)
        self.guard.check_norm(number, step, norm)
        if self.averaged is not None:
            update_average(self.averaged, self.engine, self.config.optimisation.ema_decay, step=number)
        self.state.step += 1
        self.state.place = step.following
        self.state.elements += step.num_elements
        self.state.events += len(step.lengths)
        self.state.unlogged.add(agreed[:-1].tolist(), step.num_elements, norm)
        return bool(agreed[-1])

    def _log(self) -> None:
        means, self.state.unlogged = self.state.unlogged.means(), Unlogged()
        self.state.history["train"].append((self.state.step, means["loss"]))
        if self.logger is None:
            return
        done = {"epoch": self.state.events / len(self.train), "learning_rate": learning_rate(self.config.optimisation, self.state.step - 1)}
        speed = self.meter.metrics()
        self.logger.log_metrics({**{f"train_{k}": v for k, v in means.items()}, **done, **speed}, step=self.state.step)
        validation = self.state.history["validation"]
        write_progress(
            self.inputs.folder,
            step=self.state.step,
            resumed_from=self.resumed_from,
            loss=means["loss"],
            validation_loss=validation[-1][1] if validation else None,
            elements_per_second=speed["recent_elements_per_second"],
        )

    def _evaluate(self) -> None:
        with ExitStack() as stack:
            if self.averaged is not None:
                stack.enter_context(swapped(self.engine, self.averaged))
            losses = evaluate_loss(self.engine, self.validation, self.session)
            if not math.isfinite(losses["loss"]):
                bad = first_not_finite(self.engine, self.validation, self.session)
                self.guard.stop_in_evaluation(self.state.step, bad, losses)
            self.state.history["validation"].append((self.state.step, losses["loss"]))
            if self.logger is not None:
                self.logger.log_metrics({f"validation_{k}": v for k, v in losses.items()}, step=self.state.step)
            metrics = {f"validation_{k}": v for k, v in losses.items()}
            score = losses[self.config.optimisation.best_by]
            if score < self.state.best_score:
                self.state.best_score, self.state.best_loss, self.state.best_step = score, losses["loss"], self.state.step
                self.best = of_first(self.session, self.engine.weights())
            if self.config.physics_every and self.state.step % self.config.physics_every == 0:
                metrics |= self._look_at_physics()
            if self.session.rank == 0:
                write_evaluation(self.inputs.folder, step=self.state.step, metrics=metrics)

    def _look_at_physics(self) -> dict[str, float]:
        """Jets and missing momentum of the weights as they are, under the names they are logged by.

        Rank 0 reconstructs, the others wait at the next step.
        """
        weights = self.engine.weights()
        if self.session.rank:
            return {}
        from pfscale.training.evaluate import evaluate_bundle

        model = Mlpf(self.inputs.model)
        model.load_state_dict(model_weights(weights))
        card = {"task": self.config.task.model_dump(mode="json"), **_data_of(self.index)}
        sample = self.validation.sample(_PHYSICS_EVENTS)
        found = evaluate_bundle(Bundle(model.eval(), card), self.index, sample, title="", scope="events").metrics
        finite = {name: found[name] for name in _PHYSICS_METRICS if math.isfinite(found.get(name, math.nan))}
        if _JET_IQR in finite:
            self.state.history.setdefault(JET_IQR, []).append((self.state.step, finite[_JET_IQR]))
            error = found.get(f"{_JET_IQR}_error", math.nan)
            self.state.history.setdefault(JET_IQR_ERROR, []).append((self.state.step, error))
        # not under the names of the final figures, which are of the best weights and of other events
        logged = {f"validation_{name.removeprefix('mlpf/')}": value for name, value in finite.items()}
        if self.logger is not None:
            self.logger.log_metrics(logged, step=self.state.step)
        return logged

    def _commit(self) -> None:
        self.committed = self.state.step
        self.state.losses = list(self.guard.recent)
        self.state.flops = self.before[0] + self.meter.flops
        self.state.seconds = self.before[1] + self.meter.seconds[WORK] + self.meter.seconds[DATA]
        if self.logger is not None:  # what is logged before a checkpoint would not be logged again after it
            self.logger.flush()
        report = {"step": self.state.step, "best_loss": self.state.best_loss, "best_step": self.state.best_step}
        with self.session.commit(report) as folder:
            write_checkpoint(folder, self.engine, self.state, self.best, self.averaged, rank=self.session.rank)

    def _save_model(self, folder: Path) -> None:
        weights = self.engine.weights()
        if self.session.rank == 0:
            save_bundle(folder, self.inputs.model, model_weights(weights), {"kind": MLPF_KIND, "step": self.state.step})


def model_weights(weights: Weights) -> Weights:
    """The weights of the model alone, by the model's own names."""
    return {name.removeprefix("model."): value for name, value in weights.items()}


def build_module(inputs: LoopInputs, index: EventIndex, train: NDArray[np.int64]) -> TaskModule:
    """Model and loss as they are before the first step."""
    config = inputs.config
    torch.manual_seed(config.seed)
    module = TaskModule(_build_model(inputs, index, train), config.task, trainable=inputs.trainable)
    module.model.encoder.recomputes = config.recompute_activations
    module.model.encoder.block_dtype = torch.bfloat16 if config.precision == "bf16" else None
    return module


def _build_model(inputs: LoopInputs, index: EventIndex, train: NDArray[np.int64]) -> Mlpf:
    """The model at step 0: the backbone's weights with its normalisation, or random ones with that of the training events."""
    if inputs.backbone is not None:
        return load_bundle(inputs.backbone).model.train()
    model = Mlpf(inputs.model)
    sample = read_events(index, train[:_NORMALISATION_EVENTS], INPUT_COLUMNS)
    model.encoder.standardise.fit(sample.features, sample.is_track)
    return model


def _data_of(index: EventIndex) -> dict[str, str]:
    return {"detector": index.manifest.detector, "simulation": index.manifest.simulation}


@contextmanager
def _flushed(logger: RunLogger) -> Iterator[RunLogger]:
    try:
        yield logger
    finally:
        logger.flush()
