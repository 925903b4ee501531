"""How well the calorimeters measure a hadron's energy: what showers are smeared with, and what particle flow expects."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from pfscale.simulation.compiled import compiled
from pfscale.simulation.generator import FloatArray

Energy = TypeVar("Energy", float, FloatArray)
COMPENSATED = 20.0  # GeV


@compiled
def shower_variance(energy: Energy, stochastic: float, uncompensated: float, constant: float) -> Energy:
    """Variance of the measured energy (GeV^2) of hadrons of `energy`: one number or an array of them.

    Compensation weighs the dense, electromagnetic parts of a shower against the others, and soft showers hardly have them: below
    COMPENSATED the stochastic term goes in a straight line to `uncompensated` at zero. In all, constants included, that is 50, 54 and 56%
    / sqrt(E) at 20, 10 and 5 GeV in both detectors; the fit of CLICdet's full simulation in Delphes' card has 49, 56 and 70%.
    """
    term = stochastic + (uncompensated - stochastic) * np.maximum(1.0 - energy / COMPENSATED, 0.0)
    return term**2 * energy + (constant * energy) ** 2
