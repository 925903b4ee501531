"""Ending a training early without losing a step: SIGTERM (a batch system's last word) and Ctrl-C ask for a checkpoint first."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pfscale.training.session import STOP

T = TypeVar("T")
_log = logging.getLogger(__name__)


@contextmanager
def stop_on_signals(folder: Path) -> Iterator[list[int]]:
    """While it lasts, SIGTERM and Ctrl-C make the training in `folder` commit a checkpoint after its current step, and end.

    The wish is a file in the run's folder, so it reaches workers on any node. A second Ctrl-C raises KeyboardInterrupt at once. Outside the
    main thread signals cannot be caught: there, whoever wants the training to stop makes that file. Yields the signals that came.
    """
    wish = folder / STOP
    wish.unlink(missing_ok=True)
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def ask(number: int, _: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in came:
            raise KeyboardInterrupt
        came.append(number)
        wish.touch()
        if number == signal.SIGINT:
            _log.info("stops after this step, with a checkpoint; Ctrl-C again: at once, without")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        wish.unlink(missing_ok=True)


def in_thread(function: Callable[[], T], *, meanwhile: Callable[[], object]) -> T:
    """What `function` returns or raises in a thread of its own, while this one goes on to take signals, and calls `meanwhile` often.

    Ray Train takes Ctrl-C for itself where it runs in the main thread: it then ends without a checkpoint and with exit code 1.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:  # raised below
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        meanwhile()
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result
