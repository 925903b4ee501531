"""Physics figures of a registered model on shards: the model beside the truth targets (ceiling) and the file's own baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pfscale.errors import OutputExistsError
from pfscale.models.bundle import Bundle
from pfscale.physics.evaluation import MLPF, RULE_BASED, TRUTH_TARGETS, EvaluationResult, GenReference, evaluate_events
from pfscale.physics.evaluation import Candidates as Particles
from pfscale.shards.dataset import EventIndex, load_index, select_events
from pfscale.shards.ragged import GEN_COLUMNS, INPUT_COLUMNS, TARGET_COLUMNS, RaggedEvents, list_leaves, struct_leaf
from pfscale.tasks.reconstruction import Candidates, ReconstructionConfig, target_candidates
from pfscale.training.inference import event_chunks, run_model
from pfscale.training.lookup import load_model, mismatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE_COLUMNS = tuple(f"baseline.list.element.{name}" for name in ("pdg", "charge", "px", "py", "pz", "energy"))
METRICS_FILE = "metrics.json"
_BOOTSTRAP_SEED = 1


@dataclass(frozen=True)
class Evaluation:
    """Metrics with their bootstrap errors, the figures made of them, and what to keep in mind (`notes`)."""

    title: str
    result: EvaluationResult
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """Flat `mlpf/...`, `truth_targets/...` (and `rule_based/...`) -> value."""
        return self.result.to_dict()

    def table(self) -> Table:
        """One row per reconstruction, for the terminal."""
        header, rows = self.result.table()
        table = Table(*header, title=self.title, caption="\n".join(f"warning: {note}" for note in self.notes) or None)
        for row in rows:
            table.add_row(*row)
        return table

    def figures(self) -> dict[str, Figure]:
        """File name -> figure of jets and missing momentum."""
        from pfscale.report import figures  # not before: workers that only want numbers need no matplotlib

        return {
            "jet_response.png": figures.jet_response(self.result)[0],
            "jet_resolution_vs_pt.png": figures.jet_resolution_vs_pt(self.result)[0],
            "met_resolution.png": figures.met_resolution(self.result)[0],
        }


def evaluate(
    model: str,
    shards: str | Path,
    *,
    split: str = "test",
    output: str | Path | None = None,
    tracking_uri: str = "sqlite:///mlflow.db",
    num_events: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """The metrics of a registered model on one split of event shards, with jets, missing momentum and visible energy.

    Args:
        model: `models:/name@alias`, `models:/name/version`, or a folder with a model bundle.
        output: folder for metrics.json and the figures; nothing is written without it.

    Raises:
        ModelNotFoundError, ShardError, NotEnoughDataError, OutputExistsError.
    """
    if output is not None:
        _require_own(Path(output))
    bundle = load_model(model, tracking_uri=tracking_uri)
    index = load_index(shards)
    members = select_events(index, split, num_events)
    result = evaluate_bundle(bundle, index, members, title=f"{model} on {len(members)} {split} events", progress=progress)
    if output is not None:
        save_evaluation(result, Path(output))
    return result


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes metrics.json and the figures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).write_text(json.dumps({"title": evaluation.title, "metrics": evaluation.metrics}, indent=2, sort_keys=True))
    for name, figure in evaluation.figures().items():
        figure.savefig(folder / name, dpi=150)


def _require_own(folder: Path) -> None:
    """Checks that the folder is new, empty, or holds an earlier evaluation, which may be replaced.

    Raises:
        OutputExistsError: it holds something else.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / METRICS_FILE).is_file())):
        raise OutputExistsError("the folder holds other files", where=str(folder), hint="choose a new --output")


def evaluate_bundle(
    bundle: Bundle, index: EventIndex, members: NDArray[np.int64], *, title: str, progress: Callable[[int], None] | None = None
) -> Evaluation:
    """As `evaluate`, for a loaded model and chosen events."""
    task = ReconstructionConfig(**bundle.card["task"])
    notes = mismatches(bundle.card, detector=index.manifest.detector, simulation=index.manifest.simulation, what="the shards")
    has_baseline = index.manifest.has_baseline
    columns = (*INPUT_COLUMNS, *TARGET_COLUMNS, *GEN_COLUMNS, *(BASELINE_COLUMNS if has_baseline else ()))
    found: dict[str, list[Particles]] = {MLPF: [], TRUTH_TARGETS: [], **({RULE_BASED: []} if has_baseline else {})}
    gens: list[GenReference] = []
    for events in event_chunks(index, members, columns, progress=progress):
        found[MLPF].append(run_model(bundle.model, events, task).candidates)
        found[TRUTH_TARGETS].append(truth_candidates(events))
        if has_baseline:
            found[RULE_BASED].append(_baseline(events))
        gens.append(_gen_reference(events))
    sizes = [gen.num_events for gen in gens]
    joined = {name: _join(parts, sizes) for name, parts in found.items()}
    return Evaluation(title, evaluate_events(joined, _join_gen(gens), seed=_BOOTSTRAP_SEED), notes)


def truth_candidates(events: RaggedEvents) -> Candidates:
    """The ceiling: the candidates that a model without any error would give."""
    element = np.arange(len(events.is_track)) - np.repeat(events.offsets[:-1], events.lengths)
    return target_candidates(event=events.event, element_index=element, is_track=events.is_track, targets=events.targets)


def _baseline(events: RaggedEvents) -> Particles:
    offsets, leaves = list_leaves(events.table, "baseline")
    return Particles(event=np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), **leaves)


def _gen_reference(events: RaggedEvents) -> GenReference:
    offsets, jets = list_leaves(events.table, "gen_jet")
    return GenReference(
        num_events=events.num_events,
        jet_event=np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)),
        jet_pt=jets["pt"],
        jet_eta=jets["eta"],
        jet_phi=jets["phi"],
        jet_energy=jets["energy"],
        met_px=struct_leaf(events.table, "gen_met", "px"),
        met_py=struct_leaf(events.table, "gen_met", "py"),
    )


def _join(parts: Sequence[Particles], sizes: Sequence[int]) -> Particles:
    """All chunks as one, events numbered through; only the fields that every reconstruction has."""
    starts = np.cumsum([0, *sizes[:-1]])
    names = ("px", "py", "pz", "energy", "pdg", "charge")
    event = np.concatenate([part.event + start for part, start in zip(parts, starts, strict=True)])
    return Particles(event=event, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _join_gen(gens: Sequence[GenReference]) -> GenReference:
    starts = np.cumsum([0, *(gen.num_events for gen in gens[:-1])])
    names = ("jet_pt", "jet_eta", "jet_phi", "jet_energy", "met_px", "met_py")
    jet_event = np.concatenate([gen.jet_event + start for gen, start in zip(gens, starts, strict=True)])
    arrays = {name: np.concatenate([getattr(gen, name) for gen in gens]) for name in names}
    return GenReference(num_events=sum(gen.num_events for gen in gens), jet_event=jet_event, **arrays)
