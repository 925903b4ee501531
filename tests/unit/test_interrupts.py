"""Ctrl-C between batches of events."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from pfscale.simulation.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def handler_of_python() -> Iterator[None]:
    """Python's own handler, which is not there where a shell runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_twice() -> None:
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one waits, too")


def test_an_interrupt_waits_for_the_check_and_a_second_does_not() -> None:
    """Catches: an exception inside compiled code (a segmentation fault), one that is forgotten, a handler that stays."""
    before = signal.getsignal(signal.SIGINT)
    with interrupts_held() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_hold_nothing() -> None:
    """Catches: a simulation in a thread that ends because only the main thread may set handlers."""
    seen = []

    def run() -> None:
        with interrupts_held() as check:
            check()
            seen.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
