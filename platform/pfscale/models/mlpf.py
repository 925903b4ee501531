"""MLPF: a transformer encoder over tracks and clusters with output heads per element.

Shape letters: B events, N elements (padded), F features, W width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from pydantic import Field, model_validator
from torch import Tensor, nn

from pfscale.config import Config
from pfscale.models.batch import Batch
from pfscale.models.normalisation import Standardise
from pfscale.shards.ragged import NUM_FEATURES
from pfscale.shards.schema import CLASSES

NUM_PARTICLE_CLASSES = len(CLASSES) - 1


class MlpfConfig(Config):
    """Architecture of the encoder and its heads."""

    width: int = Field(64, ge=8, description="width of the residual stream, and so of the latents")
    num_layers: int = Field(3, ge=1, description="attention blocks")
    num_heads: int = Field(4, ge=1, description="attention heads")
    feedforward: int = Field(4, ge=1, description="width of the feed-forward layer in units of `width`")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the blocks")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> MlpfConfig:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        return self


@dataclass(frozen=True)
class MlpfOutputs:
    """Raw outputs per element.

    Attributes:
        presence_BN: logit, the element carries a particle.
        class_BNC: logits of the particle classes CLASSES[1:], given that there is a particle.
        charge_BN3: logits of charge -1, 0, +1.
        log_pt_BN: log(pt / element's pt).
        eta_BN: eta - element's eta.
        phi_BN2: (sin, cos) of phi, normalised.
        mass_BN: GeV, positive; energy is sqrt(p^2 + mass^2), hence never below |p|.
        latents_BNW: the encoder's last residual stream after its norm.
    """

    presence_BN: Tensor
    class_BNC: Tensor
    charge_BN3: Tensor
    log_pt_BN: Tensor
    eta_BN: Tensor
    phi_BN2: Tensor
    mass_BN: Tensor
    latents_BNW: Tensor


class Attention(nn.Module):
    """Self-attention among an event's elements; keys in the padding are masked out."""

    def __init__(self, config: MlpfConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BNW: Tensor, bias_B11N: Tensor) -> Tensor:
        B, N, W = x_BNW.shape
        q, k, v = self.qkv(x_BNW).view(B, N, 3, self.num_heads, W // self.num_heads).permute(2, 0, 3, 1, 4)
        y_BHND = nnf.scaled_dot_product_attention(q, k, v, attn_mask=bias_B11N)
        return self.out(y_BHND.transpose(1, 2).reshape(B, N, W))


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: MlpfConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm_feedforward = nn.LayerNorm(config.width)
        hidden = config.feedforward * config.width
        self.feedforward = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BNW: Tensor, bias_B11N: Tensor) -> Tensor:
        x_BNW = x_BNW + self.dropout(self.attention(self.norm_attention(x_BNW), bias_B11N))
        return x_BNW + self.dropout(self.feedforward(self.norm_feedforward(x_BNW)))


class Encoder(nn.Module):
    """Elements -> latents: standardisation, an embedding per element type, attention blocks."""

    def __init__(self, config: MlpfConfig) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.embed_cluster = _embedding(config.width)
        self.embed_track = _embedding(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features_BNF: Tensor, is_track_BN: Tensor, mask_BN: Tensor) -> Tensor:
        values, missing = self.standardise(features_BNF, is_track_BN)
        inputs = torch.cat([values, missing], -1)
        x_BNW = torch.where(is_track_BN[..., None], self.embed_track(inputs), self.embed_cluster(inputs))
        # An event without elements would have only masked keys, and so NaN: its padding may attend to itself.
        keys_BN = mask_BN | ~mask_BN.any(-1, keepdim=True)
        bias_B11N = torch.zeros_like(keys_BN, dtype=x_BNW.dtype).masked_fill(~keys_BN, float("-inf"))[:, None, None, :]
        for block in self.blocks:
            x_BNW = block(x_BNW, bias_B11N)
        return self.norm(x_BNW)


class Mlpf(nn.Module):
    """The particle-flow model: encoder and heads."""

    def __init__(self, config: MlpfConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.heads = nn.ModuleDict(
            {
                "presence": _head(config.width, 1),
                "class": _head(config.width, NUM_PARTICLE_CLASSES),
                "charge": _head(config.width, 3),
                "momentum": _head(config.width, 5, start_at_zero=True),
            }
        )

    def encode(self, batch: Batch) -> Tensor:
        """The latents per element, (B, N, W); those in the padding are meaningless."""
        return self.encoder(batch.features_BNF, batch.is_track_BN, batch.mask_BN)

    def forward(self, features_BNF: Tensor, is_track_BN: Tensor, mask_BN: Tensor) -> MlpfOutputs:
        latents_BNW = self.encoder(features_BNF, is_track_BN, mask_BN)
        momentum = self.heads["momentum"](latents_BNW)
        element_phi_BN2 = features_BNF[..., 2:4]
        return MlpfOutputs(
            presence_BN=self.heads["presence"](latents_BNW)[..., 0],
            class_BNC=self.heads["class"](latents_BNW),
            charge_BN3=self.heads["charge"](latents_BNW),
            log_pt_BN=_soft_bound(momentum[..., 0], 5.0),
            eta_BN=_soft_bound(momentum[..., 1], 5.0),
            phi_BN2=nnf.normalize(element_phi_BN2 + momentum[..., 2:4], dim=-1, eps=1e-6),
            mass_BN=nnf.softplus(momentum[..., 4] - 2.0),
            latents_BNW=latents_BNW,
        )


def _embedding(width: int) -> nn.Sequential:
    first = nn.Linear(2 * NUM_FEATURES, width)
    # A flag that never was up in training keeps its weights; at 0, a feature that only other data lack does no harm there.
    nn.init.zeros_(first.weight[:, NUM_FEATURES:])
    return nn.Sequential(first, nn.GELU(), nn.Linear(width, width))


def _head(width: int, outputs: int, *, start_at_zero: bool = False) -> nn.Sequential:
    last = nn.Linear(width, outputs)
    if start_at_zero:  # the element's own momentum is the first guess
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), last)


def _soft_bound(x: Tensor, limit: float) -> Tensor:
    """x for |x| << limit, smoothly bounded by it: exponentials of it stay finite."""
    return limit * torch.tanh(x / limit)


def count_parameters(model: nn.Module) -> int:
    """Number of values in all parameters."""
    return sum(p.numel() for p in model.parameters())
