"""Jets, missing momentum and impact parameters of simulated samples: those of the realism tables that need what shards hold.

Whatever baseline the files hold is taken; truth targets are the ceiling, clusters alone what tracks must improve on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.extraction import Column, extract
from pfscale.edm4hep.reader import open_source
from pfscale.physics.bootstrap import EventBootstrap, event_bootstrap
from pfscale.physics.evaluation import (
    CALORIMETER_ONLY,
    RULE_BASED,
    TRUTH_TARGETS,
    Candidates,
    GenReference,
    calorimeter_only,
    evaluate_events,
)
from pfscale.physics.jets import cluster_jets
from pfscale.physics.kinematics import cartesian
from pfscale.physics.matching import match_jets
from pfscale.physics.response import BinnedResponse, response, summarise_in_bins
from pfscale.simulation.generator import IntArray
from pfscale.simulation.response import DetectorEvents
from pfscale.simulation.writer import EventFile

ENERGY_EDGES = (20.0, 50.0, 100.0, 150.0, 250.0)  # GeV
FLAVOURS = {"b": (5,), "c": (4,), "light": (1, 2, 3)}
TAIL = 3.0  # sigma
MIN_PT = 1.0
REAL_TAILS = {"ZH": ("-", "0.64 of 14", "-", "-")}  # of the real CLD event of two b jets, its primary vertex taken to be at the origin
BOOTSTRAP_SEED = 1
Columns = Mapping[str, Column]


def extracted(events: DetectorEvents, detector: str) -> Columns:
    """The shard columns of simulated events, by way of a file, as ingest sees them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.root"
        with EventFile(path, {"simulation": "builtin"}) as file:
            file.extend(events, 0, 0)
        with open_source(path) as source:
            result = extract(source, find_detector(detector), 0, source.num_entries, with_truth=True)
    assert not result.problems, "the built-in source made events that cannot be used"
    return result.columns


def _event(column: Column) -> IntArray:
    assert column.offsets is not None
    return np.repeat(np.arange(len(column.offsets) - 1), np.diff(column.offsets))


def _field(columns: Columns, column: str, name: str) -> npt.NDArray[np.float64]:
    return np.asarray(columns[column].fields[name], np.float64)


def reconstructions(columns: Columns) -> dict[str, Candidates]:
    """The ceiling, the baseline where there is one, and the clusters alone, as candidates."""
    target_columns = ("track_target", "cluster_target")
    event = np.concatenate([_event(columns[name]) for name in target_columns])
    joined = {
        name: np.concatenate([_field(columns, column, name) for column in target_columns])
        for name in ("class", "charge", "pt", "eta", "sin_phi", "cos_phi", "energy")
    }
    is_there = joined["class"] > 0
    pt, eta, phi = joined["pt"], joined["eta"], np.arctan2(joined["sin_phi"], joined["cos_phi"])
    px, py, pz = (component[is_there] for component in cartesian(pt, eta, phi))
    found = {
        TRUTH_TARGETS: Candidates(
            event[is_there], px, py, pz, joined["energy"][is_there], joined["class"][is_there].astype(np.int64), joined["charge"][is_there]
        )
    }
    baseline = columns["baseline"]
    if baseline.offsets is not None and baseline.offsets[-1]:
        px, py, pz, energy, pdg, charge = (_field(columns, "baseline", name) for name in ("px", "py", "pz", "energy", "pdg", "charge"))
        found[RULE_BASED] = Candidates(_event(baseline), px, py, pz, energy, pdg.astype(np.int64), charge)
    found[CALORIMETER_ONLY] = calorimeter_only(
        event=_event(columns["cluster"]),
        energy=_field(columns, "cluster", "energy"),
        eta=_field(columns, "cluster", "eta"),
        phi=np.arctan2(_field(columns, "cluster", "sin_phi"), _field(columns, "cluster", "cos_phi")),
    )
    return found


def gen_reference(columns: Columns) -> GenReference:
    """The generator level of the events."""
    jets = columns["gen_jet"]
    assert jets.offsets is not None
    return GenReference(
        num_events=len(jets.offsets) - 1,
        jet_event=_event(jets),
        jet_pt=_field(columns, "gen_jet", "pt"),
        jet_eta=_field(columns, "gen_jet", "eta"),
        jet_phi=_field(columns, "gen_jet", "phi"),
        jet_energy=_field(columns, "gen_jet", "energy"),
        met_px=_field(columns, "gen_met", "px"),
        met_py=_field(columns, "gen_met", "py"),
    )


def energy_resolution(particles: Candidates, gen: GenReference, bootstrap: EventBootstrap) -> BinnedResponse:
    """E / E_gen of matched jets in bins of E_gen."""
    jets = cluster_jets(
        num_events=gen.num_events, event=particles.event, px=particles.px, py=particles.py, pz=particles.pz, energy=particles.energy
    )
    matches = match_jets(
        num_events=gen.num_events, reco_event=jets.event, reco_eta=jets.eta, reco_phi=jets.phi, gen_event=gen.jet_event,
        gen_eta=gen.jet_eta, gen_phi=gen.jet_phi,
    )  # fmt: skip
    true = np.asarray(gen.jet_energy)[matches.gen]
    event = np.asarray(gen.jet_event)[matches.gen]
    ratio = response(jets.energy[matches.reco], true)
    return summarise_in_bins(ratio, event, true, bootstrap, edges=ENERGY_EDGES, variable="gen jet energy", unit="GeV")


@dataclass(frozen=True)
class ImpactParameters:
    """D0 over its error with respect to the primary vertex: width of the pull of prompt tracks, and tails by flavour of the jet."""

    pull_width: float
    tails: dict[str, tuple[float, int]]  # flavour -> (fraction beyond TAIL, tracks)


def impact_parameters(events: DetectorEvents, columns: Columns) -> ImpactParameters:
    """Of the tracks of simulated events, which `columns` hold in the same order."""
    tracks, particles = events.tracks, events.particles
    primary = particles.vertex[np.searchsorted(particles.event, np.arange(particles.num_events))]
    d0, phi = tracks.parameters[:, 0], tracks.parameters[:, 1]
    from_primary = d0 + primary[tracks.event, 0] * np.sin(phi) - primary[tracks.event, 1] * np.cos(phi)
    significance = np.abs(from_primary) / np.sqrt(tracks.covariance[:, 0])
    is_prompt = np.linalg.norm(particles.vertex[tracks.particle] - primary[tracks.event], axis=1) < 1e-4
    pull = (d0 - tracks.true_parameters[:, 0]) / np.sqrt(tracks.covariance[:, 0])
    in_vertex_detector = np.hypot(tracks.first_hit[:, 0], tracks.first_hit[:, 1]) < 60.0
    chosen = in_vertex_detector & (_field(columns, "track", "pt") > MIN_PT)
    flavour = _flavour_of_track(columns)
    tails = {}
    for name, codes in FLAVOURS.items():
        mine = chosen & np.isin(flavour, codes)
        tails[name] = (float(np.mean(significance[mine] > TAIL)) if mine.any() else float("nan"), int(mine.sum()))
    return ImpactParameters(float(pull[is_prompt].std()), tails)


def _flavour_of_track(columns: Columns) -> IntArray:
    """Flavour of the gen jet that each track's particle is in; 0: none."""
    jets, jet = columns["gen_jet"], _field(columns, "track_target", "jet_idx").astype(np.int64)
    assert jets.offsets is not None
    row = jets.offsets[:-1][_event(columns["track_target"])] + jet
    flavour = np.append(_field(columns, "gen_jet", "flavour").astype(np.int64), 0)
    return np.where(jet >= 0, flavour[np.where(jet >= 0, row, -1)], 0)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


class JetTables:
    """Rows of the tables of jets and impact parameters, sample by sample."""

    def __init__(self) -> None:
        self._jets: list[tuple[str, ...]] = []
        self._d0: list[tuple[str, ...]] = []

    def add(self, title: str, process: str, events: DetectorEvents, detector: str) -> None:
        """Measures one sample."""
        columns = extracted(events, detector)
        gen, found = gen_reference(columns), reconstructions(columns)
        bootstrap = event_bootstrap(gen.num_events, seed=BOOTSTRAP_SEED)
        metrics = evaluate_events(found, gen, seed=BOOTSTRAP_SEED).metrics
        for key, particles in found.items():
            bins = [str(summary.iqr_over_median) for summary in energy_resolution(particles, gen, bootstrap).bins]
            jets, met = metrics[key].jets, metrics[key].met
            of_event = (str(jets.energy_response.median), str(jets.matched_fraction), str(met.residual.resolution))
            self._jets.append((title, key, *bins, *of_event))
        measured = impact_parameters(events, columns)
        tails = (f"{fraction:.3f} of {count}" if count else "-" for fraction, count in measured.tails.values())
        self._d0.append((title, f"{measured.pull_width:.2f}", *tails))
        if process in REAL_TAILS:
            self._d0.append(("*full simulation*", *REAL_TAILS[process]))

    def resolution(self) -> str:
        """The jets' table."""
        bins = [f"{low:g}-{high:g}" for low, high in pairwise(ENERGY_EDGES)]
        return markdown(("sample", "reconstruction", *bins, "median E / E_gen", "matched", "MET sigma [GeV]"), self._jets)

    def impact_parameters(self) -> str:
        """The impact parameters' table."""
        return markdown(("sample", "D0 pull, prompt", *(f"beyond {TAIL:g} sigma, {name}" for name in FLAVOURS)), self._d0)
