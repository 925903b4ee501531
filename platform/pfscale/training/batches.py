"""From an index of events to one worker's part of every step, made ahead of their use in the background.

A step is planned globally: it has the same events whatever the number of workers.
"""

from __future__ import annotations

import itertools
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
from pfscale.shards.dataset import EventIndex, Window, cut_by_tokens, deal_lanes, plan_epoch, read_events
from pfscale.shards.ragged import INPUT_COLUMNS, TARGET_COLUMNS, RaggedEvents
from pfscale.training.config import DataConfig
from pfscale.training.reading import ReadLog
from pfscale.training.session import World

T = TypeVar("T")
LEARNING_COLUMNS = (*INPUT_COLUMNS, *TARGET_COLUMNS)
_STEPS_AHEAD = 2
_TOKENS_PER_LANE = 16_384  # of a step, where the config says nothing


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
    """

    passes: tuple[Batch, ...]
    events: NDArray[np.int64]
    lengths: NDArray[np.int64]
    following: Place = Place()

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
    lanes = deal_lanes(index, train, num_lanes(config))
    mine = np.array([world.rank in workers_of(lane, len(lanes), world.world_size) for lane in range(len(lanes))])

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


def num_lanes(config: DataConfig) -> int:
    """Lanes that the config asks for."""
    return config.lanes or max(1, config.tokens_per_step // _TOKENS_PER_LANE)


def workers_of(lane: int, num_lanes: int, num_workers: int) -> range:
    """The workers that take events of a lane: one that has others, too, or several that share it."""
    if num_workers <= num_lanes:
        worker = lane * num_workers // num_lanes
        return range(worker, worker + 1)
    return range(-(-lane * num_workers // num_lanes), -(-(lane + 1) * num_workers // num_lanes))


def learning_events(index: EventIndex, members: NDArray[np.int64], cache: str = "") -> RaggedEvents:
    """Inputs and targets of the given events, without their table.

    Args:
        cache: folder of decoded events; empty: they are read from the shards.

    Raises:
        TrainingError: an event that no model can take; all workers read the same events, so all of them stop.
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
    events = future.result()
    lengths = index.num_elements[window.events]
    local = np.cumsum(mine[window.lane]) - 1  # of the window's events among those that were read
    for number, rows in enumerate(window.steps[place.step :], place.step):
        parts = worker_passes(lengths, rows, world, tokens_per_pass, lane=window.lane, num_lanes=len(mine))
        passes = tuple(collate(events, local[part]) for part in parts)
        yield Step(passes, window.events[rows], lengths[rows].astype(np.int64), replace(place, step=number + 1))


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
        workers, members = workers_of(number, num_lanes, world.world_size), rows[of_rows == number]
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
