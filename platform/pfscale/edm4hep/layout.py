"""How podio lays out EDM4hep collections in a file, as tables: members of each kind of collection, and the generations of podio.

Generations differ in how relations and vector members are called (by name or numbered in the order of the data model) and in where the
collection ids are kept; the data model's own versions differ in single members and relations. All of that is here; the reader only looks
names up. Numbers with # are pull requests of key4hep/EDM4hep that changed a name; the first spelling listed is the present one.
Sources: files written by podio 0.16, 1.2 and 1.7 as uproot shows them; podio's RootHelpers.cc, rootUtils.h and CollectionIDTable.cc.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Member:
    """One number per object: our name, its dtype, the leaf names it has had, and what stands for it where a file has none."""

    name: str
    leaves: tuple[str, ...]
    dtype: type = np.float64
    default: float | None = None  # None: the file must have it
    width: int = 1  # numbers kept per object; the leaf may hold more


@dataclass(frozen=True)
class Relation:
    """References to other objects, or to a vector of one's own: suffixes in the named layout, newest first; position in the numbered one.

    `is_vector`: a one-to-many relation with `<name>_begin` and `<name>_end` members.
    """

    name: str
    suffixes: tuple[str, ...]
    position: int
    is_vector: bool = False


@dataclass(frozen=True)
class Kind:
    """A data type of EDM4hep: the members and relations of it that we read."""

    members: tuple[Member, ...]
    relations: tuple[Relation, ...] = ()


def _floats(*names: str) -> tuple[Member, ...]:
    return tuple(Member(name.replace(".", "_"), (name,)) for name in names)


# links were associations with the ends `rec` and `sim` until #341, before 0.99.1; version 0.1 had no weights (#57)
LINK = Kind(
    (Member("weight", ("weight",), default=1.0),),
    (Relation("from", ("from", "rec"), 0), Relation("to", ("to", "sim"), 1)),
)
HEADER = Kind(
    (
        Member("number", ("eventNumber",), np.int64),
        Member("run", ("runNumber",), np.int64),
        Member("weight", ("weight",), default=1.0),
    )
)
# not read, though they drift, too: `spin`, since 1.0 `helicity` (#404); `colorFlow`, removed before 1.0 (#389)
PARTICLE = Kind(
    (
        Member("pdg", ("PDG",), np.int64),
        Member("generator_status", ("generatorStatus",), np.int64),
        Member("simulator_status", ("simulatorStatus",), np.int64, default=0),
        *_floats("charge", "mass", "momentum.x", "momentum.y", "momentum.z"),
    ),
    (Relation("parents", ("parents",), 0, is_vector=True), Relation("daughters", ("daughters",), 1, is_vector=True)),
)
# 0.99 took from the track dE/dx (#311; now RecDqdx with a relation to the track) and the radius of its innermost hit (#326)
TRACK = Kind(
    (
        *_floats("chi2", "ndf"),
        Member("dedx", ("dEdx",), default=np.nan),
        Member("dedx_error", ("dEdxError",), default=np.nan),
        Member("radius_of_innermost_hit", ("radiusOfInnermostHit",), default=np.nan),
        Member("trackStates_begin", ("trackStates_begin",), np.int64),
        Member("trackStates_end", ("trackStates_end",), np.int64),
    )
)
# the time and its row of the covariance came with #138 (15 -> 21 numbers), the type CovMatrix6f with 0.99 (#287)
TRACK_STATE = Kind(
    (
        Member("location", ("location",), np.int64),
        *_floats("D0", "phi", "omega", "Z0", "tanLambda"),
        Member("time", ("time",), default=np.nan),
        *_floats("referencePoint.x", "referencePoint.y", "referencePoint.z"),
        Member("covMatrix", ("covMatrix.values[21]", "covMatrix.values", "covMatrix[21]", "covMatrix[15]", "covMatrix"), width=15),
    )
)
DQDX = Kind(
    (Member("value", ("dQdx.value",)), Member("error", ("dQdx.error",))),
    (Relation("track", ("track",), 0),),
)
# TrackerHit3D (until 0.10 TrackerHit, now the name of their interface: #252) and TrackerHitPlane alike
TRACKER_HIT = Kind((Member("energy", ("eDep", "EDep")),))
# the relation was called like its type until 0.10.4 (#256)
SIM_TRACKER_HIT = Kind((), (Relation("particle", ("particle", "MCParticle"), 0),))
CALO_HIT = Kind(_floats("energy", "position.x", "position.y", "position.z"))
CLUSTER = Kind(
    _floats("energy", "position.x", "position.y", "position.z", "iTheta"),
    (Relation("hits", ("hits",), 1, is_vector=True),),
)
# `type` until 0.10 (#273)
CANDIDATE = Kind(
    (Member("pdg", ("PDG", "type"), np.int64), *_floats("charge", "energy", "momentum.x", "momentum.y", "momentum.z")),
    (Relation("clusters", ("clusters",), 0, is_vector=True), Relation("tracks", ("tracks",), 1, is_vector=True)),
)
TRACK_STATES = Relation("trackStates", ("trackStates",), 1)  # a vector member: these are counted apart, 0 are numbers of hits


SUBSET = Relation("objIdx", ("objIdx",), 0)  # members of a collection that only refers to objects of another


@dataclass(frozen=True)
class Generation:
    """One podio generation: where its collection ids are and how it names what belongs to a collection.

    Attributes:
        metadata: tree with the collection ids; None: the file has none.
        names, ids: branches of that tree with collection names and ids.
        is_numbered: relations and vector members are called by their position in the data model, not by name.
        hashes_names: without metadata ids follow from the names (`collection_id`).
    """

    name: str
    metadata: str | None = None
    names: str = ""
    ids: str = ""
    is_numbered: bool = False
    hashes_names: bool = False

    def relation_branches(self, collection: str, relation: Relation) -> tuple[str, ...]:
        """Names that the relation's branch may have, most usual first."""
        if self.is_numbered:
            return (f"{collection}#{relation.position}",)
        return tuple(f"_{collection}_{suffix}" for suffix in relation.suffixes)

    def vector_branch(self, collection: str, vector: Relation) -> str:
        """Name of the branch of a vector member."""
        return f"{collection}_{vector.position}" if self.is_numbered else f"_{collection}_{vector.name}"

    def subset_branch(self, collection: str) -> str:
        """Name of the branch of a collection that only refers to objects of another."""
        return f"{collection}#{SUBSET.position}" if self.is_numbered else f"{collection}_{SUBSET.name}"


def is_numbered(branches: Iterable[str]) -> bool:
    """Whether a file with these branches calls relations by their position in the data model: podio before 0.16.99."""
    return any("#" in branch for branch in branches)


# The first that agrees with a file in its numbering, and whose metadata the file has, is taken.
GENERATIONS = (
    Generation("podio-1.7", "podio_metadata", "events___CollectionTypeInfo.name", "events___CollectionTypeInfo.collectionID"),
    Generation("podio-1.0", "podio_metadata", "events___idTable/m_names", "events___idTable/m_collectionIDs"),
    Generation("podio-1.0", "podio_metadata", "events_collectionNames", "events___idTable"),  # as RNTuple
    Generation("podio-0.16", "podio_metadata", "events___idTable/m_names", "events___idTable/m_collectionIDs", is_numbered=True),
    Generation("legacy", "metadata", "CollectionIDs/m_names", "CollectionIDs/m_collectionIDs", is_numbered=True),
    Generation("no-metadata", hashes_names=True),
    Generation("legacy-no-metadata", is_numbered=True),
)


def collection_id(name: str) -> int:
    """The id that podio gives to a collection of this name since 1.0: the 32-bit MurmurHash3 of the name with seed 0.

    Agrees with the id tables of all files that podio 1.2 and 1.7 wrote for the tests.
    Source: podio's CollectionIDTable::add; the hash is Austin Appleby's, in the public domain (MurmurHash3_x86_32).
    """
    data, value = name.encode(), 0
    for start in range(0, len(data), 4):
        block = data[start : start + 4]
        mixed = _times(_rotate(_times(int.from_bytes(block, "little"), 0xCC9E2D51), 15), 0x1B873593)
        value ^= mixed
        if len(block) == 4:
            value = (_times(_rotate(value, 13), 5) + 0xE6546B64) & _WORD
    value ^= len(data)
    value = _times(value ^ value >> 16, 0x85EBCA6B)
    value = _times(value ^ value >> 13, 0xC2B2AE35)
    return value ^ value >> 16


_WORD = 0xFFFFFFFF


def _times(value: int, factor: int) -> int:
    return value * factor & _WORD


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _WORD
