"""The report of a model or a run: one HTML page with the question, the answer, and everything that is behind it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfscale import __version__
from pfscale.errors import ModelNotFoundError, OutputExistsError, PfscaleError
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.models.mlpf import count_parameters
from pfscale.physics.bootstrap import Estimate
from pfscale.physics.comparable import Difference, find_metric, paired_difference
from pfscale.physics.evaluation import MLPF, RULE_BASED, TRUTH_TARGETS, EvaluationResult, named_estimates
from pfscale.physics.particles import particle_table
from pfscale.report.figures import learning_curves
from pfscale.report.html import GENERATOR, Page, PageCode, PageFigure, PageSection, PageTable, logged_figure, page_figure, render_page
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
_VERDICTS = (  # what it is, metric, digits, unit
    ("Jet response, IQR / median", "jet_response_iqr_over_median", 4, ""),
    ("Missing momentum, σ", "met_resolution", 2, " GeV"),
)
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
    """Checks that `output` is new or an earlier report.

    Raises:
        OutputExistsError: it is something else.
    """
    if output.is_dir() or output.suffix != ".html":
        raise OutputExistsError("the report is one file whose name ends in .html", where=str(output), hint="--output report.html")
    if output.exists() and GENERATOR not in output.read_text(errors="replace")[:1000]:
        raise OutputExistsError("there is a page that is no report of ours", where=str(output), hint="choose another --output")


def _find(target: str, tracking_uri: str) -> _Subject:
    try:
        folder, address = locate_model(target, tracking_uri=tracking_uri)
    except ModelNotFoundError as no_model:
        try:
            record = find_run(tracking_uri, target)
        except ModelNotFoundError:
            hint = f"a model: {no_model.hint}; a run: its id or name in MLflow"
            raise ModelNotFoundError("no such model, and no such run", where=target, hint=hint) from None
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
    chain = ancestors(tracking_uri, bundle.card["parent"]) if bundle is not None else ()
    warnings: list[str] = []
    sections: list[PageSection] = []
    answers: list[str] = []
    evaluation, index, where = None, None, None
    if bundle is not None:
        where, why_not = _shards_of(subject, bundle, shards)
        warnings += [why_not] if why_not else []
    if bundle is not None and where is not None:
        address = subject.version.uri if subject.version else str(subject.folder)
        evaluation, index = evaluate(address, where, split=split, tracking_uri=tracking_uri, progress=progress), load_index(where)
        answers = verdicts(evaluation.result)
        warnings += evaluation.notes
        sections += [_results(evaluation), _events(bundle, index, evaluation)]
    if subject.record is not None:
        sections += _training(subject.record, has_evaluation=evaluation is not None)
    if bundle is not None:
        sections.append(_lineage(bundle, chain))
    sections.append(_repeat(subject, where, split))
    return Page(
        title=subject.name,
        question=_question(subject, bundle, evaluation, index, split),
        answers=answers,
        warnings=warnings,
        sections=sections,
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
    except PfscaleError as error:
        return None, f"no evaluation: the training data cannot be read at {found} ({error.what}); --shards names a data set"
    if index.manifest.hash != bundle.card["data"]:
        return None, f"no evaluation: the data at {found} are not those of the training any more (--shards names a data set)"
    return found, ""


def _question(subject: _Subject, bundle: Bundle | None, evaluation: Evaluation | None, index: EventIndex | None, split: str) -> str:
    if bundle is None:
        return f"What came of {subject.name}?"
    card = bundle.card
    size = f"{card['num_train_events']:,} events"
    made = f"made from {card['parent']} with {size}" if card.get("parent") else f"pre-trained on {size}"
    if evaluation is None or index is None:
        return f"What is {subject.name}, {made} of {card['detector']}?"
    manifest = index.manifest
    of_what = f"{manifest.detector} ({manifest.process or 'unnamed process'}, {manifest.simulation} simulation)"
    elsewhere = "" if manifest.hash == card["data"] else ", a data set that it was not trained on,"
    beside = [look(key).label for key in evaluation.result.metrics if key != MLPF]
    others = f"{', '.join(beside[:-1])} and {beside[-1]}"
    events = f"{evaluation.result.num_events:,} {split} events of {of_what}{elsewhere}"
    return f"How well does {subject.name}, {made}, reconstruct {events} beside {others}?"


def verdicts(result: EvaluationResult) -> list[str]:
    """Sentences that compare the model with the baseline and the ceiling; errors of differences are those on the same events."""
    numbers = {key: dict(named_estimates(metrics)) for key, metrics in result.metrics.items()}
    lines = []
    for label, name, digits, unit in _VERDICTS:
        mlpf = numbers[MLPF][name]
        if not np.isfinite(mlpf.value):
            continue
        text = f"{label}: {_rounded(mlpf, digits)}{unit}"
        if RULE_BASED in numbers:
            found = paired_difference(find_metric(name), numbers[RULE_BASED][name], mlpf)
            text += f"; rule-based {_rounded(found.a, digits)}{unit}: {_said(found, digits, unit)}"
        if TRUTH_TARGETS in numbers:
            text += f"; ceiling {_rounded(numbers[TRUTH_TARGETS][name], digits)}{unit}"
        lines.append(text)
    return lines


def _said(found: Difference, digits: int, unit: str) -> str:
    verdict = found.verdict()
    which = {"B better": "MLPF is better", "A better": "the baseline is better"}.get(verdict, verdict)
    return f"{which} (difference {_rounded(found.difference, digits)}{unit})"


def _rounded(number: Estimate, digits: int) -> str:
    return f"{number.value:.{digits}f} ± {number.error:.{digits}f}"


def _results(evaluation: Evaluation) -> PageSection:
    header, rows = evaluation.result.table()
    tables = [PageTable(header, _named(rows), f"{evaluation.title}. ±: one standard deviation of the bootstrap over events.")]
    if evaluation.particles:
        header, rows = particle_table(evaluation.particles)
        caption = "Particles, by class of the element (PDG number). A target is a particle at the element that carries it."
        tables.append(PageTable(header, _named(rows), caption))
    figures = [page_figure(name, drawn, _CAPTIONS.get(name, name)) for name, drawn in evaluation.figures.items()]
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
        jets = record.history("validation_jet_response_iqr_over_median")
        curves |= {"jet_iqr": jets, "jet_iqr_error": record.history("validation_jet_response_iqr_over_median_error")} if jets else {}
        drawn = learning_curves(curves, references=references(dict(record.metrics)) if jets else None)
        caption = "Loss of training and of validation events against optimizer step" + (
            ", and the jets of validation events." if jets else "."
        )
        figures.append(page_figure("learning_curves", drawn, caption))
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
            numbers = record.read(path.removesuffix(".png") + ".json") or b""
            found.append(logged_figure(name, content, _CAPTIONS.get(name, name), numbers=numbers.decode()))
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
    """The commands that give the same run, figures and page again."""
    record = subject.record
    config = record.read("config.yaml") if record is not None else None
    target = subject.version.uri if subject.version is not None else str(subject.folder or subject.name)
    commands = [["pfscale", record.tags.get("pfscale.verb", "pretrain"), "config.yaml"]] if record is not None and config else []
    if subject.folder is not None and shards is not None:
        commands.append(["pfscale", "evaluate", target, str(shards), "--split", split])
    where = ["--shards", str(shards), "--split", split] if shards is not None else []
    commands.append(["pfscale", "report", target, "--output", "report.html", *where])
    title = "With the configuration below as config.yaml:" if config else "In the folder of the tracking database, or with --tracking-uri:"
    code = [PageCode(title, "\n".join(map(shlex.join, commands)))]
    if config:
        code.append(PageCode("config.yaml", config.decode(), is_folded=True))
    return PageSection("Repeat it", code=code)
