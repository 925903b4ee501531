"""The transfer law: pre-training is worth a number of events of the target that depends on how many there are (arXiv:2102.01293).

From scratch L = E + B / D^beta; fine-tuned the same with D + k D^a in place of D, so that the data multiplier is the curve 1 + k D^(a - 1).
Both arms are fitted together. Pure numpy and scipy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from pfscale.studies.laws import HUBER_DELTA, Interval, interval

Floats = NDArray[np.float64]
NUM_REPLICAS = 200
_BOUNDS = ([-20.0, -20.0, 0.0, -20.0, -1.0], [20.0, 40.0, 3.0, 40.0, 1.5])  # ln E, ln B, beta, ln k, a


@dataclass(frozen=True)
class TransferLaw:
    """E, B, beta of training from scratch; k, a of what pre-training adds in events.

    Attributes:
        theta: (5,) ln E, ln B, beta, ln k, a.
        replicas: (R, 5) of the bootstrap over runs.
        behind: fine-tuning ended worse than from scratch at the largest size that both have.
    """

    theta: Floats
    replicas: Floats
    behind: bool

    def multiplier(self, events: float) -> Interval:
        """How many times fewer events fine-tuning needs than from scratch, by the law, at so many events."""
        return interval(float(_multiplier(self.theta, events)), [_multiplier(theta, events) for theta in self.replicas])

    def curve(self, events: Floats, *, is_tuned: bool) -> Floats:
        """The loss of one arm."""
        return np.exp(_log_law(self.theta, np.log(events), np.full(len(events), is_tuned)))


def fit_transfer(
    scratch: tuple[ArrayLike, ArrayLike], tuned: tuple[ArrayLike, ArrayLike], *, num_replicas: int = NUM_REPLICAS, seed: int = 1
) -> TransferLaw:
    """The law of both arms, each (events, losses) of all of its runs.

    Raises:
        ValueError: fewer than three sizes in an arm.
    """
    arms = [tuple(np.asarray(values, np.float64) for values in arm) for arm in (scratch, tuned)]
    if any(len(np.unique(events)) < 3 for events, _ in arms):
        raise ValueError("a transfer law needs three sizes in each arm")
    ln_events = np.concatenate([np.log(events) for events, _ in arms])
    ln_loss = np.concatenate([np.log(losses) for _, losses in arms])
    is_tuned = np.concatenate([np.full(len(events), bool(number)) for number, (events, _) in enumerate(arms)])
    theta = min((_fit(start, ln_events, ln_loss, is_tuned) for start in _starts(ln_loss)), key=lambda found: found[1])[0]
    rng = np.random.default_rng(seed)
    replicas = []
    for _ in range(num_replicas):
        rows = np.concatenate([rng.choice(np.flatnonzero(is_tuned == arm), int((is_tuned == arm).sum())) for arm in (False, True)])
        replicas.append(_fit(theta, ln_events[rows], ln_loss[rows], is_tuned[rows])[0])
    common = np.intersect1d(arms[0][0], arms[1][0])
    behind = False
    if len(common):
        ends = [float(losses[events == common.max()].mean()) for events, losses in arms]
        behind = ends[1] > ends[0]
    return TransferLaw(theta, np.array(replicas), behind)


def _log_law(theta: Floats, ln_events: Floats, is_tuned: NDArray[np.bool_]) -> Floats:
    ln_e, ln_b, beta, ln_k, a = theta
    effective = np.where(is_tuned, np.logaddexp(ln_events, ln_k + a * ln_events), ln_events)
    total: Floats = np.logaddexp(ln_e, ln_b - beta * effective)
    return total


def _multiplier(theta: Floats, events: float) -> float:
    return float(1 + np.exp(theta[3] + (theta[4] - 1) * np.log(events)))


def _starts(ln_loss: Floats) -> list[Floats]:
    smallest = ln_loss.min()
    return [np.array([smallest + np.log(share), 1.0, b, k, 0.3]) for share in (0.3, 0.9) for b in (0.2, 0.5) for k in (3.0, 7.0)]


def _fit(start: Floats, ln_events: Floats, ln_loss: Floats, is_tuned: NDArray[np.bool_]) -> tuple[Floats, float]:
    found = least_squares(
        lambda theta: _log_law(theta, ln_events, is_tuned) - ln_loss,
        start,
        loss="huber",
        f_scale=HUBER_DELTA,
        x_scale="jac",
        bounds=_BOUNDS,
        max_nfev=300,
    )
    return found.x, float(found.cost)
