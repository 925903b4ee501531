"""Where a particle comes from: what decayed above it, by the ancestry of MC particles; a target of flavour taggers (arXiv:2505.19689)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep.ancestry import Indices, descendants_of
from pfscale.edm4hep.truth import Particles
from pfscale.physics.flavour import IS_B_HADRON, IS_D_HADRON, IS_LONG_LIVED, IS_TAU, particle_kinds

ORIGINS = ("primary", "from B", "from B via D", "from D", "from tau", "other secondary")  # by index


def origins(particles: Particles, rows: Indices) -> NDArray[np.int8]:
    """Index into ORIGINS of the given particles.

    What the simulation made is secondary, whatever is above; else heavy hadrons count before taus, taus before long-lived strange hadrons.
    Quarkonia are no heavy hadrons: what they decay to is from what they come from.
    """
    graph, kind = particles.ancestry, particle_kinds(particles.pdg)
    is_d = (kind & IS_D_HADRON) != 0
    below_b = descendants_of(graph, (kind & IS_B_HADRON) != 0)
    below_d = descendants_of(graph, is_d)
    below_d_of_b = descendants_of(graph, is_d & below_b)
    below_tau = descendants_of(graph, (kind & IS_TAU) != 0)
    below_strange = descendants_of(graph, (kind & IS_LONG_LIVED) != 0)
    is_made = particles.generator_status == 0
    conditions = [is_made, below_d_of_b, below_d, below_b, below_tau, below_strange]
    return np.select([condition[rows] for condition in conditions], [5, 2, 3, 1, 4, 5], default=0).astype(np.int8)
