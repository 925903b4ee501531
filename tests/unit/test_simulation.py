"""The built-in event source: same events for any number of workers, consistent relations, honest resolutions, clear errors."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.errors import ConfigError, OutputExistsError, ResourceError, UnknownNameError
from pfscale.shards.events import extract_events
from pfscale.simulation.simulate import simulate

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


def test_same_generator_events_in_both_detectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a generator seed that depends on the detector."""
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


def test_boost_and_conservation(tree: dict[str, ak.Array]) -> None:
    """Catches: a missing crossing-angle boost, or generator particles lost on the way to the file."""
    stable = tree["MCParticles.generatorStatus"] == 1
    total = {axis: ak.sum(tree[f"MCParticles.momentum.{axis}"][stable], axis=1).to_numpy() for axis in "xyz"}
    np.testing.assert_allclose(total["x"], 380.0 * np.sin(0.010), atol=2e-3)
    np.testing.assert_allclose(total["y"], 0.0, atol=1e-3)


def test_track_states_have_no_time(tree: dict[str, ak.Array]) -> None:
    """Catches: a number that the real CLD file does not have in a column that networks may read: -1 there, of all states."""
    real = Path(__file__).parent.parent / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"
    name = "_SiTracks_Refitted_trackStates.time"
    with uproot.open(real) as file:
        key = next(key for key in file["events"].keys(recursive=True) if key.endswith(name))
        there = set(ak.to_list(ak.flatten(file["events"][key].array())))
    assert set(ak.to_list(ak.flatten(tree[name]))) == there == {-1.0}


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
    with open_source(clic_file) as source:
        metadata = source.metadata
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


def test_interrupted_run_leaves_nothing_half(tmp_path: Path) -> None:
    """Catches: an unfinished file after Ctrl-C, which nobody would ever delete."""

    def interrupt(_: int) -> None:
        if list(tmp_path.glob("*.root")):
            raise KeyboardInterrupt

    settings = {"detector": "clic", "process": "qq", "num_events": 4, "seed": 2, "output": tmp_path, "events_per_file": 2}
    with pytest.raises(KeyboardInterrupt):
        simulate(**settings, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["clic_qq_2_00000.edm4hep.root"]


def test_file_that_is_deleted_while_it_is_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a traceback where two simulate are at work on the same files."""
    from pfscale.simulation.writer import EventFile

    end = EventFile.__exit__

    def delete(file: EventFile, *error: object) -> None:
        end(file, *error)
        for path in tmp_path.glob("*.partial"):
            path.unlink()

    monkeypatch.setattr(EventFile, "__exit__", delete)
    with pytest.raises(ResourceError, match="another simulate"):
        simulate(detector="clic", process="qq", num_events=2, seed=2, output=tmp_path)


def test_damaged_file_of_the_name_is_not_overwritten(tmp_path: Path) -> None:
    """Catches: a truncated file taken for a finished one, or a traceback from deep inside the reader."""
    settings = {"detector": "clic", "process": "qq", "num_events": 2, "seed": 2, "output": tmp_path}
    (path,) = simulate(**settings)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OutputExistsError, match="in the way"):
        simulate(**settings)


@pytest.fixture(scope="module")
def both_formats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("formats")
    settings = {"detector": "cld", "process": "ZH", "num_events": 8, "seed": 4, "higgs_decay": "bb", "z_decay": "nunu"}
    return [simulate(**settings, output=folder / name, file_format=name)[0] for name in ("ttree", "rntuple")]


def test_both_formats_give_the_same_rows(both_formats: list[Path]) -> None:
    """Catches: a field that the RNTuple lacks, misnames or rounds."""
    tables = []
    for path in both_formats:
        with open_source(path) as source:
            tables.append(extract_events(source, find_detector("cld"), 0, source.num_entries, with_truth=True).table)
    assert tables[0].num_rows == 8
    for name in tables[0].column_names:
        ours, theirs = (str(table.column(name).to_pylist()) for table in tables)  # as text, where NaN equals NaN
        assert ours == theirs, name


def test_fields_of_the_ntuple_are_called_as_in_podio(both_formats: list[Path]) -> None:
    """Catches: RNTuples that only our own reader can read: names beside those that podio 1.7 writes, or flat ones."""
    podio = Path(__file__).parent.parent / "data" / "schema_all_types_rntuple_podio1.7.root"
    kinds = {
        "MCParticles": "MCParticleCollection",
        "EventHeader": "EventHeader",
        "SiTracks_Refitted": "TrackCollection",
        "PandoraClusters": "ClusterCollection",
        "RuleBasedPFOs": "ReconstructedParticleCollection",
        "ECALBarrel": "CalorimeterHitCollection",
        "SiTracks_Refitted_dQdx": "RecDqdxCollection",
        "CalohitMCTruthLink": "CaloHitMCParticleLinkCollection",
        "_SiTracks_Refitted_trackStates": "_TrackCollection_trackStates",
        "_MCParticles_parents": "_MCParticleCollection_parents",
        "_SiTracksMCTruthLink_from": "_TrackMCParticleLinkCollection_from",
        "_PandoraClusters_hits": "_ClusterCollection_hits",
    }
    with uproot.open(both_formats[1]) as ours, uproot.open(podio) as theirs:
        names, known = set(ours["events"].keys()), set(theirs["events"].keys())
        for mine, other in kinds.items():
            fields = {name.partition(".")[2] for name in names if name.startswith(f"{mine}.")}
            reference = {name.partition(".")[2] for name in known if name.startswith(f"{other}.")}
            assert fields, mine
            reference |= {"phi"} if mine == "PandoraClusters" else set()  # as in the real CLD file; iPhi in later EDM4hep
            assert fields <= reference, (mine, sorted(fields - reference))


def test_third_detector_runs_through_to_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a step between the table of a detector and the rows of a shard that knows the two detectors only."""
    from types import MappingProxyType

    from pfscale.simulation import detectors

    third = replace(
        detectors.DETECTORS["cld"],
        name="third",
        b_field=3.0,
        ecal_radius=1800.0,
        barrel_layers=tuple((0.83 * radius, half_length) for radius, half_length in detectors.DETECTORS["cld"].barrel_layers),
        hcal_sections=30,
        hcal_thickness=1500.0,
        hcal_lambda=7.0,
        dedx_resolution=0.05,
    )
    monkeypatch.setattr(detectors, "DETECTORS", MappingProxyType({**detectors.DETECTORS, "third": third}))
    (path,) = simulate(detector="third", process="ttbar", num_events=12, seed=1, output=tmp_path)
    with open_source(path) as source:
        assert source.metadata["detector"] == "third"
        events = extract_events(source, replace(find_detector("cld"), name="third", magnetic_field=3.0), 0, 12, with_truth=True)
    assert events.table.num_rows == 12
    tracks = events.table.column("track").combine_chunks().flatten()
    np.testing.assert_allclose(tracks.field("dedx_error").to_numpy() / tracks.field("dedx").to_numpy(), 0.05, rtol=1e-4)
    assert events.table.column("baseline").combine_chunks().flatten().field("energy").to_numpy().sum() / 12 > 200


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
        ({"num_workers": -1}, ConfigError, "num_workers"),
        ({"file_format": "tree"}, UnknownNameError, "ttree"),
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
