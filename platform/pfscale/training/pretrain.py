"""Pre-training: MLPF from random weights on one detector's shards."""

from __future__ import annotations

from pfscale.config import fingerprint
from pfscale.models.mlpf import MlpfConfig
from pfscale.shards.manifest import load_manifest
from pfscale.tracking.runs import Tracker, connect
from pfscale.training.config import TrainingConfig, resolved
from pfscale.training.launch import TRAINING_VERSION, Launch, run_training
from pfscale.training.run import Run


class PretrainConfig(TrainingConfig):
    """A pre-training."""

    model: MlpfConfig = MlpfConfig()


def pretraining(config: PretrainConfig) -> tuple[Launch, Tracker]:
    """What `pretrain` runs, and where it logs.

    Raises:
        ShardError, TrackingError.
    """
    config = resolved(config, config.model)
    manifest = load_manifest(config.data.shards)
    tracker = connect(config.run.tracking_uri, config.run.experiment)
    digest = fingerprint(config, data=manifest.hash, version=TRAINING_VERSION)
    return Launch(verb="pretrain", config=config, model=config.model, fingerprint=digest), tracker


def pretrain(config: PretrainConfig) -> Run:
    """The finished pre-training, its best model registered as `mlpf-<detector>@candidate`.

    The same config and data again resume an unfinished run and return a finished one.

    Raises:
        ShardError, NotEnoughDataError, ResourceError, TrackingError, TrainingError.
    """
    return run_training(*pretraining(config))
