"""Attention among the elements of each event, for events of any length without padding: one interface, one way to compute it per device.

Shape letters: T elements of all events, W width, H heads, D width of a head.
"""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from pfscale.models.batch import Batch


class SelfAttention(nn.Module):
    """Multi-head self-attention; an element sees those of its own event only."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_TW: Tensor, batch: Batch) -> Tensor:
        qkv_T3HD = self.qkv(x_TW).unflatten(-1, (3, self.num_heads, -1))
        return self.out(attend(qkv_T3HD, batch).flatten(-2))


def attend(qkv_T3HD: Tensor, batch: Batch) -> Tensor:
    """Softmax attention within each event, (T, H, D).

    On accelerators with variable-length flash attention all events are one call. Elsewhere every run of neighbouring events of the same
    length is one call on views of the input: nothing is padded, masked or copied. A graph that is traced gets a mask.
    """
    if batch.event_T is not None:
        return attend_masked(qkv_T3HD, batch.event_T)
    if has_varlen(qkv_T3HD):
        return attend_varlen(qkv_T3HD, batch)
    return attend_by_length(qkv_T3HD, batch)


def attend_by_length(qkv_T3HD: Tensor, batch: Batch) -> Tensor:
    """`attend` with one call of scaled dot-product attention per run of events of equal length; any device, any dtype."""
    runs = [(length, len(list(run))) for length, run in itertools.groupby(batch.lengths) if length > 0]
    if not runs:
        return qkv_T3HD[:, 0]
    parts = []
    for (length, count), part in zip(runs, qkv_T3HD.split([length * count for length, count in runs]), strict=True):
        q, k, v = part.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4).unbind(0)  # (count, H, length, D) each
        parts.append(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def attend_varlen(qkv_T3HD: Tensor, batch: Batch) -> Tensor:
    """`attend` with torch's variable-length flash attention (half precision on an accelerator). Not run on an accelerator so far."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv_T3HD.unbind(1)
    longest = max(batch.lengths, default=0)
    found: Tensor = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), batch.offsets_E1, batch.offsets_E1, longest, longest)  # type: ignore[assignment]
    return found


def attend_masked(qkv_T3HD: Tensor, event_T: Tensor) -> Tensor:
    """`attend` with a mask of equal `event_T`, in operations that any number of elements goes through, none and one included.

    Head after head: at 5,000 elements and 16 heads the weights of all heads at once would take 1.6 GB, and more time.
    """
    mask_TT = torch.where(event_T[:, None] == event_T[None, :], 0.0, -torch.inf)
    scale = qkv_T3HD.shape[-1] ** -0.5
    q_HTD, k_HTD, v_HTD = qkv_T3HD.permute(1, 2, 0, 3).unbind(0)
    heads = zip(q_HTD.unbind(0), k_HTD.unbind(0), v_HTD.unbind(0), strict=True)
    return torch.stack([((q * scale) @ k.T + mask_TT).softmax(-1) @ v for q, k, v in heads], 1)


def has_varlen(qkv_T3HD: Tensor) -> bool:
    """Whether variable-length flash attention can take this input: where it lives, its dtype, the width of its heads."""
    if not qkv_T3HD.is_cuda or qkv_T3HD.dtype not in (torch.float16, torch.bfloat16) or not len(qkv_T3HD):
        return False
    return qkv_T3HD.shape[-1] % 8 == 0 and _device_has_varlen(qkv_T3HD.device.index or 0)


@functools.cache
def _device_has_varlen(device: int) -> bool:
    """Flash attention needs compute capability 8.0, and a torch that has the call (since 2.10)."""
    try:
        import torch.nn.attention.varlen
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
