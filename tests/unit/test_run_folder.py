"""The folder of a run: who may train there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pfscale.errors import ResourceError
from pfscale.training.storage import delete_uncommitted, wait_for_workers, working


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


def test_only_checkpoints_that_were_never_committed_are_deleted(tmp_path: Path) -> None:
    """Catches a disk that fills with what killed workers left, and the loss of a checkpoint that counts or waits to count."""
    of_workers = tmp_path / "run-train"
    for name in ("checkpoint_a", "checkpoint_ab", "checkpoint_b", "checkpoint_c", "other"):
        (of_workers / name).mkdir(parents=True)
    record = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_ab"}], "pending": [{"checkpoint_dir_name": "checkpoint_c"}]}
    (of_workers / "checkpoint_manager_snapshot.json").write_text(json.dumps(record))
    delete_uncommitted(tmp_path / "run")
    assert sorted(path.name for path in of_workers.iterdir() if path.is_dir()) == ["checkpoint_ab", "checkpoint_c", "other"]
    (of_workers / "checkpoint_manager_snapshot.json").unlink()
    delete_uncommitted(tmp_path / "run")
    assert len(list(of_workers.iterdir())) == 3
