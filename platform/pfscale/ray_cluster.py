"""One way to get a Ray cluster: the one that this process is in or was pointed at, else one on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pfscale.errors import ResourceError

_JOB_PACKAGE = "runtime_resources/working_dir_files"  # where Ray unpacks a job's working_dir


@contextmanager
def ray_cluster(*, num_cpus: int | None = None) -> Iterator[None]:
    """A connected Ray: kept if it was there, or if RAY_ADDRESS names one; otherwise started here and shut down at the end.

    Args:
        num_cpus: CPUs of a cluster that is started here; None: those of this machine.

    Raises:
        ResourceError: the cluster that RAY_ADDRESS names does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray warns in every process that it will one day stop hiding accelerators from tasks that ask for none; 0 is that future.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        first = str(error).splitlines()[0]
        raise ResourceError(f"no Ray cluster answers: {first}", where=address, hint="unset RAY_ADDRESS to run on this machine") from None
    try:
        yield
    finally:
        ray.shutdown()


def require_cpus(needed: float, *, what: str) -> None:
    """Checks that the cluster has the CPUs; Ray itself would wait for ever without a word.

    Raises:
        ResourceError: it has fewer.
    """
    import ray

    available = float(ray.cluster_resources().get("CPU", 0))
    if needed > available:
        raise ResourceError(
            f"{what} needs {needed:g} CPUs, the cluster has {available:g}",
            hint=f"lower run.num_workers or run.cpus_per_worker to fit {available:g}",
        )


def is_job_copy() -> bool:
    """Whether the current folder is the copy of a checkout that Ray made for a submitted job, and deletes with it."""
    return _JOB_PACKAGE in os.getcwd()
