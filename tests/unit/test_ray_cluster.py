"""Getting a Ray cluster."""

from __future__ import annotations

import pytest

from pfscale.errors import ResourceError
from pfscale.ray_cluster import ray_cluster


def test_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches "unexpected Exception" with a traceback on a machine that is only too busy."""
    import ray

    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(ResourceError, match=r"Ray does not start: The current node timed out during startup\.\n  -> is the machine"),
        ray_cluster(),
    ):
        pass
