"""Transfer: a registered model on another detector's shards, in one of four modes (arXiv:2503.00131)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from pfscale.config import dump_yaml, fingerprint
from pfscale.models.bundle import load_bundle
from pfscale.shards.dataset import load_index, select_events
from pfscale.shards.manifest import load_manifest
from pfscale.tracking.runs import Tracker, connect
from pfscale.training.config import TrainingConfig
from pfscale.training.engine import TorchEngine
from pfscale.training.evaluate import evaluate_bundle
from pfscale.training.launch import Launch, ended, run_training
from pfscale.training.lookup import locate_model
from pfscale.training.loop import evaluate_loss
from pfscale.training.module import TaskModule
from pfscale.training.run import Run
from pfscale.training.session import Alone

Mode = Literal["zero-shot", "heads", "full", "scratch"]


class FinetuneConfig(TrainingConfig):
    """A transfer. The architecture is the backbone's, in every mode."""

    backbone: str = Field("models:/mlpf-clic@candidate", description="registered model to start from")
    mode: Mode = Field("full", description="what is trained: nothing, the output heads, everything, or everything from random weights")


def finetune(config: FinetuneConfig) -> Run:
    """The finished transfer; its model is registered like a pre-trained one.

    `zero-shot` only measures. `scratch` takes the backbone's architecture, but neither its weights nor its normalisation.

    Raises:
        ModelNotFoundError: no such backbone; ShardError, NotEnoughDataError, ResourceError, TrackingError, TrainingError.
    """
    manifest = load_manifest(config.data.shards)
    tracker = connect(config.run.tracking_uri, config.run.experiment)
    folder, address = locate_model(config.backbone, tracking_uri=tracker.uri)
    launch = Launch(
        verb="finetune",
        config=config.model_copy(update={"backbone": address}),
        model=load_bundle(folder).model.config,
        # `@candidate` may mean another model tomorrow: the version that it means today is what the run depends on.
        fingerprint=fingerprint(config.model_copy(update={"backbone": address}), data=manifest.hash),
        backbone="" if config.mode == "scratch" else address,
        backbone_folder=None if config.mode == "scratch" else folder,
        trainable="heads" if config.mode == "heads" else "all",
    )
    return _zero_shot(launch, tracker) if config.mode == "zero-shot" else run_training(launch, tracker)


def _zero_shot(launch: Launch, tracker: Tracker) -> Run:
    """The backbone's own figures on the new detector; nothing is trained or registered."""
    config = launch.config
    index = load_index(config.data.shards)
    logger = tracker.start_run(
        launch.name, fingerprint=launch.fingerprint, tags={"pfscale.verb": "finetune", "pfscale.backbone": launch.backbone}
    )
    with ended(logger):
        logger.log_config(dump_yaml(config))
        assert launch.backbone_folder is not None
        bundle = load_bundle(launch.backbone_folder)
        members = select_events(index, "validation")[: config.data.num_validation_events]
        engine = TorchEngine(TaskModule(bundle.model, config.task, trainable="all"), config.optimisation)
        losses = evaluate_loss(engine, index, members, Alone(), tokens=config.data.tokens_per_step)
        evaluation = evaluate_bundle(bundle, index, members, title=f"{launch.name} on {len(members)} validation events")
        metrics = {"validation_loss": losses["loss"], **{k: v for k, v in evaluation.metrics.items() if math.isfinite(v)}}
        logger.log_metrics(metrics, step=0)
        return Run(
            run_id=logger.run_id,
            name=launch.name,
            fingerprint=launch.fingerprint,
            metrics=metrics,
            checkpoint=None,
            model=None,
            link=logger.link,
        )
