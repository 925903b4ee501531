"""Where MLflow keeps its data: addresses, the database made once, errors that say what to do."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from pfscale.errors import TrackingError
from pfscale.tracking.runs import connect
from pfscale.tracking.store import require_store, resolve_uri, shown


def test_a_relative_database_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a worker with another current directory logging into a database of its own."""
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri(f"sqlite:///{tmp_path}/a.db?timeout=5") == f"sqlite:///{tmp_path}/a.db?timeout=5"


@pytest.mark.parametrize("uri", ["mlruns", "file:///data/mlruns", "sqlite:///:memory:", "sqlite:///", "ftp://host/x"])
def test_an_address_that_cannot_work_is_refused_and_nothing_written(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch MLflow's own ten-line exception for file stores, or runs lost with an in-memory database."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError) as error:
        connect(uri, "experiment")
    assert error.value.hint
    assert not list(tmp_path.iterdir())


def test_a_relative_database_in_a_submitted_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a training whose runs vanish with the temporary folder that Ray unpacks a job into."""
    folder = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(TrackingError, match="deleted with the job"):
        connect("sqlite:///mlflow.db", "experiment")
    assert resolve_uri(f"sqlite:///{tmp_path}/mlflow.db")


def test_no_server_is_said_at_once() -> None:
    """Would catch minutes of silent retries against a server that is not there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(TrackingError) as error:
            connect(uri, "experiment")
    assert time.monotonic() - start < 6
    assert error.value.where == uri


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a connection that is accepted and then hangs (a firewall, a stuck server)."""
    monkeypatch.setattr("pfscale.tracking.store.SERVER_TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match="no MLflow server"):
            require_store(f"http://127.0.0.1:{silent.getsockname()[1]}", create=True)


def test_files_that_are_no_mlflow_database_are_left_as_they_are(tmp_path: Path) -> None:
    """Would catch tables written into somebody else's database, and the 100 s of retries on a file that is no database."""
    text = tmp_path / "notes.db"
    text.write_text("not a database " * 100)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE measurements (x REAL)")
    connection.close()
    before = other.read_bytes()
    for path in (text, other):
        with pytest.raises(TrackingError) as error:
            connect(f"sqlite:///{path}", "experiment")
        assert error.value.where == str(path)
    assert other.read_bytes() == before


def test_looking_does_not_create_a_database(tmp_path: Path) -> None:
    """Would catch `pfscale models list` with a mistyped address making an empty database there."""
    with pytest.raises(TrackingError):
        require_store(f"sqlite:///{tmp_path}/typo.db", create=False)
    assert not list(tmp_path.iterdir())


def test_a_database_that_a_kill_left_in_the_middle_of_a_change_is_mended(empty_store: str) -> None:
    """Would catch a run that can never go on, because its driver was killed while MLflow wrote."""
    path = Path(empty_store.removeprefix("sqlite:///"))
    script = "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN'); "
    script += "[c.execute('INSERT INTO tags VALUES (?, ?, ?)', (f'key{i}', 'x' * 500, 'no run')) for i in range(2000)]; os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 9
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    require_store(empty_store, create=False)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM tags").fetchone() == (0,)


def test_two_processes_may_connect_to_a_fresh_database_at_once(tmp_path: Path) -> None:
    """Would catch the migration race that corrupts a fresh SQLite database for good, and one experiment made twice."""
    program = (
        "import sys; from pfscale.tracking.runs import connect\n"
        "tracker = connect(sys.argv[1], 'shared')\n"
        "run = tracker.start_run(sys.argv[2], fingerprint=sys.argv[2])\n"
        "run.log_metrics({'loss': 1.0}, step=1); run.end(); print(tracker.experiment_id)"
    )
    uri = f"sqlite:///{tmp_path}/deep/mlflow.db"
    children = [subprocess.Popen([sys.executable, "-c", program, uri, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    outputs = [child.communicate(timeout=60)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert len(set(outputs)) == 1
    tracker = connect(uri, "shared")
    assert tracker.find_finished("a")
    assert tracker.find_finished("b")
    assert not list((tmp_path / "deep").glob("*.new"))


def test_threads_may_make_the_same_experiment_at_once(empty_store: str) -> None:
    """Would catch the second of two clients failing, or writing into Default, when both find the experiment missing."""
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(connect(empty_store, "same").experiment_id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_password_is_never_shown() -> None:
    """Would catch a database password in an error message, a tag or a printed link."""
    assert "hunter2" not in shown("postgresql://me:hunter2@host:5432/mlflow")
    assert shown("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
