"""Promotion: `@champion` of a registered model moves to a version that is better by more than the uncertainty, or for a recorded reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pfscale.errors import NotBetterError, PfscaleError
from pfscale.models.bundle import load_bundle
from pfscale.physics.comparable import DEFAULT_METRIC, Difference, Metric, find_metric
from pfscale.shards.manifest import load_manifest
from pfscale.tracking.champion import PromotionRecord, champion_of, make_champion
from pfscale.tracking.registry import ModelVersion, download, resolve
from pfscale.training.comparison import Comparison, compare, require_detector


@dataclass(frozen=True)
class Promotion:
    """What became of a promotion.

    Attributes:
        record: what was kept of it; None: the version was champion already.
        comparison: with the champion before; None where there was none, or it could not be made.
        notes: what to keep in mind.
    """

    version: ModelVersion
    record: PromotionRecord | None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Lines for the terminal."""
        name = self.version.name
        if self.record is None:
            return f"{self.version.uri} is {name}@champion already"
        if self.record.before is None:
            head = f"{self.version.uri} is the first {name}@champion"
        else:
            head = f"{self.version.uri} is {name}@champion; before: version {self.record.before}"
        return "\n".join([head, str(self.record), *(f"note: {note}" for note in self.notes)])


def promote(
    reference: str,
    *,
    shards: str | Path | None = None,
    split: str = "validation",
    metric: str = DEFAULT_METRIC,
    sigmas: float = 1.0,
    force: bool = False,
    reason: str = "",
    tracking_uri: str = "sqlite:///mlflow.db",
    progress: Callable[[int], None] | None = None,
) -> Promotion:
    """Makes a registered version the champion of its model, if it is better than the present one by `metric`; the first one always is.

    Args:
        reference: `name@candidate`, `name/3`.
        split: not the test split, whose figures would then be those of the winner of a contest on it.
        shards: both run on these; without, the model cards are compared, which need to be of the same data.
        sigmas: by how many standard deviations of the difference it must be better.
        force: moves it in any case; needs a `reason`, which is recorded as everything else is.

    Raises:
        NotBetterError: it is not better, or that is not known; @champion stays.
        UnknownNameError: no such metric.
        ModelNotFoundError, InputFileError, ShardError, NotEnoughDataError, TrackingError: as `compare`.
        PfscaleError: force without a reason, sigmas below 0.
    """
    wanted = find_metric(metric)
    if force and not reason.strip():
        raise PfscaleError("a forced promotion needs a reason", hint="--reason TEXT; it is recorded with the version")
    if not sigmas >= 0:
        raise PfscaleError(f"a difference of {sigmas} standard deviations cannot be asked for", hint="--sigmas 0 or more")
    version = resolve(tracking_uri, reference)
    card = load_bundle(download(version)).card  # also: it is a particle-flow model
    if shards is not None:
        require_detector({version.uri: card}, load_manifest(shards).detector, where=str(shards))
    champion = champion_of(tracking_uri, version.name)
    if champion is None:
        return Promotion(version, make_champion(version, PromotionRecord(before=None, reason=reason)))
    if champion.version == version.version:
        return Promotion(version, None)

    comparison, notes = None, []
    try:
        comparison = compare(champion.uri, version.uri, shards=shards, split=split, tracking_uri=tracking_uri, progress=progress)
    except PfscaleError as error:
        if not force:
            raise
        notes.append(f"not compared: {error.what}")
    found = comparison.by(wanted) if comparison is not None else None
    is_better = found is not None and found.is_better(sigmas)
    if not is_better and not force:
        raise _not_better(champion, version, wanted, found, sigmas)
    record = PromotionRecord(
        before=champion.version,
        metric=wanted.name if found is not None else "",
        improvement=found.improvement.value if found is not None else None,
        error=found.improvement.error if found is not None else None,
        measured_on=comparison.measured_on if comparison is not None else "",
        is_forced=not is_better,
        reason=reason,
    )
    return Promotion(version, make_champion(version, record), comparison, tuple(notes))


def _not_better(champion: ModelVersion, version: ModelVersion, metric: Metric, found: Difference | None, sigmas: float) -> NotBetterError:
    hint = "another --metric, more events with --shards, or --force --reason TEXT"
    if found is None:
        return NotBetterError(f"{metric.name} was not measured, or only for one of the two", where=version.uri, hint=hint)
    figures = f"{found.b} against {found.a} of {champion.uri}, difference {found.difference}"
    if found.verdict(sigmas) == "uncertainty not known":
        what = f"nobody knows whether it is better: the uncertainty of {metric.name} is not known"
    else:
        what = f"not better than the champion by {metric.name} ({metric.best} is better) by more than {sigmas:g} standard deviations"
    return NotBetterError(f"{what}: {figures}", where=version.uri, hint=hint)
