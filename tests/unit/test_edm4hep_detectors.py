"""Detectors as data: a real file of fast simulation of IDEA, and a detector that is new."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import podio_files as podio
from pfscale.edm4hep.detectors import DETECTORS, SILICON_TRACKER, CaloCollection, ClusterCollection, Detector, Subdetector, find_detector
from pfscale.edm4hep.origin import ORIGINS
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError
from pfscale.shards.events import EventTable, extract_events
from pfscale.shards.schema import CLASSES, COLUMNS, arrow_schema

DATA = Path(__file__).parent.parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
IDEA = DATA / "idea_delphes_ww_240_10ev_no_metadata.root"
Rows = list[dict[str, Any]]


def extract(path: Path, detector: Detector, *, with_truth: bool = True) -> EventTable:
    with open_source(path) as source:
        return extract_events(source, detector, 0, source.num_entries, with_truth=with_truth)


# --- a real file of fast simulation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idea() -> EventTable:
    return extract(IDEA, find_detector("idea"))


@pytest.fixture(scope="module")
def events(idea: EventTable) -> Rows:
    return idea.table.to_pylist()


def carried(events: Rows, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(element, target) of all elements that carry a particle."""
    return [(e, t) for row in events for e, t in zip(row[name], row[f"{name}_target"], strict=True) if t["class"]]


def test_delphes_counts_and_classes(events: Rows) -> None:
    """Catches elements or links lost between several cluster collections: Delphes lost no particle of what it reconstructed."""
    assert [len(row["track"]) for row in events] == [9, 12, 32, 32, 16, 37, 52, 33, 20, 44]
    assert [len(row["cluster"]) for row in events] == [11, 19, 33, 36, 28, 50, 43, 56, 19, 38]
    classes = {name: Counter(CLASSES[t["class"]] for row in events for t in row[f"{name}_target"]) for name in ("track", "cluster")}
    assert classes["track"] == {"211": 277, "11": 5, "13": 5}
    assert classes["cluster"] == {"22": 293, "130": 39, "none": 1}


def test_delphes_momenta(events: Rows) -> None:
    """Catches a wrong field, a link to the wrong particle, or clusters placed where they are not."""
    tracks = [t["pt"] / e["pt"] for e, t in carried(events, "track")]
    clusters = [t["energy"] / e["energy"] for e, t in carried(events, "cluster")]
    assert np.median(tracks) == pytest.approx(1.0, abs=0.002)
    assert np.median(clusters) == pytest.approx(1.0, abs=0.01)
    distance = [abs(t["eta"] - e["eta"]) for e, t in carried(events, "cluster")]
    assert np.median(distance) < 0.02


def test_delphes_clusters_have_places_and_parts(events: Rows) -> None:
    """Catches clusters at (0, 0, 0), and the photon's energy counted as hadronic."""
    for row in events:
        for cluster in row["cluster"]:
            radius = math.hypot(cluster["position_x"], cluster["position_y"])
            assert radius == pytest.approx(2250, abs=1) or abs(cluster["position_z"]) == pytest.approx(2500, abs=1)
            assert cluster["itheta"] == pytest.approx(math.atan2(radius, cluster["position_z"]), abs=1e-5)
            assert (cluster["energy_ecal"], cluster["energy_hcal"]) in ((cluster["energy"], 0.0), (0.0, cluster["energy"]))
            assert cluster["num_hits"] == 1
    hadronic = [e["energy_hcal"] > 0 for e, t in carried(events, "cluster") if CLASSES[t["class"]] == "130"]
    assert all(hadronic)


def test_delphes_baseline_is_whole(events: Rows) -> None:
    """Catches a baseline without its charged candidates, which carry no PDG code in these files."""
    codes = Counter(abs(c["pdg"]) for row in events for c in row["baseline"])
    assert codes == {211: 280, 22: 293, 130: 40, 11: 3, 13: 4}
    for row in events:
        energy = sum(particle["energy"] for particle in row["gen_particle"])
        assert sum(c["energy"] for c in row["baseline"]) == pytest.approx(energy, rel=0.05)
        for candidate in row["baseline"]:
            assert len(candidate["track_index"]) + len(candidate["cluster_index"]) == 1
            assert (candidate["charge"] != 0) == bool(candidate["track_index"])
            assert candidate["pdg"] * candidate["charge"] * (1 if abs(candidate["pdg"]) == 211 else -1) >= 0
            if candidate["track_index"]:
                track = row["track"][candidate["track_index"][0]]
                assert math.hypot(candidate["px"], candidate["py"]) == pytest.approx(track["pt"], rel=0.05)
            else:
                cluster = row["cluster"][candidate["cluster_index"][0]]
                assert candidate["energy"] == pytest.approx(cluster["energy"])
                assert math.atan2(candidate["py"], candidate["px"]) == pytest.approx(
                    math.atan2(cluster["sin_phi"], cluster["cos_phi"]), abs=0.01
                )


def test_delphes_generator_level(idea: EventTable, events: Rows) -> None:
    """Catches labels that take Pythia's statuses for those of full simulation, and energy that is not accounted for."""
    assert idea.energy_visible == pytest.approx(idea.energy_targets + idea.energy_dropped, rel=1e-9)
    assert idea.energy_dropped == 0
    flavours = Counter(jet["flavour"] for row in events for jet in row["gen_jet"])
    assert 5 not in flavours  # W decays
    assert {4, 3, 2, 1} <= set(flavours)
    assert {jet["top_role"] for row in events for jet in row["gen_jet"]} == {0}
    origins = Counter(ORIGINS[particle["origin"]] for row in events for particle in row["gen_particle"])
    assert origins == {"primary": 512, "D hadron": 53, "tau": 2, "other secondary": 57}
    for row in events:
        assert row["gen_met"]["boost_px"] == pytest.approx(0.0, abs=1e-4)  # generated without crossing angle
        assert row["gen_met"]["px"] == pytest.approx(row["gen_met"]["neutrino_px"], abs=0.01)
        assert sum(c["px"] for c in row["baseline"]) == pytest.approx(-row["gen_met"]["px"], abs=3.0)


def test_delphes_rows_keep_the_schema(idea: EventTable) -> None:
    """Catches NaN in features that a model trained on full simulation takes for measured."""
    idea.table.validate(full=True)
    assert idea.table.schema.equals(arrow_schema())
    missing = {"dedx", "dedx_error", "radius_of_innermost_hit"}
    for column, (is_list, fields) in COLUMNS.items():
        values = idea.table.column(column).combine_chunks()
        values = values.flatten() if is_list else values
        for leaf in fields:
            array = values.field(leaf.name)
            if pa.types.is_floating(array.type):
                assert np.isfinite(array.to_numpy()).all() == (leaf.name not in missing), leaf.name


# --- a detector that is new -----------------------------------------------------------------------------------------------------------

ALLEGRO = Detector(
    name="allegro",
    magnetic_field=2.0,
    crossing_angle=0.030,
    calo_hits=(
        *[CaloCollection(f"ECal{place}Positioned", Subdetector.ECAL, required=True) for place in ("Barrel", "Endcap")],
        *[CaloCollection(f"HCal{place}Positioned", Subdetector.HCAL, required=True) for place in ("Barrel", "Endcap")],
        *[CaloCollection("HCalForward", Subdetector.HCAL), CaloCollection("MuonTagger", Subdetector.OTHER)],
    ),
    tracker_chains=SILICON_TRACKER,
    particles="GenParticles",
    tracks="FittedTracks",
    dqdx="FittedTracks_dQdx",
    clusters=(ClusterCollection("TopoClusters"),),
    calo_link="CaloHitMCParticleLinks",
    track_link="TrackMCParticleLinks",
    baseline=("PandoraParticles",),
)
CALLED_IN_CLD = {
    "MCParticles": "GenParticles",
    "SiTracks_Refitted": "FittedTracks",
    "SiTracks_Refitted_dQdx": "FittedTracks_dQdx",
    "PandoraClusters": "TopoClusters",
    "PandoraPFOs": "PandoraParticles",
    "CalohitMCTruthLink": "CaloHitMCParticleLinks",
    "SiTracksMCTruthLink": "TrackMCParticleLinks",
    **{f"{part}CAL{place}": f"{part}Cal{place}Positioned" for part in "EH" for place in ("Barrel", "Endcap")},
    "HCALOther": "HCalForward",
    "MUON": "MuonTagger",
}


def test_a_new_detector_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a name of a collection that is fixed anywhere but in the table: a renamed event must give the very same row."""
    monkeypatch.setitem(DETECTORS, "allegro", ALLEGRO)
    kept = [name for chain in SILICON_TRACKER for name in (chain.hits, chain.relation, chain.sim_hits)]
    leaves = podio.read_leaves(CLD, ["EventHeader", *CALLED_IN_CLD, *kept])
    names = dict(CALLED_IN_CLD)
    for leaf in leaves:
        head = leaf.partition(".")[0]
        owner, _, member = head[1:].rpartition("_")
        if head.startswith("_") and owner in CALLED_IN_CLD:
            names[head] = f"_{CALLED_IN_CLD[owner]}_{member}"
    ids = {CALLED_IN_CLD.get(name, name): identity for name, identity in podio.ids_of(CLD).items()}
    path = podio.write(tmp_path / "allegro.root", podio.renamed(leaves, names), ids, generation="podio-1.7")
    found, expected = extract(path, find_detector("allegro")).table, extract(CLD, find_detector("cld")).table
    assert found.schema.equals(arrow_schema())
    for name in found.column_names:
        if name != "event":
            assert str(found.column(name).to_pylist()) == str(expected.column(name).to_pylist()), name
    with open_source(path) as source:
        assert source.has_truth
        with pytest.raises(InputFileError) as caught:
            extract_events(source, find_detector("clic"), 0, 1, with_truth=True)
    assert "allegro" in str(caught.value.hint)
