"""ROOT files to shards with Ray: what is in the folder, what a rerun does, and what happens with bad files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest

import podio_files as podio
from pfscale.edm4hep.detectors import find_detector
from pfscale.errors import InputFileError, OutputExistsError, ResourceError, ShardError, UnknownNameError
from pfscale.shards.events import EXTRACTION_VERSION
from pfscale.shards.ingest import ingest
from pfscale.shards.inspect import inspect
from pfscale.shards.manifest import MANIFEST_FILE, REQUEST_FILE, load_manifest, torn_shards

DATA = Path(__file__).parent.parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
LEGACY = DATA / "clic_photon_gun_3ev_legacy.root"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests here; ingest must not shut down what it did not start."""
    from pfscale.ray_cluster import ray_cluster

    with ray_cluster(num_cpus=2):
        yield


def copies(folder: Path, number: int) -> list[str]:
    """The CLD event under several names: events of different identity."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"cld_zh_{i}_00000.root" for i in range(number)]
    for i, path in enumerate(paths):
        path.write_bytes(CLD.read_bytes() + bytes([i]))  # a file that is there twice is refused; what is behind a file's end is not read
    return [str(path) for path in paths]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_one_real_event(tmp_path: Path) -> None:
    """Catches a manifest that does not say what is in the shards."""
    done: list[int] = []
    manifest = ingest([str(CLD)], detector="cld", output=tmp_path / "out", progress=done.append)
    assert manifest == load_manifest(tmp_path / "out")
    assert (manifest.num_events, manifest.detector, manifest.simulation, manifest.has_baseline) == (1, "cld", "geant4", True)
    assert sum(manifest.splits.values()) == 1
    assert sum(manifest.track_classes.values()) == 24
    assert sum(manifest.cluster_classes.values()) == 48
    assert manifest.energy.visible == pytest.approx(manifest.energy.targets + manifest.energy.dropped, rel=1e-6)
    assert sum(done) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([MANIFEST_FILE, manifest.shards[0].file])


def test_shards_of_entry_ranges(tmp_path: Path) -> None:
    """Catches entries lost or doubled at the borders of shards."""
    manifest = ingest([str(LEGACY)], detector="clic", output=tmp_path / "out", rows_per_shard=2)
    assert [(shard.start, shard.stop, shard.num_events) for shard in manifest.shards] == [(0, 2, 2), (2, 3, 1)]
    entries = [pq.read_table(tmp_path / "out" / shard.file).to_pylist() for shard in manifest.shards]
    assert [row["event"]["entry"] for rows in entries for row in rows] == [0, 1, 2]


def test_rerun_does_nothing_and_other_data_are_refused(tmp_path: Path) -> None:
    """Catches a rerun that writes again, and data of two ingests mixed in one folder."""
    files, out = copies(tmp_path / "in", 2), tmp_path / "out"
    first = ingest(files, detector="cld", output=out)
    stamp = (out / MANIFEST_FILE).stat().st_mtime_ns
    assert ingest(list(reversed(files)), detector="cld", output=out) == first
    assert (out / MANIFEST_FILE).stat().st_mtime_ns == stamp
    for change in ({"sources": files[:1]}, {"process": "ZH"}, {"simulation": "fast"}):
        with pytest.raises(OutputExistsError):
            ingest(**{"sources": files, "detector": "cld", "output": out, **change})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("do not overwrite")
    with pytest.raises(OutputExistsError):
        ingest(files, detector="cld", output=tmp_path / "notes")


def test_a_finished_data_set_mends_a_shard_that_was_damaged_since(tmp_path: Path) -> None:
    """Catches advice that does nothing: "ingest again" must make the damaged shard anew."""
    first = ingest([str(LEGACY)], detector="clic", output=tmp_path / "out", rows_per_shard=2)
    damaged = tmp_path / "out" / first.shards[0].file
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    assert torn_shards(tmp_path / "out", first) == [first.shards[0].file]
    assert ingest([str(LEGACY)], detector="clic", output=tmp_path / "out", rows_per_shard=2) == first
    assert damaged.read_bytes() == whole


def test_hash_names_the_data_not_the_folder(tmp_path: Path) -> None:
    """Catches a data hash that depends on folder, time or shard size, or one that does not notice other data."""
    files = copies(tmp_path / "in", 2)
    first = ingest(files, detector="cld", output=tmp_path / "a")
    moved = ingest(copies(tmp_path / "elsewhere", 2), detector="cld", output=tmp_path / "b", rows_per_group=1)
    assert first.hash == moved.hash
    assert ingest(files[:1], detector="cld", output=tmp_path / "c").hash != first.hash


def test_bad_files_are_set_aside(tmp_path: Path) -> None:
    """Catches one bad file that stops an ingest of many, or vanishes without a word."""
    (good,) = copies(tmp_path, 1)
    text, cut = tmp_path / "notes.root", tmp_path / "cut.root"
    text.write_text("no ROOT file")
    cut.write_bytes(CLD.read_bytes()[:800_000])
    manifest = ingest(
        [good, str(text), str(cut), str(LEGACY.parent / "schema_all_types_ttree_podio1.7.root")], detector="cld", output=tmp_path / "out"
    )
    assert [source.name for source in manifest.sources] == ["cld_zh_0_00000.root"]
    assert len(manifest.quarantined) == 3
    assert all(record.reason and record.exit_code and record.error == "InputFileError" for record in manifest.quarantined)
    with pytest.raises(InputFileError):
        ingest([good, str(text)], detector="cld", output=tmp_path / "strict", strict=True)
    with pytest.raises(InputFileError, match="not a ROOT file"):
        ingest([str(text)], detector="cld", output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_file_damaged_inside_is_set_aside_whole(tmp_path: Path) -> None:
    """Catches a file that opens but cannot be read, whose readable part stays in the data set."""
    (good,) = copies(tmp_path, 1)
    damaged = tmp_path / "damaged.root"
    data = bytearray(CLD.read_bytes())
    data[10_000:1_200_000] = bytes(1_190_000)
    damaged.write_bytes(bytes(data))
    manifest = ingest([good, str(damaged)], detector="cld", output=tmp_path / "out")
    assert [record.path for record in manifest.quarantined] == [str(damaged)]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == len(manifest.shards) == 1


def test_same_event_twice_is_refused(tmp_path: Path) -> None:
    """Catches an event that is trained on twice, or in two splits, because its file was given twice."""
    for folder, end in (("a", b""), ("b", b"x")):  # the same event in files of different contents
        (path,) = copies(tmp_path / folder, 1)
        Path(path).write_bytes(Path(path).read_bytes() + end)
    with pytest.raises(InputFileError, match="more than once"):
        ingest([str(tmp_path / "[ab]" / "*.root")], detector="cld", output=tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    same = str(tmp_path / "a" / "*.root")
    assert ingest([same, same], detector="cld", output=tmp_path / "once").num_events == 1


def test_names_with_dots_keep_their_own_shards(tmp_path: Path) -> None:
    """Catches files whose shards have one name, so that one file's events are lost and another's counted twice."""
    first, second = (Path(path) for path in copies(tmp_path / "in", 2))
    files = [str(first.rename(tmp_path / "run.000001.root")), str(second.rename(tmp_path / "run.000002.root"))]
    manifest = ingest(files, detector="cld", output=tmp_path / "out")
    assert len({shard.file for shard in manifest.shards}) == 2
    events = [pq.read_table(tmp_path / "out" / shard.file).to_pylist()[0]["event"]["file"] for shard in manifest.shards]
    assert sorted(events) == ["run.000001.root", "run.000002.root"]


def test_same_file_under_two_names_is_refused(tmp_path: Path) -> None:
    """Catches a copy whose events are trained on twice, or stand in the training and in the test split."""
    (path,) = copies(tmp_path / "in", 1)
    copy = str(shutil.copy(path, tmp_path / "in" / "copy.root"))
    with pytest.raises(InputFileError, match="there twice"):
        ingest([path, copy], detector="cld", output=tmp_path / "out")


def test_bad_events_show_in_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches events that are left out without a word, and a strict rerun that lets pass what a strict run refuses."""
    from pfscale.cli import run
    from pfscale.commands.terminal import QUARANTINED

    leaves = podio.read_leaves(
        CLD, [*find_detector("cld").required, "EventHeader", "CalohitMCTruthLink", "SiTracksMCTruthLink", "MUON", "HCALOther"]
    )
    leaves = podio.repeated(leaves, 2)
    energy = leaves["PandoraClusters.energy"]
    leaves["PandoraClusters.energy"] = ak.concatenate([energy[:1], energy[1:] * np.nan])
    path = podio.write(tmp_path / "spoiled.root", leaves, podio.ids_of(CLD))
    command = ["ingest", str(path), "--detector", "cld", "--output", str(tmp_path / "out")]
    for _ in range(2):
        assert run(command) == QUARANTINED
        assert "1 event: cluster" in capsys.readouterr().err
    assert run([*command, "--strict"]) == 2


def test_wrong_names_and_numbers(tmp_path: Path) -> None:
    """Catches mistakes that would hang Ray or end in a traceback."""
    with pytest.raises(UnknownNameError, match="cld"):
        ingest([str(CLD)], detector="cdl", output=tmp_path / "out")
    with pytest.raises(UnknownNameError, match="geant4"):
        ingest([str(CLD)], detector="cld", output=tmp_path / "out", simulation="geant3")
    with pytest.raises(ResourceError, match="CPUs"):
        ingest([str(CLD)], detector="cld", output=tmp_path / "out", num_workers=64)
    with pytest.raises(InputFileError, match="no file matches"):
        ingest([str(tmp_path / "*.root")], detector="cld", output=tmp_path / "out")
    with pytest.raises(InputFileError, match="SiTracks_Refitted"):
        ingest([str(write_foreign(tmp_path))], detector="cld", output=tmp_path / "out")
    with pytest.raises(ShardError):
        load_manifest(tmp_path)


def write_foreign(folder: Path) -> Path:
    """A file with MC particles but none of the detector's other collections."""
    import uproot

    path = folder / "foreign.root"
    with uproot.recreate(path) as file:
        file.mktree("events", {"MCParticles.PDG": "int32"}).extend({"MCParticles.PDG": [22, 22]})
    return path


def test_torn_shard_is_made_again(tmp_path: Path) -> None:
    """Catches a shard that another program cut and a rerun takes for complete."""
    files, out = copies(tmp_path / "in", 2), tmp_path / "out"
    manifest = ingest(files, detector="cld", output=out)
    whole = contents(out)
    (out / MANIFEST_FILE).unlink()
    (out / REQUEST_FILE).write_text(json.dumps({"identity": manifest.request, "extraction_version": EXTRACTION_VERSION}))
    torn = out / manifest.shards[0].file
    torn.write_bytes(torn.read_bytes()[:1000])
    assert ingest(files, detector="cld", output=out) == manifest
    assert contents(out) == whole


def test_inspect_shows_the_event(tmp_path: Path) -> None:
    """Catches an inspection that fails on data as ingest writes them."""
    from rich.console import Console

    ingest([str(CLD)], detector="cld", output=tmp_path / "out")
    console = Console(width=150, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(inspect(tmp_path / "out"))
    console.print(inspect(tmp_path / "out", 0))
    text = console.export_text()
    assert "24 tracks, 48 clusters, 52 baseline candidates" in text
    assert "K+" in text
