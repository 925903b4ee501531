"""`check_data(folder)`: what the gates say of a data set. Numbers only; `report/data_checks.py` draws them.

A new gate is one class (a name, a title, a definition, and its `rules` or `ratios`) and one entry in GATES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pfscale.shards.gate import EventBatch, Gate, GateResult, Mask, ViolationGate
from pfscale.shards.manifest import Manifest, load_manifest
from pfscale.shards.measurement import MIN_EVENTS_TO_RESAMPLE, SIGNIFICANCE, Status, worst
from pfscale.shards.physics_gates import (
    ClassGate,
    ClusterEnergyGate,
    HitEnergyGate,
    JetMemberGate,
    MissingMomentumGate,
    TargetJetGate,
    TrackMomentumGate,
)
from pfscale.shards.storage import Folder, open_folder, opened_shard
from pfscale.shards.structure_gates import ClosureGate, FiniteGate, IndexGate, LinkGate, ManifestGate, SplitGate, UniqueGate

# Of larger data sets the physics gates take the events of lowest uid, which is a hash: medians are known to 1e-4, and memory is bounded.
MAX_PHYSICS_EVENTS = 20_000
GATES: tuple[type[Gate], ...] = (
    ManifestGate,
    UniqueGate,
    SplitGate,
    FiniteGate,
    IndexGate,
    LinkGate,
    ClosureGate,
    ClassGate,
    TrackMomentumGate,
    HitEnergyGate,
    ClusterEnergyGate,
    TargetJetGate,
    JetMemberGate,
    MissingMomentumGate,
)


@dataclass(frozen=True)
class DataChecks:
    """What all gates found. `num_usable`: events without a violation that other gates would trip over; `num_physics`: of these, those that
    the physics gates looked at."""

    manifest: Manifest
    gates: tuple[GateResult, ...]
    num_events: int
    num_usable: int
    num_physics: int

    @property
    def failed(self) -> tuple[GateResult, ...]:
        """The gates that the data set does not pass."""
        return tuple(gate for gate in self.gates if gate.status is Status.FAIL)

    def table(self) -> Group:
        """The gates for the terminal."""
        return _table(self)


def check_data(directory: str | Path | Folder, *, progress: Callable[[int], None] | None = None) -> DataChecks:
    """What the gates say of the data set in `directory` (path or URL).

    Shards are read one row group after the other. Memory grows by 5 kB for each of 20,000 events, by 16 bytes for others (uid, closure).

    Args:
        progress: called with the number of events just looked at.

    Raises:
        ShardError: no data set there, or a shard is missing or torn.
    """
    folder = open_folder(directory)
    manifest = load_manifest(folder)
    gates = [kind(manifest) for kind in GATES]
    guards = [gate for gate in gates if isinstance(gate, ViolationGate) and gate.is_guard]
    others = [gate for gate in gates if gate not in guards]
    counts = np.zeros(3, np.int64)
    for batch in _batches(folder, manifest):
        usable = batch.select(~np.any([np.zeros(batch.num_events, bool), *(guard.spoiled(batch) for guard in guards)], axis=0))
        sample = usable.select(_is_in_sample(usable.of_event("uid"), manifest.num_events))
        for gate in others:
            gate.add(sample if gate.is_physics else usable if gate.needs_usable_events else batch)
        counts += (batch.num_events, usable.num_events, sample.num_events)
        if progress is not None:
            progress(batch.num_events)
    return DataChecks(manifest, tuple(gate.result() for gate in gates), *map(int, counts))


def _is_in_sample(uid: np.ndarray, num_events: int) -> Mask:
    """Which events the physics gates look at: all, or a fraction that depends on nothing but each event."""
    if num_events <= MAX_PHYSICS_EVENTS:
        return np.ones(len(uid), bool)
    return uid < np.uint64(MAX_PHYSICS_EVENTS / num_events * 2**64)


def _batches(folder: Folder, manifest: Manifest) -> Iterator[EventBatch]:
    """All events, by row groups.

    Raises:
        ShardError: a shard is missing or torn.
    """
    for shard in manifest.shards:
        with opened_shard(folder.locate(shard.file)) as parquet:
            row = 0
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                yield EventBatch(table, shard.file, row)
                row += table.num_rows


_COLOURS = {Status.PASS: "green", Status.FAIL: "bold red", Status.TOO_FEW: "yellow", Status.NOT_APPLICABLE: "dim"}


def _table(checks: DataChecks) -> Group:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, justify in (("gate", "left"), ("expected", "left"), ("observed", "right"), ("entries", "right"), ("", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for gate in checks.gates:
        for row in _rows(gate):
            table.add_row(*row)
    lines = [Text(f"{gate.name}: {example}", "red") for gate in checks.failed for example in gate.examples]
    number = {status: sum(gate.status is status for gate in checks.gates) for status in Status}
    counted = ", ".join(f"{count} {_IN_WORDS[status]}" for status, count in number.items() if count)
    legend = Text(_ERRORS, "dim")
    return Group(Text(_heading(checks), "bold"), Text(), table, legend, Text(), *lines, Text(f"gates: {counted}"))


_ERRORS = (
    f"errors of medians: events resampled (entries, below {MIN_EVENTS_TO_RESAMPLE} events)\n"
    f"of fractions: Wilson's interval; a value more than {SIGNIFICANCE:g} errors out of range fails"
)
_IN_WORDS = {
    Status.PASS: "passed",
    Status.FAIL: "failed",
    Status.TOO_FEW: "with too few entries to say",
    Status.NOT_APPLICABLE: "not applicable",
}


def _heading(checks: DataChecks) -> str:
    events = f"{checks.num_events} event{'s' * (checks.num_events != 1)}"
    text = f"{events} of {checks.manifest.detector}, data set {checks.manifest.hash}"
    if checks.num_usable < checks.num_events:
        text += f"; {checks.num_events - checks.num_usable} with broken numbers or indices are shown to no other gate"
    if checks.num_physics < checks.num_usable:
        text += f"; physics gates from {checks.num_physics} of them, chosen by uid"
    return text


def _rows(gate: GateResult) -> Iterator[tuple[str | Text, ...]]:
    """One line per measurement; those of exact gates that found nothing are one line together."""
    exact = [m for m in gate.measurements if m.low == m.high == 0]
    broken, others = [m for m in exact if m.status is Status.FAIL], [m for m in gate.measurements if m not in exact]
    if exact:
        status = worst([m.status for m in exact])
        found, checked = sum(m.value.value for m in exact), sum(m.num_entries for m in exact)
        yield Text(gate.title, "bold"), "none", f"{found:.0f}", str(checked), _coloured(status)
    elif len(others) == 1:
        (only,) = others
        yield Text(gate.title, "bold"), only.expected, only.observed, only.entries, _coloured(only.status)
        if gate.note:
            yield f"  {gate.note}", "", "", "", ""
        return
    else:
        yield Text(gate.title, "bold"), "", "", "", ""
    for m in broken + others:
        yield f"  {m.what}", m.expected, m.observed, m.entries, _coloured(m.status)


def _coloured(status: Status) -> Text:
    return Text(status, _COLOURS[status])
