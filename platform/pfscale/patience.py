"""Stores that stop answering for a while: what was asked is asked again, so that a long job outlives a restart of its store.

Only of a store that has answered this process before, or in a worker, whose driver has used it: a misspelt address is told at once.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 180.0  # seconds in which a store may be away
_LONGEST_PAUSE = 15.0
_REPEATED = frozenset({"ls", "exists", "info", "cat_file", "put_file", "rm_file", "glob", "find", "makedirs"})  # twice is as good as once
_ANSWERED = "_pfscale_answered"
_log = logging.getLogger(__name__)


class PatientFileSystem:
    """A file system of fsspec whose calls are repeated while its server does not answer.

    Args:
        filesystem: of fsspec.
        address: for the warning, without secrets.
        is_away: whether an error says that the server does not answer, and nothing else.
    """

    def __init__(self, filesystem: Any, address: str, is_away: Callable[[BaseException], bool]) -> None:
        self._filesystem, self._address, self._is_away = filesystem, address, is_away

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is being unpickled, too
            raise AttributeError(name)
        found = getattr(self._filesystem, name)
        if name not in _REPEATED:
            return found
        return lambda *args, **kwargs: self._patiently(lambda: found(*args, **kwargs))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """A file; what is read of it is patient, too. Writing is not: what has reached the server is not known."""
        if mode != "rb":
            return self._filesystem.open(path, mode, **options)
        return PatientFile(self._patiently(lambda: self._filesystem.open(path, mode, **options)), self._patiently)

    def _patiently(self, call: Callable[[], T]) -> T:
        begin, pause = time.monotonic(), 1.0
        while True:
            try:
                found = call()
            except Exception as error:  # every file system has its own types
                away = self._is_away(error)
                if not away:
                    setattr(self._filesystem, _ANSWERED, True)
                is_known = getattr(self._filesystem, _ANSWERED, False) or _in_worker()
                if not away or not is_known or time.monotonic() - begin > PATIENCE:
                    raise
                _log.warning("%s does not answer; it is asked again for up to %.0f s", self._address, PATIENCE)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                setattr(self._filesystem, _ANSWERED, True)
                return found


class PatientFile(io.RawIOBase):
    """A remote file that is open for reading; a read that failed because the server was away is repeated from where it began."""

    def __init__(self, file: Any, patiently: Callable[[Callable[[], Any]], Any]) -> None:
        super().__init__()
        self._file, self._patiently = file, patiently

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int | None = -1) -> bytes:
        begin = self._file.tell()

        def once() -> bytes:
            self._file.seek(begin)
            return bytes(self._file.read(-1 if size is None else size))

        return bytes(self._patiently(once))

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _in_worker() -> bool:
    """Whether Ray runs this process for a driver elsewhere."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
