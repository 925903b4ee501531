"""Ingest from and to other machines: an S3 server, an https server and an XRootD server on this one stand for them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import numpy as np
import pytest

from ingest_runs import CLD, EVENTS, different, environment
from pfscale.errors import InputFileError, OutputExistsError, ResourceError, ShardError
from pfscale.shards import ingest as module
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.ingest import ingest
from pfscale.shards.lock import LEASE_FILE
from pfscale.shards.manifest import MANIFEST_FILE, load_manifest, torn_shards
from pfscale.shards.storage import open_folder

XROOTD_TIMEOUT = 20  # seconds for the server to start


def upload(place: str, folder: str, number: int = 2) -> list[str]:
    """The URLs of copies of a small real file."""
    target = open_folder(f"{place}/{folder}")
    target.make()
    for i in range(number):
        with target.draft(f"idea_ww_{i}_00000.root") as file:
            file.write(different(i))
    return [target.locate(f"idea_ww_{i}_00000.root") for i in range(number)]


def everything(address: str | Path) -> dict[str, bytes]:
    """All files of a folder on a disk or behind a URL, hidden ones too."""
    folder = open_folder(address)
    filesystem, path = fsspec.core.url_to_fs(folder.address)
    return {name: filesystem.cat_file(f"{path}/{name}") for name in folder.names()}


def test_from_s3_to_s3_with_ray(s3: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Catches shards behind a URL that differ from those on a disk, workers that do not find the folder, and readers that want a path."""
    from pfscale.ray_cluster import ray_cluster

    files, out = upload(s3, "in"), f"{s3}/ray/out"
    with ray_cluster(num_cpus=2):
        manifest = ingest([f"{s3}/in/*.root"], detector="idea", output=out, rows_per_shard=8)
    request.getfixturevalue("no_ray")
    local = ingest(files, detector="idea", output=tmp_path / "local", rows_per_shard=8)
    assert manifest == local == load_manifest(out)
    assert [source.path for source in manifest.sources] == files
    assert everything(out) == everything(tmp_path / "local")
    assert set(everything(out)) == {MANIFEST_FILE, *(shard.file for shard in manifest.shards)}
    assert torn_shards(out, manifest) == []
    here, there = load_index(tmp_path / "local"), load_index(out)
    chosen = np.array([7, 3, 19, 3])
    np.testing.assert_array_equal(here.split_hash, there.split_hash)
    np.testing.assert_array_equal(read_events(here, chosen).features, read_events(there, chosen).features)


@pytest.mark.usefixtures("no_ray")
def test_rerun_on_s3(s3: str) -> None:
    """Catches a rerun that writes everything again, one that does not mend a lost shard, and other data that are mixed in."""
    files, out = upload(s3, "rerun_in"), f"{s3}/rerun_out"
    first = ingest(files, detector="idea", output=out, rows_per_shard=8)
    whole = everything(out)
    assert ingest(files, detector="idea", output=out, rows_per_shard=8) == first
    open_folder(out).remove(first.shards[1].file)
    assert torn_shards(out, first) == [first.shards[1].file]
    with pytest.raises(ShardError):
        load_index(out)
    assert ingest(files, detector="idea", output=out, rows_per_shard=8) == first
    assert everything(out) == whole
    with pytest.raises(OutputExistsError, match=r"'idea_ww_1_00000.root' is not among the files given"):
        ingest(files[:1], detector="idea", output=out, rows_per_shard=8)
    open_folder(f"{s3}/rerun_in").put(CLD, "idea_ww_1_00000.root")
    with pytest.raises(OutputExistsError, match=r"'idea_ww_1_00000.root' (changed since|cannot be read any more)"):
        ingest(files, detector="idea", output=out, rows_per_shard=8)


@pytest.mark.usefixtures("no_ray")
def test_object_replaced_while_it_is_read(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches events of two versions of an object in one shard."""
    files = upload(s3, "replaced_in")
    note = module.note_request

    def note_and_replace(*arguments: Any) -> None:
        note(*arguments)
        open_folder(f"{s3}/replaced_in").put(CLD, "idea_ww_1_00000.root")

    monkeypatch.setattr(module, "note_request", note_and_replace)
    manifest = ingest(files, detector="idea", output=f"{s3}/replaced_out")
    assert [(record.path, record.reason) for record in manifest.quarantined] == [(files[1], "the file has changed while it was read")]
    assert manifest.num_events == EVENTS


@pytest.mark.usefixtures("no_ray")
def test_places_that_are_not_there(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tracebacks of five libraries for a misspelt bucket, no credentials, or a server that does not answer."""
    (good, _) = upload(s3, "places")
    with pytest.raises(InputFileError, match="no such file"):
        ingest([f"{s3}/places/nothing.root"], detector="idea", output=tmp_path / "out")
    with pytest.raises(InputFileError, match="no file matches"):
        ingest(["s3://no-bucket/*.root"], detector="idea", output=tmp_path / "out")
    with pytest.raises(ResourceError, match="no such place"):
        ingest([good], detector="idea", output="s3://no-bucket/out")
    with pytest.raises(ShardError, match=r"no such folder"):
        load_manifest(f"{s3}/nothing")
    assert not (tmp_path / "out").exists()
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ResourceError, match="cannot be reached"):
        ingest([good], detector="idea", output=tmp_path / "out")
    with pytest.raises(ResourceError, match="cannot be reached"):
        load_index(f"{s3}/ray/out")
    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ResourceError, match="AWS_ACCESS_KEY_ID"):
        ingest([good], detector="idea", output=tmp_path / "out")
    s3fs.S3FileSystem.clear_instance_cache()


def test_killed_on_s3(s3: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Catches a killed ingest whose lease keeps its own rerun out, and half an object that is taken for a shard."""
    files, out = upload(s3, "killed_in", 1), f"{s3}/killed_out"
    request.getfixturevalue("no_ray")
    unbroken = ingest(files, detector="idea", output=tmp_path / "unbroken", rows_per_shard=4)
    script = (
        "import sys, pytest; from ingest_runs import serially; from pfscale.shards.ingest import ingest\n"
        "serially(pytest.MonkeyPatch())\n"
        "ingest(sys.argv[2:], detector='idea', output=sys.argv[1], rows_per_shard=4)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, out, *files], env=environment())
    folder = open_folder(out)
    try:
        while len(folder.names("*.parquet")) < 1 and process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(ResourceError, match=f"another ingest is at work in this folder .*process {process.pid} on "):
            ingest(files, detector="idea", output=out, rows_per_shard=4)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert LEASE_FILE in folder.names()
    assert MANIFEST_FILE not in folder.names()
    kept = set(folder.names("*.parquet"))
    assert ingest(files, detector="idea", output=out, rows_per_shard=4) == unbroken
    assert kept < set(folder.names())
    assert everything(out) == everything(tmp_path / "unbroken")


# --- https


class Ranges(BaseHTTPRequestHandler):
    """Serves one file by byte ranges and counts them; without a range, the whole."""

    data, sent, whole = b"", 0, 0

    def do_HEAD(self) -> None:
        self._head(200, len(self.data))

    def do_GET(self) -> None:
        if "nothing" in self.path:
            self._head(404, 0)
            return
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            type(self).whole += 1
            start, stop = 0, len(self.data)
        elif asked[1]:
            start, stop = int(asked[1]), min(int(asked[2] or len(self.data)) + 1, len(self.data))
        else:
            start, stop = len(self.data) - int(asked[2]), len(self.data)
        self._head(206 if asked else 200, stop - start, f"bytes {start}-{stop - 1}/{len(self.data)}")
        self.wfile.write(self.data[start:stop])
        type(self).sent += stop - start

    def _head(self, status: int, size: int, part: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.usefixtures("no_ray")
def test_https_by_ranges(tmp_path: Path) -> None:
    """Catches files that are downloaded whole, and a query with a secret in the name of an event or in the manifest."""
    Ranges.data, Ranges.sent, Ranges.whole = CLD.read_bytes(), 0, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        manifest = ingest([f"{address}/data/{CLD.name}?token=secret"], detector="cld", output=tmp_path / "out")
        with pytest.raises(InputFileError, match="no such file"):
            ingest([f"{address}/nothing.root"], detector="cld", output=tmp_path / "none")
        with pytest.raises(ResourceError, match="nothing can be written"):
            ingest([f"{address}/data/{CLD.name}"], detector="cld", output=f"{address}/out")
    finally:
        server.shutdown()
        server.server_close()
    assert manifest.num_events == 1
    assert manifest.sources[0].name == CLD.name
    assert "secret" not in (tmp_path / "out" / MANIFEST_FILE).read_text()
    assert Ranges.whole == 0
    assert Ranges.sent < len(Ranges.data)


@pytest.mark.usefixtures("no_ray")
def test_server_without_ranges(tmp_path: Path) -> None:
    """Catches a good file that is called damaged, or read wrongly, because its server answers every question with all of it."""
    (tmp_path / "in").mkdir()
    shutil.copy(CLD, tmp_path / "in")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "in"))
    with patch.object(SimpleHTTPRequestHandler, "log_message"), ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(ResourceError, match="no byte ranges"):
                ingest([f"http://127.0.0.1:{server.server_address[1]}/{CLD.name}"], detector="cld", output=tmp_path / "out")
        finally:
            server.shutdown()
    assert not (tmp_path / "out").exists()


# --- XRootD


@pytest.fixture
def xrootd() -> Iterator[str]:
    """The URL of the top folder of an XRootD server of this test."""
    pytest.importorskip("fsspec_xrootd", reason="pip install 'pfscale[xrootd]'")
    if shutil.which("xrootd") is None:
        pytest.skip("no xrootd server on this machine (Debian: apt-get install xrootd-server)")
    import tempfile

    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="xrd") as place:  # short: it holds the paths of sockets
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        top = Path(place)
        for name in ("data", "admin", "run"):
            (top / name).mkdir()
        lines = [f"xrd.port {port}", f"oss.localroot {top}/data", "all.export /"]
        lines += [f"all.adminpath {top}/admin", f"all.pidpath {top}/run"]
        (top / "server.cfg").write_text("\n".join(lines) + "\n")
        command = ["xrootd", "-c", str(top / "server.cfg"), "-l", str(top / "log")]
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(top, "xrootd")
            for path in top.rglob("*"):
                shutil.chown(path, "xrootd")
            command += ["-R", "xrootd"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + XROOTD_TIMEOUT
            while time.monotonic() < deadline and server.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                log = "".join(path.read_text() for path in top.glob("log*"))[-2000:]
                pytest.skip(f"the xrootd server does not start here: {log}")
            yield f"root://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait()


@pytest.mark.usefixtures("no_ray")
def test_from_xrootd_to_xrootd(xrootd: str, tmp_path: Path) -> None:
    """Catches root:// addresses that can be read and not globbed, or not written."""
    upload(xrootd, "in")
    manifest = ingest([f"{xrootd}/in/*.root"], detector="idea", output=f"{xrootd}/out/shards", rows_per_shard=4)
    assert manifest.num_events == 2 * EVENTS
    assert ingest([f"{xrootd}/in/*.root"], detector="idea", output=f"{xrootd}/out/shards", rows_per_shard=4) == manifest
    folder = open_folder(f"{xrootd}/out/shards")
    assert set(folder.names()) == {MANIFEST_FILE, *(shard.file for shard in manifest.shards)}
    index = load_index(f"{xrootd}/out/shards")
    for i in range(2):
        (tmp_path / f"idea_ww_{i}_00000.root").write_bytes(different(i))
    ingest([str(tmp_path / "*.root")], detector="idea", output=tmp_path / "local", rows_per_shard=4)
    local = load_index(tmp_path / "local")
    everyone = np.arange(2 * EVENTS)
    np.testing.assert_array_equal(read_events(index, everyone).features, read_events(local, everyone).features)
    with pytest.raises(InputFileError, match="no such file"):
        ingest([f"{xrootd}/in/nothing.root"], detector="idea", output=tmp_path / "none")
