"""All event-level metrics of several reconstructions of the same events: jets, missing momentum, visible energy and mass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from particle.pdgid import literals as pid

from pfscale.physics.bootstrap import Estimate, EventBootstrap, event_bootstrap
from pfscale.physics.jets import MIN_JET_PT, cluster_jets
from pfscale.physics.kinematics import Floats, cartesian, invariant_mass, sum_per_event
from pfscale.physics.matching import match_jets
from pfscale.physics.met import MetMetrics, evaluate_met, missing_momentum
from pfscale.physics.ragged import Indices
from pfscale.physics.rates import BinnedRate, rate, rate_in_bins
from pfscale.physics.response import ETA_BINS, PT_BINS, BinnedResponse, ResponseSummary, response, summarise, summarise_in_bins

# The reconstructions that figures and tables know by role; any other key is fine too.
MLPF, TRUTH_TARGETS, RULE_BASED, CALORIMETER_ONLY = "mlpf", "truth targets", "rule-based", "calorimeter only"


@dataclass(frozen=True)
class Candidates:
    """Particles of one reconstruction, flat over a batch of events: event, momenta in GeV, PDG number and charge of each."""

    event: Indices
    px: Floats
    py: Floats
    pz: Floats
    energy: Floats
    pdg: NDArray[np.integer]
    charge: NDArray[np.number]

    def __len__(self) -> int:
        return len(self.event)


def calorimeter_only(*, event: Indices, energy: Floats, eta: Floats, phi: Floats) -> Candidates:
    """The detector's information without tracks: each cluster a massless photon along its position (GeV, rad)."""
    px, py, pz = cartesian(np.asarray(energy, np.float64) / np.cosh(eta), eta, phi)
    return Candidates(event, px, py, pz, energy, pdg=np.full(len(event), int(pid.gamma)), charge=np.zeros(len(event), np.int8))


@dataclass(frozen=True)
class GenReference:
    """Generator-level truth of a batch of events.

    `jet_*`: flat gen jets (GeV, rad). `met_px, met_py`: missing momentum of each event, minus the sum of gen-level particles, GeV.
    `visible_energy, visible_mass`: of each event's gen-level particles, GeV; without them the truth targets stand in for the truth.
    """

    num_events: int
    jet_event: Indices
    jet_pt: Floats
    jet_eta: Floats
    jet_phi: Floats
    jet_energy: Floats
    met_px: Floats
    met_py: Floats
    visible_energy: Floats | None = None
    visible_mass: Floats | None = None


@dataclass(frozen=True)
class JetMetrics:
    """Jets of one reconstruction against gen jets: response = pt_reco / pt_gen of matched pairs.

    `matched_fraction`: of gen jets; `spurious_fraction`: of reconstructed jets, those without a gen jet. `energy_response`: E_reco / E_gen.
    `..._fraction_vs_pt`: against the gen jet's pt, and the reconstructed jet's.
    `pt_response`, `gen_pt`: of each matched pair, for histograms.
    """

    response: ResponseSummary
    energy_response: ResponseSummary
    vs_pt: BinnedResponse
    vs_eta: BinnedResponse
    matched_fraction: Estimate
    spurious_fraction: Estimate
    matched_fraction_vs_pt: BinnedRate
    spurious_fraction_vs_pt: BinnedRate
    pt_response: Floats
    gen_pt: Floats


@dataclass(frozen=True)
class CandidateMetrics:
    """Everything measured of one reconstruction; `visible_*`: ratio of the event's sum to the true one, and those of all events."""

    num_candidates: int
    jets: JetMetrics
    met: MetMetrics
    visible_energy: ResponseSummary
    visible_mass: ResponseSummary
    visible_energy_ratios: Floats
    visible_mass_ratios: Floats


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of every reconstruction, by its key, with what is needed to repeat the bootstrap.

    `seeds`: metrics of `MLPF` and of further trainings of the same config with other seeds, for their spread; empty where there are none.
    """

    num_events: int
    num_gen_jets: int
    seed: int
    metrics: Mapping[str, CandidateMetrics]
    seeds: tuple[CandidateMetrics, ...] = ()

    def to_dict(self) -> dict[str, float]:
        """Flat `key/metric` -> value, `key/metric_error`, and `mlpf/metric_seed_spread` of seeds; NaN: nothing to measure.

        Keys have underscores for blanks and hyphens.
        """
        flat: dict[str, float] = {}
        for key, metrics in self.metrics.items():
            for name, number in named_estimates(metrics):
                flat[f"{flat_key(key)}/{name}"] = number.value
                flat[f"{flat_key(key)}/{name}_error"] = number.error
        if self.seeds:
            values = [{name: number.value for name, number in named_estimates(metrics)} for metrics in self.seeds]
            flat |= {f"{MLPF}/{name}_seed_spread": spread([v[name] for v in values]) for name in values[0]}
        return flat

    def of_model(self) -> Iterator[tuple[str, Estimate]]:
        """(metric name, number) of the model, with its replicas."""
        return named_estimates(self.metrics[MLPF])

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """(header, rows) for the terminal: one row per reconstruction, `value ± error`."""
        header = ("", "jet response", "IQR/median", "matched", "spurious", "MET response", "MET σ [GeV]", "visible energy")
        rows = []
        for key, m in self.metrics.items():
            jets, met = m.jets, m.met
            of_jets = (jets.response.median, jets.response.iqr_over_median, jets.matched_fraction, jets.spurious_fraction)
            numbers = (*of_jets, met.response.median, met.residual.resolution, m.visible_energy.median)
            rows.append((key, *(str(number) for number in numbers)))
        return header, rows


def flat_key(key: str) -> str:
    """The name of a reconstruction in the names of metrics."""
    return key.replace(" ", "_").replace("-", "_")


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; NaN for fewer than two or where one is NaN."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def evaluate_events(
    candidates: Mapping[str, Candidates], gen: GenReference, *, seed: int, other_seeds: Sequence[Candidates] = ()
) -> EvaluationResult:
    """The event-level metrics of each reconstruction in `candidates` against the generator level.

    Usual keys: "mlpf", "truth targets" (the ceiling), "rule-based" (the baseline), "calorimeter only".

    Args:
        candidates: name -> candidates of the same events.
        gen: the truth of these events.
        seed: of the bootstrap over events; its replicas are shared by all reconstructions.
        other_seeds: candidates of further trainings of the same config as that behind "mlpf".

    Raises:
        PfscaleError: a candidate's momentum is not finite.
    """
    bootstrap = event_bootstrap(gen.num_events, seed=seed)
    energy, mass = _true_visible(candidates, gen)
    metrics = {key: _evaluate_one(particles, gen, energy, mass, bootstrap) for key, particles in candidates.items()}
    others = [_evaluate_one(particles, gen, energy, mass, bootstrap) for particles in other_seeds]
    return EvaluationResult(gen.num_events, len(gen.jet_event), seed, metrics, (metrics[MLPF], *others) if others else ())


def named_estimates(metrics: CandidateMetrics) -> Iterator[tuple[str, Estimate]]:
    """(metric name, number) of all scalar metrics, and of the jets' in bins of gen pt as `jet_..._pt_20_40`."""
    jets, met = metrics.jets, metrics.met
    yield "jet_response_median", jets.response.median
    yield "jet_response_iqr", jets.response.iqr
    yield "jet_response_iqr_over_median", jets.response.iqr_over_median
    yield "jet_energy_response_median", jets.energy_response.median
    yield "jet_energy_response_iqr_over_median", jets.energy_response.iqr_over_median
    yield "jet_matched_fraction", jets.matched_fraction
    yield "jet_spurious_fraction", jets.spurious_fraction
    for low, high, summary in zip(jets.vs_pt.edges, jets.vs_pt.edges[1:], jets.vs_pt.bins, strict=False):
        yield f"jet_response_median_pt_{low:.0f}_{high:.0f}", summary.median
        yield f"jet_response_iqr_over_median_pt_{low:.0f}_{high:.0f}", summary.iqr_over_median
    yield "met_response", met.response.median
    yield "met_resolution", met.residual.resolution
    yield "met_resolution_parallel", met.parallel.resolution
    yield "met_resolution_perpendicular", met.perpendicular.resolution
    yield "visible_energy_ratio_median", metrics.visible_energy.median
    yield "visible_energy_ratio_iqr", metrics.visible_energy.iqr
    yield "visible_mass_ratio_median", metrics.visible_mass.median
    yield "visible_mass_ratio_iqr", metrics.visible_mass.iqr


def _evaluate_one(
    particles: Candidates, gen: GenReference, true_energy: Floats | None, true_mass: Floats | None, bootstrap: EventBootstrap
) -> CandidateMetrics:
    met_px, met_py = missing_momentum(particles.event, particles.px, particles.py, num_events=gen.num_events)
    energy, mass = (_ratios_to_truth(*pair) for pair in zip(_visible(particles, gen.num_events), (true_energy, true_mass), strict=True))
    return CandidateMetrics(
        num_candidates=len(particles),
        jets=evaluate_jets(particles, gen, bootstrap),
        met=evaluate_met(met_px, met_py, gen.met_px, gen.met_py, bootstrap),
        visible_energy=_summarise_events(energy, bootstrap),
        visible_mass=_summarise_events(mass, bootstrap),
        visible_energy_ratios=energy,
        visible_mass_ratios=mass,
    )


def evaluate_jets(particles: Candidates, gen: GenReference, bootstrap: EventBootstrap) -> JetMetrics:
    """Jets of `particles` (same definition as the gen jets) matched one-to-one within deltaR < 0.1 to the gen jets."""
    jets = cluster_jets(
        num_events=gen.num_events, event=particles.event, px=particles.px, py=particles.py, pz=particles.pz, energy=particles.energy
    )
    matches = match_jets(
        num_events=gen.num_events,
        reco_event=jets.event,
        reco_eta=jets.eta,
        reco_phi=jets.phi,
        gen_event=gen.jet_event,
        gen_eta=gen.jet_eta,
        gen_phi=gen.jet_phi,
    )
    gen_event = np.asarray(gen.jet_event, np.int64)
    event = gen_event[matches.gen]
    gen_pt, gen_eta = np.asarray(gen.jet_pt, np.float64)[matches.gen], np.asarray(gen.jet_eta, np.float64)[matches.gen]
    pt_response = response(jets.pt[matches.reco], gen_pt)
    energy_response = response(jets.energy[matches.reco], np.asarray(gen.jet_energy)[matches.gen])
    is_matched, is_spurious = np.zeros(len(gen_event), np.bool_), np.ones(len(jets), np.bool_)
    is_matched[matches.gen], is_spurious[matches.reco] = True, False
    all_gen, all_reco = np.ones(len(gen_event), np.bool_), np.ones(len(jets), np.bool_)
    return JetMetrics(
        response=summarise(pt_response, event, bootstrap),
        energy_response=summarise(energy_response, event, bootstrap),
        vs_pt=summarise_in_bins(pt_response, event, gen_pt, bootstrap, edges=PT_BINS, variable="gen jet pt", unit="GeV"),
        vs_eta=summarise_in_bins(pt_response, event, gen_eta, bootstrap, edges=ETA_BINS, variable="gen jet eta", unit=""),
        matched_fraction=rate(gen_event, is_matched, all_gen, bootstrap),
        spurious_fraction=rate(jets.event, is_spurious, all_reco, bootstrap),
        matched_fraction_vs_pt=_in_pt_bins(gen_event, is_matched, np.asarray(gen.jet_pt), "gen jet pt", bootstrap),
        spurious_fraction_vs_pt=_in_pt_bins(jets.event, is_spurious, jets.pt, "reconstructed jet pt", bootstrap),
        pt_response=pt_response,
        gen_pt=gen_pt,
    )


def _in_pt_bins(event: Indices, passing: NDArray[np.bool_], pt: Floats, variable: str, bootstrap: EventBootstrap) -> BinnedRate:
    edges = (MIN_JET_PT, *PT_BINS)
    return rate_in_bins(event, passing, np.ones(len(pt), np.bool_), pt, bootstrap, edges=edges, variable=variable, unit="GeV")


def _visible(particles: Candidates, num_events: int) -> tuple[Floats, Floats]:
    """Summed energy and invariant mass of each event's particles, GeV."""
    columns = (particles.energy, particles.px, particles.py, particles.pz)
    energy, px, py, pz = (sum_per_event(particles.event, column, num_events=num_events) for column in columns)
    return energy, invariant_mass(energy, px, py, pz)


def _true_visible(candidates: Mapping[str, Candidates], gen: GenReference) -> tuple[Floats | None, Floats | None]:
    targets = candidates.get(TRUTH_TARGETS)
    energy, mass = _visible(targets, gen.num_events) if targets is not None else (None, None)
    return (energy if gen.visible_energy is None else gen.visible_energy), (mass if gen.visible_mass is None else gen.visible_mass)


def _ratios_to_truth(values: Floats, truth: Floats | None) -> Floats:
    """Of each event, NaN where the truth is nothing or not known."""
    return np.full(len(values), np.nan) if truth is None else response(values, truth)


def _summarise_events(ratios: Floats, bootstrap: EventBootstrap) -> ResponseSummary:
    event = np.flatnonzero(np.isfinite(ratios))
    return summarise(ratios[event], event, bootstrap)
