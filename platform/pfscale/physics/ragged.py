"""Index arithmetic on flat arrays that hold many events one after another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def index_within_event(event: Indices) -> Indices:
    """0, 1, 2, ... within each event, for rows that are grouped by ascending event."""
    starts = np.searchsorted(event, event, side="left")
    return np.arange(len(event)) - starts


def pairs_within_events(event_a: Indices, event_b: Indices, *, num_events: int) -> tuple[Indices, Indices]:
    """Rows (a, b) of all pairs whose event is the same, ordered by a, then b; each side in any order of events."""
    order_b = np.argsort(event_b, kind="stable")
    counts_b = np.bincount(event_b, minlength=num_events)
    first_b = np.concatenate([[0], np.cumsum(counts_b)])
    partners = counts_b[event_a]
    a = np.repeat(np.arange(len(event_a)), partners)
    offset = np.arange(len(a)) - np.repeat(np.cumsum(partners) - partners, partners)
    return a, order_b[first_b[event_a[a]] + offset]
