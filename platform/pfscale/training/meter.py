"""Where a training's time goes, and how much of the hardware it uses: the figures that every run leaves in MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from pfscale.models.flops import measure_matrix_rate, training_flops
from pfscale.models.mlpf import Mlpf
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
        """Rates over work and waiting for data; shares of all time since the start; memory in MB."""
        training = max(self.seconds[WORK] + self.seconds[DATA], 1e-9)
        total = max(sum(self.seconds.values()), 1e-9)
        shares = {f"{name}_share": self.seconds[name] / total for name in (DATA, EVALUATION, CHECKPOINT, LOGGING)}
        return {
            "elements_per_second": self.elements / training,
            "events_per_second": self.events / training,
            "mfu": self.flops / self.world.world_size / max(self.seconds[WORK], 1e-9) / self.matrix_rate,
            "matrix_gflops": self.matrix_rate / 1e9,
            **shares,
            "peak_memory_mb": peak_memory_mb(self.world.device),
        }


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far: allocated on the accelerator, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Not getrusage: its maximum is inherited from the parent.
    status = Path("/proc/self/status")
    found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")] if status.is_file() else []
    return int(found[0].split()[1]) * 1024 / 1e6 if found else float("nan")
