"""What the realism tables must show: counts, photon energies, pulls and jets, each with what was found and whether that will do.

Targets and figures of full simulation are those of the issue that asked for the built-in source; they are orders of magnitude, from few
events, and so are the tolerances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from pfscale.physics.bootstrap import Estimate
from pfscale.physics.evaluation import CALORIMETER_ONLY, RULE_BASED, TRUTH_TARGETS
from pfscale.simulation.realism_jets import TARGET_EDGES, Resolution

Row = tuple[str, ...]
HEADER = ("target", "sample", "found", "met")
REAL_COUNTS: dict[tuple[str, str], dict[str, float]] = {
    ("clic", "ttbar"): {"tracks": 60.0, "clusters": 90.0},  # published validation of CLICdet's full simulation
    ("cld", "ZH"): {"tracks": 24.0, "clusters": 48.0},  # one event
}
COUNT_TOLERANCE = 0.3
PHOTON_TOLERANCE = 0.03
PULL_TOLERANCE = 0.1
JET_RANGE = (0.05, 0.10)  # IQR / median of rule-based jets
LEAST_RATE = 100.0  # ttbar events per second on one core
CLEARLY = 3.0  # standard deviations between two reconstructions


def _row(target: str, sample: str, found: str, is_met: bool) -> Row:
    return target, sample, found, "yes" if is_met else "**no**"


def count_rows(title: str, key: tuple[str, str], counts: Mapping[str, float]) -> list[Row]:
    """One row for each count that full simulation has a figure of."""
    rows = []
    for name, real in REAL_COUNTS.get(key, {}).items():
        ratio = counts[name] / real
        is_near = abs(ratio - 1.0) <= COUNT_TOLERANCE
        rows.append(_row(f"{name} within {COUNT_TOLERANCE:.0%} of {real:g}", title, f"{counts[name]:.1f}, {ratio - 1.0:+.0%}", is_near))
    return rows


def photon_row(detector: str, energies: Sequence[float], means: Sequence[float]) -> Row:
    """The worst of the mean responses to single photons."""
    worst = int(np.argmax(np.abs(np.array(means) - 1.0)))
    target = f"photon energies within {PHOTON_TOLERANCE:.0%}, {energies[0]:g} to {energies[-1]:g} GeV"
    found = f"{means[worst] - 1.0:+.1%} at {energies[worst]:g} GeV"
    return _row(target, detector, found, abs(means[worst] - 1.0) <= PHOTON_TOLERANCE)


def pull_row(title: str, widths: Sequence[float]) -> Row:
    """The widths of the pulls of the track parameters of all particles but electrons, of tracks without a wrong hit."""
    is_one = max(abs(width - 1.0) for width in widths) <= PULL_TOLERANCE
    found = " ".join(f"{width:.2f}" for width in widths)
    return _row(f"pulls of D0, phi, omega, Z0, tanLambda, without electrons and wrong hits: 1.0 ± {PULL_TOLERANCE:g}", title, found, is_one)


def rate_row(title: str, rate: float) -> Row:
    """The events per second on one core."""
    return _row(f"at least {LEAST_RATE:g} events/s on one core, Pythia and writing included", title, f"{rate:.0f}", rate >= LEAST_RATE)


def jet_rows(title: str, found: Mapping[str, Resolution]) -> list[Row]:
    """The range of rule-based jets, and the order of the three reconstructions in jets and in missing momentum."""
    low, high = TARGET_EDGES
    keys = (TRUTH_TARGETS, RULE_BASED, CALORIMETER_ONLY)
    jets, met = [found[key].target for key in keys], [found[key].met for key in keys]
    least, most = JET_RANGE
    return [
        _row(f"rule-based jets, {low:g} to {high:g} GeV: IQR / median {least:g} to {most:g}", title, str(jets[1]), _within(jets[1])),
        _row(f"jets, {low:g} to {high:g} GeV: perfect < rule-based < calorimeter", title, _chain(jets), _are_ordered(jets)),
        _row("missing momentum [GeV]: same", title, _chain(met), _are_ordered(met)),
    ]


def _within(value: Estimate) -> bool:
    return JET_RANGE[0] <= value.value <= JET_RANGE[1]


def _chain(values: Sequence[Estimate]) -> str:
    return " < ".join(str(value) for value in values)


def _are_ordered(values: Sequence[Estimate]) -> bool:
    """Whether each is above the one before by CLEARLY standard deviations, taken as independent (they share events: it is more)."""
    steps = [(after.value - before.value) / np.hypot(after.error, before.error) for before, after in pairwise(values)]
    return min(steps) > CLEARLY
