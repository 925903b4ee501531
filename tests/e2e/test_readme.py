"""The README's commands, run to the letter and in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tour() -> list[str]:
    """The lines of the README's tour."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## A tour.*?```\n(.*?)```", text, re.DOTALL)
    assert block, "the README has no tour"
    return [line for line in block[1].splitlines() if line and not line.startswith("#")]


def test_every_command_of_the_tour_works(tmp_path: Path) -> None:
    """Catches a README that promises what the program no longer does."""
    pytest.importorskip("pythia8mc", reason="the built-in event source needs the extra [sim]")
    for name in ("jobs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands = tour()
    assert len(commands) >= 8
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_readmes_python_reads_what_the_tour_wrote() -> None:
    """Catches a snippet that no longer fits the files: it is compiled, and its file name is the one that `reconstruct` writes."""
    text = (ROOT / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(snippet, "README.md", "exec")
    source = next(command for command in tour() if command.startswith("pfscale reconstruct")).split()[3]
    assert f"{Path(source).name.removesuffix('.root')}.candidates.parquet" in snippet


def test_the_folders_in_the_map_exist() -> None:
    """Catches a map of folders that has gone stale."""
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"^\| `([a-z_]+)/[^`]*` ", text, re.MULTILINE)
    assert named
    assert all((ROOT / name).is_dir() for name in named)
