"""When a training stops itself: a loss or gradient that is not finite, a loss that jumps, a step that does not fit into memory.

What stopped it is kept in `<run>/incident-<step>/`: the events, the loss, the model as it was before the step; `replay.py` looks into it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfscale.config import dump_yaml
from pfscale.errors import DivergedError, PfscaleError, ResourceError
from pfscale.training.batches import Step
from pfscale.training.config import GuardConfig, TrainingConfig, loggable

INCIDENT, CONFIG, MODEL = "incident.json", "config.yaml", "model"
_LOWER_RATE = "a lower optimisation.learning_rate may help"
_EVENTS_NAMED = 4  # in the message; the file names all


class Guard:
    """Looks at the loss of every step before its gradient is used, and at the gradient's norm after.

    Args:
        recent: losses of the steps before, of a run that is resumed.
        data: hash of the data set.
        uid_of: identities of events at positions in the index.
        save_model: writes the model as it is now to a folder (collective).
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        recent: list[float],
        *,
        data: str,
        uid_of: Callable[[NDArray[np.int64]], NDArray[np.uint64]],
        save_model: Callable[[Path], None],
        is_first: bool,
    ) -> None:
        self.config, self.folder, self.data, self.save_model, self.is_first = config, folder, data, save_model, is_first
        self.uid_of = uid_of
        self.recent: deque[float] = deque(recent, maxlen=config.guard.window)

    def check_loss(self, number: int, step: Step, terms: dict[str, float]) -> None:
        """The loss terms per element over all workers, the same on each, of step `number`.

        Raises:
            DivergedError: it is not finite, or jumps.
        """
        loss = math.fsum(terms.values())
        if not math.isfinite(loss):
            self._stop(f"the loss is not finite at step {number}", _LOWER_RATE, number, step, {"terms": terms})
        if is_spike(loss, self.recent, self.config.guard):
            usual = float(np.median(self.recent))
            what = f"the loss jumps to {loss:.4g} at step {number}, {loss / usual:.1f} times the median {usual:.4g} of the steps before"
            self._stop(what, "if it is harmless, guard.spike_factor=0 goes on", number, step, {"terms": terms, "median": usual})
        self.recent.append(loss)

    def check_norm(self, number: int, step: Step, norm: float) -> None:
        """The gradient's norm, the same on every worker.

        Raises:
            DivergedError: it is not finite.
        """
        if not math.isfinite(norm):
            self._stop(f"the gradient is not finite at step {number}", _LOWER_RATE, number, step, {"gradient_norm": norm})

    def stop_in_evaluation(self, number: int, step: Step | None, terms: dict[str, float]) -> None:
        """The validation loss is not finite after `number` steps.

        Args:
            step: the first validation events for which it is not; None: for all of them together.

        Raises:
            DivergedError: always.
        """
        step = step or Step((), np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._stop(f"the validation loss is not finite at step {number}", _LOWER_RATE, number, step, {"terms": terms})

    def _stop(self, what: str, advice: str, number: int, step: Step, numbers: dict[str, Any]) -> None:
        folder = self.folder / f"incident-{number:09d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.save_model(folder / MODEL)
        named = ", ".join(f"{event} of the index" for event in step.events[:_EVENTS_NAMED])
        if self.is_first:
            found = {"what": what, "step": number, **numbers, "data": self.data, "events": step.events.tolist()}
            (folder / INCIDENT).write_text(json.dumps(found, indent=1))
            (folder / CONFIG).write_text(dump_yaml(loggable(self.config)))
            with suppress(PfscaleError, OSError):  # the store may be what is wrong
                named = ", ".join(f"uid:{uid}" for uid in self.uid_of(step.events[:_EVENTS_NAMED]))
        more = f" and {len(step.events) - _EVENTS_NAMED} more" if len(step.events) > _EVENTS_NAMED else ""
        hint = f"see which events did it: python -m pfscale.training.replay {folder}; {advice}"
        raise DivergedError(what, where=f"events {named}{more}", hint=hint)


def is_spike(loss: float, recent: deque[float], config: GuardConfig) -> bool:
    """Whether a loss is out of proportion to those before it."""
    full = len(recent) == config.window
    return bool(config.spike_factor and full and loss > config.spike_factor * max(float(np.median(recent)), config.spike_floor))


@contextmanager
def explained_memory(step: Step) -> Iterator[None]:
    """Turns running out of memory into advice.

    Raises:
        ResourceError: a pass did not fit; names the budget that would.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, PfscaleError) or not is_out_of_memory(error):
            raise
        largest = max((batch.num_elements for batch in step.passes), default=0)
        longest = int(step.lengths.max(initial=0))
        if longest > 0.75 * largest:
            hint = f"an event of {longest} elements alone does not fit: recompute_activations=true, or a smaller model"
        else:
            fitting = max(64, longest, largest // 2)  # at most three quarters of what did not fit
            hint = f"data.tokens_per_pass={fitting} gives the same result in parts; recompute_activations=true needs less memory, too"
        raise ResourceError(f"out of memory in a pass of {largest} elements", hint=hint) from error


def explained_death(error: BaseException, *, num_elements: int) -> ResourceError | None:
    """What to tell of Ray's error when a worker process was ended from outside; None where it was not.

    Ray says so in a text only. Its own monitor names memory as the reason; a kill by the kernel leaves no reason behind.

    Args:
        num_elements: that a worker takes at once.
    """
    said = str(error)
    hint = f"the same command goes on from the last checkpoint; with data.tokens_per_pass={max(64, num_elements // 2)} it needs less memory"
    if any(words in said for words in ("OUT_OF_MEMORY", "ray.exceptions.OutOfMemoryError", "running low on memory")):
        return ResourceError("Ray ended a worker because the machine's memory was full", hint=hint)
    if "Worker exit type: SYSTEM_ERROR" in said:
        return ResourceError("a worker process was killed, most likely by the kernel because memory was full (see dmesg)", hint=hint)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's or Python's way to say that memory is full."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
