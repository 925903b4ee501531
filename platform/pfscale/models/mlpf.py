"""MLPF: a transformer encoder over tracks and clusters with output heads per element.

Shape letters: T elements of all events of a batch, F features, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pfscale.config import Config, runtime
from pfscale.errors import ConfigError
from pfscale.models.attention import SelfAttention
from pfscale.models.batch import Batch
from pfscale.models.normalisation import Standardise
from pfscale.shards.ragged import NUM_FEATURES
from pfscale.shards.schema import CLASSES

NUM_PARTICLE_CLASSES = len(CLASSES) - 1

# size -> (width, num_layers, num_heads). About (12 num_layers + 6) width^2 parameters: 0.17, 0.7, 2.8, 8, 20 and 53 million.
# Width doubles while it is small and the depth stays at three layers, as in the published MLPF (size 3); then both grow, heads are 32 wide.
SIZES = {1: (64, 3, 4), 2: (128, 3, 8), 3: (256, 3, 16), 4: (384, 4, 12), 5: (512, 6, 16), 6: (768, 7, 24)}
_SIZED = ("width", "num_layers", "num_heads")


class MlpfConfig(Config):
    """Architecture of the encoder and its heads."""

    size: int = runtime(1, ge=1, le=len(SIZES), description="the dial: sets width, num_layers and num_heads where they are not given")
    width: int = Field(0, ge=8, description="width of the residual stream, and so of the latents; by size 64 128 256 384 512 768")
    num_layers: int = Field(0, ge=1, description="attention blocks; by size 3 3 3 4 6 7")
    num_heads: int = Field(0, ge=1, description="attention heads; by size 4 8 16 12 16 24")
    feedforward: int = Field(4, ge=1, description="width of the feed-forward layer in units of `width`")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the blocks")

    @model_validator(mode="before")
    @classmethod
    def _by_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = str(values.get("size", 1))  # a number may come as text, from a command line
        if not size.isdecimal() or int(size) not in SIZES:
            return {**values, **dict.fromkeys(_SIZED, 8)}  # the size itself is what will be complained about
        return {**dict(zip(_SIZED, SIZES[int(size)], strict=True)), **values}

    @model_validator(mode="after")
    def _heads_divide_width(self) -> MlpfConfig:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        return self


_LATENT_HEADS = {"identification": ("class",), "regression": ("momentum",), "concatenation": ("class", "momentum")}


class LatentConfig(Config):
    """Which latents of a model are meant."""

    layer: int = Field(-1, description="after how many blocks: 0 the embedding, 1 the first block ...; -1: after the last, normalised")
    part: Literal["encoder", "identification", "regression", "concatenation"] = Field(
        "encoder", description="the encoder's stream; or what the hidden layer of the class head, the momentum head or of both makes of it"
    )

    @model_validator(mode="after")
    def _heads_follow_the_last_layer(self) -> LatentConfig:
        if self.part != "encoder" and self.layer != -1:
            raise ValueError(f"part {self.part} is made of the last layer: leave layer at -1 (got {self.layer})")
        return self


@dataclass(frozen=True)
class MlpfOutputs:
    """Raw outputs per element.

    Attributes:
        presence_T: logit, the element carries a particle.
        class_TC: logits of the particle classes CLASSES[1:], given that there is a particle.
        charge_T3: logits of charge -1, 0, +1.
        log_pt_T: log(pt / element's pt).
        eta_T: eta - element's eta.
        phi_T2: (sin, cos) of phi, normalised.
        mass_T: GeV, positive; energy is sqrt(p^2 + mass^2), hence never below |p|.
        latents_TW: the encoder's last residual stream after its norm.
    """

    presence_T: Tensor
    class_TC: Tensor
    charge_T3: Tensor
    log_pt_T: Tensor
    eta_T: Tensor
    phi_T2: Tensor
    mass_T: Tensor
    latents_TW: Tensor


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: MlpfConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.num_heads)
        self.norm_feedforward = nn.LayerNorm(config.width)
        hidden = config.feedforward * config.width
        self.feedforward = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TW: Tensor, batch: Batch) -> Tensor:
        x_TW = x_TW + self.dropout(self.attention(self.norm_attention(x_TW), batch))
        return x_TW + self.dropout(self.feedforward(self.norm_feedforward(x_TW)))


class Encoder(nn.Module):
    """Elements -> latents: standardisation, an embedding per element type, attention blocks.

    Attributes:
        recomputes: whether blocks keep only their inputs for the backward pass, and compute the rest again (activation checkpointing):
            less memory, a third more time, the same numbers.
        block_dtype: what the blocks compute in; None: as the weights, float32. Embedding, norms, heads and losses are always float32.
    """

    def __init__(self, config: MlpfConfig) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.embed_cluster = _embedding(config.width)
        self.embed_track = _embedding(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.recomputes = False
        self.block_dtype: torch.dtype | None = None

    def forward(self, batch: Batch, num_blocks: int | None = None) -> Tensor:
        """The normalised stream after the last block, or the stream as it is after the first `num_blocks`, (T, W)."""
        x_TW = self._embed(batch)
        with torch.autocast(x_TW.device.type, self.block_dtype, enabled=self.block_dtype is not None):
            for block in self.blocks[:num_blocks]:
                if self.recomputes and torch.is_grad_enabled():
                    x_TW = checkpoint(block, x_TW, batch, use_reentrant=False)
                else:
                    x_TW = block(x_TW, batch)
        x_TW = x_TW.float()
        return self.norm(x_TW) if num_blocks is None else x_TW

    def _embed(self, batch: Batch) -> Tensor:
        values, missing = self.standardise(batch.features_TF, batch.is_track_T)
        inputs = torch.cat([values, missing], -1)
        if batch.event_T is not None:  # traced: how many tracks there are is not known
            return torch.where(batch.is_track_T[:, None], self.embed_track(inputs), self.embed_cluster(inputs))
        tracks, clusters = batch.is_track_T.nonzero()[:, 0], (~batch.is_track_T).nonzero()[:, 0]
        embedded = torch.cat([self.embed_track(inputs[tracks]), self.embed_cluster(inputs[clusters])])
        return embedded.index_select(0, torch.cat([tracks, clusters]).argsort())


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

    def encode(self, batch: Batch, config: LatentConfig | None = None) -> Tensor:
        """The latents per element, (T, W), or (T, 2 W) for `concatenation`.

        Raises:
            ConfigError: the model has fewer layers than asked for.
        """
        config = config or LatentConfig()
        self.require_layer(config)
        latents_TW = self.encoder(batch, None if config.layer == -1 else config.layer)
        if config.part == "encoder":
            return latents_TW
        heads = [head for name, head in self.heads.items() if name in _LATENT_HEADS[config.part] and isinstance(head, nn.Sequential)]
        return torch.cat([head[:-1](latents_TW) for head in heads], -1)

    def require_layer(self, config: LatentConfig) -> None:
        """Checks that the model has the layer whose latents are meant.

        Raises:
            ConfigError: it has fewer.
        """
        count = len(self.encoder.blocks)
        if not -1 <= config.layer <= count:
            raise ConfigError(f"latents after layer {config.layer} of a model with {count}", hint=f"choose one of -1 to {count}")

    def latent_width(self, config: LatentConfig) -> int:
        """Width of the latents that `encode` gives."""
        return self.config.width * (2 if config.part == "concatenation" else 1)

    def forward(self, batch: Batch) -> MlpfOutputs:
        latents_TW = self.encoder(batch)
        momentum = self.heads["momentum"](latents_TW)
        element_phi_T2 = batch.features_TF[:, 2:4]
        return MlpfOutputs(
            presence_T=self.heads["presence"](latents_TW)[:, 0],
            class_TC=self.heads["class"](latents_TW),
            charge_T3=self.heads["charge"](latents_TW),
            log_pt_T=_soft_bound(momentum[:, 0], 5.0),
            eta_T=_soft_bound(momentum[:, 1], 5.0),
            phi_T2=nnf.normalize(element_phi_T2 + momentum[:, 2:4], dim=-1, eps=1e-6),
            mass_T=nnf.softplus(momentum[:, 4] - 2.0),
            latents_TW=latents_TW,
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
