"""`pfscale simulate`: files of simulated events, one per chunk, the same whatever the number of workers."""

from __future__ import annotations

import multiprocessing
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfscale.errors import ConfigError, OutputExistsError, unknown_name
from pfscale.simulation.detectors import DetectorModel, detector_model
from pfscale.simulation.processes import PROCESSES, Process, decay_settings, find_process

BATCH_EVENTS = 100  # events in memory at once; part of the result, because random numbers are drawn batch by batch
FILE_NAME = re.compile(r"[A-Za-z0-9]+_[A-Za-z0-9]+_\d+_\d+\.edm4hep\.root(\.partial)?")
MAX_PYTHIA_SEED = 900_000_000
SIMULATION_VERSION = 1  # raised whenever the same seed would give other events: older files are then not taken for complete ones


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

    def metadata(self, detector: DetectorModel) -> dict[str, str]:
        """The file's `pfscale_metadata`."""
        return {
            "simulation": "builtin",
            "simulation_version": str(SIMULATION_VERSION),
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
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """The EDM4hep files `<detector>_<process>_<seed>_<chunk>.edm4hep.root` in `output`, all `num_events` events of them.

    Chunks that are already complete are kept. `progress` is called with the number of events finished since its last call.
    With more than one worker, chunks run in a pool of processes; each has its own seed, so the events do not depend on their number.

    Raises:
        UnknownNameError: an unknown detector, process or decay, or a process that the detector's energies do not include.
        ConfigError: a count that is not positive, or a negative seed.
        OutputExistsError: `output` is a file, or holds other data, or the same chunk with other settings.
        ResourceError: pythia8mc is not installed.
    """
    model = detector_model(detector)
    hard_process = find_process(process)
    if process not in model.sqrt_s:
        raise unknown_name(f"process of detector '{detector}'", process, tuple(model.sqrt_s))
    decay_settings(hard_process, higgs_decay, z_decay)
    for name, value, least in (
        ("num_events", num_events, 1),
        ("num_workers", num_workers, 1),
        ("events_per_file", events_per_file, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least} (got {value})")
    from pfscale.simulation.generator import require_pythia

    require_pythia()
    folder = _prepare_folder(Path(output))
    num_chunks = -(-num_events // events_per_file)
    chunks = [
        Chunk(
            detector, process, seed, number, min(events_per_file, num_events - number * events_per_file),
            folder / f"{detector}_{process}_{seed}_{number:05d}.edm4hep.root", higgs_decay, z_decay,
        )
        for number in range(num_chunks)
    ]  # fmt: skip
    missing = [chunk for chunk in chunks if not _is_complete(chunk, model)]
    report = progress or (lambda _: None)
    report(sum(chunk.num_events for chunk in chunks) - sum(chunk.num_events for chunk in missing))
    for finished in _run(missing, min(num_workers, len(missing))):
        report(finished)
    return [chunk.path for chunk in chunks]


def _prepare_folder(folder: Path) -> Path:
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
    from pfscale.simulation.writer import read_metadata

    if not chunk.path.exists():
        return False
    try:
        found = read_metadata(chunk.path)
    except Exception as error:  # uproot raises many kinds on a file that is damaged or not ROOT
        raise OutputExistsError("a file of this name cannot be read", where=str(chunk.path), hint="move it away") from error
    wanted = chunk.metadata(detector)
    different = [f"{key}: {found.get(key)!r} there, {value!r} asked for" for key, value in wanted.items() if found.get(key) != value]
    if different:
        raise OutputExistsError(
            f"a file of this name has other events ({'; '.join(different)})", where=str(chunk.path), hint="choose another --output"
        )
    return True


def _run(chunks: list[Chunk], num_workers: int) -> Iterator[int]:
    """Simulates the chunks, yielding the number of events finished now and then."""
    if num_workers <= 1:
        for chunk in chunks:
            yield from simulate_chunk(chunk)
        return
    # Spawned, not forked: the caller may hold threads (torch, Ray) that a fork would copy in a locked state.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_whole_chunk, chunk) for chunk in chunks]):
            yield future.result()


def _whole_chunk(chunk: Chunk) -> int:
    return sum(simulate_chunk(chunk))


def simulate_chunk(chunk: Chunk) -> Iterator[int]:
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
    partial = chunk.path.with_name(chunk.path.name + ".partial")
    with EventFile(partial, chunk.metadata(detector)) as file:
        for done in range(0, chunk.num_events, BATCH_EVENTS):
            num = min(BATCH_EVENTS, chunk.num_events - done)
            particles = generate(pythia, num, detector, detector.sqrt_s[chunk.process], vertex_rng)
            file.extend(detector_response(particles, detector, detector_rng), first_number=done, run_number=chunk.number)
            if done + num < chunk.num_events:
                yield num
    partial.rename(chunk.path)
    yield num
