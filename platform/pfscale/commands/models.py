"""Verbs on trained models: evaluate, report, reconstruct, export; and the registry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from pfscale.commands.terminal import (
    DEFAULT_TRACKING_URI,
    QUARANTINED,
    EventShards,
    Sigmas,
    TrackingUri,
    Workers,
    out,
    progress_bar,
    tell_set_aside,
)
from pfscale.remote import local_folder

models_app = typer.Typer(no_args_is_help=True, help="The model registry.")


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/name@alias, name/3 or a model folder")],
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="folder of shards")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", parser=local_folder, help="folder for figures and numbers")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    seed_model: Annotated[
        list[str] | None, typer.Option(help="model of the same config trained with another seed, for the band over seeds; repeatable")
    ] = None,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """Physics metrics of a registered model: jets, missing momentum, particles, against truth targets and rule-based candidates.

    A registered model's figures and numbers go to MLflow as well, into a run below the one that trained it.
    """
    from pfscale.training.evaluate import evaluate as measure

    with progress_bar(f"evaluate {model}") as progress:
        result = measure(
            model, shards, split=split, output=output, other_seeds=seed_model or (), tracking_uri=tracking_uri, progress=progress
        )
    out.print(result.table())


def report(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="models:/name@alias, name/3, a model folder, a run's id or name")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", parser=local_folder, help="HTML file to write")] = Path(
        "report.html"
    ),
    shards: Annotated[
        Path | None, typer.Option(metavar="DIR", help="shards to evaluate the model on; default: those it was trained on")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """One self-contained HTML page on a model or run: results, events, training, data, lineage, config, and how to repeat it."""
    from pfscale.training.report import report as write_report

    with progress_bar(f"report on {target}") as progress:
        path = write_report(target, output, shards=shards, split=split, tracking_uri=tracking_uri, progress=progress)
    out.print(f"report: {path}", markup=False)


def reconstruct(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/name@alias, name/3 or a model folder")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="ROOT files, globs or URLs; truth is not read")],
    output: Annotated[str, typer.Option("--output", "-o", help="folder or URL to write")],
    file_format: Annotated[str, typer.Option("--format", help="parquet, or root: EDM4hep-style ReconstructedParticles")] = "parquet",
    latents: Annotated[bool, typer.Option("--latents", help="also the latent vector of every element")] = False,
    head: Annotated[
        list[str] | None, typer.Option(help="downstream model of this model: jets with flavour or energy, missing momentum; repeatable")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="detector of the files; default: what they say, else the model's")] = None,
    accept_mismatch: Annotated[
        bool, typer.Option("--accept-mismatch", help="also files of another detector than the model's, which are refused otherwise")
    ] = False,
    workers: Workers = 0,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first bad file or event instead of setting it aside")] = False,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """Particle-flow candidates for any number of ROOT files from a registered model, one file for each; repeated, it goes on.

    Exit code 3 where files or events were set aside.
    """
    from pfscale.training.reconstruct import reconstruct as find_candidates

    with progress_bar(f"reconstruct with {model}") as progress:
        result = find_candidates(
            model,
            files,
            output=output,
            detector=detector,
            accept_mismatch=accept_mismatch,
            file_format=file_format,
            latents=latents,
            heads=head or (),
            num_workers=workers,
            strict=strict,
            tracking_uri=tracking_uri,
            progress=progress,
        )
    out.print(result.summary(), markup=False)
    files_aside = ((bad.path, bad.reason, bad.hint) for bad in result.quarantined)
    tell_set_aside(files_aside, result.unusable, events_are="without candidates")
    if result.quarantined or result.unusable:
        raise typer.Exit(QUARANTINED)


def latents(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/name@alias, name/3 or a model folder: gives the candidates")],
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="folder of shards of the model's detector")],
    output: Annotated[str, typer.Option("--output", "-o", help="folder to write; default: where downstream trainings look")] = "",
    encoder: Annotated[str, typer.Option(help="whose latents: same, random:SEED (a control), or another model")] = "same",
    layer: Annotated[int, typer.Option(help="after how many blocks; -1: after the last")] = -1,
    part: Annotated[str, typer.Option(help="encoder, identification, regression or concatenation")] = "encoder",
    storage: Annotated[str, typer.Option(help="folder of runs, where there is no --output")] = "runs",
    workers: Workers = 0,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """Candidates, jets and latents of all events, once, for any number of downstream trainings; repeated, it goes on."""
    from pfscale.config import load_config
    from pfscale.models.mlpf import LatentConfig
    from pfscale.training.latents import cache_latents, plan_latents

    choice = load_config(LatentConfig, None, [f"layer={layer}", f"part={part}"])
    plan = plan_latents(model, shards, encoder=encoder, latents=choice, tracking_uri=tracking_uri)
    folder = output or str(plan.folder(storage))
    with progress_bar(f"latents of {model}", total=plan.manifest.num_events) as progress:
        found = cache_latents(plan, folder, num_workers=workers, progress=progress)
    counts = f"{found.num_candidates} candidates with {found.width} latents, {found.num_jets} jets"
    out.print(f"{found.num_events} events: {counts}: {folder}", markup=False)


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/name@alias, name/3 or a model folder")],
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="folder of shards to compare on")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", parser=local_folder, help="file to write")] = Path("model.onnx"),
    num_events: Annotated[int, typer.Option(help="events to compare on, 100 or more")] = 200,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """The model as an ONNX file for onnxruntime, compared with the model itself; added to the registry where the model is from there."""
    from pfscale.training.export import export_model

    result = export_model(model, shards, output=output, num_events=num_events, tracking_uri=tracking_uri)
    out.print(result.summary(), markup=False)


@models_app.command("list")
def models_list(tracking_uri: TrackingUri = DEFAULT_TRACKING_URI) -> None:
    """Every version of every registered model, with its aliases and the metrics of note."""
    from rich.table import Table

    from pfscale.tracking.registry import list_models

    tags = ("verb", "parent", "events", "validation_loss", "jet_response_iqr_over_median", "met_resolution", "headline", "simulation")
    headers = ("verb", "parent", "events", "validation loss", "jet IQR/median", "MET σ [GeV]", "of the head", "simulation")
    versions = list_models(tracking_uri)
    names = [version.uri.removeprefix("models:/") for version in versions]
    table = Table(
        caption="figures: of validation events, at the end of the training; models show says how many; of heads: of the test split"
    )
    table.add_column("model", min_width=max(map(len, names), default=0), no_wrap=True)  # what the list is for is never cut
    for header in ("alias", "registered", *headers):
        table.add_column(header, overflow="fold")
    for name, version in zip(names, versions, strict=True):
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(version.created))
        table.add_row(name, ", ".join(version.aliases), made, *(version.tags.get(key, "").removeprefix("models:/") for key in tags))
    out.print(table if table.row_count else "no model is registered; pfscale pretrain registers one")


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name@alias or name/3")], tracking_uri: TrackingUri = DEFAULT_TRACKING_URI
) -> None:
    """What one version is: its model card, metrics, lineage and the champions of its model."""
    from pfscale.tracking.describe import describe

    out.print(describe(tracking_uri, name), markup=False)


@models_app.command("compare")
def models_compare(
    a: Annotated[str, typer.Argument(metavar="A", help="name@alias, name/3 or a model folder")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same")],
    shards: EventShards = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    sigmas: Sigmas = 1.0,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """Model B against model A, metric by metric, with the error of each difference."""
    from pfscale.training.comparison import compare

    with progress_bar(f"compare {a} and {b}") as progress:
        comparison = compare(a, b, shards=shards, split=split, tracking_uri=tracking_uri, progress=progress)
    out.print(comparison.table(sigmas))


@models_app.command("promote")
def models_promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name@candidate or name/3")],
    shards: EventShards = None,
    split: Annotated[str, typer.Option(help="train, validation or test; the test split is for the winner's figures")] = "validation",
    metric: Annotated[str, typer.Option(help="what it must be better by; models compare lists them")] = "jet_response_iqr_over_median",
    sigmas: Sigmas = 1.0,
    force: Annotated[bool, typer.Option("--force", help="promote it in any case; needs --reason")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="kept with the version")] = "",
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """Makes a version the @champion of its model, if it is better than the present one by more than the uncertainty."""
    from pfscale.training.promotion import promote

    with progress_bar(f"promote {name}") as progress:
        promotion = promote(
            name,
            shards=shards,
            split=split,
            metric=metric,
            sigmas=sigmas,
            force=force,
            reason=reason,
            tracking_uri=tracking_uri,
            progress=progress,
        )
    out.print(promotion.summary(), markup=False)
