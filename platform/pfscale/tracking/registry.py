"""The model registry: a bundle (weights as safetensors, config, card) becomes `models:/<name>/<version>`, found again by version or alias.

A version points at a folder of its run that is named by the weights' hash, so what a version holds never changes. Nothing here is pickled:
a bundle with a pickle in it is refused on the way in and on the way out.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from pfscale.errors import ModelNotFoundError, TrackingError, closest
from pfscale.tracking.flavour import Pyfunc, write_mlmodel
from pfscale.tracking.runs import Tracker
from pfscale.tracking.store import open_client, require_store, resolve_uri, shown, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

WEIGHTS_TAG = "pfscale.weights"
PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
_REFERENCE = re.compile(r"^(?:models:/)?(?P<name>[^/@:\s]+)(?:@(?P<alias>[^/@:\s]+)|/(?P<version>\d+|latest))$")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model."""

    name: str
    version: int
    run_id: str
    source: str  # where its files are: a file:, s3:, mlflow-artifacts: ... address
    tracking_uri: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    created: float = 0.0  # seconds since 1970
    description: str = ""

    @property
    def uri(self) -> str:
        """The address that MLflow itself understands."""
        return f"models:/{self.name}/{self.version}"


def register_model(
    tracker: Tracker,
    *,
    run_id: str,
    bundle: Path,
    name: str,
    alias: str = "candidate",
    tags: Mapping[str, str] | None = None,
    description: str = "",
    pyfunc: Pyfunc | None = None,
) -> ModelVersion:
    """The version of `name` that holds `bundle`: uploaded to its run and given the alias; the same run and weights make one version only.

    Repeated (a run that was killed here and resumes), it completes what is missing, and takes the alias from no newer version.

    Args:
        description: Markdown that MLflow shows on the version's page.
        pyfunc: how plain MLflow runs the model, written into the bundle; None: it cannot.

    Raises:
        TrackingError: the bundle holds no safetensors, or a pickle; the store does not answer.
    """
    digest = weights_digest(bundle)
    all_tags = {**(tags or {}), WEIGHTS_TAG: digest}
    client = open_client(tracker.uri)
    if pyfunc is not None:
        write_mlmodel(bundle, pyfunc, run_id=run_id)
    with tracking_errors(tracker.uri):
        _require_model(client, name)
        version = _version_of(client, name, run_id, digest)
        if version is None:
            path = f"models/{name}-{digest[:8]}"
            client.log_artifacts(run_id, str(bundle), path)
            source = f"{client.get_run(run_id).info.artifact_uri}/{path}"
            version = int(client.create_model_version(name, source, run_id=run_id, tags=all_tags, await_creation_for=0).version)
        else:
            for key, value in all_tags.items():
                client.set_model_version_tag(name, str(version), key, value)
        if description:
            client.update_model_version(name, str(version), description)
        holder = _aliases(client, name).get(alias, 0)
        if version >= holder:
            client.set_registered_model_alias(name, alias, str(version))
        return _load(client, tracker.uri, name, version)


def resolve(tracking_uri: str, reference: str) -> ModelVersion:
    """The version that `models:/name@alias`, `models:/name/3`, `models:/name/latest` or the same without `models:/` means.

    Raises:
        ModelNotFoundError: no such model, version or alias; lists what exists, nearest first.
        TrackingError: the store cannot be reached.
    """
    client, uri = _opened(tracking_uri)
    with tracking_errors(uri):
        match = _REFERENCE.match(reference)
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        if match is None or match["name"] not in names:
            what = "no such model" if match else "not the name of a model version (name@alias or name/3)"
            raise ModelNotFoundError(what, where=reference, hint=_known_models(client, uri, match["name"] if match else reference, names))
        return _load(client, uri, match["name"], _chosen_version(client, match, reference))


def _chosen_version(client: MlflowClient, match: re.Match[str], reference: str) -> int:
    name, alias = match["name"], match["alias"]
    aliases = _aliases(client, name)
    versions = sorted((int(v.version) for v in client.search_model_versions(f"name = '{name}'", max_results=1000)), reverse=True)
    wanted = aliases.get(alias) if alias else (max(versions, default=None) if match["version"] == "latest" else int(match["version"]))
    if wanted not in versions:
        ordered = dict.fromkeys([*closest(alias or "", aliases), *sorted(aliases)])
        known = [f"{name}@{a}" for a in ordered] + [f"{name}/{v}" for v in versions]
        raise ModelNotFoundError("no such version or alias", where=reference, hint=f"there are: {', '.join(known[:20]) or 'none'}")
    return wanted


def download(version: ModelVersion) -> Path:
    """The local folder with the files of `version`: the store's own where that is local, otherwise a cached copy with checked weights.

    Raises:
        ModelNotFoundError: the files are gone.
        TrackingError: the artifact store does not answer, or what came is not what was registered.
    """
    if version.source.startswith(("file:", "/")):
        folder = Path(unquote(urlparse(version.source).path))
        if not folder.is_dir():
            raise ModelNotFoundError(
                "the files of this version are gone", where=str(folder), hint=f"{version.uri} was made by run {version.run_id}"
            )
        _require_no_pickle(folder)
        return folder
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pfscale" / "models"
    expected = version.tags.get(WEIGHTS_TAG)
    key = expected or hashlib.sha256(f"{version.tracking_uri} {version.uri} {version.created}".encode()).hexdigest()
    target = root / f"{version.name}-{key[:32]}"
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        _fetch(version, target, expected)
    return target


def list_models(tracking_uri: str) -> list[ModelVersion]:
    """Every version of every registered model, by name and then newest first.

    Raises:
        TrackingError: the store cannot be reached.
    """
    client, uri = _opened(tracking_uri)
    with tracking_errors(uri):
        names = sorted(model.name for model in client.search_registered_models(max_results=1000))
        return [version for name in names for version in _versions(client, uri, name)]


def list_versions(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Every version of one registered model, newest first.

    Raises:
        ModelNotFoundError: no such model; lists what exists, nearest first.
        TrackingError: the store cannot be reached.
    """
    client, uri = _opened(tracking_uri)
    with tracking_errors(uri):
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        if name not in names:
            raise ModelNotFoundError("no such model", where=name, hint=_known_models(client, uri, name, names))
        return _versions(client, uri, name)


def _opened(tracking_uri: str) -> tuple[MlflowClient, str]:
    """(client, resolved address) of a store that exists."""
    uri = resolve_uri(tracking_uri)
    require_store(uri, create=False)
    return open_client(uri), uri


def _versions(client: MlflowClient, uri: str, name: str) -> list[ModelVersion]:
    aliases = _aliases(client, name)
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return sorted((_convert(v, uri, aliases) for v in found), key=lambda v: -v.version)


def weights_digest(bundle: Path) -> str:
    """SHA-256 of the bundle's safetensors files: what makes two versions the same model.

    Raises:
        TrackingError: there are none, or the bundle holds a pickle.
    """
    weights = sorted(bundle.rglob("*.safetensors")) if bundle.is_dir() else []
    if not weights:
        raise TrackingError("no safetensors file to register", where=str(bundle))
    _require_no_pickle(bundle)
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(bundle)}\0{path.stat().st_size}\0".encode())
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _require_no_pickle(folder: Path) -> None:
    pickles = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        raise TrackingError("a model folder holds no pickles: loading one would run whatever code is in it", where=f"{folder}/{pickles[0]}")


def _fetch(version: ModelVersion, target: Path, expected: str | None) -> None:
    """Downloads into a folder beside `target` and moves it there when complete and right."""
    from mlflow.artifacts import download_artifacts

    draft = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        with tracking_errors(version.tracking_uri):
            got = Path(download_artifacts(artifact_uri=version.source, dst_path=str(draft), tracking_uri=version.tracking_uri))
        if expected is not None and weights_digest(got) != expected:
            raise TrackingError(
                "the downloaded weights are not the registered ones", where=version.source, hint="repeat the command; or register again"
            )
        _require_no_pickle(got)
        try:
            os.replace(got, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster with the same files
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _require_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_of(client: MlflowClient, name: str, run_id: str, digest: str) -> int | None:
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((int(v.version) for v in found if v.tags.get(WEIGHTS_TAG) == digest), None)


def _aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """alias -> version of one model (SQL stores give integers, servers strings)."""
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def _load(client: MlflowClient, uri: str, name: str, version: int) -> ModelVersion:
    converted = _convert(client.get_model_version(name, str(version)), uri, _aliases(client, name))
    return replace(converted, source=client.get_model_version_download_uri(name, str(version)))


def _convert(found: Any, uri: str, aliases: Mapping[str, int]) -> ModelVersion:
    version = int(found.version)
    names = tuple(sorted(alias for alias, target in aliases.items() if target == version))
    created = found.creation_timestamp / 1000
    tags, description = dict(found.tags), found.description or ""
    return ModelVersion(found.name, version, found.run_id or "", found.source, uri, names, tags, created, description)


def _known_models(client: MlflowClient, uri: str, name: str, names: list[str]) -> str:
    near = closest(name.removeprefix("models:/"), names)
    ordered = dict.fromkeys([*near, *sorted(names)])
    known = [f"{n}@{alias}" for n in ordered for alias in sorted(_aliases(client, n))] or list(ordered)
    return f"there are: {', '.join(known[:20])}" if known else f"no model is registered in {shown(uri)}; pfscale pretrain registers one"
