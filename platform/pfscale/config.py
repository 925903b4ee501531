"""Configs: frozen pydantic models, YAML files with differences only, `a.b=c` overrides, and a fingerprint.

A config's *identity* (everything its result depends on) is hashed into the fingerprint that names runs, checkpoints and caches;
the `run` section (workers, storage, logging) and fields marked `runtime()` are left out of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfscale.errors import ConfigError, closest

C = TypeVar("C", bound="Config")
KeyPath = tuple[str | int, ...]


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    where_keys_are: ClassVar[str] = "all keys with their defaults: pfscale config show pretrain (or finetune, ...)"


class RunConfig(Config):
    """Where and with what a run executes; none of it changes the result, so none of it is in the fingerprint."""

    name: str = Field("", pattern=r"^[\w.-]*$", description="name of the run, before its fingerprint; empty: the verb")
    storage: str = Field("runs", description="folder for checkpoints, shared by all nodes")
    tracking_uri: str = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"),
        description="MLflow tracking and registry URI; default: MLFLOW_TRACKING_URI where it is set",
    )
    experiment: str = Field("pfscale", description="MLflow experiment")
    parent_run: str = Field("", pattern=r"^\w*$", description="id of the MLflow run that this one is shown below; empty: none")
    tags: dict[str, str] = Field(default_factory=dict, description="further tags of the MLflow run")
    num_workers: int = Field(1, ge=0, description="Ray Train workers; 0 trains in the calling process")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray reserves for each worker")
    threads_per_worker: int = Field(
        0, ge=0, description="torch threads of a worker, 0: its whole CPUs; in the calling process, 0: torch's own"
    )
    use_gpu: bool = Field(False, description="one accelerator per worker (not run on an accelerator so far)")
    max_failures: int = Field(2, ge=0, description="how often a run is restarted from its last checkpoint after a worker died")
    log_every: int = Field(10, ge=1, description="steps between two points in MLflow")


def runtime(default: Any = ..., *, description: str, **constraints: Any) -> Any:
    """A field that says where things are, not what they are (a folder, say): left out of the fingerprint."""
    return Field(default, description=description, json_schema_extra={"runtime": True}, **constraints)


def fingerprint(config: Config, **content: str) -> str:
    """12 hex digits that name everything the result of `config` depends on.

    Args:
        content: hashes of what the left-out fields point at (the data set's content, the parent model's version).
    """
    canonical = json.dumps({"kind": type(config).__name__, **_identity(config), "content": content}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()


def _identity(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        extra = info.json_schema_extra
        if isinstance(value, RunConfig) or (isinstance(extra, dict) and extra.get("runtime")):
            continue
        values[name] = _identity(value) if isinstance(value, Config) else config.model_dump(mode="json", include={name})[name]
    return values


def load_config(cls: type[C], path: str | Path | None = None, overrides: Sequence[str] = (), *, drawn: Collection[str] = ()) -> C:
    """The config of class `cls` from a YAML file (or the class defaults) with `key.path=value` overrides applied.

    A file may name one other file as `base:` (relative to itself) and then holds differences only; where `cls` has a field of that name, it
    is that field.

    Args:
        drawn: those of the overrides that come from a sweep's space: mistakes in them say so.

    Raises:
        ConfigError: lists every mistake at once, each with file:line, the closest known key and what is allowed.
    """
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    if path is not None:
        values, origins = _load_yaml(Path(path), allow_base=True, is_field="base" in cls.model_fields)
    mistakes = [f"command line: '{text}' is not of the form key.path=value" for text in overrides if not _is_assignment(text)]
    for override in filter(_is_assignment, overrides):
        _apply_override(values, origins, override, "space of the sweep" if override in drawn else "command line")
    try:
        config = cls.model_validate(_with_default_kinds(cls, values))
    except ValidationError as error:
        mistakes = [*_describe(cls, error, origins), *mistakes]
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''} in the config"
        raise ConfigError("\n  ".join([count, *mistakes]), hint=cls.where_keys_are)
    return config


def dump_yaml(config: Config) -> str:
    """The resolved config as YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _load_yaml(path: Path, *, allow_base: bool, is_field: bool = False) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The merged mapping of a YAML file and its `base`, and where (file:line) each key was written."""
    try:
        text = path.read_text()
    except OSError as error:
        near = closest(path.name, [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [])
        hint = f"did you mean {path.parent / near[0]}?" if near else None
        raise ConfigError(f"cannot read the config file ({error.strerror})", where=str(path), hint=hint) from None
    except UnicodeDecodeError:
        raise ConfigError("a config file is YAML text; this is not text", where=str(path)) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from None
    if not isinstance(values, dict):
        raise ConfigError("a config file holds `key: value` lines", where=str(path))
    origins: dict[KeyPath, str] = {}
    _record_lines(root, (), path, origins)
    base = None if is_field else values.pop("base", None)
    if base is None:
        return values, origins
    if not allow_base:
        raise ConfigError("a base file cannot have a base itself (one level only)", where=origins.get(("base",), str(path)))
    base_values, base_origins = _load_yaml(path.parent / str(base), allow_base=False)
    return _merge(base_values, values), {**base_origins, **origins}


def _record_lines(node: yaml.Node | None, key: KeyPath, path: Path, origins: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            child = (*key, key_node.value)
            origins[child] = f"{path}:{key_node.start_mark.line + 1}"
            _record_lines(value_node, child, path, origins)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            origins[(*key, i)] = f"{path}:{item.start_mark.line + 1}"
            _record_lines(item, (*key, i), path, origins)


def _merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """`update` over `base`; a mapping with another `kind` replaces the base's instead of mixing two kinds' fields."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        mixable = isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        merged[key] = _merge(old, value) if mixable else value  # type: ignore[arg-type]
    return merged


def _is_assignment(override: str) -> bool:
    key, equals, _ = override.partition("=")
    return bool(key and equals)


def _apply_override(values: dict[str, Any], origins: dict[KeyPath, str], override: str, said: str) -> None:
    key, _, text = override.partition("=")
    path = tuple(key.split("."))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    node = values
    for part in path[:-1]:
        child = node.get(part)
        node[part] = child = dict(child) if isinstance(child, dict) else {}
        node = child
    if path[-1] == "kind" and node.get("kind", value) != value:
        node.clear()  # another kind has other fields
    node[path[-1]] = value
    origins[path] = f"{said} ({override})"


def _with_default_kinds(cls: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the default's `kind` wherever a tagged union is given without one: `engine.zero_stage=2` needs no `engine.kind`."""
    filled = dict(values)
    for name, info in cls.model_fields.items():
        given, default = filled.get(name), info.get_default(call_default_factory=True)
        if isinstance(given, dict) and isinstance(default, BaseModel):
            if _union_members(info.annotation) and "kind" not in given:
                given = {"kind": default.kind, **given}  # type: ignore[attr-defined]
            filled[name] = _with_default_kinds(type(default), given)
    return filled


def _describe(cls: type[Config], error: ValidationError, origins: dict[KeyPath, str]) -> list[str]:
    """Every mistake: origin, key, what is wrong, what is allowed; in the order in which the user wrote them."""
    order = {origin: number for number, origin in enumerate(origins.values())}
    found: list[tuple[int, str]] = []
    for item in error.errors(include_url=False):
        key, holder = _locate(cls, tuple(item["loc"]))
        shown = ".".join(str(part) for part in key)
        meant = (*key, "kind") if item["type"] == "union_tag_invalid" else key
        above = (origins[meant[:n]] for n in range(len(meant), 0, -1) if meant[:n] in origins)
        below = (origin for path, origin in reversed(origins.items()) if key and path[: len(key)] == key)  # of all keys together: nowhere
        where = next(above, next(below, None))
        if item["type"] == "extra_forbidden":
            siblings = sorted(holder.model_fields)
            near = closest(str(key[-1]), siblings, count=1)
            text = f"unknown key '{shown}'" + (f", did you mean '{near[0]}'?" if near else f"; known: {', '.join(siblings)}")
        else:
            text = f"{shown}: {_plain(item)}" if shown else _plain(item)
        found.append((order.get(where or "", -1), f"{where}: {text}" if where else text))
    return [text for _, text in sorted(found, key=lambda item: item[0])]


def _plain(item: Any) -> str:
    """What pydantic found, in words without its own terms."""
    context = item.get("ctx", {})
    if item["type"] == "union_tag_invalid":
        return f"kind {context['tag']!r} is none of {context['expected_tags']}"
    if item["type"] == "value_error":
        return str(context["error"])
    if item["type"] == "model_type":
        return f"a section with keys of its own, not the value {item['input']!r}"
    return f"{item['msg'][0].lower()}{item['msg'][1:]} (got {item.get('input')!r})"


def _locate(cls: type[BaseModel], loc: KeyPath) -> tuple[KeyPath, type[BaseModel]]:
    """(the key as the user writes it, the config class that holds it): pydantic's path also names the chosen kinds of tagged unions."""
    holder: type[BaseModel] = cls
    members: list[type[BaseModel]] = []
    key: list[str | int] = []
    for depth, part in enumerate(loc):
        if members:
            holder = next((m for m in members if m.model_fields["kind"].default == part), members[0])
            members = []
            continue
        key.append(part)
        info = holder.model_fields.get(str(part))
        annotation = info.annotation if info is not None else None
        members = _union_members(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and depth < len(loc) - 1:
            holder = annotation
    return tuple(key), holder


def _union_members(annotation: Any) -> list[type[BaseModel]]:
    args = getattr(annotation, "__args__", ())
    return [a for a in args if isinstance(a, type) and issubclass(a, BaseModel) and "kind" in a.model_fields]
