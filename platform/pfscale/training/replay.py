"""python -m pfscale.training.replay RUN/incident-000000123: the loss of each event of the step that stopped a training, largest first.

Takes a few seconds. The model is as it was before the step, in evaluation mode: without dropout.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from pfscale.errors import InputFileError, PfscaleError, ShardError
from pfscale.models.batch import collate
from pfscale.models.bundle import load_bundle
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.ragged import RaggedEvents
from pfscale.tasks.reconstruction import LOSS_TERMS
from pfscale.training.batches import LEARNING_COLUMNS
from pfscale.training.config import TrainingConfig
from pfscale.training.guard import CONFIG, INCIDENT, MODEL
from pfscale.training.module import TaskModule

_NAMES = ("event.file", "event.entry")


@dataclass(frozen=True)
class EventLoss:
    """What one event adds to the step.

    Attributes:
        terms: sums over its elements by name, as they enter the step's loss.
        gradient_norm: of these sums.
    """

    uid: int
    file: str
    entry: int
    num_elements: int
    terms: dict[str, float]
    gradient_norm: float

    @property
    def loss(self) -> float:
        return sum(self.terms.values())

    @property
    def badness(self) -> tuple[bool, float]:
        """The larger, the more likely this event is the cause."""
        is_finite = math.isfinite(self.loss) and math.isfinite(self.gradient_norm)
        return (not is_finite, self.loss if is_finite else self.num_elements)


@dataclass(frozen=True)
class Incident:
    """A step that stopped a training.

    Attributes:
        events: most suspicious first.
    """

    what: str
    shards: str
    events: tuple[EventLoss, ...]

    def table(self, count: int) -> Table:
        """The first `count` events, a row each, with their terms of the loss from the largest on."""
        table = Table(title=self.what, box=SIMPLE_HEAD)
        for name in ("uid", "file:entry"):
            table.add_column(name, overflow="fold", min_width=len("file:entry"))
        for name in ("elements", "loss", "gradient"):
            table.add_column(name, justify="right")
        table.add_column("terms")
        for event in self.events[:count]:
            terms = sorted(event.terms.items(), key=lambda item: (math.isfinite(item[1]), -item[1]))
            said = ", ".join(f"{name} {value:.3g}" for name, value in terms)
            numbers = (str(event.num_elements), f"{event.loss:.3g}", f"{event.gradient_norm:.3g}")
            table.add_row(str(event.uid), f"{event.file}:{event.entry}", *numbers, said)
        return table


def replay(folder: str | Path, *, shards: str | None = None) -> Incident:
    """The events of the incident in `folder`, each with its part of the loss and of the gradient.

    Args:
        shards: where the data set is now; None: where it was.

    Raises:
        InputFileError: the folder holds no incident, or a damaged one.
        ShardError: the data set is not the one that the training learned from.
    """
    folder = Path(folder)
    try:
        found = json.loads((folder / INCIDENT).read_text())
        values = yaml.safe_load((folder / CONFIG).read_text())
        positions = np.array(found["events"], np.int64)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        hint = "name the folder that the error of the training names: <run>/incident-<step>"
        raise InputFileError(f"no complete incident there ({error})", where=str(folder), hint=hint) from None
    config = TrainingConfig(**{name: values[name] for name in TrainingConfig.model_fields})
    shards = shards or config.data.shards
    events = _same_events(shards, positions, data=found["data"])
    model = load_bundle(folder / MODEL).model
    model.encoder.block_dtype = torch.bfloat16 if config.precision == "bf16" else None
    module = TaskModule(model, config.task, trainable="all").eval()
    losses = [_event_loss(module, events, i) for i in range(events.num_events)]
    return Incident(found["what"], shards, tuple(sorted(losses, key=lambda event: event.badness, reverse=True)))


def _same_events(shards: str, positions: NDArray[np.int64], *, data: str) -> RaggedEvents:
    """The events at these positions of the data set that the training saw."""
    index = load_index(shards)
    hint = "give the folder of the data set that the training learned from: --shards DIR"
    if index.manifest.hash != data:
        raise ShardError(f"another data set than that of the training ({index.manifest.hash}, not {data})", where=shards, hint=hint)
    return read_events(index, positions, (*LEARNING_COLUMNS, *_NAMES))


def _event_loss(module: nn.Module, events: RaggedEvents, number: int) -> EventLoss:
    module.zero_grad()
    terms = module(collate(events, np.array([number])))
    terms.sum().backward()
    norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    identity = events.table.column("event")[number].as_py()
    return EventLoss(
        uid=int(events.uid[number]),
        file=identity["file"],
        entry=int(identity["entry"]),
        num_elements=int(events.lengths[number]),
        terms=dict(zip(LOSS_TERMS, terms.tolist(), strict=True)),
        gradient_norm=float(norm),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m pfscale.training.replay", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="incident-... in the run's folder")
    parser.add_argument("--shards", help="where the data set is now, if it was moved")
    parser.add_argument("--count", type=int, default=20, help="events to show")
    given = parser.parse_args(arguments)
    out = Console()
    try:
        incident = replay(given.folder, shards=given.shards)
    except PfscaleError as error:
        print(f"pfscale: {error}", file=sys.stderr)
        return error.exit_code
    out.print(incident.table(given.count))
    left = len(incident.events) - given.count
    if left > 0:
        out.print(f"and {left} more with smaller losses (--count)")
    if incident.events:
        out.print(
            f"look at the first: pfscale inspect {incident.shards} --event uid:{incident.events[0].uid}", markup=False, soft_wrap=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
