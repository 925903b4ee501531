"""What is in a folder of shards, as tables for the terminal: what it is, elements, classes, jets, missing momentum, files left out.

One event, element by element, is in `inspect_event.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfscale.edm4hep.origin import ORIGINS
from pfscale.errors import PfscaleError, ShardError
from pfscale.remote import base_name, without_secrets
from pfscale.shards.inspect_event import FLAVOUR_NAMES, TOP_ROLE_NAMES, describe_event, find_event, is_boosted
from pfscale.shards.manifest import Manifest, load_manifest
from pfscale.shards.ragged import list_leaves, struct_leaf
from pfscale.shards.schema import CLASSES
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
CLASS_NAMES = dict(zip(CLASSES, ("", "charged hadron", "neutral hadron", "photon", "electron", "muon"), strict=True))
_TARGETS = ("track_target.list.element.class", "cluster_target.list.element.class")
_NAMES = ("event.file", "event.entry", "event.uid")
_OTHERS = (
    "gen_jet.list.element.flavour",
    "gen_jet.list.element.top_role",
    "gen_particle.list.element.energy",
    "gen_particle.list.element.origin",
    *(f"gen_met.{name}" for name in ("px", "py", "neutrino_px", "neutrino_py", "boost_px")),
)


def inspect(directory: str | Path | Folder, event: int | str | None = None) -> Group:
    """What the data set in `directory` (path or URL) holds; with `event` that event's elements, candidates and jets.

    Args:
        event: its number (0 first, in the order of the shards), `uid:UID`, or `FILE:ENTRY` with the source file's base name.

    Raises:
        ShardError: no data set there (says what there is instead), or a shard is missing or torn.
        NotEnoughDataError, InputFileError: no such event; not an event's name.
        ResourceError: it is remote and cannot be reached or may not be read.
    """
    folder = open_folder(directory)
    try:
        manifest = load_manifest(folder)
        if event is not None:
            return describe_event(find_event(folder, manifest, str(event)))
        return Group(*_overview(folder, manifest, _count(folder, manifest)))
    except PfscaleError as error:
        raise _without_secrets(error, folder.address) from None


def _without_secrets(error: PfscaleError, address: str) -> PfscaleError:
    """The same error without the password or signature that the address may hold."""
    bare = without_secrets(address)
    what, where, hint = (text and text.replace(address, bare) for text in (error.what, error.where, error.hint))
    return type(error)(what or "", where=where, hint=hint)


@dataclass(frozen=True)
class _Counts:
    """Of the events looked at: how many of what in each, the visible particles' origins, the jets, and the missing momentum.

    Attributes:
        is_all: whether these are all shards.
        visible_energy: GeV, in each event.
        first: what the first event is called, in every way.
    """

    num_events: int
    is_all: bool
    first: tuple[str, ...]
    visible_energy: NDArray[np.float64]
    per_event: dict[str, NDArray[np.int64]]
    origin: NDArray[np.int8]
    jet_pt: NDArray[np.float32]
    jet_flavour: NDArray[np.int8]
    jet_top_role: NDArray[np.int8]
    met: dict[str, NDArray[np.float32]]


def _count(folder: Folder, manifest: Manifest) -> _Counts:
    """Counts over all events, or over those of evenly spaced shards.

    Raises:
        ShardError: a shard is missing or torn.
    """
    shards = manifest.shards[:: max(1, math.ceil(manifest.num_events / EVENTS_LOOKED_AT))]
    parts: list[dict[str, NDArray[Any]]] = []
    first: tuple[str, ...] = ()
    for shard in shards:
        with opened_shard(folder.locate(shard.file)) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=[*_NAMES, *_COUNTED.values(), *_TARGETS, *_OTHERS])
                parts.append(_count_group(table))
                first = first or _names_of_first(table)
    if not first:
        hint = "run the ingest again into a new folder"
        raise ShardError("the data set holds no event", where=folder.address, hint=hint)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    met = {name.removeprefix("met."): values for name, values in joined.items() if name.startswith("met.")}
    per_event = {name: values for name, values in joined.items() if name in (*_COUNTED, "targets")}
    counted = {name: joined[name] for name in ("visible_energy", "origin", "jet_pt", "jet_flavour", "jet_top_role")}
    return _Counts(len(met["px"]), len(shards) == len(manifest.shards), first, per_event=per_event, met=met, **counted)


def _names_of_first(table: pa.Table) -> tuple[str, ...]:
    if not table.num_rows:
        return ()
    event = table.column("event")[0].as_py()
    return "0", f"{event['file']}:{event['entry']}", f"uid:{event['uid']}"


def _count_group(table: pa.Table) -> dict[str, NDArray[Any]]:
    counts: dict[str, NDArray[Any]] = {}
    for name, path in _COUNTED.items():
        counts[name] = np.diff(list_leaves(table, path.partition(".")[0])[0])
    counts["targets"] = np.zeros(table.num_rows, np.int64)
    for column in ("track_target", "cluster_target"):
        offsets, leaves = list_leaves(table, column)
        event = np.repeat(np.arange(table.num_rows), np.diff(offsets))
        counts["targets"] += np.bincount(event[leaves["class"] > 0], minlength=table.num_rows)
    offsets, leaves = list_leaves(table, "gen_particle")
    event = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    counts["visible_energy"] = np.bincount(event, leaves["energy"], minlength=table.num_rows)
    jets = list_leaves(table, "gen_jet")[1]
    met = {f"met.{path[8:]}": struct_leaf(table, "gen_met", path[8:]) for path in _OTHERS if path.startswith("gen_met.")}
    labels = {"origin": leaves["origin"], "jet_flavour": jets["flavour"], "jet_top_role": jets["top_role"]}
    return counts | labels | {"jet_pt": jets["pt"]} | met


def _overview(folder: Folder, manifest: Manifest, counts: _Counts) -> list[RenderableType]:
    address = without_secrets(folder.address)
    parts: list[RenderableType] = [Text(f"{address}: {_plural(manifest.num_events, 'event')}, data set {manifest.hash}", "bold")]
    parts.append(_facts(manifest))
    if not counts.is_all:
        parts.append(Text(f"elements, jets and missing momentum from {counts.num_events} events in evenly spaced shards", "italic"))
    differences = _contradictions(manifest, counts)
    if differences:
        told = f"the manifest contradicts the shards: {'; '.join(differences)} (pfscale ingest --check looks closer)"
        parts.append(Text(told, "bold red"))
    tables = [_elements(counts), _classes(manifest), _origins(counts), _jets(counts)]
    if counts.jet_top_role.any():
        tables.append(_top_decays(counts))
    tables += [_missing_momentum(counts, manifest.detector), _sources(manifest)]
    if manifest.quarantined:
        tables.append(_quarantined(manifest))
    if manifest.dropped:
        tables.append(_left_out(manifest))
    parts += [part for table in tables for part in (Text(), table)]
    names = "\n".join(f"  --event {name}" for name in counts.first)
    return [*parts, Text(), Text(f"one event as a table, here the first, by any of its names:\n{names}", "dim")]


def _contradictions(manifest: Manifest, counts: _Counts) -> list[str]:
    """Numbers of the manifest that are not those of the shards, or not of each other."""
    told = [
        ("events", manifest.num_events, sum(shard.num_events for shard in manifest.shards)),
        ("events in splits", sum(manifest.splits.values()), manifest.num_events),
    ]
    if counts.is_all:
        told += [
            ("events", manifest.num_events, counts.num_events),
            ("tracks", sum(manifest.track_classes.values()), int(counts.per_event["tracks"].sum())),
            ("clusters", sum(manifest.cluster_classes.values()), int(counts.per_event["clusters"].sum())),
            ("visible particles", manifest.num_particles, int(counts.per_event["visible particles"].sum())),
        ]
    return list(dict.fromkeys(f"{said} {name} instead of {found}" for name, said, found in told if said != found))


def _facts(manifest: Manifest) -> Table:
    energy, total = manifest.energy, max(sum(manifest.splits.values()), 1)
    splits = ", ".join(f"{name} {count} ({100 * count / total:.1f}%)" for name, count in manifest.splits.items())
    dropped = 100 * energy.dropped / energy.visible if energy.visible else 0.0
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in (
        ("detector", manifest.detector + _unverified(manifest)),
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


def _unverified(manifest: Manifest) -> str:
    if not manifest.unverified:
        return ""
    files = f"{_plural(len(manifest.unverified), 'file')} of {len(manifest.sources)}"
    return f" (as asked for; nothing in {files} says or shows it)"


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
        row = [f"{code} {CLASS_NAMES.get(code, '')}".strip()]
        for counts in (manifest.track_classes, manifest.cluster_classes):
            row += [str(counts.get(code, 0)), f"{100 * counts.get(code, 0) / max(sum(counts.values()), 1):.1f}"]
        table.add_row(*row)
    return table


def _origins(counts: _Counts) -> Table:
    table = _table("visible particles from", "number", "%")
    for index, name in enumerate(ORIGINS):
        chosen = counts.origin == index
        if chosen.any():
            table.add_row(name, str(int(chosen.sum())), f"{100 * chosen.mean():.1f}")
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


def _top_decays(counts: _Counts) -> Table:
    table = _table("gen jets of top decays", "jets", "in an event")
    for role, name in TOP_ROLE_NAMES.items():
        number = int((counts.jet_top_role == role).sum())
        if role and number:
            table.add_row(name, str(number), f"{number / counts.num_events:.2f}")
    return table


def _missing_momentum(counts: _Counts, detector: str) -> Table:
    met = counts.met
    boosted = is_boosted(detector, met["boost_px"], counts.visible_energy)
    table = _table("missing momentum [GeV]", "median", "mean", "95%", "max")
    pts = {
        "gen level, pt": np.hypot(met["px"], met["py"]),
        "neutrinos, pt": np.hypot(met["neutrino_px"], met["neutrino_py"]),
        "crossing-angle boost, px" if boosted else "all stable particles, px": met["boost_px"],
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
        table.add_row(without_secrets(source.path), source.reason)
    if len(manifest.quarantined) > FILES_SHOWN:
        table.add_row(f"and {len(manifest.quarantined) - FILES_SHOWN} more", "all are in manifest.json")
    return table


def _left_out(manifest: Manifest) -> Table:
    """Events that are not in the shards, by reason, each with the first of them."""
    table = _table("events left out", "number", left=("first of them",))
    reasons = Counter(dropped.reason for dropped in manifest.dropped)
    for reason, count in reasons.most_common(REASONS_SHOWN):
        first = next(dropped for dropped in manifest.dropped if dropped.reason == reason)
        table.add_row(reason, str(count), f"{base_name(first.source)}:{first.entry}")
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
