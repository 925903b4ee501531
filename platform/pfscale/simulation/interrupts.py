"""Ctrl-C between batches instead of inside compiled code, where it has ended in a segmentation fault."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """A function that raises the KeyboardInterrupt of a Ctrl-C since the start of the block; a second Ctrl-C acts at once.

    Only the main thread can hold signals: in others, and where something else than Python's own handler is at work, nothing changes.
    """
    own = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or own is not signal.default_int_handler:
        yield lambda: None
        return
    is_interrupted = False

    def hold(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        signal.signal(signal.SIGINT, own)
        print("stopping after this batch of events; Ctrl-C again stops at once", file=sys.stderr)

    def check() -> None:
        if is_interrupted:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, own)
