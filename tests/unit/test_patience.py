"""Stores that stop answering for a while."""

from __future__ import annotations

import pickle
from typing import Any

import fsspec
import pytest

from pfscale import patience
from pfscale.patience import PatientFileSystem
from pfscale.remote import remote_filesystem


class Store:
    """Stands in for a file system of fsspec: it refuses as often as it is told to."""

    def __init__(self) -> None:
        self.refusals, self.asked = 0, 0
        self.error: Exception = ConnectionRefusedError(111, "Connect call failed")

    def _ask(self) -> None:
        self.asked += 1
        if self.refusals:
            self.refusals -= 1
            raise self.error

    def exists(self, path: str) -> bool:
        self._ask()
        return path == "there"

    def pipe_file(self, *_: object, **__: object) -> None:
        self._ask()

    def open(self, *_: object, **__: object) -> Any:
        self._ask()
        return StoredFile(self)


class StoredFile:
    """Ten bytes; a read that fails has moved on."""

    def __init__(self, store: Store) -> None:
        self.store, self.place = store, 0

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset if whence == 0 else 10 + offset
        return self.place

    def read(self, size: int = -1) -> bytes:
        begin, self.place = self.place, 10 if size < 0 else min(10, self.place + size)
        self.store._ask()
        return b"0123456789"[begin : self.place]

    def close(self) -> None: ...


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited, on a clock that stands still but for that."""
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(pauses))
    return pauses


def patient(store: Store) -> PatientFileSystem:
    return PatientFileSystem(store, "s3://data", lambda error: isinstance(error, ConnectionError))


def test_a_minute_is_waited_for(waited: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """Catches a job of days that ends because its store was restarted, and one that asks thousands of times a second."""
    store = Store()
    filesystem = patient(store)
    assert filesystem.exists("there")
    store.refusals = 8
    assert filesystem.exists("there")
    assert 60 < sum(waited) < patience.PATIENCE
    assert store.asked == 10
    assert "s3://data does not answer" in caplog.text


def test_reading_goes_on_where_it_was(waited: list[float]) -> None:
    """Catches bytes that are missing, or come twice, after a read that failed half-way."""
    store = Store()
    with patient(store).open("x") as file:
        assert file.read(4) == b"0123"
        store.refusals = 2
        assert file.read(4) == b"4567"
        store.refusals = 1
        assert file.read() == b"89"
        file.seek(1)
        assert file.read(2) == b"12"
    assert len(waited) == 3


def test_patience_ends(waited: list[float]) -> None:
    """Catches a job that hangs for ever."""
    store = Store()
    filesystem = patient(store)
    assert not filesystem.exists("elsewhere")
    store.refusals = 10**6
    with pytest.raises(ConnectionRefusedError):
        filesystem.exists("there")
    assert patience.PATIENCE < sum(waited) < patience.PATIENCE + 30


def test_what_is_not_waited_for(waited: list[float]) -> None:
    """Catches three minutes of silence for a misspelt address or a missing right, and a lock that is taken twice."""
    store = Store()
    store.refusals = 1
    with pytest.raises(ConnectionRefusedError):  # it has never answered
        patient(store).exists("there")
    store.refusals, store.error = 1, PermissionError(13, "forbidden")
    with pytest.raises(PermissionError):
        patient(store).exists("there")
    store.refusals, store.error = 1, ConnectionResetError()
    with pytest.raises(ConnectionResetError):  # whether it was written is not known
        patient(store).pipe_file("x", b"", mode="create")
    assert not waited


def test_it_travels_to_workers_and_stays_what_it_wraps() -> None:
    """Catches a file system that cannot be sent to a worker, and methods that are lost."""
    filesystem, path = remote_filesystem("memory://patience/x")
    filesystem.pipe_file(path, b"abc")
    again = pickle.loads(pickle.dumps(filesystem))
    assert again.cat_file(path) == b"abc"
    assert again.protocol == fsspec.filesystem("memory").protocol
    with again.open(path, "rb") as file:
        assert file.read() == b"abc"
    filesystem.rm_file(path)
