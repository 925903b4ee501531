"""Where each MC particle comes from, by its ancestors.

The classes and their order of precedence are those of the track origin that ATLAS' GN1 and GN2 learn beside the jet's flavour
(ATL-PHYS-PUB-2022-027), without pile-up and fakes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfscale.edm4hep.ancestry import Ancestry, descendants_of, inherited
from pfscale.physics.kinds import IS_B_HADRON, IS_D_HADRON, IS_LONG_LIVED_STRANGE, IS_TAU, kinds

ORIGINS = ("primary", "B hadron", "D hadron from B", "D hadron", "tau", "other secondary")  # order of the origin's index
PRIMARY, FROM_B, FROM_D_OF_B, FROM_D, FROM_TAU, OTHER_SECONDARY = range(len(ORIGINS))


def origins(graph: Ancestry, *, pdg: NDArray[np.int64], generator_status: NDArray[np.int64]) -> NDArray[np.int8]:
    """The index into ORIGINS of each particle.

    The nearest hadron with open b or c above it decides (B_c counts as b), whatever lies in between. Without one: a tau above it. Without
    that, it is secondary if the simulation made it (generator status 0) or a strange hadron that flies centimetres is above it (K_S0,
    K_L0, K+-, Lambda, Sigma+-, Xi, Omega). A particle is not its own ancestor: the K_S0 of a fragmentation is primary.
    """
    kind = kinds(pdg)
    is_b = (kind & IS_B_HADRON) != 0
    is_d = (kind & IS_D_HADRON) != 0
    source = np.select([is_b, is_d & descendants_of(graph, is_b), is_d], [FROM_B, FROM_D_OF_B, FROM_D], default=0).astype(np.int8)
    heavy = inherited(graph, source)
    is_from_tau = descendants_of(graph, (kind & IS_TAU) != 0)
    is_secondary = (generator_status == 0) | descendants_of(graph, (kind & IS_LONG_LIVED_STRANGE) != 0)
    return np.select([heavy > 0, is_from_tau, is_secondary], [heavy, FROM_TAU, OTHER_SECONDARY], default=PRIMARY).astype(np.int8)
