"""Other laws than the one that is reported, and what each predicts of runs that it has not seen.

A law with more freedom always fits better; leave-one-out says whether it predicts better. Every form is fitted with the same Huber loss on
logarithms (`scipy.optimize.least_squares`). Pure numpy and scipy.

Shape letters: n runs, K sizes per run (parameters, events), P parameters of a form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from pfscale.studies.laws import HUBER_DELTA

Floats = NDArray[np.float64]
_OFFSETS = (0.1, 0.6, 0.95)  # of the smallest loss, where a fit starts
_EXPONENTS = (0.1, 0.4)
_SHARPNESS = 0.3  # of the bend of a broken power law, in ln D (arXiv:2210.14891 leaves it free)
_BOUND = 40.0  # of every parameter: they are logarithms and exponents


@dataclass(frozen=True)
class Form:
    """A law with P parameters.

    Attributes:
        name: as it is printed.
        log_law: (parameters (P,), ln sizes (K, n)) -> ln L (n,).
        starts: where fits begin, (S, P).
    """

    name: str
    log_law: Callable[[Floats, Floats], Floats]
    starts: Floats

    def fit(self, ln_x_Kn: Floats, ln_loss_n: Floats, starts_SP: Floats | None = None, *, most: int = 300) -> tuple[Floats, float]:
        """(parameters, sum of Huber losses) of the best fit."""
        best, cost = self.starts[0], np.inf
        for start in self.starts if starts_SP is None else starts_SP:
            found = least_squares(
                lambda theta: self.log_law(theta, ln_x_Kn) - ln_loss_n,
                start,
                loss="huber",
                f_scale=HUBER_DELTA,
                x_scale="jac",
                bounds=(-_BOUND, _BOUND),
                max_nfev=most,
            )
            if found.cost < cost:
                best, cost = found.x, float(found.cost)
        return best, cost


@dataclass(frozen=True)
class LeftOut:
    """A form, and its errors for runs that were left out of the fit.

    Attributes:
        error: median of |ln predicted - ln measured|; about the relative error of a prediction.
        worst: the largest.
        num_parameters: of the form.
    """

    name: str
    error: float
    worst: float
    num_parameters: int


def alternatives(x: Sequence[ArrayLike], loss: ArrayLike, names: Sequence[str]) -> list[LeftOut]:
    """Forms by their errors for runs left out one by one, best first; forms with as many parameters as runs or more are not tried.

    Args:
        x: per size, (n,).
        names: of the sizes, for the forms' names.
    """
    ln_x, ln_loss = np.log(np.stack([np.asarray(values, np.float64) for values in x])), np.log(np.asarray(loss, np.float64))
    centred = ln_x - ln_x.mean(1, keepdims=True)
    found = []
    for form in _forms(centred, ln_loss, names):
        if form.starts.shape[1] + 1 >= len(ln_loss):
            continue
        errors = left_out(form, centred, ln_loss)
        found.append(LeftOut(form.name, float(np.median(errors)), float(errors.max()), form.starts.shape[1]))
    return sorted(found, key=lambda one: one.error)


def left_out(form: Form, ln_x_Kn: Floats, ln_loss_n: Floats) -> Floats:
    """(n,) |ln predicted - ln measured| of every run, predicted from the others."""
    whole, _ = form.fit(ln_x_Kn, ln_loss_n)
    errors = np.empty(len(ln_loss_n))
    for i in range(len(ln_loss_n)):
        others = np.arange(len(ln_loss_n)) != i
        theta, _ = form.fit(ln_x_Kn[:, others], ln_loss_n[others], whole[None], most=40)
        errors[i] = np.abs(form.log_law(theta, ln_x_Kn[:, i : i + 1]) - ln_loss_n[i])[0]
    return errors


def _forms(ln_x_Kn: Floats, ln_loss_n: Floats, names: Sequence[str]) -> list[Form]:
    if len(ln_x_Kn) == 1:
        (name,) = names
        return [
            Form(f"E + C/{name}^c", _powers([0]), _starts(ln_loss_n, 1)),
            Form(f"C/{name}^c (no limit)", _powers([0], has_offset=False), _starts(ln_loss_n, 1)[:, 1:]),
            Form(f"E + C exp(-{name}/{name}0)", _exponential, _starts_exponential(ln_loss_n)),
            Form(f"E + C/{name}^c, broken", _broken, _starts_broken(ln_loss_n)),
        ]
    first, second = names
    return [
        Form(f"E + A/{first}^a + B/{second}^b", _powers([0, 1]), _starts(ln_loss_n, 2)),
        Form(f"A/{first}^a + B/{second}^b (no limit)", _powers([0, 1], has_offset=False), _starts(ln_loss_n, 2)[:, 1:]),
        Form(f"E + B/{second}^b", _powers([1]), _starts(ln_loss_n, 1)),
        Form(f"E + A/{first}^a", _powers([0]), _starts(ln_loss_n, 1)),
        Form(f"E + C/({first} {second})^c", lambda theta, x: _powers([0])(theta, x.sum(0, keepdims=True)), _starts(ln_loss_n, 1)),
        Form(f"E + A/{first}^a + B exp(-{second}/{second}0)", _power_and_exponential, _starts_both(ln_loss_n)),
    ]


def _powers(which: Sequence[int], *, has_offset: bool = True) -> Callable[[Floats, Floats], Floats]:
    """theta: ln E (where there is one), ln C_k, gamma_k."""
    num = len(which)

    def log_law(theta: Floats, ln_x_Kn: Floats) -> Floats:
        factors, exponents = theta[-2 * num : -num], theta[-num:]
        terms = [factors[k] - exponents[k] * ln_x_Kn[size] for k, size in enumerate(which)]
        if has_offset:
            terms.append(np.full(ln_x_Kn.shape[1], theta[0]))
        total: Floats = np.logaddexp.reduce(np.stack(terms), axis=0)
        return total

    return log_law


def _exponential(theta: Floats, ln_x_Kn: Floats) -> Floats:
    """theta: ln E, ln C, ln D0."""
    total: Floats = np.logaddexp(theta[0], theta[1] - np.exp(np.minimum(ln_x_Kn[0] - theta[2], _BOUND)))
    return total


def _power_and_exponential(theta: Floats, ln_x_Kn: Floats) -> Floats:
    """theta: ln E, ln A, a, ln B, ln D0."""
    power = np.logaddexp(theta[0], theta[1] - theta[2] * ln_x_Kn[0])
    total: Floats = np.logaddexp(power, theta[3] - np.exp(np.minimum(ln_x_Kn[1] - theta[4], _BOUND)))
    return total


def _broken(theta: Floats, ln_x_Kn: Floats) -> Floats:
    """theta: ln E, ln C, exponent before the bend, what it gains there, ln of where."""
    bend = _SHARPNESS * np.logaddexp(0.0, (ln_x_Kn[0] - theta[4]) / _SHARPNESS)
    total: Floats = np.logaddexp(theta[0], theta[1] - theta[2] * ln_x_Kn[0] - theta[3] * bend)
    return total


def _edges(ln_loss_n: Floats) -> list[tuple[float, float]]:
    """(ln E, ln of what is above it in the middle) of the starts."""
    smallest, typical = float(np.exp(ln_loss_n.min())), float(np.exp(np.median(ln_loss_n)))
    return [(np.log(share * smallest), np.log(max(typical - share * smallest, 1e-3 * typical))) for share in _OFFSETS]


def _starts(ln_loss_n: Floats, num: int) -> Floats:
    return np.array([[e, *[c - np.log(num)] * num, *[g] * num] for e, c in _edges(ln_loss_n) for g in _EXPONENTS])


def _starts_exponential(ln_loss_n: Floats) -> Floats:
    return np.array([[e, c, at] for e, c in _edges(ln_loss_n) for at in (-1.0, 1.0)])


def _starts_both(ln_loss_n: Floats) -> Floats:
    return np.array([[e, c, g, c, at] for e, c in _edges(ln_loss_n) for g in _EXPONENTS[:1] for at in (-1.0, 1.0)])


def _starts_broken(ln_loss_n: Floats) -> Floats:
    return np.array([[e, c, g, change, 0.0] for e, c in _edges(ln_loss_n) for g in _EXPONENTS for change in (-0.1, 0.2)])
