"""The files that an ingest is given: expanded, opened once, and identified by their contents."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from pfscale.edm4hep.candidates import baseline_collection
from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.reader import open_source, require_detector
from pfscale.errors import InputFileError, PfscaleError
from pfscale.remote import base_name, is_remote, local_path, read_remote, remote_error, remote_filesystem, without_secrets
from pfscale.shards.manifest import QuarantinedSource

LISTS = (".txt", ".list")  # files with one path, glob or URL per line
WHOLE_FILE_LIMIT = 64 * 2**20  # bytes; larger and remote files are identified by their size and ends
END_BYTES = 64 * 2**10
DIGESTS_AT_ONCE = 8
_VERSION_KEYS = ("ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "updated", "generation", "md5Hash")


@dataclass(frozen=True, slots=True)
class Source:
    """A usable source file.

    Attributes:
        name: base name, part of its events' identity.
        digest: identifies the contents.
        version: changes whenever the file is written to, and costs next to nothing to look up.
        detector, process, simulation: what the file says of itself; empty: nothing.
    """

    path: str
    name: str
    size: int
    digest: str
    version: str
    num_entries: int
    generation: str
    detector: str
    process: str
    simulation: str
    has_baseline: bool


def expand_sources(sources: Sequence[str]) -> list[str]:
    """The files that paths, globs, URLs and lists of them name, sorted, each once.

    A list is a `.txt` or `.list` file with one path, glob or URL per line, relative to the working directory; `#` starts a comment.

    Raises:
        InputFileError: a glob without matches, a list that cannot be read, or nothing given; in lists with file:line. Files that are not
            there are found out when they are examined, wherever they are named.
        ResourceError: a remote glob at a place that cannot be reached or listed.
    """
    paths = [path for source in sources for path in _expand(local_path(source))]
    if not paths:
        raise InputFileError("no source files given", hint="pfscale ingest FILE... --detector NAME --output DIR")
    unique = {path if is_remote(path) else str(Path(path).resolve()): path for path in paths}
    return [unique[key] for key in sorted(unique)]


def _expand(source: str) -> list[str]:
    if base_name(source).lower().endswith(LISTS):
        return [path for line, where in _lines(source) for path in _matches(line, where=where)]
    return _matches(source, where=None)


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """(entry, file:line) of a list."""
    try:
        if is_remote(path):
            filesystem, inner = remote_filesystem(path)
            text = read_remote(filesystem, inner).decode()
        else:
            text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputFileError("no such list of files", where=without_secrets(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    found = False
    for number, line in enumerate(text.splitlines(), start=1):
        entry = "" if line.lstrip().startswith("#") else line.partition(" #")[0].strip()
        if not entry:
            continue
        found, where = True, f"{without_secrets(path)}:{number}"
        entry = local_path(entry)
        if base_name(entry).lower().endswith(LISTS):
            raise InputFileError("a list cannot name another list", where=where, hint="give both lists on the command line")
        yield entry, where
    if not found:
        raise InputFileError(
            "the list names no files", where=without_secrets(path), hint="one path, glob or URL per line; # starts a comment"
        )


def _unreadable(path: str, error: Exception) -> PfscaleError:
    ours = remote_error(path, error) if is_remote(path) else None
    return ours or InputFileError(f"cannot read the list of files ({str(error).splitlines()[0]})", where=without_secrets(path))


def _matches(source: str, *, where: str | None) -> list[str]:
    """The files that one path, glob or URL names."""
    if is_remote(source):
        if not _is_remote_glob(source):
            return [source]
        found = _remote_matches(source)
    elif not glob.has_magic(source) or Path(source).exists():
        return [source]
    else:
        found = sorted(glob.glob(source, recursive=True))
    if not found:
        what = f"no file matches {without_secrets(source)}" if where else "no file matches"
        raise InputFileError(what, where=where or without_secrets(source), hint="quote globs, or check the folder")
    return found


def _is_remote_glob(url: str) -> bool:
    if url.startswith(("http://", "https://", "root://")):
        return "*" in url.partition("?")[0]  # a ? begins the query there
    return glob.has_magic(url)


def _remote_matches(url: str) -> list[str]:
    filesystem, path = remote_filesystem(url)
    try:
        return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))
    except FileNotFoundError:
        return []
    except Exception as error:  # every file system has its own types
        raise remote_error(url, error) or InputFileError(f"cannot list it ({error})", where=without_secrets(url)) from error


def recall(paths: Sequence[str], known: Mapping[tuple[str, str], Source]) -> dict[str, Source]:
    """Those of the files that were examined before, by path: opening a file costs far more than its digest.

    Args:
        known: what is known of contents, by (name, digest).
    """
    names = {name for name, _ in known}

    def look(path: str) -> Source | None:
        try:
            version = file_version(path)
            return replace(known[base_name(path), file_digest(path)[1]], path=path, version=version)
        except (KeyError, OSError, PfscaleError):
            return None  # examining it will tell

    candidates = [path for path in paths if base_name(path) in names]
    with ThreadPoolExecutor(DIGESTS_AT_ONCE) as pool:
        found = zip(candidates, pool.map(look, candidates), strict=True)
        return {path: source for path, source in found if source is not None}


def examine(path: str, detector: Detector) -> Source | QuarantinedSource:
    """What a source file holds, or why it cannot be used.

    Raises:
        ResourceError: it is remote and cannot be reached or may not be read: that says nothing about the file.
    """
    try:
        version = file_version(path)
        with open_source(path) as source:
            require_detector(source, detector)
            for collection, why in detector.required.items():
                if not source.has(collection):
                    raise source.missing(collection, why=why)
            size, digest = file_digest(path)
            return Source(
                path=path,
                name=base_name(path),
                size=size,
                digest=digest,
                version=version,
                num_entries=source.num_entries,
                generation=source.generation.name,
                **{key: source.metadata.get(key, "") for key in ("detector", "process", "simulation")},
                has_baseline=baseline_collection(source, detector) is not None,
            )
    except InputFileError as error:
        return quarantine(path, not_the_network(path, error))


def not_the_network(path: str, error: InputFileError) -> InputFileError:
    """`error` itself if it is about the file.

    Raises:
        ResourceError: it was made of a failure of the network or of the credentials.
    """
    cause = error.__cause__
    told = remote_error(path, cause) if cause is not None and is_remote(path) else None
    if told is None:
        return error
    if isinstance(told, InputFileError):
        return told
    raise told from error


def as_asked(source: Source | QuarantinedSource, *, process: str, simulation: str) -> Source | QuarantinedSource:
    """The source, set aside if what it says of itself contradicts what an ingest was asked to record."""
    for what, asked in (("process", process), ("simulation", simulation)):
        said = "" if isinstance(source, QuarantinedSource) else getattr(source, what)
        if said and asked and said != asked:
            hint = f"leave --{what} out, which is for files that do not say"
            return quarantine(source.path, InputFileError(f"the file says that its {what} is '{said}', not '{asked}'", hint=hint))
    return source


def require_unchanged(
    path: str, *, version: str, digest: str, whole_limit: int = WHOLE_FILE_LIMIT, hint: str = "ingest it again into a new folder"
) -> None:
    """Checks that a file still has the contents that it had when it was examined.

    Args:
        whole_limit: that of the digest.
        hint: what to do when it is complete.

    Raises:
        InputFileError: it was written to, or deleted.
        ResourceError: it is remote and cannot be reached.
    """
    try:
        if (version and file_version(path) == version) or file_digest(path, whole_limit=whole_limit)[1] == digest:
            return
    except (InputFileError, FileNotFoundError):
        raise InputFileError("the file was deleted while it was read", where=without_secrets(path), hint=hint) from None
    raise InputFileError("the file has changed while it was read", where=without_secrets(path), hint=f"{hint} when it is complete")


def quarantine(path: str, error: PfscaleError) -> QuarantinedSource:
    """The manifest's record of a source that failed with `error`."""
    return QuarantinedSource(path=path, reason=error.what, hint=error.hint, error=type(error).__name__, exit_code=error.exit_code)


def deadly(path: str) -> InputFileError:
    """The error for a file that ends every process that reads it."""
    hint = "is it damaged, or an event too large for the memory? fewer --workers leave more of it to each"
    return InputFileError("every process that read the file died", where=without_secrets(path), hint=hint)


def raise_bad(bad: Sequence[QuarantinedSource], num_sources: int) -> NoReturn:
    """Raises the error of the first bad source, and says how many of all there are.

    Raises:
        InputFileError: always.
    """
    first = bad[0]
    hint = first.hint
    if len(bad) > 1:
        others = f"{len(bad)} of {num_sources} files are bad; this is the first"
        hint = f"{hint} ({others})" if hint else others
    raise InputFileError(first.reason, where=without_secrets(first.path), hint=hint)


def file_version(path: str) -> str:
    """A string that changes whenever the file is written to; empty where a server does not tell, or a local file is not there.

    Raises:
        InputFileError, ResourceError: a remote file that is not there or cannot be reached.
    """
    if not is_remote(path):
        try:
            stat = Path(path).stat()
        except OSError:
            return ""
        return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"
    filesystem, inner = remote_filesystem(path)
    try:
        info = filesystem.info(inner)
    except Exception as error:  # every file system has its own types
        told = remote_error(path, error)
        if told is not None:
            raise told from error
        return ""
    stamps = [str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None]
    return "-".join([str(info.get("size")), *stamps]) if stamps else ""


def file_digest(path: str, *, whole_limit: int = WHOLE_FILE_LIMIT) -> tuple[int, str]:
    """(size, hex digest) that identify a file's contents: all of a small local file, size and both ends of others.

    Args:
        whole_limit: bytes up to which a local file is small.
    """
    if not is_remote(path):
        size = Path(path).stat().st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        with open(path, "rb") as file:
            if size <= max(whole_limit, END_BYTES):
                digest.update(file.read())
            else:
                digest.update(file.read(END_BYTES))
                file.seek(size - END_BYTES)
                digest.update(file.read(END_BYTES))
        return size, digest.hexdigest()
    filesystem, inner = remote_filesystem(path)
    try:
        size = int(filesystem.info(inner)["size"])
        ends = filesystem.cat_ranges([inner, inner], [0, max(0, size - END_BYTES)], [min(size, END_BYTES), size], on_error="raise")
    except Exception as error:  # every file system has its own types
        raise remote_error(path, error) or InputFileError(f"its ends cannot be read ({error})", where=without_secrets(path)) from error
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    for end in ends:
        digest.update(end)
    return size, digest.hexdigest()
