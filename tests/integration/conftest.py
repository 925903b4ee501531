"""Fixtures of several parts together: ingest with and without Ray, the run section of a training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_runs import serially
from pfscale.config import RunConfig


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest in this process."""
    serially(monkeypatch)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray with two CPUs."""
    import ray

    from pfscale.ray_cluster import ray_cluster

    with ray_cluster(num_cpus=2):
        yield ray.get_runtime_context().gcs_address


@pytest.fixture
def run_config(tmp_path: Path, migrated_database: Path) -> RunConfig:
    """A run in this process, with storage and an MLflow database of its own."""
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    return RunConfig(storage=str(tmp_path / "runs"), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", num_workers=0)
