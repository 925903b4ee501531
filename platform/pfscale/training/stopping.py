"""Ending a training early without losing a step: SIGTERM (a batch system's last word before the limit) asks for a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfscale.training.session import STOP


@contextmanager
def stop_on_sigterm(folder: Path) -> Iterator[None]:
    """While it lasts, SIGTERM to this process makes the training in `folder` commit a checkpoint after its current step, and end.

    The wish is a file in the run's folder, so it reaches workers on any node. Outside the main thread signals cannot be caught: there,
    whoever wants the training to stop makes that file.
    """
    wish = folder / STOP
    wish.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: wish.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        wish.unlink(missing_ok=True)
