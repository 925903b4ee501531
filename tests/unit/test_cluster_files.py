"""Files for clusters: valid for the tools that read them, one version of Ray, tokens, no privileges; Slurm scripts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
SBATCH = CLUSTER / "slurm" / "sbatch.py"
NEEDED = [
    "--account",
    "hep",
    "--partition",
    "gpu",
    "--nodes",
    "2",
    "--cpus-per-node",
    "8",
    "--time",
    "1-00:00:00",
    "--environment",
    "/shared/venv",
]


def documents(name: str) -> list[dict[str, Any]]:
    """All parts of a YAML file."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def ray_clusters() -> list[dict[str, Any]]:
    """Specs of the Ray clusters in kuberay/."""
    found = [d["spec"] for d in documents("kuberay/raycluster.yaml") if d["kind"] == "RayCluster"]
    return found + [d["spec"]["rayClusterSpec"] for d in documents("kuberay/rayjob.yaml")]


def pods() -> list[dict[str, Any]]:
    """Specs of all pods in kuberay/."""
    found = [d["spec"]["template"]["spec"] for d in documents("kuberay/mlflow.yaml") if d["kind"] == "Deployment"]
    for spec in ray_clusters():
        found += [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    return found


def test_all_files_agree_on_the_version_of_ray() -> None:
    """Catches a head and workers that would not speak to each other after the pin in pyproject.toml has moved."""
    dependencies = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = [re.search(r"==(\d+\.\d+)\.", d) for d in dependencies if d.startswith("ray[")]
    assert pinned is not None
    named = {spec["rayVersion"].rpartition(".")[0] for spec in ray_clusters()}
    assert named == {pinned[1]}
    text = "".join(path.read_text() for path in CLUSTER.rglob("*") if path.is_file() and ".local" not in path.parts)
    assert set(re.findall(r"\bray[=:~ ]+\"?(\d+\.\d+)", text, re.IGNORECASE)) <= {pinned[1]}


def test_pods_have_no_privileges_and_their_limits_are_their_requests() -> None:
    """Catches containers that run as root, may become it, or are killed because the node promised less than they use."""
    assert len(pods()) == 5
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_tokens_are_on_everywhere() -> None:
    """Catches a cluster on which everybody in the network can run code."""
    assert all(spec["authOptions"] == {"mode": "token"} for spec in ray_clusters())
    for name in ("aws.yaml", "gcp.yaml"):
        (spec,) = documents(name)
        assert any("RAY_AUTH_MODE=token" in command for command in spec["setup_commands"])
        assert "/home/ubuntu/.ray/auth_token" in spec["file_mounts"]
    assert "RAY_AUTH_MODE=token" in SBATCH.read_text()
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "local.sh").read_text()


def test_kubernetes_takes_every_object_and_pod() -> None:
    """Catches a misspelt key, which a server ignores or refuses: against the schema of Kubernetes itself, unknown keys refused."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    templates = [group["template"] for spec in ray_clusters() for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    objects = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "of-ray"}, **template} for template in templates]
    objects += [d for name in ("mlflow", "raycluster") for d in documents(f"kuberay/{name}.yaml") if d["kind"] != "RayCluster"]
    assert len(objects) == 7
    for found in objects:
        kubernetes.validate(found, "1.34", strict=True)


# Fields of KubeRay's API ray.io/v1 that are used here, and what they hold (its ray-operator/apis/ray/v1/*_types.go).
CLUSTER_FIELDS = {"rayVersion": str, "authOptions": dict, "headGroupSpec": dict, "workerGroupSpecs": list}
HEAD_FIELDS = {"rayStartParams": dict, "template": dict}
WORKER_FIELDS = {**HEAD_FIELDS, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
JOB_FIELDS = {
    "entrypoint": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "backoffLimit": int,
    "rayClusterSpec": dict,
}


def test_kuberay_knows_every_field() -> None:
    """Catches a misspelt field, or one at the wrong place: KubeRay's own schema is no package, so its fields are named here."""
    known = [(spec, CLUSTER_FIELDS) for spec in ray_clusters()]
    known += [(spec["headGroupSpec"], HEAD_FIELDS) for spec in ray_clusters()]
    known += [(group, WORKER_FIELDS) for spec in ray_clusters() for group in spec["workerGroupSpecs"]]
    known += [(d["spec"], JOB_FIELDS) for d in documents("kuberay/rayjob.yaml")]
    for found, fields in known:
        assert {key: type(value) for key, value in found.items()} == fields
        assert all(isinstance(value, str) for value in found.get("rayStartParams", {}).values())
    for d in (*documents("kuberay/raycluster.yaml")[1:], *documents("kuberay/rayjob.yaml")):
        assert d["apiVersion"] == "ray.io/v1"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_the_cluster_launcher_takes_its_files(name: str) -> None:
    """Catches keys that `ray up` refuses: Ray's own schema and its own completion of the file."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    (spec,) = documents(name)
    validate_config(prepare_config(spec))
    assert spec["head_node_type"] in spec["available_node_types"]
    assert sum(kind.get("max_workers", 0) for kind in spec["available_node_types"].values()) <= spec["max_workers"]


def test_the_job_of_kuberay_names_a_job_and_its_config() -> None:
    """Catches an entrypoint that is not in the checkout."""
    (job,) = documents("kuberay/rayjob.yaml")
    words = job["spec"]["entrypoint"].split()
    assert all((CLUSTER.parent / word).is_file() for word in words[1:3])


def sbatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The generator, run."""
    return subprocess.run([sys.executable, str(SBATCH), *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_a_slurm_script_names_all_that_was_asked(tmp_path: Path) -> None:
    """Catches fields that do not arrive, quotes that are lost, and a script that no shell takes."""
    done = sbatch(*NEEDED, "--gpus-per-node", "4", "--dry-run", "--", "pretrain", "config with space.yaml", "run.num_workers=8")
    assert done.returncode == 0, done.stderr
    for line in ("--account=hep", "--nodes=2", "--gpus-per-node=4", "--time=1-00:00:00", "--signal=B:TERM@300", "--requeue"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert "jobs/pretrain.py 'config with space.yaml' run.num_workers=8" in done.stdout
    (tmp_path / "job.sh").write_text(done.stdout)
    assert subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=False).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(tmp_path / "job.sh")], check=False).returncode == 0


def test_empty_and_wrong_fields_are_refused_all_at_once() -> None:
    """Catches a script that Slurm queues for a day before it fails."""
    broken = [*NEEDED[:1], "", *NEEDED[2:8], "--time", "tomorrow", "--environment", " ", "--nodes", "0"]
    done = sbatch(*broken, "--dry-run", "--", "pretrian", "x.yaml")
    assert done.returncode == 1
    for mistake in ("--account is empty", "--environment is empty", "--time tomorrow", "no job named 'pretrian'", "--nodes must be"):
        assert mistake in done.stderr


@pytest.mark.parametrize("is_asked", [False, True])
def test_before_the_limit_the_driver_is_told_and_the_job_queued_again(is_asked: bool, tmp_path: Path) -> None:
    """Catches a notice that never reaches the driver, and a job that is not queued again; Slurm's commands are stand-ins."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    stand_ins = {
        "scontrol": f'[[ "$1" == show ]] && echo node1 || echo "$*" >>{calls}',
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "ray": f'while [[ "$1" != -- ]]; do shift; done; shift; "$@"; code=$?; echo "driver $code" >>{calls}; exit $code',
    }
    for name, body in stand_ins.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = tmp_path / "venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "activate").write_text(f'export PATH="{tools}:{Path(sys.executable).parent}:$PATH"\n')
    job = tmp_path / "job"
    job.mkdir()
    (job / "jobs").mkdir()
    driver = "import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    driver += f"pathlib.Path('{tmp_path}/up').touch()\n"
    (job / "jobs" / "pretrain.py").write_text(driver + f"time.sleep({30 if is_asked else 0})\n")
    done = sbatch(*NEEDED[:-1], str(tmp_path / "venv"), "--dry-run", "--", "pretrain", "x.yaml")
    text = done.stdout.replace(f"cd {CLUSTER.parent}", f"cd {job}")
    (tmp_path / "job.sh").write_text(text)
    running = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env={**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"})
    if is_asked:
        deadline = time.monotonic() + 20
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=25) == (143 if is_asked else 0)
    assert calls.read_text().split("\n")[:-1] == (["driver 143", "requeue 7"] if is_asked else ["driver 0"])
    assert not (job / ".slurm-7").exists()
