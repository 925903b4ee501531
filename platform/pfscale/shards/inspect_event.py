"""One event for the terminal: what was measured, the particle that each element carries, and the rule-based candidates beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from particle import Particle, ParticleNotFound
from particle.pdgid import literals as pid
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfscale.errors import InputFileError, NotEnoughDataError, ShardError, closest
from pfscale.shards.manifest import Manifest, ShardRecord
from pfscale.shards.schema import CLASSES
from pfscale.shards.storage import Folder, opened_shard

FORMS = "an event is its number (0 is the first), uid:UID, or FILE:ENTRY with the source file's base name"
FLAVOUR_NAMES = {int(code): name for code, name in ((pid.b, "b"), (pid.c, "c"), (pid.tau_minus, "tau"), (pid.s, "s"), (pid.d, "d"))}
FLAVOUR_NAMES |= {int(pid.u): "u", int(pid.g): "gluon", 0: "none found"}
NOT_CARRIED_SHOWN = 12
Row = Mapping[str, Any]


@dataclass(frozen=True)
class FoundEvent:
    """An event of a data set: its number in the order of the shards, and its row with all columns."""

    number: int
    row: dict[str, Any]


def particle_name(pdg: int) -> str:
    """The name of a PDG code as physicists write it; the code itself if there is none."""
    try:
        return Particle.from_pdgid(pdg).name
    except ParticleNotFound:
        return str(pdg)


def find_event(folder: Folder, manifest: Manifest, name: str) -> FoundEvent:
    """The event called `name`: its number, `uid:UID` or `FILE:ENTRY`.

    Raises:
        InputFileError: the name has none of these forms.
        NotEnoughDataError: there is no such event.
        ShardError: a shard is missing or torn.
    """
    if name.lstrip("+-").isdigit():
        return _by_number(folder, manifest, int(name))
    file, colon, last = name.rpartition(":")
    if not colon or not last.isdigit():
        raise InputFileError(f"'{name}' names no event", hint=FORMS)
    if file == "uid":
        return _by_field(folder, manifest, manifest.shards, "uid", int(last), name)
    shards = [shard for shard in manifest.shards if PurePosixPath(shard.source).name == file]
    _require_source(folder, manifest, file, int(last))
    return _by_field(folder, manifest, [s for s in shards if s.start <= int(last) < s.stop], "entry", int(last), name)


def _by_number(folder: Folder, manifest: Manifest, number: int) -> FoundEvent:
    if not 0 <= number < manifest.num_events:
        last = f"; numbers go from 0 to {manifest.num_events - 1}"
        hint = f"the data set has {manifest.num_events} event{'s' * (manifest.num_events != 1)}{last}"
        raise NotEnoughDataError(f"there is no event {number}", where=folder.address, hint=hint)
    first = 0
    for shard in manifest.shards:
        if number < first + shard.num_events:
            return FoundEvent(number, _read_row(folder, shard, number - first))
        first += shard.num_events
    raise AssertionError("the manifest's shards hold fewer events than it says")


def _by_field(folder: Folder, manifest: Manifest, shards: Sequence[ShardRecord], field: str, value: int, name: str) -> FoundEvent:
    """The event whose `field` is `value`, looked for in `shards`."""
    for shard in shards:
        with opened_shard(folder.locate(shard.file)) as file:
            values = file.read(columns=[f"event.{field}"]).column("event").combine_chunks().field(field).to_numpy()
        rows = np.flatnonzero(values == value)
        if len(rows):
            before = sum(other.num_events for other in manifest.shards[: manifest.shards.index(shard)])
            return FoundEvent(before + int(rows[0]), _read_row(folder, shard, int(rows[0])))
    raise NotEnoughDataError(f"there is no event {name}", where=folder.address, hint="pfscale inspect lists the files and their entries")


def _require_source(folder: Folder, manifest: Manifest, file: str, entry: int) -> None:
    """Checks that the data set has a source called `file`, and that its `entry` was not left out.

    Raises:
        NotEnoughDataError: neither is so.
    """
    names = [source.name for source in manifest.sources]
    if file not in names:
        near = closest(file, names, count=1)
        hint = f"did you mean {near[0]}:{entry}?" if near else f"its files: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        raise NotEnoughDataError(f"no event is from a file called '{file}'", where=folder.address, hint=hint)
    for dropped in manifest.dropped:
        if dropped.entry == entry and PurePosixPath(dropped.source).name == file:
            raise NotEnoughDataError(f"entry {entry} of {file} was left out: {dropped.reason}", where=folder.address)


def _read_row(folder: Folder, shard: ShardRecord, row: int) -> dict[str, Any]:
    with opened_shard(folder.locate(shard.file)) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row < size:
                table: pa.Table = file.read_row_group(group)
                return table.slice(row, 1).to_pylist()[0]
            row -= size
    raise ShardError(
        "the shard holds fewer events than the manifest says",
        where=folder.locate(shard.file),
        hint="run the ingest again into a new folder",
    )


def describe_event(found: FoundEvent) -> Group:
    """The event as tables: elements with targets and candidates, particles that no element carries, gen jets, energies and momenta."""
    row, identity = found.row, found.row["event"]
    lines: list[RenderableType] = [
        Text(f"event {found.number}: {identity['file']}:{identity['entry']}", "bold"),
        Text(
            f"run {identity['run']}, number {identity['number']}, uid:{identity['uid']}, {identity['split']}, weight {identity['weight']:g}"
        ),
        Text(f"{len(row['track'])} tracks, {len(row['cluster'])} clusters, {len(row['baseline'])} baseline candidates"),
        Text("T track, C cluster; + merged into the particle above; weight: of the track link, or hit energy in the cluster; GeV", "dim"),
        Text(),
        _elements(row),
        *_not_carried(row),
        Text(),
        _jets(row),
        Text(),
        _sums(row),
    ]
    return Group(*lines)


def _elements(row: Row) -> Table:
    """One line per element: what was measured, the particle that it carries, those merged into that, and the candidates made of it."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)  # 80 characters wide with numbers up to 999.99
    for name in ("", "pt|et", "eta", "phi", "class", "particle", "pt", "E", "weight", "jet", "baseline, E"):
        table.add_column(name, justify="left" if name in ("", "class", "particle", "baseline, E") else "right")
    merged, candidates = _merged(row), _candidates_of(row)
    number = 0
    for kind, scale, weight in (("track", "pt", "gp_to_track"), ("cluster", "et", "gp_to_cluster")):
        for index, (element, target) in enumerate(zip(row[kind], row[f"{kind}_target"], strict=True)):
            phi = float(np.arctan2(element["sin_phi"], element["cos_phi"]))
            measured = [f"{kind[0].upper()} {index}", f"{element[scale]:.2f}", f"{element['eta']:.2f}", f"{phi:.2f}"]
            table.add_row(*measured, *_target(row, target, weight), candidates.get((kind, index), ""))
            for particle in merged.get(number, ()):
                table.add_row(
                    "", "", "", "", "", f"+ {particle_name(particle['pdg'])}", f"{particle['pt']:.2f}", f"{particle['energy']:.2f}"
                )
            number += 1
    return table


def _target(row: Row, target: Row, weight: str) -> tuple[str, ...]:
    if not target["class"]:
        return ("", "", "", "", "", "")
    particle = row["gen_particle"][target["particle_number"]]
    jet = "" if target["jet_idx"] < 0 else str(target["jet_idx"])
    numbers = (f"{target['pt']:.2f}", f"{target['energy']:.2f}", f"{target[weight]:.2f}", jet)
    return (CLASSES[target["class"]], particle_name(particle["pdg"]), *numbers)


def _merged(row: Row) -> dict[int, list[Row]]:
    """element -> the particles merged into the one that it carries."""
    carried = {target["particle_number"] for kind in ("track", "cluster") for target in row[f"{kind}_target"] if target["class"]}
    found: dict[int, list[Row]] = {}
    for number, particle in enumerate(row["gen_particle"]):
        if particle["owner"] >= 0 and number not in carried:
            found.setdefault(particle["owner"], []).append(particle)
    return found


def _candidates_of(row: Row) -> dict[tuple[str, int], str]:
    """(kind, index) of an element -> the candidates made of it: number, name and energy."""
    found: dict[tuple[str, int], str] = {}
    for number, candidate in enumerate(row["baseline"]):
        text = f"{number} {particle_name(candidate['pdg'])} {candidate['energy']:.2f}"
        for kind in ("track", "cluster"):
            for index in candidate[f"{kind}_index"]:
                found[kind, index] = f"{found[kind, index]}, {text}" if (kind, index) in found else text
    return found


def _not_carried(row: Row) -> list[Text]:
    """Visible particles and candidates that belong to no element."""
    lines = []
    homeless = [p for p in row["gen_particle"] if p["owner"] < 0]
    if homeless:
        named = [f"{particle_name(p['pdg'])} {p['energy']:.2f}" for p in sorted(homeless, key=lambda p: -p["energy"])]
        lines.append(Text(f"dropped (no element, GeV): {_listed(named)}"))
    alone = [f"{n} {particle_name(c['pdg'])}" for n, c in enumerate(row["baseline"]) if not c["track_index"] and not c["cluster_index"]]
    if alone:
        lines.append(Text(f"candidates without element: {_listed(alone)}"))
    return lines


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NOT_CARRIED_SHOWN
    return ", ".join(names[:NOT_CARRIED_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _jets(row: Row) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("gen jet", "pt", "eta", "phi", "energy", "flavour", "visible members"):
        table.add_column(name, justify="left" if name == "flavour" else "right")
    members = [particle["jet_idx"] for particle in row["gen_particle"]]
    for number, jet in enumerate(row["gen_jet"]):
        kinematics = (f"{jet[name]:.2f}" for name in ("pt", "eta", "phi", "energy"))
        table.add_row(str(number), *kinematics, FLAVOUR_NAMES.get(jet["flavour"], str(jet["flavour"])), str(members.count(number)))
    if not row["gen_jet"]:
        table.add_row("none", *[""] * 6)
    return table


def _sums(row: Row) -> Table:
    """Energy and missing momentum of the event, as truth, targets and candidates have it."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("sum over", "number", "energy", "missing px", "missing py", "missing pt"):
        table.add_column(name, justify="left" if name == "sum over" else "right")
    met = row["gen_met"]
    particles, targets = row["gen_particle"], [t for kind in ("track", "cluster") for t in row[f"{kind}_target"] if t["class"]]
    pairs = ((p["pt"] * np.cos(p["phi"]), p["pt"] * np.sin(p["phi"])) for p in particles)
    visible = -np.sum(list(pairs) or [(0.0, 0.0)], axis=0)
    carried = -np.sum([(t["pt"] * t["cos_phi"], t["pt"] * t["sin_phi"]) for t in targets] or [(0.0, 0.0)], axis=0)
    _add_sum(table, "gen level", "", "", (met["px"], met["py"]))
    _add_sum(table, "neutrinos less boost", "", "", (met["neutrino_px"] - met["boost_px"], met["neutrino_py"]))
    _add_sum(table, "visible particles", str(len(particles)), f"{sum(p['energy'] for p in particles):.2f}", visible)
    _add_sum(table, "targets", str(len(targets)), f"{sum(t['energy'] for t in targets):.2f}", carried)
    candidates = row["baseline"]
    if candidates:
        rule_based = -np.sum([(c["px"], c["py"]) for c in candidates], axis=0)
        _add_sum(table, "baseline candidates", str(len(candidates)), f"{sum(c['energy'] for c in candidates):.2f}", rule_based)
    table.add_row("clusters", str(len(row["cluster"])), f"{sum(c['energy'] for c in row['cluster']):.2f}", "", "", "")
    return table


def _add_sum(table: Table, name: str, number: str, energy: str, missing: Sequence[float]) -> None:
    table.add_row(name, number, energy, f"{missing[0]:.2f}", f"{missing[1]:.2f}", f"{np.hypot(missing[0], missing[1]):.2f}")
