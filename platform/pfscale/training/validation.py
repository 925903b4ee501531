"""The loss on validation events: the same for any number of workers, and which events it was where it is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfscale.models.batch import collate
from pfscale.shards.dataset import EventIndex, cut_by_tokens, select_events
from pfscale.shards.ragged import RaggedEvents
from pfscale.tasks.reconstruction import LOSS_TERMS
from pfscale.training.batches import Step, learning_events, worker_passes
from pfscale.training.engine import Engine
from pfscale.training.guard import explained_memory
from pfscale.training.session import World, sum_over_workers

_TOKENS = 8192  # per pass


class Validation:
    """Validation events, read once where they are few enough to keep.

    Args:
        tokens_per_pass: elements that a worker takes at once; None: a number that serves every model.
        cache: folder of decoded events; empty: they are read from the shards.
    """

    CHUNK, KEPT = 4096, 20_000

    def __init__(self, index: EventIndex, members: NDArray[np.int64], tokens_per_pass: int | None = None, cache: str = "") -> None:
        self.index, self.members, self.cache = index, np.sort(members), cache
        self.tokens = min(tokens_per_pass or _TOKENS, _TOKENS)
        self.kept: list[RaggedEvents] | None = None

    def sample(self, num_events: int) -> NDArray[np.int64]:
        """So many of the events, from all parts of the data set; all where there are fewer."""
        count = min(num_events, len(self.members))
        return self.members[np.linspace(0, len(self.members) - 1, count).astype(np.int64)]

    def batches(self, world: World) -> Iterator[Step]:
        """This worker's parts of all events, in one pass each; every worker gets as many."""
        first = 0
        for events in self._chunks():
            for rows in cut_by_tokens(events.lengths, self.tokens * world.world_size):
                passes = tuple(collate(events, part) for part in worker_passes(events.lengths, rows, world, None))
                yield Step(passes, self.members[first + rows], events.lengths[rows])
            first += events.num_events

    def _chunks(self) -> Iterator[RaggedEvents]:
        if self.kept is None and len(self.members) <= self.KEPT:
            self.kept = list(self._read())
        yield from self._read() if self.kept is None else self.kept

    def _read(self) -> Iterator[RaggedEvents]:
        for first in range(0, len(self.members), self.CHUNK):
            yield learning_events(self.index, self.members[first : first + self.CHUNK], self.cache)


def evaluate_loss(engine: Engine, validation: Validation, world: World) -> dict[str, float]:
    """Mean of each loss term per element over the given events, and their sum as `loss`; the same on all workers.

    Raises:
        ResourceError: a pass does not fit into memory.
    """
    total = torch.zeros(len(LOSS_TERMS) + 1, dtype=torch.float64)
    for step in validation.batches(world):
        total[:-1] += _sums(engine, step, world)
        total[-1] += sum(batch.num_elements for batch in step.passes)
    sum_over_workers(total, world)
    means = (total[:-1] / total[-1]).tolist()
    return {**dict(zip(LOSS_TERMS, means, strict=True)), "loss": math.fsum(means)}


def first_not_finite(engine: Engine, validation: Validation, world: World) -> Step | None:
    """The first validation events, some at a time, whose loss is not finite on any worker; None where there are none (collective)."""
    for step in validation.batches(world):
        sums = _sums(engine, step, world)
        sum_over_workers(sums, world)
        if not bool(sums.isfinite().all()):
            return step
    return None


def _sums(engine: Engine, step: Step, world: World) -> Tensor:
    """Of each loss term over this worker's part, float64, on the host."""
    with explained_memory(step):
        return torch.stack([engine.evaluate(batch.to(world.device)).double().cpu() for batch in step.passes]).sum(0)


def validation_events(index: EventIndex, num_events: int | None) -> NDArray[np.int64]:
    """The validation events of lowest hash; all where there are fewer than asked for.

    Raises:
        NotEnoughDataError: there are none.
    """
    members = select_events(index, "validation")
    return members if num_events is None else members[:num_events]
