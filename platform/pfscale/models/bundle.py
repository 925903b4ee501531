"""A model on disk: weights as safetensors, the config that builds it, and a card that says what it is. No pickle anywhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import yaml
from torch import Tensor, nn

from pfscale.config import Config, load_config
from pfscale.errors import InputFileError
from pfscale.models.mlpf import Mlpf, MlpfConfig

MLPF_KIND = "mlpf"  # `kind` in the card
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "model_card.json"


@dataclass(frozen=True)
class Bundle:
    """A loaded model with its card (detector, simulation, data hash, parent, metrics ...)."""

    model: Mlpf
    card: dict[str, Any]


def save_bundle(folder: str | Path, config: Config, weights: dict[str, Tensor], card: dict[str, Any]) -> Path:
    """The folder with the model's three files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({k: v.detach().contiguous().cpu() for k, v in weights.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True))
    return folder


def load_bundle(folder: str | Path) -> Bundle:
    """The particle-flow model in `folder`, in evaluation mode, with its normalisation.

    Raises:
        InputFileError: a file is missing, it is a model of another kind, the weights do not fit the config, or no normalisation was fitted.
    """
    files = read_bundle(folder, kind=MLPF_KIND)
    model = Mlpf(load_config(MlpfConfig, files.config))
    load_weights(model, files.weights, where=str(folder))
    model.encoder.standardise.require_fitted(where=str(folder))
    return Bundle(model.eval(), files.card)


@dataclass(frozen=True)
class BundleFiles:
    """What a model folder holds: the config's path, the weights by name, the card."""

    config: Path
    weights: dict[str, Tensor]
    card: dict[str, Any]


def read_bundle(folder: str | Path, *, kind: str) -> BundleFiles:
    """The files of a model of the given kind.

    Raises:
        InputFileError: a file is missing or damaged, or it is a model of another kind.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG, CARD):
        if not (folder / name).is_file():
            raise InputFileError(
                f"no {name} in the model folder", where=str(folder), hint="a model folder is written by pfscale pretrain or finetune"
            )
    try:
        card = json.loads((folder / CARD).read_text())
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (ValueError, safetensors.SafetensorError) as error:
        raise InputFileError(f"the model folder is damaged ({error})", where=str(folder)) from None
    if not isinstance(card, dict):
        raise InputFileError(f"the model folder is damaged ({CARD} holds no fields)", where=str(folder))
    if card.get("kind") != kind:
        raise InputFileError(
            f"a model of kind '{card.get('kind')}', not '{kind}'", where=str(folder), hint="pfscale models list shows what there is"
        )
    return BundleFiles(folder / CONFIG, weights, card)


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Loads all weights into the model.

    Raises:
        InputFileError: names or shapes differ.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputFileError(f"the weights do not fit the model: {error}", where=where) from None
