"""ROOT files to event shards, with Ray Data: every (file, entry range) is one task that writes one shard.

A rerun goes on where the last one was ended, whatever ended it: complete shards are kept, the manifest comes last.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq

from pfscale.edm4hep.detectors import Detector, find_detector
from pfscale.errors import InputFileError, OutputExistsError, PfscaleError, ResourceError, unknown_name
from pfscale.ray_cluster import ray_cluster
from pfscale.shards.events import EXTRACTION_VERSION
from pfscale.shards.manifest import (
    MANIFEST_FILE,
    DroppedRecord,
    EnergySums,
    Manifest,
    QuarantinedSource,
    ShardRecord,
    Simulation,
    SourceRecord,
    content_hash,
    load_manifest,
    torn_shards,
    write_atomically,
    write_manifest,
)
from pfscale.shards.schema import CLASSES, SCHEMA_VERSION, SPLITS
from pfscale.shards.sources import Source, examine, expand_sources, quarantine
from pfscale.shards.writer import UNFINISHED, ShardContents, Unit, UnitResult, run_unit, shard_file, unit_identity

REQUEST_FILE = ".ingest.json"  # in a folder whose ingest has not finished: what is being made there
SIMULATIONS = ("builtin", "geant4", "fast")
FILES_EXAMINED_HERE = 8  # more are opened by the workers


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
        sources: paths, globs and URLs of EDM4hep ROOT files.
        detector: entry of the detector table, which says what to read.
        process, simulation: recorded in the manifest; empty: what the files say of themselves, else the detector's usual.
        num_workers: files read at the same time; 0 or None: as many as the cluster has CPUs, less one.
        rows_per_shard, rows_per_group: entries per file and events per Parquet row group.
        strict: raise at the first bad file instead of setting it aside in the manifest.
        progress: called with the number of entries that were just done.

    Raises:
        InputFileError: nothing matches, every file is bad (or one, if `strict`), no event is usable, or one is there twice.
        OutputExistsError: `output` holds something else. The same sources again are not an error: nothing is done.
        UnknownNameError, ResourceError: no such detector or simulation; more workers than CPUs, or the disk is full.
    """
    if simulation and simulation not in SIMULATIONS:
        raise unknown_name("simulation", simulation, SIMULATIONS)
    table_entry, directory = find_detector(detector), Path(output)
    paths = expand_sources(sources)
    if len(paths) <= FILES_EXAMINED_HERE:
        examined = [examine(path, table_entry) for path in paths]
        _sort_out(examined, strict=strict)  # bad files are told of before Ray starts
        finished = _check_output(directory, _request(examined, detector, process, simulation, rows_per_shard, rows_per_group))
        if finished is not None:
            return finished
    with ray_cluster():
        workers, cpus_each = _workers(num_workers)
        if len(paths) > FILES_EXAMINED_HERE:
            examined = _map(paths, lambda path: examine(path, table_entry), workers, cpus_each)
        good, bad = _sort_out(examined, strict=strict)
        request = _request(examined, detector, process, simulation, rows_per_shard, rows_per_group)
        finished = _check_output(directory, request)
        if finished is not None:
            return finished
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / REQUEST_FILE, json.dumps({"request": request}))
        units = [unit for source in good for unit in _units(source, table_entry, rows_per_shard, rows_per_group)]
        results = _run(units, directory, workers, cpus_each, strict=strict, progress=progress)
    good, bad, results = _set_aside_failed(good, bad, results, directory)
    _refuse_duplicates(results, directory)
    manifest = _manifest(table_entry, good, bad, results, request, process, simulation)
    _require_events(manifest)
    _clear_away(directory)
    write_manifest(directory, manifest)
    (directory / REQUEST_FILE).unlink(missing_ok=True)
    return manifest


def _request(examined: Sequence[Source | QuarantinedSource], *settings: object) -> str:
    """Names what was asked for: the contents of all sources, bad ones by their reason, and the settings."""
    files = [(s.name, s.digest) if isinstance(s, Source) else (s.path, s.reason) for s in examined]
    return content_hash("request", SCHEMA_VERSION, EXTRACTION_VERSION, sorted(files), *[setting or "" for setting in settings])


def _check_output(directory: Path, request: str) -> Manifest | None:
    """The finished manifest if the folder already holds what is asked for; None if it can be made there.

    Raises:
        OutputExistsError: the folder holds something else.
    """
    hint = "choose another --output, or empty the folder"
    if directory.exists() and not directory.is_dir():
        raise OutputExistsError("the output is a file, not a folder", where=str(directory), hint=hint)
    if (directory / MANIFEST_FILE).exists():
        manifest = load_manifest(directory)
        if manifest.request == request:
            if not torn_shards(directory, manifest):
                return manifest
            # Unfinished again: complete shards are kept, the others made anew.
            write_atomically(directory / REQUEST_FILE, json.dumps({"request": request}))
            (directory / MANIFEST_FILE).unlink()
            return None
        held = (
            f"{manifest.num_events} events of {manifest.detector} from {len(manifest.sources)} other file(s), or read with other settings"
        )
        raise OutputExistsError(f"the folder already holds {held}", where=str(directory), hint=hint)
    started = directory / REQUEST_FILE
    if started.exists():
        if json.loads(started.read_text()).get("request") == request:
            return None
        raise OutputExistsError("an ingest of other data was begun in this folder and not finished", where=str(directory), hint=hint)
    if directory.exists() and any(not path.name.startswith(".") for path in directory.iterdir()):
        what = "the folder is not empty and holds no data set"
        if any(directory.glob("*.parquet")):
            what = "the folder holds shards without their manifest.json"
        raise OutputExistsError(what, where=str(directory), hint=hint)
    return None


def _clear_away(directory: Path) -> None:
    """Deletes what workers that were killed in the middle of a shard have left."""
    for unfinished in directory.glob(f".*{UNFINISHED}"):
        unfinished.unlink(missing_ok=True)


def _workers(asked: int | None) -> tuple[int, float]:
    """(number of workers, CPUs that each reserves). One whole CPU stays free: Ray Data's own tasks would else wait for ever, silently.

    Raises:
        ResourceError: more workers than the cluster has CPUs.
    """
    import ray

    cpus = float(ray.cluster_resources().get("CPU", 0))
    if asked and asked > cpus:
        raise ResourceError(f"{asked} workers, but the cluster has {cpus:g} CPUs", hint=f"use at most --workers {int(cpus)}")
    workers = asked or max(1, int(cpus) - 1)
    return workers, min(1.0, (cpus - 1) / workers) if cpus > 1 else 0.5


def _map(items: Sequence[Any], function: Callable[[Any], Any], workers: int, cpus_each: float) -> list[Any]:
    """function(item) of every item, in the order of the items, computed by Ray Data tasks."""
    results = dict(_map_unordered(list(enumerate(items)), function, workers, cpus_each))
    return [results[number] for number in range(len(items))]


def _map_unordered(
    numbered: Sequence[tuple[int, Any]], function: Callable[[Any], Any], workers: int, cpus_each: float
) -> Iterator[tuple[int, Any]]:
    """(number, function(item)) as they come.

    Raises:
        PfscaleError: as `function` does.
    """
    import ray

    def apply(batch: dict[str, Any]) -> dict[str, Any]:
        return {"number": batch["number"], "result": [pickle.dumps(function(pickle.loads(item))) for item in batch["item"]]}

    # pickled, because Ray would guess an Arrow type for our objects and warn of its failure
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in numbered]
    with _quiet_ray_data():
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        mapped = data.map_batches(apply, batch_size=1, num_cpus=cpus_each, compute=ray.data.TaskPoolStrategy(size=workers))
        try:
            for row in mapped.iter_rows():
                yield int(row["number"]), pickle.loads(row["result"])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PfscaleError):
                raise error.cause from None
            raise


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data without its progress bars and its notes on every execution."""
    import ray

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    logger.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def _sort_out(examined: Sequence[Source | QuarantinedSource], *, strict: bool) -> tuple[list[Source], list[QuarantinedSource]]:
    """(usable, bad) sources.

    Raises:
        InputFileError: all are bad, or one is and `strict` is set.
    """
    good = [source for source in examined if isinstance(source, Source)]
    bad = [source for source in examined if isinstance(source, QuarantinedSource)]
    if bad and (strict or not good):
        _raise_bad(bad, len(examined))
    return good, bad


def _raise_bad(bad: Sequence[QuarantinedSource], num_sources: int) -> None:
    first = bad[0]
    hint = first.hint
    if len(bad) > 1:
        others = f"{len(bad)} of {num_sources} files are bad; this is the first"
        hint = f"{hint} ({others})" if hint else others
    raise InputFileError(first.reason, where=first.path, hint=hint)


def _units(source: Source, detector: Detector, rows_per_shard: int, rows_per_group: int) -> list[Unit]:
    """The entry ranges of a source; they do not depend on the number of workers."""
    units = []
    identity = unit_identity(source.digest, source.name, detector.name, rows_per_group, EXTRACTION_VERSION)
    for start in range(0, source.num_entries, rows_per_shard):
        stop = min(start + rows_per_shard, source.num_entries)
        file = shard_file(source.name, source.digest, start, stop)
        units.append(Unit(source.path, detector.name, start, stop, rows_per_group, file, identity))
    return units


def _run(
    units: Sequence[Unit], directory: Path, workers: int, cpus_each: float, *, strict: bool, progress: Callable[[int], None] | None
) -> list[UnitResult]:
    results: dict[int, UnitResult] = {}
    target = directory.resolve()
    for number, result in _map_unordered(list(enumerate(units)), lambda unit: run_unit(unit, target), workers, cpus_each):
        results[number] = result
        if strict and result.error is not None:
            raise result.error
        if progress is not None:
            progress(result.unit.stop - result.unit.start)
    return [results[number] for number in range(len(units))]


def _set_aside_failed(
    good: list[Source], bad: list[QuarantinedSource], results: list[UnitResult], directory: Path
) -> tuple[list[Source], list[QuarantinedSource], list[UnitResult]]:
    """Moves sources of which any part could not be read to the bad ones and deletes what was made of their other parts.

    Raises:
        InputFileError: no source is left.
    """
    errors = {result.unit.path: result.error for result in reversed(results) if result.error is not None}
    for result in results:
        if result.unit.path in errors:
            (directory / result.unit.file).unlink(missing_ok=True)
    bad = bad + [quarantine(path, error) for path, error in sorted(errors.items())]
    kept = [source for source in good if source.path not in errors]
    if not kept:
        (directory / REQUEST_FILE).unlink(missing_ok=True)
        _raise_bad(bad, len(bad))
    return kept, bad, [result for result in results if result.unit.path not in errors]


def _refuse_duplicates(results: Sequence[UnitResult], directory: Path) -> None:
    """Checks that no event is in the data set twice.

    Raises:
        InputFileError: names the files that hold the same event.
    """
    # ParquetFile, because read_table does not project into structs
    parts = [pq.ParquetFile(directory / result.unit.file).read(columns=["event.uid"]) for result in results]
    uids = [part.column("event").combine_chunks().field("uid").to_numpy() for part in parts]
    everything = np.concatenate(uids) if uids else np.zeros(0, np.uint64)
    unique, counts = np.unique(everything, return_counts=True)
    if len(unique) == len(everything):
        return
    twice = unique[counts > 1]
    holders = [result.unit.path for result, uid in zip(results, uids, strict=True) if twice[0] in uid]
    names = " and ".join(dict.fromkeys(holders))
    raise InputFileError(
        f"{len(twice)} event(s) are there more than once: same file name, entry, run and number",
        where=names,
        hint="leave one of the files out, or rename files that hold different events",
    )


def _manifest(
    detector: Detector,
    good: Sequence[Source],
    bad: Sequence[QuarantinedSource],
    results: Sequence[UnitResult],
    request: str,
    process: str,
    simulation: str | None,
) -> Manifest:
    contents = [cast(ShardContents, result.contents) for result in results]
    by_path: Counter[str] = Counter()
    for result, content in zip(results, contents, strict=True):
        by_path[result.unit.path] += content.num_events
    process = process or "+".join(sorted({source.process for source in good if source.process}))
    simulation = simulation or _common_simulation(good)
    identity = sorted((source.name, source.digest) for source in good)
    return Manifest(
        extraction_version=EXTRACTION_VERSION,
        hash=content_hash("data", SCHEMA_VERSION, EXTRACTION_VERSION, detector.name, process, simulation, identity),
        request=request,
        detector=detector.name,
        process=process,
        simulation=cast(Simulation, simulation),
        has_baseline=all(source.has_baseline for source in good),
        num_events=sum(content.num_events for content in contents),
        splits={split: sum(content.splits[split] for content in contents) for split in SPLITS},
        track_classes={name: sum(content.track_classes[name] for content in contents) for name in CLASSES},
        cluster_classes={name: sum(content.cluster_classes[name] for content in contents) for name in CLASSES},
        num_particles=sum(content.num_particles for content in contents),
        num_surrogates=sum(content.num_surrogates for content in contents),
        energy=EnergySums(
            visible=sum(content.energy_visible for content in contents),
            targets=sum(content.energy_targets for content in contents),
            dropped=sum(content.energy_dropped for content in contents),
        ),
        sources=tuple(_source_record(source, by_path[source.path]) for source in good),
        quarantined=tuple(bad),
        dropped=tuple(
            DroppedRecord(source=r.unit.path, entry=e, reason=why) for r, c in zip(results, contents, strict=True) for e, why in c.dropped
        ),
        shards=tuple(
            ShardRecord(file=r.unit.file, source=r.unit.path, start=r.unit.start, stop=r.unit.stop, num_events=c.num_events)
            for r, c in zip(results, contents, strict=True)
        ),
    )


def _require_events(manifest: Manifest) -> None:
    """Checks that the data set holds an event at all.

    Raises:
        InputFileError: every event was left out.
    """
    if manifest.num_events:
        return
    reasons = Counter(dropped.reason for dropped in manifest.dropped)
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    raise InputFileError(f"no event can be used ({why})", where=manifest.sources[0].path, hint="is --detector right for these files?")


def _source_record(source: Source, num_events: int) -> SourceRecord:
    fields = {name: getattr(source, name) for name in ("path", "name", "size", "digest", "num_entries", "generation", "process")}
    return SourceRecord(num_events=num_events, **fields)


def _common_simulation(good: Sequence[Source]) -> str:
    """What simulated the sources.

    Raises:
        InputFileError: they differ: a model trained on a mixture could not say what it was trained on.
    """
    kinds = {source.simulation: source for source in good}
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({source.name})" for kind, source in sorted(kinds.items()))
        raise InputFileError(f"the files come from different simulations: {listed}", hint="ingest them into separate folders")
    return next(iter(kinds))
