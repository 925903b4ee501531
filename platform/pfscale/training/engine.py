"""The two engines: DeepSpeed (jobs) and plain torch (notebooks, small trainings, reference for tests). The only home of deepspeed.

An engine takes one worker's part of a global batch, in one or several passes. Losses are sums; both engines divide by the *global* number
of elements, so the gradient depends neither on the number of workers nor on the number of passes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

from pfscale.errors import ConfigError, ResourceError
from pfscale.models.batch import Batch
from pfscale.training.config import DeepSpeedEngineConfig, OptimisationConfig, TorchEngineConfig

Weights = dict[str, Tensor]
# Elements that DeepSpeed sends at once; its own 500 million would be buffers of many times our models' size.
_BUCKETS = dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"), 20000000)
_TAG = "engine"  # what DeepSpeed calls the one checkpoint in a folder


class Engine(Protocol):
    """One optimizer step at a time, and its state on disk."""

    module: nn.Module

    def accumulate(self, batch: Batch, *, num_elements: int, is_last: bool) -> Tensor:
        """Adds the gradient of one pass; sum of each loss term over the pass's elements.

        Args:
            num_elements: of the whole step, on all workers.
            is_last: no further pass of this step follows.
        """
        ...

    def apply(self, *, learning_rate: float) -> float:
        """Takes the step with the gradients that were accumulated; their norm. One that is not finite takes no step."""
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """Sum of each loss term, without gradients."""
        ...

    def weights(self) -> Weights:
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
    assert config.learning_rate is not None, "resolved before a training starts"
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
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, config.beta2))


def make_engine(
    config: TorchEngineConfig | DeepSpeedEngineConfig,
    module: nn.Module,
    optimisation: OptimisationConfig,
    device: torch.device,
    *,
    from_universal: bool = False,
) -> Engine:
    """The engine that the config names, around `module` (forward: Batch -> sums of loss terms).

    Args:
        from_universal: it will load a checkpoint that `to_universal` made.
    """
    module = module.to(device)
    if isinstance(config, DeepSpeedEngineConfig):
        return DeepSpeedEngine(config, module, optimisation, from_universal=from_universal)
    return TorchEngine(module, optimisation)


@contextmanager
def swapped(engine: Engine, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, the module has these weights (names as in its parameters); not for ZeRO-3, whose workers hold parts only."""
    own = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    _copy_into(engine.module, weights)
    try:
        yield
    finally:
        _copy_into(engine.module, own)


def update_average(averaged: Weights, engine: Engine, decay: float, *, step: int) -> None:
    """Moves the running mean of the weights one step on; young runs forget faster, so that the random start does not linger."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        named = dict(engine.module.named_parameters())
        torch._foreach_lerp_([averaged[name] for name in named], [p.detach() for p in named.values()], 1 - decay)


def _copy_into(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(weights[name])


class TorchEngine:
    """AdamW on the module, whose batches may be of any kind; gradients are summed over workers where there are several."""

    def __init__(self, module: nn.Module, optimisation: OptimisationConfig) -> None:
        self.module = module
        self.clip_norm = optimisation.clip_norm
        self.optimizer = optimizer_for(module, optimisation)
        self.trainable = [p for p in module.parameters() if p.requires_grad]

    def accumulate(self, batch: Any, *, num_elements: int, is_last: bool) -> Tensor:
        terms = self.module(batch)
        (terms.sum() / num_elements).backward()
        if is_last and dist.is_initialized() and dist.get_world_size() > 1:
            self._sum_gradients()
        return terms.detach()

    def _sum_gradients(self) -> None:
        """All gradients as one buffer: one collective per step instead of one per parameter."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trainable]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for p, g in zip(self.trainable, flat.split([g.numel() for g in grads]), strict=True):
            p.grad = g.view_as(p)

    def apply(self, *, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = float(nn.utils.clip_grad_norm_(self.trainable, self.clip_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def evaluate(self, batch: Any) -> Tensor:
        return _evaluate(self.module, batch)

    def weights(self) -> Weights:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


class DeepSpeedEngine:
    """DeepSpeed around the same optimizer, with fp32 weights."""

    def __init__(
        self, config: DeepSpeedEngineConfig, module: nn.Module, optimisation: OptimisationConfig, *, from_universal: bool = False
    ) -> None:
        deepspeed = _import_deepspeed()
        if not dist.is_initialized():  # in the calling process, without Ray: a world of one, which DeepSpeed adopts
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            os.environ.setdefault("LOCAL_RANK", "0")
        self.zero_stage, self.from_universal = config.zero_stage, from_universal
        self.engine: Any
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # the number of passes may differ from step to step; see accumulate
            "gradient_clipping": optimisation.clip_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1_000_000_000,
            **config.options,
            "zero_optimization": {**_BUCKETS, **config.options.get("zero_optimization", {}), "stage": config.zero_stage},
            "checkpoint": {**config.options.get("checkpoint", {}), "load_universal": from_universal},
        }
        try:
            self.engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer_for(module, optimisation), config=settings)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"DeepSpeed refuses {'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})"
            raise ConfigError(what, where="engine.options", hint="its options: https://www.deepspeed.ai/docs/config-json") from error
        self.module: nn.Module = self.engine.module
        self.deepspeed = deepspeed
        self.norm: Tensor | None = None

    def accumulate(self, batch: Batch, *, num_elements: int, is_last: bool) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(is_last)
        terms = self.engine(batch)
        # DeepSpeed takes the mean over workers; the loss is a sum over all workers' elements.
        self.engine.backward(terms.sum() * (self.engine.world_size / num_elements))
        if is_last and self.zero_stage == 0:
            # Without ZeRO, DeepSpeed keeps no gradient norm; the gradients are whole and already averaged then.
            self.norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        return terms.detach()

    def apply(self, *, learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.norm is not None and not math.isfinite(float(self.norm)):  # ZeRO's optimizers see that themselves
            self.engine.zero_grad()
            return math.nan
        self.engine.step()
        norm = float(self.norm if self.norm is not None else self.engine.get_global_grad_norm())
        return norm if norm >= 0 else math.nan  # ZeRO's optimizers say -1 of a norm that is not finite

    def evaluate(self, batch: Batch) -> Tensor:
        return _evaluate(self.engine, batch)

    def weights(self) -> Weights:
        if self.zero_stage < 3:
            return {name: value.detach().float().clone() for name, value in self.module.state_dict().items()}
        with self.deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            return {name: value.detach().float().clone() for name, value in self.module.state_dict().items()}

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=_TAG)

    def load(self, folder: Path) -> None:
        own = [{name: value for name, value in group.items() if name != "params"} for group in self.engine.optimizer.param_groups]
        path, _ = self.engine.load_checkpoint(str(folder), tag=_TAG)
        if path is None:
            raise ResourceError("DeepSpeed could not load its checkpoint", where=str(folder))
        if self.from_universal:
            _mend_universal(self.engine.optimizer.optimizer, own)


def _mend_universal(optimizer: torch.optim.Optimizer, own: list[dict[str, Any]]) -> None:
    """Undoes what ZeRO-3 makes of a universal checkpoint: it gives all groups the first one's weight decay, and all states one tensor
    as their number of steps, which then counts each step once per state.

    Args:
        own: the groups' settings before.
    """
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()


def needs_universal(config: TorchEngineConfig | DeepSpeedEngineConfig, *, saved_by: int, world_size: int) -> bool:
    """Whether a checkpoint of `saved_by` workers must be converted for `world_size` workers: ZeRO's are cut to their number."""
    return isinstance(config, DeepSpeedEngineConfig) and config.zero_stage > 0 and saved_by != world_size


def to_universal(folder: Path, output: Path) -> None:
    """DeepSpeed's checkpoint in `folder` in the form that any number of workers can load, in `output`.

    Raises:
        ResourceError: DeepSpeed's converter fails; its last words.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder / _TAG), "--output_folder", str(output / _TAG)]
    accelerator = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **accelerator})
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        hint = "go on with the number of workers that the checkpoint is of"
        raise ResourceError(f"DeepSpeed cannot convert the checkpoint for another number of workers: {said}", where=str(folder), hint=hint)


def _evaluate(module: nn.Module, batch: Any) -> Tensor:
    module.eval()
    with torch.no_grad():
        terms = module(batch)
    module.train()
    return terms


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
