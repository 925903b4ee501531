"""What a machine says of itself before a training starts there. Light to import: it runs as a small task on every node."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pfscale.errors import PfscaleError, ResourceError, TrackingError
from pfscale.tracking.store import require_store


@dataclass(frozen=True)
class Findings:
    """Of one machine, in bytes.

    Attributes:
        memory: what its processes may use together at most.
        storage_free: on the disk of the run's folder.
        temporary_free: where a checkpoint is written before it is stored.
        problem: why a training cannot run there; None: it can.
    """

    node: str
    memory: float
    storage_free: float
    temporary_free: float
    problem: PfscaleError | None


def probe(folder: str, tracking_uri: str) -> Findings:
    """What this machine says of itself and of what a worker on it needs to reach.

    Args:
        folder: of the run; the driver has made it.
        tracking_uri: resolved address of an existing store.
    """
    node = socket.gethostname()
    problem: PfscaleError | None = None
    try:
        require_writable(Path(folder), node)
        require_store(tracking_uri, create=False)
    except TrackingError as error:
        hint = "run.tracking_uri must be a server, or a database in a folder that every node has"
        problem = TrackingError(f"a worker on {node} cannot reach it: {error.what}", where=error.where, hint=hint)
    except ResourceError as error:
        problem = error
    return Findings(node, memory_limit(), _free(folder), _free(tempfile.gettempdir()), problem)


def require_writable(folder: Path, node: str) -> None:
    """Writes and deletes a file there.

    Raises:
        ResourceError: the folder is not there, so not the one that the driver sees, or nothing can be written.
    """
    hint = "run.storage must be a folder that every node has and may write to"
    if not folder.is_dir():
        raise ResourceError(f"not there on {node}", where=str(folder), hint=hint)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
            file.write(b"x" * 4096)
    except OSError as error:
        raise ResourceError(f"{node} cannot write there ({error.strerror})", where=str(folder), hint=hint) from None


def memory_limit(root: Path = Path("/")) -> float:
    """Bytes of memory of this machine, or of the control group (container, batch job) that this process is in, if that has fewer.

    Args:
        root: of the file system with proc and sys.
    """
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        own = top / group.lstrip("/")
        for level in (own, *own.parents):
            if (level / name).is_file() and (text := (level / name).read_text().strip()).isdigit():
                limits.append(float(text))
            if level == top:
                break
    return min(limits)


def _free(folder: str) -> float:
    try:
        return float(shutil.disk_usage(folder).free)
    except OSError:  # told as a problem by `require_writable`
        return 0.0
