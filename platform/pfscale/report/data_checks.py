"""The gates of a data set as figures, one for each, and all of it as files: `write_checks(folder)` makes `checks/*.png` and `checks.json`.

Expected ranges are green bands. Error bars of histograms are √N; errors of medians are from resampling events.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hist
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pfscale.report.figures import CLASS_LABELS
from pfscale.report.style import Drawn, jsonable, new_figure, say_empty, styled
from pfscale.shards.checks import DataChecks, check_data
from pfscale.shards.gate import GateResult, Measurement, Status
from pfscale.shards.storage import Folder, open_folder

CHECKS_FOLDER, NUMBERS_FILE = "checks", "checks.json"
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#D55E00", "#009E73", "#C00000", "0.6"


@dataclass(frozen=True)
class Panel:
    """How the distribution of one quantity is drawn: `low`, `high`, bins, and whether the counts are on a logarithmic axis."""

    xlabel: str
    low: float
    high: float
    num_bins: int
    entries: str
    is_log: bool = False


RESPONSE_PANELS: dict[str, tuple[Panel, ...]] = {
    "track_pt": (Panel(r"Track $p_T$ / particle $p_T$", 0.5, 1.5, 100, "Tracks", is_log=True),),
    "hit_energy": (
        Panel("Photons: hit energy in its cluster / particle energy", 0.0, 2.5, 50, "Photons"),
        Panel("Neutral hadrons: hit energy in its cluster / particle energy", 0.0, 2.5, 50, "Neutral hadrons"),
        Panel("Events: hit energy of clusters / energy of visible particles but muons", 0.0, 2.0, 80, "Events"),
    ),
    "cluster_energy": (Panel("Cluster energy / target energy, photons", 0.0, 2.5, 50, "Clusters"),),
    "target_jets": (Panel(r"Target jet $p_T$ / gen jet $p_T$", 0.5, 1.5, 100, "Matched jets", is_log=True),),
    "jet_members": (Panel("Energy of the members / gen jet energy", 0.5, 1.5, 100, "Gen jets", is_log=True),),
    "missing_momentum": (
        Panel(r"$p_x^{\mathrm{miss}} - (p_x^{\nu} - p_x^{\mathrm{boost}})$ [GeV]", -10.0, 10.0, 81, "Events", is_log=True),
        Panel(r"$p_y^{\mathrm{miss}} - p_y^{\nu}$ [GeV]", -10.0, 10.0, 81, "Events", is_log=True),
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
    """The result of a gate, ready for JSON."""
    measurements = [
        {
            "what": m.what,
            "low": m.low,
            "high": m.high,
            "unit": m.unit,
            "value": m.value.value,
            "error": m.value.error,
            "entries": m.num_entries,
            "status": m.status.name,
        }
        for m in gate.measurements
    ]
    return {
        "status": gate.status.name,
        "title": gate.title,
        "definition": gate.definition,
        "measurements": measurements,
        "numbers": dict(gate.numbers),
        "examples": list(gate.examples),
        "note": gate.note,
    }


def draw_gate(gate: GateResult) -> Drawn:
    """The figure of a gate and the numbers in it."""
    if gate.status is Status.NOT_APPLICABLE and not any(m.num_entries for m in gate.measurements):
        return draw_note(gate)
    if gate.name in RESPONSE_PANELS:
        return draw_distributions(gate)
    special = {
        "classes": draw_classes,
        "splits": draw_splits,
        "energy_closure": draw_closure,
        "finite": draw_missing,
        "manifest": draw_manifest,
        "unique": draw_repeats,
    }
    return special.get(gate.name, draw_violations)(gate)


@styled
def draw_distributions(gate: GateResult) -> Drawn:
    """Each quantity of a gate as a histogram with its expected band and its median."""
    panels = RESPONSE_PANELS[gate.name]
    figure = new_figure(width=7.0, height=2.0 + 2.9 * len(panels))
    numbers = {}
    for axes, panel, (label, values), measurement in zip(
        np.atleast_1d(figure.subplots(len(panels), 1)), panels, gate.distributions.items(), gate.measurements, strict=False
    ):
        numbers[label] = _draw_distribution(axes, panel, values, measurement)
    others = gate.measurements[len(panels) :]
    lines = [f"{m.what}: {m.observed} of {m.num_entries}, expected {m.expected}: {_verdict(m.status)}" for m in others]
    _finish(figure, gate, "\n".join([*lines, "bars: √N; error of the median: bootstrap over events (over entries, below 10 events)"]))
    return figure, numbers


def _draw_distribution(axes: Axes, panel: Panel, values: NDArray[Any], measurement: Measurement) -> dict[str, Any]:
    histogram = hist.Hist.new.Reg(panel.num_bins, panel.low, panel.high, name="value").Double()
    histogram.fill(values)
    counts, edges = histogram.values(), histogram.axes[0].edges
    outside = len(values) - int(counts.sum())
    axes.axvspan(
        measurement.low, measurement.high, color=GREEN, alpha=0.13, linewidth=0, label=f"median expected in {measurement.expected}"
    )
    axes.set(xlabel=panel.xlabel, xlim=(panel.low, panel.high), ylabel=f"{panel.entries} / {(panel.high - panel.low) / panel.num_bins:.2g}")
    if not len(values):
        say_empty(axes, "no entries")
        return {"entries": 0}
    mplhep.histplot(
        counts, edges, yerr=np.sqrt(counts), ax=axes, histtype="step", color=BLUE, label=f"entries {len(values)}, outside {outside}"
    )
    unit = f" {measurement.unit}" if measurement.unit else ""
    median = measurement.value.value
    if panel.low <= median <= panel.high:
        axes.axvline(median, color=ORANGE, linewidth=1.4, linestyle="--", label=f"median {measurement.observed}{unit}")
    peak = max(counts.max(), 1.0)
    axes.set_ylim((0.3, 60 * peak) if panel.is_log else (0, 1.45 * peak))
    if panel.is_log:
        axes.set_yscale("log")
    axes.legend(loc="upper right", title=f"median: {_verdict(measurement.status)}")
    return {"edges": edges, "counts": counts, "outside": outside, "entries": len(values)}


@styled
def draw_violations(gate: GateResult) -> Drawn:
    """How often each kind of violation was looked for (grey) and found (red)."""
    figure = new_figure(width=7.4, height=1.7 + 0.34 * len(gate.measurements))
    axes = figure.subplots()
    rows = np.arange(len(gate.measurements))
    checked = np.array([m.num_entries for m in gate.measurements], float)
    found = np.array([m.value.value for m in gate.measurements])
    axes.barh(rows, checked, color="0.88", label="looked at")
    axes.barh(rows, found, color=RED, label="violations")
    largest = max(checked.max(), 1.0)
    for row, m in enumerate(gate.measurements):
        axes.text(
            0.62, row, f"{m.value.value:.0f} of {m.num_entries}", va="center", fontsize=9, color="white" if m.value.value > 30 else "black"
        )
    axes.set(xscale="log", xlim=(0.5, 2 * largest), xlabel="Number", ylim=(len(rows) - 0.4, -0.6))
    _name_rows(axes, [m.what for m in gate.measurements])
    _finish(figure, gate, "grey: looked at; red: violations, expected none")
    return figure, {"kinds": [m.what for m in gate.measurements], "checked": checked, "found": found}


@styled
def draw_missing(gate: GateResult) -> Drawn:
    """The fraction of missing numbers of each field that may or does lack some."""
    fraction, allowed = gate.numbers["missing_fraction"], gate.numbers["may_be_missing"]
    shown = [name for name, value in fraction.items() if value > 0 or name in allowed]
    figure = new_figure(width=7.4, height=2.0 + 0.34 * len(shown))
    axes = figure.subplots()
    rows = np.arange(len(shown) + 1)
    values = [100 * fraction[name] for name in shown] + [0.0]
    colours = [*(GREY if name in allowed else RED for name in shown), GREY]
    axes.barh(rows, values, color=colours)
    for row, (value, colour) in enumerate(zip(values, colours, strict=True)):
        inside = "white" if value > 95 else RED if colour == RED else "black"  # a single NaN has no visible bar, but red words
        axes.text(min(value, 85) + 1, row, f"{value:.3g} %", va="center", fontsize=9, color=inside)
    axes.set(xlim=(0, 105), xlabel="Missing (NaN or infinite) [%]", ylim=(len(rows) - 0.4, -0.6))
    _name_rows(axes, [*shown, f"{len(fraction) - len(shown)} other fields"])
    _finish(figure, gate, "grey: may be missing (not measured); red: must not be")
    return figure, {"missing_fraction": fraction, "may_be_missing": allowed}


@styled
def draw_classes(gate: GateResult) -> Drawn:
    """Targets of each class, on tracks and on clusters."""
    names = gate.numbers["classes"]
    figure = new_figure(width=7.0, height=4.6)
    axes = figure.subplots()
    places, tallest = np.arange(len(names)), 1
    for shift, column, colour in ((-0.2, "track", BLUE), (0.2, "cluster", ORANGE)):
        counts = np.array(gate.numbers[column])
        tallest = max(tallest, counts.max())
        bars = axes.bar(places + shift, np.maximum(counts, 0.6), width=0.38, color=colour, label=f"on {column}s")
        axes.bar_label(bars, [str(n) for n in counts], fontsize=8, padding=2)
    axes.set(yscale="log", ylim=(0.5, 20 * tallest), ylabel="Elements", xlabel="Target class")
    axes.set_xticks(places, [CLASS_LABELS.get(name, name) for name in names])
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    axes.legend(loc="upper right", ncols=2, title=_verdict(gate.status))
    _finish(figure, gate, f"{gate.measurements[0].observed} of 5 classes have targets")
    return figure, dict(gate.numbers)


@styled
def draw_splits(gate: GateResult) -> Drawn:
    """Events of each split beside those expected."""
    numbers = gate.numbers
    counts, expected = np.array(numbers["counts"]), np.array(numbers["expected"])
    total = counts.sum()
    fraction, wanted = counts / max(total, 1), expected / max(expected.sum(), 1e-9)
    figure = new_figure(width=6.4, height=4.6)
    axes = figure.subplots()
    places = np.arange(len(counts))
    axes.bar(places, 100 * wanted, width=0.7, color=GREEN, alpha=0.2, label="expected 80 / 10 / 10")
    error = 100 * np.sqrt(wanted * (1 - wanted) / max(total, 1))  # of the expectation: an empty split has no error of its own
    axes.errorbar(places, 100 * fraction, error, fmt="o", color=BLUE, capsize=3, label="observed, binomial errors of the expectation")
    for place, number in zip(places, counts, strict=True):
        axes.annotate(str(number), (place, 100 * fraction[place]), xytext=(10, 4), textcoords="offset points", fontsize=9)
    axes.set(ylabel="Events [%]", ylim=(0, 120), xlim=(-0.6, len(counts) - 0.4))
    axes.set_xticks(places, numbers["splits"])
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    chance = gate.measurements[-1]
    axes.legend(loc="upper right", title=_verdict(gate.status))
    _finish(figure, gate, f"{chance.what} (chi-square): {chance.observed}, expected {chance.expected}; events {total}")
    return figure, dict(numbers)


@styled
def draw_closure(gate: GateResult) -> Drawn:
    """Energy that is not accounted for (top) and that is dropped (bottom), per event."""
    figure = new_figure(width=7.0, height=7.2)
    top, bottom = figure.subplots(2, 1)
    closure, dropped = gate.distributions["closure"], gate.distributions["dropped"]
    event, shard, manifest, fraction = gate.measurements
    floor, ceiling = -12.0, 1.0
    logarithms = np.log10(np.clip(closure, 10**floor * 1.001, 10**ceiling * 0.999))
    edges = 10 ** np.linspace(floor, ceiling, 66)
    counts = np.histogram(logarithms, np.linspace(floor, ceiling, 66))[0].astype(float)
    top.axvspan(edges[0], event.high, color=GREEN, alpha=0.13, linewidth=0, label=f"expected {event.expected}")
    mplhep.histplot(
        counts, edges, yerr=np.sqrt(counts), ax=top, histtype="step", color=BLUE, label=f"events {len(closure)} (0 in the first bin)"
    )
    top.set(xscale="log", xlim=(edges[0], edges[-1]), ylabel="Events", xlabel="|visible − targets − dropped| / visible energy")
    top.set_ylim(0, 1.5 * max(counts.max(initial=0), 1))
    top.legend(loc="upper right", title=_verdict(event.status))
    high = max(1.5 * fraction.high, float(np.quantile(dropped, 0.995)) if len(dropped) else 0.0)
    drops = hist.Hist.new.Reg(60, 0, high, name="value").Double()
    drops.fill(dropped)
    outside = len(dropped) - int(drops.values().sum())
    bottom.axvspan(0, fraction.high, color=GREEN, alpha=0.13, linewidth=0, label=f"of all events together expected {fraction.expected}")
    label = f"events {len(dropped)}, outside {outside}"
    mplhep.histplot(drops.values(), drops.axes[0].edges, yerr=np.sqrt(drops.values()), ax=bottom, histtype="step", color=BLUE, label=label)
    bottom.axvline(fraction.value.value, color=ORANGE, linestyle="--", label=f"of all events together {fraction.value.value:.4f}")
    bottom.set(
        xlabel="Dropped / visible energy", ylabel="Events", xlim=(0, high), yscale="log", ylim=(0.3, 60 * max(drops.values().max(), 1))
    )
    bottom.legend(loc="upper right", title=_verdict(fraction.status))
    _finish(figure, gate, f"{shard.what}: {shard.observed}; {manifest.what}: {manifest.observed}; largest of an event: {event.observed}")
    numbers = {"closure_edges": edges, "closure_counts": counts, "dropped_edges": drops.axes[0].edges, "dropped_counts": drops.values()}
    return figure, numbers


@styled
def draw_manifest(gate: GateResult) -> Drawn:
    """Every count as the manifest says it and as the shards hold it."""
    said, held = gate.numbers["manifest"], gate.numbers["shards"]
    names = list(dict.fromkeys([*said, *held]))
    figure = new_figure(width=7.0, height=1.8 + 0.27 * len(names))
    axes = figure.subplots()
    rows = np.arange(len(names))
    values = {"manifest.json": [said.get(n, 0) for n in names], "shards": [held.get(n, 0) for n in names]}
    is_wrong = np.array(values["manifest.json"]) != np.array(values["shards"])
    axes.barh(rows, np.maximum(values["shards"], 0.5), color=np.where(is_wrong, RED, "0.85"), label="shards")
    axes.plot(np.maximum(values["manifest.json"], 0.5), rows, marker="|", markersize=11, linestyle="", color=BLUE, markeredgewidth=2.5)
    axes.set(
        xscale="log", xlabel="Number", xlim=(0.5, 3 * max(1, *values["shards"], *values["manifest.json"])), ylim=(len(rows) - 0.4, -0.6)
    )
    _name_rows(axes, names)
    _finish(figure, gate, "bars: counted in the shards (red: differs); blue marks: manifest.json")
    return figure, {"names": names, **values}


@styled
def draw_repeats(gate: GateResult) -> Drawn:
    """How many events occur once, twice, more often."""
    times = np.array(gate.numbers["times"], float)
    counts = np.array([times[1], times[2], times[3:].sum()])
    figure = new_figure(width=5.4, height=4.0)
    axes = figure.subplots()
    bars = axes.bar(range(3), np.maximum(counts, 0.3), color=[BLUE, RED, RED], width=0.6)
    axes.bar_label(bars, [f"{n:.0f}" for n in counts], padding=3)
    axes.set(yscale="log", ylim=(0.5, 20 * max(counts.max(), 1)), ylabel="Events (different uids)")
    axes.set_xticks(range(3), ["once", "twice", "more often"])
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
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


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(axis="y", which="both", length=0)


def _verdict(status: Status) -> str:
    return {Status.PASS: "pass", Status.FAIL: "FAIL", Status.TOO_FEW: "too few entries to say"}.get(status, "not applicable")


def _finish(figure: Figure, gate: GateResult, text: str) -> None:
    """The gate's title with its verdict above; below, what else there is to say and what exactly is looked at."""
    colour = {Status.PASS: GREEN, Status.FAIL: RED}.get(gate.status, "0.35")
    figure.suptitle(f"{gate.title}: {_verdict(gate.status)}", fontsize=13, color=colour)
    width = int(13.5 * figure.get_figwidth())
    figure.supxlabel("\n".join([*([text] if text else []), *textwrap.wrap(gate.definition, width)]), fontsize=8.5, color="0.25")
