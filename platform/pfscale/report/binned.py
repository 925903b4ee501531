"""Numbers in bins of a variable, as points with errors and, over seeds, as bands: what most figures of an evaluation are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from pfscale.physics.bootstrap import Estimate
from pfscale.physics.rates import BinnedRate
from pfscale.physics.response import BinnedResponse, ResponseSummary
from pfscale.report.style import axis_label, look, say_empty

MIN_ENTRIES = 10  # of a bin to be drawn: quartiles of fewer values have no believable error; the numbers hold all bins
BAND_LABEL = "band: mean ± standard deviation of {} seeds"


@dataclass(frozen=True)
class Points:
    """One curve: a number with its error in every bin (NaN: too few entries), and the same numbers of other seeds, (seeds, bins).

    `errors` is (bins,), or (2, bins) downwards and upwards.
    """

    edges: tuple[float, ...]
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    seeds: NDArray[np.float64] | None = None


def response_points(
    binned: BinnedResponse, number_of: Callable[[ResponseSummary], Estimate], *, seeds: Sequence[BinnedResponse] = ()
) -> Points:
    """The curve of one number of every bin's distribution."""
    values, errors = _response_values(binned, number_of)
    others = np.array([_response_values(seed, number_of)[0] for seed in seeds]) if seeds else None
    return Points(binned.edges, values, errors, others)


def rate_points(binned: BinnedRate) -> Points:
    """The curve of a fraction, whose error bars end at 0 and 1."""
    enough = np.array(binned.counts) >= MIN_ENTRIES
    values, errors = (np.where(enough, [getattr(e, name) for e in binned.bins], np.nan) for name in ("value", "error"))
    return Points(binned.edges, values, np.minimum(errors, [values, 1 - values]))


def draw_points(axes: Axes, curves: Mapping[str, Points], *, is_log: bool) -> bool:
    """Draws each curve, slightly apart so that none hides another; whether anything could be drawn."""
    drawn = False
    for i, (key, points) in enumerate(curves.items()):
        style = look(key, among=list(curves))
        edges = shown_edges(points.edges, is_log=is_log)
        centre = _apart(edges, i - (len(curves) - 1) / 2, is_log=is_log)
        shown = np.isfinite(points.values)
        span = np.stack([centre - edges[:-1], edges[1:] - centre])
        if points.seeds is not None:
            mean, spread = points.seeds.mean(axis=0), points.seeds.std(axis=0, ddof=1)
            low, high = (np.append(bound, bound[-1]) for bound in (mean - spread, mean + spread))
            axes.fill_between(edges, low, high, step="post", color=style.colour, alpha=0.2, linewidth=0)
        axes.errorbar(
            centre[shown],
            points.values[shown],
            np.nan_to_num(points.errors[..., shown]),
            span[:, shown],
            color=style.colour,
            marker=style.marker,
            linestyle="",
            label=style.label,
            markerfacecolor="none" if key == "truth targets" else style.colour,
        )
        drawn = drawn or bool(shown.any())
    return drawn


def finish_axis(axes: Axes, edges: Sequence[float], *, is_log: bool, entries: str = "") -> None:
    """The lowest panel's axis with ticks at the edges of bins; a word where nothing could be drawn."""
    drawn = shown_edges(edges, is_log=is_log)
    axes.set_xlim(drawn[0], drawn[-1])  # before the scale: a logarithmic axis without data has no limits of its own
    if is_log:
        axes.set_xscale("log")
        axes.set_xticks(drawn, [f"{edge:g}" for edge in edges])
        axes.xaxis.set_minor_locator(NullLocator())
    if entries:
        say_empty(axes, f"no bin has {MIN_ENTRIES} {entries}")


def legend_above(axes: Axes, *, entries: str, num_seeds: int = 0, columns: int = 2) -> None:
    """The legend, in the upper part of `axes` that is cleared for it, with what the errors are in words."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.6 * (high - low))
    words = [f"errors: bootstrap over events; bins with ≥ {MIN_ENTRIES} {entries}"]
    words += [BAND_LABEL.format(num_seeds)] if num_seeds else []
    axes.legend(ncols=columns, title="\n".join(words), alignment="left")


def shown_edges(edges: Sequence[float], *, is_log: bool) -> NDArray[np.float64]:
    """Where the edges are drawn: a logarithmic axis has no zero, so a first edge of 0 is drawn at half the second."""
    drawn = np.array(edges, np.float64)
    if is_log and drawn[0] <= 0:
        drawn[0] = drawn[1] / 2
    return drawn


def summary_numbers(summary: ResponseSummary) -> dict[str, Any]:
    """Every number of one distribution, for JSON."""
    named = {"median": summary.median, "iqr": summary.iqr, "iqr_over_median": summary.iqr_over_median, "resolution": summary.resolution}
    numbers: dict[str, Any] = {"count": summary.count}
    for name, number in named.items():
        numbers[name], numbers[f"{name}_error"] = number.value, number.error
    return numbers


def response_numbers(binned: BinnedResponse) -> dict[str, Any]:
    """Every number of every bin, for JSON."""
    return {
        "variable": axis_label(binned.variable, binned.unit),
        "edges": binned.edges,
        "bins": [summary_numbers(summary) for summary in binned.bins],
    }


def rate_numbers(binned: BinnedRate) -> dict[str, Any]:
    """The fraction, its error and the number of objects of every bin, for JSON."""
    bins = [{"value": rate.value, "error": rate.error, "count": count} for rate, count in zip(binned.bins, binned.counts, strict=True)]
    return {"variable": axis_label(binned.variable, binned.unit), "edges": binned.edges, "bins": bins}


def _response_values(
    binned: BinnedResponse, number_of: Callable[[ResponseSummary], Estimate]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    numbers = [number_of(s) if s.count >= MIN_ENTRIES else Estimate(np.nan, np.nan) for s in binned.bins]
    return np.array([n.value for n in numbers]), np.array([n.error for n in numbers])


def _apart(edges: NDArray[np.float64], place: float, *, is_log: bool) -> NDArray[np.float64]:
    """The middles of the bins, moved by a few per cent of their width to a curve's own place."""
    if is_log:
        centre: NDArray[np.float64] = np.sqrt(edges[1:] * edges[:-1]) * 1.025**place
        return centre
    return (edges[1:] + edges[:-1]) / 2 + 0.06 * place * np.diff(edges)
