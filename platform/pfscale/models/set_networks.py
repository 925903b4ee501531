"""Small networks on sets: one linear layer on pooled inputs, weights per candidate as in DeepMET, a set transformer.

Shape letters as in `sets`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pfscale.config import Config
from pfscale.models.sets import Attention, Output, SetBatch, SetOutputs, Widths, key_bias

Pooling = Literal["sum", "mean", "pt"]
TYPICAL_COUNT = 32.0  # constituents: a sum is counted in units of this many, so that all poolings are of order one


class LinearConfig(Config):
    """One linear layer."""

    kind: Literal["linear"] = "linear"
    pooling: Pooling = Field("pt", description="how constituents are joined before the layer: sum, mean, or mean weighted by pt")


class CandidateWeightsConfig(Config):
    """The same layers for every candidate, then its weights (DeepMET: Y. Feng, CERN-THESIS-2020-331; CMS, arXiv:2509.12012)."""

    kind: Literal["candidate_weights"] = "candidate_weights"
    width: int = Field(64, ge=1, description="width of the hidden layers")
    num_layers: int = Field(3, ge=1, description="hidden layers")


class SetTransformerConfig(Config):
    """Attention among constituents without positions (arXiv:1810.00825)."""

    kind: Literal["set_transformer"] = "set_transformer"
    width: int = Field(32, ge=8, description="width of the residual stream")
    num_layers: int = Field(2, ge=1, description="attention blocks")
    num_heads: int = Field(4, ge=1, description="attention heads")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the blocks")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SetTransformerConfig:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        return self


class PooledLinear(nn.Module):
    """Outputs per constituent: the layer on its inputs; outputs per set: the layer on the pooled inputs."""

    def __init__(self, config: LinearConfig, widths: Widths) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.of_set = Output(widths.inputs, widths.of_set)
        self.of_constituent = Output(widths.inputs, widths.of_constituent)

    def forward(self, batch: SetBatch) -> SetOutputs:
        return SetOutputs(self.of_set(pooled(batch.features_BNF, batch, self.pooling)), self.of_constituent(batch.features_BNF))


class CandidateWeights(nn.Module):
    """No constituent sees another; outputs per set are of the mean."""

    def __init__(self, config: CandidateWeightsConfig, widths: Widths) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = widths.inputs
        for _ in range(config.num_layers):
            layers += [nn.Linear(inputs, config.width), nn.GELU()]
            inputs = config.width
        self.hidden = nn.Sequential(*layers)
        self.of_set, self.of_constituent = Output(inputs, widths.of_set), Output(inputs, widths.of_constituent)

    def forward(self, batch: SetBatch) -> SetOutputs:
        x_BNW = self.hidden(batch.features_BNF)
        return SetOutputs(self.of_set(pooled(x_BNW, batch, "mean")), self.of_constituent(x_BNW))


class SetTransformer(nn.Module):
    """Pre-norm attention blocks; outputs per set are of the mean over constituents."""

    def __init__(self, config: SetTransformerConfig, widths: Widths) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(widths.inputs, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.of_set, self.of_constituent = Output(config.width, widths.of_set), Output(config.width, widths.of_constituent)

    def forward(self, batch: SetBatch) -> SetOutputs:
        x_BNW, bias = self.embed(batch.features_BNF), key_bias(batch.mask_BN)
        for block in self.blocks:
            x_BNW = block(x_BNW, bias)
        x_BNW = self.norm(x_BNW)
        return SetOutputs(self.of_set(pooled(x_BNW, batch, "mean")), self.of_constituent(x_BNW))


class _Block(nn.Module):
    def __init__(self, config: SetTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, config.num_heads, config.dropout)
        self.feedforward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BNW: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm_attention(x_BNW)
        x_BNW = x_BNW + self.dropout(self.attention(normed, normed, bias))
        return x_BNW + self.dropout(self.feedforward(self.norm_feedforward(x_BNW)))


def pooled(x_BNW: Tensor, batch: SetBatch, pooling: Pooling) -> Tensor:
    """(B, W); zero of a set without constituents."""
    weight_BN = batch.mask_BN.to(x_BNW.dtype)
    if pooling == "pt":
        weight_BN = weight_BN * torch.hypot(batch.momenta_BN4[..., 0], batch.momenta_BN4[..., 1])
    total = torch.einsum("bn,bnw->bw", weight_BN, x_BNW)
    return total / TYPICAL_COUNT if pooling == "sum" else total / weight_BN.sum(-1, keepdim=True).clamp_min(1e-6)
