"""The realism tables: the README shows what the command prints now."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError
from pfscale.physics.bootstrap import Estimate
from pfscale.physics.evaluation import CALORIMETER_ONLY, RULE_BASED, TRUTH_TARGETS
from pfscale.simulation import realism
from pfscale.simulation.detectors import DETECTORS
from pfscale.simulation.realism import MARKS, REAL_EVENT, SAMPLES, main, pulls, replace_tables, tables
from pfscale.simulation.realism_counts import measure_file
from pfscale.simulation.realism_jets import Resolution, jet_sample, resolutions
from pfscale.simulation.realism_single import photon_response
from pfscale.simulation.realism_targets import count_rows, jet_rows, photon_row, pull_row, rate_row
from pfscale.simulation.samples import batches, sample

pytest.importorskip("pythia8mc")

README = Path(realism.__file__).parent / "README.md"
REAL_FILE = Path(__file__).parents[1] / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"


def structure(text: str) -> list[list[str]]:
    """Header and first cells of every table, in order."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    headers = [number for number, row in enumerate(rows[1:]) if set(row[0]) == {"-"}]
    return [row if number in headers else row[:1] for number, row in enumerate(rows)]


def test_readme_has_the_tables_of_the_command() -> None:
    """Catches: a README with the tables of an older command: a sample, a column or a table that is no longer made."""
    text = README.read_text()
    begin, end = (text.index(mark) for mark in MARKS)
    shown, made = structure(text[begin:end]), structure(tables(8))
    assert len(made) > 40
    assert shown == made


def test_tables_replace_only_what_is_between_the_marks() -> None:
    """Catches: a README that loses its text, or doubles its tables, when they are written again."""
    text = f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n"
    once = replace_tables(text, "new")
    assert once == f"before\n{MARKS[0]}\n\nnew\n\n{MARKS[1]}\nafter\n"
    assert replace_tables(once, "new") == once


@pytest.mark.parametrize("text", ["no marks", f"{MARKS[1]} {MARKS[0]}", f"{MARKS[0]} {MARKS[0]} {MARKS[1]}"])
def test_a_readme_without_place_is_left_alone(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a traceback, or six minutes of work, before a wrong README is noticed; a README that loses its end."""
    with pytest.raises(InputFileError):
        replace_tables(text, "new")
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert main(["--readme", str(readme)]) == InputFileError.exit_code
    assert str(readme) in capsys.readouterr().err
    assert readme.read_text() == text
    assert main(["--readme", str(tmp_path / "none.md")]) == InputFileError.exit_code


def test_the_command_writes_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a command that makes its tables and then does not write them, or not for few events."""
    monkeypatch.setattr(realism, "SAMPLES", SAMPLES[:1])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert main(["--events", "2", "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| clic ttbar 380 |" in text
    assert capsys.readouterr().out == ""


def test_the_real_columns_are_those_of_the_real_file() -> None:
    """Catches: figures of full simulation that are not made by the code that makes ours, so that the two cannot be compared."""
    with open_source(REAL_FILE) as source:
        found = measure_file(source, DETECTORS["cld"])
    assert asdict(REAL_EVENT) == pytest.approx(asdict(found), rel=2e-3)


def test_every_process_of_a_detector_has_its_row() -> None:
    """Catches: a process or a detector that can be simulated, but of which nobody sees how realistic it is."""
    assert {sample[:2] for sample in SAMPLES} == {(name, process) for name, model in DETECTORS.items() for process in model.sqrt_s}


def test_electrons_are_apart_from_the_pulls() -> None:
    """Catches: tails of radiated electrons in the widths of all tracks, or tracks that are in neither row."""
    events = sample(DETECTORS["cld"], "ttbar", None, None, 30)
    others, electrons = pulls(events)
    assert others.number + electrons.number == (events.tracks.confused_with < 0).sum()
    assert max(abs(width - 1.0) for width in others.widths) < 0.1
    assert others.beyond < 0.01 < electrons.beyond


def test_photons_are_mostly_found_as_photons() -> None:
    """Catches: a part of photons identified that looks at another candidate, or another event, than the one it should."""
    assert photon_response(DETECTORS["clic"], 5.0, 100).identified > 0.9


def _resolutions(*jets: float) -> dict[str, Resolution]:
    """Resolutions of the three reconstructions with errors of 0.003."""
    estimates = [Estimate(value, 0.003) for value in jets]
    keys = (TRUTH_TARGETS, RULE_BASED, CALORIMETER_ONLY)
    return {key: Resolution((), value, value, value, value, value) for key, value in zip(keys, estimates, strict=True)}


def test_a_missed_target_is_said() -> None:
    """Catches: a table of targets that are always met: a rule-based reconstruction no better than the calorimeter, or too good."""
    assert [row[-1] for row in jet_rows("x", _resolutions(0.001, 0.06, 0.09))] == ["yes"] * 3
    assert [row[-1] for row in jet_rows("x", _resolutions(0.001, 0.06, 0.07))] == ["yes", "**no**", "**no**"]
    assert jet_rows("x", _resolutions(0.001, 0.045, 0.09))[0][-1] == "**no**"
    assert [row[-1] for row in count_rows("x", ("cld", "ZH"), {"tracks": 24.0, "clusters": 70.0})] == ["yes", "**no**"]
    assert photon_row("x", (1.0, 5.0, 9.0), (1.0, 0.96, 1.01))[2:] == ("-4.0% at 5 GeV", "**no**")
    assert pull_row("x", (1.0, 1.2))[-1] == "**no**"
    assert [rate_row("x", rate)[-1] for rate in (99.0, 101.0)] == ["**no**", "yes"]


def test_batches_are_joined_event_by_event() -> None:
    """Catches: candidates of one batch compared with the jets of another, which would look like a bad resolution."""
    parts = list(batches(DETECTORS["clic"], "ttbar", None, None, 24, batch_events=8))
    assert [part.particles.num_events for part in parts] == [8, 8, 8]
    joined = jet_sample(parts, "clic")
    assert joined.gen.num_events == 24
    alone = [jet_sample([part], "clic") for part in parts]
    assert len(joined.found[RULE_BASED]) == sum(len(part.found[RULE_BASED]) for part in alone)
    found = resolutions(joined)
    assert found[TRUTH_TARGETS].matched.value > 0.95
    assert found[RULE_BASED].target.value < 0.1
