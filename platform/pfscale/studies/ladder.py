"""The order of a transfer ladder: from few events to many, and no further where more no longer pays."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pfscale.studies.config import Draw, SweepConfig
from pfscale.studies.rows import Row, settings_by_mean

SIZE, MODE = "data.num_events", "mode"
_log = logging.getLogger(__name__)


def climb(sweep: SweepConfig, draws: Sequence[Draw], run: Callable[[list[Draw], str], Sequence[Row]]) -> None:
    """Runs the draws size by size; a way of training whose last step paid less than the spread of its seeds is left out of larger ones.

    Args:
        run: runs draws under a name for them, and gives all rows so far.
    """
    sizes = sorted({size_of(draw.values) for draw in draws})
    stopped: set[str] = set()
    before: dict[str, float] = {}
    for size in sizes:
        wanted = [draw for draw in draws if size_of(draw.values) == size and str(draw.values.get(MODE)) not in stopped]
        if not wanted:
            continue
        rows = run(wanted, f"own-{size}")
        for mode in {str(draw.values.get(MODE)) for draw in wanted}:
            if mode in before and not still_pays(sweep, rows, mode, before[mode], size):
                stopped.add(mode)
                _log.info("%s: %s events are as good as %s; no more of it", mode, before[mode], size)
            before[mode] = size


def size_of(settings: Mapping[str, Any]) -> float:
    """Training events of a draw; infinity: all; 0 where it does not say."""
    value = settings.get(SIZE, 0)
    return math.inf if value is None else float(value)


def events_of(row: Row) -> int:
    """Training events of a finished trial; 0 where nothing was trained."""
    return int(row.metrics.get("num_train_events", row[SIZE] or 0)) if row.elements else 0


def still_pays(sweep: SweepConfig, rows: Sequence[Row], mode: str, fewer: float, more: float) -> bool:
    """Whether the metric gained more from `fewer` to `more` events than its seeds, or its own error where there is one seed, spread.

    Of each size, its best settings.
    """
    found = []
    for size in (fewer, more):
        same = [row for row in rows if row[MODE] == mode and size_of(row.settings) == size and sweep.metric in row.metrics]
        best = settings_by_mean(same, sweep)
        if not best:
            return True
        values = [row.metrics[sweep.metric] for row in best[0]]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else best[0][0].metrics.get(f"{sweep.metric}_error", 0.0)
        found.append((float(np.mean(values)), spread))
    (first, _), (second, _) = found
    gain = first - second if sweep.mode == "min" else second - first
    return gain > max(spread for _, spread in found)
