"""Finished trials on fixed test events: the same events and the same bootstrap replicas for all, so that differences have paired errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfscale.models.bundle import load_bundle
from pfscale.physics.evaluation import MLPF, named_estimates
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.studies.config import MeasuredEvents, SweepConfig
from pfscale.tracking.runs import jsonable
from pfscale.training.evaluate import EVALUATION_VERSION, Evaluation, evaluate_bundle
from pfscale.training.launch import Launch
from pfscale.training.run import Run

PREFIX = "test/"
PAIRED = ("jet_response_iqr_over_median", "met_resolution")  # metrics whose replicas are kept
_LARGER = ("auc_", "rejection_", "accuracy", "event_efficiency")  # beginnings of names of figures of merit of heads
_SMALLER = ("cross_entropy", "energy_response_iqr", "met_resolution", "event_inefficiency")


def is_larger_better(metric: str) -> bool | None:
    """Of a head's figure of merit, with or without `test/`; None where its name does not say so."""
    name = metric.removeprefix(PREFIX)
    return True if name.startswith(_LARGER) else False if name.startswith(_SMALLER) else None


@dataclass(frozen=True)
class Measured:
    """Metrics under `test/...`, and replicas of those that are compared."""

    metrics: dict[str, float] = field(default_factory=dict)
    replicas: dict[str, list[float]] = field(default_factory=dict)


def measured_sample(test: MeasuredEvents, shards: str) -> tuple[EventIndex, NDArray[np.int64]]:
    """The data set and positions of the test events.

    Raises:
        ShardError, NotEnoughDataError.
    """
    index = _index(test.shards or shards)
    if test.split != "all":
        return index, select_events(index, test.split, test.num_events)
    order = np.argsort(index.split_hash, kind="stable")
    return index, order[: test.num_events]


def measure_on_test(sweep: SweepConfig, launch: Launch, run: Run) -> Measured:
    """A finished trial's metrics on the sweep's test events, kept beside its model; nothing where the sweep has none.

    Raises:
        ShardError, NotEnoughDataError.
    """
    if sweep.test is None:
        return Measured()
    folder = run.checkpoint or launch.backbone_folder
    assert folder is not None
    index, members = measured_sample(sweep.test, launch.config.data.shards)
    kept = launch.folder / f"test-{EVALUATION_VERSION}-{index.manifest.hash[:12]}-{sweep.test.split}-{len(members)}.json"
    if kept.is_file():
        return Measured(**json.loads(kept.read_text()))
    bundle = load_bundle(folder)
    if run.checkpoint is None:  # zero-shot: the backbone, with the task as asked
        bundle = replace(bundle, card={**bundle.card, "task": launch.config.task.model_dump(mode="json")})
    evaluation = evaluate_bundle(bundle, index, members, title="", scope="model")
    result = Measured(_of_model(evaluation), _replicas(evaluation))
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(".draft")
    draft.write_text(json.dumps(jsonable(vars(result))))
    draft.replace(kept)
    return result


def _of_model(evaluation: Evaluation) -> dict[str, float]:
    prefix = f"{MLPF}/"
    return {PREFIX + key.removeprefix(prefix): v for key, v in evaluation.metrics.items() if key.startswith(prefix) and np.isfinite(v)}


def _replicas(evaluation: Evaluation) -> dict[str, list[float]]:
    estimates = dict(named_estimates(evaluation.result.metrics[MLPF]))
    found = {PREFIX + name: estimates[name].replicas for name in PAIRED}
    return {name: replicas.tolist() for name, replicas in found.items() if replicas is not None}


@lru_cache(maxsize=4)
def _index(shards: str) -> EventIndex:
    return load_index(Path(shards) if "://" not in shards else shards)
