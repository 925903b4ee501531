"""The tables of README.md: `python tests/benchmarks/ingest_speed.py FOLDER`; the samples, 48 GB, are made once in FOLDER."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import WRITE
from replicate import Event, read_event, write_rntuple, write_ttree

MEASURE = Path(__file__).parent / "measure.py"
WORKERS = (1, 2)
FACTOR = 10  # between the file sizes whose peak memories are compared
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
Results = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A kind of file that is measured, and of how many events.

    Attributes:
        core, workers, memory: events per file of the measurement of that name; 0: none.
        files: of the ingest that is spread over workers.
        make: writes a file with so many events.
    """

    name: str
    title: str
    detector: str
    core: int
    workers: int
    memory: int
    files: int
    make: Callable[[Path, int], None]

    def file(self, folder: Path, num_events: int) -> Path:
        """The sample's file with that many events; made if it is not there."""
        path = folder / f"{self.name}_{num_events}.root"
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            self.make(unfinished, num_events)
            unfinished.replace(path)
        return path

    def copies(self, folder: Path, num_events: int) -> list[Path]:
        """Files that count as different data: a few bytes behind the end, which no reader looks at, differ."""
        target = folder / f"{self.name}_copies"
        target.mkdir(exist_ok=True)
        paths = [target / f"{self.name}_{number}.root" for number in range(self.files)]
        for number, path in enumerate(paths):
            if not path.exists():
                unfinished = path.with_suffix(".unfinished")
                shutil.copy(self.file(folder, num_events), unfinished)
                with unfinished.open("ab") as file:
                    file.write(number.to_bytes(8, "big"))
                unfinished.replace(path)
        return paths


def _simulate_ttbar(path: Path, num_events: int) -> None:
    from pfscale.simulation.simulate import simulate

    folder = path.with_suffix(".simulated")
    (made,) = simulate(detector="clic", process="ttbar", num_events=num_events, seed=1, output=folder, events_per_file=num_events)
    made.replace(path)
    shutil.rmtree(folder)


def _replicate(write: Callable[[Path, Event, int], None]) -> Callable[[Path, int], None]:
    return lambda path, num_events: write(path, read_event(), num_events)


SAMPLES = (
    Sample("cld", "full simulation", "cld", core=500, workers=1000, memory=500, files=16, make=_replicate(write_ttree)),
    Sample("cld_large", "full simulation, large files", "cld", core=0, workers=4000, memory=0, files=4, make=_replicate(write_ttree)),
    Sample("cld_rntuple", "full simulation, RNTuple", "cld", core=500, workers=0, memory=0, files=0, make=_replicate(write_rntuple)),
    Sample("ttbar", "built-in ttbar", "clic", core=1000, workers=10000, memory=1000, files=4, make=_simulate_ttbar),
)


def measured(what: str, files: Sequence[Path], sample: Sample, **options: object) -> Results:
    """What a fresh process of measure.py finds."""
    command = [sys.executable, str(MEASURE), what, *map(str, files), "--detector", sample.detector]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_core(sample: Sample, folder: Path, *, repeat: int) -> Results:
    """Reading and writing on one core, in one run."""
    return measured("core", [sample.file(folder, sample.core)], sample, events=sample.core, repeat=repeat)


def measure_memory(sample: Sample, folder: Path) -> list[Results]:
    """Peak memory over a file and over one that is ten times as large, with shards of the default size and with one shard per file."""
    found = []
    for num_events in (sample.memory, sample.memory * FACTOR):
        for rows in (4096, num_events):
            found.append(measured("memory", [sample.file(folder, num_events)], sample, events=num_events, rows_per_shard=rows))
    return found


def measure_workers(sample: Sample, folder: Path, *, repeat: int) -> list[list[Results]]:
    """Ingest with each number of workers, `repeat` times in turn."""
    files = sample.copies(folder, sample.workers)
    return [[measured("workers", files, sample, workers=number) for number in WORKERS] for _ in range(repeat)]


def machine() -> str:
    """What it was measured on."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores ({names[0] if names else platform.machine()}), Python {platform.python_version()}"


def core_table(results: dict[str, Results]) -> str:
    """Markdown: rates, ratios to the raw read, and stages; a column per sample."""
    columns = [results[sample.name] for sample in SAMPLES if sample.name in results]
    lines = _header("one core", [sample.title for sample in SAMPLES if sample.name in results])
    rows = [
        ("events; MB each; branches read", [f"{c['num_events']}; {c['bytes_per_event'] / 1e6:.2f}; {c['num_branches']}" for c in columns])
    ]
    rows += [("**events/s, open file to shard**, wall (best, median)", [_rates(c, "wall") for c in columns])]
    rows += [("same, CPU time", [_rates(c, "cpu") for c in columns])]
    for name in columns[0]["times"]:
        label = f"{name}: s per 1000 events, CPU" if name != "open" else "opening the file: s, CPU"
        rows.append((label, [f"{c['times'][name]['cpu'] * (1 if name == 'open' else 1000 / c['num_events']):.2f}" for c in columns]))
    for name in (name for name in columns[0]["times"] if name.startswith("uproot")):
        rows.append((f"**ratio** to {name}, wall (CPU)", [_ratio(c, name) for c in columns]))
    for stage in columns[0]["stages"]:
        rows.append((f"of a shard's time: {stage}", [f"{c['stages'].get(stage, 0.0) / sum(c['stages'].values()):.0%}" for c in columns]))
    rows.append(("kB per event in the shard", [f"{c['shard_bytes_per_event'] / 1000:.1f}" for c in columns]))
    return "\n".join([*lines, *(_row(label, cells) for label, cells in rows)])


def _header(title: str, columns: Sequence[str]) -> list[str]:
    return [_row(title, columns), "|---" * (len(columns) + 1) + "|"]


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _rates(column: Results, clock: str) -> str:
    times, num = column["times"][WRITE], column["num_events"]
    return f"{num / times[clock]:.0f}, {num / times[f'median_{clock}']:.0f}"


def _ratio(column: Results, name: str) -> str:
    ours, raw = column["times"][WRITE], column["times"][name]
    return f"{ours['wall'] / raw['wall']:.2f} ({ours['cpu'] / raw['cpu']:.2f})"


def worker_table(results: dict[str, list[list[Results]]]) -> str:
    """Markdown: seconds with each number of workers, best of the rounds, and their ratio."""
    titles = [sample.title for sample in SAMPLES if sample.name in results]
    lines = _header("Ray workers", titles)
    columns = [results[sample.name] for sample in SAMPLES if sample.name in results]
    lines.append(_row("files x events", [f"{s.files} x {s.workers}" for s in SAMPLES if s.name in results]))
    for key, label in (("call", "`ingest()` in a running Ray"), ("verb", "`pfscale ingest`, Ray's start included")):
        best = [[min(r[k][f"{key}_wall"] for r in rounds) for k in range(len(WORKERS))] for rounds in columns]
        cpu = [[min(r[k][f"{key}_cpu"] for r in rounds) for k in range(len(WORKERS))] for rounds in columns]
        for k, number in enumerate(WORKERS):
            cells = [f"{wall[k]:.1f} ({spent[k]:.1f})" for wall, spent in zip(best, cpu, strict=True)]
            lines.append(_row(f"{label}, {number} worker{'s' * (number > 1)}: s, wall (CPU of all processes)", cells))
        lines.append(_row(f"**{label}, {WORKERS[-1]} workers over one**", [f"{wall[0] / wall[-1]:.2f}" for wall in best]))
    peaks = [max(r[k]["worker_peak"] for r in rounds for k in range(len(WORKERS))) for rounds in columns]
    lines.append(_row("largest worker: MB", [f"{peak:.0f}" for peak in peaks]))
    return "\n".join(lines)


def memory_table(results: dict[str, list[Results]]) -> str:
    """Markdown: peak memory of a worker's process by file size."""
    columns = ["after imports", "after 4 events", *(f"{size} events" for size in ("N", f"{FACTOR} N")), "growth"]
    lines = _header("peak memory of a process, MB", columns)
    for sample in (sample for sample in SAMPLES if sample.name in results):
        found = results[sample.name]
        for at, what in ((0, "shards of 4096"), (1, "one shard per file")):
            small, large = found[at], found[at + 2]
            cells = [f"{small['imported']:.0f}", f"{small['warm']:.0f}", f"{small['peak']:.0f}", f"{large['peak']:.0f}"]
            lines.append(_row(f"{sample.title}, N = {sample.memory}, {what}", [*cells, f"{large['peak'] / small['peak'] - 1:+.0%}"]))
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the tables, and keeps the numbers in FOLDER/results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=("core", "memory", "workers"), help="one of the three tables")
    parser.add_argument("--sample", choices=[sample.name for sample in SAMPLES], help="one of the samples")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    samples = [sample for sample in SAMPLES if given.sample in (None, sample.name)]
    results: dict[str, dict[str, Any]] = {}
    print(f"Measured on {machine()}; load before: {os.getloadavg()[0]:.2f}.\n")
    for what, measure, table in (
        ("core", lambda sample: measure_core(sample, given.folder, repeat=given.repeat), core_table),
        ("workers", lambda sample: measure_workers(sample, given.folder, repeat=given.repeat), worker_table),
        ("memory", lambda sample: measure_memory(sample, given.folder), memory_table),
    ):
        if given.only in (None, what):
            results[what] = {sample.name: measure(sample) for sample in samples if getattr(sample, what)}
            print(table(results[what]), end="\n\n", flush=True)
    (given.folder / "results.json").write_text(json.dumps({"machine": machine(), **results}, indent=1))


if __name__ == "__main__":
    main()
