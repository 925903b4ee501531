"""Examples of a downstream task: sets of candidates or jets with what is to be learned of them, and batches of such sets.

Shape letters: B examples, n constituents of all examples, N constituents of the longest example of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfscale.models.sets import SetBatch, SetOutputs
from pfscale.physics.bootstrap import Estimate, EventBootstrap
from pfscale.shards.objects import EventObjects

Constituents = Literal["candidates", "jets"]
_BATCHES_SORTED = 16  # examples of so many batches are sorted by length among each other


@dataclass(frozen=True)
class Examples:
    """What a task learns from.

    Attributes:
        constituents: what the sets are made of.
        event: (B,) row of the example's event in the objects.
        jet: (B,) row of the jet that the example is, -1: it is an event.
        offsets: (B + 1,); constituents of example i are offsets[i]:offsets[i + 1].
        rows: (n,) rows of the constituents in the objects' candidates or jets.
        targets: name -> (B, ...).
        constituent_targets: name -> (n,).
    """

    constituents: Constituents
    event: NDArray[np.int64]
    jet: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    targets: Mapping[str, NDArray]
    constituent_targets: Mapping[str, NDArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.event)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(B,) constituents of each example."""
        return np.diff(self.offsets)

    @property
    def example_of_row(self) -> NDArray[np.int64]:
        """(n,)"""
        return np.repeat(np.arange(len(self)), self.lengths)


@dataclass(frozen=True)
class TargetBatch:
    """What is to be learned of a batch: name -> (B, ...), and name -> (B, N); momenta (B, N, 4) in GeV and mask (B, N) of its sets."""

    of_set: Mapping[str, Tensor]
    of_constituent: Mapping[str, Tensor]
    momenta_BN4: Tensor
    mask_BN: Tensor

    def __len__(self) -> int:
        return len(self.mask_BN)


class DownstreamTask(Protocol):
    """What is learned on candidates and latents; one file in this folder and one line in `pfscale.tasks.downstream`.

    Attributes:
        terms: names of the loss terms.
        of_set, of_constituent: outputs that it needs of a network.
        starts_at_zero: whether outputs of zero are the baseline: a network then begins there.
    """

    terms: tuple[str, ...]
    starts_at_zero: bool
    of_set: int
    of_constituent: int

    def everything(self, objects: EventObjects) -> Examples:
        """All jets or events, without targets: what it can be asked about."""
        ...

    def loss(self, outputs: SetOutputs, targets: TargetBatch) -> Tensor:
        """(terms,) sums over the batch's examples."""
        ...

    def predict(self, outputs: SetOutputs, targets: TargetBatch, /) -> Tensor:
        """(B, ...) what `metrics` takes and users get; must not look at the targets, only at momenta and mask."""
        ...

    def metrics(
        self, predictions: NDArray[np.float32], examples: Examples, objects: EventObjects, bootstrap: EventBootstrap, /
    ) -> dict[str, Estimate]:
        """Figures of merit with errors; `baseline/...`: of what there is without the task."""
        ...

    @staticmethod
    def headline() -> str:
        """The one metric that arms are compared by."""
        ...


def jet_examples(objects: EventObjects, jets: NDArray[np.int64], targets: Mapping[str, NDArray], **further: NDArray) -> Examples:
    """One example per given jet (rows), made of its candidates in descending pt.

    Args:
        targets: name -> values of the given jets.
        further: constituent targets, name -> values of all candidates.
    """
    jet_of_candidate = objects.jet_of_candidate
    pt = np.hypot(objects.candidate["px"], objects.candidate["py"])
    example_of_jet = np.full(len(objects.event_of_jet), -1, np.int64)
    example_of_jet[jets] = np.arange(len(jets))
    example = np.where(jet_of_candidate >= 0, example_of_jet[jet_of_candidate], -1)
    rows = np.lexsort((-pt, example))
    rows = rows[example[rows] >= 0]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(example[rows], minlength=len(jets)))])
    return Examples("candidates", objects.event_of_jet[jets], jets, offsets, rows, targets, {k: v[rows] for k, v in further.items()})


def event_examples(objects: EventObjects, events: NDArray[np.int64], targets: Mapping[str, NDArray], *, of: Constituents) -> Examples:
    """One example per given event (rows), made of its candidates or jets, as they are ordered there."""
    all_offsets = objects.candidate_offsets if of == "candidates" else objects.jet_offsets
    lengths = np.diff(all_offsets)[events]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(all_offsets[events] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Examples(of, events, np.full(len(events), -1), offsets, rows, targets)


def momenta_of(objects: EventObjects, examples: Examples) -> NDArray[np.float32]:
    """(n, 4) px, py, pz, energy of the constituents, GeV."""
    source = objects.candidate if examples.constituents == "candidates" else objects.jet
    return np.stack([source[name][examples.rows] for name in ("px", "py", "pz", "energy")], 1)


@dataclass(frozen=True)
class SetData:
    """Examples with their inputs, ready to be batched.

    Attributes:
        features: (n, F) float32, not yet standardised.
        latents: (n, K) float16, None: the arm has none.
        momenta: (n, 4) GeV.
    """

    examples: Examples
    features: NDArray[np.float32]
    latents: NDArray[np.float16] | None
    momenta: NDArray[np.float32]

    def batch(self, members: NDArray[np.integer]) -> tuple[SetBatch, TargetBatch]:
        """The given examples, padded to the longest; features are raw, latents after them."""
        offsets, lengths = self.examples.offsets[:-1][members], self.examples.lengths[members]
        place = np.arange(max(1, int(lengths.max(initial=0))))
        mask_BN = place < lengths[:, None]
        rows = np.where(mask_BN, offsets[:, None] + place, 0)
        if not len(self.momenta):
            rows, mask_BN = rows[:, :0], mask_BN[:, :0]
        parts = [self.features[rows]] if self.latents is None else [self.features[rows], self.latents[rows].astype(np.float32)]
        features = np.concatenate(parts, -1) * mask_BN[..., None]
        momenta, mask = torch.from_numpy(self.momenta[rows] * mask_BN[..., None]), torch.from_numpy(mask_BN)
        sets = SetBatch(torch.from_numpy(features), momenta, mask)
        targets = TargetBatch(
            {name: torch.from_numpy(np.asarray(values[members])) for name, values in self.examples.targets.items()},
            {name: torch.from_numpy(np.where(mask_BN, values[rows], -1)) for name, values in self.examples.constituent_targets.items()},
            momenta,
            mask,
        )
        return sets, targets


def epoch_batches(lengths: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int, skip: int = 0) -> Iterator[NDArray[np.int64]]:
    """Members of the batches of an epoch: a random order, in which neighbours are sorted by length, so that little is padded.

    Args:
        skip: batches that are left out at the start.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool = batch_size * _BATCHES_SORTED
    pools = [order[start : start + pool] for start in range(0, len(order), pool)]
    batches = []
    for part in pools:
        sorted_part = part[np.argsort(lengths[part], kind="stable")]
        batches += [sorted_part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    for number in rng.permutation(len(batches))[skip:]:
        yield batches[number]
