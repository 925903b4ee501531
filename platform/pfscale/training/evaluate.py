"""Physics figures of a registered model on shards: beside the truth targets (ceiling), the file's own candidates, and bare clusters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from pfscale.errors import OutputExistsError, PfscaleError
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.physics.evaluation import MLPF, Candidates, EvaluationResult, GenReference, evaluate_events, flat_key
from pfscale.physics.met import missing_momentum
from pfscale.physics.particles import ParticleResult, evaluate_particles, particle_table
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.shards.schema import CLASSES
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.tracking.registry import ModelVersion
from pfscale.tracking.runs import ended, jsonable, tracker_of_run
from pfscale.training.inference import event_chunks, run_model
from pfscale.training.lookup import locate_model, mismatches, registered_version
from pfscale.training.reconstructions import evaluation_columns, joined, joined_particles, model_alone, model_columns, reconstructions_of

if TYPE_CHECKING:
    from pfscale.report.style import Drawn

METRICS_FILE = "metrics.json"
EVALUATION_VERSION = "1"  # to be raised when the same model and events give other figures
_BOOTSTRAP_SEED = 1
Scope = Literal["all", "model", "events"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics with their bootstrap errors, the figures made of them, and what to keep in mind (`notes`).

    Attributes:
        particles: reconstruction -> efficiency, fake rate, confusion and energy response of its particles.
        events: (E,) positions in the index of the events, in the order of `met_residual`.
        met_residual: (E,) distance of the model's missing momentum from the true one, GeV; what best and worst events are found by.
        links: where the figures are in MLflow.
    """

    title: str
    result: EvaluationResult
    particles: Mapping[str, ParticleResult]
    events: NDArray[np.int64]
    met_residual: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Flat `mlpf/...`, `truth_targets/...`, `rule_based/...`, `calorimeter_only/...` -> value."""
        of_particles = {
            f"{flat_key(key)}/{name}": value for key, found in self.particles.items() for name, value in found.to_dict().items()
        }
        return {**self.result.to_dict(), **of_particles}

    def table(self) -> Group:
        """Particles, then whole events: one row per reconstruction (and class), for the terminal."""
        header, rows = self.result.table()
        warnings = [f"warning: {note}" for note in self.notes]
        table = Table(*header, title=self.title, caption="\n".join([*warnings, *self.links]) or None)
        for row in rows:
            table.add_row(*row)
        if not self.particles:
            return Group(table)
        header, rows = particle_table(self.particles)
        particles = Table(*header, title="particles, by class of the element")
        for row in rows:
            particles.add_row(*row)
        return Group(particles, table)

    @cached_property
    def figures(self) -> dict[str, Drawn]:
        """Name -> (figure, its numbers) of everything that can be drawn."""
        from pfscale.report.physics import physics_figures  # not before: workers that only want numbers need no matplotlib

        return physics_figures(self.result, self.particles)


def evaluate(
    model: str,
    shards: str | Path,
    *,
    split: str = "test",
    output: str | Path | None = None,
    other_seeds: Sequence[str] = (),
    tracking_uri: str = "sqlite:///mlflow.db",
    num_events: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """The metrics of a registered model on one split of event shards, with jets, missing momentum, visible energy and particles.

    A registered model's figures and numbers are logged to MLflow, in a run below the one that trained it; repeated, into the same.

    Args:
        model: `models:/name@alias`, `models:/name/version`, or a folder with a model bundle.
        output: folder for metrics.json and the figures, each with its numbers as JSON.
        other_seeds: models of the same config trained with other seeds; their spread is drawn as a band.

    Raises:
        ModelNotFoundError, ShardError, NotEnoughDataError, OutputExistsError.
        PfscaleError: the further models are of another detector or task than the first.
    """
    if output is not None:
        _require_own(Path(output))
    folder, address = locate_model(model, tracking_uri=tracking_uri)
    bundle = load_bundle(folder)
    others = [load_bundle(locate_model(other, tracking_uri=tracking_uri)[0]) for other in other_seeds]
    _require_same_kind(bundle, others, other_seeds)
    index = load_index(shards)
    members = select_events(index, split, num_events)
    title = f"{address} on {len(members)} {split} events of {index.manifest.detector}"
    evaluation = evaluate_bundle(bundle, index, members, title=title, other_seeds=others, progress=progress)
    if not index.manifest.has_baseline:
        evaluation = replace(evaluation, notes=(*evaluation.notes, "the shards have no rule-based candidates: no baseline"))
    version = registered_version(model, tracking_uri=tracking_uri)
    if version is not None:
        evaluation = _logged(evaluation, version, index, split=split, others=others)
    if output is not None:
        save_evaluation(evaluation, Path(output))
    return evaluation


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes metrics.json, the figures and their numbers into `folder`, in place of those of an earlier evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.json")) if (folder / METRICS_FILE).is_file() else ():
        old.unlink()
    values = jsonable({"title": evaluation.title, "notes": list(evaluation.notes), "metrics": evaluation.metrics})
    (folder / METRICS_FILE).write_text(json.dumps(values, indent=2, sort_keys=True, allow_nan=False))
    for name, (figure, numbers) in evaluation.figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1, allow_nan=False))


def evaluate_bundle(
    bundle: Bundle,
    index: EventIndex,
    members: NDArray[np.int64],
    *,
    title: str,
    other_seeds: Sequence[Bundle] = (),
    scope: Scope = "all",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """As `evaluate`, for a loaded model and chosen events; nothing is logged.

    Args:
        scope: all: beside what the model is compared with; model: the model alone; events: the model alone, without its particles, in a
            fraction of the time.

    Raises:
        ShardError: a shard is missing or torn.
    """
    manifest = index.manifest
    notes = mismatches(bundle.card, detector=manifest.detector, simulation=manifest.simulation, what="the shards")
    parts, seeds = [], []
    columns = evaluation_columns(has_baseline=manifest.has_baseline) if scope == "all" else model_columns(with_particles=scope == "model")
    for events in event_chunks(index, members, columns, progress=progress):
        predicted = run_model(bundle.model, events, ReconstructionConfig(**bundle.card["task"])).candidates
        if scope == "all":
            parts.append(reconstructions_of(events, predicted, has_baseline=manifest.has_baseline))
        else:
            parts.append(model_alone(events, predicted, with_particles=scope == "model"))
        seeds.append([run_model(other.model, events, ReconstructionConfig(**other.card["task"])).candidates for other in other_seeds])
    sample = joined(parts)
    sizes = [part.gen.num_events for part in parts]
    others = [joined_particles([found[i] for found in seeds], sizes) for i in range(len(other_seeds))]
    particles = {
        key: evaluate_particles(elements, num_events=sample.gen.num_events, class_names=CLASSES, seed=_BOOTSTRAP_SEED)
        for key, elements in sample.elements.items()
    }
    result = evaluate_events(sample.candidates, sample.gen, seed=_BOOTSTRAP_SEED, other_seeds=others)
    residual = _met_residual(sample.candidates[MLPF], sample.gen)
    return Evaluation(title, result, particles, np.sort(members), residual, notes)


def _require_own(folder: Path) -> None:
    """Checks that the folder is new, empty, or holds an earlier evaluation, which may be replaced.

    Raises:
        OutputExistsError: it holds something else.
    """
    if folder.is_file():
        raise OutputExistsError("a file, not a folder", where=str(folder), hint="choose a new --output")
    if folder.exists() and any(folder.iterdir()) and not (folder / METRICS_FILE).is_file():
        raise OutputExistsError("the folder holds other files", where=str(folder), hint="choose a new --output")


def _require_same_kind(bundle: Bundle, others: Sequence[Bundle], names: Sequence[str]) -> None:
    """Checks that what is called a seed of the same training may be one: all but the seed is the same."""
    hint = "pfscale models compare sets two different models side by side"
    seeds = [bundle.card.get("training", {}).get("seed")]
    for other, name in zip(others, names, strict=True):
        for key in ("detector", "data", "verb", "parent", "num_train_events", "num_parameters", "task"):
            if other.card.get(key) != bundle.card.get(key):
                what = f"not another seed of the same training: {key} {other.card.get(key)}, not {bundle.card.get(key)}"
                raise PfscaleError(what, where=name, hint=hint)
        same, its = ({k: v for k, v in b.card.get("training", {}).items() if k != "seed"} for b in (bundle, other))
        if same != its:
            raise PfscaleError(f"not another seed of the same training: {its}, not {same}", where=name, hint=hint)
        seed = other.card.get("training", {}).get("seed")
        if seed in seeds:
            raise PfscaleError(f"seed {seed} is there already", where=name, hint="every seed counts once")
        seeds.append(seed)


def _met_residual(candidates: Candidates, gen: GenReference) -> NDArray[np.float64]:
    px, py = missing_momentum(candidates.event, candidates.px, candidates.py, num_events=gen.num_events)
    return np.hypot(px - gen.met_px, py - gen.met_py)


def _logged(evaluation: Evaluation, version: ModelVersion, index: EventIndex, *, split: str, others: Sequence[Bundle]) -> Evaluation:
    """The evaluation with its place in MLflow, after logging it below the run that trained the model."""
    tracker = tracker_of_run(version.tracking_uri, version.run_id)
    manifest = index.manifest
    trainings = " ".join(str(other.card["fingerprint"]) for other in others)
    fingerprint = f"evaluate {EVALUATION_VERSION} {version.uri} {manifest.hash} {split} {len(evaluation.events)} {trainings}".strip()
    tags = {"pfscale.verb": "evaluate", "pfscale.model": version.uri, "pfscale.detector": manifest.detector, "pfscale.data": manifest.hash}
    name = f"evaluate {version.name}/{version.version} {split}"
    logger = tracker.start_run(name, fingerprint=fingerprint, tags=tags, parent_run_id=version.run_id)
    # Before the figures are drawn: they stay with the object that has drawn them.
    evaluation = replace(evaluation, links=(logger.link,))
    with ended(logger):
        logger.log_metrics({key: value for key, value in evaluation.metrics.items() if np.isfinite(value)}, step=0)
        logger.log_json({"title": evaluation.title, "notes": list(evaluation.notes), "metrics": evaluation.metrics}, METRICS_FILE)
        for figure_name, (figure, numbers) in evaluation.figures.items():
            logger.log_figure(figure, f"figures/{figure_name}.png")
            logger.log_json(numbers, f"figures/{figure_name}.json")
    return evaluation
