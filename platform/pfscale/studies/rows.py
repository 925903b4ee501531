"""What is kept of every trial: one JSON file each, written when it has ended, so that nothing that is complete is done twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pfscale.studies.config import Draw, SweepConfig, cell_of
from pfscale.tracking.runs import jsonable

FINISHED: Final = "finished"
STOPPED: Final = "stopped"
INVALID: Final = "invalid"
DIVERGED: Final = "diverged"
CONTROL: Final = "control"  # groups of trials beside the sweep's own
WINNER: Final = "winner"
Status = Literal["finished", "stopped", "diverged", "invalid"]


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        settings: dotted config path -> value, beside the base.
        status: finished, stopped by the scheduler, diverged: stopped by its own guard, or invalid: what a search drew is no config.
        run_id: of its MLflow run.
        model: folder of its model; empty: none was made.
        metrics: final ones of a finished trial, those of its last evaluation of a stopped one.
        evaluations: on the way, with `step`.
        replicas: metric -> its value in every replica of the bootstrap over the test events, the same replicas in all trials.
        elements, events: learned from, repetitions counted.
        seconds: of the last attempt, all in all.
        training_seconds: in optimizer steps and waiting for their data, of all attempts.
        ended: seconds since 1970.
        group: what arm of the sweep it belongs to: "" or "control", or "winner".
        note: why it is invalid.
        member: of a population, whose settings change on the way, so that two may end with the same ones; empty: no population.
    """

    settings: dict[str, Any]
    status: Status
    run_id: str
    model: str
    metrics: dict[str, float]
    evaluations: list[dict[str, float]] = field(default_factory=list)
    replicas: dict[str, list[float]] = field(default_factory=dict)
    elements: int = 0
    events: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    ended: float = 0.0
    group: str = ""
    note: str = ""
    member: str = ""

    @property
    def last_step(self) -> int:
        """Of its evaluations; 0 where it has none."""
        return int(self.evaluations[-1]["step"]) if self.evaluations else 0

    def __getitem__(self, key: str) -> Any:
        """A setting, None where it is the base's."""
        return self.settings.get(key)


def ranked(rows: Iterable[Row], sweep: SweepConfig) -> list[Row]:
    """Finished rows, best first; then those without the metric, and the others."""
    sign = 1.0 if sweep.mode == "min" else -1.0

    def order(row: Row) -> tuple[bool, float]:
        value = row.metrics.get(sweep.metric, math.nan)
        return row.status != FINISHED, sign * value if math.isfinite(value) else math.inf

    return sorted(rows, key=order)


def winners(rows: Iterable[Row], sweep: SweepConfig) -> list[list[Row]]:
    """The settings that are repeated with further seeds, each with the rows that it has: the best by the mean over their seeds, or the best
    of every combination of the values of `winners_of`."""
    own = [row for row in rows if row.group not in (WINNER, CONTROL) and (row.elements or row.status != FINISHED)]
    cells: dict[str, list[list[Row]]] = {}
    for same in settings_by_mean(own, sweep):
        cells.setdefault(cell_of(same[0].settings, sweep), []).append(same)
    return [same for found in cells.values() for same in found[: sweep.winners]]


def best_settings(rows: Sequence[Row], sweep: SweepConfig) -> list[Row]:
    """The finished rows of the best settings, by the mean over their seeds, lowest seed first; nothing where none has finished.

    Of those that won, where winners are repeated: the best of single trainings is the luckiest. The control competes with the search and
    does not win it.
    """
    found = settings_by_mean([row for row in rows if row.group != CONTROL], sweep)
    won = {key_of(without_seed(same[0])) for same in winners(rows, sweep)} if sweep.winners else set()
    of_winners = [same for same in found if key_of(without_seed(same[0])) in won]
    return sorted((of_winners or found or [[]])[0], key=lambda row: row["seed"] or 0)


def settings_by_mean(rows: Iterable[Row], sweep: SweepConfig) -> list[list[Row]]:
    """Finished rows together that differ in their seed only, best mean first, of what `winners_by` says.

    Those with a seed that diverged or was stopped come after those without, those without a value last.
    """
    groups: dict[str, list[Row]] = {}
    failed: set[str] = set()
    for row in ranked(rows, sweep):
        key = key_of(without_seed(row))
        if row.status == FINISHED:
            groups.setdefault(key, []).append(row)
        else:
            failed.add(key)
    is_loss = sweep.winners_by == "validation_loss"
    metric, sign = ("validation_loss", 1.0) if is_loss else (sweep.metric, 1.0 if sweep.mode == "min" else -1.0)

    def order(same: list[Row]) -> tuple[bool, float]:
        mean = sum(row.metrics.get(metric, math.nan) for row in same) / len(same)
        return key_of(without_seed(same[0])) in failed, sign * mean if math.isfinite(mean) else math.inf

    return sorted(groups.values(), key=order)


def without_seed(row: Row) -> dict[str, Any]:
    """What a row shares with its repetitions."""
    return {key: value for key, value in row.settings.items() if key != "seed"}


def key_of(settings: Mapping[str, Any], group: str = "", member: str = "") -> str:
    """12 hex digits that name a trial within its sweep, whatever the order of its settings."""
    parts = [group, sorted(settings.items()), *([member] if member else [])]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def find_row(folder: Path, settings: Mapping[str, Any], group: str) -> Row | None:
    """The row that a trial has left in the sweep's folder, if any."""
    path = _path_of(folder, settings, group)
    return Row(**json.loads(path.read_text())) if path.is_file() else None


def write_row(folder: Path, row: Row) -> None:
    """Keeps a trial's row in the sweep's folder."""
    path = _path_of(folder, row.settings, row.group, row.member)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(jsonable(asdict(row))))
    draft.replace(path)


def _path_of(folder: Path, settings: Mapping[str, Any], group: str, member: str = "") -> Path:
    return folder / "rows" / f"{key_of(settings, group, member)}.json"


def read_rows(folder: Path) -> list[Row]:
    """All rows of a sweep's folder, by settings."""
    rows = [Row(**json.loads(path.read_text())) for path in sorted((folder / "rows").glob("*.json"))]
    return sorted(rows, key=lambda row: (row.group, json.dumps(row.settings, default=str)))


def missing(draws: list[Draw], rows: list[Row], group: str = "") -> list[Draw]:
    """The draws without a row, in their order."""
    have = {key_of(row.settings, row.group) for row in rows}
    return [draw for draw in draws if key_of(draw.values, group) not in have]
