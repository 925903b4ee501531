"""Scaling: known laws with their optimum, doubts where the data say nothing, rivals, transfer, records that are read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pfscale.errors import ConfigError, NotEnoughDataError
from pfscale.report.html import render_page
from pfscale.studies.forms import alternatives
from pfscale.studies.laws import Law
from pfscale.studies.records import NotUsed, TrainingRecord, read_records, write_records
from pfscale.studies.scaling import Grid, Prices, Scaling, advice, optimum, spending, study, training_cost
from pfscale.studies.scaling_answer import answer_of
from pfscale.studies.scaling_files import scaling
from pfscale.studies.transfer_law import fit_transfer

LAW = Law(1.7, (400.0, 410.0), (0.34, 0.28))
SIZES = [a.ravel() for a in np.meshgrid(np.geomspace(1e5, 1e8, 5), np.geomspace(1e6, 1e10, 6), indexing="ij")]


def grid_of(law: Law = LAW, *, sigma: float = 0.003, sizes: list[np.ndarray] | None = None, seeds: int = 1) -> Grid:
    """Runs of a law with log-normal noise, whose trainings cost 6 N D."""
    n, d = (np.repeat(values, seeds) for values in (sizes or SIZES))
    noise = np.exp(np.random.default_rng(5).normal(0, sigma, len(n)))
    return Grid.of(n, d, law(n, d) * noise, 6 * n * d, np.ones(len(n)))


@pytest.fixture(scope="module")
def found() -> Scaling:
    return study(grid_of())


def test_a_known_law_is_found_without_doubts(found: Scaling) -> None:
    """Catches intervals of other parameters, doubts about what is well measured, and a hold-out that was fitted to."""
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}
    assert all(edges.low <= truth[name] <= edges.high for name, edges in found.intervals.items())
    assert found.doubts == ()
    assert found.hold_out is not None
    assert found.hold_out.parameters == pytest.approx(1e8)
    assert 0 < np.abs(found.hold_out.errors).max() < 0.02
    assert found.alternatives[0].name == "E + A/N^a + B/D^b"
    assert not found.too_far(1e8, 5e10)
    assert "20 times" in found.too_far(2e9, 1e10)[0]


def test_the_optimum_is_that_of_the_closed_form() -> None:
    """Catches a cost that is not that of the runs: for C = 6 N D, N = G (C / 6)^(beta / (alpha + beta)) (arXiv:2203.15556)."""
    exact = study(grid_of(sigma=0.0), num_replicas=20)
    best = optimum(exact, training_cost(exact.grid), 1e18)
    (a, b), (alpha, beta) = LAW.factors, LAW.exponents
    wanted = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (1e18 / 6) ** (beta / (alpha + beta))
    assert best.parameters.value == pytest.approx(wanted, rel=0.03)
    assert best.events.value == pytest.approx(1e18 / 6 / wanted, rel=0.03)
    assert not best.at_edge
    with pytest.raises(ValueError, match="buys nothing"):
        optimum(exact, training_cost(exact.grid), 1.0)


def test_dear_events_call_for_larger_models_and_use_for_smaller_ones(found: Scaling) -> None:
    """Catches prices that go nowhere."""
    plain = optimum(found, spending(found.grid, Prices(flop=1e-15)), 1e3)
    dear = optimum(found, spending(found.grid, Prices(event=1e-7, flop=1e-15)), 1e3)
    used = optimum(found, spending(found.grid, Prices(flop=1e-15, inference_flop=1e-15, inference_events=1e10)), 1e3)
    assert dear.events.value < plain.events.value
    assert dear.parameters.value > plain.parameters.value
    assert used.parameters.value < plain.parameters.value


@pytest.mark.parametrize(
    ("grid", "doubt"),
    [
        (grid_of(Law(1.7, (1e-9, 410.0), (0.34, 0.28))), "do not say how the loss falls with parameters"),
        (grid_of(Law(1e-6, (4.0, 41.0), (0.05, 0.06)), sigma=0.01), "do not say where the loss ends"),
        (grid_of(sizes=[a.ravel() for a in np.meshgrid([1e6, 1e7], np.geomspace(1e6, 1e10, 6))]), "2 different numbers of parameters"),
        (grid_of(sizes=[values[::4] for values in SIZES]), "8 runs for 5 parameters"),
    ],
)
def test_what_the_data_do_not_say_is_said(grid: Grid, doubt: str) -> None:
    """Catches confident laws of data without size, slope or curvature."""
    found = study(grid, num_replicas=100)
    assert any(doubt in line for line in found.doubts), found.doubts
    if "parameters" in doubt and "not say" in doubt:
        assert any("twice the parameters: these data do not say" in line for line in advice(found, budgets=[1e18]))
        assert any("do not say how to divide it" in line for line in advice(found, budgets=[1e18]))


def test_the_spread_of_seeds_is_pooled() -> None:
    """Catches differences between sizes that count as noise."""
    grid = grid_of(sigma=0.01, seeds=4)
    assert grid.seed_spread == pytest.approx(0.01, rel=0.2)
    assert np.isnan(grid_of().seed_spread)


def test_rivals_are_ranked_by_what_they_have_not_seen() -> None:
    """Catches a ranking by the fit, which always takes the form with most freedom, and forms that cannot be fitted."""
    d = np.geomspace(1e3, 1e6, 12)
    noise = np.exp(np.random.default_rng(2).normal(0, 1e-3, len(d)))
    power = alternatives([d], (0.5 + 30 * d**-0.5) * noise, ["D"])
    assert power[0].name in ("E + C/D^c", "E + C/D^c, broken")
    assert {one.name: one.error for one in power}["E + C exp(-D/D0)"] > 3 * power[0].error
    bent = alternatives([d], (0.5 + 2 * np.exp(-d / 3e4)) * noise, ["D"])
    assert bent[0].name == "E + C exp(-D/D0)"


def test_a_law_of_transfer_is_found() -> None:
    """Catches arms that are exchanged and a multiplier that does not fall with D."""
    d = np.repeat(np.geomspace(100, 30_000, 6), 3)
    rng = np.random.default_rng(1)
    noise = np.exp(rng.normal(0, 2e-3, (2, len(d))))
    scratch = 1.2 + 9 * d**-0.35
    tuned = 1.2 + 9 * (d + 200 * d**0.3) ** -0.35
    found = fit_transfer((d, scratch * noise[0]), (d, tuned * noise[1]), num_replicas=40)
    for size in (100.0, 1000.0, 10_000.0):
        edges = found.multiplier(size)
        assert edges.value == pytest.approx(1 + 200 * size**-0.7, rel=0.1)
        assert edges.low < edges.value < edges.high
    assert not found.behind
    assert fit_transfer((d, tuned), (d, scratch), num_replicas=2).behind
    with pytest.raises(ValueError, match="three sizes"):
        fit_transfer((d[:6], scratch[:6]), (d, tuned))


def records(mode: str = "pretrain", *, seed: int = 1) -> list[TrainingRecord]:
    """A grid as records."""
    grid = grid_of()
    columns = (grid.parameters, grid.events, grid.loss, grid.flops)
    return [
        TrainingRecord(f"{i:032x}", f"run-{i}", mode, "clic", "abc", seed, int(n), int(d), 1.0, d * 100, f, 0.0, 1.0, v, {"iqr": v / 10})
        for i, (n, d, v, f) in enumerate(zip(*columns, strict=True))
    ]


def test_records_are_read_back(tmp_path: Path) -> None:
    """Catches columns and metrics that are lost on the way, and files that are none."""
    some = [*records()[:3], TrainingRecord("f" * 32, "x", "full", "cld", "d", 2, 10, 20, 1.5, 3.0, 4.0, 5.0, 6.0, 7.0, {"other": 1.0})]
    write_records(tmp_path / "r.parquet", some)
    assert read_records(tmp_path / "r.parquet") == some
    with pytest.raises(ConfigError, match="no such file"):
        read_records(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ConfigError, match="no Parquet file"):
        read_records(tmp_path / "text.parquet")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "few.parquet")
    with pytest.raises(ConfigError, match=r"columns are missing: .*parameters"):
        read_records(tmp_path / "few.parquet")


def test_the_answer_has_law_hold_out_advice_figures_and_what_was_left_out(tmp_path: Path) -> None:
    """Catches an answer without one of its parts, a page that is not written, and runs that vanish."""
    lost = NotUsed("e" * 32, "lost", "failed, not finished")
    unmeasured = TrainingRecord("d" * 32, "no-jets", "pretrain", "clic", "abc", 1, 10, 20, 1.0, 1.0, 1.0, 0.0, 1.0, 2.0)
    answer = answer_of([*records(), unmeasured], [lost], metric="iqr", budgets=[1e18])
    text = "\n".join(answer.sentences)
    assert "alpha = 0.3" in text
    assert "left out and predicted" in text
    assert "twice the events" in text
    assert "1e+18 operations:" in text
    assert any("empirical" in doubt for doubt in answer.doubts)
    assert [run.name for run in answer.left_out] == ["lost", "no-jets"]
    assert {name.removeprefix("pretrain_") for name in answer.figures} == {
        "against_events",
        "against_parameters",
        "iso_flops",
        "residuals",
        "hold_out",
    }
    page = render_page(answer.page(question="what?", command=["pfscale", "scaling"]))
    assert "no-jets" in page
    write_records(tmp_path / "r.parquet", records())
    scaling(str(tmp_path / "r.parquet"), tmp_path / "out", tracking_uri="")
    assert {"scaling.html", "answer.json", "records.parquet", "pretrain_hold_out.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    with pytest.raises(ConfigError, match="needs prices"):
        scaling(str(tmp_path / "r.parquet"), tmp_path / "out", money=5.0, tracking_uri="")


def test_too_few_runs_are_refused_with_what_there_is() -> None:
    """Catches a law of five runs."""
    with pytest.raises(NotEnoughDataError, match="no law can be fitted") as refused:
        answer_of(records()[:5], [])
    assert "5 runs (pretrain)" in str(refused.value)
