"""From an index of events to one worker's part of every step, made ahead of their use in the background.

A step is planned globally: it has the same events whatever the number of workers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pfscale.errors import InputFileError, TrainingError
from pfscale.models.batch import Batch, collate
from pfscale.models.inputs import require_momenta
from pfscale.shards.cache import cached_events
from pfscale.shards.dataset import EventIndex, Window, cut_by_tokens, deal_lanes, num_windows, plan_epoch, read_events
from pfscale.shards.ragged import INPUT_COLUMNS, TARGET_COLUMNS, RaggedEvents
from pfscale.training.config import DataConfig
from pfscale.training.reading import ReadLog
from pfscale.training.session import World

T = TypeVar("T")
LEARNING_COLUMNS = (*INPUT_COLUMNS, *TARGET_COLUMNS)
_STEPS_AHEAD = 2
_TOKENS_PER_LANE = 4096  # of a step, where the config says nothing


@dataclass(frozen=True)
class Place:
    """A step of a training's data, by where it is in the plan: what a checkpoint keeps of it."""

    epoch: int = 0
    window: int = 0
    step: int = 0


@dataclass(frozen=True)
class Step:
    """One worker's part of a step.

    Attributes:
        passes: what the worker takes at once, one after the other; every worker has the same number, of which some may be empty.
        events: (E,) positions in the index of the whole step's events, all workers'.
        lengths: (E,) elements of the same.
        following: the place of the next step, or of none that is left in this window.
        is_first: of its window, or of what is left of it.
        problem: what is wrong with the events that this worker has read for the window; then the step is empty. With the first step of a
            window all workers must agree on it (`agree_on`): others have read other events.
    """

    passes: tuple[Batch, ...]
    events: NDArray[np.int64]
    lengths: NDArray[np.int64]
    following: Place = Place()
    is_first: bool = False
    problem: TrainingError | None = None

    @property
    def num_elements(self) -> int:
        """Elements of the whole step, all workers'."""
        return int(self.lengths.sum())


def training_steps(
    index: EventIndex,
    train: NDArray[np.int64],
    config: DataConfig,
    world: World,
    *,
    seed: int,
    start: Place,
    read_log: ReadLog | None = None,
) -> Generator[Step, None, None]:
    """The steps from `start` on, epoch after epoch, for ever; a few are made ahead in a thread."""
    return ahead(_steps(index, train, config, world, seed=seed, start=start, read_log=read_log), _STEPS_AHEAD)


def _steps(
    index: EventIndex,
    train: NDArray[np.int64],
    config: DataConfig,
    world: World,
    *,
    seed: int,
    start: Place,
    read_log: ReadLog | None,
) -> Iterator[Step]:
    """As `training_steps`, each made when it is asked for; the next window is read while this one is used."""
    lanes = lanes_of(index, train, config)
    mine = np.isin(np.arange(len(lanes)), lanes_of_worker(world.rank, len(lanes), world.world_size))

    def read(window: Window, epoch: int) -> RaggedEvents:
        members, begin = window.events[mine[window.lane]], time.perf_counter()
        events = learning_events(index, members, config.cache)
        if read_log is not None and not config.cache:
            read_log.note(epoch, index, members, time.perf_counter() - begin)
        return events

    with ThreadPoolExecutor(1) as pool:
        current: tuple[Future[RaggedEvents], Window, Place] | None = None
        for window, place in _windows(index, lanes, config, seed=seed, start=start):
            following = (pool.submit(read, window, place.epoch), window, place)
            if current is not None:
                yield from _steps_of(index, *current, mine, world, config.tokens_per_pass)
            current = following


def lanes_of(index: EventIndex, train: NDArray[np.int64], config: DataConfig) -> list[NDArray[np.int64]]:
    """The events in the lanes that the config asks for."""
    count = config.lanes or max(1, config.tokens_per_step // _TOKENS_PER_LANE)
    return deal_lanes(index, train, count, config.tokens_per_step)


def held_events(index: EventIndex, train: NDArray[np.int64], config: DataConfig, num_workers: int) -> float:
    """Events of a window that a worker holds, the one with the most."""
    lanes = lanes_of(index, train, config)
    most = max(len(lanes_of_worker(rank, len(lanes), num_workers)) for rank in range(num_workers))
    return most / len(lanes) * len(train) / num_windows(index, lanes, config.window_events)


def lanes_of_worker(rank: int, num_lanes: int, num_workers: int) -> list[int]:
    """Lanes that a worker takes events of, alone or with others."""
    return [lane for lane in range(num_lanes) if rank in _workers_of(lane, num_lanes, num_workers)]


def _workers_of(lane: int, num_lanes: int, num_workers: int) -> NDArray[np.int64]:
    """Who takes each of the equal shares that a lane's part of a step is dealt to.

    There are as many shares of all lanes as workers and lanes divide: every worker has as many, of lanes that are neighbours.
    """
    shares = math.lcm(num_lanes, num_workers)
    per_lane = shares // num_lanes
    return (lane * per_lane + np.arange(per_lane)) // (shares // num_workers)


def learning_events(index: EventIndex, members: NDArray[np.int64], cache: str = "") -> RaggedEvents:
    """Inputs and targets of the given events, without their table.

    Args:
        cache: folder of decoded events; empty: they are read from the shards.

    Raises:
        TrainingError: an event that no model can take.
    """
    events = cached_events(index, members, cache) if cache else read_events(index, members, LEARNING_COLUMNS)
    events = replace(events, table=pa.table({}))  # windows of events are kept
    try:
        require_momenta(events.features, np.repeat(events.uid, events.lengths), prefix="uid:")
    except InputFileError as error:
        shards = index.files[0].rpartition("/")[0]
        raise TrainingError(error.what, where=error.where, hint=f"look at it: pfscale inspect {shards} --event {error.where}") from error
    return events


def _steps_of(
    index: EventIndex,
    future: Future[RaggedEvents],
    window: Window,
    place: Place,
    mine: NDArray[np.bool_],
    world: World,
    tokens_per_pass: int | None,
) -> Iterator[Step]:
    lengths = index.num_elements[window.events]
    local = np.cumsum(mine[window.lane]) - 1  # of the window's events among those that were read
    for number, rows in enumerate(window.steps[place.step :], place.step):
        is_first = number == place.step
        step = Step((), window.events[rows], lengths[rows].astype(np.int64), replace(place, step=number + 1), is_first)
        if is_first:
            try:
                events = future.result()
            except TrainingError as error:
                yield replace(step, problem=error)
                return
        parts = worker_passes(lengths, rows, world, tokens_per_pass, lane=window.lane, num_lanes=len(mine))
        yield replace(step, passes=tuple(collate(events, local[part]) for part in parts))


def _windows(
    index: EventIndex, lanes: list[NDArray[np.int64]], config: DataConfig, *, seed: int, start: Place
) -> Iterator[tuple[Window, Place]]:
    """(window, place of its first step that is wanted), for ever."""
    budget = {"tokens_per_step": config.tokens_per_step, "window_events": config.window_events}
    for epoch in itertools.count(start.epoch):
        is_first = epoch == start.epoch
        for window in plan_epoch(index, lanes, **budget, seed=seed, epoch=epoch, first_window=start.window if is_first else 0):
            yield window, Place(epoch, window.number, start.step if is_first and window.number == start.window else 0)


def worker_passes(
    lengths: NDArray[np.integer],
    rows: NDArray[np.int64],
    world: World,
    tokens_per_pass: int | None,
    *,
    lane: NDArray[np.int64] | None = None,
    num_lanes: int = 1,
) -> list[NDArray[np.int64]]:
    """The rows that this worker takes, cut into passes; all workers get as many passes, and about as much to do.

    Args:
        lengths: elements of every event that `rows` may name.
        rows: the step's events.
        lane: of the same events as `lengths`; None: all are of one.
    """
    of_rows = np.zeros(len(rows), np.int64) if lane is None else lane[rows]
    shares: list[list[NDArray[np.int64]]] = [[] for _ in range(world.world_size)]
    for number in range(num_lanes):
        workers, members = _workers_of(number, num_lanes, world.world_size), rows[of_rows == number]
        for worker, share in zip(workers, deal(lengths[members], len(workers)), strict=True):
            shares[worker].append(members[share])
    whole = [np.concatenate([rows[:0], *share]) for share in shares]
    if tokens_per_pass is None:
        return [whole[world.rank]]
    cuts = [cut_by_tokens(lengths[share], tokens_per_pass) for share in whole]
    mine = [whole[world.rank][cut] for cut in cuts[world.rank]]
    return mine + [rows[:0]] * (max(map(len, cuts)) - len(mine))


def deal(lengths: NDArray[np.int64], num_workers: int) -> list[NDArray[np.int64]]:
    """Positions of the events for each worker, by length: dealt to and fro, so that all get about as many elements."""
    by_length = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(lengths)) % (2 * num_workers)
    worker = np.minimum(turn, 2 * num_workers - 1 - turn)
    return [by_length[worker == number] for number in range(num_workers)]


def ahead(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """The same items in the same order, up to `count` of them made in a thread before they are asked for."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T | object]] = deque()
        while True:
            while len(pending) < count + 1:
                pending.append(pool.submit(next, items, end))
            item = pending.popleft().result()
            if item is end:
                return
            yield item  # type: ignore[misc]
