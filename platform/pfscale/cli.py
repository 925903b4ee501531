"""The `pfscale` command: every verb is a few lines over one public function; its mistakes are told in one message, without a traceback.

Nothing heavy is imported before a verb runs, so `pfscale --help` is instant.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from pfscale.commands import data, models, studies, trainings
from pfscale.commands.doctor import doctor
from pfscale.commands.submit import submit
from pfscale.commands.terminal import INTERRUPTED, UNEXPECTED, Output
from pfscale.errors import PfscaleError

app = typer.Typer(
    name="pfscale",
    help="Machine-learned particle flow at scale: ROOT files in; pre-trained, transferred and registered models out.",
    epilog="Add --debug to any command for the full traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


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


@app.command()
def demo(output: Output = Path("pfscale-demo")) -> None:
    """The whole chain on two CPU cores in minutes: simulate, ingest, pre-train, transfer, register, reconstruct."""
    from pfscale.demo import run_demo

    run_demo(output)


for verb in (
    *(data.simulate, data.ingest, data.inspect),
    *(trainings.pretrain, trainings.finetune, trainings.downstream, studies.sweep, studies.scaling, studies.plan),
    *(models.latents, models.evaluate, models.report, models.reconstruct, models.export),
    doctor,
):
    app.command()(verb)
app.add_typer(models.models_app, name="models")
app.add_typer(trainings.config_app, name="config")
app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})(submit)
