"""Fractions of objects that pass, in total and in bins of a variable, with bootstrap errors over events (at 0 and 1: Wilson's)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfscale.physics.bootstrap import Estimate, EventBootstrap, ratio
from pfscale.physics.ragged import Indices


@dataclass(frozen=True)
class BinnedRate:
    """A fraction in bins [edges[i], edges[i + 1]) of `variable`, and the number of objects that it is a fraction of."""

    variable: str
    unit: str
    edges: tuple[float, ...]
    bins: tuple[Estimate, ...]
    counts: tuple[int, ...]


def rate(event: Indices, passing: NDArray[np.bool_], total: NDArray[np.bool_], bootstrap: EventBootstrap) -> Estimate:
    """The fraction of the objects in `total` that are also `passing`; all of shape (num_objects,). NaN without objects."""
    return _rates(event, passing, total, np.zeros(len(total)), (-1.0, 1.0), bootstrap)[0][0]


def rate_in_bins(
    event: Indices,
    passing: NDArray[np.bool_],
    total: NDArray[np.bool_],
    values: ArrayLike,
    bootstrap: EventBootstrap,
    *,
    edges: Sequence[float],
    variable: str,
    unit: str,
) -> BinnedRate:
    """`rate` in each bin of `values`; objects outside all bins are left out."""
    bins, counts = _rates(event, passing, total, values, edges, bootstrap)
    return BinnedRate(variable, unit, tuple(edges), tuple(bins), tuple(int(count) for count in counts))


def _rates(
    event: Indices,
    passing: NDArray[np.bool_],
    total: NDArray[np.bool_],
    values: ArrayLike,
    edges: Sequence[float],
    bootstrap: EventBootstrap,
) -> tuple[list[Estimate], NDArray[np.int64]]:
    """passing / total in each bin, counted per event first, so that the bootstrap is one matrix product; and the totals."""
    num_bins = len(edges) - 1
    rows = np.flatnonzero(total)
    which = np.digitize(np.asarray(values, np.float64)[rows], edges) - 1
    inside = (which >= 0) & (which < num_bins)
    rows, which = rows[inside], which[inside]
    cell = np.asarray(event, np.int64)[rows] * num_bins + which
    shape = (bootstrap.num_events, num_bins)
    size = shape[0] * shape[1]
    below = np.bincount(cell, minlength=size).reshape(shape)
    above = np.bincount(cell, weights=passing[rows], minlength=size).reshape(shape)
    counts = below.sum(axis=0)
    return [_at_the_edge(found, int(count)) for found, count in zip(ratio(above, below, bootstrap), counts, strict=True)], counts


def _at_the_edge(found: Estimate, count: int) -> Estimate:
    """A fraction of 0 or 1 is the same in every replica, which is not an error of zero: the far end of its Wilson interval stands in.

    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209: for one standard deviation 1 / (count + 1).
    """
    return Estimate(found.value, 1 / (count + 1)) if found.value in (0.0, 1.0) else found
