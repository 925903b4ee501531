"""Where the time of `pfscale reconstruct` goes: `python tests/benchmarks/reconstruct_speed.py FOLDER`; prints the tables of README.md.

FOLDER keeps the simulated files and a model of random weights. What a ratio compares is measured in turn within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZE, EVENTS_PER_FILE = 2, 500
PFSCALE = [sys.executable, "-c", "from pfscale.cli import main; main()"]


@dataclass
class Seconds:
    """Wall and CPU seconds of one thing in every round; the CPU time is that of all threads of the process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self, function: Callable[[], Any]) -> None:
        """Runs it once more."""
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def __str__(self) -> str:
        return f"{min(self.cpu):.2f} ({', '.join(f'{seconds:.1f}' for seconds in self.wall)})"


class InForward:
    """CPU seconds of this thread inside the network, summed while the block runs; with one torch thread that is all of the network's."""

    def __enter__(self) -> InForward:
        from pfscale.models.mlpf import Mlpf

        self.seconds, self._forward = 0.0, Mlpf.forward

        def timed(model: Any, batch: Any) -> Any:
            started = time.thread_time()
            try:
                return self._forward(model, batch)
            finally:
                self.seconds += time.thread_time() - started

        Mlpf.forward = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        from pfscale.models.mlpf import Mlpf

        Mlpf.forward = self._forward  # type: ignore[method-assign]


def sample(folder: Path, num_events: int) -> list[str]:
    """Simulated CLIC ttbar files, made unless they are there."""
    target = folder / f"ttbar_{num_events}"
    if not target.is_dir():
        options = ["--detector", "clic", "--process", "ttbar", "--num-events", str(num_events), "--seed", "1"]
        subprocess.run([*PFSCALE, "simulate", *options, "--events-per-file", str(EVENTS_PER_FILE), "--output", str(target)], check=True)
    return sorted(map(str, target.glob("*.root")))


def random_model(folder: Path, file: str) -> Path:
    """A model of random weights that is normalised to the first events of a file."""
    import torch

    from pfscale.models.bundle import save_bundle
    from pfscale.models.mlpf import Mlpf, MlpfConfig
    from pfscale.tasks.reconstruction import ReconstructionConfig

    torch.manual_seed(1)
    config = MlpfConfig(size=SIZE)
    model, events = Mlpf(config), next(extracted([file]))
    model.encoder.standardise.fit(events.features, events.is_track)
    card = {"kind": "mlpf", "detector": "clic", "simulation": "builtin", "task": ReconstructionConfig().model_dump(mode="json")}
    return save_bundle(folder / "model", config, model.state_dict(), card)


def extracted(files: Sequence[str]) -> Any:
    """The events of the files as ingest's own extraction gives them, part by part, ready for batches."""
    from pfscale.shards.ragged import from_arrow

    return (from_arrow(part.table) for part in tables(files))


def tables(files: Sequence[str]) -> Any:
    """The same as tables: reading, features, Arrow; nothing else."""
    from pfscale.edm4hep.detectors import find_detector
    from pfscale.edm4hep.reader import open_source
    from pfscale.shards.events import stream_events

    for file in files:
        with open_source(file) as source:
            yield from stream_events(source, find_detector("clic"), 0, source.num_entries, with_truth=False)


def parts(files: Sequence[str], model: Path, folder: Path, *, rounds: int) -> str:
    """Extraction, network, and the whole in one process with one thread of torch, on one core as a worker has it, in turn."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    from pfscale.models.batch import collate
    from pfscale.models.bundle import load_bundle
    from pfscale.shards.dataset import cut_by_tokens
    from pfscale.training.inference import INFERENCE_TOKENS
    from pfscale.training.reconstruct import reconstruct

    torch.set_num_threads(1)
    network = load_bundle(model).model
    batches = [collate(events, rows) for events in extracted(files) for rows in cut_by_tokens(events.lengths, INFERENCE_TOKENS)]
    num_events, elements = sum(batch.num_events for batch in batches), sum(batch.num_elements for batch in batches)

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                network(batch)

    warm = folder / "out_warm"
    shutil.rmtree(warm, ignore_errors=True)
    reconstruct(str(model), files[:1], output=warm, num_workers=1)  # imports
    clocks = {name: Seconds() for name in ("extraction", "network", "parquet", "root")}
    outside: dict[str, list[float]] = {"parquet": [], "root": []}
    for _ in range(rounds):
        clocks["extraction"].run(lambda: [None for _ in tables(files)])
        clocks["network"].run(forward)
        for file_format, found in outside.items():
            output = folder / f"out_{file_format}"
            shutil.rmtree(output, ignore_errors=True)
            with InForward() as inside:
                whole = clocks[file_format]
                whole.run(
                    lambda output=output, file_format=file_format: reconstruct(  # type: ignore[misc]
                        str(model), files, output=output, file_format=file_format, num_workers=1
                    )
                )
            found.append(whole.cpu[-1] - inside.seconds)
    extraction = clocks["extraction"].cpu
    lines = [
        f"| size {SIZE}, {num_events} events, {elements} elements, one process on one core | s, CPU: best (wall: each round) |",
        "|---|---|",
    ]
    lines += [
        f"| ingest's own extraction, without truth | {clocks['extraction']} |",
        f"| the network on the same batches | {clocks['network']} |",
    ]
    for name, found in outside.items():
        ratios = ", ".join(f"{here / there:.2f}" for here, there in zip(found, extraction, strict=True))
        shares = 100 * min(found) / min(clocks[name].cpu)
        lines.append(f"| whole `reconstruct`, {name} | {clocks[name]} |")
        lines.append(
            f"| outside the network, {name}: each round | {', '.join(f'{seconds:.2f}' for seconds in found)} ({shares:.0f}% of all) |"
        )
        lines.append(f"| **outside the network / extraction, {name}**: each round | **{ratios}** |")
    return "\n".join(lines)


def workers(files: Sequence[str], model: Path, folder: Path, *, rounds: int) -> str:
    """The verb as typed with one worker and one thread, with one and all threads, with two Ray workers, in turn."""
    cases = {"1 worker, 1 thread": (1, "1"), "1 worker, 2 threads": (1, "2"), "2 Ray workers, 1 thread each": (2, "1")}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (count, threads) in cases.items():
            output = folder / "out_workers"
            shutil.rmtree(output, ignore_errors=True)
            command = [*PFSCALE, "reconstruct", str(model), *files, "--output", str(output), "--workers", str(count)]
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": threads})
            seconds[name].append(time.perf_counter() - started)
            assert len(json.loads((output / "reconstruction.json").read_text())["sources"]) == len(files)
    first = seconds["1 worker, 1 thread"]
    lines = [
        f"| `pfscale reconstruct`, {len(files)} files, start and imports included | s, wall, each round | over the first |",
        "|---|---|---|",
    ]
    for name, found in seconds.items():
        gain = ", ".join(f"{one / here:.2f}" for one, here in zip(first, found, strict=True))
        lines.append(f"| {name} | {', '.join(f'{wall:.1f}' for wall in found)} | {gain} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("parts", "workers"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    files = sample(given.folder, given.events)
    model = random_model(given.folder, files[0])
    print(f"load before: {os.getloadavg()[0]:.1f}", flush=True)
    for what in (workers, parts):  # parts keeps this process on one core
        if given.only in (None, what.__name__):
            print(f"\n{what(files, model, given.folder, rounds=given.rounds)}", flush=True)
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
