"""Jobs on a real local head: started, submitted to, stopped, with nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "cluster" / "local.sh"
REAL_EVENT = ROOT / "tests" / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds its processes in /proc")


@dataclass(frozen=True)
class LocalHead:
    """A running head: its state folder, what it printed, and the environment of a shell that pasted that."""

    state: Path
    printed: str
    env: dict[str, str]

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The finished `ray job submit` with the checkout's runtime environment."""
        line = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--runtime-env", "jobs/runtime_env.yaml", "--", *arguments]
        return subprocess.run(line, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=180, check=False)


def base_environment(state: Path) -> dict[str, str]:
    """This process's environment with the interpreter of the tests first on the PATH and no other cluster in sight."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    paths = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return {**env, "PATH": paths, "PFSCALE_CLUSTER_DIR": str(state), "PFSCALE_NUM_CPUS": "2", "OMP_NUM_THREADS": "1"}


def local(command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(LOCAL), command], env=env, capture_output=True, text=True, timeout=180, check=False)


def processes_of(temp_dir: str) -> list[str]:
    """The ids of all processes that name a head's private folder in their command line or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if temp_dir.encode() in text and int(entry.name) != os.getpid():
            found.append(entry.name)
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHead]:
    state = tmp_path_factory.mktemp("cluster") / "state"
    env = base_environment(state)
    started = local("start", env)
    temp_dir = (state / "temp_dir").read_text().strip() if (state / "temp_dir").exists() else ""
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        exported = dict(re.findall(r"(RAY_\w+)=(\S+)", started.stdout))
        yield LocalHead(state, started.stdout, {**env, **exported})
    finally:
        stopped = local("stop", env)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert processes_of(temp_dir) == []
    assert not Path(temp_dir).exists()
    assert local("status", env).returncode == 3


def test_the_two_printed_lines_are_enough(head: LocalHead) -> None:
    """Would catch instructions that lack the address or the token, and a token that others can read."""
    assert {"RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"} <= set(head.env)
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"])
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() not in head.printed
    assert local("status", head.env).returncode == 0


def test_starting_twice_starts_one(head: LocalHead) -> None:
    """Would catch a second head that nobody can stop because its pid replaced the first one's."""
    before = (head.state / "pid").read_text()
    assert local("start", head.env).returncode == 0
    assert (head.state / "pid").read_text() == before


def test_a_request_without_the_token_is_refused(head: LocalHead) -> None:
    """Would catch a job server on which everybody on the machine can run code as the user."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(f"{head.env['RAY_API_SERVER_ADDRESS']}/api/jobs/", timeout=10)
    assert refused.value.code in (401, 403)


def test_a_job_imports_the_package_that_travels_with_it(head: LocalHead) -> None:
    """Would catch a runtime environment without the package, and a folder `platform` that shadows the standard library in a job."""
    done = head.submit("python", "-c", "import platform, pfscale; print('on', platform.system(), pfscale.__file__)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"on \w+ \S*runtime_resources\S*/pfscale/__init__.py", done.stdout)


def test_the_doctor_sees_the_cluster_from_inside_a_job(head: LocalHead, tmp_path: Path) -> None:
    """Would catch a doctor that starts a Ray of its own, finds what travels with the job missing, or does not see the token."""
    run = [f"run.storage={tmp_path}/runs", f"run.tracking_uri=sqlite:///{tmp_path}/mlflow.db", "run.cpus_per_worker=0.5"]
    done = head.submit("python", "jobs/doctor.py", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is wrong (11 checks)" in done.stdout
    assert str(head.env["RAY_AUTH_TOKEN_PATH"])[:20] in done.stdout
    assert Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text() not in done.stdout + done.stderr


def test_submit_names_the_job_and_returns_its_success(head: LocalHead, tmp_path: Path) -> None:
    """Would catch an id or metadata that do not arrive, a failed job that counts as done, and a job that cannot be submitted twice."""
    pfscale = [str(Path(sys.executable).with_name("pfscale")), "submit"]
    line = [*pfscale, "ingest", f"{tmp_path}/missing.root", "--detector", "cld", "--output", f"{tmp_path}/shards"]
    names = []
    for _ in range(2):
        done = subprocess.run(line, cwd=ROOT, env=head.env, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 1
        assert "missing.root" in done.stdout + done.stderr
        names.append(re.search(r"--submission-id (\S+)", done.stdout)[1])  # type: ignore[index]
    assert names[1] == f"{names[0]}_2"
    listed = subprocess.run(["ray", "job", "list"], env=head.env, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(f"submission_id='{name}'" in listed for name in names)
    assert "'fingerprint': '" + names[0].removeprefix("ingest-") in listed


def test_a_users_mistake_in_a_job_fails_it_with_one_message(head: LocalHead, tmp_path: Path) -> None:
    """Would catch a job that fails and counts as succeeded, or buries the mistake in a traceback."""
    done = head.submit("python", "jobs/ingest.py", f"{tmp_path}/missing.root", "--detector", "cld", "--output", f"{tmp_path}/shards")
    assert done.returncode == 1
    log = done.stdout + done.stderr
    assert "missing.root" in log
    assert "Traceback" not in log


@pytest.mark.skipif(not REAL_EVENT.is_file(), reason="the real event is not in tests/data")
def test_ingest_as_a_job_makes_the_shards(head: LocalHead, tmp_path: Path) -> None:
    """Would catch an ingest that works in a shell but not in a job: another Ray, another folder, another package."""
    from pfscale.shards.manifest import load_manifest

    done = head.submit("python", "jobs/ingest.py", str(REAL_EVENT), "--detector", "cld", "--output", f"{tmp_path}/shards")
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_manifest(tmp_path / "shards").num_events == 1


def test_pretraining_as_a_job_registers_a_model_and_is_done_once(
    head: LocalHead, tmp_path: Path, make_shards: Callable[..., Path], migrated_database: Path
) -> None:
    """Would catch workers that cannot import the package or find the store, and a second submission that trains again."""
    from pfscale.tracking.registry import download, list_models

    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = tmp_path / "tiny.yaml"
    config.write_text("optimisation: {num_steps: 4, evaluate_every: 2}\nmodel: {width: 16, num_layers: 1, num_heads: 2}\n")
    line = ["python", "jobs/pretrain.py", str(config), f"data.shards={make_shards()}", "data.num_validation_events=10"]
    line += ["checkpoint_every=2", f"run.storage={tmp_path}/runs", f"run.tracking_uri={uri}", "run.cpus_per_worker=0.5"]
    first = head.submit(*line)
    assert first.returncode == 0, first.stdout + first.stderr
    (model,) = list_models(uri)
    assert (download(model) / "model.safetensors").is_file()
    assert model.uri in first.stdout
    again = head.submit(*line)
    assert again.returncode == 0, again.stdout + again.stderr
    assert list_models(uri) == [model]
