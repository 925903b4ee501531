"""Runs in MLflow: found again by fingerprint, logged in batches, never losing a point to a server that is away for a while.

Rank 0 alone speaks to MLflow. The driver calls `connect` once and hands the `Tracker` (plain strings, picklable) to its workers.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pfscale import __version__
from pfscale.errors import StoppedError, TrackingError
from pfscale.tracking.store import artifact_root, open_client, require_store, resolve_uri, shown, sqlite_path, store_lock, tracking_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

FINGERPRINT_TAG = "pfscale.fingerprint"
PARENT_TAG = "mlflow.parentRunId"
FLUSH_SECONDS = 5.0  # a call costs 10-60 ms whatever the number of points
FLUSH_POINTS = 500
AWAY_SECONDS = 30.0  # asking a dead server costs 6 s: not at every step of a training
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch
END_PATIENCE_S = 60.0
REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST", "UNAUTHENTICATED"}
_NAME = re.compile(r"^[\w\-. :/]{1,250}$", re.ASCII)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


def connect(tracking_uri: str, experiment: str) -> Tracker:
    """A `Tracker` for `experiment` in the store at `tracking_uri`; makes the SQLite database and the experiment where they are missing.

    Safe to call from several processes at once. Relative SQLite paths become absolute, artifacts of a SQLite store go beside it.

    Raises:
        TrackingError: an address MLflow cannot serve, a server that does not answer within 5 s, a file that is no MLflow database.
    """
    uri = resolve_uri(tracking_uri)
    require_store(uri, create=True)
    client = open_client(uri)
    with tracking_errors(uri), store_lock(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return Tracker(uri, _create_experiment(client, experiment, uri))
    if found.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise TrackingError(
            f"the experiment '{experiment}' was deleted", where=shown(uri), hint=f"MLFLOW_TRACKING_URI={shown(uri)} {restore}"
        )
    return Tracker(uri, str(found.experiment_id))


def _create_experiment(client: MlflowClient, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=artifact_root(uri)))
    except MlflowException as error:
        other = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if other is None:
            raise
        return str(other.experiment_id)


def tracker_of_run(uri: str, run_id: str) -> Tracker:
    """A `Tracker` for the experiment that a run is in.

    Raises:
        TrackingError: no such run, or the store cannot be reached.
    """
    uri = resolve_uri(uri)
    require_store(uri, create=False)
    with tracking_errors(uri):
        return Tracker(uri, str(open_client(uri).get_run(run_id).info.experiment_id))


@contextmanager
def ended(logger: RunLogger) -> Iterator[None]:
    """Ends the MLflow run, whatever happens: FINISHED, KILLED on Ctrl-C and SIGTERM, FAILED otherwise."""
    try:
        yield
    except BaseException as error:
        try:
            logger.end("KILLED" if isinstance(error, KeyboardInterrupt | StoppedError) else "FAILED")
        except TrackingError as lost:  # must not hide what went wrong
            warnings.warn(str(lost), RuntimeWarning, stacklevel=2)
        raise
    logger.end("FINISHED")


@dataclass(frozen=True)
class Tracker:
    """One experiment in one MLflow store: two strings that cross process borders."""

    uri: str
    experiment_id: str

    def start_run(
        self, name: str, *, fingerprint: str, tags: Mapping[str, str] | None = None, parent_run_id: str | None = None
    ) -> RunLogger:
        """The logger of the run with this name and fingerprint (and parent): reopened where there is one, otherwise new."""
        client = open_client(self.uri)
        wanted = {FINGERPRINT_TAG: fingerprint, "mlflow.runName": name}
        if parent_run_id is not None:
            wanted[PARENT_TAG] = parent_run_id
        with tracking_errors(self.uri):
            known = self._search(client, wanted)
            if known:
                client.update_run(known[0], status="RUNNING")
                logger = RunLogger(self, known[0])
                logger.set_tags({**(tags or {}), **_provenance()})
                return logger
            run = client.create_run(self.experiment_id, run_name=name, tags={**(tags or {}), **_provenance(), **wanted})
        return RunLogger(self, run.info.run_id)

    def attach(self, run_id: str) -> RunLogger:
        """The logger of a run that the driver started; its status is left alone until `end`."""
        return RunLogger(self, run_id)

    def find_finished(self, fingerprint: str) -> str | None:
        """The id of the latest finished run with this fingerprint, None where there is none."""
        with tracking_errors(self.uri):
            known = self._search(open_client(self.uri), {FINGERPRINT_TAG: fingerprint}, status="FINISHED")
        return known[0] if known else None

    def find_run(self, fingerprint: str) -> str | None:
        """The id of the latest run with this fingerprint, however it ended; None where there is none."""
        with tracking_errors(self.uri):
            known = self._search(open_client(self.uri), {FINGERPRINT_TAG: fingerprint})
        return known[0] if known else None

    def end_children(self, parent_run_id: str) -> None:
        """Ends the runs below one that are left running by processes that are gone, as KILLED."""
        with tracking_errors(self.uri):
            client = open_client(self.uri)
            clause = f"tags.`{PARENT_TAG}` = '{parent_run_id}' and attributes.status = 'RUNNING'"
            while left := client.search_runs([self.experiment_id], clause, max_results=1000):
                for run in left:
                    client.set_terminated(run.info.run_id, "KILLED")

    def _search(self, client: MlflowClient, tags: Mapping[str, str], *, status: str | None = None) -> list[str]:
        clauses = [f"tags.`{key}` = '{_quote(value)}'" for key, value in tags.items()]
        if status is not None:
            clauses.append(f"attributes.status = '{status}'")
        runs = client.search_runs([self.experiment_id], " and ".join(clauses), max_results=1, order_by=["attributes.start_time DESC"])
        return [run.info.run_id for run in runs]


class RunLogger:
    """Writes to one MLflow run.

    Metrics are buffered and sent in the background: between its checkpoints a training does not wait for a slow server. `flush` and
    `end` send the rest here and now, and what a dead server did not take is kept and sent later.
    """

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self.tracker = tracker
        self.run_id = run_id
        self._lock = threading.Lock()  # of the points and what is known of the store
        self._sending = threading.Lock()  # of the store: points arrive there in their order
        self._sender: threading.Thread | None = None
        self._refusal: Exception | None = None
        self._points: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        self._is_store_away = False

    @cached_property
    def _client(self) -> MlflowClient:
        return open_client(self.tracker.uri)

    @property
    def link(self) -> str:
        """What a user opens: the run's page on a server, for a local database the command that serves it."""
        if sqlite_path(self.tracker.uri) is None and self.tracker.uri.startswith("http"):
            return f"{self.tracker.uri}/#/experiments/{self.tracker.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {shlex.quote(shown(self.tracker.uri))}"

    def log_config(self, yaml_text: str) -> None:
        """Keeps the resolved config beside the run as config.yaml."""
        self.log_text(yaml_text, "config.yaml")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs a flat mapping; on resume what is already there stays, and a runtime value that changed becomes a tag `resumed.<name>`.

        MLflow never lets a parameter change, and a resumed run may well have another number of workers.
        """
        with tracking_errors(self.tracker.uri):
            from mlflow.entities import Param

            known = self._client.get_run(self.run_id).data.params
            given = {_checked(key): str(value) for key, value in params.items()}
            new = [Param(key, value) for key, value in given.items() if key not in known]
            for start in range(0, len(new), MAX_PARAMS):
                self._client.log_batch(self.run_id, params=new[start : start + MAX_PARAMS])
        self.set_tags({f"resumed.{key}": value for key, value in given.items() if key in known and known[key] != value})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Buffers one point per metric; NaN and infinities are logged as they are.

        Raises:
            TrackingError: the store has refused earlier points for good.
        """
        if self._refusal is not None:
            raise self._refusal
        now = int(time.time() * 1000)
        with self._lock:
            self._points += [(_checked(key), float(value), now, step) for key, value in metrics.items()]
            full = len(self._points) >= FLUSH_POINTS and not self._is_store_away
            due = full or time.monotonic() > self._next_flush
        if due and (self._sender is None or not self._sender.is_alive()):
            self._sender = threading.Thread(target=self._flush_beside, name="mlflow-sender", daemon=True)
            self._sender.start()

    def _flush_beside(self) -> None:
        try:
            self.flush()
        except Exception as error:  # told by the next call of log_metrics
            self._refusal = error

    def flush(self) -> bool:
        """Sends the buffered points; False (and a warning) where the store does not take them now: they are kept for the next time.

        Raises:
            TrackingError: the store answers and refuses them for good (the run was deleted, no permission).
        """
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        with self._sending:
            while batch := self._first_points():
                try:
                    self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
                except MlflowException as error:
                    reason = str(error).splitlines()[0]
                    if error.error_code in REFUSALS:
                        raise TrackingError(reason, where=shown(self.tracker.uri)) from error
                    warnings.warn(f"{len(self._points)} points wait for {shown(self.tracker.uri)}: {reason}", RuntimeWarning, stacklevel=2)
                    with self._lock:
                        self._is_store_away, self._next_flush = True, time.monotonic() + AWAY_SECONDS
                    return False
                with self._lock:
                    del self._points[: len(batch)]
            with self._lock:
                self._is_store_away, self._next_flush = False, time.monotonic() + FLUSH_SECONDS
        return True

    def _first_points(self) -> list[tuple[str, float, int, int]]:
        with self._lock:
            return self._points[:MAX_METRICS]

    def log_text(self, text: str, path: str) -> None:
        """Keeps `text` as the run's artifact `path`."""
        with tracking_errors(self.tracker.uri):
            self._client.log_text(self.run_id, text, path)

    def log_json(self, obj: Any, path: str) -> None:
        """Keeps `obj` as JSON (NaN and infinities as null: JSON has none)."""
        self.log_text(json.dumps(jsonable(obj), indent=2, sort_keys=True) + "\n", path)

    def log_figure(self, fig: Figure, path: str) -> None:
        """Keeps a matplotlib figure in the format that the ending of `path` names."""
        with tracking_errors(self.tracker.uri):
            self._client.log_figure(self.run_id, fig, path)

    def log_folder(self, local_dir: str | Path, path: str) -> None:
        """Keeps a whole folder under the artifact path `path`."""
        with tracking_errors(self.tracker.uri):
            self._client.log_artifacts(self.run_id, str(local_dir), path)

    def metrics(self) -> dict[str, float]:
        """The last value of every metric, buffered ones included."""
        self.flush()
        with tracking_errors(self.tracker.uri):
            stored = self._client.get_run(self.run_id).data.metrics
        return {key: _from_store(value) for key, value in stored.items()}

    def history(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric by step; where a resumed run repeated a step, the latest value."""
        self.flush()
        with tracking_errors(self.tracker.uri):
            points = self._client.get_metric_history(self.run_id, name)
        latest = {point.step: _from_store(point.value) for point in sorted(points, key=lambda point: point.timestamp)}
        return sorted(latest.items())

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets or replaces tags of the run."""
        from mlflow.entities import RunTag

        if tags:
            with tracking_errors(self.tracker.uri):
                self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def end(self, status: RunStatus = "FINISHED") -> None:
        """Sends what is buffered and closes the run.

        Raises:
            TrackingError: the store took nothing for a minute; the points are then in a file that the message names.
        """
        deadline = time.monotonic() + END_PATIENCE_S
        with warnings.catch_warnings():
            warnings.simplefilter("once", RuntimeWarning)
            while not self.flush():
                if time.monotonic() > deadline:
                    raise self._kept_in_a_file()
                time.sleep(1.0)
        with tracking_errors(self.tracker.uri):
            self._client.set_terminated(self.run_id, status)

    def _kept_in_a_file(self) -> TrackingError:
        path = Path.cwd() / f"unsent-metrics-{self.run_id}.json"
        path.write_text(json.dumps([{"key": k, "value": repr(v), "timestamp": t, "step": s} for k, v, t, s in self._points]))
        what = f"{len(self._points)} points could not be sent for {END_PATIENCE_S:.0f} s"
        return TrackingError(what, where=shown(self.tracker.uri), hint=f"they are in {path}")


def _provenance() -> dict[str, str]:
    """Tags that say which program, version, commit and user made a run; in a job the commit comes from PFSCALE_COMMIT."""
    # Only the program's name: an argument can hold a password (run.tracking_uri=postgresql://user:password@host).
    tags = {"pfscale.version": __version__, "mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0]).name}
    commit = os.environ.get("PFSCALE_COMMIT") or git_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = str(os.getuid())
    return tags


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with `-dirty` where it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(f"MLflow does not take the name {name!r}: letters, digits and _ - . : / only")
    return name


def _quote(value: str) -> str:
    if "'" in value:
        raise ValueError(f"a quote in {value!r} would break the search for it")
    return value


def _from_store(value: float) -> float:
    """`value` as it was logged: SQL stores keep an infinity as the largest double."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value


def jsonable(obj: Any) -> Any:
    """`obj` for strict JSON: numpy types as Python's own, NaN and infinities as null."""
    if isinstance(obj, Mapping):
        return {str(key): jsonable(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [jsonable(value) for value in obj]
    if hasattr(obj, "tolist"):  # numpy arrays and scalars
        return jsonable(obj.tolist())
    return None if isinstance(obj, float) and not math.isfinite(obj) else obj
