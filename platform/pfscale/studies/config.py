"""What a sweep is asked: one YAML file per question, and the draws that follow from it.

    question: How many CLD events does a model that knows CLIC need?
    verb: finetune
    base: ../jobs/configs/finetune/cld_ladder.yaml
    metric: validation_loss
    space:
      - {mode: zero-shot}
      - mode: {grid_search: [full, scratch]}
        data.num_events: {grid_search: [100, 300, 1000]}
        seed: {grid_search: [1, 2, 3]}

A value is fixed, or a mapping of one name of `ray.tune` to its arguments. Keys with a comma are drawn together.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from pfscale.config import Config, load_config, runtime
from pfscale.errors import ConfigError
from pfscale.tracking.store import shown
from pfscale.training.verbs import find_verb

Value = Any
GRID = "grid_search"
DOMAINS = ("choice", "uniform", "quniform", "loguniform", "qloguniform", "randint", "qrandint", "lograndint", "qlograndint", "randn")


class NoScheduler(Config):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class AshaScheduler(Config):
    """Asynchronous successive halving (arXiv:1810.05934): what is worse than its peers at the same step is stopped."""

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(100, ge=1, description="steps that every trial gets")
    reduction_factor: float = Field(3.0, gt=1, description="one of so many goes on at each rung")


class PbtScheduler(Config):
    """Population based training (arXiv:1711.09846): what is worse takes over weights of what is better, and changes its settings."""

    kind: Literal["pbt"] = "pbt"
    perturb_steps: int = Field(100, ge=1, description="steps between two takeovers")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the population that takes over, and that is taken over")


class MeasuredEvents(Config):
    """Fixed events that every trial is measured on at its end; they need not be of the data set that is learned from."""

    shards: str = runtime("", description="folder of event shards; empty: those that are learned from")
    split: Literal["train", "validation", "test", "all"] = Field("test", description="which of its events; all: where none is learned from")
    num_events: int | None = Field(None, ge=1, description="those of lowest hash; empty: all")


class SweepConfig(Config):
    """A question, and the trainings that answer it."""

    where_keys_are: ClassVar[str] = "the keys of a sweep, with an example: platform/pfscale/studies/README.md"

    question: str = Field(..., min_length=1, description="what the sweep answers, in words")
    verb: Literal["pretrain", "finetune", "downstream"] = Field(..., description="what a trial does")
    base: str = Field(..., description="config file of that verb, relative to this file; a trial is base + overrides")
    metric: str = Field("validation_loss", description="what trials are compared by; `test/...`: on the test events, at the end")
    mode: Literal["min", "max"] = Field("min", description="which is better")
    num_samples: int = Field(1, ge=1, description="draws from what is not a grid, for every point of the grid")
    repeat: int = Field(1, ge=1, description="seeds of every draw: the base's, and those after it")
    search: Literal["grid", "random", "optuna"] = Field("grid", description="how draws are made; optuna: a sampler that learns (TPE)")
    search_seed: int = Field(1, ge=0, description="of the draws")
    scheduler: NoScheduler | AshaScheduler | PbtScheduler = Field(NoScheduler(), discriminator="kind", description="what stops trials")
    space: list[dict[str, Value]] = Field(..., min_length=1, description="mapping of dotted config paths to values, or a list of such")
    control: bool = Field(False, description="then random search without a scheduler, at the same compute, to compare with")
    winners: int = Field(0, ge=0, description="best trials that are repeated with `winner_seeds` seeds at the end")
    winner_seeds: int = Field(3, ge=2, description="seeds of each of them")
    winners_of: list[str] = Field([], description="searched keys: the best of every combination of their values are winners")
    winners_by: Literal["metric", "validation_loss"] = Field(
        "metric", description="what winners are chosen by; test events must not choose"
    )
    test: MeasuredEvents | None = Field(None, description="events that finished trials are measured on; empty: none")
    answer: Literal["table", "transfer", "search", "downstream"] = Field("table", description="what is made of the results")
    stop_ladder: bool = runtime(False, description="transfer: no larger samples where a threefold one gained less than the spread of seeds")
    max_concurrent: int = runtime(0, ge=0, description="trials at once; 0: as many as the cluster has room for")
    max_failures: int = runtime(1, ge=0, description="how often a trial is tried again")

    @field_validator("space", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @field_validator("scheduler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("space")
    @classmethod
    def _domains_are_known(cls, space: list[dict[str, Value]]) -> list[dict[str, Value]]:
        for part in space:
            for key, value in part.items():
                _require_domain(key, value)
        return space

    @model_validator(mode="after")
    def _what_fits_together(self) -> SweepConfig:
        is_random = any(_name_of(value) not in (None, GRID) for part in self.space for value in part.values())
        if self.search == "grid" and is_random:
            raise ValueError("space draws at random, but search is grid: use search: random or optuna")
        if self.search != "grid" and not is_random:
            raise ValueError(f"search is {self.search}, but nothing in space is drawn: use search: grid")
        if self.search == "optuna" and (len(self.space) > 1 or any(_name_of(v) == GRID for v in self.space[0].values())):
            raise ValueError("search: optuna takes one space without grid_search")
        if self.search == "optuna" and any("," in key for key in self.space[0]):
            raise ValueError("search: optuna draws every key alone")
        if self.search == "optuna" and self.repeat > 1:
            raise ValueError("search: optuna makes every draw anew, so repeat has no meaning: use winners and winner_seeds")
        if self.repeat > 1 and any("seed" in names_of(key) for part in self.space for key in part):
            raise ValueError("repeat gives seeds to draws, but space has seed: use one of them")
        if self.answer == "transfer" and self.verb != "finetune":
            raise ValueError("answer: transfer compares ways of transfer: it goes with verb: finetune")
        if self.scheduler.kind == "pbt":
            is_one = len(self.space) == 1 and not any(_name_of(value) == GRID or "," in key for key, value in self.space[0].items())
            if self.search != "random" or not is_one:
                raise ValueError(
                    "scheduler: pbt changes the settings itself: use search: random and one space of domains, without grid_search"
                )
        if self.winners_of and not self.winners:
            raise ValueError("winners_of says of what, but winners is 0: use winners: 1")
        if self.winners and self.winners_by == "metric" and self.metric.startswith("test/") and self.answer == "transfer":
            raise ValueError(f"winners would be chosen by {self.metric}, which they are then judged by: use winners_by: validation_loss")
        searched = {name for part in self.space for key in part for name in names_of(key)}
        unknown = [key for key in self.winners_of if key not in searched]
        if unknown:
            raise ValueError(f"winners_of: {', '.join(unknown)} is not in the space")
        if self.scheduler.kind != "none" and self.metric.startswith("test/"):
            raise ValueError(f"{self.metric} is known at a trial's end only: a scheduler needs a metric of the evaluations on the way")
        if self.metric.startswith("test/") and self.test is None and self.verb != "downstream":
            raise ValueError(f"metric {self.metric} needs a `test:` section")
        if self.test is not None and self.verb == "downstream":
            raise ValueError("heads are measured on the test split of their own shards: leave `test:` away")
        if self.answer == "downstream" and self.verb != "downstream":
            raise ValueError("answer: downstream goes with verb: downstream")
        if self.verb == "downstream" and (self.control or self.answer == "search"):
            raise ValueError("operations are counted for particle-flow models only: use answer: table or downstream, without control")
        if self.control and self.search != "optuna" and self.scheduler.kind == "none":
            raise ValueError("control compares a search with plain random search: it needs search: optuna or a scheduler")
        return self


@dataclass(frozen=True)
class Draw:
    """One trial's settings: dotted config path -> value."""

    settings: tuple[tuple[str, Value], ...]

    @property
    def overrides(self) -> list[str]:
        """As on the command line: `key.path=value`."""
        return [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in self.settings]

    @property
    def values(self) -> dict[str, Value]:
        return dict(self.settings)


@dataclass(frozen=True)
class Question:
    """A sweep as it was asked.

    Attributes:
        base: config file of the trials.
        changes: overrides of the trials' config, `key.path=value`.
    """

    sweep: SweepConfig
    name: str
    base: Path
    changes: tuple[str, ...] = ()

    def config(self, draw: Draw, *further: str) -> Config:
        """The config of a trial: base, changes, draw.

        Raises:
            ConfigError: they do not fit together.
        """
        return load_config(
            find_verb(self.sweep.verb).config_class, self.base, [*self.changes, *draw.overrides, *further], drawn=draw.overrides
        )

    def command(self, draw: Draw) -> str:
        """What repeats a trial, without passwords; like a trial it registers nothing."""
        base = os.path.relpath(self.base)
        quiet = ['register_as=""'] if getattr(self.config(draw), "register_as", "") else []
        return shlex.join(["pfscale", self.sweep.verb, base, *map(shown, self.changes), *draw.overrides, *quiet])


def load_question(path: str | Path, overrides: Sequence[str] = ()) -> Question:
    """The sweep of a file. Overrides of its own keys change it, all others the config of its trials, fixed values of the space included.

    Raises:
        ConfigError: all mistakes at once.
    """
    own = [text for text in overrides if text.partition("=")[0].split(".")[0] in SweepConfig.model_fields]
    changes = tuple(text for text in overrides if text not in own)
    sweep = _without(load_config(SweepConfig, path, own), [text.partition("=")[0] for text in changes], str(path))
    base = (Path(path).parent / sweep.base).resolve()
    if not base.is_file():
        raise ConfigError(f"base: no such file ({base})", where=str(path), hint="a path relative to the sweep's file")
    return Question(sweep, Path(path).stem, base, changes)


def _without(sweep: SweepConfig, keys: Sequence[str], where: str) -> SweepConfig:
    """The sweep without fixed values that the command line gives otherwise.

    Raises:
        ConfigError: it gives what is searched.
    """
    searched = {name for part in sweep.space for key, value in part.items() if _name_of(value) for name in names_of(key)}
    taken = sorted(searched & set(keys))
    if taken:
        raise ConfigError(f"{', '.join(taken)}: searched, and given on the command line", where=where, hint="change the space instead")
    together = sorted({name for part in sweep.space for key in part if "," in key for name in names_of(key)} & set(keys))
    if together:
        raise ConfigError(f"{', '.join(together)}: given together with others in the space", where=where, hint="change the space instead")
    space = [{key: value for key, value in part.items() if key not in keys} for part in sweep.space]
    return sweep.model_copy(update={"space": space})


def draws(sweep: SweepConfig) -> list[Draw]:
    """All draws of a grid or random search, in a fixed order; of optuna, as many from the same space, to be looked at before it starts."""
    rng = np.random.RandomState(sweep.search_seed)
    found = [draw for part in sweep.space for draw in _of_part(part, sweep.num_samples, rng)]
    return list({json.dumps(draw.settings, default=str): draw for draw in found}.values())


def cell_of(values: Mapping[str, Value], sweep: SweepConfig) -> str:
    """The combination of values of `winners_of` that these settings compete in."""
    return json.dumps([values.get(key) for key in sweep.winners_of], default=str)


def repeated(draw: Draw, *, first_seed: int, count: int) -> list[Draw]:
    """The draw with `count` seeds, where it has none of its own."""
    if "seed" in draw.values:
        return [draw]
    return [Draw((*draw.settings, ("seed", first_seed + number))) for number in range(count)]


def tune_space(part: Mapping[str, Value]) -> dict[str, Any]:
    """The part for a searcher of Ray Tune: domains, and what is fixed."""
    return {key: _domain(value) if _name_of(value) else value for key, value in part.items()}


def _of_part(part: Mapping[str, Value], num_samples: int, rng: np.random.RandomState) -> Iterator[Draw]:
    grids = {key: value[GRID] for key, value in part.items() if _name_of(value) == GRID}
    random = {key: _domain(value) for key, value in part.items() if _name_of(value) not in (None, GRID)}
    for point in itertools.product(*grids.values()):
        for _ in range(num_samples if random else 1):
            drawn = dict(zip(grids, point, strict=True))
            drawn |= {key: _plain(domain.sample(random_state=rng)) for key, domain in random.items()}
            settings = [pair for key, value in part.items() for pair in _split(key, drawn.get(key, value))]
            yield Draw(tuple(settings))


def _split(key: str, value: Value) -> list[tuple[str, Value]]:
    """The single settings of a key with commas."""
    names = names_of(key)
    return [(key, value)] if len(names) == 1 else list(zip(names, value, strict=True))


def names_of(key: str) -> list[str]:
    """The config paths of a key of the space; several where they are drawn together."""
    return [name.strip() for name in key.split(",")]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _name_of(value: Value) -> str | None:
    """The ray.tune name of a domain; None for a fixed value."""
    if isinstance(value, Mapping) and len(value) == 1:
        (name,) = value
        return str(name) if name == GRID or name in DOMAINS else None
    return None


def _domain(value: Mapping[str, Any]) -> Any:
    from ray import tune

    ((name, arguments),) = value.items()
    return tune.choice(arguments) if name == "choice" else getattr(tune, name)(*arguments)


def _require_domain(key: str, value: Value) -> None:
    """Checks a value of the space.

    Raises:
        ValueError: a mapping that is no domain, wrong arguments, a pair of keys with single values.
    """
    name = _name_of(value)
    names = key.split(",")
    if isinstance(value, Mapping) and name is None:
        raise ValueError(f"{key}: {', '.join(map(str, value))} is no domain; known: {GRID}, {', '.join(DOMAINS)}")
    if name in (GRID, "choice") and (not isinstance(value[name], list) or not value[name]):
        raise ValueError(f"{key}: {name} takes a list of values")
    if len(names) > 1:
        values = value[name] if name in (GRID, "choice") else [value] if name is None else None
        if values is None or not all(isinstance(item, list) and len(item) == len(names) for item in values):
            raise ValueError(f"{key}: {len(names)} keys that are drawn together need lists of {len(names)} values")
    if name not in (None, GRID):
        try:
            _domain(value).sample(random_state=np.random.RandomState(0))
        except Exception as error:
            raise ValueError(f"{key}: {name} does not take {value[name]}: {error}") from None
