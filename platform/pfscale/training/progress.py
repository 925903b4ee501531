"""What a training says while it runs: rank 0 leaves its last figures and its evaluations in the run's folder.

The driver tells them through `logging`; a sweep reads them to compare trials.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
PROGRESS, EVALUATIONS = "progress.json", "evaluations.jsonl"
_POLL_SECONDS = 1.0
_SAY_SECONDS = 10.0


def write_progress(
    folder: Path, *, step: int, resumed_from: int, loss: float, validation_loss: float | None, elements_per_second: float
) -> None:
    """Replaces the run's last figures; `validation_loss` is the latest."""
    values = {
        "step": step,
        "resumed_from": resumed_from,
        "loss": loss,
        "validation_loss": validation_loss,
        "elements_per_second": elements_per_second,
    }
    draft = folder / f".{PROGRESS}"
    draft.write_text(json.dumps(values))
    draft.replace(folder / PROGRESS)


def write_evaluation(folder: Path, *, step: int, metrics: Mapping[str, float]) -> None:
    """Adds one evaluation to those of the run."""
    with (folder / EVALUATIONS).open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")


def forget_evaluations(folder: Path, *, after: int) -> None:
    """Drops evaluations of steps that a resumed training is going to take again."""
    kept = [values for values in read_evaluations(folder) if values["step"] <= after]
    draft = folder / f".{EVALUATIONS}"
    draft.write_text("".join(json.dumps(values) + "\n" for values in kept))
    draft.replace(folder / EVALUATIONS)


def read_evaluations(folder: Path) -> list[dict[str, float]]:
    """The evaluations so far, by `step`; of a step that was repeated after an interruption, the later one."""
    path = folder / EVALUATIONS
    lines = path.read_text().splitlines() if path.is_file() else []
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # being written, or cut by a kill
            continue
        found[int(values["step"])] = values
    return [found[step] for step in sorted(found)]


@contextmanager
def told(folder: Path, *, num_steps: int) -> Iterator[None]:
    """While it lasts, a line every ten seconds about the training in `folder`, wherever its workers are."""
    (folder / PROGRESS).unlink(missing_ok=True)
    ended = threading.Event()
    thread = threading.Thread(target=_tell, args=(folder, num_steps, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell(folder: Path, num_steps: int, ended: threading.Event) -> None:
    said_step, said_at, has_resumed = -1, 0.0, False
    while not ended.wait(_POLL_SECONDS):
        try:
            values = json.loads((folder / PROGRESS).read_text())
        except FileNotFoundError:
            continue
        if values["resumed_from"] and not has_resumed:
            has_resumed = True
            _log.info("goes on from step %d", values["resumed_from"])
        if values["step"] != said_step and time.monotonic() - said_at > _SAY_SECONDS:
            said_step, said_at = values["step"], time.monotonic()
            validation = "" if values["validation_loss"] is None else f", validation {values['validation_loss']:.3f}"
            rate = values["elements_per_second"]
            _log.info("step %d of %d: loss %.3f%s, %.0f elements/s", said_step, num_steps, values["loss"], validation, rate)
