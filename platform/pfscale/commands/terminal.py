"""What all verbs share: options, exit codes, the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pfscale.remote import local_folder

if TYPE_CHECKING:
    from pfscale.training.run import Run

# Exit codes beside 0 and PfscaleError.exit_code (2): done, but files or events were set aside; data that do not pass their gates
INTERRUPTED, UNEXPECTED, QUARANTINED, GATES_FAILED = 130, 1, 3, 4
DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)  # tables in logs and pipes are not squeezed

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="config values, key.path=value")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", parser=local_folder, help="folder to write")]
Detector = Annotated[str, typer.Option(help="clic or cld; its table names collections, field and calorimeters")]
Workers = Annotated[int, typer.Option(min=0, help="parallel processes; 0: one for each CPU")]
EventShards = Annotated[str | None, typer.Option("--shards", metavar="SHARDS", help="run both on these; default: by their model cards")]
Sigmas = Annotated[float, typer.Option(help="standard deviations of the difference that count as better")]
TrackingUri = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow tracking and registry address")]


@contextmanager
def progress_bar(label: str, *, total: int | None = None) -> Iterator[Callable[[int], None] | None]:
    """What to call with every number of events done; None where nobody watches."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)


def say_progress() -> None:
    """Lets trainings tell on stderr how far they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("pfscale")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def tell_set_aside(
    files: Iterable[tuple[str, str, str | None]], events: Mapping[str, Sequence[tuple[str, int]]], *, events_are: str
) -> None:
    """Tells on stderr which files were set aside, (name, reason, hint) each, and which events: reason -> (file, entry)."""
    for name, reason, hint in files:
        print(f"set aside: {name}: {reason}" + (f"\n  -> {hint}" if hint else ""), file=sys.stderr)
    for reason, places in events.items():
        file, entry = places[0]
        number = f"{len(places)} event{'s' * (len(places) != 1)}"
        print(f"{events_are}: {number}: {reason} (first: {file}, entry {entry})", file=sys.stderr)


def print_run(finished: Run) -> None:
    """Prints what came of a training."""
    out.print(finished.summary(), markup=False)
