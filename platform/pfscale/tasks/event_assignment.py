"""Which jets are of which top in all-hadronic ttbar: a score for every (b, q, q), as SPANet's tensor attention (arXiv:2106.03898).

A top's score of jets (i; j, k) is b_i . (q_j * q_k), symmetric in its two light jets. The two tops are interchangeable: the loss is the
smaller one of both ways to name them. Shape letters: B events, N jets, D width of the vectors, P triplets.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pfscale.config import Config
from pfscale.errors import NotEnoughDataError
from pfscale.models.sets import SetOutputs
from pfscale.physics.bootstrap import Estimate, EventBootstrap, ratio
from pfscale.shards.objects import EventObjects
from pfscale.tasks.sets import Examples, TargetBatch, event_examples

_TOPS = 2
_TOP_ROLES = ((1, 2, 2), (-1, -2, -2))  # jet.top_role of b, q, q
_MASS_TOP, _MASS_W = 172.5, 80.4  # GeV, of the built-in source (Pythia's defaults)
_SIGMA_TOP, _SIGMA_W = 15.0, 10.0  # GeV, for the mass baseline


class EventAssignmentConfig(Config):
    """Size of the assignment."""

    kind: Literal["event_assignment"] = "event_assignment"
    max_jets: int = Field(8, ge=6, le=10, description="jets of largest pt that are considered")
    vector_width: int = Field(8, ge=1, description="width of the vectors whose products are scores")


class EventAssignment:
    """See `pfscale.tasks.sets.DownstreamTask`. Predictions: (B, 2, 3) jets (b, q, q) of each top."""

    terms: tuple[str, ...] = ("assignment",)
    of_set = 0
    starts_at_zero = False

    def __init__(self, config: EventAssignmentConfig) -> None:
        self.config = config
        self.of_constituent = _TOPS * 2 * config.vector_width

    @classmethod
    def fitted(cls, config: EventAssignmentConfig, objects: EventObjects) -> EventAssignment:
        """The task.

        Raises:
            NotEnoughDataError: no event has all six jets of two hadronic tops.
        """
        task = cls(config)
        if not len(task.examples(objects)):
            raise NotEnoughDataError("no event has all six jets of two hadronic tops", hint="it is a task for ttbar")
        return task

    def examples(self, objects: EventObjects) -> Examples:
        """Events whose six jets are all among the `max_jets` first."""
        role, within = objects.jet["top_role"], np.arange(len(objects.event_of_jet)) - objects.jet_offsets[objects.event_of_jet]
        usable = within < self.config.max_jets
        truth = np.full((objects.num_events, _TOPS, 3), -1, np.int64)
        for top, (of_b, of_q, _) in enumerate(_TOP_ROLES):
            for slots, code in (((0,), of_b), ((1, 2), of_q)):
                rows = np.flatnonzero((role == code) & usable)
                event = objects.event_of_jet[rows]
                rank = np.arange(len(rows)) - np.searchsorted(event, event)
                kept = rank < len(slots)
                truth[event[kept], top, np.array(slots)[rank[kept]]] = within[rows[kept]]
        events = np.flatnonzero((truth >= 0).all((1, 2)))
        found = event_examples(objects, events, {"jets": truth[events]}, of="jets")
        return _first(found, self.config.max_jets)

    def everything(self, objects: EventObjects) -> Examples:
        """All events with six jets or more."""
        events = np.flatnonzero(np.diff(objects.jet_offsets) >= 6)
        return _first(event_examples(objects, events, {}, of="jets"), self.config.max_jets)

    def loss(self, outputs: SetOutputs, targets: TargetBatch) -> Tensor:
        log_p_BTP = self._log_probabilities(outputs, targets.mask_BN)
        place = _places(targets.of_set["jets"], targets.mask_BN.shape[1])  # (B, 2) of each top's triplet
        of_top = [[log_p_BTP[:, top].gather(1, place[:, true, None]) for true in range(_TOPS)] for top in range(_TOPS)]
        both = [-of_top[0][0] - of_top[1][1], -of_top[0][1] - of_top[1][0]]
        return torch.minimum(*both).sum()[None]

    def predict(self, outputs: SetOutputs, targets: TargetBatch) -> Tensor:
        """The two triplets without a common jet whose probabilities have the largest product."""
        log_p_BTP = self._log_probabilities(outputs, targets.mask_BN)
        triplets, disjoint = (torch.from_numpy(a).to(log_p_BTP.device) for a in _triplets(targets.mask_BN.shape[1]))
        total_BPP = log_p_BTP[:, 0, :, None] + log_p_BTP[:, 1, None, :]
        best = total_BPP.masked_fill(~disjoint, -torch.inf).flatten(1).argmax(1)
        return torch.stack([triplets[best // len(triplets)], triplets[best % len(triplets)]], 1)

    def metrics(
        self, predictions: NDArray[np.float32], examples: Examples, objects: EventObjects, bootstrap: EventBootstrap
    ) -> dict[str, Estimate]:
        """Fraction of events with both tops right, and of tops that are right; `baseline`: by the masses of W and top."""
        found: dict[str, Estimate] = {}
        for prefix, chosen in (("", predictions.astype(np.int64)), ("baseline/", by_mass(objects, examples))):
            right = _right(chosen, examples.targets["jets"])
            counts = np.zeros((bootstrap.num_events, 2))
            counts[examples.event] = np.stack([(right == _TOPS), right / _TOPS], 1)
            of = np.zeros_like(counts)
            of[examples.event] = 1.0
            found[f"{prefix}event_efficiency"], found[f"{prefix}top_efficiency"] = ratio(counts, of, bootstrap)
        found["event_inefficiency"] = Estimate(
            1 - found["event_efficiency"].value,
            found["event_efficiency"].error,
            None if found["event_efficiency"].replicas is None else 1 - found["event_efficiency"].replicas,
        )
        return found

    @staticmethod
    def headline() -> str:
        return "event_inefficiency"

    def _log_probabilities(self, outputs: SetOutputs, mask_BN: Tensor) -> Tensor:
        """(B, 2, P) over the triplets of jets that there are."""
        vectors = outputs.of_constituent_BNO.unflatten(-1, (_TOPS, 2, self.config.vector_width))
        triplets, _ = (torch.from_numpy(a).to(mask_BN.device) for a in _triplets(mask_BN.shape[1]))
        b_BPTD = vectors[:, triplets[:, 0], :, 0]
        q_BPTD = vectors[:, triplets[:, 1], :, 1] * vectors[:, triplets[:, 2], :, 1]
        score_BTP = (b_BPTD * q_BPTD).sum(-1).transpose(1, 2)
        is_there_BP = mask_BN[:, triplets].all(-1)
        return score_BTP.masked_fill(~is_there_BP[:, None], -1e4).log_softmax(-1)


def by_mass(objects: EventObjects, examples: Examples) -> NDArray[np.int64]:
    """(B, 2, 3): the assignment whose W and top masses are closest to the true ones in units of their resolutions."""
    found = np.zeros((len(examples), _TOPS, 3), np.int64)
    momenta = np.stack([objects.jet[name] for name in ("px", "py", "pz", "energy")], 1).astype(np.float64)
    for number, (start, stop) in enumerate(itertools.pairwise(examples.offsets)):
        p = momenta[examples.rows[start:stop]]
        triplets, disjoint = _triplets(len(p))
        mass_w, mass_top = _mass(p[triplets[:, 1]] + p[triplets[:, 2]]), _mass(p[triplets].sum(1))
        pull = ((mass_w - _MASS_W) / _SIGMA_W) ** 2 + ((mass_top - _MASS_TOP) / _SIGMA_TOP) ** 2
        best = int(np.where(disjoint, pull[:, None] + pull[None, :], np.inf).argmin())
        found[number] = triplets[best // len(triplets)], triplets[best % len(triplets)]
    return found


@lru_cache(maxsize=16)
def _triplets(num_jets: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(P, 3) all (i; j < k) of different jets, and (P, P) whether two have no jet in common."""
    triplets = np.array(
        [(i, j, k) for i in range(num_jets) for j, k in itertools.combinations(range(num_jets), 2) if i not in (j, k)], np.int64
    ).reshape(-1, 3)
    disjoint = ~(triplets[:, None, :, None] == triplets[None, :, None, :]).any((2, 3))
    return triplets, disjoint


def _places(jets_BT3: Tensor, num_jets: int) -> Tensor:
    """(B, 2) which of the triplets each top's jets are."""
    triplets, _ = _triplets(num_jets)
    lookup = torch.zeros((num_jets,) * 3, dtype=torch.int64)
    for number, (i, j, k) in enumerate(triplets):
        lookup[i, j, k] = lookup[i, k, j] = number
    lookup = lookup.to(jets_BT3.device)
    return lookup[jets_BT3[..., 0], jets_BT3[..., 1], jets_BT3[..., 2]]


def _right(chosen: NDArray[np.int64], true: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B,) tops that are right, naming the two tops, and the two light jets of each, as fits best."""

    def same(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (a[:, 0] == b[:, 0]) & (np.sort(a[:, 1:], 1) == np.sort(b[:, 1:], 1)).all(1)

    straight = same(chosen[:, 0], true[:, 0]).astype(int) + same(chosen[:, 1], true[:, 1])
    crossed = same(chosen[:, 0], true[:, 1]).astype(int) + same(chosen[:, 1], true[:, 0])
    return np.maximum(straight, crossed)


def _mass(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(p[:, 3] ** 2 - np.square(p[:, :3]).sum(1), 0.0))


def _first(examples: Examples, count: int) -> Examples:
    """The examples with their first constituents only."""
    lengths = np.minimum(examples.lengths, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = np.repeat(examples.offsets[:-1] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Examples(examples.constituents, examples.event, examples.jet, offsets, examples.rows[kept], examples.targets)
