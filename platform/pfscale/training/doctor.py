"""What is wrong with a laptop, a cluster's head or the nodes behind it, each with the one command that mends it.

Every node says of itself what it has (`NodeFacts`); the checks compare that with the machine that asks.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pfscale.config import RunConfig
from pfscale.errors import PfscaleError
from pfscale.ray_cluster import ray_cluster, room_on_nodes
from pfscale.tracking.runs import connect
from pfscale.tracking.store import shown
from pfscale.training.probe import Findings, probe
from pfscale.training.storage import storage_folder

Verdict = Literal["ok", "warning", "failed"]
PACKAGES = ("pfscale", "ray", "torch", "deepspeed", "mlflow", "pyarrow", "numpy")
_MOST_SKEW = 2.0  # seconds between two clocks; tokens and MLflow's time stamps bear that
_LEAST_FREE = 5e9  # bytes on a disk that checkpoints and Ray's files are written to
_LEAST_MEMORY = 4e9
_ANSWER_SECONDS = 60.0
_TOKEN_LENGTH = 64
_CPUS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of a worker, that are tried


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        mend: the command or step that mends it; empty where nothing is wrong.
    """

    name: str
    verdict: Verdict
    found: str
    mend: str = ""


@dataclass(frozen=True)
class NodeFacts:
    """What one machine says of itself.

    Attributes:
        accelerators: that torch can use there; `driver` says why it can use none although there are some.
        asked, answered: clock of the machine that asks when it asked, and of this one when it answered.
        ops: why DeepSpeed does not import; empty: it does.
    """

    node: str
    versions: dict[str, str]
    python: str
    cpus: int
    accelerators: int
    driver: str
    findings: Findings
    asked: float
    answered: float
    ops: str
    returned: float = field(default=0.0)

    @property
    def skew(self) -> float:
        """Seconds by which its clock differs at least, whatever time the question and the answer took."""
        return max(self.asked - self.answered, self.answered - self.returned, 0.0)


def examine(run: RunConfig) -> Iterator[Check]:
    """The checks in the order in which one would mend them.

    Args:
        run: where trainings would write, log, and with how many workers.
    """
    yield _token()
    folder = storage_folder(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield Check("storage", "failed", f"{folder}: {error.strerror}", "run.storage=FOLDER that you may write to")
        return
    tracking = _tracking(run)
    yield tracking[0]
    here = facts(str(folder), tracking[1], time.time())
    try:
        with ray_cluster():
            nodes, silent = _asked(str(folder), tracking[1])
            yield _nodes(nodes, silent)
            yield from _compared(here, nodes)
            yield from _each(nodes)
            yield _room(run)
    except PfscaleError as error:
        yield Check("Ray", "failed", str(error.what), error.hint or "ray status")
        yield from _each([here])


def facts(folder: str, tracking_uri: str, asked: float) -> NodeFacts:
    """What this machine says of itself."""
    import torch

    return NodeFacts(
        node=socket.gethostname(),
        versions={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        cpus=os.cpu_count() or 1,
        accelerators=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        driver=_driver(),
        findings=probe(folder, tracking_uri),
        asked=asked,
        answered=time.time(),
        ops=_operations(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "pfscale":  # in a job it travels without being installed
            from pfscale import __version__

            return __version__
        return "missing"


def _driver() -> str:
    """Why torch sees no accelerator of a machine that has one; empty: all is well, or there is none."""
    import torch

    has_device = any(Path("/dev").glob("nvidia[0-9]*"))
    if not has_device or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for CPUs only"
    return f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, which the driver does not offer"


def _operations() -> str:
    try:
        import deepspeed  # noqa: F401  # fails where it wants to compile and cannot
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _token() -> Check:
    """Whether requests to a cluster are authenticated."""
    named = [name for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    if not named:  # Ray itself sets RAY_AUTH_MODE where it starts on this machine
        return Check("token", "ok", "no cluster named, none needed")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        mend = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE (cluster/local.sh start prints both)"
        return Check("token", "warning", "none: everybody who reaches the ports can run code", mend)
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check("token", "ok", "in the environment")
    make = f"(umask 077; python -c 'import secrets; print(secrets.token_hex(32), end=\"\")' > {path}), the same file on all nodes"
    if not path.is_file():
        return Check("token", "failed", f"{path} is not there", make)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return Check("token", "failed", f"others may read {path}", f"chmod 600 {path}")
    if len(path.read_text().strip()) < _TOKEN_LENGTH:
        return Check("token", "failed", f"{path} holds fewer than {_TOKEN_LENGTH} characters", make)
    return Check("token", "ok", str(path))


def _tracking(run: RunConfig) -> tuple[Check, str]:
    """The store as this machine sees it, and its resolved address."""
    try:
        tracker = connect(run.tracking_uri, run.experiment)
    except PfscaleError as error:
        return Check(
            "MLflow", "failed", f"{error.where or shown(run.tracking_uri)}: {error.what}", error.hint or "run.tracking_uri=ADDRESS"
        ), run.tracking_uri
    return Check("MLflow", "ok", shown(tracker.uri)), tracker.uri


def _asked(folder: str, tracking_uri: str) -> tuple[list[NodeFacts], list[str]]:
    """(what every node says of itself, nodes that did not answer)."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(facts)
    alive = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    calls = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(folder, tracking_uri, time.time()): node
        for node in alive
    }
    found, pending, silent = [], list(calls), []
    deadline = time.monotonic() + _ANSWER_SECONDS
    while pending and time.monotonic() < deadline:
        done, pending = ray.wait(pending, timeout=1.0)
        for answer in done:
            try:
                said = ray.get(answer)
            except ray.exceptions.RayError as error:
                silent.append(f"{alive[calls[answer]]} ({type(error).__name__})")
                continue
            found.append(NodeFacts(**{**vars(said), "returned": time.time()}))
    silent += [alive[calls[answer]] for answer in pending]
    return found, silent


def _nodes(nodes: Sequence[NodeFacts], silent: Sequence[str]) -> Check:
    if silent:
        mend = "ray status; a node that is down or full is started again"
        return Check("nodes", "failed", f"no answer from {', '.join(silent)}", mend)
    total = sum(node.cpus for node in nodes)
    accelerators = sum(node.accelerators for node in nodes)
    return Check("nodes", "ok", f"{len(nodes)} with {total} CPUs and {accelerators} accelerators: {', '.join(n.node for n in nodes)}")


def _compared(here: NodeFacts, nodes: Sequence[NodeFacts]) -> Iterator[Check]:
    """Versions and clocks, beside those of the machine that asks."""
    others = [
        f"{node.node}: {name} {node.versions[name]} (here {here.versions[name]})"
        for node in nodes
        for name in PACKAGES
        if node.versions[name] != here.versions[name]
    ]
    others += [f"{node.node}: Python {node.python} (here {here.python})" for node in nodes if node.python != here.python]
    if others:
        yield Check(
            "versions", "failed", "; ".join(others), "the same environment on all nodes: pip install -e . there, then start Ray again"
        )
    else:
        yield Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in here.versions.items()))
    skewed = [f"{node.node}: {node.skew:.1f} s" for node in nodes if node.skew > _MOST_SKEW]
    mend = "timedatectl set-ntp true, on those nodes"
    yield Check("clocks", "failed", f"differ: {'; '.join(skewed)}", mend) if skewed else Check("clocks", "ok", f"within {_MOST_SKEW:g} s")


_EACH: tuple[tuple[str, Verdict, Callable[[NodeFacts], str], str, str], ...] = (
    ("storage", "failed", lambda n: _problem(n), "run.storage and run.tracking_uri that every node reaches", "writable, MLflow answers"),
    (
        "disk",
        "warning",
        lambda n: (
            ""
            if min(n.findings.storage_free, n.findings.temporary_free) >= _LEAST_FREE
            else f"{min(n.findings.storage_free, n.findings.temporary_free) / 1e9:.1f} GB free"
        ),
        "make room, or TMPDIR on another disk before Ray is started",
        f"{_LEAST_FREE / 1e9:.0f} GB or more",
    ),
    (
        "memory",
        "warning",
        lambda n: "" if n.findings.memory >= _LEAST_MEMORY else f"{n.findings.memory / 1e9:.1f} GB",
        "a machine with more, or a larger limit of the container",
        f"{_LEAST_MEMORY / 1e9:.0f} GB or more",
    ),
    (
        "accelerators",
        "failed",
        lambda n: n.driver,
        "pip install torch for the driver's CUDA version (nvidia-smi names it)",
        "torch uses what there is",
    ),
    ("DeepSpeed", "failed", lambda n: n.ops, "pip install -e ., or engine.kind=torch", "imports without compiling"),
)


def _each(nodes: Sequence[NodeFacts]) -> Iterator[Check]:
    """What every node must have of its own."""
    for name, verdict, wrong, mend, right in _EACH:
        found = [f"{node.node}: {wrong(node)}" for node in nodes if wrong(node)]
        yield Check(name, verdict, "; ".join(found), mend) if found else Check(name, "ok", right)


def _problem(node: NodeFacts) -> str:
    problem = node.findings.problem
    return f"{problem.where}: {problem.what}" if problem else ""


def _room(run: RunConfig) -> Check:
    """Whether the nodes have room for the workers asked for; where they have not, Ray waits for ever in silence."""
    import ray

    if not run.num_workers:
        return Check("workers", "ok", "none asked for: trainings run in the process that starts them")
    bundle = {"CPU": run.cpus_per_worker, **({"GPU": 1.0} if run.use_gpu else {})}
    room = sum(room_on_nodes(bundle).values())
    each = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    if room >= run.num_workers:
        return Check("workers", "ok", f"{run.num_workers} of {each} each; there is room for {room}")
    fitting = [
        cpus for cpus in _CPUS if cpus < run.cpus_per_worker and sum(room_on_nodes({**bundle, "CPU": cpus}).values()) >= run.num_workers
    ]
    mend = f"run.cpus_per_worker={max(fitting):g}" if fitting else f"run.num_workers={room}" if room else "run.use_gpu=false, or more nodes"
    has = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}" for name in bundle)
    return Check("workers", "failed", f"{run.num_workers} of {each} each, room for {room} (in all: {has}): Ray would wait for ever", mend)
