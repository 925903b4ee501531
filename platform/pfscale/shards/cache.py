"""Decoded events on a node's own disk: many trainings on one data set decode its Parquet once per node.

One folder per data set, named by its hash, with one `.npy` file per column; they are mapped into memory, so that the kernel reads them once
for all processes of a node, each of which copies the events that it takes. What is kept is what trainings learn from: features, targets,
identities, of all events of the data set.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pfscale.shards.dataset import EventIndex, read_events
from pfscale.shards.ragged import INPUT_COLUMNS, NUM_FEATURES, TARGET_COLUMNS, TARGET_FIELDS, RaggedEvents
from pfscale.shards.schema import SCHEMA_VERSION

_CHUNK = 4096  # events that are decoded at once
_COMPLETE = "complete"


def cached_events(index: EventIndex, members: NDArray[np.int64], cache: str | Path) -> RaggedEvents:
    """The given events (positions in the index, in that order) from the cache in folder `cache`, which is filled first where it is empty.

    Raises:
        ShardError: a shard is missing or torn.
        OSError: the disk is full, or may not be written.
    """
    folder = Path(cache) / f"{index.manifest.hash}-{SCHEMA_VERSION}-{index.num_events}"
    if not (folder / _COMPLETE).is_file():
        _fill(index, folder)
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    lengths = offsets[members + 1] - offsets[members]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(offsets[members] - starts[:-1], lengths) + np.arange(starts[-1])
    features, is_track, *targets = (
        np.load(folder / f"{name}.npy", mmap_mode="r")[rows] for name in ("features", "is_track", *TARGET_FIELDS)
    )
    uid = np.load(folder / "uid.npy", mmap_mode="r")[members]
    return RaggedEvents(starts, features, is_track, dict(zip(TARGET_FIELDS, targets, strict=True)), uid, pa.table({}))


def _fill(index: EventIndex, folder: Path) -> None:
    """Decodes the whole data set; of several processes that want it at once, one does it and the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _COMPLETE).is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        offsets = np.concatenate([[0], np.cumsum(index.num_elements, dtype=np.int64)])
        kinds = {"features": (np.float32, (NUM_FEATURES,)), "is_track": (np.bool_, ()), **dict.fromkeys(TARGET_FIELDS, (np.float32, ()))}
        columns = {}
        for name, (dtype, shape) in kinds.items():
            path = folder / f"{name}.npy"
            columns[name] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(int(offsets[-1]), *shape))
            with path.open("r+b") as file:  # a map of a file that the disk has no room for would end the process without a word
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        uid = np.empty(index.num_events, np.uint64)
        for first in range(0, index.num_events, _CHUNK):
            members = np.arange(first, min(first + _CHUNK, index.num_events))
            events = read_events(index, members, (*INPUT_COLUMNS, *TARGET_COLUMNS))
            part = slice(int(offsets[members[0]]), int(offsets[members[-1] + 1]))
            for name, values in {"features": events.features, "is_track": events.is_track, **events.targets}.items():
                columns[name][part] = values
            uid[members] = events.uid
        for column in columns.values():
            column.flush()
        np.save(folder / "offsets.npy", offsets)
        np.save(folder / "uid.npy", uid)
        os.sync()
        (folder / _COMPLETE).touch()
