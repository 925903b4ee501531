"""Missing transverse momentum: a weight for every candidate, or the two components directly.

With weights, missing momentum is minus the sum of (1 + w_i) p_i, as in DeepMET (CMS, arXiv:2509.12012); a network that says nothing gives
the plain sum. Shape letters: B events, N candidates.
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
from pfscale.physics.bootstrap import Estimate, EventBootstrap
from pfscale.physics.met import evaluate_met, missing_momentum
from pfscale.shards.objects import EventObjects
from pfscale.tasks.sets import Examples, TargetBatch, event_examples

_DIRECT_SCALE = 10.0  # GeV: outputs of order one are of this many GeV
_WEIGHT_SCALE = 0.1


class MissingMomentumConfig(Config):
    """Form of the output, and its loss."""

    kind: Literal["missing_momentum"] = "missing_momentum"
    output: Literal["weights", "direct"] = Field("weights", description="weights: minus the sum of (1 + w_i) p_i; direct: px and py")
    huber_delta: float = Field(10.0, gt=0, description="GeV; residuals beyond this count linearly")


class MissingMomentum:
    """See `pfscale.tasks.sets.DownstreamTask`. Predictions: (B, 2) missing (px, py) in GeV."""

    terms: tuple[str, ...] = ("momentum",)
    starts_at_zero = True

    def __init__(self, config: MissingMomentumConfig) -> None:
        self.config = config
        self.of_set, self.of_constituent = (0, 1) if config.output == "weights" else (2, 0)

    @classmethod
    def fitted(cls, config: MissingMomentumConfig, objects: EventObjects) -> MissingMomentum:
        """The task.

        Raises:
            NotEnoughDataError: there are no events.
        """
        if not objects.num_events:
            raise NotEnoughDataError("no events to learn missing momentum from")
        return cls(config)

    def examples(self, objects: EventObjects) -> Examples:
        """All events with a finite true missing momentum."""
        target = np.stack([objects.gen_met["px"], objects.gen_met["py"]], 1).astype(np.float32)
        events = np.flatnonzero(np.isfinite(target).all(1))
        return event_examples(objects, events, {"met": target[events]}, of="candidates")

    def everything(self, objects: EventObjects) -> Examples:
        """All events."""
        return event_examples(objects, np.arange(objects.num_events), {}, of="candidates")

    def loss(self, outputs: SetOutputs, targets: TargetBatch) -> Tensor:
        delta = self.config.huber_delta
        return nnf.huber_loss(self.predict(outputs, targets) / delta, targets.of_set["met"] / delta, reduction="sum")[None]

    def predict(self, outputs: SetOutputs, targets: TargetBatch) -> Tensor:
        if self.config.output == "direct":
            return outputs.of_set_BO * _DIRECT_SCALE
        weights_BN = (1 + _WEIGHT_SCALE * outputs.of_constituent_BNO[..., 0]) * targets.mask_BN
        return -torch.einsum("bn,bnc->bc", weights_BN, targets.momenta_BN4[..., :2])

    def metrics(
        self, predictions: NDArray[np.float32], examples: Examples, objects: EventObjects, bootstrap: EventBootstrap
    ) -> dict[str, Estimate]:
        """Resolution and response, and those of the plain sum of candidates (`baseline`)."""
        events = examples.event
        plain = missing_momentum(
            objects.event_of_candidate, objects.candidate["px"], objects.candidate["py"], num_events=objects.num_events
        )
        true = (objects.gen_met["px"][events], objects.gen_met["py"][events])
        # one entry per example: replicas of all events, taken at theirs
        sampled = EventBootstrap(bootstrap.counts[:, events])
        found: dict[str, Estimate] = {}
        for prefix, (px, py) in (("", predictions.T), ("baseline/", (plain[0][events], plain[1][events]))):
            metrics = evaluate_met(px, py, *true, sampled)
            found |= {
                f"{prefix}met_resolution": metrics.residual.resolution,
                f"{prefix}met_resolution_parallel": metrics.parallel.resolution,
                f"{prefix}met_resolution_perpendicular": metrics.perpendicular.resolution,
                f"{prefix}met_response": metrics.response.median,
            }
        return found

    @staticmethod
    def headline() -> str:
        return "met_resolution"
