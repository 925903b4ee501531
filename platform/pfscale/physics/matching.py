"""One-to-one matching of reconstructed to generator-level jets by distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from pfscale.physics.kinematics import Floats
from pfscale.physics.ragged import Indices

MATCH_MAX_DELTA_R = 0.1


@dataclass(frozen=True)
class Matches:
    """Pairs of matched rows, in ascending `gen`: `reco[i]` belongs to `gen[i]`, at distance `delta_r[i]`; each row occurs once at most."""

    reco: Indices
    gen: Indices
    delta_r: Floats

    def __len__(self) -> int:
        return len(self.gen)


def match_jets(
    *,
    num_events: int,
    reco_event: ArrayLike,
    reco_eta: ArrayLike,
    reco_phi: ArrayLike,
    gen_event: ArrayLike,
    gen_eta: ArrayLike,
    gen_phi: ArrayLike,
    max_delta_r: float = MATCH_MAX_DELTA_R,
) -> Matches:
    """The one-to-one matches within `max_delta_r`: globally greedy, the closest pair of an event first, then the closest of what is left.

    Greedy rather than optimal assignment: with R = 0.4 two partners within 0.1 are rare, and no match depends on a far jet. Equal distances
    are decided by row order (reconstructed jets first). Rows may be in any order of events. A direction that is not finite matches nothing.

    Raises:
        ValueError: an event is not below `num_events`.
    """
    reco_order, reco_start = _by_event(reco_event, num_events)
    gen_order, gen_start = _by_event(gen_event, num_events)
    reco_of_gen, square = np.full(gen_start[-1], -1, np.int64), np.empty(gen_start[-1])
    most_pairs = int(np.max(np.diff(reco_start) * np.diff(gen_start), initial=0))
    pair_reco, pair_gen, pair_square = np.empty(most_pairs, np.int64), np.empty(most_pairs, np.int64), np.empty(most_pairs)
    _closest_first(
        reco_start,
        _ordered(reco_eta, reco_order),
        _ordered(reco_phi, reco_order),
        gen_start,
        _ordered(gen_eta, gen_order),
        _ordered(gen_phi, gen_order),
        max_delta_r,
        pair_reco,
        pair_gen,
        pair_square,
        reco_of_gen,
        square,
    )
    gen = np.flatnonzero(reco_of_gen >= 0)
    reco, distance = reco_of_gen[gen], np.sqrt(square[gen])
    if reco_order is not None:
        reco = reco_order[reco]
    if gen_order is not None:
        gen = gen_order[gen]
        ascending = np.argsort(gen)
        reco, gen, distance = reco[ascending], gen[ascending], distance[ascending]
    return Matches(reco, gen, distance)


def _by_event(event: ArrayLike, num_events: int) -> tuple[Indices | None, Indices]:
    """(order of the rows by event, None: they are in it; first row of each event in that order and, last, the number of rows)."""
    event_N = np.asarray(event, np.int64)
    counts = np.bincount(event_N, minlength=num_events)
    if len(counts) > num_events:
        raise ValueError(f"event index {len(counts) - 1} in a batch of {num_events} events")
    is_ordered = bool((event_N[1:] >= event_N[:-1]).all())
    return None if is_ordered else np.argsort(event_N, kind="stable"), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ordered(values: ArrayLike, order: Indices | None) -> Floats:
    values_N = np.ascontiguousarray(values, np.float64)
    return values_N if order is None else values_N[order]


@njit(cache=True)
def _closest_first(
    reco_start: Indices,
    reco_eta: Floats,
    reco_phi: Floats,
    gen_start: Indices,
    gen_eta: Floats,
    gen_phi: Floats,
    max_delta_r: float,
    pair_reco: Indices,
    pair_gen: Indices,
    pair_square: Floats,
    reco_of_gen: Indices,
    square_of_gen: Floats,
) -> None:  # pragma: no cover  (compiled)
    """Fills in the row of the reconstructed jet of each gen jet and their squared distance, for rows in order of events.

    Compiled, because most pairs of an event are far apart in eta alone: nothing is stored for them, where numpy would make arrays of all.
    `pair_*` are room for the pairs of an event.
    """
    num_events, pi, max_square = len(gen_start) - 1, math.pi, max_delta_r * max_delta_r
    for event in range(num_events):
        num_pairs = 0
        for i in range(reco_start[event], reco_start[event + 1]):
            eta, phi = reco_eta[i], reco_phi[i]
            for j in range(gen_start[event], gen_start[event + 1]):
                delta_eta = eta - gen_eta[j]
                if not abs(delta_eta) < max_delta_r:
                    continue
                delta_phi = phi - gen_phi[j]
                if abs(delta_phi) > pi:  # a remainder takes as long as all the rest
                    delta_phi = (delta_phi + pi) % (2.0 * pi) - pi
                square = delta_eta * delta_eta + delta_phi * delta_phi
                if square < max_square:
                    pair_reco[num_pairs], pair_gen[num_pairs], pair_square[num_pairs] = i, j, square
                    num_pairs += 1
        while num_pairs:
            closest = 0  # the first of equal ones
            for pair in range(1, num_pairs):
                if pair_square[pair] < pair_square[closest]:
                    closest = pair
            reco, gen = pair_reco[closest], pair_gen[closest]
            reco_of_gen[gen], square_of_gen[gen] = reco, pair_square[closest]
            num_open = 0
            for pair in range(num_pairs):
                if pair_reco[pair] != reco and pair_gen[pair] != gen:
                    pair_reco[num_open], pair_gen[num_open] = pair_reco[pair], pair_gen[pair]
                    pair_square[num_open] = pair_square[pair]
                    num_open += 1
            num_pairs = num_open
