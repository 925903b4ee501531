"""Floating-point operations of a model, by formula, and the rate at which a device multiplies matrices: together the share reached."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import nn

from pfscale.models.mlpf import Mlpf


def forward_flops(model: Mlpf, lengths: Iterable[int]) -> float:
    """Operations (a multiplication and an addition are two) of one forward pass over events of the given lengths.

    Matrix products only: 2 x parameters of every linear layer per element that goes through it, and 4 n^2 W per layer for the attention
    among an event's n elements. Each element goes through one of the two embeddings, which are of the same size.
    """
    lengths = list(lengths)
    linear = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    linear -= sum(layer.weight.numel() for layer in model.encoder.embed_track.modules() if isinstance(layer, nn.Linear))
    attention = 4 * len(model.encoder.blocks) * model.config.width * sum(n * n for n in lengths)
    return 2.0 * linear * sum(lengths) + attention


def training_flops(model: Mlpf, lengths: Iterable[int]) -> float:
    """Operations of one optimizer step: the backward pass costs twice the forward pass; what is recomputed is not counted."""
    return 3.0 * forward_flops(model, lengths)


def measure_matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32, *, size: int = 1024, seconds: float = 0.3) -> float:
    """Operations per second of large matrix products on this device with this process's threads: the best of those in `seconds`."""
    a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
