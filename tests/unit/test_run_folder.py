"""The folder of a run: who may train there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pfscale.errors import ResourceError, TrainingError
from pfscale.training.storage import delete_uncommitted, keep_record, mend_record, wait_for_workers, working


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


@pytest.mark.parametrize("torn", ["", '{"checkpoint_results": [{"checkpoint_d', "\0\0"])
def test_a_torn_record_costs_no_checkpoint(tmp_path: Path, torn: str) -> None:
    """Catches Ray's record of checkpoints, cut by a kill, that makes a resume delete them all, or that nothing can resume from."""
    run, of_workers = tmp_path / "run", tmp_path / "run-train"
    run.mkdir()
    names = ["checkpoint_a", "checkpoint_b", "checkpoint_c"]
    results = [{"checkpoint_dir_name": name} for name in names]
    for name in (*names[1:], "checkpoint_d"):  # the first was deleted, the last not committed yet
        (of_workers / name).mkdir(parents=True)
    record = of_workers / "checkpoint_manager_snapshot.json"
    values = {"checkpoint_results": results, "checkpoint_report_indices": [0, 1, 2], "latest_checkpoint_result": results[2], "other": 1}
    record.write_text(json.dumps(values))
    keep_record(run)
    record.write_text(torn)
    keep_record(run)
    delete_uncommitted(run)
    assert len(list(of_workers.glob("checkpoint_*/"))) == 3
    mend_record(run)
    assert json.loads(record.read_text()) == {**values, "checkpoint_results": results[1:], "checkpoint_report_indices": [1, 2]}
    delete_uncommitted(run)
    assert sorted(path.name for path in of_workers.glob("checkpoint_*/")) == names[1:]


def test_a_torn_record_without_a_copy_is_told(tmp_path: Path) -> None:
    """Catches a run that begins anew beside checkpoints that may be good, and one that cannot begin for a record of nothing."""
    (tmp_path / "run").mkdir()
    record = tmp_path / "run-train" / "checkpoint_manager_snapshot.json"
    (record.parent / "checkpoint_a").mkdir(parents=True)
    record.write_text("")
    with pytest.raises(TrainingError, match="torn by a kill"):
        mend_record(tmp_path / "run")
    (record.parent / "checkpoint_a").rmdir()
    mend_record(tmp_path / "run")
    assert not record.exists()
