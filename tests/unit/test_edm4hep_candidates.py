"""Truth of fast simulation, where candidates are linked to the particles that made them: events made by hand, and random links."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pytest

import podio_files as podio
from pfscale.edm4hep.chunk import read_chunk, read_particles
from pfscale.edm4hep.deposits import read_deposits
from pfscale.edm4hep.detectors import ClusterCollection, Detector, Subdetector, find_detector
from pfscale.edm4hep.layout import collection_id
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError
from pfscale.shards.events import EventTable, extract_events
from pfscale.shards.schema import CLASSES

Event = dict[str, dict[str, list]]


def extract(path: Path, detector: Detector, *, with_truth: bool = True) -> EventTable:
    with open_source(path) as source:
        return extract_events(source, detector, 0, source.num_entries, with_truth=with_truth)


def made_event() -> Event:
    """pi+, e-, two photons of a pi0 in one tower, a K_L, a photon that nothing saw and a neutrino."""
    momenta = [(10.0, 0.0), (0.0, 4.0), (6.0, 0.0), (2.0, 0.0), (0.0, -8.0), (0.0, 1.0), (0.0, 5.0), (8.0, 0.0)]
    return {
        "EventHeader": {"eventNumber": [5], "runNumber": [1], "weight": [1.0]},
        "Particle": {
            "PDG": [211, 11, 22, 22, 130, 22, 12, 111],
            "generatorStatus": [1, 1, 1, 1, 1, 1, 1, 2],
            "simulatorStatus": [0] * 8,
            "charge": [1.0, -1.0, *[0.0] * 6],
            "mass": [0.0] * 8,
            "momentum.x": [x for x, _ in momenta],
            "momentum.y": [y for _, y in momenta],
            "momentum.z": [0.0] * 8,
            "parents_begin": [0, 0, 0, 1, 2, 2, 2, 2],
            "parents_end": [0, 0, 1, 2, 2, 2, 2, 2],
            "daughters_begin": [0] * 8,
            "daughters_end": [*[0] * 7, 2],
        },
        "_Particle_parents": references("Particle", 7, 7),
        "_Particle_daughters": references("Particle", 2, 3),
        "EFlowTrack": {"chi2": [0.0, 0.0], "ndf": [0, 0], "trackStates_begin": [0, 1], "trackStates_end": [1, 2]},
        "_EFlowTrack_trackStates": {
            "location": [0, 0],
            "D0": [0.0, 0.0],
            "phi": [0.0, math.pi / 2],
            "omega": [3e-4 * 2.0 / 10.0, -3e-4 * 2.0 / 4.0],
            "Z0": [0.0, 0.0],
            "tanLambda": [0.0, 0.0],
            "time": [0.0, 0.0],
            **{f"referencePoint.{axis}": [0.0, 0.0] for axis in "xyz"},
            "covMatrix.values": [[0.0] * 21, [1.0] * 21],
        },
        "CalorimeterHits": {
            "energy": [0.0, 0.0, 0.0],
            "position.x": [2250.0, 0.0, 30.0],
            "position.y": [0.0, -2240.0, -2260.0],
            "position.z": [0.0, 0.0, 0.0],
        },
        "EFlowPhoton": towers([8.2], [1]),
        "_EFlowPhoton_hits": references("CalorimeterHits", 0),
        "EFlowNeutralHadron": towers([9.0], [2]),
        "_EFlowNeutralHadron_hits": references("CalorimeterHits", 1, 2),
        "ReconstructedParticles": {
            "PDG": [0, 0, 22, 130],
            "charge": [1.0, -1.0, 0.0, 0.0],
            "energy": [10.0, 4.0, 8.2, 9.0],
            "momentum.x": [10.0, 0.0, 8.2, 0.0],
            "momentum.y": [0.0, 4.0, 0.0, -9.0],
            "momentum.z": [0.0] * 4,
            "tracks_begin": [0, 1, 2, 2],
            "tracks_end": [1, 2, 2, 2],
            "clusters_begin": [0, 0, 0, 1],
            "clusters_end": [0, 0, 1, 2],
        },
        "_ReconstructedParticles_tracks": references("EFlowTrack", 0, 1),
        "_ReconstructedParticles_clusters": {
            "index": [0, 0],
            "collectionID": [collection_id("EFlowPhoton"), collection_id("EFlowNeutralHadron")],
        },
        "Electron_objIdx": references("ReconstructedParticles", 1),
        "MCRecoAssociations": {"weight": [0.0] * 5},
        "_MCRecoAssociations_from": references("ReconstructedParticles", 0, 1, 2, 2, 3),
        "_MCRecoAssociations_to": references("Particle", 0, 1, 2, 3, 4),
    }


def references(collection: str, *index: int) -> dict[str, list]:
    return {"index": list(index), "collectionID": [collection_id(collection)] * len(index)}


def towers(energy: list[float], num_hits: list[int]) -> dict[str, list]:
    ends = np.cumsum(num_hits).tolist()
    nowhere = {name: [0.0] * len(energy) for name in ("position.x", "position.y", "position.z", "iTheta")}
    return {"energy": energy, **nowhere, "hits_begin": [end - num for end, num in zip(ends, num_hits, strict=True)], "hits_end": ends}


def write_events(path: Path, made: list[Event]) -> Path:
    """A file without metadata, as Delphes' converter left the real one."""
    leaves: podio.Leaves = {}
    for collection, members in made[0].items():
        for member, first in members.items():
            is_number = any(isinstance(value, float | list) for event in made for value in event[collection][member])
            is_number |= not first and not member.endswith(("index", "collectionID", "_begin", "_end"))
            dtype = np.float64 if is_number else np.int64
            width = (21,) if member == "covMatrix.values" else ()
            arrays = [np.asarray(event[collection][member], dtype).reshape(-1, *width) for event in made]
            flat = np.concatenate(arrays)
            leaves[f"{collection}.{member}"] = ak.unflatten(ak.from_numpy(flat, regulararray=True), [len(a) for a in arrays])
    return podio.write(path, leaves, {}, generation="no-metadata")


def row_of(tmp_path: Path, event: Event) -> dict[str, Any]:
    return extract(write_events(tmp_path / "made.root", [event]), find_detector("idea")).table.to_pylist()[0]


def test_truth_of_candidates_that_are_known(tmp_path: Path) -> None:
    """Catches truth points 1 to 9 done otherwise than for hits: shares, visibility, assignment, merging, classes, candidates."""
    row = row_of(tmp_path, made_event())
    assert [(CLASSES[t["class"]], t["energy"], t["gp_to_track"]) for t in row["track_target"]] == [("211", 10.0, 1.0), ("11", 4.0, 1.0)]
    photon, hadron = row["cluster_target"]
    # the tower is shared by its two photons' energies; the second has no element of its own and is merged into the first
    assert (CLASSES[photon["class"]], photon["energy"], photon["gp_to_cluster"]) == ("22", 8.0, pytest.approx(6.15))
    assert (CLASSES[hadron["class"]], hadron["energy"], hadron["gp_to_cluster"]) == ("130", 8.0, pytest.approx(9.0))
    assert [(p["pdg"], p["owner"]) for p in row["gen_particle"]] == [(211, 0), (11, 1), (22, 2), (22, 2), (130, 3)]
    assert (row["gen_met"]["px"], row["gen_met"]["py"]) == pytest.approx((-18.0, 3.0))  # the unseen photon counts, the pi0 does not
    assert [(c["pdg"], c["track_index"], c["cluster_index"]) for c in row["baseline"]] == [
        (211, [0], []),
        (11, [1], []),
        (22, [], [0]),
        (130, [], [1]),
    ]


def test_features_of_towers(tmp_path: Path) -> None:
    """Catches towers that stay at the origin, and their energy that no sub-detector has."""
    photon, hadron = row_of(tmp_path, made_event())["cluster"]
    assert (photon["position_x"], photon["energy_ecal"], photon["energy_hcal"], photon["num_hits"]) == pytest.approx((2250.0, 8.2, 0.0, 1))
    assert (hadron["position_x"], hadron["position_y"], hadron["energy_hcal"]) == pytest.approx((15.0, -2250.0, 9.0))
    assert photon["itheta"] == hadron["itheta"] == pytest.approx(math.pi / 2)


def test_weights_of_links_share_a_tower(tmp_path: Path) -> None:
    """Catches equal shares where the converter did set weights, and a track given to a particle that is hardly in it."""
    event = made_event()
    event["MCRecoAssociations"]["weight"] = [0.9, 0.15, 1.0, 3.0, 0.5]
    row = row_of(tmp_path, event)
    photon, _ = row["cluster_target"]
    assert photon["gp_to_cluster"] == pytest.approx(8.2 / 4)
    assert row["track_target"][0]["gp_to_track"] == pytest.approx(0.9)
    assert row["track_target"][1]["class"] == 0  # 0.15 of a track is too little, and an electron leaves no tower of its own here
    assert 11 not in {p["pdg"] for p in row["gen_particle"]}


def test_unidentified_candidates_follow_their_charge(tmp_path: Path) -> None:
    """Catches positrons called electrons, and candidates with a code of their own that is overwritten."""
    event = made_event()
    event["ReconstructedParticles"] |= {"charge": [-1.0, 1.0, 0.0, 0.0], "PDG": [0, 0, 22, 2112]}
    assert [c["pdg"] for c in row_of(tmp_path, event)["baseline"]] == [-211, -11, 22, 2112]


def test_clusters_of_several_collections_keep_to_their_event(tmp_path: Path) -> None:
    """Catches clusters that slip into a neighbouring event where one of the collections is empty."""
    only_hadrons, only_photons = made_event(), made_event()
    only_hadrons["EFlowPhoton"], only_hadrons["_EFlowPhoton_hits"] = towers([], []), references("CalorimeterHits")
    only_hadrons["EFlowNeutralHadron"] = towers([9.0, 8.2], [2, 1])
    only_hadrons["_EFlowNeutralHadron_hits"] = references("CalorimeterHits", 1, 2, 0)
    hadron = collection_id("EFlowNeutralHadron")
    only_hadrons["_ReconstructedParticles_clusters"] = {"index": [1, 0], "collectionID": [hadron, hadron]}
    only_photons["EFlowNeutralHadron"], only_photons["_EFlowNeutralHadron_hits"] = towers([], []), references("CalorimeterHits")
    only_photons["EFlowPhoton"] = towers([9.0, 8.2], [2, 1])
    only_photons["_EFlowPhoton_hits"] = references("CalorimeterHits", 1, 2, 0)
    photon = collection_id("EFlowPhoton")
    only_photons["_ReconstructedParticles_clusters"] = {"index": [1, 0], "collectionID": [photon, photon]}
    made = [only_hadrons, made_event(), only_photons, made_event()]
    rows = extract(write_events(tmp_path / "made.root", made), find_detector("idea")).table.to_pylist()
    for row, order in zip(rows, ([1, 0], [0, 1], [1, 0], [0, 1]), strict=True):
        clusters, targets = [row["cluster"][i] for i in order], [row["cluster_target"][i] for i in order]
        assert [c["energy"] for c in clusters] == pytest.approx([8.2, 9.0])
        assert [c["position_x"] for c in clusters] == pytest.approx([2250.0, 15.0])
        assert [(CLASSES[t["class"]], t["energy"]) for t in targets] == [("22", 8.0), ("130", 8.0)]
    parts = [[c["energy_ecal"] > 0 for c in row["cluster"]] for row in rows]
    assert parts == [[False, False], [True, False], [True, True], [True, False]]


def test_deposits_are_those_of_a_slow_loop(tmp_path: Path) -> None:
    """Catches shares of random links, candidates and elements that mix: several tracks and clusters each, weights set or not."""
    rng = np.random.default_rng(3)
    made = [random_links(rng) for _ in range(40)]
    detector = find_detector("idea")
    with open_source(write_events(tmp_path / "made.root", made)) as source:
        chunk = read_chunk(source, detector, 0, len(made))
        particles = read_particles(chunk)
        offsets = np.searchsorted(particles.event, np.arange(len(made) + 1))
        deposits = read_deposits(chunk, offsets, particles.energy)
    num_photons = [len(event["EFlowPhoton"]["energy"]) for event in made]
    shares: dict[tuple[int, int], float] = {}
    tracks: list[tuple[int, int, float]] = []
    for number, event in enumerate(made):
        first_cluster, first_track = chunk.clusters.offsets[number], chunk.tracks.offsets[number]
        for kind, shift in (("EFlowPhoton", 0), ("EFlowNeutralHadron", num_photons[number])):
            for cluster, energy in enumerate(event[kind]["energy"]):
                for particle, share in slow_shares(event, "clusters", kind, cluster, normalised=True):
                    key = (int(offsets[number]) + particle, int(first_cluster) + shift + cluster)
                    shares[key] = shares.get(key, 0.0) + energy * share
        for track in range(len(event["EFlowTrack"]["chi2"])):
            for particle, weight in slow_shares(event, "tracks", "EFlowTrack", track, normalised=False):
                tracks.append((int(offsets[number]) + particle, int(first_track) + track, weight))
    found: dict[tuple[int, int], float] = {}
    for particle, energy, cluster in zip(deposits.hit_particle, deposits.hit_energy, deposits.hit_cluster, strict=True):
        found[int(particle), int(cluster)] = found.get((int(particle), int(cluster)), 0.0) + float(energy)
    assert found == pytest.approx(shares)
    links = sorted(zip(deposits.link_particle.tolist(), deposits.link_track.tolist(), deposits.link_weight.tolist(), strict=True))
    np.testing.assert_allclose(links, sorted(tracks))


def test_a_hard_photon_among_soft_ones_keeps_its_tower(tmp_path: Path) -> None:
    """Catches a particle that is lost because many soft ones, linked without weights, get as much of its tower."""
    event = made_event()
    soft = [2] * 12
    event["MCRecoAssociations"]["weight"] = [0.0] * (3 + len(soft) + 1)
    event["_MCRecoAssociations_from"] = references("ReconstructedParticles", 0, 1, 2, *[2] * len(soft), 3)
    event["_MCRecoAssociations_to"] = references("Particle", 0, 1, 2, *[5] * len(soft), 4)
    event["Particle"]["momentum.y"][5] = 0.1
    photon, _ = row_of(tmp_path, event)["cluster_target"]
    assert photon["gp_to_cluster"] == pytest.approx(8.2 * 6 / (6 + 1.2))


def test_features_do_not_depend_on_the_events_around(tmp_path: Path) -> None:
    """Catches sums over the hits of clusters of several collections that take the hits of other clusters."""
    rng = np.random.default_rng(7)
    made = [random_links(rng) for _ in range(25)]
    for event in made:
        event["CalorimeterHits"]["energy"] = rng.uniform(0.1, 5.0, 3).tolist()
        for part in ("EFlowPhoton", "EFlowNeutralHadron"):
            number = len(event[part]["energy"])
            event[part] = towers(event[part]["energy"], rng.integers(1, 4, number).tolist())
            event[f"_{part}_hits"] = references("CalorimeterHits", *rng.integers(0, 3, max(event[part]["hits_end"], default=0)).tolist())
    detector = find_detector("idea")
    together = extract(write_events(tmp_path / "all.root", made), detector, with_truth=False).table.to_pylist()
    for number, event in enumerate(made):
        (alone,) = extract(write_events(tmp_path / f"{number}.root", [event]), detector, with_truth=False).table.to_pylist()
        assert alone["cluster"] == together[number]["cluster"]
        ends = {part: [0, *event[part]["hits_end"]] for part in ("EFlowPhoton", "EFlowNeutralHadron")}
        deposits = event["CalorimeterHits"]["energy"]
        sums = [
            sum(deposits[hit] for hit in event[f"_{part}_hits"]["index"][begin:end])
            for part, bounds in ends.items()
            for begin, end in itertools.pairwise(bounds)
        ]
        assert [cluster["energy_other"] for cluster in alone["cluster"]] == pytest.approx(sums)


def slow_shares(event: Event, relation: str, collection: str, element: int, *, normalised: bool) -> list[tuple[int, float]]:
    """(particle, share) of every link to a candidate that has the element."""
    found = []
    candidates, target = event["ReconstructedParticles"], event[f"_ReconstructedParticles_{relation}"]
    pairs = zip(
        event["_MCRecoAssociations_from"]["index"],
        event["_MCRecoAssociations_to"]["index"],
        event["MCRecoAssociations"]["weight"],
        strict=True,
    )
    for candidate, particle, weight in pairs:
        for place in range(candidates[f"{relation}_begin"][candidate], candidates[f"{relation}_end"][candidate]):
            if target["index"][place] == element and target["collectionID"][place] == collection_id(collection):
                found.append((particle, weight))
    total = sum(weight for _, weight in found)
    if total == 0 and relation == "tracks":
        return [(particle, 1 / len(found)) for particle, _ in found]
    if total == 0:
        momenta = event["Particle"]
        found = [(p, math.hypot(momenta["momentum.x"][p], momenta["momentum.y"][p])) for p, _ in found]
        total = sum(energy for _, energy in found)
    return [(particle, weight / total) for particle, weight in found] if normalised else found


def random_links(rng: np.random.Generator) -> Event:
    """The particles, tracks and hits of `made_event`, with towers, candidates and links at random."""
    event = made_event()
    photons, hadrons, candidates = (int(rng.integers(0, 4)) for _ in range(3))
    event["EFlowPhoton"] = towers(rng.uniform(1, 9, photons).tolist(), [1] * photons)
    event["_EFlowPhoton_hits"] = references("CalorimeterHits", *rng.integers(0, 3, photons).tolist())
    event["EFlowNeutralHadron"] = towers(rng.uniform(1, 9, hadrons).tolist(), [1] * hadrons)
    event["_EFlowNeutralHadron_hits"] = references("CalorimeterHits", *rng.integers(0, 3, hadrons).tolist())
    all_clusters = [("EFlowPhoton", i) for i in range(photons)] + [("EFlowNeutralHadron", i) for i in range(hadrons)]
    counts = {"tracks": rng.integers(0, 3, candidates), "clusters": rng.integers(0, 3 if all_clusters else 1, candidates)}
    members: dict[str, list] = {}
    for relation, count in counts.items():
        ends = np.cumsum(count).tolist()
        members |= {f"{relation}_begin": (np.cumsum(count) - count).tolist(), f"{relation}_end": ends}
    numbers = {name: [1.0] * candidates for name in ("charge", "energy", "momentum.z")}
    numbers |= {f"momentum.{axis}": rng.uniform(1, 9, candidates).tolist() for axis in "xy"}  # not all off alike, as in another field
    event["ReconstructedParticles"] = {"PDG": [22] * candidates, **numbers, **members}
    event["_ReconstructedParticles_tracks"] = references("EFlowTrack", *rng.integers(0, 2, counts["tracks"].sum()).tolist())
    chosen = [all_clusters[i] for i in rng.integers(0, max(len(all_clusters), 1), counts["clusters"].sum())]
    event["_ReconstructedParticles_clusters"] = {
        "index": [i for _, i in chosen],
        "collectionID": [collection_id(name) for name, _ in chosen],
    }
    event["Electron_objIdx"] = references("ReconstructedParticles")
    num_links = int(rng.integers(0, 7)) if candidates else 0
    event["MCRecoAssociations"] = {"weight": rng.choice([0.0, 0.0, 0.5, 2.0], num_links).tolist()}
    event["_MCRecoAssociations_from"] = references("ReconstructedParticles", *rng.integers(0, max(candidates, 1), num_links).tolist())
    event["_MCRecoAssociations_to"] = references("Particle", *rng.integers(0, 8, num_links).tolist())
    return event


SPOILS = {
    "link to a particle": lambda e: e["_MCRecoAssociations_to"].update(index=[0, 1, 2, 3, 44]),
    "link from a candidate": lambda e: e["_MCRecoAssociations_from"].update(index=[0, 1, 2, 2, 9]),
    "weight": lambda e: e["MCRecoAssociations"].update(weight=[0.0, 0.0, math.nan, 0.0, 0.0]),
    "cluster of a candidate": lambda e: e["_ReconstructedParticles_clusters"].update(index=[0, 5]),
    "hit of a tower": lambda e: e["_EFlowNeutralHadron_hits"].update(index=[1, 8]),
    "identified candidate": lambda e: e["Electron_objIdx"].update(index=[6]),
    "tower": lambda e: e["EFlowPhoton"].update(energy=[math.inf]),
}


@pytest.mark.parametrize("spoil", list(SPOILS))
def test_a_spoiled_event_of_fast_simulation_is_left_out_alone(spoil: str, tmp_path: Path) -> None:
    """Catches one bad reference that stops the file or changes the events beside it."""
    bad = made_event()
    SPOILS[spoil](bad)
    result = extract(write_events(tmp_path / "spoiled.root", [made_event(), bad, made_event()]), find_detector("idea"))
    clean = extract(write_events(tmp_path / "clean.root", [made_event()] * 3), find_detector("idea"))
    assert [dropped.entry for dropped in result.dropped] == [1]
    columns = [name for name in clean.table.column_names if name != "event"]
    # text, because what is missing is NaN, which equals nothing
    assert str(result.table.select(columns).to_pylist()) == str(clean.table.select(columns).take(pa.array([0, 2])).to_pylist())


def owner(name: str) -> str:
    """The collection that a branch belongs to."""
    return name.strip("_").split("_")[0]


def test_candidates_are_truth_only_with_truth(tmp_path: Path) -> None:
    """Catches reconstruction of fast simulation that asks for MC collections."""
    blind = {name: leaves for name, leaves in made_event().items() if owner(name) != "Particle" and "MCReco" not in name}
    path = write_events(tmp_path / "blind.root", [blind])
    seen = extract(path, find_detector("idea"), with_truth=False)
    assert [len(row["cluster"]) for row in seen.table.to_pylist()] == [2]
    with pytest.raises(InputFileError, match="'Particle'"):
        extract(path, find_detector("idea"))


@pytest.mark.parametrize("missing", ["MCRecoAssociations", "EFlowNeutralHadron", "CalorimeterHits", "EFlowTrack"])
def test_missing_collections_of_fast_simulation_are_errors(missing: str, tmp_path: Path) -> None:
    """Catches events without half of their clusters, or without truth, that are taken for whole."""
    event = {name: leaves for name, leaves in made_event().items() if owner(name) != missing}
    assert missing in find_detector("idea").required
    with pytest.raises(InputFileError, match=missing):
        row_of(tmp_path, event)


def test_a_detector_without_hits(tmp_path: Path) -> None:
    """Catches an entry that cannot do without hits: towers with a position of their own need none."""
    event = made_event()
    for name, x in (("EFlowPhoton", 2250.0), ("EFlowNeutralHadron", 2000.0)):
        event[name] |= {"position.x": [x], "iTheta": [1.0]}
    event = {name: leaves for name, leaves in event.items() if "Hits" not in name and "_hits" not in name}
    table_entry = Detector(
        name="towers",
        magnetic_field=2.0,
        crossing_angle=0.0,
        calo_hits=(),
        particles="Particle",
        tracks="EFlowTrack",
        clusters=(ClusterCollection("EFlowPhoton", Subdetector.ECAL), ClusterCollection("EFlowNeutralHadron", Subdetector.HCAL)),
        calo_link=None,
        track_link=None,
        candidate_link="MCRecoAssociations",
        baseline=("ReconstructedParticles",),
    )
    row = extract(write_events(tmp_path / "made.root", [event]), table_entry).table.to_pylist()[0]
    assert [c["energy_ecal"] for c in row["cluster"]] == pytest.approx([8.2, 0.0])
    assert [c["energy_hcal"] for c in row["cluster"]] == pytest.approx([0.0, 9.0])
    assert [c["num_hits"] for c in row["cluster"]] == [0, 0]
    assert [CLASSES[t["class"]] for t in row["cluster_target"]] == ["22", "130"]
    assert [c["pdg"] for c in row["baseline"]] == [22, 130]  # no code for charged ones in the table: dropped
