"""Runs: found again by fingerprint, nothing lost, nothing invented."""

from __future__ import annotations

import json
import math
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pfscale.errors import TrackingError
from pfscale.tracking.runs import RunLogger, connect


def test_the_same_fingerprint_reopens_its_run(empty_store: str) -> None:
    """Would catch a resumed training starting a second run, or two sweeps sharing one trial's run."""
    tracker = connect(empty_store, "e")
    first = tracker.start_run("train", fingerprint="abc", tags={"detector": "clic"})
    first.end("FAILED")
    assert tracker.find_finished("abc") is None
    again = tracker.start_run("train", fingerprint="abc")
    assert again.run_id == first.run_id
    assert tracker.start_run("train", fingerprint="other").run_id != first.run_id
    assert tracker.start_run("train", fingerprint="abc", parent_run_id="p1").run_id != first.run_id
    again.end()
    assert tracker.find_finished("abc") == first.run_id
    assert connect(empty_store, "other experiment").find_finished("abc") is None


def test_a_tracker_crosses_process_borders(empty_store: str) -> None:
    """Would catch a client or a lock inside what is sent to workers."""
    tracker = pickle.loads(pickle.dumps(connect(empty_store, "e")))
    run = tracker.start_run("train", fingerprint="abc")
    worker = tracker.attach(run.run_id)
    worker.log_metrics({"loss": 0.5}, step=3)
    worker.flush()
    assert run.metrics() == {"loss": 0.5}


def test_every_point_arrives_once_in_order(empty_store: str) -> None:
    """Would catch points dropped between two flushes or a batch above MLflow's limit of 1000."""
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    for step in range(750):
        run.log_metrics({"loss": step / 2, "rate": -step}, step=step)
    run.end()
    assert run.history("loss") == [(step, step / 2) for step in range(750)]
    assert run.metrics()["rate"] == -749


def test_values_that_are_not_finite_are_logged_as_they_are(empty_store: str) -> None:
    """Would catch a diverged loss that crashes the logger or looks like 0 or 1.8e308."""
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    run.log_metrics({"nan": math.nan, "up": math.inf, "down": -math.inf}, step=0)
    found = run.metrics()
    assert math.isnan(found["nan"])
    assert (found["up"], found["down"]) == (math.inf, -math.inf)


def test_a_repeated_step_counts_once(empty_store: str) -> None:
    """Would catch a learning curve that doubles back where a run was killed and resumed."""
    tracker = connect(empty_store, "e")
    run = tracker.start_run("train", fingerprint="abc")
    for step in (1, 2, 3):
        run.log_metrics({"loss": 10.0 * step}, step=step)
    run.flush()
    resumed = tracker.start_run("train", fingerprint="abc")
    for step in (2, 3, 4):
        resumed.log_metrics({"loss": 10.0 * step}, step=step)
    assert resumed.history("loss") == [(1, 10.0), (2, 20.0), (3, 30.0), (4, 40.0)]


def test_params_of_a_resumed_run_may_differ(empty_store: str) -> None:
    """Would catch a resume with another number of workers dying on MLflow's rule that a parameter never changes."""
    from mlflow import MlflowClient

    tracker = connect(empty_store, "e")
    params = {f"p{i}": i for i in range(130)}
    tracker.start_run("train", fingerprint="abc").log_params({**params, "run.num_workers": 2})
    run = tracker.start_run("train", fingerprint="abc")
    run.log_params({**params, "run.num_workers": 4})
    data = MlflowClient(empty_store).get_run(run.run_id).data
    assert len(data.params) == 131
    assert data.params["run.num_workers"] == "2"
    assert data.tags["resumed.run.num_workers"] == "4"


def test_artifacts_go_beside_the_database(empty_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch artifacts in whatever folder the command was started from."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    run.log_config("seed: 1\n")
    run.log_json({"loss": math.nan, "bins": (1, 2)}, "numbers/loss.json")
    folder = tmp_path / "extra"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    run.log_folder(folder, "extra")
    assert not list(elsewhere.iterdir())
    root = next((Path(empty_store.removeprefix("sqlite:///")).parent / "mlartifacts").glob("*/artifacts"))
    assert (root / "config.yaml").read_text() == "seed: 1\n"
    assert json.loads((root / "numbers/loss.json").read_text()) == {"loss": None, "bins": [1, 2]}
    assert (root / "extra/a.txt").read_text() == "a"


def test_a_figure_is_kept(empty_store: str) -> None:
    """Would catch a figure that is logged as an object instead of an image."""
    from matplotlib.figure import Figure

    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    run.log_figure(figure, "figures/response.png")
    found = list((Path(empty_store.removeprefix("sqlite:///")).parent / "mlartifacts").rglob("response.png"))
    assert found[0].read_bytes().startswith(b"\x89PNG")


class _Flaky:
    """A client whose server is away for the first `failures` calls."""

    def __init__(self, client: object, failures: int, code: str = "TEMPORARILY_UNAVAILABLE") -> None:
        self.client, self.failures, self.code = client, failures, code

    def log_batch(self, *args: object, **kwargs: object) -> None:
        if self.failures > 0:
            self.failures -= 1
            error = MlflowException("connection refused")
            error.error_code = self.code
            raise error
        self.client.log_batch(*args, **kwargs)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self.client, name)


def _with_flaky_client(run: RunLogger, failures: int, code: str = "TEMPORARILY_UNAVAILABLE") -> None:
    run.__dict__["_client"] = _Flaky(run._client, failures, code)


def test_points_survive_a_server_that_is_away(empty_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch metrics lost, or a training killed, by a server that restarts."""
    monkeypatch.setattr("pfscale.tracking.runs.time.sleep", lambda _: None)
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    _with_flaky_client(run, failures=3)
    for step in range(10):
        run.log_metrics({"loss": float(step)}, step=step)
    with pytest.warns(RuntimeWarning, match="10 points wait"):
        assert run.flush() is False
    with pytest.warns(RuntimeWarning, match="points wait"):
        run.end()
    assert run.history("loss") == [(step, float(step)) for step in range(10)]


def test_points_that_cannot_be_sent_end_in_a_file(empty_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that waits for ever for its server, or drops the last points without a word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pfscale.tracking.runs.END_PATIENCE_S", 0.0)
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    _with_flaky_client(run, failures=1000)
    run.log_metrics({"loss": math.nan}, step=7)
    with pytest.warns(RuntimeWarning, match="points wait"), pytest.raises(TrackingError):
        run.end()
    (kept,) = tmp_path.glob("unsent-metrics-*.json")
    assert json.loads(kept.read_text())[0]["step"] == 7


def test_a_refusal_is_an_error_at_once(empty_store: str) -> None:
    """Would catch retries for ever against a run that somebody deleted."""
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    _with_flaky_client(run, failures=1, code="RESOURCE_DOES_NOT_EXIST")
    run.log_metrics({"loss": 1.0}, step=0)
    with pytest.raises(TrackingError):
        run.flush()


def test_a_training_does_not_wait_for_a_slow_server(empty_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch workers that stand still while the first of them talks to MLflow, points that overtake each other, a refusal unheard."""
    monkeypatch.setattr("pfscale.tracking.runs.FLUSH_SECONDS", -1.0)
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    run.log_metrics({"loss": 0.0}, step=0)
    run.flush()
    answers, client = threading.Event(), run._client

    arrived: list[int] = []

    class Slow:
        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            assert answers.wait(30)
            client.log_batch(run_id, metrics=metrics)
            arrived.extend(point.step for point in metrics)

    run.__dict__["_client"] = Slow()
    for step in range(1, 6):
        run.log_metrics({"loss": float(step)}, step=step)
    assert len(run._points) == 5, "nothing is sent yet, and nobody has waited"
    answers.set()
    run.flush()
    run.__dict__["_client"] = client
    assert arrived == [1, 2, 3, 4, 5], "each once, in their order"
    assert run.history("loss") == [(step, float(step)) for step in range(6)]


@pytest.mark.parametrize(("error", "kind"), [("refused", TrackingError), (ConnectionResetError(), ConnectionResetError)])
def test_what_goes_wrong_in_the_background_is_heard(
    empty_store: str, monkeypatch: pytest.MonkeyPatch, error: object, kind: type[Exception]
) -> None:
    """Would catch a run that goes on without a record, because only a thread knew that its points are refused."""
    monkeypatch.setattr("pfscale.tracking.runs.FLUSH_SECONDS", -1.0)
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    run.flush()
    if error == "refused":
        _with_flaky_client(run, failures=1, code="RESOURCE_DOES_NOT_EXIST")
    else:
        monkeypatch.setattr(run._client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(error))  # type: ignore[arg-type]
    run.log_metrics({"loss": 6.0}, step=6)
    assert run._sender is not None
    run._sender.join()
    with pytest.raises(kind):
        run.log_metrics({"loss": 7.0}, step=7)


def test_a_deleted_experiment_says_how_to_get_it_back(empty_store: str) -> None:
    """Would catch a run that lands in Default because its experiment is in the bin."""
    from mlflow import MlflowClient

    MlflowClient(empty_store).delete_experiment(connect(empty_store, "gone").experiment_id)
    with pytest.raises(TrackingError, match="restore"):
        connect(empty_store, "gone")


def test_a_secret_on_the_command_line_stays_there(empty_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a database password that MLflow shows to everybody as the run's source."""
    from mlflow import MlflowClient

    monkeypatch.setattr("sys.argv", ["pfscale", "pretrain", "c.yaml", "run.tracking_uri=postgresql://me:hunter2@host/db"])
    run = connect(empty_store, "e").start_run("train", fingerprint="abc")
    assert "hunter2" not in str(MlflowClient(empty_store).get_run(run.run_id).to_dictionary())
