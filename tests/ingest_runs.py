"""Runs of ingest that several tests share: small real files under many names, and an ingest without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pfscale.shards import ingest as module

DATA = Path(__file__).parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
IDEA = DATA / "idea_delphes_ww_240_10ev_no_metadata.root"  # ten events; opened in a tenth of the time that the others need
EVENTS = 10  # of IDEA


def different(number: int) -> bytes:
    """The small real file with other contents: a file that is there twice is refused; what is behind a file's end is not read."""
    return IDEA.read_bytes() + bytes([number])


def copies(folder: Path, number: int) -> list[str]:
    """A small real file under several names: events of different identity."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"idea_ww_{i}_00000.root" for i in range(number)]
    for i, path in enumerate(paths):
        path.write_bytes(different(i))
    return [str(path) for path in paths]


def everything(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def environment() -> dict[str, str]:
    """For a process of its own that imports this module, or a test file of these."""
    here = Path(__file__).parent
    path = [str(here), str(here / "integration"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def serially(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ingest do its work in this process, without Ray."""

    def in_order(items: list[Any], function: Callable[[Any], Any], **_: object) -> Iterator[tuple[int, Any]]:
        return ((number, function(item)) for number, item in enumerate(items))

    replaced = {
        "map_unordered": in_order,
        "ray_cluster": nullcontext,
        "count_workers": lambda _: (1, 1.0),
        "ImportAhead": lambda *_: SimpleNamespace(wait=lambda: None),
        "is_running": lambda: False,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
