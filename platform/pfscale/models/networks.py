"""The networks that downstream tasks choose from, by the `kind` of their config. A new one is a line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from pfscale.models.particle_transformer import ParticleTransformer, ParticleTransformerConfig
from pfscale.models.set_networks import (
    CandidateWeights,
    CandidateWeightsConfig,
    LinearConfig,
    PooledLinear,
    SetTransformer,
    SetTransformerConfig,
)
from pfscale.models.sets import Output, Widths

NetworkConfig = Annotated[
    ParticleTransformerConfig | SetTransformerConfig | CandidateWeightsConfig | LinearConfig, Field(discriminator="kind")
]
_NETWORKS: dict[type, type[nn.Module]] = {
    ParticleTransformerConfig: ParticleTransformer,
    SetTransformerConfig: SetTransformer,
    CandidateWeightsConfig: CandidateWeights,
    LinearConfig: PooledLinear,
}


def build_network(config: NetworkConfig, widths: Widths, *, starts_at_zero: bool = False) -> nn.Module:
    """The network of a config (SetBatch -> SetOutputs), with random weights.

    Args:
        starts_at_zero: all outputs are zero before the first step.
    """
    network = _NETWORKS[type(config)](config, widths)
    if starts_at_zero:
        for output in (module for module in network.modules() if isinstance(module, Output)):
            output.start_at_zero()
    return network
