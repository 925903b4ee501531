"""Entry ranges and reading ahead: what is read must not depend on how it is cut, nor on who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.edm4hep import branches as module
from pfscale.edm4hep.branches import Branches
from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.shards.events import extract_events, stream_events

DATA = Path(__file__).parent.parent / "data"
LEGACY = DATA / "clic_photon_gun_3ev_legacy.root"
CLUSTERS = (4, 4, 7, 1, 4)  # entries per basket


@pytest.fixture(scope="module", params=["ttree", "rntuple"])
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    path = tmp_path_factory.mktemp("branches") / "events.root"
    number, made = 0, None
    with uproot.recreate(path) as file:
        for size in CLUSTERS:
            a = ak.values_astype(ak.Array([[entry] * (1 + entry % 3) for entry in range(number, number + size)]), np.int64)
            b = ak.values_astype(a, np.float32)
            content = {"X.a": a, "X.b": b} if request.param == "ttree" else {"X": ak.zip({"a": a, "b": b})}
            if made is None:
                types = {name: values.type.content for name, values in content.items()}
                made = (file.mktree if request.param == "ttree" else file.mkrntuple)("events", types)
            made.extend(content)
            number += size
    with uproot.open(path) as file:
        yield file["events"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_spans_cover_every_entry_once(tree: object, data: st.DataObject) -> None:
    """Catches entries lost or read twice between spans, and spans of more events than are allowed."""
    total = sum(CLUSTERS)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    at_most = data.draw(st.integers(1, total))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EVENTS_AT_ONCE", at_most)
        spans = list(Branches(tree).spans(start, stop, file_bytes=1))
    assert [entry for first, last in spans for entry in range(first, last)] == list(range(start, stop))
    assert all(0 < last - first <= at_most for first, last in spans)


def test_spans_end_where_baskets_end(tree: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches baskets that are decompressed twice because a span cuts them."""
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", 9)
    assert list(Branches(tree).spans(0, 20, file_bytes=1)) == [(0, 8), (8, 16), (16, 20)]
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", 5)  # the cluster of 7 must be cut
    assert list(Branches(tree).spans(0, 20, file_bytes=1)) == [(0, 4), (4, 8), (8, 13), (13, 16), (16, 20)]


def test_large_events_make_small_spans(tree: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a worker whose memory grows with the size of events."""
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 1)
    assert all(last - first == 1 for first, last in Branches(tree).spans(0, 20, file_bytes=1 << 20))


def test_reading_ahead_gives_the_same_numbers(tree: object) -> None:
    """Catches arrays of another leaf or span handed out by the threads that read ahead, and a leaf that is asked for twice."""
    near, far = Branches(tree), Branches(tree, is_remote=True)
    spans = [(0, 8), (8, 16), (16, 20)]
    for leaf in near:
        assert len(far.array(leaf, 3, 3)) == 0
    for number, span in enumerate(spans):
        far.expect(spans[number : number + 2])
        for leaf in [*near, *near]:
            assert far.array(leaf, *span).to_list() == near.array(leaf, *span).to_list()
    far.close()


@pytest.mark.parametrize("with_truth", [True, False])
def test_streamed_events_are_those_of_one_read(with_truth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches rows that depend on how many events are read at once."""
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", 1)
    detector = find_detector("clic")
    with open_source(LEGACY) as source:
        parts = list(stream_events(source, detector, 0, 3, with_truth=with_truth))
        whole = extract_events(source, detector, 0, 3, with_truth=with_truth).table
    assert [part.table.num_rows for part in parts] == [1, 1, 1]
    assert [row for part in parts for row in part.table.to_pylist()] == whole.to_pylist()


def test_fields_are_called_as_uproot_calls_them() -> None:
    """Catches names of RNTuple fields that differ from those by which uproot finds them."""
    with uproot.open(DATA / "schema_all_types_rntuple_podio1.7.root") as file:
        assert set(Branches(file["events"])) == {name for name in file["events"].keys() if name}  # noqa: SIM118 (not a dict)
