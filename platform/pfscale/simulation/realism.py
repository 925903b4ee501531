"""The realism tables: what simulated events look like, beside figures of real full-simulation files, as Markdown.

    python -m pfscale.simulation.realism --events 3000 --readme platform/pfscale/simulation/README.md

3,000 events per sample take about six minutes and 2 GB. Without --readme the tables are printed; with it they replace those between
its two marks.
Real figures: one CLD Z(nunu)H(bb) event, the published CLICdet ttbar validation, and single photons in CLICdet.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from particle import literals

from pfscale.simulation.detectors import DETECTORS, DetectorModel, MomentumResolution, detector_model
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.realism_jets import (
    MIN_JETS,
    impact_rows,
    impact_table,
    jet_sample,
    markdown,
    resolution_rows,
    resolution_table,
    resolutions,
)
from pfscale.simulation.realism_targets import HEADER, count_rows, jet_rows, photon_row, pull_row
from pfscale.simulation.response import NEUTRINOS, DetectorEvents, detector_response
from pfscale.simulation.samples import BATCH_EVENTS, batches, particle_gun

Row = tuple[str, ...]
SAMPLES = (
    ("clic", "ttbar", None, None),
    ("clic", "qq", None, None),
    ("cld", "ttbar", None, None),
    ("cld", "qq", None, None),
    ("cld", "ZH", "bb", "nunu"),
)
NUMBERS = ("MC particles", "tracks", "clusters", "hits", "hits per cluster", "ECAL [GeV]", "HCAL [GeV]", "clustered [GeV]")
REAL: dict[tuple[str, str], Row] = {  # in the order of NUMBERS
    ("clic", "ttbar"): ("~2000", "~60", "~90", "8484", "-", "-", "-", "-"),
    ("cld", "ZH"): ("206", "24", "48", "3767", "40", "67", "39", "113"),
}
REAL_PHOTONS = {3.74: ("1.005", "122"), 5.76: ("0.997", "157"), 9.98: ("0.980", "302")}  # CLICdet: E / E_true, hits
PHOTON_ENERGIES = (1.0, 3.74, 5.76, 9.98, 20.0, 50.0)
HADRON_ENERGIES = (2.0, 10.0, 50.0, 100.0)
CARD_HADRONS = (1.38, 0.308, 0.050)  # GeV, sqrt(GeV), 1: Delphes' CLICdet card, stage 1, central
MOST_SHOWN = 6  # entries of a list
PURE = 0.8  # a cluster (a particle) counts as merged (split) if its largest particle (cluster) has less than this of it
PT_EDGES = (0.1, 0.2, 0.5, 1.0, 5.0, 200.0)  # GeV
THETA_EDGES = (0.0, 10.0, 15.0, 20.0, 40.0, 90.0)  # degrees from the beam
RADIUS_EDGES = (0.0, 1.0, 10.0, 30.0, 100.0, 300.0, 800.0)  # mm
MARKS = ("<!-- realism: begin -->", "<!-- realism: end -->")


@dataclass(frozen=True)
class Realism:
    """Means over events of one sample. Units: GeV."""

    particles: float  # MC particles
    tracks: float
    clusters: float
    hits: float
    hits_per_cluster: float  # median
    ecal: float
    hcal: float
    clustered: float
    visible: float  # true energy of stable particles without neutrinos, that point at the calorimeter
    energy_per_cluster: float
    energy_per_particle: float  # of the same particles, above 0.1 GeV
    merged: float  # fraction of clusters above 1 GeV
    split: float  # fraction of particles above 1 GeV
    pulls: tuple[float, ...]  # widths of the five track parameters, without electrons


def measure(events: DetectorEvents, detector: DetectorModel) -> Realism:
    """The table's row of a sample."""
    num = events.particles.num_events
    hits, clusters, tracks, particles = events.hits, events.clusters, events.tracks, events.particles
    is_visible = (particles.status == 1) & ~np.isin(np.abs(particles.pdg), NEUTRINOS)
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    is_visible &= pt * detector.ecal_z > np.abs(particles.momentum[:, 2]) * detector.endcap_inner_radius
    visible = particles.energy[is_visible]
    merged, split = _confusion(events)
    return Realism(
        particles=len(particles) / num,
        tracks=len(tracks) / num,
        clusters=len(clusters.energy) / num,
        hits=len(hits.energy) / num,
        hits_per_cluster=float(np.median(clusters.num_hits)),
        ecal=float(hits.energy[hits.collection < 2].sum() / num),
        hcal=float(hits.energy[(hits.collection == 2) | (hits.collection == 3)].sum() / num),
        clustered=float(clusters.energy.sum() / num),
        visible=float(visible.sum() / num),
        energy_per_cluster=float(clusters.energy.mean()),
        energy_per_particle=float(visible[visible > 0.1].mean()),
        merged=merged,
        split=split,
        pulls=_pull_widths(events),
    )


def _pull_widths(events: DetectorEvents) -> tuple[float, ...]:
    """Widths of (measured - true) / error of D0, phi, omega, Z0, tanLambda; not of electrons, whose errors are those of hadrons."""
    tracks = events.tracks
    residual = tracks.parameters - tracks.true_parameters
    residual[:, 1] = (residual[:, 1] + np.pi) % (2 * np.pi) - np.pi
    is_electron = np.abs(events.particles.pdg[tracks.particle]) == int(literals.e_minus.pdgid)
    pull = residual / np.sqrt(tracks.covariance[:, [0, 2, 5, 9, 14]])
    return tuple(float(width) for width in pull[~is_electron].std(axis=0))


def _confusion(events: DetectorEvents) -> tuple[float, float]:
    """(merged clusters, split particles) as fractions of those above 1 GeV."""
    hits, clusters = events.hits, events.clusters
    owner = np.full(len(hits.energy), -1)
    owner[clusters.member] = np.repeat(np.arange(len(clusters.energy)), clusters.num_hits)
    cluster, particle, energy = owner[hits.link_hit], hits.link_particle, hits.link_energy
    inside = cluster >= 0
    pair, inverse = np.unique(np.stack([cluster[inside], particle[inside]]), axis=1, return_inverse=True)
    shared = np.bincount(inverse.reshape(-1), weights=energy[inside])

    def impure(side: IntArray) -> float:
        total = np.bincount(side, weights=shared)
        largest = np.zeros(len(total))
        np.maximum.at(largest, side, shared)
        counted = total > 1.0
        return float(np.mean(largest[counted] < PURE * total[counted]))

    return impure(pair[0]), impure(pair[1])


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


@dataclass(frozen=True)
class PhotonResponse:
    """Single photons that did not convert: mean and width of clustered energy / true energy, mean number of clusters, median of hits."""

    mean: float
    width: float
    clusters: float
    hits: float


def photon_response(detector: DetectorModel, energy: float, num_events: int = 500) -> PhotonResponse:
    """The response to photons of `energy` GeV."""
    gun = particle_gun(int(literals.photon.pdgid), 0.0, 0.0, np.full(num_events, energy))
    events = detector_response(gun, detector, np.random.default_rng(2))
    unconverted = np.bincount(events.particles.event, minlength=num_events) == 1
    response = np.bincount(events.clusters.event, weights=events.clusters.energy, minlength=num_events)[unconverted] / energy
    clusters, hits = (np.bincount(found.event, minlength=num_events)[unconverted] for found in (events.clusters, events.hits))
    return PhotonResponse(float(response.mean()), float(response.std()), float(clusters.mean()), float(np.median(hits)))


def hadron_response(detector: DetectorModel, energy: float, num_events: int = 500) -> tuple[float, float, float]:
    """(mean of the energy in hits / true energy, its width, share of events below 0.7) for K0L that reach the calorimeter."""
    kaon = literals.K_L_0
    events = detector_response(
        particle_gun(int(kaon.pdgid), kaon.mass / 1000.0, 0.0, np.full(num_events, energy)), detector, np.random.default_rng(2)
    )
    untouched = np.bincount(events.particles.event, minlength=num_events) == 1
    response = np.bincount(events.hits.event, weights=events.hits.energy, minlength=num_events)[untouched] / energy
    return float(response.mean()), float(response.std()), float(np.mean(response < 0.7))


def interaction_rates(detector: DetectorModel, num_events: int = 4000) -> tuple[float, float, float]:
    """Fractions of 5 GeV photons that convert, pi+ that interact and electrons that radiate in the tracker, abs(cos theta) < 0.95."""
    fractions = []
    for particle in (literals.photon, literals.pi_plus, literals.e_minus):
        gun = particle_gun(int(particle.pdgid), particle.mass / 1000.0, float(particle.charge), np.full(num_events, 5.0))
        made = detector_response(gun, detector, np.random.default_rng(3)).particles
        fractions.append(len(np.unique(made.event[made.parent])) / num_events)
    return fractions[0], fractions[1], fractions[2]


def tables(num_events: int) -> str:
    """All tables as Markdown: `num_events` per sample for jets and impact parameters, the first BATCH_EVENTS of them for the rest."""
    targets: list[Row] = []
    rows: dict[str, list[Row]] = {name: [] for name in ("counts", "confusion", "efficiency", "jets", "impact")}
    for name, process, higgs, z in SAMPLES:
        detector = detector_model(name)
        title = f"{name} {process}{f'({z} {higgs})' if higgs else ''} {detector.sqrt_s[process]:.0f}"
        rest = batches(detector, process, higgs, z, num_events)
        events = next(rest)
        row = measure(events, detector)
        rows["counts"] += _count_rows(title, (name, process), row)
        per = (f"{row.energy_per_cluster:.2f}", f"{row.energy_per_particle:.2f}", f"{row.visible:.0f}")
        rows["confusion"].append((title, *per, f"{row.merged:.2f}", f"{row.split:.2f}"))
        if process == "ttbar":
            rows["efficiency"] += _efficiency_rows(title, events)
        of_jets = jet_sample(chain([events], rest), name)
        found = resolutions(of_jets)
        rows["jets"] += resolution_rows(title, found)
        rows["impact"] += impact_rows(title, process, of_jets.impact)
        counts = {"tracks": row.tracks, "clusters": row.clusters}
        targets += [*count_rows(title, (name, process), counts), pull_row(title, row.pulls), *jet_rows(title, found)]
    few = min(num_events, BATCH_EVENTS)
    photons = {name: [photon_response(detector, energy, few) for energy in PHOTON_ENERGIES] for name, detector in DETECTORS.items()}
    targets += [photon_row(name, PHOTON_ENERGIES, [photon.mean for photon in found]) for name, found in photons.items()]
    return _document(num_events, few, targets, rows, photons)


def _document(
    num_events: int, few: int, targets: list[Row], rows: dict[str, list[Row]], photons: dict[str, list[PhotonResponse]]
) -> str:  # fmt: skip
    """The tables with their captions."""
    parts = (
        f"{num_events} events per sample, seed 1, for jets, missing momentum and impact parameters; {few} for all other tables.",
        markdown(HEADER, sorted(targets)),
        "Means per event; hits per cluster: median.",
        markdown(("sample", *NUMBERS), rows["counts"]),
        f"Merged: clusters above 1 GeV whose largest particle has less than {PURE:.0%} of them; split: particles likewise.",
        markdown(("sample", "energy per cluster [GeV]", "per particle [GeV]", "visible [GeV]", "merged", "split"), rows["confusion"]),
        "Jets and missing momentum (ee_genkt 0.4, pt > 5 GeV, matched to gen jets): IQR / median of E / E_gen in bins of E_gen [GeV]"
        f" with at least {MIN_JETS} jets.",
        resolution_table(rows["jets"]),
        "Impact parameters with respect to the primary vertex: tracks above 1 GeV in gen jets, with a hit in the vertex detector.",
        impact_table(rows["impact"]),
        "Tracking efficiency (charged particles that do not end in the tracker).",
        markdown(("sample", "against", "bins", "efficiency"), rows["efficiency"]),
        "Single photons that did not convert: clustered energy / true energy, its width, hits (median).",
        _photon_table(photons),
        "Single K0L: energy in hits / true energy, its width, and the share of events below 0.7. Table: a (+) b of the detectors' tables;"
        " what is wider leaks through the back. Card: the fit of CLICdet's full simulation in Delphes' card, with its constant.",
        _hadron_table(few),
        "In the tracker's material, particles of 5 GeV with abs(cos theta) < 0.95.",
        _rates_table(5 * few),
        "All numbers in which the tables of the detectors differ (of long lists the first and the last entry).",
        _difference_table(),
    )
    return "\n\n".join(parts)


def _count_rows(title: str, key: tuple[str, str], row: Realism) -> list[Row]:
    """A sample's row, and that of full simulation where there is one."""
    sums = (row.ecal, row.hcal, row.clustered)
    ours = (f"{row.particles:.0f}", f"{row.tracks:.1f}", f"{row.clusters:.1f}", f"{row.hits:.0f}", f"{row.hits_per_cluster:.0f}")
    rows = [(title, *ours, *(f"{value:.0f}" for value in sums))]
    if key in REAL:
        rows.append(("*full simulation*", *REAL[key]))
    return rows


def _efficiency_rows(title: str, events: DetectorEvents) -> list[Row]:
    """A sample's rows: one for each variable."""
    rows: list[Row] = []
    for what, (edges, values) in efficiency(events).items():
        rows.append((title, what, " ".join(f"{edge:g}" for edge in edges), " ".join(f"{value:.2f}" for value in values)))
    return rows


def _photon_table(photons: dict[str, list[PhotonResponse]]) -> str:
    rows: list[Row] = [
        (name, *(f"{photon.mean:.3f}, {photon.width:.3f}, {photon.hits:.0f}" for photon in found)) for name, found in photons.items()
    ]
    real = [REAL_PHOTONS.get(energy) for energy in PHOTON_ENERGIES]
    rows.append(("*CLICdet full simulation*", *("-" if figures is None else f"{figures[0]}, -, {figures[1]}" for figures in real)))
    return markdown(("detector", *(f"{energy:g} GeV" for energy in PHOTON_ENERGIES)), rows)


def _hadron_table(num_events: int) -> str:
    rows: list[Row] = []
    for name, detector in DETECTORS.items():
        cells = [hadron_response(detector, energy, num_events) for energy in HADRON_ENERGIES]
        rows.append((name, *(f"{mean:.3f}, {width:.3f}, {low:.3f}" for mean, width, low in cells)))
        widths = [np.hypot(detector.hcal_stochastic / np.sqrt(energy), detector.hcal_constant) for energy in HADRON_ENERGIES]
        rows.append((f"*table of {name}*", *(f"-, {width:.3f}, -" for width in widths)))
    constant, stochastic, linear = CARD_HADRONS
    of_card = [np.sqrt((constant / e) ** 2 + stochastic**2 / e + linear**2) for e in HADRON_ENERGIES]
    rows.append(("*card*", *(f"-, {width:.3f}, -" for width in of_card)))
    return markdown(("detector", *(f"{energy:g} GeV" for energy in HADRON_ENERGIES)), rows)


def _rates_table(num_events: int) -> str:
    rows = [(name, *(f"{rate:.3f}" for rate in interaction_rates(detector, num_events))) for name, detector in DETECTORS.items()]
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
        return f"{value.slope:g} pt (+) {value.constant:.2g} to abs(eta) {value.eta_max:g}"
    if isinstance(value, tuple):
        if len(value) > MOST_SHOWN:
            return f"{len(value)}: {_shown(value[0])} ... {_shown(value[-1])}"
        return f"({', '.join(_shown(item) for item in value)})"
    return f"{value:g}"


def replace_tables(text: str, tables_text: str) -> str:
    """A README's text with other tables between its marks."""
    begin, end = (text.index(mark) for mark in MARKS)
    return f"{text[: begin + len(MARKS[0])]}\n\n{tables_text}\n\n{text[end:]}"


def main() -> None:
    """Prints the tables, or writes them into a README."""
    parser = argparse.ArgumentParser(prog="python -m pfscale.simulation.realism", description="the realism tables as Markdown")
    parser.add_argument("--events", type=int, default=500, help="per sample")
    parser.add_argument("--readme", type=Path, help="write them between the marks of this file")
    chosen = parser.parse_args()
    text = tables(chosen.events)
    if chosen.readme is None:
        print(text)
    else:
        chosen.readme.write_text(replace_tables(chosen.readme.read_text(), text))


if __name__ == "__main__":
    main()
