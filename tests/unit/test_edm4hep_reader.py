"""Reading EDM4hep files of all generations, and what happens with files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uproot

from pfscale.edm4hep import layout, reader
from pfscale.edm4hep.detectors import DETECTORS, find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError, UnknownNameError

DATA = Path(__file__).parent.parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
LEGACY = DATA / "clic_photon_gun_3ev_legacy.root"
TTREE_17 = DATA / "schema_all_types_ttree_podio1.7.root"
RNTUPLE_17 = DATA / "schema_all_types_rntuple_podio1.7.root"


@pytest.mark.parametrize(
    ("path", "generation", "entries", "collection", "identity"),
    [
        (CLD, "podio-1.0", 1, "EventHeader", 3616779153),
        (LEGACY, "legacy", 3, "MCParticles", 1),
        (TTREE_17, "podio-1.7", 3, "CaloHitContributionCollection", 3470328915),
        (RNTUPLE_17, "podio-1.7", 3, "CaloHitContributionCollection", 3470328915),
    ],
)
def test_generation_and_ids(path: Path, generation: str, entries: int, collection: str, identity: int) -> None:
    """Catches ids read from the wrong table: relations would then point nowhere."""
    with open_source(path) as source:
        assert (source.generation.name, source.num_entries) == (generation, entries)
        assert source.collection_ids[collection] == identity


def test_has_truth() -> None:
    """Catches a truth-free file that ingest would take, or the reverse."""
    with open_source(CLD) as with_particles, open_source(TTREE_17) as without:
        assert with_particles.has_truth
        assert not without.has_truth


def test_same_members_from_ttree_and_rntuple() -> None:
    """Catches members, widths or event offsets that differ between the two storages of one data set."""
    kinds = {
        "ClusterCollection": layout.CLUSTER,
        "_TrackCollection_trackStates": layout.TRACK_STATE,
        "MCParticleCollection": layout.PARTICLE,
    }
    with open_source(TTREE_17) as tree, open_source(RNTUPLE_17) as ntuple:
        for collection, kind in kinds.items():
            first, second = (source.rows(collection, kind, 0, 3) for source in (tree, ntuple))
            assert np.array_equal(first.offsets, second.offsets)
            for name, values in first.columns.items():
                np.testing.assert_array_equal(values, second[name])


def test_entry_ranges_are_slices() -> None:
    """Catches offsets that are not those of the range asked for."""
    with open_source(LEGACY) as source:
        whole = source.rows("ECALEndcap", layout.CALO_HIT, 0, 3)
        last = source.rows("ECALEndcap", layout.CALO_HIT, 2, 3)
        start, stop = whole.offsets[2], whole.offsets[3]
        assert len(last) == stop - start > 0
        np.testing.assert_array_equal(whole["energy"][start:stop], last["energy"])


def test_legacy_relations_by_number() -> None:
    """Catches the hits of a cluster taken from another of its numbered relations."""
    with open_source(LEGACY) as source:
        hits = source.references("PandoraClusters", layout.CLUSTER.relations[0], 0, 3)
        assert np.diff(hits.offsets).tolist() == [122, 302, 157]


def test_unknown_detector_lists_the_known() -> None:
    """Catches a typo in --detector that ends in a traceback."""
    with pytest.raises(UnknownNameError, match="clic"):
        find_detector("clik")


def test_a_detector_is_one_entry() -> None:
    """Catches an entry whose barrels and endcaps are not required, so that a file without calorimeters would pass."""
    for name, detector in DETECTORS.items():
        assert detector.name == name
        assert [c for c in detector.calo_hits if c.required] or not detector.calo_hits
        if detector.simulation == "geant4":
            assert len([c for c in detector.calo_hits if c.required]) >= 4


def write_tree(path: Path, name: str, num_entries: int) -> Path:
    with uproot.recreate(path) as file:
        tree = file.mktree(name, {"x": "int32"})
        if num_entries:
            tree.extend({"x": np.zeros(num_entries, np.int32)})
    return path


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.root"
    if kind == "text":
        path.write_text("event,energy\n")
    elif kind == "empty":
        path.touch()
    elif kind == "no_tree":
        write_tree(path, "hits", 3)
    elif kind == "no_events":
        write_tree(path, "events", 0)
    elif kind.startswith("truncated"):
        data = CLD.read_bytes()
        path.write_bytes(data[: len(data) * int(kind.removeprefix("truncated_")) // 100])
    return path


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("missing", "no such file"),
        ("text", "not a ROOT file"),
        ("empty", "0 bytes"),
        ("no_tree", "no 'events' tree"),
        ("no_events", "no events"),
        ("truncated_1", "truncated"),
        ("truncated_50", "truncated"),
        ("truncated_99", "truncated"),
    ],
)
def test_unreadable_files_say_why(kind: str, what: str, tmp_path: Path) -> None:
    """Catches a bad input that raises something else than our error, or does not name its file."""
    path = bad_file(kind, tmp_path)
    with pytest.raises(InputFileError) as caught:
        open_source(path)
    assert what in caught.value.what
    assert caught.value.where == str(path)


def test_damage_in_the_middle_is_noticed(tmp_path: Path) -> None:
    """Catches garbage numbers from a file whose data were overwritten while its directory is whole."""
    path = tmp_path / "cld.root"
    data = bytearray(CLD.read_bytes())
    data[10_000:1_200_000] = bytes(1_190_000)
    path.write_bytes(bytes(data))
    with open_source(path) as source, pytest.raises(InputFileError, match=r"cannot read 'ECALBarrel"):
        source.rows("ECALBarrel", layout.CALO_HIT, 0, 1)


def test_old_rntuple_is_refused() -> None:
    """Catches an RNTuple from before ROOT fixed the format, which cannot be read, ending in a traceback."""

    class OldFile:
        def classnames(self, *, recursive: bool) -> dict[str, str]:
            return {"events;1": reader.OLD_RNTUPLE} if not recursive else {}

    with pytest.raises(InputFileError, match="before version"):
        reader._events_tree(OldFile(), "old.root")


def test_missing_collection_names_the_closest() -> None:
    """Catches an error that does not help to find the right name."""
    with open_source(CLD) as source, pytest.raises(InputFileError) as caught:
        source.rows("SiTrack_Refited", layout.TRACK, 0, 1, why="tracks")
    assert "SiTrack_Refited" in caught.value.what
    assert "SiTracks_Refitted" in str(caught.value.hint)
