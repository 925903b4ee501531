"""The branches (TTree) or fields (RNTuple) of a tree by leaf name, read in spans that suit memory and file, ahead of need if remote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import awkward as ak

RNTUPLE = "ROOT::RNTuple"
READERS = 16  # threads of a remote file: nearly all of their time is waiting for answers
BYTES_AT_ONCE = 256 * 2**20  # uncompressed, all branches; bounds a worker's memory whatever the size of events, files and shards
EVENTS_AT_ONCE = 256  # of light events: more would not be faster
RNTUPLE_COMPRESSION = 3.0  # uproot does not tell the uncompressed size of an RNTuple


class Branches(Mapping[str, Any]):
    """Leaf name -> branch or field of an open tree; `array` reads entries of one.

    Bare leaf names are the one spelling that podio's trees, uproot's and RNTuples share.

    Args:
        is_remote: reading waits for a network: then the leaves that were read before are read together, ahead of need (`expect`).
    """

    def __init__(self, tree: Any, *, is_remote: bool = False) -> None:
        self._is_ntuple = getattr(tree, "classname", "") == RNTUPLE
        if self._is_ntuple:
            self._leaves: dict[str, Any] = dict.fromkeys(_field_names(tree))
        else:
            self._leaves = {name: branch for name, branch in tree.iteritems(recursive=True, full_paths=False) if "." in name}
        self._tree = tree
        self._pool = ThreadPoolExecutor(READERS) if is_remote else None
        self._used: set[str] = set()
        self._ahead: dict[tuple[str, int, int], Future[ak.Array]] = {}

    def __getitem__(self, leaf: str) -> Any:
        branch = self._leaves[leaf]
        if branch is None:  # a field that was not asked for before
            branch = self._leaves[leaf] = self._tree[leaf]
        return branch

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def array(self, leaf: str, start: int, stop: int) -> ak.Array:
        """The entries [start, stop) of a leaf."""
        self._used.add(leaf)
        if start == stop:
            return ak.Array([[0.0]])[:0]  # uproot would read a basket
        ahead = self._ahead.pop((leaf, start, stop), None)
        return self._read(leaf, start, stop) if ahead is None else ahead.result()

    def expect(self, spans: Sequence[tuple[int, int]]) -> None:
        """Says which entry ranges come next: a remote file begins to send all leaves that were used so far, at once."""
        if self._pool is not None:
            wanted = [(leaf, *span) for span in spans for leaf in sorted(self._used)]
            ahead = self._ahead
            self._ahead = {key: ahead[key] if key in ahead else self._pool.submit(self._read, *key) for key in wanted}

    def close(self) -> None:
        """Ends reading ahead; what was asked for and not used is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def spans(self, start: int, stop: int, *, file_bytes: int) -> Iterator[tuple[int, int]]:
        """Consecutive entry ranges that cover [start, stop), each as large as a worker's memory allows.

        They end where the baskets of all branches end, as far as such borders are not too far apart: a basket that is cut by a border is
        decompressed on both sides of it.
        """
        at_most = max(1, min(EVENTS_AT_ONCE, int(BYTES_AT_ONCE / max(self._bytes_per_entry(file_bytes), 1.0))))
        borders = [border for border in self._borders() if start < border < stop]
        while start < stop:
            limit = min(start + at_most, stop)
            inside = [border for border in borders if start < border <= limit]
            end = limit if limit == stop or not inside else inside[-1]
            yield start, end
            start = end

    def _read(self, leaf: str, start: int, stop: int) -> ak.Array:
        return self[leaf].array(entry_start=start, entry_stop=stop, library="ak")

    def _bytes_per_entry(self, file_bytes: int) -> float:
        if self._is_ntuple:
            return file_bytes * RNTUPLE_COMPRESSION / self._tree.num_entries
        return sum(branch.uncompressed_bytes for branch in self._leaves.values()) / self._tree.num_entries

    def _borders(self) -> list[int]:
        """Entries at which a basket begins in every branch (a cluster, in an RNTuple), ascending."""
        if self._is_ntuple:
            return sorted(cluster.num_first_entry for cluster in self._tree.cluster_summaries)
        common: set[int] | None = None
        for branch in self._leaves.values():
            offsets = set(branch.entry_offsets)
            common = offsets if common is None else common & offsets
        return sorted(common or ())


def _field_names(ntuple: Any) -> list[str]:
    """The fields of an RNTuple as uproot calls them. Its own `keys` takes seconds on a file with all of EDM4hep."""
    paths: list[str] = []
    for number, record in enumerate(ntuple.header.field_records):
        parent = "" if record.parent_field_id == number else paths[record.parent_field_id]
        is_item = record.field_name == "_0"  # what a collection is of has no name of its own
        paths.append(parent if is_item else f"{parent}.{record.field_name}" if parent else record.field_name)
    return list(dict.fromkeys(paths))
