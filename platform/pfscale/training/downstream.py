"""A downstream head on a registered model's candidates and latents: missing momentum from one linear layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pfscale import __version__
from pfscale.config import Config, RunConfig, dump_yaml, fingerprint, load_config, runtime
from pfscale.errors import ShardError
from pfscale.models.bundle import Bundle, load_bundle, load_weights, read_bundle, save_bundle
from pfscale.models.mlpf import count_parameters
from pfscale.physics.bootstrap import event_bootstrap
from pfscale.physics.met import MetMetrics, evaluate_met
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.shards.ragged import INPUT_COLUMNS, TARGET_COLUMNS, struct_leaf
from pfscale.tasks.missing_momentum import LinearMissingMomentum, MissingMomentumConfig, fit, pooled_features, predict
from pfscale.tasks.reconstruction import Candidates, ReconstructionConfig
from pfscale.tracking.registry import register_model, weights_digest
from pfscale.tracking.runs import Tracker, connect, ended
from pfscale.training.config import loggable
from pfscale.training.inference import event_chunks, run_model
from pfscale.training.launch import TRAINING_VERSION, flat_params
from pfscale.training.lookup import locate_model, mismatches
from pfscale.training.reconstructions import truth_candidates
from pfscale.training.run import Run
from pfscale.training.storage import claimed, read_finished, storage_folder, write_finished

HEAD_KIND = "missing_momentum"
LINEAR, PLAIN, CEILING = "latents_linear", "plain_sum", "truth_targets"


class DownstreamConfig(Config):
    """A head on a frozen backbone."""

    seed: int = Field(1, ge=0, description="seed of the fit and of the bootstrap")
    backbone: str = runtime("models:/mlpf-cld@candidate", description="registered model that gives candidates and latents")
    shards: str = runtime("shards", description="folder of event shards of the backbone's detector")
    num_events: int | None = Field(None, ge=1, description="training events: those of lowest hash; empty: all")
    task: MissingMomentumConfig = MissingMomentumConfig()
    register_as: str = runtime("auto", description="name in the model registry; auto: missing-momentum-<detector>; empty: not registered")
    run: RunConfig = RunConfig()


@dataclass(frozen=True)
class _Sample:
    """What the head sees of one split: features (E, 2, K + 1), plain sum, truth and perfect reconstruction (E, 2), GeV."""

    features: NDArray[np.float64]
    plain: NDArray[np.float64]
    target: NDArray[np.float64]
    ceiling: NDArray[np.float64]


def downstream(config: DownstreamConfig) -> Run:
    """The fitted and registered head, with its resolution on the test split beside the plain sum of candidates and the ceiling.

    Raises:
        ModelNotFoundError, ShardError (another detector's shards), NotEnoughDataError, TrackingError, ResourceError.
    """
    tracker = connect(config.run.tracking_uri, config.run.experiment)
    folder, address = locate_model(config.backbone, tracking_uri=tracker.uri)
    backbone, index = load_bundle(folder), load_index(config.shards)
    manifest = index.manifest
    if backbone.card["detector"] != manifest.detector:
        trained = backbone.card["detector"]
        raise ShardError(
            f"shards of {manifest.detector}, but the backbone was trained on {trained}", where=config.shards, hint=f"give {trained} shards"
        )
    config = config.model_copy(update={"backbone": address})
    digest = fingerprint(config, data=manifest.hash, parent=weights_digest(folder), version=TRAINING_VERSION)
    storage = storage_folder(config.run) / f"{config.run.name or 'downstream'}-{digest}"
    with claimed(storage):
        finished = read_finished(storage, tracker, digest)
        return finished or _fit(config, tracker, backbone, index, digest, storage)


def _fit(config: DownstreamConfig, tracker: Tracker, backbone: Bundle, index: EventIndex, digest: str, storage: Path) -> Run:
    manifest = index.manifest
    train, test = select_events(index, "train", config.num_events), select_events(index, "test")
    notes = mismatches(backbone.card, detector=manifest.detector, simulation=manifest.simulation, what="the shards")
    about = {"pfscale.detector": manifest.detector, "pfscale.data": manifest.hash, "pfscale.backbone": config.backbone}
    logger = tracker.start_run(storage.name, fingerprint=digest, tags={"pfscale.verb": "downstream", **about})
    with ended(logger):
        logger.log_config(dump_yaml(loggable(config)))
        logger.log_params(flat_params(loggable(config).model_dump(mode="json")))
        sample = _sample(backbone, index, train, config.task)
        model = fit(config.task, sample.features, sample.plain, sample.target, seed=config.seed)
        metrics = _metrics(model, _sample(backbone, index, test, config.task), seed=config.seed)
        metrics |= {"num_parameters": float(count_parameters(model)), "num_train_events": float(len(train))}
        logger.log_metrics(metrics, step=0)
        card = {
            "kind": HEAD_KIND,
            "detector": manifest.detector,
            "simulation": manifest.simulation,
            "data": manifest.hash,
            "parent": config.backbone,
            "fingerprint": digest,
            "verb": "downstream",
            "metrics": metrics,
            "pfscale": __version__,
        }
        bundle = save_bundle(storage / "model", config.task, model.state_dict(), card)
        version = None
        if config.register_as:
            name = f"missing-momentum-{manifest.detector}" if config.register_as == "auto" else config.register_as
            tags = {key: str(card[key]) for key in ("detector", "simulation", "data", "parent", "fingerprint", "verb")}
            tags["events"] = str(len(train))
            version = register_model(tracker, run_id=logger.run_id, bundle=bundle, name=name, tags=tags)
    run = Run(logger.run_id, storage.name, digest, metrics, bundle, version, logger.link, notes=notes)
    write_finished(run)
    return run


def load_head(folder: str | Path) -> LinearMissingMomentum:
    """The registered head in `folder`, ready for `pfscale.tasks.missing_momentum.predict`.

    Raises:
        InputFileError: it is no such head, or a file is missing.
    """
    files = read_bundle(folder, kind=HEAD_KIND)
    config = load_config(MissingMomentumConfig, files.config)
    model = LinearMissingMomentum(config, files.weights["weight"].shape[1] - 1).double()
    load_weights(model, files.weights, where=str(folder))
    return model.eval()


def _sample(backbone: Bundle, index: EventIndex, members: NDArray[np.int64], config: MissingMomentumConfig) -> _Sample:
    task = ReconstructionConfig(**backbone.card["task"])
    features, plain, target, ceiling = [], [], [], []
    for events in event_chunks(index, members, (*INPUT_COLUMNS, *TARGET_COLUMNS, "gen_met.px", "gen_met.py")):
        prediction = run_model(backbone.model, events, task, with_latents=True)
        assert prediction.latents is not None
        candidates = prediction.candidates
        latents = prediction.latents[events.offsets[candidates.event] + candidates.element_index]
        pooled, total = pooled_features(candidates, latents, num_events=events.num_events, config=config)
        features.append(pooled)
        plain.append(total)
        target.append(np.stack([struct_leaf(events.table, "gen_met", axis) for axis in ("px", "py")], 1).astype(np.float64))
        ceiling.append(_minus_sum(truth_candidates(events), events.num_events))
    return _Sample(*(np.concatenate(parts) for parts in (features, plain, target, ceiling)))


def _minus_sum(candidates: Candidates, num_events: int) -> NDArray[np.float64]:
    sums = [np.bincount(candidates.event, weights=-momentum, minlength=num_events) for momentum in (candidates.px, candidates.py)]
    return np.stack(sums, 1)


def _metrics(model: LinearMissingMomentum, sample: _Sample, *, seed: int) -> dict[str, float]:
    """Resolution and response of the head, of the plain sum and of the ceiling, with bootstrap errors."""
    bootstrap = event_bootstrap(len(sample.plain), seed=seed)
    metrics: dict[str, float] = {}
    for name, met in ((LINEAR, predict(model, sample.features, sample.plain)), (PLAIN, sample.plain), (CEILING, sample.ceiling)):
        found = evaluate_met(met[:, 0], met[:, 1], sample.target[:, 0], sample.target[:, 1], bootstrap)
        metrics |= {f"{name}/{key}": value for key, value in _named(found).items() if math.isfinite(value)}
    return metrics


def _named(found: MetMetrics) -> dict[str, float]:
    return {
        "met_resolution": found.residual.resolution.value,
        "met_resolution_error": found.residual.resolution.error,
        "met_response": found.response.median.value,
        "met_response_error": found.response.median.error,
    }
