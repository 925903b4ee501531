"""The downstream tasks by the `kind` of their config. A new one is a file in this folder and a line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from pfscale.config import Config
from pfscale.models.networks import NetworkConfig
from pfscale.models.particle_transformer import ParticleTransformerConfig
from pfscale.models.set_networks import CandidateWeightsConfig, SetTransformerConfig
from pfscale.tasks.event_assignment import EventAssignment, EventAssignmentConfig
from pfscale.tasks.jet_energy import JetEnergy, JetEnergyConfig
from pfscale.tasks.jet_flavour import JetFlavour, JetFlavourConfig
from pfscale.tasks.missing_momentum import MissingMomentum, MissingMomentumConfig

TaskConfig = Annotated[JetFlavourConfig | JetEnergyConfig | MissingMomentumConfig | EventAssignmentConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class TaskEntry:
    """A task.

    Attributes:
        task: built from its config and training events by `task.fitted`.
        network: the one that it takes where the config names none.
        name: of registered models, before the detector.
    """

    task: Any
    network: NetworkConfig
    name: str


TASKS: dict[type[Config], TaskEntry] = {
    JetFlavourConfig: TaskEntry(JetFlavour, ParticleTransformerConfig(), "jet-flavour"),
    JetEnergyConfig: TaskEntry(JetEnergy, ParticleTransformerConfig(), "jet-energy"),
    MissingMomentumConfig: TaskEntry(MissingMomentum, CandidateWeightsConfig(), "missing-momentum"),
    EventAssignmentConfig: TaskEntry(EventAssignment, SetTransformerConfig(), "event-assignment"),
}
