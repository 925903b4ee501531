"""Two models side by side: on the same events with paired errors, or by what their cards say of the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pfscale.errors import InputFileError, ShardError
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.physics.comparable import Difference, Metric, independent_difference, metrics, paired_difference
from pfscale.physics.evaluation import MLPF
from pfscale.remote import without_secrets
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.tracking.card import estimate_of
from pfscale.training.evaluate import evaluate_bundle
from pfscale.training.lookup import locate_model

_CHANCE = "of two equally good models, one standard deviation is passed by every third metric"


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
    detectors = [model.card["detector"] for model in models]
    if detectors[0] != detectors[1]:
        what = f"{models[0].name} is a model of {detectors[0]}, {models[1].name} of {detectors[1]}"
        raise InputFileError(what, where=f"{a} and {b}", hint="only models of one detector can see the same events")
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
    found = [independent_difference(metric, *(estimate_of(model.card["metrics"], metric.key) for model in (a, b))) for metric in metrics()]
    known = tuple(d for d in found if math.isfinite(d.a.value) and math.isfinite(d.b.value))
    note = "from the model cards; errors of the two added in quadrature, too large for the same events: --shards gives the right ones"
    return Comparison(a.name, b.name, known, f"{a.card['measured_on']} of data {a.card['data'][:16]}", (note,))


def _on_events(
    models: Sequence[_Named], index: EventIndex, split: str, *, shards: str, progress: Callable[[int], None] | None
) -> Comparison:
    members = select_events(index, split)
    evaluations = [evaluate_bundle(model.bundle, index, members, title=model.name, progress=progress) for model in models]
    a, b = ({**dict(e.result.of_model()), **dict(e.particles[MLPF].named_estimates())} for e in evaluations)
    differences = (paired_difference(metric, a[metric.name], b[metric.name]) for metric in metrics() if metric.name in a)
    known = tuple(d for d in differences if math.isfinite(d.a.value) and math.isfinite(d.b.value))
    notes = dict.fromkeys(f"{model.name}: {note}" for model, e in zip(models, evaluations, strict=True) for note in e.notes)
    return Comparison(models[0].name, models[1].name, known, _told(len(members), split, shards, index), tuple(notes))


def _told(num_events: int, split: str, shards: str, index: EventIndex) -> str:
    return f"{num_events} {split} events of {without_secrets(shards)}, data {index.manifest.hash[:16]}"
