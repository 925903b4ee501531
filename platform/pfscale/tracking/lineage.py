"""What a model was made from: parent after parent, as far as the registry knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pfscale.errors import ModelNotFoundError, TrackingError
from pfscale.tracking.registry import resolve


@dataclass(frozen=True)
class Ancestor:
    """One model of a chain: its address, how and from what it was made; `verb` is empty where the registry does not know it (any more)."""

    address: str
    verb: str = ""
    detector: str = ""
    simulation: str = ""
    data: str = ""
    events: str = ""
    parent: str = ""

    def __str__(self) -> str:
        if not self.verb:
            return f"{self.address} (not in this registry)"
        source = f" from {self.parent}" if self.parent else ""
        return f"{self.address}: {self.verb}{source}, {self.events} events of {self.detector} ({self.simulation}), data {self.data[:16]}"


def described(address: str, tags: Mapping[str, str]) -> Ancestor:
    """A registered version as a member of a chain, from its tags."""
    return Ancestor(address, **{key: tags.get(key, "") for key in ("verb", "detector", "simulation", "data", "events", "parent")})


def ancestors(tracking_uri: str, parent: str) -> tuple[Ancestor, ...]:
    """The chain from `parent` (an address as in a model card; empty: none) to the model that started from random weights.

    It ends early at a model that the registry does not know: a folder, or a version that was deleted.
    """
    chain: list[Ancestor] = []
    while parent and parent not in {known.address for known in chain}:
        try:
            version = resolve(tracking_uri, parent)
        except (ModelNotFoundError, TrackingError):  # also: there is no registry here
            chain.append(Ancestor(parent))
            break
        chain.append(described(version.uri, version.tags))
        parent = chain[-1].parent
    return tuple(chain)
