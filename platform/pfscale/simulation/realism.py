"""The realism tables: what simulated events look like, beside figures of real full-simulation files, as Markdown.

    python -m pfscale.simulation.realism --events 2000 --readme platform/pfscale/simulation/README.md

2,000 events per sample take about six minutes and 2 GB. Without --readme the tables are printed; with it they replace those between
its two marks.
Real figures: one CLD Z(nunu)H(bb) event, the published CLICdet ttbar validation, single photons in CLICdet, and 50 events of ILD.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from particle import literals

from pfscale.errors import InputFileError, PfscaleError
from pfscale.simulation.detectors import DETECTORS, DetectorModel, MomentumResolution, detector_model
from pfscale.simulation.generator import FloatArray
from pfscale.simulation.hadron_resolution import shower_variance
from pfscale.simulation.realism_counts import LEAST_COUNTED, PURE, Realism, measure_file
from pfscale.simulation.realism_jets import (
    MIN_JETS,
    class_rows,
    class_table,
    impact_rows,
    impact_table,
    jet_sample,
    markdown,
    resolution_rows,
    resolution_table,
    resolutions,
)
from pfscale.simulation.realism_single import PhotonResponse, hadron_response, interaction_rates, photon_response
from pfscale.simulation.realism_targets import HEADER, count_rows, jet_rows, photon_row, pull_row, rate_row
from pfscale.simulation.response import DetectorEvents
from pfscale.simulation.samples import BATCH_EVENTS, as_file, batches
from pfscale.simulation.simulate import Chunk, simulate_chunk

Row = tuple[str, ...]
SAMPLES: tuple[tuple[str, str, str | None, str | None], ...] = (
    ("clic", "ttbar", None, None),
    ("clic", "qq", None, None),
    ("clic", "WW", None, None),
    ("cld", "ttbar", None, None),
    ("cld", "qq", None, None),
    ("cld", "WW", None, None),
    ("cld", "ZH", "bb", "nunu"),
)
COUNTS = {  # heading -> (number, digits)
    "MC particles": ("particles", 0),
    "tracks": ("tracks", 1),
    "clusters": ("clusters", 1),
    "candidates": ("candidates", 1),
    "hits": ("hits", 0),
    "hits per cluster": ("hits_per_cluster", 0),
    "ECAL barrel hit [MeV]": ("ecal_hit", 1),
    "HCAL barrel hit [MeV]": ("hcal_hit", 1),
    "ECAL [GeV]": ("ecal", 0),
    "HCAL [GeV]": ("hcal", 0),
    "clustered [GeV]": ("clustered", 0),
}
REAL_EVENT = Realism(  # Z(nunu) H(bb) in CLD at 240 GeV, by measure_file; 2.1 GeV of the ECAL's are in the endcaps
    particles=206, tracks=24, clusters=48, candidates=52, hits=3767, hits_per_cluster=40, ecal_hit=11.59, hcal_hit=40.10,
    ecal=69.4, hcal=38.6, clustered=112.54, visible=116.8, energy_per_cluster=2.344, energy_per_particle=2.918,
    merged=4 / 24, split=4 / 23, counted_clusters=24, counted_particles=23,
)  # fmt: skip
REAL_KEY = ("cld", "ZH")
REAL_COUNTS: dict[tuple[str, str], Row] = {  # columns of COUNTS, of samples without a file
    ("clic", "ttbar"): ("*CLICdet full simulation*", "~2000", "~60", "~90", "-", "8484", *["-"] * 6),
    ("cld", "ttbar"): ("*ILD full simulation, bb c s d u 500*", "-", "70", "128", "135", *["-"] * 7),
}
REAL_PHOTONS = {3.74: ("1.005", "122"), 5.76: ("0.997", "157"), 9.98: ("0.980", "302")}  # CLICdet: E / E_true, hits
PHOTON_ENERGIES = (1.0, 3.74, 5.76, 9.98, 20.0, 50.0, 100.0, 150.0)
HADRON_ENERGIES = (2.0, 10.0, 50.0, 100.0)
CARD_HADRONS = (1.38, 0.308, 0.050)  # GeV, sqrt(GeV), 1: Delphes' CLICdet card, stage 1, central
MOST_SHOWN = 6  # entries of a list
ONE_SIGMA = (0.1587, 0.8413)  # quantiles of a Gaussian at one standard deviation
FAR_PULL = 4.0  # standard deviations
RATE_EVENTS = 200  # particles of the rates in the material, per event of the other tables: they are not measured, only made to interact
LEAST_EVENTS = 2  # in which there are jets
SPEED_EVENTS = 500  # most, of the events that are timed
PT_EDGES = (0.1, 0.2, 0.5, 1.0, 5.0, 200.0)  # GeV
THETA_EDGES = (0.0, 10.0, 15.0, 20.0, 40.0, 90.0)  # degrees from the beam
RADIUS_EDGES = (0.0, 1.0, 10.0, 30.0, 100.0, 300.0, 800.0)  # mm
MARKS = ("<!-- realism: begin -->", "<!-- realism: end -->")


def measure(events: DetectorEvents, detector: DetectorModel) -> Realism:
    """The table's row of a sample, as its file shows it."""
    with as_file(events) as source:
        return measure_file(source, detector)


@dataclass(frozen=True)
class Pulls:
    """(measured - true) / error of D0, phi, omega, Z0, tanLambda : half the central 68% (5), and omega's part beyond FAR_PULL."""

    number: int
    widths: tuple[float, ...]
    beyond: float


def pulls(events: DetectorEvents) -> tuple[Pulls, Pulls]:
    """(all but electrons, electrons): covariances are those of hadrons, electrons' momenta worse and lower for what they radiate.

    Tracks with a wrong hit are left out: a fit does not know how far that moves its parameters.
    """
    tracks = events.tracks
    residual = tracks.parameters - tracks.true_parameters
    residual[:, 1] = (residual[:, 1] + np.pi) % (2 * np.pi) - np.pi
    is_electron = np.abs(events.particles.pdg[tracks.particle]) == int(literals.e_minus.pdgid)
    pull = residual / np.sqrt(tracks.covariance[:, [0, 2, 5, 9, 14]])

    def of(chosen: FloatArray) -> Pulls:
        if not len(chosen):
            return Pulls(0, (float("nan"),) * 5, float("nan"))
        low, high = np.quantile(chosen, ONE_SIGMA, axis=0)  # not standard deviations: one track in 10,000 that is off by 50 makes 1.12 of 1
        return Pulls(len(chosen), tuple(((high - low) / 2).tolist()), float(np.mean(np.abs(chosen[:, 2]) > FAR_PULL)))

    is_clean = tracks.confused_with < 0
    return of(pull[is_clean & ~is_electron]), of(pull[is_clean & is_electron])


def efficiency(events: DetectorEvents) -> dict[str, tuple[Sequence[float], tuple[float, ...]]]:
    """Tracking efficiency of charged particles that do not end in the tracker: what it is against -> (edges, value in each bin).

    Against pt: central and prompt; against the angle: prompt above 1 GeV; against the radius where they are made: central above 1 GeV.
    """
    particles = events.particles
    momentum = np.linalg.norm(particles.momentum, axis=1)
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    theta = np.degrees(np.arcsin(np.minimum(pt / np.maximum(momentum, 1e-9), 1.0)))
    radius = np.hypot(particles.vertex[:, 0], particles.vertex[:, 1])
    is_charged = (particles.status == 1) & (particles.charge != 0) & ~particles.has_decay
    is_central, is_prompt, is_hard = theta > 26.0, np.linalg.norm(particles.vertex, axis=1) < 30.0, pt > 1.0
    has_track = np.zeros(len(particles), dtype=bool)
    has_track[events.tracks.particle] = True

    def binned(chosen: npt.NDArray[np.bool_], values: FloatArray, edges: Sequence[float]) -> tuple[Sequence[float], tuple[float, ...]]:
        which = np.digitize(values, edges)
        rows = [chosen & (which == k) for k in range(1, len(edges))]
        return edges, tuple(float(has_track[row].mean()) if row.any() else float("nan") for row in rows)

    return {
        "pt [GeV]": binned(is_charged & is_central & is_prompt, pt, PT_EDGES),
        "angle to the beam [degrees]": binned(is_charged & is_prompt & is_hard, theta, THETA_EDGES),
        "radius where made [mm]": binned(is_charged & is_central & is_hard, radius, RADIUS_EDGES),
    }


def speed(sample: tuple[str, str, str | None, str | None], num_events: int) -> tuple[float, float]:
    """(events per second of one core's time, kB per event) of one file, with Pythia and its start and writing."""
    name, process, higgs, z = sample
    with tempfile.TemporaryDirectory() as folder:
        chunk = Chunk(name, process, 1, 0, num_events, Path(folder) / "speed.edm4hep.root", higgs, z)
        begin = time.process_time()
        assert sum(simulate_chunk(chunk)) == num_events
        return num_events / (time.process_time() - begin), chunk.path.stat().st_size / num_events / 1000.0


def tables(num_events: int) -> str:
    """All tables as Markdown: `num_events` per sample for jets and impact parameters, the first BATCH_EVENTS of them for the rest."""
    targets: list[Row] = []
    rows: dict[str, list[Row]] = {name: [] for name in ("counts", "confusion", "pulls", "efficiency", "classes", "jets", "impact", "speed")}
    for name, process, higgs, z in SAMPLES:
        detector = detector_model(name)
        title = f"{name} {process}{f'({z} {higgs})' if higgs else ''} {detector.sqrt_s[process]:.0f}"
        rest = batches(detector, process, higgs, z, num_events)
        events = next(rest)
        row, (of_others, of_electrons) = measure(events, detector), pulls(events)
        rows["counts"] += _count_rows(title, (name, process), row)
        rows["confusion"] += _confusion_rows(title, (name, process), row)
        rows["pulls"] += [_pull_row(f"{title}, electrons", of_electrons), _pull_row(f"{title}, others", of_others)]
        if process == "ttbar":
            rows["efficiency"] += _efficiency_rows(title, events)
        of_jets = jet_sample(chain([events], rest), name)
        found = resolutions(of_jets)
        rows["jets"] += resolution_rows(title, found)
        rows["classes"] += class_rows(title, of_jets)
        rows["impact"] += impact_rows(title, process, of_jets.impact)
        rate, size = speed((name, process, higgs, z), min(num_events, SPEED_EVENTS))
        rows["speed"].append((title, f"{rate:.0f}", f"{size:.0f}"))
        counts = {"tracks": row.tracks, "clusters": row.clusters}
        targets += [*count_rows(title, (name, process), counts), pull_row(title, of_others.widths), *jet_rows(title, found)]
        targets += [rate_row(title, rate)] if process == "ttbar" else []
    few = min(num_events, BATCH_EVENTS)
    photons = {name: [photon_response(detector, energy, few) for energy in PHOTON_ENERGIES] for name, detector in DETECTORS.items()}
    targets += [photon_row(name, PHOTON_ENERGIES, [photon.mean for photon in found]) for name, found in photons.items()]
    return _document(num_events, few, targets, rows, photons)


def _document(
    num_events: int, few: int, targets: list[Row], rows: dict[str, list[Row]], photons: dict[str, list[PhotonResponse]]
) -> str:  # fmt: skip
    """The tables with their captions."""
    parts = (
        f"{num_events} events per sample, seed 1, for candidates, jets, missing momentum and impact parameters; {few} for all others.",
        markdown(HEADER, sorted(targets)),
        "Means per event; medians of hits per cluster and of the energies of hits. MC particles of full simulation include Geant4's"
        " secondaries, of which we make those of the tracker's material only.",
        markdown(("sample", *COUNTS), rows["counts"]),
        f"Merged: clusters above {LEAST_COUNTED:g} GeV whose largest particle has less than {PURE:.0%} of them; split: particles likewise,"
        " with all that they made in the detector.",
        markdown(("sample", "energy per cluster [GeV]", "per particle [GeV]", "visible [GeV]", "merged", "split"), rows["confusion"]),
        "Candidates per event and their energy [GeV]. Truth targets have the class of the element that carries them.",
        class_table(rows["classes"]),
        "Jets and missing momentum (ee_genkt 0.4, pt > 5 GeV, matched to gen jets): IQR / median of E / E_gen in bins of E_gen [GeV]"
        f" with at least {MIN_JETS} jets, and of all. Full simulation: widths of all jets; 1.35 times as much is an IQR.",
        resolution_table(rows["jets"]),
        "Impact parameters with respect to the primary vertex: tracks above 1 GeV in gen jets, with a hit in the vertex detector.",
        impact_table(rows["impact"]),
        "Pulls. Electrons' errors are those of a hadron, their momenta worse than that"
        " (`electron_constant` of the detectors' tables), and lower where they have radiated. Widths (half of the central 68%)"
        f" of the pulls, and the part of omega's beyond {FAR_PULL:g}; others: tracks without a wrong hit.",
        markdown(("sample", "tracks", "D0", "phi", "omega", "Z0", "tanLambda", f"omega beyond {FAR_PULL:g}"), rows["pulls"]),
        "Tracking efficiency (charged particles that do not end in the tracker).",
        markdown(("sample", "against", "bins", "efficiency"), rows["efficiency"]),
        "Single photons that did not convert: clustered energy / true energy, its width, hits (median), and the part whose rule-based"
        " candidate of highest energy is a photon.",
        _photon_table(photons),
        "Single K0L: energy in hits / true energy, its width, and the share of events below 0.7. Table: a (+) b of the detectors' tables;"
        " what is wider leaks through the back. Card: the fit of CLICdet's full simulation in Delphes' card, with its constant.",
        _hadron_table(few),
        f"In the tracker's material, {RATE_EVENTS * few} particles of 5 GeV each with abs(cos theta) < 0.95. The detectors' tables have"
        " the same material, and both get the same random numbers: what differs comes from their geometry.",
        _rates_table(RATE_EVENTS * few),
        f"Speed on the machine that made these tables: events per second of one core's time, one file of {min(num_events, SPEED_EVENTS)}"
        " events, with Pythia and its start and writing (LZ4).",
        markdown(("sample", "events/s", "kB per event"), rows["speed"]),
        "All numbers in which the tables of the detectors differ (of long lists the first and the last entry).",
        _difference_table(),
    )
    return "\n\n".join(parts)


def _counts(title: str, row: Realism) -> Row:
    return (title, *(f"{getattr(row, name):.{digits}f}" for name, digits in COUNTS.values()))


def _count_rows(title: str, key: tuple[str, str], row: Realism) -> list[Row]:
    """A sample's row, and that of full simulation where there is one."""
    real = [REAL_COUNTS[key]] if key in REAL_COUNTS else []
    return [_counts(title, row), *real, *([_counts("*CLD full simulation*", REAL_EVENT)] if key == REAL_KEY else [])]


def _confusion_rows(title: str, key: tuple[str, str], row: Realism) -> list[Row]:
    """Same, of merged and split particles."""
    per = (f"{row.energy_per_cluster:.2f}", f"{row.energy_per_particle:.2f}", f"{row.visible:.0f}")
    fractions = (f"{row.merged:.3f} of {row.counted_clusters}", f"{row.split:.3f} of {row.counted_particles}")
    ours: list[Row] = [(title, *per, *fractions)]
    return ours + (_confusion_rows("*CLD full simulation*", ("", ""), REAL_EVENT) if key == REAL_KEY else [])


def _pull_row(title: str, found: Pulls) -> Row:
    return (title, f"{found.number}", *(f"{width:.2f}" for width in found.widths), f"{found.beyond:.3f}")


def _efficiency_rows(title: str, events: DetectorEvents) -> list[Row]:
    """A sample's rows: one for each variable."""
    rows: list[Row] = []
    for what, (edges, values) in efficiency(events).items():
        rows.append((title, what, " ".join(f"{edge:g}" for edge in edges), " ".join(f"{value:.2f}" for value in values)))
    return rows


def _photon_table(photons: dict[str, list[PhotonResponse]]) -> str:
    rows: list[Row] = [
        (name, *(f"{photon.mean:.3f}, {photon.width:.3f}, {photon.hits:.0f}, {photon.identified:.3f}" for photon in found))
        for name, found in photons.items()
    ]
    real = [REAL_PHOTONS.get(energy) for energy in PHOTON_ENERGIES]
    rows.append(("*CLICdet full simulation*", *("-" if figures is None else f"{figures[0]}, -, {figures[1]}, -" for figures in real)))
    return markdown(("detector", *(f"{energy:g} GeV" for energy in PHOTON_ENERGIES)), rows)


def _hadron_table(num_events: int) -> str:
    rows: list[Row] = []
    for name, detector in DETECTORS.items():
        cells = [hadron_response(detector, energy, num_events) for energy in HADRON_ENERGIES]
        rows.append((name, *(f"{mean:.3f}, {width:.3f}, {low:.3f}" for mean, width, low in cells)))
        terms = detector.hcal_stochastic, detector.hcal_uncompensated, detector.hcal_constant
        widths = [np.sqrt(shower_variance(energy, *terms)) / energy for energy in HADRON_ENERGIES]
        rows.append((f"*table of {name}*", *(f"-, {width:.3f}, -" for width in widths)))
    constant, stochastic, linear = CARD_HADRONS
    of_card = [np.sqrt((constant / e) ** 2 + stochastic**2 / e + linear**2) for e in HADRON_ENERGIES]
    rows.append(("*card*", *(f"-, {width:.3f}, -" for width in of_card)))
    return markdown(("detector", *(f"{energy:g} GeV" for energy in HADRON_ENERGIES)), rows)


def _rates_table(num_events: int) -> str:
    rows: list[Row] = []
    for name, detector in DETECTORS.items():
        rates = interaction_rates(detector, num_events)
        rows.append((name, *(f"{rate:.4f} ± {np.sqrt(rate * (1.0 - rate) / num_events):.4f}" for rate in rates)))
    return markdown(("detector", "photons that convert", "pi+ that interact", "electrons that radiate more than 2%"), rows)


def _difference_table() -> str:
    models = list(DETECTORS.values())
    rows: list[Row] = []
    for field in fields(DetectorModel):
        values = [getattr(model, field.name) for model in models]
        if field.name != "name" and any(value != values[0] for value in values):
            rows.append((f"`{field.name}`", *(_shown(value) for value in values)))
    return markdown(("number", *DETECTORS), rows)


def _shown(value: Any) -> str:
    """A number of a detector's table as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, MomentumResolution):
        return f"{value.slope:g} pt (+) {value.constant:.2g} (electrons {value.electron_constant:.2g}) to abs(eta) {value.eta_max:g}"
    if isinstance(value, tuple):
        if len(value) > MOST_SHOWN:
            return f"{len(value)}: {_shown(value[0])} ... {_shown(value[-1])}"
        return f"({', '.join(_shown(item) for item in value)})"
    return f"{value:g}"


def replace_tables(text: str, tables_text: str, *, where: str = "README.md") -> str:
    """The text of the README `where` with other tables between its marks.

    Raises:
        InputFileError: it does not have the two marks, each once and in order.
    """
    begin, end = (text.find(mark) for mark in MARKS)
    if not 0 <= begin < end or any(text.count(mark) > 1 for mark in MARKS):
        raise InputFileError(
            f"no place for the tables: '{MARKS[0]}' and '{MARKS[1]}' must be there once each",
            where=where,
            hint="give --readme the README.md of pfscale/simulation, with its folder",
        )
    return f"{text[: begin + len(MARKS[0])]}\n\n{tables_text}\n\n{text[end:]}"


def _read_readme(path: Path) -> str:
    """The README's text, looked at before the tables are made.

    Raises:
        InputFileError: it cannot be read, or has no place for tables.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"cannot be read: {error}", where=str(path), hint="--readme takes a README with the tables' marks") from error
    replace_tables(text, "", where=str(path))
    return text


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 if the tables are printed, or written into a README; 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m pfscale.simulation.realism", description="the realism tables as Markdown")
    parser.add_argument("--events", type=int, default=500, help="per sample")
    parser.add_argument("--readme", type=Path, help="write them between the marks of this file")
    chosen = parser.parse_args(arguments)
    if chosen.events < LEAST_EVENTS:
        parser.error(f"--events must be at least {LEAST_EVENTS}")
    try:
        if chosen.readme is None:
            print(tables(chosen.events))
        else:
            _read_readme(chosen.readme)
            made = tables(chosen.events)
            chosen.readme.write_text(replace_tables(_read_readme(chosen.readme), made, where=str(chosen.readme)))  # as it is now
    except PfscaleError as error:
        print(f"pfscale: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
