"""Memory of a training process: its peak, and giving back what the C library keeps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_GROWTH = 2.0  # of resident memory since the last time, from which on giving back is worth its page faults


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far: allocated on the accelerator, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Not getrusage: its maximum is inherited from the parent.
    return _from_status("VmHWM")


def resident_memory_mb() -> float:
    """Resident memory of this process now; NaN where the system does not say."""
    return _from_status("VmRSS")


class FreedMemory:
    """Gives freed memory back to the system where the heap has grown.

    Batches differ in shape: what one has freed seldom fits what the next asks for, and glibc's heap grows with the steps, to several times
    of what is in use. Where the C library cannot give back, nothing is done.
    """

    def __init__(self) -> None:
        self._kept_mb = 0.0
        self._trim: Callable[[int], object] | None = None
        with suppress(AttributeError, OSError):  # macOS, musl
            self._trim = ctypes.CDLL(None).malloc_trim

    def give_back(self) -> None:
        """Does it if resident memory has doubled since it was last done; takes about 0.1 s then, microseconds otherwise."""
        if self._trim is not None and resident_memory_mb() > _GROWTH * self._kept_mb:
            self._trim(0)
            self._kept_mb = resident_memory_mb()


def _from_status(key: str) -> float:
    found = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:")] if _STATUS.is_file() else []
    return int(found[0].split()[1]) * 1024 / 1e6 if found else float("nan")
