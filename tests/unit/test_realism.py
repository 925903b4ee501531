"""The realism tables: the README shows what the command prints now."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfscale.simulation import realism
from pfscale.simulation.realism import MARKS, replace_tables, tables

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
