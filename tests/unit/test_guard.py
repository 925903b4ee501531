"""What stops a training: jumps of the loss, and memory that is full."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch

from pfscale.errors import ResourceError
from pfscale.models.batch import collate
from pfscale.shards.ragged import from_arrow
from pfscale.training.batches import Step
from pfscale.training.config import GuardConfig
from pfscale.training.guard import explained_death, explained_memory, is_spike
from synthetic_events import synthetic_table

CONFIG = GuardConfig(spike_factor=10.0, window=5)


@pytest.mark.parametrize(
    ("loss", "recent", "expected"),
    [
        (10.1, [1.0] * 5, True),
        (9.9, [1.0] * 5, False),
        (50.0, [1.0] * 4, False),  # too few to know what is usual
        (10.1, [1.0, 1.0, 1.0, 1.0, 900.0], True),  # one wild step before does not hide the next
        (math.inf, [1.0] * 5, True),
        (0.9, [0.01] * 5, False),  # what was learned by heart jumps easily
        (1.1, [0.01] * 5, True),
    ],
)
def test_a_spike_is_far_above_the_median_of_a_full_window(loss: float, recent: list[float], expected: bool) -> None:
    """Catches a guard that stops young trainings, and one that a single wild step makes blind."""
    assert is_spike(loss, deque(recent, maxlen=5), CONFIG) is expected


def test_a_factor_of_zero_never_stops() -> None:
    """Catches a run that cannot be made to go on past a harmless jump."""
    assert not is_spike(1e9, deque([1.0] * 5, maxlen=5), GuardConfig(spike_factor=0.0, window=5))


def make_step(num_events: int, num_passes: int) -> Step:
    events = from_arrow(synthetic_table(num_events, seed=3, max_particles=60))
    rows = np.array_split(np.arange(num_events), num_passes)
    return Step(tuple(collate(events, part) for part in rows), np.arange(num_events), events.lengths)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
@pytest.mark.parametrize("num_passes", [1, 3])
def test_full_memory_is_told_with_a_budget_that_is_smaller(error: Exception, num_passes: int) -> None:
    """Catches advice that is what the user has already, or that no event fits into."""
    step = make_step(40, num_passes)
    largest = max(batch.num_elements for batch in step.passes)
    with pytest.raises(ResourceError, match=f"pass of {largest} elements") as told, explained_memory(step):
        raise error
    assert told.value.hint is not None
    budget = int(told.value.hint.split("data.tokens_per_pass=")[1].split()[0])
    assert step.lengths.max() <= budget < largest


def test_full_memory_by_a_single_event_is_told_otherwise() -> None:
    """Catches the advice to cut a step that is one event."""
    with pytest.raises(ResourceError) as told, explained_memory(make_step(1, 1)):
        raise MemoryError
    assert "tokens_per_pass" not in str(told.value)


def test_other_errors_pass() -> None:
    """Catches a bug that is reported as a lack of memory, and an error of our own that loses its advice."""
    for error in (RuntimeError("shapes differ"), ResourceError("disk", hint="mine")):
        with pytest.raises(type(error)) as told, explained_memory(make_step(2, 1)):
            raise error
        assert told.value is error


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("1 worker(s) were killed due to the node running low on memory. Memory on the node was 8.11GB used", "Ray ended a worker"),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: ...", "was killed"),
        ("Training failed due to worker errors:\nKeyError: 'pt'", None),
    ],
)
def test_a_worker_that_was_ended_for_its_memory_is_told_so(said: str, told: str | None) -> None:
    """Catches a page of Ray's words where there is one thing to do, and a bug that is taken for a lack of memory."""
    found = explained_death(RuntimeError(said), num_elements=8192)
    assert (found is None) == (told is None)
    if found is not None and told is not None:
        assert told in found.what
        assert "data.tokens_per_pass=4096" in str(found.hint)
