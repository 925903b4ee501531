"""How podio lays out EDM4hep collections in a file, as tables: members of each kind of collection and the names of three generations.

Generations differ in how relations and vector members are called (by name or numbered in the order of the data model), in where the
collection ids are kept, and in single members (schema drift). All of that is here; the reader only looks names up.
Source: files written by podio 0.16 (legacy), 1.2 and 1.7, as uproot shows them.
"""

from __future__ import annotations

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
    """References to other objects: suffixes that the named layout has used, and the position in the numbered layout.

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
PARTICLE = Kind(
    (
        Member("pdg", ("PDG",), np.int64),
        Member("generator_status", ("generatorStatus",), np.int64),
        Member("simulator_status", ("simulatorStatus",), np.int64, default=0),
        *_floats("charge", "mass", "momentum.x", "momentum.y", "momentum.z"),
    ),
    (Relation("parents", ("parents",), 0, is_vector=True), Relation("daughters", ("daughters",), 1, is_vector=True)),
)
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
TRACK_STATE = Kind(
    (
        Member("location", ("location",), np.int64),
        *_floats("D0", "phi", "omega", "Z0", "tanLambda"),
        Member("time", ("time",), default=np.nan),
        *_floats("referencePoint.x", "referencePoint.y", "referencePoint.z"),
        Member("covMatrix", ("covMatrix.values[21]", "covMatrix.values", "covMatrix[15]", "covMatrix[21]"), width=15),
    )
)
DQDX = Kind(
    (Member("value", ("dQdx.value",)), Member("error", ("dQdx.error",))),
    (Relation("track", ("track",), 0),),
)
TRACKER_HIT = Kind((Member("energy", ("eDep", "EDep")),))
SIM_TRACKER_HIT = Kind((), (Relation("particle", ("particle", "MCParticle"), 0),))
CALO_HIT = Kind(_floats("energy", "position.x", "position.y", "position.z"))
CLUSTER = Kind(
    _floats("energy", "position.x", "position.y", "position.z", "iTheta"),
    (Relation("hits", ("hits",), 1, is_vector=True),),
)
CANDIDATE = Kind(
    (Member("pdg", ("PDG", "type"), np.int64), *_floats("charge", "energy", "momentum.x", "momentum.y", "momentum.z")),
    (Relation("clusters", ("clusters",), 0, is_vector=True), Relation("tracks", ("tracks",), 1, is_vector=True)),
)
TRACK_STATES_POSITION = 1  # in the numbered layout's vector members of a track: 0 hit numbers, 1 states


@dataclass(frozen=True)
class Generation:
    """One podio generation: where its collection ids are and how it names what belongs to a collection.

    Attributes:
        names, ids: branches of the metadata tree with collection names and ids.
        relation: pattern of a relation's branch; gets `collection`, `suffix` and `position`.
        vector: pattern of a vector member's branch; gets the same.
    """

    name: str
    metadata: str | None
    names: str
    ids: str
    relation: str = "_{collection}_{suffix}"
    vector: str = "_{collection}_{suffix}"

    def relation_branches(self, collection: str, relation: Relation) -> tuple[str, ...]:
        """Names that the relation's branch may have, most usual first."""
        return tuple(self.relation.format(collection=collection, suffix=s, position=relation.position) for s in relation.suffixes)

    def vector_branch(self, collection: str, suffix: str, position: int) -> str:
        """Name of the branch of a vector member."""
        return self.vector.format(collection=collection, suffix=suffix, position=position)


# Tried in this order; the first whose metadata the file has is taken.
GENERATIONS = (
    Generation("podio-1.7", "podio_metadata", "events___CollectionTypeInfo.name", "events___CollectionTypeInfo.collectionID"),
    Generation("podio-1.0", "podio_metadata", "events___idTable/m_names", "events___idTable/m_collectionIDs"),
    Generation(
        "legacy",
        "metadata",
        "CollectionIDs/m_names",
        "CollectionIDs/m_collectionIDs",
        relation="{collection}#{position}",
        vector="{collection}_{position}",
    ),
    Generation("no-metadata", None, "", ""),
)
