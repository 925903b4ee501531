"""Reading back what MLflow keeps of a run: parameters, metrics with their histories, artifacts, and the runs below it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pfscale.errors import ModelNotFoundError, closest
from pfscale.tracking.runs import PARENT_TAG, Tracker
from pfscale.tracking.store import open_client, require_store, resolve_uri, tracking_errors

_MAX_RUNS = 1000


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
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, max_results=_MAX_RUNS, order_by=["attributes.start_time DESC"])
    found = next((r for r in runs if run in (r.info.run_id, r.info.run_name)), None)
    if found is None:
        names = sorted({r.info.run_name for r in runs})
        near = closest(run, names) or names[:10]
        raise ModelNotFoundError("no such run", where=run, hint=f"there are: {', '.join(near) or 'none'}")
    return _record(uri, found)


def runs_below(record: RunRecord) -> list[RunRecord]:
    """The runs whose parent is this one, newest first: evaluations of the model that it trained, trials of a sweep."""
    uri = record.tracker.uri
    with tracking_errors(uri):
        found = open_client(uri).search_runs(
            [record.tracker.experiment_id], f"tags.`{PARENT_TAG}` = '{record.run_id}'", max_results=_MAX_RUNS
        )
    return [_record(uri, run) for run in found]


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
