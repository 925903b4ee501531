"""Padded, masked tensors of a few events of similar length.

Shape letters: B events, N elements (padded), F features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfscale.shards.ragged import RaggedEvents


@dataclass(frozen=True)
class Batch:
    """Elements of B events, padded to the longest of them.

    Attributes:
        features_BNF: raw units (`pfscale.shards.ragged.RaggedEvents.features`), NaN where missing, 0 in the padding.
        is_track_BN: bool.
        mask_BN: bool, True for real elements.
        targets: field -> (B, N) float32; empty without truth.
        rows_B: position of each event in the RaggedEvents it came from.
    """

    features_BNF: Tensor
    is_track_BN: Tensor
    mask_BN: Tensor
    targets: dict[str, Tensor]
    rows_B: Tensor

    @property
    def num_elements(self) -> int:
        return int(self.mask_BN.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)
        return Batch(**moved)


def collate(events: RaggedEvents, rows: NDArray[np.integer]) -> Batch:
    """The batch of the given events (`rows` index into `events`), padded to the longest of them (at least one element)."""
    lengths = events.lengths[rows]
    width = max(int(lengths.max(initial=1)), 1)
    mask = np.arange(width) < lengths[:, None]
    source = (events.offsets[rows][:, None] + np.arange(width))[mask]
    features = np.zeros((*mask.shape, events.features.shape[1]), np.float32)
    features[mask] = events.features[source]
    is_track = np.zeros(mask.shape, bool)
    is_track[mask] = events.is_track[source]
    targets = {}
    for name, values in events.targets.items():
        padded = np.zeros(mask.shape, np.float32)
        padded[mask] = values[source]
        targets[name] = torch.from_numpy(padded)
    return Batch(
        torch.from_numpy(features),
        torch.from_numpy(is_track),
        torch.from_numpy(mask),
        targets,
        torch.from_numpy(np.asarray(rows, np.int64)),
    )
