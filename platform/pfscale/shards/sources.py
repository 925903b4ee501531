"""The files that an ingest is given: expanded, opened once, and identified by their contents."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec

from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.reader import EventSource, open_source
from pfscale.errors import InputFileError, PfscaleError
from pfscale.shards.manifest import QuarantinedSource

WHOLE_FILE_LIMIT = 64 * 2**20  # bytes; larger and remote files are identified by their size and ends
END_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Source:
    """A usable source file."""

    path: str
    name: str
    size: int
    digest: str
    num_entries: int
    generation: str
    process: str
    simulation: str
    has_baseline: bool


def expand_sources(sources: Sequence[str]) -> list[str]:
    """The files that paths, globs and URLs name, sorted, each once.

    Raises:
        InputFileError: a glob without matches, or nothing given.
    """
    paths: list[str] = []
    for source in sources:
        if "://" in source or not glob.has_magic(source) or Path(source).exists():
            paths.append(source)
            continue
        matches = sorted(glob.glob(source, recursive=True))
        if not matches:
            raise InputFileError("no file matches", where=source, hint="quote globs, or check the folder")
        paths += matches
    if not paths:
        raise InputFileError("no source files given", hint="pfscale ingest FILE... --detector NAME --output DIR")
    unique = {path if "://" in path else str(Path(path).resolve()): path for path in paths}
    return [unique[key] for key in sorted(unique)]


def examine(path: str, detector: Detector) -> Source | QuarantinedSource:
    """What a source file holds, or why it cannot be used."""
    try:
        with open_source(path) as source:
            require_detector(source, detector)
            for collection, why in detector.required.items():
                if not source.has(collection):
                    raise source.missing(collection, why=why)
            size, digest = file_digest(path)
            return Source(
                path=path,
                name=PurePosixPath(path).name,
                size=size,
                digest=digest,
                num_entries=source.num_entries,
                generation=source.generation.name,
                process=source.metadata.get("process", ""),
                simulation=source.metadata.get("simulation", detector.simulation),
                has_baseline=detector.baseline is not None and source.has(detector.baseline),
            )
    except InputFileError as error:
        return quarantine(path, error)


def require_detector(source: EventSource, detector: Detector) -> None:
    """Checks a file that says of which detector it is.

    Raises:
        InputFileError: it is of another one.
    """
    said = source.metadata.get("detector", detector.name)
    if said != detector.name:
        raise InputFileError(
            f"the file says that it is from '{said}', not '{detector.name}'", where=source.path, hint=f"give --detector {said}"
        )


def quarantine(path: str, error: PfscaleError) -> QuarantinedSource:
    """The manifest's record of a source that failed with `error`."""
    return QuarantinedSource(path=path, reason=error.what, hint=error.hint, error=type(error).__name__, exit_code=error.exit_code)


def file_digest(path: str) -> tuple[int, str]:
    """(size, hex digest) that identify a file's contents: all of a small local file, size and both ends of others."""
    with fsspec.open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        if "://" not in path and size <= WHOLE_FILE_LIMIT:
            digest.update(file.read())
        else:
            digest.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            digest.update(file.read(END_BYTES))
    return size, digest.hexdigest()
