"""One way to get a Ray cluster: the one that this process is in or was pointed at, else one on this machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pfscale.errors import ResourceError

_CONNECT_SECONDS = 3.0
_JOB_PACKAGE = "runtime_resources/working_dir_files"  # where Ray unpacks a job's working_dir


@contextmanager
def ray_cluster(*, num_cpus: int | None = None) -> Iterator[None]:
    """A connected Ray: kept if it was there, or if RAY_ADDRESS names one; otherwise started here and shut down at the end.

    Args:
        num_cpus: CPUs of a cluster that is started here; None: those of this machine.

    Raises:
        ResourceError: the cluster that RAY_ADDRESS names does not answer, or none can be started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray warns in every process that it will one day stop hiding accelerators from tasks that ask for none; 0 is that future.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        _start(num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def is_running() -> bool:
    """Whether this process is in a Ray cluster already."""
    ray = sys.modules.get("ray")  # not imported for that: it takes half a second
    return ray is not None and ray.is_initialized()


def _start(num_cpus: int | None) -> None:
    """Starts a cluster on this machine."""
    import ray

    try:
        ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # a plain Exception where its processes take too long
        hint = "is the machine very busy, or its memory or disk full? Repeat the command when it is not: what is complete is kept"
        raise ResourceError(f"Ray does not start: {str(error).splitlines()[0]}", hint=hint) from error


def _connect(address: str) -> None:
    """Connects to a running cluster; an address at which nothing listens is told at once, Ray would try for minutes."""
    import ray

    hint = "RAY_ADDRESS is host:port of the head (port 6379 by default), or unset it to run on this machine"
    host, _, port = address.rpartition(":")
    if address != "auto" and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise ResourceError(f"no Ray cluster answers ({error})", where=address, hint=hint) from None
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ResourceError(f"no Ray cluster answers: {str(error).splitlines()[0]}", where=address, hint=hint) from None


def require_resources(bundle: Mapping[str, float], count: int, *, hint: str) -> None:
    """Checks that the cluster's nodes have room for `count` workers with the resources `bundle` each; Ray would wait for ever in silence.

    Raises:
        ResourceError: they have not, even if nothing else ran.
    """
    import ray

    room = sum(room_on_nodes(bundle).values())
    if room < count:
        each = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        has = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}" for name in bundle)
        raise ResourceError(f"{count} workers of {each} each do not fit into the cluster (in all: {has})", hint=hint)


def room_on_nodes(bundle: Mapping[str, float]) -> dict[str, int]:
    """Node -> how many workers with the resources `bundle` each it has room for if nothing else runs; nodes without room are left out."""
    import ray

    rooms = {}
    for node in ray.nodes():
        if node["Alive"]:
            rooms[node["NodeID"]] = min(int(float(node["Resources"].get(name, 0)) / amount + 1e-6) for name, amount in bundle.items())
    return {node: room for node, room in rooms.items() if room}


def is_job_copy() -> bool:
    """Whether the current folder is the copy of a checkout that Ray made for a submitted job, and deletes with it."""
    return _JOB_PACKAGE in os.getcwd()
