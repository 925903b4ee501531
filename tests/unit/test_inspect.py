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
from pfscale.shards.inspect_event import is_boosted
from pfscale.shards.manifest import DroppedRecord, Manifest, QuarantinedSource, ShardRecord, SourceRecord, load_manifest, write_manifest

DATA = Path(__file__).parent.parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"


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
    assert numbers_of(text, "211 charged hadron") == [18, 75.0, 0, 0]
    assert numbers_of(text, "D hadron from B") == [15, 36.6]
    assert numbers_of(text, "b ") == [2, 100, 52.3]
    assert "top decay" not in text
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


def test_jets_of_tops_are_named(cld: Path, tmp_path: Path) -> None:
    """Catches a top's and an antitop's jets exchanged or left out, in the overview or the event."""
    row = pq.read_table(cld / "a.parquet").to_pylist()[0]
    row["gen_jet"][0]["top_role"], row["gen_jet"][1]["top_role"] = -1, 2
    pq.write_table(pa.Table.from_pylist([row], schema=pq.read_schema(cld / "a.parquet")), tmp_path / "a.parquet")
    write_manifest(tmp_path, load_manifest(cld))
    assert [numbers_of(shown(tmp_path), name) for name in ("b of tbar", "q of W+")] == [[1, 1.0], [1, 1.0]]
    jets = shown(tmp_path, 0).partition("gen jet ")[2].splitlines()
    assert ["b of tbar" in jets[2], "q of W+" in jets[3]] == [True, True]


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
        assert f"synthetic:{number}, uid:{number}\n" in shown(folder, number).replace(" \n", "\n")
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
    for wrong in ("first", "+-1", "²", "uid:²", "1.5", ":0", ""):
        with pytest.raises(InputFileError):
            inspect(cld, wrong)
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


# --- names ----------------------------------------------------------------------------------------------------------------------------


def test_the_overview_names_the_first_event_in_every_way(cld: Path) -> None:
    """Catches forms of a name that a user cannot fill in, because no uid is shown anywhere."""
    names = re.findall(r"--event (\S+)", shown(cld))
    assert len(names) == 3
    assert any(name.startswith("uid:") for name in names)
    for name in names:
        assert shown(cld, name) == shown(cld, 0)
    assert next(name for name in names if name.startswith("uid:")) in shown(cld, 0).splitlines()[0]


def test_a_name_of_two_events_is_told(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    """Catches one of two events shown for the other: files of one name in two folders may hold different events."""
    folder, held = make_shards(300), load_manifest(make_shards(300))
    sources = tuple(SourceRecord(path=f"{place}/synthetic", name="synthetic", size=1, digest=place, num_entries=300) for place in "ab")
    first, second, third = held.shards
    shards = (
        first.model_copy(update={"source": "a/synthetic"}),
        second.model_copy(update={"source": "b/synthetic", "start": 0, "stop": 128}),
        third,
    )
    for shard in shards:
        (tmp_path / shard.file).write_bytes((folder / shard.file).read_bytes())
    table = pq.read_table(tmp_path / second.file).to_pylist()
    for row in table:
        row["event"]["entry"] -= 128
    pq.write_table(pa.Table.from_pylist(table, schema=pq.read_schema(folder / second.file)), tmp_path / second.file)
    write_manifest(tmp_path, held.model_copy(update={"sources": sources, "shards": shards}))
    with pytest.raises(InputFileError) as error:
        inspect(tmp_path, "synthetic:5")
    assert {"uid:5", "uid:133"} <= set(re.findall(r"uid:\d+", str(error.value)))
    assert shown(tmp_path, "uid:133") == shown(tmp_path, 133)
    dropped = (DroppedRecord(source="a/synthetic", entry=7, reason="broken"),)
    write_manifest(tmp_path, load_manifest(tmp_path).model_copy(update={"dropped": dropped}))
    with pytest.raises(InputFileError):
        inspect(tmp_path, "synthetic:7")  # left out of one of the two files only


# --- what stands there instead --------------------------------------------------------------------------------------------------------


def test_what_is_not_a_data_set_is_called_by_its_name(cld: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches "no manifest.json" for a ROOT file, a folder of ROOT files, a folder of data sets and one that does not exist."""
    with pytest.raises(ShardError) as error:
        inspect(CLD)
    assert "pfscale ingest" in str(error.value.hint)
    assert str(CLD) in str(error.value.hint)
    with pytest.raises(ShardError) as error:
        inspect(DATA)
    assert str(DATA / "*.root") in str(error.value.hint)
    for name in "abcdefg":
        (tmp_path / name).symlink_to(cld)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ShardError) as error:
        inspect(tmp_path)
    named = re.findall(rf"{tmp_path}/(\w+)", str(error.value.hint))
    assert named == list("abcde")
    assert "..." in str(error.value.hint)
    assert run(["inspect", str(tmp_path / "mistyped")]) == 2
    assert run(["inspect", str(tmp_path / "notes")]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "no such folder" in told


def test_a_folder_of_data_sets_behind_a_url(cld: Path) -> None:
    """Catches hints that only know local folders."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in cld.iterdir():
        memory.pipe_file(f"/bucket/parent/one/{path.name}", path.read_bytes())
    with pytest.raises(ShardError) as error:
        inspect("memory://bucket/parent")
    assert "memory://bucket/parent/one" in str(error.value.hint)
    with pytest.raises(ShardError) as error:
        inspect("memory://bucket/events.root")
    assert "pfscale ingest" in str(error.value.hint)


def test_secrets_of_an_address_are_not_shown(cld: Path) -> None:
    """Catches a password in a terminal, or in the log of a job."""
    import fsspec

    memory, address = fsspec.filesystem("memory"), "memory://me:secret@bucket/private"
    for path in cld.iterdir():
        memory.pipe_file(f"/me:secret@bucket/private/{path.name}", path.read_bytes())
    manifest = load_manifest(cld)
    bad = manifest.quarantined[0].model_copy(update={"path": "https://me:secret@host/cut.root?signature=secret"})
    dropped = manifest.dropped[0].model_copy(update={"source": "https://me:secret@host/a.root?signature=secret"})
    write_manifest(address, manifest.model_copy(update={"quarantined": (bad,), "dropped": (dropped,)}))
    text = shown(address) + shown(address, 0)
    assert "memory://bucket/private" in text
    assert "https://host/cut.root" in text
    assert "a.root:1" in text
    assert "secret" not in text
    memory.pipe_file("/me:secret@bucket/private/a.parquet", b"PAR1 cut")
    wrong = [(address, None), (address, "uid:7"), (address, "9"), (address, "other.root:3"), ("memory://me:secret@bucket/none", None)]
    for folder, event in wrong:
        with pytest.raises((ShardError, NotEnoughDataError)) as error:
            inspect(folder, event)
        assert "secret" not in str(error.value)
    memory.pipe_file("/me:secret@bucket/private/manifest.json", b"{")
    with pytest.raises(ShardError) as error:
        inspect(address)
    assert "secret" not in str(error.value)


# --- numbers --------------------------------------------------------------------------------------------------------------------------


def test_shares_add_up_and_contradictions_are_told(cld: Path, tmp_path: Path) -> None:
    """Catches percentages of another total than what is shown, and a manifest that is not of these shards passed over in silence."""
    (tmp_path / "a.parquet").write_bytes((cld / "a.parquet").read_bytes())
    manifest = load_manifest(cld)
    assert "contradicts" not in shown(cld)
    changes: dict[str, object] = {"num_events": 3, "splits": {"train": 1, "validation": 3, "test": 0}, "num_particles": 40}
    write_manifest(tmp_path, manifest.model_copy(update=changes | {"track_classes": manifest.track_classes | {"22": 1}}))
    text = shown(tmp_path, width=200)
    line = next(line for line in text.splitlines() if line.startswith("splits"))
    assert sum(float(share) for share in re.findall(r"\(([\d.]+)%\)", line)) == pytest.approx(100, abs=0.2)
    told = next(line for line in text.splitlines() if "contradicts" in line)
    assert {"3", "4", "40", "25"} <= set(re.findall(r"\d+", told))
    with pytest.raises(ShardError):
        inspect(tmp_path, 2)


def test_a_boost_is_only_told_of_where_there_is_one() -> None:
    """Catches a particle gun's own momentum shown as the boost by the crossing angle, and a boost of beams that do not cross."""
    energy = [370.0, 210.0, 95.0]
    assert is_boosted("clic", [3.8, 3.8, 3.79], energy)
    assert not is_boosted("clic", [0.0, 0.0, 0.0], energy)
    assert not is_boosted("clic", [-3.8, -3.8, -3.8], energy)
    assert not is_boosted("clic", [1.05, -0.47, -1.65], [3.74, 9.98, 5.76])
    assert not is_boosted("clic", [2.0, 2.0, 2.0], [5.0, 5.0, 5.0])  # a gun that shoots in one direction
    assert not is_boosted("drift-chamber", [3.8, 3.8, 3.8], energy)


def test_a_gun_has_no_boost(cld: Path, tmp_path: Path) -> None:
    """Catches the real gun's momentum under the name of the crossing angle, and taken off the neutrinos that it does not have."""
    path = DATA / "clic_photon_gun_3ev_legacy.root"
    with open_source(str(path)) as source:
        table = extract_events(source, find_detector("clic"), 0, 3, with_truth=True).table
    folder = tmp_path / "gun"
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    shards = (ShardRecord(file="a.parquet", source=str(path), start=0, stop=3, num_events=3),)
    write_manifest(folder, load_manifest(cld).model_copy(update={"detector": "clic", "num_events": 3, "shards": shards}))
    assert numbers_of(shown(folder), "all stable particles, px") == pytest.approx([-0.47, -0.36, 0.90, 1.05], abs=0.01)
    assert numbers_of(shown(folder, 0), "neutrinos") == [0, 0, 0]
    for text in (shown(folder), shown(folder, 0)):
        assert "crossing-angle" not in text
        assert "less boost" not in text


def test_one_word_has_one_meaning(cld: Path) -> None:
    """Catches the event's weight, the weight of a track's link and the energy of hits under one name."""
    lines = shown(cld, 0).splitlines()
    header = next(line for line in lines if "particle" in line and "pt|et" in line)
    assert "weight" not in header
    assert "link|hits" in header
    assert next(line for line in lines if line.startswith("T 9 ")).split()[-5] == "0.91"


def test_what_looks_wrong_in_the_table_is_explained(cld: Path, make_shards: Callable[..., Path]) -> None:
    """Catches a photon called 211 without a word, and rows of clusters that are empty though their particle is known."""
    text = shown(cld, 0)
    converted = next(line for line in text.splitlines() if line.startswith("211 of a neutral"))
    assert re.findall(r"T \d+", converted) == ["T 19", "T 21"]
    assert "(T 9)" in next(line for line in text.splitlines() if line.startswith("C 1 "))
    alone = next(line for line in text.splitlines() if line.startswith("C 14 "))
    assert "none" in alone
    assert "(T" not in alone
    plain = shown(make_shards(300), 0)
    assert "211 of a neutral" not in plain
    assert "(T n)" not in plain


def test_a_charged_particle_in_a_cluster_is_explained(cld: Path, tmp_path: Path) -> None:
    """Catches a pion that is called a neutral hadron, because its track was lost, without a word."""
    row = pq.read_table(cld / "a.parquet").to_pylist()[0]
    row["cluster_target"][27]["charge"] = -1
    pq.write_table(pa.Table.from_pylist([row], schema=pq.read_schema(cld / "a.parquet")), tmp_path / "a.parquet")
    write_manifest(tmp_path, load_manifest(cld))
    (line,) = (line for line in shown(tmp_path, 0, width=200).splitlines() if line.startswith("130, 22 of a charged"))
    assert re.findall(r"C \d+", line) == ["C 27"]
