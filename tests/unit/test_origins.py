"""Where particles come from, on hand-made ancestries."""

from __future__ import annotations

import numpy as np

from pfscale.edm4hep.ancestry import ancestry
from pfscale.edm4hep.origins import ORIGINS, origins
from pfscale.edm4hep.truth import Particles


def named(*particles: tuple[int, int, list[int]]) -> list[str]:
    """The origins of (pdg, generator status, parents)."""
    n = len(particles)
    pairs = [(parent, child) for child, (_, _, parents) in enumerate(particles) for parent in parents]
    parent, child = (np.array(side, np.int64) for side in zip(*pairs, strict=True)) if pairs else (np.zeros(0, np.int64),) * 2
    nothing, zeros = np.zeros(n), np.zeros(n, np.int64)
    pdg, status = (np.array([p[i] for p in particles], np.int64) for i in (0, 1))
    graph = ancestry(parent, child, num_particles=n)
    flat = Particles(zeros, pdg, status, zeros, nothing, nothing, nothing, nothing, nothing, graph)
    return [ORIGINS[code] for code in origins(flat, np.arange(n))]


def test_the_nearest_heavy_hadron_decides() -> None:
    """Catches D hadrons out of B taken for prompt ones, quarkonia taken for heavy hadrons, and taus or kaons that hide a B."""
    found = named(
        (511, 2, []),  # B0
        (211, 1, [0]),
        (411, 2, [0]),  # D+ out of it
        (321, 1, [2]),
        (443, 2, [0]),  # J/psi out of it
        (13, 1, [4]),
        (15, 2, [0]),  # tau out of it
        (211, 1, [6]),
        (421, 2, []),  # prompt D0
        (321, 1, [8]),
        (15, 2, []),
        (211, 1, [10]),
        (310, 2, [2]),  # K_S out of the D
        (211, 1, [12]),
    )
    assert [found[i] for i in (1, 3, 5, 7, 9, 11, 13)] == [
        *("from B", "from B via D", "from B", "from B", "from D", "from tau", "from B via D")
    ]


def test_secondaries_are_those_of_matter_and_of_strange_hadrons() -> None:
    """Catches conversions of a B's photon as tracks of the B, and prompt pions as secondary."""
    found = named((310, 2, []), (211, 1, [0]), (511, 2, []), (22, 1, [2]), (11, 0, [3]), (211, 1, []), (3122, 2, []), (2212, 1, [6]))
    assert [found[i] for i in (1, 3, 4, 5, 7)] == ["other secondary", "from B", "other secondary", "primary", "other secondary"]


def test_a_loop_in_a_damaged_file_ends() -> None:
    """Catches a walk that goes round for ever."""
    assert named((511, 2, [1]), (211, 2, [0]), (22, 1, [1]))[2] == "from B"
