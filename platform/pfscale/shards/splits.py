"""Event identity and splits: pure functions of what an event is, so that folders, order and workers do not matter.

An event is its source file's base name, entry, run and number. Its split follows from the same identity with the detector's name taken
off the front of the base name: two detectors' versions of one generator event (built-in files are called
`<detector>_<process>_<seed>_<chunk>`) fall into the same split, and no test event of one is a training event of the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep.detectors import DETECTORS
from pfscale.shards.schema import SPLITS

TRAIN_FRACTION, VALIDATION_FRACTION = 0.8, 0.1  # the rest is for the test
_HASH_RANGE = 1 << 64


def event_uids(file: str, entries: Iterable[int], runs: Iterable[int], numbers: Iterable[int]) -> NDArray[np.uint64]:
    """The uid of each event of a file: first 8 bytes of BLAKE2b of (base name, entry, run, number)."""
    return _hashes(file, entries, runs, numbers)


def split_hashes(file: str, entries: Iterable[int], runs: Iterable[int], numbers: Iterable[int]) -> NDArray[np.uint64]:
    """The hash that decides the split of each event and the order of nested subsets: as the uid, without the detector's name."""
    return _hashes(without_detector(file), entries, runs, numbers)


def without_detector(file: str) -> str:
    """The base name without the detector's name at its front: `clic_ttbar_1_00000.edm4hep.root` -> `ttbar_1_00000.edm4hep.root`."""
    first, separator, rest = file.partition("_")
    return rest if separator and first in DETECTORS else file


def splits_of(hashes: NDArray[np.uint64]) -> list[str]:
    """The name of each event's split: 80% of the hash range train, 10% validation, 10% test."""
    bounds = [int(TRAIN_FRACTION * _HASH_RANGE), int((TRAIN_FRACTION + VALIDATION_FRACTION) * _HASH_RANGE)]
    codes = np.searchsorted(np.array(bounds, np.uint64), hashes, side="right")
    return [SPLITS[code] for code in codes]


def count_splits(names: Sequence[str]) -> dict[str, int]:
    """Events in each split, all splits listed."""
    return {split: names.count(split) for split in SPLITS}


def _hashes(file: str, entries: Iterable[int], runs: Iterable[int], numbers: Iterable[int]) -> NDArray[np.uint64]:
    identities = (f"{file}\0{entry}\0{run}\0{number}".encode() for entry, run, number in zip(entries, runs, numbers, strict=True))
    digests = b"".join(hashlib.blake2b(identity).digest()[:8] for identity in identities)
    return np.frombuffer(digests, ">u8").astype(np.uint64)
