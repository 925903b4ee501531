"""The order of a transfer ladder: from few events to many, and no further where more no longer pays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from pfscale.studies.config import Draw, SweepConfig
from pfscale.studies.rows import FINISHED, Row

SIZE, MODE = "data.num_events", "mode"
_log = logging.getLogger(__name__)


def climb(sweep: SweepConfig, draws: Sequence[Draw], run: Callable[[list[Draw], str], Sequence[Row]]) -> None:
    """Runs the draws size by size; a way of training whose last step paid less than the spread of its seeds is left out of larger ones.

    Args:
        run: runs draws under a name for them, and gives all rows so far.
    """
    sizes = sorted({size_of(draw) for draw in draws})
    stopped: set[str] = set()
    before = 0
    for size in sizes:
        wanted = [draw for draw in draws if size_of(draw) == size and str(draw.values.get(MODE)) not in stopped]
        if not wanted:
            continue
        rows = run(wanted, f"own-{size}")
        for mode in {str(draw.values.get(MODE)) for draw in wanted}:
            if before and not still_pays(sweep, rows, mode, before, size):
                stopped.add(mode)
                _log.info("%s: %d events are as good as %d; no more of it", mode, before, size)
        before = size


def size_of(draw: Draw) -> int:
    """Training events; 0 of a draw that does not say."""
    return int(draw.values.get(SIZE) or 0)


def still_pays(sweep: SweepConfig, rows: Sequence[Row], mode: str, fewer: int, more: int) -> bool:
    """Whether the metric gained more from `fewer` to `more` events than its seeds, or its own error where there is one seed, spread."""
    found = []
    for size in (fewer, more):
        same = [row for row in rows if row.status == FINISHED and row[MODE] == mode and row[SIZE] == size and sweep.metric in row.metrics]
        if not same:
            return True
        values = [row.metrics[sweep.metric] for row in same]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else same[0].metrics.get(f"{sweep.metric}_error", 0.0)
        found.append((float(np.mean(values)), spread))
    (first, _), (second, _) = found
    gain = first - second if sweep.mode == "min" else second - first
    return gain > max(spread for _, spread in found)
