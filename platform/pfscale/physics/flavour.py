"""What gives a generator-level jet its flavour, found in the ancestry of the MC particles.

Hadrons and hadronic taus become ghosts: their momenta, scaled to almost nothing, are clustered with the particles and so each falls into
exactly one jet (ghost association: Cacciari, Salam and Soyez, arXiv:0802.1188). Hard partons are matched by distance.
Files from full simulation keep only the generator statuses 0, 1 and 2, so nothing here relies on a generator's own status codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from particle import PDGID
from particle.pdgid import literals as pid

from pfscale.physics.kinematics import Floats

B_HADRON, D_HADRON, TAU = int(pid.b), int(pid.c), int(pid.tau_minus)  # flavour codes of ghosts: 5, 4, 15
FLAVOURS = (B_HADRON, D_HADRON, TAU, int(pid.s), int(pid.u), int(pid.d), int(pid.g), 0)  # of jets; 0: none found
_HARD_PARTONS = tuple(int(p) for p in (pid.d, pid.u, pid.s, pid.c, pid.b, pid.g))
_LIGHT_LEPTONS = (int(pid.e_minus), int(pid.mu_minus))

_LONG_LIVED = tuple(int(p) for p in (pid.K_S_0, pid.Lambda, pid.Sigma_plus, pid.Sigma_minus, pid.Xi_minus, pid.Xi_0, pid.Omega_minus))
_MAX_COPIES = 32  # of a W boson above a parton, each the other's daughter
TOP, W_BOSON = int(pid.t), int(pid.W_plus)

# bits of a PDG code's kind
IS_B_HADRON, IS_D_HADRON, IS_TAU, _IS_LIGHT_LEPTON, _IS_HARD_PARTON, _IS_COLOURED, IS_LONG_LIVED = 1, 2, 4, 8, 16, 32, 64


@dataclass(frozen=True)
class FlavourSources:
    """Particles that can give a jet its flavour: flat over a batch of events, in the order of the MC particles.

    `event` int64; `px, py, pz, energy` in GeV, float64; `flavour` int8: 5 (B hadron or b), 4, 15, 3, 2, 1, 21;
    `is_ghost` bool: hadrons and hadronic taus, to be clustered as ghosts; the others are hard partons.
    `top_role` int8, of hard partons: 1 the quark straight from a top, 2 a quark of its W boson; -1, -2 of an antitop; else 0.
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
    Hard partons: u, d, s, c, b, g without a quark (top excepted) or gluon among their parents, whatever their status.

    Args:
        event: event of each MC particle, shape (n,).
        pdg, generator_status, px, py, pz, energy: of each MC particle, shape (n,); GeV.
        parent_offsets, daughter_offsets: CSR offsets, shape (n + 1,).
        parent_index, daughter_index: rows of the same flat arrays; negative: the relation points nowhere.
    """
    pdg_N = np.asarray(pdg, np.int64)
    kind_N = particle_kinds(pdg_N)
    from_generator_N = np.asarray(generator_status) != 0
    daughters = (np.asarray(daughter_offsets, np.int64), np.asarray(daughter_index, np.int64))
    parents = (np.asarray(parent_offsets, np.int64), np.asarray(parent_index, np.int64))

    def is_kind(bits: int) -> NDArray[np.bool_]:
        return (kind_N & bits) != 0

    is_b = from_generator_N & is_kind(IS_B_HADRON) & ~_any_related(is_kind(IS_B_HADRON), *daughters)
    is_d = from_generator_N & is_kind(IS_D_HADRON) & ~_any_related(is_kind(IS_D_HADRON), *daughters)
    has_daughters = np.diff(daughters[0]) > 0
    is_tau = from_generator_N & is_kind(IS_TAU) & has_daughters & ~_any_related(is_kind(IS_TAU | _IS_LIGHT_LEPTON), *daughters)
    is_parton = is_kind(_IS_HARD_PARTON) & ~_any_related(is_kind(_IS_COLOURED), *parents)

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
        top_role=np.where((is_parton & (np.abs(pdg_N) <= B_HADRON))[rows], _top_roles(pdg_N, *parents, rows), 0).astype(np.int8),
    )


def _top_roles(
    pdg_N: NDArray[np.int64], offsets: NDArray[np.int64], index: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """1 where a parent of the particle is a top, 2 where it is a W boson whose ancestry of W bosons begins at one; negative: an antitop."""
    first = np.full(len(pdg_N), -1, np.int64)  # the first parent that there is
    child = np.repeat(np.arange(len(pdg_N)), np.diff(offsets))[::-1]
    known = index[::-1] >= 0
    first[child[known]] = index[::-1][known]
    above = np.where(first[rows] >= 0, first[rows], rows)
    is_of_w = np.abs(pdg_N[above]) == W_BOSON
    for _ in range(_MAX_COPIES):
        is_w = (np.abs(pdg_N[above]) == W_BOSON) & (first[above] >= 0)
        if not is_w.any():
            break
        above = np.where(is_w, first[above], above)
    is_of_top = (np.abs(pdg_N[above]) == TOP) & (above != rows)
    return np.where(is_of_top, np.sign(pdg_N[above]) * np.where(is_of_w, 2, 1), 0)


def particle_kinds(pdg_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The `IS_*` bits of every PDG code; `particle` is asked once per distinct code."""
    codes, inverse = np.unique(pdg_N, return_inverse=True)
    return np.array([_kind(int(code)) for code in codes], np.uint8)[inverse] if len(codes) else np.zeros(0, np.uint8)


@cache
def _kind(code: int) -> int:
    pdgid = PDGID(code)
    magnitude = abs(code)
    bits = 0
    if pdgid.is_hadron and not _is_quarkonium(pdgid):
        bits |= IS_B_HADRON if pdgid.has_bottom else 0
        bits |= IS_D_HADRON if pdgid.has_charm else 0
    bits |= IS_TAU if magnitude == TAU else 0
    bits |= IS_LONG_LIVED if magnitude in map(abs, _LONG_LIVED) else 0
    bits |= _IS_LIGHT_LEPTON if magnitude in _LIGHT_LEPTONS else 0
    bits |= _IS_HARD_PARTON if magnitude in _HARD_PARTONS else 0
    bits |= _IS_COLOURED if _is_coloured(pdgid) else 0
    return bits


def _is_coloured(pdgid: PDGID) -> bool:
    """Whether a parton below it is no hard one: gluons and quarks except top."""
    return bool(pdgid.is_quark or abs(int(pdgid)) == int(pid.g)) and abs(int(pdgid)) != int(pid.t)


def _is_quarkonium(pdgid: PDGID) -> bool:
    """Whether a meson is a quark and its antiquark: for `particle` J/psi has charm and Upsilon bottom, but neither is an open D or B."""
    magnitude = abs(int(pdgid))
    return bool(pdgid.is_meson) and (magnitude // 100) % 10 == (magnitude // 10) % 10


def _any_related(is_wanted_N: NDArray[np.bool_], offsets: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each particle, whether any of its CSR relations (`index[offsets[i]:offsets[i + 1]]`) points to a wanted one."""
    is_hit = np.zeros(len(index) + 1, np.int64)
    is_valid = index >= 0
    is_hit[1:][is_valid] = is_wanted_N[index[is_valid]]
    running = np.cumsum(is_hit)
    return running[offsets[1:]] > running[offsets[:-1]]
