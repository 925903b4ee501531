"""EDM4hep files as each generation of podio lays them out, rewritten from a real one with uproot.

Names and numbers here are EDM4hep's own, written down apart from the tables of `pfscale.edm4hep.layout` that they test.
What uproot cannot write: jagged arrays of fixed arrays in a TTree (a covariance becomes one plain list per event; as podio writes it, it is
in the real files and in RNTuples) and trees that are split into branches of branches (names with a slash stand for those).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

Leaves = dict[str, ak.Array]  # leaf name as podio 1 writes it -> (events, objects) or (events, objects, width)

# positions in the data model: relations to many first, then those to one; vector members have a count of their own
ENDS = {"from": 0, "to": 1}
NUMBERED = {
    "MCParticles": {"parents": 0, "daughters": 1},
    "SiTracks_Refitted": {"trackerHits": 0, "tracks": 1},
    "SiTracks_Refitted_dQdx": {"track": 0},
    "PandoraClusters": {"clusters": 0, "hits": 1},
    "PandoraPFOs": {"clusters": 0, "tracks": 1, "particles": 2, "decayVertex": 4},
    "Particle": {"parents": 0, "daughters": 1},
    "EFlowTrack": {"trackerHits": 0, "tracks": 1},
    "EFlowPhoton": {"clusters": 0, "hits": 1},
    "EFlowNeutralHadron": {"clusters": 0, "hits": 1},
    "ReconstructedParticles": {"clusters": 0, "tracks": 1, "particles": 2, "decayVertex": 4},
}
NUMBERED_VECTORS = {"trackStates": 1}
GENERATIONS = ("podio-1.7", "podio-1.0", "podio-0.16", "legacy", "no-metadata")
ID_TABLES = {
    "podio-1.7": ("podio_metadata", "events___CollectionTypeInfo.name", "events___CollectionTypeInfo.collectionID"),
    "podio-1.0": ("podio_metadata", "events___idTable/m_names", "events___idTable/m_collectionIDs"),
    "podio-0.16": ("podio_metadata", "events___idTable/m_names", "events___idTable/m_collectionIDs"),
    "legacy": ("metadata", "CollectionIDs/m_names", "CollectionIDs/m_collectionIDs"),
}
NTUPLE_ID_TABLES = {
    "podio-1.7": ID_TABLES["podio-1.7"],
    "podio-1.0": ("podio_metadata", "events_collectionNames", "events___idTable"),
}


def read_leaves(path: Path, collections: Iterable[str]) -> Leaves:
    """All leaves of some collections, with those of their relations and vector members."""
    wanted = set(collections)
    with uproot.open(path) as file:
        leaves = {}
        for name, branch in file["events"].iteritems(recursive=True, full_paths=False):
            head, dot, _ = name.partition(".")
            owner = head[1:].rpartition("_")[0] if head.startswith("_") else head
            is_fixed_array = name.endswith("]") and not head.endswith("_trackStates")  # covariances that nobody reads
            if dot and owner in wanted and not is_fixed_array:
                leaves[name.partition("[")[0]] = branch.array()
    return leaves


def ids_of(path: Path) -> dict[str, int]:
    """The collection ids of a file that podio 1.0 to 1.2 wrote."""
    with uproot.open(path) as file:
        table = [ak.flatten(file[f"podio_metadata/events___idTable/{leaf}"].array()).to_list() for leaf in ("m_names", "m_collectionIDs")]
    return dict(zip(*table, strict=True))


def repeated(leaves: Leaves, times: int) -> Leaves:
    """The events over and over."""
    return {name: ak.concatenate([array] * times) for name, array in leaves.items()}


def renamed(leaves: Leaves, names: Mapping[str, str]) -> Leaves:
    """The leaves with every collection, relation or single leaf that is a key of `names` called by its value."""
    head = {name: names.get(name.partition(".")[0], name.partition(".")[0]) + name[len(name.partition(".")[0]) :] for name in leaves}
    return {names.get(head[name], head[name]): array for name, array in leaves.items()}


def numbered(leaves: Leaves) -> Leaves:
    """The leaves as podio called them before 0.16.99: relations and vector members by their position in the data model."""
    heads = {name.partition(".")[0] for name in leaves}
    names = {head: f"{head.removesuffix('_objIdx')}#0" for head in heads if head.endswith("_objIdx")}
    for head in (head for head in heads if head.startswith("_")):
        collection, _, member = head[1:].rpartition("_")
        if member in NUMBERED_VECTORS:
            names[head] = f"{collection}_{NUMBERED_VECTORS[member]}"
        else:
            names[head] = f"{collection}#{NUMBERED.get(collection, ENDS | {'particle': 0})[member]}"
    return renamed(leaves, names)


def write(path: Path, leaves: Leaves, ids: Mapping[str, int], *, generation: str = "podio-1.0", as_ntuple: bool = False) -> Path:
    """A file with these events in the layout of a generation, as TTree or as RNTuple v1."""
    with uproot.recreate(path) as file:
        write_events(file, leaves if generation not in ("podio-0.16", "legacy") else numbered(leaves), as_ntuple=as_ntuple)
        if generation != "no-metadata":
            write_ids(file, (NTUPLE_ID_TABLES if as_ntuple else ID_TABLES)[generation], ids, as_ntuple=as_ntuple)
    return path


def write_events(file: uproot.WritableDirectory, leaves: Leaves, *, as_ntuple: bool = False, name: str = "events") -> None:
    """One more cycle of the events."""
    collections: dict[str, dict[str, ak.Array]] = {}
    for leaf, array in leaves.items():
        head, _, member = leaf.partition(".")
        collections.setdefault(head, {})[member] = array
    if as_ntuple:
        file.mkrntuple(name, ak.zip({head: _records(members) for head, members in collections.items()}, depth_limit=1))
        return
    content = {}
    for head, members in collections.items():
        wide = {member: array for member, array in members.items() if array.ndim > 2}
        content |= {f"{head}.{member}": ak.flatten(array, axis=2) for member, array in wide.items()}
        content[head] = ak.zip({member: array for member, array in members.items() if member not in wide})
    file.mktree(
        name,
        {head: array.type.content for head, array in content.items()},
        field_name=lambda outer, inner: f"{outer}.{inner}" if inner else outer,
        counter_name=lambda head: f"n{head}",
    ).extend(content)


def write_ids(file: uproot.WritableDirectory, table: tuple[str, str, str], ids: Mapping[str, int], *, as_ntuple: bool = False) -> None:
    """The tree of metadata with the names and ids of collections."""
    tree, names, identities = table
    values = (ak.Array(list(ids)), np.array(list(ids.values()), np.uint32))
    if as_ntuple:
        outer, dot, _ = names.partition(".")
        lists = [ak.Array([value]) for value in values]
        record = {part.rpartition(".")[2]: array for part, array in zip((names, identities), lists, strict=True)}
        file.mkrntuple(tree, ak.zip({outer: ak.zip(record)} if dot else record, depth_limit=1))
        return
    file.mktree(tree, {names: "string", identities: "uint32"}).extend(dict(zip((names, identities), values, strict=True)))


def _records(members: Mapping[str, ak.Array]) -> ak.Array:
    """Members as podio's nested records: `momentum.x` is the field x of the field momentum."""
    flat: dict[str, ak.Array] = {}
    for member, array in members.items():
        outer, dot, _ = member.partition(".")
        if dot:
            inside = {m.partition(".")[2]: a for m, a in members.items() if m.startswith(f"{outer}.")}
            flat[outer] = ak.zip(inside, depth_limit=2)
        else:
            flat[outer] = array
    return ak.zip(flat, depth_limit=2)
