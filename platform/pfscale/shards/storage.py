"""Folders of shards, on a disk or behind a URL, with one set of verbs: whoever reads or writes shards goes through `open_folder`.

    folder = open_folder("s3://bucket/shards/clic")     # or a path
    folder.exists("manifest.json")                      # a file in it; folder.exists(): anything at all
    folder.names("*.parquet")                           # what is directly in it, sorted, hidden files too
    folder.read_text(name); folder.write_text(name, text)   # write: in one step, readers see all of it or none
    with folder.draft(name) as file: file.write(...)    # the same for large files: there under its name only when the block has ended
    folder.put(path, name)                              # the same from a finished local file
    folder.open_parquet(name)                           # pq.ParquetFile; reads byte ranges, never the whole file
    folder.remove(name)                                 # no error where it is missing
    folder.locate(name)                                 # its path or URL, which `open_parquet(address)` takes in any process
    folder.address                                      # absolute path or URL, for messages and for workers

Local files are written under a hidden name in the same folder, synced and renamed. Object stores show an object when it is complete; other
remote file systems get the hidden name and the rename, too. A process that is killed leaves at most hidden files `.*.unfinished`.
"""

from __future__ import annotations

import fnmatch
import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pfscale.errors import InputFileError, OutputExistsError, PfscaleError, ResourceError, ShardError
from pfscale.remote import is_remote, local_path, no_room, read_remote, remote_error, remote_filesystem, without_secrets

UNFINISHED = ".unfinished"
COPIED_AT_ONCE = 4 * 2**20  # bytes
# Stores that show an object only when all of it is there; elsewhere files are written under a hidden name and renamed.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "memory"})


class Folder(ABC):
    """A folder with shards, see the module's text.

    Every method raises ResourceError for a full disk, a store that cannot be reached or may not be used, a folder without write permission.
    """

    address: str

    @abstractmethod
    def names(self, pattern: str = "*") -> list[str]:
        """What is directly in the folder, sorted, hidden files and folders too; empty where there is no such folder."""

    @abstractmethod
    def exists(self, name: str | None = None) -> bool:
        """Whether the file is there; without a name, whether the folder is."""

    @abstractmethod
    def read_text(self, name: str) -> str:
        """The text of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def create(self, name: str, text: str) -> bool:
        """Writes a file that must not be there yet; False where it is: of several processes one gets True."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Deletes a file; nothing happens where there is none."""

    @abstractmethod
    def make(self) -> None:
        """Makes the folder where there is none.

        Raises:
            OutputExistsError: there is a file of that name.
        """

    @abstractmethod
    def draft(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A binary file that gets its name when the block ends, and leaves nothing behind when the block raises."""

    @abstractmethod
    def locate(self, name: str) -> str:
        """The path or URL of a file in the folder."""

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file in one step: readers see all of it or none."""
        with self.draft(name) as file:
            file.write(text.encode())

    def put(self, path: str | Path, name: str) -> None:
        """Copies a finished local file into the folder in one step."""
        with self.draft(name) as file, open(path, "rb") as source:
            shutil.copyfileobj(source, file, COPIED_AT_ONCE)

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """The Parquet file `name`, open.

        Raises:
            FileNotFoundError, OSError, pa.ArrowInvalid: it is not there, or not a whole Parquet file.
        """
        return open_parquet(self.locate(name))

    def clear_unfinished(self) -> None:
        """Deletes what processes that were killed in the middle of writing have left."""
        for name in self.names(f".*{UNFINISHED}"):
            self.remove(name)


def open_folder(address: str | Path | Folder) -> Folder:
    """The folder at a path or URL, which need not exist yet.

    Raises:
        ResourceError: the library for this protocol is not installed.
    """
    if isinstance(address, Folder):
        return address
    text = str(address)
    if not is_remote(text):
        return LocalFolder(Path(local_path(text)))
    filesystem, root = remote_filesystem(text.rstrip("/"))
    return RemoteFolder(text.rstrip("/"), filesystem, root.rstrip("/"))


def open_parquet(address: str) -> pq.ParquetFile:
    """The Parquet file at a path or URL, open; a remote one is read by the byte ranges of the columns asked for.

    Raises:
        ResourceError: the store cannot be reached or may not be used.
        FileNotFoundError, OSError, pa.ArrowInvalid: it is not there, or not a whole Parquet file.
    """
    if not is_remote(address):
        return _parquet_file(address)
    filesystem, path = remote_filesystem(address)
    with _told(address, missing=True):
        # pre_buffer joins the ranges of neighbouring columns into few requests; fsspec's own read-ahead would fetch the gaps as well
        return _parquet_file(filesystem.open(path, "rb", cache_type="none"), pre_buffer=True)


def _parquet_file(source: Any, **options: Any) -> pq.ParquetFile:
    """The file, open; columns of types that a library has registered, and that it cannot read, are damage.

    Raises:
        OSError, pa.ArrowInvalid.
    """
    try:
        return pq.ParquetFile(source, page_checksum_verification=True, **options)
    except pa.ArrowException:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of whoever reads the metadata of such a type
        raise pa.ArrowInvalid(f"a column of a type that cannot be read: {error}") from error


@contextmanager
def opened_shard(address: str) -> Iterator[pq.ParquetFile]:
    """The shard at a path or URL, open for the block; what goes wrong with it in the block is told as such.

    Raises:
        ShardError: it is missing, torn or damaged.
        ResourceError: the store cannot be reached or may not be used.
    """
    try:
        with open_parquet(address) as parquet:
            yield parquet
    except (OSError, pa.ArrowException) as error:
        told = remote_error(address, error) if is_remote(address) else None
        if isinstance(told, ResourceError):
            raise told from None
        hint = "delete it if it is there, and run the ingest again: the other shards are kept"
        raise ShardError(f"cannot read the shard ({error})", where=without_secrets(address), hint=hint) from None


class LocalFolder(Folder):
    """A folder on a disk that this process can reach."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.address = str(self.path)

    def names(self, pattern: str = "*") -> list[str]:
        try:
            return sorted(fnmatch.filter(os.listdir(self.path), pattern))
        except FileNotFoundError:
            return []

    def exists(self, name: str | None = None) -> bool:
        return (self.path / name if name else self.path).exists()

    def read_text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def create(self, name: str, text: str) -> bool:
        try:
            with self.told(), (self.path / name).open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        with self.told():
            (self.path / name).unlink(missing_ok=True)

    def make(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputExistsError("the output is a file, not a folder", where=self.address, hint="choose another --output")
        try:
            with self.told():
                self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"the folder cannot be made ({error.strerror})", where=self.address, hint="choose another --output"
            ) from None

    @contextmanager
    def draft(self, name: str) -> Iterator[IO[bytes]]:
        unfinished = self.path / f".{name}.{secrets.token_hex(4)}{UNFINISHED}"
        with self.told():
            file = unfinished.open("wb")
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path / name)
        except OSError as error:
            full = no_room(error, self.address)
            if full is None:
                raise
            raise full from error
        finally:
            unfinished.unlink(missing_ok=True)

    def locate(self, name: str) -> str:
        return str(self.path / name)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Failures to write there, in our own errors."""
        try:
            yield
        except FileExistsError:
            raise
        except NotADirectoryError:
            raise OutputExistsError("a part of this path is a file", where=self.address, hint="choose another --output") from None
        except OSError as error:
            full = no_room(error, self.address)
            if full is not None:
                raise full from error
            if isinstance(error, PermissionError) or "Read-only file system" in str(error):
                hint = "choose another --output, or ask for permission to write there"
                raise ResourceError(f"cannot write there ({error.strerror})", where=self.address, hint=hint) from None
            raise


@dataclass
class RemoteFolder(Folder):
    """A folder behind a URL, through fsspec."""

    address: str
    filesystem: Any
    root: str

    @property
    def protocol(self) -> str:
        """The part of the address before `://`."""
        return self.address.partition("://")[0]

    def names(self, pattern: str = "*") -> list[str]:
        try:
            with _told(self.address, missing=True):
                found = self.filesystem.ls(self.root, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found if str(path).strip("/") != self.root.strip("/")}
        return sorted(fnmatch.filter(names, pattern))

    def exists(self, name: str | None = None) -> bool:
        if name is None:
            return bool(self.names())
        with _told(self.address):
            return bool(self.filesystem.exists(f"{self.root}/{name}"))

    def read_text(self, name: str) -> str:
        with _told(self.address, missing=True):
            return read_remote(self.filesystem, f"{self.root}/{name}").decode()

    def create(self, name: str, text: str) -> bool:
        path = f"{self.root}/{name}"
        try:
            with _told(self.address):
                self.filesystem.pipe_file(path, text.encode(), mode="create")
            return True
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError):  # no exclusive creation there: the last one of two that write at once has it
            if self.exists(name):
                return False
            self.write_text(name, text)
            return self.read_text(name) == text

    def remove(self, name: str) -> None:
        try:
            with _told(self.address, missing=True):
                self.filesystem.rm_file(f"{self.root}/{name}")
        except FileNotFoundError:
            pass

    def make(self) -> None:
        if self.protocol in ("http", "https"):
            hint = "give a folder, or an s3:// or root:// address"
            raise ResourceError(f"nothing can be written to {self.protocol}://", where=without_secrets(self.address), hint=hint)
        if self.protocol not in OBJECT_STORES:
            with _told(self.address):
                self.filesystem.makedirs(self.root, exist_ok=True)

    @contextmanager
    def draft(self, name: str) -> Iterator[IO[bytes]]:
        try:
            # a file without a name: freed by the system even after kill -9
            with tempfile.TemporaryFile() as file:
                yield file
                file.flush()
                self._upload(file, name)
        except OSError as error:
            full = no_room(error, tempfile.gettempdir())
            if full is None:
                raise
            raise full from error

    def _upload(self, file: IO[bytes], name: str) -> None:
        final = f"{self.root}/{name}"
        file.seek(0)
        with _told(self.address):
            if self.protocol in OBJECT_STORES:
                # not by writing to an opened object: fsspec completes such an object even when writing to it has failed
                self.filesystem.put_file(f"/dev/fd/{file.fileno()}", final)
                return
            target = f"{self.root}/.{name}.{secrets.token_hex(4)}{UNFINISHED}"
            try:
                with self.filesystem.open(target, "wb") as copy:
                    shutil.copyfileobj(file, copy, COPIED_AT_ONCE)
                self.filesystem.mv(target, final)
            except BaseException:
                if self.filesystem.exists(target):
                    self.filesystem.rm_file(target)
                raise

    def locate(self, name: str) -> str:
        return f"{self.address}/{name}"


@contextmanager
def _told(address: str, *, missing: bool = False) -> Iterator[None]:
    """Remote failures in our own errors; `missing`: a file that is not there stays a FileNotFoundError."""
    try:
        yield
    except (PfscaleError, FileExistsError, NotImplementedError, TypeError):
        raise
    except Exception as error:  # every file system has its own types
        if missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        ours = no_room(error, without_secrets(address)) or remote_error(address, error)
        if ours is None:
            raise
        if isinstance(ours, InputFileError):  # the only one of those that can occur here: no such file
            if missing:
                raise FileNotFoundError(address) from error
            hint = "make the bucket or folder first, or check the address"
            raise ResourceError("there is no such place", where=without_secrets(address), hint=hint) from error
        raise ours from error
