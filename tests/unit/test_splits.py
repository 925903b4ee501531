"""Splits and identities of events."""

from __future__ import annotations

import hashlib

import numpy as np

from pfscale.shards.schema import SPLITS
from pfscale.shards.splits import count_splits, event_uids, split_hashes, splits_of, without_detector


def test_uid_is_what_the_schema_says() -> None:
    """Catches a change of the identity's encoding, which would reshuffle every data set's splits."""
    digest = hashlib.blake2b(b"cld_ZH_1_00000.edm4hep.root\x007\x001\x00123").digest()[:8]
    assert event_uids("cld_ZH_1_00000.edm4hep.root", [7], [1], [123]).tolist() == [int.from_bytes(digest, "big")]


def test_two_detectors_share_the_split_of_a_generator_event() -> None:
    """Catches test events of one detector among the training events of another, which would flatter the transfer."""
    entries = range(200)
    clic = split_hashes("clic_ttbar_1_00000.edm4hep.root", entries, [0] * 200, entries)
    cld = split_hashes("cld_ttbar_1_00000.edm4hep.root", entries, [0] * 200, entries)
    assert np.array_equal(clic, cld)
    assert not np.isin(
        event_uids("clic_ttbar_1_00000.edm4hep.root", entries, [0] * 200, entries),
        event_uids("cld_ttbar_1_00000.edm4hep.root", entries, [0] * 200, entries),
    ).any()


def test_only_a_detector_s_name_is_taken_off() -> None:
    """Catches two different files without a detector in their names that collapse into one identity."""
    assert without_detector("clic_ttbar_1_00000.edm4hep.root") == "ttbar_1_00000.edm4hep.root"
    assert without_detector("other_ttbar_1.root") == "other_ttbar_1.root"
    assert without_detector("clic.root") == "clic.root"


def test_fractions_and_disjointness() -> None:
    """Catches splits of the wrong size, or one that depends on the order of events."""
    num = 20_000
    hashes = split_hashes("sample.root", range(num), [0] * num, range(num))
    names = splits_of(hashes)
    counts = count_splits(names)
    for split, fraction in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        sigma = np.sqrt(num * fraction * (1 - fraction))
        assert abs(counts[split] - num * fraction) < 5 * sigma
    assert splits_of(hashes[::-1]) == names[::-1]


def test_ends_of_the_hash_range() -> None:
    """Catches a rounding slip in the bounds of 64-bit hashes, which have more digits than a double."""
    assert splits_of(np.array([0, 2**64 - 1], np.uint64)) == ["train", "test"]
