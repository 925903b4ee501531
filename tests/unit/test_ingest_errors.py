"""What ingest says of bad input before anything is started: clear errors, in a second, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import uproot

from pfscale.errors import InputFileError
from pfscale.shards import ingest as module


def text(path: Path) -> None:
    path.write_text("no ROOT file")


def no_bytes(path: Path) -> None:
    path.touch()


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    """Leaves the path without a file."""


def other_tree(path: Path) -> None:
    with uproot.recreate(path) as file:
        file.mktree("hits", {"x": "int32"}).extend({"x": np.arange(3)})


def no_tracks(path: Path) -> None:
    with uproot.recreate(path) as file:
        file.mktree("events", {"MCParticles.PDG": "int32"}).extend({"MCParticles.PDG": [22, 22]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "not a ROOT file"),
        (no_bytes, "empty"),
        (folder, "a folder"),
        (nothing, "no such file"),
        (other_tree, "no 'events' tree"),
        (no_tracks, "no collection 'SiTracks_Refitted'"),
    ],
)
def test_bad_file_is_an_error_before_ray_starts(
    make: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a typo that costs ten seconds of cluster start, an error that names the wrong thing, and folders left behind."""

    def must_not_start() -> None:
        raise AssertionError("Ray was started for a file that cannot be read")

    monkeypatch.setattr(module, "ray_cluster", must_not_start)
    path = tmp_path / "events.root"
    make(path)
    with pytest.raises(InputFileError, match=message) as caught:
        module.ingest([str(path)], detector="cld", output=tmp_path / "out")
    assert caught.value.where == str(path)
    assert "did you mean" not in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
