"""What an ingest does when the world fails: a full disk, sources that change, two at once, strange names, very many files."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest_runs import EVENTS, IDEA, copies, everything, serially
from pfscale.errors import InputFileError, OutputExistsError, PfscaleError, ResourceError
from pfscale.shards import ingest as module
from pfscale.shards import writer
from pfscale.shards.dataset import load_index
from pfscale.shards.ingest import ingest
from pfscale.shards.lock import LOCK_FILE
from pfscale.shards.manifest import MANIFEST_FILE, REQUEST_FILE, load_manifest
from pfscale.shards.storage import UNFINISHED, Folder
from pfscale.shards.writer import Outcome, Unit

# --- disk full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of the given size; called again, the same one made larger."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        options = f"remount,size={size}" if mounted else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
        mounted = True
        return place

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("cluster")
def test_disk_full_in_a_worker(tmp_path: Path, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a full disk that ends in a traceback, in a half-written shard or in left-over files, and one that costs what was complete."""
    files = copies(tmp_path / "in", 1)
    out = small_disk("140k") / "out"
    with pytest.raises(ResourceError, match="disk is full") as caught:
        ingest(files, detector="idea", output=out, rows_per_shard=2)
    assert caught.value.where == str(out)
    assert caught.value.hint
    kept = {name: data for name, data in everything(out).items() if name != REQUEST_FILE}
    assert kept
    assert all(name.endswith(".parquet") for name in kept)
    serially(monkeypatch)
    small_disk("64m")
    manifest = ingest(files, detector="idea", output=out, rows_per_shard=2)
    assert manifest.num_events == EVENTS
    assert kept.items() <= everything(out).items()
    assert set(everything(out)) == {MANIFEST_FILE, *(shard.file for shard in manifest.shards)}
    assert manifest == ingest(files, detector="idea", output=tmp_path / "unbroken", rows_per_shard=2)


@pytest.mark.usefixtures("no_ray")
def test_disk_full_when_the_manifest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a manifest cut by a full disk, and an error without a word on what to do."""
    import resource

    files = copies(tmp_path / "in", 1)
    out = tmp_path / "out"
    write = module.write_manifest
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_with_little_room(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        try:
            write(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(module, "write_manifest", write_with_little_room)
    with pytest.raises(ResourceError, match="disk is full"):
        ingest(files, detector="idea", output=out)
    assert not (out / MANIFEST_FILE).exists()
    assert not list(out.glob(f"*{UNFINISHED}")), "a cut file is left"
    monkeypatch.setattr(module, "write_manifest", write)
    assert ingest(files, detector="idea", output=out).num_events == EVENTS


# --- sources that change


def after_examining(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Calls `change` when the files have been examined and none has been read."""
    note = module.note_request

    def note_and_change(*arguments: Any) -> None:
        note(*arguments)
        change()

    monkeypatch.setattr(module, "note_request", note_and_change)


def deleted(path: Path) -> None:
    path.unlink()


def appended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def being_copied(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20_000])


def touched(path: Path) -> None:
    os.utime(path)


@pytest.mark.parametrize(("change", "message"), [(deleted, "deleted"), (appended, "changed"), (being_copied, "changed"), (touched, None)])
@pytest.mark.usefixtures("no_ray")
def test_source_changed_while_it_is_read(
    change: Callable[[Path], None], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches shards made of two states of a file under one digest, and a file called damaged that is only being written."""
    good, other = copies(tmp_path / "in", 2)
    after_examining(monkeypatch, lambda: change(Path(other)))
    manifest = ingest([good, other], detector="idea", output=tmp_path / "out")
    if message is None:
        assert not manifest.quarantined
        return
    assert [record.path for record in manifest.quarantined] == [other]
    assert message in manifest.quarantined[0].reason
    assert [shard.source for shard in manifest.shards] == [good]
    assert set(everything(tmp_path / "out")) == {MANIFEST_FILE, manifest.shards[0].file}


def interrupted(files: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingest that is ended when its shards are there and the manifest is not."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(files, detector="idea", output=out, rows_per_shard=4)
    assert list(out.glob("*.parquet"))
    assert not (out / MANIFEST_FILE).exists()


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.usefixtures("no_ray")
def test_rerun_says_what_is_different(is_finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches "other data" without a word on which file has changed, is gone or is new, or which setting."""
    files, out = copies(tmp_path / "in", 3), tmp_path / "out"
    if is_finished:
        ingest(files, detector="idea", output=out, rows_per_shard=4)
    else:
        interrupted(files, out, monkeypatch)

    def rerun(sources: list[str], **changed: Any) -> str:
        with pytest.raises(OutputExistsError) as caught:
            ingest(sources, **{"detector": "idea", "output": out, "rows_per_shard": 4, **changed})
        assert caught.value.hint
        return str(caught.value)

    before = everything(out)
    text = rerun(files, rows_per_shard=1)
    assert "rows per shard 4, not 1" in text
    assert "process unset, not ttbar" in rerun(files, process="ttbar")
    assert "'idea_ww_2_00000.root' is not among the files given" in rerun(files[:2])
    assert "'idea_ww_7_00000.root' is not in it" in rerun([*files, str(shutil.copy(IDEA, tmp_path / "idea_ww_7_00000.root"))])
    appended(Path(files[1]))
    text = rerun(files)
    assert "'idea_ww_1_00000.root' changed since" in text
    assert "idea_ww_0" not in text
    Path(files[1]).unlink()
    assert "'idea_ww_1_00000.root' cannot be read any more" in rerun(files)
    assert everything(out) == before
    if is_finished:
        for file in files[::2]:
            Path(file).unlink()
        assert "complete" in rerun(files), "a data set does not need its sources"
        assert load_index(out).num_events == 3 * EVENTS


@pytest.mark.usefixtures("no_ray")
def test_number_of_workers_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rerun on another machine that begins anew."""
    files, out = copies(tmp_path / "in", 1), tmp_path / "out"
    interrupted(files, out, monkeypatch)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert ingest(files, detector="idea", output=out, rows_per_shard=4, num_workers=7).num_events == EVENTS
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}


# --- strict


@pytest.mark.usefixtures("no_ray")
def test_strict_stops_at_a_bad_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches --strict that lets unusable events pass because their file can be read, or one that calls an empty event bad."""
    from pfscale.shards.manifest import NO_VISIBLE_PARTICLE

    files = copies(tmp_path / "in", 1)
    extract = writer.stream_events

    def spoil(reason: str) -> None:
        from dataclasses import replace

        from pfscale.shards.events import DroppedEvent

        def with_a_bad_event(*arguments: Any, **named: Any) -> Iterator[Any]:
            for events in extract(*arguments, **named):
                yield replace(events, table=events.table.slice(1), dropped=(DroppedEvent(0, reason),))

        monkeypatch.setattr(writer, "stream_events", with_a_bad_event)

    spoil("energies do not close")
    with pytest.raises(InputFileError, match="event 0 cannot be used: energies do not close") as caught:
        ingest(files, detector="idea", output=tmp_path / "bad", strict=True)
    assert caught.value.where == files[0]
    assert len(ingest(files, detector="idea", output=tmp_path / "bad").dropped) == 1
    with pytest.raises(InputFileError, match="event 0"):
        ingest(files, detector="idea", output=tmp_path / "bad", strict=True)
    spoil(NO_VISIBLE_PARTICLE)
    assert len(ingest(files, detector="idea", output=tmp_path / "empty", strict=True).dropped) == 1


# --- two at once, and where to


@pytest.mark.usefixtures("no_ray")
def test_second_ingest_into_one_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches two ingests that delete each other's unfinished files."""
    files, out = copies(tmp_path / "in", 1), tmp_path / "out"
    at_work, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        at_work.set()
        assert go_on.wait(60)

    with monkeypatch.context() as patch:
        after_examining(patch, wait)
        first = threading.Thread(target=ingest, args=(files,), kwargs={"detector": "idea", "output": out})
        first.start()
        try:
            assert at_work.wait(60)
            with pytest.raises(ResourceError, match=f"another ingest is at work.*process {os.getpid()} on .*, since 2"):
                ingest([str(tmp_path / "not" / "even" / "there.root")], detector="idea", output=out)
        finally:
            go_on.set()
            first.join()
    assert load_manifest(out).num_events == EVENTS
    assert not (out / LOCK_FILE).exists()
    assert ingest(files, detector="idea", output=out).num_events == EVENTS


@pytest.mark.usefixtures("no_ray")
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """Catches tracebacks for the usual mistakes, and folders that are left behind by an ingest that did nothing."""
    files = copies(tmp_path / "in", 1)
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputExistsError, match="file"):
            ingest(files, detector="idea", output=output)
    with pytest.raises(InputFileError):
        ingest([str(tmp_path / "nothing.root")], detector="idea", output=tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()
    if os.geteuid() == 0:
        with pytest.raises((ResourceError, OutputExistsError)):  # root may write everywhere but here
            ingest(files, detector="idea", output="/proc/pfscale")
        return
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(ResourceError, match="cannot write"):
        ingest(files, detector="idea", output=tmp_path / "locked" / "out")


@pytest.mark.usefixtures("no_ray")
def test_names_of_all_kinds(tmp_path: Path) -> None:
    """Catches paths that are cut at colons, taken for globs, or whose letters no file system can hold in that length."""
    folder = tmp_path / "rün 1: *ä[x]" / "a:b"
    folder.mkdir(parents=True)
    path = folder / f"{'粒子' * 40} é.root"
    shutil.copy(IDEA, path)
    manifest = ingest([str(path)], detector="idea", output=tmp_path / "öut put")
    assert manifest.sources[0].name == path.name
    assert load_index(tmp_path / "öut put").num_events == EVENTS


@pytest.mark.usefixtures("no_ray")
def test_files_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches files of one name in two folders of which one overwrites the other, or that are refused though their events differ."""
    (one,), (two,) = copies(tmp_path / "1", 1), copies(tmp_path / "2", 1)
    with pytest.raises(InputFileError, match="twice") as caught:
        ingest([one, two], detector="idea", output=tmp_path / "same")
    assert one in str(caught.value)
    assert two in str(caught.value)
    assert not (tmp_path / "same").exists(), "the same contents can be told before anything is made"
    appended(Path(two))
    with pytest.raises(InputFileError, match="same file name, entry, run and number"):
        ingest([one, two], detector="idea", output=tmp_path / "equal_events")
    extract = writer.stream_events

    def of_another_run(source: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
        from dataclasses import replace

        import pyarrow as pa

        for events in extract(source, *arguments, **named):
            event = events.table.column("event").combine_chunks()
            children = [event.field(leaf.name) for leaf in event.type]
            uid = event.type.get_field_index("uid")
            children[uid] = pa.array([number + 1 for number in children[uid].to_pylist()], pa.uint64())
            other = pa.StructArray.from_arrays(children, fields=list(event.type))
            place = events.table.schema.get_field_index("event")
            table = events.table.set_column(place, events.table.schema.field("event"), other)
            yield replace(events, table=table) if source.path == two else events

    monkeypatch.setattr(writer, "stream_events", of_another_run)
    manifest = ingest([one, two], detector="idea", output=tmp_path / "different_events")
    assert manifest.num_events == 2 * EVENTS
    assert len({shard.file for shard in manifest.shards}) == 2


@pytest.mark.usefixtures("no_ray")
def test_large_shards_are_begun_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a large shard begun last, for which all other workers wait, and outcomes that are counted to another shard."""
    begun: list[int] = []
    write = module.write_or_tell

    def note(unit: Unit, folder: Folder) -> Outcome:
        begun.append(unit.stop - unit.start)
        return write(unit, folder)

    monkeypatch.setattr(module, "write_or_tell", note)
    manifest = ingest(copies(tmp_path / "in", 2), detector="idea", output=tmp_path / "out", rows_per_shard=4)
    assert begun == [4, 4, 4, 4, 2, 2]
    assert [(shard.start, shard.stop, shard.num_events) for shard in manifest.shards] == 2 * [(0, 4, 4), (4, 8, 4), (8, 10, 2)]


@pytest.mark.usefixtures("cluster")
def test_a_process_that_dies_importing_fails_nothing() -> None:
    """Catches an ingest that ends because a process died before it had any work, which Ray would have given to another."""
    import ray

    from pfscale.shards.workers import ImportAhead

    imports = ImportAhead(("json",), 1, 0.5)
    imports._loading.append(ray.remote(max_retries=0)(lambda: os._exit(1)).remote())
    imports.wait()


@pytest.mark.usefixtures("cluster")
def test_errors_cross_from_workers_as_they_are() -> None:
    """Catches our own errors that Ray wraps until nobody finds them, and bugs that are swallowed."""
    from pfscale.shards.workers import map_unordered

    def fail(number: int) -> int:
        if number == 1:
            raise ResourceError("the disk is full", where="here", hint="make room")
        raise KeyError("a bug")

    for items, kind in (([1], PfscaleError), ([2], RuntimeError)):
        with pytest.raises(kind, match=r"full|a bug"):
            list(map_unordered(items, fail, on_death=lambda _: None, workers=1, cpus_each=0.5))


@pytest.mark.usefixtures("no_ray")
def test_rerun_opens_no_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rerun of a thousand files that opens all of them to find out that nothing is to be done."""
    files, out = copies(tmp_path / "in", 2), tmp_path / "out"
    interrupted(files, out, monkeypatch)
    bad = str(tmp_path / "bad.root")
    Path(bad).write_text("no ROOT file")
    opened = []
    look = module.examine
    monkeypatch.setattr(module, "examine", lambda path, detector: opened.append(path) or look(path, detector))
    first = ingest(files, detector="idea", output=out, rows_per_shard=4)
    assert ingest(files, detector="idea", output=out, rows_per_shard=4) == first
    assert opened == []
    with_bad = ingest([*files, bad], detector="idea", output=tmp_path / "with_bad")
    assert opened == [bad, *files]
    assert ingest([*files, bad], detector="idea", output=tmp_path / "with_bad") == with_bad
    assert opened == [bad, *files, bad], "a file that was bad may have been mended"
