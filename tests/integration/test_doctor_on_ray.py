"""The doctor on a real Ray: a healthy set-up, and three deliberately broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfscale.config import RunConfig
from pfscale.training.doctor import Check, examine


def by_name(run: RunConfig) -> dict[str, Check]:
    """The checks of a set-up."""
    return {check.name: check for check in examine(run)}


@pytest.mark.usefixtures("cluster")
def test_a_healthy_set_up_and_broken_ones(run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a doctor that finds nothing, finds what is not there, or ends at the first fault."""
    found = by_name(run_config.model_copy(update={"num_workers": 1, "cpus_per_worker": 0.5}))
    assert [name for name, check in found.items() if check.verdict == "failed"] == []
    assert {"token", "MLflow", "nodes", "versions", "clocks", "storage", "disk", "memory", "accelerators", "DeepSpeed", "workers"} == set(
        found
    )
    greedy = by_name(run_config.model_copy(update={"num_workers": 3, "cpus_per_worker": 1.0}))
    assert "3 of 1 CPU each, room for 2 (in all: 2 CPU): Ray would wait for ever" in greedy["workers"].found
    assert "run.cpus_per_worker=0.5" in greedy["workers"].mend
    nowhere = by_name(run_config.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}))
    assert nowhere["MLflow"].verdict == "failed"
    assert nowhere["storage"].verdict == "failed"
    (tmp_path / "file").write_text("")
    blocked = by_name(run_config.model_copy(update={"storage": str(tmp_path / "file" / "runs")}))
    assert blocked["storage"].verdict == "failed"
