"""Files that are added to a registered version after it was made; its weights, and so what it is, stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pfscale.errors import TrackingError
from pfscale.tracking.registry import ModelVersion
from pfscale.tracking.store import open_client, tracking_errors


def attach_files(version: ModelVersion, files: Sequence[Path], *, tags: Mapping[str, str]) -> None:
    """Puts the files beside those of `version`, under their own names, and sets tags on it; attached again, they are replaced.

    Raises:
        TrackingError: the store does not answer, or the version's files are not artifacts of its run.
    """
    client = open_client(version.tracking_uri)
    with tracking_errors(version.tracking_uri):
        root = client.get_run(version.run_id).info.artifact_uri
        if not version.source.startswith(f"{root}/"):
            raise TrackingError(
                "the files of this version are not artifacts of its run",
                where=version.uri,
                hint="pfscale pretrain and finetune register them so",
            )
        for file in files:
            client.log_artifact(version.run_id, str(file), version.source.removeprefix(f"{root}/"))
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
