"""`reconstruction.json` beside files of candidates, and whose a folder is: a rerun goes on in it, anything else is told how it differs.

The manifest is written last and in one step, so a folder with one is complete. Until then a hidden note says what is being made there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfscale.errors import OutputExistsError, PfscaleError
from pfscale.remote import base_name
from pfscale.shards.manifest import QuarantinedSource
from pfscale.shards.storage import Folder
from pfscale.training.candidate_files import CandidateFile
from pfscale.training.find_candidates import Plan

MANIFEST, NOTE = "reconstruction.json", ".reconstruction.json"
FILES_SHOWN, NAMES_SHOWN = 10, 3
ELSEWHERE = "choose another --output, or empty the folder"


class Reconstruction(BaseModel):
    """What was written: one file of candidates for every source that could be used, in the order of the sources.

    Attributes:
        output: path or URL of the folder; not in the manifest, because folders move.
        settings: model, options and versions that the files depend on.
        quarantined: sources that could not be used, and why.
        warnings: where model and sources were not made for each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str = Field("", exclude=True)
    pfscale: str
    model: str
    settings: dict[str, Any]
    num_events: int
    num_candidates: int
    sources: tuple[CandidateFile, ...]
    quarantined: tuple[QuarantinedSource, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Paths or URLs of the files of candidates."""
        return tuple(f"{self.output.rstrip('/')}/{source.file}" for source in self.sources)

    @property
    def unusable(self) -> dict[str, list[tuple[str, int]]]:
        """(source, entry) of the events that could not be used, by reason; they have no candidates."""
        by_reason: dict[str, list[tuple[str, int]]] = {}
        for source in self.sources:
            for entry, reason in source.unusable:
                by_reason.setdefault(reason, []).append((source.path, entry))
        return by_reason

    def summary(self) -> str:
        """Lines for the terminal."""
        mean = self.num_candidates / max(self.num_events, 1)
        events = f"{self.num_events} event{'s' * (self.num_events != 1)}"
        head = f"{self.model}: {self.num_candidates} candidates in {events} ({mean:.1f} per event)"
        files = self.files[:FILES_SHOWN]
        more = [f"and {len(self.files) - len(files)} more files there"] if len(self.files) > len(files) else []
        return "\n".join([head, *(f"warning: {text}" for text in self.warnings), *files, *more])


def files_of(paths: Sequence[str], plan: Plan) -> dict[str, str]:
    """Source -> name of its file of candidates.

    Raises:
        PfscaleError: two sources have the same name.
    """
    files = {path: plan.file_of(path) for path in paths}
    twice = [file for file, count in Counter(files.values()).items() if count > 1]
    if twice:
        where = " and ".join([path for path in paths if files[path] == twice[0]][:2])
        raise PfscaleError("two input files have the same name", where=where, hint="reconstruct them into two folders")
    return files


def require_ours(folder: Folder, plan: Plan, files: Mapping[str, str]) -> None:
    """Checks that what is in the folder is of an earlier call with the same model and options, and of these sources.

    Raises:
        OutputExistsError: it is something else; says what.
    """
    names = [name for name in folder.names() if not name.startswith(".")]
    held = _held(folder)
    if held is None:
        if names:
            what = f"the folder is not empty and holds no reconstruction ({_listed(names)})"
            raise OutputExistsError(what, where=folder.address, hint=ELSEWHERE)
        return
    asked = plan.settings
    if held.get("model_hash") != asked["model_hash"]:
        what = f"the folder holds candidates of the model {held.get('model', 'of another call')}, not of {asked['model']}"
        raise OutputExistsError(what, where=folder.address, hint=f"name that model again, or {ELSEWHERE}")
    for key in asked.keys() - {"model"}:
        if held.get(key) != asked[key]:
            what = f"the folder holds candidates made with {key.replace('_', ' ')} {held.get(key)}, not {asked[key]}"
            raise OutputExistsError(what, where=folder.address, hint=f"repeat the command as it was, or {ELSEWHERE}")
    others = [name for name in names if name != MANIFEST and name not in files.values()]
    if others:
        ours = [name for name in others if name.endswith(plan.suffix)]
        what = (
            f"the folder holds candidates of files that are not given ({_listed(ours)})" if ours else f"the folder holds {_listed(others)}"
        )
        raise OutputExistsError(what, where=folder.address, hint=f"name those files, too, or {ELSEWHERE}" if ours else ELSEWHERE)


def begin(folder: Folder, plan: Plan) -> None:
    """Marks the folder as one in which something is being made."""
    folder.write_text(NOTE, json.dumps(plan.settings))
    folder.remove(MANIFEST)


def finish(folder: Folder, result: Reconstruction) -> None:
    """Writes the manifest, then ends the making."""
    folder.write_text(MANIFEST, result.model_dump_json(indent=1))
    forget(folder)


def forget(folder: Folder) -> None:
    """Ends the making: what killed processes have left goes first, then the mark."""
    folder.clear_unfinished()
    folder.remove(NOTE)


def load_reconstruction(folder: Folder) -> Reconstruction | None:
    """The manifest of a complete folder; None where there is none that can be read."""
    try:
        found = Reconstruction.model_validate_json(folder.read_text(MANIFEST))
    except (FileNotFoundError, ValidationError):
        return None
    return found.model_copy(update={"output": folder.address})


def warnings_of(sources: Sequence[CandidateFile], card: Mapping[str, Any]) -> tuple[str, ...]:
    """What a user should know of sources that the model was not made for, each kind once."""
    from pfscale.training.lookup import mismatches

    kinds: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        kinds.setdefault((source.detector, source.simulation), []).append(base_name(source.path))
    notes: dict[str, None] = {}
    for (detector, simulation), names in kinds.items():
        what = names[0] if len(names) == 1 else f"{len(names)} files"
        notes |= dict.fromkeys(mismatches(card, detector=detector, simulation=simulation, what=what))
    if trusted := [base_name(source.path) for source in sources if source.on_trust]:
        what = trusted[0] if len(trusted) == 1 else f"{len(trusted)} files (first: {trusted[0]})"
        taken = next(source.detector for source in sources if source.on_trust)
        notes[f"nothing in {what} tells its detector: taken as {taken}, like the model; --detector says it"] = None
    return tuple(notes)


def _held(folder: Folder) -> dict[str, Any] | None:
    """The settings with which the folder was made, or is being made."""
    done = load_reconstruction(folder)
    if done is not None:
        return done.settings
    try:
        noted = json.loads(folder.read_text(NOTE))
    except (FileNotFoundError, ValueError):
        return None
    return noted if isinstance(noted, dict) else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
