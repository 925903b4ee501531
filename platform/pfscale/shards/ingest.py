"""ROOT files to event shards, with Ray Data: every (file, entry range) is one unit of work that becomes one shard.

A rerun goes on where the last one was ended, whatever ended it: complete shards are kept, the manifest comes last.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pfscale.edm4hep.detectors import Detector, find_detector
from pfscale.errors import InputFileError, PfscaleError, unknown_name
from pfscale.ray_cluster import is_running, ray_cluster
from pfscale.remote import without_secrets
from pfscale.shards.events import EXTRACTION_VERSION
from pfscale.shards.lock import Claim, claimed
from pfscale.shards.manifest import NO_VISIBLE_PARTICLE, Manifest, QuarantinedSource, write_manifest
from pfscale.shards.request import Request, find_finished, forget_request, known_sources, make_request, note_request
from pfscale.shards.sources import Source, as_asked, deadly, examine, expand_sources, quarantine, raise_bad, recall
from pfscale.shards.storage import Folder, open_folder
from pfscale.shards.tally import Tally, common_simulation
from pfscale.shards.workers import ImportAhead, count_workers, map_unordered
from pfscale.shards.writer import Outcome, Unit, make_units, write_or_tell

SIMULATIONS = ("builtin", "geant4", "fast")
WORKERS_IMPORT = ("ray.data", "pfscale.shards.writer")
SECONDS_EXAMINING_HERE = 0.5  # then the workers share what is left: a file of full simulation takes 0.2 s to open
EXAMINING_TASKS_PER_WORKER = 2  # and not one per file, which takes Ray Data as long to hand out as opening it takes


def ingest(
    sources: Sequence[str],
    *,
    detector: str,
    output: str | Path,
    process: str = "",
    simulation: str | None = None,
    num_workers: int | None = None,
    rows_per_shard: int = 4096,
    rows_per_group: int = 256,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """The manifest of the shards made from `sources`; the shards are in `output`.

    Args:
        sources: paths, globs and URLs of EDM4hep ROOT files, and .txt or .list files that list them.
        detector: entry of the detector table, which says what to read.
        output: a folder, or the URL of one (s3://bucket/folder).
        process, simulation: recorded in the manifest where the files do not say; a file that says otherwise is bad. Empty: what the
            files say, else no process and the detector's usual simulation.
        num_workers: files read at the same time; 0 or None: as many as the cluster has CPUs.
        rows_per_shard, rows_per_group: entries per file and events per Parquet row group.
        strict: raise at the first bad file, or the first event that cannot be used, instead of setting it aside in the manifest; an event
            without a visible particle is not bad, only empty.
        progress: called with the number of entries that were just done.

    Raises:
        InputFileError: nothing matches, every file is bad (or one, if `strict`), no event is usable, or one is there twice.
        OutputExistsError: `output` holds something else. The same sources again are not an error: nothing is done.
        UnknownNameError: no such detector or simulation.
        ResourceError: more workers than CPUs, the disk is full, a store cannot be reached or used, another ingest is at work in `output`.
    """
    if simulation and simulation not in SIMULATIONS:
        raise unknown_name("simulation", simulation, SIMULATIONS)
    table_entry, folder = find_detector(detector), open_folder(output)
    paths = expand_sources(sources)
    settings = {
        "detector": table_entry.name,
        "process": process,
        "simulation": simulation or "",
        "rows_per_shard": rows_per_shard,
        "rows_per_group": rows_per_group,
    }
    with ExitStack() as stack:
        claim = stack.enter_context(claimed(folder))
        stack.push(functools.partial(_tidy_after_error, folder))  # runs when a Ray that was started below has ended
        recalled = recall(paths, known_sources(folder, table_entry.name))
        new = [path for path in paths if path not in recalled]
        pool = _Pool(stack, num_workers)
        if new and is_running():
            pool.begin()
        found = recalled | dict(zip(new, _examine(new, table_entry, pool), strict=True))
        examined = [as_asked(found[path], process=process, simulation=simulation or "") for path in paths]
        request = make_request(examined, **settings)
        finished = find_finished(folder, request)
        good, bad = _sort_out(examined, strict=strict)
        if finished is None:
            return _make(folder, claim, table_entry, good, bad, request, pool, strict=strict, progress=progress)
        if strict and finished.quarantined:
            raise_bad(finished.quarantined, len(paths))
        _require_no_bad_event(((e.source, e.entry, e.reason) for e in finished.dropped), strict=strict)
        forget_request(folder)
        return finished


class _Pool:
    """The workers of an ingest, in a Ray that `stack` keeps."""

    def __init__(self, stack: ExitStack, num_workers: int | None) -> None:
        self._stack, self._num_workers = stack, num_workers
        self._begun: tuple[int, float, ImportAhead] | None = None

    def begin(self) -> tuple[int, float, ImportAhead]:
        """(number of workers, CPUs of each, their imports), begun; Ray starts if need be."""
        if self._begun is None:
            self._stack.enter_context(ray_cluster())
            workers, cpus_each = count_workers(self._num_workers)
            self._begun = workers, cpus_each, ImportAhead(WORKERS_IMPORT, workers, cpus_each)
        return self._begun

    def ready(self) -> tuple[int, float]:
        """(number of workers, CPUs of each), when they have imported what they need."""
        workers, cpus_each, imports = self.begin()
        imports.wait()
        return workers, cpus_each


def _tidy_after_error(folder: Folder, kind: type[BaseException] | None, *_: object) -> None:
    """Deletes what workers that were ended in the middle of a shard have left; the error that ended them is told, not one of this."""
    if kind is not None:
        with suppress(PfscaleError, OSError):
            folder.clear_unfinished()


def _examine(paths: Sequence[str], detector: Detector, pool: _Pool) -> list[Source | QuarantinedSource]:
    """What every file holds, or why it cannot be used, in the order of the paths.

    Few bad files are told of before Ray starts; where it takes longer, the workers do the rest.
    """
    here: list[Source | QuarantinedSource] = []
    started = time.monotonic()
    while len(here) < len(paths) and time.monotonic() - started < SECONDS_EXAMINING_HERE:
        here.append(examine(paths[len(here)], detector))
    rest = paths[len(here) :]
    if not rest:
        return here
    workers, cpus_each = pool.ready()
    task = functools.partial(examine, detector=detector)
    found = map_unordered(
        rest, task, on_death=_examined_to_death, workers=workers, cpus_each=cpus_each, tasks_per_worker=EXAMINING_TASKS_PER_WORKER
    )
    results = dict(found)
    return [*here, *(results[number] for number in range(len(rest)))]


def _examined_to_death(path: str) -> QuarantinedSource:
    return quarantine(path, deadly(path))


def _make(
    folder: Folder,
    claim: Claim,
    detector: Detector,
    good: list[Source],
    bad: list[QuarantinedSource],
    request: Request,
    pool: _Pool,
    *,
    strict: bool,
    progress: Callable[[int], None] | None,
) -> Manifest:
    """The manifest, written when every shard is there."""
    _refuse_same_contents(good)
    if not request.settings["simulation"]:
        common_simulation(good, detector)
    workers, cpus_each = pool.ready()
    note_request(folder, request, good)
    sizes = {name: request.settings[name] for name in ("rows_per_shard", "rows_per_group")}
    units = [unit for source in good for unit in make_units(source, detector.name, extraction_version=EXTRACTION_VERSION, **sizes)]
    tally = Tally(units)
    for number, outcome in _outcomes(units, folder, workers, cpus_each):
        claim.require()
        if isinstance(outcome, InputFileError):
            if strict:
                raise outcome
            tally.fail(number, outcome)
        else:
            _require_no_bad_event(((units[number].path, entry, reason) for entry, reason in outcome.dropped), strict=strict)
            tally.add(number, outcome)
        if progress is not None:
            progress(units[number].stop - units[number].start)
    _remove_shards_set_aside(tally, folder)
    bad = [*bad, *tally.set_aside()]
    if len(tally.errors) == len(good):
        forget_request(folder)
        raise_bad(bad, len(bad))
    _refuse_duplicates([units[number] for number in tally.kept()], folder)
    manifest = tally.manifest(detector, good, bad, request)
    claim.require(now=True)
    write_manifest(folder, manifest)
    forget_request(folder)
    return manifest


def _outcomes(units: Sequence[Unit], folder: Folder, workers: int, cpus_each: float) -> Iterator[tuple[int, Outcome]]:
    """(number, what came of it) of every unit, as they come; the largest are begun first, so that all workers end together."""
    address = folder.address  # the folder itself need not cross to other processes

    def write(unit: Unit) -> Outcome:
        return write_or_tell(unit, open_folder(address))

    order = sorted(range(len(units)), key=lambda number: units[number].start - units[number].stop)
    sorted_units = [units[number] for number in order]
    for at, outcome in map_unordered(sorted_units, write, on_death=lambda unit: deadly(unit.path), workers=workers, cpus_each=cpus_each):
        yield order[at], outcome


def _sort_out(examined: Sequence[Source | QuarantinedSource], *, strict: bool) -> tuple[list[Source], list[QuarantinedSource]]:
    """(usable, bad) sources.

    Raises:
        InputFileError: all are bad, or one is and `strict` is set.
    """
    good = [source for source in examined if isinstance(source, Source)]
    bad = [source for source in examined if isinstance(source, QuarantinedSource)]
    if bad and (strict or not good):
        raise_bad(bad, len(examined))
    return good, bad


def _require_no_bad_event(dropped: Any, *, strict: bool) -> None:
    """Checks the events left out, as (source, entry, reason).

    Raises:
        InputFileError: one cannot be used, and `strict` is set.
    """
    for path, entry, reason in dropped if strict else ():
        if reason != NO_VISIBLE_PARTICLE:
            hint = "without --strict such events are left out and listed in the manifest"
            raise InputFileError(f"event {entry} cannot be used: {reason}", where=without_secrets(path), hint=hint)


def _remove_shards_set_aside(tally: Tally, folder: Folder) -> None:
    """Deletes what was made of the readable parts of sources that are set aside."""
    for unit in tally.units if tally.errors else ():
        if unit.path in tally.errors:
            folder.remove(unit.file)


def _refuse_same_contents(good: Sequence[Source]) -> None:
    """Checks that no file is there twice, before anything is made of it.

    Raises:
        InputFileError: names both.
    """
    known: dict[str, str] = {}
    for source in good:
        other = known.setdefault(source.digest, source.path)
        if other != source.path:
            where = f"{without_secrets(other)} and {without_secrets(source.path)}"
            hint = "leave one of them out: its events would count twice, perhaps in two splits"
            raise InputFileError("the same file is there twice", where=where, hint=hint)


def _refuse_duplicates(units: Sequence[Unit], folder: Folder) -> None:
    """Checks that no event is in the data set twice.

    An event's identity holds its file's name and its entry, so only files of the same name can share one: no others are read again.

    Raises:
        InputFileError: names the files that hold the same event.
    """
    by_name: dict[str, list[Unit]] = {}
    for unit in units:
        by_name.setdefault(unit.name, []).append(unit)
    for group in by_name.values():
        if len({unit.path for unit in group}) == 1:
            continue
        uids = [_read_uids(folder, unit) for unit in group]
        unique, counts = np.unique(np.concatenate(uids), return_counts=True)
        twice = unique[counts > 1]
        if len(twice):
            raise _twice(len(twice), [unit.path for unit, uid in zip(group, uids, strict=True) if twice[0] in uid])


def _read_uids(folder: Folder, unit: Unit) -> np.ndarray:
    with folder.open_parquet(unit.file) as parquet:  # read_table does not project into structs
        return parquet.read(columns=["event.uid"]).column("event").combine_chunks().field("uid").to_numpy()


def _twice(num_events: int, paths: Sequence[str]) -> InputFileError:
    return InputFileError(
        f"{num_events} event(s) are there more than once: same file name, entry, run and number",
        where=" and ".join(dict.fromkeys(map(without_secrets, paths))),
        hint="leave one of the files out, or rename files that hold different events; then use another --output, or empty this one",
    )
