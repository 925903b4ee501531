"""The figures of a report, one function each: returns the matplotlib figure and its numbers (for JSON).

Error bars are one standard deviation of the bootstrap over events, or the spread over seeds where the legend says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hist
import matplotlib
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from pfscale.physics.bootstrap import Estimate
from pfscale.physics.evaluation import CandidateMetrics, EvaluationResult
from pfscale.physics.response import PT_BINS, BinnedResponse, ResponseSummary
from pfscale.report.style import Drawn, axis_label, look, new_figure, say_empty, styled

MIN_ENTRIES = 10  # of a bin to be drawn: quartiles of fewer values have no believable error; the numbers hold all bins
RESPONSE_RANGE = (0.4, 1.6, 48)  # low, high, number of bins
CLASS_LABELS = {
    "none": "none",
    "211": "charged\nhadron",
    "130": "neutral\nhadron",
    "22": "photon",
    "11": "electron",
    "13": "muon",
}


@dataclass(frozen=True)
class TransferPoint:
    """One training of the transfer ladder: `mode` (zero-shot, heads, full, scratch), target sample size, and the metric it reached.

    `error` is the metric's own uncertainty; where several seeds share mode and size, their spread is drawn instead.
    """

    mode: str
    num_events: int
    value: float
    error: float = float("nan")


@styled
def learning_curves(
    history: Mapping[str, Sequence[tuple[float, float]]], *, references: Mapping[str, float] | None = None, title: str = ""
) -> Drawn:
    """Loss against optimizer step; below it, where there is such a history, the resolution of jets.

    Args:
        history: "train", "validation" -> (step, loss) points; "jet_iqr" -> (step, IQR / median of the jets' response),
            "jet_iqr_error" -> its bootstrap errors at the same steps.
        references: reconstruction -> its IQR / median, drawn as lines.
    """
    losses = {key: points for key, points in history.items() if not key.startswith("jet_iqr")}
    jets = history.get("jet_iqr", ())
    figure = new_figure(width=6.4, height=6.4 if jets else 4.4)
    axes, *below = figure.subplots(2 if jets else 1, sharex=True, squeeze=False)[:, 0]
    drawn = [value for key, points in losses.items() for value in _curve(axes, key, points, among=list(losses))]
    if not drawn:
        say_empty(axes, "no losses logged")
    elif min(drawn) > 0 and max(drawn) > 5 * min(drawn):
        axes.set_yscale("log")
    axes.set(ylabel="Loss", title=title)
    if drawn:
        axes.legend()
    for lower in below:
        _curve(lower, "mlpf", jets, among=(), errors=history.get("jet_iqr_error", ()))
        for key, value in (references or {}).items():
            lower.axhline(value, color=look(key).colour, linestyle=look(key).line, label=look(key).label)
        lower.set(ylabel="Jet response IQR / median", ylim=(0, None))
        lower.legend()
    (below or [axes])[-1].set_xlabel("Optimizer step")
    names = {"jet_iqr": "iqr_over_median", "jet_iqr_error": "error"}
    numbers: dict[str, Any] = {
        key: {"step": [p[0] for p in points], names.get(key, "loss"): [p[1] for p in points]} for key, points in history.items()
    }
    return figure, {**numbers, **({"references": dict(references)} if references else {})}


def _curve(
    axes: Axes, key: str, points: Sequence[tuple[float, float]], *, among: Sequence[str], errors: Sequence[tuple[float, float]] = ()
) -> list[float]:
    """Draws the finite points, with errors where there are any; their values."""
    finite = np.array([p for p in points if np.isfinite(p[1])], np.float64).reshape(-1, 2)
    style = look(key, among=among)
    axes.plot(*finite.T, color=style.colour, linestyle=style.line, marker=style.marker, markersize=4, label=style.label)
    bars = dict(errors)
    if bars:
        sizes = [bars.get(step, np.nan) for step in finite[:, 0]]
        axes.errorbar(finite[:, 0], finite[:, 1], yerr=sizes, color=style.colour, linestyle="none", capsize=2)
    values: list[float] = finite[:, 1].tolist()
    return values


@styled
def jet_response(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Distribution of pt_reco / pt_gen of matched jets, one histogram per reconstruction, normalised to all its matched jets."""
    figure = new_figure(width=7.0, height=6.4)
    axes = figure.subplots()
    numbers: dict[str, Any] = {"num_events": result.num_events, "num_gen_jets": result.num_gen_jets}
    low, high, num_bins = RESPONSE_RANGE
    peaks = []
    for key, metrics in result.metrics.items():
        jets, style = metrics.jets, look(key, among=list(result.metrics))
        histogram = hist.Hist.new.Reg(num_bins, low, high, name="response").Double()
        histogram.fill(jets.pt_response)
        total = len(jets.pt_response)
        inside = float(histogram.values().sum())
        if inside:
            summary, values = jets.response, histogram.values() / total
            label = "\n".join(
                (
                    style.label,
                    f"  median {summary.median}",
                    f"  IQR/median {summary.iqr_over_median}",
                    f"  {total} matched, {1 - inside / total:.1%} outside",
                )
            )
            bars = np.sqrt(histogram.values()) / total
            peaks.append(values.max())
            mplhep.histplot(
                values, histogram.axes[0].edges, yerr=bars, ax=axes, histtype="step", color=style.colour, linestyle=style.line, label=label
            )
        numbers[key] = _summary_numbers(jets.response) | {
            "edges": histogram.axes[0].edges,
            "counts": histogram.values(),
            "outside_range": total - inside,
            "matched_fraction": jets.matched_fraction.value,
            "matched_fraction_error": jets.matched_fraction.error,
        }
    axes.axvline(1.0, color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel=r"Jet response $p_T^{\mathrm{reco}}/p_T^{\mathrm{gen}}$", xlim=(low, high), title=title)
    axes.set_ylabel(f"Fraction of matched jets / {(high - low) / num_bins:.3f}")
    if not peaks:
        say_empty(axes, "no matched jets")
        return figure, numbers
    if max(peaks) > 4 * min(peaks):  # on a linear axis the ceiling's peak would flatten everything else
        axes.set(yscale="log", ylim=(0.3 * min(peaks) / 100, 2 * max(peaks)))
    else:
        axes.set_ylim(0, 1.15 * max(peaks))
    legend_title = f"{result.num_gen_jets} gen jets; bars: √N; numbers: bootstrap over events"
    figure.legend(loc="outside lower center", ncols=2, title=legend_title)
    return figure, numbers


@styled
def jet_resolution_vs_pt(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Median response (top) and IQR / median (bottom) of jets against gen-jet pt, with every reconstruction on the same axes."""
    figure = new_figure(width=6.6, height=6.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    binned = {key: metrics.jets.vs_pt for key, metrics in result.metrics.items()}
    _draw_binned(top, binned, lambda s: s.median)
    _draw_binned(bottom, binned, lambda s: s.iqr_over_median)
    top.axhline(1.0, color="0.7", linewidth=1, zorder=0)
    top.set(ylabel="Jet response, median", title=title)
    bottom.set(xlabel=r"Gen jet $p_T$ [GeV]", ylabel="Jet response, IQR / median")
    _finish_binned(top, bottom, binned, "jets")
    bottom.set_ylim(bottom=0)
    return figure, {key: _binned_numbers(b) for key, b in binned.items()}


@styled
def met_resolution(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Response (top) and resolution along and across the true direction (below) of the missing momentum against the true one."""
    figure = new_figure(width=6.6, height=8.2)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    parts: tuple[tuple[Axes, str, Callable[[CandidateMetrics], BinnedResponse], Callable[[ResponseSummary], Estimate]], ...] = (
        (top, "response", lambda m: m.met.response_vs_met, lambda s: s.median),
        (middle, "parallel", lambda m: m.met.parallel_vs_met, lambda s: s.resolution),
        (bottom, "perpendicular", lambda m: m.met.perpendicular_vs_met, lambda s: s.resolution),
    )
    numbers: dict[str, Any] = {key: {} for key in result.metrics}
    for axes, name, binned_of, number_of in parts:
        binned = {key: binned_of(metrics) for key, metrics in result.metrics.items()}
        _draw_binned(axes, binned, number_of)
        for key, b in binned.items():
            numbers[key][name] = _binned_numbers(b)
    for key, metrics in result.metrics.items():
        total = metrics.met.residual.resolution
        numbers[key]["resolution"] = {"value": total.value, "error": total.error}
    top.axhline(1.0, color="0.7", linewidth=1, zorder=0)
    top.set(ylabel=r"$p_{\parallel}^{\mathrm{miss}}\,/\,p_T^{\mathrm{miss,gen}}$, median", title=title)
    middle.set(ylabel=r"$\sigma(p_{\parallel}^{\mathrm{miss}})$ [GeV]")
    bottom.set(xlabel=r"Gen $p_T^{\mathrm{miss}}$ [GeV]", ylabel=r"$\sigma(p_{\perp}^{\mathrm{miss}})$ [GeV]")
    _finish_binned(top, bottom, {key: m.met.response_vs_met for key, m in result.metrics.items()}, "events; σ = IQR / 1.349")
    for axes in (middle, bottom):
        axes.set_ylim(bottom=0)
    return figure, numbers


@styled
def transfer_curves(
    points: Sequence[TransferPoint],
    *,
    metric: str,
    unit: str = "",
    references: Mapping[str, Estimate] | None = None,
    title: str = "",
) -> Drawn:
    """`metric` against the number of target events, one curve per mode, zero-shot and `references` (baseline, ceiling) as lines."""
    figure = new_figure(width=6.6, height=5.4)
    axes = figure.subplots()
    numbers: dict[str, Any] = {}
    modes = list(dict.fromkeys(p.mode for p in points))
    curves = [mode for mode in modes if mode != "zero-shot"]
    lines = dict(references or {})
    num_seeds = 1
    for i, mode in enumerate(modes):
        sizes, values, errors, seeds = _over_seeds([p for p in points if p.mode == mode])
        num_seeds = max(num_seeds, int(seeds.max()))
        numbers[mode] = {"num_events": sizes, "value": values, "error": errors, "num_seeds": seeds}
        if mode == "zero-shot":
            lines = {"zero-shot": Estimate(float(values[0]), float(errors[0])), **lines}
            continue
        style = look(mode, among=modes)
        offset = 1.03 ** (i - len(curves) / 2)  # curves with equal sizes would hide each other's error bars
        bars = np.nan_to_num(errors)
        axes.errorbar(sizes * offset, values, bars, color=style.colour, marker=style.marker, linestyle=style.line, label=style.label)
    for key, reference in lines.items():
        style = look(key, among=list(lines))
        axes.axhline(reference.value, color=style.colour, linestyle=style.line, label=style.label)
        if np.isfinite(reference.error):
            axes.axhspan(reference.value - reference.error, reference.value + reference.error, color=style.colour, alpha=0.12, linewidth=0)
        numbers.setdefault(key, {"value": reference.value, "error": reference.error})
    axes.set(xlabel="Training events of the target detector", ylabel=axis_label(metric, unit), title=title)
    if curves:
        ticks = sorted({p.num_events for p in points if p.mode in curves})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if numbers:
        has_errors = any(np.isfinite(p.error) for p in points)
        one_seed = "one seed; errors: bootstrap over events" if has_errors else "one seed, no uncertainty shown"
        errors_are = f"mean ± standard deviation of up to {num_seeds} seeds" if num_seeds > 1 else one_seed
        figure.legend(loc="outside lower center", ncols=2, title=errors_are)
    else:
        say_empty(axes, "no trainings")
    return figure, numbers


@styled
def confusion_matrix(confusion: NDArray[np.integer], class_names: Sequence[str], *, title: str = "") -> Drawn:
    """Elements by target class (rows) and predicted class (columns): colour and percentage within the row, and counts."""
    counts = np.asarray(confusion, np.int64)
    totals = counts.sum(axis=1, keepdims=True)
    fraction = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    figure = new_figure(width=7.4, height=6.2)
    axes = figure.subplots()
    image = axes.imshow(np.nan_to_num(fraction), cmap=matplotlib.colormaps["Blues"], vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        share = fraction[row, column]
        text = f"{100 * share:.1f}%\n{counts[row, column]}" if np.isfinite(share) else "-"
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if share > 0.55 else "black")
    labels = [CLASS_LABELS.get(name, name) for name in class_names]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.set(xlabel="Predicted class of the element", ylabel="Target class of the element", title=title)
    figure.colorbar(image, ax=axes, label="Fraction of the target class", shrink=0.85)
    return figure, {"class_names": list(class_names), "counts": counts, "fraction": fraction}


def _draw_binned(axes: Axes, binned: Mapping[str, BinnedResponse], number_of: Callable[[ResponseSummary], Estimate]) -> None:
    """Points with errors at the bins' centres, one colour per key, slightly apart so that none hides another."""
    for i, (key, b) in enumerate(binned.items()):
        style = look(key, among=list(binned))
        edges = np.array(b.edges)
        numbers = [number_of(s) if s.count >= MIN_ENTRIES else Estimate(np.nan, np.nan) for s in b.bins]
        values, errors = np.array([n.value for n in numbers]), np.array([n.error for n in numbers])
        shown = np.isfinite(values)
        centre = np.sqrt(edges[1:] * edges[:-1]) * 1.025 ** (i - (len(binned) - 1) / 2)
        span = np.stack([centre - edges[:-1], edges[1:] - centre])
        axes.errorbar(
            centre[shown],
            values[shown],
            np.nan_to_num(errors[shown]),
            span[:, shown],
            color=style.colour,
            marker=style.marker,
            linestyle="",
            label=style.label,
            markerfacecolor="none" if key == "truth targets" else style.colour,
        )


def _finish_binned(top: Axes, bottom: Axes, binned: Mapping[str, BinnedResponse], entries: str) -> None:
    """Logarithmic axis with ticks at the bin edges, the legend with what errors mean, and a word where nothing could be drawn."""
    edges = next(iter(binned.values())).edges if binned else PT_BINS
    bottom.set_xlim(edges[0], edges[-1])  # before the scale: a logarithmic axis without data has no limits of its own
    bottom.set_xscale("log")
    bottom.set_xticks(edges, [f"{edge:g}" for edge in edges])
    bottom.xaxis.set_minor_locator(NullLocator())
    if not any(s.count >= MIN_ENTRIES for b in binned.values() for s in b.bins):
        say_empty(top, f"no bin has {MIN_ENTRIES} entries")
        return
    low, high = top.get_ylim()
    top.set_ylim(low, high + 0.6 * (high - low))
    top.legend(ncols=2, title=f"errors: bootstrap over events; bins with ≥ {MIN_ENTRIES} {entries}", alignment="left")


def _over_seeds(points: Sequence[TransferPoint]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """(sizes, mean values, errors, number of seeds) with one entry per sample size, ascending."""
    sizes = sorted({p.num_events for p in points})
    values, errors, seeds = [], [], []
    for size in sizes:
        same = [p for p in points if p.num_events == size]
        values.append(np.mean([p.value for p in same]))
        errors.append(np.std([p.value for p in same], ddof=1) if len(same) > 1 else same[0].error)
        seeds.append(len(same))
    return np.array(sizes), np.array(values, float), np.array(errors, float), np.array(seeds)


def _summary_numbers(summary: ResponseSummary) -> dict[str, Any]:
    named = {"median": summary.median, "iqr": summary.iqr, "iqr_over_median": summary.iqr_over_median, "resolution": summary.resolution}
    numbers: dict[str, Any] = {"count": summary.count}
    for name, number in named.items():
        numbers[name], numbers[f"{name}_error"] = number.value, number.error
    return numbers


def _binned_numbers(binned: BinnedResponse) -> dict[str, Any]:
    return {
        "variable": axis_label(binned.variable, binned.unit),
        "edges": binned.edges,
        "bins": [_summary_numbers(summary) for summary in binned.bins],
    }
