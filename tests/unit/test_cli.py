"""The command line: instant, one message per mistake, exit codes that a script can use."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_edm4hep_detectors import ALLEGRO
from test_tracking_registry import make_bundle

from pfscale.cli import find_user_error, run
from pfscale.commands.terminal import GATES_FAILED, INTERRUPTED, QUARANTINED, UNEXPECTED
from pfscale.config import load_config
from pfscale.edm4hep.detectors import Detector
from pfscale.errors import ConfigError, PfscaleError, ShardError, StoppedError, TrackingError
from pfscale.tracking.registry import register_model
from pfscale.tracking.runs import connect
from pfscale.training.pretrain import PretrainConfig
from pfscale.training.verbs import VERBS

ROOT = Path(__file__).parents[2]


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


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a shell loop that goes on after Ctrl-C because the interrupted command reported 1 or 0, or said nothing."""
    failing(monkeypatch, KeyboardInterrupt())
    assert run(["models", "list"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_in_compiled_code_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch numba's SystemError told instead of the Ctrl-C that it is made of, and other SystemErrors taken for one."""
    error = SystemError("returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    failing(monkeypatch, error)
    assert run(["models", "list"]) == 130
    assert "interrupted" in capsys.readouterr().err
    failing(monkeypatch, SystemError("a bug"))
    assert run(["models", "list"]) == 1


@pytest.mark.parametrize("command", ["demo", "simulate --num-events 1", "evaluate models:/m@c shards", "export models:/m@c shards"])
def test_a_url_is_no_folder(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a local folder `s3:` that a user takes for a bucket."""
    monkeypatch.chdir(tmp_path)
    assert run([*command.split(), "--output", "s3://bucket/folder"]) == 2
    assert "only be written to a folder of this machine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


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
    assert "mlpf-clic/1" in capsys.readouterr().out
    assert run(["models", "show", "mlpf-clic@candidate", "--tracking-uri", empty_store]) == 0
    assert run_id in capsys.readouterr().out
    assert run(["models", "show", "mlpf-cilc@candidate", "--tracking-uri", empty_store]) == 2
    assert "mlpf-clic@candidate" in capsys.readouterr().err


def test_submit_prints_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch arguments with spaces falling apart, a name that changes from one time to the next, and a failure reported as success."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/pretrain.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run(["submit", "--dry-run", "pretrain", "my config.yaml", "seed=2", "--option"]) == 0
    first = shlex.split(capsys.readouterr().out)
    assert first[:4] == ["ray", "job", "submit", "--submission-id"]
    assert re.fullmatch(r"pretrain-[0-9a-f]{12}", first[4])
    assert json.loads(first[6])["fingerprint"] == first[4].removeprefix("pretrain-")
    assert first[7:] == [
        "--runtime-env",
        "jobs/runtime_env.yaml",
        "--",
        "python",
        "jobs/pretrain.py",
        "my config.yaml",
        "seed=2",
        "--option",
    ]
    assert run(["submit", "--dry-run", "pretrain", "my config.yaml", "seed=2", "--option"]) == 0
    assert shlex.split(capsys.readouterr().out)[4] == first[4]
    assert run(["submit", "--dry-run", "pretrain", "my config.yaml", "seed=3", "--option"]) == 0
    assert shlex.split(capsys.readouterr().out)[4] != first[4]
    assert run(["submit", "pretrian", "c.yaml"]) == 2
    monkeypatch.chdir(tmp_path / "jobs")
    assert run(["submit", "pretrain", "c.yaml"]) == 2


def test_a_submission_has_the_name_of_its_run(
    make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a job that cannot be told from its name in MLflow, and a run's own name with an underscore that is cut off at it."""
    from pfscale.commands import submit

    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/pretrain.py").write_text("")
    (tmp_path / "c.yaml").write_text("data: {num_validation_events: 20}\n")
    monkeypatch.chdir(tmp_path)
    store = [f"run.storage={tmp_path}/runs", f"run.tracking_uri=sqlite:///{tmp_path}/mlflow.db", "run.name=my_run_7"]
    arguments = ["c.yaml", f"data.shards={make_shards()}", *store]
    assert run(["submit", "--dry-run", "pretrain", *arguments]) == 0
    line = shlex.split(capsys.readouterr().out)
    launch = VERBS["pretrain"].launch(load_config(PretrainConfig, tmp_path / "c.yaml", arguments[1:]))[0]
    assert line[4] == launch.name
    monkeypatch.setattr(
        submit, "_client", lambda: SimpleNamespace(list_jobs=lambda: [SimpleNamespace(submission_id=line[4], status="FAILED")])
    )
    assert submit._free_name(line[4]) == (f"{line[4]}_2", False)


def test_the_submissions_of_the_readme(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a line in the README whose job, config or options are gone."""
    from pfscale.commands import submit

    monkeypatch.setattr(submit, "_run_of", lambda *_: None)  # their buckets and servers are somebody else's
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^pfscale submit (.*)$", text, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        arguments = shlex.split(line, comments=True)
        assert run(["submit", "--dry-run", *arguments]) == 0
        assert shlex.split(capsys.readouterr().out)[-len(arguments) + 1 :] == arguments[1:]
        for config in [argument for argument in arguments if argument.endswith(".yaml")]:
            load_config(PretrainConfig, ROOT / config, [argument for argument in arguments[2:] if "=" in argument])


@pytest.mark.parametrize(
    ("known", "name", "code"),
    [
        ([], "ingest-{}", 1),
        ([("ingest-{}", "FAILED")], "ingest-{}_2", 1),
        ([("ingest-{}", "SUCCEEDED"), ("ingest-{}_2", "STOPPED"), ("other-{}", "RUNNING")], "ingest-{}_3", 1),
        ([("ingest-{}", "FAILED"), ("ingest-{}_2", "RUNNING")], "", 0),
    ],
)
def test_a_job_is_submitted_once(
    known: list[tuple[str, str]], name: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a second job beside one that runs, an id that Ray refuses because it is taken, and an exit code that is lost."""
    from pfscale.commands import submit

    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/ingest.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run(["submit", "--dry-run", "ingest", "a.root"]) == 0
    fingerprint = shlex.split(capsys.readouterr().out)[4].removeprefix("ingest-")
    jobs = [SimpleNamespace(submission_id=found.format(fingerprint), status=status) for found, status in known]
    client = SimpleNamespace(list_jobs=lambda: jobs, get_job_status=lambda _: "SUCCEEDED")
    monkeypatch.setattr(submit, "_client", lambda: client)
    ran: list[list[str]] = []
    monkeypatch.setattr(submit.subprocess, "run", lambda line, **_: ran.append(line) or SimpleNamespace(returncode=1, stdout=""))
    assert run(["submit", "ingest", "a.root"]) == code
    if name:
        assert ran[-1][4] == name.format(fingerprint)
    else:
        assert ran[-1] == ["ray", "job", "logs", "--follow", f"ingest-{fingerprint}_2"]


def test_files_set_aside_make_the_exit_code_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a production script that goes on with half of its files and never notices."""
    module = pytest.importorskip("pfscale.shards.ingest")
    bad = SimpleNamespace(path="broken.root", reason="not a ROOT file", hint="download it again")
    monkeypatch.setattr(module, "ingest", lambda *_, **__: SimpleNamespace(num_events=5, quarantined=(bad,), bad_events={}, unverified=()))
    assert run(["ingest", "a.root", "broken.root", "--detector", "cld", "--output", str(tmp_path)]) == 3
    assert "broken.root" in capsys.readouterr().err
    monkeypatch.setattr(module, "ingest", lambda *_, **__: SimpleNamespace(num_events=5, quarantined=(), bad_events={}, unverified=()))
    assert run(["ingest", "a.root", "--detector", "cld", "--output", str(tmp_path)]) == 0


def test_check_without_files_takes_no_option_of_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a data set that counts as checked for detector X, though X was never looked at."""
    for option in (["--detector", "cld"], ["--process", "ttbar"], ["--simulation", "fast"], ["--strict"], ["--workers", "2"]):
        assert run(["ingest", "--check", "--output", str(tmp_path), *option]) == 2
        assert option[0] in capsys.readouterr().err
    assert run(["ingest", "--check", "--output", str(tmp_path), "--strict", "--detector", "cld"]) == 2
    told = capsys.readouterr().err
    assert "--strict" in told
    assert "--detector" in told
    assert run(["ingest", "--check", "--output", str(tmp_path)]) == 2  # nothing to check there, and nothing to leave out
    assert "leave" not in capsys.readouterr().err


def test_what_ingest_prints_holds_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch the password of a store in a log, and brackets in a folder's name taken for colours."""
    made = SimpleNamespace(num_events=5, quarantined=(), bad_events={}, unverified=())
    monkeypatch.setattr("pfscale.shards.ingest.ingest", lambda *_, **__: made)
    assert run(["ingest", "a.root", "--detector", "cld", "--output", "memory://me:secret@bucket/shards[red]"]) == 0
    shown = capsys.readouterr()
    assert "memory://bucket/shards[red]" in shown.out
    assert "secret" not in shown.out + shown.err
    assert run(["ingest", "--check", "--strict", "--output", "memory://me:secret@bucket/shards"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_the_readmes_exit_codes_are_all_there_are() -> None:
    """Would catch a code that a script meets and finds nowhere explained."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    table = text.partition("## Exit codes")[2].partition("##")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) ", table, re.MULTILINE)} == {
        0,
        UNEXPECTED,
        PfscaleError.exit_code,
        QUARANTINED,
        GATES_FAILED,
        INTERRUPTED,
        StoppedError.exit_code,
    }
    assert {kind.exit_code for kind in PfscaleError.__subclasses__()} == {PfscaleError.exit_code, StoppedError.exit_code}


def test_detectors_taken_on_trust_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch files of another detector that are ingested without a word, because they have too few tracks to show it."""
    gun = SimpleNamespace(name="gun.root")
    made = SimpleNamespace(num_events=5, detector="cld", quarantined=(), bad_events={}, unverified=[gun])
    monkeypatch.setattr("pfscale.shards.ingest.ingest", lambda *_, **__: made)
    assert run(["ingest", "gun.root", "--detector", "cld", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "gun.root" in told
    assert "cld" in told


def test_ingests_help_names_every_detector(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a new entry in the table of detectors that nobody can find out about."""
    from pfscale.edm4hep.detectors import DETECTORS

    assert run(["ingest", "--help"]) == 0
    assert set(DETECTORS) <= set(re.findall(r"\w+", capsys.readouterr().out))


def test_the_readmes_new_detector_is_the_tested_one() -> None:
    """Would catch an example entry with fields that the table no longer has, or another one than is read in a test."""
    text = (Path(__file__).parents[2] / "platform/pfscale/edm4hep/README.md").read_text()
    (snippet,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ALLEGRO" in code)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert names["ALLEGRO"] == ALLEGRO


def test_the_readmes_table_has_every_field_of_a_detector() -> None:
    """Would catch a field of the table that the page on adding a detector does not know."""
    text = (Path(__file__).parents[2] / "platform/pfscale/edm4hep/README.md").read_text()
    table = text.partition("## Adding a detector")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {field.name for field in fields(Detector)}


def test_the_demo_needs_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a default folder that the option's own parser trips over: the README's first command."""
    folders: list[Path] = []
    monkeypatch.setattr("pfscale.demo.run_demo", folders.append)
    assert run(["demo"]) == 0
    assert folders == [Path("pfscale-demo")]
