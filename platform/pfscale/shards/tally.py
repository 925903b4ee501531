"""What came of all units of an ingest, in little memory, and the manifest that is made of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np

from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.extraction import MIN_TRACKS_FOR_RATIO
from pfscale.errors import InputFileError, PfscaleError
from pfscale.remote import without_secrets
from pfscale.shards.events import EXTRACTION_VERSION
from pfscale.shards.manifest import (
    DroppedRecord,
    EnergySums,
    Manifest,
    QuarantinedSource,
    ShardRecord,
    Simulation,
    SourceRecord,
    content_hash,
)
from pfscale.shards.request import Request
from pfscale.shards.schema import CLASSES, SCHEMA_VERSION, SPLITS
from pfscale.shards.sources import Source, quarantine
from pfscale.shards.writer import ShardContents, Unit

_COUNTS = ("num_events", "num_particles", "num_surrogates")
_ENERGIES = ("energy_visible", "energy_targets", "energy_dropped")
_TABLES = (("splits", SPLITS), ("track_classes", CLASSES), ("cluster_classes", CLASSES))


class Tally:
    """Numbers of every unit by its place in `units`, whatever the order in which they come; 200 bytes a unit instead of ten times that."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.counts = np.zeros((len(units), len(_COUNTS)), np.int64)
        self.energies = np.zeros((len(units), len(_ENERGIES)))
        self.tables = {name: np.zeros((len(units), len(keys)), np.int64) for name, keys in _TABLES}
        self.dropped: dict[int, tuple[tuple[int, str], ...]] = {}
        self.errors: dict[str, PfscaleError] = {}  # by the path of the source

    def add(self, number: int, contents: ShardContents) -> None:
        """Takes in what is in the shard of a unit."""
        self.counts[number] = [getattr(contents, name) for name in _COUNTS]
        self.energies[number] = [getattr(contents, name) for name in _ENERGIES]
        for name, keys in _TABLES:
            self.tables[name][number] = [getattr(contents, name)[key] for key in keys]
        if contents.dropped:
            self.dropped[number] = contents.dropped

    def fail(self, number: int, error: PfscaleError) -> None:
        """Notes that the source of a unit cannot be read, and so is set aside as a whole."""
        self.errors.setdefault(self.units[number].path, error)

    def kept(self) -> list[int]:
        """The units whose sources are good from end to end."""
        return [number for number, unit in enumerate(self.units) if unit.path not in self.errors]

    def set_aside(self) -> list[QuarantinedSource]:
        """The records of the sources that failed while they were read."""
        return [quarantine(path, error) for path, error in sorted(self.errors.items())]

    def manifest(self, detector: Detector, examined: Sequence[Source], bad: Sequence[QuarantinedSource], request: Request) -> Manifest:
        """The manifest of the shards of all units that are kept.

        Raises:
            InputFileError: they hold no event, or come from different simulations.
        """
        kept = self.kept()
        good = [source for source in examined if source.path not in self.errors]
        process = request.settings["process"] or "+".join(sorted({source.process for source in good if source.process}))
        simulation = request.settings["simulation"] or common_simulation(good, detector)
        identity = sorted((source.name, source.digest) for source in good)
        counts = dict(zip(_COUNTS, self.counts[kept].sum(axis=0).tolist(), strict=True))
        # exactly rounded, so that the order in which workers end does not show
        energies = (math.fsum(column) for column in self.energies[kept].T)
        tables = {name: dict(zip(keys, self.tables[name][kept].sum(axis=0).tolist(), strict=True)) for name, keys in _TABLES}
        manifest = Manifest(
            extraction_version=EXTRACTION_VERSION,
            hash=content_hash("data", SCHEMA_VERSION, EXTRACTION_VERSION, detector.name, process, simulation, identity),
            request=request.identity,
            settings=request.settings,
            detector=detector.name,
            process=process,
            simulation=cast(Simulation, simulation),
            has_baseline=all(source.has_baseline for source in good),
            energy=EnergySums(**dict(zip(("visible", "targets", "dropped"), energies, strict=True))),
            sources=self._sources(good, kept),
            quarantined=tuple(record.model_copy(update={"path": without_secrets(record.path)}) for record in bad),
            dropped=self._dropped(kept),
            shards=self._shards(kept),
            **counts,
            **tables,
        )
        if manifest.num_events == 0:
            reasons = Counter(dropped.reason for dropped in manifest.dropped)
            why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            raise InputFileError(f"no event can be used ({why})", where=good[0].path, hint="is --detector right for these files?")
        return manifest

    def _sources(self, good: Sequence[Source], kept: Sequence[int]) -> tuple[SourceRecord, ...]:
        events: Counter[str] = Counter()
        tracks: Counter[str] = Counter()
        for number in kept:
            events[self.units[number].path] += int(self.counts[number, 0])
            tracks[self.units[number].path] += int(self.tables["track_classes"][number, 1:].sum())  # class 0: of no particle
        same = ("name", "size", "digest", "num_entries", "generation", "detector", "process", "simulation", "has_baseline")
        return tuple(
            SourceRecord(
                path=without_secrets(source.path),
                num_events=events[source.path],
                detector_verified=bool(source.detector) or tracks[source.path] >= MIN_TRACKS_FOR_RATIO,
                **{name: getattr(source, name) for name in same},
            )
            for source in good
        )

    def _dropped(self, kept: Sequence[int]) -> tuple[DroppedRecord, ...]:
        return tuple(
            DroppedRecord(source=without_secrets(self.units[number].path), entry=entry, reason=reason)
            for number in kept
            for entry, reason in self.dropped.get(number, ())
        )

    def _shards(self, kept: Sequence[int]) -> tuple[ShardRecord, ...]:
        units = [(self.units[number], int(self.counts[number, 0])) for number in kept]
        return tuple(ShardRecord(file=u.file, source=without_secrets(u.path), start=u.start, stop=u.stop, num_events=n) for u, n in units)


def common_simulation(good: Sequence[Source], detector: Detector) -> str:
    """What simulated the sources: what they say, else the detector's usual.

    Raises:
        InputFileError: they differ: a model trained on a mixture could not say what it was trained on.
    """
    kinds = {source.simulation or detector.simulation: source for source in good}
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({source.name})" for kind, source in sorted(kinds.items()))
        raise InputFileError(f"the files come from different simulations: {listed}", hint="ingest them into separate folders")
    return next(iter(kinds))
