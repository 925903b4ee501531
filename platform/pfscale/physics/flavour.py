"""What gives a generator-level jet its flavour and its role in a top's decay, found in the ancestry of the MC particles.

Hadrons and hadronic taus become ghosts: their momenta, scaled to almost nothing, are clustered with the particles and so each falls into
exactly one jet (ghost association: Cacciari, Salam and Soyez, arXiv:0802.1188). Hard partons are matched by distance.
Files from full simulation keep only the generator statuses 0, 1 and 2, so nothing here relies on a generator's own status codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from particle.pdgid import literals as pid

from pfscale.physics.kinds import IS_B_HADRON, IS_COLOURED, IS_D_HADRON, IS_HARD_PARTON, IS_LIGHT_LEPTON, IS_TAU, kinds
from pfscale.physics.kinematics import Floats

B_HADRON, D_HADRON, TAU = int(pid.b), int(pid.c), int(pid.tau_minus)  # flavour codes of ghosts: 5, 4, 15
FLAVOURS = (B_HADRON, D_HADRON, TAU, int(pid.s), int(pid.u), int(pid.d), int(pid.g), 0)  # of jets; 0: none found
TOP_ROLES = (0, 1, 2, -1, -2)  # of jets; 0: none; 1: the down-type quark straight from the top; 2: a quark from its W; < 0: the antitop's


@dataclass(frozen=True)
class FlavourSources:
    """Particles that can give a jet its flavour: flat over a batch of events, in the order of the MC particles.

    `event` int64; `px, py, pz, energy` in GeV, float64; `flavour` int8: 5 (B hadron or b), 4, 15, 3, 2, 1, 21;
    `is_ghost` bool: hadrons and hadronic taus, to be clustered as ghosts; the others are hard partons.
    `top_role` int8: one of TOP_ROLES, 0 for ghosts.
    """

    event: NDArray[np.int64]
    px: Floats
    py: Floats
    pz: Floats
    energy: Floats
    flavour: NDArray[np.int8]
    is_ghost: NDArray[np.bool_]
    top_role: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.event)


def flavour_sources(
    *,
    event: ArrayLike,
    pdg: ArrayLike,
    generator_status: ArrayLike,
    px: ArrayLike,
    py: ArrayLike,
    pz: ArrayLike,
    energy: ArrayLike,
    parent_offsets: ArrayLike,
    parent_index: ArrayLike,
    daughter_offsets: ArrayLike,
    daughter_index: ArrayLike,
) -> FlavourSources:
    """The flavour-giving particles among the MC particles of a batch of events.

    Ghosts: weakly decaying B hadrons (no B hadron among their daughters) and D hadrons (no D hadron among theirs), quarkonia excluded;
    decayed taus without an electron, muon or further tau among their daughters. Particles that the simulation created (generator status 0)
    are no ghosts.
    Hard partons: u, d, s, c, b, g without a quark (top excepted) or gluon among their parents, whatever their status. Those of a top's
    decay have a top among their parents, or a W that comes from a top through W copies only.

    Args:
        event: event of each MC particle, shape (n,).
        pdg, generator_status, px, py, pz, energy: of each MC particle, shape (n,); GeV.
        parent_offsets, daughter_offsets: CSR offsets, shape (n + 1,).
        parent_index, daughter_index: rows of the same flat arrays; negative: the relation points nowhere.
    """
    pdg_N = np.asarray(pdg, np.int64)
    kind_N = kinds(pdg_N)
    from_generator_N = np.asarray(generator_status) != 0
    daughters = (np.asarray(daughter_offsets, np.int64), np.asarray(daughter_index, np.int64))
    parents = (np.asarray(parent_offsets, np.int64), np.asarray(parent_index, np.int64))

    def is_kind(bits: int) -> NDArray[np.bool_]:
        return (kind_N & bits) != 0

    is_b = from_generator_N & is_kind(IS_B_HADRON) & ~_any_related(is_kind(IS_B_HADRON), *daughters)
    is_d = from_generator_N & is_kind(IS_D_HADRON) & ~_any_related(is_kind(IS_D_HADRON), *daughters)
    has_daughters = np.diff(daughters[0]) > 0
    is_tau = from_generator_N & is_kind(IS_TAU) & has_daughters & ~_any_related(is_kind(IS_TAU | IS_LIGHT_LEPTON), *daughters)
    is_parton = is_kind(IS_HARD_PARTON) & ~_any_related(is_kind(IS_COLOURED), *parents)

    # A hadron with both flavours (B_c) counts as b; `select` takes the first that holds.
    flavour_N = np.select([is_b, is_d, is_tau, is_parton], [B_HADRON, D_HADRON, TAU, np.abs(pdg_N)], default=0)
    rows = np.flatnonzero(flavour_N)
    return FlavourSources(
        event=np.asarray(event, np.int64)[rows],
        px=np.asarray(px, np.float64)[rows],
        py=np.asarray(py, np.float64)[rows],
        pz=np.asarray(pz, np.float64)[rows],
        energy=np.asarray(energy, np.float64)[rows],
        flavour=flavour_N[rows].astype(np.int8),
        is_ghost=(is_b | is_d | is_tau)[rows],
        top_role=_top_roles(pdg_N, is_parton, *parents)[rows],
    )


def _top_roles(
    pdg_N: NDArray[np.int64], is_parton_N: NDArray[np.bool_], parent_offsets: NDArray[np.int64], parent_index: NDArray[np.int64]
) -> NDArray[np.int8]:
    """The role of each hard parton in the decay of a top, one of TOP_ROLES; 0 of everything else."""
    sign_N, code_N = np.sign(pdg_N), np.abs(pdg_N)
    is_top_N, is_w_N = code_N == int(pid.t), code_N == int(pid.W_plus)
    child = np.repeat(np.arange(len(pdg_N)), np.diff(parent_offsets))
    of_interest = (parent_index >= 0) & (is_top_N | is_w_N)[parent_index]
    child, parent = child[of_interest], parent_index[of_interest]

    comes_from_top_N = is_top_N.copy()
    w, above = child[is_w_N[child]], parent[is_w_N[child]]
    while len(next_copies := w[comes_from_top_N[above] & ~comes_from_top_N[w]]):
        comes_from_top_N[next_copies] = True

    is_quark = is_parton_N[child] & (code_N[child] < int(pid.t))
    is_down_type = (code_N[child] % 2 == 1) & (sign_N[child] == sign_N[parent])  # an antiquark beside it is a W's that was not written
    is_straight = is_quark & is_top_N[parent] & is_down_type
    is_of_w = is_quark & is_w_N[parent] & comes_from_top_N[parent]
    role_N = np.zeros(len(pdg_N), np.int8)
    role_N[child[is_of_w]] = 2 * sign_N[parent[is_of_w]]
    role_N[child[is_straight]] = sign_N[parent[is_straight]]
    return role_N


def _any_related(is_wanted_N: NDArray[np.bool_], offsets: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each particle, whether any of its CSR relations (`index[offsets[i]:offsets[i + 1]]`) points to a wanted one."""
    is_hit = np.zeros(len(index) + 1, np.int64)
    is_valid = index >= 0
    is_hit[1:][is_valid] = is_wanted_N[index[is_valid]]
    running = np.cumsum(is_hit)
    return running[offsets[1:]] > running[offsets[:-1]]
