"""Missing momentum from candidates and their latents with one linear layer (the linear arm of arXiv:2606.14373).

Shape letters: E events, K latent width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pfscale.config import Config
from pfscale.tasks.reconstruction import Candidates


class MissingMomentumConfig(Config):
    """The head and its loss."""

    output: Literal["weights", "direct"] = Field(
        "weights", description="weights: minus the sum of w_i p_i with w_i = 1 + linear(latent_i); direct: linear(pooled latents)"
    )
    pooling: Literal["sum", "mean", "pt"] = Field("pt", description="pooling of the latents for output: direct")
    l2: float = Field(1e-3, ge=0, description="penalty on the squared weights of the layer")
    huber_delta: float = Field(10.0, gt=0, description="GeV; residuals beyond this count linearly")
    max_iterations: int = Field(200, ge=1, description="L-BFGS iterations over the whole training set")


class LinearMissingMomentum(nn.Module):
    """One linear layer. Input: pooled features of `pooled_features`, (E, 2, K + 1); output (px, py) in GeV, (E, 2)."""

    def __init__(self, config: MissingMomentumConfig, num_latents: int) -> None:
        super().__init__()
        self.config = config
        components = 1 if config.output == "weights" else 2  # one weight serves both components of a momentum
        self.weight = nn.Parameter(torch.zeros(components, num_latents + 1))
        self.register_buffer("scale", torch.ones(2, num_latents + 1))
        self.scale: Tensor

    def forward(self, features_E2K: Tensor, plain_E2: Tensor) -> Tensor:
        linear = ((features_E2K / self.scale) * self.weight).sum(-1)
        return plain_E2 + linear if self.config.output == "weights" else linear


def pooled_features(
    candidates: Candidates, latents: NDArray[np.float32], *, num_events: int, config: MissingMomentumConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(features, plain): what the layer is linear in, (E, 2, K + 1), and minus the plain sum of the candidates in GeV, (E, 2).

    Pooling before the layer is exact because the layer is linear. `latents`: (k, K), one row per candidate.
    """
    width = latents.shape[1] + 1
    inputs = np.concatenate([latents, np.ones((len(latents), 1))], 1)
    features, plain = np.zeros((num_events, 2, width)), np.zeros((num_events, 2))
    for axis, momentum in enumerate((candidates.px.astype(np.float64), candidates.py.astype(np.float64))):
        np.add.at(plain[:, axis], candidates.event, -momentum)
        if config.output == "weights":
            np.add.at(features[:, axis], candidates.event, -momentum[:, None] * inputs)
    if config.output == "direct":
        pt = np.hypot(candidates.px, candidates.py).astype(np.float64)
        weight = pt if config.pooling == "pt" else np.ones_like(pt)
        pooled, total = np.zeros((num_events, width)), np.zeros(num_events)
        np.add.at(pooled, candidates.event, weight[:, None] * inputs)
        np.add.at(total, candidates.event, weight)
        if config.pooling == "mean":
            pooled /= np.maximum(total, 1)[:, None]
        features[:] = pooled[:, None, :]
        features[:, :, -1] = 1.0
    return features, plain


def fit(
    config: MissingMomentumConfig, features: NDArray[np.float64], plain: NDArray[np.float64], target: NDArray[np.float64], *, seed: int
) -> LinearMissingMomentum:
    """The fitted layer: Huber loss on both components, L2 penalty, L-BFGS on all events at once (E, 2, K + 1), (E, 2), (E, 2)."""
    torch.manual_seed(seed)
    model = LinearMissingMomentum(config, features.shape[-1] - 1).double()
    x, base, y = (torch.from_numpy(np.asarray(a, np.float64)) for a in (features, plain, target))
    spread = x.square().mean((0, 1)).sqrt() if config.output == "weights" else x.square().mean(0).sqrt()
    model.scale.copy_(torch.where(spread > 1e-9, spread, torch.ones_like(spread)).expand_as(model.scale))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=config.max_iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nnf.huber_loss(model(x, base), y, delta=config.huber_delta) + config.l2 * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.eval()


def predict(model: LinearMissingMomentum, features: NDArray[np.float64], plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Missing (px, py) in GeV, (E, 2)."""
    with torch.no_grad():
        return model(torch.from_numpy(features), torch.from_numpy(plain)).numpy()
