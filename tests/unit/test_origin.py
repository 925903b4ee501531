"""Where particles come from: hand-built ancestries, and a slow, obvious walk on random graphs with loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.edm4hep.ancestry import Ancestry, ancestry, inherited
from pfscale.edm4hep.origin import ORIGINS, origins

PRIMARY, B, D_OF_B, D, TAU, OTHER = ORIGINS
Record = list[tuple[int, int, list[int]]]


def graph_of(parents: list[list[int]]) -> Ancestry:
    edges = [(parent, child) for child, above in enumerate(parents) for parent in above]
    parent, child = np.array(edges, np.int64).reshape(-1, 2).T
    return ancestry(parent, child, num_particles=len(parents))


def origins_of(record: Record) -> list[str]:
    """Names of the origins in an event of (pdg, generator status, parents)."""
    pdg, status, parents = zip(*record, strict=True)
    found = origins(graph_of(list(parents)), pdg=np.array(pdg), generator_status=np.array(status))
    assert found.dtype == np.int8
    return [ORIGINS[index] for index in found]


def test_the_nearest_heavy_hadron_decides() -> None:
    """Catches a kaon of B -> D -> K that counts as from the B, B* or mixed B0 that hide theirs, a B that is its own ancestor."""
    record: Record = [
        (5, 2, []),
        (513, 2, [0]),  # B*0
        (511, 2, [1]),  # B0, oscillates
        (-511, 2, [2]),
        (211, 1, [3]),
        (413, 2, [3]),  # D*+
        (421, 2, [5]),
        (-321, 1, [6]),
        (211, 1, [5]),
        (211, 1, [0]),  # of the same string
    ]
    assert origins_of(record) == [PRIMARY, PRIMARY, B, B, B, B, D_OF_B, D_OF_B, D_OF_B, PRIMARY]


def test_charm_without_a_b_above() -> None:
    """Catches D hadrons that all count as from a B, because one of the event does."""
    record: Record = [(4, 2, []), (431, 2, [0]), (321, 1, [1]), (521, 2, []), (-421, 2, [3]), (321, 1, [4]), (4122, 2, [0]), (2212, 1, [6])]
    assert origins_of(record) == [PRIMARY, PRIMARY, D, PRIMARY, B, D_OF_B, PRIMARY, D]


def test_quarkonia_are_no_heavy_hadrons() -> None:
    """Catches J/psi taken for a D: the muons of B -> J/psi come from the B, those of a prompt one from no hadron."""
    record: Record = [
        (521, 2, []), (443, 2, [0]), (13, 1, [1]), (443, 2, []), (13, 1, [3]), (553, 2, []), (-13, 1, [5]),
        (30443, 2, [0]), (421, 2, [7]), (-321, 1, [8]),  # psi(3770) -> D
    ]  # fmt: skip
    assert origins_of(record) == [PRIMARY, B, B, PRIMARY, PRIMARY, PRIMARY, PRIMARY, B, B, D_OF_B]


def test_b_c_is_a_b() -> None:
    """Catches B_c, which has both quarks, taken for a D."""
    assert origins_of([(541, 2, []), (211, 1, [0]), (431, 2, [0]), (321, 1, [2])]) == [PRIMARY, B, B, D_OF_B]


def test_a_tau_counts_only_without_a_heavy_hadron_above() -> None:
    """Catches tau before b: a flavour tagger would learn that b jets hold taus' tracks; and a tau's K_S0 that counts as secondary."""
    record: Record = [
        (24, 2, []), (-15, 2, [0]), (-15, 2, [1]), (211, 1, [2]), (310, 2, [2]), (211, 1, [4]),
        (511, 2, []), (15, 2, [6]), (-211, 1, [7]),
        (431, 2, []), (-15, 2, [9]), (211, 1, [10]),
    ]  # fmt: skip
    assert origins_of(record) == [PRIMARY, PRIMARY, TAU, TAU, TAU, TAU, PRIMARY, B, B, PRIMARY, D, D]


@pytest.mark.parametrize("code", [310, 130, 321, -321, 3122, -3122, 3222, 3112, 3322, 3312, -3334])
def test_decays_of_long_lived_strange_hadrons(code: int) -> None:
    """Catches a displaced vertex of a light jet that counts as primary, and the strange hadron itself that counts as displaced."""
    assert origins_of([(3, 2, []), (code, 2, [0]), (211, 1, [1])]) == [PRIMARY, PRIMARY, OTHER]


@pytest.mark.parametrize("code", [311, 313, 333, 3212, 3224, 113, 111])
def test_what_decays_at_once_displaces_nothing(code: int) -> None:
    """Catches K0, K*, phi, Sigma0, Sigma*, rho and pi0 taken for long-lived."""
    assert origins_of([(code, 2, []), (211, 1, [0])]) == [PRIMARY, PRIMARY]


def test_heavy_flavour_before_secondary() -> None:
    """Catches precedence turned round: the K_S0 of a B and what its pions make in the detector belong to the b jet's own decay chain."""
    record: Record = [
        (211, 1, []), (11, 0, [0]), (22, 0, [1]),  # made in the material
        (511, 2, []), (310, 2, [3]), (211, 1, [4]), (2212, 0, [5]),
        (2112, 0, []),  # parent was not kept
    ]  # fmt: skip
    assert origins_of(record) == [PRIMARY, OTHER, OTHER, PRIMARY, B, B, B, OTHER]


def test_loops_end() -> None:
    """Catches an endless walk where a damaged file makes a B hadron its own grandmother."""
    record: Record = [(511, 2, [2]), (421, 2, [0]), (113, 2, [1]), (211, 1, [2]), (211, 1, [0]), (113, 2, [6]), (113, 2, [5])]
    assert origins_of(record) == [D_OF_B, B, D_OF_B, D_OF_B, B, PRIMARY, PRIMARY]


def test_no_particles() -> None:
    """Catches a chunk without MC particles."""
    nothing = np.zeros(0, np.int64)
    assert len(origins(ancestry(nothing, nothing, num_particles=0), pdg=nothing, generator_status=nothing)) == 0


def slow_inherited(parents: list[list[int]], values: list[int]) -> list[int]:
    """One particle after the other, one generation after the other."""
    found = []
    for particle in range(len(parents)):
        seen: set[int] = set()
        generation = set(parents[particle])
        while generation and not any(values[p] for p in generation):
            seen |= generation
            generation = {p for above in generation for p in parents[above]} - seen
        found.append(min((values[p] for p in generation if values[p]), default=0))
    return found


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num=st.integers(1, 12))
def test_the_nearest_value_is_inherited(data: st.DataObject, num: int) -> None:
    """Catches a farther ancestor that wins, ties that depend on the order of the file, and walks that stop at a loop too early."""
    rows = st.lists(st.integers(0, num - 1), max_size=3)
    parents = [[p for p in data.draw(rows) if p != child] for child in range(num)]
    values = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=num, max_size=num))
    assert inherited(graph_of(parents), np.array(values, np.int8)).tolist() == slow_inherited(parents, values)
