"""Collections of EDM4hep ROOT files as flat numpy arrays with event offsets, whichever podio generation wrote them (uproot).

The only home of uproot besides the event source. Works on TTrees, split by podio or flat from uproot, and on RNTuple v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from pfscale.edm4hep.branches import Branches
from pfscale.edm4hep.detectors import DETECTORS, Detector, detectors_of
from pfscale.edm4hep.layout import GENERATIONS, Generation, Kind, Member, Relation, collection_id, is_numbered
from pfscale.edm4hep.parsing import quick_parsing
from pfscale.errors import InputFileError, PfscaleError, closest
from pfscale.remote import is_remote, local_path, read_start, remote_error, without_secrets

OWN_METADATA = "pfscale_metadata"  # tree of key, value strings that the built-in source writes
MAGIC = b"root"  # how every ROOT file begins
OLD_RNTUPLE = "ROOT::Experimental::RNTuple"
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Objects of one collection over consecutive events: flat columns and the offsets (num_events + 1) of each event's rows."""

    offsets: Indices
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    @property
    def event(self) -> Indices:
        """Event of each row."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class References:
    """ObjectIDs of one relation over consecutive events, flat: offsets per event, index within the event, id of the collection."""

    offsets: Indices
    index: Indices
    collection_id: Indices

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def event(self) -> Indices:
        """Event of each reference."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class EventSource:
    """An open EDM4hep file.

    Attributes:
        collection_ids: collection name -> id; empty where the file has no metadata and its generation's ids do not follow from the names.
        metadata: what a file of the built-in source says of itself (simulation, detector, process, ...); else empty.
    """

    path: str
    num_entries: int
    generation: Generation
    collection_ids: dict[str, int]
    metadata: dict[str, str]
    collections: frozenset[str]
    _file: Any
    _branches: Branches

    def __enter__(self) -> EventSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._branches.close()
        self._file.close()

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Entry ranges that cover [start, stop), as large as a worker's memory allows; while one is used, the next is on its way."""
        spans = list(self._branches.spans(start, stop, file_bytes=self._file.file.source.num_bytes))
        for number, span in enumerate(spans):
            self._branches.expect(spans[number : number + 2])
            yield span

    @property
    def has_truth(self) -> bool:
        """Whether the file holds MC particles."""
        return any(detector.particles in self.collections for detector in DETECTORS.values())

    def has(self, collection: str) -> bool:
        """Whether the file holds the collection (it may be empty)."""
        return collection in self.collections

    def identity(self, collection: str) -> int | None:
        """The id by which references mean a collection, which need not be in the file; None: the file does not tell."""
        if collection in self.collection_ids:
            return self.collection_ids[collection]
        return collection_id(collection) if self.generation.hashes_names else None

    def missing(self, collection: str, *, why: str) -> InputFileError:
        """The error for a collection that the file lacks, with those whose names are close and the detectors that fit the file."""
        near = closest(collection, sorted(c for c in self.collections if not c.startswith("_")))
        fitting = detectors_of(self.collections)
        hints = [f"close names in the file: {', '.join(near)}"] if near else []
        fits = f"fits it: {', '.join(fitting)}" if fitting else f"none of {', '.join(DETECTORS)} fits it"
        hints.append(f"is --detector right for this file? {fits}")
        return InputFileError(f"no collection '{collection}', needed for {why}", where=self.path, hint="; ".join(hints))

    def rows(self, collection: str, kind: Kind, start: int, stop: int, *, why: str = "") -> Rows:
        """The members of all objects of `collection` in the entries [start, stop).

        Raises:
            InputFileError: the collection or a member without a default is missing, or the data cannot be read.
        """
        if not self.has(collection):
            raise self.missing(collection, why=why or "every event")
        columns: dict[str, NDArray[Any]] = {}
        offsets: Indices | None = None
        absent = []
        for member in kind.members:
            leaf = self._find(tuple(f"{collection}.{name}" for name in member.leaves))
            if leaf is None:
                absent.append(member)
                continue
            columns[member.name], offsets = self._member(leaf, member, offsets, start, stop)
        if offsets is None:
            raise InputFileError(f"collection '{collection}' has none of the members that are read", where=self.path)
        for member in absent:
            if member.default is None:
                raise InputFileError(f"collection '{collection}' has no member '{member.leaves[0]}'", where=self.path)
            columns[member.name] = np.full(int(offsets[-1]), member.default, member.dtype)
        return Rows(offsets, columns)

    def ranges(self, collection: str, relation: Relation, start: int, stop: int) -> tuple[Indices, Indices]:
        """(begin, end) of each object's references in the event's list of a one-to-many relation."""
        leaves = [self._need(f"{collection}.{relation.name}_{side}") for side in ("begin", "end")]
        begin, end = (self._flat(leaf, start, stop)[1].astype(np.int64) for leaf in leaves)
        return begin, end

    def references(self, collection: str, relation: Relation, start: int, stop: int) -> References:
        """All references of a relation of `collection` in the entries [start, stop).

        Raises:
            InputFileError: the file has no such relation, or it cannot be read.
        """
        branch = self._relation_branch(collection, relation)
        if branch is None:
            name = self.generation.relation_branches(collection, relation)[0]
            raise self.missing(name, why=f"the relation '{relation.name}' of '{collection}'")
        return self._references(branch, start, stop)

    def subset(self, collection: str, start: int, stop: int) -> References | None:
        """The members of a collection that only refers to objects of another; None: the file has no such collection."""
        branch = self.generation.subset_branch(collection)
        return self._references(branch, start, stop) if f"{branch}.index" in self._branches else None

    def _references(self, branch: str, start: int, stop: int) -> References:
        offsets, index = self._flat(f"{branch}.index", start, stop)
        _, identity = self._flat(self._need(f"{branch}.collectionID"), start, stop)
        # ids are signed in the legacy layout and unsigned 32-bit hashes later
        return References(offsets, index.astype(np.int64), identity.astype(np.uint32).astype(np.int64))

    def has_relation(self, collection: str, relation: Relation) -> bool:
        """Whether the file holds this relation of the collection."""
        return self._relation_branch(collection, relation) is not None

    def _relation_branch(self, collection: str, relation: Relation) -> str | None:
        return next((b for b in self.generation.relation_branches(collection, relation) if f"{b}.index" in self._branches), None)

    def _find(self, leaves: tuple[str, ...]) -> str | None:
        return next((leaf for leaf in leaves if leaf in self._branches), None)

    def _need(self, leaf: str) -> str:
        if leaf not in self._branches:
            near = closest(leaf, self._branches)
            raise InputFileError(f"no branch '{leaf}'", where=self.path, hint=f"close names: {', '.join(near)}" if near else None)
        return leaf

    def _member(self, leaf: str, member: Member, known: Indices | None, start: int, stop: int) -> tuple[NDArray[Any], Indices]:
        """The values of a member, (N,) or (N, width), and the event offsets of the collection's objects."""
        offsets, values = self._flat(leaf, start, stop)
        if member.width > 1:
            # uproot cannot write jagged arrays of fixed arrays: such files hold all numbers of an event in one plain list
            count = int((offsets if known is None else known)[-1])
            each, rest = divmod(values.size, max(count, 1))
            if rest or (count and each < member.width):
                message = f"'{leaf}' has {values.size} numbers for {count} objects, not {member.width} or more for each"
                raise InputFileError(message, where=self.path)
            values = values.reshape(count, each if count else member.width)[:, : member.width]
            offsets = offsets if known is None else known
        elif known is not None and not np.array_equal(offsets, known):
            raise InputFileError(f"'{leaf}' does not have as many values as its collection has objects", where=self.path)
        return np.ascontiguousarray(values, member.dtype), offsets

    def _flat(self, leaf: str, start: int, stop: int) -> tuple[Indices, NDArray[Any]]:
        """(event offsets, flat values) of a branch; a branch with one number per event counts as one object per event."""
        try:
            array = self._branches.array(leaf, start, stop)
            layout = array.layout if isinstance(array.layout, ak.contents.ListOffsetArray) else ak.to_packed(array).layout
            if not layout.is_list:
                return np.arange(stop - start + 1, dtype=np.int64), np.asarray(ak.to_numpy(layout))
            offsets = np.asarray(layout.offsets.data, np.int64)
            values = np.asarray(ak.to_numpy(layout.content[offsets[0] : offsets[-1]]))
            return offsets - offsets[0], values
        except Exception as error:  # uproot and its decompressors raise many types for damaged data
            message = f"cannot read '{leaf}', entries {start} to {stop} ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
            raise InputFileError(message, where=self.path, hint="the file is damaged or truncated: copy or produce it again") from error


def open_source(path: str | Path) -> EventSource:
    """The EDM4hep file at `path`, opened; use it as a context manager.

    Raises:
        InputFileError: missing, empty, truncated or not a ROOT file, no `events` tree, no events, or a pre-1.0 RNTuple.
    """
    file = _open_root(local_path(str(path)))
    where = without_secrets(str(path))
    try:
        tree = _events_tree(file, where)
        branches = Branches(tree, is_remote=is_remote(where))
        generation, identities = _generation(file, branches, where)
        collections = frozenset(leaf.partition(".")[0] for leaf in branches)
        return EventSource(where, int(tree.num_entries), generation, identities, _own_metadata(file), collections, file, branches)
    except InputFileError:
        file.close()
        raise
    except Exception as error:  # a directory or header that is cut or overwritten fails anywhere in uproot
        file.close()
        raise _damaged(where, error) from error


def _open_root(where: str) -> Any:
    if not is_remote(where):
        local = Path(where)
        if local.is_dir():
            raise InputFileError("a folder, not a file", where=where, hint=f"give the files in it: '{local / '*.root'}'")
        if not local.is_file():
            near = closest(local.name, [p.name for p in local.parent.iterdir()] if local.parent.is_dir() else [])
            relative = None if local.is_absolute() else f"paths are relative to the working directory, {Path.cwd()}"
            raise InputFileError("no such file", where=where, hint=f"did you mean {local.parent / near[0]}?" if near else relative)
        if local.stat().st_size == 0:
            raise InputFileError("the file is empty (0 bytes)", where=where, hint="produce or copy it again")
        try:
            with local.open("rb") as raw:
                is_root = raw.read(len(MAGIC)) == MAGIC
        except OSError as error:
            raise InputFileError(f"cannot be read ({error.strerror})", where=where) from None
        if not is_root:
            raise _not_root(where)
    elif read_start(where, len(MAGIC)) != MAGIC:
        raise _not_root(without_secrets(where))
    try:
        # No array cache: every branch is read once, and a worker's memory must not grow with the file; nor a memory map, whose pages count
        # as the worker's memory. Local files are read in the calling thread: handing baskets to another costs as much as reading them.
        options = {} if is_remote(where) else {"handler": uproot.MultithreadedFileSource, "use_threads": False}
        return uproot.open({where: None}, array_cache=None, **options)  # a plain string may be cut at a colon in a folder's name
    except Exception as error:  # depends on the transport and on where the file is cut
        raise _damaged(where, error) from error


def _not_root(where: str) -> InputFileError:
    hint = "pfscale reads EDM4hep ROOT files; a list of them ends in .txt or .list"
    return InputFileError("not a ROOT file", where=where, hint=hint)


def _damaged(where: str, error: Exception) -> PfscaleError:
    told = remote_error(where, error) if is_remote(where) else None
    if told is not None:
        return told
    where = without_secrets(where)
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return InputFileError(f"cannot be read as a ROOT file: damaged or truncated ({reason})", where=where, hint="copy or produce it again")


def _events_tree(file: Any, where: str) -> Any:
    cycles = sorted(file.classnames(recursive=False).items(), key=lambda item: int(item[0].partition(";")[2] or 0))
    classes = {key.partition(";")[0]: name for key, name in cycles}  # of the highest cycle, which is the one that is read
    if "events" not in classes:
        found = ", ".join(sorted(classes)) or "nothing"
        raise InputFileError(f"no 'events' tree (the file holds {found})", where=where, hint="is it an EDM4hep file?")
    if classes["events"] == OLD_RNTUPLE:
        hint = "rewrite it with podio >= 1.2 on ROOT >= 6.34, as TTree or RNTuple"
        raise InputFileError("'events' is an RNTuple from before version 1.0, which cannot be read", where=where, hint=hint)
    with quick_parsing():
        tree = file["events"]
    if tree.num_entries == 0:
        raise InputFileError("the file holds no events", where=where)
    return tree


def _generation(file: Any, branches: Branches, where: str) -> tuple[Generation, dict[str, int]]:
    """The podio generation of a file and its collection ids."""
    trees = {key.partition(";")[0] for key in file.keys(recursive=False)}
    numbered = is_numbered(branches)
    for generation in GENERATIONS:
        if generation.is_numbered != numbered or (generation.metadata is not None and generation.metadata not in trees):
            continue
        if generation.metadata is None:
            names = {branch.partition(".")[0] for branch in branches} if generation.hashes_names else set()
            return generation, {name: collection_id(name) for name in names}
        tree = file[generation.metadata]
        known = set(tree.keys()) | {key.rpartition("/")[2] for key in tree.keys()}  # noqa: SIM118 (not a dict)
        if generation.names in known and generation.ids in known:
            names, ids = (ak.flatten(tree[branch].array(), axis=None).to_list() for branch in (generation.names, generation.ids))
            pairs = {(name, int(identity) & 0xFFFFFFFF) for name, identity in zip(names, ids, strict=True)}
            if not len(pairs) == len(dict(pairs)) == len({identity for _, identity in pairs}):
                message = "its id tables contradict one another: files whose collections are numbered differently were joined"
                raise InputFileError(message, where=where, hint="use the files before they were joined")
            return generation, dict(pairs)
    raise AssertionError("the last generation of each numbering needs no metadata")


def _own_metadata(file: Any) -> dict[str, str]:
    if OWN_METADATA not in {key.partition(";")[0] for key in file.keys(recursive=False)}:
        return {}
    tree = file[OWN_METADATA]
    keys, values = (ak.flatten(tree[branch].array(), axis=None).to_list() for branch in ("key", "value"))
    return dict(zip(keys, values, strict=True))


def require_detector(source: EventSource, detector: Detector) -> None:
    """Checks a file that says of which detector it is.

    Raises:
        InputFileError: it is of another one.
    """
    said = source.metadata.get("detector", detector.name)
    if said != detector.name:
        raise InputFileError(
            f"the file says that it is from '{said}', not '{detector.name}'", where=source.path, hint=f"give --detector {said}"
        )
