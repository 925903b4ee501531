"""Decoded events that all trainings of a node share."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from pfscale.shards import cache
from pfscale.shards.cache import cached_events
from pfscale.shards.dataset import load_index, read_events
from pfscale.training.batches import LEARNING_COLUMNS
from training_runs import Shards


def test_cached_events_are_those_of_the_shards(make_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches events in another order, of other lengths or types than read anew, and shards that are read a second time."""
    monkeypatch.setattr(cache, "_CHUNK", 70)
    index = load_index(make_shards())
    members = np.random.default_rng(1).permutation(index.num_events)[:90]
    wanted = read_events(index, members, LEARNING_COLUMNS)
    for attempt in range(2):
        found = cached_events(index, members, tmp_path)
        assert found.offsets.tolist() == wanted.offsets.tolist()
        for name in ("features", "is_track", "uid"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name, strict=True)
        for name, values in wanted.targets.items():
            np.testing.assert_array_equal(found.targets[name], values, err_msg=name, strict=True)
        if not attempt:
            monkeypatch.setattr(cache, "read_events", None)  # what is there is not read again


def test_what_was_left_half_written_is_written_anew(make_shards: Shards, tmp_path: Path) -> None:
    """Catches a cache that was killed while it was filled and counts as complete."""
    index = load_index(make_shards())
    members = np.arange(10)
    wanted = cached_events(index, members, tmp_path).features
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "complete").unlink()
    (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:200])
    np.testing.assert_array_equal(cached_events(index, members, tmp_path).features, wanted)


def test_of_many_processes_one_fills_it(make_shards: Shards, tmp_path: Path) -> None:
    """Catches trials that start together and each decode the data set, or read what another has not finished."""
    shards = str(make_shards())
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        decoded, sums = zip(*pool.starmap(_read_in_another_process, [(shards, str(tmp_path))] * 3), strict=True)
    assert sorted(decoded) == [0, 0, 1]
    assert len(set(sums)) == 1


def _read_in_another_process(shards: str, folder: str) -> tuple[int, float]:
    """(how often it decoded the data set, a sum over what it read)."""
    calls = []
    decode = cache.read_events
    cache.read_events = lambda *given: calls.append(given) or decode(*given)  # type: ignore[assignment,func-returns-value]
    index = load_index(shards)
    events = cached_events(index, np.arange(index.num_events), folder)
    return len(calls), float(np.nansum(events.features))
