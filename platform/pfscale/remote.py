"""Addresses on other machines (s3://, https://, root:// and whatever else fsspec knows): opened, and their failures told in our own errors.

What fails because of the network, the credentials or an extra that is not installed is a `ResourceError`: it says nothing about the file,
so no file is set aside for it, and the same command run again goes on.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfscale.errors import InputFileError, PfscaleError, ResourceError, UnreachableError
from pfscale.patience import PatientFileSystem

EXTRAS = {"s3": "s3", "s3a": "s3", "root": "xrootd"}  # protocol -> extra of pfscale
LIBRARIES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (AWS_ENDPOINT_URL: not Amazon's; FSSPEC_S3_ANON=true: public)",
    "root": "X509_USER_PROXY, BEARER_TOKEN or a Kerberos ticket",
}
# XRootD's own defaults try a machine that does not answer for ten minutes.
XROOTD_PATIENCE = {"XRD_CONNECTIONWINDOW": "10", "XRD_CONNECTIONRETRY": "2", "XRD_REQUESTTIMEOUT": "120", "XRD_STREAMERRORWINDOW": "20"}
AGAIN = "run the same command again when it is: complete shards are kept"

# What the errors of transports say; contents that are damaged raise errors of other types, whose text is not looked at.
_TRANSPORTS = frozenset({"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "azure", "adlfs", "fsspec"})
_MISSING: tuple[str, ...] = ("[3011]", "no such file", "nosuchkey", "nosuchbucket")
_FORBIDDEN: tuple[str, ...] = (
    "[3010]",
    "auth failed",
    "permission denied",
    "forbidden",
    "access denied",
    "accessdenied",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "expiredtoken",
    "unable to locate credentials",
    "credentials were refreshed",
    "invalid token",
)
_UNREACHABLE: tuple[str, ...] = (
    "connect",
    "timed out",
    "timeout",
    "operation expired",
    "socket error",
    "invalid address",
    "name or service",
    "[fatal]",
    "temporary failure",
    "broken pipe",
    "service unavailable",
    "slowdown",
    "internalerror",
    "disconnected",
)


def is_remote(path: str) -> bool:
    """Whether `path` is a URL of another machine (a `file://` URL is not)."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
    """The path of a `file://` URL; anything else as it is."""
    return path.removeprefix("file://")


def local_folder(output: str | Path) -> Path:
    """The folder of this machine that `output` names; a Path, which the command line's defaults are, is one.

    Raises:
        ResourceError: it is on another machine; a path made of a URL would be a folder here.
    """
    if isinstance(output, Path):
        return output
    if is_remote(output):
        hint = "give a folder and copy what is in it afterwards; data sets (pfscale ingest) go to URLs themselves"
        raise ResourceError("this can only be written to a folder of this machine", where=without_secrets(output), hint=hint)
    return Path(local_path(output))


def base_name(path: str) -> str:
    """The file's name at the end of a path or URL, without the query of an https address: part of an event's identity."""
    if not is_remote(path):
        return os.path.basename(path.rstrip("/"))
    return _bare(path).rstrip("/").rpartition("/")[2]


def without_secrets(path: str) -> str:
    """The address as it may be written down: no user, password or signed query."""
    if not is_remote(path):
        return path
    protocol, _, rest = _bare(path).partition("://")
    host, slash, inner = rest.partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{inner}"


def _bare(url: str) -> str:
    """The URL without its query, which may hold a signature or a token; in the names of objects (s3://) a ? or # means itself."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if url.startswith(("http://", "https://", "root://")) else url


def remote_filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a URL. Listings are never cached: other processes write there, too.

    Raises:
        ResourceError: the library for this protocol is not installed.
        InputFileError: no such protocol.
    """
    import fsspec

    for name, value in XROOTD_PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except Exception as error:  # each file system checks its settings in its own way
        raise remote_error(url, error) or InputFileError(f"not a usable address ({_text(error)})", where=url) from error
    return PatientFileSystem(filesystem, without_secrets(url), _is_away), str(path)


def _is_away(error: BaseException) -> bool:
    return isinstance(remote_error("", error), UnreachableError)


def read_remote(filesystem: Any, path: str) -> bytes:
    """All bytes of a small file. Through an opened one, because not every file system knows another way."""
    with filesystem.open(path, "rb") as file:
        return bytes(file.read())


def read_start(url: str, size: int) -> bytes:
    """The first `size` bytes of a remote file.

    Raises:
        InputFileError: it is not there, or the answer is none of these errors.
        ResourceError: it cannot be reached or may not be read, or the server sends whole files only: all reading would be wrong then,
            because what fsspec hands on as a part is the beginning of the file.
    """
    filesystem, path = remote_filesystem(url)
    try:
        start = bytes(filesystem.cat_file(path, start=0, end=size))
    except Exception as error:  # every file system has its own types
        told = remote_error(url, error)
        raise told or InputFileError(f"cannot be read ({_text(error)})", where=without_secrets(url)) from error
    if len(start) > size:
        hint = "copy the file here first, or use a server that knows ranges: they are what remote ROOT files are read by"
        raise ResourceError("the server sends whole files only, no byte ranges", where=without_secrets(url), hint=hint)
    return start


def remote_error(address: str, error: BaseException) -> PfscaleError | None:
    """Our own error for what `error`, raised at a remote address, says of the network, the credentials or a missing file.

    None: it says something else (that the file's contents are damaged, say).
    """
    protocol, where = address.partition("://")[0].lower(), without_secrets(address)
    links = [link for link in _chain(error) if not isinstance(link, PfscaleError)]
    if any(isinstance(link, ImportError) for link in links):
        return _not_installed(protocol, where)
    if any(isinstance(link, ValueError) and "Protocol not known" in str(link) for link in links):
        return InputFileError(f"no such protocol: '{protocol}'", where=where, hint="known: a path, s3://, https://, root://")
    links = [link for link in links if isinstance(link, OSError) or type(link).__module__.partition(".")[0] in _TRANSPORTS]
    if not links:
        return None
    status = next((status for link in links if isinstance(status := getattr(link, "status", None), int)), 0)
    text = " ".join(f"{type(link).__name__} {link}" for link in links).lower()
    brief = _text(links[-1])
    hint = f"check the address, the network and the server; {AGAIN}"
    unreachable = UnreachableError(f"cannot be reached ({brief})", where=where, hint=hint)
    if _is_any(links, (ConnectionError, TimeoutError)):  # first: the file system of https:// makes "no such file" of them
        return unreachable
    if status in (404, 410) or _is_any(links, FileNotFoundError):
        return InputFileError("no such file", where=where)
    if status in (401, 403) or _is_any(links, PermissionError) or _says(text, _FORBIDDEN):
        known = CREDENTIALS.get(protocol, "the credentials of this store")
        return ResourceError(f"access is refused ({brief})", where=where, hint=f"set {known}, on every node")
    if _says(text, _MISSING):
        return InputFileError("no such file", where=where)
    return unreachable if status >= 500 or _says(text, _UNREACHABLE) else None


def no_room(error: BaseException, where: str) -> ResourceError | None:
    """Our own error for a full disk or an exceeded quota, None for anything else. pyarrow may tell it in the message only."""
    for link in _chain(error):
        full = isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or "No space left on device" in str(link) or "Disk quota exceeded" in str(link):
            hint = "make room and run the same command again: complete shards are kept"
            return ResourceError("the disk is full", where=where, hint=hint)
    return None


def _not_installed(protocol: str, where: str) -> ResourceError:
    if protocol in EXTRAS:
        return ResourceError(
            f"{protocol}:// is not installed", where=where, hint=f"pip install 'pfscale[{EXTRAS[protocol]}]', on every node"
        )
    library = LIBRARIES.get(protocol, f"the fsspec library for {protocol}://")
    return ResourceError(f"{protocol}:// is not installed", where=where, hint=f"pip install {library}, on every node")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_any(links: list[BaseException], kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    return any(isinstance(link, kinds) for link in links)


def _says(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
