"""Reading back what MLflow keeps of a run: parameters, metrics with their histories, artifacts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pfscale.errors import ModelNotFoundError, closest
from pfscale.tracking.runs import PARENT_TAG, Tracker
from pfscale.tracking.store import open_client, require_store, resolve_uri, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

PART_OF_TAG = "pfscale.part_of."  # and the id of a sweep's run: what belongs to it, also where it is a child of an earlier sweep
_LATEST = ["attributes.start_time DESC"]
_RUN_ID = re.compile(r"^[0-9a-f]{32}$")


@dataclass(frozen=True)
class RunRecord:
    """One run as MLflow has it; times are seconds since 1970, `ended` is 0 while it runs."""

    tracker: Tracker
    run_id: str
    name: str
    status: str
    started: float
    ended: float
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    def history(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric by step; empty where it was not logged."""
        return self.tracker.attach(self.run_id).history(metric)

    def artifacts(self, folder: str = "") -> list[str]:
        """The paths of the files in one of the run's artifact folders."""
        with tracking_errors(self.tracker.uri):
            found = open_client(self.tracker.uri).list_artifacts(self.run_id, folder or None)
        return sorted(item.path for item in found if not item.is_dir)

    def read(self, path: str) -> bytes | None:
        """The content of an artifact, None where there is none."""
        parent = path.rpartition("/")[0]
        if path not in self.artifacts(parent):
            return None
        with tracking_errors(self.tracker.uri), TemporaryDirectory() as folder:
            return Path(open_client(self.tracker.uri).download_artifacts(self.run_id, path, folder)).read_bytes()

    def read_json(self, path: str) -> Any:
        """The content of a JSON artifact, None where there is none."""
        content = self.read(path)
        return None if content is None else json.loads(content)


def find_run(tracking_uri: str, run: str) -> RunRecord:
    """The run with this id, or the latest one of this name in any experiment.

    Raises:
        ModelNotFoundError: there is none; lists the nearest names.
        TrackingError: the store cannot be reached.
    """
    uri = resolve_uri(tracking_uri)
    require_store(uri, create=False)
    client = open_client(uri)
    with tracking_errors(uri):
        found = _by_id(client, run)
        if found is None:
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            quoted = run.replace("'", "")
            named = client.search_runs(experiments, f"attributes.run_name = '{quoted}'", max_results=1, order_by=_LATEST)
            found = named[0] if named else None
        if found is None:
            latest = client.search_runs(experiments, max_results=100, order_by=_LATEST)
            names = sorted({r.info.run_name for r in latest})
            known = closest(run, names) or names[:10]
            raise ModelNotFoundError("no such run", where=run, hint=f"there are: {', '.join(known) or 'none'}")
    return _record(uri, found)


def runs_of(tracking_uri: str, name: str) -> list[RunRecord]:
    """All runs of an experiment, or those that belong to a run (a sweep's trials, by its name or id), however they ended, oldest first.

    Raises:
        ModelNotFoundError: neither is there; lists the nearest names of experiments.
        TrackingError: the store cannot be reached.
    """
    uri = resolve_uri(tracking_uri)
    require_store(uri, create=False)
    client = open_client(uri)
    with tracking_errors(uri):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return _all_runs(client, uri, found.experiment_id, "")
    try:
        parent = find_run(uri, name)
    except ModelNotFoundError:
        with tracking_errors(uri):
            names = sorted(known.name for known in client.search_experiments())
        nearest = closest(name, names) or names[:10]
        raise ModelNotFoundError("no such experiment, nor a run", where=name, hint=f"there are: {', '.join(nearest)}") from None
    with tracking_errors(uri):
        clauses = (f"tags.`{PARENT_TAG}` = '{parent.run_id}'", f"tags.`{PART_OF_TAG}{parent.run_id}` = 'true'")
        found = {run.run_id: run for clause in clauses for run in _all_runs(client, uri, parent.tracker.experiment_id, clause)}
    return sorted(found.values(), key=lambda run: run.started)


def _all_runs(client: MlflowClient, uri: str, experiment_id: str, which: str) -> list[RunRecord]:
    runs: list[RunRecord] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], which, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token)
        runs += [_record(uri, run) for run in page]
        token = page.token
        if not token:
            return runs


def _by_id(client: MlflowClient, run_id: str) -> Any | None:
    """The run with this id, None where there is none or it was deleted."""
    from mlflow.exceptions import MlflowException

    if not _RUN_ID.match(run_id):
        return None
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return found if found.info.lifecycle_stage == "active" else None


def _record(uri: str, run: Any) -> RunRecord:
    return RunRecord(
        tracker=Tracker(uri, str(run.info.experiment_id)),
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=run.info.start_time / 1000,
        ended=(run.info.end_time or 0) / 1000,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
    )
