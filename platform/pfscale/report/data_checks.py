"""The gates of a data set as figures, one for each, and all of it as files: `write_checks(folder)` makes `checks/*.png` and `checks.json`.

Expected ranges are green. Error bars of counts are central 68% Poisson intervals (F. Garwood, Biometrika 28 (1936) 437); errors of medians
and fractions are what the gates judge by: bootstrap over events, and Wilson's intervals.
"""

from __future__ import annotations

import json
import math
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hist
import mplhep
import numpy as np
from hist.intervals import poisson_interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from pfscale.report.particle_figures import CLASS_LABELS
from pfscale.report.style import Drawn, new_figure, say_empty, styled
from pfscale.shards.checks import DataChecks, check_data
from pfscale.shards.gate import GateResult
from pfscale.shards.measurement import Fraction, Measurement, Status, errors_of
from pfscale.shards.storage import Folder, open_folder
from pfscale.tracking.runs import jsonable

CHECKS_FOLDER, NUMBERS_FILE = "checks", "checks.json"
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#D55E00", "#009E73", "#C00000", "0.6"
MIN_PEAK_FOR_LOG = 100  # entries in the highest bin, and how often those in the lowest: else a logarithmic axis is mostly empty
FEW_ENTRIES = 100  # fewer are drawn in bins of twice the width
CLOSURE_FLOOR = 1e-12  # of the logarithmic axis; a float32 sum that is off at all is off by more
EXACT_CLOSURE = "exact closure drawn in the first bin"


@dataclass(frozen=True)
class Panel:
    """How the distribution of one quantity is drawn: bins of `width` over [low, high], counts on a logarithmic axis if there are many."""

    xlabel: str
    entries: str
    low: float
    high: float
    width: float
    centre: float = 1.0
    is_log: bool = False

    def axis(self, num_entries: int) -> hist.axis.Regular:
        """Bins of which one has its middle at `centre`: an edge there would split the peak that is expected."""
        width = 2 * self.width if num_entries < FEW_ENTRIES else self.width
        below, above = (math.ceil(round(distance / width - 0.5, 6)) for distance in (self.centre - self.low, self.high - self.centre))
        first, last = self.centre - (below + 0.5) * width, self.centre + (above + 0.5) * width
        return hist.axis.Regular(below + above + 1, first, last, name="value")

    def reaching(self, value: float) -> Panel:
        """The panel itself where it shows `value`, else one that reaches beyond it with wider bins: what is far off is to be seen, too."""
        if not math.isfinite(value) or self.low <= value <= self.high:
            return self
        beyond = self.centre + 1.5 * (value - self.centre)
        low, high = min(self.low, beyond), max(self.high, beyond)
        return replace(self, low=low, high=high, width=self.width * (high - low) / (self.high - self.low))


PANELS: dict[str, tuple[Panel, ...]] = {
    "track_pt": (Panel(r"Track $p_T$ / particle $p_T$", "Tracks", 0.5, 1.5, 0.01, is_log=True),),
    "hit_energy": (
        Panel("Photons: hit energy in its cluster / particle energy", "Photons", 0.0, 2.5, 0.05),
        Panel("Neutral hadrons: hit energy in its cluster / particle energy", "Neutral hadrons", 0.0, 2.5, 0.05),
        Panel("Events: hit energy of clusters / energy of visible particles but muons", "Events", 0.0, 2.0, 0.02),
    ),
    "cluster_energy": (Panel("Cluster energy / target energy, photons", "Clusters", 0.0, 2.5, 0.05),),
    "target_jets": (Panel(r"Target jet $p_T$ / gen jet $p_T$", "Matched jets", 0.5, 1.5, 0.01, is_log=True),),
    "jet_members": (Panel("Energy of the members / gen jet energy", "Gen jets", 0.5, 1.5, 0.01, is_log=True),),
    "missing_momentum": (
        Panel(r"$p_x^{\mathrm{miss}} - (p_x^{\nu} - p_x^{\mathrm{boost}})$ [GeV]", "Events", -10.0, 10.0, 0.25, centre=0.0, is_log=True),
        Panel(r"$p_y^{\mathrm{miss}} - p_y^{\nu}$ [GeV]", "Events", -10.0, 10.0, 0.25, centre=0.0, is_log=True),
    ),
}


def write_checks(directory: str | Path | Folder, *, progress: Callable[[int], None] | None = None) -> tuple[DataChecks, str]:
    """What the gates say of a data set, and the folder beside its shards that holds the figures and `checks.json`.

    Raises:
        ShardError: no data set there, or a shard is missing or torn.
        ResourceError: the folder cannot be written to.
    """
    folder = open_folder(directory)
    checks = check_data(folder, progress=progress)
    target = open_folder(folder.locate(CHECKS_FOLDER))
    target.make()
    numbers = {}
    with tempfile.TemporaryDirectory() as scratch:
        for gate in checks.gates:
            figure, drawn = draw_gate(gate)
            numbers[gate.name] = gate_numbers(gate) | {"figure": drawn}
            path = Path(scratch) / f"{gate.name}.png"
            figure.savefig(path)
            target.put(path, path.name)
    summary = {
        "data_set": checks.manifest.hash,
        "detector": checks.manifest.detector,
        "num_events": checks.num_events,
        "num_usable": checks.num_usable,
        "num_physics": checks.num_physics,
        "failed": [gate.name for gate in checks.failed],
    }
    target.write_text(NUMBERS_FILE, json.dumps(jsonable(summary | {"gates": numbers}), indent=1))
    return checks, target.address


def gate_numbers(gate: GateResult) -> dict[str, Any]:
    """The result of a gate, ready for JSON; `interval` is that of one standard deviation, `found` how many entries of a fraction count."""
    return {
        "status": gate.status.name,
        "title": gate.title,
        "definition": gate.definition,
        "measurements": [_measurement_numbers(m) for m in gate.measurements],
        "numbers": dict(gate.numbers),
        "examples": list(gate.examples),
        "note": gate.note,
    }


def _measurement_numbers(m: Measurement) -> dict[str, Any]:
    down, up = errors_of(m.value)
    numbers = {"what": m.what, "low": m.low, "high": m.high, "unit": m.unit, "value": m.value.value, "entries": m.num_entries}
    found = {"found": m.value.num_found} if isinstance(m.value, Fraction) else {}
    return numbers | found | {"interval": [m.value.value - down, m.value.value + up], "status": m.status.name}


def draw_gate(gate: GateResult) -> Drawn:
    """The figure of a gate and the numbers in it."""
    if gate.status is Status.NOT_APPLICABLE and not any(m.num_entries for m in gate.measurements):
        return draw_note(gate)
    special = {
        "classes": draw_classes,
        "splits": draw_splits,
        "energy_closure": draw_closure,
        "finite": draw_missing,
        "manifest": draw_manifest,
        "unique": draw_repeats,
    }
    return special.get(gate.name, draw_distributions if gate.distributions else draw_violations)(gate)


@styled
def draw_distributions(gate: GateResult) -> Drawn:
    """Each quantity of a gate as a histogram with its expected band and its median."""
    num = len(gate.distributions)
    figure = new_figure(width=7.6, height=1.8 + 3.0 * num)
    medians, others = gate.measurements[:num], gate.measurements[num:]
    panels = PANELS.get(gate.name) or [default_panel(gate.title, m) for m in medians]
    numbers = {}
    for axes, panel, (label, values), median in zip(
        np.atleast_1d(figure.subplots(num, 1)), panels, gate.distributions.items(), medians, strict=True
    ):
        numbers[label] = _draw_distribution(axes, panel, values, median)
    errors = "bars: 68% Poisson intervals; errors of medians: bootstrap over events (below 10 events: entries), of fractions: Wilson's"
    _finish(figure, gate, "\n".join([*(sentence(m) for m in others), errors]))
    return figure, numbers


def default_panel(title: str, median: Measurement) -> Panel:
    """A panel around the expected range, for a gate that has none in PANELS."""
    centre, half = (median.low + median.high) / 2, 2.5 * (median.high - median.low) / 2
    unit = f" [{median.unit}]" if median.unit else ""
    return Panel(
        f"{title}: {median.what.removesuffix(', median')}{unit}", "Entries", centre - half, centre + half, half / 25, centre=centre
    )


def sentence(m: Measurement) -> str:
    """What was measured, found and expected, in words: `tracks in 0.8 to 1.2: 0.944 +0.034 −0.081 (17 of 18), expected ≥ 0.85: pass`."""
    observed = f"{m.observed} {m.unit}" if m.unit else m.observed or "-"
    if isinstance(m.value, Fraction):
        observed += f" ({m.value.num_found} of {m.num_entries})"
    elif m.low == m.high == 0:
        observed += f" of {m.num_entries}"
    return f"{m.what}: {observed}, expected {m.expected}: {_verdict(m.status)}"


def _draw_distribution(axes: Axes, panel: Panel, values: NDArray[Any], median: Measurement) -> dict[str, Any]:
    histogram = hist.Hist(panel.reaching(median.value.value).axis(len(values)))
    histogram.fill(values)
    edges, outside = histogram.axes[0].edges, len(values) - int(histogram.values().sum())
    axes.axvspan(median.low, median.high, color=GREEN, alpha=0.13, linewidth=0, label=f"median: expected {median.expected}")
    axes.set(xlabel=panel.xlabel, xlim=(edges[0], edges[-1]), ylabel=f"{panel.entries} / {edges[1] - edges[0]:.2g}")
    if not len(values):
        say_empty(axes, "no entries")
        axes.set(ylim=(0, 1), yticks=[])
        return {"entries": 0}
    unit = f" {median.unit}" if median.unit else ""
    label = f"median: {median.observed}{unit}, {median.status}"
    axes.axvline(median.value.value, color=ORANGE, linewidth=1.4, linestyle="--", label=label)
    _draw_counts(axes, histogram, label=_entries(len(values), outside), is_log=panel.is_log)
    return {"edges": edges, "counts": histogram.values(), "outside": outside, "entries": len(values)}


def _entries(number: int, outside: int) -> str:
    return f"{number} {'entry' if number == 1 else 'entries'}" + f", {outside} outside" * (outside > 0)


def _draw_counts(axes: Axes, histogram: hist.Hist, *, label: str, is_log: bool) -> None:
    """A histogram of counts with Poisson errors where there are any, all of them within the frame, and the legend above it."""
    counts, edges = histogram.values(), histogram.axes[0].edges
    low, high = poisson_interval(counts)
    mplhep.histplot(counts, edges, yerr=False, ax=axes, histtype="step", color=BLUE, label=label)
    filled = counts > 0
    errors = np.abs(np.stack([counts - low, high - counts]))[:, filled]
    axes.errorbar(histogram.axes[0].centers[filled], counts[filled], errors, fmt="none", color=BLUE, elinewidth=1.2)
    is_steep = filled.any() and counts.max() >= MIN_PEAK_FOR_LOG * counts[filled].min()
    _scale_counts(axes, high[filled].max(initial=1), is_log=is_log and is_steep)


def _scale_counts(axes: Axes, highest: float, *, is_log: bool, lowest: float = 0.1) -> None:
    """Limits of an axis of counts that leave everything up to `highest` inside; on a logarithmic one also the error bar of one entry."""
    if is_log:
        axes.set(yscale="log", ylim=(lowest, 2.5 * highest))
    else:
        axes.set_ylim(0, 1.12 * highest)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        if highest < 10:
            axes.yaxis.set_minor_locator(NullLocator())  # there is no half an entry
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9, borderaxespad=0.3, columnspacing=1.4)


@styled
def draw_violations(gate: GateResult) -> Drawn:
    """How often each kind of violation was looked for (grey) and found (red)."""
    figure = new_figure(width=7.6, height=1.7 + 0.34 * len(gate.measurements))
    axes = figure.subplots()
    checked = np.array([m.num_entries for m in gate.measurements], float)
    found = np.array([m.value.value for m in gate.measurements])
    rows = np.arange(len(checked))
    axes.barh(rows, checked, color="0.88")
    axes.barh(rows, found, color=RED)
    axes.set(xscale="log", xlim=(0.5, 2 * max(checked.max(), 1.0)), xlabel="Entries")
    _name_rows(axes, [m.what for m in gate.measurements], [f"{m.value.value:.0f} of {m.num_entries}" for m in gate.measurements])
    _finish(figure, gate, "grey: looked at; red: violations, expected none")
    return figure, {"kinds": [m.what for m in gate.measurements], "checked": checked, "found": found}


@styled
def draw_missing(gate: GateResult) -> Drawn:
    """The fraction of missing numbers of each field that may or does lack some."""
    fraction, allowed, entries = (gate.numbers[name] for name in ("missing_fraction", "may_be_missing", "entries"))
    shown = [name for name, value in fraction.items() if value > 0 or name in allowed]
    others = [name for name in fraction if name not in shown]
    figure = new_figure(width=7.6, height=2.0 + 0.34 * len(shown))
    axes = figure.subplots()
    values = [100 * fraction[name] for name in shown] + [0.0]
    axes.barh(np.arange(len(values)), values, color=[*(GREY if name in allowed else RED for name in shown), GREY])
    axes.set(xlim=(0, 100), xlabel="Missing (NaN or infinite) [%]")
    numbers = [f"{fraction[name] * entries[name]:.0f} of {entries[name]}" for name in shown]
    _name_rows(axes, [*shown, f"{len(others)} other fields"], [*numbers, f"0 of {sum(entries[name] for name in others)}"])
    for label, name in zip(axes.get_yticklabels(), shown, strict=False):
        label.set_color("black" if name in allowed else RED)  # a single NaN has no visible bar, but a red name
    _finish(figure, gate, "grey: may be missing (not measured); red: must not be")
    return figure, {"missing_fraction": fraction, "may_be_missing": allowed}


@styled
def draw_classes(gate: GateResult) -> Drawn:
    """Targets of each class, on tracks and on clusters."""
    names = gate.numbers["classes"]
    figure = new_figure(width=7.0, height=4.6)
    axes = figure.subplots()
    tallest = max(*gate.numbers["track"], *gate.numbers["cluster"], 1)
    for shift, column, colour in ((-0.2, "track", BLUE), (0.2, "cluster", ORANGE)):
        _draw_numbers(axes, np.arange(len(names)) + shift, gate.numbers[column], colour, width=0.38, label=f"on {column}s")
    axes.set(ylabel="Elements", xlabel="Target class", xlim=(-0.6, len(names) - 0.4))
    axes.set_xticks(range(len(names)), [CLASS_LABELS.get(name, name) for name in names])
    axes.tick_params(axis="x", which="both", bottom=False, top=False)
    _scale_counts(axes, tallest, is_log=tallest >= MIN_PEAK_FOR_LOG, lowest=0.5)
    _finish(figure, gate, f"{gate.measurements[0].observed} of 5 classes have targets")
    return figure, dict(gate.numbers)


def _draw_numbers(axes: Axes, places: NDArray[Any], counts: list[int], colours: str | list[str], *, width: float, label: str = "") -> None:
    """Bars with their numbers above; where there is nothing no bar, but a 0 on the axis."""
    axes.bar(places, [n or np.nan for n in counts], width=width, color=colours, label=label)
    for place, number in zip(places, counts, strict=True):
        at, transform = (number, axes.transData) if number else (0, axes.get_xaxis_transform())
        axes.annotate(f"{number:.0f}", (place, at), (0, 2), xycoords=transform, textcoords="offset points", ha="center", fontsize=9)


@styled
def draw_splits(gate: GateResult) -> Drawn:
    """Events of each split beside those expected, with the binomial error of the expectation: that of the chi-square test."""
    counts, expected = np.array(gate.numbers["counts"]), np.array(gate.numbers["expected"])
    total = int(counts.sum())
    error = np.sqrt(expected * (1 - expected / max(total, 1)))
    low, high = np.clip(expected - error, 0, total), np.clip(expected + error, 0, total)
    figure = new_figure(width=6.4, height=4.6)
    axes = figure.subplots()
    places = np.arange(len(counts))
    axes.bar(places, expected, width=0.7, color=GREEN, alpha=0.2, label="expected 80 / 10 / 10")
    axes.bar(places, high - low, bottom=low, width=0.7, color="none", edgecolor=GREEN, hatch="////", linewidth=0, label="± binomial error")
    axes.plot(places, counts, "o", color=BLUE, label="observed", clip_on=False, zorder=3)
    for place, number in zip(places, counts, strict=True):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
        axes.annotate(str(number), (place, number), (9, 0), textcoords="offset points", va="bottom", fontsize=9, bbox=box)
    axes.set(ylabel="Events", xlim=(-0.6, len(counts) - 0.4))
    axes.set_xticks(places, gate.numbers["splits"])
    axes.tick_params(axis="x", which="both", bottom=False, top=False)
    _scale_counts(axes, max(counts.max(), high.max(), 1), is_log=False)
    _finish(figure, gate, "\n".join(sentence(m) for m in gate.measurements))
    return figure, dict(gate.numbers)


@styled
def draw_closure(gate: GateResult) -> Drawn:
    """Energy that is not accounted for (top) and that is dropped (bottom), per event."""
    figure = new_figure(width=7.6, height=7.2)
    top, bottom = figure.subplots(2, 1)
    closure, dropped = gate.distributions["closure"], gate.distributions["dropped"]
    event, *_, fraction = gate.measurements
    ceiling = max(1e-4, 10 * float(closure.max(initial=0)))
    decades = math.ceil(math.log10(ceiling / CLOSURE_FLOOR))
    axis = hist.axis.Regular(5 * decades, CLOSURE_FLOOR, CLOSURE_FLOOR * 10.0**decades, transform=hist.axis.transform.log, name="value")
    errors = hist.Hist(axis)
    errors.fill(np.maximum(closure, 1.001 * CLOSURE_FLOOR))
    top.axvspan(axis.edges[0], event.high, color=GREEN, alpha=0.13, linewidth=0, label=f"expected {event.expected}")
    top.set(xscale="log", xlim=(axis.edges[0], axis.edges[-1]), ylabel="Events", xlabel="|visible − targets − dropped| / visible energy")
    _draw_counts(top, errors, label=f"{_entries(len(closure), 0)}; {EXACT_CLOSURE}", is_log=True)
    high = max(1.5 * fraction.high, float(np.quantile(dropped, 0.995)) if len(dropped) else 0.0)
    drops = hist.Hist.new.Reg(60, 0, high, name="value").Double()
    drops.fill(dropped)
    outside = len(dropped) - int(drops.values().sum())
    bottom.axvspan(0, fraction.high, color=GREEN, alpha=0.13, linewidth=0, label=f"all events together: expected {fraction.expected}")
    bottom.axvline(fraction.value.value, color=ORANGE, linestyle="--", label=f"observed {fraction.observed or '-'}")
    bottom.set(xlabel="Dropped / visible energy", ylabel=f"Events / {high / 60:.2g}", xlim=(0, high))
    _draw_counts(bottom, drops, label=_entries(len(dropped), outside), is_log=True)
    _finish(figure, gate, "\n".join(sentence(m) for m in gate.measurements))
    return figure, {
        "closure_edges": axis.edges,
        "closure_counts": errors.values(),
        "dropped_edges": drops.axes[0].edges,
        "dropped_counts": drops.values(),
    }


@styled
def draw_manifest(gate: GateResult) -> Drawn:
    """Every count as the manifest says it and as the shards hold it."""
    said, held = gate.numbers["manifest"], gate.numbers["shards"]
    names = list(dict.fromkeys([*said, *held]))
    figure = new_figure(width=7.6, height=1.8 + 0.27 * len(names))
    axes = figure.subplots()
    values = {"manifest.json": [said.get(n, 0) for n in names], "shards": [held.get(n, 0) for n in names]}
    is_wrong = np.array(values["manifest.json"]) != np.array(values["shards"])
    axes.barh(range(len(names)), values["shards"], color=np.where(is_wrong, RED, "0.85"))
    marked = [n or np.nan for n in values["manifest.json"]]
    axes.plot(marked, range(len(names)), marker="|", markersize=11, linestyle="", color=BLUE, markeredgewidth=2.5)
    axes.set(xscale="log", xlabel="Number", xlim=(0.5, 2 * max(1, *values["shards"], *values["manifest.json"])))
    numbers = [f"{here} (manifest: {there})" if here != there else str(here) for there, here in zip(*values.values(), strict=True)]
    _name_rows(axes, names, numbers)
    _finish(figure, gate, "bars: counted in the shards (red: differs); blue marks: manifest.json")
    return figure, {"names": names, **values}


@styled
def draw_repeats(gate: GateResult) -> Drawn:
    """How many events occur once, twice, more often."""
    times = gate.numbers["times"]
    counts = [times[1], times[2], sum(times[3:])]
    figure = new_figure(width=5.4, height=4.0)
    axes = figure.subplots()
    _draw_numbers(axes, np.arange(3), counts, [BLUE, RED, RED], width=0.6)
    axes.set(ylabel="Events (different uids)", xlim=(-0.6, 2.6))
    axes.set_xticks(range(3), ["once", "twice", "more often"])
    axes.tick_params(axis="x", which="both", bottom=False, top=False)
    _scale_counts(axes, max(*counts, 1), is_log=max(counts) >= MIN_PEAK_FOR_LOG, lowest=0.5)
    _finish(figure, gate, "expected: all once")
    return figure, {"once": counts[0], "twice": counts[1], "more": counts[2]}


@styled
def draw_note(gate: GateResult) -> Drawn:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(width=6.0, height=2.4)
    axes = figure.subplots()
    axes.set_axis_off()
    say_empty(axes, f"not applicable: {gate.note or 'nothing to look at'}")
    _finish(figure, gate, "")
    return figure, {}


def _name_rows(axes: Axes, names: list[str], numbers: list[str]) -> None:
    """The rows of horizontal bars: names on the left, numbers on the right, where no bar hides them."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(axis="both", which="both", left=False, right=False, top=False)
    for row, text in enumerate(numbers):
        axes.text(1.015, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)


def _verdict(status: Status) -> str:
    return {Status.PASS: "pass", Status.FAIL: "FAIL", Status.TOO_FEW: "too few entries to say"}.get(status, "not applicable")


def _finish(figure: Figure, gate: GateResult, text: str) -> None:
    """The gate's title with its verdict above; below, what else there is to say and what exactly is looked at."""
    colour = {Status.PASS: GREEN, Status.FAIL: RED}.get(gate.status, "0.35")
    figure.suptitle(f"{gate.title}: {_verdict(gate.status)}", fontsize=13, color=colour)
    width = int(15.5 * figure.get_figwidth())
    figure.supxlabel("\n".join([*([text] if text else []), *textwrap.wrap(gate.definition, width)]), fontsize=8.5, color="0.25")
