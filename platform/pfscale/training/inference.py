"""Running a trained model over events, in batches under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from pfscale.models.batch import collate
from pfscale.models.mlpf import LatentConfig, Mlpf
from pfscale.shards.dataset import EventIndex, cut_by_tokens, read_events
from pfscale.shards.ragged import RaggedEvents
from pfscale.tasks.reconstruction import Candidates, ReconstructionConfig, predict

INFERENCE_TOKENS = 16_384


@dataclass(frozen=True)
class Prediction:
    """Candidates of some events, ordered by event and element, and the latents of all their elements.

    Attributes:
        latents: (n, K) float32 in the order of the events' elements; None where not asked for.
    """

    candidates: Candidates
    latents: NDArray[np.float32] | None


def run_model(
    model: Mlpf, events: RaggedEvents, task: ReconstructionConfig, *, with_latents: bool = False, config: LatentConfig | None = None
) -> Prediction:
    """The model's candidates (and latents) for every event; an event's result does not depend on the others.

    Args:
        config: which latents; None: those of the last layer.
    """
    config = config or LatentConfig()
    parts: list[Candidates] = []
    latents = np.zeros((len(events.is_track), model.latent_width(config)), np.float32) if with_latents else None
    model.eval()
    with torch.no_grad():
        for rows in cut_by_tokens(events.lengths, INFERENCE_TOKENS):
            batch = collate(events, rows)
            outputs = model(batch)
            parts.append(predict(outputs, batch, task))
            if latents is not None:
                found = outputs.latents_TW if config == LatentConfig() else model.encode(batch, config)
                latents[events.offsets[rows[0]] : events.offsets[rows[-1] + 1]] = found.numpy()
    return Prediction(_joined(parts), latents)


def run_encoder(model: Mlpf, events: RaggedEvents, config: LatentConfig) -> NDArray[np.float32]:
    """The latents of all elements, (n, K)."""
    latents = np.zeros((len(events.is_track), model.latent_width(config)), np.float32)
    model.eval()
    with torch.no_grad():
        for rows in cut_by_tokens(events.lengths, INFERENCE_TOKENS):
            latents[events.offsets[rows[0]] : events.offsets[rows[-1] + 1]] = model.encode(collate(events, rows), config).numpy()
    return latents


def event_chunks(
    index: EventIndex,
    members: NDArray[np.int64],
    columns: tuple[str, ...],
    *,
    size: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> Iterator[RaggedEvents]:
    """The given events in index order, `size` at a time; `progress` is called with the number of events of each chunk when it is done."""
    members = np.sort(members)
    for first in range(0, len(members), size):
        events = read_events(index, members[first : first + size], columns)
        yield events
        if progress is not None:
            progress(events.num_events)


def _joined(parts: list[Candidates]) -> Candidates:
    """All parts as one; they are sorted by event and element."""
    if not parts:
        return Candidates(**_no_candidates())
    return Candidates(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Candidates)})


def _no_candidates() -> dict[str, NDArray]:
    dtypes = {"event": np.int64, "element_index": np.int64, "is_track": np.bool_, "pdg": np.int32, "charge": np.int8}
    empty: dict[str, NDArray] = {f.name: np.zeros(0, dtypes.get(f.name, np.float32)) for f in fields(Candidates)}
    return {**empty, "scores": np.zeros((0, 6), np.float32)}
