"""The validator: silent on good files in both formats, and each of its rules finds the one thing that it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.edm4hep.validate import RULES, Validation, main, validate
from pfscale.simulation import writer
from pfscale.simulation.detectors import DETECTORS
from pfscale.simulation.response import DetectorEvents
from pfscale.simulation.samples import sample
from pfscale.simulation.writer import Columns, EventFile

pytest.importorskip("pythia8mc")

DATA = Path(__file__).parent.parent / "data"
REAL = (
    ("cld_zh_nunubb_240_1ev_podio1.2.root", "cld", {"cluster-energy"}),
    ("clic_photon_gun_3ev_legacy.root", "clic", {"cluster-energy", "mutual", "hit-weights"}),
    ("idea_delphes_ww_240_10ev_no_metadata.root", "idea", {"cluster-energy", "mutual", "track-weights"}),
)
Spoil = Callable[[Columns], None]


@pytest.fixture(scope="module")
def events() -> DetectorEvents:
    return sample(DETECTORS["clic"], "ttbar", None, None, 6)


def written(path: Path, events: DetectorEvents, *, file_format: str = "ttree", simulation: str = "builtin") -> Validation:
    """What the validator says of a file with these events in two batches."""
    with EventFile(path, {"simulation": simulation}, file_format=file_format) as file:
        for number in (0, 6):
            file.extend(events, number, 0)
    with open_source(path) as source:
        return validate(source, find_detector("clic"))


@pytest.mark.parametrize("file_format", ["ttree", "rntuple"])
def test_built_in_files_are_consistent(tmp_path: Path, events: DetectorEvents, file_format: str) -> None:
    """Catches: any relation of the built-in source that points astray; a validator that follows none."""
    result = written(tmp_path / "good.root", events, file_format=file_format)
    assert result.findings == ()
    assert result.num_references > 12 * 3000


@pytest.mark.parametrize(("name", "detector", "expected"), REAL)
def test_real_files_break_only_what_they_may(name: str, detector: str, expected: set[str]) -> None:
    """Catches: a rule that refuses good full-simulation files, or a reader that misplaces their relations."""
    with open_source(DATA / name) as source:
        result = validate(source, find_detector(detector))
    assert result.errors == ()
    assert result.broken_rules == expected
    assert result.num_references > 1000


def change(name: str, position: int, value: Callable[[np.generic], object]) -> Spoil:
    """Replaces one value of a branch by a function of it."""

    def spoil(columns: Columns) -> None:
        counts, values = columns[name]
        values = values.copy()
        values[position] = value(values[position])
        columns[name] = (counts, values)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(columns: Columns) -> None:
        for one in spoils:
            one(columns)

    return spoil


def same_hit_twice(columns: Columns) -> None:
    for part in ("index", "collectionID"):
        counts, values = columns[f"_PandoraClusters_hits.{part}"]
        values = values.copy()
        values[1] = values[0]
        columns[f"_PandoraClusters_hits.{part}"] = (counts, values)


def shorter_end(columns: Columns) -> None:
    for part in ("index", "collectionID"):
        counts, values = columns[f"_SiTracksMCTruthLink_to.{part}"]
        counts = counts.copy()
        counts[0] -= 1
        columns[f"_SiTracksMCTruthLink_to.{part}"] = (counts, values[1:])


def track_of_two_candidates(columns: Columns) -> None:
    counts, values = columns["_RuleBasedPFOs_tracks.index"]
    values = values.copy()
    values[1] = values[0]
    columns["_RuleBasedPFOs_tracks.index"] = (counts, values)


def candidate_of_nothing(columns: Columns) -> None:
    for relation in ("tracks", "clusters"):
        for side in ("begin", "end"):
            counts, values = columns[f"RuleBasedPFOs.{relation}_{side}"]
            values = values.copy()
            values[0] = 0
            columns[f"RuleBasedPFOs.{relation}_{side}"] = (counts, values)


def without_links(name: str, num_links: int | None) -> Spoil:
    """Takes the first links of the first event away; None: all links of all events."""

    def spoil(columns: Columns) -> None:
        for branch in (f"{name}.weight", *(f"_{name}_{end}.{part}" for end in ("from", "to") for part in ("index", "collectionID"))):
            counts, values = columns[branch]
            counts = counts.copy() if num_links else np.zeros_like(counts)
            counts[0] -= num_links or 0
            columns[branch] = (counts, values[num_links:] if num_links else values[:0])

    return spoil


def cluster_without_hits(columns: Columns) -> None:
    for side, position in (("end", 0), ("begin", 1)):
        change(f"PandoraClusters.hits_{side}", position, lambda _: 0)(columns)


SPOILED: dict[str, Spoil] = {
    "finite": change("SiTracks_Refitted.chi2", 3, lambda _: np.nan),
    "range": change("PandoraClusters.hits_end", 0, lambda end: end + 1),
    "known-collection": change("_CalohitMCTruthLink_to.collectionID", 5, lambda _: 12345),
    "inside": change("_PandoraClusters_hits.index", 7, lambda _: 100_000),
    "link-ends": shorter_end,
    "track-weights": change("SiTracksMCTruthLink.weight", 0, lambda _: 1.5),
    "hit-truth": without_links("CalohitMCTruthLink", 50),
    "track-truth": without_links("SiTracksMCTruthLink", 3),
    "hit-weights": change("CalohitMCTruthLink.weight", 0, lambda weight: 2 * weight),
    "mutual": change("_MCParticles_daughters.index", 0, lambda index: index + 1),
    "cluster-hits": cluster_without_hits,
    "cluster-energy": change("PandoraClusters.energy", 0, lambda energy: 1.1 * energy),
    "one-cluster": same_hit_twice,
    "states": change("_SiTracks_Refitted_trackStates.location", 0, lambda _: 3),
    "covariance": change(writer.COVARIANCE_BRANCH, 1, lambda _: 1.0),
    "one-candidate": track_of_two_candidates,
    "candidate-elements": candidate_of_nothing,
}


def test_every_rule_has_its_spoiled_file() -> None:
    """Catches: a rule that is never tried."""
    assert SPOILED.keys() == RULES.keys()


def spoil_second_batch(monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    """So that entries must be counted from the file's first."""
    make = writer.event_columns

    def spoiled(given: DetectorEvents, first_number: int, run_number: int) -> Columns:
        columns = make(given, first_number, run_number)
        if first_number == 6:
            spoil(columns)
        return columns

    monkeypatch.setattr(writer, "event_columns", spoiled)


@pytest.mark.parametrize("rule", SPOILED)
def test_spoiled_file_is_found(tmp_path: Path, events: DetectorEvents, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """Catches: a rule that cannot fail; one that excuses built-in files."""
    spoil_second_batch(monkeypatch, SPOILED[rule])
    result = written(tmp_path / "bad.root", events)
    finding = next(finding for finding in result.errors if finding.rule == rule)
    assert finding.first_entry >= 6
    assert finding.count < 0.1 * finding.total or finding.total < 50
    if RULES[rule] is not None:
        assert rule not in {f.rule for f in written(tmp_path / "other.root", events, simulation="geant4").errors}


def test_files_without_any_truth_are_found(tmp_path: Path, events: DetectorEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a rule that looks at the links that are there, and is content where there are none."""
    spoil_second_batch(monkeypatch, both(without_links("CalohitMCTruthLink", None), without_links("SiTracksMCTruthLink", None)))
    result = written(tmp_path / "bad.root", events)
    assert {"hit-truth", "track-truth"} == {finding.rule for finding in result.errors}
    assert sum(f.count for f in result.errors if f.rule == "hit-truth") == len(events.hits.event)
    assert sum(f.count for f in result.errors if f.rule == "track-truth") == len(events.tracks)


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a traceback for a file that is no ROOT file; an exit code that hides errors."""
    assert main([str(DATA / REAL[0][0]), "--detector", "cld"]) == 0
    assert "warning: cluster-energy" in capsys.readouterr().out
    (tmp_path / "x.root").write_text("no")
    assert main([str(tmp_path / "x.root"), "--detector", "cld"]) == 2


def test_another_detector_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a file taken for one of a detector that it says it is not of."""
    with EventFile(tmp_path / "clic.root", {"simulation": "builtin", "detector": "clic"}) as file:
        file.extend(sample(DETECTORS["clic"], "ttbar", None, None, 2), first_number=0, run_number=0)
    assert main([str(tmp_path / "clic.root"), "--detector", "clic"]) == 0
    assert main([str(tmp_path / "clic.root"), "--detector", "cld"]) == 2
    assert "from 'clic'" in capsys.readouterr().out
