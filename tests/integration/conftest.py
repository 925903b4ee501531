"""Fixtures of several parts together: ingest with and without Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest_runs import serially


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
