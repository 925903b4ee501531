"""Comparing two models: which metric is better which way, and how sure a difference is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pfscale.errors import UnknownNameError
from pfscale.physics.bootstrap import Estimate
from pfscale.physics.comparable import find_metric, independent_difference, metrics, paired_difference
from pfscale.physics.evaluation import Candidates, EvaluationResult, GenReference, evaluate_events
from pfscale.physics.jets import cluster_jets
from pfscale.physics.particles import ElementPredictions, evaluate_particles
from pfscale.shards.schema import CLASSES

SEED = 5


def events(num_events: int = 300) -> tuple[Candidates, GenReference]:
    """Generator-level particles and their truth."""
    rng = np.random.default_rng(1)
    event = np.repeat(np.arange(num_events), rng.integers(2, 12, num_events))
    pt, eta, phi = rng.exponential(15, len(event)) + 1, rng.uniform(-1.5, 1.5, len(event)), rng.uniform(-np.pi, np.pi, len(event))
    px, py, pz, energy = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)
    particles = Candidates(event, px, py, pz, energy, np.full(len(event), 22), np.zeros(len(event)))
    jets = cluster_jets(num_events=num_events, event=event, px=px, py=py, pz=pz, energy=energy)
    met = [-np.bincount(event, component, num_events) for component in (px, py)]
    return particles, GenReference(num_events, jets.event, jets.pt, jets.eta, jets.phi, jets.energy, *met)


def smeared(particles: Candidates, width: float, *, seed: int) -> Candidates:
    scale = np.random.default_rng(seed).normal(1.0, width, len(particles))
    four = {name: getattr(particles, name) * scale for name in ("px", "py", "pz", "energy")}
    return Candidates(particles.event, **four, pdg=particles.pdg, charge=particles.charge)


def evaluated(particles: Candidates, gen: GenReference) -> EvaluationResult:
    return evaluate_events({"mlpf": particles}, gen, seed=SEED)


def test_every_metric_to_compare_by_is_in_an_evaluation() -> None:
    """Would catch a name that was changed in one place only: models could not be compared by it."""
    of_particles = ("efficiency", "fake_rate", "energy_response")
    of_events = {metric.key for metric in metrics() if not metric.name.startswith(of_particles)} - {"validation_loss"}
    assert of_events <= set(evaluated(*events(num_events=20)).to_dict())
    nothing = np.zeros(0)
    elements = ElementPredictions(*(nothing for _ in range(9)))
    found = evaluate_particles(elements, num_events=2, class_names=CLASSES, seed=1).to_dict()
    assert {metric.name for metric in metrics() if metric.name.startswith(of_particles)} <= set(found)


def test_the_same_events_make_a_smaller_error_than_two_samples() -> None:
    """Would catch errors added in quadrature for the same events: a better model would never be promoted."""
    particles, gen = events()
    # the same mistakes, a little smaller: what two models of one training sample have in common
    a, b = (dict(evaluated(smeared(particles, width, seed=2), gen).of_model()) for width in (0.2, 0.19))
    metric = find_metric("jet_response_iqr_over_median")
    paired = paired_difference(metric, a[metric.name], b[metric.name])
    independent = independent_difference(metric, paired.a, paired.b)
    assert paired.difference.value == pytest.approx(independent.difference.value)
    assert paired.improvement.error < 0.5 * independent.improvement.error
    assert paired.is_better()
    assert paired.verdict() == "B better"
    assert paired_difference(metric, b[metric.name], a[metric.name]).verdict() == "A better"


def test_the_error_of_a_difference_is_its_spread_over_other_samples() -> None:
    """Would catch replicas that are not the same ones for both models: checked against samples drawn anew."""
    metric = find_metric("met_resolution")
    particles, gen = events(num_events=2000)
    a, b = smeared(particles, 0.2, seed=2), smeared(particles, 0.15, seed=2)
    quoted = paired_difference(metric, *(dict(evaluated(c, gen).of_model())[metric.name] for c in (a, b)))
    px, py = np.asarray(gen.met_px), np.asarray(gen.met_py)

    def residuals(c: Candidates) -> np.ndarray:
        return np.stack([-np.bincount(c.event, values, gen.num_events) - true for values, true in ((c.px, px), (c.py, py))])

    def width(values: np.ndarray) -> float:
        return float(np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.349)

    ra, rb, rng = residuals(a), residuals(b), np.random.default_rng(9)
    drawn = []
    for _ in range(400):
        rows = rng.integers(0, gen.num_events, gen.num_events)
        drawn.append(width(rb[:, rows]) - width(ra[:, rows]))
    assert quoted.difference.error == pytest.approx(np.std(drawn), rel=0.3)


@pytest.mark.parametrize(
    ("name", "a", "b", "verdict"),
    [
        ("mlpf/met_resolution", 10.0, 9.0, "B better"),
        ("met_resolution", 9.0, 10.0, "A better"),
        ("jet_matched_fraction", 0.8, 0.9, "B better"),
        ("jet_response_median", 1.10, 0.98, "B better"),
        ("jet_response_median", 0.99, 1.05, "A better"),
        ("jet_response_median", 0.98, 1.02, "no difference beyond the uncertainty"),
        ("met_resolution", 9.0, math.nan, "not measured"),
    ],
)
def test_better_is_what_the_metric_says(name: str, a: float, b: float, verdict: str) -> None:
    """Would catch a larger response taken for a better one, and a worse resolution that is promoted."""
    assert independent_difference(find_metric(name), Estimate(a, 0.005), Estimate(b, 0.005)).verdict() == verdict


def test_more_certainty_may_be_asked_for() -> None:
    """Would catch `--sigmas` that changes nothing, and promotion without any known uncertainty."""
    metric = find_metric("met_resolution")
    found = independent_difference(metric, Estimate(10.0, 0.3), Estimate(9.0, 0.4))
    assert found.is_better(1)
    assert not found.is_better(3)
    unknown = independent_difference(metric, Estimate(10.0, 0.3), Estimate(9.0, math.nan))
    assert not unknown.is_better()
    assert unknown.verdict() == "uncertainty not known"
    same = Estimate(1.0, 0.1, np.full(10, 1.0))
    assert paired_difference(metric, same, same).verdict() == "no difference beyond the uncertainty"


def test_an_unknown_metric_names_the_closest() -> None:
    """Would catch a typo that compares nothing, or `best_step` as a measure of quality."""
    with pytest.raises(UnknownNameError, match="did you mean 'met_resolution'"):
        find_metric("mlpf/met_resolutoin")
    with pytest.raises(UnknownNameError):
        find_metric("best_step")
