"""The report of a model or a run: one HTML page with the question, the answer, and everything that is behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfscale import __version__
from pfscale.errors import ModelNotFoundError, OutputExistsError, PfscaleError
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.models.mlpf import count_parameters
from pfscale.physics.particles import particle_table
from pfscale.report.figures import learning_curves
from pfscale.report.html import Page, PageCode, PageFigure, PageSection, PageTable, logged_figure, page_figure, render_page
from pfscale.report.style import look
from pfscale.shards.dataset import EventIndex, load_index
from pfscale.tracking.lineage import Ancestor, ancestors
from pfscale.tracking.records import RunRecord, find_run
from pfscale.tracking.registry import ModelVersion, list_models
from pfscale.training.display import show_shard_events
from pfscale.training.evaluate import Evaluation, evaluate
from pfscale.training.launch import references
from pfscale.training.lookup import locate_model, registered_version

_CAPTIONS = {
    "jet_response": "Transverse momentum of matched jets over that of the gen jet.",
    "jet_resolution_vs_pt": "Scale and width of the jet response against the gen jet's transverse momentum.",
    "jet_resolution_vs_eta": "The same against the gen jet's pseudorapidity.",
    "jet_matching": "Gen jets that are found, and reconstructed jets that belong to none (one-to-one within ΔR < 0.1).",
    "met_resolution": "Missing momentum: response, and resolution along and across the true direction.",
    "visible_energy": "Total energy and invariant mass of all candidates over those of the generator-level particles.",
    "particle_rates_vs_pt": "Efficiency (elements of a class that are predicted as such) and fake rate (candidates where no particle is).",
    "particle_rates_vs_eta": "The same against pseudorapidity.",
    "particle_energies_vs_pt": "Energy of candidates over that of the target, where the class is right.",
    "particle_energies_vs_eta": "The same against pseudorapidity.",
    "confusion_mlpf": "MLPF: target class against predicted class of every element.",
    "confusion_rule_based": "Rule-based: the same, each candidate at its track of largest momentum, else its cluster of largest energy.",
}
_TRAINING_NUMBERS = {  # metric -> (what it is, format)
    "num_train_events": ("training events", "{:,.0f}"),
    "best_validation_loss": ("best validation loss", "{:.4g}"),
    "best_step": ("at step", "{:,.0f}"),
    "elements_per_second": ("elements per second", "{:,.0f}"),
    "events_per_second": ("events per second", "{:,.0f}"),
    "mfu": ("share of the matrix rate reached (MFU)", "{:.1%}"),
    "data_share": ("share of time waiting for data", "{:.1%}"),
    "evaluation_share": ("share of time in evaluations", "{:.1%}"),
    "peak_memory_mb": ("peak memory of a worker [MB]", "{:,.0f}"),
}


@dataclass(frozen=True)
class _Subject:
    """What a report is about: a run, a model, or both."""

    name: str
    record: RunRecord | None
    version: ModelVersion | None
    folder: Path | None  # of the model's bundle


def report(
    target: str,
    output: str | Path,
    *,
    shards: str | Path | None = None,
    split: str = "test",
    tracking_uri: str = "sqlite:///mlflow.db",
    progress: Callable[[int], None] | None = None,
) -> Path:
    """The HTML file with the report of a registered model, a model folder, or a run (by id or name).

    Args:
        target: `models:/name@alias`, `name/3`, a model folder, a run's id or name.
        shards: data set to evaluate the model on; None: the one that it was trained on, where it is still there.

    Raises:
        ModelNotFoundError, ShardError, TrackingError; OutputExistsError: `output` is a folder or no HTML file of ours.
    """
    output = Path(output)
    _require_ours(output)
    subject = _find(target, tracking_uri)
    page = _page(subject, shards=shards, split=split, tracking_uri=tracking_uri, progress=progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.draft")
    draft.write_text(render_page(page))
    draft.replace(output)
    return output


def _require_ours(output: Path) -> None:
    if output.is_dir() or output.suffix != ".html":
        raise OutputExistsError("the report is one file whose name ends in .html", where=str(output), hint="--output report.html")


def _find(target: str, tracking_uri: str) -> _Subject:
    try:
        folder, address = locate_model(target, tracking_uri=tracking_uri)
    except ModelNotFoundError as no_model:
        try:
            record = find_run(tracking_uri, target)
        except ModelNotFoundError:
            raise no_model from None
        made = next((v for v in list_models(tracking_uri) if v.run_id == record.run_id), None)
        return _Subject(record.name, record, made, _bundle_of(record, made, tracking_uri))
    version = registered_version(target, tracking_uri=tracking_uri)
    if version is None:
        return _Subject(address, None, None, folder)
    return _Subject(version.uri.removeprefix("models:/"), find_run(tracking_uri, version.run_id), version, folder)


def _bundle_of(record: RunRecord, version: ModelVersion | None, tracking_uri: str) -> Path | None:
    """The model of a run: its registered version, else the folder that it left; None for a run without a particle-flow model."""
    if record.tags.get("pfscale.verb") not in ("pretrain", "finetune"):
        return None
    if version is not None:
        return locate_model(version.uri, tracking_uri=tracking_uri)[0]
    folder = Path(record.params.get("run.storage", "")) / record.name / "model"
    return folder if folder.is_dir() else None


def _page(subject: _Subject, *, shards: str | Path | None, split: str, tracking_uri: str, progress: Callable[[int], None] | None) -> Page:
    bundle = load_bundle(subject.folder) if subject.folder is not None else None
    warnings: list[str] = []
    sections: list[PageSection] = []
    answers: list[str] = []
    evaluation = None
    if bundle is not None:
        where, why_not = _shards_of(subject, bundle, shards)
        if where is not None:
            address = subject.version.uri if subject.version else str(subject.folder)
            evaluation = evaluate(address, where, split=split, tracking_uri=tracking_uri, progress=progress)
            answers = verdicts(evaluation.metrics)
            warnings += evaluation.notes
            sections.append(_results(evaluation))
            sections.append(_events(bundle, load_index(where), evaluation))
        else:
            warnings.append(why_not)
    if subject.record is not None:
        sections += _training(subject.record, has_evaluation=evaluation is not None)
    if bundle is not None:
        sections.append(_lineage(bundle, ancestors(tracking_uri, bundle.card["parent"])))
    if subject.record is not None:
        sections.append(_repeat(subject, shards, split))
    return Page(
        title=subject.name,
        question=_question(subject, bundle, evaluation),
        answers=answers,
        warnings=warnings,
        sections=[section for section in sections if section is not None],
        footer=f"pfscale {__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
    )


def _shards_of(subject: _Subject, bundle: Bundle, shards: str | Path | None) -> tuple[str | Path | None, str]:
    """The data set to evaluate on, or None and why there is none."""
    if shards is not None:
        return shards, ""
    found = (subject.record.params if subject.record is not None else {}).get("data.shards", "")
    if not found:
        return None, "no evaluation: it is not known what the model was trained on (--shards names a data set)"
    try:
        index = load_index(found)
    except PfscaleError:
        return None, f"no evaluation: the training data are not at {found} any more (--shards names a data set)"
    if index.manifest.hash != bundle.card["data"]:
        return None, f"no evaluation: the data at {found} are not those of the training any more (--shards names a data set)"
    return found, ""


def _question(subject: _Subject, bundle: Bundle | None, evaluation: Evaluation | None) -> str:
    if bundle is None:
        return f"What came of {subject.name}?"
    card = bundle.card
    made = f"pre-trained on {card['num_train_events']:,} events" if not card.get("parent") else _transfer(card)
    on = f"{evaluation.result.num_events:,} events" if evaluation is not None else "events"
    what = f"{card['detector'].upper()} ({card['process'] or 'unnamed process'}, {card['simulation']} simulation)"
    return (
        f"How well does {subject.name}, {made}, reconstruct {on} of {what} that it was not trained on,"
        " beside the rule-based reconstruction, bare clusters, and a model without error?"
    )


def _transfer(card: Mapping[str, object]) -> str:
    return f"made from {card['parent']} with {card['num_train_events']:,} events of the new detector"


def verdicts(metrics: Mapping[str, float]) -> list[str]:
    """Sentences that compare the model with the baseline and the ceiling, with uncertainties."""
    lines = []
    named = (("Jet response, IQR / median", "jet_response_iqr_over_median", 4, ""), ("Missing momentum, σ", "met_resolution", 2, " GeV"))
    for label, metric, digits, unit in named:
        value, error = metrics.get(f"mlpf/{metric}", np.nan), metrics.get(f"mlpf/{metric}_error", np.nan)
        base, base_error = metrics.get(f"rule_based/{metric}", np.nan), metrics.get(f"rule_based/{metric}_error", np.nan)
        if not np.isfinite(value):
            continue
        text = f"{label}: {value:.{digits}f} ± {error:.{digits}f}{unit}"
        if np.isfinite(base):
            text += f"; rule-based {base:.{digits}f} ± {base_error:.{digits}f}{unit}: {_compared(value, error, base, base_error)}"
        ceiling = metrics.get(f"truth_targets/{metric}", np.nan)
        lines.append(text + (f"; ceiling {ceiling:.{digits}f}{unit}" if np.isfinite(ceiling) else ""))
    return lines


def _compared(value: float, error: float, base: float, base_error: float) -> str:
    """Errors are added in quadrature although the events are the same: a cautious word."""
    if abs(value - base) < np.hypot(error, base_error):
        return "no difference beyond the uncertainty"
    return f"MLPF is {value / base:.2f} times as wide" if value > base else f"MLPF is narrower by {1 - value / base:.0%}"


def _results(evaluation: Evaluation) -> PageSection:
    header, rows = evaluation.result.table()
    tables = [PageTable(header, _named(rows), f"{evaluation.title}. ±: one standard deviation of the bootstrap over events.")]
    if evaluation.particles:
        header, rows = particle_table(evaluation.particles)
        caption = "Particles, by class of the element (PDG number). A target is a particle at the element that carries it."
        tables.append(PageTable(header, _named(rows), caption))
    figures = [page_figure(name, drawn, _CAPTIONS.get(name, name)) for name, drawn in evaluation.figures().items()]
    return PageSection("Results", tables=tables, figures=figures)


def _named(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows with the reconstructions' names as in the figures' legends."""
    return [(look(row[0]).label, *row[1:]) for row in rows]


def _events(bundle: Bundle, index: EventIndex, evaluation: Evaluation) -> PageSection:
    order = np.argsort(evaluation.met_residual, kind="stable")
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    residuals = {name: evaluation.met_residual[row] for name, row in chosen.items()}
    titles = [f"{name} event: missing momentum off by {residual:.1f} GeV" for name, residual in residuals.items()]
    drawn = show_shard_events(bundle, index, [int(evaluation.events[row]) for row in chosen.values()], titles=titles)
    figures = [
        page_figure(f"event_{name}", figure, f"The {title}; pfscale inspect shows it as --event {evaluation.events[row]}.", is_wide=True)
        for (name, row), figure, title in zip(chosen.items(), drawn, titles, strict=True)
    ]
    text = f"Of {len(order):,} events the best, the median and the worst, by the distance of the missing momentum from the true one."
    return PageSection("Events", paragraphs=[text], figures=figures)


def _training(record: RunRecord, *, has_evaluation: bool) -> list[PageSection]:
    """Learning curves and numbers of a training, and what it was trained on; other runs: what they have logged."""
    rows = [(what, form.format(record.metrics[name])) for name, (what, form) in _TRAINING_NUMBERS.items() if name in record.metrics]
    rows += [("run", f"{record.name} ({record.run_id})"), ("status", record.status)]
    if record.ended:
        rows.append(("took", f"{(record.ended - record.started) / 60:.1f} minutes"))
    rows += [
        (label, record.tags[tag])
        for tag, label in (("mlflow.source.git.commit", "commit"), ("pfscale.version", "pfscale"))
        if tag in record.tags
    ]
    curves = {"train": record.history("train_loss"), "validation": record.history("validation_loss")}
    figures: list[PageFigure] = []
    if curves["train"]:
        jets = record.history("mlpf/jet_response_iqr_over_median")
        if len(jets) > 1:
            curves |= {"jet_iqr": jets, "jet_iqr_error": record.history("mlpf/jet_response_iqr_over_median_error")}
        drawn = learning_curves(curves, references=references(dict(record.metrics)) if len(jets) > 1 else None)
        figures.append(page_figure("learning_curves", drawn, "Loss against optimizer step."))
    if not has_evaluation:
        figures += _logged(record)
    sections = [PageSection("Training" if curves["train"] else "Run", tables=[PageTable((), rows)], figures=figures)]
    if not curves["train"]:
        sections.append(PageSection("Metrics", tables=[_metric_table(record.metrics)]))
    manifest = record.read_json("manifest.json")
    if manifest is not None:
        sections.append(_data(manifest))
    return sections


def _logged(record: RunRecord) -> list[PageFigure]:
    found = []
    for path in record.artifacts("figures"):
        content = record.read(path) if path.endswith(".png") else None
        if content is not None and not path.endswith("learning_curves.png"):
            name = Path(path).stem
            found.append(logged_figure(name, content, _CAPTIONS.get(name, name)))
    return found


def _metric_table(metrics: Mapping[str, float]) -> PageTable:
    rows = []
    for name, value in sorted(metrics.items()):
        if not name.endswith("_error"):
            error = metrics.get(f"{name}_error")
            rows.append((name, f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")))
    return PageTable(("metric", "value"), rows)


def _data(manifest: Mapping[str, object]) -> PageSection:
    sources = manifest.get("sources") or []
    shown = ("detector", "process", "simulation", "num_events", "hash", "schema_version", "has_baseline")
    rows = [(name.replace("_", " "), str(manifest[name])) for name in shown if name in manifest]
    rows.append(("source files", f"{len(sources):,}"))  # type: ignore[arg-type]
    return PageSection("Data", tables=[PageTable((), rows)])


def _lineage(bundle: Bundle, chain: Sequence[Ancestor]) -> PageSection:
    card = bundle.card
    rows = [("this model", card["verb"], card["detector"], card["simulation"], card["data"], str(card["num_train_events"]))]
    rows += [(a.address, a.verb or "not in this registry", a.detector, a.simulation, a.data, a.events) for a in chain]
    text = f"{count_parameters(bundle.model):,} parameters."
    header = ("model", "made by", "detector", "simulation", "data", "training events")
    return PageSection("Lineage", paragraphs=[text], tables=[PageTable(header, rows)])


def _repeat(subject: _Subject, shards: str | Path | None, split: str) -> PageSection:
    record = subject.record
    assert record is not None
    config = record.read("config.yaml")
    verb = record.tags.get("pfscale.verb", "pretrain")
    lines = [f"pfscale {verb} config.yaml"] if config else []
    where = shards or record.params.get("data.shards", "SHARDS")
    if subject.version is not None:
        lines += [
            f"pfscale evaluate {subject.version.uri} {where} --split {split}",
            f"pfscale report {subject.version.uri} --output report.html",
        ]
    code = [PageCode("With the configuration below as config.yaml:", "\n".join(lines))]
    if config:
        code.append(PageCode("config.yaml", config.decode(), is_folded=True))
    return PageSection("Repeat it", code=code)
