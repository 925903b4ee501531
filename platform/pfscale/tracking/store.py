"""Where MLflow keeps its data: checked addresses, a database that is initialised once, and clients for it.

Two lessons are built in. A fresh SQLite database that several processes migrate at once is corrupted for good, so it is migrated under
a file lock, into a file of another name that is moved into place when complete. And MLflow retries a dead server for minutes, so
a server is asked once, with a short timeout, before anything is sent to it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pfscale.errors import TrackingError
from pfscale.ray_cluster import is_job_copy

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVER_TIMEOUT_S = 5.0
OTHER_FILE = "choose another file in run.tracking_uri"
SERVER_SCHEMES = ("http", "https")
DATABASE_SCHEMES = ("postgresql", "mysql", "mssql")


def resolve_uri(uri: str) -> str:
    """`uri` with a relative SQLite path made absolute; nothing is opened or created.

    Raises:
        TrackingError: for an address that MLflow cannot serve safely (file stores, in-memory databases, unknown schemes).
    """
    scheme = uri.partition("://")[0].partition("+")[0].lower() if "://" in uri else ""
    if scheme in SERVER_SCHEMES:
        return uri.rstrip("/")
    if scheme in DATABASE_SCHEMES:
        return uri
    if scheme in ("", "file"):
        path = uri.removeprefix("file://").rstrip("/") or "."
        hint = f"use run.tracking_uri=sqlite:///{path if path.endswith('.db') else f'{path}/mlflow.db'} or http://<server>:5000"
        raise TrackingError("MLflow no longer keeps runs in plain folders", where=uri, hint=hint)
    if scheme != "sqlite":
        hint = "use run.tracking_uri=sqlite:///mlflow.db or http://<server>:5000"
        raise TrackingError(f"unknown kind of tracking address '{scheme}'", where=shown(uri), hint=hint)
    path, question, options = uri.partition(":///")[2].partition("?")
    if not path or path == ":memory:":
        raise TrackingError(
            "an in-memory database would forget every run", where=shown(uri), hint="use run.tracking_uri=sqlite:///mlflow.db"
        )
    if not Path(path).is_absolute() and is_job_copy():
        raise TrackingError(
            "a relative path inside a submitted job is deleted with the job",
            where=shown(uri),
            hint="give an absolute path (run.tracking_uri=sqlite:///$PWD/mlflow.db) or a server",
        )
    return f"sqlite:///{Path(path).expanduser().resolve()}{question}{options}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a resolved SQLite address, None for servers and other databases."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def artifact_root(uri: str) -> str | None:
    """Where artifacts of a SQLite store go (beside the database, whatever the current directory); None: the server decides."""
    path = sqlite_path(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None


def shown(uri: str) -> str:
    """`uri` for messages, links and tags: without its password."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", uri)


def require_store(uri: str, *, create: bool) -> None:
    """Returns when the store behind a resolved address can be used; with `create` a missing SQLite database is made first.

    Raises:
        TrackingError: no server answers within 5 s, or the file is no MLflow database.
    """
    path = sqlite_path(uri)
    if path is not None:
        _require_database(path, uri, create=create)
    elif uri.startswith(SERVER_SCHEMES):
        _require_server(uri)


def open_client(uri: str) -> MlflowClient:
    """An MLflow client of a resolved address; the global tracking URI of the process is left alone."""
    for key, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "1"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # the default of 7 blocks a training for four minutes; RunLogger keeps what was not sent
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turns whatever MLflow raises inside the block into a TrackingError that names the store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = f"mlflow db upgrade {shown(uri)}" if "out-of-date database schema" in message else None
        raise TrackingError(message, where=shown(uri), hint=hint) from error


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Holds a SQLite store's lock file against other processes of this machine; no lock for servers, which have their own."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(path.name + ".lock"), "w")  # noqa: SIM115 - closed below, with the lock
    except OSError as error:
        raise TrackingError(f"cannot write beside the database ({error.strerror})", where=str(path), hint=OTHER_FILE) from None
    with closing(lock):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_database(path: Path, uri: str, *, create: bool) -> None:
    if _num_tables(path) == 0:
        if not create:
            raise TrackingError("there is no MLflow database", where=str(path), hint="a training makes one; is --tracking-uri right?")
        with store_lock(uri):
            if _num_tables(path) == 0:
                _migrate_into_place(path)
        return
    with closing(sqlite3.connect(path)) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"alembic_version", "experiments", "runs"} <= names:
        raise TrackingError("a database of something else, or a broken one", where=str(path), hint=OTHER_FILE)


def _num_tables(path: Path) -> int:
    """Number of tables in a SQLite file, 0 where there is no file or an empty one."""
    try:
        if not path.exists() or path.stat().st_size == 0:
            return 0
        # Where it may be written: what a killed process has left in the middle of a change must be undone before anything can be read.
        mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])
    except (sqlite3.Error, OSError) as error:
        raise TrackingError(f"not a usable SQLite database ({error})", where=str(path), hint=OTHER_FILE) from None


def _migrate_into_place(path: Path) -> None:
    """Makes an empty MLflow database at `path`: complete or not at all, also when killed in the middle (3.5 s)."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    root = artifact_root(f"sqlite:///{path}")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # its two lines about tables mean nothing to a user
    with tracking_errors(str(path)):
        store = SqlAlchemyStore(f"sqlite:///{draft}", root)
        store.engine.dispose()
    os.replace(draft, path)


def _require_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=SERVER_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # something answers; what it refuses is reported by the first real request
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"no MLflow server answers ({reason})",
            where=shown(uri),
            hint="start one (mlflow server --backend-store-uri sqlite:///mlflow.db) or use run.tracking_uri=sqlite:///mlflow.db",
        ) from None
