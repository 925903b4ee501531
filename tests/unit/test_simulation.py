"""The built-in event source: same events for any number of workers, consistent relations, honest resolutions, clear errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from pfscale.errors import ConfigError, OutputExistsError, ResourceError, UnknownNameError
from pfscale.simulation.simulate import simulate
from pfscale.simulation.writer import HIT_COLLECTIONS, collection_id, read_metadata

pytest.importorskip("pythia8mc")


@pytest.fixture(scope="module")
def clic_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(detector="clic", process="ttbar", num_events=30, seed=3, output=tmp_path_factory.mktemp("clic"))[0]


@pytest.fixture(scope="module")
def tree(clic_file: Path) -> dict[str, ak.Array]:
    with uproot.open(clic_file) as file:
        events = file["events"]
        return {name: events[name].array() for name in events.keys()}  # noqa: SIM118 (a TTree iterates over entries)


def _contents(path: Path) -> dict[str, list]:
    with uproot.open(path) as file:
        return {name: file["events"][name].array().tolist() for name in file["events"].keys()}  # noqa: SIM118


def test_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    """Catches: a random state shared by chunks, so that the schedule decides the events."""
    settings = {
        "detector": "cld",
        "process": "ZH",
        "num_events": 7,
        "seed": 5,
        "events_per_file": 4,
        "higgs_decay": "bb",
        "z_decay": "nunu",
    }
    one = simulate(**settings, output=tmp_path / "one")
    two = simulate(**settings, output=tmp_path / "two", num_workers=2)
    assert [p.name for p in one] == ["cld_ZH_5_00000.edm4hep.root", "cld_ZH_5_00001.edm4hep.root"] == [p.name for p in two]
    for a, b in zip(one, two, strict=True):
        assert _contents(a) == _contents(b)
    assert _contents(one[0])["MCParticles.PDG"][:3] != _contents(one[1])["MCParticles.PDG"], "chunks repeat each other"


def test_same_generator_events_in_both_detectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a generator seed that depends on the detector."""
    from dataclasses import replace
    from types import MappingProxyType

    from pfscale.simulation import detectors

    point = MappingProxyType({380.0: (0.0, 0.0, 0.0)})
    same_energy = replace(detectors.DETECTORS["cld"], sqrt_s=detectors.DETECTORS["clic"].sqrt_s, crossing_angle=0.020, beam_sigma=point)
    clic = replace(detectors.DETECTORS["clic"], beam_sigma=point)
    monkeypatch.setattr(detectors, "DETECTORS", MappingProxyType({"clic": clic, "cld": same_energy}))
    files = [simulate(detector=name, process="qq", num_events=3, seed=1, output=tmp_path / name)[0] for name in ("clic", "cld")]
    a, b = (_contents(f) for f in files)
    for event in range(3):
        stable = [
            [p for p, status in zip(c["MCParticles.momentum.x"][event], c["MCParticles.generatorStatus"][event], strict=True) if status]
            for c in (a, b)
        ]
        np.testing.assert_array_equal(*stable)


def test_parents_and_daughters_agree(tree: dict[str, ak.Array]) -> None:
    """Catches: ranges shifted by one event or particle, or relations that hold in one direction only."""
    for event in range(30):
        pairs = {}
        for name in ("parents", "daughters"):
            begin = tree[f"MCParticles.{name}_begin"][event].to_numpy()
            end = tree[f"MCParticles.{name}_end"][event].to_numpy()
            index = tree[f"_MCParticles_{name}.index"][event].to_numpy()
            assert (begin <= end).all()
            assert end.max() == len(index)
            owner = np.repeat(np.arange(len(begin)), end - begin)
            assert len(owner) == len(index)
            assert index.min() >= 0
            assert index.max() < len(begin)
            pairs[name] = set(zip(owner.tolist(), index.tolist(), strict=True))
        assert {(child, parent) for parent, child in pairs["daughters"]} == pairs["parents"]


def test_every_object_id_points_at_an_object(tree: dict[str, ak.Array]) -> None:
    """Catches: an index that counts hits over all collections instead of within one, or a wrong collection id."""
    sizes = {collection_id(name): ak.num(tree[f"{name}.energy"]) for name in HIT_COLLECTIONS}
    sizes[collection_id("MCParticles")] = ak.num(tree["MCParticles.PDG"])
    sizes[collection_id("SiTracks_Refitted")] = ak.num(tree["SiTracks_Refitted.chi2"])
    relations = (
        "_CalohitMCTruthLink_from",
        "_CalohitMCTruthLink_to",
        "_SiTracksMCTruthLink_from",
        "_SiTracksMCTruthLink_to",
        "_PandoraClusters_hits",
    )
    for relation in relations:
        counts = ak.num(tree[f"{relation}.index"]).to_numpy()
        event = np.repeat(np.arange(30), counts)
        index, ids = (ak.flatten(tree[f"{relation}.{part}"]).to_numpy() for part in ("index", "collectionID"))
        bound = np.zeros(len(index), dtype=np.int64)
        for collection, size in sizes.items():
            mine = ids == collection
            bound[mine] = size.to_numpy()[event[mine]]
        assert ((index >= 0) & (index < bound)).all(), relation


def test_links_account_for_all_hit_energy(tree: dict[str, ak.Array]) -> None:
    """Catches: deposits lost or counted twice between cells and truth links."""
    for event in range(30):
        index, ids = (
            tree["_CalohitMCTruthLink_from.index"][event].to_numpy(),
            tree["_CalohitMCTruthLink_from.collectionID"][event].to_numpy(),
        )
        weight = tree["CalohitMCTruthLink.weight"][event].to_numpy()
        for name in HIT_COLLECTIONS:
            energy = tree[f"{name}.energy"][event].to_numpy()
            mine = ids == collection_id(name)
            linked = np.bincount(index[mine], weights=weight[mine], minlength=len(energy))
            np.testing.assert_allclose(linked, energy, rtol=1e-5)


def test_clusters_are_sums_of_their_hits(tree: dict[str, ak.Array]) -> None:
    """Catches: a hit in two clusters, or cluster energies that do not belong to the hits listed."""
    for event in range(30):
        begin, end = tree["PandoraClusters.hits_begin"][event].to_numpy(), tree["PandoraClusters.hits_end"][event].to_numpy()
        index, ids = tree["_PandoraClusters_hits.index"][event].to_numpy(), tree["_PandoraClusters_hits.collectionID"][event].to_numpy()
        assert len(set(zip(ids.tolist(), index.tolist(), strict=True))) == len(index)
        energy = np.zeros(len(index))
        for name in HIT_COLLECTIONS:
            mine = ids == collection_id(name)
            energy[mine] = tree[f"{name}.energy"][event].to_numpy()[index[mine]]
        owner = np.repeat(np.arange(len(begin)), end - begin)
        np.testing.assert_allclose(np.bincount(owner, weights=energy), tree["PandoraClusters.energy"][event].to_numpy(), rtol=1e-5)


def test_boost_and_conservation(tree: dict[str, ak.Array]) -> None:
    """Catches: a missing crossing-angle boost, or generator particles lost on the way to the file."""
    stable = tree["MCParticles.generatorStatus"] == 1
    total = {axis: ak.sum(tree[f"MCParticles.momentum.{axis}"][stable], axis=1).to_numpy() for axis in "xyz"}
    np.testing.assert_allclose(total["x"], 380.0 * np.sin(0.010), atol=2e-3)
    np.testing.assert_allclose(total["y"], 0.0, atol=1e-3)


def test_secondaries_are_marked(tree: dict[str, ak.Array]) -> None:
    """Catches: material secondaries that look like generator particles, or without a parent."""
    status, simulator = tree["MCParticles.generatorStatus"], tree["MCParticles.simulatorStatus"]
    is_secondary = status == 0
    assert ak.sum(is_secondary) > 0
    assert ak.all((simulator[is_secondary] & (1 << 30)) != 0)
    assert ak.all((simulator[~is_secondary] & (1 << 30)) == 0)
    assert ak.all((tree["MCParticles.parents_end"] - tree["MCParticles.parents_begin"])[is_secondary] == 1)
    assert set(ak.to_list(ak.flatten(status))) == {0, 1, 2}
    assert ak.all((simulator[status == 1] & 0x0F000000) != 0), "a stable particle without a fate"


def test_metadata_marks_the_file(clic_file: Path) -> None:
    """Catches: built-in events that could be taken for full simulation."""
    metadata = read_metadata(clic_file)
    assert (metadata["simulation"], metadata["detector"], metadata["process"], metadata["sqrt_s"]) == ("builtin", "clic", "ttbar", "380.0")


def test_complete_chunks_are_kept_and_partial_ones_made_again(tmp_path: Path) -> None:
    """Catches: a resume that redoes finished work, or takes a half-written file for a finished one."""
    settings = {"detector": "clic", "process": "qq", "num_events": 4, "seed": 2, "output": tmp_path, "events_per_file": 2}
    first, second = simulate(**settings)
    stamp = first.stat().st_mtime_ns
    wanted = _contents(second)
    second.rename(second.with_name(second.name + ".partial"))
    reported: list[int] = []
    simulate(**settings, progress=reported.append)
    assert first.stat().st_mtime_ns == stamp
    assert _contents(second) == wanted
    assert not list(tmp_path.glob("*.partial"))
    assert sum(reported) == 4


def test_other_events_under_the_same_name_are_refused(tmp_path: Path) -> None:
    """Catches: a chunk of H -> bb taken for one of H -> cc, because the name does not say."""
    settings = {"detector": "cld", "process": "ZH", "num_events": 1, "seed": 2, "output": tmp_path}
    simulate(**settings, higgs_decay="bb", z_decay="nunu")
    with pytest.raises(OutputExistsError, match="other events"):
        simulate(**settings, higgs_decay="cc", z_decay="nunu")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"detector": "clik"}, UnknownNameError, "clic"),
        ({"process": "tbar"}, UnknownNameError, "ttbar"),
        ({"process": "ZH"}, UnknownNameError, "qq, ttbar"),
        ({"higgs_decay": "bb"}, UnknownNameError, "ZH"),
        ({"detector": "cld", "process": "ZH", "higgs_decay": "bbb"}, UnknownNameError, "bb"),
        ({"num_events": 0}, ConfigError, "num_events"),
        ({"num_workers": 0}, ConfigError, "num_workers"),
    ],
)
def test_bad_arguments(tmp_path: Path, change: dict[str, object], error: type[Exception], text: str) -> None:
    """Catches: a typo that runs for minutes first, or leaves an empty folder behind."""
    arguments: dict[str, object] = {"detector": "clic", "process": "ttbar", "num_events": 2, "seed": 1, "output": tmp_path / "out"} | change
    with pytest.raises(error, match=text):
        simulate(**arguments)
    assert not (tmp_path / "out").exists()


def test_foreign_data_is_not_touched(tmp_path: Path) -> None:
    """Catches: simulated files mixed into a folder of something else."""
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(OutputExistsError, match=r"manifest\.json"):
        simulate(detector="clic", process="ttbar", num_events=1, seed=1, output=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_missing_pythia_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an ImportError in a user's face."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"pfscale\[sim\]"):
        simulate(detector="clic", process="ttbar", num_events=1, seed=1, output=tmp_path)


def test_files_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: old events that are silently kept beside new ones after the simulation has changed."""
    settings = {"detector": "clic", "process": "qq", "num_events": 1, "seed": 2, "output": tmp_path}
    simulate(**settings)
    monkeypatch.setattr("pfscale.simulation.simulate.SIMULATION_VERSION", -1)
    with pytest.raises(OutputExistsError, match="simulation_version"):
        simulate(**settings)
