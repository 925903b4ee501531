"""From a training's inputs to a finished, evaluated and registered run: the part that pre-training and transfer share."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray

from pfscale import __version__
from pfscale.config import dump_yaml
from pfscale.errors import ConfigError, InterruptedTrainingError, ModelNotFoundError, PfscaleError, StoppedError, TrainingError
from pfscale.models.bundle import MLPF_KIND, Bundle, load_bundle, save_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig, count_parameters
from pfscale.ray_cluster import ray_cluster
from pfscale.report import figures
from pfscale.report.physics import main_figures
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.tracking.card import as_description, metrics_of_note, write_card
from pfscale.tracking.lineage import ancestors
from pfscale.tracking.registry import ModelVersion, register_model, resolve
from pfscale.tracking.runs import RunLogger, Tracker, ended
from pfscale.training.batches import held_events
from pfscale.training.checkpoint import BEST, LoopState, read_state
from pfscale.training.config import TrainingConfig, loggable
from pfscale.training.engine import Weights
from pfscale.training.evaluate import Evaluation, evaluate_bundle
from pfscale.training.guard import explained_death
from pfscale.training.loop import LoopInputs, model_weights, run_loop
from pfscale.training.preflight import preflight, worker_resources
from pfscale.training.progress import told
from pfscale.training.pyfunc import PYFUNC
from pfscale.training.reading import readings
from pfscale.training.run import Run
from pfscale.training.session import LocalSession, RaySession, torch_threads
from pfscale.training.stopping import in_thread, stop_on_signals
from pfscale.training.storage import (
    claimed,
    delete_uncommitted,
    keep_record,
    mend_record,
    read_finished,
    require_same_place,
    storage_folder,
    wait_for_workers,
    working,
    write_finished,
)
from pfscale.training.validation import validation_events

_log = logging.getLogger(__name__)
TRAINING_VERSION = "4"  # to be raised when the same config and data give other weights: old runs then count as other runs


@dataclass(frozen=True)
class Launch:
    """One training to be run: what the workers get, and what its model is called and made from.

    Attributes:
        backbone: registry address or folder of the model that it starts from; empty: none.
        notes: what the user should know of backbone and data.
    """

    verb: str
    config: TrainingConfig
    model: MlpfConfig
    fingerprint: str
    backbone: str = ""
    backbone_folder: Path | None = None
    trainable: str = "all"
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the run, in MLflow and in the storage folder."""
        return f"{self.config.run.name or self.verb}-{self.fingerprint}"

    @property
    def folder(self) -> Path:
        """Of the run: checkpoints, progress, the model.

        Raises:
            ResourceError: the storage is no folder that lasts.
        """
        return storage_folder(self.config.run) / self.name

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.folder / "checkpoints" if self.config.run.num_workers == 0 else self.folder.parent / f"{self.folder.name}-train"

    def prepare(self) -> None:
        """What is done once for all trainings on the same data and backbone, before they start: nothing."""

    def loop_inputs(self, tracker: Tracker, run_id: str, folder: Path) -> LoopInputs:
        """What a worker gets; workers start in folders of their own, so the data's place is made absolute."""
        places = {name: _from_anywhere(place) for name in ("shards", "cache") if (place := getattr(self.config.data, name))}
        data = self.config.data.model_copy(update=places)
        return LoopInputs(
            config=self.config.model_copy(update={"data": data}),
            model=self.model,
            tracker=tracker,
            run_id=run_id,
            folder=folder,
            backbone=self.backbone_folder,
            trainable=self.trainable,
        )


def run_training(launch: Launch, tracker: Tracker) -> Run:
    """The finished run: trained (or resumed, or found finished), evaluated, its best weights registered.

    Raises:
        ResourceError: more CPUs asked for than there are, or the run is in progress in another process.
        NotEnoughDataError, ShardError, TrainingError: as the readers and the loop.
    """
    config = launch.config
    index = load_index(config.data.shards)
    train = select_events(index, "train", config.data.num_events)  # both raise before any worker starts
    validation_events(index, config.data.num_validation_events)
    folder = launch.folder
    with claimed(folder):
        finished = read_finished(folder, tracker, launch.fingerprint)
        if finished is not None:
            return _registered_as_asked(launch, tracker, finished)
        require_same_place(folder, config.run.num_workers)
        return _train(launch, tracker, index, train, folder)


def _train(launch: Launch, tracker: Tracker, index: EventIndex, train: NDArray[np.int64], folder: Path) -> Run:
    config, manifest = launch.config, index.manifest
    with ray_cluster() if config.run.num_workers else nullcontext():
        held = held_events(index, train, config.data, max(1, config.run.num_workers))
        preflight(config, launch.model, folder, tracker.uri, index.num_elements, held)
        subset = f"{config.data.num_events or 'all'} training events"
        tags = {"pfscale.verb": launch.verb, "pfscale.detector": manifest.detector, "pfscale.data": manifest.hash, "pfscale.subset": subset}
        logger = started(launch, tracker, {**tags, "pfscale.backbone": launch.backbone})
        with ended(logger):
            _log_inputs(launch, logger, index)
            weights, state = _trained(launch, tracker, logger, folder)
            bundle = folder / "model"
            save_bundle(bundle, launch.model, model_weights(weights), _card(launch, index, state))
            return _finish(launch, tracker, logger, index, bundle, state)


def started(launch: Launch, tracker: Tracker, tags: Mapping[str, str]) -> RunLogger:
    """The MLflow run of a training, below another one where its config says so."""
    run = launch.config.run
    return tracker.start_run(launch.name, fingerprint=launch.fingerprint, tags={**tags, **run.tags}, parent_run_id=run.parent_run or None)


def _log_inputs(launch: Launch, logger: RunLogger, index: EventIndex) -> None:
    logged = loggable(launch.config)
    logger.log_config(dump_yaml(logged))
    logger.log_json(index.manifest.model_dump(mode="json"), "manifest.json")
    params = {**flat_params(logged.model_dump(mode="json")), **{f"model.{k}": v for k, v in launch.model.model_dump().items()}}
    logger.log_params({**params, **{key: _from_anywhere(params[key]) for key in ("data.shards", "run.storage")}})


def _from_anywhere(place: str) -> str:
    """A local path as it is found from every folder; a URL as it is."""
    return place if "://" in place else str(Path(place).resolve())


def _trained(launch: Launch, tracker: Tracker, logger: RunLogger, folder: Path) -> tuple[Weights, LoopState]:
    """The best weights and the final state of the finished training.

    Raises:
        StoppedError: it was asked to stop; InterruptedTrainingError: by Ctrl-C.
    """
    config, inputs = launch.config, launch.loop_inputs(tracker, logger.run_id, folder)
    _log.info("%s: %d steps; watch it with: %s", launch.name, config.optimisation.num_steps, logger.link)
    watched = told(folder, num_steps=config.optimisation.num_steps)
    with watched, stop_on_signals(folder) as came, _last_checkpoint(inputs, folder) as checkpoint:
        state = read_state(checkpoint)
        if state.step < config.optimisation.num_steps:
            hint = "the same command goes on from there"
            kind = InterruptedTrainingError if signal.SIGINT in came else StoppedError
            raise kind(f"stopped as asked, with a checkpoint at step {state.step}", where=launch.name, hint=hint)
        return safetensors.torch.load_file(checkpoint / BEST), state


def _finish(launch: Launch, tracker: Tracker, logger: RunLogger, index: EventIndex, bundle_folder: Path, state: LoopState) -> Run:
    """The run with its physics figures logged and its model registered."""
    history = state.history
    bundle = load_bundle(bundle_folder)
    metrics = {"validation_loss": state.best_loss, "best_step": float(state.best_step)}
    metrics |= {name: float(bundle.card[name]) for name in ("num_train_events", "num_parameters")}
    metrics |= {"passes": state.events / metrics["num_train_events"], "elements": float(state.elements)}
    metrics |= {"training_flops": state.flops, "training_seconds": state.seconds}
    evaluation = evaluate_on_validation(bundle, index, num_events=launch.config.physics_events)
    measured_on = "validation losses only"
    if evaluation is not None:
        metrics |= evaluation.metrics
        measured_on = f"{evaluation.result.num_events} validation events"
        for name, (figure, numbers) in main_figures(evaluation.result).items():
            logger.log_figure(figure, f"figures/{name}.png")
            logger.log_json(numbers, f"figures/{name}.json")
    logger.log_json(readings(launch.folder), "reading.json")
    logger.log_figure(figures.learning_curves(history, references=references(metrics))[0], "figures/learning_curves.png")
    finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
    logger.log_metrics({f"best_{k}" if k == "validation_loss" else k: v for k, v in finite.items()}, step=state.step)
    card = {**bundle.card, "metrics": finite, "measured_on": measured_on, "run": logger.run_id}
    save_bundle(bundle_folder, launch.model, bundle.model.state_dict(), card)
    notes = list(launch.notes)
    version = _register(launch, tracker, logger.run_id, bundle_folder, notes)
    run = Run(
        run_id=logger.run_id,
        name=launch.name,
        fingerprint=launch.fingerprint,
        metrics=metrics,
        checkpoint=bundle_folder,
        model=version,
        link=logger.link,
        notes=tuple(notes),
        history=history,
    )
    write_finished(run)
    return run


def evaluate_on_validation(bundle: Bundle, index: EventIndex, *, num_events: int) -> Evaluation | None:
    """The physics figures of every training: the same validation events whatever was trained on, and however; None of no events."""
    if not num_events:
        return None
    members = validation_events(index, num_events)
    return evaluate_bundle(bundle, index, members, title=f"{len(members)} validation events")


def references(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the jets' resolution during a training is drawn beside: name of the reconstruction -> IQR / median."""
    keys = {"rule-based": "rule_based", "truth targets": "truth_targets"}
    found = {name: metrics.get(f"{key}/jet_response_iqr_over_median", math.nan) for name, key in keys.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


@contextmanager
def _last_checkpoint(inputs: LoopInputs, folder: Path) -> Iterator[Path]:
    """Trains, and gives the folder of the last checkpoint."""
    if inputs.config.run.num_workers:
        result = _fit(inputs, folder)
        with result.checkpoint.as_directory() as checkpoint:
            yield Path(checkpoint)
        return
    session = LocalSession(folder, keep=inputs.config.keep_checkpoints)
    with torch_threads(inputs.config.run.threads_per_worker):
        run_loop(inputs, session)
    with session.latest() as latest:
        assert latest is not None
        yield latest


def _fit(inputs: LoopInputs, folder: Path) -> Any:
    """Ray Train's result."""
    # Ray's controller asks for news this often; the default of 2 s is the price of every checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray.train
    import ray.train.torch

    run = inputs.config.run
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"inputs": inputs},
        scaling_config=ray.train.ScalingConfig(
            num_workers=run.num_workers,
            use_gpu=run.use_gpu,
            resources_per_worker=worker_resources(inputs.config),
        ),
        run_config=ray.train.RunConfig(
            name=f"{folder.name}-train",
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=inputs.config.keep_checkpoints),
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if run.use_gpu else "gloo"),
    )
    wait_for_workers(folder)
    mend_record(folder)
    delete_uncommitted(folder)
    try:
        result = in_thread(trainer.fit, meanwhile=lambda: keep_record(folder))
    except ray.train.TrainingFailedError as error:
        own = own_error(error)
        if own is not None:
            raise own from error
        num_elements = inputs.config.data.tokens_per_pass or inputs.config.data.tokens_per_step // run.num_workers
        death = explained_death(error, num_elements=num_elements)
        if death is None:
            raise
        raise death from error
    if isinstance(result.return_value, PfscaleError):
        raise result.return_value
    delete_uncommitted(folder)  # of workers that died while this driver lived
    return result


def own_error(error: Exception) -> PfscaleError | None:
    """Of Ray's error about failed workers, what one of them said in our own words, if one did: the others failed for want of it."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)  # Ray wraps it with its traceback
        if isinstance(cause, PfscaleError):
            return cause
    return None


def _worker(config: dict[str, Any]) -> TrainingError | ConfigError | None:
    """What a Ray Train worker runs. What goes wrong here alone is raised: Ray ends the others, which would else wait, and tries again.

    A TrainingError or ConfigError is one that all workers agree on, and that would come again: it is returned.
    """
    import torch

    inputs: LoopInputs = config["inputs"]
    run = inputs.config.run
    torch.set_num_threads(run.threads_per_worker or max(1, int(run.cpus_per_worker)))
    try:
        with working(inputs.folder):
            run_loop(inputs, RaySession(inputs.folder))
    except (TrainingError, ConfigError) as error:
        return error
    return None


def _register(launch: Launch, tracker: Tracker, run_id: str, bundle: Path, notes: list[str]) -> ModelVersion | None:
    """The registered version with its model card, None where none is asked for; adds to `notes` which version was the candidate before."""
    name, card = launch.config.register_as, load_bundle(bundle).card
    name = f"mlpf-{card['detector']}" if name == "auto" else name
    described = as_description(write_card(bundle, card, name=name, ancestors=ancestors(tracker.uri, card["parent"])))
    if not name:
        return None
    tags = {key: str(card[key]) for key in ("detector", "simulation", "data", "parent", "fingerprint", "verb")}
    tags["events"], tags["validation_loss"] = str(card["num_train_events"]), f"{card['metrics']['validation_loss']:.4g}"
    tags |= {name: str(estimate) for name, estimate in metrics_of_note(card).items()}
    try:
        before = resolve(tracker.uri, f"{name}@candidate")
    except ModelNotFoundError:
        before = None
    version = register_model(tracker, run_id=run_id, bundle=bundle, name=name, tags=tags, description=described, pyfunc=PYFUNC)
    if before is not None and before.version < version.version:
        notes.append(f"{name}@candidate was version {before.version} (validation loss {before.tags.get('validation_loss', 'unknown')})")
    return version


def _registered_as_asked(launch: Launch, tracker: Tracker, finished: Run) -> Run:
    """A finished run, registered now if it was not, or under another name."""
    assert finished.checkpoint is not None
    if not launch.config.register_as:
        return finished
    notes = list(finished.notes)
    version = _register(launch, tracker, finished.run_id, finished.checkpoint, notes)
    return replace(finished, model=version or finished.model, notes=tuple(notes))


def _card(launch: Launch, index: EventIndex, state: LoopState) -> dict[str, Any]:
    """What the model is: everything that an analyst needs beside the weights."""
    manifest = index.manifest
    return {
        "kind": MLPF_KIND,
        "detector": manifest.detector,
        "simulation": manifest.simulation,
        "process": manifest.process,
        "data": manifest.hash,
        "parent": launch.backbone,
        "fingerprint": launch.fingerprint,
        "verb": launch.verb,
        "task": launch.config.task.model_dump(mode="json"),
        "best_step": state.best_step,
        "elements_seen": state.elements,
        "num_train_events": launch.config.data.num_events or len(select_events(index, "train")),
        "splits": manifest.splits,
        "num_parameters": count_parameters(Mlpf(launch.model)),
        "training": {
            "num_steps": launch.config.optimisation.num_steps,
            "learning_rate": launch.config.optimisation.learning_rate,
            "tokens_per_step": launch.config.data.tokens_per_step,
            "seed": launch.config.seed,
        },
        "pfscale": __version__,
    }


def flat_params(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings, as MLflow's parameters want it."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flat_params(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
