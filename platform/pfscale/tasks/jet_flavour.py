"""Flavour of jets: class scores per jet, and as an auxiliary target where each of its tracks comes from.

The auxiliary target and its balance follow ATLAS' GN2 (arXiv:2505.19689). Shape letters: B jets, C classes, N constituents.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pfscale.config import Config
from pfscale.errors import NotEnoughDataError
from pfscale.models.sets import SetOutputs
from pfscale.physics.bootstrap import Estimate, EventBootstrap, ratio
from pfscale.physics.classification import EFFICIENCIES, auc, rejections
from pfscale.shards.objects import EventObjects
from pfscale.tasks.sets import Examples, TargetBatch, jet_examples

Flavour = Literal["b", "c", "s", "ud", "g", "tau"]
FLAVOURS: dict[Flavour, tuple[int, ...]] = {"b": (5,), "c": (4,), "s": (3,), "ud": (1, 2), "g": (21,), "tau": (15,)}
# signal, background
PAIRS = (("b", "c"), ("b", "ud"), ("b", "g"), ("c", "b"), ("c", "ud"), ("c", "g"), ("s", "ud"), ("g", "ud"), ("tau", "ud"))
ORIGIN_CLASSES = ("primary", "from B", "from C", "other")
_ORIGIN_CLASS = np.array([0, 1, 1, 2, 3, 3])  # of gen_particle.origin
_MIN_EXAMPLES = 10  # jets of a class to learn from


class JetFlavourConfig(Config):
    """Classes and loss."""

    kind: Literal["jet_flavour"] = "jet_flavour"
    classes: tuple[Flavour, ...] = Field((), description="classes to tell apart; empty: all that the training jets have")
    origin_weight: float = Field(0.0, ge=0, description="weight of the auxiliary target: tracks from B, from C, or primary; 0: none")
    loss_balance: Literal["fixed", "geometric_mean"] = Field("fixed", description="how the two losses are joined")


class JetFlavour:
    """See `pfscale.tasks.sets.DownstreamTask`. Predictions: (B, C) probabilities in the order of `classes`."""

    starts_at_zero = False

    def __init__(self, config: JetFlavourConfig, classes: tuple[Flavour, ...]) -> None:
        self.config, self.classes = config, classes
        self.has_origin = config.origin_weight > 0
        self.terms: tuple[str, ...] = ("flavour", "origin") if self.has_origin else ("flavour",)
        self.of_set, self.of_constituent = len(classes), len(ORIGIN_CLASSES) if self.has_origin else 0

    @classmethod
    def fitted(cls, config: JetFlavourConfig, objects: EventObjects) -> JetFlavour:
        """The task with the classes that the training events have.

        Raises:
            NotEnoughDataError: a class that was asked for has no jets, or there are fewer than two.
        """
        flavour = objects.jet["flavour"]
        count = {name: int(np.isin(flavour, codes).sum()) for name, codes in FLAVOURS.items()}
        shown = ", ".join(f"{name} {number}" for name, number in count.items())
        absent = [name for name in config.classes if count[name] < _MIN_EXAMPLES]
        if absent:
            hint = f"training jets by class: {shown}; leave task.classes empty to take those that are there"
            raise NotEnoughDataError(f"fewer than {_MIN_EXAMPLES} training jets of class {', '.join(absent)}", hint=hint)
        classes = config.classes or tuple(name for name, number in count.items() if number >= _MIN_EXAMPLES)
        if len(classes) < 2:
            raise NotEnoughDataError("flavour needs jets of two classes at least", hint=f"training jets by class: {shown}")
        return cls(config, classes)

    def examples(self, objects: EventObjects) -> Examples:
        """Jets of the classes; jets without a gen jet or flavour are left out."""
        flavour = objects.jet["flavour"]
        index = np.full(len(flavour), -1, np.int64)
        for number, name in enumerate(self.classes):
            index[np.isin(flavour, FLAVOURS[name])] = number
        jets = np.flatnonzero(index >= 0)
        further = {}
        if self.has_origin:
            origin = objects.candidate["origin"]
            with_track = np.isfinite(objects.candidate["d0"])
            further["origin"] = np.where((origin >= 0) & with_track, _ORIGIN_CLASS[np.maximum(origin, 0)], -1)
        return jet_examples(objects, jets, {"class": index[jets]}, **further)

    def everything(self, objects: EventObjects) -> Examples:
        """All jets."""
        return jet_examples(objects, np.arange(len(objects.event_of_jet)), {})

    def loss(self, outputs: SetOutputs, targets: TargetBatch) -> Tensor:
        count = len(targets)
        flavour = nnf.cross_entropy(outputs.of_set_BO, targets.of_set["class"], reduction="sum")
        if not self.has_origin:
            return flavour[None]
        labels = targets.of_constituent["origin"].long()
        per_track = nnf.cross_entropy(outputs.of_constituent_BNO.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
        origin = per_track / (labels >= 0).sum().clamp_min(1) * count
        if self.config.loss_balance == "fixed":
            return torch.stack([flavour, self.config.origin_weight * origin])
        # the geometric mean of the two mean losses, with the auxiliary one to the power of its weight, shared out evenly
        power = self.config.origin_weight
        mean = ((flavour / count).log() + power * (origin / count).clamp_min(1e-6).log()).div(1 + power).exp()
        return torch.stack([mean, power * mean]) * (count / (1 + power))

    def predict(self, outputs: SetOutputs, _: TargetBatch) -> Tensor:
        return outputs.of_set_BO.softmax(-1)

    def metrics(
        self, predictions: NDArray[np.float32], examples: Examples, _: EventObjects, bootstrap: EventBootstrap
    ) -> dict[str, Estimate]:
        """AUC and rejections of pairs of classes (by the ratio of their scores), accuracy, cross entropy."""
        label = examples.targets["class"]
        probability = np.clip(predictions.astype(np.float64), 1e-12, 1.0)
        found: dict[str, Estimate] = {}
        for signal, background in PAIRS:
            if signal not in self.classes or background not in self.classes:
                continue
            s, b = self.classes.index(signal), self.classes.index(background)
            rows = np.flatnonzero((label == s) | (label == b))
            score = np.log(probability[rows, s]) - np.log(probability[rows, b])
            is_signal, event = label[rows] == s, examples.event[rows]
            found[f"auc_{signal}_vs_{background}"] = auc(score, is_signal, event, bootstrap)
            for efficiency, rejection in zip(EFFICIENCIES, rejections(score, is_signal, event, bootstrap), strict=True):
                found[f"rejection_{signal}_vs_{background}_at_{efficiency:.0%}".replace("%", "")] = rejection
        found["cross_entropy"] = _mean(-np.log(probability[np.arange(len(label)), label]), examples.event, bootstrap)
        found["accuracy"] = _mean((predictions.argmax(1) == label).astype(np.float64), examples.event, bootstrap)
        return found

    @staticmethod
    def headline() -> str:
        return "cross_entropy"


def _mean(values: NDArray[np.float64], event: NDArray[np.int64], bootstrap: EventBootstrap) -> Estimate:
    num = bootstrap.num_events
    sums, counts = np.bincount(event, values, num), np.bincount(event, minlength=num).astype(np.float64)
    return ratio(sums[:, None], counts[:, None], bootstrap)[0]
