"""What a grid of trainings says of scale: the law with intervals, reasons to doubt it, and what more data, parameters or compute would buy.

Pure numpy: it knows trainings as arrays only. N: parameters, D: unique events; R replicas, n runs, G points along a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfscale.studies.forms import LeftOut, alternatives
from pfscale.studies.laws import NUM_REPLICAS, Interval, Law, LawFit, bootstrap_laws, fit_law, interval

Floats = NDArray[np.float64]
FAR = 10.0  # times the largest size that was trained: beyond, a law is a guess
_MIN_SIZES = 3  # of N and of D: a power with a limit has three parameters
_FLAT_EXPONENT, _STEEP_EXPONENT = 0.02, 2.5
_MIN_LIMIT_SHARE = 0.3  # of E, that the lower edge of its interval must reach for the limit to be known
_NO_LIMIT = 0.02  # of the smallest loss: a limit below is none
_AGREEING = 0.05
_CLEARLY_BETTER = 0.5  # of the law's error: then another form is named
_BUDGET_POINTS, _BUDGET_RANGE = 1200, 1e4
_BISECTIONS = 80


@dataclass(frozen=True)
class Grid:
    """Trainings that finished, (n,) each.

    Attributes:
        parameters, events: N and D, unique events.
        loss: or another metric of which less is better, positive.
        flops: of each training, all its passes.
        passes: over its events.
    """

    parameters: Floats
    events: Floats
    loss: Floats
    flops: Floats
    passes: Floats

    @classmethod
    def of(cls, parameters: ArrayLike, events: ArrayLike, loss: ArrayLike, flops: ArrayLike, passes: ArrayLike) -> Grid:
        """From any arrays."""
        return cls(*(np.asarray(values, np.float64) for values in (parameters, events, loss, flops, passes)))

    def __len__(self) -> int:
        return len(self.loss)

    def part(self, rows: NDArray[np.bool_]) -> Grid:
        """Some of the runs."""
        return Grid(self.parameters[rows], self.events[rows], self.loss[rows], self.flops[rows], self.passes[rows])

    @cached_property
    def seed_spread(self) -> float:
        """Relative standard deviation between runs that differ in their seed only, pooled; NaN where none do."""
        cells = np.unique(np.stack([self.parameters, self.events]), axis=1, return_inverse=True)[1].ravel()
        groups = [np.log(self.loss[cells == cell]) for cell in np.unique(cells)]
        squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
        freedom = sum(len(group) - 1 for group in groups)
        return float(np.sqrt(squares / freedom)) if freedom else float("nan")


@dataclass(frozen=True)
class HoldOut:
    """The largest models, predicted by a law of the others.

    Attributes:
        parameters: of the models left out.
        events, measured, predicted: (m,).
        low, high: (m,) 90% interval of the prediction, over replicas of the runs that it was fitted to.
    """

    parameters: float
    events: Floats
    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats

    @property
    def errors(self) -> Floats:
        """(m,) relative."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Scaling:
    """L(N, D) = E + A / N^alpha + B / D^beta of a grid, with all that is needed to judge it."""

    grid: Grid
    fit: LawFit
    replicas: list[Law]
    alternatives: list[LeftOut]
    hold_out: HoldOut | None
    doubts: tuple[str, ...] = field(default=())

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of E, A, alpha, B, beta."""
        found = {"E": interval(self.fit.law.offset, [law.offset for law in self.replicas])}
        for k, (factor, exponent) in enumerate((("A", "alpha"), ("B", "beta"))):
            found[factor] = interval(self.fit.law.factors[k], [law.factors[k] for law in self.replicas])
            found[exponent] = interval(self.fit.law.exponents[k], [law.exponents[k] for law in self.replicas])
        return found

    def loss(self, parameters: float, events: float) -> Interval:
        """What the law says of a size."""
        return self._interval(lambda law: float(law(parameters, events)))

    def change(self, parameters: float, events: float, *, times_events: float = 1.0, times_parameters: float = 1.0) -> Interval:
        """Relative change of the loss with so many times the events and the parameters."""
        return self._interval(lambda law: float(law(parameters * times_parameters, events * times_events) / law(parameters, events) - 1))

    def too_far(self, parameters: float, events: float) -> list[str]:
        """A warning for each size that lies far beyond those that were trained."""
        asked = (("parameters", parameters, self.grid.parameters), ("events", events, self.grid.events))
        return [
            f"{size:.3g} {name} are {size / have.max():.0f} times the most that was trained: extrapolation"
            for name, size, have in asked
            if size > FAR * have.max()
        ]

    def _interval(self, of: Callable[[Law], float]) -> Interval:
        return interval(of(self.fit.law), [of(law) for law in self.replicas])


def study(grid: Grid, *, num_replicas: int = NUM_REPLICAS, seed: int = 1) -> Scaling:
    """Fits the law, its replicas and its rivals, and says what speaks against it.

    Raises:
        ValueError: fewer than five runs, or a size or loss that is not positive.
    """
    x = [grid.parameters, grid.events]
    fit = fit_law(x, grid.loss)
    replicas = bootstrap_laws(x, grid.loss, fit, num_replicas=num_replicas, seed=seed)
    rivals = alternatives(x, grid.loss, ("N", "D"))
    found = Scaling(grid, fit, replicas, rivals, _hold_out(grid, num_replicas, seed))
    return Scaling(grid, fit, replicas, rivals, found.hold_out, tuple(_doubts(found)))


def _hold_out(grid: Grid, num_replicas: int, seed: int) -> HoldOut | None:
    """None where too few sizes would be left."""
    largest = grid.parameters.max()
    rest = grid.part(grid.parameters < largest)
    if len(rest) < 6 or len(np.unique(rest.parameters)) < 2:  # a law of five parameters, of two sizes at least
        return None
    x = [rest.parameters, rest.events]
    fit = fit_law(x, rest.loss)
    replicas = bootstrap_laws(x, rest.loss, fit, num_replicas=num_replicas, seed=seed)
    out = grid.part(grid.parameters == largest)
    said = np.stack([law(out.parameters, out.events) for law in replicas])
    low, high = np.quantile(said[np.isfinite(said).all(1)], [0.05, 0.95], axis=0)
    return HoldOut(float(largest), out.events, out.loss, fit.law(out.parameters, out.events), low, high)


def _doubts(found: Scaling) -> list[str]:
    """What these data cannot support, in sentences."""
    grid, said = found.grid, []
    for name, sizes in (("parameters", grid.parameters), ("events", grid.events)):
        if len(np.unique(sizes)) < _MIN_SIZES:
            said.append(f"{len(np.unique(sizes))} different numbers of {name}: a power with a limit needs {_MIN_SIZES}")
    if len(grid) < 2 * len(found.fit.theta):
        said.append(f"{len(grid)} runs for {len(found.fit.theta)} parameters of the law")
    for name, exponent in (("parameters", "alpha"), ("events", "beta")):
        edges = found.intervals[exponent]
        if edges.low < _FLAT_EXPONENT or edges.high > _STEEP_EXPONENT:
            said.append(f"these data do not say how the loss falls with {name}: {exponent} = {edges}")
    limit = found.intervals["E"]
    if limit.low < _MIN_LIMIT_SHARE * limit.value or limit.value < _NO_LIMIT * grid.loss.min():
        said.append(f"no curvature: these data do not say where the loss ends, E = {limit}")
    if found.fit.agreeing < _AGREEING:
        said.append(f"only {found.fit.agreeing:.0%} of the starts came to this minimum")
    law = next((one for one in found.alternatives if one.num_parameters == len(found.fit.theta)), None)
    best = found.alternatives[0] if found.alternatives else None
    if law and best and best.error < _CLEARLY_BETTER * law.error:
        said.append(f"{best.name} predicts runs left out better ({best.error:.2%} beside {law.error:.2%})")
    if found.hold_out is not None:
        outside = (found.hold_out.measured < found.hold_out.low) | (found.hold_out.measured > found.hold_out.high)
        if outside.mean() > 0.5:  # a tenth is what chance gives
            said.append(f"without the largest models the law misses {outside.sum()} of their {len(outside)} losses (90% interval)")
    return said


@dataclass(frozen=True)
class Optimum:
    """The sizes of lowest loss within a budget."""

    parameters: Interval
    events: Interval
    loss: Interval
    at_edge: bool  # the lowest loss lies at the end of what was searched: no optimum inside


@dataclass(frozen=True)
class Prices:
    """What things cost, in any one unit.

    Attributes:
        event: to simulate and reconstruct one event.
        flop: one operation of training; `inference_flop` one of inference.
        inference_events: that the model will be used on.
    """

    event: float = 0.0
    flop: float = 0.0
    inference_flop: float = 0.0
    inference_events: float = 0.0


def training_cost(grid: Grid) -> Callable[[Floats, Floats], Floats]:
    """Operations of a training against N and D, as these runs went: a power of both, fitted to theirs."""
    rows = np.stack([np.ones(len(grid)), np.log(grid.parameters), np.log(grid.events)], 1)
    constant, by_parameters, by_events = np.linalg.lstsq(rows, np.log(grid.flops), rcond=None)[0]

    def flops(parameters: Floats, events: Floats) -> Floats:
        total: Floats = np.exp(constant + by_parameters * np.log(parameters) + by_events * np.log(events))
        return total

    return flops


def spending(grid: Grid, prices: Prices) -> Callable[[Floats, Floats], Floats]:
    """What N and D cost: simulation, training, and inference with the operations of a forward pass, a third of a training's per event."""
    flops = training_cost(grid)
    forward = float(np.median(grid.flops / (3 * grid.parameters * grid.events * grid.passes)))  # operations per parameter and event

    def spent(parameters: Floats, events: Floats) -> Floats:
        inference = prices.inference_flop * forward * parameters * prices.inference_events
        total: Floats = prices.event * events + prices.flop * flops(parameters, events) + inference
        return total

    return spent


def optimum(found: Scaling, spent: Callable[[Floats, Floats], Floats], budget: float) -> Optimum:
    """N and D of the lowest loss that `budget` buys, with intervals over the replicas of the law.

    Args:
        spent: (N, D) -> price, rising in both; `training_cost` for a budget of operations, `spending` for one of money.

    Raises:
        ValueError: the budget buys nothing within 10,000 times the sizes that were trained, up or down.
    """
    grid = found.grid
    parameters = np.geomspace(grid.parameters.min() / _BUDGET_RANGE, grid.parameters.max() * _BUDGET_RANGE, _BUDGET_POINTS)
    low, high = (np.full(_BUDGET_POINTS, np.log(edge)) for edge in (grid.events.min() / _BUDGET_RANGE, grid.events.max() * _BUDGET_RANGE))
    affordable = spent(parameters, np.exp(low)) <= budget
    if not affordable.any():
        raise ValueError(f"a budget of {budget:.3g} buys nothing near what was trained")
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        is_within = spent(parameters, np.exp(middle)) <= budget
        low, high = np.where(is_within, middle, low), np.where(is_within, high, middle)
    parameters, events = parameters[affordable], np.exp(low)[affordable]
    points = [_lowest(law, parameters, events) for law in (found.fit.law, *found.replicas)]
    columns = np.array([(parameters[i], events[i], value) for i, value in points])
    best = points[0][0]
    n, d, loss = (interval(columns[0, k], columns[1:, k]) for k in range(3))
    return Optimum(n, d, loss, at_edge=best in (0, len(parameters) - 1))


def _lowest(law: Law, parameters: Floats, events: Floats) -> tuple[int, float]:
    values = law(parameters, events)
    best = int(np.argmin(values))
    return best, float(values[best])


def advice(found: Scaling, *, budgets: Sequence[float] = (), prices: Prices | None = None, money: float = 0.0) -> tuple[str, ...]:
    """What more would buy, in sentences; where the data do not say, that."""
    grid = found.grid
    largest, most = float(grid.parameters.max()), float(grid.events.max())
    unknown = [exponent for exponent in ("alpha", "beta") if any(exponent in doubt for doubt in found.doubts)]
    lines = []
    for name, exponent, times in (("events", "beta", {"times_events": 2.0}), ("parameters", "alpha", {"times_parameters": 2.0})):
        gain = found.change(largest, most, **times)
        if exponent in unknown:
            lines.append(f"twice the {name}: these data do not say ({gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}] by the law)")
            continue
        noise = ""
        if np.isfinite(grid.seed_spread) and abs(gain.value) < grid.seed_spread:
            noise = f"; runs that differ in their seed only spread by {grid.seed_spread:.1%}"
        lines.append(
            f"twice the {name}, beyond {largest:.3g} parameters and {most:.3g} events: "
            f"loss {gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]{noise}"
        )
    for budget in budgets:
        lines += _bought(found, training_cost(grid), budget, f"{budget:.3g} operations", unknown)
    if prices is not None and money > 0:
        lines += _bought(found, spending(grid, prices), money, f"a budget of {money:.4g}", unknown)
    return tuple(lines)


def _bought(found: Scaling, spent: Callable[[Floats, Floats], Floats], budget: float, in_words: str, unknown: Sequence[str]) -> list[str]:
    try:
        best = optimum(found, spent, budget)
    except ValueError as error:
        return [str(error)]
    if unknown or best.at_edge:
        return [f"{in_words}: these data do not say how to divide it ({' and '.join(unknown) or 'the optimum'} not determined)"]
    line = f"{in_words}: {best.parameters} parameters on {best.events} events, loss {best.loss}"
    return [line, *found.too_far(best.parameters.value, best.events.value)]
