"""What every worker reads of the data, epoch by epoch: files in the run's folder while it trains, one table in MLflow at its end."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale.shards.dataset import EventIndex
from pfscale.training.session import World

READING = "reading"  # folder of one file per worker
_COUNTS = ("shards", "row_groups", "events", "elements", "seconds")


class ReadLog:
    """One worker's readings. A run that goes on adds to what it has read before."""

    def __init__(self, folder: Path, world: World) -> None:
        self._path = folder / READING / f"{world.rank}-of-{world.world_size}.json"
        self._epochs: dict[str, dict[str, float]] = {}
        self._shards: dict[int, set[int]] = {}
        if self._path.is_file():
            self._epochs = json.loads(self._path.read_text())["epochs"]

    def note(self, epoch: int, index: EventIndex, events: NDArray[np.int64], seconds: float) -> None:
        """These events (positions in the index) were read from their shards."""
        shards = self._shards.setdefault(epoch, set())
        before = len(shards)
        shards.update(np.unique(index.shard[events]).tolist())
        groups = np.unique(index.shard[events].astype(np.int64) << 32 | index.group[events])
        new = (len(shards) - before, len(groups), len(events), int(index.num_elements[events].sum()), round(seconds, 3))
        told = self._epochs.setdefault(str(epoch), dict.fromkeys(_COUNTS, 0.0))
        for name, count in zip(_COUNTS, new, strict=True):
            told[name] += count
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps({"node": socket.gethostname(), "epochs": self._epochs}))
        draft.replace(self._path)


def readings(folder: Path) -> Mapping[str, Any]:
    """Of every worker of the run in `folder` (`0-of-4`): its node, and what it read in each epoch."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / READING).glob("*.json"))}
