"""Sets of constituents, padded to the longest of a batch: the candidates of a jet or of an event, the jets of an event.

Shape letters: B sets, N constituents of the longest, F features, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SetBatch:
    """Constituents of B sets.

    Attributes:
        features_BNF: standardised inputs; 0 where there is no constituent.
        momenta_BN4: (px, py, pz, energy) in GeV; 0 where there is none.
        mask_BN: bool, whether there is one.
    """

    features_BNF: Tensor
    momenta_BN4: Tensor
    mask_BN: Tensor


@dataclass(frozen=True)
class SetOutputs:
    """What a network says of every set, and of every constituent (of padding: anything).

    Attributes:
        of_set_BO: (B, O); O may be 0.
        of_constituent_BNO: (B, N, O); O may be 0.
    """

    of_set_BO: Tensor
    of_constituent_BNO: Tensor


@dataclass(frozen=True)
class Widths:
    """Sizes of a network's ends.

    Attributes:
        inputs: features of a constituent.
        of_set, of_constituent: outputs; 0: none.
    """

    inputs: int
    of_set: int
    of_constituent: int


class Attention(nn.Module):
    """Multi-head attention with masked keys and, where given, something added to the logits."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries_BMW: Tensor, keys_BNW: Tensor, bias_BHMN: Tensor) -> Tensor:
        """(B, M, W); `bias_BHMN` broadcasts, -inf where a key is none. A row without any key must not occur."""
        q_BHMD = self.query(queries_BMW).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_BHND, v_BHND = self.key_value(keys_BNW).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(q_BHMD, k_BHND, v_BHND, attn_mask=bias_BHMN, dropout_p=dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return out


class Output(nn.Module):
    """A linear layer; of no outputs, nothing."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs) if outputs else None

    def start_at_zero(self) -> None:
        """Sets all weights to zero."""
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x[..., :0] if self.linear is None else self.linear(x)
        return found


def key_bias(mask_BN: Tensor) -> Tensor:
    """(B, 1, 1, N): 0 at constituents, -inf at padding. A set without constituents attends to its padding, which is zero."""
    is_open = mask_BN | ~mask_BN.any(-1, keepdim=True)
    return torch.zeros_like(is_open, dtype=torch.float32).masked_fill(~is_open, -torch.inf)[:, None, None, :]
