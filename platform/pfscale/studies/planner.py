"""A training on paper: memory, time, network and data of a model size, a number of events and a number of accelerators, by formula.

Every number comes with its formula, so that it can be argued with. What is measured here is the work of a step (`pfscale.models.flops`) and
the memory of a worker (`pfscale.models.memory`); what an accelerator reaches of its peak is an assumption until it was measured on one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from pfscale.errors import ConfigError, closest
from pfscale.models.flops import measure_matrix_rate, training_flops
from pfscale.models.memory import FLOAT, PROCESS, activation_bytes, state_bytes
from pfscale.models.mlpf import Mlpf, MlpfConfig, count_parameters
from pfscale.training.probe import memory_limit

ZeroStage = Literal[0, 1, 2, 3]
EVENT_BYTES = 15_000.0  # of a shard: built-in ttbar, 150 elements (tests/benchmarks/README.md)
ELEMENTS_PER_EVENT = 150.0  # the same
_GB = 1e9
_SPREAD = 0.35  # of ln(length), such that the longest of 64 events is 2.2 times the mean: the mix of tests/benchmarks/README.md


@dataclass(frozen=True)
class Accelerator:
    """What one worker computes on.

    Attributes:
        flops: peak of its matrix products in the precision of training, per second.
        memory: bytes.
        network: bytes per second between nodes, for each accelerator.
        efficiency: share of the peak that a step reaches.
        source: where the numbers are from.
    """

    name: str
    flops: float
    memory: float
    network: float
    efficiency: float
    source: str


# Peaks of dense bf16 products and memory: NVIDIA's data sheets (A100 80GB SXM, H100 SXM). Network: one 200 or 400 Gb/s adapter each.
ACCELERATORS = {
    "a100": Accelerator("a100", 312e12, 80e9, 25e9, 0.3, "data sheet; efficiency assumed, not measured on an accelerator"),
    "h100": Accelerator("h100", 989e12, 80e9, 50e9, 0.3, "data sheet; efficiency assumed, not measured on an accelerator"),
}


@dataclass(frozen=True)
class Target:
    """What is to be trained, and on how much.

    Attributes:
        events: unique ones; `passes` over them.
        elements: tracks and clusters of an event, on average.
        tokens: elements that a worker takes in one step.
    """

    model: MlpfConfig
    events: float
    workers: int
    passes: float = 1.0
    elements: float = ELEMENTS_PER_EVENT
    tokens: int = 65_536
    zero_stage: ZeroStage = 1
    event_bytes: float = EVENT_BYTES
    shard_events: int = 4096


@dataclass(frozen=True)
class Line:
    """A number with its formula."""

    name: str
    value: float
    unit: str
    formula: str

    def __str__(self) -> str:
        if self.unit == "h" and self.value < 1:
            return f"{self.value * 60:.3g} min" if self.value * 60 >= 1 else f"{self.value * 3600:.3g} s"
        return f"{self.value:,.4g} {self.unit}".rstrip()


@dataclass(frozen=True)
class TrainingPlan:
    """What a target takes; `lines` are all of its numbers."""

    target: Target
    accelerator: Accelerator
    lines: tuple[Line, ...]
    memory: dict[int, float]

    def __getitem__(self, name: str) -> float:
        return next(line.value for line in self.lines if line.name == name)

    @property
    def fits(self) -> bool:
        """Whether a worker's memory holds it."""
        return self.memory[self.target.zero_stage] <= self.accelerator.memory


def find_accelerator(name: str, *, efficiency: float | None = None) -> Accelerator:
    """One of the table, or `here`: this machine's processor with the threads that torch has, its peak measured.

    Raises:
        ConfigError: an unknown name.
    """
    if name == "here":
        rate = measure_matrix_rate(torch.device("cpu"))
        found = Accelerator("here", rate, memory_limit(), 1e9, 0.4, "matrix products measured; efficiency that of width 128")
    elif name in ACCELERATORS:
        found = ACCELERATORS[name]
    else:
        known = [*ACCELERATORS, "here"]
        raise ConfigError("unknown accelerator", where=name, hint=f"there are: {', '.join(closest(name, known) or known)}")
    return found if efficiency is None else replace(found, efficiency=efficiency, source=f"{found.source}; efficiency as given")


def plan_training(target: Target, accelerator: Accelerator) -> TrainingPlan:
    """All numbers of a target."""
    with torch.device("meta"):
        model = Mlpf(target.model)
    parameters = count_parameters(model)
    lengths = event_lengths(target.elements)
    per_element = training_flops(model, lengths) / sum(lengths)
    step_elements = target.tokens * target.workers
    total = target.events * target.passes * target.elements
    steps = max(1, math.ceil(total / step_elements))
    compute = per_element * target.tokens / (accelerator.flops * accelerator.efficiency)
    rounds = 3.0 if target.zero_stage == 3 else 2.0  # gradients, weights; twice the weights where they are shared out
    volume = rounds * FLOAT * parameters * (target.workers - 1) / target.workers
    network = volume / accelerator.network
    step = compute + network
    hours = steps * step / 3600
    is_device = accelerator.name in ACCELERATORS
    activations = activation_bytes(target.model, target.tokens, precision="bf16" if is_device else "fp32")
    memory = {stage: _state(parameters, stage, target.workers, is_device=is_device) + activations for stage in (0, 1, 2, 3)}
    shards = math.ceil(target.events / target.shard_events)
    rate = step_elements / target.elements / step * target.event_bytes
    lines = [
        Line("parameters", parameters, "", "N: by the layers' shapes"),
        Line("work per element", per_element, "FLOPs", "3 x (2 x weights of all layers + 4 n W per block for attention among n elements)"),
        Line("steps", steps, "", "events x passes x elements per event / (elements of a worker's step x workers)"),
        Line("computing per step", compute, "s", "work per element x elements of a worker's step / (peak x efficiency)"),
        Line(
            "network per step and worker",
            volume / _GB,
            "GB",
            f"{rounds:.0f} x 4 N (workers - 1) / workers bytes (ZeRO-{target.zero_stage})",
        ),
        Line("network time per step", network, "s", "that / the network's rate; counted as if nothing overlapped"),
        Line("step", step, "s", "computing + network"),
        Line("time", hours, "h", "steps x step, without evaluations and checkpoints"),
        Line("accelerator hours", hours * target.workers, "h", "time x workers"),
        Line("total work", per_element * total, "FLOPs", "work per element x all elements"),
        *(Line(f"memory per worker, ZeRO-{stage}", size / _GB, "GB", _MEMORY_FORMULA) for stage, size in memory.items()),
        Line("shards", shards, "", f"events / {target.shard_events}"),
        Line("data", target.events * target.event_bytes / _GB, "GB", f"events x {target.event_bytes:,.0f} bytes"),
        Line("size of a shard", min(target.events, target.shard_events) * target.event_bytes / 1e6, "MB", "events of a shard x bytes"),
        Line("read rate of all workers", rate / 1e6, "MB/s", "events of a step x bytes / step"),
    ]
    return TrainingPlan(target, accelerator, tuple(lines), memory)


_MEMORY_FORMULA = "weights 4 N, gradients 4 N, optimizer 12 N (shared out from stage 3, 2, 1 on) + activations of a worker's step"


def _state(parameters: int, stage: int, workers: int, *, is_device: bool) -> float:
    """Bytes of the model's and the optimizer's state: on a device as the stage says; of a process on this machine at its measured peak."""
    if not is_device:
        return PROCESS + state_bytes(parameters, zero_stage=stage, num_workers=workers)
    shares = [1 / workers if stage >= first else 1.0 for first in (3, 2, 1)]
    return FLOAT * parameters * (shares[0] + shares[1] + 3 * shares[2])


def event_lengths(mean: float) -> list[int]:
    """Lengths of 101 events about a mean, spread as a mix of simulated processes is: attention costs their squares."""
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.005, 0.995, 101)).numpy()
    drawn = np.exp(_SPREAD * quantiles)
    return np.maximum(1, np.rint(mean * drawn / drawn.mean())).astype(int).tolist()
