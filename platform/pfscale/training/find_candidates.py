"""One source file to one file of candidates: what a worker does, or the calling process; a remote one is read ahead of the network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale import __version__
from pfscale.edm4hep.candidate_writer import clusters_per_collection
from pfscale.edm4hep.detectors import Detector, find_detector
from pfscale.edm4hep.extraction import MIN_TRACKS_FOR_RATIO
from pfscale.edm4hep.reader import EventSource, open_source, require_detector
from pfscale.errors import InputFileError
from pfscale.models.bundle import Bundle
from pfscale.remote import base_name, without_secrets
from pfscale.shards.events import EXTRACTION_VERSION, EventTable, extract_events, stream_events
from pfscale.shards.manifest import QuarantinedSource, content_hash
from pfscale.shards.ragged import from_arrow, list_leaves
from pfscale.shards.sources import file_digest, file_version, not_the_network, quarantine, require_unchanged
from pfscale.shards.storage import Folder
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.candidate_files import CANDIDATES_VERSION, CandidateFile, FoundCandidates, candidate_writer, read_record
from pfscale.training.head_chain import NO_HEADS, HeadChain
from pfscale.training.inference import run_model

EVENTS_TO_TELL = 16  # whether a file is of the detector that it is taken for: hundreds of tracks
WHOLE_LIMIT = 2**20  # bytes; reading and hashing all of a larger file costs a tenth of what its features cost
AGAIN = "run the same command again"
Outcome = CandidateFile | QuarantinedSource  # a source that cannot be used is an outcome, too


@dataclass(frozen=True)
class Plan:
    """What is asked of every source.

    Attributes:
        model: the address that always means this version.
        model_hash: of weights, architecture and working point.
        trained_on: detector of the model.
        detector: whose tables are to be used; None: what the file says, else the model's.
        accept_mismatch: also sources of other detectors.
        chain: downstream heads, whose jets and missing momentum are written, too.
    """

    model: str
    model_hash: str
    trained_on: str
    detector: str | None = None
    accept_mismatch: bool = False
    file_format: str = "parquet"
    latents: bool = False
    chain: HeadChain = NO_HEADS

    @property
    def settings(self) -> dict[str, Any]:
        """What the files of candidates depend on besides their sources; `model` is for messages."""
        versions = {"extraction_version": EXTRACTION_VERSION, "candidates_version": CANDIDATES_VERSION}
        options = {"detector": self.detector or self.trained_on, "format": self.file_format, "latents": self.latents}
        if self.chain.heads:
            options["heads"] = self.chain.settings
        return {"model": self.model, "model_hash": self.model_hash, **options, **versions}

    @property
    def suffix(self) -> str:
        """How the files of candidates end."""
        return f".candidates.{self.file_format}"

    def file_of(self, path: str) -> str:
        """The name of the source's file of candidates."""
        return base_name(path).removesuffix(".root") + self.suffix

    def identity(self, name: str, digest: str, detector: str) -> str:
        """Names what a source's file of candidates holds."""
        options = (detector, self.file_format, self.latents, *self.chain.settings)
        return content_hash("candidates", name, digest, self.model_hash, *options, EXTRACTION_VERSION, CANDIDATES_VERSION)

    def detector_of(self, source: EventSource) -> Detector:
        """The detector whose tables read this source.

        Raises:
            InputFileError: the file says another one than was asked for, or it is not the model's and that is not accepted.
        """
        table = find_detector(self.detector or source.metadata.get("detector") or self.trained_on)
        require_detector(source, table)
        self.require_match(table.name, where=source.path)
        return table

    def require_match(self, detector: str, *, where: str | None) -> None:
        """Checks that a detector is the model's, unless others are accepted.

        Raises:
            InputFileError: it is not.
        """
        if detector != self.trained_on and not self.accept_mismatch:
            hint = f"use a model of {detector} (pfscale models list), or --accept-mismatch to see what this one makes of it"
            raise InputFileError(f"of '{detector}', but the model was trained on '{self.trained_on}'", where=where, hint=hint)

    def is_current(self, record: CandidateFile, digest: str) -> bool:
        """Whether a file of candidates is of these contents and of this plan."""
        fits = self.accept_mismatch or record.detector == self.trained_on
        return fits and record.identity == self.identity(record.name, digest, record.detector)


def source_digest(path: str) -> tuple[int, str]:
    """(size, hex digest) of a source: its ends are enough, because ROOT files begin with a number of their own (TUUID)."""
    return file_digest(path, whole_limit=WHOLE_LIMIT)


def find_candidates(path: str, plan: Plan, bundle: Bundle, folder: Folder, *, progress: Callable[[int], None] | None = None) -> Outcome:
    """The record of the source's file of candidates in `folder`, written unless it is there already; or why the source cannot be used.

    Raises:
        ResourceError: the disk is full, or the source or the folder cannot be reached; nothing is left behind.
    """
    unchanged: Callable[[], None] | None = None
    try:
        version = file_version(path)
        with open_source(path) as source:
            detector = plan.detector_of(source)
            size, digest = source_digest(path)
            unchanged = functools.partial(require_unchanged, path, version=version, digest=digest, whole_limit=WHOLE_LIMIT, hint=AGAIN)
            record = CandidateFile(
                file=plan.file_of(path),
                identity=plan.identity(base_name(path), digest, detector.name),
                path=without_secrets(path),
                name=base_name(path),
                size=size,
                digest=digest,
                detector=detector.name,
                simulation=source.metadata.get("simulation", detector.simulation),
                on_trust=not _tells_detector(source, detector) and plan.detector is None,
            )
            done = read_record(folder, record.file, plan.file_format) if folder.exists(record.file) else None
            if done is not None and done.identity == record.identity:
                return done
            return _write(source, record, plan, bundle, folder, unchanged, progress)
    except InputFileError as error:
        error = not_the_network(path, error)
        try:
            if unchanged is not None:
                unchanged()  # a file that is being written looks damaged
        except InputFileError as changed:
            error = changed
        return quarantine(path, error)


def _write(
    source: EventSource,
    record: CandidateFile,
    plan: Plan,
    bundle: Bundle,
    folder: Folder,
    require_same: Callable[[], None],
    progress: Callable[[int], None] | None,
) -> CandidateFile:
    """The record with its counts, when the file of candidates is complete."""
    task, detector = ReconstructionConfig(**bundle.card["task"]), find_detector(record.detector)
    width = bundle.model.config.width if plan.latents else None
    num_candidates, unusable = 0, []
    with_latents = plan.latents or plan.chain.needs_latents
    with candidate_writer(folder, record.file, plan.file_format, detector, width=width, chain=plan.chain) as writer:
        # Not in a thread of its own: beside the network that cost a quarter more CPU time and saved none.
        # A remote file, for which one waits, is read ahead by its reader.
        for part, num_clusters in _parts(source, detector, with_counts=plan.file_format == "root" and len(detector.clusters) > 1):
            events = from_arrow(part.table)
            prediction = run_model(bundle.model, events, task, with_latents=with_latents)
            said = plan.chain.apply(bundle, events, prediction) if plan.chain.heads else None
            written = prediction if plan.latents else replace(prediction, latents=None)
            writer.add(FoundCandidates(part.table, events, written, num_clusters, said))
            num_candidates += len(prediction.candidates.event)
            unusable += [(event.entry, event.reason) for event in part.dropped]
            if progress is not None:
                progress(events.num_events)
        require_same()
        counts = {"num_events": source.num_entries, "num_candidates": num_candidates, "unusable": tuple(unusable)}
        record = record.model_copy(update=counts)
        about = {"detector": record.detector, "simulation": record.simulation, "model": plan.model, "model_hash": plan.model_hash}
        writer.finish(record, {**about, "pfscale": __version__})
    return record


def _tells_detector(source: EventSource, detector: Detector) -> bool:
    """Whether the file says its detector, or has rule-based candidates enough whose momenta a wrong field would contradict.

    Raises:
        InputFileError: they do contradict it.
    """
    if "detector" in source.metadata:
        return True
    table = extract_events(source, detector, 0, min(EVENTS_TO_TELL, source.num_entries), with_truth=False).table
    tracks: Any = list_leaves(table, "baseline")[1]["track_index"]  # of Arrow: a list for each candidate
    return int((np.diff(tracks.offsets.to_numpy()) == 1).sum()) >= MIN_TRACKS_FOR_RATIO


def _parts(source: EventSource, detector: Detector, *, with_counts: bool) -> Iterator[tuple[EventTable, NDArray[np.int64] | None]]:
    """The events of a source part by part, without rule-based candidates, and the clusters per collection where asked for."""
    detector, start = replace(detector, baseline=()), 0
    for part in stream_events(source, detector, 0, source.num_entries, with_truth=False):
        stop = start + part.table.num_rows
        yield part, clusters_per_collection(source, detector, start, stop) if with_counts else None
        start = stop
