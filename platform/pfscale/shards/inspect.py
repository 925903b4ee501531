"""What is in a folder of shards, as tables for the terminal: what it is, elements, classes, jets, missing momentum, files left out.

One event, element by element, is in `inspect_event.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfscale.shards.inspect_event import FLAVOUR_NAMES, describe_event, find_event, particle_name
from pfscale.shards.manifest import Manifest, load_manifest
from pfscale.shards.ragged import list_leaves, struct_leaf
from pfscale.shards.storage import Folder, open_folder, opened_shard

FILES_SHOWN, REASONS_SHOWN = 10, 5
EVENTS_LOOKED_AT = 50_000  # of larger data sets every n-th shard is counted
_COUNTED = {
    "tracks": "track.list.element.pt",
    "clusters": "cluster.list.element.et",
    "baseline candidates": "baseline.list.element.pdg",
    "visible particles": "gen_particle.list.element.owner",
    "gen jets": "gen_jet.list.element.pt",
}
_TARGETS = ("track_target.list.element.class", "cluster_target.list.element.class")
_OTHERS = ("gen_jet.list.element.flavour", *(f"gen_met.{name}" for name in ("px", "py", "neutrino_px", "neutrino_py", "boost_px")))


def inspect(directory: str | Path | Folder, event: int | str | None = None) -> Group:
    """What the data set in `directory` (path or URL) holds; with `event` that event's elements, candidates and jets.

    Args:
        event: its number (0 first, in the order of the shards), `uid:UID`, or `FILE:ENTRY` with the source file's base name.

    Raises:
        ShardError: no data set there, or a shard is missing or torn.
        NotEnoughDataError, InputFileError: no such event; not an event's name.
    """
    folder = open_folder(directory)
    manifest = load_manifest(folder)
    if event is not None:
        return describe_event(find_event(folder, manifest, str(event)))
    return Group(*_overview(folder, manifest, _count(folder, manifest)))


@dataclass(frozen=True)
class _Counts:
    """Of the events looked at: how many of what in each, the jets, and the missing momentum."""

    num_events: int
    per_event: dict[str, NDArray[np.int64]]
    jet_pt: NDArray[np.float32]
    jet_flavour: NDArray[np.int8]
    met: dict[str, NDArray[np.float32]]


def _count(folder: Folder, manifest: Manifest) -> _Counts:
    """Counts over all events, or over those of evenly spaced shards.

    Raises:
        ShardError: a shard is missing or torn.
    """
    shards = manifest.shards[:: max(1, math.ceil(manifest.num_events / EVENTS_LOOKED_AT))]
    parts = []
    for shard in shards:
        with opened_shard(folder.locate(shard.file)) as parquet:
            for group in range(parquet.num_row_groups):
                parts.append(_count_group(parquet.read_row_group(group, columns=[*_COUNTED.values(), *_TARGETS, *_OTHERS])))
    joined = {key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else ())}
    met = {name.removeprefix("met."): values for name, values in joined.items() if name.startswith("met.")}
    per_event = {name: values for name, values in joined.items() if name in (*_COUNTED, "targets")}
    return _Counts(len(met["px"]), per_event, joined["jet_pt"], joined["jet_flavour"], met)


def _count_group(table: pa.Table) -> dict[str, NDArray[Any]]:
    counts: dict[str, NDArray[Any]] = {}
    for name, path in _COUNTED.items():
        counts[name] = np.diff(list_leaves(table, path.partition(".")[0])[0])
    counts["targets"] = np.zeros(table.num_rows, np.int64)
    for column in ("track_target", "cluster_target"):
        offsets, leaves = list_leaves(table, column)
        event = np.repeat(np.arange(table.num_rows), np.diff(offsets))
        counts["targets"] += np.bincount(event[leaves["class"] > 0], minlength=table.num_rows)
    jets = list_leaves(table, "gen_jet")[1]
    met = {f"met.{path[8:]}": struct_leaf(table, "gen_met", path[8:]) for path in _OTHERS if path.startswith("gen_met.")}
    return counts | {"jet_pt": jets["pt"], "jet_flavour": jets["flavour"]} | met


def _overview(folder: Folder, manifest: Manifest, counts: _Counts) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(f"{folder.address}: {_plural(manifest.num_events, 'event')}, data set {manifest.hash}", "bold")]
    parts.append(_facts(manifest))
    if counts.num_events < manifest.num_events:
        parts.append(Text(f"elements, jets and missing momentum from {counts.num_events} events in evenly spaced shards", "italic"))
    tables = [_elements(counts), _classes(manifest), _jets(counts), _missing_momentum(counts), _sources(manifest)]
    if manifest.quarantined:
        tables.append(_quarantined(manifest))
    if manifest.dropped:
        tables.append(_left_out(manifest))
    return parts + [part for table in tables for part in (Text(), table)]


def _facts(manifest: Manifest) -> Table:
    energy, total = manifest.energy, max(manifest.num_events, 1)
    splits = ", ".join(f"{name} {count} ({100 * count / total:.1f}%)" for name, count in manifest.splits.items())
    dropped = 100 * energy.dropped / energy.visible if energy.visible else 0.0
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in (
        ("detector", manifest.detector),
        ("process", manifest.process or "(not said)"),
        ("simulation", manifest.simulation),
        ("baseline", "rule-based candidates are there" if manifest.has_baseline else "no rule-based candidates"),
        ("splits", splits),
        ("in", f"{_plural(len(manifest.shards), 'shard')} from {_plural(len(manifest.sources), 'file')}"),
        ("particles", f"{manifest.num_particles} visible, {manifest.num_surrogates} of them surrogates"),
        ("energy", f"visible {energy.visible:.6g} GeV = targets {energy.targets:.6g} + dropped {energy.dropped:.6g} ({dropped:.2f}%)"),
        ("closure", _closure(manifest)),
    ):
        facts.add_row(name, value)
    return facts


def _closure(manifest: Manifest) -> str:
    energy = manifest.energy
    difference = abs(energy.visible - energy.targets - energy.dropped)
    return f"{difference / energy.visible:.1e} of the visible energy" if energy.visible else "nothing visible"


def _elements(counts: _Counts) -> Table:
    table = _table("in an event", "mean", "median", "min", "max")
    for name in ("tracks", "clusters", "targets", "visible particles", "baseline candidates", "gen jets"):
        values = counts.per_event[name]
        if len(values):
            table.add_row(name, f"{values.mean():.1f}", f"{np.median(values):.0f}", str(values.min()), str(values.max()))
    return table


def _classes(manifest: Manifest) -> Table:
    table = _table("target class", "tracks", "%", "clusters", "%")
    for code in manifest.track_classes:
        row = [code if code == "none" else f"{code} {particle_name(int(code))}"]
        for counts in (manifest.track_classes, manifest.cluster_classes):
            row += [str(counts[code]), f"{100 * counts[code] / max(sum(counts.values()), 1):.1f}"]
        table.add_row(*row)
    return table


def _jets(counts: _Counts) -> Table:
    table = _table("gen jet flavour", "jets", "%", "mean pt [GeV]")
    for code, name in FLAVOUR_NAMES.items():
        chosen = counts.jet_flavour == code
        if chosen.any():
            row = (f"{100 * chosen.mean():.1f}", f"{counts.jet_pt[chosen].mean():.1f}")
            table.add_row(name, str(int(chosen.sum())), *row)
    if not len(counts.jet_pt):
        table.add_row("no jet", "0", "", "")
    return table


def _missing_momentum(counts: _Counts) -> Table:
    met = counts.met
    table = _table("missing momentum [GeV]", "median", "mean", "95%", "max")
    pts = {
        "gen level, pt": np.hypot(met["px"], met["py"]),
        "neutrinos, pt": np.hypot(met["neutrino_px"], met["neutrino_py"]),
        "crossing-angle boost, px": met["boost_px"],
    }
    for name, values in pts.items():
        if len(values):
            numbers = (np.median(values), values.mean(), np.quantile(values, 0.95), values.max())
            table.add_row(name, *(f"{number:.2f}" for number in numbers))
    return table


def _sources(manifest: Manifest) -> Table:
    table = _table("file", "entries", "events", "MB", left=("written as",))
    for source in manifest.sources[:FILES_SHOWN]:
        size = f"{source.size / 1e6:.1f}"
        table.add_row(source.name, str(source.num_entries), str(source.num_events), size, source.generation or "?")
    more = manifest.sources[FILES_SHOWN:]
    if more:
        kinds = Counter(source.generation or "?" for source in more)
        written = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
        numbers = (sum(s.num_entries for s in more), sum(s.num_events for s in more))
        table.add_row(f"and {len(more)} more", *map(str, numbers), f"{sum(s.size for s in more) / 1e6:.1f}", written)
    return table


def _quarantined(manifest: Manifest) -> Table:
    table = _table(f"{_plural(len(manifest.quarantined), 'file')} set aside", left=("reason",))
    for source in manifest.quarantined[:FILES_SHOWN]:
        table.add_row(source.path, source.reason)
    if len(manifest.quarantined) > FILES_SHOWN:
        table.add_row(f"and {len(manifest.quarantined) - FILES_SHOWN} more", "all are in manifest.json")
    return table


def _left_out(manifest: Manifest) -> Table:
    """Events that are not in the shards, by reason, each with the first of them."""
    table = _table("events left out", "number", left=("first of them",))
    reasons = Counter(dropped.reason for dropped in manifest.dropped)
    for reason, count in reasons.most_common(REASONS_SHOWN):
        first = next(dropped for dropped in manifest.dropped if dropped.reason == reason)
        table.add_row(reason, str(count), f"{PurePosixPath(first.source).name}:{first.entry}")
    if len(reasons) > REASONS_SHOWN:
        table.add_row("other reasons", str(sum(count for _, count in reasons.most_common()[REASONS_SHOWN:])), "")
    return table


def _table(name: str, *numbers: str, left: Sequence[str] = ()) -> Table:
    """A table whose first column is called `name`, then columns of numbers, then columns of text."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(name, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right")
    for text in left:
        table.add_column(text, overflow="fold")
    return table


def _plural(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
