"""One-to-one matching of reconstructed to generator-level jets by distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfscale.physics.kinematics import Floats, deltaR
from pfscale.physics.ragged import Indices, pairs_within_events

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
    are decided by row order (reconstructed jets first). All events advance together: each round takes every pair that is the closest for
    both its jets, which is the greedy order because such a pair cannot lose either jet to a closer one.
    """
    reco_event_N, gen_event_M = np.asarray(reco_event, np.int64), np.asarray(gen_event, np.int64)
    reco, gen = pairs_within_events(reco_event_N, gen_event_M, num_events=num_events)
    distance = deltaR(np.asarray(reco_eta)[reco], np.asarray(reco_phi)[reco], np.asarray(gen_eta)[gen], np.asarray(gen_phi)[gen])
    near = np.flatnonzero(distance < max_delta_r)
    near = near[np.argsort(distance[near], kind="stable")]
    reco, gen, distance = reco[near], gen[near], distance[near]

    taken: list[NDArray[np.bool_]] = []
    rows = np.arange(len(reco))  # pairs still open, closest first
    while len(rows):
        is_closest = (_first_of(reco, rows, len(reco_event_N)) == rows) & (_first_of(gen, rows, len(gen_event_M)) == rows)
        chosen = rows[is_closest]
        taken.append(chosen)
        reco_used, gen_used = np.zeros(len(reco_event_N), np.bool_), np.zeros(len(gen_event_M), np.bool_)
        reco_used[reco[chosen]], gen_used[gen[chosen]] = True, True
        rows = rows[~reco_used[reco[rows]] & ~gen_used[gen[rows]]]
    pairs = np.concatenate(taken) if taken else rows
    pairs = pairs[np.argsort(gen[pairs])]
    return Matches(reco[pairs], gen[pairs], distance[pairs])


def _first_of(jet: Indices, rows: Indices, num_jets: int) -> Indices:
    """For each open pair, the first open pair of the same jet."""
    first = np.empty(num_jets, np.int64)
    first[jet[rows[::-1]]] = rows[::-1]  # the last assignment, the first row, stays
    return first[jet[rows]]
