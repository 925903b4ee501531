"""Fits of scaling laws: known laws found again, the minimum that another method finds, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from pfscale.studies.laws import HUBER_DELTA, Law, bootstrap_laws, fit_law, interval

TRUE = Law(1.7, (400.0, 410.0), (0.34, 0.28))
GRID = [a.ravel() for a in np.meshgrid(np.geomspace(1e5, 1e8, 5), np.geomspace(1e6, 1e10, 6), indexing="ij")]


def noisy(seed: int, *, sigma: float = 0.005) -> np.ndarray:
    """Losses of the true law with log-normal noise."""
    return TRUE(*GRID) * np.exp(np.random.default_rng(seed).normal(0, sigma, len(GRID[0])))


def test_an_exact_law_is_found_again() -> None:
    """Catches exponents and factors of the wrong variable, and means of logarithms that are not put back."""
    found = fit_law(GRID, TRUE(*GRID))
    assert found.law.offset == pytest.approx(TRUE.offset, rel=1e-4)
    assert found.law.exponents == pytest.approx(TRUE.exponents, rel=1e-3)
    assert found.law.factors == pytest.approx(TRUE.factors, rel=1e-2)
    assert found.agreeing > 0.5
    one = fit_law([GRID[1][:6]], 0.5 + 3 * GRID[1][:6] ** -0.2)
    assert (one.law.offset, *one.law.factors, *one.law.exponents) == pytest.approx((0.5, 3, 0.2), rel=1e-2)


def test_it_is_the_minimum_that_another_method_finds() -> None:
    """Catches steps that stop early, and a loss that is not Huber's: L-BFGS on the same objective must not come lower."""
    loss = noisy(3)
    loss[4] *= 1.1  # an outlier that squares would follow
    found = fit_law(GRID, loss)
    logs = np.log(GRID)

    def objective(theta: np.ndarray) -> float:
        terms = np.stack([np.full(logs.shape[1], theta[0]), theta[1] - theta[3] * logs[0], theta[2] - theta[4] * logs[1]])
        size = np.abs(np.log(loss) - np.logaddexp.reduce(terms))
        return 1e4 * float(np.where(size <= HUBER_DELTA, 0.5 * size**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA)).sum())

    starts = [[np.log(e), np.log(a), np.log(b), g, g] for e in (0.5, 1.5) for a, b in ((10, 10), (1000, 1000)) for g in (0.2, 0.5)]
    other = min((minimize(objective, start, method="L-BFGS-B", options={"maxiter": 5000}) for start in starts), key=lambda r: r.fun)
    assert found.objective * 1e4 <= other.fun * 1.001
    assert found.law.offset == pytest.approx(TRUE.offset, rel=0.05)


def test_what_cannot_be_fitted_is_refused() -> None:
    """Catches a law through fewer points than it has parameters, and losses that have no logarithm."""
    with pytest.raises(ValueError, match="cannot tell 5"):
        fit_law([GRID[0][:4], GRID[1][:4]], np.ones(4))
    with pytest.raises(ValueError, match="positive"):
        fit_law([GRID[0]], -np.ones(len(GRID[0])))


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """Catches replicas that spread too little or too much: the 90% interval must hold the truth in 80 to 97% of 200 data sets."""
    covered = np.zeros(3)
    for seed in range(200):
        loss = noisy(seed)
        found = fit_law(GRID, loss)
        replicas = bootstrap_laws(GRID, loss, found, num_replicas=300, seed=seed)
        for i, truth in enumerate((TRUE.offset, *TRUE.exponents)):
            values = [(law.offset, *law.exponents)[i] for law in (found.law, *replicas)]
            edges = interval(values[0], values[1:])
            covered[i] += edges.low <= truth <= edges.high
    print("coverage of E, alpha, beta:", covered / 200)
    assert ((covered / 200 >= 0.8) & (covered / 200 <= 0.97)).all()
