"""Whether everything in an EDM4hep file that refers to something else refers to something that is there, and adds up.

    python -m pfscale.edm4hep.validate FILE --detector cld

Works on any file that the reader opens. What full simulation does differently on purpose is a warning there, with the reason; in a file of
the built-in source it is an error. The exit code is 1 if there are errors, 2 if a file cannot be read or is
not of the detector.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep import layout
from pfscale.edm4hep.candidates import baseline_collection
from pfscale.edm4hep.detectors import DETECTORS, Detector, find_detector
from pfscale.edm4hep.layout import Kind, Relation
from pfscale.edm4hep.reader import EventSource, References, Rows, open_source, require_detector
from pfscale.edm4hep.relations import Indices
from pfscale.errors import PfscaleError

ENERGY_TOLERANCE = 1e-3  # relative, of sums of 32-bit floats
WEIGHT_TOLERANCE = 1e-3
NULL = -1  # the index of a reference to nothing

# rule -> why a file that others made may break it; None: nobody may
RULES: dict[str, str | None] = {
    "finite": None,
    "range": None,
    "known-collection": "references to collections that were dropped from the file keep their ids",
    "inside": None,
    "link-ends": None,
    "hit-truth": "noise has no particle, and links go where their particles were dropped",
    "track-truth": "tracks of background and of noise have no particle, and links go where their particles were dropped",
    "track-weights": "converters leave weights at 0, and one hit may have several particles",
    "hit-weights": "weights are simulated energies, and hits are calibrated ones",
    "mutual": "writers that drop particles leave relations in one direction only",
    "cluster-hits": "hits may be left out of the file where its clusters are kept",
    "cluster-energy": "cluster energies are corrected after the hits are summed",
    "one-cluster": None,
    "states": None,
    "covariance": None,
    "one-candidate": None,
    "candidate-elements": "candidates that were dropped to nothing keep their place",
}


@dataclass(frozen=True)
class Finding:
    """One rule that is broken in one collection: how often, and the first entry where it is."""

    rule: str
    where: str
    count: int
    total: int
    first_entry: int
    reason: str | None  # why it may be; None: it is an error

    @property
    def is_error(self) -> bool:
        """Whether nothing excuses it."""
        return self.reason is None

    def __str__(self) -> str:
        kind = "error" if self.is_error else "warning"
        text = f"{kind}: {self.rule}: {self.where}: {self.count} of {self.total}, first in entry {self.first_entry}"
        return text if self.reason is None else f"{text} (may be: {self.reason})"


@dataclass(frozen=True)
class Validation:
    """What was found in a file, and how many references were followed."""

    findings: tuple[Finding, ...]
    num_references: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that nothing excuses."""
        return tuple(finding for finding in self.findings if finding.is_error)

    @property
    def broken_rules(self) -> frozenset[str]:
        """Rules with a finding, errors and warnings."""
        return frozenset(finding.rule for finding in self.findings)


def validate(source: EventSource, detector: Detector) -> Validation:
    """Every rule of `RULES` on all entries of an open file.

    Raises:
        InputFileError: a collection that no event can be made without is missing, or the data cannot be read.
    """
    checker = _Checker(source, detector)
    for start, stop in source.spans(0, source.num_entries):
        checker.check(start, stop)
    return Validation(tuple(checker.findings()), checker.num_references)


class _Checker:
    """Counts breaches of rules over the spans of a file."""

    def __init__(self, source: EventSource, detector: Detector) -> None:
        self.source, self.detector = source, detector
        self.is_builtin = source.metadata.get("simulation") == "builtin"
        self.num_references = 0
        self._breaches: dict[tuple[str, str], list[int]] = {}  # rule and place -> count, total, first entry
        self._names = {identity: name for name, identity in source.collection_ids.items()}

    def findings(self) -> Iterator[Finding]:
        for (rule, where), (count, total, entry) in self._breaches.items():
            if count:
                yield Finding(rule, where, count, total, entry, None if self.is_builtin else RULES[rule])

    def note(self, rule: str, where: str, is_bad: NDArray[np.bool_], event: Indices) -> None:
        """Counts the bad rows, whose events are `event`."""
        assert rule in RULES
        bad = np.flatnonzero(is_bad)
        known = self._breaches.setdefault((rule, where), [0, 0, -1])
        if len(bad) and known[2] < 0:
            known[2] = self._start + int(event[bad].min())
        known[0] += len(bad)
        known[1] += len(is_bad)

    def check(self, start: int, stop: int) -> None:
        """All rules on the entries [start, stop)."""
        self._start, self._span = start, (start, stop)
        self._sizes: dict[str, Indices] = {}
        detector, source = self.detector, self.source
        particles = self._rows(detector.particles, layout.PARTICLE)
        for alias in detector.particle_aliases:
            self._sizes.setdefault(alias, self._sizes[detector.particles])
        tracks = self._rows(detector.tracks, layout.TRACK)
        hits = {c.name: self._rows(c.name, layout.CALO_HIT) for c in detector.calo_hits if c.required or source.has(c.name)}
        clusters = {c.name: self._rows(c.name, layout.CLUSTER) for c in detector.clusters}
        if source.has(detector.header):
            self._rows(detector.header, layout.HEADER)
        baseline = baseline_collection(source, detector)
        candidates = None if baseline is None else self._rows(baseline, layout.CANDIDATE)
        self._check_particles(particles)
        self._check_tracks(tracks)
        for name, rows in clusters.items():
            if detector.calo_hits:
                self._check_clusters(name, rows, hits)
        if baseline is not None and candidates is not None:
            self._check_candidates(baseline, candidates)
        self._check_links(hits, tracks)

    def _rows(self, collection: str, kind: Kind) -> Rows:
        """A collection, whose numbers must be finite."""
        rows = self.source.rows(collection, kind, *self._span, why="the check")
        self._sizes[collection] = np.diff(rows.offsets)
        for member in kind.members:
            if member.default is None or not np.isnan(member.default):
                is_finite = np.isfinite(rows[member.name])
                self.note(
                    "finite", f"{collection}.{member.name}", ~(is_finite.all(axis=1) if is_finite.ndim > 1 else is_finite), rows.event
                )
        return rows

    def _references(self, name: str, references: References) -> References:
        """The references, each of which must be nothing or point to an object that is there."""
        is_null = references.index == NULL
        known = np.isin(references.collection_id, list(self._names)) if self._names else np.ones(len(references), bool)
        self.note("known-collection", name, ~is_null & ~known, references.event)
        size = np.full(len(references), np.iinfo(np.int64).max)
        for identity in np.unique(references.collection_id):
            sizes = self._sizes.get(self._names.get(int(identity), ""))
            if sizes is not None:
                mine = references.collection_id == identity
                size[mine] = sizes[references.event[mine]]
        is_outside = ~is_null & ((references.index < 0) | (references.index >= size))
        self.note("inside", name, is_outside, references.event)
        self.num_references += len(references)
        return references

    def _members(self, collection: str, relation: Relation, rows: Rows) -> tuple[Indices, References]:
        """The owner of each reference of a one-to-many relation, whose ranges must tile its list, and the references."""
        references = self._references(f"{relation.name} of {collection}", self.source.references(collection, relation, *self._span))
        begin, end = self.source.ranges(collection, relation, *self._span)
        return self._tiled(f"{relation.name} of {collection}", rows, begin, end, references.offsets), references

    def _tiled(self, name: str, rows: Rows, begin: Indices, end: Indices, list_offsets: Indices) -> Indices:
        """The owner (row) of each entry of the list; -1: none."""
        event, length = rows.event, np.diff(list_offsets)
        is_bad = (begin < 0) | (end < begin) | (end > length[event])
        count = np.where(is_bad, 0, end - begin)
        owner = np.full(int(list_offsets[-1]), -1, np.int64)
        row = np.repeat(np.arange(len(rows)), count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        place = (list_offsets[event] + begin)[row] + within
        is_bad |= np.bincount(row, np.bincount(place, minlength=len(owner))[place] > 1, minlength=len(rows)) > 0
        owner[place] = row
        self.note("range", name, is_bad, event)
        list_event = np.repeat(np.arange(len(length)), length)
        self.note("range", f"{name}, entries that nothing owns", owner < 0, list_event)
        return owner

    def _check_particles(self, rows: Rows) -> None:
        """Parents and daughters must name each other."""
        name = self.detector.particles
        pairs = []
        for relation in layout.PARTICLE.relations:
            owner, references = self._members(name, relation, rows)
            usable = (owner >= 0) & (references.index >= 0)
            other = rows.offsets[references.event[usable]] + references.index[usable]
            pairs.append((owner[usable], other, references.event[usable]))
        (child, parent, event), (mother, daughter, event_of_mother) = pairs
        size = np.int64(max(len(rows), 1))
        up, down = parent * size + child, mother * size + daughter
        self.note("mutual", f"parents of {name} without the daughter", ~np.isin(up, down), event)
        self.note("mutual", f"daughters of {name} without the parent", ~np.isin(down, up), event_of_mother)

    def _check_tracks(self, rows: Rows) -> None:
        """Each track must have one state at the interaction point, with a covariance that is one."""
        name, source = self.detector.tracks, self.source
        states_name = source.generation.vector_branch(name, layout.TRACK_STATES)
        states = self._rows(states_name, layout.TRACK_STATE)
        owner = self._tiled(states_name, rows, rows["trackStates_begin"], rows["trackStates_end"], states.offsets)
        at_origin = np.bincount(owner[(owner >= 0) & (states["location"] <= 1)], minlength=len(rows))
        self.note("states", f"{name} with other than one state at the interaction point", at_origin != 1, rows.event)
        variances = states["covMatrix"][:, [0, 2, 5, 9, 14]]
        is_fitted = (states["location"] == 1) & (variances != 0).any(axis=1)  # fast simulation may leave it empty
        full = np.zeros((len(states), 5, 5))
        row, column = np.tril_indices(5)
        full[:, row, column] = full[:, column, row] = states["covMatrix"]
        bad = np.zeros(len(states), bool)
        scale = np.sqrt(np.maximum(variances, 1e-300))
        with np.errstate(invalid="ignore", over="ignore"):
            correlation = np.nan_to_num(full / (scale[:, :, None] * scale[:, None, :]), nan=2.0, posinf=2.0, neginf=2.0)
        bad[is_fitted] = np.linalg.eigvalsh(correlation[is_fitted]).min(axis=1) <= 0
        self.note("covariance", f"{states_name} at the interaction point", bad, states.event)
        if self.detector.dqdx and source.has(self.detector.dqdx):
            self._rows(self.detector.dqdx, layout.DQDX)
            self._references(f"track of {self.detector.dqdx}", source.references(self.detector.dqdx, layout.DQDX.relations[0], *self._span))

    def _check_clusters(self, name: str, rows: Rows, hits: dict[str, Rows]) -> None:
        """A cluster must have hits and their energy, and a hit be in one cluster only."""
        owner, references = self._members(name, layout.CLUSTER.relations[0], rows)
        energy, number = self._hit_values(references, hits)
        usable = (owner >= 0) & (number >= 0)
        total = np.bincount(owner[usable], energy[usable], minlength=len(rows))
        has_hits = np.bincount(owner[usable], minlength=len(rows)) > 0
        self.note("cluster-hits", f"{name} without hits", ~has_hits, rows.event)
        difference = np.abs(total - rows["energy"])
        self.note("cluster-energy", name, has_hits & (difference > ENERGY_TOLERANCE * np.abs(rows["energy"]) + 1e-6), rows.event)
        times = np.bincount(number[usable], minlength=1)
        self.note("one-cluster", f"hits of {name}", times[np.maximum(number, 0)][usable] > 1, references.event[usable])

    def _hit_values(self, references: References, hits: dict[str, Rows]) -> tuple[NDArray[np.float64], Indices]:
        """(energy, number over all collections) of the hit that each reference means; number -1: none."""
        energy, number, before = np.zeros(len(references)), np.full(len(references), -1, np.int64), 0
        for name, rows in hits.items():
            mine = (references.collection_id == (self.source.identity(name) or -1)) & (references.index >= 0)
            mine &= references.index < np.diff(rows.offsets)[references.event]
            row = rows.offsets[references.event[mine]] + references.index[mine]
            energy[mine], number[mine] = rows["energy"][row], before + row
            before += len(rows)
        return energy, number

    def _check_candidates(self, name: str, rows: Rows) -> None:
        """Each candidate must have a track or a cluster, and each track at most one candidate."""
        num_elements = np.zeros(len(rows), np.int64)
        for relation in layout.CANDIDATE.relations:
            owner, references = self._members(name, relation, rows)
            usable = (owner >= 0) & (references.index >= 0)
            num_elements += np.bincount(owner[usable], minlength=len(rows))
            if relation.name == "tracks":  # a cluster may be shared: by a charged particle and what is left of its energy
                kinds = (references.event.astype(np.int64), references.collection_id, references.index)
                _, inverse, times = np.unique(np.stack(kinds), axis=1, return_inverse=True, return_counts=True)
                self.note("one-candidate", f"{relation.name} of {name}", (times[inverse.reshape(-1)] > 1) & usable, references.event)
        self.note("candidate-elements", f"{name} without track and cluster", num_elements == 0, rows.event)

    def _check_links(self, hits: dict[str, Rows], tracks: Rows) -> None:
        """Both ends of each link must be there, weights must add up, and every hit and track must have a particle."""
        detector = self.detector
        for name in (detector.calo_link, detector.track_link, detector.candidate_link):
            if name is None:
                continue
            ends = self._link_ends(name) if self.source.has(name) else None
            if name == detector.calo_link:
                self._check_hit_truth(name, ends, hits)
            elif name == detector.track_link:
                self._check_track_truth(name, ends, tracks)
            if ends is None:
                continue
            rows, from_end, _ = ends
            if name == detector.calo_link:
                self._check_hit_weights(name, rows, from_end, hits)
            else:
                weight = rows["weight"]
                self.note("track-weights", name, (weight <= 0) | (weight > 1 + WEIGHT_TOLERANCE), rows.event)

    def _link_ends(self, name: str) -> tuple[Rows, References, References] | None:
        """The links and their two ends; None: they are not equally many."""
        rows = self._rows(name, layout.LINK)
        first, second = (
            self._references(f"{relation.name} of {name}", self.source.references(name, relation, *self._span))
            for relation in layout.LINK.relations
        )
        lengths = [np.diff(offsets) for offsets in (first.offsets, second.offsets, rows.offsets)]
        uneven = (lengths[0] != lengths[2]) | (lengths[1] != lengths[2])
        self.note("link-ends", name, uneven, np.arange(len(rows.offsets) - 1))
        return None if uneven.any() else (rows, first, second)

    def _check_hit_truth(self, name: str, ends: tuple[Rows, References, References] | None, hits: dict[str, Rows]) -> None:
        """Every calorimeter hit must have a link to a particle."""
        is_linked = np.zeros(sum(len(rows) for rows in hits.values()), bool)
        if ends is not None:
            _, number = self._hit_values(ends[1], hits)
            is_linked[number[(number >= 0) & (ends[2].index >= 0)]] = True
        before = 0
        for collection, rows in hits.items():
            self.note("hit-truth", f"{collection} without {name}", ~is_linked[before : before + len(rows)], rows.event)
            before += len(rows)

    def _check_track_truth(self, name: str, ends: tuple[Rows, References, References] | None, tracks: Rows) -> None:
        """Every track must have a link to a particle."""
        is_linked = np.zeros(len(tracks), bool)
        if ends is not None:
            _, track, particle = ends
            inside = (track.index >= 0) & (track.index < np.diff(tracks.offsets)[track.event]) & (particle.index >= 0)
            inside &= track.collection_id == (self.source.identity(self.detector.tracks) or -1)
            is_linked[tracks.offsets[track.event[inside]] + track.index[inside]] = True
        self.note("track-truth", f"{self.detector.tracks} without {name}", ~is_linked, tracks.event)

    def _check_hit_weights(self, name: str, rows: Rows, hit_end: References, hits: dict[str, Rows]) -> None:
        """The links of a hit must share out its energy."""
        energy, number = self._hit_values(hit_end, hits)
        self.note("hit-weights", f"{name}, negative", rows["weight"] < 0, rows.event)
        usable = number >= 0
        linked = np.bincount(number[usable], rows["weight"][usable], minlength=1)[np.maximum(number, 0)]
        self.note("hit-weights", f"{name}, sums", usable & (np.abs(linked - energy) > ENERGY_TOLERANCE * energy), rows.event)


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """The exit code: 1 if any file has an error; 2 for a mistake of the user: no such detector, a file that is of another or unreadable."""
    parser = argparse.ArgumentParser(prog="python -m pfscale.edm4hep.validate", description="checks the relations of EDM4hep files")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--detector", required=True, help=", ".join(DETECTORS))
    chosen = parser.parse_args(arguments)
    num_errors, mistake = 0, 0
    for path in chosen.files:
        try:
            detector = find_detector(chosen.detector)
            with open_source(path) as source:
                require_detector(source, detector)
                result = validate(source, detector)
                say(f"{source.path}: {source.num_entries} entries, {result.num_references} references")
        except PfscaleError as error:
            say(f"error: {error}")
            mistake = error.exit_code
            continue
        for finding in result.findings:
            say(f"  {finding}")
        num_errors += len(result.errors)
    return mistake or int(num_errors > 0)


if __name__ == "__main__":
    sys.exit(main())
