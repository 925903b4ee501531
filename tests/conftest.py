"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from synthetic_events import synthetic_manifest, synthetic_table

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROWS_PER_SHARD, ROWS_PER_GROUP = 128, 32


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a data set of synthetic events; the same arguments give the same folder."""
    from pfscale.shards.manifest import ShardRecord, write_manifest
    from pfscale.shards.schema import SPLITS

    made: dict[tuple[object, ...], Path] = {}

    def make(num_events: int = 300, *, seed: int = 1, detector: str = "clic", smear: float = 0.05) -> Path:
        key = (num_events, seed, detector, smear)
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp(f"shards_{detector}")
        table = synthetic_table(num_events, seed=seed, smear=smear)
        records = []
        for start in range(0, num_events, ROWS_PER_SHARD):
            part = table.slice(start, ROWS_PER_SHARD)
            name = f"events_{start:06d}.parquet"
            pq.write_table(part, folder / name, row_group_size=ROWS_PER_GROUP)
            records.append(ShardRecord(file=name, source="synthetic", start=start, stop=start + part.num_rows, num_events=part.num_rows))
        splits = table.column("event").combine_chunks().field("split").to_pylist()
        manifest = synthetic_manifest("-".join(map(str, key)), detector, records, {split: splits.count(split) for split in SPLITS})
        write_manifest(folder, manifest)
        made[key] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database to copy: migrating a new one costs seconds."""
    from pfscale.tracking.runs import connect

    folder = tmp_path_factory.mktemp("mlflow")
    connect(f"sqlite:///{folder}/mlflow.db", "tests")
    return folder / "mlflow.db"
