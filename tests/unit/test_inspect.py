"""`pfscale inspect`: what a physicist reads of a data set and of one event, how an event is named, and what happens with wrong names."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pfscale.cli import run
from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError, NotEnoughDataError, ShardError
from pfscale.shards.events import extract_events
from pfscale.shards.inspect import inspect
from pfscale.shards.manifest import DroppedRecord, Manifest, QuarantinedSource, ShardRecord, SourceRecord, load_manifest, write_manifest

CLD = Path(__file__).parent.parent / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"


def shown(folder: Path | str, event: int | str | None = None, *, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(inspect(folder, event))
    return capture.get()


@pytest.fixture(scope="module")
def cld(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real CLD event as a data set whose other file and other entry could not be used."""
    folder = tmp_path_factory.mktemp("cld")
    with open_source(str(CLD)) as source:
        extracted = extract_events(source, find_detector("cld"), 0, 1, with_truth=True)
    pq.write_table(extracted.table, folder / "a.parquet")
    codes = {c: [t["class"] for t in extracted.table.to_pylist()[0][f"{c}_target"]] for c in ("track", "cluster")}
    names = ("none", "211", "130", "22", "11", "13")
    counts = {column: {name: found.count(i) for i, name in enumerate(names)} for column, found in codes.items()}
    manifest = Manifest(
        extraction_version=1,
        hash="cld",
        request="cld",
        detector="cld",
        process="ZH",
        simulation="geant4",
        has_baseline=True,
        num_events=1,
        splits={"train": 1, "validation": 0, "test": 0},
        track_classes=counts["track"],
        cluster_classes=counts["cluster"],
        num_particles=extracted.num_particles,
        num_surrogates=0,
        energy={"visible": extracted.energy_visible, "targets": extracted.energy_targets, "dropped": extracted.energy_dropped},
        sources=(SourceRecord(path=str(CLD), name=CLD.name, size=10**6, digest="d", num_entries=2, num_events=1, generation="podio-1.2"),),
        quarantined=(QuarantinedSource(path="cut.root", reason="the file is cut", error="InputFileError", exit_code=2),),
        dropped=(DroppedRecord(source=str(CLD), entry=1, reason="no visible particle"),),
        shards=(ShardRecord(file="a.parquet", source=str(CLD), start=0, stop=2, num_events=1),),
    )
    write_manifest(folder, manifest)
    return folder


def numbers_of(text: str, name: str) -> list[float]:
    """The numbers in the line that begins with `name`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", line.replace(name, "", 1))]


def test_overview_says_what_is_there_and_what_is_not(cld: Path) -> None:
    """Catches counts of the wrong column, and files or events that went missing without being told."""
    text = shown(cld)
    assert numbers_of(text, "tracks") == [24, 24, 24, 24]
    assert numbers_of(text, "clusters") == [48, 48, 48, 48]
    assert numbers_of(text, "baseline candidates") == [52, 52, 52, 52]
    assert numbers_of(text, "211 pi+") == [18, 75.0, 0, 0]
    assert numbers_of(text, "b ") == [2, 100, 52.3]
    assert numbers_of(text, "crossing-angle boost, px") == pytest.approx([3.59] * 4, abs=0.01)
    for expected in ("podio-1.2", "cut.root", "the file is cut", "no visible particle", f"{CLD.name}:1"):
        assert expected in text


def test_the_event_shows_truth_and_baseline_side_by_side(cld: Path) -> None:
    """Catches candidates at the wrong element, and particles merged or dropped that are not shown."""
    text = shown(cld, 0)
    first = next(line for line in text.splitlines() if line.startswith("T 0 "))
    assert "K+" in first
    assert "pi+ 13.74" in first
    assert numbers_of(text, "targets") == pytest.approx([39, 116.54, 2.05, -36.12, 36.17], abs=0.01)
    assert numbers_of(text, "baseline candidates")[:2] == pytest.approx([52, 114.14], abs=0.01)
    assert "dropped" in text


def test_merged_particles_stand_below_their_owner(cld: Path, tmp_path: Path) -> None:
    """Catches a target whose energy nobody understands because what was merged into it is not named."""
    row = pq.read_table(cld / "a.parquet").to_pylist()[0]
    number = next(i for i, p in enumerate(row["gen_particle"]) if p["owner"] < 0)
    row["gen_particle"][number] |= {"owner": 3, "pdg": 310}
    pq.write_table(pa.Table.from_pylist([row], schema=pq.read_schema(cld / "a.parquet")), tmp_path / "a.parquet")
    write_manifest(tmp_path, load_manifest(cld))
    lines = shown(tmp_path, 0).splitlines()
    owner = next(i for i, line in enumerate(lines) if line.startswith("T 3 "))
    assert "+ K(S)0" in lines[owner + 1]
    assert lines[owner + 2].startswith("T 4 ")


@pytest.mark.parametrize("event", [None, "0"])
def test_tables_fit_a_terminal_of_80_columns(cld: Path, event: str | None) -> None:
    """Catches numbers cut off or broken over lines on a narrow terminal."""
    narrow, wide = shown(cld, event), shown(cld, event, width=160)
    assert "…" not in narrow
    assert all(len(line) <= 80 for line in narrow.splitlines())
    broken = 2  # long file names and the legend may take a second line
    assert len(narrow.splitlines()) <= len(wide.splitlines()) + broken


def test_an_event_by_number_uid_and_entry(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    """Catches names that lead to another event, across shards and row groups."""
    folder = make_shards(300)
    for number in (0, 31, 32, 127, 128, 299):
        assert f"synthetic:{number}\n" in shown(folder, number).replace(" \n", "\n")
        assert shown(folder, str(number)) == shown(folder, f"uid:{number}")
    named = load_manifest(folder).model_copy(
        update={"sources": (SourceRecord(path="in/synthetic", name="synthetic", size=1, digest="d", num_entries=300),)}
    )
    for shard in named.shards:
        (tmp_path / shard.file).symlink_to(folder / shard.file)
    write_manifest(tmp_path, named)
    assert shown(tmp_path, "synthetic:130") == shown(tmp_path, 130)
    with pytest.raises(NotEnoughDataError):
        inspect(tmp_path, "synthetic:300")
    with pytest.raises(NotEnoughDataError) as error:
        inspect(tmp_path, "syntetic:3")
    assert "synthetic:3" in str(error.value)


def test_wrong_events_are_told(cld: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a negative number that counts from the end, a traceback, and an event left out that looks mistyped."""
    for wrong in ("-1", "1", "uid:7"):
        with pytest.raises(NotEnoughDataError):
            inspect(cld, wrong)
    with pytest.raises(InputFileError):
        inspect(cld, "first")
    with pytest.raises(NotEnoughDataError) as error:
        inspect(cld, f"{CLD.name}:1")
    assert "no visible particle" in str(error.value)
    assert run(["inspect", str(cld), "--event", "-1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_data_set_and_a_torn_shard(cld: Path, tmp_path: Path) -> None:
    """Catches Arrow's own errors in front of users, for the overview and for one event."""
    with pytest.raises(ShardError):
        inspect(tmp_path)
    write_manifest(tmp_path, load_manifest(cld))
    for content in (None, b"PAR1 cut"):
        if content:
            (tmp_path / "a.parquet").write_bytes(content)
        for event in (None, 0, "uid:7"):
            with pytest.raises(ShardError):
                inspect(tmp_path, event)


def test_a_data_set_behind_a_url(cld: Path) -> None:
    """Catches `s3://bucket` taken for a local path with one slash."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in cld.iterdir():
        memory.pipe_file(f"/bucket/inspect/{path.name}", path.read_bytes())
    assert run(["inspect", "memory://bucket/inspect"]) == 0
    assert "T 0" in shown("memory://bucket/inspect", 0)
