"""Where a training's time goes, and how much of the hardware it uses: the figures that every run leaves in MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pfscale.models.flops import measure_matrix_rate, training_flops
from pfscale.models.mlpf import Mlpf
from pfscale.training.memory import peak_memory_mb
from pfscale.training.session import World

WORK, DATA, EVALUATION, CHECKPOINT, LOGGING = "work", "data", "evaluation", "checkpoint", "logging"


class Meter:
    """Times by purpose and work done since the process began to train. Of rank 0; its part of a step stands for everybody's.

    Attributes:
        seconds: by purpose; WORK is forward, backward and optimizer.
        matrix_rate: operations per second of large matrix products with this worker's threads or accelerator, measured at the start.
    """

    def __init__(self, model: Mlpf, world: World, *, precision: str) -> None:
        self.model, self.world = model, world
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.matrix_rate = measure_matrix_rate(world.device, dtype)
        self.seconds = dict.fromkeys((WORK, DATA, EVALUATION, CHECKPOINT, LOGGING), 0.0)
        self.elements, self.events, self.flops = 0, 0, 0.0
        self._told = (0, 0.0)  # elements, seconds of training when the metrics were last asked for

    @contextmanager
    def time(self, purpose: str) -> Iterator[None]:
        """Adds what happens inside to the purpose's time."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[purpose] += time.perf_counter() - begin

    def count(self, lengths: Sequence[int]) -> None:
        """Adds the work of a step with events of these lengths, all workers'."""
        self.elements += sum(lengths)
        self.events += len(lengths)
        self.flops += training_flops(self.model, lengths)

    def metrics(self) -> dict[str, float]:
        """Rates over work and waiting for data, and shares of all time, since the start (`recent_`: since the last call); memory in MB."""
        training = max(self.seconds[WORK] + self.seconds[DATA], 1e-9)
        recent = (self.elements - self._told[0]) / max(training - self._told[1], 1e-9)
        self._told = (self.elements, training)
        total = max(sum(self.seconds.values()), 1e-9)
        shares = {f"{name}_share": self.seconds[name] / total for name in (DATA, EVALUATION, CHECKPOINT, LOGGING)}
        return {
            "elements_per_second": self.elements / training,
            "recent_elements_per_second": recent,
            "events_per_second": self.events / training,
            "mfu": self.flops / self.world.world_size / max(self.seconds[WORK], 1e-9) / self.matrix_rate,
            "matrix_gflops": self.matrix_rate / 1e9,
            **shares,
            "peak_memory_mb": peak_memory_mb(self.world.device),
        }
