"""The two engines: DeepSpeed (jobs) and plain torch (notebooks, small trainings, reference for tests). The only home of deepspeed.

An engine takes one worker's part of a global batch. Losses are sums; both engines divide by the *global* number of elements, so the
gradient does not depend on the number of workers.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pfscale.errors import ResourceError
from pfscale.models.batch import Batch
from pfscale.training.config import DeepSpeedEngineConfig, OptimisationConfig, TorchEngineConfig


class Engine(Protocol):
    """One optimizer step at a time, and its state on disk."""

    def step(self, batch: Batch, *, num_elements: int, learning_rate: float) -> tuple[Tensor, float]:
        """(sum of each loss term over this worker's elements, gradient norm) of one step."""
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """Sum of each loss term, without gradients."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The full fp32 weights (collective: every worker calls it)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes this worker's part of the state."""
        ...

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, from the merged folder of all workers."""
        ...


def learning_rate(config: OptimisationConfig, step: int) -> float:
    """The rate at a step: linear warm-up, then cosine down to the final fraction at the run's own last step."""
    warmup = max(1, round(config.warmup_fraction * config.num_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.num_steps - warmup)
    floor = config.final_fraction
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimizer_for(module: nn.Module, config: OptimisationConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices decay, norms and biases do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.95))


def make_engine(
    config: TorchEngineConfig | DeepSpeedEngineConfig, module: nn.Module, optimisation: OptimisationConfig, device: torch.device
) -> Engine:
    """The engine that the config names, around `module` (forward: Batch -> sums of loss terms)."""
    module = module.to(device)
    if isinstance(config, DeepSpeedEngineConfig):
        return DeepSpeedEngine(config, module, optimisation)
    return TorchEngine(module, optimisation)


class TorchEngine:
    """AdamW on the module; gradients are summed over workers where there are several."""

    def __init__(self, module: nn.Module, optimisation: OptimisationConfig) -> None:
        self.module = module
        self.clip_norm = optimisation.clip_norm
        self.optimizer = optimizer_for(module, optimisation)

    def step(self, batch: Batch, *, num_elements: int, learning_rate: float) -> tuple[Tensor, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.module(batch)
        (terms.sum() / num_elements).backward()
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if dist.is_initialized() and dist.get_world_size() > 1:
            for p in parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        return terms.detach(), float(norm)

    def evaluate(self, batch: Batch) -> Tensor:
        self.module.eval()
        with torch.no_grad():
            terms = self.module(batch)
        self.module.train()
        return terms

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "engine.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


class DeepSpeedEngine:
    """DeepSpeed around the same optimizer, in fp32."""

    def __init__(self, config: DeepSpeedEngineConfig, module: nn.Module, optimisation: OptimisationConfig) -> None:
        deepspeed = _import_deepspeed()
        if not dist.is_initialized():  # in the calling process, without Ray: a world of one, which DeepSpeed adopts
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            os.environ.setdefault("LOCAL_RANK", "0")
        self.zero_stage = config.zero_stage
        optimizer = optimizer_for(module, optimisation)
        self.engine: Any
        self.engine, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": optimisation.clip_norm,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 1_000_000_000,
                **config.options,
                "zero_optimization": {**config.options.get("zero_optimization", {}), "stage": config.zero_stage},
            },
        )
        self.deepspeed = deepspeed

    def step(self, batch: Batch, *, num_elements: int, learning_rate: float) -> tuple[Tensor, float]:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        terms = self.engine(batch)
        # DeepSpeed takes the mean over workers; the loss is a sum over all workers' elements.
        self.engine.backward(terms.sum() * (self.engine.world_size / num_elements))
        # Without ZeRO, DeepSpeed keeps no gradient norm; the gradients are whole and already averaged then.
        grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None] if self.zero_stage == 0 else []
        norm = nn.utils.get_total_norm(grads) if grads else None
        self.engine.step()
        return terms.detach(), float(norm if norm is not None else self.engine.get_global_grad_norm())

    def evaluate(self, batch: Batch) -> Tensor:
        self.engine.eval()
        with torch.no_grad():
            terms = self.engine(batch)
        self.engine.train()
        return terms

    def weights(self) -> dict[str, Tensor]:
        module = self.engine.module
        if self.zero_stage < 3:
            return {name: value.detach().float().clone() for name, value in module.state_dict().items()}
        with self.deepspeed.zero.GatheredParameters(list(module.parameters())):
            return {name: value.detach().float().clone() for name, value in module.state_dict().items()}

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag="engine")

    def load(self, folder: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag="engine")
        if path is None:
            raise ResourceError("DeepSpeed could not load its checkpoint", where=str(folder))


def _import_deepspeed() -> Any:
    """deepspeed, set up so that a machine without accelerator needs no compiler."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    # On CPUs `initialize` would compile this op with g++ at first use (a minute, a crash where there is no compiler); gloo serves as well.
    if not torch.cuda.is_available() and isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False
    return deepspeed
