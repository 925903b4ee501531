"""`pfscale submit`: the `ray job submit` line of a job, under the name of what it runs."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfscale.commands.terminal import out
from pfscale.config import load_config
from pfscale.errors import InputFileError, PfscaleError, ResourceError, unknown_name

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help="pretrain, finetune, ingest ...: a file in jobs/")],
    arguments: Annotated[list[str], typer.Argument(metavar="ARGUMENT...", help="what the verb of that name takes")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the line only (before JOB)")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="return when it is submitted (before JOB)")] = False,
) -> None:
    """Prints and runs the `ray job submit` line of a job, follows its log and returns its success; run it in the folder that holds jobs/.

    The submission's id is the name of its run (the job and a digest of its arguments, where that cannot be said here). Where that job
    still runs, its log is followed; submitted again after its end, it resumes.
    """
    if not Path("jobs", f"{job}.py").is_file():
        known = sorted(path.stem for path in Path("jobs").glob("*.py"))
        if not known:
            raise InputFileError("there is no jobs folder here", where=str(Path.cwd()), hint="change to the checkout's top folder")
        raise unknown_name("job", job, known)
    name, metadata = _identity(job, arguments)
    if not dry_run:
        name, running = _free_name(name)
        if running:
            out.print(f"{name} is running already", markup=False)
            raise typer.Exit(0 if no_wait else _followed(name))
    line = [
        "ray",
        "job",
        "submit",
        "--submission-id",
        name,
        "--metadata-json",
        json.dumps(metadata),
        "--runtime-env",
        "jobs/runtime_env.yaml",
    ]
    line += ["--no-wait"] if no_wait else []
    line += ["--", "python", f"jobs/{job}.py", *arguments]
    print(shlex.join(line), flush=True)
    if not dry_run:
        raise typer.Exit(subprocess.run(line, check=False).returncode)


def _identity(job: str, arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(name, metadata): those of the run where it is a training whose data are seen from here, else of the job's arguments."""
    from pfscale.tracking.runs import git_commit

    digest = hashlib.blake2b("\0".join([job, *arguments]).encode(), digest_size=6).hexdigest()
    name, fingerprint = _run_of(job, arguments) or (f"{job}-{digest}", digest)
    return name, {"fingerprint": fingerprint, "commit": git_commit() or "unknown"}


def _run_of(job: str, arguments: Sequence[str]) -> tuple[str, str] | None:
    """(name, fingerprint) of the run that the job would make; None where that cannot be said here."""
    from pfscale.training.verbs import VERBS

    if job not in VERBS or not arguments:
        return None
    try:
        launch = VERBS[job].launch(load_config(VERBS[job].config_class, Path(arguments[0]), arguments[1:]))[0]
    except (PfscaleError, OSError):  # its data or its store are the cluster's; what is wrong with it the job will say
        return None
    return launch.name, str(launch.fingerprint)


def _free_name(name: str) -> tuple[str, bool]:
    """(an id that is free, whether instead the job of this name runs and it is its id)."""
    of_name = [found for found in _client().list_jobs() if _stem(found.submission_id or "") == name]
    running = [str(found.submission_id) for found in of_name if str(found.status) not in _OVER]
    if running:
        return running[0], True
    return (f"{name}_{len(of_name) + 1}" if of_name else name), False


def _stem(submission_id: str) -> str:
    return re.sub(r"_\d+$", "", submission_id)


def _followed(submission_id: str) -> int:
    subprocess.run(["ray", "job", "logs", "--follow", submission_id], check=False)
    return int(str(_client().get_job_status(submission_id)) != "SUCCEEDED")


def _client() -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient()
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "cluster/local.sh start prints the two lines to paste; else RAY_API_SERVER_ADDRESS and the token of your cluster"
        raise ResourceError(f"no cluster to submit to: {str(error).splitlines()[0]}", hint=hint) from error
