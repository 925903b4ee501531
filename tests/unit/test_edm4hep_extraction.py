"""From files to shard rows: the real events, events made by hand with a known truth, and events that are spoiled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pytest
import uproot

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.origin import ORIGINS
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError
from pfscale.shards.events import EventTable, extract_events
from pfscale.shards.manifest import NO_VISIBLE_PARTICLE
from pfscale.shards.schema import CLASSES, COLUMNS, arrow_schema

DATA = Path(__file__).parent.parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
LEGACY = DATA / "clic_photon_gun_3ev_legacy.root"
B_FIELD, RADIUS = 2.0, 2150.0
MAY_BE_NAN = {"dedx", "dedx_error", "radius_of_innermost_hit", "time"}


def extract(path: Path, detector: str, *, with_truth: bool = True) -> EventTable:
    with open_source(path) as source:
        return extract_events(source, find_detector(detector), 0, source.num_entries, with_truth=with_truth)


@pytest.fixture(scope="module")
def cld_event() -> dict[str, Any]:
    return extract(CLD, "cld").table.to_pylist()[0]


def test_cld_counts(cld_event: dict[str, Any]) -> None:
    """Catches lost or doubled elements in a file that full simulation and Pandora wrote."""
    assert [len(cld_event[name]) for name in ("track", "cluster", "baseline")] == [24, 48, 52]
    assert [len(cld_event[f"{name}_target"]) for name in ("track", "cluster")] == [24, 48]


def test_cld_targets_are_plausible(cld_event: dict[str, Any]) -> None:
    """Catches a wrong field, relation or unit: targets of tracks must have the tracks' momenta."""
    ratios = [t["pt"] / e["pt"] for e, t in zip(cld_event["track"], cld_event["track_target"], strict=True) if t["class"]]
    assert len(ratios) == 20
    assert np.median(ratios) == pytest.approx(1.0, abs=0.005)
    response = [
        t["energy"] / e["energy"] for e, t in zip(cld_event["cluster"], cld_event["cluster_target"], strict=True) if t["class"] == 3
    ]
    assert 0.8 < np.median(response) < 1.3
    hits = [sum(c[f"energy_{part}"] for part in ("ecal", "hcal", "other")) for c in cld_event["cluster"]]
    assert sum(hits) == pytest.approx(108.0, rel=0.1)  # 67 + 39 + 2 GeV in hits, nearly all in clusters
    classes = [CLASSES[t["class"]] for t in cld_event["track_target"]]
    assert {name: classes.count(name) for name in set(classes)} == {"none": 4, "211": 18, "11": 1, "13": 1}


def test_cld_jets_are_b(cld_event: dict[str, Any]) -> None:
    """Catches broken ancestry on its way to the flavour labels: this is H -> bb."""
    assert [jet["flavour"] for jet in cld_event["gen_jet"]] == [5, 5]
    jets = {target["jet_idx"] for target in cld_event["track_target"] if target["class"]}
    assert jets <= {-1, 0, 1}
    assert {0, 1} <= jets


def test_cld_origins(cld_event: dict[str, Any]) -> None:
    """Catches origins in the order of all MC particles instead of the visible ones, and roles where there are no tops."""
    origins = Counter(ORIGINS[particle["origin"]] for particle in cld_event["gen_particle"])
    assert origins == {"primary": 11, "B hadron": 15, "D hadron from B": 15}
    muon = next(particle for particle in cld_event["gen_particle"] if abs(particle["pdg"]) == 13)
    assert ORIGINS[muon["origin"]] in ("B hadron", "D hadron from B")
    assert [jet["top_role"] for jet in cld_event["gen_jet"]] == [0, 0]


def test_cld_missing_momentum(cld_event: dict[str, Any]) -> None:
    """Catches the crossing angle or the neutrinos counted wrongly: what is missing is the neutrinos minus the boost."""
    met = cld_event["gen_met"]
    assert met["boost_px"] == pytest.approx(240 * math.sin(0.015), abs=0.05)
    assert met["px"] == pytest.approx(met["neutrino_px"] - met["boost_px"], abs=0.1)
    assert met["py"] == pytest.approx(met["neutrino_py"], abs=0.1)


def test_cld_baseline_indices(cld_event: dict[str, Any]) -> None:
    """Catches candidates that point to the wrong tracks: a charged candidate has its track's momentum."""
    charged = [c for c in cld_event["baseline"] if len(c["track_index"]) == 1]
    assert len(charged) > 10
    for candidate in charged:
        track = cld_event["track"][candidate["track_index"][0]]
        assert math.hypot(candidate["px"], candidate["py"]) == pytest.approx(track["pt"], rel=0.05)


def test_legacy_photons() -> None:
    """Catches links that are lost because they name the particles by another of their names."""
    rows = extract(LEGACY, "clic").table.to_pylist()
    assert [row["cluster_target"][0]["class"] for row in rows] == [3, 3, 3]
    assert [row["cluster_target"][0]["energy"] for row in rows] == pytest.approx([3.74, 9.98, 5.76], abs=0.01)
    assert [row["baseline"][0]["cluster_index"] for row in rows] == [[0], [0], [0]]


@pytest.mark.parametrize(("path", "detector"), [(CLD, "cld"), (LEGACY, "clic")])
def test_tables_keep_the_schema(path: Path, detector: str) -> None:
    """Catches nulls, wrong types, and NaN where the schema knows no missing value."""
    table = extract(path, detector).table
    assert table.schema.equals(arrow_schema())
    table.validate(full=True)
    for column, (is_list, fields) in COLUMNS.items():
        values = table.column(column).combine_chunks()
        assert values.null_count == 0
        values = values.flatten() if is_list else values
        for leaf in fields:
            array = values.field(leaf.name)
            assert array.null_count == 0
            if pa.types.is_floating(array.type) and leaf.name not in MAY_BE_NAN:
                assert np.isfinite(array.to_numpy()).all(), leaf.name


# --- events made by hand -------------------------------------------------------------------------------------------------------------

IDS = {"MCParticles": 11, "SiTracks_Refitted": 12, "PandoraClusters": 13, "ECALBarrel": 14, "HCALBarrel": 15, "PandoraPFOs": 16}
CALO = ("ECALBarrel", "ECALEndcap", "HCALBarrel", "HCALEndcap")
Event = dict[str, dict[str, list]]


def ends(prefix: str, source: list[tuple[str, int]], target: list[int]) -> Event:
    """The two ends of a link collection."""
    return {
        f"_{prefix}_from": {"index": [i for _, i in source], "collectionID": [IDS.get(name, 99) for name, _ in source]},
        f"_{prefix}_to": {"index": target, "collectionID": [IDS["MCParticles"]] * len(target)},
    }


def simple_event() -> Event:
    """A 10 GeV pion with a track and two HCAL hits, and a 5 GeV photon with two ECAL hits, one of which is one quarter the pion's."""
    event: Event = {
        "EventHeader": {"eventNumber": [41], "runNumber": [3], "weight": [1.0]},
        "MCParticles": {
            "PDG": [211, 22],
            "generatorStatus": [1, 1],
            "simulatorStatus": [1 << 24, 1 << 24],
            "charge": [1.0, 0.0],
            "mass": [0.0, 0.0],
            "momentum.x": [10.0, 0.0],
            "momentum.y": [0.0, 5.0],
            "momentum.z": [0.0, 0.0],
            **{f"{kind}_{side}": [0, 0] for kind in ("parents", "daughters") for side in ("begin", "end")},
        },
        **{f"_MCParticles_{kind}": {"index": [], "collectionID": []} for kind in ("parents", "daughters")},
        "SiTracks_Refitted": {"type": [0], "chi2": [5.0], "ndf": [5], "trackStates_begin": [0], "trackStates_end": [2]},
        "_SiTracks_Refitted_trackStates": {
            "location": [2, 1],
            "D0": [9.0, 0.1],
            "phi": [1.0, 0.0],
            "omega": [1.0, 3e-4 * B_FIELD / 10.0],
            "Z0": [9.0, 0.2],
            "tanLambda": [9.0, 0.0],
            "time": [0.0, 0.0],
            "referencePoint.x": [30.0, 0.0],
            "referencePoint.y": [40.0, 0.0],
            "referencePoint.z": [0.0, 0.0],
            "covMatrix.values": [0.0] * 21 + [float(i) for i in range(21)],
        },
        "SiTracks_Refitted_dQdx": {"dQdx.value": [7.0], "dQdx.error": [0.5]},
        "_SiTracks_Refitted_dQdx_track": {"index": [0], "collectionID": [IDS["SiTracks_Refitted"]]},
        "ECALBarrel": {"energy": [3.0, 2.0], "position.x": [0.0, 10.0], "position.y": [RADIUS, RADIUS], "position.z": [0.0, 0.0]},
        "HCALBarrel": {"energy": [4.0, 5.0], "position.x": [2500.0, 2600.0], "position.y": [0.0, 0.0], "position.z": [0.0, 0.0]},
        **{name: {"energy": [], "position.x": [], "position.y": [], "position.z": []} for name in ("ECALEndcap", "HCALEndcap")},
        "PandoraClusters": {
            "type": [0, 0],
            "energy": [9.0, 5.0],
            "position.x": [2550.0, 4.0],
            "position.y": [0.0, RADIUS],
            "position.z": [0.0, 0.0],
            "iTheta": [math.pi / 2, math.pi / 2],
            "hits_begin": [0, 2],
            "hits_end": [2, 4],
        },
        "_PandoraClusters_hits": {
            "index": [0, 1, 0, 1],
            "collectionID": [IDS["HCALBarrel"]] * 2 + [IDS["ECALBarrel"]] * 2,
        },
        "CalohitMCTruthLink": {"weight": [40.0, 50.0, 0.03, 0.015, 0.005]},
        **ends(
            "CalohitMCTruthLink",
            [("HCALBarrel", 0), ("HCALBarrel", 1), ("ECALBarrel", 0), ("ECALBarrel", 1), ("ECALBarrel", 1)],
            [0, 0, 1, 1, 0],
        ),
        "SiTracksMCTruthLink": {"weight": [0.9]},
        **ends("SiTracksMCTruthLink", [("SiTracks_Refitted", 0)], [0]),
    }
    return event


def write_events(path: Path, events: list[Event]) -> Path:
    """A flat EDM4hep file as uproot writes it."""
    content = {}
    for collection, leaves in events[0].items():
        columns = {
            leaf: ak.Array([np.asarray(e[collection][leaf], dtype_of(leaf, values)) for e in events]) for leaf, values in leaves.items()
        }
        if collection.endswith("_trackStates"):  # all numbers of an event in one list: its length differs from the other members'
            content[f"{collection}.covMatrix.values"] = columns.pop("covMatrix.values")
        content[collection] = ak.zip(columns)
    with uproot.recreate(path) as file:
        file.mktree(
            "events",
            {name: array.type.content for name, array in content.items()},
            field_name=lambda outer, inner: f"{outer}.{inner}" if inner else outer,
            counter_name=lambda name: f"n{name}",
        ).extend(content)
        names = file.mktree(
            "podio_metadata", {"events___CollectionTypeInfo.name": "string", "events___CollectionTypeInfo.collectionID": "uint32"}
        )
        identities = np.array(list(IDS.values()), np.uint32)
        names.extend({"events___CollectionTypeInfo.name": ak.Array(list(IDS)), "events___CollectionTypeInfo.collectionID": identities})
    return path


def dtype_of(leaf: str, values: list) -> type:
    is_index = leaf in ("index", "collectionID", "location", "PDG", "type", "ndf") or leaf.endswith(("_begin", "_end", "Status", "Number"))
    return np.int64 if is_index and all(isinstance(v, int) for v in values) else np.float64


def rows_of(tmp_path: Path, *events: Event, with_truth: bool = True) -> EventTable:
    return extract(write_events(tmp_path / "made.root", list(events)), "cld", with_truth=with_truth)


def test_features_of_a_known_event(tmp_path: Path) -> None:
    """Catches wrong states, units, deviations, covariances or relations in the element features."""
    row = rows_of(tmp_path, simple_event()).table.to_pylist()[0]
    track = row["track"][0]
    expected = {"pt": 10.0, "eta": 0.0, "p": 10.0, "d0": 0.1, "z0": 0.2, "dedx": 7.0, "dedx_error": 0.5, "radius_of_innermost_hit": 50.0}
    assert {name: track[name] for name in expected} == pytest.approx(expected)
    assert track["cov"] == [float(i) for i in range(15)]
    charged, photon = row["cluster"]
    assert (charged["energy_hcal"], charged["energy_ecal"], charged["num_hits"]) == (9.0, 0.0, 2)
    mean = (4 * 2500 + 5 * 2600) / 9
    assert charged["sigma_x"] == pytest.approx(math.sqrt((4 * (2500 - mean) ** 2 + 5 * (2600 - mean) ** 2) / 9))
    assert (photon["et"], photon["energy_ecal"], photon["sigma_z"]) == pytest.approx((5.0, 5.0, 0.0))
    assert (row["event"]["run"], row["event"]["number"], row["event"]["entry"]) == (3, 41, 0)


def test_truth_of_a_known_event(tmp_path: Path) -> None:
    """Catches raw link weights taken for energies: their scale differs between the two calorimeters by a thousand."""
    row = rows_of(tmp_path, simple_event()).table.to_pylist()[0]
    pion, photon = row["track_target"][0], row["cluster_target"][1]
    assert (CLASSES[pion["class"]], CLASSES[photon["class"]]) == ("211", "22")
    assert row["cluster_target"][0]["class"] == 0
    assert (pion["gp_to_track"], pion["gp_to_cluster"]) == pytest.approx((0.9, 0.0))
    assert photon["gp_to_cluster"] == pytest.approx(3.0 + 0.75 * 2.0)
    assert [p["owner"] for p in row["gen_particle"]] == [0, 2]
    assert (pion["energy"], photon["energy"], photon["sin_phi"]) == pytest.approx((10.0, 5.0, 1.0))


def test_unmatched_particle_goes_to_the_owner_of_its_cluster(tmp_path: Path) -> None:
    """Catches energy that disappears where two particles share one cluster, and particle numbers off by one in later events."""
    event = simple_event()
    particles = event["MCParticles"]
    for name, value in {"PDG": 22, "generatorStatus": 1, "simulatorStatus": 1 << 24, "charge": 0.0, "mass": 0.0}.items():
        particles[name].append(value)
    for name, value in {"momentum.x": 0.0, "momentum.y": 2.0, "momentum.z": 0.0}.items():
        particles[name].append(value)
    for name in ("parents_begin", "parents_end", "daughters_begin", "daughters_end"):
        particles[name].append(0)
    event["_CalohitMCTruthLink_to"]["index"] = [0, 0, 1, 1, 2]  # the second photon has a quarter of the second hit only
    result = rows_of(tmp_path, simple_event(), event)
    row = result.table.to_pylist()[1]
    assert row["cluster_target"][1]["energy"] == pytest.approx(7.0)
    assert row["cluster_target"][1]["particle_number"] == 1
    assert [p["owner"] for p in row["gen_particle"]] == [0, 2, 2]
    assert result.energy_visible == pytest.approx(result.energy_targets + result.energy_dropped) == pytest.approx(32.0)


def test_no_truth_needed_without_truth(tmp_path: Path) -> None:
    """Catches reconstruction that reads MC collections, and features that depend on them."""
    full = simple_event()
    blind = {name: leaves for name, leaves in full.items() if "MC" not in name}
    seen = rows_of(tmp_path, blind, with_truth=False)
    assert seen.table.column_names == ["event", "track", "cluster", "baseline"]
    expected = rows_of(tmp_path, full).table.select(["track", "cluster"])
    assert seen.table.select(["track", "cluster"]).equals(expected)
    with pytest.raises(InputFileError, match="MCParticles"):
        rows_of(tmp_path, blind)


def unlink(event: Event) -> None:
    """Takes away everything that connects particles with the detector."""
    event["CalohitMCTruthLink"]["weight"] = [0.0] * 5
    event["SiTracksMCTruthLink"]["weight"] = [0.0]


SPOILS: dict[str, Callable[[Event], None]] = {
    "state index": lambda e: e["SiTracks_Refitted"].update(trackStates_end=[9]),
    "hit index": lambda e: e["_PandoraClusters_hits"].update(index=[0, 1, 0, 7]),
    "unknown hit collection": lambda e: e["_PandoraClusters_hits"].update(collectionID=[77, 77, 77, 77]),
    "cluster range": lambda e: e["PandoraClusters"].update(hits_end=[2, 9]),
    "energy": lambda e: e["PandoraClusters"].update(energy=[float("nan"), 5.0]),
    "curvature": lambda e: e["_SiTracks_Refitted_trackStates"].update(omega=[1.0, 0.0]),
    "particle": lambda e: e["MCParticles"].update({"momentum.x": [float("inf"), 0.0]}),
    "link weight": lambda e: e["SiTracksMCTruthLink"].update(weight=[float("nan")]),
    "link target": lambda e: e["_SiTracksMCTruthLink_to"].update(index=[5]),
    "nothing visible": unlink,
}


@pytest.mark.parametrize("spoil", list(SPOILS))
def test_a_spoiled_event_is_left_out_alone(spoil: str, tmp_path: Path) -> None:
    """Catches one bad event that stops the file, changes its neighbours, or gets in with NaN."""
    bad = simple_event()
    SPOILS[spoil](bad)
    result = rows_of(tmp_path, simple_event(), bad, simple_event())
    clean = rows_of(tmp_path, simple_event(), simple_event(), simple_event())
    assert [dropped.entry for dropped in result.dropped] == [1]
    assert (result.dropped[0].reason == NO_VISIBLE_PARTICLE) == (spoil == "nothing visible")
    assert result.table.equals(clean.table.take(pa.array([0, 2])))


def test_reconstruction_has_a_row_for_every_entry(tmp_path: Path) -> None:
    """Catches rows that move up where an event cannot be used: reconstructed events would get their neighbour's number."""
    bad = simple_event()
    SPOILS["energy"](bad)
    result = rows_of(tmp_path, simple_event(), bad, simple_event(), with_truth=False)
    result.table.validate(full=True)
    assert result.table.column("event").combine_chunks().field("entry").to_pylist() == [0, 1, 2]
    assert [len(row) for row in result.table.column("cluster").to_pylist()] == [2, 0, 2]
    assert [len(row) for row in result.table.column("track").to_pylist()] == [1, 0, 1]


def test_missing_calorimeter_is_an_error(tmp_path: Path) -> None:
    """Catches clusters without hits that are taken for empty, where the file just lacks the collection."""
    event = {name: leaves for name, leaves in simple_event().items() if name != "HCALBarrel"}
    with pytest.raises(InputFileError, match="HCALBarrel"):
        rows_of(tmp_path, event)


def test_missing_track_link_is_an_error_where_there_are_tracks(tmp_path: Path) -> None:
    """Catches tracks that silently carry nothing because their truth is not in the file."""
    event = {name: leaves for name, leaves in simple_event().items() if "SiTracksMCTruthLink" not in name}
    with pytest.raises(InputFileError, match="SiTracksMCTruthLink"):
        rows_of(tmp_path, event)


def test_readme_shows_the_schema_s_columns() -> None:
    """Catches documentation of the shard format that has fallen behind the schema."""
    text = (Path(__file__).parents[2] / "platform" / "pfscale" / "shards" / "README.md").read_text()
    for column, (_, fields) in COLUMNS.items():
        assert f"### `{column}`" in text
        for leaf in fields:
            assert f"| `{leaf.name}` | {leaf.dtype} | {leaf.unit} |" in text


def test_file_of_another_detector_is_refused() -> None:
    """Catches momenta that are wrong by a factor of two throughout because CLD's file was read with CLIC's field."""
    with pytest.raises(InputFileError, match="4 T of 'clic'") as caught:
        extract(CLD, "clic")
    assert "--detector" in str(caught.value.hint)


def test_energy_loss_of_nothing_is_missing(cld_event: dict[str, Any]) -> None:
    """Catches 0 +- 0 taken for a measurement: its logarithm is far from that of every measured one."""
    assert all(math.isnan(track["dedx"]) and math.isnan(track["dedx_error"]) for track in cld_event["track"])
