"""A file of full-simulation size from the one real CLD event: `python tests/benchmarks/replicate.py OUTPUT --events 500`.

Every copy holds every number of the `events` tree (1,165 leaves, read by us or not), so that baskets lie as far apart as in a real file.
Copies differ: hits lie in another order, floats end in other bits. Identical ones would be compressed to little more than one event.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

EVENT = Path(__file__).parent.parent / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"
# ROOT ends a cluster after 30 compressed MB and then gives each branch a buffer for a cluster: 21 events of 1.44 MB, one basket each.
EVENTS_PER_BASKET = 21
EVENTS_PER_CLUSTER = 90  # an RNTuple's cluster is ended by ROOT after 128 compressed MB
FREE_BITS = {4: 10, 8: 39}  # last bits of a float32's and a float64's mantissa that differ between copies: 1e-4 of the value
MIN_SHUFFLED = 250  # objects; smaller collections (tracks, clusters, particles) keep their order
RUN_LENGTH = 16  # objects, on average, that stay together when a collection is shuffled: neighbours stay near, as clustering leaves them
Array = NDArray[Any]


@dataclass(frozen=True)
class Leaf:
    """A leaf of the event: its name without brackets, the counter that it shares, and its values, (N,) or (N, width)."""

    name: str
    counter: str
    values: Array

    @property
    def collection(self) -> str:
        """The branch that the leaf belongs to."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Event:
    """One event: every leaf, and the id of every collection."""

    leaves: tuple[Leaf, ...]
    ids: dict[str, int]

    @cached_property
    def shuffled(self) -> dict[str, int]:
        """Large collections and how many objects each has."""
        counts = {leaf.collection: len(leaf.values) for leaf in self.leaves if leaf.collection in self.ids}
        return {name: count for name, count in counts.items() if count >= MIN_SHUFFLED}

    @cached_property
    def owners(self) -> dict[str, str]:
        """Leaf -> the large collection in whose order its values are: members and one-to-one relations."""
        names = {leaf.name for leaf in self.leaves}
        owners = {leaf.name: leaf.collection for leaf in self.leaves if leaf.collection in self.shuffled}
        for leaf in self.leaves:
            for name, size in self.shuffled.items():
                suffix = leaf.collection.removeprefix(f"_{name}_")
                if suffix != leaf.collection and len(leaf.values) == size and f"{name}.{suffix}_begin" not in names:
                    owners[leaf.name] = name
        return owners

    @cached_property
    def pointers(self) -> dict[str, dict[str, Array]]:
        """Leaf of indices -> large collection -> the positions at which it points there."""
        by_name = {leaf.name: leaf.values for leaf in self.leaves}
        pointers = {}
        for name, values in by_name.items():
            if name.endswith(".index"):
                identities = by_name[f"{name.removesuffix('index')}collectionID"]
                at = {other: np.flatnonzero((identities == self.ids[other]) & (values >= 0)) for other in self.shuffled}
                pointers[name] = {other: positions for other, positions in at.items() if len(positions)}
        return pointers

    def orders(self, copy: int) -> dict[str, Array]:
        """New row -> old row of each large collection: runs of neighbours in an order of their own for each copy."""
        orders = {}
        for number, (name, size) in enumerate(self.shuffled.items()):
            random = np.random.default_rng((copy, number))
            runs = np.split(np.arange(size), np.sort(random.choice(size - 1, size // RUN_LENGTH, replace=False)) + 1)
            orders[name] = np.concatenate([runs[k] for k in random.permutation(len(runs))])
        return orders

    def copy(self, number: int) -> Event:
        """The event with its large collections shuffled, every relation kept, and floats varied; its event number is `number`."""
        orders = self.orders(number)
        places = {name: np.argsort(order) for name, order in orders.items()}
        leaves = []
        for leaf in self.leaves:
            values = leaf.values
            if self.pointers.get(leaf.name):
                values = values.copy()
                for other, at in self.pointers[leaf.name].items():
                    values[at] = places[other][values[at]]
            owner = self.owners.get(leaf.name)
            values = varied(values if owner is None else values[orders[owner]], number)
            leaves.append(replace(leaf, values=np.full_like(values, number) if leaf.name == "EventHeader.eventNumber" else values))
        return Event(tuple(leaves), self.ids)


def varied(values: Array, salt: int) -> Array:
    """The values with the last bits of floats changed, equal numbers alike; whole numbers (charges, weights of one, zeros) stay."""
    if values.dtype.kind != "f":
        return values
    bits = np.dtype(f"u{values.itemsize}").type
    mixed = values.view(bits).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64((salt + 1) * 0x1F83D9ABFB41BD6B % 2**64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):  # finaliser of MurmurHash3
        mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(33)
    is_free = np.isfinite(values) & (values != np.rint(values))
    flips = mixed.astype(bits) & bits(2 ** FREE_BITS[values.itemsize] - 1)
    return (values.view(bits) ^ np.where(is_free, flips, bits(0))).view(values.dtype)


def read_event(path: Path = EVENT) -> Event:
    """The first event of a podio 1.2 file; text and nested vectors (its empty generic parameters) are left out."""
    leaves = []
    with uproot.open(path) as file:
        for name, branch in file["events"].iteritems(recursive=True, full_paths=False):
            if branch.branches or "string" in branch.typename or "vector<std::vector" in branch.typename:
                continue
            values = np.asarray(branch.array(library="np", entry_stop=1)[0])
            plain = name.partition("[")[0]  # uproot spoils a leaf's title if there are brackets in its name
            counter = plain if values.ndim > 1 else name.partition(".")[0]
            leaves.append(Leaf(plain, f"n{counter}", np.ascontiguousarray(values, values.dtype.newbyteorder("="))))
        table = file["podio_metadata"]["events___idTable"]
        names, ids = (ak.flatten(table[name].array(), axis=None).to_list() for name in ("m_names", "m_collectionIDs"))
    return Event(tuple(leaves), dict(zip(names, ids, strict=True)))


def write_ttree(path: Path, event: Event, num_events: int) -> None:
    """Writes copies of the event as a TTree with the branch names of podio 1.2; event numbers count from 0."""
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        types = {leaf.name: ak.types.ListType(ak.types.NumpyType(leaf.values.dtype.name)) for leaf in event.leaves}
        counters = {leaf.name: leaf.counter for leaf in event.leaves}
        num_baskets = -(-num_events // EVENTS_PER_BASKET)
        tree = file.mktree("events", types, counter_name=counters.__getitem__, initial_basket_capacity=num_baskets + 1)
        for group in _copies(event, num_events, EVENTS_PER_BASKET):
            tree.extend({leaves[0].name: _jagged(leaves) for leaves in group})
        _write_identities(file, event.ids)


def _copies(event: Event, num_events: int, at_once: int) -> Iterator[list[tuple[Leaf, ...]]]:
    """Groups of copies; in each, every leaf with its copies."""
    for start in range(0, num_events, at_once):
        copies = [event.copy(number) for number in range(start, min(start + at_once, num_events))]
        yield list(zip(*(copy.leaves for copy in copies), strict=True))


def _jagged(leaves: tuple[Leaf, ...]) -> ak.Array:
    values = [leaf.values.ravel() for leaf in leaves]
    return ak.Array(_list([len(flat) for flat in values], ak.contents.NumpyArray(np.concatenate(values))))


def _list(counts: list[int], content: ak.contents.Content) -> ak.contents.Content:
    return ak.contents.ListOffsetArray(ak.index.Index64(np.cumsum([0, *counts])), content)


def write_rntuple(path: Path, event: Event, num_events: int) -> None:
    """Writes copies of the event as an RNTuple with collections of records, as podio 1.7 does; member names stay those of podio 1.2."""
    with uproot.recreate(path, compression=uproot.ZSTD(5)) as file:
        events = None
        for group in _copies(event, num_events, EVENTS_PER_CLUSTER):
            records = _records(group)
            if events is None:
                events = file.mkrntuple("events", records)  # writes them, too
            else:
                events.extend(records)
        table = ak.zip({"name": list(event.ids), "collectionID": np.array(list(event.ids.values()), np.uint32)})
        file.mkrntuple("podio_metadata", ak.Array({"events___CollectionTypeInfo": table[np.newaxis]}))


def _records(group: list[tuple[Leaf, ...]]) -> ak.Array:
    """One list of nested records per collection: `X.position.x` is the field x of the field position of X."""
    tree: dict[str, Any] = {}
    counts = {}
    for leaves in group:
        *parents, last = leaves[0].name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        values = np.concatenate([leaf.values for leaf in leaves])
        node[last] = ak.from_numpy(values, regulararray=True).layout
        counts[leaves[0].collection] = [len(leaf.values) for leaf in leaves]
    return ak.Array({name: _list(counts[name], _record(node)) for name, node in tree.items()})


def _record(node: Any) -> ak.contents.Content:
    if not isinstance(node, dict):
        return node
    return ak.contents.RecordArray([_record(child) for child in node.values()], list(node))


def _write_identities(file: Any, ids: dict[str, int]) -> None:
    """Writes the ids of collections, one entry each: uproot cannot write podio's one entry with a vector of strings."""
    names, numbers = "events___CollectionTypeInfo.name", "events___CollectionTypeInfo.collectionID"
    tree = file.mktree("podio_metadata", {names: "string", numbers: np.uint32})
    tree.extend({names: ak.Array(list(ids)), numbers: np.array(list(ids.values()), np.uint32)})


def main() -> None:
    """Writes the file that the command line asks for and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--rntuple", action="store_true", help="an RNTuple instead of a TTree")
    arguments = parser.parse_args()
    (write_rntuple if arguments.rntuple else write_ttree)(arguments.output, read_event(), arguments.events)
    print(f"{arguments.output}: {arguments.events} events, {arguments.output.stat().st_size / arguments.events / 1e6:.3f} MB each")


if __name__ == "__main__":
    main()
