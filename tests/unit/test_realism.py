"""The realism tables: the README shows what the command prints now."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfscale.physics.bootstrap import Estimate
from pfscale.physics.evaluation import CALORIMETER_ONLY, RULE_BASED, TRUTH_TARGETS
from pfscale.simulation import realism
from pfscale.simulation.detectors import DETECTORS
from pfscale.simulation.realism import MARKS, replace_tables, tables
from pfscale.simulation.realism_jets import Resolution, jet_sample, resolutions
from pfscale.simulation.realism_targets import count_rows, jet_rows, photon_row, pull_row
from pfscale.simulation.samples import batches

pytest.importorskip("pythia8mc")

README = Path(realism.__file__).parent / "README.md"


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


def _resolutions(*jets: float) -> dict[str, Resolution]:
    """Resolutions of the three reconstructions with errors of 0.003."""
    estimates = [Estimate(value, 0.003) for value in jets]
    keys = (TRUTH_TARGETS, RULE_BASED, CALORIMETER_ONLY)
    return {key: Resolution((), value, value, value, value) for key, value in zip(keys, estimates, strict=True)}


def test_a_missed_target_is_said() -> None:
    """Catches: a table of targets that are always met: a rule-based reconstruction no better than the calorimeter, or too good."""
    assert [row[-1] for row in jet_rows("x", _resolutions(0.001, 0.06, 0.09))] == ["yes"] * 3
    assert [row[-1] for row in jet_rows("x", _resolutions(0.001, 0.06, 0.07))] == ["yes", "**no**", "**no**"]
    assert jet_rows("x", _resolutions(0.001, 0.045, 0.09))[0][-1] == "**no**"
    assert [row[-1] for row in count_rows("x", ("cld", "ZH"), {"tracks": 24.0, "clusters": 70.0})] == ["yes", "**no**"]
    assert photon_row("x", (1.0, 5.0, 9.0), (1.0, 0.96, 1.01))[2:] == ("-4.0% at 5 GeV", "**no**")
    assert pull_row("x", (1.0, 1.2))[-1] == "**no**"


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
