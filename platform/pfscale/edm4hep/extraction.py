"""Events of a file as flat arrays per shard column: the one function that ingest and reconstruction share.

With truth it fills every column; without, only what the detector saw, so that it works on files that hold no MC particles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep.chunk import EventChunk, read_chunk, read_particles
from pfscale.edm4hep.deposits import read_deposits
from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.elements import cluster_features, track_features
from pfscale.edm4hep.reader import EventSource
from pfscale.edm4hep.targets import (
    EnergyAccount,
    element_targets,
    energy_account,
    gen_missing_momentum,
    gen_particles,
    jets_of_gen_level,
)
from pfscale.edm4hep.truth import Truth, associate
from pfscale.errors import InputFileError
from pfscale.remote import base_name

MAX_CLOSURE_ERROR = 1e-6  # of the visible energy; more is a bug in the truth, or sums that overflow
MOMENTUM_RATIO = (0.7, 1.4)  # of tracks to the particles that they carry, median: outside, the field is not the file's
MIN_TRACKS_FOR_RATIO = 10
NEARLY_ALL = (0.1, 0.9)  # of the tracks must agree that the field is wrong: electrons that radiate are often off, but not alike
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """A list per row: the flat values and num_rows + 1 offsets."""

    offsets: Indices
    values: NDArray[Any]


@dataclass(frozen=True)
class Column:
    """One shard column over the events: flat fields, and the offsets of each event's elements (None: one struct per event)."""

    fields: Mapping[str, NDArray[Any] | Lists | Sequence[str]]
    offsets: Indices | None = None


@dataclass(frozen=True)
class ExtractedEvents:
    """Events of one entry range.

    Attributes:
        columns: shard column -> its fields; `event` lacks what depends on splits.
        problems: event -> why it cannot be used; its rows in `columns` are meaningless.
        invisible: events without any visible particle, to be dropped by ingest (empty without truth).
        account: energy accounting per event (None without truth).
        num_particles, num_surrogates: visible ones, over the good events.
    """

    num_events: int
    columns: dict[str, Column]
    problems: dict[int, str]
    invisible: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    account: EnergyAccount | None = None
    num_particles: int = 0
    num_surrogates: int = 0


def extract(source: EventSource, detector: Detector, start: int, stop: int, *, with_truth: bool) -> ExtractedEvents:
    """The entries [start, stop) of a file as arrays, in the fields of the shard schema.

    Raises:
        InputFileError: a needed collection is missing, or the data cannot be read.
    """
    chunk = read_chunk(source, detector, start, stop)
    columns = {
        "event": Column(_event_fields(chunk)),
        "track": Column(track_features(chunk), chunk.tracks.offsets),
        "cluster": Column(cluster_features(chunk), chunk.clusters.offsets),
        "baseline": _baseline_column(chunk),
    }
    if not with_truth:
        _check_field_by_baseline(chunk, columns["track"])
        return ExtractedEvents(chunk.num_events, columns, chunk.problems.reasons)
    return _with_truth(chunk, columns)


def _with_truth(chunk: EventChunk, columns: dict[str, Column]) -> ExtractedEvents:
    num_events, num_tracks = chunk.num_events, len(chunk.tracks)
    particles = read_particles(chunk)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(particles.event, minlength=num_events))]).astype(np.int64)
    truth = associate(particles, read_deposits(chunk, offsets, particles.energy), num_events=num_events)
    good = chunk.problems.is_good

    jets, jet_of_visible = jets_of_gen_level(particles, truth, num_events=num_events, good=good)
    event_of_element = np.concatenate([chunk.tracks.event, chunk.clusters.event])
    targets = element_targets(particles, truth, jet_of_visible, event_of_element, num_tracks)
    event_of_visible, gen_fields = gen_particles(particles, truth, jet_of_visible, (chunk.tracks.offsets, chunk.clusters.offsets))
    columns |= {
        "track_target": Column({name: values[:num_tracks] for name, values in targets.items()}, chunk.tracks.offsets),
        "cluster_target": Column({name: values[num_tracks:] for name, values in targets.items()}, chunk.clusters.offsets),
        "gen_particle": Column(gen_fields, _offsets(event_of_visible, num_events)),
        "gen_jet": Column(
            {name: getattr(jets, name) for name in ("pt", "eta", "phi", "energy", "flavour", "top_role")}, _offsets(jets.event, num_events)
        ),
        "gen_met": Column(gen_missing_momentum(particles, truth, num_events=num_events)),
    }
    _check_field(chunk, columns, good)
    account = energy_account(particles, truth, event_of_element, num_events=num_events)
    is_open = good & ~(account.closure <= MAX_CLOSURE_ERROR)
    chunk.problems.add(np.flatnonzero(is_open), "visible energy is not the sum of targets and dropped")
    good = chunk.problems.is_good
    visible_in_event = np.bincount(event_of_visible, minlength=num_events)
    return ExtractedEvents(
        num_events,
        columns,
        chunk.problems.reasons,
        invisible=np.flatnonzero(good & (visible_in_event == 0)),
        account=account,
        **_counts(truth, good[event_of_visible]),
    )


def _check_field(chunk: EventChunk, columns: Mapping[str, Column], good: NDArray[np.bool_]) -> None:
    """Checks that tracks have the momenta of their particles: the field is in our table, not in the file, so nothing else would notice.

    Raises:
        InputFileError: they do not: the wrong detector was named.
    """
    target_pt, track_pt = np.asarray(columns["track_target"].fields["pt"]), np.asarray(columns["track"].fields["pt"])
    known = (target_pt > 0) & good[chunk.tracks.event]
    _require_ratio(chunk, track_pt[known] / target_pt[known], whose="their particles")


def _check_field_by_baseline(chunk: EventChunk, tracks: Column) -> None:
    """The same without truth: a rule-based candidate with one track has its momentum, as the field of the file's own reconstruction says.

    Raises:
        InputFileError: tracks do not have the momenta of their candidates.
    """
    candidates = chunk.candidates
    candidate, track = candidates.tracks
    pt = np.hypot(candidates.rows["momentum_x"], candidates.rows["momentum_y"])[candidate] if len(candidate) else np.zeros(0)
    is_alone = np.bincount(candidate, minlength=1)[candidate] == 1
    known = is_alone & (pt > 0) & chunk.problems.is_good[chunk.tracks.event[track]]
    _require_ratio(chunk, np.asarray(tracks.fields["pt"])[track[known]] / pt[known], whose="the file's own candidates")


def _require_ratio(chunk: EventChunk, ratio: NDArray[np.float64], *, whose: str) -> None:
    """Checks ratios of momenta, of which few say nothing.

    Raises:
        InputFileError: nearly all are off.
    """
    if len(ratio) < MIN_TRACKS_FOR_RATIO:
        return
    median, low, high = np.quantile(ratio, [0.5, *NEARLY_ALL])
    if high < MOMENTUM_RATIO[0] or low > MOMENTUM_RATIO[1]:
        detector = chunk.detector
        message = f"tracks have {median:.2f} times the momenta of {whose} in the {detector.magnetic_field:g} T of '{detector.name}'"
        raise InputFileError(message, where=chunk.source.path, hint="is --detector right for this file?")


def _counts(truth: Truth, good: NDArray[np.bool_]) -> dict[str, int]:
    return {"num_particles": int(good.sum()), "num_surrogates": int((truth.is_surrogate & good).sum())}


def _event_fields(chunk: EventChunk) -> dict[str, NDArray[Any] | Lists | Sequence[str]]:
    """Identity and weight of each event; a file without event headers counts its entries."""
    entry = np.arange(chunk.start, chunk.stop)
    values = {"run": np.zeros(len(entry), np.int64), "number": entry.copy(), "weight": np.ones(len(entry))}
    first = chunk.header.offsets[:-1]
    has_header = np.diff(chunk.header.offsets) > 0
    if has_header.any():
        for name, filled in values.items():
            filled[has_header] = chunk.header[name][first[has_header]]
    chunk.problems.add(np.flatnonzero(~np.isfinite(values["weight"])), "the event weight is not finite")
    return {**values, "entry": entry, "file": [base_name(chunk.source.path)] * len(entry)}


def _baseline_column(chunk: EventChunk) -> Column:
    """Every rule-based candidate once, with all its tracks and clusters as indices within the event; PDG 0 is dropped."""
    rows = chunk.candidates.rows
    if not len(rows):
        empty = np.zeros(0)
        fields = dict.fromkeys(_CANDIDATE_FIELDS, empty)
        nothing = Lists(np.zeros(1, np.int64), np.zeros(0, np.int64))
        return Column({**fields, "track_index": nothing, "cluster_index": nothing}, np.zeros(chunk.num_events + 1, np.int64))
    is_kept = rows["pdg"] != 0
    number = np.cumsum(is_kept) - 1
    event = rows.event[is_kept]
    values = {name: rows[source][is_kept] for name, source in _CANDIDATE_FIELDS.items()}
    for name, column in values.items():
        chunk.problems.add(event[~np.isfinite(column.astype(np.float32))], f"baseline '{name}' is not finite")
    lists = {}
    for name, (candidate, other), others in (
        ("track_index", chunk.candidates.tracks, chunk.tracks),
        ("cluster_index", chunk.candidates.clusters, chunk.clusters),
    ):
        kept = is_kept[candidate]
        owner = number[candidate[kept]]
        index = other[kept] - others.offsets[event[owner]]
        order = np.argsort(owner, kind="stable")
        lists[name] = Lists(_offsets(owner, len(event)), index[order])
    return Column({**values, "charge": np.rint(values["charge"]), **lists}, _offsets(event, chunk.num_events))


_CANDIDATE_FIELDS = {
    "pdg": "pdg",
    "charge": "charge",
    "px": "momentum_x",
    "py": "momentum_y",
    "pz": "momentum_z",
    "energy": "energy",
}


def _offsets(group: Indices, num_groups: int) -> Indices:
    return np.concatenate([[0], np.cumsum(np.bincount(group, minlength=num_groups))]).astype(np.int64)
