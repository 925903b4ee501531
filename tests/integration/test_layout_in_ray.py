"""The standard library's `platform` in a Ray task, which is started in the checkout's top folder like everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfscale.ray_cluster import ray_cluster


def test_platform_is_the_standard_librarys_in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a worker in which `import platform` finds this checkout's folder instead."""
    import ray

    monkeypatch.chdir(Path(__file__).parents[2])

    @ray.remote(num_cpus=1)
    def look() -> tuple[str, str]:
        import platform

        import pfscale

        return platform.system(), pfscale.__version__

    with ray_cluster(num_cpus=1):
        system, version = ray.get(look.remote(), timeout=60)
    assert system
    assert version
