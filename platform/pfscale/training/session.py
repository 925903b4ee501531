"""Where a training loop runs: in a Ray Train worker, or alone in the calling process. The loop sees no difference.

A checkpoint counts only when it is committed: Ray's own bookkeeping says so for workers, an atomic rename in the calling process.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch


class World(Protocol):
    """Which of how many workers this is, and where its tensors live."""

    rank: int
    world_size: int
    device: torch.device


class Session(World, Protocol):
    """A world with checkpoints: the last committed one, and how to commit the next."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The folder of the last committed checkpoint, or None."""
        ...

    def commit(self, write: Callable[[Path], None], metrics: dict[str, float]) -> None:
        """Makes what `write` puts into the folder it is given the last checkpoint (collective)."""
        ...


class Alone:
    """The world of a measurement without training."""

    rank = 0
    world_size = 1

    def __init__(self) -> None:
        self.device = torch.device("cpu")


class LocalSession(Alone):
    """Training in the calling process: one rank, checkpoints below `folder`."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        super().__init__()
        self.folder = folder
        self.keep = keep

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The folder of the last committed checkpoint, or None."""
        committed = sorted(self.folder.glob("checkpoint_*"))
        yield committed[-1] if committed else None

    def commit(self, write: Callable[[Path], None], metrics: dict[str, float]) -> None:
        """Calls `write` on a fresh folder and renames it into place; older checkpoints beyond `keep` are deleted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft_", dir=self.folder))
        write(draft)
        final = self.folder / f"checkpoint_{int(metrics['step']):09d}"
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
        for old in sorted(self.folder.glob("checkpoint_*"))[: -self.keep]:
            shutil.rmtree(old)
        for stale in self.folder.glob(".draft_*"):
            shutil.rmtree(stale)


class RaySession:
    """Training in a Ray Train worker."""

    def __init__(self) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The folder of the last checkpoint that Ray committed, or None."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def commit(self, write: Callable[[Path], None], metrics: dict[str, float]) -> None:
        """Every rank writes its part into a folder of its own; Ray merges them and commits."""
        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
