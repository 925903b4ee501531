"""What a model needs of its inputs beyond their shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfscale.errors import InputFileError
from pfscale.shards.ragged import CLUSTER_FEATURES, NUM_MOMENTUM_FEATURES, TRACK_FEATURES


def require_momenta(features: NDArray[np.float32], event: NDArray, *, prefix: str = "event ") -> None:
    """Checks that the momentum of every element is finite; other features that are not count as missing.

    Args:
        features: (n, F), raw units.
        event: (n,) what the event of each element is called, after `prefix`.

    Raises:
        InputFileError: one is not; names the first.
    """
    is_finite = np.isfinite(features[:, :NUM_MOMENTUM_FEATURES])
    if is_finite.all():
        return
    bad = np.flatnonzero(~is_finite.all(1))
    column = int(np.flatnonzero(~is_finite[bad[0]])[0])
    element = int(bad[0] - np.flatnonzero(event == event[bad[0]])[0])
    names = " or ".join(dict.fromkeys((TRACK_FEATURES[column], CLUSTER_FEATURES[column])))
    value = features[bad[0], column]
    raise InputFileError(
        f"{len(bad)} of {len(features)} elements have no finite momentum; the first: {names} of element {element} is {value}",
        where=f"{prefix}{event[bad[0]]}",
        hint="momentum and energy of a track or cluster must be known; other features may be NaN: missing",
    )
