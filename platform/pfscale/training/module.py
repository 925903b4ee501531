"""Model and loss as one module: engines see a batch go in and a tensor of loss sums come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfscale.models.batch import Batch
from pfscale.models.mlpf import Mlpf
from pfscale.tasks.reconstruction import LOSS_TERMS, ReconstructionConfig, loss_terms


class TaskModule(nn.Module):
    """Model and loss as one module: Batch -> sum of each loss term, so that an engine sees tensors only."""

    def __init__(self, model: Mlpf, task: ReconstructionConfig, *, trainable: str) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.is_encoder_frozen = trainable == "heads"
        if self.is_encoder_frozen:
            model.encoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TaskModule:
        super().train(mode)
        if self.is_encoder_frozen:
            self.model.encoder.eval()
        return self

    def forward(self, batch: Batch) -> Tensor:
        terms = loss_terms(self.model(batch), batch, self.task)
        return torch.stack([terms[name] for name in LOSS_TERMS])
