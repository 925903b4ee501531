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
    for name in ("jobs", "search_spaces", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands = tour()
    assert len(commands) >= 8
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        command = [sys.executable, "-c", snippet]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"


def test_the_folders_in_the_map_exist() -> None:
    """Catches a map of folders that has gone stale."""
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"^\| `([a-z_]+)/[^`]*` ", text, re.MULTILINE)
    assert named
    assert all((ROOT / name).is_dir() for name in named)
