"""Input elements: the features of tracks and clusters, one flat array per field of the shard schema (physics-spec 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep.chunk import EventChunk
from pfscale.edm4hep.detectors import Subdetector

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

AT_INTERACTION_POINT, AT_FIRST_HIT, AT_CALORIMETER = 1, 2, 4  # EDM4hep TrackState.location
PT_PER_RADIUS = 3e-4  # GeV per (tesla mm): the convention of the field's data sets, 0.07% above c
MAX_ETA = 20.0  # stands for the beam axis, so that a momentum exactly along it stays finite
MAY_BE_MISSING = ("dedx", "dedx_error", "radius_of_innermost_hit", "time")  # NaN in the shard; all else must be finite


def track_features(chunk: EventChunk) -> dict[str, NDArray]:
    """Fields of the `track` column, (num_tracks,) each; `cov` (num_tracks, 15). Bad events are named in `chunk.problems`."""
    tracks, states, event = chunk.tracks, chunk.states, chunk.tracks.event
    state = state_at(chunk, AT_INTERACTION_POINT, or_only=True)
    chunk.problems.add(event[state < 0], "a track has no state at the interaction point")
    at = {name: take(values, state) for name, values in states.columns.items()}
    with np.errstate(divide="ignore"):
        pt = PT_PER_RADIUS * np.abs(chunk.detector.magnetic_field / at["omega"])
    dedx, dedx_error = tracks["dedx"].copy(), tracks["dedx_error"].copy()
    has_track = chunk.dqdx_track >= 0
    for values, name in ((dedx, "value"), (dedx_error, "error")):
        if len(chunk.dqdx_track):
            values[chunk.dqdx_track[has_track]] = chunk.dqdx[name][has_track]
    not_measured = (dedx == 0) & (dedx_error == 0)  # what CLD's reconstruction writes where it has none
    dedx[not_measured] = dedx_error[not_measured] = np.nan
    features = {
        "pt": pt,
        "eta": np.arcsinh(at["tanLambda"]),
        "sin_phi": np.sin(at["phi"]),
        "cos_phi": np.cos(at["phi"]),
        "p": pt * np.hypot(1.0, at["tanLambda"]),
        "chi2": tracks["chi2"],
        "ndf": tracks["ndf"],
        "dedx": dedx,
        "dedx_error": dedx_error,
        "radius_of_innermost_hit": _innermost_radius(chunk),
        "tan_lambda": at["tanLambda"],
        "d0": at["D0"],
        "omega": at["omega"],
        "z0": at["Z0"],
        "time": at["time"],
        "cov": at["covMatrix"],
        "ref_x": at["referencePoint_x"],
        "ref_y": at["referencePoint_y"],
        "ref_z": at["referencePoint_z"],
    }
    _require_finite(chunk, "track", features, event)
    return features


def cluster_features(chunk: EventChunk) -> dict[str, NDArray]:
    """Fields of the `cluster` column, (num_clusters,) each. Bad events are named in `chunk.problems`."""
    clusters, cluster, hit = chunk.clusters, chunk.cluster_of_member, chunk.hit_of_member
    num = len(clusters)
    x, y, z = (clusters[f"position_{axis}"] for axis in "xyz")
    radius = np.hypot(x, y)
    eta = pseudorapidity(radius, z)
    energy = chunk.hits["energy"][hit]
    sums = GroupSums(np.bincount(cluster, minlength=num))
    subdetector = chunk.hit_subdetector[hit]
    in_parts = np.stack([sums(np.where(subdetector == part, energy, 0.0)) for part in Subdetector], axis=1)
    whole = (chunk.cluster_subdetector >= 0) & (in_parts.sum(axis=1) == 0)
    in_parts[whole, chunk.cluster_subdetector[whole]] = clusters["energy"][whole]
    by_subdetector = {f"energy_{part.name.lower()}": in_parts[:, part] for part in Subdetector}
    sigmas = {
        f"sigma_{axis}": _weighted_deviation(sums, chunk.hits[f"position_{axis}"][hit], energy, clusters[f"position_{axis}"])
        for axis in "xyz"
    }
    features = {
        "et": clusters["energy"] / np.cosh(eta),
        "eta": eta,
        "sin_phi": np.divide(y, radius, out=np.zeros(num), where=radius > 0),
        "cos_phi": np.divide(x, radius, out=np.ones(num), where=radius > 0),
        "energy": clusters["energy"],
        "position_x": x,
        "position_y": y,
        "position_z": z,
        "itheta": clusters["iTheta"],
        **by_subdetector,
        "num_hits": sums.counts,
        **sigmas,
    }
    _require_finite(chunk, "cluster", features, clusters.event)
    return features


def pseudorapidity(pt: Floats, pz: Floats) -> Floats:
    """eta, within +-MAX_ETA; 0 for a null vector."""
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.arcsinh(np.where((pt == 0) & (pz == 0), 0.0, pz / pt))
    return np.clip(eta, -MAX_ETA, MAX_ETA)


def state_at(chunk: EventChunk, location: int, *, or_only: bool) -> Indices:
    """Row of each track's first state at `location`; with `or_only` its only state, where there is one; -1: none."""
    tracks, states = chunk.tracks, chunk.states
    begin, end = tracks["trackStates_begin"], tracks["trackStates_end"]
    in_event = np.diff(states.offsets)[tracks.event]
    is_valid = (begin >= 0) & (begin <= end) & (end <= in_event)
    chunk.problems.add(tracks.event[~is_valid], "the states of a track run past their list")
    count = np.where(is_valid, end - begin, 0)
    first = states.offsets[tracks.event] + begin
    track = np.repeat(np.arange(len(tracks)), count)
    row = first[track] + np.arange(len(track)) - np.repeat(np.cumsum(count) - count, count)
    at_location = states["location"][row] == location
    found = np.full(len(tracks), -1, np.int64)
    if or_only:
        found[count == 1] = first[count == 1]
    matches, position = np.unique(track[at_location], return_index=True)
    found[matches] = row[at_location][position]
    return found


def take(values: NDArray, rows: Indices) -> NDArray:
    """values[rows], NaN where a row is -1."""
    taken = np.full((len(rows), *values.shape[1:]), np.nan)
    taken[rows >= 0] = values[rows[rows >= 0]]
    return taken


def _innermost_radius(chunk: EventChunk) -> Floats:
    """Transverse radius of the state at the first hit, else what the legacy layout stores on the track, else NaN."""
    state = state_at(chunk, AT_FIRST_HIT, or_only=False)
    radius = np.hypot(take(chunk.states["referencePoint_x"], state), take(chunk.states["referencePoint_y"], state))
    return np.where(state >= 0, radius, chunk.tracks["radius_of_innermost_hit"])


def _weighted_deviation(sums: GroupSums, values: Floats, weight: Floats, origin: Floats) -> Floats:
    """Weighted standard deviation of `values` in every group; 0 where a group has no weight.

    Moments are taken about `origin` (one per group, close to the group's mean), which keeps their difference exact in one pass.
    """
    distance = values - sums.spread(origin)
    weighted = weight * distance
    total = sums(weight)
    has_weight = total > 0
    mean, square = (np.divide(sums(terms), total, out=np.zeros(len(total)), where=has_weight) for terms in (weighted, weighted * distance))
    return np.sqrt(np.maximum(square - mean**2, 0.0))


@dataclass(frozen=True)
class GroupSums:
    """Sums over consecutive groups of rows: counts[i] rows belong to group i, in order. Ten times as fast as np.bincount."""

    counts: Indices

    def __call__(self, values: Floats) -> Floats:
        """The sum of each group's values; 0 of an empty group."""
        is_filled = self.counts > 0
        result = np.zeros(len(self.counts))
        if is_filled.any():
            result[is_filled] = np.add.reduceat(values, (np.cumsum(self.counts) - self.counts)[is_filled])
        return result

    def spread(self, values: Floats) -> Floats:
        """Each row's group's value."""
        return np.repeat(values, self.counts)


def _require_finite(chunk: EventChunk, what: str, features: dict[str, NDArray], event: Indices) -> None:
    for name, values in features.items():
        if name not in MAY_BE_MISSING:
            finite = np.isfinite(values.astype(np.float32))
            bad_rows = np.unique(np.nonzero(~finite)[0])
            chunk.problems.add(event[bad_rows], f"{what} '{name}' is not finite")
