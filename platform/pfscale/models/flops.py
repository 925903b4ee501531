"""Floating-point operations of a model, by formula, and the rate at which a device multiplies matrices: together the share reached."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from pfscale.models.mlpf import Mlpf


def forward_flops(model: Mlpf, lengths: Iterable[int]) -> float:
    """Operations (a multiplication and an addition are two) of one forward pass over events of the given lengths.

    Matrix products only: 2 x parameters of every linear layer per element that goes through it, and 4 n^2 W per layer for the attention
    among an event's n elements. Each element goes through one of the two embeddings, which are of the same size.
    """
    lengths = list(lengths)
    return _encoder_flops(model, lengths) + _linear_flops(model.heads, lengths)


def training_flops(model: Mlpf, lengths: Iterable[int]) -> float:
    """Operations of one optimizer step: the backward pass costs twice the forward pass; what is recomputed is not counted.

    A frozen encoder has no backward pass.
    """
    lengths = list(lengths)
    is_frozen = not any(p.requires_grad for p in model.encoder.parameters())
    return (1.0 if is_frozen else 3.0) * _encoder_flops(model, lengths) + 3.0 * _linear_flops(model.heads, lengths)


def _encoder_flops(model: Mlpf, lengths: Sequence[int]) -> float:
    attention = 4 * len(model.encoder.blocks) * model.config.width * sum(n * n for n in lengths)
    linear = sum(_linear_flops(part, lengths) for part in (model.encoder.embed_cluster, model.encoder.blocks))
    return linear + attention


def _linear_flops(module: nn.Module, lengths: Sequence[int]) -> float:
    """By the layers' shapes, not their weights: a worker of ZeRO-3 holds parts of those."""
    count = sum(layer.in_features * layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))
    return 2.0 * count * sum(lengths)


def measure_matrix_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, *, size: int | None = None, seconds: float = 0.3
) -> float:
    """Operations per second of large matrix products on this device with this process's threads: the best of those in `seconds`.

    Args:
        size: of the square matrices; None: 1024, or 8192 on an accelerator, which smaller ones do not fill.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
