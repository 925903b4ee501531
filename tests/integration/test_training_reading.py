"""What the workers of a training read: each its own part of the data, all together every event once an epoch."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.training import batches as module
from pfscale.training.batches import Place, Step, held_events, lanes_of_worker, training_steps
from pfscale.training.config import DataConfig
from pfscale.training.reading import ReadLog, readings
from training_runs import Shards


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_read_their_own_lanes_and_learn_the_same_steps(
    make_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, lanes: int
) -> None:
    """Catches a cluster whose every worker decodes all of the data, and batches that depend on the number of workers."""
    index = load_index(make_shards(600))
    train = select_events(index, "train")
    config = DataConfig(shards="", tokens_per_step=1024, window_events=100, lanes=lanes)

    def epoch_of(rank: int, size: int, log: ReadLog | None = None) -> list[Step]:
        steps = training_steps(index, train, config, world(rank, size), seed=3, start=Place(), read_log=log)
        found = list(itertools.takewhile(lambda step: step.following.epoch == 0, steps))
        steps.close()
        return found

    wanted = epoch_of(0, 1)
    assert sorted(np.concatenate([step.events for step in wanted])) == sorted(train)
    read: list[NDArray[np.int64]] = []
    decode = module.read_events

    def counted(index: EventIndex, events: NDArray[np.int64], columns: object) -> object:
        read.append(events)
        return decode(index, events, columns)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_events", counted)
    of_workers = []
    for rank in range(num_workers):
        read.clear()
        of_workers.append(epoch_of(rank, num_workers, ReadLog(tmp_path, world(rank, num_workers))))
        share = len(np.intersect1d(np.concatenate(read), train)) / len(train)
        held = len(lanes_of_worker(rank, lanes, num_workers)) / lanes
        assert share == pytest.approx(held, abs=0.1)
        assert held_events(index, train, config, num_workers) >= 0.8 * max(map(len, read))
    for steps in zip(wanted, *of_workers, strict=True):
        assert all(step.events.tolist() == steps[0].events.tolist() for step in steps)
        assert sum(step.passes[0].num_elements for step in steps[1:]) == steps[0].passes[0].num_elements == steps[0].num_elements
        targets = [np.sort(np.concatenate([s.passes[0].features_TF.numpy()[:, 0] for s in some])) for some in (steps[:1], steps[1:])]
        np.testing.assert_array_equal(*targets)
    told = [worker["epochs"]["0"] for worker in readings(tmp_path).values()]
    assert len(told) == num_workers
    if lanes % num_workers == 0:
        assert sum(epoch["events"] for epoch in told) == len(train)


def world(rank: int, size: int) -> SimpleNamespace:
    """One of so many workers."""
    return SimpleNamespace(rank=rank, world_size=size)


def test_a_run_that_goes_on_adds_to_what_it_has_read(make_shards: Shards, tmp_path: Path) -> None:
    """Catches a table that forgets what was read before a kill, and a torn one that ends the training."""
    index = load_index(make_shards())
    for _ in range(2):
        ReadLog(tmp_path, world(0, 1)).note(0, index, np.arange(10), 0.1)
    (told,) = readings(tmp_path).values()
    assert told["epochs"]["0"]["events"] == 20
    (path,) = (tmp_path / "reading").iterdir()
    path.write_text("{")
    ReadLog(tmp_path, world(0, 1)).note(1, index, np.arange(10), 0.1)
    (told,) = readings(tmp_path).values()
    assert list(told["epochs"]) == ["1"]
