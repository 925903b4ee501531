"""Reading event shards for learning: an index of all events, and global batch plans that any number of workers can share.

A plan is a pure function of (index, selection, seed, epoch): it knows nothing of workers, so neither the number of workers nor an
interruption changes which events a step sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from pfscale.errors import NotEnoughDataError, ShardError, unknown_name
from pfscale.shards.manifest import OPENED_AT_ONCE, Manifest, load_manifest
from pfscale.shards.ragged import INPUT_COLUMNS, RaggedEvents, from_arrow, list_leaves
from pfscale.shards.schema import SPLITS
from pfscale.shards.storage import Folder, open_folder, opened_shard

_GROUPS_PER_LANE = 4  # at least: a lane is cut between row groups
_LARGEST_LANE = 1.15  # of their mean


@dataclass(frozen=True)
class EventIndex:
    """Where every event of a data set is and how long it is; one row per event, in shard order.

    Attributes:
        shard: (E,) index into `files`.
        group: (E,) row group within the shard.
        row: (E,) row within the row group.
        num_elements: (E,) tracks + clusters.
        split: (E,) index into SPLITS.
        split_hash: (E,) uint64, the order of nested subsets.
    """

    files: tuple[str, ...]
    manifest: Manifest
    shard: NDArray[np.int32]
    group: NDArray[np.int32]
    row: NDArray[np.int32]
    num_elements: NDArray[np.int32]
    split: NDArray[np.int8]
    split_hash: NDArray[np.uint64]

    @property
    def num_events(self) -> int:
        return len(self.shard)


def load_index(directory: str | Path | Folder) -> EventIndex:
    """The index of all events of the shards in `directory`, a path or URL.

    Raises:
        ShardError: no manifest there, or a shard that it lists is missing or torn.
        ResourceError: the folder is remote and cannot be reached or may not be read.
    """
    folder = open_folder(directory)
    manifest = load_manifest(folder)
    files = tuple(folder.locate(shard.file) for shard in manifest.shards)
    columns: dict[str, list[NDArray]] = {name: [] for name in ("shard", "group", "row", "num_elements", "split", "split_hash")}
    with ThreadPoolExecutor(OPENED_AT_ONCE if "://" in folder.address else 1) as pool:
        for number, groups in enumerate(pool.map(_index_groups, files)):
            for group, (lengths, codes, hashes) in enumerate(groups):
                values: tuple[Any, ...] = (number, group, np.arange(len(lengths)), lengths, codes, hashes)
                for (_, parts), value in zip(columns.items(), values, strict=True):
                    parts.append(np.broadcast_to(value, len(lengths)))
    dtypes = {"split": np.int8, "split_hash": np.uint64}
    arrays = {
        name: np.concatenate(parts).astype(dtypes.get(name, np.int32)) if parts else np.zeros(0, dtypes.get(name, np.int32))
        for name, parts in columns.items()
    }
    return EventIndex(files, manifest, **arrays)


def _index_groups(file: str) -> list[tuple[NDArray, NDArray, NDArray]]:
    """(number of elements, split code, split hash) of the events of each row group of a shard."""
    wanted = ["event.split", "event.split_hash", "track.list.element.pt", "cluster.list.element.et"]
    groups = []
    with opened_shard(file) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=wanted)
            lengths = sum(np.diff(list_leaves(table, name)[0]) for name in ("track", "cluster"))
            event = table.column("event").combine_chunks()
            codes = pa.compute.index_in(event.field("split"), pa.array(SPLITS)).to_numpy(zero_copy_only=False)
            groups.append((np.asarray(lengths), codes, event.field("split_hash").to_numpy(zero_copy_only=False)))
    return groups


def select_events(index: EventIndex, split: str, num_events: int | None = None) -> NDArray[np.int64]:
    """Positions in the index of the events of a split, in the order of their hash; with `num_events` the first so many.

    The D-event subset lies inside every larger one.

    Raises:
        NotEnoughDataError: the split has fewer events than asked for, or none.
        UnknownNameError: no such split.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    members = np.flatnonzero(index.split == SPLITS.index(split))
    members = members[np.argsort(index.split_hash[members], kind="stable")]
    where = index.files[0].rpartition("/")[0] if index.files else None
    if len(members) == 0:
        raise NotEnoughDataError(f"the data set has no {split} events", where=where, hint="ingest more files")
    if num_events is None:
        return members
    if num_events > len(members):
        raise NotEnoughDataError(
            f"{num_events} {split} events asked for, the data set has {len(members)}",
            where=where,
            hint=f"ask for at most {len(members)}, or ingest more files",
        )
    return members[:num_events]


@dataclass(frozen=True)
class Window:
    """A stretch of an epoch that is read at once.

    Attributes:
        number: within the epoch.
        events: positions in the index, lane after lane, those of a lane sorted by place in the files.
        lane: (E,) lane of each.
        steps: for each step, indices into `events` in the order of learning; together every event once.
    """

    number: int
    events: NDArray[np.int64]
    lane: NDArray[np.int64]
    steps: tuple[NDArray[np.int64], ...]


def plan_epoch(
    index: EventIndex,
    lanes: Sequence[NDArray[np.int64]],
    *,
    tokens_per_step: int,
    window_events: int,
    seed: int,
    epoch: int,
    first_window: int = 0,
) -> Iterator[Window]:
    """The windows of one epoch over the events of all lanes, shuffled by (seed, epoch); each is planned when it is asked for.

    Row groups are shuffled and joined to windows of about `window_events` over all lanes; the events of a window are shuffled and cut into
    steps of about equal size, none with more than `tokens_per_step` elements (a longer event goes alone), of which every lane gives an
    equal share. A step is a random sample of events of any length: batches hold no padding, so there is nothing to gain from steps of
    similar ones.

    Args:
        lanes: as `deal_lanes` makes them; events of different lanes can be read by different workers.
        first_window: those before it are left out; their steps are not planned.
    """
    count = num_windows(index, lanes, window_events)
    of_lanes = [_windows_of(index, events, count, _generator(seed, epoch, 0, lane)) for lane, events in enumerate(lanes)]
    for number, members in enumerate(zip(*of_lanes, strict=True)):
        if number >= first_window:
            yield _planned(index, members, number, tokens_per_step // len(lanes), seed=seed, epoch=epoch)


def num_windows(index: EventIndex, lanes: Sequence[NDArray[np.int64]], window_events: int) -> int:
    """Windows of an epoch, of about `window_events` each over all lanes; fewer where a lane has fewer row groups."""
    wanted = max(1, round(sum(map(len, lanes)) / window_events))
    return min(wanted, *(len(_groups_of(index, lane)[0]) for lane in lanes))


def _planned(index: EventIndex, members: Sequence[NDArray[np.int64]], number: int, tokens: int, *, seed: int, epoch: int) -> Window:
    """A window of these events of each lane, in steps to which every lane gives at most `tokens` elements."""
    orders = [_generator(seed, epoch, number, lane).permutation(len(events)) for lane, events in enumerate(members)]
    lengths = [index.num_elements[events][order] for events, order in zip(members, orders, strict=True)]
    count = max(len(cut_by_tokens(of_lane, tokens)) for of_lane in lengths)
    first = np.cumsum([0, *map(len, members)])
    parts = [
        [first[lane] + order[run] for run in cut_evenly(of_lane, tokens, count=count)]
        for lane, (order, of_lane) in enumerate(zip(orders, lengths, strict=True))
    ]
    steps = tuple(np.concatenate(step) for step in itertools.zip_longest(*parts, fillvalue=np.zeros(0, np.int64)))
    return Window(number, np.concatenate(members), np.repeat(np.arange(len(members)), [len(events) for events in members]), steps)


def _generator(seed: int, epoch: int, number: int, lane: int) -> np.random.Generator:
    """Random numbers of a lane's window; without lanes the same as of the first of them."""
    return np.random.default_rng([seed, epoch, number, lane])


def deal_lanes(index: EventIndex, events: NDArray[np.int64], count: int, tokens_per_step: int) -> list[NDArray[np.int64]]:
    """The events in `count` lanes of about as many elements each: whole row groups, neighbours in the files together.

    Fewer lanes where a lane's share of a step would not hold the longest event, or where the row groups are too few or too unequal
    for lanes of about equal size; never none.

    Args:
        events: positions in the index.
    """
    starts, events = _groups_of(index, events)
    longest = int(index.num_elements[events].max(initial=1))
    elements = np.add.reduceat(index.num_elements[events].astype(np.int64), starts)
    middle = (np.cumsum(elements) - elements / 2) / max(int(elements.sum()), 1)
    sizes = np.diff(np.append(starts, len(events)))
    for lanes in range(min(count, tokens_per_step // max(longest, 1), len(starts) // _GROUPS_PER_LANE), 1, -1):
        lane = np.minimum((middle * lanes).astype(int), lanes - 1)
        held = np.bincount(lane, elements, lanes)
        if np.bincount(lane, minlength=lanes).min() >= _GROUPS_PER_LANE and held.max() <= _LARGEST_LANE * held.mean():
            return [events[np.repeat(lane == number, sizes)] for number in range(lanes)]
    return [events]


def _groups_of(index: EventIndex, events: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(where each row group begins among the sorted events, the sorted events)."""
    events = np.sort(events)
    change = np.flatnonzero(np.diff(index.shard[events]) | np.diff(index.group[events])) + 1
    return np.concatenate([[0], change])[: len(events)], events


def _windows_of(index: EventIndex, events: NDArray[np.int64], count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """The events, by whole row groups in random order, in windows of about as many each, at least one group in each; sorted by place.

    Args:
        count: of windows; not more than there are groups.
    """
    starts, events = _groups_of(index, events)
    sizes = np.diff(np.append(starts, len(events)))
    order, position = rng.permutation(len(starts)), np.arange(len(starts))
    # by where a group's middle lies: all windows are about equally large, the last one, too
    window = ((np.cumsum(sizes[order]) - sizes[order] / 2) / len(events) * count).astype(int)
    window = np.minimum.accumulate(np.minimum(window - position, 0)) + position  # none is passed over ...
    window[-1] = count - 1
    window = np.maximum.accumulate((window - position)[::-1])[::-1] + position  # ... and none is left at the end
    for number in range(count):
        groups = np.sort(order[window == number])
        yield np.concatenate([events[starts[g] : starts[g] + sizes[g]] for g in groups])


def cut_by_tokens(lengths: NDArray[np.integer], tokens: int) -> list[NDArray[np.int64]]:
    """Consecutive runs of events with at most `tokens` elements in all; at least one event each."""
    ends = np.cumsum(lengths, dtype=np.int64)
    runs, start = [], 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + tokens, side="right")), start + 1)
        runs.append(np.arange(start, stop))
        start = stop
    return runs


def cut_evenly(lengths: NDArray[np.integer], tokens: int, *, count: int | None = None) -> list[NDArray[np.int64]]:
    """As `cut_by_tokens`, in as few runs, but with a last one that is about as large as the others.

    Args:
        count: rather in so many runs, at least as many as are needed; fewer where single events are too long.
    """
    runs = count or len(cut_by_tokens(lengths, tokens))
    high = tokens
    low = min(high, max(1, -(-int(np.sum(lengths)) // max(runs, 1))))  # the smallest budget with which there are as few is not below
    while low < high:
        middle = (low + high) // 2
        if len(cut_by_tokens(lengths, middle)) > runs:
            low = middle + 1
        else:
            high = middle
    return cut_by_tokens(lengths, high)


def read_events(index: EventIndex, events: NDArray[np.int64], columns: Sequence[str] = INPUT_COLUMNS) -> RaggedEvents:
    """The given events (positions in the index, any order), in that order, with a projection of the columns.

    Raises:
        ShardError: a shard is missing or torn.
    """
    table = _read(index, events, columns)
    return _no_events(index) if table is None else from_arrow(table)


def read_identities(index: EventIndex, events: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Identities of the given events (positions in the index, any order), in that order.

    Raises:
        ShardError: a shard is missing or torn.
    """
    table = _read(index, events, ["event.uid"])
    return np.zeros(0, np.uint64) if table is None else table.column("event").combine_chunks().field("uid").to_numpy()


def _read(index: EventIndex, events: NDArray[np.int64], columns: Sequence[str]) -> pa.Table | None:
    """Columns of the events, in their order; None of no events."""
    order = np.argsort(events, kind="stable")
    place = events[order]
    tables = []
    key = index.shard[place].astype(np.int64) << 32 | index.group[place]
    for members in np.split(place, np.flatnonzero(np.diff(key)) + 1) if len(place) else []:
        with opened_shard(index.files[index.shard[members[0]]]) as parquet:
            table = parquet.read_row_group(int(index.group[members[0]]), columns=list(columns))
        tables.append(table.take(pa.array(index.row[members])))
    if not tables:
        return None
    return pa.concat_tables(tables).take(pa.array(np.argsort(order, kind="stable")))


def _no_events(index: EventIndex) -> RaggedEvents:
    if not index.files:
        raise ShardError("the data set has no shards", where=index.manifest.detector)
    with opened_shard(index.files[0]) as parquet:
        return from_arrow(parquet.schema_arrow.empty_table())
