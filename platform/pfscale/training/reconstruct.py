"""A registered model on ROOT files: candidates (and latents) for every event, from any number of files with or without truth.

A rerun goes on where the last one was ended: files of candidates that are complete are kept, the manifest comes last.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfscale import __version__
from pfscale.edm4hep.detectors import find_detector
from pfscale.errors import InputFileError, PfscaleError, unknown_name
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.ray_cluster import is_running, ray_cluster
from pfscale.remote import without_secrets
from pfscale.shards.lock import claimed
from pfscale.shards.manifest import QuarantinedSource, content_hash
from pfscale.shards.sources import deadly, expand_sources, quarantine, raise_bad
from pfscale.shards.storage import Folder, open_folder
from pfscale.shards.workers import ImportAhead, count_workers, map_unordered
from pfscale.tracking.registry import weights_digest
from pfscale.training.candidate_files import FORMATS, CandidateFile, read_record
from pfscale.training.find_candidates import Outcome, Plan, find_candidates, source_digest
from pfscale.training.head_chain import chain_of
from pfscale.training.lookup import locate_model
from pfscale.training.reconstruction import (
    Reconstruction,
    begin,
    files_of,
    finish,
    forget,
    load_reconstruction,
    require_ours,
    warnings_of,
)
from pfscale.training.shared_model import SharedModel

WORKERS_IMPORT = ("ray.data", "pfscale.training.find_candidates")
LOOKED_AT_ONCE = 8  # files of candidates that are there already


def reconstruct(
    model: str,
    sources: Sequence[str],
    *,
    output: str | Path,
    detector: str | None = None,
    accept_mismatch: bool = False,
    file_format: str = "parquet",
    latents: bool = False,
    heads: Sequence[str] = (),
    num_workers: int | None = None,
    strict: bool = False,
    tracking_uri: str = "sqlite:///mlflow.db",
    progress: Callable[[int], None] | None = None,
) -> Reconstruction:
    """What was written: for every source one file with the candidates that the model finds in it, event by event; truth is never read.

    Parquet has one row per entry: `event`, `candidate` (list of structs: element_index, is_track, pdg, charge, px, py, pz, energy in GeV,
    scores of 6 classes) and, with `latents`, `latent` (per element, float16). ROOT: see `pfscale.edm4hep.candidate_writer`. An event that
    cannot be used has a row without candidates.

    Args:
        model: `models:/name@alias`, `models:/name/version`, or a folder with a model bundle; looked up once, here.
        sources: paths, globs and URLs of EDM4hep ROOT files, and .txt or .list files that list them.
        output: a folder, or the URL of one.
        detector: whose tables name the collections; None: what a file says of itself, else the model's.
        accept_mismatch: reconstruct files of another detector than the model's instead of refusing them.
        heads: downstream models of this model's candidates: column `jet` (px, py, pz, energy in GeV; `score_<class>` of a flavour head,
            `energy_corrected` of an energy head), and `met` (px, py in GeV) of a missing-momentum head; Parquet only.
        num_workers: files at the same time; 0 or None: as many as there are CPUs. One file, or one worker, needs no Ray unless one is
            there: then this process does the work, with all threads that torch has.
        strict: raise at the first bad file, or the first event that cannot be used, instead of setting it aside in the manifest.
        progress: called with the number of events that were just done.

    Raises:
        ModelNotFoundError: no such model.
        InputFileError: nothing matches; every file is bad (or one, if `strict`); another detector's; a model without normalisation;
            a head of another model.
        OutputExistsError: `output` holds something else. The same again is not an error: nothing is done.
        UnknownNameError: no such detector or format.
        ResourceError: more workers than CPUs, the disk is full, a store cannot be reached, another process is at work in `output`.
    """
    if file_format not in FORMATS:
        raise unknown_name("format", file_format, FORMATS)
    if heads and file_format != "parquet":
        raise InputFileError("jets and missing momentum of heads are written to Parquet", where="--head", hint="leave --format away")
    bundle, plan = _loaded(
        model, tracking_uri, heads, detector=detector, accept_mismatch=accept_mismatch, file_format=file_format, latents=latents
    )
    paths = expand_sources(sources)
    files = files_of(paths, plan)
    folder = open_folder(output)
    with claimed(folder, verb="reconstruction") as claim:
        require_ours(folder, plan, files)
        outcomes: dict[str, Outcome] = dict(_complete(folder, plan, files))
        left = [path for path in paths if path not in outcomes]
        for outcome in outcomes.values() if strict else ():
            _require_good(outcome)
        finished = load_reconstruction(folder)
        if not left and finished is not None and len(finished.sources) == len(paths):
            forget(folder)
            return finished
        begin(folder, plan)
        try:
            for path, outcome in _found(left, plan, bundle, folder, num_workers, progress):
                claim.require()
                if strict:
                    _require_good(outcome)
                outcomes[path] = outcome
        except BaseException:
            with suppress(PfscaleError, OSError):
                folder.clear_unfinished()
            raise
        result = _result(folder, model, plan, [outcomes[path] for path in paths], bundle)
        claim.require(now=True)
        finish(folder, result)
        return result


def _loaded(model: str, tracking_uri: str, heads: Sequence[str], *, detector: str | None, **options: Any) -> tuple[Bundle, Plan]:
    """The model, and what is asked of every source.

    Raises:
        ModelNotFoundError, UnknownNameError.
        InputFileError: it is no particle-flow model, its inputs are not normalised, or `detector` is not the model's.
    """
    place, address = locate_model(model, tracking_uri=tracking_uri)
    bundle = load_bundle(place)
    parts = (weights_digest(place), bundle.model.config.model_dump(mode="json"), bundle.card["task"])
    model_hash = content_hash("model", *parts)
    chain = chain_of(heads, model=address, model_hash=model_hash, tracking_uri=tracking_uri)
    plan = Plan(address, model_hash, bundle.card["detector"], detector, chain=chain, **options)
    find_detector(detector or plan.trained_on)
    if detector is not None:
        plan.require_match(detector, where="--detector")
    return bundle, plan


def _complete(folder: Folder, plan: Plan, files: dict[str, str]) -> Iterator[tuple[str, CandidateFile]]:
    """(source, record) of the files of candidates that are there and are of this plan and of the sources as they are now."""

    def look(path: str) -> CandidateFile | None:
        record = read_record(folder, files[path], plan.file_format)
        try:
            return record if record and plan.is_current(record, source_digest(path)[1]) else None
        except (OSError, PfscaleError):
            return None  # whoever reads the source will tell

    there = set(folder.names())
    candidates = [path for path, file in files.items() if file in there]
    with ThreadPoolExecutor(LOOKED_AT_ONCE) as pool:
        for path, record in zip(candidates, pool.map(look, candidates), strict=True):
            if record is not None:
                yield path, record


def _found(
    paths: Sequence[str], plan: Plan, bundle: Bundle, folder: Folder, num_workers: int | None, progress: Callable[[int], None] | None
) -> Iterator[tuple[str, Outcome]]:
    """(source, what came of it), as they come."""
    has_cluster = is_running() or bool(os.environ.get("RAY_ADDRESS"))
    if not has_cluster and min(num_workers or len(os.sched_getaffinity(0)), len(paths)) <= 1:
        for path in paths:
            yield path, find_candidates(path, plan, bundle, folder, progress=progress)
        return
    import ray

    with ray_cluster():
        workers, cpus_each = count_workers(num_workers)
        workers = min(workers, len(paths))
        imports = ImportAhead(WORKERS_IMPORT, workers, cpus_each)
        threads = max(1, int(ray.cluster_resources().get("CPU", 1) // workers))
        shared = SharedModel(plan.model_hash, ray.put(bundle), threads)
        imports.wait()
        task = functools.partial(_find_in_worker, plan=plan, model=shared, address=folder.address)
        # a task per file: it takes seconds, and one that dies with its worker should not take others along
        found = map_unordered(paths, task, on_death=_died, workers=workers, cpus_each=cpus_each, tasks_per_worker=len(paths))
        for number, outcome in found:
            yield paths[number], outcome
            if progress is not None and isinstance(outcome, CandidateFile):
                progress(outcome.num_events)


def _find_in_worker(path: str, *, plan: Plan, model: SharedModel, address: str) -> Outcome:
    return find_candidates(path, plan, model.bundle(), open_folder(address))


def _died(path: str) -> QuarantinedSource:
    return quarantine(path, deadly(path))


def _require_good(outcome: Outcome) -> None:
    """Checks that a source, and every event of it, can be used.

    Raises:
        InputFileError: it cannot.
    """
    if isinstance(outcome, QuarantinedSource):
        raise_bad([outcome], 1)
    elif outcome.unusable:
        entry, reason = outcome.unusable[0]
        hint = "without --strict such events have no candidates and are listed in reconstruction.json"
        raise InputFileError(f"event {entry} cannot be used: {reason}", where=outcome.path, hint=hint)


def _result(folder: Folder, model: str, plan: Plan, outcomes: Sequence[Outcome], bundle: Bundle) -> Reconstruction:
    """What came of all sources; files of candidates of those that cannot be used (any more) go.

    Raises:
        InputFileError: none can be used.
    """
    good = [outcome for outcome in outcomes if isinstance(outcome, CandidateFile)]
    bad = [outcome for outcome in outcomes if isinstance(outcome, QuarantinedSource)]
    for source in bad:
        folder.remove(plan.file_of(source.path))
    if not good:
        forget(folder)
        raise_bad(bad, len(outcomes))
    return Reconstruction(
        output=folder.address,
        pfscale=__version__,
        model=model,
        settings=plan.settings,
        num_events=sum(source.num_events for source in good),
        num_candidates=sum(source.num_candidates for source in good),
        sources=tuple(good),
        quarantined=tuple(source.model_copy(update={"path": without_secrets(source.path)}) for source in bad),
        warnings=warnings_of(good, bundle.card),
    )
