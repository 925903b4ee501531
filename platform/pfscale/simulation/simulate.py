"""`pfscale simulate`: files of simulated events, one per chunk, the same whatever the number of workers.

Each chunk is one Ray task with its own seed, and one file that gets its name when it is complete: a run that was killed goes on from there.
"""

from __future__ import annotations

import re
import uuid
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfscale.errors import ConfigError, InputFileError, OutputExistsError, PfscaleError, ResourceError, unknown_name
from pfscale.ray_cluster import ray_cluster
from pfscale.remote import local_folder
from pfscale.simulation.detectors import DetectorModel, detector_model
from pfscale.simulation.interrupts import interrupts_held
from pfscale.simulation.processes import PROCESSES, Process, decay_settings, find_process

BATCH_EVENTS = 250  # events in memory at once; part of the result, because random numbers are drawn batch by batch
LEAST = {"seed": 0, "num_workers": 0}  # all other numbers are at least 1
FORMATS = ("ttree", "rntuple")
FILE_NAME = re.compile(r"[A-Za-z0-9]+_[A-Za-z0-9]+_\d+_\d+\.edm4hep\.root((\.\w+)?\.partial)?")
MAX_PYTHIA_SEED = 900_000_000
SIMULATION_VERSION = 5  # raised whenever the same seed would give other events: older files are then not taken for complete ones


@dataclass(frozen=True)
class Chunk:
    """One output file: what is in it and where it goes."""

    detector: str
    process: str
    seed: int
    number: int
    num_events: int
    path: Path
    higgs_decay: str | None
    z_decay: str | None
    file_format: str = "ttree"

    def metadata(self, detector: DetectorModel) -> dict[str, str]:
        """The file's `pfscale_metadata`."""
        return {
            "simulation": "builtin",
            "simulation_version": str(SIMULATION_VERSION),
            "format": self.file_format,
            "detector": self.detector,
            "process": self.process,
            "higgs_decay": self.higgs_decay or "",
            "z_decay": self.z_decay or "",
            "sqrt_s": str(detector.sqrt_s[self.process]),
            "crossing_angle": str(detector.crossing_angle),
            "b_field": str(detector.b_field),
            "seed": str(self.seed),
            "chunk": str(self.number),
            "num_events": str(self.num_events),
        }


def simulate(
    *,
    detector: str,
    process: str,
    num_events: int,
    seed: int,
    output: str | Path,
    num_workers: int = 1,
    events_per_file: int = 1000,
    higgs_decay: str | None = None,
    z_decay: str | None = None,
    file_format: str = "ttree",
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """The EDM4hep files `<detector>_<process>_<seed>_<chunk>.edm4hep.root` in `output`, all `num_events` events of them.

    Chunks that are already complete are kept, what an ended run has left of others is deleted. The events do not depend on the workers.

    Args:
        num_workers: chunks made at the same time, as Ray tasks of one CPU each; 0: as many as the cluster has CPUs; 1: in this process,
            which saves the start of Ray. A single chunk is made in this process, too.
        events_per_file: events of a chunk.
        file_format: "ttree" or "rntuple".
        progress: called with the number of events finished since its last call.

    Raises:
        UnknownNameError: an unknown detector, process, decay or format, or a process that the detector's energies do not include.
        ConfigError: a count that is too small, or a negative seed.
        OutputExistsError: `output` is a file, or holds other data, or the same chunk with other settings.
        ResourceError: `output` is on another machine, pythia8mc is not installed, there are fewer CPUs than workers, or a chunk killed
            every process that tried it.
    """
    numbers = {"num_events": num_events, "num_workers": num_workers, "events_per_file": events_per_file, "seed": seed}
    model = _checked(detector, process, higgs_decay, z_decay, file_format, **numbers)
    folder = _prepare_folder(local_folder(str(output)))
    num_chunks = -(-num_events // events_per_file)
    chunks = [
        Chunk(
            detector, process, seed, number, min(events_per_file, num_events - number * events_per_file),
            folder / f"{detector}_{process}_{seed}_{number:05d}.edm4hep.root", higgs_decay, z_decay, file_format,
        )
        for number in range(num_chunks)
    ]  # fmt: skip
    missing = [chunk for chunk in chunks if not _is_complete(chunk, model)]
    report = progress or (lambda _: None)
    report(sum(chunk.num_events for chunk in chunks) - sum(chunk.num_events for chunk in missing))
    with _tidied(missing), closing(_run(missing, num_workers)) as run:  # closed first: its tasks have ended when their files are deleted
        for finished in run:
            report(finished)
    return [chunk.path for chunk in chunks]


def _checked(detector: str, process: str, higgs_decay: str | None, z_decay: str | None, file_format: str, **numbers: int) -> DetectorModel:
    """The detector's table, after a look at everything that a user can get wrong.

    Raises:
        As `simulate`.
    """
    from pfscale.simulation.generator import require_pythia

    mistakes: list[PfscaleError] = []
    with _noted(mistakes):
        model = detector_model(detector)
        if process in PROCESSES and process not in model.sqrt_s:
            mistakes.append(unknown_name(f"process of detector '{detector}'", process, tuple(model.sqrt_s)))
    with _noted(mistakes):
        decay_settings(find_process(process), higgs_decay, z_decay)
    if file_format not in FORMATS:
        mistakes.append(unknown_name("file format", file_format, FORMATS))
    for name, value in numbers.items():
        least = LEAST.get(name, 1)
        if value < least:
            mistakes.append(ConfigError(f"{name} must be at least {least} (got {value})"))
    if len(mistakes) > 1:
        raise ConfigError("\n".join([f"{len(mistakes)} mistakes", *(str(mistake) for mistake in mistakes)]))
    if mistakes:
        raise mistakes[0]
    require_pythia()
    return model


@contextmanager
def _noted(mistakes: list[PfscaleError]) -> Iterator[None]:
    """Puts a mistake that the block raises into the list."""
    try:
        yield
    except PfscaleError as mistake:
        mistakes.append(mistake)


def _prepare_folder(folder: Path) -> Path:
    """The output folder, made if need be.

    Raises:
        OutputExistsError: it is a file, or holds other data.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError("the output is a file, not a folder", where=str(folder), hint="choose another --output")
    foreign = [p.name for p in folder.glob("*") if not FILE_NAME.fullmatch(p.name)]
    if foreign:
        raise OutputExistsError(
            f"the output folder holds other data ({', '.join(sorted(foreign)[:3])})", where=str(folder), hint="choose an empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_complete(chunk: Chunk, detector: DetectorModel) -> bool:
    """Whether the chunk's file is there.

    Raises:
        OutputExistsError: a file of that name was made with other settings.
    """
    from pfscale.edm4hep.reader import open_source

    if not chunk.path.exists():
        return False
    try:
        with open_source(chunk.path) as source:
            found = source.metadata
    except InputFileError as error:
        raise OutputExistsError(f"a file of this name is in the way: {error.what}", where=str(chunk.path), hint="move it away") from error
    wanted = chunk.metadata(detector)
    different = [f"{key}: {found.get(key)!r} there, {value!r} asked for" for key, value in wanted.items() if found.get(key) != value]
    if different:
        raise OutputExistsError(
            f"a file of this name has other events ({'; '.join(different)})", where=str(chunk.path), hint="choose another --output"
        )
    return True


@contextmanager
def _tidied(chunks: list[Chunk]) -> Iterator[None]:
    """Deletes unfinished files of the chunks: before, what a killed run has left; after, what tasks that were ended have."""
    _delete_unfinished(chunks)
    try:
        yield
    finally:
        _delete_unfinished(chunks)


def _delete_unfinished(chunks: list[Chunk]) -> None:
    """Deletes what ended attempts have left of the chunks."""
    for chunk in chunks:
        for partial in chunk.path.parent.glob(f"{chunk.path.name}*.partial"):
            partial.unlink(missing_ok=True)


def _run(chunks: list[Chunk], num_workers: int) -> Generator[int]:
    """Simulates the chunks, yielding the number of events finished now and then."""
    if num_workers == 1 or len(chunks) <= 1:
        with interrupts_held() as check:
            for chunk in chunks:
                with closing(simulate_chunk(chunk)) as batches:
                    for num in batches:
                        check()
                        yield num
        return
    with ray_cluster():
        yield from _run_tasks(chunks, num_workers)


def _run_tasks(chunks: list[Chunk], num_workers: int) -> Iterator[int]:
    """Simulates the chunks as Ray tasks, at most `num_workers` (0: one for each CPU) at a time, yielding the number of events of each.

    Ray repeats a task whose worker died. A mistake of the user comes back as a value, because Ray would wrap it.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))
    if num_workers > cpus:
        raise ResourceError(f"{num_workers} workers, but the cluster has {cpus} CPUs", hint=f"use at most --workers {cpus}")
    task = ray.remote(num_cpus=1)(_whole_chunk)
    waiting = list(reversed(chunks))
    running: dict[Any, Chunk] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (num_workers or cpus):
                chunk = waiting.pop()
                running[task.remote(chunk)] = chunk
            done, _ = ray.wait(list(running))
            chunk = running.pop(done[0])
            yield _finished(chunk, done[0])
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _finished(chunk: Chunk, task: Any) -> int:
    """The number of events of a chunk whose task has ended.

    Raises:
        PfscaleError: the task failed with it, its workers died, or its file is not here.
    """
    import ray

    try:
        outcome: int | PfscaleError = ray.get(task)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
        hint = "is there too little memory? each worker needs 1 GB: use fewer --workers"
        raise ResourceError("every process that made this file died", where=str(chunk.path), hint=hint) from None
    if isinstance(outcome, PfscaleError):
        raise outcome
    if not chunk.path.exists():
        hint = "with several nodes, --output must be a folder that all of them share"
        raise ResourceError("a worker made this file, but it is not here", where=str(chunk.path), hint=hint)
    return outcome


def _whole_chunk(chunk: Chunk) -> int | PfscaleError:
    """The number of events of a chunk, or what went wrong."""
    try:
        return sum(simulate_chunk(chunk))
    except PfscaleError as error:
        return error


def simulate_chunk(chunk: Chunk) -> Generator[int]:
    """Writes the file of one chunk batch by batch, yielding the events of each; the file gets its name when it is complete."""
    from pfscale.simulation.generator import generate, make_pythia
    from pfscale.simulation.response import detector_response
    from pfscale.simulation.writer import EventFile

    detector = detector_model(chunk.detector)
    process: Process = PROCESSES[chunk.process]
    generator_seed = np.random.SeedSequence([chunk.seed, zlib.crc32(chunk.process.encode()), chunk.number])
    vertex_rng, detector_rng = (np.random.default_rng(s) for s in generator_seed.spawn(2))
    pythia_seed = 1 + int(generator_seed.generate_state(1)[0]) % (MAX_PYTHIA_SEED - 1)
    decays = decay_settings(process, chunk.higgs_decay, chunk.z_decay)
    pythia = make_pythia(process, decays, detector.sqrt_s[chunk.process], pythia_seed)
    # Its own name for each attempt: a task that was given up may still be writing when it is repeated.
    partial = chunk.path.with_name(f"{chunk.path.name}.{uuid.uuid4().hex[:12]}.partial")
    chunk.path.parent.mkdir(parents=True, exist_ok=True)
    with EventFile(partial, chunk.metadata(detector), file_format=chunk.file_format) as file:
        for done in range(0, chunk.num_events, BATCH_EVENTS):
            num = min(BATCH_EVENTS, chunk.num_events - done)
            particles = generate(pythia, num, detector, detector.sqrt_s[chunk.process], vertex_rng)
            file.extend(detector_response(particles, detector, detector_rng), first_number=done, run_number=chunk.number)
            if done + num < chunk.num_events:
                yield num
    try:
        partial.rename(chunk.path)
    except FileNotFoundError:
        hint = "is another simulate at work in this folder?"
        raise ResourceError("the unfinished file was deleted while it was written", where=str(partial), hint=hint) from None
    yield num
