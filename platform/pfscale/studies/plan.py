"""What a sweep is going to do, before it does it: checked offline, with a time that follows from a measured step."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from pfscale.errors import ConfigError, closest
from pfscale.models.flops import training_flops
from pfscale.models.mlpf import Mlpf
from pfscale.ray_cluster import is_running, ray_cluster, room_on_nodes
from pfscale.shards.dataset import load_index, select_events
from pfscale.shards.manifest import load_manifest
from pfscale.studies.config import AshaScheduler, Draw, Question, SweepConfig, cell_of, draws, repeated
from pfscale.studies.effects import require_effects, step_seconds
from pfscale.studies.head_effects import head_cost
from pfscale.studies.measure import PAIRED, PREFIX, is_larger_better, measured_sample
from pfscale.tasks.reconstruction import LOSS_TERMS
from pfscale.tracking.runs import Tracker
from pfscale.training.config import TorchEngineConfig
from pfscale.training.downstream import HeadLaunch
from pfscale.training.evaluate import EVALUATION_VERSION
from pfscale.training.launch import Launch
from pfscale.training.verbs import find_verb

_LOSSES = ("validation_loss", *(f"validation_{term}" for term in LOSS_TERMS))
_PHYSICS = ("validation_jet_response_iqr_over_median", "validation_met_resolution")
_EXAMPLES = 32  # events whose lengths the cost of a step is taken from
_OTHER_WORK = 1.25  # time of a trial over that of its steps: evaluations, reading, logging


@dataclass(frozen=True)
class Planned:
    """One trial to come.

    Attributes:
        launch: what it runs; `mode: zero-shot` has no steps.
        work: of all its steps: floating-point operations, of a head the seconds that were measured.
    """

    draw: Draw
    launch: Launch | HeadLaunch
    num_steps: int
    work: float


@dataclass(frozen=True)
class SweepPlan:
    """All trials, how many run at once, and how long it may take.

    Attributes:
        varied: keys that the sweep searches; each was seen to change the training.
        work_per_second: of one trial, measured in this process; NaN where there are no steps.
        fingerprint: of the question, the trials' configs, data and backbone, and the test events.
    """

    question: Question
    trials: tuple[Planned, ...]
    tracker: Tracker
    varied: tuple[str, ...]
    concurrency: int
    work_per_second: float
    fingerprint: str

    @property
    def name(self) -> str:
        """Of the sweep, in MLflow and in the storage folder."""
        return f"sweep-{self.question.name}-{self.fingerprint}"

    @property
    def detector(self) -> str:
        """Of the data that is learned from."""
        return load_manifest(self.trials[0].launch.config.data.shards).detector

    @property
    def hours(self) -> float:
        """Estimated, of wall time, as if the longest trials won; longer trials first would not be shorter than the longest."""
        sweep = self.question.sweep
        cells: dict[str, float] = {}
        for trial in self.trials:
            cell = cell_of(trial.draw.values, sweep)
            cells[cell] = max(cells.get(cell, 0.0), trial.work)
        repeats = [work for work in cells.values() for _ in range(sweep.winners * (sweep.winner_seeds - 1))]
        own = [trial.work for trial in self.trials]
        control = own if sweep.control else []
        each = [work / self.work_per_second * _OTHER_WORK for work in (*own, *repeats, *control) if work]
        return max(sum(each) / self.concurrency, max(each, default=0.0)) / 3600

    @property
    def num_repeats(self) -> int:
        """Trials of winners with further seeds; fewer where some have them already."""
        sweep = self.question.sweep
        cells = _settings([trial.draw for trial in self.trials if trial.num_steps], sweep)
        counts = [sweep.num_samples] if sweep.search == "optuna" else list(map(len, cells.values()))
        return sum(min(sweep.winners, count) for count in counts) * (sweep.winner_seeds - 1)

    def table(self) -> Table:
        """What is printed before anything starts."""
        sweep = self.question.sweep
        table = Table("", "", title=sweep.question, title_justify="left", show_header=False)
        steps = sorted({trial.num_steps for trial in self.trials})
        shown = ", ".join(f"{n:,}" for n in steps[:6]) + (", ..." if len(steps) > 6 else "")
        kind = sweep.scheduler.kind
        of = f" of every {', '.join(sweep.winners_of)}" if sweep.winners_of else f" {sweep.winners}"
        rows = [
            (
                "trials",
                f"{sweep.num_samples if sweep.search == 'optuna' else len(self.trials)} of {sweep.verb}, {self.concurrency} at once",
            ),
            *([("then", "plain random search with as many operations")] if sweep.control else []),
            *(
                [("then", f"the best{of}, with {sweep.winner_seeds} seeds: up to {self.num_repeats} further trials")]
                if sweep.winners
                else []
            ),
            ("searched", ", ".join(self.varied) or "nothing"),
            ("how", f"{sweep.search}" + (f", stopped early by {kind}" if kind != "none" else "")),
            ("compared by", f"{sweep.metric} ({'lower' if sweep.mode == 'min' else 'higher'} is better)"),
            ("steps of a trial", shown),
            ("estimated time", _duration(self.hours) + (" if none were stopped" if kind != "none" else "")),
            ("storage", f"{self.trials[0].launch.config.run.storage}/{self.name}"),
        ]
        for row in rows:
            table.add_row(*row)
        return table


def plan_sweep(question: Question) -> SweepPlan:
    """The plan of a sweep, everything checked that can be checked without a cluster.

    Raises:
        ConfigError: draws that do not fit the config, an unknown metric, a searched key without effect; all of a kind at once.
        ShardError, ModelNotFoundError, NotEnoughDataError, TrackingError.
    """
    sweep = question.sweep
    found = draws(sweep)
    _require_valid(question, found)
    first_seed = int(getattr(question.config(found[0]), "seed", 1))
    wanted = [draw for one in found for draw in repeated(one, first_seed=first_seed, count=sweep.repeat)] if sweep.repeat > 1 else found
    launches = [find_verb(sweep.verb).launch(question.config(draw)) for draw in wanted]
    _require_metric(question, [launch for launch, _ in launches])
    _require_in_time(question, [launch for launch, _ in launches])
    _require_fair(question, wanted)
    if sweep.test is not None:
        measured_sample(sweep.test, launches[0][0].config.data.shards)
    varied = [tried.key for tried in require_effects(question, wanted)]
    trials = tuple(_planned(draw, launch) for draw, (launch, _) in zip(wanted, launches, strict=True))
    trials = tuple({trial.launch.fingerprint: trial for trial in reversed(trials)}.values())[::-1]  # the same training once
    _require_winners(question, trials)
    rate = _work_per_second(trials, launches[0][1])
    plan = SweepPlan(question, trials, launches[0][1], tuple(varied), 1, rate, _fingerprint(question, trials))
    return replace(plan, concurrency=concurrency_of(plan))


def concurrency_of(plan: SweepPlan) -> int:
    """How many trials there is room for at once: in the cluster that this process is in, or would connect to, or on this machine."""
    run = plan.trials[0].launch.config.run
    is_inside = run.num_workers == 0
    bundle = {"CPU": float(max(1, run.threads_per_worker)) if is_inside else run.cpus_per_worker}
    if run.use_gpu and not is_inside:
        bundle["GPU"] = 1.0
    if is_running() or os.environ.get("RAY_ADDRESS"):
        with ray_cluster():
            room = sum(room_on_nodes(bundle).values())
    else:
        room = int((os.cpu_count() or 1) / bundle["CPU"])
    room //= max(1, run.num_workers)
    return max(1, min(room, plan.question.sweep.max_concurrent or room, len(plan.trials)))


def _duration(hours: float) -> str:
    if math.isnan(hours):
        return "unknown"
    minutes = max(1, round(hours * 60))
    return f"{hours:.1f} hours" if hours >= 1.5 else f"{minutes} minute{'s' * (minutes != 1)}"


def _require_valid(question: Question, found: Sequence[Draw]) -> None:
    mistakes: dict[str, None] = {}
    for draw in found:
        try:
            config = question.config(draw)
        except ConfigError as error:
            mistakes |= dict.fromkeys(error.what.splitlines()[1:] or [error.what])
            continue
        run = config.run  # type: ignore[attr-defined]
        if run.num_workers == 0 and not isinstance(getattr(config, "engine", TorchEngineConfig()), TorchEngineConfig):
            mistakes["run.num_workers=0 trains one trial after the other in a process, which DeepSpeed cannot: use engine.kind=torch"] = (
                None
            )
    if mistakes:
        raise ConfigError("\n".join(["draws that are no config of " + question.sweep.verb, *mistakes]), where=question.name)


def _require_metric(question: Question, launches: Sequence[Launch | HeadLaunch]) -> None:
    """Checks that trials report the metric, and in time for the scheduler.

    Raises:
        ConfigError: they do not.
    """
    sweep = question.sweep
    if sweep.verb == "downstream":
        _require_metric_of_heads(question)
        return
    known = [*_LOSSES, *(_PHYSICS if all(getattr(launch.config, "physics_every", 0) for launch in launches) else ())]
    at_end = [PREFIX + name for name in PAIRED] if sweep.test is not None else []
    if sweep.metric in known or sweep.metric in at_end:
        return
    names = [*known, *at_end]
    near = closest(sweep.metric, names, count=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    if sweep.metric in _PHYSICS:
        hint = "set physics_every in the base config: it is looked at every so many steps"
    raise ConfigError(f"a trial does not report '{sweep.metric}'", where=f"metric of {question.name}", hint=hint)


def _require_in_time(question: Question, launches: Sequence[Launch | HeadLaunch]) -> None:
    """Checks that evaluations come in time for asha, and that each of them has the metric.

    Raises:
        ConfigError: a trial ends before it could be stopped, or its best evaluation need not have the metric.
    """
    sweep = question.sweep
    trained = [launch.config for launch in launches if isinstance(launch, Launch) and getattr(launch.config, "mode", "") != "zero-shot"]
    if sweep.metric in _PHYSICS:
        for config in trained:
            steps, every = config.optimisation.num_steps, config.optimisation.evaluate_every
            if config.physics_every != every or steps % every:
                what = f"not every evaluation ({every} of {steps} steps) has {sweep.metric}: physics_every is {config.physics_every}"
                hint = "physics_every and optimisation.evaluate_every must be the same, and a divisor of optimisation.num_steps"
                raise ConfigError(what, where=f"metric of {question.name}", hint=hint)
    if isinstance(sweep.scheduler, AshaScheduler):
        for config in trained:
            every = config.optimisation.evaluate_every
            first = math.ceil(sweep.scheduler.grace_steps / every) * every
            if first >= config.optimisation.num_steps:
                what = f"trials of {config.optimisation.num_steps} steps end before asha can stop them, after {first}"
                raise ConfigError(what, where=question.name, hint="smaller scheduler.grace_steps and optimisation.evaluate_every")


def _require_metric_of_heads(question: Question) -> None:
    """Checks the metric of heads: the loss, or a figure of merit of their task on its test split.

    Raises:
        ConfigError: it is neither.
    """
    metric, mode = question.sweep.metric, question.sweep.mode
    is_larger = False if metric == _LOSSES[0] else is_larger_better(metric)
    if is_larger is not None and is_larger != (mode == "max"):
        what = f"{metric} is better where it is {'larger' if is_larger else 'smaller'}, the sweep says mode: {mode}"
        raise ConfigError(what, where=f"metric of {question.name}", hint=f"mode: {'max' if is_larger else 'min'}")
    if metric != _LOSSES[0] and not metric.startswith(PREFIX):
        hint = f"{_LOSSES[0]}, or {PREFIX} and a figure of merit of the task, as its runs log it"
        raise ConfigError(f"a head does not report '{metric}'", where=f"metric of {question.name}", hint=hint)


def _require_fair(question: Question, found: Sequence[Draw]) -> None:
    """Checks that the metric means the same in all trials.

    Raises:
        ConfigError: it is a loss, and what is searched are the loss's own weights: the smallest would win.
    """
    weights = sorted({key for draw in found for key, _ in draw.settings if key.startswith("task.")})
    sweep = question.sweep
    by = {sweep.metric, *(["validation_loss"] if sweep.winners and sweep.winners_by == "validation_loss" else [])}
    losses = sorted(by & set(_LOSSES))
    if weights and losses and sweep.answer != "downstream":
        what = f"{losses[0]} is not the same in trials with another {', '.join(weights)}"
        hint = f"metric: {_PHYSICS[0]}, with physics_every in the base config"
        raise ConfigError(what, where=f"metric of {question.name}", hint=hint)


def _require_winners(question: Question, trials: Sequence[Planned]) -> None:
    """Checks that there are as many settings as winners are asked for; what is not trained does not win.

    Raises:
        ConfigError: fewer, in every combination that has winners of its own.
    """
    sweep = question.sweep
    settings = _settings([trial.draw for trial in trials if trial.num_steps], sweep)
    most = sweep.num_samples if sweep.search == "optuna" else max(map(len, settings.values()), default=0)
    if sweep.winners > most:
        what = f"{sweep.winners} winners of {most} settings" + (f" of each {', '.join(sweep.winners_of)}" if sweep.winners_of else "")
        raise ConfigError(what, where=f"winners of {question.name}", hint=f"winners: {most} at most, or more settings in the space")


def _settings(found: Sequence[Draw], sweep: SweepConfig) -> dict[str, set[str]]:
    """The settings, but for the seed, of every combination that has winners of its own."""
    cells: dict[str, set[str]] = {}
    for draw in found:
        settings = {key: value for key, value in draw.settings if key != "seed"}
        cells.setdefault(cell_of(draw.values, sweep), set()).add(json.dumps(settings, sort_keys=True, default=str))
    return cells


def _planned(draw: Draw, launch: Launch | HeadLaunch) -> Planned:
    if isinstance(launch, HeadLaunch):
        return Planned(draw, launch, *head_cost(launch))
    config = launch.config
    if getattr(config, "mode", "") == "zero-shot":
        return Planned(draw, launch, 0, 0.0)
    index = load_index(config.data.shards)
    total = int(index.num_elements[select_events(index, "train", config.data.num_events)].sum())
    num_steps = config.optimisation.num_steps
    return Planned(draw, launch, num_steps, flops_per_element(launch) * num_steps * min(config.data.tokens_per_step, total))


def flops_per_element(launch: Launch) -> float:
    """Operations of a training step over the elements of its events, as long as the first ones of the data."""
    index = load_index(launch.config.data.shards)
    lengths = index.num_elements[select_events(index, "train", launch.config.data.num_events)[:_EXAMPLES]]
    return training_flops(Mlpf(launch.model), lengths.tolist()) / max(int(lengths.sum()), 1)


def _work_per_second(trials: Sequence[Planned], tracker: Tracker) -> float:
    """Measured on the trial in the middle by cost."""
    trained = sorted((trial for trial in trials if trial.work), key=lambda trial: trial.work)
    if not trained:
        return float("nan")
    launch = trained[len(trained) // 2].launch
    if isinstance(launch, HeadLaunch):
        return 1.0
    seconds, flops = step_seconds(launch, tracker)
    return flops / seconds


def _fingerprint(question: Question, trials: Sequence[Planned]) -> str:
    identity: dict[str, Any] = question.sweep.model_dump(mode="json")
    for key in ("base", "stop_ladder", "max_concurrent", "max_failures"):
        identity.pop(key)
    test = question.sweep.test
    if test is not None:
        events = measured_sample(test, trials[0].launch.config.data.shards)[0].manifest.hash
        identity["test"] = [test.split, test.num_events, events, EVALUATION_VERSION]
    text = json.dumps([identity, [trial.launch.fingerprint for trial in trials]], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
