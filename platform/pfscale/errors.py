"""Every mistake a user can make, as an exception that says where it is and what to do next.

The command line prints these without a traceback and exits with `exit_code`; library users catch `PfscaleError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PfscaleError(Exception):
    """A mistake outside the program: what happened, where, and what to do about it.

    Args:
        what: one sentence, in the user's words.
        where: file, file:line or name that it concerns.
        hint: the next thing to do, ideally a command.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(what, where, hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders in Ray; the default would call __init__ with the positional args only.
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(cls: type[PfscaleError], what: str, where: str | None, hint: str | None) -> PfscaleError:
    error = cls.__new__(cls)
    PfscaleError.__init__(error, what, where=where, hint=hint)
    return error


class ConfigError(PfscaleError):
    """One or more mistakes in a config file or its overrides, all reported at once."""


class InputFileError(PfscaleError):
    """An input file that is missing, unreadable, of the wrong kind, or lacks what is needed."""


class InputTableError(PfscaleError):
    """A table of elements that lacks columns, or holds values that no element has."""


class UnknownNameError(PfscaleError):
    """A name that is in none of our tables: detector, process, task, mode, ..."""


class NotEnoughDataError(PfscaleError):
    """More events asked for than there are."""


class OutputExistsError(PfscaleError):
    """The output folder holds something that is not ours to overwrite."""


class ShardError(PfscaleError):
    """Shards that are missing, torn, of another schema version, or do not fit what is asked of them."""


class ResourceError(PfscaleError):
    """The machine or cluster cannot run what was asked: CPUs, memory, disk, a missing extra."""


class InProgressError(ResourceError):
    """The run is in progress in another process."""


class UnreachableError(ResourceError):
    """A server does not answer, now; nothing is known of what was asked of it."""


class TrackingError(PfscaleError):
    """The MLflow server or store cannot be reached or used."""


class ModelNotFoundError(PfscaleError):
    """No such model, version or alias in the registry."""


class NotBetterError(PfscaleError):
    """A candidate that is not better than the champion by more than the uncertainty, or cannot be shown to be."""


class TrainingError(PfscaleError):
    """A training that stopped itself: an event that no model can take, a checkpoint that does not fit, or one of the next."""


class DivergedError(TrainingError):
    """A loss or gradient that is not finite, or a loss that jumps: with these settings, on these data, it would come again."""


class StoppedError(PfscaleError):
    """A training that was asked to end (SIGTERM), and did after a checkpoint."""

    exit_code = 143  # what a shell says of a process that SIGTERM ended


class InterruptedTrainingError(StoppedError):
    """The same by Ctrl-C."""

    exit_code = 130


def closest(name: str, allowed: Iterable[str], *, count: int = 3) -> list[str]:
    """The names in `allowed` that look most like `name`, best first (possibly none)."""
    return difflib.get_close_matches(name, list(allowed), n=count, cutoff=0.5)


def unknown_name(kind: str, name: str, allowed: Sequence[str], *, where: str | None = None) -> UnknownNameError:
    """The error for a `name` that is no known `kind`: lists what is allowed and the closest match."""
    near = closest(name, allowed, count=1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    return UnknownNameError(f"unknown {kind} '{name}'", where=where, hint=f"{guess}known: {', '.join(sorted(allowed))}")
