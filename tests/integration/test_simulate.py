"""The built-in source on Ray: the same events for any number of workers, after any kill, and nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uproot

from pfscale.errors import PfscaleError, ResourceError
from pfscale.simulation import simulate as module
from pfscale.simulation.simulate import simulate

pytest.importorskip("pythia8mc")

SETTINGS: dict[str, Any] = {
    "detector": "cld",
    "process": "ZH",
    "num_events": 26,
    "seed": 5,
    "events_per_file": 9,
    "higgs_decay": "bb",
    "z_decay": "nunu",
}
LONG: dict[str, Any] = {"detector": "clic", "process": "ttbar", "num_events": 600, "seed": 7, "events_per_file": 200}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests here; simulate must not shut down what it did not start."""
    from pfscale.ray_cluster import ray_cluster

    with ray_cluster(num_cpus=3):
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of LONG, made without Ray."""
    folder = tmp_path_factory.mktemp("unbroken")
    simulate(**LONG, output=folder)
    return folder


def assert_same_events(first: Path, second: Path) -> None:
    """Every branch of every file is the same to the bit, and there is nothing else in the folders."""
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all(name.endswith(".root") for name in names)
    for name in names:
        with uproot.open(first / name) as a, uproot.open(second / name) as b:
            for tree in ("events", "podio_metadata", "pfscale_metadata"):
                columns, others = a[tree].arrays(library="np"), b[tree].arrays(library="np")
                assert columns.keys() == others.keys()
                for branch, values in columns.items():
                    assert len(values) == len(others[branch])
                    assert all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(values, others[branch], strict=True)), (
                        branch
                    )


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true value of the condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it never happened")


def writers(folder: Path) -> list[psutil.Process]:
    """Processes that have an unfinished file of the folder open."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(file.path.startswith(str(folder)) and file.path.endswith(".partial") for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    """Catches: a random state shared by chunks, so that the schedule decides the events; progress that does not add up."""
    for workers in (0, 1, 2, 3):
        done: list[int] = []
        paths = simulate(**SETTINGS, output=tmp_path / str(workers), num_workers=workers, progress=done.append)
        assert [path.name for path in paths] == [f"cld_ZH_5_{number:05d}.edm4hep.root" for number in range(3)]
        assert sum(done) == SETTINGS["num_events"]
    for workers in (0, 2, 3):
        assert_same_events(tmp_path / "1", tmp_path / str(workers))
    with uproot.open(tmp_path / "1" / "cld_ZH_5_00000.edm4hep.root") as a, uproot.open(tmp_path / "1" / "cld_ZH_5_00001.edm4hep.root") as b:
        assert a["events/MCParticles.PDG"].array()[:3].tolist() != b["events/MCParticles.PDG"].array()[:3].tolist(), "chunks repeat"


def test_killed_worker_costs_a_repetition(tmp_path: Path, unbroken: Path) -> None:
    """Catches: a chunk lost with its worker, or its half-written file left behind."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(simulate(**LONG, output=tmp_path, num_workers=2)))
    thread.start()
    victim = wait_for(lambda: writers(tmp_path))[0]
    assert victim.pid != os.getpid()
    victim.send_signal(signal.SIGKILL)
    thread.join(300)
    assert len(outcome) == 1
    assert_same_events(tmp_path, unbroken)


DRIVER = """
import sys
from pfscale.simulation.simulate import simulate

if __name__ == "__main__":
    simulate(detector="clic", process="ttbar", num_events=600, seed=7, events_per_file=200, output=sys.argv[1], num_workers=2)
"""


def test_killed_driver_is_taken_up_again(tmp_path: Path, unbroken: Path) -> None:
    """Catches: a rerun that redoes finished files, trusts half-written ones, or leaves them."""
    folder = tmp_path / "root"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    driver = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    first = wait_for(lambda: list(folder.glob("*.root")))[0]
    working = wait_for(lambda: writers(folder))
    driver.send_signal(signal.SIGKILL)
    for process in working:  # Ray ends them a moment later; until then they could finish their files
        process.send_signal(signal.SIGKILL)
    driver.wait()
    stamp = first.stat().st_mtime_ns
    wait_for(lambda: not writers(folder))
    finished = {path.name for path in folder.glob("*.root")}
    assert list(folder.glob("*.partial"))
    assert len(finished) < 3
    done: list[int] = []
    simulate(**LONG, output=folder, num_workers=2, progress=done.append)
    assert done[0] == 200 * len(finished)
    assert first.stat().st_mtime_ns == stamp
    assert_same_events(folder, unbroken)


def test_workers_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    """Catches: tasks that wait for ever for CPUs that the cluster does not have."""
    with pytest.raises(ResourceError, match="3 CPUs"):
        simulate(**SETTINGS, output=tmp_path, num_workers=20)


def test_chunk_that_kills_every_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: Ray's own message about a crashed worker, or a run that never ends."""

    def die(chunk: module.Chunk) -> int | PfscaleError:
        chunk.path.with_name(f"{chunk.path.name}.x.partial").write_text("half")
        os._exit(9)

    monkeypatch.setattr(module, "_whole_chunk", die)
    with pytest.raises(ResourceError, match="every process that made this file died"):
        simulate(**SETTINGS, output=tmp_path, num_workers=2)
    assert list(tmp_path.iterdir()) == []


def test_mistake_in_a_worker_comes_back_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an error of ours that Ray has wrapped, so that the command line shows a traceback."""

    def fail(chunk: module.Chunk) -> int | PfscaleError:
        return ResourceError("no room", where=chunk.path.name)

    monkeypatch.setattr(module, "_whole_chunk", fail)
    with pytest.raises(ResourceError, match="no room"):
        simulate(**SETTINGS, output=tmp_path, num_workers=2)


def test_interrupted_run_ends_its_tasks_and_leaves_nothing_half(tmp_path: Path) -> None:
    """Catches: tasks that go on after Ctrl-C and write files into a folder that was tidied before."""

    def interrupt(finished: int) -> None:
        if finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(**LONG, output=tmp_path, num_workers=2, progress=interrupt)
    assert all(path.suffix == ".root" for path in tmp_path.iterdir())
    wait_for(lambda: not writers(tmp_path))
    assert all(path.suffix == ".root" for path in tmp_path.iterdir())


def test_ctrl_c_in_one_process_exits_with_130(tmp_path: Path) -> None:
    """Catches: an interrupt inside compiled code that ends in a segmentation fault (139) or another error; unfinished files."""
    command = [
        sys.executable,
        "-c",
        "from pfscale.cli import main; main()",
        "simulate",
        "--process",
        "ttbar",
        "--num-events",
        "20000",
        "--workers",
        "1",
    ]
    for pause in (0.0, 0.7, 1.3):
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells have jobs in the background ignore it
        )
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*.partial")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, process.stderr and process.stderr.read()
        assert not list(tmp_path.glob("*.partial"))
