"""What ingest makes of the files that it is given: lists, contradictions, and detectors that nothing verifies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ingest_runs import CLD, DATA, serially
from pfscale.edm4hep.detectors import find_detector
from pfscale.errors import InputFileError, OutputExistsError
from pfscale.shards.ingest import ingest
from pfscale.shards.manifest import QuarantinedSource
from pfscale.shards.sources import Source, as_asked, examine

GUN = DATA / "clic_photon_gun_3ev_legacy.root"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest in this process."""
    serially(monkeypatch)


def test_missing_file_in_a_list_is_set_aside(tmp_path: Path) -> None:
    """Catches a list of thousands that stops at one file that was moved, where the same on the command line goes on."""
    (tmp_path / "files.txt").write_text(f"# events\n{CLD}\n{tmp_path / 'moved.root'}\n{tmp_path / 'gone.root'}\n")
    manifest = ingest([str(tmp_path / "files.txt")], detector="cld", output=tmp_path / "out")
    assert manifest.num_events == 1
    assert [(Path(bad.path).name, bad.reason) for bad in manifest.quarantined] == [
        ("gone.root", "no such file"),
        ("moved.root", "no such file"),
    ]


def test_source_that_contradicts_the_options() -> None:
    """Catches data sets that are recorded as another process or simulation than their files say."""
    silent = examine(str(CLD), find_detector("cld"))
    assert isinstance(silent, Source)
    assert (silent.detector, silent.process, silent.simulation) == ("", "", "")
    assert as_asked(silent, process="ZH", simulation="fast") is silent
    says = replace(silent, process="ttbar", simulation="builtin")
    assert as_asked(says, process="ttbar", simulation="") is says
    for asked in ({"process": "ZH", "simulation": ""}, {"process": "ttbar", "simulation": "geant4"}):
        bad = as_asked(says, **asked)
        assert isinstance(bad, QuarantinedSource)
        assert "says" in bad.reason
    assert as_asked(bad, process="ZH", simulation="") is bad


def test_detector_that_nothing_verifies_is_told(tmp_path: Path) -> None:
    """Catches photons of one detector that pass for another's without a word: only tracks show the magnetic field."""
    manifest = ingest([str(CLD), str(GUN)], detector="cld", output=tmp_path / "out")
    assert [source.name for source in manifest.unverified] == [GUN.name]


def test_other_files_than_those_set_aside_are_named(tmp_path: Path) -> None:
    """Catches a refusal that does not say which file makes the difference."""
    bad = tmp_path / "cut.root"
    bad.write_bytes(CLD.read_bytes()[:1000])
    ingest([str(CLD), str(bad)], detector="cld", output=tmp_path / "out")
    with pytest.raises(OutputExistsError, match=r"'cut.root', which had been set aside, is not among the files given"):
        ingest([str(CLD)], detector="cld", output=tmp_path / "out")


def test_the_same_contents_under_one_name(tmp_path: Path) -> None:
    """Catches events that count twice because a file lies in two folders."""
    copy = tmp_path / CLD.name
    copy.write_bytes(CLD.read_bytes())
    with pytest.raises(InputFileError, match="there twice") as caught:
        ingest([str(CLD), str(copy)], detector="cld", output=tmp_path / "out")
    assert str(copy) in str(caught.value)
