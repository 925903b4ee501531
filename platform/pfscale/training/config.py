"""What a training needs to know: data, optimisation, engine. Shared by pre-training and transfer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from pfscale.config import Config, RunConfig, runtime
from pfscale.errors import closest
from pfscale.models.mlpf import MlpfConfig
from pfscale.tasks.reconstruction import LOSS_TERMS, ReconstructionConfig
from pfscale.tracking.store import shown


class DataConfig(Config):
    """Which events are learned from, and how they are batched."""

    shards: str = runtime("shards", description="folder of event shards (pfscale ingest)")
    num_events: int | None = Field(None, ge=1, description="training events: those of lowest hash; empty: all")
    num_validation_events: int | None = Field(500, ge=1, description="validation events: those of lowest hash; empty: all")
    tokens_per_step: int = Field(8192, ge=64, description="elements per optimizer step at most, over all workers")
    tokens_per_pass: int | None = runtime(
        None,
        ge=64,
        description="elements that a worker takes at once; it accumulates gradients for a larger part of a step; empty: all",
    )
    cache: str = runtime("", description="folder on each node's own disk that keeps decoded events, for many trainings on one data set")
    window_events: int = Field(20_000, ge=1, description="events that are read at once and shuffled among each other, over all workers")
    lanes: int | None = Field(
        None,
        ge=1,
        description="parts of the data that different workers can read, each in every step; empty: one per 4,096 elements of a step; "
        "fewer where there are too few row groups for lanes of equal size",
    )


class OptimisationConfig(Config):
    """AdamW with linear warm-up and cosine decay over the run's own steps."""

    num_steps: int = Field(300, ge=1, description="optimizer steps")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate; empty: the one found for the model's width")
    final_fraction: float = Field(0.02, ge=0, le=1, description="learning rate at the end, as a fraction of the peak")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises to its peak")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay of matrices; norms and biases have none")
    beta2: float = Field(0.95, gt=0, lt=1, description="decay of the running mean of squared gradients")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of a running mean of the weights, which is then evaluated; 0: none")
    evaluate_every: int = Field(100, ge=1, description="steps between two evaluations; the best of them is the model")
    best_by: Literal["loss", *LOSS_TERMS] = Field("loss", description="validation loss, or term of it, that tells the best evaluation")  # type: ignore[valid-type]


class TorchEngineConfig(Config):
    """Plain torch: notebooks, export, small trainings, and the reference that DeepSpeed is tested against."""

    kind: Literal["torch"] = "torch"


OWNED_OPTIONS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "gradient_clipping",
    "gradient_allreduce_op",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "torch_autocast",
    "activation_checkpointing",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}
_OWNED_IN_SECTIONS = {"zero_optimization": ("stage",), "checkpoint": ("load_universal",)}
_KNOWN_OPTIONS = (  # the others of https://www.deepspeed.ai/docs/config-json; DeepSpeed itself ignores what it does not know
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients", "disable_allgather"),
    *("seq_parallel_communication_data_type", "zero_optimization", "checkpoint", "data_types", "aio", "compile", "compression_training"),
    *("data_efficiency", "curriculum_learning", "progressive_layer_drop", "eigenvalue", "sparse_attention", "pipeline", "hybrid_engine"),
    *("tensor_parallel", "weight_quantization", "graph_harvesting", "use_data_before_expert_parallelism", "dataloader_drop_last"),
    *("steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown", "log_level", "disable_python_gc", "check_overflow"),
    *("flops_profiler", "comms_logger", "tensorboard", "wandb", "csv_monitor", "comet", "elasticity", "autotuning", "nebula"),
)


class DeepSpeedEngineConfig(Config):
    """DeepSpeed with ZeRO."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="what is sharded over workers: 1 optimizer, 2 and gradients, 3 and weights")
    options: dict[str, Any] = Field(default_factory=dict, description="further DeepSpeed configuration, passed through")

    @model_validator(mode="after")
    def _options_are_further_ones(self) -> DeepSpeedEngineConfig:
        taken = OWNED_OPTIONS & set(self.options)
        for section, owned in _OWNED_IN_SECTIONS.items():
            values = self.options.get(section, {})
            if not isinstance(values, dict):
                raise ValueError(f"{section} must be a mapping, got {values!r}")
            taken |= {f"{section}.{name}" for name in owned if name in values}
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: set by pfscale from engine.zero_stage, precision, optimisation and data")
        for name in self.options:
            if name not in _KNOWN_OPTIONS:
                near = closest(name, _KNOWN_OPTIONS, count=1)
                raise ValueError(f"DeepSpeed has no option '{name}'" + (f"; did you mean {near[0]}?" if near else ""))
        return self


AnyConfig = TypeVar("AnyConfig", bound=Config)
AnyTrainingConfig = TypeVar("AnyTrainingConfig", bound="TrainingConfig")
EngineConfig = Annotated[TorchEngineConfig | DeepSpeedEngineConfig, Field(discriminator="kind")]


class GuardConfig(Config):
    """When a training stops itself, besides a loss or gradient that is not finite."""

    spike_factor: float = Field(10.0, ge=0, description="a step's loss above this times the median of the last `window` steps; 0: never")
    spike_floor: float = Field(0.1, ge=0, description="a smaller median counts as this: losses near zero jump easily")
    window: int = Field(50, ge=5, description="steps that a loss is compared with; no step is a spike before there are as many")


class TrainingConfig(Config):
    """What pre-training and transfer have in common."""

    seed: int = Field(1, ge=0, lt=2**31, description="seed of initialisation, shuffling and dropout")
    data: DataConfig = DataConfig()
    task: ReconstructionConfig = ReconstructionConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    engine: EngineConfig = DeepSpeedEngineConfig()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="what the attention blocks compute in (weights, embedding, heads and losses are fp32); auto: bf16 with run.use_gpu",
    )
    recompute_activations: bool = runtime(False, description="activation checkpointing: less memory, a third more time, the same result")
    guard: GuardConfig = runtime(GuardConfig(), description="when a training stops itself")
    physics_every: int = runtime(0, ge=0, description="steps between two looks at jets and missing momentum, at evaluations; 0: at the end")
    physics_events: int = runtime(1000, ge=0, description="validation events of the physics figures at the end; 0: none")
    checkpoint_every: int = runtime(100, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = runtime(2, ge=1, description="checkpoints kept, newest first")
    register_as: str = runtime("auto", description="name in the model registry; auto: mlpf-<detector>; empty: not registered")
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _physics_is_looked_at_in_evaluations(self) -> TrainingConfig:
        every = self.optimisation.evaluate_every
        if self.physics_every % every:
            raise ValueError(f"physics_every must be a multiple of optimisation.evaluate_every ({every}), got {self.physics_every}")
        return self

    @model_validator(mode="after")
    def _accelerators_are_workers(self) -> TrainingConfig:
        if self.run.use_gpu and self.run.num_workers == 0:
            raise ValueError("run.num_workers=0 trains on the CPU of the calling process; with run.use_gpu use run.num_workers=1 or more")
        return self

    @model_validator(mode="after")
    def _averages_need_whole_weights(self) -> TrainingConfig:
        if self.optimisation.ema_decay and isinstance(self.engine, DeepSpeedEngineConfig) and self.engine.zero_stage == 3:
            raise ValueError("optimisation.ema_decay needs whole weights on every worker, which zero_stage 3 does not keep: use 2 at most")
        return self


def resolved(config: AnyTrainingConfig, model: MlpfConfig) -> AnyTrainingConfig:
    """The config with what it leaves open filled in: precision by hardware, learning rate by the model's width.

    Done before the fingerprint, so that a run's name says what was computed, not what was asked for.
    """
    precision = config.precision if config.precision != "auto" else ("bf16" if config.run.use_gpu else "fp32")
    rate = config.optimisation.learning_rate or default_learning_rate(model.width)
    optimisation = config.optimisation.model_copy(update={"learning_rate": rate})
    return config.model_copy(update={"precision": precision, "optimisation": optimisation})


def default_learning_rate(width: int) -> float:
    """Peak learning rate for a model of this width: 4e-3 up to width 128, falling as 1 / width; see the study in tests/benchmarks."""
    return float(f"{4e-3 * min(1.0, 128 / width):.3g}")


def loggable(config: AnyConfig) -> AnyConfig:
    """The config as it may be shown: without a password in the tracking address of its run section."""
    run: RunConfig = config.run  # type: ignore[attr-defined]
    return config.model_copy(update={"run": run.model_copy(update={"tracking_uri": shown(run.tracking_uri)})})
