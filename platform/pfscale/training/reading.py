"""What every worker reads of the data, epoch by epoch: files in the run's folder while it trains, one table in MLflow at its end."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale.shards.dataset import EventIndex
from pfscale.training.session import World

READING = "reading"  # folder of one file per worker
_COUNTS = ("shards", "row_groups", "events", "elements", "seconds")
_EPOCHS_KEPT = 10  # the last ones


class ReadLog:
    """One worker's readings. A run that goes on adds to what it has read before, and counts a shard anew.

    What cannot be written is not told: a training does not end for a log.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self._path = folder / READING / f"{world.rank}-of-{world.world_size}.json"
        self._epochs: dict[str, dict[str, float]] = {}
        self._shards: tuple[int, set[int]] = (-1, set())  # of the epoch that is being read
        with suppress(OSError, ValueError, KeyError):  # the first time, or torn
            self._epochs = json.loads(self._path.read_text())["epochs"]

    def note(self, epoch: int, index: EventIndex, events: NDArray[np.int64], seconds: float) -> None:
        """These events (positions in the index) were read from their shards."""
        if self._shards[0] != epoch:
            self._shards = (epoch, set())
        shards = self._shards[1]
        before = len(shards)
        shards.update(np.unique(index.shard[events]).tolist())
        groups = np.unique(index.shard[events].astype(np.int64) << 32 | index.group[events])
        new = (len(shards) - before, len(groups), len(events), int(index.num_elements[events].sum()), seconds)
        told = self._epochs.setdefault(str(epoch), dict.fromkeys(_COUNTS, 0.0))
        for name, count in zip(_COUNTS, new, strict=True):
            told[name] = round(told[name] + count, 3)
        for old in sorted(self._epochs, key=int)[:-_EPOCHS_KEPT]:
            del self._epochs[old]
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps({"node": socket.gethostname(), "epochs": self._epochs}))
            draft.replace(self._path)


def readings(folder: Path) -> Mapping[str, Any]:
    """Of every worker of the run in `folder` (`0-of-4`): its node, and what it read in each epoch."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / READING).glob("*.json"))}
