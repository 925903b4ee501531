"""Where a training loop runs: in a Ray Train worker, or alone in the calling process. The loop sees no difference.

A checkpoint counts only when it is committed: Ray's own bookkeeping says so for workers, an atomic rename in the calling process. The loop
waits for the state to be written to a local disk, not for it to be stored.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pfscale.errors import PfscaleError, ResourceError

STOP = "stop"  # a file of this name in a run's folder asks the training to commit a checkpoint and end
_UPLOADS_AT_ONCE = 2


class World(Protocol):
    """Which of how many workers this is, which of its node, and where its tensors live."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device


class Session(World, Protocol):
    """A world with checkpoints: the last committed one, and how to commit the next."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The folder of the last committed checkpoint, or None."""
        ...

    def commit(self, metrics: Mapping[str, float]) -> AbstractContextManager[Path]:
        """A folder; what is in it at the end becomes the last checkpoint, soon and in the background (collective)."""
        ...

    def finish(self) -> None:
        """Waits until everything is committed."""
        ...

    @property
    def wish(self) -> Wish:
        """Whether somebody wants the training to end after this step."""
        ...


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """The block computes with `number` threads of this process; 0: as many as before."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sum_over_workers(values: Tensor, world: World) -> None:
    """Replaces host values by their sum over all workers (collective)."""
    if world.world_size == 1:
        return
    if world.device.type == "cpu":
        dist.all_reduce(values)
    else:  # NCCL sums what is on the accelerator
        there = values.to(world.device)
        dist.all_reduce(there)
        values.copy_(there)


def agree_on(problem: PfscaleError | None, world: World) -> None:
    """Tells all workers of what one of them has found (collective).

    Raises:
        PfscaleError: the problem of the first that has one, the same on all workers.
    """
    problems: list[PfscaleError | None] = [problem] * world.world_size
    if world.world_size > 1:
        dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise found


class Wish:
    """The file that asks a training to stop. One worker looks, and not after every step: the file system may be a distant one.

    Args:
        folder: of the run.
    """

    SECONDS = 0.2  # between two looks

    def __init__(self, folder: Path, *, is_first: bool) -> None:
        self.path, self.is_first, self.looked = folder / STOP, is_first, -math.inf

    def is_there(self) -> bool:
        """Whether it was there at the last look; always False where another worker looks."""
        if not self.is_first or time.monotonic() - self.looked < self.SECONDS:
            return False
        self.looked = time.monotonic()
        return self.path.exists()


class Alone:
    """The world of a measurement without training."""

    rank = 0
    local_rank = 0
    world_size = 1

    def __init__(self) -> None:
        self.device = torch.device("cpu")


class LocalSession(Alone):
    """Training in the calling process: one rank, checkpoints below `folder`/checkpoints.

    Args:
        folder: of the run.
        keep: checkpoints kept, newest first.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        super().__init__()
        self.folder, self.keep = folder / "checkpoints", keep
        self.wish = Wish(folder, is_first=True)
        self.pool = ThreadPoolExecutor(1)
        self.committing: Future[None] | None = None

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        committed = sorted(self.folder.glob("checkpoint_*"))
        yield committed[-1] if committed else None

    @contextmanager
    def commit(self, metrics: Mapping[str, float]) -> Iterator[Path]:
        self.finish()
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".draft_*"):
            shutil.rmtree(stale)
        draft = Path(tempfile.mkdtemp(prefix=".draft_", dir=self.folder))
        yield draft
        self.committing = self.pool.submit(self._commit, draft, self.folder / f"checkpoint_{int(metrics['step']):09d}")

    def _commit(self, draft: Path, final: Path) -> None:
        """On the disk first, then under its name; older ones beyond `keep` are deleted."""
        for path in (*draft.rglob("*"), draft):
            _to_disk(path)
        draft.rename(final)
        _to_disk(self.folder)
        for old in sorted(self.folder.glob("checkpoint_*"))[: -self.keep]:
            shutil.rmtree(old)

    def finish(self) -> None:
        committing, self.committing = self.committing, None
        if committing is None:
            return
        try:
            committing.result()
        except OSError as error:
            hint = "make room there, then repeat the command: it goes on from the last checkpoint"
            raise ResourceError(f"a checkpoint could not be written ({error.strerror})", where=str(self.folder), hint=hint) from error


def _to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RaySession:
    """Training in a Ray Train worker.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.local_rank: int = context.get_local_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.wish = Wish(folder, is_first=self.rank == 0)
        self.uploading: list[Path] = []
        self.draft_prefix = f"pfscale-checkpoint-{hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest()}-"
        if self.local_rank == 0:
            # What workers left that were killed while they wrote. Nobody commits before all have taken a step together.
            for stale in Path(tempfile.gettempdir()).glob(f"{self.draft_prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    @contextmanager
    def commit(self, metrics: Mapping[str, float]) -> Iterator[Path]:
        """Every rank's folder is its part; Ray merges and commits them in a thread, and deletes the folder."""
        import ray.train

        while len(self.uploading) >= _UPLOADS_AT_ONCE:  # a storage that is slower than we write must not fill the disk
            time.sleep(0.05)
            self.uploading = [folder for folder in self.uploading if folder.exists()]
        folder = Path(tempfile.mkdtemp(prefix=self.draft_prefix))
        yield folder
        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        self.uploading.append(folder)

    def finish(self) -> None:
        """Nothing: Ray waits for its uploads when a worker returns."""
