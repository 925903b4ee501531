"""One real event in every layout that podio and EDM4hep have had must give the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pytest
import uproot

import podio_files as podio
from pfscale.edm4hep import layout
from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import OLD_RNTUPLE, open_source
from pfscale.errors import InputFileError
from pfscale.shards.events import extract_events

DATA = Path(__file__).parent.parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
LEGACY = DATA / "clic_photon_gun_3ev_legacy.root"
IDEA = DATA / "idea_delphes_ww_240_10ev_no_metadata.root"
TTREE_17 = DATA / "schema_all_types_ttree_podio1.7.root"
RNTUPLE_17 = DATA / "schema_all_types_rntuple_podio1.7.root"
DETECTOR = find_detector("cld")
CHAINS = DETECTOR.tracker_chains
LINKS = ("CalohitMCTruthLink", "SiTracksMCTruthLink", *[chain.relation for chain in CHAINS])
STATES = "_SiTracks_Refitted_trackStates"
AT_FIRST_HIT, ELSEWHERE = 2, 0


@pytest.fixture(scope="module")
def leaves() -> podio.Leaves:
    """The CLD event with measured dE/dx instead of its zeros."""
    hits = [c.name for c in DETECTOR.calo_hits]
    chains = [name for chain in CHAINS for name in (chain.hits, chain.relation, chain.sim_hits)]
    rest = ["EventHeader", "MCParticles", "SiTracks_Refitted", "SiTracks_Refitted_dQdx", "PandoraClusters", "PandoraPFOs"]
    content = podio.read_leaves(CLD, [*rest, *LINKS, *hits, *chains])
    kinds = [kind for kind in vars(layout).values() if isinstance(kind, layout.Kind)]
    read = {leaf.partition("[")[0] for kind in kinds for member in kind.members for leaf in member.leaves} | {"index", "collectionID"}
    # the other members would only take time
    content = {name: array for name, array in content.items() if name.partition(".")[2] in read or name.endswith(("_begin", "_end"))}
    for leaf, shift in (("value", 1e-6), ("error", 1e-7)):
        name = f"SiTracks_Refitted_dQdx.dQdx.{leaf}"
        content[name] = ak.values_astype(content[name] + shift * (1 + ak.local_index(content[name])), np.float32)
    return content


@pytest.fixture(scope="module")
def ids() -> dict[str, int]:
    return podio.ids_of(CLD)


def extract(path: Path) -> pa.Table:
    with open_source(path) as source:
        result = extract_events(source, DETECTOR, 0, source.num_entries, with_truth=True)
    assert not result.dropped
    return result.table


def rows(table: pa.Table) -> dict[str, list[str]]:
    """Every column as text, row by row (NaN equals NaN), without what only says where the event came from."""
    identity = ("uid", "file", "entry", "split", "split_hash")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    columns["event"] = [{name: value for name, value in event.items() if name not in identity} for event in columns["event"]]
    return {name: [str(row) for row in values] for name, values in columns.items()}


@pytest.fixture(scope="module")
def expected(leaves: podio.Leaves, ids: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The row of the event, which but for dE/dx is that of the file that podio wrote."""
    path = podio.write(tmp_path_factory.mktemp("podio") / "rewritten.root", leaves, ids)
    found, original = rows(extract(path)), rows(extract(CLD))
    assert {name for name in original if found[name] != original[name]} == {"track"}
    return found


STORAGES = [(generation, as_ntuple) for generation in podio.GENERATIONS for as_ntuple in (False, True)]


@pytest.mark.parametrize(("generation", "as_ntuple"), [(g, n) for g, n in STORAGES if not n or g in podio.NTUPLE_ID_TABLES])
def test_every_generation_gives_the_same_rows(
    generation: str, as_ntuple: bool, leaves: podio.Leaves, ids: dict[str, int], expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """Catches a relation, id or member that is looked up under another generation's name, and offsets that are right in one event only."""
    path = podio.write(tmp_path / "events.root", podio.repeated(leaves, 2), ids, generation=generation, as_ntuple=as_ntuple)
    with open_source(path) as source:
        assert source.generation.name == generation
    assert rows(extract(path)) == {name: values * 2 for name, values in expected.items()}


@pytest.fixture(scope="module")
def fast_events() -> podio.Leaves:
    """The events of fast simulation, with their subset collections and several collections of clusters."""
    names = find_detector("idea").required
    return podio.read_leaves(IDEA, [*names, "EventHeader", "Electron_objIdx", "Muon_objIdx"])


@pytest.mark.parametrize(
    ("generation", "as_ntuple"),
    [("podio-1.7", False), ("podio-1.7", True), ("legacy", False), ("no-metadata", False), ("no-metadata", True)],
)
def test_fast_simulation_in_every_generation(generation: str, as_ntuple: bool, fast_events: podio.Leaves, tmp_path: Path) -> None:
    """Catches collections that only refer to others, and ids, that are found in the layout of the one real file only."""
    detector = find_detector("idea")
    ids = {name: number for number, name in enumerate(detector.required, start=1)}  # counted, as they were before they were hashes
    old_of_new = {layout.collection_id(name): number for name, number in ids.items()}
    content = dict(fast_events)
    if generation == "legacy":
        for name in (name for name in fast_events if name.endswith(".collectionID")):
            flat, counts = ak.flatten(fast_events[name]).to_list(), ak.num(fast_events[name])
            content[name] = ak.unflatten(np.array([old_of_new.get(value, 0) for value in flat], np.int32), counts)
    elif generation != "no-metadata":
        ids = {name: layout.collection_id(name) for name in ids}
    path = podio.write(tmp_path / "events.root", content, ids, generation=generation, as_ntuple=as_ntuple)
    tables = []
    for file in (path, IDEA):
        with open_source(file) as source:
            tables.append(rows(extract_events(source, detector, 0, source.num_entries, with_truth=True).table))
    assert tables[0] == tables[1]


def ends_called_rec_and_sim(leaves: podio.Leaves) -> podio.Leaves:
    names = {f"_{link}_{new}": f"_{link}_{old}" for link in LINKS for new, old in (("from", "rec"), ("to", "sim"))}
    return podio.renamed(leaves, names)


def pdg_called_type(leaves: podio.Leaves) -> podio.Leaves:
    return podio.renamed(leaves, {"PandoraPFOs.PDG": "PandoraPFOs.type"})


def deposit_called_large(leaves: podio.Leaves) -> podio.Leaves:
    return podio.renamed(leaves, {f"{chain.hits}.eDep": f"{chain.hits}.EDep" for chain in CHAINS})


def relation_called_like_its_type(leaves: podio.Leaves) -> podio.Leaves:
    return podio.renamed(leaves, {f"_{chain.sim_hits}_particle": f"_{chain.sim_hits}_MCParticle" for chain in CHAINS})


def covariance_without_time(leaves: podio.Leaves) -> podio.Leaves:
    return {**leaves, f"{STATES}.covMatrix.values": leaves[f"{STATES}.covMatrix.values"][:, :, :15]}


def covariance_as_plain_array(leaves: podio.Leaves) -> podio.Leaves:
    return podio.renamed(leaves, {f"{STATES}.covMatrix.values": f"{STATES}.covMatrix"})


def energy_loss_on_the_track(leaves: podio.Leaves) -> podio.Leaves:
    """As until 0.10: of each track, in the order of the tracks, to which the relation need not keep."""
    order = leaves["_SiTracks_Refitted_dQdx_track.index"]
    moved = {name: array for name, array in leaves.items() if "dQdx" not in name}
    for old, new in (("value", "dEdx"), ("error", "dEdxError")):
        moved[f"SiTracks_Refitted.{new}"] = leaves[f"SiTracks_Refitted_dQdx.dQdx.{old}"][ak.argsort(order)]
    return moved


def energy_loss_in_another_order(leaves: podio.Leaves) -> podio.Leaves:
    names = [name for name in leaves if "dQdx" in name]
    return {**leaves, **{name: leaves[name][:, ::-1] for name in names}}


def innermost_radius_on_the_track(leaves: podio.Leaves) -> podio.Leaves:
    location = leaves[f"{STATES}.location"]
    radius = np.hypot(leaves[f"{STATES}.referencePoint.x"], leaves[f"{STATES}.referencePoint.y"])
    return {
        **leaves,
        f"{STATES}.location": ak.where(location == AT_FIRST_HIT, ELSEWHERE, location),
        "SiTracks_Refitted.radiusOfInnermostHit": ak.values_astype(radius[location == AT_FIRST_HIT], np.float64),
    }


def signed_ids(leaves: podio.Leaves) -> podio.Leaves:
    names = [name for name in leaves if name.endswith(".collectionID")]
    return {**leaves, **{name: ak.values_astype(leaves[name], np.int32) for name in names}}


DRIFTS = (
    ends_called_rec_and_sim,
    pdg_called_type,
    deposit_called_large,
    relation_called_like_its_type,
    covariance_without_time,
    covariance_as_plain_array,
    energy_loss_on_the_track,
    energy_loss_in_another_order,
    innermost_radius_on_the_track,
    signed_ids,
)


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift.__name__)
def test_schema_drift_does_not_change_the_rows(
    drift: Callable[[podio.Leaves], podio.Leaves],
    leaves: podio.Leaves,
    ids: dict[str, int],
    expected: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    """Catches a member or relation that is read under one of its names only."""
    path = podio.write(tmp_path / "events.root", drift(leaves), ids)
    assert rows(extract(path)) == expected


def test_all_drifts_at_once_in_the_oldest_layout(
    leaves: podio.Leaves, ids: dict[str, int], expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """Catches names of old members that work in the layout of new files only: here they come as they did in files of their time."""
    old = leaves
    for drift in (pdg_called_type, deposit_called_large, covariance_without_time, energy_loss_on_the_track, innermost_radius_on_the_track):
        old = drift(old)
    path = podio.write(tmp_path / "events.root", old, ids, generation="legacy")
    assert rows(extract(path)) == expected


def test_links_to_particles_by_their_other_name(
    leaves: podio.Leaves, ids: dict[str, int], expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """Catches truth that is lost where reconstruction through LCIO called the particles MCParticle, in a file without an id table."""
    old, new = ids["MCParticles"], layout.collection_id("MCParticle")
    moved = {
        name: ak.values_astype(ak.where(array == old, new, array), np.uint32) if name.endswith(".collectionID") else array
        for name, array in leaves.items()
    }
    path = podio.write(tmp_path / "events.root", moved, {}, generation="no-metadata")
    assert rows(extract(path)) == expected


def test_highest_cycle_is_read(leaves: podio.Leaves, ids: dict[str, int], expected: dict[str, list[str]], tmp_path: Path) -> None:
    """Catches an older cycle of the tree, saved before the last events were in it, taken for the events of the file."""
    path = tmp_path / "events.root"
    with uproot.recreate(path) as file:
        podio.write_ids(file, podio.ID_TABLES["podio-1.0"], ids)
        for number in (1, 2, 3):
            podio.write_events(file, podio.repeated(leaves, number))
        assert [key for key in file.keys() if key.startswith("events")] == ["events;1", "events;2", "events;3"]  # noqa: SIM118 (not a dict)
    assert rows(extract(path)) == {name: values * 3 for name, values in expected.items()}


@pytest.mark.parametrize("path", [CLD, TTREE_17, RNTUPLE_17], ids=["podio-1.2", "podio-1.7", "podio-1.7-rntuple"])
def test_ids_follow_from_names_since_podio_1(path: Path) -> None:
    """Catches another hash than podio's: files without metadata would lose every relation."""
    with open_source(path) as source:
        assert len(source.collection_ids) >= 28
        assert source.collection_ids == {name: layout.collection_id(name) for name in source.collection_ids}


def test_ids_of_a_real_file_without_metadata() -> None:
    """Catches ids made up for files without metadata that the references in the file do not carry."""
    with open_source(IDEA) as source:
        hits = source.references("EFlowPhoton", layout.CLUSTER.relations[0], 0, 10)
        tracks = source.references("ReconstructedParticles", layout.CANDIDATE.relations[1], 0, 10)
        assert set(hits.collection_id) == {source.identity("CalorimeterHits")}
        assert set(tracks.collection_id) == {source.identity("EFlowTrack")}


@pytest.mark.parametrize("path", [TTREE_17, RNTUPLE_17], ids=["ttree", "rntuple"])
def test_edm4hep_1_has_every_member_and_relation(path: Path) -> None:
    """Catches a name of EDM4hep 1.0 that is missing in the tables; what stands for it would go unnoticed."""
    removed = {"dedx", "dedx_error", "radius_of_innermost_hit"}
    kinds = {
        "CaloHitMCParticleLinkCollection": layout.LINK,
        "RecoMCParticleLinkCollection": layout.LINK,
        "EventHeader": layout.HEADER,
        "MCParticleCollection": layout.PARTICLE,
        "TrackCollection": layout.TRACK,
        "_TrackCollection_trackStates": layout.TRACK_STATE,
        "RecDqdxCollection": layout.DQDX,
        "TrackerHit3DCollection": layout.TRACKER_HIT,
        "TrackerHitPlaneCollection": layout.TRACKER_HIT,
        "SimTrackerHitCollection": layout.SIM_TRACKER_HIT,
        "CalorimeterHitCollection": layout.CALO_HIT,
        "ClusterCollection": layout.CLUSTER,
        "ReconstructedParticleCollection": layout.CANDIDATE,
    }
    with open_source(path) as source:
        for collection, kind in kinds.items():
            for relation in kind.relations:
                assert source.has_relation(collection, relation), (collection, relation.name)
            if kind.members:
                found = source.rows(collection, kind, 0, source.num_entries)
                made_up = {m.name for m in kind.members if m.default is not None and not any(_has(source, collection, m))}
                assert made_up <= removed
                assert set(found.columns) == {m.name for m in kind.members}


def _has(source: Any, collection: str, member: layout.Member) -> list[bool]:
    return [f"{collection}.{leaf}" in source._branches for leaf in member.leaves]


# --- files that cannot be read ---------------------------------------------------------------------------------------------------------


def test_rntuple_from_before_1_is_refused(
    leaves: podio.Leaves, ids: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback from a file whose events have the class name that RNTuples had before ROOT fixed their format."""
    directory = uproot.writing._cascade.Directory
    add_object = directory.add_object

    def add_old_object(self: Any, sink: Any, classname: str, *args: Any, **options: Any) -> Any:
        return add_object(self, sink, OLD_RNTUPLE if classname == "ROOT::RNTuple" else classname, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "add_object", add_old_object)
        path = podio.write(tmp_path / "old.root", leaves, ids, generation="podio-1.0", as_ntuple=True)
    with pytest.raises(InputFileError, match=r"before version 1\.0") as caught:
        open_source(path)
    assert "podio" in str(caught.value.hint)


@pytest.mark.parametrize("collection", ["MCParticles", "SiTracks_Refitted", "HCALBarrel", "PandoraClusters", "VXDTrackerHits"])
def test_metadata_without_an_id(collection: str, leaves: podio.Leaves, ids: dict[str, int], tmp_path: Path) -> None:
    """Catches relations that are dropped without a word because the id table does not have the collection that they mean."""
    known = {name: identity for name, identity in ids.items() if name not in (collection, "MCParticle")}
    path = podio.write(tmp_path / "events.root", leaves, known)
    with pytest.raises(InputFileError, match=f"no id of '{collection}'") as caught:
        extract(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("relation", ["_CalohitMCTruthLink_from", "_MCParticles_parents", "_PandoraPFOs_tracks", "_PandoraClusters_hits"])
def test_reference_to_an_unlisted_collection(relation: str, leaves: podio.Leaves, ids: dict[str, int], tmp_path: Path) -> None:
    """Catches truth that vanishes without a word because references mean a collection that the file does not list."""
    strange = {**leaves, f"{relation}.collectionID": ak.full_like(leaves[f"{relation}.collectionID"], 12345)}
    with open_source(podio.write(tmp_path / "events.root", strange, ids)) as source:
        result = extract_events(source, DETECTOR, 0, 1, with_truth=True)
    assert result.table.num_rows == 0
    assert "(id 12345) that the file does not list" in result.dropped[0].reason


@pytest.mark.parametrize("collection", ["CalohitMCTruthLink", "SiTracksMCTruthLink"])
@pytest.mark.parametrize("meant", [12345, "PandoraPFOs"])
def test_links_to_other_particles(collection: str, meant: int | str, leaves: podio.Leaves, ids: dict[str, int], tmp_path: Path) -> None:
    """Catches a file whose truth links mean particles that are not read, taken for one in which nothing was seen."""
    leaf = f"_{collection}_to.collectionID"
    elsewhere = {**leaves, leaf: ak.full_like(leaves[leaf], ids.get(str(meant), meant))}
    with pytest.raises(InputFileError, match=f"'{collection}' leads to the particles"):
        extract(podio.write(tmp_path / "events.root", elsewhere, ids))


def test_id_tables_that_contradict_one_another(leaves: podio.Leaves, ids: dict[str, int], tmp_path: Path) -> None:
    """Catches files that were joined although their collections are numbered differently: ECAL hits would be taken for HCAL hits."""
    with pytest.raises(InputFileError, match="contradict"):
        open_source(podio.write(tmp_path / "events.root", leaves, {**ids, "Another": ids["ECALBarrel"]}))


def test_covariance_of_another_size(leaves: podio.Leaves, ids: dict[str, int], tmp_path: Path) -> None:
    """Catches numbers of one track's covariance given to another, and a traceback instead of an error of the file."""
    name = next(leaf for leaf in leaves if "covMatrix" in leaf)
    for width in (10, 6):
        with pytest.raises(InputFileError, match="not 15 or more"):
            extract(podio.write(tmp_path / f"{width}.root", {**leaves, name: leaves[name][:, :, :width]}, ids))


def test_old_layout_without_metadata(leaves: podio.Leaves, tmp_path: Path) -> None:
    """Catches ids guessed for files that are older than the rule by which ids follow from names."""
    path = podio.write(tmp_path / "events.root", podio.numbered(leaves), {}, generation="no-metadata")
    with pytest.raises(InputFileError, match=r"older than podio 1\.0") as caught:
        extract(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("path", "detector", "missing", "fits"),
    [(CLD, "idea", "EFlowTrack", "cld"), (IDEA, "cld", "SiTracks_Refitted", "idea"), (TTREE_17, "clic", "SiTracks_Refitted", "none")],
)
def test_wrong_detector_names_what_fits(path: Path, detector: str, missing: str, fits: str) -> None:
    """Catches an error that leaves the user to find out of which detector the file is."""
    with open_source(path) as source, pytest.raises(InputFileError, match=missing) as caught:
        extract_events(source, find_detector(detector), 0, 1, with_truth=True)
    assert fits in str(caught.value.hint)
