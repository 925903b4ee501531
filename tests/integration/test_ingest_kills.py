"""kill -9 of an ingest, of its workers, or of everything: a rerun gives what an unbroken ingest gives, nothing twice, nothing missing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingest_runs import copies, environment, everything, serially
from kills import children_named, kill_with_children
from pfscale.shards import ingest as module
from pfscale.shards import writer
from pfscale.shards.ingest import ingest
from pfscale.shards.manifest import MANIFEST_FILE

SEED = 20261122  # of the moments at which processes are killed


def _kill_before_operation(which: int, files: list[str], out: str) -> None:
    """Ingests in a forked process that is killed right before the given file operation (open, rename, delete) in the output folder."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "fcntl.flock") and out in str(arguments[0]):
            seen += 1
            if seen == which:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        sys.addaudithook(count)
        ingest(files, detector="idea", output=out, rows_per_shard=4, rows_per_group=1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        raise StopIteration
    assert status == -signal.SIGKILL, status


def _remembered(function: Callable[..., Any], key: Callable[..., Any], known: dict[Any, Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        place = (function.__name__, key(*arguments))
        if place not in known:
            result = function(*arguments, **named)
            known[place] = list(result) if isinstance(result, Iterator) else result
        return known[place]

    return call


def kill_at_every_operation(files: list[str], folder: str) -> int:
    """The number of moments at which an ingest was killed; after each a rerun gave the same folder as an unbroken ingest."""
    serially(pytest.MonkeyPatch())
    # what is read and extracted is the same every time; what is tested is what is written
    known: dict[Any, Any] = {}
    for where, name, key in (
        (module, "examine", lambda path, *_: path),
        (writer, "stream_events", lambda source, _, *span: (source.path, span)),
    ):
        setattr(where, name, _remembered(getattr(where, name), key, known))
    unbroken = Path(folder, "unbroken")
    ingest(files, detector="idea", output=unbroken, rows_per_shard=4, rows_per_group=1)
    writer.open_source = lambda path: nullcontext(SimpleNamespace(path=path))  # type: ignore[assignment]
    whole = everything(unbroken)
    for which in range(1, 1000):
        out = Path(folder, f"killed_{which}")
        try:
            _kill_before_operation(which, files, str(out))
        except StopIteration:
            return which - 1
        ingest(files, detector="idea", output=out, rows_per_shard=4, rows_per_group=1)
        assert everything(out) == whole, f"killed before operation {which}: {set(everything(out)) ^ set(whole)}"
    raise AssertionError("the ingest never ended")


def test_killed_before_every_file_operation(tmp_path: Path) -> None:
    """Catches every order of writing, renaming and deleting that a kill at the wrong moment turns into lost, doubled or left-over files."""
    files = copies(tmp_path / "in", 2)
    script = f"import test_ingest_kills as t; print('kills', t.kill_at_every_operation({files!r}, {str(tmp_path)!r}))"
    # a process of its own: it forks, which must not happen beside Ray's threads
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 20


@pytest.fixture
def start_ingest(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts an ingest in a process of its own, which says `begin` right before; none is left at the end."""
    script = (
        "import sys; from pfscale.ray_cluster import ray_cluster; from pfscale.shards.ingest import ingest\n"
        "with ray_cluster(num_cpus=2):\n"
        "    print('begin', flush=True)\n"
        "    ingest(sys.argv[2:], detector='idea', output=sys.argv[1], num_workers=2, rows_per_shard=1, rows_per_group=1)\n"
    )
    started: list[subprocess.Popen[str]] = []

    def start(files: list[str], out: Path, address: str | None) -> subprocess.Popen[str]:
        variables = {name: value for name, value in environment().items() if name != "RAY_ADDRESS"}
        if address is not None:
            variables["RAY_ADDRESS"] = address
        log = (tmp_path / f"ingest_{len(started)}.log").open("w")
        command = [sys.executable, "-c", script, str(out), *files]
        started.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "begin\n", (tmp_path / f"ingest_{len(started) - 1}.log").read_text()
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            kill_with_children(process)
        process.wait()


def kill_a_worker(draw: random.Random) -> bool:
    """kill -9 of one process that makes shards in the Ray of these tests; False where none does."""
    workers = children_named(os.getpid(), "ray::MapBatches")  # not one of the agents, without which the whole node ends
    if not workers:
        return False
    draw.choice(workers).kill()
    return True


def require_same(files: list[str], out: Path, whole: dict[str, bytes], about: str) -> None:
    """Runs the ingest again in `out` and checks that nothing is missing, doubled or left over."""
    ingest(files, detector="idea", output=out, num_workers=2, rows_per_shard=1, rows_per_group=1)
    found = everything(out)
    assert found.keys() == whole.keys(), f"{about}: {found.keys() ^ whole.keys()}"
    assert found == whole, about


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_killed_at_a_random_moment(
    victim: str, tmp_path: Path, start_ingest: Callable[..., subprocess.Popen[str]], cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches shards or events that are lost, doubled or left half after kill -9 of the ingest, or of one of Ray's workers."""
    files, out, draw = copies(tmp_path / "in", 2), tmp_path / "out", random.Random(f"{SEED} {victim}")
    process = start_ingest(files, out, cluster)
    while not list(out.glob("*.parquet")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05 * draw.random())  # of 0.2 s or more until the last of twenty shards is there
    if victim == "worker":
        while not (was_killed := kill_a_worker(draw)) and process.poll() is None:
            time.sleep(0.002)  # between two tasks no process makes shards
        assert was_killed
        assert process.wait(timeout=300) == 0
        assert (out / MANIFEST_FILE).exists()
    else:
        process.kill()
        process.wait()
        assert not (out / MANIFEST_FILE).exists()
    serially(monkeypatch)
    ingest(files, detector="idea", output=tmp_path / "unbroken", rows_per_shard=1, rows_per_group=1)
    require_same(files, out, everything(tmp_path / "unbroken"), victim)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", ["driver", "worker", "everything"])
def test_killed_at_many_random_moments(
    victim: str, tmp_path: Path, start_ingest: Callable[..., subprocess.Popen[str]], cluster: str
) -> None:
    """The same, ten times each, at moments spread from examining the files to writing the manifest; `everything`: with its whole Ray."""
    files, draw, kills, tries, num_kills = copies(tmp_path / "in", 4), random.Random(f"{SEED} {victim}"), 0, 0, 10
    address = None if victim == "everything" else cluster
    process, begun = start_ingest(files, tmp_path / "unbroken", address), time.monotonic()
    assert process.wait(timeout=300) == 0
    seconds, whole = time.monotonic() - begun, everything(tmp_path / "unbroken")
    while kills < num_kills:
        tries += 1
        assert tries < 3 * num_kills, "the ingests end before they are killed"
        # an ingest that was quicker than the first has ended before a late moment: then an earlier one
        moment = seconds * (kills + draw.random()) / num_kills * 0.9 ** (tries - kills - 1)
        out = tmp_path / f"out_{tries}"
        process, begun = start_ingest(files, out, address), time.monotonic()
        time.sleep(moment)
        if victim == "worker":
            while process.poll() is None and not kill_a_worker(draw):
                time.sleep(0.01)
        was_killed = process.poll() is None
        shards = len(list(out.glob("*.parquet")))
        about = f"{victim}: kill {kills + 1} at {time.monotonic() - begun:.2f} of {seconds:.2f} s, seed {SEED}, {shards} shards"
        if victim == "everything" and was_killed:
            kill_with_children(process)
        elif victim == "driver":
            process.kill()
        assert process.wait(timeout=300) == 0 or victim != "worker", about
        print(about if was_killed else f"{about} (had ended)", flush=True)
        require_same(files, out, whole, about)
        kills += was_killed


@pytest.mark.usefixtures("cluster")
def test_item_that_kills_its_workers() -> None:
    """Catches one file that crashes the reading library and takes the whole ingest with it, or its neighbours in the same task."""
    from pfscale.shards.workers import map_unordered

    def double(number: int) -> int:
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number

    results = dict(map_unordered(list(range(40)), double, on_death=lambda number: -number, workers=2, cpus_each=0.5))
    assert results == {number: -5 if number == 5 else 2 * number for number in range(40)}
