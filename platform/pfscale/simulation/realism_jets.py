"""Jets, missing momentum and impact parameters of simulated samples: those of the realism tables that need what shards hold.

Whatever baseline the files hold is taken; truth targets are the ceiling, clusters alone what tracks must improve on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.extraction import Column, extract
from pfscale.edm4hep.targets import CHARGED_HADRON, ELECTRON, MUON, NEUTRAL_HADRON, PHOTON, TARGET_CLASSES
from pfscale.physics.bootstrap import Estimate, EventBootstrap, event_bootstrap
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
from pfscale.physics.kinematics import Floats, cartesian
from pfscale.physics.matching import match_jets
from pfscale.physics.response import ResponseSummary, response, summarise_in_bins
from pfscale.simulation.generator import IntArray
from pfscale.simulation.response import DetectorEvents
from pfscale.simulation.samples import as_file

ENERGY_EDGES = (20.0, 50.0, 100.0, 150.0, 250.0)  # GeV
TARGET_EDGES = (50.0, 150.0)  # GeV, where the resolution has a target
MIN_JETS = 100  # of a bin that is quoted
FLAVOURS = {"b": (5,), "c": (4,), "light": (1, 2, 3)}
TAIL = 3.0  # sigma
MIN_PT = 1.0  # GeV
VERTEX_RADIUS = 60.0  # mm: the vertex detectors of both end here
PROMPT = 1e-4  # mm from the primary vertex
REAL_TAILS = {"ZH": ("-", "0.64 of 14", "-", "-")}  # of the real CLD event of two b jets, its primary vertex taken to be at the origin
REAL_JETS = (  # widths and medians of all jets: 50 events of ILD's full simulation; PandoraPFA in events of two light quarks, 45 to 250 GeV
    ("*ILD full simulation, bb c s d u 500*", "PandoraPFA", "width 0.079", "1.024"),
    ("*linear colliders, two light quarks*", "PandoraPFA", "width 0.03 to 0.05", "-"),
)
MIN_TRACKS = 100  # of a flavour that is quoted
BOOTSTRAP_SEED = 1
CLASSES = {
    CHARGED_HADRON: "charged hadrons",
    NEUTRAL_HADRON: "neutral hadrons",
    PHOTON: "photons",
    ELECTRON: "electrons",
    MUON: "muons",
}
GEN_COLUMNS = ("jet_pt", "jet_eta", "jet_phi", "jet_energy", "met_px", "met_py")
Columns = Mapping[str, Column]


def extracted(events: DetectorEvents, detector: str) -> Columns:
    """The shard columns of simulated events, by way of a file, as ingest sees them."""
    with as_file(events) as source:
        result = extract(source, find_detector(detector), 0, source.num_entries, with_truth=True)
    assert not result.problems, "the built-in source made events that cannot be used"
    return result.columns


def _event(column: Column) -> IntArray:
    """The event of each row of a list column."""
    assert column.offsets is not None
    return np.repeat(np.arange(len(column.offsets) - 1), np.diff(column.offsets))


def _field(columns: Columns, column: str, name: str) -> npt.NDArray[np.float64]:
    """A field of a list column, flat."""
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


def energy_resolution(
    particles: Candidates, gen: GenReference, bootstrap: EventBootstrap, edges: Sequence[float] = ENERGY_EDGES
) -> tuple[ResponseSummary, ...]:
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
    return summarise_in_bins(ratio, event, true, bootstrap, edges=edges, variable="gen jet energy", unit="GeV").bins


@dataclass(frozen=True)
class ImpactParameters:
    """D0 over its error with respect to the primary vertex, of the tracks of a sample.

    `pull`: (measured - true) / error of prompt tracks without a wrong hit. `significance`, `flavour`: (T,) of tracks above MIN_PT with a
    hit in the vertex detector, and of the gen jet that they are in (0: none).
    """

    pull: Floats
    significance: Floats
    flavour: IntArray


def impact_parameters(events: DetectorEvents, columns: Columns) -> ImpactParameters:
    """Those of simulated events, whose tracks `columns` hold in the same order."""
    tracks, particles = events.tracks, events.particles
    primary = particles.vertex[np.searchsorted(particles.event, np.arange(particles.num_events))]
    d0, phi = tracks.parameters[:, 0], tracks.parameters[:, 1]
    from_primary = d0 + primary[tracks.event, 0] * np.sin(phi) - primary[tracks.event, 1] * np.cos(phi)
    error = np.sqrt(tracks.covariance[:, 0])
    is_prompt = np.linalg.norm(particles.vertex[tracks.particle] - primary[tracks.event], axis=1) < PROMPT
    is_prompt &= tracks.confused_with < 0
    pull = (d0 - tracks.true_parameters[:, 0]) / error
    chosen = (np.hypot(tracks.first_hit[:, 0], tracks.first_hit[:, 1]) < VERTEX_RADIUS) & (_field(columns, "track", "pt") > MIN_PT)
    return ImpactParameters(pull[is_prompt], (np.abs(from_primary) / error)[chosen], _flavour_of_track(columns)[chosen])


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


@dataclass(frozen=True)
class JetSample:
    """What a sample's jets, missing momentum and impact parameters are measured from."""

    gen: GenReference
    found: dict[str, Candidates]
    impact: ImpactParameters


def jet_sample(batches: Iterable[DetectorEvents], detector: str) -> JetSample:
    """The events of all batches as one sample."""
    gens, founds, impacts = [], [], []
    for events in batches:
        columns = extracted(events, detector)
        gens.append(gen_reference(columns))
        founds.append(reconstructions(columns))
        impacts.append(impact_parameters(events, columns))
    sizes = np.array([gen.num_events for gen in gens], np.int64)
    starts = np.cumsum(sizes) - sizes
    gen = GenReference(
        num_events=int(sizes.sum()),
        jet_event=np.concatenate([part.jet_event + start for part, start in zip(gens, starts, strict=True)]),
        **{name: np.concatenate([getattr(part, name) for part in gens]) for name in GEN_COLUMNS},
    )
    found = {key: _joined([part[key] for part in founds], starts) for key in founds[0]}
    impact = ImpactParameters(*(np.concatenate([getattr(part, f.name) for part in impacts]) for f in fields(ImpactParameters)))
    return JetSample(gen, found, impact)


def _joined(parts: Sequence[Candidates], starts: IntArray) -> Candidates:
    """The candidates of several batches, whose first events get the numbers `starts`."""
    columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Candidates)}
    columns["event"] = np.concatenate([part.event + start for part, start in zip(parts, starts, strict=True)])
    return Candidates(**columns)


@dataclass(frozen=True)
class Resolution:
    """Of one reconstruction of a sample: IQR / median of jets in bins, where the target is, of all; missing momentum's sigma (GeV)."""

    bins: tuple[ResponseSummary, ...]
    target: Estimate
    all_jets: Estimate
    median: Estimate
    matched: Estimate
    met: Estimate


def resolutions(sample: JetSample) -> dict[str, Resolution]:
    """The resolution of each reconstruction."""
    bootstrap = event_bootstrap(sample.gen.num_events, seed=BOOTSTRAP_SEED)
    metrics = evaluate_events(sample.found, sample.gen, seed=BOOTSTRAP_SEED).metrics
    return {
        key: Resolution(
            bins=energy_resolution(particles, sample.gen, bootstrap),
            target=energy_resolution(particles, sample.gen, bootstrap, TARGET_EDGES)[0].iqr_over_median,
            all_jets=metrics[key].jets.energy_response.iqr_over_median,
            median=metrics[key].jets.energy_response.median,
            matched=metrics[key].jets.matched_fraction,
            met=metrics[key].met.residual.resolution,
        )
        for key, particles in sample.found.items()
    }


def resolution_rows(title: str, found: Mapping[str, Resolution]) -> list[tuple[str, ...]]:
    """The rows of a sample in the jets' table; bins with fewer than MIN_JETS jets are left out."""
    rows = []
    for key, values in found.items():
        bins = [str(summary.iqr_over_median) if summary.count >= MIN_JETS else "-" for summary in values.bins]
        rows.append((title, key, *bins, str(values.all_jets), str(values.median), str(values.matched), str(values.met)))
    return rows


def resolution_table(rows: Sequence[tuple[str, ...]]) -> str:
    """The jets' table, with the figures of full simulation below."""
    bins = [f"{low:g}-{high:g}" for low, high in pairwise(ENERGY_EDGES)]
    real = [(title, key, *["-"] * len(bins), width, median, "-", "-") for title, key, width, median in REAL_JETS]
    return markdown(("sample", "reconstruction", *bins, "all", "median E / E_gen", "matched", "MET sigma [GeV]"), [*rows, *real])


def class_rows(title: str, sample: JetSample) -> list[tuple[str, ...]]:
    """The rows of a sample in the table of candidates: number and energy per event of each class, of truth targets and rule-based."""
    rows = []
    for key in (TRUTH_TARGETS, RULE_BASED):
        found = sample.found[key]
        is_target = key == TRUTH_TARGETS  # which have the number of a class
        code = np.array(TARGET_CLASSES)[found.pdg] if is_target else np.abs(found.pdg)
        is_other = ~np.isin(code, TARGET_CLASSES)
        code = np.where(is_other, np.where(found.charge != 0, CHARGED_HADRON, NEUTRAL_HADRON), code)
        counts = [np.sum(code == wanted) / sample.gen.num_events for wanted in CLASSES]
        energies = [np.sum(found.energy[code == wanted]) / sample.gen.num_events for wanted in CLASSES]
        rows.append((title, key, *(f"{count:.2f}, {energy:.1f}" for count, energy in zip(counts, energies, strict=True))))
    return rows


def class_table(rows: Sequence[tuple[str, ...]]) -> str:
    """The table of candidates."""
    return markdown(("sample", "reconstruction", *CLASSES.values()), rows)


def impact_rows(title: str, process: str, impact: ImpactParameters) -> list[tuple[str, ...]]:
    """The rows of a sample in the impact parameters' table."""
    cells = []
    for codes in FLAVOURS.values():
        mine = impact.significance[np.isin(impact.flavour, codes)]
        cells.append(f"{np.mean(mine > TAIL):.3f} of {len(mine)}" if len(mine) >= MIN_TRACKS else "-")
    rows = [(title, f"{impact.pull.std():.2f}", *cells)]
    if process in REAL_TAILS:
        rows.append(("*full simulation*", *REAL_TAILS[process]))
    return rows


def impact_table(rows: Sequence[tuple[str, ...]]) -> str:
    """The impact parameters' table."""
    return markdown(("sample", "D0 pull, prompt", *(f"beyond {TAIL:g} sigma, {name}" for name in FLAVOURS)), rows)
