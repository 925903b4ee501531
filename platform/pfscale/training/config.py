"""What a training needs to know: data, optimisation, engine. Shared by pre-training and transfer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pfscale.config import Config, RunConfig, runtime
from pfscale.tasks.reconstruction import ReconstructionConfig


class DataConfig(Config):
    """Which events are learned from, and how they are batched."""

    shards: str = runtime("shards", description="folder of event shards (pfscale ingest)")
    num_events: int | None = Field(None, ge=1, description="training events: those of lowest hash; empty: all")
    num_validation_events: int | None = Field(500, ge=1, description="validation events: those of lowest hash; empty: all")
    tokens_per_step: int = Field(8192, ge=64, description="elements per optimizer step, padding included, over all workers")
    window_events: int = Field(20_000, ge=1, description="events that are read at once and shuffled among each other")


class OptimisationConfig(Config):
    """AdamW with linear warm-up and cosine decay over the run's own steps."""

    num_steps: int = Field(300, ge=1, description="optimizer steps")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    final_fraction: float = Field(0.02, ge=0, le=1, description="learning rate at the end, as a fraction of the peak")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises to its peak")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay of matrices; norms and biases have none")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    evaluate_every: int = Field(100, ge=1, description="steps between two evaluations; the best of them is the model")


class TorchEngineConfig(Config):
    """Plain torch: notebooks, export, small trainings, and the reference that DeepSpeed is tested against."""

    kind: Literal["torch"] = "torch"


OWNED_OPTIONS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
}


class DeepSpeedEngineConfig(Config):
    """DeepSpeed with ZeRO."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="what is sharded over workers: 1 optimizer, 2 and gradients, 3 and weights")
    options: dict[str, Any] = Field(default_factory=dict, description="further DeepSpeed configuration, passed through")

    @model_validator(mode="after")
    def _options_are_further_ones(self) -> DeepSpeedEngineConfig:
        taken = OWNED_OPTIONS & set(self.options)
        if "stage" in self.options.get("zero_optimization", {}):
            taken.add("zero_optimization.stage")
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: set by pfscale from engine.zero_stage, optimisation and data")
        return self


EngineConfig = Annotated[TorchEngineConfig | DeepSpeedEngineConfig, Field(discriminator="kind")]


class TrainingConfig(Config):
    """What pre-training and transfer have in common."""

    seed: int = Field(1, ge=0, description="seed of initialisation, shuffling and dropout")
    data: DataConfig = DataConfig()
    task: ReconstructionConfig = ReconstructionConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    engine: EngineConfig = DeepSpeedEngineConfig()
    checkpoint_every: int = runtime(100, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = runtime(2, ge=1, description="checkpoints kept, newest first")
    register_as: str = runtime("auto", description="name in the model registry; auto: mlpf-<detector>; empty: not registered")
    run: RunConfig = RunConfig()
