"""Whether a setting of a downstream head does anything, and how long it takes: two steps on a few events, whose latents are made here."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import torch

from pfscale.shards.dataset import load_index, read_events, select_events
from pfscale.shards.objects import EventObjects
from pfscale.tasks.downstream import TASKS
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.downstream import HeadLaunch, examples_of, head_training
from pfscale.training.engine import TorchEngine, learning_rate
from pfscale.training.heads import HeadData, HeadTraining
from pfscale.training.inference import run_encoder, run_model
from pfscale.training.latents import COLUMNS, LatentPlan, find_objects
from pfscale.training.session import torch_threads

_EVENTS = 128
_MOST_STEPS = 2


_SAMPLES: dict[str, tuple[EventObjects, np.ndarray]] = {}  # by the key of the plan


def head_digest(launch: HeadLaunch) -> str:
    """What a head would be, as a digest.

    Raises:
        ShardError, NotEnoughDataError: too few events, or no example of the task among the first ones.
    """
    config = launch.config
    index = load_index(config.data.shards)
    hashed = hashlib.blake2b(digest_size=16)
    for split, count in (("train", config.data.num_events), ("validation", config.data.num_validation_events)):
        hashed.update(select_events(index, split, count).tobytes())
    training = _training(launch)
    optimisation = config.optimisation.of(10 * config.optimisation.batch_size)  # its schedule, of any number of examples
    rates = [learning_rate(optimisation, step) for step in range(optimisation.num_steps)]
    hashed.update(np.array([*rates, training.batch_size, optimisation.evaluate_every]).tobytes())
    engine = TorchEngine(training.module, optimisation)
    for number, members in enumerate(_first_members(training)):
        torch.manual_seed(config.seed + number)
        terms = engine.accumulate(training.train.batch(members), num_elements=len(members), is_last=True)
        hashed.update(terms.numpy().tobytes())
        engine.apply(learning_rate=rates[number])
    for name, values in sorted(engine.weights().items()):
        hashed.update(f"{name} {tuple(values.shape)}".encode())
        hashed.update(values.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def head_cost(launch: HeadLaunch) -> tuple[int, float]:
    """(steps, seconds of them in this process with as many threads as a trial has)."""
    config = launch.config
    with torch_threads(max(1, config.run.threads_per_worker)):
        training = _training(launch)
        engine = TorchEngine(training.module, training.optimisation)
        times = []
        for members in _first_members(training):
            begin = time.perf_counter()
            engine.accumulate(training.train.batch(members), num_elements=len(members), is_last=True)
            engine.apply(learning_rate=0.0)
            times.append(time.perf_counter() - begin)
    index = load_index(config.data.shards)
    share = len(select_events(index, "train", config.data.num_events)) / max(len(np.unique(training.train.sets.examples.event)), 1)
    num_steps = config.optimisation.of(round(share * len(training.train))).num_steps
    return num_steps, min(times) * num_steps


def _first_members(training: HeadTraining) -> list[np.ndarray]:
    """Members of two steps, with as many examples as a step has; of few examples, again and again."""
    count = len(training.train)
    order = np.arange(_MOST_STEPS * training.batch_size) % count
    if training.module.encoder is not None:  # those of an event together
        order = np.argsort(training.train.sets.examples.event, kind="stable")[order]
    return [order[: training.batch_size], order[training.batch_size :]]


def _training(launch: HeadLaunch) -> HeadTraining:
    objects, rows = _sample(launch.plan)
    task: Any = TASKS[type(launch.config.task)].task.fitted(launch.config.task, objects)
    data: HeadData = examples_of(launch, task, objects, rows)
    return head_training(launch, task, data, data)


def _sample(plan: LatentPlan) -> tuple[EventObjects, np.ndarray]:
    """Objects of the first training events, and their positions in the index."""
    if plan.key not in _SAMPLES:
        index = load_index(plan.shards)
        rows = np.sort(select_events(index, "train")[:_EVENTS])
        events = read_events(index, rows, COLUMNS)
        candidates = run_model(plan.bundle.model, events, ReconstructionConfig(**plan.bundle.card["task"])).candidates
        _SAMPLES[plan.key] = find_objects(events, candidates, run_encoder(plan.encoder.model, events, plan.latents)), rows
    return _SAMPLES[plan.key]
