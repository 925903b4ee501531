"""Whether a setting does anything: the first two steps of a training, on a few events, as one digest.

A searched key that does nothing costs a sweep and teaches nothing. Two values of every searched key must give other trainings, by what is
built and done, not by what is written down: the plan of the data, the schedule, the weights after two steps, what is kept of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfscale.errors import ConfigError
from pfscale.models.batch import collate
from pfscale.models.flops import training_flops
from pfscale.shards.dataset import EventIndex, load_index, plan_epoch, select_events
from pfscale.studies.config import Draw, Question, names_of
from pfscale.studies.head_effects import head_digest
from pfscale.tracking.runs import Tracker
from pfscale.training.batches import lanes_of, learning_events
from pfscale.training.checkpoint import parameters
from pfscale.training.config import TorchEngineConfig, TrainingConfig
from pfscale.training.downstream import HeadLaunch
from pfscale.training.engine import learning_rate, make_engine, update_average
from pfscale.training.launch import Launch
from pfscale.training.loop import build_module
from pfscale.training.session import Alone, torch_threads
from pfscale.training.verbs import find_verb

_EVENTS = 8  # per step that is tried
_MOST_BASES = 6  # draws that a key is changed in before it is said to do nothing


@dataclass(frozen=True)
class Tried:
    """What two values of a key lead to: `differs`, whether that is another training."""

    key: str
    values: tuple[Any, Any]
    differs: bool


def require_effects(question: Question, found: Sequence[Draw]) -> list[Tried]:
    """Tries two values of every key that the draws vary.

    Raises:
        ConfigError: keys that change nothing.
    """
    tried = [_try(question, found, key) for key in _varied(found)]
    idle = [f"{t.key}: {t.values[0]} and {t.values[1]} give the same training" for t in tried if not t.differs]
    if idle:
        count = f"{len(idle)} searched key{'s' * (len(idle) != 1)} without effect"
        raise ConfigError("\n  ".join([count, *idle]), hint="leave them out of the space, or search what they belong to")
    return tried


def _varied(found: Sequence[Draw]) -> list[str]:
    """Keys with more than one value, in order."""
    values: dict[str, set[str]] = {}
    for draw in found:
        for key, value in draw.settings:
            values.setdefault(key, set()).add(repr(value))
    return [key for key, seen in values.items() if len(seen) > 1]


def _try(question: Question, found: Sequence[Draw], key: str) -> Tried:
    """Whether any draw is another training with another value of `key`: it may do nothing beside some values of the others."""
    having = [draw for draw in found if key in draw.values]
    others = {repr([item for item in draw.settings if item[0] not in (key, "seed")]): draw for draw in reversed(having)}
    bases = list(reversed(others.values()))[:_MOST_BASES]
    for first in bases:
        tried = _try_from(question, first, having, key)
        if tried.differs:
            break
    return tried


def _try_from(question: Question, first: Draw, having: Sequence[Draw], key: str) -> Tried:
    """Two draws that differ in `key` alone: another value of it put into `first`. What is searched beside it stays.

    Keys that are drawn together may fit together only: where no other value fits alone, they change together.
    """
    donors = [draw for draw in having if repr(draw.values[key]) != repr(first.values[key])]
    group = next((names_of(k) for part in question.sweep.space for k in part if key in names_of(k)), [key])
    for names in ([key], group):
        for donor in donors:
            changed = Draw(tuple((name, donor.values.get(name, value) if name in names else value) for name, value in first.settings))
            try:
                configs = [question.config(draw) for draw in (first, changed)]
            except ConfigError:
                continue
            digests = [digest_of(*find_verb(question.sweep.verb).launch(config)) for config in configs]
            return Tried(key, (first.values[key], donor.values[key]), digests[0] != digests[1])
    hint = "draw it together with what it must fit: `a, b: {grid_search: [[1, 2], [3, 4]]}`"
    raise ConfigError(f"{key}: no two of its values fit the same other settings, so its effect cannot be seen", hint=hint)


def digest_of(launch: Launch | HeadLaunch, tracker: Tracker) -> str:
    """What a training would do, as a digest.

    Raises:
        ShardError, ModelNotFoundError, NotEnoughDataError.
    """
    if isinstance(launch, HeadLaunch):
        return head_digest(launch)
    config = launch.config
    if getattr(config, "mode", "") == "zero-shot":
        return f"zero-shot {launch.backbone}"
    index = load_index(config.data.shards)
    train = select_events(index, "train", config.data.num_events)
    steps = _first_steps(config, index, train, count=2)
    hashed = hashlib.blake2b(digest_size=16)
    optimisation = config.optimisation
    rates = [learning_rate(optimisation, step) for step in range(optimisation.num_steps)]
    kept = (optimisation.evaluate_every, optimisation.best_by)
    for part in (train, *steps, np.array(rates), np.array(kept, dtype=str)):
        hashed.update(np.ascontiguousarray(part).tobytes())
    engine = _engine(launch, tracker, index, train)
    averaged = parameters(engine) if optimisation.ema_decay else None
    for number, members in enumerate(steps):
        torch.manual_seed(config.seed + number)
        events = learning_events(index, np.sort(members[:_EVENTS]))
        batch = collate(events, np.arange(events.num_events))
        terms = engine.accumulate(batch, num_elements=max(int(events.lengths.sum()), 1), is_last=True)
        hashed.update(terms.detach().numpy().tobytes())
        engine.apply(learning_rate=rates[number])
        if averaged is not None:
            update_average(averaged, engine, optimisation.ema_decay, step=number)
    for weights in (engine.weights(), averaged or {}):
        for name in sorted(weights):
            hashed.update(f"{name} {tuple(weights[name].shape)}".encode())
            hashed.update(weights[name].contiguous().numpy().tobytes())
    return hashed.hexdigest()


def step_seconds(launch: Launch, tracker: Tracker) -> tuple[float, float]:
    """(seconds of one training step in this process, its floating-point operations), with one thread as a trial has."""
    config = launch.config
    index = load_index(config.data.shards)
    train = select_events(index, "train", config.data.num_events)
    (members,) = _first_steps(config, index, train, count=1)
    events = learning_events(index, np.sort(members))
    batch = collate(events, np.arange(events.num_events))
    with torch_threads(max(1, config.run.threads_per_worker)):
        engine = _engine(launch, tracker, index, train)
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            engine.accumulate(batch, num_elements=max(int(events.lengths.sum()), 1), is_last=True)
            engine.apply(learning_rate=0.0)
            times.append(time.perf_counter() - begin)
    return min(times), training_flops(engine.module.model, events.lengths.tolist())


def _first_steps(config: TrainingConfig, index: EventIndex, train: np.ndarray, *, count: int) -> list[np.ndarray]:
    """Events of the first steps of the first epoch; fewer where it has fewer."""
    budget = {"tokens_per_step": config.data.tokens_per_step, "window_events": config.data.window_events}
    window = next(plan_epoch(index, lanes_of(index, train, config.data), **budget, seed=config.seed, epoch=0))
    return [window.events[rows] for rows in window.steps[:count]]


def _engine(launch: Launch, tracker: Tracker, index: EventIndex, train: np.ndarray) -> Any:
    """Plain torch, whatever engine the trial has: both take the same steps."""
    module = build_module(launch.loop_inputs(tracker, "", Path()), index, train)
    return make_engine(TorchEngineConfig(), module, launch.config.optimisation, Alone().device)
