"""Batch plans: every event once an epoch, within the token budget, the same for any number of workers, nested subsets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.errors import NotEnoughDataError
from pfscale.shards.dataset import EventIndex, cut_by_tokens, deal_lanes, plan_epoch, select_events
from pfscale.shards.ragged import CLUSTER_FEATURES, TRACK_FEATURES, from_arrow
from pfscale.training.batches import ahead, deal, lanes_of_worker, worker_passes
from synthetic_events import synthetic_table


def make_index(num_events: int, *, seed: int = 0, group_rows: int = 16, longest: int = 300) -> EventIndex:
    rng = np.random.default_rng(seed)
    position = np.arange(num_events)
    return EventIndex(
        files=("a", "b", "c"),
        manifest=None,  # type: ignore[arg-type]
        shard=(position // (4 * group_rows) % 3).astype(np.int32),
        group=(position // group_rows).astype(np.int32),
        row=(position % group_rows).astype(np.int32),
        num_elements=rng.integers(0, longest, num_events).astype(np.int32),
        split=rng.choice(3, num_events, p=[0.8, 0.1, 0.1]).astype(np.int8),
        split_hash=rng.integers(0, 2**63, num_events, dtype=np.uint64),
    )


@settings(deadline=None, max_examples=40)
@given(
    num_events=st.integers(1, 400),
    tokens=st.integers(64, 4000),
    window=st.integers(1, 500),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_an_epoch_holds_every_event_once_within_the_budget(num_events: int, tokens: int, window: int, seed: int, epoch: int) -> None:
    """Catches events lost or repeated at window borders, and batches that outgrow the memory they were planned for."""
    index = make_index(num_events)
    events = np.arange(num_events)[::2]
    windows = list(plan_epoch(index, [events], tokens_per_step=tokens, window_events=window, seed=seed, epoch=epoch))
    seen = np.concatenate([w.events[step] for w in windows for step in w.steps])
    np.testing.assert_array_equal(np.sort(seen), events)
    for w in windows:
        for step in w.steps:
            lengths = index.num_elements[w.events[step]]
            assert len(step) == 1 or lengths.sum() <= tokens


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    count=st.integers(1, 6),
    tokens=st.integers(64, 9000),
    window=st.integers(10, 1000),
    seed=st.integers(0, 9),
)
def test_lanes_together_give_every_event_once_within_the_budget(groups: list[int], count: int, tokens: int, window: int, seed: int) -> None:
    """Catches events lost between lanes, a lane that is empty or much larger than another, a step or window without one of them."""
    index = with_groups(groups)
    lanes = deal_lanes(index, np.arange(sum(groups)), count, tokens)
    assert 1 <= len(lanes) <= count
    np.testing.assert_array_equal(np.concatenate(lanes), np.arange(sum(groups)))
    held = [index.num_elements[lane].sum() for lane in lanes]
    assert max(held) <= 1.15 * np.mean(held)
    windows = list(plan_epoch(index, lanes, tokens_per_step=tokens, window_events=window, seed=seed, epoch=2))
    seen = np.concatenate([w.events[step] for w in windows for step in w.steps])
    np.testing.assert_array_equal(np.sort(seen), np.arange(sum(groups)))
    for w in windows:
        assert set(w.lane) == set(range(len(lanes)))
        for number, lane in enumerate(lanes):
            assert np.isin(w.events[w.lane == number], lane).all()
        for step in w.steps:
            assert len(step) == 1 or index.num_elements[w.events[step]].sum() <= tokens


def with_groups(sizes: list[int]) -> EventIndex:
    """Events in row groups of these sizes."""
    index = make_index(sum(sizes))
    group = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    return replace(index, shard=group // 5, group=group)


def test_lanes_are_about_equally_large_and_steps_hold_all_of_them() -> None:
    """Catches a worker that waits at every step for one whose lane holds more, and steps of one part of the data."""
    index = make_index(8000, group_rows=50)
    lanes = deal_lanes(index, np.arange(8000), 4, 40_000)
    assert len(lanes) == 4
    for window in plan_epoch(index, lanes, tokens_per_step=40_000, window_events=2000, seed=1, epoch=0):
        for step in window.steps:
            parts = [index.num_elements[window.events[step]][window.lane[step] == lane].sum() for lane in range(4)]
            assert max(parts) < 1.15 * min(parts) + 300


@pytest.mark.parametrize(("sizes", "tokens"), [([16] * 7, 9000), ([256] * 4 + [4] * 60, 9000), ([16] * 64, 400)])
def test_where_lanes_would_be_unequal_there_are_fewer(sizes: list[int], tokens: int) -> None:
    """Catches lanes of one row group and two, lanes that a large group leaves empty, and shares that hold no long event."""
    index = with_groups(sizes)
    assert [len(lane) for lane in deal_lanes(index, np.arange(sum(sizes)), 8, tokens)] == [sum(sizes)]


@pytest.mark.parametrize("num_lanes", [1, 2, 3, 8])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 8, 20])
def test_every_worker_has_as_much_to_do_whatever_the_number_of_lanes(num_workers: int, num_lanes: int) -> None:
    """Catches a worker without data, and one with twice as much as another because lanes do not divide among them."""
    lane = np.arange(4800) % num_lanes
    lengths = np.random.default_rng(1).integers(1, 300, 4800)
    worlds = [SimpleNamespace(rank=rank, world_size=num_workers) for rank in range(num_workers)]
    taken = [worker_passes(lengths, np.arange(4800), world, None, lane=lane, num_lanes=num_lanes)[0] for world in worlds]  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.sort(np.concatenate(taken)), np.arange(4800))
    elements = [lengths[part].sum() for part in taken]
    assert max(elements) < 1.1 * min(elements)
    for rank, part in enumerate(taken):
        assert set(lane[part]) == set(lanes_of_worker(rank, num_lanes, num_workers))
        assert len(set(lane[part])) <= num_lanes / num_workers + 2


def test_plans_differ_between_epochs_and_repeat_for_the_same_one() -> None:
    """Catches a shuffle that is frozen, or one that a resumed run cannot repeat."""
    index = make_index(500)
    plans = [list(plan_epoch(index, [np.arange(500)], tokens_per_step=2000, window_events=100, seed=1, epoch=e)) for e in (0, 0, 1)]
    flat = [[tuple(w.events[step]) for w in plan for step in w.steps] for plan in plans]
    assert flat[0] == flat[1]
    assert sorted(flat[0]) != sorted(flat[2])


def test_windows_that_are_passed_over_leave_the_others_as_they_are() -> None:
    """Catches a resumed run that sees other events than an unbroken one."""
    index = make_index(500)
    whole = list(plan_epoch(index, [np.arange(500)], tokens_per_step=2000, window_events=100, seed=1, epoch=3))
    rest = list(plan_epoch(index, [np.arange(500)], tokens_per_step=2000, window_events=100, seed=1, epoch=3, first_window=2))
    assert len(whole) > 3
    assert [w.number for w in rest] == list(range(2, len(whole)))
    for one, other in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(one.events, other.events)
        assert [step.tolist() for step in one.steps] == [step.tolist() for step in other.steps]


def test_steps_are_about_equally_large() -> None:
    """Catches an epoch that ends with a step of a few events, whose gradient counts as much as that of a full one."""
    index = make_index(200)
    (window,) = plan_epoch(index, [np.arange(200)], tokens_per_step=8192, window_events=4000, seed=1, epoch=0)
    sizes = [index.num_elements[window.events[step]].sum() for step in window.steps]
    assert min(sizes) > 0.85 * max(sizes)


def test_windows_are_about_equally_large() -> None:
    """Catches a last window of what was left over, with steps of a few events."""
    index = make_index(2060, group_rows=41)
    for epoch in range(6):
        windows = list(plan_epoch(index, [np.arange(2060)], tokens_per_step=8192, window_events=2000, seed=1, epoch=epoch))
        assert [len(w.events) for w in windows] == [2060]
        windows = list(plan_epoch(index, [np.arange(2060)], tokens_per_step=8192, window_events=500, seed=1, epoch=epoch))
        sizes = [len(w.events) for w in windows]
        assert len(sizes) == 4
        assert min(sizes) > 0.8 * max(sizes)


def test_a_step_is_a_random_sample_of_lengths() -> None:
    """Catches steps of events that are alike, whose gradients point elsewhere than those of the whole data set."""
    index = make_index(4000, longest=400)
    (window,) = plan_epoch(index, [np.arange(4000)], tokens_per_step=8192, window_events=4000, seed=1, epoch=0)
    spreads = [index.num_elements[window.events[step]].std() for step in window.steps]
    assert min(spreads) > 0.6 * index.num_elements.std()


@given(lengths=st.lists(st.integers(0, 500), max_size=60), tokens=st.integers(1, 2000))
def test_cutting_by_tokens_keeps_the_order_and_every_event(lengths: list[int], tokens: int) -> None:
    """Catches an event dropped where a run ends, and an endless loop on an event longer than the budget."""
    runs = cut_by_tokens(np.array(lengths, int), tokens)
    assert [i for run in runs for i in run] == list(range(len(lengths)))
    assert all(len(run) for run in runs)


@pytest.mark.parametrize("tokens_per_pass", [None, 30, 200])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_workers_share_a_step_without_loss_or_overlap(num_workers: int, tokens_per_pass: int | None) -> None:
    """Catches a step whose events depend on the number of workers, and workers that wait for another's pass for ever."""
    events = from_arrow(synthetic_table(20, seed=5))
    rows = np.array([3, 1, 4, 15, 9])
    worlds = [SimpleNamespace(rank=r, world_size=num_workers) for r in range(num_workers)]
    passes = [worker_passes(events.lengths, rows, world, tokens_per_pass) for world in worlds]  # type: ignore[arg-type]
    assert len({len(mine) for mine in passes}) == 1
    assert sorted(np.concatenate([part for mine in passes for part in mine])) == sorted(rows)
    assert all(len(part) <= 1 or events.lengths[part].sum() <= (tokens_per_pass or 1e9) for mine in passes for part in mine)
    lane = np.arange(20) % 2
    for world in worlds:
        parts = worker_passes(events.lengths, rows, world, tokens_per_pass, lane=lane, num_lanes=2)  # type: ignore[arg-type]
        assert all(lane[row] in lanes_of_worker(world.rank, 2, num_workers) for part in parts for row in part)
    passes = [worker_passes(events.lengths, rows, world, tokens_per_pass, lane=lane, num_lanes=2) for world in worlds]  # type: ignore[arg-type]
    assert len({len(mine) for mine in passes}) == 1
    assert sorted(np.concatenate([part for mine in passes for part in mine])) == sorted(rows)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=80), num_workers=st.integers(1, 5))
def test_workers_get_about_as_much_to_do(lengths: list[int], num_workers: int) -> None:
    """Catches one worker that always gets the longer events, for which the others wait."""
    shares = [np.array(lengths)[share].sum() for share in deal(np.array(lengths), num_workers)]
    assert max(shares) - min(shares) <= max(lengths)


def test_items_made_ahead_keep_their_order_and_errors_come_through() -> None:
    """Catches steps that overtake each other, and an unreadable shard that ends a training as if its data were all used."""
    assert list(ahead(iter(range(10)), 3)) == list(range(10))

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    items = ahead(broken(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="torn"):
        next(items)


def test_subsets_are_nested_and_too_large_ones_refused() -> None:
    """Catches subsets drawn anew for each size, and a request for more than there is that is silently cut."""
    index = make_index(1000)
    small, large = (select_events(index, "train", n) for n in (50, 200))
    assert set(small) < set(large)
    assert (index.split[large] == 0).all()
    with pytest.raises(NotEnoughDataError, match="100000"):
        select_events(index, "train", 100_000)


def test_elements_are_tracks_then_clusters_with_their_own_features_and_targets() -> None:
    """Catches features or targets of one event or element type that land on another."""
    table = synthetic_table(15, seed=2)
    events = from_arrow(table)
    for i, row in enumerate(table.to_pylist()):
        elements = slice(events.offsets[i], events.offsets[i + 1])
        n = len(row["track"])
        np.testing.assert_array_equal(events.is_track[elements], [True] * n + [False] * len(row["cluster"]))
        want = [[t[name] for name in TRACK_FEATURES] for t in row["track"]]
        np.testing.assert_array_equal(
            events.features[elements][:n, : len(TRACK_FEATURES)], np.array(want, np.float32).reshape(n, len(TRACK_FEATURES))
        )
        want = [[c[name] for name in CLUSTER_FEATURES] for c in row["cluster"]]
        np.testing.assert_array_equal(
            events.features[elements][n:], np.array(want, np.float32).reshape(len(row["cluster"]), len(CLUSTER_FEATURES))
        )
        classes = [t["class"] for t in row["track_target"] + row["cluster_target"]]
        np.testing.assert_array_equal(events.targets["class"][elements], classes)
