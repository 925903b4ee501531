"""One event for the terminal: what was measured, the particle that each element carries, and the rule-based candidates beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from particle import Particle, ParticleNotFound
from particle.pdgid import literals as pid
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfscale.edm4hep.detectors import DETECTORS
from pfscale.errors import InputFileError, NotEnoughDataError, ShardError, closest
from pfscale.remote import base_name
from pfscale.shards.manifest import Manifest, ShardRecord
from pfscale.shards.schema import CLASSES
from pfscale.shards.storage import Folder, opened_shard

FORMS = "an event is its number (0 is the first), uid:UID, or FILE:ENTRY with the source file's base name"
LEAST_SEEN = 0.1  # of the beams' energy, for the momentum of an event to be taken for the boost by the crossing angle
FLAVOUR_NAMES = {int(code): name for code, name in ((pid.b, "b"), (pid.c, "c"), (pid.tau_minus, "tau"), (pid.s, "s"), (pid.d, "d"))}
FLAVOUR_NAMES |= {int(pid.u): "u", int(pid.g): "gluon", 0: "none found"}
TOP_ROLE_NAMES = {1: "b of t", 2: "q of W+", -1: "b of tbar", -2: "q of W-", 0: ""}
NOT_CARRIED_SHOWN = 12
Row = Mapping[str, Any]


@dataclass(frozen=True)
class FoundEvent:
    """An event of a data set: its number in the order of the shards, its row with all columns, and the data set's detector."""

    number: int
    row: dict[str, Any]
    detector: str


def particle_name(pdg: int) -> str:
    """The name of a PDG code as physicists write it; the code itself if there is none."""
    try:
        return Particle.from_pdgid(pdg).name
    except ParticleNotFound:
        return str(pdg)


def is_boosted(detector: str, total_px: ArrayLike, visible_energy: ArrayLike) -> bool:
    """Whether the px of all stable particles is the boost by the detector's crossing angle in most of these events.

    Beams with the energy E in sum give px = E sin(angle / 2), and at least a tenth of E is seen. The particles of a gun have all of E and
    any px, and files can be made without a crossing angle.
    """
    entry = DETECTORS.get(detector)
    if entry is None or not entry.crossing_angle:
        return False
    beams = np.asarray(total_px, np.float64) / np.sin(entry.crossing_angle / 2)
    seen = np.asarray(visible_energy, np.float64)
    rounding = 0.99
    return bool(np.mean((beams > 0) & (beams >= rounding * seen) & (LEAST_SEEN * beams <= seen)) > 0.5)


def find_event(folder: Folder, manifest: Manifest, name: str) -> FoundEvent:
    """The event called `name`: its number, `uid:UID` or `FILE:ENTRY`.

    Raises:
        InputFileError: the name has none of these forms, or is that of several events.
        NotEnoughDataError: there is no such event.
        ShardError: a shard is missing or torn.
    """
    if re.fullmatch(r"[+-]?[0-9]+", name):
        return _by_number(folder, manifest, int(name))
    form = re.fullmatch(r"(.+):([0-9]+)", name)
    if form is None:
        raise InputFileError(f"'{name}' names no event", hint=FORMS)
    file, last = form[1], int(form[2])
    if file == "uid":
        found = list(islice(_by_field(folder, manifest, "uid", last), 1))
    else:
        _require_source(folder, manifest, file, last)
        found = list(_by_field(folder, manifest, "entry", last, file=file))
    if not found:
        hint = "pfscale inspect lists the files and their entries"
        raise NotEnoughDataError(f"there is no event {name}", where=folder.address, hint=hint)
    if len(found) > 1:
        uids = ", ".join(f"uid:{event.row['event']['uid']}" for event in found)
        raise InputFileError(f"{len(found)} events are called {name}", where=folder.address, hint=f"name one of them: {uids}")
    return found[0]


def _by_number(folder: Folder, manifest: Manifest, number: int) -> FoundEvent:
    if not 0 <= number < manifest.num_events:
        last = f"; numbers go from 0 to {manifest.num_events - 1}"
        hint = f"the data set has {manifest.num_events} event{'s' * (manifest.num_events != 1)}{last}"
        raise NotEnoughDataError(f"there is no event {number}", where=folder.address, hint=hint)
    first = 0
    for shard in manifest.shards:
        if number < first + shard.num_events:
            return FoundEvent(number, _read_row(folder, shard, number - first), manifest.detector)
        first += shard.num_events
    message = f"the manifest tells of {manifest.num_events} events, its shards hold {first}"
    raise ShardError(message, where=folder.address, hint="run the ingest again into a new folder")


def _by_field(folder: Folder, manifest: Manifest, field: str, value: int, *, file: str | None = None) -> Iterator[FoundEvent]:
    """The events whose `field` is `value`; with `file`, looked for in what was made of that entry of files of this name."""
    before = 0
    for shard in manifest.shards:
        if file is None or (base_name(shard.source) == file and shard.start <= value < shard.stop):
            with opened_shard(folder.locate(shard.file)) as parquet:
                values = parquet.read(columns=[f"event.{field}"]).column("event").combine_chunks().field(field).to_numpy()
            for row in np.flatnonzero(values == value):
                yield FoundEvent(before + int(row), _read_row(folder, shard, int(row)), manifest.detector)
        before += shard.num_events


def _require_source(folder: Folder, manifest: Manifest, file: str, entry: int) -> None:
    """Checks that the data set has a source called `file`, and that its `entry` was not left out.

    Raises:
        NotEnoughDataError: neither is so.
    """
    sources = [source for source in manifest.sources if source.name == file]
    if not sources:
        names = [source.name for source in manifest.sources]
        near = closest(file, names, count=1)
        hint = f"did you mean {near[0]}:{entry}?" if near else f"its files: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        raise NotEnoughDataError(f"no event is from a file called '{file}'", where=folder.address, hint=hint)
    dropped = [event for event in manifest.dropped if event.entry == entry and base_name(event.source) == file]
    if len(dropped) == len(sources):
        raise NotEnoughDataError(f"entry {entry} of {file} was left out: {dropped[0].reason}", where=folder.address)


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
    origin = f"run {identity['run']}, number {identity['number']}, {identity['split']}, event weight {identity['weight']:g}"
    lines: list[RenderableType] = [
        Text(f"event {found.number}: {identity['file']}:{identity['entry']}, uid:{identity['uid']}", "bold"),
        Text(origin),
        Text(f"{len(row['track'])} tracks, {len(row['cluster'])} clusters, {len(row['baseline'])} baseline candidates"),
        Text("T track, C cluster; then the particle that it carries, + those merged into it; GeV", "dim"),
        Text("link|hits: weight of the track's link to it, or energy of its hits in the cluster", "dim"),
        Text(),
        _elements(row),
        *(Text(line, "dim") for line in _footnotes(row)),
        *_not_carried(row),
        Text(),
        _jets(row),
        Text(),
        _sums(row, boosted=_is_boosted(found)),
    ]
    return Group(*lines)


def _is_boosted(found: FoundEvent) -> bool:
    energy = sum(particle["energy"] for particle in found.row["gen_particle"])
    return is_boosted(found.detector, [found.row["gen_met"]["boost_px"]], [energy])


def _elements(row: Row) -> Table:
    """One line per element: what was measured, the particle that it carries, those merged into that, and the candidates made of it."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)  # 80 characters wide with numbers up to 999.99
    for name in ("", "pt|et", "eta", "phi", "class", "particle", "pt", "E", "link|hits", "jet", "baseline, E"):
        table.add_column(name, justify="left" if name in ("", "class", "particle", "baseline, E") else "right")
    merged, candidates, joined = _merged(row), _candidates_of(row), _joined_tracks(row)
    number = 0
    for kind, scale, share in (("track", "pt", "gp_to_track"), ("cluster", "et", "gp_to_cluster")):
        for index, (element, target) in enumerate(zip(row[kind], row[f"{kind}_target"], strict=True)):
            phi = float(np.arctan2(element["sin_phi"], element["cos_phi"]))
            measured = [_label(kind, index), f"{element[scale]:.2f}", f"{element['eta']:.2f}", f"{phi:.2f}"]
            carried = _target(row, target, share, joined.get((kind, index)))
            table.add_row(*measured, *carried, candidates.get((kind, index), ""))
            for particle in merged.get(number, ()):
                table.add_row(
                    "", "", "", "", "", f"+ {particle_name(particle['pdg'])}", f"{particle['pt']:.2f}", f"{particle['energy']:.2f}"
                )
            number += 1
    return table


def _label(kind: str, index: int) -> str:
    return f"{kind[0].upper()} {index}"


def _target(row: Row, target: Row, share: str, joined: int | None) -> tuple[str, ...]:
    if not target["class"]:
        return ("none", "" if joined is None else f"({_label('track', joined)})", "", "", "", "")
    particle = row["gen_particle"][target["particle_number"]]
    jet = "" if target["jet_idx"] < 0 else str(target["jet_idx"])
    numbers = (f"{target['pt']:.2f}", f"{target['energy']:.2f}", f"{target[share]:.2f}", jet)
    return (CLASSES[target["class"]], particle_name(particle["pdg"]), *numbers)


def _joined_tracks(row: Row) -> dict[tuple[str, int], int]:
    """(kind, index) of an element without a particle -> a track that carries one, in the same candidate.

    A shard knows whose a cluster's energy is only where the cluster carries that particle, so the baseline's word must do.
    """
    found: dict[tuple[str, int], int] = {}
    for candidate in row["baseline"]:
        carrying = [track for track in candidate["track_index"] if row["track_target"][track]["class"]]
        for kind in ("track", "cluster") if carrying else ():
            for index in candidate[f"{kind}_index"]:
                if not row[f"{kind}_target"][index]["class"]:
                    found.setdefault((kind, index), carrying[0])
    return found


def _footnotes(row: Row) -> list[str]:
    """What in the table of elements needs a word: elements without a particle, and classes that are not the particle's own."""
    lines = []
    targets = [(_label(kind, index), kind, target) for kind in ("track", "cluster") for index, target in enumerate(row[f"{kind}_target"])]
    if any(not target["class"] for _, _, target in targets):
        lines.append("none: carries no particle; what made it is carried elsewhere, or is no target")
    if _joined_tracks(row):
        lines.append("(T n): in one baseline candidate with T n, so probably of the particle of T n")
    converted = [label for label, kind, target in targets if kind == "track" and target["class"] and not target["charge"]]
    if converted:
        lines.append(f"211 of a neutral particle: it converted or decayed into the track ({_listed(converted)})")
    trackless = [label for label, kind, target in targets if kind == "cluster" and target["class"] and target["charge"]]
    if trackless:
        lines.append(f"130, 22 of a charged particle: no track is left for it; e is 22, others 130 ({_listed(trackless)})")
    return lines


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
    for name in ("gen jet", "pt", "eta", "phi", "energy", "flavour", "top decay", "visible members"):
        table.add_column(name, justify="left" if name in ("flavour", "top decay") else "right")
    members = [particle["jet_idx"] for particle in row["gen_particle"]]
    for number, jet in enumerate(row["gen_jet"]):
        kinematics = (f"{jet[name]:.2f}" for name in ("pt", "eta", "phi", "energy"))
        labels = (names.get(jet[label], str(jet[label])) for label, names in (("flavour", FLAVOUR_NAMES), ("top_role", TOP_ROLE_NAMES)))
        table.add_row(str(number), *kinematics, *labels, str(members.count(number)))
    if not row["gen_jet"]:
        table.add_row("none", *[""] * 7)
    return table


def _sums(row: Row, *, boosted: bool) -> Table:
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
    name, boost = ("neutrinos less boost", met["boost_px"]) if boosted else ("neutrinos", 0.0)
    _add_sum(table, name, "", "", (met["neutrino_px"] - boost, met["neutrino_py"]))
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
