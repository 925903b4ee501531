"""The elements of a few events as one table of tensors, event after event: nothing is padded.

Shape letters: E events, T elements of all events, F features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfscale.models.inputs import require_momenta
from pfscale.shards.ragged import RaggedEvents


@dataclass(frozen=True)
class Batch:
    """Elements of E events, one event after the other; no event and no element is a batch as well.

    Attributes:
        features_TF: raw units (`pfscale.shards.ragged.RaggedEvents.features`), NaN where missing.
        is_track_T: bool.
        lengths: elements of each event, on the host.
        offsets_E1: (E + 1,) int32, the same as running sums on the device; the elements of event i are offsets[i]:offsets[i + 1].
        targets: field -> (T,) float32; empty without truth.
        rows: (E,) position of each event in the RaggedEvents it came from, on the host.
        event_T: event of each element, only where a graph is traced (`traced_batch`); it then stands for lengths and offsets, which a graph
            for any number of elements must not depend on.
    """

    features_TF: Tensor
    is_track_T: Tensor
    lengths: tuple[int, ...]
    offsets_E1: Tensor
    targets: dict[str, Tensor]
    rows: NDArray[np.int64]
    event_T: Tensor | None = None

    @property
    def num_events(self) -> int:
        return len(self.lengths)

    @property
    def num_elements(self) -> int:
        return len(self.features_TF)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                value = {k: v.to(device, non_blocking=True) for k, v in value.items()}
            moved[field.name] = value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        return Batch(**moved)


def collate(events: RaggedEvents, rows: NDArray[np.integer]) -> Batch:
    """The batch of the given events, in that order (`rows` index into `events`).

    Raises:
        InputFileError: the momentum of an element is not finite.
    """
    lengths = events.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    source = np.repeat(events.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    features = events.features[source]
    require_momenta(features, np.repeat(events.uid[rows], lengths), prefix="event uid:")
    return Batch(
        features_TF=torch.from_numpy(features),
        is_track_T=torch.from_numpy(events.is_track[source]),
        lengths=tuple(lengths.tolist()),
        offsets_E1=torch.from_numpy(offsets.astype(np.int32)),
        targets={name: torch.from_numpy(values[source]) for name, values in events.targets.items()},
        rows=rows.astype(np.int64),
    )


def traced_batch(features_TF: Tensor, is_track_T: Tensor, event_T: Tensor) -> Batch:
    """A batch for tracing a graph that takes any number of elements; event_T: (T,) int64, equal for the elements of one event."""
    return Batch(features_TF, is_track_T, (), event_T.new_zeros(1), {}, np.zeros(0, np.int64), event_T)
