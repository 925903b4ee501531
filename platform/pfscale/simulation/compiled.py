"""Functions compiled by numba, whose results are kept on disk until any of the simulation's compiled files changes.

numba by itself looks only at the file of a function, not at those of the functions that it calls: after a change of one file, others would
go on with the old code, and the same seed would give other events on one machine than on the next.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import config, njit

MARK = "@compiled"


@functools.cache
def _cache_folder() -> str:
    """Where this version of the code is kept: below NUMBA_CACHE_DIR, else beside the code."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.glob("*.py")):
        source = path.read_bytes()
        if MARK.encode() in source:
            digest.update(source)
    return str(Path(config.CACHE_DIR or here / "__pycache__") / f"numba_{digest.hexdigest()[:16]}")


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """The function compiled when it is first called, or found on disk; also as `@compiled(option=value)` with options of numba's njit."""
    if function is None:
        return functools.partial(compiled, **options)
    before = config.CACHE_DIR
    config.CACHE_DIR = _cache_folder()  # numba looks at it while it decorates; other users of numba keep theirs
    try:
        return njit(cache=True, **options)(function)
    finally:
        config.CACHE_DIR = before


@compiled
def longer(values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """A copy of a one-dimensional array with room for `length` values: what columns that grow are made of."""
    copy = np.empty(length, values.dtype)
    copy[: len(values)] = values
    return copy
