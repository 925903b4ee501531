"""Who is `@champion` of a registered model, since when and why: every promotion leaves a record as a tag of its version."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from pfscale.errors import TrackingError
from pfscale.physics.bootstrap import Estimate
from pfscale.tracking.registry import ModelVersion, list_versions, resolve
from pfscale.tracking.store import open_client, resolve_uri, store_lock, tracking_errors

CHAMPION = "champion"
RECORD_TAG = "pfscale.champion."  # and the time, so that a version that becomes champion twice keeps both records


@dataclass(frozen=True)
class PromotionRecord:
    """One promotion.

    Attributes:
        before: version that was champion before; None: there was none.
        metric, improvement, error, measured_on: what the two were compared by; empty and None where they were not.
        is_forced: it was not shown to be better.
        reason: the user's words.
        when: UTC, ISO 8601; filled in when it happens.
        version: the new champion; the same.
    """

    before: int | None
    metric: str = ""
    improvement: float | None = None
    error: float | None = None
    measured_on: str = ""
    is_forced: bool = False
    reason: str = ""
    when: str = ""
    version: int = 0

    def __str__(self) -> str:
        against = f"after version {self.before}" if self.before is not None else "the first"
        figures = ""
        if self.improvement is not None:
            by = Estimate(abs(self.improvement), math.nan if self.error is None else self.error)
            figures = f", {self.metric} {'better' if self.improvement >= 0 else 'worse'} by {by} ({self.measured_on})"
        forced = ", forced" if self.is_forced else ""
        return f"{self.when}: version {self.version}, {against}{figures}{forced}" + (f": {self.reason}" if self.reason else "")


def champion_of(tracking_uri: str, name: str) -> ModelVersion | None:
    """The champion of a registered model; None where there is none.

    Raises:
        ModelNotFoundError: no such model. TrackingError: the store cannot be reached.
    """
    versions = list_versions(tracking_uri, name)
    number = next((version.version for version in versions if CHAMPION in version.aliases), None)
    return None if number is None else resolve(tracking_uri, f"{name}/{number}")


def make_champion(version: ModelVersion, record: PromotionRecord) -> PromotionRecord:
    """Moves `@champion` to a version and keeps the record; returns it with time and version.

    Raises:
        TrackingError: somebody else moved it since the two were compared, or the store cannot be reached.
    """
    uri = resolve_uri(version.tracking_uri)
    client = open_client(uri)
    now = datetime.now(UTC)
    kept = replace(record, when=now.isoformat(timespec="seconds"), version=version.version)
    with store_lock(uri):
        holder = champion_of(uri, version.name)
        if (holder.version if holder else None) != record.before:
            raise TrackingError("@champion was moved meanwhile", where=version.name, hint="compare again")
        with tracking_errors(uri):
            tag = f"{RECORD_TAG}{now:%Y%m%dT%H%M%S.%fZ}"
            client.set_model_version_tag(version.name, str(version.version), tag, json.dumps(asdict(kept), sort_keys=True))
            client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    return kept


def champion_history(tracking_uri: str, name: str) -> tuple[PromotionRecord, ...]:
    """All promotions of a registered model, oldest first.

    Raises:
        ModelNotFoundError: no such model. TrackingError: the store cannot be reached.
    """
    found = [
        (key, PromotionRecord(**json.loads(value)))
        for version in list_versions(tracking_uri, name)
        for key, value in version.tags.items()
        if key.startswith(RECORD_TAG)
    ]
    return tuple(record for _, record in sorted(found, key=lambda item: item[0]))
