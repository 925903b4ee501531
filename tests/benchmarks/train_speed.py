"""Speed and memory of training: `python tests/benchmarks/train_speed.py SHARDS FOLDER [--only ...]`; prints the tables of README.md.

Every measurement is a process of its own; what a ratio compares is measured in turn within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MEASURE = Path(__file__).parent / "train_measure.py"
STEPS, FEWER_STEPS = 100, 70  # of a training that is timed from step 30 on; fewer for the larger model
Results = dict[str, Any]


def measured(what: str, *arguments: object, threads: int = 2) -> Results:
    """What `train_measure.py` prints as JSON in its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, str(MEASURE), what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rates(shards: Path, folder: Path) -> str:
    """Ours, the padded reference and a dense batch, at both widths, on the data set's events and on such of a broad range of lengths."""
    del folder
    shapes = {"width 128, 8 heads": (128, 8), "width 256, 16 heads": (256, 16)}
    choices = {"own": "", "broad": ", broad lengths"}
    found = {f"{name}{label}": measured("rates", shards, key, *shape) for key, label in choices.items() for name, shape in shapes.items()}
    lines = [f"| 3 layers, 2 threads, fp32, forward + backward + AdamW | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]

    def row(label: str, value: Callable[[Results], str]) -> None:
        lines.append(f"| {label} | {' | '.join(value(r) for r in found.values())} |")

    row("elements/s: ours", lambda r: f"{r['ours']:.0f}")
    row("padded to the longest of 64 shuffled events, key mask", lambda r: f"{r['padded']:.0f}")
    row("same network, dense batch of equal events, no mask", lambda r: f"{r['dense']:.0f}")
    row("**ours / padded**", lambda r: f"**{r['ours'] / r['padded']:.2f}**")
    row("**ours / dense**", lambda r: f"**{r['ours'] / r['dense']:.2f}**")
    row("matrix products (1024), GFLOP/s", lambda r: f"{r['matrix_gflops']:.0f}")
    row("**share of that rate reached by ours**", lambda r: f"**{r['mfu']:.0%}**")
    row("elements per event: mean, longest of 64 (mean)", lambda r: f"{r['mean_length']:.0f}, {r['longest_of_64']:.0f}")
    return "\n".join(lines)


def platform(shards: Path, folder: Path) -> str:
    """The whole platform beside a bare loop over the same batches, in turn, with both of two cores and with one."""
    lines = ["| size 2 | one thread | two threads |", "|---|---|---|"]
    columns = [_beside_bare(shards, folder, threads) for threads in (1, 2)]

    def row(label: str, value: Callable[[list[Results]], str]) -> None:
        lines.append(f"| {label} | {' | '.join(value(rounds) for rounds in columns)} |")

    row("bare torch loop, batches in memory: elements/s, each round", lambda rounds: ", ".join(f"{r['bare']:.0f}" for r in rounds))
    row("Ray Train, DeepSpeed ZeRO-1, MLflow, checkpoints: elements/s", lambda rounds: ", ".join(f"{r['rate']:.0f}" for r in rounds))
    row("**platform / bare**", lambda rounds: "**" + ", ".join(f"{r['rate'] / r['bare']:.2f}" for r in rounds) + "**")
    for name in ("data_share", "logging_share", "checkpoint_share"):
        row(f"**{name.replace('_', ' ')}** of all time", lambda rounds, name=name: f"{100 * rounds[-1][name]:.1f}%")  # type: ignore[misc]
    return "\n".join(lines)


def _beside_bare(shards: Path, folder: Path, threads: int) -> list[Results]:
    rounds = []
    for number in range(2):
        bare = measured("bare", shards, 2, STEPS, threads=threads)
        whole = measured("platform", shards, folder / f"platform-{threads}-{number}", 2, 1, threads, STEPS, threads=threads)
        rounds.append({**whole, "bare": bare["rate"]})
    return rounds


def workers(shards: Path, folder: Path) -> str:
    """One worker with one thread against two workers with one thread each, in turn; and what the machine itself gains by two processes."""
    alone, together = _machine_gain(shards)
    rounds = [[_worker_rate(shards, folder, count, number) for count in (1, 2)] for number in range(2)]
    one, two = (max(found[i] for found in rounds) for i in range(2))
    lines = ["| width 256, 3 layers, 16 heads | |", "|---|---|"]
    lines += [
        f"| one worker, one thread; two workers, one thread each: elements/s | {one:.0f}; {two:.0f} |",
        f"| **ratio** of the best (each round: {', '.join(f'{found[1] / found[0]:.2f}' for found in rounds)}) | **{two / one:.2f}** |",
        f"| two bare loops at once, one thread each, over one alone: elements/s | {together:.0f} / {alone:.0f} = {together / alone:.2f} |",
    ]
    return "\n".join(lines)


def _machine_gain(shards: Path) -> tuple[float, float]:
    """Elements per second of one bare loop with one thread, and of two at once that know nothing of each other, in sum."""
    alone = measured("bare", shards, 3, FEWER_STEPS, threads=1)["rate"]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: measured("bare", shards, 3, FEWER_STEPS, threads=1)["rate"], range(2)))
    return alone, sum(both)


def _worker_rate(shards: Path, folder: Path, num_workers: int, number: int) -> float:
    found = measured("platform", shards, folder / f"workers-{num_workers}-{number}", 3, num_workers, 1, FEWER_STEPS, threads=1)
    return float(found["rate"])


def memory(shards: Path, folder: Path) -> str:
    """Memory of ZeRO's stages, of activation checkpointing, and against the size of the data set."""
    lines = ["| 53 M parameters, two workers, MB per worker | formula | measured |", "|---|---|---|"]
    for stage in (0, 1, 2, 3):
        found = measured("zero", stage, folder, threads=1)
        lines.append(f"| ZeRO-{stage}: after a step, without activations | {found['formula_mb']:.0f} | {found['held_mb']:.0f} |")
        lines.append(f"| ZeRO-{stage}: peak | | {found['peak_mb']:.0f} |")
    plain, saving = (measured("activations", shards, number) for number in (0, 1))
    lines += [
        "",
        "| size 5, a pass of 8,192 elements | kept | recomputed |",
        "|---|---|---|",
        f"| activations, MB | {plain['activations_mb']:.0f} | {saving['activations_mb']:.0f} |",
        f"| seconds per pass | {plain['seconds']:.2f} | {saving['seconds']:.2f} |",
    ]
    small, large = (measured("dataset", shards, copies, folder) for copies in (1, 10))
    lines += [
        "",
        f"| training on {small['num_events']} and {large['num_events']} events | |",
        "|---|---|",
        f"| peak memory, MB | {small['peak_mb']:.0f} and {large['peak_mb']:.0f} ({large['peak_mb'] / small['peak_mb'] - 1:+.0%}) |",
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path, Path], str]] = {"rates": rates, "platform": platform, "workers": workers, "memory": memory}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, help="a data set of at least 2,000 training events")
    parser.add_argument("folder", type=Path, help="for runs and copies; several GB")
    parser.add_argument("--only", choices=sorted(TABLES))
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, table in TABLES.items():
        if given.only in (None, name):
            print(f"\n{table(given.shards.resolve(), given.folder.resolve())}", flush=True)


if __name__ == "__main__":
    main()
