"""`manifest.json` beside the shards: what the data set is, where it came from, what was left out and why.

It is written last and atomically, so a folder with a manifest is a complete data set. Its `hash` names the data: it depends on the
sources' contents and on how they were read, not on the folder, the time, the number of workers or the size of the shards.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pfscale.errors import ShardError
from pfscale.remote import base_name, is_remote, without_secrets
from pfscale.shards.schema import SCHEMA_VERSION
from pfscale.shards.storage import Folder, LocalFolder, open_folder

NO_VISIBLE_PARTICLE = "no visible particle"  # why an event that is not bad, only empty, is left out
MANIFEST_FILE = "manifest.json"
REQUEST_FILE = ".ingest.json"  # in a folder whose ingest has not finished: what is being made there
FOLDERS_LOOKED_INTO, DATA_SETS_SHOWN = 50, 5  # where the folder given is no data set itself
OPENED_AT_ONCE = 16  # files behind a URL are opened in as many threads: each costs two round trips
Simulation = Literal["builtin", "geant4", "fast"]


def _plain(name: str) -> str:
    """The name, if it stays in the folder whose manifest it is in.

    Raises:
        ValueError: it would lead elsewhere.
    """
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} is no name of a file in this folder")
    return name


FileName = Annotated[str, AfterValidator(_plain)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceRecord(_Record):
    """A file that the shards were made from.

    Attributes:
        digest: BLAKE2b of the whole file, or of its ends where it is large or remote.
        detector, process, simulation: what the file says of itself; empty: nothing.
        detector_verified: whether the file says its detector, or has tracks enough to show it; None: made before this was noted.
    """

    path: str
    name: str
    size: int
    digest: str
    num_entries: int
    num_events: int = 0
    generation: str = ""
    detector: str = ""
    process: str = ""
    simulation: str = ""
    has_baseline: bool = False
    detector_verified: bool | None = None


class QuarantinedSource(_Record):
    """A file that could not be used: why, what to do, the kind of error and the exit code that it would have had alone."""

    path: str
    reason: str
    hint: str | None = None
    error: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DroppedRecord(_Record):
    """An event of a source that is not in the shards."""

    source: str
    entry: int
    reason: str


class ShardRecord(_Record):
    """One Parquet file: which entries of which source, and how many events are in it."""

    file: FileName
    source: str
    start: int
    stop: int
    num_events: int


class EnergySums(_Record):
    """Sums over all events, GeV: visible = targets + dropped."""

    visible: float = 0.0
    targets: float = 0.0
    dropped: float = 0.0


class Manifest(_Record):
    """A data set of event shards. `request` identifies the ingest that made it, bad sources included; `settings` are as they were given."""

    schema_version: int = SCHEMA_VERSION
    extraction_version: int
    hash: str
    request: str
    settings: dict[str, Any] = {}
    detector: str
    process: str
    simulation: Simulation
    has_baseline: bool
    num_events: int
    splits: dict[str, int]
    track_classes: dict[str, int]
    cluster_classes: dict[str, int]
    num_particles: int
    num_surrogates: int
    energy: EnergySums
    sources: tuple[SourceRecord, ...]
    quarantined: tuple[QuarantinedSource, ...] = ()
    dropped: tuple[DroppedRecord, ...] = ()
    shards: tuple[ShardRecord, ...]

    @property
    def unverified(self) -> list[SourceRecord]:
        """Sources that neither say of which detector they are nor have tracks enough to show it."""
        return [source for source in self.sources if source.detector_verified is False]

    @property
    def bad_events(self) -> dict[str, list[DroppedRecord]]:
        """Events that cannot be used, by reason; those without a visible particle are not bad, only empty."""
        by_reason: dict[str, list[DroppedRecord]] = {}
        for event in self.dropped:
            if event.reason != NO_VISIBLE_PARTICLE:
                by_reason.setdefault(event.reason, []).append(event)
        return by_reason


def load_manifest(directory: str | Path | Folder) -> Manifest:
    """The manifest of the data set in `directory`, a path or URL.

    Raises:
        ShardError: none there (says what there is instead), not readable, or of another schema version.
        ResourceError: it is remote and cannot be reached or may not be read.
    """
    folder = open_folder(directory)
    path = without_secrets(folder.locate(MANIFEST_FILE))
    try:
        values = json.loads(folder.read_text(MANIFEST_FILE))
    except (FileNotFoundError, NotADirectoryError):
        raise _no_data_set(folder) from None
    except (OSError, ValueError) as error:
        raise ShardError(f"cannot read the manifest ({error})", where=path, hint="ingest again into a new folder") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        message = f"shards have schema version {version}, this pfscale reads {SCHEMA_VERSION}"
        raise ShardError(message, where=path, hint="ingest the sources again into a new folder")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ShardError(f"the manifest is damaged ({where}: {first['msg']})", where=path, hint="ingest again into a new folder") from None


def _no_data_set(folder: Folder) -> ShardError:
    """What there is where a data set should be."""
    address = without_secrets(folder.address)
    ingest = "pfscale ingest {} --detector NAME --output DIR"
    if _is_root_file(folder):
        return ShardError("a ROOT file, not a folder of shards", where=address, hint=f"make shards of it: {ingest.format(address)}")
    if isinstance(folder, LocalFolder) and folder.path.is_file():
        return ShardError("a file, not a folder of shards", where=address, hint=f"give the folder: {folder.path.parent}")
    if folder.exists(REQUEST_FILE):
        hint = "an ingest was begun there and has not finished: wait for it, or run the same command again, which goes on"
        return ShardError("no data set here (there is no manifest.json)", where=address, hint=hint)
    if not folder.exists():
        return ShardError("no such folder", where=address, hint=f"give one that {ingest.format('FILE...')} has made")
    try:
        names = folder.names()
        inside = [folder.locate(name) for name in names[:FOLDERS_LOOKED_INTO] if folder.exists(f"{name}/{MANIFEST_FILE}")]
    except OSError:  # it may not be looked into
        names, inside = [], []
    if inside:
        some = ", ".join(map(without_secrets, inside[:DATA_SETS_SHOWN]))
        hint = f"give one of those in it: {some}{' ...' * (len(inside) > DATA_SETS_SHOWN)}"
        return ShardError("not a data set, but a folder of data sets", where=address, hint=hint)
    roots = [name for name in names if name.endswith(".root")]
    if roots:
        files = without_secrets(folder.locate("*.root"))
        what = f"no shards here, but {len(roots)} ROOT file{'s' * (len(roots) != 1)}"
        return ShardError(what, where=address, hint=f"""make shards of them: {ingest.format(f'"{files}"')}""")
    return ShardError("no data set here (there is no manifest.json)", where=address, hint=f"make one: {ingest.format('FILE...')}")


def _is_root_file(folder: Folder) -> bool:
    if not isinstance(folder, LocalFolder) or not folder.path.is_file():
        return is_remote(folder.address) and base_name(folder.address).endswith(".root")
    with folder.path.open("rb") as file:
        return file.read(4) == b"root"


def torn_shards(directory: str | Path | Folder, manifest: Manifest) -> list[str]:
    """The shard files that are missing, cannot be read, or hold another number of events than the manifest says.

    Raises:
        ResourceError: the folder is remote and cannot be reached.
    """
    folder = open_folder(directory)

    def is_torn(shard: ShardRecord) -> bool:
        try:
            with folder.open_parquet(shard.file) as file:
                return bool(file.metadata.num_rows != shard.num_events)
        except (OSError, pa.ArrowInvalid):
            return True

    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        return [shard.file for shard, torn in zip(manifest.shards, pool.map(is_torn, manifest.shards), strict=True) if torn]


def write_manifest(directory: str | Path | Folder, manifest: Manifest) -> None:
    """Writes the manifest in one step: readers see all of it or none."""
    open_folder(directory).write_text(MANIFEST_FILE, manifest.model_dump_json(indent=1))


def content_hash(*parts: object) -> str:
    """16 hex digits of what `parts` (JSON-like values) say."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
