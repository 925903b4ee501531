"""Sweeps on Ray Tune: every trial once, below one MLflow run, stopped early, killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from pfscale.config import RunConfig, dump_yaml, load_config
from pfscale.errors import ConfigError
from pfscale.studies.config import load_question
from pfscale.studies.plan import plan_sweep
from pfscale.studies.rows import CONTROL, FINISHED, STOPPED, WINNER, read_rows
from pfscale.studies.sweep import SweepResult, run_sweep
from pfscale.training.config import DataConfig, GuardConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.finetune import FinetuneConfig
from pfscale.training.pretrain import PretrainConfig, pretrain
from training_runs import Shards, config, elsewhere

GRID = {"optimisation.learning_rate": {"grid_search": [1e-3, 3e-3]}, "seed": {"grid_search": [1, 2]}}


def written(folder: Path, base: object, **sweep: object) -> Path:
    """The file of a sweep, and that of its trials."""
    (folder / "base.yaml").write_text(dump_yaml(base))  # type: ignore[arg-type]
    values = {"question": "which rate?", "verb": "pretrain", "base": "base.yaml", "space": GRID, **sweep}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    return folder / "sweep.yaml"


def swept(file: Path, *overrides: str) -> SweepResult:
    """The sweep of a file."""
    return run_sweep(plan_sweep(load_question(file, overrides)))


@pytest.mark.usefixtures("cluster")
def test_a_grid_runs_once_below_one_run(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches trials without a parent, without the command that repeats them, run again by the same command, or lost in Ray's folders."""
    monkeypatch.chdir(tmp_path)
    base = config(make_shards(), run_config)
    base = base.model_copy(update={"data": base.data.model_copy(update={"shards": os.path.relpath(base.data.shards)})})
    file = written(tmp_path, base)
    result = swept(file)
    assert [row.status for row in result.rows] == [FINISHED] * 4
    assert len({row.metrics["validation_loss"] for row in result.rows}) == 4
    means = {
        rate: np.mean([r.metrics["validation_loss"] for r in result.rows if r["optimisation.learning_rate"] == rate])
        for rate in (1e-3, 3e-3)
    }
    assert result.best["optimisation.learning_rate"] == min(means, key=lambda rate: means[rate])
    client = MlflowClient(run_config.tracking_uri)
    (experiment,) = client.search_experiments(filter_string=f"name = '{run_config.experiment}'")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["pfscale.verb"] == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.tags["mlflow.note.content"].startswith("Repeat it: `pfscale pretrain ") for run in children)
    assert {path.path for path in client.list_artifacts(parent.info.run_id)} >= {"table.json", "answer.json", "sweep.yaml", "base.yaml"}
    best = load_config(PretrainConfig, result.folder / "best.yaml")
    assert best.optimisation.learning_rate == result.best["optimisation.learning_rate"]
    again = swept(file)
    assert again.rows == result.rows
    assert again.folder == result.folder
    assert len(client.search_runs([experiment.experiment_id])) == 5


@pytest.mark.usefixtures("cluster")
def test_a_ladder_is_measured_on_events_of_its_own(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a ladder without one of its ways, measured on what was learned from, without its figures, or with rates that did not win."""
    backbone = pretrain(elsewhere(config(make_shards(), run_config), tmp_path / "backbone")).checkpoint
    few = OptimisationConfig(num_steps=16, learning_rate=3e-3, evaluate_every=8)
    data = DataConfig(shards=str(make_shards(200, seed=2, detector="cld", smear=0.1)), tokens_per_step=512)
    never = GuardConfig(spike_factor=0)
    base = FinetuneConfig(
        backbone=str(backbone), engine=TorchEngineConfig(), optimisation=few, data=data, guard=never, physics_events=0, run=run_config
    )
    rates = {"optimisation.learning_rate": {"grid_search": [1e-7, 3e-3]}}
    grid = {"mode": {"grid_search": ["full", "scratch"]}, "data.num_events": {"grid_search": [40, 120]}, **rates}
    space = [{"mode": "zero-shot"}, grid]
    won = {"winners": 1, "winner_seeds": 2, "winners_of": ["mode", "data.num_events"], "winners_by": "validation_loss"}
    test = {"shards": str(make_shards(80, seed=3, detector="cld", smear=0.1)), "split": "all"}
    metric = "test/jet_response_iqr_over_median"
    result = swept(written(tmp_path, base, verb="finetune", space=space, test=test, metric=metric, answer="transfer", **won))
    assert len(result.rows) == 1 + 8 + 4
    assert [row["optimisation.learning_rate"] for row in result.rows if row.group == WINNER] == [3e-3] * 4
    assert len(result.numbers["trainings"]) == 1 + 4 * 2
    assert {cell["trainings"] for cell in result.numbers["cost"] if cell["num_events"]} == {2}
    assert all(metric in row.metrics and len(row.replicas[metric]) == 200 for row in result.rows)
    assert any(name.startswith("test/efficiency_") for name in result.rows[0].metrics)
    assert {"ladder_validation_loss", "ladder_jet_response_iqr_over_median", "ladder_met_resolution"} <= set(result.figures)
    _, numbers = result.figures["ladder_jet_response_iqr_over_median"]
    assert {"zero-shot", "full", "scratch", "truth targets"} <= set(numbers)
    assert any("times fewer CLD events" in sentence for sentence in result.answer)


@pytest.mark.usefixtures("cluster")
def test_asha_stops_the_worse_and_keeps_what_they_showed(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a scheduler that stops nothing, and results of stopped trials that are lost."""
    base = config(make_shards(), run_config, num_steps=64)
    space = {"optimisation.learning_rate": {"grid_search": [3e-3, 1e-2, 1e-5, 1e-6, 1e-7, 1e-8]}}
    scheduler = {"kind": "asha", "grace_steps": 8, "reduction_factor": 2}
    result = swept(written(tmp_path, base, space=space, scheduler=scheduler), "max_concurrent=1")
    assert len(result.rows) == 6
    stopped = [row for row in result.rows if row.status == STOPPED]
    assert len(stopped) >= 2
    assert all(row.evaluations and row.elements and row.last_step < 64 for row in stopped)
    assert result.best["optimisation.learning_rate"] in (3e-3, 1e-2)
    assert swept(tmp_path / "sweep.yaml", "max_concurrent=1").rows == result.rows


@pytest.mark.usefixtures("cluster")
def test_a_search_that_draws_the_same_again_comes_to_its_end(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a search over few values that waits for ever for rows of trials that are one, or trains them again."""
    space = {"model.num_layers": {"choice": [1, 2]}}
    file = written(tmp_path, config(make_shards(), run_config), space=space, search="optuna", num_samples=5)
    result = swept(file, "max_concurrent=2")
    assert 1 <= len(result.rows) <= 2
    assert len(list((result.folder / "tune" / "own").glob("Trial_*"))) == 5
    assert swept(file).rows == result.rows


@pytest.mark.usefixtures("cluster")
def test_what_is_drawn_twice_may_be_stopped(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a search that can never end, because a trial was stopped that only repeats what another has done, or waits for it."""
    space = {"optimisation.learning_rate": {"choice": [1e-2, 1e-7]}}
    scheduler = {"kind": "asha", "grace_steps": 8, "reduction_factor": 2}
    base = config(make_shards(), run_config, num_steps=48)
    file = written(tmp_path, base, space=space, search="optuna", num_samples=7, scheduler=scheduler)
    result = swept(file, "max_concurrent=2")
    assert 1 <= len(result.rows) <= 2
    assert swept(file).rows == result.rows


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_population_takes_over_what_is_better(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches members that begin anew instead of going on from another's weights."""
    base = config(make_shards(), run_config, num_steps=48, checkpoint_every=8)
    space = {"optimisation.learning_rate": {"loguniform": [1e-7, 1e-2]}}
    scheduler = {"kind": "pbt", "perturb_steps": 8, "quantile": 0.5}
    result = swept(written(tmp_path, base, space=space, search="random", num_samples=4, scheduler=scheduler), "max_concurrent=2")
    assert [row.status for row in result.rows] == [FINISHED] * 4
    names = {path.parent.name for path in (tmp_path / "runs").glob("pbt-*/progress.json")}
    assert any(name.split("-")[-2] != "0" for name in names), "nobody took over"
    assert {row.last_step for row in result.rows} == {48}
    assert len({row.member for row in result.rows}) == 4


@pytest.mark.parametrize(
    ("space", "text"),
    [
        ({"guard.window": {"grid_search": [10, 20]}}, "guard.window: 10 and 20 give the same training"),
        ({"optimisation.lerning_rate": {"grid_search": [1e-3, 2e-3]}}, r"space of the sweep.*did you mean 'learning_rate'"),
        ({"task.pt_weight": {"grid_search": [1.0, 2.0]}}, "not the same in trials with another task.pt_weight"),
    ],
)
def test_what_would_be_in_vain_is_refused(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, space: dict[str, object], text: str
) -> None:
    """Catches a search over a key that does nothing, that does not exist, or that the metric itself depends on."""
    file = written(tmp_path, config(make_shards(), run_config), space=space)
    with pytest.raises(ConfigError, match=text):
        plan_sweep(load_question(file))


def test_every_key_of_a_training_that_matters_has_an_effect(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a digest that is blind to a part of the training."""
    space = {
        "seed": {"grid_search": [1, 2]},
        "model.width": {"grid_search": [16, 32]},
        "model.dropout": {"grid_search": [0.0, 0.1]},
        "data.num_events": {"grid_search": [100, 200]},
        "data.tokens_per_step": {"grid_search": [256, 512]},
        "optimisation.num_steps": {"grid_search": [24, 48]},
        "optimisation.weight_decay": {"grid_search": [0.0, 0.1]},
        "optimisation.final_fraction": {"grid_search": [0.0, 0.1]},
        "optimisation.beta2": {"grid_search": [0.95, 0.99]},
        "optimisation.clip_norm": {"grid_search": [0.1, 1.0]},
        "optimisation.ema_decay": {"grid_search": [0.0, 0.9]},
        "precision": {"grid_search": ["fp32", "bf16"]},
    }
    each = [{key: value} for key, value in space.items()]
    plan = plan_sweep(load_question(written(tmp_path, config(make_shards(), run_config), space=each)))
    assert set(plan.varied) == set(space)
    assert plan.hours > 0


def test_metrics_that_nobody_reports_are_refused(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a sweep whose trials are all equally good for want of the metric."""
    file = written(tmp_path, config(make_shards(), run_config), metric="validation_lss")
    with pytest.raises(ConfigError, match="did you mean validation_loss"):
        plan_sweep(load_question(file))


def test_winners_are_counted_before_anything_starts(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches nine winners of two settings, and a plan that keeps its later trials to itself."""
    base = config(make_shards(), run_config)
    with pytest.raises(ConfigError, match="3 winners of 2 settings"):
        plan_sweep(load_question(written(tmp_path, base, winners=3)))
    plan = plan_sweep(load_question(written(tmp_path, base, winners=1, winner_seeds=3)))
    assert plan.num_repeats == 2
    of_each = {"winners": 1, "winners_of": ["optimisation.learning_rate"]}
    assert plan_sweep(load_question(written(tmp_path, base, **of_each))).num_repeats == 4


def test_keys_that_fit_together_only_may_be_searched_together(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a ladder of sizes that is refused because a width of one does not fit the heads of another."""
    space = {"model.width, model.num_heads": {"grid_search": [[16, 2], [9, 3]]}}
    assert set(plan_sweep(load_question(written(tmp_path, config(make_shards(), run_config), space=space))).varied) == {
        "model.width",
        "model.num_heads",
    }


@pytest.mark.parametrize(
    ("changes", "sweep", "text"),
    [
        ({}, {"scheduler": {"kind": "asha", "grace_steps": 23}}, "end before asha can stop them, after 24"),
        ({"physics_every": 16}, {"metric": "validation_met_resolution"}, "not every evaluation"),
        ({"physics_every": 8, "num_steps": 20}, {"metric": "validation_met_resolution"}, "not every evaluation"),
    ],
)
def test_evaluations_that_come_too_late_are_told(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, changes: dict[str, object], sweep: dict[str, object], text: str
) -> None:
    """Catches a scheduler that never acts, and trials that count as the worst because nobody looked at them when they were best."""
    with pytest.raises(ConfigError, match=text):
        plan_sweep(load_question(written(tmp_path, config(make_shards(), run_config, **changes), **sweep)))


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGTERM, 143, id="SIGTERM"), pytest.param(signal.SIGINT, 130, id="SIGINT", marks=pytest.mark.slow)],
)
def test_asked_to_stop_it_leaves_checkpoints(make_shards: Shards, run_config: RunConfig, tmp_path: Path, number: int, code: int) -> None:
    """Catches a batch system's SIGTERM, or Ctrl-C, that costs trials what they have not committed, or counts them as complete."""
    base = config(make_shards(), run_config, num_steps=4000, checkpoint_every=4000)
    file = written(tmp_path, base, space={"seed": {"grid_search": [1, 2]}})
    command = [sys.executable, "-c", "from pfscale.cli import main; main()", "sweep", str(file)]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        deadline = time.monotonic() + 300
        while sum(step >= 8 for step in steps_of_trials(tmp_path)) < 2:
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=300) == code, (tmp_path / "output.txt").read_text()
    assert len(list((tmp_path / "runs").glob("pretrain-*/checkpoints/checkpoint_*"))) == 2
    assert not list((tmp_path / "runs").glob("sweep-*/rows/*.json"))


def steps_of_trials(folder: Path) -> list[int]:
    """The step that every trial has logged last."""
    return [int(json.loads(path.read_text())["step"]) for path in (folder / "runs").glob("pretrain-*/progress.json")]


@pytest.mark.slow
def test_killed_and_repeated_it_ends_with_the_same_table(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches finished trials that are repeated after kill -9, half-finished ones begun anew, and runs left RUNNING."""
    file = written(tmp_path, config(make_shards(), run_config, num_steps=300))
    folder = killed_and_repeated(file, tmp_path, num_rows=1)
    other = typed(file, tmp_path, f"run.storage={tmp_path / 'other'}", "run.experiment=other")
    assert table_of(folder) == table_of(other)
    require_ended(run_config)
    assert json.loads((folder / "answer.json").read_text())["sentences"]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_a_search_that_was_killed_goes_on(make_shards: Shards, run_config: RunConfig, tmp_path: Path, scheduler: str) -> None:
    """Catches a search that forgets after kill -9 what it has found, repeats it, or ends with more or fewer trials than were asked."""
    kinds = {"none": {"kind": "none"}, "asha": {"kind": "asha", "grace_steps": 100, "reduction_factor": 2}}
    base = config(make_shards(), run_config, num_steps=200)
    space = {"optimisation.learning_rate": {"loguniform": [1e-6, 1e-2]}}
    file = written(tmp_path, base, space=space, search="optuna", num_samples=6, scheduler=kinds[scheduler], control=True, winners=1)
    folder = killed_and_repeated(file, tmp_path, num_rows=2)
    rows = read_rows(folder)
    searched = [row["optimisation.learning_rate"] for row in rows if not row.group]
    assert len(set(searched)) == len(searched) == 6
    assert {row.group for row in rows} == {"", CONTROL, WINNER}
    assert sum(row.group == WINNER for row in rows) == 2
    require_ended(run_config)


def killed_and_repeated(file: Path, place: Path, *, num_rows: int) -> Path:
    """The folder of a sweep that was killed within the trial after so many, and finished by the same command."""
    with (place / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command_of(file), stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 300
        while len(list((place / "runs").glob("sweep-*/rows/*.json"))) < num_rows:
            assert process.poll() is None, (place / "output.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1.0)  # into the next trial
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (folder,) = (place / "runs").glob("sweep-*")
    assert num_rows <= len(read_rows(folder)) < num_rows + 3
    before = {row.run_id: row.ended for row in read_rows(folder) if row.status == FINISHED}
    assert typed(file, place) == folder
    after = {row.run_id: row.ended for row in read_rows(folder)}
    assert {run: after[run] for run in before} == before, "finished trials were repeated"
    return folder


def command_of(file: Path, *overrides: str) -> list[str]:
    """A sweep as typed, one trial at a time."""
    return [sys.executable, "-c", "from pfscale.cli import main; main()", "sweep", str(file), "max_concurrent=1", *overrides]


def typed(file: Path, place: Path, *overrides: str) -> Path:
    """The folder of a sweep that ran to its end."""
    done = subprocess.run(
        command_of(file, *overrides), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (place / ("other" if overrides else "runs")).glob("sweep-*")
    return folder


def table_of(folder: Path) -> list[tuple[dict[str, object], float]]:
    """Settings and losses of a sweep's rows."""
    return [(row.settings, row.metrics["validation_loss"]) for row in read_rows(folder)]


def require_ended(run: RunConfig) -> None:
    """No run of the tracking store is left as if it were in progress."""
    client = MlflowClient(run.tracking_uri)
    for experiment in client.search_experiments():
        assert "RUNNING" not in {found.info.status for found in client.search_runs([experiment.experiment_id])}
