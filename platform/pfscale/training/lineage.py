"""What a model was made from: its parent in the registry, the parent's parent, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pfscale.errors import PfscaleError
from pfscale.models.bundle import load_bundle
from pfscale.models.mlpf import count_parameters
from pfscale.training.lookup import locate_model


@dataclass(frozen=True)
class Ancestor:
    """A model that another was made from; `unknown` where it cannot be found any more."""

    address: str
    verb: str = "unknown"
    detector: str = "unknown"
    data: str = "unknown"
    num_train_events: str = "unknown"
    num_parameters: str = "unknown"


def ancestors(card: Mapping[str, Any], *, tracking_uri: str) -> list[Ancestor]:
    """The ancestors of the model with this card, its parent first; the last may be one that cannot be found any more."""
    found: list[Ancestor] = []
    parent = card.get("parent", "")
    while parent and parent not in [ancestor.address for ancestor in found]:
        try:
            bundle = load_bundle(locate_model(parent, tracking_uri=tracking_uri)[0])
        except PfscaleError:
            return [*found, Ancestor(parent)]
        its = bundle.card
        numbers = (f"{its['num_train_events']:,}", f"{count_parameters(bundle.model):,}")
        found.append(Ancestor(parent, its["verb"], its["detector"], its["data"], *numbers))
        parent = its.get("parent", "")
    return found
