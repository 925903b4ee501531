"""Responses, bootstrap errors, missing momentum and the evaluation of whole events."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.physics.bootstrap import EventBootstrap, event_bootstrap, quantiles, ratio
from pfscale.physics.evaluation import Candidates, EvaluationResult, GenReference, calorimeter_only, evaluate_events
from pfscale.physics.jets import cluster_jets
from pfscale.physics.met import evaluate_met
from pfscale.physics.particles import ElementPredictions, evaluate_particles
from pfscale.physics.response import IQR_PER_SIGMA, summarise, summarise_in_bins

CLASSES = ("none", "211", "130", "22", "11", "13")


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """Empty bins and events must not fill a user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_candidates(num_events: int, *, seed: int = 0) -> Candidates:
    """Particles around three axes per event; the last event is empty."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(40, num_events)
    counts[-1] = 0
    event = np.repeat(np.arange(num_events), counts)
    axes = rng.normal(size=(num_events, 3, 3))
    axes[..., 2] *= 0.5
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    direction = axes[event, rng.integers(0, 3, len(event))] + 0.1 * rng.normal(size=(len(event), 3))
    energy = rng.exponential(4.0, len(event))
    p = direction / np.linalg.norm(direction, axis=-1, keepdims=True) * energy[:, None]
    return Candidates(event, p[:, 0], p[:, 1], p[:, 2], energy, np.full(len(event), 22), np.zeros(len(event)))


def truth_of(c: Candidates, num_events: int) -> GenReference:
    jets = cluster_jets(num_events=num_events, event=c.event, px=c.px, py=c.py, pz=c.pz, energy=c.energy)
    px, py = (-np.bincount(c.event, weights=p, minlength=num_events) for p in (c.px, c.py))
    return GenReference(num_events, jets.event, jets.pt, jets.eta, jets.phi, jets.energy, px, py)


def scaled(c: Candidates, factor: float | np.ndarray) -> Candidates:
    return replace(c, px=c.px * factor, py=c.py * factor, pz=c.pz * factor, energy=c.energy * factor)


def evaluate(num_events: int = 120, **factors: float) -> EvaluationResult:
    truth = random_candidates(num_events)
    return evaluate_events({k: scaled(truth, f) for k, f in factors.items()}, truth_of(truth, num_events), seed=1)


def test_perfect_reconstruction_has_response_one_and_no_width() -> None:
    """Would catch any mismatch between the two sides' definitions."""
    truth = random_candidates(120)
    result = evaluate_events({"truth targets": truth}, truth_of(truth, 120), seed=1).metrics["truth targets"]
    for summary in (result.jets.response, result.jets.energy_response, result.met.response, result.visible_energy, result.visible_mass):
        assert summary.median.value == pytest.approx(1.0)
        assert summary.median.error == pytest.approx(0.0, abs=1e-9)
        assert summary.iqr.value == pytest.approx(0.0, abs=1e-9)
    assert result.jets.matched_fraction.value == 1.0
    assert result.jets.spurious_fraction.value == 0.0
    assert result.met.residual.resolution.value == pytest.approx(0.0, abs=1e-9)
    assert result.jets.response.count > 200


def test_a_scale_is_measured_as_a_scale() -> None:
    """Would catch gen/reco instead of reco/gen, or a response that normalises itself."""
    result = evaluate(mlpf=0.9).metrics["mlpf"]
    assert result.jets.response.median.value == pytest.approx(0.9)
    assert result.met.response.median.value == pytest.approx(0.9)
    assert result.met.perpendicular.median.value == pytest.approx(0.0, abs=1e-9)
    assert all(b.median.value == pytest.approx(0.9) for b in result.jets.vs_pt.bins if b.count)


def test_no_candidates_at_all_is_nan_without_warnings() -> None:
    """A model that predicts nothing, an empty baseline, a batch without jets."""
    truth = random_candidates(20)
    nothing = Candidates(*(np.zeros(0) for _ in range(7)))
    result = evaluate_events({"mlpf": nothing}, truth_of(truth, 20), seed=0)
    flat = result.to_dict()
    assert math.isnan(flat["mlpf/jet_response_median"])
    assert flat["mlpf/jet_matched_fraction"] == 0.0
    assert math.isnan(flat["mlpf/jet_spurious_fraction"])
    assert flat["mlpf/met_response"] == 0.0
    empty = GenReference(0, *(np.zeros(0, int), *(np.zeros(0) for _ in range(6))))
    empty_result = evaluate_events({"mlpf": nothing}, empty, seed=0)
    assert math.isnan(empty_result.to_dict()["mlpf/met_resolution"])
    assert len(empty_result.table()[1]) == 1
    no_jets = replace(truth_of(truth, 20), **{f"jet_{n}": np.zeros(0) for n in ("event", "pt", "eta", "phi", "energy")})
    assert evaluate_events({"mlpf": truth}, no_jets, seed=0).to_dict()["mlpf/jet_spurious_fraction"] == 1.0


def test_result_names_and_table_cover_every_reconstruction() -> None:
    result = evaluate(**{"mlpf": 1.1, "truth targets": 1.0, "rule-based": 0.8})
    flat = result.to_dict()
    for key in ("mlpf", "truth_targets", "rule_based"):
        for name in ("jet_response_median", "jet_response_iqr_over_median", "met_resolution", "visible_energy_ratio_median"):
            assert f"{key}/{name}" in flat
            assert f"{key}/{name}_error" in flat
    assert flat["rule_based/visible_energy_ratio_median"] == pytest.approx(0.8)
    header, rows = result.table()
    assert {len(row) for row in rows} == {len(header)}


def test_same_seed_same_errors() -> None:
    assert evaluate(mlpf=0.9).to_dict() == pytest.approx(evaluate(mlpf=0.9).to_dict(), nan_ok=True)


def test_bootstrap_error_of_a_gaussian() -> None:
    """Median: 1.2533 sigma / sqrt(n); IQR: 1.573 sigma / sqrt(n) (order statistics of a Gaussian)."""
    n = 4000
    values = np.random.default_rng(2).normal(10.0, 2.0, n)
    summary = summarise(values, np.arange(n), event_bootstrap(n, seed=5, num_replicas=600))
    assert summary.median.error == pytest.approx(1.2533 * 2.0 / np.sqrt(n), rel=0.2)
    assert summary.iqr.error == pytest.approx(1.573 * 2.0 / np.sqrt(n), rel=0.2)
    assert summary.resolution.value == pytest.approx(2.0, rel=0.05)
    assert pytest.approx(1.34898, rel=1e-5) == IQR_PER_SIGMA


def test_bootstrap_keeps_events_together() -> None:
    """Ten copies of a value in one event carry no more information than one: would catch resampling of jets instead of events."""
    n = 1000
    values = np.random.default_rng(2).normal(size=n)
    bootstrap = event_bootstrap(n, seed=5)
    once = summarise(values, np.arange(n), bootstrap)
    tenfold = summarise(np.repeat(values, 10), np.repeat(np.arange(n), 10), bootstrap)
    assert tenfold.median.error == pytest.approx(once.median.error, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), max_size=20),
    counts=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4),
)
def test_replica_quantiles_equal_those_of_the_copied_sample(data: list, counts: list) -> None:
    """Would catch an offset in the running count, empty replicas and ties."""
    values, event = np.array([d[0] for d in data], float), np.array([d[1] for d in data], int)
    probabilities = (0.25, 0.5, 0.75)
    _, replicas = quantiles(values, event, probabilities, EventBootstrap(np.array(counts, np.uint8)))
    for row, found in zip(counts, replicas, strict=True):
        copied = np.repeat(values, np.array(row)[event]) if len(values) else values
        if len(copied):
            np.testing.assert_allclose(found, np.quantile(copied, probabilities), atol=1e-12)
        else:
            assert np.isnan(found).all()


def test_fraction_error_is_binomial() -> None:
    passing = np.random.default_rng(0).random((5000, 1)) < 0.3
    (found,) = ratio(passing, np.ones((5000, 1)), event_bootstrap(5000, seed=1))
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 / 5000), rel=0.2)


def test_bins_take_their_lower_edge_and_leave_out_the_rest() -> None:
    binned = summarise_in_bins(
        [1.0, 2.0, 3.0, 4.0],
        [0, 1, 2, 3],
        [9.9, 10.0, 20.0, 40.0],
        event_bootstrap(4, seed=0),
        edges=(10, 20, 40),
        variable="x",
        unit="GeV",
    )
    assert [b.count for b in binned.bins] == [1, 1]
    assert [b.median.value for b in binned.bins] == [2.0, 3.0]
    assert math.isnan(binned.bins[0].median.error)


def test_one_event_has_no_bootstrap_error() -> None:
    """Would catch an uncertainty of zero on two jets of a single event."""
    bootstrap = event_bootstrap(1, seed=0)
    two_jets = summarise([0.9, 1.0], [0, 0], bootstrap)
    assert two_jets.median.value == pytest.approx(0.95)
    assert math.isnan(two_jets.median.error)
    assert str(two_jets.median) == "0.950"
    assert math.isnan(ratio([[1.0]], [[2.0]], bootstrap)[0].error)


def test_met_parallel_and_perpendicular_are_told_apart() -> None:
    """Would catch swapped projections: the smearing along the true direction is three times the one across."""
    rng = np.random.default_rng(3)
    n = 20_000
    phi, true = rng.uniform(-np.pi, np.pi, n), rng.uniform(20, 100, n)
    along, across = true + rng.normal(0, 6, n), rng.normal(0, 2, n)
    px = along * np.cos(phi) - across * np.sin(phi)
    py = along * np.sin(phi) + across * np.cos(phi)
    result = evaluate_met(px, py, true * np.cos(phi), true * np.sin(phi), event_bootstrap(n, seed=0, num_replicas=20))
    assert result.parallel.resolution.value == pytest.approx(6, rel=0.03)
    assert result.perpendicular.resolution.value == pytest.approx(2, rel=0.03)
    assert result.response.median.value == pytest.approx(1, abs=0.01)
    assert result.response_vs_met.bins[0].count == 0


def test_rotating_events_leaves_all_metrics() -> None:
    """Would catch any dependence on the azimuth, such as a seam in the matching."""
    truth = random_candidates(60)
    reco = scaled(truth, np.random.default_rng(1).normal(1, 0.2, len(truth)).clip(0.1))

    def turned(c: Candidates) -> Candidates:
        return replace(c, px=-c.py, py=c.px)

    before = evaluate_events({"mlpf": reco}, truth_of(truth, 60), seed=1).to_dict()
    after = evaluate_events({"mlpf": turned(reco)}, truth_of(turned(truth), 60), seed=1).to_dict()
    assert after == pytest.approx(before, rel=1e-6, abs=1e-9, nan_ok=True)


def test_calorimeter_only_candidates_are_massless() -> None:
    c = calorimeter_only(event=np.array([0]), energy=np.array([10.0]), eta=np.array([1.0]), phi=np.array([2.0]))
    assert float(np.hypot(np.hypot(c.px, c.py), c.pz)[0]) == pytest.approx(10.0)
    assert c.pdg.tolist() == [22]


def elements(target: list[int], pred: list[int]) -> ElementPredictions:
    n = len(target)
    pt, eta = np.full(n, 3.0), np.zeros(n)
    return ElementPredictions(np.arange(n), np.array(target, int), pt, eta, pt * 2, np.array(pred, int), pt, eta, pt * 3)


def test_efficiency_fakes_and_confusion() -> None:
    """Would catch a transposed confusion matrix, and confusion with another class counted as a fake."""
    result = evaluate_particles(elements([1, 1, 1, 1, 0, 3, 0], [1, 1, 3, 0, 1, 3, 0]), num_events=7, class_names=CLASSES, seed=0)
    assert result.confusion[1].tolist() == [1, 2, 0, 1, 0, 0]
    assert result.confusion[0].tolist() == [1, 1, 0, 0, 0, 0]
    hadron, photon = result.classes["211"], result.classes["22"]
    assert hadron.efficiency.value == 0.5
    assert hadron.found_fraction.value == 0.75
    assert hadron.fake_rate.value == pytest.approx(1 / 3)
    assert photon.fake_rate.value == 0.0
    assert hadron.energy_response.median.value == pytest.approx(1.5)
    at_3_gev = np.digitize(3.0, hadron.efficiency_vs_pt.edges) - 1
    assert hadron.efficiency_vs_pt.bins[at_3_gev].value == 0.5
    assert math.isnan(hadron.efficiency_vs_pt.bins[0].value)
    assert math.isnan(result.to_dict()["efficiency_13"])


def test_no_elements_gives_nan_rates() -> None:
    result = evaluate_particles(elements([], []), num_events=3, class_names=CLASSES, seed=0)
    assert result.confusion.sum() == 0
    assert math.isnan(result.classes["22"].efficiency.value)
