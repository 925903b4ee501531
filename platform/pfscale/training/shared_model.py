"""A model in Ray's store, for every worker to fetch once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pfscale.models.bundle import Bundle

_IN_THIS_PROCESS: dict[str, Bundle] = {}
_MODELS_KEPT = 2


@dataclass(frozen=True)
class SharedModel:
    """A reference to a model, picklable.

    Attributes:
        model_hash: that names it.
        reference: into Ray's store, or the bundle itself where there is no Ray.
        threads: of torch, in each worker; 0: as they are.
    """

    model_hash: str
    reference: Any
    threads: int = 0

    def bundle(self) -> Bundle:
        """The model, from this process's memory if it was used here before."""
        if isinstance(self.reference, Bundle):
            return self.reference
        import ray
        import torch

        if self.model_hash not in _IN_THIS_PROCESS:
            while len(_IN_THIS_PROCESS) >= _MODELS_KEPT:
                _IN_THIS_PROCESS.pop(next(iter(_IN_THIS_PROCESS)))
            _IN_THIS_PROCESS[self.model_hash] = ray.get(self.reference)
        if self.threads:
            torch.set_num_threads(min(self.threads, os.cpu_count() or 1))
        return _IN_THIS_PROCESS[self.model_hash]
