"""Particle Transformer: attention among the constituents of a jet with pairwise features as bias, then class attention.

H. Qu, C. Li, S. Qian, arXiv:2202.03772. For every pair (a, b): ln of deltaR, of kT = min(pt_a, pt_b) deltaR, of
z = min(pt_a, pt_b) / (pt_a + pt_b), and of m^2 = (E_a + E_b)^2 - |p_a + p_b|^2. Shape letters as in `sets`; W width, H heads.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pfscale.config import Config
from pfscale.models.sets import Attention, Output, SetBatch, SetOutputs, Widths, key_bias

# As published: embedding (128, 512, 128), pair embedding (64, 64, 64), 8 blocks, 2 class blocks, 8 heads, dropout in the blocks.
PUBLISHED = {"width": 128, "num_layers": 8, "num_class_layers": 2, "num_heads": 8, "pair_width": 64, "num_pair_layers": 3, "dropout": 0.1}
SMALL = {"width": 32, "num_layers": 2, "num_class_layers": 1, "num_heads": 4, "pair_width": 8, "num_pair_layers": 1, "dropout": 0.0}
_SIZES = {"small": SMALL, "published": PUBLISHED}
_TINY = 1e-8  # of the arguments of logarithms; GeV and rad
_NUM_PAIR_FEATURES = 4


class ParticleTransformerConfig(Config):
    """Architecture; `size` sets what is not given."""

    kind: Literal["particle_transformer"] = "particle_transformer"
    size: Literal["small", "published"] = Field("small", description="sets all that is not given: for two cores, or as published")
    width: int = Field(0, ge=8, description="width of the residual stream; small 32, published 128")
    num_layers: int = Field(0, ge=1, description="attention blocks among constituents; small 2, published 8")
    num_class_layers: int = Field(0, ge=1, description="class attention blocks; small 1, published 2")
    num_heads: int = Field(0, ge=1, description="attention heads; small 4, published 8")
    pair_width: int = Field(0, ge=1, description="width of the layers on pairwise features; small 8, published 64")
    num_pair_layers: int = Field(0, ge=1, description="layers on pairwise features before the last; small 1, published 3")
    dropout: float = Field(-1.0, ge=0, lt=1, description="dropout in the blocks among constituents; small 0, published 0.1")

    @model_validator(mode="before")
    @classmethod
    def _by_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**_SIZES.get(str(values.get("size", "small")), SMALL), **values}

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ParticleTransformerConfig:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        return self


class ParticleTransformer(nn.Module):
    """Constituents -> outputs per jet (from the class token) and per constituent (from the last block)."""

    def __init__(self, config: ParticleTransformerConfig, widths: Widths) -> None:
        super().__init__()
        width = config.width
        self.embed = _embedding(widths.inputs, width)
        self.embed_pairs = _pair_embedding(config)
        self.blocks = nn.ModuleList(_Block(width, config.num_heads, config.dropout) for _ in range(config.num_layers))
        self.class_blocks = nn.ModuleList(_Block(width, config.num_heads, 0.0) for _ in range(config.num_class_layers))
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.of_set = Output(width, widths.of_set)
        self.norm_constituents = nn.LayerNorm(width) if widths.of_constituent else nn.Identity()
        self.of_constituent = Output(width, widths.of_constituent)

    def forward(self, batch: SetBatch) -> SetOutputs:
        x_BNW = self.embed(batch.features_BNF) * batch.mask_BN[..., None]
        bias_BHNN = key_bias(batch.mask_BN) + self.embed_pairs(pair_features(batch.momenta_BN4)).permute(0, 3, 1, 2)
        for block in self.blocks:
            x_BNW = block(x_BNW, x_BNW, bias_BHNN)
        token_B1W = self.class_token.expand(len(x_BNW), -1, -1)
        bias_B11N = key_bias(nn.functional.pad(batch.mask_BN, (1, 0), value=True))
        for block in self.class_blocks:
            token_B1W = block(token_B1W, torch.cat([token_B1W, x_BNW], 1), bias_B11N)
        return SetOutputs(self.of_set(self.norm(token_B1W[:, 0])), self.of_constituent(self.norm_constituents(x_BNW)))


class _Block(nn.Module):
    """Norms before and after the attention and inside the feed-forward layer, learned residual weights, as published."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_attended = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, dropout)
        self.head_scale = nn.Parameter(torch.ones(width))
        wide = 4 * width
        layers = (nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(wide), nn.Linear(wide, width))
        self.feedforward = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.residual_scale = nn.Parameter(torch.ones(width))

    def forward(self, queries_BMW: Tensor, keys_BNW: Tensor, bias_BHMN: Tensor) -> Tensor:
        is_self = queries_BMW is keys_BNW
        keys_BNW = self.norm_in(keys_BNW)
        attended = self.attention(keys_BNW if is_self else keys_BNW[:, : queries_BMW.shape[1]], keys_BNW, bias_BHMN)
        x_BMW = queries_BMW + self.dropout(self.norm_attended(attended * self.head_scale))
        return self.residual_scale * x_BMW + self.dropout(self.feedforward(x_BMW))


def pair_features(momenta_BN4: Tensor) -> Tensor:
    """(B, N, N, 4): ln deltaR, ln kT, ln z, ln m^2 of every pair; symmetric."""
    px, py, pz, _ = momenta_BN4.unbind(-1)
    pt = torch.hypot(px, py)
    eta, phi = torch.asinh(pz / pt.clamp_min(_TINY)), torch.atan2(py, px)
    delta_phi = (phi[:, :, None] - phi[:, None, :] + math.pi) % (2 * math.pi) - math.pi
    delta_r = torch.hypot(eta[:, :, None] - eta[:, None, :], delta_phi)
    smaller = torch.minimum(pt[:, :, None], pt[:, None, :])
    total = (momenta_BN4[:, :, None] + momenta_BN4[:, None, :]).square()
    mass2 = total[..., 3] - total[..., :3].sum(-1)
    z = smaller / (pt[:, :, None] + pt[:, None, :]).clamp_min(_TINY)
    return torch.stack([delta_r, smaller * delta_r, z, mass2], -1).clamp_min(_TINY).log()


def _embedding(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(),
        nn.LayerNorm(4 * width), nn.Linear(4 * width, width), nn.GELU(),
    )  # fmt: skip


def _pair_embedding(config: ParticleTransformerConfig) -> nn.Sequential:
    layers: list[nn.Module] = [_PairNorm()]
    inputs = _NUM_PAIR_FEATURES
    for _ in range(config.num_pair_layers):
        layers += [nn.Linear(inputs, config.pair_width), nn.GELU()]
        inputs = config.pair_width
    return nn.Sequential(*layers, nn.Linear(inputs, config.num_heads))


class _PairNorm(nn.Module):
    """Brings the logarithms to about unit width; constants, where the published network learns them by batch normalisation."""

    def forward(self, pairs_BNN4: Tensor) -> Tensor:
        return pairs_BNN4 * 0.25 + 0.5
