"""Speed and memory of ingest: `pytest -m benchmark -s tests/benchmarks`; asserts what was measured, not how long it took.

The samples are kept in the folder that PFSCALE_BENCHMARKS names; without it they are made anew, which takes longer than measuring.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ingest_speed import (
    FACTOR,
    SAMPLES,
    WORKERS,
    Sample,
    core_table,
    measure_core,
    measure_memory,
    measure_workers,
    memory_table,
    worker_table,
)
from measure import WRITE
from replicate import EVENT, read_event, write_ttree

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the samples are."""
    named = os.environ.get("PFSCALE_BENCHMARKS")
    path = Path(named) if named else tmp_path_factory.mktemp("benchmarks")
    path.mkdir(parents=True, exist_ok=True)
    return path


def measured_by(what: str) -> pytest.MarkDecorator:
    """Every sample that has the measurement."""
    return pytest.mark.parametrize("sample", [pytest.param(s, id=s.name) for s in SAMPLES if getattr(s, what)])


def test_copies_are_the_real_event(tmp_path: Path) -> None:
    """Catches copies whose relations were broken by the shuffling: another truth would take another time."""
    from pfscale.edm4hep.detectors import find_detector
    from pfscale.edm4hep.reader import open_source
    from pfscale.shards.events import extract_events

    write_ttree(tmp_path / "copies.root", read_event(), 3)
    tables = []
    for path, num_events in ((EVENT, 1), (tmp_path / "copies.root", 3)):
        with open_source(path) as source:
            tables.append(extract_events(source, find_detector("cld"), 0, num_events, with_truth=True))
    original, copies = tables
    assert copies.table.num_rows == 3
    assert [row["number"] for row in copies.table.column("event").to_pylist()] == [0, 1, 2]
    assert copies.energy_visible == pytest.approx(3 * original.energy_visible, rel=1e-3)
    for column, fields in (
        ("cluster", ("energy", "energy_ecal", "num_hits", "sigma_x")),
        ("cluster_target", ("class", "energy", "gp_to_cluster")),
        ("track_target", ("class", "pt")),
    ):
        one = original.table.column(column).to_pylist()[0]
        for row in copies.table.column(column).to_pylist():
            for name in fields:
                np.testing.assert_allclose([e[name] for e in row], [e[name] for e in one], rtol=2e-2, atol=1e-3, err_msg=f"{column}.{name}")


@measured_by("core")
def test_one_core(sample: Sample, folder: Path) -> None:
    """Prints events/s and the ratio to uproot's own reading."""
    results = measure_core(sample, folder, repeat=3)
    print(f"\n\n{core_table({sample.name: results})}")
    assert results["num_events"] == sample.core
    assert results["times"][WRITE]["wall"] > results["times"]["open"]["wall"]


@measured_by("workers")
def test_workers(sample: Sample, folder: Path) -> None:
    """Prints the time of ingest with one and with two Ray workers."""
    rounds = measure_workers(sample, folder, repeat=1)
    print(f"\n\n{worker_table({sample.name: rounds})}")
    assert [found["num_events"] for found in rounds[0]] == [sample.files * sample.workers] * len(WORKERS)


@measured_by("memory")
def test_memory(sample: Sample, folder: Path) -> None:
    """Prints the peak memory over a file and over one that is ten times as large."""
    found = measure_memory(sample, folder)
    print(f"\n\n{memory_table({sample.name: found})}")
    assert found[-1]["num_events"] == FACTOR * sample.memory
