"""One measurement per process, as JSON on the last line: `python tests/benchmarks/measure.py core|memory|workers ...`.

Processes of their own, because pinning to a core, peak memory and Ray's workers are properties of a process and its children.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

MEGABYTE = 2**20
POLL_SECONDS = 0.2
DEFAULT_ROWS = {"rows_per_shard": 4096, "rows_per_group": 256}  # of `ingest`
WRITE = "write shard"
RECORDED_EVENTS = 4  # enough to see which branches the reader touches


@dataclass
class Clock:
    """Wall and CPU seconds of repeated runs of one thing."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self, function: Callable[[], Any]) -> None:
        """Runs it once more. The CPU time is that of all threads of the process."""
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def summary(self) -> dict[str, float]:
        """Best and median of both."""
        return {
            "wall": min(self.wall),
            "cpu": min(self.cpu),
            "median_wall": statistics.median(self.wall),
            "median_cpu": statistics.median(self.cpu),
        }


def pin(cpu: int) -> None:
    """Keeps this process, all its threads and pyarrow's pools on one core."""
    os.sched_setaffinity(0, {cpu})
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def units_of(file: str, detector: str, num_events: int, *, rows_per_shard: int, rows_per_group: int) -> list[Any]:
    """The work of an ingest of a file's first events."""
    from pfscale.edm4hep.detectors import find_detector
    from pfscale.shards.events import EXTRACTION_VERSION
    from pfscale.shards.sources import Source, examine
    from pfscale.shards.writer import make_units

    source = examine(file, find_detector(detector))
    assert isinstance(source, Source), f"{file}: {source.reason}"
    assert num_events <= source.num_entries, f"{file} holds {source.num_entries} events"
    sizes = {"rows_per_shard": rows_per_shard, "rows_per_group": rows_per_group, "extraction_version": EXTRACTION_VERSION}
    return make_units(replace(source, num_entries=num_events), detector, **sizes)


def write_all(units: Sequence[Any]) -> int:
    """Bytes of the shards of these units, written one after another as a worker does, and deleted."""
    from pfscale.shards import writer
    from pfscale.shards.storage import open_folder

    with tempfile.TemporaryDirectory(dir=Path(units[0].path).parent) as folder:
        for unit in units:
            contents = writer.write_shard(unit, open_folder(folder))
            assert contents.num_events == unit.stop - unit.start, f"{contents.num_events} of {unit.stop - unit.start} events in the shard"
        return sum(path.stat().st_size for path in Path(folder).iterdir())


@contextmanager
def replaced(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """`owner.name` wrapped, also where modules of pfscale have imported it by name."""
    original = getattr(owner, name)
    new = wrapper(original)
    modules = [m for key, m in sys.modules.items() if key.partition(".")[0] == "pfscale"]
    places = [(owner, name)] + [(m, key) for m in modules for key, value in vars(m).items() if value is original and m is not owner]
    for place, key in places:
        setattr(place, key, new)
    try:
        yield
    finally:
        for place, key in places:
            setattr(place, key, original)


def branches_read(units: Sequence[Any]) -> list[str]:
    """The branches of the `events` tree that writing shards reads, as recorded inside uproot."""
    from uproot.behaviors.TBranch import TBranch
    from uproot.models.RNTuple import RField

    seen: set[str] = set()

    def record_branch(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(branch: Any, *args: Any, **kwargs: Any) -> Any:
            if not branch.branches and branch.tree.name == "events":
                seen.add(branch.name)
            return function(branch, *args, **kwargs)

        return wrapped

    def record_field(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(field: Any, *args: Any, **kwargs: Any) -> Any:
            if field.ntuple.name == "events":
                seen.add(field.path)
            return function(field, *args, **kwargs)

        return wrapped

    with (
        replaced(TBranch, "entries_to_ranges_or_baskets", record_branch),
        replaced(TBranch, "basket_chunk_cursor", record_branch),
        replaced(RField, "array", record_field),
    ):
        write_all(units)
    return sorted(seen)


def raw_reads(file: str, branches: Sequence[str], num_events: int) -> dict[str, Callable[[], Any]]:
    """Ways in which uproot itself reads the same branches of the same entries, opening the file included."""
    import uproot

    def iterate(library: str) -> Callable[[], Any]:
        def read() -> None:
            with uproot.open(file, array_cache=None) as opened:
                for _ in opened["events"].iterate(branches, entry_stop=num_events, library=library):
                    pass

        return read

    def one_by_one(**options: Any) -> Callable[[], Any]:
        def read() -> None:
            with uproot.open(file, array_cache=None, **options) as opened:
                tree = opened["events"]
                for name in branches:
                    tree[name].array(entry_stop=num_events, library="ak")

        return read

    return {
        "uproot iterate, awkward": iterate("ak"),
        "uproot iterate, numpy": iterate("np"),
        "uproot branch by branch": one_by_one(),
        "uproot branch by branch, memory-mapped": one_by_one(handler=uproot.MemmapSource),
    }


@dataclass
class Stages:
    """Seconds spent in nested stages, each without the stages inside it."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=lambda: [0.0])

    def timed(self, stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A wrapper that counts a function's time to `stage`."""

        def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                started = time.perf_counter()
                self._inner.append(0.0)
                try:
                    return function(*args, **kwargs)
                finally:
                    whole = time.perf_counter() - started
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + whole - self._inner.pop()
                    self._inner[-1] += whole

            return wrapped

        return wrapper


def stages_of(units: Sequence[Any]) -> dict[str, float]:
    """Seconds of each stage of writing shards."""
    import pyarrow.parquet as pq

    from pfscale.edm4hep import extraction, reader
    from pfscale.shards import events, writer

    stages = Stages()
    with ExitStack() as stack:
        for name, function in list(vars(reader.EventSource).items()):
            if (
                inspect.isfunction(function)
                and not name.startswith("_")
                and {"start", "stop"} <= set(inspect.signature(function).parameters)
            ):
                stack.enter_context(replaced(reader.EventSource, name, stages.timed("read")))
        for owner, name, stage in (
            (writer, "write_shard", "rest"),
            (reader, "open_source", "open"),
            (extraction, "extract", "features and truth"),
            (events, "extract_events", "arrow"),
            (pq.ParquetWriter, "write_table", "parquet"),
        ):
            stack.enter_context(replaced(owner, name, stages.timed(stage)))
        write_all(units)
    return stages.seconds


def core(file: str, detector: str, num_events: int, *, repeat: int, cpu: int) -> dict[str, Any]:
    """Times of one core: uproot's raw reading and our writing of shards in turn, so that a busy machine slows both."""
    pin(cpu)
    from pfscale.edm4hep.reader import open_source

    units = units_of(file, detector, num_events, **DEFAULT_ROWS)
    branches = branches_read(units_of(file, detector, RECORDED_EVENTS, **DEFAULT_ROWS))
    things = {
        "open": lambda: open_source(file).__exit__(None, None, None),
        **raw_reads(file, branches, num_events),
        WRITE: lambda: write_all(units),
    }
    clocks = {name: Clock() for name in things}
    for _ in range(repeat):
        for name, function in things.items():
            clocks[name].run(function)
    return {
        "num_events": num_events,
        "num_branches": len(branches),
        "bytes_per_event": Path(file).stat().st_size / num_events,
        "shard_bytes_per_event": write_all(units) / num_events,
        "times": {name: clock.summary() for name, clock in clocks.items()},
        "stages": stages_of(units),
    }


def memory(file: str, detector: str, num_events: int, *, rows_per_shard: int) -> dict[str, float]:
    """Peak resident MB of this process: after the imports, a few events (which load further modules), and all shards of a file."""
    import pfscale.shards.ingest
    import pfscale.shards.writer  # noqa: F401 (what a worker has loaded before it starts)

    def peak() -> float:  # not ru_maxrss: a process inherits that of its parent
        status = Path("/proc/self/status").read_text()
        return float(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / MEGABYTE  # type: ignore[index]

    imported = peak()
    write_all(units_of(file, detector, RECORDED_EVENTS, **DEFAULT_ROWS))
    warm = peak()
    write_all(units_of(file, detector, num_events, **DEFAULT_ROWS | {"rows_per_shard": rows_per_shard}))
    return {"num_events": num_events, "rows_per_shard": rows_per_shard, "imported": imported, "warm": warm, "peak": peak()}


class ProcessTree:
    """CPU seconds and largest worker of a process and all that it starts, Ray's daemons among them; read while they live."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._root = psutil.Process(pid)
        self._cpu: dict[int, float] = {}
        self.worker_peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> ProcessTree:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes seen so far."""
        return sum(self._cpu.values())

    def _poll(self) -> None:
        import psutil

        while not self._stop.wait(POLL_SECONDS):
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in processes:
                try:
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
                    if process.name().startswith("ray::"):
                        self.worker_peak = max(self.worker_peak, process.memory_info().rss / MEGABYTE)
                except psutil.Error:
                    continue


def workers(files: Sequence[str], detector: str, num_workers: int) -> dict[str, float]:
    """Seconds of ingest with that many workers: the verb as typed, and the library call in a Ray that runs already."""
    from pfscale.ray_cluster import ray_cluster
    from pfscale.shards.ingest import ingest

    with tempfile.TemporaryDirectory(dir=Path(files[0]).parent) as folder:
        command = [str(Path(sys.executable).with_name("pfscale")), "ingest", *files, "--detector", detector]
        command += ["--output", f"{folder}/verb", "--workers", str(num_workers)]
        started = time.perf_counter()
        verb = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with ProcessTree(verb.pid) as tree:
            assert verb.wait() == 0, f"ingest ended with {verb.returncode}"
        verb_wall, verb_cpu, worker_peak = time.perf_counter() - started, tree.cpu, tree.worker_peak
        with ray_cluster(), ProcessTree(os.getpid()) as tree:
            time.sleep(2 * POLL_SECONDS)
            before, started = tree.cpu, time.perf_counter()
            manifest = ingest(files, detector=detector, output=f"{folder}/call", num_workers=num_workers)
            call_wall = time.perf_counter() - started
            time.sleep(2 * POLL_SECONDS)
            call_cpu = tree.cpu - before
    return {
        "num_workers": num_workers,
        "num_events": manifest.num_events,
        "verb_wall": verb_wall,
        "verb_cpu": verb_cpu,
        "call_wall": call_wall,
        "call_cpu": call_cpu,
        "worker_peak": worker_peak,
    }


def profile(file: str, detector: str, num_events: int, *, cpu: int) -> None:
    """Prints where the time of writing a shard goes, by function."""
    import cProfile
    import pstats

    pin(cpu)
    units = units_of(file, detector, num_events, **DEFAULT_ROWS)
    write_all(units_of(file, detector, RECORDED_EVENTS, **DEFAULT_ROWS))  # imports
    with cProfile.Profile() as profiler:
        write_all(units)
    for order in ("cumulative", "tottime"):
        pstats.Stats(profiler).sort_stats(order).print_stats(40)


def main() -> None:
    """Does the one measurement that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("core", "memory", "workers", "profile"))
    parser.add_argument("files", nargs="+")
    parser.add_argument("--detector", required=True)
    parser.add_argument("--events", type=int, default=0, help="of the file; workers take all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows-per-shard", type=int, default=4096)
    given = parser.parse_args()
    file = given.files[0]
    if given.what == "profile":
        profile(file, given.detector, given.events, cpu=given.cpu)
        return
    measured: dict[str, Callable[[], Any]] = {
        "core": lambda: core(file, given.detector, given.events, repeat=given.repeat, cpu=given.cpu),
        "memory": lambda: memory(file, given.detector, given.events, rows_per_shard=given.rows_per_shard),
        "workers": lambda: workers(given.files, given.detector, given.workers),
    }
    print(json.dumps(measured[given.what]()))


if __name__ == "__main__":
    main()
