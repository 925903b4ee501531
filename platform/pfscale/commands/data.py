"""Verbs on data: simulate, ingest, inspect."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pfscale.commands.terminal import GATES_FAILED, QUARANTINED, Detector, Output, Workers, out, progress_bar, tell_set_aside
from pfscale.errors import InputFileError
from pfscale.remote import without_secrets


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

    with progress_bar(f"simulate {process} in {detector}", total=num_events) as progress:
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
    with progress_bar(f"ingest {detector}") as progress:
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
    bad_events = {reason: [(event.source, event.entry) for event in events] for reason, events in manifest.bad_events.items()}
    tell_set_aside(((bad.path, bad.reason, bad.hint) for bad in manifest.quarantined), bad_events, events_are="left out")
    if unverified := manifest.unverified:
        number = f"{len(unverified)} file{'s' * (len(unverified) != 1)}"
        why = f"nothing there says so, and too few tracks carry particles to show it (first: {unverified[0].name})"
        print(f"taken on trust: detector {manifest.detector} of {number}: {why}", file=sys.stderr)
    return bool(manifest.quarantined or manifest.bad_events)


def _check(folder: str) -> bool:
    """Whether the data set fails no gate, after printing the gates."""
    from pfscale.report.data_checks import write_checks

    with progress_bar(f"check {without_secrets(folder)}") as progress:
        checks, written = write_checks(folder, progress=progress)
    out.print(checks.table())
    out.print(f"figures and numbers: {without_secrets(written)}", markup=False)
    return not checks.failed


def inspect(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="shards: a folder or URL")],
    event: Annotated[str | None, typer.Option(help="one event as a table: its number (0 first), FILE:ENTRY or uid:UID")] = None,
) -> None:
    """Counts, splits, classes, jets and sources of a folder of shards, or one event.

    FILE is the base name of a source file. The last line without --event names the first event in each way; a uid is in its event's header.
    """
    from pfscale.shards.inspect import inspect as describe

    out.print(describe(folder, event))
