"""The folder of a run: claimed by one driver and its workers at a time, and holding the record of a finished run."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfscale.config import RunConfig
from pfscale.errors import InProgressError, ResourceError, TrainingError
from pfscale.ray_cluster import is_job_copy
from pfscale.tracking.registry import ModelVersion
from pfscale.tracking.runs import Tracker
from pfscale.training.run import Run

_log = logging.getLogger(__name__)
RECORD, LOCK, WORKERS = "run.json", ".lock", ".workers"
_RAYS_RECORD = "checkpoint_manager_snapshot.json"  # which checkpoints are committed; Ray writes it in place, so a kill may tear it
_KEPT_RECORD = ".committed.json"  # in the run's folder: its last whole state


def storage_folder(run: RunConfig) -> Path:
    """The local folder of a run section's storage.

    Raises:
        ResourceError: a remote address (only folders that all nodes share are supported so far), or a relative one inside a job.
    """
    if "://" in run.storage:
        raise ResourceError("run.storage must be a folder", where=run.storage, hint="give a folder that every node can reach")
    if not Path(run.storage).is_absolute() and is_job_copy():
        raise ResourceError(
            "a relative path inside a submitted job is deleted with the job",
            where=run.storage,
            hint="run.storage=$PWD/runs, an absolute path",
        )
    return Path(run.storage).resolve()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the run's folder: a second process with the same run is refused until this one ends, however it ends.

    Raises:
        InProgressError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InProgressError(
                "this run is in progress in another process", where=str(folder), hint="wait for it, or end it first"
            ) from None
        yield


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """While it lasts, and this process lives, others can tell that a worker trains in the run's folder (any number of workers may)."""
    with (folder / WORKERS).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def wait_for_workers(folder: Path, *, patience: float = 60.0) -> None:
    """Returns when no worker trains in the run's folder.

    Workers outlive a driver that was killed by some seconds, in which they go on to commit checkpoints and to delete old ones.

    Raises:
        ResourceError: some still do after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    with (folder / WORKERS).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    hint = "their driver is gone: end the processes ray::RayTrainWorker, then repeat the command"
                    raise ResourceError("workers of an earlier attempt still train here", where=str(folder), hint=hint) from None
                time.sleep(0.1)


def keep_record(folder: Path) -> None:
    """Keeps a copy of Ray's record of the run's checkpoints, where it is whole and has changed."""
    kept, draft = folder / _KEPT_RECORD, folder / f"{_KEPT_RECORD}.draft"
    try:
        text = _whole_record(folder.parent / f"{folder.name}-train" / _RAYS_RECORD)
        if text is None or (kept.is_file() and kept.read_text() == text):
            return
        draft.write_text(text)
        draft.replace(kept)
    except OSError as error:  # the training itself goes on
        _warn_once(str(folder), f"the record of its checkpoints is not copied: {error.strerror}")


@functools.cache
def _warn_once(folder: str, text: str) -> None:
    _log.warning("%s: %s", folder, text)


def mend_record(folder: Path) -> None:
    """Puts the copy back where a kill has torn Ray's record; of its checkpoints, those that are still there.

    Nobody may train in the run's folder meanwhile.

    Raises:
        TrainingError: the record is torn, and no copy names a checkpoint that is there.
    """
    of_workers = folder.parent / f"{folder.name}-train"
    record = of_workers / _RAYS_RECORD
    if not record.is_file() or _whole_record(record) is not None:
        return
    copy = _whole_record(folder / _KEPT_RECORD)
    values = json.loads(copy) if copy is not None else {"checkpoint_results": [], "checkpoint_report_indices": []}
    pairs = zip(values["checkpoint_results"], values["checkpoint_report_indices"], strict=True)
    there = [(result, index) for result, index in pairs if (of_workers / result["checkpoint_dir_name"]).is_dir()]
    if not there:
        if any(of_workers.glob("checkpoint_*/")):
            what = "the record of complete checkpoints was torn by a kill, and no copy of it names one that is there"
            raise TrainingError(what, where=str(record), hint="to start afresh, delete its folder")
        record.unlink()  # killed at its first checkpoint
        return
    results = [result for result, _ in there]
    latest = values["latest_checkpoint_result"]
    values |= {
        "checkpoint_results": results,
        "checkpoint_report_indices": [index for _, index in there],
        "latest_checkpoint_result": latest if latest in results else results[-1],
    }
    draft = of_workers / f"{_RAYS_RECORD}.draft"
    draft.write_text(json.dumps(values))
    draft.replace(record)


def _whole_record(path: Path) -> str | None:
    """The text of a record that is there and whole."""
    try:
        text = path.read_text()
        json.loads(text)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return text


def delete_uncommitted(folder: Path) -> None:
    """Deletes checkpoints whose workers were killed before they were committed: Ray's record does not know them, so they would stay.

    Nobody may train in the run's folder meanwhile.
    """
    of_workers = folder.parent / f"{folder.name}-train"
    committed = _whole_record(of_workers / _RAYS_RECORD)
    if committed is None:
        return  # nobody knows what counts
    for checkpoint in of_workers.glob("checkpoint_*/"):
        if f'"{checkpoint.name}"' not in committed:
            shutil.rmtree(checkpoint, ignore_errors=True)


def require_same_place(folder: Path, num_workers: int) -> None:
    """Checks that an unfinished run goes on where its checkpoints are: in the calling process, or in workers, any number of them.

    Raises:
        TrainingError: it was begun in the other place, whose checkpoints would not be found.
    """
    of_process, of_workers = folder / "checkpoints", folder.parent / f"{folder.name}-train"
    other = of_workers if num_workers == 0 else of_process
    if any(other.glob("checkpoint_*/")):
        needed = "at least 1" if num_workers == 0 else "0"
        hint = f"resume with run.num_workers={needed}, or delete that folder to start afresh"
        what = f"the run's checkpoints cannot be taken up with run.num_workers={num_workers}"
        raise TrainingError(what, where=str(other), hint=hint)


def read_finished(folder: Path, tracker: Tracker, fingerprint: str) -> Run | None:
    """The run that finished in `folder` before, if it is the one that MLflow knows as finished and its model is still there."""
    record = folder / RECORD
    if not record.is_file():
        return None
    values = json.loads(record.read_text())
    if values["fingerprint"] != fingerprint or tracker.find_finished(fingerprint) != values["run_id"]:
        return None
    model, checkpoint = values.pop("model"), Path(values.pop("checkpoint"))
    if not checkpoint.is_dir():
        return None
    version = ModelVersion(**{**model, "aliases": tuple(model["aliases"])}) if model else None
    return Run(**{**values, "notes": tuple(values["notes"])}, model=version, checkpoint=checkpoint, resumed=True)


def write_finished(run: Run) -> None:
    """Keeps the finished run beside its model, so that submitting the same thing again returns it."""
    if run.checkpoint is None:
        return
    model = {**vars(run.model), "tags": dict(run.model.tags)} if run.model else None
    values = {**vars(run), "model": model, "checkpoint": str(run.checkpoint)}
    values.pop("resumed")
    draft = run.checkpoint.parent / f"{RECORD}.draft"
    draft.write_text(json.dumps(values))
    draft.replace(run.checkpoint.parent / RECORD)
