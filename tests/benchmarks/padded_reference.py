"""The straightforward MLPF that ours is measured against: the same architecture, events padded to the longest of a batch, keys masked out.

Shape letters: B events, N elements of the longest, F features, W width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from pfscale.models.batch import Batch
from pfscale.models.mlpf import Block, Mlpf, MlpfOutputs
from pfscale.shards.ragged import RaggedEvents
from pfscale.tasks.reconstruction import ReconstructionConfig, loss_terms


class PaddedMlpf(nn.Module):
    """The layers of an `Mlpf`, run on padded tensors: both embeddings, feed-forward, heads and loss also see the padding.

    Args:
        has_mask: whether keys in the padding are masked out; False only where there is none.
    """

    def __init__(self, model: Mlpf, *, has_mask: bool = True) -> None:
        super().__init__()
        self.model, self.has_mask = model, has_mask

    def forward(self, features_BNF: Tensor, is_track_BN: Tensor, mask_BN: Tensor) -> MlpfOutputs:
        encoder = self.model.encoder
        values, missing = encoder.standardise(features_BNF, is_track_BN)
        inputs = torch.cat([values, missing], -1)
        x_BNW = torch.where(is_track_BN[..., None], encoder.embed_track(inputs), encoder.embed_cluster(inputs))
        bias = torch.zeros(mask_BN.shape).masked_fill(~mask_BN, float("-inf"))[:, None, None, :] if self.has_mask else None
        for block in encoder.blocks:
            assert isinstance(block, Block)
            x_BNW = x_BNW + _attention(block, block.norm_attention(x_BNW), bias)
            x_BNW = x_BNW + block.feedforward(block.norm_feedforward(x_BNW))
        latents = encoder.norm(x_BNW).flatten(0, 1)
        heads, momentum = self.model.heads, self.model.heads["momentum"](latents)
        return MlpfOutputs(
            presence_T=heads["presence"](latents)[:, 0],
            class_TC=heads["class"](latents),
            charge_T3=heads["charge"](latents),
            log_pt_T=5 * torch.tanh(momentum[:, 0] / 5),
            eta_T=5 * torch.tanh(momentum[:, 1] / 5),
            phi_T2=nnf.normalize(features_BNF.flatten(0, 1)[:, 2:4] + momentum[:, 2:4], dim=-1, eps=1e-6),
            mass_T=nnf.softplus(momentum[:, 4] - 2.0),
            latents_TW=latents,
        )


def _attention(block: Block, x_BNW: Tensor, bias: Tensor | None) -> Tensor:
    layer = block.attention
    q, k, v = layer.qkv(x_BNW).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return layer.out(nnf.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(-2))


class PaddedBatch:
    """Events padded to the longest of them, with targets that say "none" in the padding."""

    def __init__(self, events: RaggedEvents, rows: NDArray[np.int64]) -> None:
        lengths = events.lengths[rows]
        width = int(lengths.max())
        self.mask = np.arange(width) < lengths[:, None]
        source = (events.offsets[rows][:, None] + np.arange(width))[self.mask]
        self.features = np.zeros((*self.mask.shape, events.features.shape[1]), np.float32)
        self.features[self.mask] = events.features[source]
        self.is_track = np.zeros(self.mask.shape, bool)
        self.is_track[self.mask] = events.is_track[source]
        targets = {}
        for name, values in events.targets.items():
            padded = np.zeros(self.mask.shape, np.float32)
            padded[self.mask] = values[source]
            targets[name] = torch.from_numpy(padded).flatten()
        self.inputs = tuple(torch.from_numpy(x) for x in (self.features, self.is_track, self.mask))
        flat = torch.from_numpy(self.features).flatten(0, 1)
        self.loss_batch = Batch(flat, self.inputs[1].flatten(), (len(flat),), torch.tensor([0, len(flat)]), targets, rows)
        self.num_elements = int(lengths.sum())

    def loss(self, model: PaddedMlpf, task: ReconstructionConfig) -> Tensor:
        """Sum over all loss terms; the padding counts as elements without a particle, which changes the value but not the cost."""
        return torch.stack(list(loss_terms(model(*self.inputs), self.loss_batch, task).values())).sum()
