"""Figures of whole events: jets, missing momentum, visible energy and mass, with every reconstruction on the same axes.

Each returns the figure and its numbers. Errors are one standard deviation of the bootstrap over events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hist
import mplhep
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pfscale.physics.bootstrap import Estimate
from pfscale.physics.evaluation import MLPF, CandidateMetrics, EvaluationResult
from pfscale.physics.rates import BinnedRate
from pfscale.physics.response import PT_BINS, BinnedResponse, ResponseSummary
from pfscale.report.binned import (
    Points,
    draw_points,
    finish_axis,
    legend_above,
    rate_numbers,
    rate_points,
    response_numbers,
    response_points,
    summary_numbers,
)
from pfscale.report.style import Drawn, look, new_figure, say_empty, styled

RESPONSE_RANGE = (0.4, 1.6, 48)  # low, high, number of bins


@styled
def jet_response(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Distribution of pt_reco / pt_gen of matched jets, one histogram per reconstruction, normalised to all its matched jets."""
    figure = new_figure(width=7.0, height=6.4)
    axes = figure.subplots()
    numbers: dict[str, Any] = {"num_events": result.num_events, "num_gen_jets": result.num_gen_jets}
    ratios = {key: (metrics.jets.pt_response, metrics.jets.response) for key, metrics in result.metrics.items()}
    labels = {key: _response_label(key, metrics.jets.response, result) for key, metrics in result.metrics.items()}
    drawn = _ratio_histograms(axes, ratios, labels)
    for key, metrics in result.metrics.items():
        fractions = {"matched_fraction": metrics.jets.matched_fraction, "spurious_fraction": metrics.jets.spurious_fraction}
        named = {name: number.value for name, number in fractions.items()}
        named |= {f"{name}_error": number.error for name, number in fractions.items()}
        numbers[key] = drawn[key] | named
    axes.set(xlabel=r"Jet response $p_T^{\mathrm{reco}}/p_T^{\mathrm{gen}}$", title=title)
    axes.set_ylabel(f"Fraction of matched jets / {_bin_width():.3f}")
    if not any(len(values) for values, _ in ratios.values()):
        say_empty(axes, "no matched jets")
        return figure, numbers
    legend_title = f"{result.num_gen_jets} gen jets; bars: √N; numbers: bootstrap over events"
    figure.legend(loc="outside lower center", ncols=2, title=legend_title)
    return figure, numbers


@styled
def jet_resolution_vs_pt(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Median response (top) and IQR / median (bottom) of jets against gen-jet pt."""
    return _jet_resolution(result, lambda m: m.jets.vs_pt, label=r"Gen jet $p_T$ [GeV]", is_log=True, title=title)


@styled
def jet_resolution_vs_eta(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Median response (top) and IQR / median (bottom) of jets against gen-jet pseudorapidity."""
    return _jet_resolution(result, lambda m: m.jets.vs_eta, label=r"Gen jet $\eta$", is_log=False, title=title)


@styled
def jet_matching(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Fraction of gen jets that are found (top) and of reconstructed jets that belong to none (bottom), one-to-one within deltaR 0.1."""
    figure = new_figure(width=6.6, height=6.2)
    top, bottom = figure.subplots(2, 1, sharex=False)
    numbers: dict[str, Any] = {key: {} for key in result.metrics}
    parts: tuple[tuple[Axes, str, Callable[[CandidateMetrics], BinnedRate], str, str], ...] = (
        (top, "matched", lambda m: m.jets.matched_fraction_vs_pt, r"Gen jet $p_T$ [GeV]", "Gen jets found"),
        (bottom, "spurious", lambda m: m.jets.spurious_fraction_vs_pt, r"Reconstructed jet $p_T$ [GeV]", "Jets without gen jet"),
    )
    for axes, name, rate_of, variable, label in parts:
        rates = {key: rate_of(metrics) for key, metrics in result.metrics.items()}
        drawn = draw_points(axes, {key: rate_points(rate) for key, rate in rates.items()}, is_log=True)
        for key, rate in rates.items():
            numbers[key][name] = rate_numbers(rate)
        axes.set(xlabel=variable, ylabel=label)
        finish_axis(axes, next(iter(rates.values())).edges, is_log=True, entries="" if drawn else "jets")
        if drawn:
            axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.5) if name == "matched" else 0)
    top.set_title(title)
    if top.get_legend_handles_labels()[0]:
        legend_above(top, entries="jets")
    return figure, numbers


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
    drawn = False
    for axes, name, binned_of, number_of in parts:
        drawn = draw_points(axes, _curves(result, binned_of, number_of), is_log=True)
        for key, metrics in result.metrics.items():
            numbers[key][name] = response_numbers(binned_of(metrics))
    for key, metrics in result.metrics.items():
        total = metrics.met.residual.resolution
        numbers[key]["resolution"] = {"value": total.value, "error": total.error}
    top.axhline(1.0, color="0.7", linewidth=1, zorder=0)
    top.set(ylabel=r"$p_{\parallel}^{\mathrm{miss}}\,/\,p_T^{\mathrm{miss,gen}}$, median", title=title)
    middle.set(ylabel=r"$\sigma(p_{\parallel}^{\mathrm{miss}})$ [GeV]")
    bottom.set(xlabel=r"Gen $p_T^{\mathrm{miss}}$ [GeV]", ylabel=r"$\sigma(p_{\perp}^{\mathrm{miss}})$ [GeV]")
    finish_axis(bottom, PT_BINS, is_log=True, entries="" if drawn else "events")
    if drawn:
        legend_above(top, entries="events; σ = IQR / 1.349", num_seeds=len(result.seeds))
    for axes in (middle, bottom):
        axes.set_ylim(bottom=0)
    return figure, numbers


@styled
def visible_energy(result: EvaluationResult, *, title: str = "") -> Drawn:
    """Total energy (top) and invariant mass (bottom) of each event's candidates over those of its gen-level particles."""
    figure = new_figure(width=7.0, height=8.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    numbers: dict[str, Any] = {key: {} for key in result.metrics}
    labels = {}
    for key, metrics in result.metrics.items():
        parts = (
            ("energy", metrics.visible_energy, metrics.visible_energy_ratios),
            ("mass", metrics.visible_mass, metrics.visible_mass_ratios),
        )
        lines = [f"  {name}: median {s.median}, IQR {s.iqr}{_told_outside(ratios)}" for name, s, ratios in parts]
        labels[key] = "\n".join([look(key, among=list(result.metrics)).label, *lines])
    panels = (
        (top, "energy", {key: (m.visible_energy_ratios, m.visible_energy) for key, m in result.metrics.items()}),
        (bottom, "mass", {key: (m.visible_mass_ratios, m.visible_mass) for key, m in result.metrics.items()}),
    )
    for axes, name, ratios in panels:
        for key, drawn in _ratio_histograms(axes, ratios, labels).items():
            numbers[key][name] = drawn
        axes.set_ylabel(f"Fraction of events / {_bin_width():.3f}")
        axes.set_xlabel(f"Visible {name}, reconstructed / generated")
        axes.tick_params(labelbottom=True)
        if not any(np.isfinite(values).any() for values, _ in ratios.values()):
            say_empty(axes, "no events with visible energy")
    top.set_title(title)
    handles, texts = top.get_legend_handles_labels()
    if handles:
        words = f"{result.num_events} events; bars: √N; numbers: bootstrap over events"
        figure.legend(handles, texts, loc="outside lower center", ncols=1, title=words)
    return figure, numbers


def _jet_resolution(
    result: EvaluationResult, binned_of: Callable[[CandidateMetrics], BinnedResponse], *, label: str, is_log: bool, title: str
) -> Drawn:
    figure = new_figure(width=6.6, height=6.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    drawn = draw_points(top, _curves(result, binned_of, lambda s: s.median), is_log=is_log)
    draw_points(bottom, _curves(result, binned_of, lambda s: s.iqr_over_median), is_log=is_log)
    top.axhline(1.0, color="0.7", linewidth=1, zorder=0)
    top.set(ylabel="Jet response, median", title=title)
    bottom.set(xlabel=label, ylabel="Jet response, IQR / median")
    edges = binned_of(next(iter(result.metrics.values()))).edges if result.metrics else PT_BINS
    finish_axis(bottom, edges, is_log=is_log, entries="" if drawn else "jets")
    if drawn:
        legend_above(top, entries="jets", num_seeds=len(result.seeds))
    bottom.set_ylim(bottom=0)
    return figure, {key: response_numbers(binned_of(metrics)) for key, metrics in result.metrics.items()}


def _curves(
    result: EvaluationResult, binned_of: Callable[[CandidateMetrics], BinnedResponse], number_of: Callable[[ResponseSummary], Estimate]
) -> dict[str, Points]:
    """One curve per reconstruction, MLPF's with those of other seeds."""

    def seeds_of(key: str) -> Sequence[BinnedResponse]:
        return [binned_of(seed) for seed in result.seeds] if key == MLPF else ()

    return {key: response_points(binned_of(metrics), number_of, seeds=seeds_of(key)) for key, metrics in result.metrics.items()}


def _response_label(key: str, summary: ResponseSummary, result: EvaluationResult) -> str:
    style, outside = look(key, among=list(result.metrics)), _told_outside(result.metrics[key].jets.pt_response)
    return f"{style.label}\n  median {summary.median}\n  IQR/median {summary.iqr_over_median}\n  {summary.count} matched jets{outside}"


def _told_outside(ratios: NDArray[np.float64]) -> str:
    """The fraction of the values that the axis does not show, in words; empty where it shows all."""
    low, high, _ = RESPONSE_RANGE
    finite = ratios[np.isfinite(ratios)]
    outside = float(np.mean((finite < low) | (finite >= high))) if len(finite) else 0.0
    return f", {outside:.1%} outside" if outside else ""


def _ratio_histograms(
    axes: Axes, ratios: Mapping[str, tuple[NDArray[np.float64], ResponseSummary]], labels: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Draws one histogram per reconstruction, normalised to all its values; returns their numbers."""
    low, high, num_bins = RESPONSE_RANGE
    numbers, peaks = {}, []
    for key, (values, summary) in ratios.items():
        style = look(key, among=list(ratios))
        histogram = hist.Hist.new.Reg(num_bins, low, high, name="ratio").Double()
        finite = values[np.isfinite(values)]
        histogram.fill(finite)
        total, inside = len(finite), float(histogram.values().sum())
        if inside:
            height, bars = histogram.values() / total, np.sqrt(histogram.values()) / total
            peaks.append(height.max())
            look_of = {"color": style.colour, "linestyle": style.line, "label": labels[key]}
            mplhep.histplot(height, histogram.axes[0].edges, yerr=bars, ax=axes, histtype="step", **look_of)
        counted = {"edges": histogram.axes[0].edges, "counts": histogram.values(), "outside_range": total - inside}
        numbers[key] = summary_numbers(summary) | counted
    axes.axvline(1.0, color="0.7", linewidth=1, zorder=0)
    axes.set_xlim(low, high)
    if peaks and max(peaks) > 4 * min(peaks):  # on a linear axis the ceiling's peak would flatten everything else
        axes.set(yscale="log", ylim=(0.3 * min(peaks) / 100, 2 * max(peaks)))
    elif peaks:
        axes.set_ylim(0, 1.15 * max(peaks))
    return numbers


def _bin_width() -> float:
    low, high, num_bins = RESPONSE_RANGE
    return (high - low) / num_bins
