"""What a sweep is asked, and what is made of its rows: draws, checks of the file, the data multiplier."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.config import load_config
from pfscale.errors import ConfigError
from pfscale.studies import answers
from pfscale.studies.compute import flops_of
from pfscale.studies.config import Draw, SweepConfig, draws, load_question, repeated
from pfscale.studies.ladder import climb
from pfscale.studies.multiplier import Curve, curve_of, data_multiplier, events_needed, monotone, multiplier_curve
from pfscale.studies.rows import CONTROL, INVALID, STOPPED, WINNER, Row, find_row, key_of, missing, read_rows, winners, write_row
from pfscale.studies.sweep import _control_draws, _further_seeds, best_of
from pfscale.studies.trial import Trial, TrialPlan, stop_mark, write_stopped
from pfscale.tracking.runs import jsonable
from pfscale.training.finetune import FinetuneConfig
from pfscale.training.progress import EVALUATIONS, forget_evaluations, read_evaluations, write_evaluation
from pfscale.training.verbs import find_verb


def sweep(**changes: object) -> SweepConfig:
    """A grid over two sizes of a transfer."""
    values = {"question": "how many?", "verb": "finetune", "base": "base.yaml", "space": {"data.num_events": {"grid_search": [10, 20]}}}
    return SweepConfig(**{**values, **changes})  # type: ignore[arg-type]


# --- draws


def test_a_list_of_spaces_is_their_union() -> None:
    """Catches a ladder whose zero-shot point is drawn once per size, and keys that belong together drawn apart."""
    space = [
        {"mode": "zero-shot"},
        {"mode": {"grid_search": ["full", "scratch"]}, "data.num_events, optimisation.num_steps": {"grid_search": [[10, 5], [20, 8]]}},
    ]
    found = [draw.values for draw in draws(sweep(space=space))]
    assert found[0] == {"mode": "zero-shot"}
    assert len(found) == 5
    assert {(d["data.num_events"], d["optimisation.num_steps"]) for d in found[1:]} == {(10, 5), (20, 8)}


def test_draws_are_the_same_every_time_and_inside_their_domains() -> None:
    """Catches a rerun that draws other trials, which would repeat everything."""
    space = {"optimisation.learning_rate": {"loguniform": [1e-4, 1e-2]}, "model.num_layers": {"randint": [1, 4]}}
    wanted = sweep(verb="pretrain", search="random", num_samples=20, space=space)
    first, second = draws(wanted), draws(wanted)
    assert first == second
    assert len(first) == 20
    assert all(1e-4 <= d.values["optimisation.learning_rate"] <= 1e-2 and d.values["model.num_layers"] in (1, 2, 3) for d in first)
    assert draws(wanted.model_copy(update={"search_seed": 2})) != first


def test_draws_that_come_twice_are_one() -> None:
    """Catches a trial that is run twice at the same time in one folder."""
    assert len(draws(sweep(search="random", num_samples=50, space={"mode": {"choice": ["full", "heads"]}}))) == 2


def test_seeds_are_added_where_a_draw_has_none() -> None:
    """Catches `repeat` that overwrites the seeds of the space, and a winner's second seed that is its first again."""
    assert [d.values["seed"] for d in repeated(Draw((("mode", "full"),)), first_seed=2, count=1)] == [2]
    assert [d.values["seed"] for d in repeated(Draw((("mode", "full"),)), first_seed=4, count=3)] == [4, 5, 6]
    assert repeated(Draw((("seed", 9),)), first_seed=1, count=3) == [Draw((("seed", 9),))]


def test_the_best_of_every_cell_wins() -> None:
    """Catches winners of the whole sweep, those that test events chose, an untrained one, and one that is itself a repetition."""

    def row(mode: str, rate: float, loss: float, jets: float, **more: Any) -> Row:
        found = {"validation_loss": loss, "test/met_resolution": jets}
        return Row({"mode": mode, "rate": rate}, "finished", "", "", found, elements=1, **more)

    rows = [row("full", 1.0, 2.0, 5.0), row("full", 2.0, 3.0, 4.0), row("scratch", 1.0, 9.0, 1.0), row("scratch", 2.0, 8.0, 2.0)]
    rows += [row("full", 3.0, 1.0, 1.0, group=WINNER), replace(row("zero-shot", 0.0, 1.0, 1.0), elements=0)]
    asked = {"winners": 1, "metric": "test/met_resolution", "test": {}, "space": {"mode": {"grid_search": ["full", "scratch"]}}}
    by_loss = sweep(**asked, winners_of=["mode"], winners_by="validation_loss")
    assert [(same[0]["mode"], same[0]["rate"]) for same in winners(rows, by_loss)] == [("full", 1.0), ("scratch", 2.0)]
    assert [(same[0]["mode"], same[0]["rate"]) for same in winners(rows, sweep(**asked))] == [("scratch", 1.0)]


def test_settings_with_seeds_win_by_their_mean() -> None:
    """Catches the luckiest seed that wins, one setting that wins twice, and seeds that are trained again and counted twice."""

    def row(rate: float, seed: int, value: float, group: str = "") -> Row:
        return Row({"rate": rate, "seed": seed}, "finished", "", "", {"validation_loss": value}, elements=1, group=group)

    own = [row(1.0, 1, 0.1), row(1.0, 2, 0.9), row(2.0, 1, 0.4), row(2.0, 2, 0.4), row(3.0, 1, 0.05, group=CONTROL)]
    asked = sweep(winners=2, winner_seeds=3, space={"mode": "full"})
    assert [[r["rate"] for r in same] for same in winners(own, asked)] == [[2.0, 2.0], [1.0, 1.0]]
    plan: Any = SimpleNamespace(
        question=SimpleNamespace(sweep=asked), trials=[SimpleNamespace(launch=SimpleNamespace(config=SimpleNamespace(seed=1)))], name=""
    )
    assert [draw.values for draw in _further_seeds(plan, own)] == [{"rate": 2.0, "seed": 3}, {"rate": 1.0, "seed": 3}]
    repeated_too = [*own, row(2.0, 3, 0.7, WINNER), row(1.0, 3, 0.2, WINNER)]
    assert [(r["rate"], r["seed"]) for r in best_of(repeated_too, plan)] == [(1.0, 1), (1.0, 2), (1.0, 3)]
    diverged = replace(row(2.0, 3, 0.0), status="diverged", metrics={})
    assert [[r["rate"] for r in same] for same in winners([*own, diverged], asked)] == [[1.0, 1.0], [2.0, 2.0]]
    assert [draw.values for draw in _further_seeds(plan, [*own, diverged])] == [{"rate": 1.0, "seed": 3}, {"rate": 2.0, "seed": 4}]
    enough = asked.model_copy(update={"winner_seeds": 2})
    plan.question.sweep = enough
    assert [r["rate"] for r in best_of(own, plan)] == [2.0, 2.0]  # though nothing had to be repeated


def test_a_control_draws_from_all_of_the_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches plain random search that spends its compute on the first point of a grid, or other draws after a kill."""
    space = [
        {"mode": {"grid_search": ["full", "heads"]}, "seed": {"randint": [0, 10**6]}},
        {"mode": "scratch", "seed": {"randint": [0, 10**6]}},
    ]
    asked = sweep(search="random", scheduler="asha", control=True, num_samples=10, space=space)
    plan: Any = SimpleNamespace(question=SimpleNamespace(sweep=asked), trials=[None] * 30)
    monkeypatch.setattr("pfscale.studies.sweep.flops_of", lambda *_: 1.0)
    monkeypatch.setattr("pfscale.studies.sweep.flops_of_draw", lambda *_: 1.0)
    rows = [row_of({"seed": seed}, 1.0) for seed in range(30)]
    found = _control_draws(plan, rows)
    assert len(found) == 30
    assert {draw.values["mode"] for draw in found} == {"full", "heads", "scratch"}
    assert _control_draws(plan, [*rows, row_of({"seed": 1}, 1.0, group=CONTROL)]) == found


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"space": {"mode": {"chioce": ["full"]}}}, "chioce is no domain"),
        ({"space": {"mode": {"grid_search": "full"}}}, "takes a list"),
        ({"space": {"a, b": {"grid_search": [[1, 2], [3]]}}}, "lists of 2 values"),
        ({"space": {"optimisation.learning_rate": {"loguniform": [1e-3]}}}, "loguniform does not take"),
        ({"space": {"optimisation.learning_rate": {"loguniform": [1e-3, 1e-2]}}}, "search is grid"),
        ({"search": "random"}, "nothing in space is drawn"),
        ({"search": "optuna", "space": {"mode": {"grid_search": ["full"]}, "seed": {"randint": [1, 9]}}}, "without grid_search"),
        ({"metric": "test/met_resolution"}, "needs a `test:` section"),
        ({"metric": "test/met_resolution", "test": {}, "scheduler": "asha"}, "known at a trial's end only"),
        ({"control": True}, "needs search: optuna or a scheduler"),
        ({"winners_of": ["mode"]}, "use winners: 1"),
        ({"winners": 1, "winners_of": ["model.size"]}, "model.size is not in the space"),
        ({"repeat": 2, "space": {"seed": {"grid_search": [1, 2]}}}, "use one of them"),
        ({"answer": "transfer", "verb": "pretrain"}, "goes with verb: finetune"),
        ({"search": "optuna", "repeat": 2, "space": {"seed": {"randint": [1, 9]}}}, "repeat has no meaning"),
        ({"search": "random", "scheduler": "pbt", "space": {"a": {"grid_search": [1]}, "b": {"randint": [1, 9]}}}, "without grid_search"),
        ({"winners": 1, "answer": "transfer", "metric": "test/met_resolution", "test": {}}, "use winners_by: validation_loss"),
    ],
)
def test_mistakes_in_a_sweep_are_told(changes: dict[str, object], text: str) -> None:
    """Catches a sweep that starts, and fails in its first trial or means something else."""
    with pytest.raises(ValueError, match=text):
        sweep(**changes)


def test_overrides_go_where_they_belong(tmp_path: Path) -> None:
    """Catches `run.storage=...` that is taken for a key of the sweep."""
    (tmp_path / "base.yaml").write_text("mode: heads\n")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep().model_dump(mode="json", exclude_defaults=True)))
    question = load_question(tmp_path / "sweep.yaml", ["num_samples=3", "data.shards=here", "seed=7"])
    assert question.sweep.num_samples == 3
    config = question.config(draws(question.sweep)[1])
    assert (config.mode, config.data.shards, config.data.num_events, config.seed) == ("heads", "here", 20, 7)  # type: ignore[attr-defined]
    command = question.command(draws(question.sweep)[1])
    assert command.endswith("base.yaml data.shards=here seed=7 data.num_events=20 'register_as=\"\"'")
    with pytest.raises(ConfigError, match=r"data.num_events: searched, and given"):
        load_question(tmp_path / "sweep.yaml", ["data.num_events=5"])
    fixed = sweep(space={"optimisation.num_steps": 400, "seed": {"grid_search": [1, 2]}})
    (tmp_path / "fixed.yaml").write_text(yaml.safe_dump(fixed.model_dump(mode="json", exclude_defaults=True)))
    for override, steps in (("data.num_events=9", 400), ("optimisation.num_steps=20", 20)):
        question = load_question(tmp_path / "fixed.yaml", [override])
        assert question.config(draws(question.sweep)[0]).optimisation.num_steps == steps  # type: ignore[attr-defined]
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        load_question(tmp_path / "sweep.yaml")


# --- rows


def test_rows_are_found_again_whatever_the_order_of_settings(tmp_path: Path) -> None:
    """Catches a finished trial that is repeated, and one of the control that is taken for the search's own."""
    row = Row(settings={"mode": "full", "seed": 1}, status="finished", run_id="r", model="", metrics={"validation_loss": 2.0})
    write_row(tmp_path, row)
    (tmp_path / "rows" / "torn.draft").write_text("{")
    assert read_rows(tmp_path) == [row]
    assert missing([Draw((("seed", 1), ("mode", "full"))), Draw((("seed", 2), ("mode", "full")))], read_rows(tmp_path)) == [
        Draw((("seed", 2), ("mode", "full")))
    ]
    assert key_of(row.settings) != key_of(row.settings, "control")


def optuna_plan(tmp_path: Path, **base: object) -> TrialPlan:
    """Of a search of the number of heads."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"run": {"storage": str(tmp_path / "runs"), "num_workers": 0}, **base}))
    asked = sweep(verb="pretrain", search="optuna", space={"model.num_heads": {"choice": [2, 4]}})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(asked.model_dump(mode="json", exclude_defaults=True)))
    question = load_question(tmp_path / "sweep.yaml")
    return TrialPlan(question, tmp_path / "sweep", tmp_path, run=(), tags={}, parent_run="")


def test_what_a_search_draws_and_is_no_config_is_a_result(tmp_path: Path) -> None:
    """Catches one draw that does not fit the model, which ends the whole search, now and whenever it is repeated."""
    trial = Trial.__new__(Trial)
    trial.plan = optuna_plan(tmp_path, model={"width": 16, "num_layers": 1, "num_heads": 2})
    trial.settings, trial.own_id, trial.last_step, trial.training, trial.inherited = {"model.num_heads": 3}, "t1", 0, None, None
    report = trial.step()
    assert report["done"]
    assert report["validation_loss"] > 1e8
    row = find_row(trial.plan.folder, trial.settings, "")
    assert row is not None
    assert row.status == INVALID
    assert "num_heads (3) must divide" in row.note
    assert flops_of(SimpleNamespace(), row) == 0.0  # type: ignore[arg-type]
    assert trial.step()["done"]  # drawn again: the same row
    assert len(read_rows(trial.plan.folder)) == 1
    trial.settings = {"model.num_heads": 5}
    trial.plan.question.base.write_text("model: {widht: 16}")
    with pytest.raises(ConfigError, match="widht"):  # the base is at fault, not the draw
        trial.step()


def test_a_stopped_trial_whose_process_is_gone_leaves_a_row(tmp_path: Path, make_shards: Callable[..., Path], empty_store: str) -> None:
    """Catches a sweep that can never end, because one of those that the scheduler stopped was killed before it wrote its row."""
    model = {"width": 16, "num_layers": 1, "num_heads": 2}
    plan = optuna_plan(tmp_path, model=model, data={"shards": str(make_shards())}, engine={"kind": "torch"})
    plan = replace(plan, run=(f"run.tracking_uri={empty_store}",))
    settings = {"model.num_heads": 2}
    write_stopped(plan, settings, "t1")
    assert not read_rows(plan.folder)  # it was not stopped
    stop_mark(plan.folder, "t1").parent.mkdir(parents=True)
    stop_mark(plan.folder, "t1").touch()
    folder = find_verb("pretrain").launch(plan.config(settings))[0].folder
    folder.mkdir(parents=True)
    write_evaluation(folder, step=10, metrics={"validation_loss": 2.0})
    write_stopped(plan, settings, "t1")
    (row,) = read_rows(plan.folder)
    assert (row.status, row.last_step, row.metrics) == (STOPPED, 10, {"validation_loss": 2.0})


def test_the_command_that_repeats_a_trial_tells_no_password(tmp_path: Path) -> None:
    """Catches a database's password on the page of every trial, and repetitions that register themselves as candidates."""
    (tmp_path / "base.yaml").write_text("mode: heads\n")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep().model_dump(mode="json", exclude_defaults=True)))
    question = load_question(tmp_path / "sweep.yaml", ["run.tracking_uri=postgresql://me:hunter2@db/mlflow"])
    command = question.command(draws(question.sweep)[0])
    assert "hunter2" not in command
    assert "postgresql://me:***@db/mlflow" in command
    repeated_config = load_config(FinetuneConfig, tmp_path / "base.yaml", [shlex.split(command)[-1]])
    assert repeated_config.register_as == ""


# --- data multiplier

SIZES = np.array([100.0, 300.0, 1000.0, 3000.0, 10000.0])


def law(scale: float, *, noise: float = 0.0, seeds: int = 4) -> Curve:
    """A + (scale / D) ** 0.4 with a spread over seeds."""
    rng = np.random.default_rng(int(scale))
    return Curve(SIZES, tuple(0.1 + (scale / size) ** 0.4 + noise * rng.standard_normal(seeds) for size in SIZES))


def test_a_known_multiplier_is_found() -> None:
    """Catches a ratio upside down, and an interval that does not hold what it should."""
    found = data_multiplier(law(30.0, noise=0.003), law(150.0, noise=0.003))
    assert found.value == pytest.approx(5.0, rel=0.15)
    assert found.low < 5.0 < found.high < 2 * found.low
    assert (found.bound, found.resampled) == ("", "seeds")
    assert found.slow == 10000.0
    curve = multiplier_curve(law(30.0), law(150.0))
    assert [m.value for m in curve] == pytest.approx([5.0] * len(curve), rel=0.05)


def test_where_a_curve_ends_there_is_a_bound() -> None:
    """Catches a number made up beyond the largest sample."""
    found = data_multiplier(law(1.0), law(1000.0))
    assert found.bound == "at least"
    assert found.value == 100.0
    assert str(found).startswith("at least 100.0")
    behind = data_multiplier(law(1000.0), law(1.0))
    assert behind.bound == behind.low_bound == "at most"
    assert str(behind).startswith("at most 0.01 [at most 0.01")
    assert data_multiplier(law(30.0), law(150.0), at=5.0).bound == "none"
    flat = Curve(SIZES[:2], (np.array([0.3]), np.array([0.3])))
    assert data_multiplier(flat, Curve(SIZES[:2], (np.array([0.4]), np.array([0.25])))).bound == "at least"


def test_fine_tuning_that_falls_behind_gives_less_than_one() -> None:
    """Catches a comparison that cannot show that transfer does not pay."""
    assert data_multiplier(law(150.0), law(30.0)).value == pytest.approx(0.2, rel=0.1)


def test_replicas_of_the_same_events_are_taken_together() -> None:
    """Catches an interval that counts fluctuations twice that both curves share."""
    rng = np.random.default_rng(0)
    shared = 0.05 * rng.standard_normal(200)

    def with_replicas(scale: float, noise: np.ndarray) -> Curve:
        plain = law(scale)
        return Curve(SIZES, plain.values, tuple(values[:, None] * (1 + noise[None, :]) for values in plain.values))

    paired = data_multiplier(with_replicas(30.0, shared), with_replicas(150.0, shared))
    apart = data_multiplier(with_replicas(30.0, shared), with_replicas(150.0, np.roll(shared, 7)))
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


@settings(max_examples=50)
@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12))
def test_monotone_never_rises_and_keeps_the_mean(values: list[float]) -> None:
    """Catches pools that are joined wrongly."""
    falling = monotone(np.array(values))
    assert (np.diff(falling) <= 1e-12).all()
    assert falling.mean() == pytest.approx(np.mean(values))


def test_events_needed_reads_between_points_in_the_logarithm() -> None:
    """Catches interpolation in D instead of its logarithm, and values beyond the curve."""
    sizes, values = np.array([100.0, 10000.0]), np.array([4.0, 1.0])
    assert events_needed(sizes, values, 2.0) == pytest.approx(1000.0)
    assert events_needed(sizes, values, 5.0) == 0.0
    assert events_needed(sizes, values, 0.5) == float("inf")


def test_a_curve_collects_seeds_by_size() -> None:
    """Catches seeds of different sizes that are mixed."""
    curve = curve_of([(20.0, 3.0, None), (10.0, 5.0, None), (10.0, 7.0, [1.0, 2.0])])
    assert curve.sizes.tolist() == [10.0, 20.0]
    assert [len(v) for v in curve.values] == [2, 1]
    assert curve.replicas is None


# --- answers


def ladder_rows() -> list[Row]:
    """A ladder in which fine-tuning needs five times fewer events."""
    rng = np.random.default_rng(1)
    rows = [row_of({"mode": "zero-shot"}, 0.9)]
    for mode, scale in (("full", 30.0), ("scratch", 150.0)):
        for size in (100, 300, 1000, 3000, 10000):
            for seed in (1, 2, 3):
                value = 0.1 + (scale / size) ** 0.4 + 0.003 * rng.standard_normal()
                rows.append(row_of({"mode": mode, "data.num_events": size, "seed": seed}, value))
    return rows


def row_of(settings: dict[str, object], value: float, *, group: str = "", elements: int = 1000, ended: float = 0.0) -> Row:
    """A finished trial."""
    metrics = {"validation_loss": value, "validation_loss_error": 0.01}
    return Row(settings, "finished", "run", "", metrics, elements=elements, events=4000, training_seconds=36.0, group=group, ended=ended)


def plan_for(answer: str, **changes: object) -> Any:
    """What the answers look at of a plan."""
    return SimpleNamespace(question=SimpleNamespace(sweep=sweep(answer=answer, **changes)), detector="cld", varied=("seed",))


def test_the_answer_of_a_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an answer without its number, its figure or its cost."""
    monkeypatch.setattr(answers, "references_on_test", lambda _: {"rule-based": {"validation_loss": (0.15, 0.01)}})
    found = answers.transfer(plan_for("transfer"), ladder_rows())
    (sentence,) = found.sentences
    assert "fine-tuning needs" in sentence
    assert "times fewer CLD events" in sentence
    assert found.numbers["validation_loss"]["multiplier"]["value"] == pytest.approx(5.0, rel=0.15)
    figure, numbers = found.figures["ladder_validation_loss"]
    assert set(numbers) == {"full", "scratch", "zero-shot", "rule-based"}
    assert figure.axes
    costs = {(cell["mode"], cell["num_events"]): cell for cell in found.numbers["cost"]}
    assert costs["full", 1000] == {
        "mode": "full",
        "num_events": 1000,
        "trainings": 3,
        "passes": 4.0,
        "elements": 1000.0,
        "hours": pytest.approx(0.01),
    }
    json.dumps(jsonable(found.numbers))


def test_the_answer_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a best-so-far that gets worse, and a control that is mixed with the search."""
    monkeypatch.setattr(answers, "flops_of", lambda _, row: 2.0 * row.elements)
    rows = [row_of({"rate": i}, value, ended=float(i)) for i, value in enumerate([3.0, 2.0, 2.5])]
    rows += [row_of({"rate": i}, value, group="control", ended=float(i), elements=500) for i, value in enumerate([2.8, 2.6])]
    rows += [row_of({"rate": 1, "seed": 7}, 2.1, group="winner", ended=9.0)]
    found = answers.search(plan_for("search", search="optuna", space={"seed": {"randint": [0, 9]}}), rows)
    best = found.numbers["best_so_far"]
    assert [step["best"] for step in best["optuna"]] == [3.0, 2.0, 2.0]
    assert [step["flops"] for step in best["random search"]] == [1000.0, 2000.0]
    assert found.numbers["best"] == {"rate": 1}
    assert "2.05 ± 0.071 over 2 seeds" in found.sentences[0]
    assert any("of the search 2; of random search with 0.33 times the operations 2.6" in sentence for sentence in found.sentences)


def test_a_ladder_stops_where_more_no_longer_pays() -> None:
    """Catches a ladder that goes on for nothing, one way that ends another, and a stop by the noise of one seed."""
    wanted = [Draw((("mode", mode), ("data.num_events", size))) for mode in ("full", "scratch") for size in (100, 300, 1000, 3000)]
    rows: list[Row] = []
    asked: list[tuple[str, int]] = []

    def run(draws: list[Draw], _: str) -> list[Row]:
        for draw in draws:
            mode, size = str(draw.values["mode"]), int(draw.values["data.num_events"])
            asked.append((mode, size))
            value = {"full": {100: 1.0, 300: 0.5, 1000: 0.495}.get(size, 0.4), "scratch": 100.0 / size}[mode]
            rows.append(row_of(draw.values, value))  # with an error of 0.01
        return rows

    climb(sweep(), wanted, run)
    assert ("full", 1000) in asked
    assert ("full", 3000) not in asked
    assert ("scratch", 3000) in asked


def test_evaluations_of_steps_to_be_taken_again_are_dropped(tmp_path: Path) -> None:
    """Catches a resumed trial that is judged by what it showed before it was killed, and a torn last line."""
    for step in (10, 20, 30):
        write_evaluation(tmp_path, step=step, metrics={"validation_loss": 1.0 / step})
    with (tmp_path / EVALUATIONS).open("a") as file:
        file.write('{"step": 40, "valid')
    assert [values["step"] for values in read_evaluations(tmp_path)] == [10, 20, 30]
    forget_evaluations(tmp_path, after=20)
    write_evaluation(tmp_path, step=30, metrics={"validation_loss": 5.0})
    assert [values["validation_loss"] for values in read_evaluations(tmp_path)] == [0.1, 0.05, 5.0]
