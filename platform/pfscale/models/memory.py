"""Memory that a training needs, by formula: the state of the model and its optimizer, and the activations of what a worker takes at once.

The formulas count what torch keeps for the backward pass (tested against it) and what the engines hold at their peak (measured: 1 to 3
workers, CPU).
"""

from __future__ import annotations

import torch

from pfscale.models.mlpf import Mlpf, MlpfConfig, count_parameters

FLOAT = 4  # bytes; weights, gradients and optimizer state are float32 whatever the blocks compute in
PROCESS = 1.0e9  # bytes of a worker before it has a model: torch, DeepSpeed, MLflow, Ray
WINDOW = 390.0  # bytes per element of a window of events, while one is used (97 bytes) and the next one decoded; 370 measured

# ZeRO stage -> (copies of all weights that every worker holds at its peak, copies that all workers hold together); None: plain torch.
# Peaks of the resident memory with 20 million parameters, 1 2 3 workers: torch 6.0 6.9 6.9 copies, ZeRO 0 6.8 6.9 6.8, 1 10.9 7.6 8.2,
# 2 10.8 7.9 8.2, 3 12.9 10.0 10.0.
_COPIES = {
    None: (7.0, 0.0),  # weights, gradients and their sum over workers, two moments, the best weights, one in the optimizer's hands
    0: (7.0, 0.0),
    1: (6.5, 4.5),  # whole: weights, gradients, their buffers, the best; by parts: weights and gradients of the optimizer, moments, work
    2: (6.5, 4.5),
    3: (8.5, 4.5),  # the weights by parts as well, but whole and in buffers while they are used
}


def count_from(config: MlpfConfig) -> int:
    """Parameters of the model that a config builds, without building it."""
    with torch.device("meta"):
        return count_parameters(Mlpf(config))


def state_bytes(num_parameters: int, *, zero_stage: int | None, num_workers: int, has_average: bool = False) -> float:
    """Weights, gradients, optimizer and best (and averaged) weights of one worker, at their peak.

    Args:
        zero_stage: of DeepSpeed; None: plain torch.
    """
    whole, shared = _COPIES[zero_stage]
    return FLOAT * num_parameters * (whole + has_average + shared / num_workers)


def activation_bytes(config: MlpfConfig, num_elements: int, *, precision: str = "fp32", recomputes: bool = False) -> float:
    """What is kept of one pass over `num_elements` elements until its backward pass, and the gradients that are under way then.

    In units of a float per element and width W: 9 + 2 x feedforward per block (5.8 + feedforward where it computes in bf16; 2 more with
    dropout), 12 for embeddings and heads, and 90 floats per element for inputs, targets and losses. With recomputation a block keeps its
    input only, and one block at a time keeps all.
    """
    block = 5.8 + config.feedforward if precision == "bf16" else 9.0 + 2 * config.feedforward
    block += 2.0 * (config.dropout > 0)
    blocks = config.num_layers + block if recomputes else config.num_layers * block
    gradients = 2.0 * config.feedforward
    return FLOAT * num_elements * (config.width * (blocks + 12.0 + gradients) + 90.0)


def checkpoint_bytes(num_parameters: int, *, has_average: bool = False) -> float:
    """A checkpoint on disk: weights, the optimizer's own and its two moments, the best (and averaged) weights."""
    return FLOAT * num_parameters * (5.0 + has_average)
