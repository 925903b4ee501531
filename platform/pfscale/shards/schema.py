"""The event shard: every column with its dtype, unit and source, in one table.

The same table makes the Arrow schema, drives the writer, the readers' projections and the checks, and documents the format.
All floats are float32; nothing is nullable: a missing collection is an empty list, a missing float NaN, a missing index -1.
Lists keep the order of the file's collections. Units: GeV, mm, ns, rad, tesla.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pfscale.edm4hep.origin import ORIGINS

SCHEMA_VERSION = 2  # 2: gen_particle.origin, gen_jet.top_role
NUM_COVARIANCES = 15  # lower triangle by row of (D0, phi, omega, Z0, tanLambda)
CLASSES = ("none", "211", "130", "22", "11", "13")  # order of the class index: charged and neutral hadron, photon, electron, muon
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ShardField:
    """One leaf of a shard column."""

    name: str
    dtype: str
    unit: str
    source: str


def _f(name: str, unit: str, source: str, dtype: str = "float32") -> ShardField:
    return ShardField(name, dtype, unit, source)


# column -> (is a list, fields). `pdg` means the PDG Monte Carlo numbering scheme.
COLUMNS: dict[str, tuple[bool, tuple[ShardField, ...]]] = {
    "event": (
        False,
        (
            _f("uid", "", "first 8 bytes of BLAKE2b of file base name, entry, run, number", "uint64"),
            _f("run", "", "EventHeader.runNumber", "int64"),
            _f("number", "", "EventHeader.eventNumber", "int64"),
            _f("file", "", "base name of the source file", "string"),
            _f("entry", "", "entry in the source file", "int64"),
            _f("weight", "", "EventHeader.weight; kept, never used silently"),
            _f("split", "", "train, validation or test: hash of the identity without the detector's name", "string"),
            _f("split_hash", "", "that hash; a sample size D means the D training events of lowest hash", "uint64"),
        ),
    ),
    "track": (
        True,
        (
            _f("pt", "GeV", "3e-4 |B / omega| at the interaction point"),
            _f("eta", "", "asinh(tanLambda)"),
            _f("sin_phi", "", "state at the interaction point"),
            _f("cos_phi", "", "state at the interaction point"),
            _f("p", "GeV", "pt cosh(eta)"),
            _f("chi2", "", "track fit"),
            _f("ndf", "", "track fit"),
            _f("dedx", "GeV/mm", "dE/dx, followed by its track relation; none, or 0 with error 0: NaN"),
            _f("dedx_error", "GeV/mm", "its error"),
            _f("radius_of_innermost_hit", "mm", "transverse radius of the state at the first hit; none: NaN"),
            _f("tan_lambda", "", "state at the interaction point"),
            _f("d0", "mm", "state at the interaction point"),
            _f("omega", "1/mm", "state at the interaction point, signed curvature"),
            _f("z0", "mm", "state at the interaction point"),
            _f("time", "ns", "state at the interaction point; none: NaN"),
            _f("cov", "mixed", "lower triangle by row of (D0, phi, omega, Z0, tanLambda)", f"float32[{NUM_COVARIANCES}]"),
            _f("ref_x", "mm", "reference point of the same state"),
            _f("ref_y", "mm", "reference point of the same state"),
            _f("ref_z", "mm", "reference point of the same state"),
        ),
    ),
    "cluster": (
        True,
        (
            _f("et", "GeV", "energy / cosh(eta)"),
            _f("eta", "", "of the position"),
            _f("sin_phi", "", "of the position"),
            _f("cos_phi", "", "of the position"),
            _f("energy", "GeV", "Cluster.energy"),
            _f("position_x", "mm", "Cluster.position"),
            _f("position_y", "mm", "Cluster.position"),
            _f("position_z", "mm", "Cluster.position"),
            _f("itheta", "rad", "Cluster.iTheta"),
            _f("energy_ecal", "GeV", "sum of the member hits in ECAL collections"),
            _f("energy_hcal", "GeV", "sum of the member hits in HCAL collections"),
            _f("energy_other", "GeV", "sum of the member hits in all other collections"),
            _f("num_hits", "", "member hits"),
            _f("sigma_x", "mm", "energy-weighted standard deviation of the member hits"),
            _f("sigma_y", "mm", "energy-weighted standard deviation of the member hits"),
            _f("sigma_z", "mm", "energy-weighted standard deviation of the member hits"),
        ),
    ),
}

_TARGET_FIELDS = (
    _f("class", "", f"index into {CLASSES}", "int8"),
    _f("charge", "e", "of the particle carried", "int8"),
    _f("pt", "GeV", "of the particle carried, with those merged into it"),
    _f("eta", "", "same"),
    _f("sin_phi", "", "same"),
    _f("cos_phi", "", "same"),
    _f("energy", "GeV", "same"),
    _f("status", "", "generatorStatus of the particle carried", "int32"),
    _f("particle_number", "", "index into gen_particle, -1: none", "int32"),
    _f("jet_idx", "", "index into gen_jet, -1: none", "int32"),
    _f("gp_to_track", "", "largest track-link weight of the particle to this track; 0 on clusters"),
    _f("gp_to_cluster", "GeV", "summed hit energy of the particle in this cluster; 0 on tracks"),
)

COLUMNS |= {
    "track_target": (True, _TARGET_FIELDS),
    "cluster_target": (True, _TARGET_FIELDS),
    "baseline": (
        True,
        (
            _f("pdg", "", "rule-based candidate", "int32"),
            _f("charge", "e", "rule-based candidate", "int8"),
            _f("px", "GeV", "rule-based candidate"),
            _f("py", "GeV", "rule-based candidate"),
            _f("pz", "GeV", "rule-based candidate"),
            _f("energy", "GeV", "rule-based candidate"),
            _f("track_index", "", "indices into track", "list<int32>"),
            _f("cluster_index", "", "indices into cluster", "list<int32>"),
        ),
    ),
    "gen_particle": (
        True,
        (
            _f("pdg", "", "MCParticle.PDG of a visible particle (surrogates: their own)", "int32"),
            _f("charge", "e", "MCParticle.charge", "int8"),
            _f("pt", "GeV", "MCParticle.momentum"),
            _f("eta", "", "MCParticle.momentum"),
            _f("phi", "rad", "MCParticle.momentum"),
            _f("energy", "GeV", "from momentum and mass"),
            _f("status", "", "MCParticle.generatorStatus", "int32"),
            _f("is_gen_level", "", "in the gen-level reference that jets and missing momentum are made of", "bool"),
            _f("jet_idx", "", "index into gen_jet, -1: none", "int32"),
            _f("owner", "", "element that carries it: tracks, then clusters; merged: their owner's; -1: dropped", "int32"),
            _f("origin", "", f"index into {ORIGINS}, by the nearest ancestors that decide", "int8"),
        ),
    ),
    "gen_jet": (
        True,
        (
            _f("pt", "GeV", "FastJet ee_genkt, R = 0.4, p = -1, pt > 5 GeV, of gen-level particles"),
            _f("eta", "", "same"),
            _f("phi", "rad", "same"),
            _f("energy", "GeV", "same"),
            _f("flavour", "", "5, 4, 15, 3, 2, 1, 21; 0: none found", "int8"),
            _f("top_role", "", "1: the b (down-type quark) of the top, 2: a quark of its W; -1, -2: of the antitop; 0: none", "int8"),
        ),
    ),
    "gen_met": (
        False,
        (
            _f("px", "GeV", "minus the sum of gen-level particles, lab frame"),
            _f("py", "GeV", "minus the sum of gen-level particles, lab frame"),
            _f("neutrino_px", "GeV", "sum of the neutrinos"),
            _f("neutrino_py", "GeV", "sum of the neutrinos"),
            _f("boost_px", "GeV", "px of all stable particles: the boost by the crossing angle"),
        ),
    ),
}


def _arrow_type(dtype: str) -> pa.DataType:
    simple = {"string": pa.string(), "bool": pa.bool_(), "list<int32>": pa.list_(pa.field("element", pa.int32(), nullable=False))}
    if dtype in simple:
        return simple[dtype]
    if dtype.startswith("float32["):
        return pa.list_(pa.field("element", pa.float32(), nullable=False), int(dtype[8:-1]))
    return pa.type_for_alias(dtype)


def struct_type(column: str) -> pa.StructType:
    """The Arrow struct of one element of `column`."""
    return pa.struct([pa.field(f.name, _arrow_type(f.dtype), nullable=False) for f in COLUMNS[column][1]])


def arrow_schema() -> pa.Schema:
    """The Arrow schema of an event shard: one row per event."""
    fields = []
    for column, (is_list, _) in COLUMNS.items():
        element = struct_type(column)
        kind = pa.list_(pa.field("element", element, nullable=False)) if is_list else element
        fields.append(pa.field(column, kind, nullable=False))
    return pa.schema(fields, metadata={"pfscale_schema_version": str(SCHEMA_VERSION)})


def discrete_leaves() -> list[str]:
    """Paths, as Parquet spells them, of all leaves that are no floats: their values repeat."""
    paths = []
    for column, (is_list, fields) in COLUMNS.items():
        for leaf in fields:
            if not leaf.dtype.startswith("float32"):
                parts = [
                    column,
                    *(["list", "element"] if is_list else []),
                    leaf.name,
                    *(["list", "element"] if "list" in leaf.dtype else []),
                ]
                paths.append(".".join(parts))
    return paths


def field_names(column: str) -> tuple[str, ...]:
    """Names of the leaves of `column`, in order."""
    return tuple(f.name for f in COLUMNS[column][1])
