"""Energy of jets: the logarithm of gen over reconstructed energy, by a robust or a quantile loss.

Shape letters: B jets.
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
from pfscale.physics.response import summarise
from pfscale.shards.objects import EventObjects
from pfscale.tasks.sets import Examples, TargetBatch, jet_examples

_QUANTILES = (0.16, 0.5, 0.84)  # the middle one is the correction
_MAX_LOG = 2.0  # a correction beyond a factor of 7 is none


class JetEnergyConfig(Config):
    """The loss."""

    kind: Literal["jet_energy"] = "jet_energy"
    loss: Literal["huber", "quantile"] = Field("huber", description="huber: one number; quantile: 16, 50 and 84% of ln(E_gen / E_reco)")
    huber_delta: float = Field(0.05, gt=0, description="residuals of ln(E_gen / E_reco) beyond this count linearly")


class JetEnergy:
    """See `pfscale.tasks.sets.DownstreamTask`. Predictions: (B, 1 or 3) factors on the jet's energy; of three, quantiles."""

    terms: tuple[str, ...] = ("energy",)
    of_constituent = 0
    starts_at_zero = True

    def __init__(self, config: JetEnergyConfig) -> None:
        self.config = config
        self.of_set = 1 if config.loss == "huber" else len(_QUANTILES)

    @classmethod
    def fitted(cls, config: JetEnergyConfig, objects: EventObjects) -> JetEnergy:
        """The task.

        Raises:
            NotEnoughDataError: no training jet has a gen jet.
        """
        if not len(_matched(objects)):
            raise NotEnoughDataError("no jet has a gen jet within deltaR 0.1", hint="look at the model: pfscale evaluate")
        return cls(config)

    def examples(self, objects: EventObjects) -> Examples:
        """Jets with a gen jet."""
        jets = _matched(objects)
        target = np.log(objects.jet["gen_energy"][jets] / objects.jet["energy"][jets])
        return jet_examples(objects, jets, {"log_ratio": np.clip(target, -_MAX_LOG, _MAX_LOG).astype(np.float32)})

    def everything(self, objects: EventObjects) -> Examples:
        """All jets."""
        return jet_examples(objects, np.arange(len(objects.event_of_jet)), {})

    def loss(self, outputs: SetOutputs, targets: TargetBatch) -> Tensor:
        residual = targets.of_set["log_ratio"][:, None] - self._log_ratios(outputs)
        if self.config.loss == "huber":
            scale = self.config.huber_delta
            return nnf.huber_loss(residual / scale, torch.zeros_like(residual), reduction="sum")[None]
        levels = residual.new_tensor(_QUANTILES)
        return torch.maximum(levels * residual, (levels - 1) * residual).sum()[None] / 0.05

    def predict(self, outputs: SetOutputs, _: TargetBatch) -> Tensor:
        return self._log_ratios(outputs).exp()

    def metrics(
        self, predictions: NDArray[np.float32], examples: Examples, objects: EventObjects, bootstrap: EventBootstrap
    ) -> dict[str, Estimate]:
        """Median and spread of E / E_gen, corrected, and as reconstructed (`baseline`)."""
        jet, gen = objects.jet["energy"][examples.jet].astype(np.float64), objects.jet["gen_energy"][examples.jet].astype(np.float64)
        middle = predictions[:, predictions.shape[1] // 2]
        found: dict[str, Estimate] = {}
        for prefix, energy in (("", jet * middle), ("baseline/", jet)):
            summary = summarise(energy / gen, examples.event, bootstrap)
            found[f"{prefix}energy_response_iqr_over_median"] = summary.iqr_over_median
            found[f"{prefix}energy_response_median"] = summary.median
        return found

    @staticmethod
    def headline() -> str:
        return "energy_response_iqr_over_median"

    @staticmethod
    def _log_ratios(outputs: SetOutputs) -> Tensor:
        """(B, 1 or 3); untrained networks say about 0."""
        return _MAX_LOG * torch.tanh(0.1 * outputs.of_set_BO / _MAX_LOG)


def _matched(objects: EventObjects) -> NDArray[np.int64]:
    """Jets with a finite, positive gen energy."""
    gen = objects.jet["gen_energy"]
    return np.flatnonzero(np.isfinite(gen) & (np.nan_to_num(gen) > 0) & (objects.jet["energy"] > 0))
