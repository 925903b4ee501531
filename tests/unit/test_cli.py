"""The command line: instant, one message per mistake, exit codes that a script can use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_tracking_registry import make_bundle

from pfscale.cli import find_user_error, run
from pfscale.errors import ConfigError, PfscaleError, ShardError, TrackingError
from pfscale.tracking.registry import register_model
from pfscale.tracking.runs import connect


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `pfscale models list` end with `error`."""

    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr("pfscale.tracking.registry.list_models", fail)


def test_importing_the_command_line_is_light() -> None:
    """Would catch a `pfscale --help` of ten seconds: torch, ray, mlflow or deepspeed imported at the top of some module."""
    heavy = "{'torch', 'ray', 'mlflow', 'deepspeed', 'uproot', 'fastjet', 'matplotlib', 'pandas'}"
    program = f"import sys, pfscale.cli; code = pfscale.cli.run(['--help']); sys.exit(code or ' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


def test_a_users_mistake_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a traceback in front of a user, or success as the exit code of a failure."""
    failing(monkeypatch, TrackingError("no server", where="http://x", hint="start one"))
    assert run(["models", "list"]) == TrackingError.exit_code
    shown = capsys.readouterr()
    assert "no server" in shown.err
    assert "start one" in shown.err
    assert "Traceback" not in shown.err + shown.out


def test_a_bug_leaves_its_traceback_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Would catch a bug report that nobody can make because the traceback is gone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(monkeypatch, ZeroDivisionError("in the middle"))
    assert run(["models", "list"]) == 1
    shown = capsys.readouterr().err
    (log,) = tmp_path.glob("pfscale-error-*.log")
    assert str(log) in shown
    assert "Traceback" not in shown
    assert "Traceback" in log.read_text()
    assert "in the middle" in log.read_text()


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch --debug being taken for an unknown option of the verb."""
    failing(monkeypatch, ZeroDivisionError("in the middle"))
    assert run(["models", "list", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a shell loop that goes on after Ctrl-C because the interrupted command reported 1 or 0."""
    failing(monkeypatch, KeyboardInterrupt())
    assert run(["models", "list"]) == 130


def test_usage_mistakes_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a mistyped verb that counts as success."""
    assert run(["pretrian"]) == 2
    assert "pretrain" in capsys.readouterr().err
    assert run(["simulate"]) == 2


class WorkerGroupError(Exception):
    """Shaped like Ray Train's."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = failures


def test_our_error_is_found_below_rays_wrappers() -> None:
    """Would catch a torn shard shown as fifty lines of Ray because it was raised in a task or in a training worker."""
    from ray.exceptions import RayTaskError

    ours = ShardError("torn", where="part-3.parquet", hint="ingest again")
    task = RayTaskError("read", "Traceback ...", ours).as_instanceof_cause()
    assert isinstance(task, PfscaleError)  # the trap: it is one of ours, but its text is a traceback
    for wrapped in (
        task,
        WorkerGroupError({0: RuntimeError("peer closed"), 1: task}),
        SimpleError("outer", cause=WorkerGroupError({0: ours})),
    ):
        found = find_user_error(wrapped)
        assert found is not None
        assert str(found) == str(ours)


class SimpleError(Exception):
    """Shaped like ControllerError: a cause as an attribute."""

    def __init__(self, text: str, cause: BaseException) -> None:
        super().__init__(text)
        self.controller_failure = cause


def test_the_error_that_was_raised_wins_over_what_it_was_made_from() -> None:
    """Would catch `raise TrackingError from ConfigError` showing the inner, less helpful message; and loops of causes."""
    outer = TrackingError("outer")
    outer.__cause__ = ConfigError("inner")
    assert find_user_error(outer) is outer
    loop = ValueError("a")
    loop.__cause__ = SimpleError("b", loop)
    assert find_user_error(loop) is None


def test_config_check_shows_all_mistakes_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a config that is mended one mistake per run."""
    path = tmp_path / "c.yaml"
    path.write_text("seeed: 1\nrun:\n  num_worker: 3\n")
    assert run(["config", "check", "pretrain", str(path), "run.log_every=0"]) == 2
    shown = capsys.readouterr().err
    assert f"{path}:1" in shown
    assert f"{path}:3" in shown
    assert "log_every" in shown
    assert run(["config", "check", "pretrian", str(path)]) == 2
    assert "pretrain" in capsys.readouterr().err


def test_config_show_prints_what_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch comments that break the YAML, or a value that is shown but not the one in force."""
    from pfscale.config import load_config
    from pfscale.training.pretrain import PretrainConfig

    assert run(["config", "show", "pretrain", "seed=7", "run.num_workers=2"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(PretrainConfig, path) == load_config(PretrainConfig, None, ["seed=7", "run.num_workers=2"])


def test_models_are_listed_and_shown(empty_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a registry that can only be looked at through MLflow's own page."""
    assert run(["models", "list", "--tracking-uri", empty_store]) == 0
    tracker = connect(empty_store, "e")
    run_id = tracker.start_run("train", fingerprint="a").run_id
    register_model(tracker, run_id=run_id, bundle=make_bundle(tmp_path / "b"), name="mlpf-clic", tags={"detector": "clic"})
    capsys.readouterr()
    assert run(["models", "list", "--tracking-uri", empty_store]) == 0
    assert "models:/mlpf-clic/1" in capsys.readouterr().out
    assert run(["models", "show", "mlpf-clic@candidate", "--tracking-uri", empty_store]) == 0
    assert run_id in capsys.readouterr().out
    assert run(["models", "show", "mlpf-cilc@candidate", "--tracking-uri", empty_store]) == 2
    assert "mlpf-clic@candidate" in capsys.readouterr().err


def test_submit_prints_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch arguments with spaces falling apart, and a job's failure reported as success."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/pretrain.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run(["submit", "--dry-run", "pretrain", "my config.yaml", "seed=2", "--option"]) == 0
    assert capsys.readouterr().out.strip() == (
        "ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/pretrain.py 'my config.yaml' seed=2 --option"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    assert run(["submit", "pretrain", "c.yaml"]) == 1
    assert run(["submit", "pretrian", "c.yaml"]) == 2
    monkeypatch.chdir(tmp_path / "jobs")
    assert run(["submit", "pretrain", "c.yaml"]) == 2


def test_files_set_aside_make_the_exit_code_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a production script that goes on with half of its files and never notices."""
    module = pytest.importorskip("pfscale.shards.ingest")
    bad = SimpleNamespace(path="broken.root", reason="not a ROOT file", hint="download it again")
    monkeypatch.setattr(module, "ingest", lambda *_, **__: SimpleNamespace(num_events=5, quarantined=(bad,), bad_events={}))
    assert run(["ingest", "a.root", "broken.root", "--detector", "cld", "--output", str(tmp_path)]) == 3
    assert "broken.root" in capsys.readouterr().err
    monkeypatch.setattr(module, "ingest", lambda *_, **__: SimpleNamespace(num_events=5, quarantined=(), bad_events={}))
    assert run(["ingest", "a.root", "--detector", "cld", "--output", str(tmp_path)]) == 0
