"""A downstream head: a network on the candidates of a registered model, and on latents that are attached to them.

Jets, constituents and kinematics are the registered model's in every arm and for every backbone; only the latents differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pfscale import __version__
from pfscale.config import Config, RunConfig, dump_yaml, fingerprint, load_config, runtime
from pfscale.errors import InputFileError, NotEnoughDataError, StoppedError
from pfscale.models.bundle import load_bundle, load_weights, read_bundle, save_bundle
from pfscale.models.mlpf import LatentConfig, Mlpf, MlpfConfig, count_parameters
from pfscale.models.networks import NetworkConfig, build_network
from pfscale.models.set_networks import LinearConfig
from pfscale.models.sets import Widths
from pfscale.physics.bootstrap import Estimate, event_bootstrap
from pfscale.physics.met import missing_momentum
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.objects import EventObjects
from pfscale.shards.ragged import INPUT_COLUMNS
from pfscale.tasks.arms import Arm, has_latents, set_data
from pfscale.tasks.downstream import TASKS, TaskConfig
from pfscale.tasks.missing_momentum import MissingMomentumConfig
from pfscale.tasks.sets import DownstreamTask, Examples, SetData
from pfscale.tracking.registry import ModelVersion, register_model, weights_digest
from pfscale.tracking.runs import RunLogger, Tracker, connect, ended
from pfscale.training.config import OptimisationConfig, loggable
from pfscale.training.heads import Elements, HeadData, HeadModule, HeadTraining, described, predictions, train_head
from pfscale.training.latents import RANDOM, SAME, LatentPlan, cache_latents, load_objects, plan_latents, select_objects
from pfscale.training.launch import flat_params
from pfscale.training.run import Run
from pfscale.training.session import LocalSession, torch_threads
from pfscale.training.stopping import stop_on_signals
from pfscale.training.storage import claimed, read_finished, storage_folder, write_finished

DOWNSTREAM_VERSION = "2"  # to be raised when the same config and data give other weights
HEAD_KIND = "downstream"
PREDICTIONS = "test.npz"  # in a run's folder: what the head says of the test split, and what is true
Backbone = Literal["pretrained-frozen", "pretrained-finetuned", "random-frozen"]


class HeadDataConfig(Config):
    """Which events a head learns from."""

    shards: str = runtime("shards", description="folder of event shards of the backbone's detector")
    num_events: int | None = Field(None, ge=1, description="labels: training events of lowest hash; empty: all")
    num_validation_events: int | None = Field(None, ge=1, description="validation events of lowest hash; empty: all")


class HeadOptimisationConfig(Config):
    """AdamW with linear warm-up and cosine decay to nothing."""

    num_epochs: float = Field(10.0, gt=0, description="passes over the training examples")
    min_steps: int = Field(200, ge=1, description="optimizer steps at least: few examples are passed over more often")
    batch_size: int = Field(128, ge=1, description="examples of a step")
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises to its peak")
    final_fraction: float = Field(0.01, ge=0, le=1, description="learning rate at the end, as a fraction of the peak")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay of matrices")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    evaluations: int = Field(10, ge=1, description="evaluations, evenly spaced; the best of them is the model")

    def of(self, num_examples: int) -> OptimisationConfig:
        """In steps."""
        steps = max(self.min_steps, round(self.num_epochs * num_examples / self.batch_size))
        return OptimisationConfig(
            num_steps=steps,
            learning_rate=self.learning_rate,
            final_fraction=self.final_fraction,
            warmup_fraction=self.warmup_fraction,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            evaluate_every=max(1, steps // self.evaluations),
        )


class DownstreamConfig(Config):
    """A task on a registered model's candidates."""

    where_keys_are: ClassVar[str] = "all keys with their defaults: pfscale config show downstream"

    seed: int = Field(1, ge=0, description="seed of initialisation and shuffling")
    backbone: str = runtime("models:/mlpf-cld@candidate", description="registered model that gives candidates and latents")
    state: Backbone = Field("pretrained-frozen", description="whose latents: the model's; the same, trained along; an untrained encoder's")
    encoder: str = runtime(SAME, description="another model whose latents are attached to the backbone's candidates; same: its own")
    random_seed: int = Field(1, ge=0, description="of the untrained encoder")
    latents: LatentConfig = LatentConfig()
    data: HeadDataConfig = HeadDataConfig()
    task: TaskConfig = MissingMomentumConfig()
    arm: Arm = Field("kinematics+latents", description="what the network sees of each constituent")
    network: NetworkConfig | None = Field(None, description="empty: the task's own; linear where the arm is latents-linear")
    optimisation: HeadOptimisationConfig = HeadOptimisationConfig()
    checkpoint_every: int = runtime(500, ge=1, description="steps between two checkpoints")
    register_as: str = runtime("auto", description="name in the model registry; auto: <task>-<detector>; empty: not registered")
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> DownstreamConfig:
        if self.arm == "latents-linear" and not isinstance(self.network, LinearConfig | None):
            raise ValueError("arm latents-linear is one linear layer: leave network away, or network.kind=linear")
        if self.state == "pretrained-finetuned" and not has_latents(self.arm):
            raise ValueError(f"arm {self.arm} has no latents to train an encoder through")
        if self.state != "pretrained-frozen" and self.encoder != SAME:
            raise ValueError(f"encoder={self.encoder} goes with state=pretrained-frozen")
        if self.state == "pretrained-finetuned" and self.task.kind == "event_assignment":
            raise ValueError("event_assignment takes latents of jets, which are made of frozen ones: state=pretrained-frozen")
        if self.run.num_workers > 1:
            raise ValueError("a head trains in one process (run.num_workers 0 or 1); a sweep trains many at once")
        return self

    def network_config(self) -> Any:
        """What is built."""
        if self.network is not None:
            return self.network
        return LinearConfig() if self.arm == "latents-linear" else TASKS[type(self.task)].network


@dataclass(frozen=True)
class HeadLaunch:
    """One head to be trained.

    Attributes:
        plan: of its latents.
        fingerprint: of config, data, backbone and latents.
    """

    config: DownstreamConfig
    plan: LatentPlan
    fingerprint: str
    verb: str = "downstream"

    @property
    def name(self) -> str:
        """Of the run, in MLflow and in the storage folder."""
        return f"{self.config.run.name or self.verb}-{self.fingerprint}"

    @property
    def folder(self) -> Path:
        """Of the run."""
        return storage_folder(self.config.run) / self.name

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def cache(self) -> Path:
        """Folder of its latents, shared by all heads on them."""
        return self.plan.folder(storage_folder(self.config.run))

    def prepare(self) -> None:
        """Makes the latents where there are none: once, before many heads start.

        Raises:
            ShardError, ResourceError: as `cache_latents`.
        """
        cache_latents(self.plan, self.cache)

    @cached_property
    def needs_encoder(self) -> bool:
        """Whether the encoder is trained along."""
        return self.config.state == "pretrained-finetuned"


def downstream(config: DownstreamConfig) -> Run:
    """The trained and registered head, measured on the test split beside what there is without it.

    Raises:
        ModelNotFoundError, ShardError (another detector's shards), NotEnoughDataError, ConfigError, TrackingError, ResourceError.
        DivergedError: a loss that is not finite. StoppedError: it was asked to stop, with a checkpoint.
    """
    launch, tracker = heading(config)
    with claimed(launch.folder):
        finished = read_finished(launch.folder, tracker, launch.fingerprint)
        if finished is None:
            return _train(launch, tracker)
        assert finished.checkpoint is not None
        version = _register(launch, tracker, finished.run_id, finished.checkpoint)  # by a sweep, say, or under another name
        return replace(finished, model=version or finished.model)


def heading(config: DownstreamConfig) -> tuple[HeadLaunch, Tracker]:
    """What `downstream` runs, and where it logs.

    Raises:
        ModelNotFoundError, ShardError, ConfigError, TrackingError.
    """
    tracker = connect(config.run.tracking_uri, config.run.experiment)
    if not has_latents(config.arm):  # all of them are the same training
        config = config.model_copy(update={"state": "pretrained-frozen", "encoder": SAME, "latents": LatentConfig(), "random_seed": 1})
    encoder = f"{RANDOM}:{config.random_seed}" if config.state == "random-frozen" else config.encoder
    plan = plan_latents(config.backbone, config.data.shards, encoder=encoder, latents=config.latents, tracking_uri=tracker.uri)
    config = config.model_copy(update={"backbone": plan.address, "network": config.network_config()})
    parent = weights_digest(plan.place)
    digest = fingerprint(config, data=plan.manifest.hash, parent=parent, latents=plan.key, version=DOWNSTREAM_VERSION)
    return HeadLaunch(config, plan, digest), tracker


@dataclass(frozen=True)
class _Splits:
    """Examples of the splits; `test` beside its objects, which figures of merit are made of."""

    train: HeadData
    validation: HeadData
    test: HeadData
    test_objects: EventObjects


def _train(launch: HeadLaunch, tracker: Tracker) -> Run:
    config = launch.config
    launch.prepare()
    tags = {
        "pfscale.verb": launch.verb,
        "pfscale.detector": launch.plan.manifest.detector,
        "pfscale.data": launch.plan.manifest.hash,
        "pfscale.backbone": launch.plan.address,
        **config.run.tags,
    }
    logger = tracker.start_run(launch.name, fingerprint=launch.fingerprint, tags=tags, parent_run_id=config.run.parent_run or None)
    with ended(logger):
        logger.log_config(dump_yaml(loggable(config)))
        logger.log_params(flat_params(loggable(config).model_dump(mode="json")))
        objects = _objects(str(launch.cache))
        task, splits = prepare(launch, objects)
        training = head_training(launch, task, splits.train, splits.validation)
        with stop_on_signals(launch.folder), torch_threads(config.run.threads_per_worker):
            best, state = train_head(training, LocalSession(launch.folder, keep=1), launch.folder, logger)
        if state.step < training.optimisation.num_steps:
            what = f"stopped as asked, with a checkpoint at step {state.step}"
            raise StoppedError(what, where=launch.name, hint="the same command goes on from there")
        training.module.load_state_dict(best)
        metrics = _measured(training, splits, launch.folder / PREDICTIONS)
        metrics |= {"validation_loss": state.best_loss, "best_step": float(state.best_step)}
        return _finish(launch, tracker, logger, training, metrics)


def prepare(launch: HeadLaunch, objects: EventObjects) -> tuple[DownstreamTask, _Splits]:
    """The task, and the examples of all splits.

    Raises:
        NotEnoughDataError: fewer events than asked for, or no example of the task among them.
    """
    data = launch.config.data
    wanted = {"train": data.num_events, "validation": data.num_validation_events, "test": None}
    members = {split: select_objects(objects, split, count) for split, count in wanted.items()}
    for split, count in wanted.items():
        if len(members[split]) < (count or 1):
            there = len(select_objects(objects, split))
            what = f"{count or 1} {split} events asked for, the data set has {there}"
            raise NotEnoughDataError(what, where=data.shards, hint="ingest more files")
    parts = {split: objects.select(rows) for split, rows in members.items()}
    task = TASKS[type(launch.config.task)].task.fitted(launch.config.task, parts["train"])
    found = {split: examples_of(launch, task, part, members[split]) for split, part in parts.items()}
    for split in ("train", "validation", "test"):
        if not len(found[split]):
            raise NotEnoughDataError(f"no {split} example of {launch.config.task.kind} in {len(members[split])} events", where=data.shards)
    return task, _Splits(found["train"], found["validation"], found["test"], parts["test"])


def head_training(launch: HeadLaunch, task: DownstreamTask, train: HeadData, validation: HeadData) -> HeadTraining:
    """Network and schedule, as they are before the first step."""
    config = launch.config
    torch.manual_seed(config.seed)
    width = launch.plan.encoder.model.latent_width(config.latents) if has_latents(config.arm) else 0
    num_inputs = train.sets.features.shape[1] + width
    widths = Widths(num_inputs, task.of_set, task.of_constituent)
    network = build_network(config.network_config(), widths, starts_at_zero=task.starts_at_zero)
    encoder = load_bundle(launch.plan.place).model if launch.needs_encoder else None
    module = HeadModule(task, network, num_inputs, encoder=encoder, latents=config.latents)
    module.fit(train.sets)
    if launch.needs_encoder:  # they are computed from here on
        train, validation = _without_latents(train), _without_latents(validation)
    return HeadTraining(
        module=module,
        train=train,
        validation=validation,
        optimisation=config.optimisation.of(len(train)),
        batch_size=config.optimisation.batch_size,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
        device=torch.device("cuda" if config.run.use_gpu else "cpu"),
    )


def examples_of(launch: HeadLaunch, task: Any, objects: EventObjects, rows: NDArray[np.int64]) -> HeadData:
    """The task's examples among the objects of events.

    Args:
        rows: of the events in the index of the shards.
    """
    examples = task.examples(objects)
    sets, _ = set_data(launch.config.arm, objects, examples)
    if not launch.needs_encoder:
        return HeadData(sets)
    index = load_index(launch.config.data.shards)  # its events are in the order of the cache's
    events = read_events(index, rows, INPUT_COLUMNS)
    if not np.array_equal(events.uid, objects.event["uid"]):
        raise InputFileError("latents and shards are of different events", where=str(launch.cache), hint="delete that folder")
    element = events.offsets[objects.event_of_candidate[examples.rows]] + objects.candidate["element_index"][examples.rows]
    return HeadData(sets, Elements(events, element))


def _without_latents(data: HeadData) -> HeadData:
    return replace(data, sets=replace(data.sets, latents=None))


@lru_cache(maxsize=2)
def _objects(folder: str) -> EventObjects:
    """Of a complete cache; many heads of one process read it once."""
    return load_objects(folder)[1]


def _measured(training: HeadTraining, splits: _Splits, kept: Path) -> dict[str, float]:
    """Figures of merit on the test split, and sizes; what the head said goes to the file `kept`."""
    test = _without_latents(splits.test) if training.module.encoder is not None else splits.test
    found = predictions(training.module, test, training.device)
    _keep(found, training.module.task, test.sets.examples, splits.test_objects, kept)
    bootstrap = event_bootstrap(splits.test_objects.num_events, seed=1)
    estimates: dict[str, Estimate] = training.module.task.metrics(found, test.sets.examples, splits.test_objects, bootstrap)
    metrics = {f"test/{name}": value for name, value in described(estimates).items()}
    return metrics | {
        "num_parameters": float(count_parameters(training.module.network)),
        "num_train_examples": float(len(training.train)),
        "num_test_examples": float(len(test)),
        "num_epochs": training.optimisation.num_steps * training.batch_size / len(training.train),
    }


def _keep(said: NDArray[np.float32], task: DownstreamTask, examples: Examples, objects: EventObjects, path: Path) -> None:
    """Predictions and truth of the test split, for figures of many heads."""
    values: dict[str, NDArray] = {"predictions": said, "uid": objects.event["uid"][examples.event], **examples.targets}
    if (examples.jet >= 0).all():
        values |= {name: objects.jet[name][examples.jet] for name in ("energy", "gen_energy", "gen_pt")}
    else:
        plain = missing_momentum(objects.event_of_candidate, *(objects.candidate[n] for n in ("px", "py")), num_events=objects.num_events)
        values["plain"] = np.stack(plain, 1)[examples.event]
    values["classes"] = np.array(getattr(task, "classes", ()), dtype=np.str_)
    np.savez_compressed(path, allow_pickle=False, **values)


def _finish(launch: HeadLaunch, tracker: Tracker, logger: RunLogger, training: HeadTraining, metrics: dict[str, float]) -> Run:
    """The run with its figures logged and its head registered."""
    config, manifest = launch.config, launch.plan.manifest
    logger.log_metrics(metrics, step=training.optimisation.num_steps)
    card = {
        "kind": HEAD_KIND,
        "task": config.task.kind,
        "classes": list(getattr(training.module.task, "classes", ())),
        "arm": config.arm,
        "state": config.state,
        "latents": launch.plan.key,
        "detector": manifest.detector,
        "simulation": manifest.simulation,
        "process": manifest.process,
        "data": manifest.hash,
        "parent": launch.plan.address,
        "parent_hash": launch.plan.model_hash,
        "encoder": launch.plan.encoder_name,
        "encoder_config": launch.plan.encoder.model.config.model_dump(mode="json") if launch.needs_encoder else None,
        "fingerprint": launch.fingerprint,
        "verb": launch.verb,
        "num_inputs": len(training.module.mean),
        "num_train_events": config.data.num_events,
        "metrics": metrics,
        "measured_on": "test split",
        "run": logger.run_id,
        "pfscale": __version__,
    }
    bundle = save_bundle(launch.folder / "model", config, training.module.state_dict(), card)
    version = _register(launch, tracker, logger.run_id, bundle)
    run = Run(logger.run_id, launch.name, launch.fingerprint, metrics, bundle, version, logger.link)
    write_finished(run)
    return run


def _register(launch: HeadLaunch, tracker: Tracker, run_id: str, bundle: Path) -> ModelVersion | None:
    """The registered version of a finished head, None where none is asked for."""
    config, manifest = launch.config, launch.plan.manifest
    if not config.register_as:
        return None
    card = read_bundle(bundle, kind=HEAD_KIND).card
    name = f"{TASKS[type(config.task)].name}-{manifest.detector}" if config.register_as == "auto" else config.register_as
    tags = {
        key: str(card[key])
        for key in ("detector", "simulation", "data", "parent", "fingerprint", "verb", "task", "arm", "state", "encoder")
    }
    headline = TASKS[type(config.task)].task.headline()
    tags["events"] = str(config.data.num_events or manifest.splits["train"])
    tags["headline"] = f"{headline} {card['metrics'].get(f'test/{headline}', float('nan')):.4g}"
    return register_model(tracker, run_id=run_id, bundle=bundle, name=name, tags=tags)


@dataclass(frozen=True)
class Head:
    """A trained head, with its config and card."""

    module: HeadModule
    config: DownstreamConfig
    card: dict[str, Any]

    def predict(self, sets: SetData) -> NDArray[np.float32]:
        """What it says of examples with frozen latents."""
        return predictions(self.module, HeadData(sets), torch.device("cpu"))


def load_head(folder: str | Path) -> Head:
    """The registered head in `folder`.

    Raises:
        InputFileError: it is no head, or a file is missing.
    """
    files = read_bundle(folder, kind=HEAD_KIND)
    config, card = load_config(DownstreamConfig, files.config), files.card
    entry = TASKS[type(config.task)]
    task = entry.task(config.task, tuple(card["classes"])) if card["classes"] else entry.task(config.task)
    network = build_network(config.network_config(), Widths(card["num_inputs"], task.of_set, task.of_constituent))
    encoder = Mlpf(MlpfConfig(**card["encoder_config"])) if card["encoder_config"] else None
    module = HeadModule(task, network, card["num_inputs"], encoder=encoder, latents=config.latents)
    load_weights(module, files.weights, where=str(folder))
    return Head(module.eval(), config, card)
