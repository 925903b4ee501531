"""Transfer: a registered model on another detector's shards, in one of four modes (arXiv:2503.00131)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field

from pfscale.config import dump_yaml, fingerprint, runtime
from pfscale.models.bundle import load_bundle
from pfscale.shards.dataset import load_index
from pfscale.shards.manifest import load_manifest
from pfscale.tracking.registry import weights_digest
from pfscale.tracking.runs import Tracker, connect, ended
from pfscale.training.config import TrainingConfig, loggable, resolved
from pfscale.training.engine import TorchEngine
from pfscale.training.launch import TRAINING_VERSION, Launch, evaluate_on_validation, run_training, started
from pfscale.training.lookup import locate_model, mismatches
from pfscale.training.module import TaskModule
from pfscale.training.run import Run
from pfscale.training.session import Alone
from pfscale.training.validation import Validation, evaluate_loss, validation_events

Mode = Literal["zero-shot", "heads", "full", "scratch"]


class FinetuneConfig(TrainingConfig):
    """A transfer. The architecture is the backbone's, in every mode."""

    backbone: str = runtime("models:/mlpf-clic@candidate", description="registered model to start from; its weights are in the fingerprint")
    mode: Mode = Field("full", description="what is trained: nothing, the output heads, everything, or everything from random weights")


def finetune(config: FinetuneConfig) -> Run:
    """The finished transfer; its model is registered like a pre-trained one.

    `zero-shot` only measures. `scratch` takes the backbone's architecture, but neither its weights nor its normalisation.

    Raises:
        ModelNotFoundError: no such backbone; ShardError, NotEnoughDataError, ResourceError, TrackingError, TrainingError.
    """
    launch, tracker = finetuning(config)
    return _zero_shot(launch, tracker) if config.mode == "zero-shot" else run_training(launch, tracker)


def finetuning(config: FinetuneConfig) -> tuple[Launch, Tracker]:
    """What `finetune` runs, and where it logs.

    Raises:
        ModelNotFoundError, ShardError, TrackingError.
    """
    manifest = load_manifest(config.data.shards)
    tracker = connect(config.run.tracking_uri, config.run.experiment)
    folder, address = locate_model(config.backbone, tracking_uri=tracker.uri)
    bundle = load_bundle(folder)
    config = resolved(config, bundle.model.config)
    is_scratch = config.mode == "scratch"
    # `@candidate`, and even a version or a folder, may mean other weights tomorrow: the run depends on the weights themselves.
    parent = fingerprint(bundle.model.config) if is_scratch else weights_digest(folder)
    # Another detector is what a transfer is for; another kind of simulation may be an oversight.
    notes = mismatches(bundle.card, detector=bundle.card["detector"], simulation=manifest.simulation, what="the shards")
    launch = Launch(
        verb="finetune",
        config=config.model_copy(update={"backbone": address}),
        model=bundle.model.config,
        fingerprint=fingerprint(config, data=manifest.hash, parent=parent, version=TRAINING_VERSION),
        backbone="" if is_scratch else address,
        backbone_folder=None if is_scratch else folder,
        trainable="heads" if config.mode == "heads" else "all",
        notes=() if is_scratch else notes,
    )
    return launch, tracker


def _zero_shot(launch: Launch, tracker: Tracker) -> Run:
    """The backbone's own figures on the new detector; nothing is trained or registered."""
    config = launch.config
    assert launch.backbone_folder is not None
    bundle = load_bundle(launch.backbone_folder)
    index = load_index(config.data.shards)
    members = validation_events(index, config.data.num_validation_events)
    tags = {"pfscale.verb": "finetune", "pfscale.backbone": launch.backbone}
    logger = started(launch, tracker, tags)
    with ended(logger):
        logger.log_config(dump_yaml(loggable(config)))
        engine = TorchEngine(TaskModule(bundle.model, config.task, trainable="all"), config.optimisation)
        losses = evaluate_loss(engine, Validation(index, members), Alone())
        as_asked = replace(bundle, card={**bundle.card, "task": config.task.model_dump(mode="json")})
        evaluation = evaluate_on_validation(as_asked, index, num_events=config.physics_events)
        found = evaluation.metrics if evaluation is not None else {}
        metrics = {"validation_loss": losses["loss"], **{k: v for k, v in found.items() if math.isfinite(v)}}
        logger.log_metrics(metrics, step=0)
        return Run(
            run_id=logger.run_id,
            name=launch.name,
            fingerprint=launch.fingerprint,
            metrics=metrics,
            checkpoint=None,
            model=None,
            link=logger.link,
            notes=launch.notes,
        )
