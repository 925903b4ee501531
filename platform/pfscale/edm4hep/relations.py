"""Relations between collections, resolved to row numbers over all events of a chunk at once.

A reference that points outside its event spoils its event only: the event is named in `Problems` and left out later, the rest of the chunk
goes on. A collection that references mean but whose id the file does not tell is an error of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep import layout
from pfscale.edm4hep.layout import Relation
from pfscale.edm4hep.reader import EventSource, References, Rows
from pfscale.errors import InputFileError

Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices]  # (row of the object, row of what it refers to)
UNKNOWN = -1  # stands for the id of a collection that has no objects and whose id is not told: no reference carries it


def no_pairs() -> Pairs:
    """No references at all."""
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


@dataclass
class Problems:
    """Why events of a chunk cannot be used: first reason per event."""

    num_events: int
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, events: Indices, reason: str) -> None:
        """Marks events; the first reason of each stays."""
        if len(events):
            for event in np.unique(events):
                self.reasons.setdefault(int(event), reason)

    @property
    def is_good(self) -> NDArray[np.bool_]:
        """(num_events,) whether nothing is wrong with the event."""
        good = np.ones(self.num_events, bool)
        good[list(self.reasons)] = False
        return good


@dataclass(frozen=True)
class Targets:
    """Collections that a relation may point to: id, and the number and the first row of each event's objects, (collections, num_events)."""

    ids: Indices
    count: Indices
    first: Indices

    def resolve(self, references: References, problems: Problems, *, what: str) -> Indices:
        """The row that each reference points to; -1: empty, or a collection that is not among the targets."""
        num_events = self.count.shape[1]
        collection = np.zeros(len(references), np.int8)  # 0: not among the targets
        for number, identity in enumerate(self.ids, start=1):
            collection += np.multiply(references.collection_id == identity, number, dtype=np.int8)
        # This runs over every hit of every event: one look-up per reference in tables of (collection, event), row 0 for no collection.
        place = np.multiply(collection, num_events, dtype=np.int32)
        place += np.repeat(np.arange(num_events, dtype=np.int32), np.diff(references.offsets))
        nowhere = np.zeros((1, num_events), np.int64)
        count, first = (np.concatenate([nowhere, table]).ravel() for table in (self.count, self.first))
        is_inside = (references.index >= 0) & (references.index < count[place])
        lost = np.flatnonzero(~is_inside & (references.index >= 0))
        if len(lost):
            problems.add(references.event[lost[collection[lost] > 0]], f"{what} points outside its collection")
        return np.where(is_inside, first[place] + references.index, -1)


def identity_of(source: EventSource, names: Sequence[str], *, num_rows: int) -> Indices:
    """The ids under which references mean the collection that is called by any of `names`; those that the file does not tell are left out.

    Raises:
        InputFileError: there are objects to refer to, but the file tells no id at all.
    """
    known = list(dict.fromkeys(identity for identity in map(source.identity, names) if identity is not None))
    if not known and num_rows:
        if source.generation.metadata is None:
            message = f"no collection ids: the file is older than podio 1.0 and lacks its metadata, so nothing can refer to '{names[0]}'"
        else:
            message = f"the file's {source.generation.metadata} has no id of '{names[0]}', to which relations point"
        raise InputFileError(message, where=source.path, hint="produce the file again, or copy its metadata with it")
    return np.array(known or [UNKNOWN], np.int64)


def targets_of(source: EventSource, tables: Sequence[tuple[str, Rows]], *, num_events: int) -> Targets:
    """The targets table of collections (name, rows), whose rows are numbered one collection after another."""
    sizes = [len(rows) for _, rows in tables]
    before = np.cumsum([0, *sizes])[:-1]
    nothing = np.zeros((0, num_events), np.int64)
    return Targets(
        ids=np.concatenate([np.zeros(0, np.int64), *[identity_of(source, [name], num_rows=len(rows)) for name, rows in tables]]),
        count=np.concatenate([nothing, *[np.diff(rows.offsets)[None] for _, rows in tables]]),
        first=np.concatenate([nothing, *[(start + rows.offsets[:-1])[None] for start, (_, rows) in zip(before, tables, strict=True)]]),
    )


@dataclass(frozen=True)
class Merged:
    """Several collections as one, event by event in the order given.

    Attributes:
        targets: the collections, to resolve references to them.
        place: for each collection the row of each of its objects.
    """

    rows: Rows
    targets: Targets
    place: tuple[Indices, ...]


def merge(source: EventSource, tables: Sequence[tuple[str, Rows]]) -> Merged:
    """One or more collections (name, rows) of one kind as one."""
    ids = np.concatenate([identity_of(source, [name], num_rows=len(rows)) for name, rows in tables])
    count = np.stack([np.diff(rows.offsets) for _, rows in tables])
    offsets = np.concatenate([[0], np.cumsum(count.sum(axis=0))]).astype(np.int64)
    first = offsets[:-1] + np.cumsum(count, axis=0) - count
    place = tuple(
        np.repeat(first[number] - rows.offsets[:-1], count[number]) + np.arange(len(rows)) for number, (_, rows) in enumerate(tables)
    )
    if len(tables) == 1:
        return Merged(tables[0][1], Targets(ids, count, first), place)
    order = np.argsort(np.concatenate(place))
    columns = {name: np.concatenate([rows[name] for _, rows in tables])[order] for name in tables[0][1].columns}
    return Merged(Rows(offsets, columns), Targets(ids, count, first), place)


def members(
    source: EventSource,
    collection: str,
    relation: Relation,
    rows: Rows,
    targets: Targets,
    span: tuple[int, int],
    problems: Problems,
    *,
    must_know: bool = False,
) -> Pairs:
    """(row of the object, row of what it refers to) for every resolved reference of a one-to-many relation."""
    references = source.references(collection, relation, *span)
    begin, end = source.ranges(collection, relation, *span)
    what = f"'{relation.name}' of '{collection}'"
    row = targets.resolve(references, problems, what=what)
    _look_for_strangers(source, references, row, problems, what=what, must_know=must_know)
    event = rows.event
    in_event = np.diff(references.offsets)[event]
    is_valid = (begin >= 0) & (begin <= end) & (end <= in_event)
    problems.add(event[~is_valid], f"{what} runs past its list")
    count = np.where(is_valid, end - begin, 0)
    owner = np.repeat(np.arange(len(rows)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    other = row[(references.offsets[event] + begin)[owner] + within]
    return owner[other >= 0], other[other >= 0]


def links(
    source: EventSource, collection: str, span: tuple[int, int], linked: tuple[Targets, Targets], problems: Problems, *, num_from: int
) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """(row that the link comes from, row that it goes to, weight) of every link whose ends are both known.

    Raises:
        InputFileError: there are objects to come from, but no such links, or none that leads to an object that is read.
    """
    if not source.has(collection):
        if num_from:
            raise source.missing(collection, why="truth: whose the hits and tracks are")
        return *no_pairs(), np.zeros(0)
    weight = source.rows(collection, layout.LINK, *span)["weight"]
    ends = [source.references(collection, relation, *span) for relation in layout.LINK.relations]
    if not len(ends[0]) == len(ends[1]) == len(weight):
        raise InputFileError(f"the two ends of '{collection}' do not match", where=source.path)
    first, second = (targets.resolve(end, problems, what=f"'{collection}'") for targets, end in zip(linked, ends, strict=True))
    for end, row in zip(ends, (first, second), strict=True):
        _look_for_strangers(source, end, row, problems, what=f"'{collection}'")
    if (ends[1].index >= 0).any() and not (second >= 0).any():
        raise InputFileError(f"no entry of '{collection}' leads to the particles that are read", where=source.path)
    both = (first >= 0) & (second >= 0)
    problems.add(ends[0].event[both & ~np.isfinite(weight)], f"a weight of '{collection}' is not finite")
    return first[both], second[both], weight[both]


def _look_for_strangers(
    source: EventSource, references: References, row: Indices, problems: Problems, *, what: str, must_know: bool = False
) -> None:
    """Marks events with unresolved references to a collection that the file does not list: nobody can say what was meant.

    Listed collections that are not read are no mistake, unless the reader `must_know` all of them.
    """
    lost = np.flatnonzero((row < 0) & (references.index >= 0))
    if not len(lost):
        return
    names = {identity: name for name, identity in source.collection_ids.items()}
    event, identity = references.event[lost], references.collection_id[lost]
    for stranger in np.unique(identity):
        name = names.get(int(stranger))
        if name is None:
            reason = f"{what} points to a collection (id {stranger}) that the file does not list"
        elif must_know:
            reason = f"{what} points to '{name}', which is not in the table of this detector"
        else:
            continue
        problems.add(event[identity == stranger], reason)
