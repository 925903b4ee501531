"""The `pfscale` command: every verb is a few lines over one public function; its mistakes are told in one message, without a traceback.

Nothing heavy is imported before a verb runs, so `pfscale --help` is instant.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pfscale.config import Config, load_config
from pfscale.errors import InputFileError, PfscaleError, unknown_name
from pfscale.remote import local_folder, without_secrets

if TYPE_CHECKING:
    from pfscale.training.run import Run

# Exit codes beside 0 and PfscaleError.exit_code (2): done, but files or events were set aside; data that do not pass their gates
INTERRUPTED, UNEXPECTED, QUARANTINED, GATES_FAILED = 130, 1, 3, 4
DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

app = typer.Typer(
    name="pfscale",
    help="Machine-learned particle flow at scale: ROOT files in; pre-trained, transferred and registered models out.",
    epilog="Add --debug to any command for the full traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
models_app = typer.Typer(no_args_is_help=True, help="The model registry.")
config_app = typer.Typer(no_args_is_help=True, help="Configs, resolved and checked.")
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)  # tables in logs and pipes are not squeezed

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="config values, key.path=value")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", parser=local_folder, help="folder to write")]
Detector = Annotated[str, typer.Option(help="clic or cld; its table names collections, field and calorimeters")]
Workers = Annotated[int, typer.Option(min=0, help="parallel processes; 0: one for each CPU")]
EventShards = Annotated[str | None, typer.Option("--shards", metavar="SHARDS", help="run both on these; default: by their model cards")]
Sigmas = Annotated[float, typer.Option(help="standard deviations of the difference that count as better")]
TrackingUri = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow tracking and registry address")]


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """The exit code of one command.

    0: done. 1: anything unforeseen, or a submitted job that failed. 2: a mistake of the user's, files that cannot be used and machines that
    cannot do it included. 3: ingested, but files or events were set aside. 4: data that fail a gate, whatever was set aside. 130: Ctrl-C.
    """
    for key, value in {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        os.environ.setdefault(key, value)
    debug = "--debug" in argv
    try:
        app(args=[arg for arg in argv if arg != "--debug"], prog_name="pfscale")
    except SystemExit as done:
        if done.code == INTERRUPTED:  # Typer's word for KeyboardInterrupt
            return _interrupted()
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        if isinstance(error, SystemError) and isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            return _interrupted()  # what compiled code makes of a Ctrl-C
        return _report(error, debug=debug)
    return 0


def _interrupted() -> int:
    print("interrupted; the same command goes on from what is complete", file=sys.stderr)
    return INTERRUPTED


def _report(error: Exception, *, debug: bool) -> int:
    """Prints what a user needs of `error`; returns the exit code. A full traceback goes to a file, or to the terminal with --debug."""
    ours = find_user_error(error)
    text = "".join(traceback.format_exception(error))
    if debug:
        print(text, file=sys.stderr)
    if ours is not None:
        print(f"pfscale: {ours}", file=sys.stderr)
        return ours.exit_code
    lines = str(error).strip().splitlines()
    print(f"pfscale: unexpected {type(error).__name__}: {lines[-1] if lines else ''}", file=sys.stderr)
    if not debug:
        descriptor, path = tempfile.mkstemp(prefix="pfscale-error-", suffix=".log")
        with open(descriptor, "w") as file:
            file.write(text)
        print(f"  -> full traceback: {path} (or repeat with --debug)", file=sys.stderr)
    return UNEXPECTED


def find_user_error(error: BaseException) -> PfscaleError | None:
    """The user's mistake at the bottom of `error`, None where there is none.

    Ray hands errors of tasks and workers over in wrappers of several kinds (RayTaskError, UserCodeException, WorkerGroupError,
    ControllerError), one of which even poses as a PfscaleError whose text is a traceback: so causes are looked at first.
    """
    seen: set[int] = set()

    def search(candidate: BaseException) -> PfscaleError | None:
        if id(candidate) in seen:
            return None
        seen.add(id(candidate))
        found = next((ours for inner in _causes(candidate) if (ours := search(inner)) is not None), None)
        return found or (candidate if isinstance(candidate, PfscaleError) else None)

    # The error itself wins over what it was made from (`raise ConfigError(...) from ...`), unless it is one of Ray's wrappers.
    return error if isinstance(error, PfscaleError) and not hasattr(error, "cause") else search(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    failures = getattr(error, "worker_failures", None)
    inner: list[Any] = [getattr(error, "cause", None), *(failures.values() if isinstance(failures, dict) else ())]
    inner += [getattr(error, "controller_failure", None), *getattr(error, "exceptions", ()), error.__cause__, error.__context__]
    return (item for item in inner if isinstance(item, BaseException))


@contextmanager
def _progress(label: str, *, total: int | None = None) -> Iterator[Callable[[int], None] | None]:
    """What to call with every number of events done; None where nobody watches."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)


@app.command()
def demo(output: Output = Path("pfscale-demo")) -> None:
    """The whole chain on two CPU cores in minutes: simulate, ingest, pre-train, transfer, register, reconstruct."""
    from pfscale.demo import run_demo

    run_demo(output)


@app.command()
def simulate(
    output: Output,
    detector: Detector = "clic",
    process: Annotated[str, typer.Option(help="ttbar, qq, WW or ZH")] = "ttbar",
    num_events: Annotated[int, typer.Option(min=1, help="events to generate")] = 1000,
    seed: Annotated[int, typer.Option(help="same seed, same events")] = 1,
    workers: Workers = 0,
    events_per_file: Annotated[int, typer.Option(min=1, help="events in each file")] = 500,
    higgs_decay: Annotated[str | None, typer.Option(help="ZH: decay of the Higgs boson")] = None,
    z_decay: Annotated[str | None, typer.Option(help="ZH: decay of the Z boson")] = None,
    file_format: Annotated[str, typer.Option("--format", help="ttree or rntuple")] = "ttree",
) -> None:
    """EDM4hep ROOT files from the built-in event source (Pythia 8 and parametrised detectors)."""
    from pfscale.simulation.simulate import simulate as make_events

    with _progress(f"simulate {process} in {detector}", total=num_events) as progress:
        paths = make_events(
            detector=detector,
            process=process,
            num_events=num_events,
            seed=seed,
            output=output,
            num_workers=workers,
            events_per_file=events_per_file,
            higgs_decay=higgs_decay,
            z_decay=z_decay,
            file_format=file_format,
            progress=progress,
        )
    out.print(f"{num_events} event{'s' * (num_events != 1)} in {len(paths)} file{'s' * (len(paths) != 1)}: {output}", markup=False)


@app.command()
def ingest(
    output: Annotated[str, typer.Option("--output", "-o", help="folder or URL to write")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="ROOT files, globs, URLs or lists; none: --check only")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="clic, cld or idea; its table names collections, field and calorimeters")] = None,
    process: Annotated[str, typer.Option(help="physics process, where the files do not say; others are set aside")] = "",
    simulation: Annotated[
        str | None, typer.Option(help="builtin, geant4 or fast, where the files do not say; others are set aside")
    ] = None,
    workers: Workers = 0,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first bad file or event instead of setting it aside")] = False,
    check: Annotated[bool, typer.Option("--check", help="then run the physics gates; without FILE: on the data set in --output")] = False,
) -> None:
    """ROOT files to Parquet shards and a manifest.

    Exit code 3 where files or events were set aside, 4 where the data fail a gate of --check (4 wins over 3).

    The figures of --check are in checks/ beside the shards.
    """
    if not files:
        given = {"--detector": detector, "--process": process, "--simulation": simulation, "--workers": workers, "--strict": strict}
        _require_check_alone(check, [name for name, value in given.items() if value], output)
    quarantined = _make_shards(files, output, detector, process, simulation, workers, strict) if files else False
    if check and not _check(output):
        raise typer.Exit(GATES_FAILED)
    if quarantined:
        raise typer.Exit(QUARANTINED)


def _require_check_alone(check: bool, given: list[str], output: str) -> None:
    """Checks a command without FILE: it looks at what is in `output`, so options (`given`) that say how files are read would be ignored.

    Raises:
        InputFileError: there is nothing to do, or such an option was given.
    """
    if not check:
        raise InputFileError("no FILE to read", hint="name ROOT files, or --check to check the data set in --output")
    if given:
        which = " and ".join([", ".join(given[:-1]), given[-1]] if len(given) > 1 else given)
        raise InputFileError(
            f"without FILE, --check looks at the data set in {without_secrets(output)} as it is, and {which} would be ignored",
            hint=f"leave {'it' if len(given) == 1 else 'them'} out, or name the FILEs to read",
        )


def _make_shards(
    files: list[str], output: str, detector: str | None, process: str, simulation: str | None, workers: int, strict: bool
) -> bool:
    """Whether files or events were set aside, after telling of them and of what was made."""
    from pfscale.shards.ingest import ingest as make_shards

    if detector is None:
        from pfscale.edm4hep.detectors import DETECTORS

        raise InputFileError("--detector is missing: files do not say whose they are", hint=f"one of {', '.join(DETECTORS)}")
    with _progress(f"ingest {detector}") as progress:
        manifest = make_shards(
            files,
            detector=detector,
            output=output,
            process=process,
            simulation=simulation,
            num_workers=workers,
            strict=strict,
            progress=progress,
        )
    out.print(f"{manifest.num_events} event{'s' * (manifest.num_events != 1)}: {without_secrets(output)}", markup=False)
    for bad in manifest.quarantined:
        print(f"set aside: {bad.path}: {bad.reason}" + (f"\n  -> {bad.hint}" if bad.hint else ""), file=sys.stderr)
    for reason, events in manifest.bad_events.items():
        first = f"{events[0].source}, entry {events[0].entry}"
        print(f"left out: {len(events)} event{'s' * (len(events) != 1)}: {reason} (first: {first})", file=sys.stderr)
    if unverified := manifest.unverified:
        number = f"{len(unverified)} file{'s' * (len(unverified) != 1)}"
        why = f"nothing there says so, and too few tracks carry particles to show it (first: {unverified[0].name})"
        print(f"taken on trust: detector {manifest.detector} of {number}: {why}", file=sys.stderr)
    return bool(manifest.quarantined or manifest.bad_events)


def _check(folder: str) -> bool:
    """Whether the data set fails no gate, after printing the gates."""
    from pfscale.report.data_checks import write_checks

    with _progress(f"check {without_secrets(folder)}") as progress:
        checks, written = write_checks(folder, progress=progress)
    out.print(checks.table())
    out.print(f"figures and numbers: {without_secrets(written)}", markup=False)
    return not checks.failed


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="shards: a folder or URL")],
    event: Annotated[str | None, typer.Option(help="one event as a table: its number (0 first), FILE:ENTRY or uid:UID")] = None,
) -> None:
    """Counts, splits, classes, jets and sources of a folder of shards, or one event.

    FILE is the base name of a source file. The last line without --event names the first event in each way; a uid is in its event's header.
    """
    from pfscale.shards.inspect import inspect as describe

    out.print(describe(folder, event))


@app.command()
def pretrain(config: ConfigPath, overrides: Overrides = None) -> None:
    """Pre-trains a particle-flow model and registers it; repeated, it resumes."""
    from pfscale.training import pretrain as stage

    _say_progress()
    _print_run(stage.pretrain(load_config(stage.PretrainConfig, config, overrides or ())))


@app.command()
def finetune(config: ConfigPath, overrides: Overrides = None) -> None:
    """Transfers a registered model to another detector: zero-shot, heads, full or scratch."""
    from pfscale.training import finetune as stage

    _say_progress()
    _print_run(stage.finetune(load_config(stage.FinetuneConfig, config, overrides or ())))


@app.command()
def downstream(config: ConfigPath, overrides: Overrides = None) -> None:
    """Trains a downstream head on a registered model's latents."""
    from pfscale.training import downstream as stage

    _print_run(stage.downstream(load_config(stage.DownstreamConfig, config, overrides or ())))


def _print_run(finished: Run) -> None:
    out.print(finished.summary(), markup=False)


def _say_progress() -> None:
    """Lets trainings tell on stderr how far they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("pfscale")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


@app.command()
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

    with _progress(f"evaluate {model}") as progress:
        result = measure(
            model, shards, split=split, output=output, other_seeds=seed_model or (), tracking_uri=tracking_uri, progress=progress
        )
    out.print(result.table())


@app.command()
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

    with _progress(f"report on {target}") as progress:
        path = write_report(target, output, shards=shards, split=split, tracking_uri=tracking_uri, progress=progress)
    out.print(f"report: {path}", markup=False)


@app.command()
def reconstruct(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/name@alias, name/3 or a model folder")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="ROOT files, globs or URLs; truth is not read")],
    output: Annotated[str, typer.Option("--output", "-o", help="folder or URL to write")],
    file_format: Annotated[str, typer.Option("--format", help="parquet, or root: EDM4hep-style ReconstructedParticles")] = "parquet",
    latents: Annotated[bool, typer.Option("--latents", help="also the latent vector of every element")] = False,
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

    with _progress(f"reconstruct with {model}") as progress:
        result = find_candidates(
            model,
            files,
            output=output,
            detector=detector,
            accept_mismatch=accept_mismatch,
            file_format=file_format,
            latents=latents,
            num_workers=workers,
            strict=strict,
            tracking_uri=tracking_uri,
            progress=progress,
        )
    out.print(result.summary(), markup=False)
    for bad in result.quarantined:
        print(f"set aside: {bad.path}: {bad.reason}" + (f"\n  -> {bad.hint}" if bad.hint else ""), file=sys.stderr)
    for reason, events in result.unusable.items():
        first = f"{events[0][0]}, entry {events[0][1]}"
        print(f"without candidates: {len(events)} event{'s' * (len(events) != 1)}: {reason} (first: {first})", file=sys.stderr)
    if result.quarantined or result.unusable:
        raise typer.Exit(QUARANTINED)


@app.command()
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

    tags = ("verb", "parent", "events", "validation_loss", "jet_response_iqr_over_median", "met_resolution", "simulation")
    headers = ("verb", "parent", "events", "validation loss", "jet IQR/median", "MET σ [GeV]", "simulation")
    table = Table("model", "alias", "registered", *headers)
    for version in list_models(tracking_uri):
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(version.created))
        table.add_row(version.uri, ", ".join(version.aliases), made, *(version.tags.get(key, "") for key in tags))
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

    with _progress(f"compare {a} and {b}") as progress:
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

    with _progress(f"promote {name}") as progress:
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


@config_app.command("show")
def config_show(verb: str, config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]")] = None, overrides: Overrides = None) -> None:
    """The resolved config of VERB as YAML, with what every key means (without CONFIG: the defaults)."""
    out.print("\n".join(_annotated(_resolved(verb, config, overrides))), markup=False)


@config_app.command("check")
def config_check(verb: str, config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]")] = None, overrides: Overrides = None) -> None:
    """Says whether the config of VERB is right, with all mistakes at once."""
    _resolved(verb, config, overrides)
    out.print(f"no mistakes in {config or f'the defaults of {verb}'}")


def _resolved(verb: str, path: Path | None, overrides: list[str] | None) -> Config:
    """The config of a learning verb; the first argument after the verb may already be an override."""
    if path is not None and "=" in path.name and not path.exists():
        return load_config(_config_class(verb), None, [str(path), *(overrides or ())])
    return load_config(_config_class(verb), path, overrides or ())


def _config_class(verb: str) -> type[Config]:
    if verb == "pretrain":
        from pfscale.training.pretrain import PretrainConfig

        return PretrainConfig
    if verb == "finetune":
        from pfscale.training.finetune import FinetuneConfig

        return FinetuneConfig
    if verb == "downstream":
        from pfscale.training.downstream import DownstreamConfig

        return DownstreamConfig
    raise unknown_name("verb with a config", verb, ("pretrain", "finetune", "downstream"))


def _annotated(config: Config, indent: str = "") -> Iterator[str]:
    """Lines of YAML that `load_config` reads back, each with its field's description."""
    import yaml

    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        comment = f"  # {info.description}" if info.description else ""
        if isinstance(value, Config):
            yield f"{indent}{name}:{comment}"
            yield from _annotated(value, indent + "  ")
            continue
        plain = config.model_dump(mode="json", include={name})[name]
        yield f"{indent}{name}: {yaml.safe_dump(plain, default_flow_style=True, width=1000).splitlines()[0]}{comment}"


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help="pretrain, finetune, ingest ...: a file in jobs/")],
    arguments: Annotated[list[str], typer.Argument(metavar="ARGUMENT...", help="what the verb of that name takes")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the line only (before JOB)")] = False,
) -> None:
    """Prints and runs the `ray job submit` line of a job; run it in the folder that holds jobs/."""
    import shlex
    import subprocess

    if not Path("jobs", f"{job}.py").is_file():
        known = sorted(path.stem for path in Path("jobs").glob("*.py"))
        if not known:
            raise InputFileError("there is no jobs folder here", where=str(Path.cwd()), hint="change to the checkout's top folder")
        raise unknown_name("job", job, known)
    line = ["ray", "job", "submit", "--runtime-env", "jobs/runtime_env.yaml", "--", "python", f"jobs/{job}.py", *arguments]
    print(shlex.join(line), flush=True)
    if not dry_run:
        raise typer.Exit(subprocess.run(line, check=False).returncode)
