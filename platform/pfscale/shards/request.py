"""What an ingest was asked for, noted in its folder from the start: a rerun is known by it, and anything else is told how it differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pfscale.errors import OutputExistsError
from pfscale.remote import base_name
from pfscale.shards.events import EXTRACTION_VERSION
from pfscale.shards.manifest import MANIFEST_FILE, REQUEST_FILE, Manifest, QuarantinedSource, content_hash, load_manifest, torn_shards
from pfscale.shards.schema import SCHEMA_VERSION
from pfscale.shards.sources import Source
from pfscale.shards.storage import Folder

NAMES_SHOWN = 3
_NOTHING_NOTED: dict[str, Any] = {"identity": "", "extraction_version": 0, "settings": {}, "digests": {}, "bad": [], "sources": []}


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        settings: what the shards depend on besides the sources.
        digests: contents of the usable sources by name (several files may have the same).
        bad: names of the sources that cannot be used.
    """

    settings: dict[str, Any]
    digests: dict[str, list[str]] = field(default_factory=dict)
    bad: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Names the request: equal for equal contents and settings, wherever the files are."""
        return content_hash("request", SCHEMA_VERSION, EXTRACTION_VERSION, self.settings, self.digests, sorted(self.bad))


def make_request(examined: Sequence[Source | QuarantinedSource], **settings: Any) -> Request:
    """The request for these sources with these settings."""
    digests: dict[str, list[str]] = {}
    for source in examined:
        if isinstance(source, Source):
            digests.setdefault(source.name, []).append(source.digest)
    bad = [base_name(source.path) for source in examined if isinstance(source, QuarantinedSource)]
    return Request(settings, {name: sorted(held) for name, held in digests.items()}, tuple(sorted(bad)))


def find_finished(folder: Folder, request: Request) -> Manifest | None:
    """The manifest if the folder already holds all of what is asked for; None if it can be made or finished there.

    Raises:
        OutputExistsError: the folder holds something else, or the same of files that have changed since; says what differs.
        ShardError: its manifest cannot be read.
    """
    if folder.exists(MANIFEST_FILE):
        manifest = load_manifest(folder)
        if manifest.request != request.identity:
            held = Request(manifest.settings, _digests(manifest), tuple(base_name(bad.path) for bad in manifest.quarantined))
            _refuse(folder, _differences(held, request, manifest.extraction_version), done=True)
        return None if torn_shards(folder, manifest) else manifest
    noted = _noted(folder)
    if noted is not None:
        if noted["identity"] != request.identity:
            held = Request(noted["settings"], noted["digests"], tuple(noted["bad"]))
            _refuse(folder, _differences(held, request, noted["extraction_version"]), done=False)
        return None
    if any(not name.startswith(".") for name in folder.names()):
        what = "the folder is not empty and holds no data set"
        if folder.names("*.parquet"):
            what = "the folder holds shards without their manifest.json"
        raise OutputExistsError(what, where=folder.address, hint="choose another --output, or empty the folder")
    return None


def known_sources(folder: Folder, detector: str) -> dict[tuple[str, str], Source]:
    """What an earlier ingest in the folder, finished or not, found out about its files, by (name, digest); empty if it may not hold now."""
    if folder.exists(MANIFEST_FILE):
        manifest = load_manifest(folder)
        version, settings, records = manifest.extraction_version, manifest.settings, [source.model_dump() for source in manifest.sources]
    else:
        noted = _noted(folder) or _NOTHING_NOTED
        version, settings, records = noted["extraction_version"], noted["settings"], noted["sources"]
    if version != EXTRACTION_VERSION or settings.get("detector") != detector:
        return {}
    names = [field.name for field in fields(Source) if field.name != "version"]
    known = (record for record in records if record.keys() >= set(names))  # not what an older pfscale has noted
    return {(record["name"], record["digest"]): Source(version="", **{name: record[name] for name in names}) for record in known}


def note_request(folder: Folder, request: Request, good: Sequence[Source]) -> None:
    """Marks the folder as one in which `request` is being made; a manifest that is there is of torn shards and goes."""
    sources = [{**asdict(source), "path": ""} for source in good]  # a path may hold a secret, and is not needed
    noted = {"identity": request.identity, "extraction_version": EXTRACTION_VERSION, **asdict(request), "sources": sources}
    folder.write_text(REQUEST_FILE, json.dumps(noted))
    folder.remove(MANIFEST_FILE)


def forget_request(folder: Folder) -> None:
    """Ends the making: what killed processes have left goes first, then the mark."""
    folder.clear_unfinished()
    folder.remove(REQUEST_FILE)


def _noted(folder: Folder) -> dict[str, Any] | None:
    try:
        noted = json.loads(folder.read_text(REQUEST_FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        noted = {}
    return {**_NOTHING_NOTED, **noted} if isinstance(noted, dict) else _NOTHING_NOTED


def _digests(manifest: Manifest) -> dict[str, list[str]]:
    digests: dict[str, list[str]] = {}
    for source in manifest.sources:
        digests.setdefault(source.name, []).append(source.digest)
    return {name: sorted(held) for name, held in digests.items()}


def _differences(held: Request, asked: Request, extraction_version: int) -> list[tuple[str, str]]:
    """(what differs, what to do) between what a folder holds and what is asked for, the most telling first."""
    elsewhere = "choose another --output, or empty the folder"
    found = []
    if extraction_version != EXTRACTION_VERSION:
        found.append((f"it was made by another pfscale (extraction {extraction_version}, this is {EXTRACTION_VERSION})", elsewhere))
    changed = [name for name in held.digests if name in asked.digests and held.digests[name] != asked.digests[name]]
    if changed:
        hint = f"put the old file{'s' * (len(changed) > 1)} back, or ingest the new contents into another --output"
        found.append((f"{_listed(changed)} changed since", hint))
    gone = [name for name in held.digests if name in asked.bad]
    if gone:
        found.append((f"{_listed(gone)} cannot be read any more", "what was made of it is kept; restore it, or choose another --output"))
    absent = [name for name in held.digests if name not in asked.digests and name not in asked.bad]
    if absent:
        found.append((f"{_listed(absent)} {'is' if len(absent) == 1 else 'are'} not among the files given", elsewhere))
    left_out = [name for name in held.bad if name not in asked.bad and name not in asked.digests]
    if left_out:
        what = f"{_listed(left_out)}, which had been set aside, {'is' if len(left_out) == 1 else 'are'} not among the files given"
        found.append((what, f"name {'it' if len(left_out) == 1 else 'them'} again, or {elsewhere}"))
    mended = [name for name in held.bad if name in asked.digests and name not in held.digests]
    if mended:
        found.append((f"{_listed(mended)} had been set aside and can be used now", elsewhere))
    more = [name for name in (*asked.digests, *asked.bad) if name not in held.digests and name not in held.bad]
    if more:
        found.append((f"{_listed(more)} {'is' if len(more) == 1 else 'are'} not in it", elsewhere))
    for key in held.settings.keys() & asked.settings.keys():
        if held.settings[key] != asked.settings[key]:
            what = f"it is made with {key.replace('_', ' ')} {held.settings[key] or 'unset'}, not {asked.settings[key] or 'unset'}"
            found.append((what, f"repeat the command as it was, or {elsewhere}"))
    return found or [("it is of other files or settings", elsewhere)]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _refuse(folder: Folder, differences: Sequence[tuple[str, str]], *, done: bool) -> None:
    held = "the folder holds another data set" if done else "another ingest was begun in this folder and not finished"
    what = f"{held}: {'; '.join(what for what, _ in differences)}"
    hint = differences[0][1]
    raise OutputExistsError(what, where=folder.address, hint=f"{hint} (the data set there is complete)" if done else hint)
