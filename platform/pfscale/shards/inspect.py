"""What is in a folder of shards, as tables for the terminal: counts, splits, class balance, energy; or one event, element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from particle import Particle, ParticleNotFound
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pfscale.errors import NotEnoughDataError
from pfscale.shards.manifest import Manifest, load_manifest
from pfscale.shards.schema import CLASSES

QUARANTINED_SHOWN = 10


def inspect(directory: str | Path, event: int | None = None) -> Group:
    """What the data set in `directory` holds; with `event` (0 first, in the order of the shards) that event's elements and jets.

    Raises:
        ShardError: no data set there.
        NotEnoughDataError: no such event.
    """
    manifest = load_manifest(directory)
    return _overview(directory, manifest) if event is None else _event(Path(directory), manifest, event)


def particle_name(pdg: int) -> str:
    """The name of a PDG code as physicists write it; the code itself if there is none."""
    try:
        return Particle.from_pdgid(pdg).name
    except ParticleNotFound:
        return str(pdg)


def _overview(directory: str | Path, manifest: Manifest) -> Group:
    facts = Table(title=f"{directory}: {manifest.num_events} events, data set {manifest.hash}", title_justify="left", show_header=False)
    energy = manifest.energy
    rows: list[tuple[str, str]] = [
        ("detector", manifest.detector),
        ("process", manifest.process or "(not said)"),
        ("simulation", manifest.simulation),
        ("baseline candidates", "yes" if manifest.has_baseline else "no"),
        ("splits", ", ".join(f"{name} {count}" for name, count in manifest.splits.items())),
        ("sources, shards", f"{len(manifest.sources)}, {len(manifest.shards)}"),
        ("visible particles", f"{manifest.num_particles}, of them surrogates {manifest.num_surrogates}"),
        (
            "visible energy",
            f"{energy.visible:.6g} GeV = targets {energy.targets:.6g} + dropped {energy.dropped:.6g} ({_closure(manifest)})",
        ),
        ("events left out", ", ".join(f"{count}: {reason}" for reason, count in _reasons(manifest).items()) or "none"),
    ]
    for name, value in rows:
        facts.add_row(name, value)
    parts: list[Any] = [facts, _classes(manifest)]
    if manifest.quarantined:
        bad = Table("file", "reason", title=f"{len(manifest.quarantined)} file(s) set aside", title_justify="left")
        for source in manifest.quarantined[:QUARANTINED_SHOWN]:
            bad.add_row(source.path, source.reason)
        parts.append(bad)
    return Group(*parts)


def _classes(manifest: Manifest) -> Table:
    table = Table("target class", title="class balance", title_justify="left")
    columns = (("tracks", manifest.track_classes), ("clusters", manifest.cluster_classes))
    for name, _ in columns:
        table.add_column(name, justify="right")
        table.add_column("%", justify="right")
    for code in manifest.track_classes:
        row = [code if code == "none" else f"{code} {particle_name(int(code))}"]
        for _, counts in columns:
            total = max(sum(counts.values()), 1)
            row += [str(counts[code]), f"{100 * counts[code] / total:.1f}"]
        table.add_row(*row)
    return table


def _closure(manifest: Manifest) -> str:
    energy = manifest.energy
    difference = abs(energy.visible - energy.targets - energy.dropped)
    return f"closes to {difference / energy.visible:.1e}" if energy.visible else "nothing visible"


def _reasons(manifest: Manifest) -> dict[str, int]:
    reasons = [dropped.reason for dropped in manifest.dropped]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _event(directory: Path, manifest: Manifest, number: int) -> Group:
    row = _read_event(directory, manifest, number)
    identity = row["event"]
    where = f"{identity['file']} entry {identity['entry']}, run {identity['run']}, number {identity['number']}"
    heading = Text(f"event {number}: {where}, {identity['split']}")
    met = row["gen_met"]
    missing = Text(
        f"gen-level missing momentum: px {met['px']:.2f}, py {met['py']:.2f} GeV (of it crossing angle {-met['boost_px']:.2f} in px)"
    )
    jets = _table("gen jets", ("pt", "eta", "phi", "energy", "flavour"), row["gen_jet"])
    return Group(heading, _elements(row), jets, missing)


def _elements(row: dict[str, Any]) -> Table:
    """One line per element: what was measured, and the particle that it carries."""
    table = Table(
        title=f"{len(row['track'])} tracks, {len(row['cluster'])} clusters, {len(row['baseline'])} baseline candidates",
        title_justify="left",
    )
    for name in ("element", "pt or et", "eta", "phi", "target", "particle", "pt", "energy", "weight", "jet"):
        table.add_column(name, justify="left" if name in ("element", "target", "particle") else "right")
    for kind, scale, weight in (("track", "pt", "gp_to_track"), ("cluster", "et", "gp_to_cluster")):
        for index, (element, target) in enumerate(zip(row[kind], row[f"{kind}_target"], strict=True)):
            phi = float(np.arctan2(element["sin_phi"], element["cos_phi"]))
            cells = [f"{kind} {index}", f"{element[scale]:.2f}", f"{element['eta']:.2f}", f"{phi:.2f}"]
            if target["class"]:
                particle = row["gen_particle"][target["particle_number"]]
                cells += [CLASSES[target["class"]], particle_name(particle["pdg"]), f"{target['pt']:.2f}", f"{target['energy']:.2f}"]
                cells += [f"{target[weight]:.2f}", str(target["jet_idx"])]
            table.add_row(*cells)
    return table


def _table(title: str, names: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{len(rows)} {title}", title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in names))
    return table


def _read_event(directory: Path, manifest: Manifest, number: int) -> dict[str, Any]:
    if not 0 <= number < manifest.num_events:
        message = f"there is no event {number}"
        raise NotEnoughDataError(message, where=str(directory), hint=f"the data set has {manifest.num_events} events, 0 is the first")
    left = number
    for shard in manifest.shards:
        if left < shard.num_events:
            file = pq.ParquetFile(directory / shard.file)
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if left < size:
                    table: pa.Table = file.read_row_group(group)
                    return table.slice(left, 1).to_pylist()[0]
                left -= size
        left -= shard.num_events
    raise AssertionError("the manifest's shards hold fewer events than it says")
