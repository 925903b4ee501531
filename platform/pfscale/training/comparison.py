"""Two models side by side: on the same events with paired errors, or by what their cards say of the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pfscale.errors import InputFileError, ShardError
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.physics.bootstrap import Estimate, event_bootstrap
from pfscale.physics.comparable import Difference, Metric, independent_difference, metrics, paired_difference
from pfscale.physics.difference import replicated_metrics
from pfscale.physics.evaluation import Candidates, GenReference
from pfscale.remote import without_secrets
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.shards.ragged import GEN_COLUMNS, INPUT_COLUMNS, RaggedEvents, list_leaves, struct_leaf
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.inference import event_chunks, run_model
from pfscale.training.lookup import locate_model, mismatches

_BOOTSTRAP_SEED = 1
_CHANCE = "of two equally good models, one standard deviation is passed by every third metric"
_JETS, _MET = ("pt", "eta", "phi", "energy"), ("px", "py")
_PARTICLES = ("px", "py", "pz", "energy", "pdg", "charge")


@dataclass(frozen=True)
class Comparison:
    """Two models by every metric that both have.

    Attributes:
        a, b: the models, by names that never change.
        measured_on: the events, in words.
        notes: what to keep in mind.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    measured_on: str
    notes: tuple[str, ...] = ()

    def by(self, metric: Metric) -> Difference | None:
        """The difference by one metric; None where it was not measured."""
        return next((found for found in self.differences if found.metric == metric), None)

    def table(self, sigmas: float = 1.0) -> Table:
        """One row per metric, for the terminal."""
        title = f"A: {self.a}   B: {self.b}\n{self.measured_on}"
        table = Table("metric", "best", "A", "B", "B - A", "verdict", title=title, caption="\n".join([*self.notes, _CHANCE]))
        for found in self.differences:
            numbers = (str(number) for number in (found.a, found.b, found.difference))
            table.add_row(found.metric.name, found.metric.best, *numbers, found.verdict(sigmas))
        return table


@dataclass(frozen=True)
class _Named:
    """A loaded model and its name."""

    name: str
    bundle: Bundle

    @property
    def card(self) -> dict[str, Any]:
        return self.bundle.card


def compare(
    a: str,
    b: str,
    *,
    shards: str | Path | None = None,
    split: str = "test",
    tracking_uri: str = "sqlite:///mlflow.db",
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Model B against model A.

    With `shards` both run on the same events, and the error of a difference comes from the same bootstrap replicas of both. Without, the
    numbers are those of the two model cards, with errors as if the events were not the same: too large.

    Args:
        a, b: `models:/name@alias`, `name/version`, or folders with model bundles.

    Raises:
        ModelNotFoundError, InputFileError (cards of different data, a model of another kind), ShardError (another detector's shards),
        NotEnoughDataError.
    """
    models = [_load(reference, tracking_uri) for reference in (a, b)]
    if shards is None:
        return _by_cards(*models)
    index = load_index(shards)
    require_detector({model.name: model.card for model in models}, index.manifest.detector, where=str(shards))
    return _on_events(models, index, split, shards=str(shards), progress=progress)


def require_detector(cards: Mapping[str, Mapping[str, Any]], detector: str, *, where: str) -> None:
    """Returns where all models are of the shards' detector.

    Raises:
        ShardError: one is not.
    """
    for name, card in cards.items():
        if card["detector"] != detector:
            raise ShardError(
                f"shards of {detector}, but {name} is a model of {card['detector']}", where=where, hint=f"give {card['detector']} shards"
            )


def _load(reference: str, tracking_uri: str) -> _Named:
    folder, name = locate_model(reference, tracking_uri=tracking_uri)
    return _Named(name, load_bundle(folder))


def _by_cards(a: _Named, b: _Named) -> Comparison:
    for key, what in (("data", "data sets"), ("measured_on", "events")):
        values = [model.card.get(key) for model in (a, b)]
        if None in values or values[0] != values[1]:
            raise InputFileError(
                f"the two models were measured on different {what} ({a.name}: {values[0]}, {b.name}: {values[1]})",
                where=f"{a.name} and {b.name}",
                hint="give --shards: both then run on the same events",
            )
    found = [independent_difference(metric, _of_card(a, metric), _of_card(b, metric)) for metric in metrics()]
    known = tuple(d for d in found if math.isfinite(d.a.value) and math.isfinite(d.b.value))
    note = "from the model cards; errors of the two added in quadrature, too large for the same events: --shards gives the right ones"
    return Comparison(a.name, b.name, known, f"{a.card['measured_on']} of data {a.card['data'][:16]}", (note,))


def _of_card(model: _Named, metric: Metric) -> Estimate:
    values = model.card["metrics"]
    return Estimate(values.get(metric.key, math.nan), values.get(f"{metric.key}_error", math.nan))


def _on_events(
    models: Sequence[_Named], index: EventIndex, split: str, *, shards: str, progress: Callable[[int], None] | None
) -> Comparison:
    members = select_events(index, split)
    found: list[list[Candidates]] = [[] for _ in models]
    gens: list[GenReference] = []
    for events in event_chunks(index, members, (*INPUT_COLUMNS, *GEN_COLUMNS), progress=progress):
        for model, parts in zip(models, found, strict=True):
            parts.append(run_model(model.bundle.model, events, ReconstructionConfig(**model.card["task"])).candidates)
        gens.append(_gen_reference(events))
    gen, bootstrap = _join_gen(gens), event_bootstrap(len(members), seed=_BOOTSTRAP_SEED)
    starts = np.cumsum([0, *(part.num_events for part in gens[:-1])])
    a, b = (replicated_metrics(_join(parts, starts), gen, bootstrap) for parts in found)
    differences = (paired_difference(metric, a[metric.name], b[metric.name]) for metric in metrics() if metric.name in a)
    known = tuple(d for d in differences if math.isfinite(d.a.value) and math.isfinite(d.b.value))
    notes: dict[str, None] = {}
    for model in models:
        mismatched = mismatches(model.card, detector=index.manifest.detector, simulation=index.manifest.simulation, what="the shards")
        notes |= dict.fromkeys(f"{model.name}: {text}" for text in mismatched)
    names = [model.name for model in models]
    return Comparison(names[0], names[1], known, _told(len(members), split, shards, index), tuple(notes))


def _told(num_events: int, split: str, shards: str, index: EventIndex) -> str:
    return f"{num_events} {split} events of {without_secrets(shards)}, data {index.manifest.hash[:16]}"


def _gen_reference(events: RaggedEvents) -> GenReference:
    offsets, jets = list_leaves(events.table, "gen_jet")
    event = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    met = {f"met_{axis}": struct_leaf(events.table, "gen_met", axis) for axis in _MET}
    return GenReference(num_events=events.num_events, jet_event=event, **{f"jet_{name}": jets[name] for name in _JETS}, **met)


def _join(parts: Sequence[Candidates], starts: np.ndarray) -> Candidates:
    """All chunks' candidates as one, events numbered through."""
    event = np.concatenate([part.event + start for part, start in zip(parts, starts, strict=True)])
    return Candidates(event, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _PARTICLES})


def _join_gen(gens: Sequence[GenReference]) -> GenReference:
    starts = np.cumsum([0, *(gen.num_events for gen in gens[:-1])])
    event = np.concatenate([gen.jet_event + start for gen, start in zip(gens, starts, strict=True)])
    names = [*(f"jet_{name}" for name in _JETS), *(f"met_{axis}" for axis in _MET)]
    arrays = {name: np.concatenate([getattr(gen, name) for gen in gens]) for name in names}
    return GenReference(num_events=sum(gen.num_events for gen in gens), jet_event=event, **arrays)
