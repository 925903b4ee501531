"""Folders on disks and behind URLs, the lock on them, what goes wrong with addresses, and how sources are named and listed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pfscale.errors import InputFileError, OutputExistsError, PfscaleError, ResourceError
from pfscale.remote import base_name, no_room, remote_error, remote_filesystem, without_secrets
from pfscale.shards import lock
from pfscale.shards.lock import LEASE_FILE, claimed
from pfscale.shards.sources import expand_sources, file_digest, file_version, require_unchanged
from pfscale.shards.storage import UNFINISHED, Folder, RemoteFolder, open_folder, open_parquet


@pytest.fixture(params=["disk", "memory", "memory, with renames"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder that does not exist yet, of every kind; the last one as behind a protocol that shows files while they are written."""
    if request.param == "disk":
        return open_folder(tmp_path / "öut put")
    if request.param.endswith("renames"):
        monkeypatch.setattr("pfscale.shards.storage.OBJECT_STORES", frozenset())
    return open_folder(f"memory://{uuid.uuid4().hex}/shards")


def test_files_of_a_folder(folder: Folder) -> None:
    """Catches a verb that works on disks and not behind URLs, or the other way round."""
    assert not folder.exists()
    assert folder.names() == []
    folder.make()
    with pytest.raises(FileNotFoundError):
        folder.read_text("a.json")
    folder.write_text("a.json", "fünf")
    folder.write_text("a.json", "sechs µ")
    assert folder.read_text("a.json") == "sechs µ"
    assert folder.exists()
    assert folder.exists("a.json")
    assert not folder.exists("b.json")
    assert folder.create(".lock", "mine")
    assert not folder.create(".lock", "theirs")
    assert folder.read_text(".lock") == "mine"
    assert folder.names() == [".lock", "a.json"]
    assert folder.names("*.json") == ["a.json"]
    folder.remove("a.json")
    folder.remove("a.json")
    assert folder.names() == [".lock"]


def test_parquet_by_columns(folder: Folder, tmp_path: Path) -> None:
    """Catches shards that can be written to a URL and not read from it."""
    table = pa.table({"event": [{"uid": number, "run": 1} for number in range(1000)], "weight": list(range(1000))})
    pq.write_table(table, tmp_path / "local.parquet", row_group_size=100)
    folder.make()
    folder.put(tmp_path / "local.parquet", "a.parquet")
    with folder.open_parquet("a.parquet") as file:
        assert file.metadata.num_rows == 1000
    with open_parquet(folder.locate("a.parquet")) as file:
        column = file.read_row_group(3, columns=["event.uid"]).column("event").combine_chunks()
    assert column.field("uid").to_pylist() == list(range(300, 400))
    with pytest.raises(OSError, match=r".*"):
        folder.open_parquet("b.parquet")


def test_draft_that_fails_leaves_nothing(folder: Folder) -> None:
    """Catches half a file under its final name, and a temporary one that stays."""
    folder.make()
    folder.write_text("a", "before")

    def fail(name: str) -> None:
        with folder.draft(name) as file:
            file.write(b"half")
            assert name not in folder.names() or folder.read_text(name) == "before"
            raise KeyError("stop")

    for name in ("a", "b"):
        with pytest.raises(KeyError):
            fail(name)
    assert folder.names() == ["a"]
    assert folder.read_text("a") == "before"


def test_unfinished_files_are_cleared(folder: Folder) -> None:
    """Catches files of killed processes that stay for ever, and a clearing that deletes more."""
    folder.make()
    for name in (f".a.parquet.123{UNFINISHED}", ".ingest.json", "a.parquet"):
        folder.create(name, "")
    folder.clear_unfinished()
    assert folder.names() == [".ingest.json", "a.parquet"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), OSError("write: No space left on device")])
def test_full_disk_is_told(error: OSError, folder: Folder) -> None:
    """Catches a full disk that is told as a traceback: pyarrow gives its reason in the message only."""
    folder.make()
    with pytest.raises(ResourceError, match="disk is full") as caught, folder.draft("a"):
        raise error
    assert "run the same command again" in str(caught.value)
    assert folder.names() == []
    wrapped = RuntimeError("worker failed")
    wrapped.__cause__ = error
    assert no_room(wrapped, "x")
    assert no_room(OSError(errno.EIO, "x"), "x") is None


# --- locks


def test_second_claim_is_refused(folder: Folder) -> None:
    """Catches two ingests in one folder, and a refusal that does not say by whom."""
    with claimed(folder):
        with pytest.raises(ResourceError, match=f"process {os.getpid()} on ") as caught, claimed(folder):
            pass
        assert caught.value.hint
    assert folder.names() == []
    with claimed(folder) as claim:
        claim.require(now=True)


@pytest.fixture
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder behind a URL, with a fast heart."""
    for name, value in {"BEAT_SECONDS": 0.05, "STALE_SECONDS": 1.0, "SETTLE_SECONDS": 0.01}.items():
        monkeypatch.setattr(lock, name, value)
    return open_folder(f"memory://{uuid.uuid4().hex}/shards")


def lease(folder: Folder, **changes: Any) -> None:
    """Puts somebody else's lease into the folder."""
    holder = {"host": "far", "pid": 1, "started": "1", "machine": "other", "since": 1e9, "token": "theirs", "beat": time.time(), **changes}
    folder.write_text(LEASE_FILE, json.dumps(holder))


def test_lease_of_another_machine(quick_lease: Folder) -> None:
    """Catches a killed ingest on another machine that blocks its folder for ever, and a living one that is pushed aside."""
    lease(quick_lease)
    with pytest.raises(ResourceError, match=r"process 1 on far, since 2001-09-09") as caught, claimed(quick_lease):
        pass
    assert "works in 1 s" in str(caught.value.hint)
    assert LEASE_FILE in str(caught.value.hint)
    time.sleep(1.1)
    with claimed(quick_lease) as claim:
        claim.require(now=True)
    assert quick_lease.names() == []


def test_lease_of_a_dead_process_of_this_machine(quick_lease: Folder) -> None:
    """Catches a wait of minutes after kill -9, and the pid of a dead process that another one has by now."""
    if not lock._machine():
        pytest.skip("this system does not name its boots and process tables")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    lease(quick_lease, machine=lock._machine(), pid=child.pid)
    with claimed(quick_lease):
        pass
    lease(quick_lease, machine=lock._machine(), pid=os.getpid(), started="12")
    with claimed(quick_lease):
        pass
    lease(quick_lease, machine=lock._machine(), pid=os.getpid(), started=lock._started(os.getpid()))
    with pytest.raises(ResourceError, match="another ingest"), claimed(quick_lease):
        pass


def test_heart_beats_until_the_lease_is_lost(quick_lease: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a long ingest whose lease runs out while it works, and one that writes its manifest over that of its successor."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 4.0)  # on a busy machine a heart may stop for a second
    with claimed(quick_lease) as claim:
        time.sleep(4.2)
        with pytest.raises(ResourceError, match="another ingest"), claimed(quick_lease):
            pass
        claim.require(now=True)
        lease(quick_lease)
        with pytest.raises(ResourceError, match="taken the folder over"):
            claim.require(now=True)
        time.sleep(0.2)
        with pytest.raises(ResourceError, match="taken the folder over"):
            claim.require()
    assert json.loads(quick_lease.read_text(LEASE_FILE))["token"] == "theirs", "the successor's lease is not ours to delete"


def test_of_many_claims_at_once_one_is_granted(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a moment between looking and taking in which two get the folder."""
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.01)
    if isinstance(folder, RemoteFolder) and folder.names() == []:
        lease(folder, beat=0.0)
    granted, refused, all_tried = [], [], threading.Barrier(8)

    def claim() -> None:
        all_tried.wait()
        try:
            with claimed(folder):
                granted.append(1)
                time.sleep(0.5)
        except ResourceError:
            refused.append(1)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) <= 1
    assert len(granted) + len(refused) == 8
    with claimed(folder):
        pass


def test_disk_without_locks_gets_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, or no lock at all, on file systems that know no flock."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with claimed(open_folder(tmp_path / "out")):
        assert "beat" in json.loads((tmp_path / "out" / LEASE_FILE).read_text())
        with pytest.raises(ResourceError, match="another ingest"), claimed(open_folder(tmp_path / "out")):
            pass
    assert not (tmp_path / "out").exists()


def test_claim_of_a_file(tmp_path: Path) -> None:
    """Catches an output that is a file and is overwritten, or told as a traceback."""
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputExistsError), claimed(open_folder(path)):
            pass
    assert (tmp_path / "file").read_text() == "precious"


# --- addresses and their failures


class ClientResponseError(Exception):
    """As aiohttp's."""

    __module__ = "aiohttp.client_exceptions"

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='...'")
        self.status = status


class NoCredentialsError(Exception):
    """As botocore's."""

    __module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("address", "error", "kind", "words"),
    [
        ("s3://b/f", ImportError("no s3fs"), ResourceError, "pip install 'pfscale[s3]'"),
        ("root://h//f", ImportError("no fsspec_xrootd"), ResourceError, "pip install 'pfscale[xrootd]'"),
        ("gs://b/f", ImportError("no gcsfs"), ResourceError, "pip install gcsfs"),
        ("s3://b/f", NoCredentialsError("Unable to locate credentials"), ResourceError, "AWS_ACCESS_KEY_ID"),
        ("s3://b/f", PermissionError("Access Denied"), ResourceError, "refused"),
        ("s3://b/f", FileNotFoundError("b/f"), InputFileError, "no such file"),
        ("https://h/f", ClientResponseError(404), InputFileError, "no such file"),
        ("https://h/f", ClientResponseError(403), ResourceError, "refused"),
        ("https://h/f", ClientResponseError(503), ResourceError, "cannot be reached"),
        ("https://h/f", ConnectionRefusedError(111, "Connect call failed"), ResourceError, "cannot be reached"),
        ("https://h/f", TimeoutError(), ResourceError, "cannot be reached"),
        (
            "root://h//f",
            OSError("File stat request failed: [ERROR] Server responded with an error: [3011] x"),
            InputFileError,
            "no such file",
        ),
        ("root://h//f", OSError("Failed to open file: [FATAL] Auth failed"), ResourceError, "X509_USER_PROXY"),
        ("root://h//f", OSError("Failed to open file: [FATAL] Connection error"), ResourceError, "cannot be reached"),
    ],
)
def test_remote_failures(address: str, error: Exception, kind: type[PfscaleError], words: str) -> None:
    """Catches a network failure for which a good file is set aside, and errors that do not say what to do."""
    wrapped = ValueError("could not open")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        told = remote_error(address, raised)
        assert isinstance(told, kind)
        assert words in str(told)


def test_damage_is_not_the_network() -> None:
    """Catches a damaged file that is taken for a failing network because of a word in its name, so that it is never set aside."""
    for error in (ValueError("cannot decompress connect_timeout_403.root"), KeyError("404"), EOFError("timed out")):
        assert remote_error("s3://b/connect_timeout_403.root", error) is None


def test_unknown_protocol() -> None:
    """Catches a traceback for a misspelt URL."""
    with pytest.raises(InputFileError, match="no such protocol: 's4'"):
        remote_filesystem("s4://bucket/file.root")


def test_addresses_are_written_without_secrets() -> None:
    """Catches a signed link or a password in a manifest that is passed on."""
    assert without_secrets("https://me:pass@host:8443/a/b.root?X-Amz-Signature=abc") == "https://host:8443/a/b.root"
    assert without_secrets("root://user@host:1094//a/b.root") == "root://host:1094//a/b.root"
    assert without_secrets("/data/a?b@c.root") == "/data/a?b@c.root"
    assert base_name("https://host/a/b.root?token=x/y") == "b.root"
    assert base_name("s3://bucket/a/b?.root") == "b?.root"
    assert base_name("/data/a b.root") == "a b.root"


# --- sources


def test_lists_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches lists whose comments, globs or paths relative to the working directory are taken literally."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("a.root", "b.root", "c #1.root", "d e.root"):
        (tmp_path / "runs" / name).touch()
    (tmp_path / "all.txt").write_text("# training\nruns/[ab].root\n\n  runs/d e.root   # the odd one\ns3://bucket/f.root\n")
    found = expand_sources(["all.txt", "runs/a.root", str(tmp_path / "runs" / "c #1.root"), f"file://{tmp_path}/runs/b.root"])
    assert sorted(base_name(path) for path in found) == ["a.root", "b.root", "c #1.root", "d e.root", "f.root"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("# x\n\n*.nothing\n", 3, "no file matches"),
        ("other.list\n", 1, "another list"),
        ("# nothing\n", None, "names no files"),
    ],
)
def test_mistakes_in_lists(text: str, line: int | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mistake in line 3,000 of a list that is told without the line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.root").touch()
    (tmp_path / "files.list").write_text(text)
    with pytest.raises(InputFileError, match=words) as caught:
        expand_sources(["files.list"])
    assert caught.value.where == (f"files.list:{line}" if line else "files.list")
    with pytest.raises(InputFileError, match="no such list"):
        expand_sources(["nothing.txt"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputFileError, match="cannot read the list"):
        expand_sources(["binary.txt"])


@pytest.fixture
def in_memory() -> Iterator[str]:
    """The URL of a folder with three files."""
    place = f"memory://{uuid.uuid4().hex}"
    filesystem, path = remote_filesystem(place)
    for name in ("a.root", "b.root", "c.txt"):
        filesystem.pipe_file(f"{path}/{name}", name.encode() * 100_000)
    yield place
    filesystem.rm(path, recursive=True)


def test_remote_globs_and_lists(in_memory: str) -> None:
    """Catches globs that work on disks only, and a ? in an https address that is taken for one."""
    assert [base_name(path) for path in expand_sources([f"{in_memory}/*.root"])] == ["a.root", "b.root"]
    with pytest.raises(InputFileError, match="no file matches"):
        expand_sources([f"{in_memory}/*.rot"])
    assert expand_sources(["https://host/a.root?token=b"]) == ["https://host/a.root?token=b"]


def test_remote_digest_reads_both_ends(in_memory: str) -> None:
    """Catches a digest that does not notice other contents at either end, or another size."""
    filesystem, path = remote_filesystem(f"{in_memory}/a.root")
    data = filesystem.cat_file(path)
    size, digest = file_digest(f"{in_memory}/a.root")
    assert size == len(data)
    seen = {digest}
    for changed in (b"x" + data[1:], data[:-1] + b"x", data + b"t"):
        filesystem.pipe_file(path, changed)
        seen.add(file_digest(f"{in_memory}/a.root")[1])
    assert len(seen) == 4
    with pytest.raises(InputFileError, match="changed"):
        require_unchanged(f"{in_memory}/a.root", version="", digest=digest)
    filesystem.pipe_file(path, data)
    require_unchanged(f"{in_memory}/a.root", version="", digest=digest)
    filesystem.rm_file(path)
    with pytest.raises(InputFileError, match="deleted"):
        require_unchanged(f"{in_memory}/a.root", version="", digest=digest)


def test_version_shows_every_write(tmp_path: Path) -> None:
    """Catches a file that is replaced by one of the same size while it is read."""
    path = tmp_path / "a.root"
    path.write_bytes(b"12345")
    before = file_version(str(path))
    assert file_version(str(path)) == before
    (tmp_path / "b.root").write_bytes(b"54321")
    os.utime(tmp_path / "b.root", ns=(0, path.stat().st_mtime_ns))
    os.replace(tmp_path / "b.root", path)
    assert file_version(str(path)) != before
