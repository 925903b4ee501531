"""Reconstruction of many files: bad ones, events of any size, restarts, formats, workers, other machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from candidate_runs import NUM_CLUSTERS, NUM_TRACKS, REPEATS, candidates, events_of_any_size, require_alike, small_model
from ingest_runs import CLD, EVENTS, IDEA, copies, different, environment, everything
from pfscale.cli import run
from pfscale.edm4hep import layout
from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import EventSource, open_source
from pfscale.errors import InputFileError, OutputExistsError, PfscaleError
from pfscale.models.bundle import load_bundle
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.events import extract_events
from pfscale.shards.ingest import ingest
from pfscale.shards.ragged import INPUT_COLUMNS
from pfscale.shards.storage import open_folder
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.inference import run_model
from pfscale.training.reconstruct import reconstruct
from pfscale.training.reconstruction import MANIFEST, NOTE, Reconstruction


@pytest.fixture(scope="module")
def idea_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_model(tmp_path_factory.mktemp("idea") / "model", detector="idea"))


@pytest.fixture(scope="module")
def cld_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_model(tmp_path_factory.mktemp("cld") / "model"))


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return events_of_any_size(tmp_path_factory.mktemp("any") / "any.root")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return events_of_any_size(tmp_path_factory.mktemp("spoiled") / "spoiled.root", spoiled=0)


# --- events and files that are bad, or unusual


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_events_of_any_size(cld_model: str, any_size: Path, file_format: str, tmp_path: Path) -> None:
    """Catches an event without elements, with one or with thousands that fails, or moves the candidates of its neighbours."""
    result = reconstruct(cld_model, [str(any_size)], output=tmp_path / "out", file_format=file_format, latents=True)
    assert result.num_events == 4
    assert not result.unusable
    sizes = [NUM_TRACKS + NUM_CLUSTERS, 0, 1, NUM_TRACKS * REPEATS]
    if file_format == "root":
        with uproot.open(result.files[0]) as file:
            latents = file["events"]["MLPFLatents"].array()
            assert [len(event) for event in latents] == [16 * size for size in sizes]
            assert len(file["events"]["MLPFCandidates.PDG"].array()[1]) == 0
        return
    rows = candidates(result.files[0])
    assert [len(row["latent"]) for row in rows] == sizes
    alone = candidates(reconstruct(cld_model, [str(CLD)], output=tmp_path / "alone").files[0])
    require_alike(rows[:1], alone)
    first = rows[3]["candidate"][0] if rows[3]["candidate"] else None
    assert first is None or first["element_index"] < NUM_TRACKS * REPEATS


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_an_event_that_cannot_be_used_is_named(
    cld_model: str, spoiled: Path, file_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches events that disappear, that nobody is told of, or that shift the rows of those after them."""
    command = ["reconstruct", cld_model, str(spoiled), "--output", str(tmp_path / "out"), "--format", file_format]
    assert run(command) == 3
    assert "weight is not finite" in capsys.readouterr().err
    (source,) = json.loads((tmp_path / "out" / MANIFEST).read_text())["sources"]
    assert source["unusable"] == [[0, "the event weight is not finite"]]
    assert source["num_events"] == 4
    if file_format == "parquet":
        rows = candidates(tmp_path / "out" / source["file"])
        assert [row["event"]["entry"] for row in rows] == [0, 1, 2, 3]
        assert rows[0]["candidate"] == []
    assert run([*command, "--strict"]) == 2  # what is complete is not made again, and is no better
    assert "event 0 cannot be used" in capsys.readouterr().err


def test_bad_files_are_set_aside(idea_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches one damaged file of many that ends the rest, or that is left out without a word; and a --strict that is not."""
    files = copies(tmp_path / "in", 2)
    (tmp_path / "in" / "text.root").write_text("not a ROOT file")
    (tmp_path / "in" / "cut.root").write_bytes(IDEA.read_bytes()[:-60_000])
    command = ["reconstruct", idea_model, str(tmp_path / "in" / "*.root"), str(tmp_path / "gone.root"), "--workers", "1"]
    assert run([*command, "--output", str(tmp_path / "out")]) == 3
    told = capsys.readouterr()
    assert f"{2 * EVENTS} events" in told.out
    assert all(name in told.err for name in ("text.root", "cut.root", "gone.root"))
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert [source["path"] for source in manifest["sources"]] == files
    assert sorted(Path(bad["path"]).name for bad in manifest["quarantined"]) == ["cut.root", "gone.root", "text.root"]
    assert set(everything(tmp_path / "out")) == {MANIFEST, *(source["file"] for source in manifest["sources"])}
    assert run([*command, "--output", str(tmp_path / "strict"), "--strict"]) == 2


def test_a_source_that_changes_meanwhile_is_set_aside(idea_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches candidates of half the old file and half the new one."""
    from pfscale.training import find_candidates as module

    path = Path(copies(tmp_path / "in", 1)[0])
    work = module.run_model

    def work_and_change(*arguments: Any, **named: Any) -> Any:
        path.write_bytes(different(7) + b"more")
        return work(*arguments, **named)

    monkeypatch.setattr(module, "run_model", work_and_change)
    with pytest.raises(InputFileError, match="changed while it was read"):
        reconstruct(idea_model, [str(path)], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the same again, and other things in the folder


def stamps(folder: Path) -> dict[str, int]:
    """When each file of candidates was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.candidates.*")}


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_killed_in_the_middle_of_a_file(idea_model: str, file_format: str, tmp_path: Path) -> None:
    """Catches half a file under its final name, files that are made twice, and left-overs of the killed process."""
    files, out = copies(tmp_path / "in", 4), tmp_path / "out"
    script = (
        "import os, signal, sys\n"
        "from pfscale.training import find_candidates as module\n"
        "from pfscale.training.reconstruct import reconstruct\n"
        "work, calls = module.run_model, iter(range(99))\n"
        "module.run_model = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == 2 else work(*a, **k)\n"
        "reconstruct(sys.argv[1], sys.argv[4:], output=sys.argv[2], file_format=sys.argv[3], num_workers=1)\n"
    )
    command = [sys.executable, "-c", script, idea_model, str(out), file_format, *files]
    assert subprocess.run(command, env=environment(), check=False).returncode == -signal.SIGKILL
    kept = stamps(out)
    assert len(kept) == 2
    assert NOTE in everything(out)
    assert MANIFEST not in everything(out)
    options: dict[str, Any] = {"file_format": file_format, "num_workers": 1}
    result = reconstruct(idea_model, files, output=out, **options)
    assert kept.items() <= stamps(out).items()
    assert set(everything(out)) == {MANIFEST, *(source.file for source in result.sources)}
    unbroken = reconstruct(idea_model, files, output=tmp_path / "unbroken", **options)
    assert (out / MANIFEST).read_bytes() == (tmp_path / "unbroken" / MANIFEST).read_bytes()
    if file_format == "parquet":
        for one, other in zip(result.files, unbroken.files, strict=True):
            require_alike(candidates(one), candidates(other))


def test_the_same_again_does_nothing_and_more_files_go_on(idea_model: str, tmp_path: Path) -> None:
    """Catches a rerun that makes everything again, one that keeps candidates of contents that have changed, and one that loses files."""
    files, out = copies(tmp_path / "in", 3), tmp_path / "out"
    first = reconstruct(idea_model, files[:2], output=out, num_workers=1)
    before = stamps(out)
    assert reconstruct(idea_model, files[:2], output=out, num_workers=1) == first
    assert stamps(out) == before
    Path(files[0]).write_bytes(different(9))
    more = reconstruct(idea_model, files, output=out, num_workers=1)
    assert [source.path for source in more.sources] == files
    changed = {name for name, stamp in stamps(out).items() if before.get(name) != stamp}
    assert changed == {more.sources[0].file, more.sources[2].file}
    Path(more.files[1]).write_bytes(Path(more.files[1]).read_bytes()[:-9])
    assert reconstruct(idea_model, files, output=out, num_workers=1) == more
    assert len(candidates(more.files[1])) == EVENTS


def test_a_folder_of_another_call_is_refused(idea_model: str, tmp_path: Path) -> None:
    """Catches candidates of two models, formats or sets of files that end up in one folder, and a message that does not say which."""
    files, out = copies(tmp_path / "in", 2), tmp_path / "out"
    reconstruct(idea_model, files, output=out, num_workers=1)
    whole = everything(out)
    other = str(small_model(tmp_path / "model", detector="idea", seed=2))
    with pytest.raises(OutputExistsError, match=f"of the model {idea_model}, not of {other}"):
        reconstruct(other, files, output=out, num_workers=1)
    with pytest.raises(OutputExistsError, match="format parquet, not root"):
        reconstruct(idea_model, files, output=out, num_workers=1, file_format="root")
    with pytest.raises(OutputExistsError, match="latents False, not True"):
        reconstruct(idea_model, files, output=out, num_workers=1, latents=True)
    with pytest.raises(OutputExistsError, match=r"files that are not given .*idea_ww_1"):
        reconstruct(idea_model, files[:1], output=out, num_workers=1)
    shutil.copytree(tmp_path / "in", tmp_path / "again")
    with pytest.raises(PfscaleError, match="the same name"):
        reconstruct(idea_model, [*files, str(tmp_path / "again" / "*.root")], output=tmp_path / "twice")
    assert everything(out) == whole


# --- what is written


def test_shards_give_the_same_candidates(idea_model: str, tmp_path: Path, no_ray: None) -> None:
    """Catches elements that reconstruction and ingest order or fill in different ways."""
    del no_ray
    ingest([str(IDEA)], detector="idea", output=tmp_path / "shards")
    index = load_index(tmp_path / "shards")
    events = read_events(index, np.arange(index.num_events), INPUT_COLUMNS)
    bundle = load_bundle(idea_model)
    expected = run_model(bundle.model, events, ReconstructionConfig(**bundle.card["task"])).candidates
    rows = candidates(reconstruct(idea_model, [str(IDEA)], output=tmp_path / "out").files[0])
    by_uid = {row["event"]["uid"]: row["candidate"] for row in rows}
    found = [candidate for uid in events.uid.tolist() for candidate in by_uid[uid]]
    assert len(found) == len(expected.event) > 0
    assert [c["element_index"] for c in found] == expected.element_index.tolist()
    assert [c["pdg"] for c in found] == expected.pdg.tolist()
    np.testing.assert_allclose([c["energy"] for c in found], expected.energy, rtol=1e-4)


@pytest.mark.parametrize(("path", "detector"), [(CLD, "cld"), (IDEA, "idea")])
def test_root_holds_what_parquet_holds(path: Path, detector: str, tmp_path: Path) -> None:
    """Catches a ROOT file that our own reader cannot take, other numbers in it, and relations to the wrong track or cluster."""
    model = str(small_model(tmp_path / "model", detector=detector))
    rows = candidates(reconstruct(model, [str(path)], output=tmp_path / "parquet").files[0])
    flat = [candidate for row in rows for candidate in row["candidate"]]
    (file,) = reconstruct(model, [str(path)], output=tmp_path / "root", file_format="root").files
    with open_source(file) as source, open_source(path) as original:
        span = (0, source.num_entries)
        assert span == (0, original.num_entries)
        assert source.metadata["detector"] == detector
        header = source.rows("EventHeader", layout.HEADER, *span)
        assert header["number"].tolist() == [row["event"]["number"] for row in rows]
        found = source.rows("MLPFCandidates", layout.CANDIDATE, *span)
        assert np.diff(found.offsets).tolist() == [len(row["candidate"]) for row in rows]
        assert found["pdg"].tolist() == [c["pdg"] for c in flat]
        assert found["charge"].tolist() == [c["charge"] for c in flat]
        for axis in "xyz":
            np.testing.assert_array_equal(found[f"momentum_{axis}"], np.array([c[f"p{axis}"] for c in flat]))
        np.testing.assert_array_equal(found["energy"], np.array([c["energy"] for c in flat]))
        with uproot.open(file) as plain:
            goodness = np.concatenate(plain["events"]["MLPFCandidates.goodnessOfPID"].array().to_list())
            scores = np.concatenate(plain["events"]["MLPFScores"].array().to_list()).reshape(-1, 6)
        np.testing.assert_allclose(scores, [c["scores"] for c in flat])
        np.testing.assert_array_equal(goodness, scores[:, 1:].max(axis=1).astype(goodness.dtype))
        require_own_elements(source, original, detector, rows)


def require_own_elements(source: EventSource, original: EventSource, detector: str, rows: list[dict[str, Any]]) -> None:
    """Checks that every candidate refers to one object of the source file, and to the one that it was made of."""
    table, span = find_detector(detector), (0, original.num_entries)
    features = extract_events(original, table, *span, with_truth=False).table.to_pylist()
    clusters = {layout.collection_id(c.name): original.rows(c.name, layout.CLUSTER, *span) for c in table.clusters}
    candidates_of = source.rows("MLPFCandidates", layout.CANDIDATE, *span)
    flat = [(event, candidate) for event, row in enumerate(rows) for candidate in row["candidate"]]
    seen: list[int] = []
    for relation in layout.CANDIDATE.relations:
        references = source.references("MLPFCandidates", relation, *span)
        begin, end = source.ranges("MLPFCandidates", relation, *span)
        for number in np.flatnonzero(end > begin):
            event, candidate = flat[number]
            assert candidates_of.event[number] == event
            at = references.offsets[event] + begin[number]
            index, identity = int(references.index[at]), int(references.collection_id[at])
            num_tracks = len(features[event]["track"])
            if relation.name == "tracks":
                assert (identity, index) == (layout.collection_id(table.tracks), candidate["element_index"])
            else:
                energy = clusters[identity]["energy"][clusters[identity].offsets[event] + index]
                assert np.float32(energy) == features[event]["cluster"][candidate["element_index"] - num_tracks]["energy"]
            seen.append(int(number))
    assert sorted(seen) == list(range(len(flat)))


# --- other machines and workers; the last ones, because their Ray stays for the rest of the module


def test_from_s3_to_s3(s3: str, idea_model: str, tmp_path: Path) -> None:
    """Catches a folder or a source that must be on this machine."""
    folder = open_folder(f"{s3}/reconstruct_in")
    folder.make()
    for i in range(2):
        with folder.draft(f"idea_ww_{i}_00000.root") as file:
            file.write(different(i))
    local = reconstruct(idea_model, copies(tmp_path / "in", 2), output=tmp_path / "local", num_workers=1)
    for file_format in ("parquet", "root"):
        out = f"{s3}/reconstruct_{file_format}"
        options: dict[str, Any] = {"output": out, "num_workers": 1, "file_format": file_format}
        result = reconstruct(idea_model, [f"{s3}/reconstruct_in/*.root"], **options)
        assert result.num_candidates == local.num_candidates
        assert set(open_folder(out).names()) == {MANIFEST, *(source.file for source in result.sources)}
        assert reconstruct(idea_model, [f"{s3}/reconstruct_in/*.root"], **options) == result


def test_two_workers_find_what_one_process_finds(idea_model: str, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches results that depend on the number of workers, and workers that look for the model where only the driver finds it."""
    del cluster
    files = copies(tmp_path / "in", 3)
    (tmp_path / "in" / "text.root").write_text("not a ROOT file")
    files.append(str(tmp_path / "in" / "text.root"))
    hidden = tmp_path / "model"
    shutil.copytree(idea_model, hidden)
    from pfscale.training import reconstruct as module

    found = module._found

    def found_without_model(*arguments: Any) -> Any:
        shutil.rmtree(hidden)  # the driver has read it; no worker can
        return found(*arguments)

    monkeypatch.setattr(module, "_found", found_without_model)
    spread: Reconstruction = reconstruct(str(hidden), files, output=tmp_path / "spread", num_workers=2)
    monkeypatch.setattr(module, "_found", found)
    monkeypatch.setattr(module, "is_running", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alone = reconstruct(idea_model, files, output=tmp_path / "alone", num_workers=1)
    assert (spread.sources, len(spread.quarantined)) == (alone.sources, 1)
    for one, other in zip(spread.files, alone.files, strict=True):
        require_alike(candidates(one), candidates(other))
    assert os.path.basename(spread.files[0]) == "idea_ww_0_00000.candidates.parquet"
