"""From a model's name to the loaded model, and whether it fits the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfscale.models.bundle import WEIGHTS, Bundle, load_bundle
from pfscale.tracking.registry import ModelVersion, download, resolve


def load_model(model: str, *, tracking_uri: str) -> Bundle:
    """The model that a registry reference (`models:/name@alias`, `name/3`) or a bundle's folder means.

    Raises:
        ModelNotFoundError: no such model, version or alias; lists what exists.
        InputFileError: the folder is no model bundle.
        TrackingError: the registry cannot be reached.
    """
    return load_bundle(locate_model(model, tracking_uri=tracking_uri)[0])


def locate_model(model: str, *, tracking_uri: str) -> tuple[Path, str]:
    """(local folder of the bundle, a name that never changes: `models:/name/3`, or the folder)."""
    if (Path(model) / WEIGHTS).is_file():
        return Path(model), str(Path(model).resolve())
    version = resolve(tracking_uri, model)
    return download(version), version.uri


def registered_version(model: str, *, tracking_uri: str) -> ModelVersion | None:
    """The version that a registry reference means, None for the folder of a bundle."""
    return None if (Path(model) / WEIGHTS).is_file() else resolve(tracking_uri, model)


def mismatches(card: Mapping[str, Any], *, detector: str, simulation: str, what: str) -> tuple[str, ...]:
    """What a user should know of a model and data that were not made for each other; empty where they were.

    Args:
        card: of the model.
        what: the data, as the message calls them.
    """
    notes = []
    if card["detector"] != detector:
        notes.append(f"the model was trained on {card['detector']}, {what}: {detector}")
    if card["simulation"] != simulation:
        notes.append(f"the model was trained on {card['simulation']} simulation, {what}: {simulation}; expect worse figures")
    return tuple(notes)
