"""Input standardisation with constants that are stored in the model, so that a checkpoint needs nothing beside it.

Each feature has a fixed, monotonic transform (logarithm for energies and momenta, arcsinh of a fixed scale for lengths with long tails),
then mean and width of the training data.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pfscale.errors import InputFileError
from pfscale.shards.ragged import CLUSTER_FEATURES, NUM_FEATURES, TRACK_FEATURES

MAX_STANDARDISED = 10.0  # beyond this a value is an outlier of the training data; the network sees that and no more

# feature -> (transform, scale): "log" log(scale + |x|), "asinh" asinh(x / scale), "linear" x / scale
_TRACK_TRANSFORMS: dict[str, tuple[str, float]] = {
    "pt": ("log", 1e-3),
    "eta": ("linear", 1.0),
    "sin_phi": ("linear", 1.0),
    "cos_phi": ("linear", 1.0),
    "p": ("log", 1e-3),
    "chi2": ("log", 1e-1),
    "ndf": ("log", 1.0),
    "dedx": ("log", 1e-9),
    "dedx_error": ("log", 1e-9),
    "radius_of_innermost_hit": ("log", 1.0),
    "tan_lambda": ("asinh", 1.0),
    "d0": ("asinh", 0.01),
    "omega": ("asinh", 1e-5),
    "z0": ("asinh", 0.05),
    "time": ("asinh", 1.0),
}
_CLUSTER_TRANSFORMS: dict[str, tuple[str, float]] = {
    "et": ("log", 1e-3),
    "eta": ("linear", 1.0),
    "sin_phi": ("linear", 1.0),
    "cos_phi": ("linear", 1.0),
    "energy": ("log", 1e-3),
    "position_x": ("linear", 1000.0),
    "position_y": ("linear", 1000.0),
    "position_z": ("linear", 1000.0),
    "itheta": ("linear", 1.0),
    "energy_ecal": ("log", 1e-2),
    "energy_hcal": ("log", 1e-2),
    "energy_other": ("log", 1e-2),
    "num_hits": ("log", 1.0),
    "sigma_x": ("log", 1.0),
    "sigma_y": ("log", 1.0),
    "sigma_z": ("log", 1.0),
}
_KINDS = {"linear": 0, "log": 1, "asinh": 2}


class Standardise(nn.Module):
    """Raw element features -> (standardised features, missing flags), both of width F, type by type.

    Rows of the constants: 0 clusters, 1 tracks. Until `fit` is called the mean is 0 and the width 1. Infinite counts as missing.
    """

    kind_2F: Tensor
    scale_2F: Tensor
    mean_2F: Tensor
    std_2F: Tensor

    def __init__(self) -> None:
        super().__init__()
        kind, scale = np.zeros((2, NUM_FEATURES), np.int64), np.ones((2, NUM_FEATURES), np.float32)
        for row, (names, table) in enumerate(((CLUSTER_FEATURES, _CLUSTER_TRANSFORMS), (TRACK_FEATURES, _TRACK_TRANSFORMS))):
            for column, name in enumerate(names):
                transform, scale[row, column] = table[name]
                kind[row, column] = _KINDS[transform]
        self.register_buffer("kind_2F", torch.from_numpy(kind), persistent=False)
        self.register_buffer("scale_2F", torch.from_numpy(scale), persistent=False)
        self.register_buffer("mean_2F", torch.zeros(2, NUM_FEATURES))
        self.register_buffer("std_2F", torch.ones(2, NUM_FEATURES))

    def transform(self, features: Tensor, is_track: Tensor) -> Tensor:
        """The fixed transforms alone; features (..., F), is_track (...); NaN stays NaN."""
        row = is_track.long()
        kind, scale = self.kind_2F[row], self.scale_2F[row]
        log = torch.log(scale + features.abs())
        asinh = torch.asinh(features / scale)
        return torch.where(kind == 1, log, torch.where(kind == 2, asinh, features / scale))

    def fit(self, features: NDArray[np.float32], is_track: NDArray[np.bool_]) -> None:
        """Sets mean and width from a sample of elements: features (n, F), is_track (n,)."""
        values = self.transform(torch.from_numpy(features), torch.from_numpy(is_track)).double().numpy()
        for row, members in enumerate((~is_track, is_track)):
            sample = np.where(np.isfinite(values[members]), values[members], np.nan)
            known = np.isfinite(sample).sum(0)
            total = np.nansum(sample, 0)
            mean = np.where(known > 0, total / np.maximum(known, 1), 0.0)
            spread = np.sqrt(np.nansum((sample - mean) ** 2, 0) / np.maximum(known, 1))
            self.mean_2F[row] = torch.from_numpy(mean).float()
            self.std_2F[row] = torch.from_numpy(np.where(spread > 1e-6, spread, 1.0)).float()

    def require_fitted(self, *, where: str) -> None:
        """Checks that the constants were fitted to data, or loaded from a model whose were.

        Raises:
            InputFileError: they are as at the start, not finite, or a width is not positive.
        """
        mean, std = self.mean_2F, self.std_2F
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise InputFileError("the input normalisation of the model is damaged: a mean or width is not a number", where=where)
        if not mean.any() and bool((std == 1).all()):
            raise InputFileError(
                "the model has no input normalisation: it was saved before its constants were fitted",
                where=where,
                hint="pfscale pretrain fits them; in a program: model.encoder.standardise.fit(features, is_track) before saving",
            )

    def forward(self, features: Tensor, is_track: Tensor) -> tuple[Tensor, Tensor]:
        row = is_track.long()
        values = (self.transform(features, is_track) - self.mean_2F[row]) / self.std_2F[row]
        missing = ~torch.isfinite(features)
        values = torch.where(missing, torch.zeros_like(values), values.clamp(-MAX_STANDARDISED, MAX_STANDARDISED))
        return values, missing.to(values.dtype)
