"""A folder of shards belongs to one ingest at a time: a second one is refused at once and told who is at work.

On a disk it is a lock of the operating system on a file in the folder, which ends with the process, however that ends. Behind a URL, and on
disks without such locks, it is a lease: a file that only one process can create, with a heartbeat every BEAT_SECONDS. A lease is dead if
its process was on this machine and is not there any more, or when its heart has not beaten for STALE_SECONDS (clocks are taken to agree to
a minute); then the next one takes it over, and the first notices and stops before it writes the manifest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pfscale.errors import ResourceError
from pfscale.shards.storage import Folder, LocalFolder

LOCK_FILE, LEASE_FILE = ".ingest.lock", ".ingest.lease"
BEAT_SECONDS = 30.0
STALE_SECONDS = 180.0
SETTLE_SECONDS = 2.0
_NO_SUCH_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class Claim:
    """A held folder; `require` raises once another process has it."""

    def __init__(self, folder: Folder | None = None, token: str = "", verb: str = "ingest") -> None:
        self._folder, self._token, self._verb = folder, token, verb
        self.lost_to = ""

    def look(self) -> None:
        """Notes in `lost_to` whether the lease is another's by now; a lock of the operating system cannot be lost."""
        if self._folder is None:
            return
        try:
            holder = _parsed(self._folder.read_text(LEASE_FILE))
        except FileNotFoundError:
            holder = {}
        if holder.get("token") != self._token:
            self.lost_to = f"{self._folder.address} ({_told(holder)})"

    def require(self, *, now: bool = False) -> None:
        """Checks that the folder is still ours; `now`: looks, instead of relying on the last heartbeat.

        Raises:
            ResourceError: another process has taken it over, because this one did not answer for minutes.
        """
        if now:
            self.look()
        if self.lost_to:
            message = f"this {self._verb} did not answer for {STALE_SECONDS:g} s, and another has taken the folder over"
            raise ResourceError(message, where=self.lost_to)


@contextmanager
def claimed(folder: Folder, *, verb: str = "ingest") -> Iterator[Claim]:
    """Holds the folder, which is made if need be and removed again if nothing was put into it.

    Args:
        verb: what is at work there, as others are told.

    Raises:
        ResourceError: another process is at work there, or it cannot be written to.
        OutputExistsError: it is a file.
    """
    if isinstance(folder, LocalFolder):
        made = _missing_parents(folder.path)
        folder.make()
        try:
            with _claimed_on_disk(folder, verb) as claim:
                yield claim
        finally:
            with contextlib.suppress(OSError):
                for path in made:
                    path.rmdir()
    else:
        folder.make()
        with _leased(folder, verb) as claim:
            yield claim


def _missing_parents(path: Path) -> list[Path]:
    """The folders that making `path` makes, innermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing


@contextmanager
def _claimed_on_disk(folder: LocalFolder, verb: str) -> Iterator[Claim]:
    path = folder.path / LOCK_FILE
    try:
        lock = _flocked(folder, path)
    except OSError as error:
        if error.errno not in _NO_SUCH_LOCKS:
            raise
        path.unlink(missing_ok=True)
        with _leased(folder, verb) as claim:
            yield claim
        return
    with lock:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, it only does not say whose it is
            lock.truncate(0)
            lock.write(json.dumps(_myself(verb)))
            lock.flush()
        try:
            yield Claim()
        finally:
            path.unlink(missing_ok=True)


def _flocked(folder: LocalFolder, path: Path) -> IO[str]:
    """The lock file, locked."""
    while True:
        with folder.told():
            lock = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = _parsed(lock.read())
            lock.close()
            raise _busy(folder.address, holder, "wait for it, or end it first") from None
        except BaseException:
            lock.close()
            raise
        # its holder deletes the file before letting it go: a lock on a file that is gone is worth nothing
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()


@contextmanager
def _leased(folder: Folder, verb: str) -> Iterator[Claim]:
    me = {**_myself(verb), "token": secrets.token_hex(8)}
    _take(folder, me)
    claim, ended = Claim(folder, me["token"], verb), threading.Event()
    heart = threading.Thread(target=_beat, args=(folder, me, claim, ended), daemon=True)
    heart.start()
    try:
        yield claim
    finally:
        ended.set()
        heart.join()
        if not claim.lost_to:
            folder.remove(LEASE_FILE)


def _take(folder: Folder, me: dict[str, Any]) -> None:
    for attempt in range(3):
        if folder.create(LEASE_FILE, _beating(me)):
            if attempt:
                # two may have found the same dead lease, and the slower one has then removed the faster one's: the last to create has it
                time.sleep(SETTLE_SECONDS)
                if _parsed(folder.read_text(LEASE_FILE)).get("token") != me["token"]:
                    continue
            return
        try:
            holder = _parsed(folder.read_text(LEASE_FILE))
        except FileNotFoundError:
            continue
        left = float(holder.get("beat", 0)) + STALE_SECONDS - time.time()
        if left > 0 and not _is_dead_here(holder):
            hint = f"wait for it; if it was killed, this works in {left:.0f} s, or now after deleting {folder.locate(LEASE_FILE)}"
            raise _busy(folder.address, holder, hint)
        folder.remove(LEASE_FILE)
    raise ResourceError("other processes keep taking this folder", where=folder.address, hint="choose another --output")


def _beat(folder: Folder, me: dict[str, Any], claim: Claim, ended: threading.Event) -> None:
    """Renews the lease until `ended` or until it is another's."""
    while not ended.wait(BEAT_SECONDS):
        try:
            claim.look()
            if claim.lost_to:
                return
            folder.write_text(LEASE_FILE, _beating(me))
        except (ResourceError, OSError):
            continue  # the store does not answer: the next beat may come through, and if none does the lease ends by itself


def _myself(verb: str) -> dict[str, Any]:
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "machine": _machine()}
    return {"verb": verb, **here, "since": time.time()}


def _beating(me: dict[str, Any]) -> str:
    return json.dumps({**me, "beat": time.time()})


def _machine() -> str:
    """Names this boot of this machine and its process table; empty where the system does not tell. Host names are not unique enough."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine was started, in clock ticks since boot; empty: there is none, or the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is not there any more."""
    if not _machine() or holder.get("machine") != _machine():
        return False
    return _started(int(holder.get("pid", 0))) != holder.get("started")


def _parsed(text: str) -> dict[str, Any]:
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _told(holder: dict[str, Any]) -> str:
    if "host" not in holder:
        return "it does not say whose"
    since = datetime.fromtimestamp(float(holder["since"]), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {holder['pid']} on {holder['host']}, since {since}"


def _busy(where: str, holder: dict[str, Any], hint: str) -> ResourceError:
    return ResourceError(f"another {holder.get('verb', 'ingest')} is at work in this folder ({_told(holder)})", where=where, hint=hint)
