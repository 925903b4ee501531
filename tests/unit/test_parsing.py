"""Quicker parsing of headers: what uproot finds must not change."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import uproot
from uproot.source.chunk import Chunk
from uproot.source.cursor import Cursor

from pfscale.edm4hep import parsing

DATA = Path(__file__).parent.parent / "data"
FILE = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
ORIGINAL, OURS = parsing._copying_classname, parsing._classname


@pytest.mark.parametrize("length", [0, 1, parsing.LONGEST_NAME - 1, parsing.LONGEST_NAME, 1000])
@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("behind", [b"", b"next\0"])
def test_class_name_is_what_uproot_reads(length: int, move: bool, behind: bytes) -> None:
    """Catches names that are cut, and a cursor that stands elsewhere afterwards."""
    chunk = Chunk.wrap(None, np.frombuffer(b"before" + b"\xe9" * length + b"\0" + behind, np.uint8))
    found = []
    for classname in (ORIGINAL, OURS):
        cursor = Cursor(len(b"before"))
        found.append((classname(cursor, chunk, {}, move), cursor.index))
    assert found[0] == found[1]
    assert len(found[0][0]) == length


def test_class_name_without_an_end_is_uproots_error() -> None:
    """Catches a damaged header that is read as a name."""

    class Source:
        file_path = "damaged.root"

    chunk = Chunk.wrap(Source(), np.frombuffer(b"no end", np.uint8))
    with pytest.raises(OSError, match="no terminator"):
        OURS(Cursor(0), chunk, {})


def test_tree_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches branches that are lost or of another type."""
    found = []
    for classname in (ORIGINAL, OURS):
        monkeypatch.setattr(Cursor, "classname", classname)
        with uproot.open(FILE, object_cache=None, array_cache=None) as file:
            found.append({name: branch.typename for name, branch in file["events"].iteritems(full_paths=True)})
    assert found[0] == found[1]
    assert len(found[0]) > 1000


def test_uproot_still_copies() -> None:
    """Catches a replacement that has lost its reason: once uproot no longer copies, it goes."""
    assert Cursor.classname is OURS


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(enabled: bool) -> None:
    """Catches a process whose memory grows for ever after the first damaged file."""
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(OSError, match="damaged"):
            _parse_damaged()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def _parse_damaged() -> None:
    with parsing.quick_parsing():
        assert not gc.isenabled()
        raise OSError("damaged")
