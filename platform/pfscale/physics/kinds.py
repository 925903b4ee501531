"""What kind of particle a PDG code is, as bits, for whatever is found in the ancestry of MC particles."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from particle import PDGID
from particle.pdgid import literals as pid

IS_B_HADRON, IS_D_HADRON, IS_TAU, IS_LIGHT_LEPTON, IS_HARD_PARTON, IS_COLOURED, IS_LONG_LIVED_STRANGE = (1 << bit for bit in range(7))
_HARD_PARTONS = tuple(int(p) for p in (pid.d, pid.u, pid.s, pid.c, pid.b, pid.g))
_LIGHT_LEPTONS = (int(pid.e_minus), int(pid.mu_minus))
_LONG_LIVED_STRANGE = tuple(  # they fly centimetres or more
    int(p) for p in (pid.K_S_0, pid.K_L_0, pid.K_plus, pid.Lambda, pid.Sigma_plus, pid.Sigma_minus, pid.Xi_0, pid.Xi_minus, pid.Omega_minus)
)


def kinds(pdg_N: NDArray[np.int64]) -> NDArray[np.uint8]:
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
    bits |= IS_TAU if magnitude == int(pid.tau_minus) else 0
    bits |= IS_LIGHT_LEPTON if magnitude in _LIGHT_LEPTONS else 0
    bits |= IS_HARD_PARTON if magnitude in _HARD_PARTONS else 0
    bits |= IS_COLOURED if _is_coloured(pdgid) else 0
    bits |= IS_LONG_LIVED_STRANGE if magnitude in _LONG_LIVED_STRANGE else 0
    return bits


def _is_coloured(pdgid: PDGID) -> bool:
    """Whether a parton below it is no hard one: gluons and quarks except top."""
    return bool(pdgid.is_quark or abs(int(pdgid)) == int(pid.g)) and abs(int(pdgid)) != int(pid.t)


def _is_quarkonium(pdgid: PDGID) -> bool:
    """Whether a meson is a quark and its antiquark: for `particle` J/psi has charm and Upsilon bottom, but neither is an open D or B."""
    magnitude = abs(int(pdgid))
    return bool(pdgid.is_meson) and (magnitude // 100) % 10 == (magnitude // 10) % 10
