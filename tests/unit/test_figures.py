"""Figures: each draws from real results, from the poorest input, and says in numbers what it shows."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from pfscale.physics.bootstrap import Estimate
from pfscale.physics.evaluation import Candidates, EvaluationResult, GenReference, evaluate_events
from pfscale.physics.jets import cluster_jets
from pfscale.physics.particles import ElementPredictions, evaluate_particles
from pfscale.physics.rates import BinnedRate
from pfscale.report.binned import draw_points, rate_points
from pfscale.report.event_display import EventParticles, EventView, event_display
from pfscale.report.event_figures import (
    jet_matching,
    jet_resolution_vs_eta,
    jet_resolution_vs_pt,
    jet_response,
    met_resolution,
    visible_energy,
)
from pfscale.report.figures import TransferPoint, learning_curves, transfer_curves
from pfscale.report.heads_figures import binned_bands, roc_bands
from pfscale.report.particle_figures import confusion_matrix, particle_energies, particle_rates
from pfscale.report.style import look

CLASSES = ("none", "211", "130", "22", "11", "13")
OF_EVENTS = [jet_response, jet_resolution_vs_pt, jet_resolution_vs_eta, jet_matching, met_resolution, visible_energy]


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    rng = np.random.default_rng(0)
    n = 80
    event = np.repeat(np.arange(n), 6)
    p = rng.normal(size=(3, len(event))) * 25
    energy = np.linalg.norm(p, axis=0)
    jets = cluster_jets(num_events=n, event=event, px=p[0], py=p[1], pz=p[2], energy=energy)
    met = [-np.bincount(event, weights=c, minlength=n) for c in p[:2]]
    gen = GenReference(n, jets.event, jets.pt, jets.eta, jets.phi, jets.energy, *met)

    def smeared(width: float) -> Candidates:
        factor = rng.normal(1, width, len(event)).clip(0.1)
        return Candidates(event, *(p * factor), energy * factor, np.full(len(event), 22), np.zeros(len(event)))

    return evaluate_events({"mlpf": smeared(0.2), "rule-based": smeared(0.3), "truth targets": smeared(0.0)}, gen, seed=0)


@pytest.fixture
def empty_result() -> EvaluationResult:
    nothing = Candidates(*(np.zeros(0) for _ in range(7)))
    gen = GenReference(2, np.zeros(0, int), *(np.zeros(0) for _ in range(4)), np.zeros(2), np.zeros(2))
    return evaluate_events({"mlpf": nothing}, gen, seed=0)


def render(figure: Figure) -> None:
    """Draws the figure; a legend, label or font that matplotlib objects to fails here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


@pytest.mark.parametrize("draw", OF_EVENTS)
def test_physics_figures_draw_every_reconstruction(draw, result: EvaluationResult) -> None:
    """Would catch a curve that is missing from the axes or the numbers, and numbers that strict JSON cannot hold."""
    figure, numbers = draw(result, title="test")
    render(figure)
    assert set(result.metrics) <= set(numbers)
    json.dumps(numbers, allow_nan=False)
    labels = " ".join(
        t.get_text() for legend in figure.legends + [a.get_legend() for a in figure.axes] if legend for t in legend.get_texts()
    )
    for name in ("MLPF", "baseline", "ceiling"):
        assert name in labels
    assert any(word in a.get_xlabel() for a in figure.axes for word in ("GeV", "response", "eta", "generated"))


@pytest.mark.parametrize("draw", OF_EVENTS)
def test_physics_figures_without_data_say_so(draw, empty_result: EvaluationResult) -> None:
    """A batch without jets or missing momentum must not stop a report."""
    figure, numbers = draw(empty_result)
    render(figure)
    json.dumps(numbers, allow_nan=False)
    assert any(a.texts for a in figure.axes)


def test_histogram_holds_all_jets_inside_and_outside(result: EvaluationResult) -> None:
    """Would catch jets lost between the histogram and its overflow, which the fractions are normalised to."""
    _, numbers = jet_response(result)
    for key, metrics in result.metrics.items():
        assert sum(numbers[key]["counts"]) + numbers[key]["outside_range"] == metrics.jets.response.count


def test_seeds_are_drawn_as_a_band_and_counted_in_the_legend(result: EvaluationResult) -> None:
    """Would catch a spread over seeds that is left out, or taken for the error of one training."""
    mlpf = result.metrics["mlpf"]
    several = replace(result, seeds=(mlpf, mlpf, result.metrics["rule-based"]))
    figure, _ = jet_resolution_vs_pt(several)
    render(figure)
    assert len(figure.axes[0].collections) > len(jet_resolution_vs_pt(result)[0].axes[0].collections)
    assert "3 seeds" in figure.axes[0].get_legend().get_title().get_text()
    flat = several.to_dict()
    wanted = np.std([m.jets.response.iqr.value for m in several.seeds], ddof=1)
    assert flat["mlpf/jet_response_iqr_seed_spread"] == pytest.approx(wanted)
    assert "mlpf/jet_response_iqr_seed_spread" not in result.to_dict()


@pytest.mark.parametrize("draw", [particle_rates, particle_energies])
@pytest.mark.parametrize("variable", ["pt", "eta"])
@pytest.mark.parametrize("num_elements", [0, 4000])
def test_particle_figures_show_every_class(draw, variable, num_elements: int) -> None:
    """Would catch a class or reconstruction without a panel, and a sample too small for any bin."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 6, (2, num_elements))
    values = rng.exponential(5, (2, num_elements)), rng.normal(0, 1, (2, num_elements)), rng.exponential(9, (2, num_elements))
    halves = [(kinds[i], *(v[i] for v in values)) for i in range(2)]
    elements = ElementPredictions(np.sort(rng.integers(0, 50, num_elements)), *halves[0], *halves[1])
    found = evaluate_particles(elements, num_events=50, class_names=CLASSES, seed=0)
    figure, numbers = draw({"mlpf": found, "rule-based": found}, variable)
    render(figure)
    json.dumps(numbers, allow_nan=False)
    assert set(numbers) == {"mlpf", "rule-based"}
    assert set(numbers["mlpf"]) == set(CLASSES[1:])
    assert len(figure.axes) == 10
    assert any("no bin" in t.get_text() for a in figure.axes for t in a.texts) == (num_elements == 0)


def test_error_bars_of_a_fraction_end_at_0_and_1() -> None:
    """Would catch bars that reach below nothing or beyond all."""
    rates = BinnedRate("pt", "GeV", (0.0, 1.0, 2.0, 3.0), (Estimate(1.0, 0.1), Estimate(0.02, 0.05), Estimate(0.5, 0.1)), (20, 20, 20))
    down, up = rate_points(rates).errors
    assert down.tolist() == [0.1, 0.02, 0.1]
    assert up.tolist() == [0.0, 0.05, 0.1]
    figure = Figure()
    assert draw_points(figure.subplots(), {"mlpf": rate_points(rates)}, is_log=False)
    render(figure)


def test_learning_curves_skip_what_is_not_finite() -> None:
    figure, numbers = learning_curves({"train": [(0, 3.0), (10, float("nan")), (20, 0.1)], "validation": [(20, 0.2)]})
    render(figure)
    assert figure.axes[0].get_yscale() == "log"
    assert numbers["train"]["loss"] == [3.0, None, 0.1]
    render(learning_curves({"train": []})[0])
    figure, numbers = learning_curves({"train": [(10, 3.0)], "jet_iqr": [(10, 0.2), (20, 0.1)]}, references={"rule-based": 0.05})
    assert len(figure.axes) == 2
    assert numbers["jet_iqr"]["iqr_over_median"] == [0.2, 0.1]


def test_transfer_curves_take_mean_and_spread_over_seeds() -> None:
    """Would catch seeds drawn as separate points, or zero-shot put at a sample size."""
    points = [TransferPoint("full", 100, v) for v in (1.0, 2.0, 3.0)] + [
        TransferPoint("full", 300, 0.5, 0.1),
        TransferPoint("zero-shot", 0, 4.0),
    ]
    figure, numbers = transfer_curves(points, metric="Jet IQR/median", references={"rule-based": Estimate(0.7, 0.1)})
    render(figure)
    assert numbers["full"] == {"num_events": [100, 300], "value": [2.0, 0.5], "error": [1.0, 0.1], "num_seeds": [3, 1]}
    assert numbers["rule-based"] == {"value": 0.7, "error": 0.1}
    assert figure.axes[0].get_xlim()[0] > 0
    render(transfer_curves([], metric="loss")[0])


def test_confusion_rows_are_normalised_and_empty_rows_have_no_percentage() -> None:
    counts = np.diag([4, 3, 2, 1, 1, 0])
    counts[1, 2] = 1
    figure, numbers = confusion_matrix(counts, CLASSES)
    render(figure)
    assert numbers["fraction"][1][:3] == [0.0, 0.75, 0.25]
    assert numbers["fraction"][5] == [None] * 6


def test_event_display_of_full_and_empty_events() -> None:
    """Would catch a crash on an event without tracks or candidates, and jet cones at the seam or along the beam."""
    rng = np.random.default_rng(0)
    eta, phi, energy = rng.normal(size=10), rng.uniform(-3, 3, 10), rng.exponential(5, 10)
    particles = EventParticles(eta, phi, energy, np.array([22, 211, -211, 11, -13] * 2), np.array([0, 1, -1, -1, 1] * 2))
    both = {"mlpf": particles, "truth targets": particles}
    view = EventView(eta[:4], phi[:4], energy[:4], eta, phi, energy, both, np.array([0.0, 4.0]), np.array([3.1, 0.0]))
    figure, numbers = event_display(view, title="event 1")
    render(figure)
    assert len(figure.axes) == 3
    assert numbers["mlpf"]["particles"] == 10
    empty = EventParticles(*(np.zeros(0) for _ in range(5)))
    render(event_display(EventView(*(np.zeros(0) for _ in range(6)), {"mlpf": empty}))[0])


def test_drawing_leaves_the_callers_matplotlib_alone(result: EvaluationResult) -> None:
    """Would catch a style that leaks into a user's notebook."""
    before = dict(matplotlib.rcParams)
    jet_response(result)
    assert dict(matplotlib.rcParams) == before


def test_physics_and_figures_import_no_cluster_library() -> None:
    """The layer must work in a notebook without Ray, MLflow or torch, and fastjet must wait until a jet is asked for."""
    code = (
        "import sys, pfscale.physics.evaluation, pfscale.physics.particles, pfscale.report.figures\n"
        "import pfscale.report.physics, pfscale.report.event_display\n"
        "print(*(m for m in ('ray', 'mlflow', 'torch', 'deepspeed', 'uproot', 'fastjet') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == []


def test_arms_are_told_apart_and_controls_belong_to_their_arm() -> None:
    """Catches two curves of one colour, and an untrained control that looks like an arm of its own."""
    arms = ["kinematics", "kinematics+tracks", "kinematics+latents", "kinematics+tracks+latents", "latents-linear"]
    assert len({look(arm, among=arms).colour for arm in arms}) == len(arms)
    for arm in arms[2:]:
        trained, control = look(arm, among=arms), look(f"{arm} (random-frozen)", among=arms)
        assert (control.colour, control.marker) == (trained.colour, trained.marker)
        assert (control.line, control.fill) != (trained.line, trained.fill)
        assert control.label == f"{arm} (random-frozen)"
    flavours = ["b", "c", "g", "s", "tau", "ud"]
    assert len({look(name, among=flavours).colour for name in flavours}) == len(flavours)


def test_bins_without_entries_say_so() -> None:
    """Catches an empty frame with a full legend."""
    figure, _ = binned_bands({"kinematics": [np.full(2, np.nan)]}, edges=[0, 1, 2], variable="gen jet pt", metric="IQR / median")
    assert any("too few entries" in text.get_text() for text in figure.axes[0].texts)


def test_no_rejection_is_claimed_from_a_handful_of_jets() -> None:
    """Catches a rejection of 100,000 that says only that no background jet was left."""
    efficiencies = np.linspace(0.3, 1.0, 71)
    curve = np.where(efficiencies < 0.65, 0.0, efficiencies**4)
    _, numbers = roc_bands({"kinematics": [curve]}, efficiencies=efficiencies, signal="b", background="c", num_background=200)
    found = numbers["kinematics"]["rejection"]
    assert found["0.5"] is None
    assert found["0.8"] == pytest.approx(1 / 0.8**4, rel=0.02)
