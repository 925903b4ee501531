"""Scaling laws: L = E + sum of C_k x_k^-gamma_k, fitted in logarithms with a Huber loss, from many starts at once.

With x = (parameters, unique events) it is the law of arXiv:2203.15556, in whose log-sum-exp form it is fitted; with one x a power law with
offset (arXiv:2001.08361). All starts, and all replicas of a bootstrap over runs, are solved together: Levenberg-Marquardt steps with Huber
weights (P. J. Huber, Ann. Math. Statist. 35 (1964) 73), vectorised, so that a thousand replicas take a second. Pure numpy.

Shape letters: R replicas or starts, n runs, K powers, P = 2 K + 1 parameters (ln E, ln C_k, gamma_k).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
HUBER_DELTA = 1e-3  # of logarithms of the loss
NUM_REPLICAS = 1000
_MAX_EXPONENT = 3.0
_MAX_ITERATIONS = 500
_STARTING_EXPONENTS = (0.05, 0.2, 0.5, 1.0)
_STARTING_OFFSETS = (0.05, 0.5, 0.8, 0.97)  # of the smallest loss
_NO_OFFSET = 0.05  # of the smallest loss
_FAR_BELOW = 10.0  # the smallest loss, in logarithms: a term of that size is none
_AGREE = 1e-3  # relative difference in the objective of starts that found the same minimum


@dataclass(frozen=True)
class Law:
    """E + sum of C_k x_k^-gamma_k.

    Attributes:
        offset: E, what is left with everything infinite.
        factors, exponents: C_k and gamma_k.
    """

    offset: float
    factors: tuple[float, ...]
    exponents: tuple[float, ...]

    def __call__(self, *x: ArrayLike) -> Floats:
        """The loss at the given sizes, one array per power."""
        terms = [c * np.asarray(values, np.float64) ** -g for c, g, values in zip(self.factors, self.exponents, x, strict=True)]
        total: Floats = self.offset + np.sum(terms, axis=0)
        return total


@dataclass(frozen=True)
class Interval:
    """A number with the percentiles of its replicas."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class LawFit:
    """A fitted law.

    Attributes:
        objective: sum of Huber losses.
        agreeing: share of the starts that came to this minimum; few mean that it may not be the lowest.
        residuals: (n,) ln L - ln of the law.
        theta: (P,) parameters as they are fitted.
    """

    law: Law
    objective: float
    agreeing: float
    residuals: Floats
    theta: Floats


def fit_law(x: Sequence[ArrayLike], loss: ArrayLike, *, delta: float = HUBER_DELTA, weights: ArrayLike | None = None) -> LawFit:
    """The law of lowest Huber loss, from many starts.

    Args:
        x: per power, the size of each run, (n,).
        loss: (n,), positive.
        weights: (n,) of the runs; None: all alike.

    Raises:
        ValueError: a size or loss that is not positive and finite, or fewer runs than parameters.
    """
    problem = _Problem.of(x, loss)
    starts = problem.starts()
    each = np.ones(problem.num_runs) if weights is None else np.asarray(weights, np.float64)
    thetas, objectives = problem.solve(starts, np.broadcast_to(each, (len(starts), problem.num_runs)), delta)
    best = int(np.argmin(objectives))
    agreeing = float(np.mean(objectives <= objectives[best] * (1 + _AGREE) + 1e-15))
    return LawFit(problem.law(thetas[best]), float(objectives[best]), agreeing, problem.residuals(thetas[best][None])[0], thetas[best])


def bootstrap_laws(
    x: Sequence[ArrayLike], loss: ArrayLike, fit: LawFit, *, num_replicas: int = NUM_REPLICAS, seed: int = 1, delta: float = HUBER_DELTA
) -> list[Law]:
    """The laws of runs drawn with replacement, each fitted from the law of all runs.

    Where that has no offset to speak of, also from one with half the smallest loss: in logarithms nothing leads back from zero.
    """
    problem = _Problem.of(x, loss)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(problem.num_runs, np.full(problem.num_runs, 1 / problem.num_runs), size=num_replicas).astype(np.float64)
    thetas, objectives = problem.solve(np.tile(fit.theta, (num_replicas, 1)), counts, delta)
    smallest = float(problem.ln_loss_n.min())
    if fit.theta[0] < smallest + np.log(_NO_OFFSET):
        start = fit.theta.copy()
        start[0] = smallest + np.log(0.5)
        others, lower = problem.solve(np.tile(start, (num_replicas, 1)), counts, delta)
        thetas = np.where((lower < objectives)[:, None], others, thetas)
    return [problem.law(theta) for theta in thetas]


def interval(value: float, replicas: ArrayLike, *, level: float = 0.9) -> Interval:
    """Percentiles of the replicas that are finite."""
    finite = np.asarray(replicas, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


@dataclass(frozen=True)
class _Problem:
    """Logarithms of sizes, less their means so that parameters are told apart, and of losses."""

    ln_x_Kn: Floats
    shift_K: Floats
    ln_loss_n: Floats

    @classmethod
    def of(cls, x: Sequence[ArrayLike], loss: ArrayLike) -> _Problem:
        sizes, losses = np.stack([np.asarray(values, np.float64) for values in x]), np.asarray(loss, np.float64)
        if not (np.isfinite(sizes).all() and (sizes > 0).all() and np.isfinite(losses).all() and (losses > 0).all()):
            raise ValueError("sizes and losses must be positive and finite")
        if losses.shape != (sizes.shape[1],):
            raise ValueError(f"{sizes.shape[1]} sizes for {len(losses)} losses")
        if len(losses) < 2 * len(sizes) + 1:
            raise ValueError(f"{len(losses)} runs cannot tell {2 * len(sizes) + 1} parameters")
        logs = np.log(sizes)
        shift = logs.mean(1)
        return cls(logs - shift[:, None], shift, np.log(losses))

    @property
    def num_runs(self) -> int:
        return len(self.ln_loss_n)

    def starts(self) -> Floats:
        """(R, P): offsets and exponents on a grid, factors that share what is above the offset."""
        smallest, typical = float(np.exp(self.ln_loss_n.min())), float(np.exp(np.median(self.ln_loss_n)))
        num = len(self.ln_x_Kn)
        found = []
        for share in _STARTING_OFFSETS:
            offset = share * smallest
            factor = np.log(max(typical - offset, 1e-3 * typical) / num)
            for exponents in itertools.product(_STARTING_EXPONENTS, repeat=num):
                found.append([np.log(offset), *[factor] * num, *exponents])
        return np.array(found)

    def law(self, theta_P: Floats) -> Law:
        """Of the parameters, with the means put back."""
        num = len(self.ln_x_Kn)
        exponents = theta_P[1 + num :]
        factors = np.exp(theta_P[1 : 1 + num] + exponents * self.shift_K)
        return Law(float(np.exp(theta_P[0])), tuple(map(float, factors)), tuple(map(float, exponents)))

    def terms(self, theta_RP: Floats) -> Floats:
        """(R, K + 1, n) logarithms of offset and powers."""
        num = len(self.ln_x_Kn)
        powers = theta_RP[:, 1 : 1 + num, None] - theta_RP[:, 1 + num :, None] * self.ln_x_Kn
        offset = np.broadcast_to(theta_RP[:, :1, None], (len(theta_RP), 1, self.num_runs))
        return np.concatenate([offset, powers], 1)

    def residuals(self, theta_RP: Floats) -> Floats:
        """(R, n)"""
        return self.ln_loss_n - np.logaddexp.reduce(self.terms(theta_RP), axis=1)

    def solve(self, theta_RP: Floats, weights_Rn: Floats, delta: float) -> tuple[Floats, Floats]:
        """(parameters, objectives) of the minima that Levenberg-Marquardt steps lead to."""
        theta, damping = theta_RP.copy(), np.full(len(theta_RP), 1e-2)
        objective = self._objective(theta, weights_Rn, delta)
        is_open = np.ones(len(theta), bool)
        lowest = float(self.ln_loss_n.min()) - _FAR_BELOW
        num = len(self.ln_x_Kn)
        for _ in range(_MAX_ITERATIONS):
            rows = np.flatnonzero(is_open)
            if not len(rows):
                break
            step = self._step(theta[rows], weights_Rn[rows], damping[rows], delta)
            tried = theta[rows] + step
            tried[:, 1 + num :] = np.clip(tried[:, 1 + num :], 0.0, _MAX_EXPONENT)
            tried[:, : 1 + num] = np.clip(tried[:, : 1 + num], lowest, 30.0)
            found = self._objective(tried, weights_Rn[rows], delta)
            better = found < objective[rows]
            gain = objective[rows] - found
            is_flat = better & (gain < 1e-9 * objective[rows] + 1e-18)
            theta[rows[better]], objective[rows[better]] = tried[better], found[better]
            damping[rows] = np.where(better, np.maximum(damping[rows] / 4, 1e-12), damping[rows] * 5)
            is_open[rows[is_flat | (damping[rows] > 1e8)]] = False
        return theta, objective

    def _step(self, theta_RP: Floats, weights_Rn: Floats, damping_R: Floats, delta: float) -> Floats:
        logs = self.terms(theta_RP)
        total = np.logaddexp.reduce(logs, axis=1)
        residual = self.ln_loss_n - total
        share = np.exp(logs - total[:, None])  # (R, K + 1, n)
        jacobian = np.concatenate([share, -share[:, 1:] * self.ln_x_Kn], 1)  # (R, P, n)
        size = np.abs(residual)
        weight = weights_Rn * np.where(size <= delta, 1.0, delta / np.maximum(size, 1e-300))
        hessian = np.einsum("rpn,rn,rqn->rpq", jacobian, weight, jacobian)
        gradient = np.einsum("rpn,rn,rn->rp", jacobian, weight, residual)
        diagonal = np.einsum("rpp->rp", hessian)
        damped = hessian + np.eye(hessian.shape[1]) * (damping_R[:, None] * np.maximum(diagonal, 1e-12) + 1e-14)[:, None, :]
        step: Floats = np.linalg.solve(damped, gradient[..., None])[..., 0]
        return step

    def _objective(self, theta_RP: Floats, weights_Rn: Floats, delta: float) -> Floats:
        size = np.abs(self.residuals(theta_RP))
        values = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
        total: Floats = (weights_Rn * values).sum(1)
        return total
