"""The folder of a run: who may train there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pfscale.errors import ResourceError
from pfscale.training.storage import wait_for_workers, working


def test_workers_that_outlive_their_driver_are_waited_for(tmp_path: Path) -> None:
    """Catches two trainings that write and delete each other's checkpoints, after a driver was killed and its command repeated."""
    script = "import sys; from pathlib import Path; from pfscale.training.storage import working\n"
    script += "with working(Path(sys.argv[1])): print('there', flush=True); sys.stdin.read()"
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"there\n"
    with working(tmp_path), pytest.raises(ResourceError, match="still train"):
        wait_for_workers(tmp_path, patience=0.2)
    with pytest.raises(ResourceError, match="still train"):
        wait_for_workers(tmp_path, patience=0.2)
    worker.kill()
    worker.communicate()
    wait_for_workers(tmp_path, patience=0.2)
