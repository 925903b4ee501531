"""From a training's inputs to a finished, evaluated and registered run: the part that pre-training and transfer share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from pfscale import __version__
from pfscale.config import RunConfig, dump_yaml
from pfscale.errors import ResourceError
from pfscale.models.bundle import load_bundle, save_bundle
from pfscale.models.mlpf import MlpfConfig
from pfscale.ray_cluster import is_job_copy, ray_cluster, require_cpus
from pfscale.report import figures
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.tracking.registry import ModelVersion, register_model
from pfscale.tracking.runs import RunLogger, Tracker
from pfscale.training.config import TrainingConfig
from pfscale.training.evaluate import evaluate_bundle
from pfscale.training.loop import BEST, STATE, LoopInputs, run_loop
from pfscale.training.run import Run
from pfscale.training.session import LocalSession, RaySession

_PHYSICS_EVENTS = 1000  # validation events of the physics figures at the end of a training


@dataclass(frozen=True)
class Launch:
    """One training to be run: what the workers get, and what its model is called and made from.

    Attributes:
        backbone: registry address or folder of the model that it starts from; empty: none.
    """

    verb: str
    config: TrainingConfig
    model: MlpfConfig
    fingerprint: str
    backbone: str = ""
    backbone_folder: Path | None = None
    trainable: str = "all"

    @property
    def name(self) -> str:
        return self.config.run.name or f"{self.verb}-{self.fingerprint}"


def run_training(launch: Launch, tracker: Tracker) -> Run:
    """The finished run: trained (or resumed, or found finished), evaluated, its best weights registered.

    Raises:
        ResourceError: more CPUs asked for than there are.
        NotEnoughDataError, ShardError, TrainingError: as the readers and the loop.
    """
    config = launch.config
    index = load_index(config.data.shards)
    select_events(index, "train", config.data.num_events)  # raises before any worker starts
    folder = storage_folder(config.run) / launch.name
    finished = read_finished(folder, tracker, launch.fingerprint)
    if finished is not None:
        return finished
    manifest = index.manifest
    tags = {"pfscale.verb": launch.verb, "pfscale.detector": manifest.detector, "pfscale.data": manifest.hash}
    logger = tracker.start_run(launch.name, fingerprint=launch.fingerprint, tags={**tags, "pfscale.backbone": launch.backbone})
    with ended(logger):
        logger.log_config(dump_yaml(config))
        logger.log_json(manifest.model_dump(mode="json"), "manifest.json")
        logger.log_params({**_flat(config.model_dump(mode="json")), **{f"model.{k}": v for k, v in launch.model.model_dump().items()}})
        # Workers start in folders of their own.
        data = config.data.model_copy(update={"shards": str(Path(config.data.shards).resolve())})
        inputs = LoopInputs(
            config=config.model_copy(update={"data": data}),
            model=launch.model,
            tracker=tracker,
            run_id=logger.run_id,
            backbone=launch.backbone_folder,
            trainable=launch.trainable,
        )
        with _trained(inputs, folder) as checkpoint:
            state = json.loads((checkpoint / STATE).read_text())
            weights = safetensors.torch.load_file(checkpoint / BEST)
        bundle = folder / "model"
        card = _card(launch, index, state)
        save_bundle(bundle, launch.model, {k.removeprefix("model."): v for k, v in weights.items()}, card)
        return finish(launch, tracker, logger, index, bundle, state)


def finish(launch: Launch, tracker: Tracker, logger: RunLogger, index: EventIndex, bundle_folder: Path, state: dict[str, Any]) -> Run:
    """The run with its physics figures logged and its model registered."""
    history = state["history"]
    bundle = load_bundle(bundle_folder)
    members = select_events(index, "validation")[:_PHYSICS_EVENTS]
    metrics = {"validation_loss": state["best_loss"], "best_step": float(state["best_step"])}
    metrics["num_train_events"] = float(bundle.card["num_train_events"])
    if len(members):
        evaluation = evaluate_bundle(bundle, index, members, title=f"{launch.name} on {len(members)} validation events")
        metrics |= evaluation.metrics
        for name, figure in evaluation.figures().items():
            logger.log_figure(figure, f"figures/{name}")
    if history:
        logger.log_figure(figures.learning_curves(history)[0], "figures/learning_curves.png")
    logger.log_metrics({k: v for k, v in metrics.items() if math.isfinite(v)}, step=int(state["step"]))
    card = {**bundle.card, "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)}}
    save_bundle(bundle_folder, launch.model, bundle.model.state_dict(), card)
    version = _register(launch, tracker, logger, bundle_folder, card)
    run = Run(
        run_id=logger.run_id,
        name=launch.name,
        fingerprint=launch.fingerprint,
        metrics=metrics,
        checkpoint=bundle_folder,
        model=version,
        link=logger.link,
        history=history,
    )
    write_finished(run)
    return run


def storage_folder(run: RunConfig) -> Path:
    """The local folder of a run section's storage.

    Raises:
        ResourceError: a remote address (only folders that all nodes share are supported so far), or a relative one inside a job.
    """
    if "://" in run.storage:
        raise ResourceError("run.storage must be a folder", where=run.storage, hint="give a folder that every node can reach")
    if not Path(run.storage).is_absolute() and is_job_copy():
        raise ResourceError(
            "a relative path inside a submitted job is deleted with the job",
            where=run.storage,
            hint="run.storage=$PWD/runs, an absolute path",
        )
    return Path(run.storage).resolve()


def read_finished(folder: Path, tracker: Tracker, fingerprint: str) -> Run | None:
    """The run that finished in `folder` before, if MLflow knows it as finished too."""
    record = folder / "run.json"
    if not record.is_file() or tracker.find_finished(fingerprint) is None:
        return None
    values = json.loads(record.read_text())
    model = values.pop("model")
    checkpoint = values.pop("checkpoint")
    version = ModelVersion(**{**model, "aliases": tuple(model["aliases"])}) if model else None
    return Run(**values, model=version, checkpoint=Path(checkpoint) if checkpoint else None, resumed=True)


def write_finished(run: Run) -> None:
    """Keeps the finished run beside its model, so that submitting the same thing again returns it."""
    if run.checkpoint is None:
        return
    model = {**vars(run.model), "tags": dict(run.model.tags)} if run.model else None
    values = {**vars(run), "model": model, "checkpoint": str(run.checkpoint)}
    values.pop("resumed")
    draft = run.checkpoint.parent / "run.json.draft"
    draft.write_text(json.dumps(values))
    draft.replace(run.checkpoint.parent / "run.json")


@contextmanager
def ended(logger: RunLogger) -> Iterator[None]:
    """Ends the MLflow run, whatever happens: FINISHED, KILLED on Ctrl-C, FAILED otherwise."""
    try:
        yield
    except KeyboardInterrupt:
        logger.end("KILLED")
        raise
    except BaseException:
        logger.end("FAILED")
        raise
    logger.end("FINISHED")


@contextmanager
def _trained(inputs: LoopInputs, folder: Path) -> Iterator[Path]:
    """The folder of the last checkpoint of the finished training."""
    run = inputs.config.run
    if run.num_workers == 0:
        session = LocalSession(folder / "checkpoints", keep=inputs.config.keep_checkpoints)
        run_loop(inputs, session)
        with session.latest() as checkpoint:
            assert checkpoint is not None
            yield checkpoint
        return
    # Ray's controller asks for news this often; the default of 2 s is the price of every checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray.train
    import ray.train.torch

    with ray_cluster():
        require_cpus(
            run.num_workers * run.cpus_per_worker, what=f"run.num_workers={run.num_workers} x run.cpus_per_worker={run.cpus_per_worker:g}"
        )
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config={"inputs": inputs},
            scaling_config=ray.train.ScalingConfig(
                num_workers=run.num_workers,
                use_gpu=run.use_gpu,
                resources_per_worker={"CPU": run.cpus_per_worker, **({"GPU": 1} if run.use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=f"{folder.name}-train",
                storage_path=str(folder.parent),
                failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=inputs.config.keep_checkpoints),
            ),
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if run.use_gpu else "gloo"),
        )
        result = trainer.fit()
        with result.checkpoint.as_directory() as checkpoint:
            yield Path(checkpoint)


def _worker(config: dict[str, Any]) -> None:
    """What a Ray Train worker runs."""
    import torch

    inputs: LoopInputs = config["inputs"]
    run = inputs.config.run
    torch.set_num_threads(run.threads_per_worker or max(1, int(run.cpus_per_worker)))
    run_loop(inputs, RaySession())


def _register(launch: Launch, tracker: Tracker, logger: RunLogger, bundle: Path, card: dict[str, Any]) -> ModelVersion | None:
    name = launch.config.register_as
    if not name:
        return None
    name = f"mlpf-{card['detector']}" if name == "auto" else name
    tags = {key: str(card[key]) for key in ("detector", "simulation", "data", "parent", "fingerprint")}
    return register_model(tracker, run_id=logger.run_id, bundle=bundle, name=name, tags=tags)


def _card(launch: Launch, index: EventIndex, state: dict[str, Any]) -> dict[str, Any]:
    """What the model is: everything that an analyst needs beside the weights."""
    manifest = index.manifest
    return {
        "detector": manifest.detector,
        "simulation": manifest.simulation,
        "process": manifest.process,
        "data": manifest.hash,
        "parent": launch.backbone,
        "fingerprint": launch.fingerprint,
        "verb": launch.verb,
        "task": launch.config.task.model_dump(mode="json"),
        "best_step": state["best_step"],
        "num_train_events": launch.config.data.num_events or len(select_events(index, "train")),
        "pfscale": __version__,
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
