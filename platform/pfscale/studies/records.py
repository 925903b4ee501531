"""One record per finished training, read from MLflow or a Parquet file: what scaling laws are fitted to.

What is left out is listed with the reason, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pfscale.errors import ConfigError
from pfscale.tracking.records import RunRecord, runs_of

_TRAININGS = ("pretrain", "finetune")
_COUNTED = ("num_parameters", "num_train_events", "passes", "elements", "training_flops", "training_seconds", "best_validation_loss")
_METRIC = "metrics."  # before the names of metrics in columns


@dataclass(frozen=True)
class TrainingRecord:
    """A training that came to its end.

    Attributes:
        mode: of transfer; "pretrain" of a pre-training.
        data: hash of its shards.
        parameters: of the model.
        events: unique training events; `passes` over them; `elements` learned from, repetitions counted.
        flops: of all steps, by formula.
        accelerator_hours, cpu_hours: of all workers, in steps and waiting for their data; a worker of several threads counts each.
        validation_loss: the best one.
        metrics: all others that it ended with.
    """

    run_id: str
    name: str
    mode: str
    detector: str
    data: str
    seed: int
    parameters: int
    events: int
    passes: float
    elements: float
    flops: float
    accelerator_hours: float
    cpu_hours: float
    validation_loss: float
    metrics: dict[str, float] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """The validation loss or another metric, None where it was not measured."""
        return self.validation_loss if metric == "validation_loss" else self.metrics.get(metric)


@dataclass(frozen=True)
class NotUsed:
    """A run that is no record, and why."""

    run_id: str
    name: str
    reason: str


def read_runs(tracking_uri: str, name: str) -> tuple[list[TrainingRecord], list[NotUsed]]:
    """The trainings of an MLflow experiment or of a sweep, and those that did not finish.

    Raises:
        ModelNotFoundError: no such experiment, nor a run.
        TrackingError: the store cannot be reached.
    """
    found, left_out = [], []
    for run in runs_of(tracking_uri, name):
        if run.tags.get("pfscale.verb") not in _TRAININGS:
            continue
        reason = _reason_against(run)
        if reason:
            left_out.append(NotUsed(run.run_id, run.name, reason))
        else:
            found.append(_record(run))
    return found, left_out


def _reason_against(run: RunRecord) -> str:
    if run.status != "FINISHED":
        return f"{run.status.lower()}, not finished"
    lacking = [name for name in _COUNTED if name not in run.metrics]
    if run.params.get("mode") == "zero-shot":
        return "zero-shot: nothing was trained"
    return f"made before {', '.join(lacking)} were recorded" if lacking else ""


def _record(run: RunRecord) -> TrainingRecord:
    m, workers = run.metrics, max(1, int(run.params.get("run.num_workers", 1)))
    hours = workers * m["training_seconds"] / 3600
    on_accelerator = run.params.get("run.use_gpu") == "True"
    threads = 1 if on_accelerator else max(1, int(run.params.get("run.threads_per_worker", 1)))
    return TrainingRecord(
        run_id=run.run_id,
        name=run.name,
        mode=run.params.get("mode", run.tags["pfscale.verb"]),
        detector=run.tags.get("pfscale.detector", ""),
        data=run.tags.get("pfscale.data", ""),
        seed=int(run.params.get("seed", 0)),
        parameters=int(m["num_parameters"]),
        events=int(m["num_train_events"]),
        passes=m["passes"],
        elements=m["elements"],
        flops=m["training_flops"],
        accelerator_hours=hours if on_accelerator else 0.0,
        cpu_hours=hours * threads,
        validation_loss=m["best_validation_loss"],
        metrics={name: value for name, value in m.items() if name not in _COUNTED},
    )


def write_records(path: Path, records: Sequence[TrainingRecord]) -> None:
    """Records as Parquet, one column per metric."""
    rows = [_flat(asdict(record)) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)


def read_records(path: Path) -> list[TrainingRecord]:
    """Records of a Parquet file.

    Raises:
        ConfigError: no such file, no Parquet, or a column that every record needs is missing.
    """
    if not path.is_file():
        raise ConfigError("no such file", where=str(path))
    try:
        rows = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ConfigError(f"no Parquet file: {error}", where=str(path)) from None
    needed = [f.name for f in fields(TrainingRecord) if f.name != "metrics"]
    lacking = sorted(set(needed) - set(rows[0] if rows else needed))
    if lacking:
        raise ConfigError(f"columns are missing: {', '.join(lacking)}", where=str(path))
    return [
        TrainingRecord(
            **{name: row[name] for name in needed},
            metrics={k.removeprefix(_METRIC): v for k, v in row.items() if k.startswith(_METRIC) and v is not None},
        )
        for row in rows
    ]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in row.items() if k != "metrics"}, **{_METRIC + k: v for k, v in row["metrics"].items()}}
