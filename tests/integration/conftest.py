"""Fixtures of several parts together: ingest with and without Ray, the run section of a training."""

from __future__ import annotations

import shutil
import uuid
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


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket on an S3 server of these tests; the environment says how to reach it, as it would on a cluster."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        import s3fs

        bucket = f"bucket-{uuid.uuid4().hex[:8]}"  # the servers of one process share what they hold
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
