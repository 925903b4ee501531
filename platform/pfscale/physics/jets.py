"""Jets of one definition for generator and reconstructed particles: FastJet `ee_genkt_algorithm`, R = 0.4, p = -1, E-scheme, pt > 5 GeV.

With p = -1 this is the anti-kt algorithm for e+e- collisions (distances are angles). All events go through FastJet's awkward interface in
one call: M. Cacciari, G. P. Salam and G. Soyez, Eur. Phys. J. C 72 (2012) 1896, arXiv:1111.6097. The only home of fastjet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfscale.errors import PfscaleError
from pfscale.physics.flavour import B_HADRON, D_HADRON, TAU, FlavourSources
from pfscale.physics.kinematics import Floats, deltaR, pt_eta_phi
from pfscale.physics.matching import match_jets
from pfscale.physics.ragged import index_within_event, pairs_within_events

JET_RADIUS = 0.4
JET_POWER = -1.0
MIN_JET_PT = 5.0  # GeV
PARTON_MAX_DELTA_R = 0.4
# A ghost must be found in its jet without moving it: below the last bit of real momenta, and its square far above the smallest double.
GHOST_SCALE = 1e-18


@dataclass(frozen=True)
class Jets:
    """Jets of a batch of events, grouped by event, in descending pt within each.

    `event` int64; `pt, eta, phi, energy` float64 (GeV, rad), all of shape (num_jets,).
    `jet_of_particle` int32, shape (num_particles,): index *within its event* of the jet that holds each input particle, -1: none.
    """

    event: NDArray[np.int64]
    pt: Floats
    eta: Floats
    phi: Floats
    energy: Floats
    jet_of_particle: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.event)


@dataclass(frozen=True)
class GenJets(Jets):
    """Jets of generator-level particles.

    `flavour` int8: 5, 4, 15, 3, 2, 1, 21; 0: none found. `top_role` int8: one of `flavour.TOP_ROLES`.
    """

    flavour: NDArray[np.int8]
    top_role: NDArray[np.int8]


def cluster_jets(*, num_events: int, event: ArrayLike, px: ArrayLike, py: ArrayLike, pz: ArrayLike, energy: ArrayLike) -> Jets:
    """The jets of a batch of events.

    Args:
        num_events: events in the batch; those without particles have no jets.
        event: event of each particle, shape (num_particles,), in any order.
        px, py, pz, energy: of each particle, GeV.

    Raises:
        PfscaleError: a momentum is not finite (FastJet would return wrong jets without a word).
    """
    clustered = _cluster(num_events, np.asarray(event, np.int64), _momenta(px, py, pz, energy))
    return Jets(*clustered.kinematics(), jet_of_particle=clustered.jet_of_particle)


def gen_jets(
    *,
    num_events: int,
    event: ArrayLike,
    px: ArrayLike,
    py: ArrayLike,
    pz: ArrayLike,
    energy: ArrayLike,
    sources: FlavourSources | None,
) -> GenJets:
    """The jets of generator-level particles, with flavours and roles if `sources` are given (all 0 otherwise).

    A jet is b if it holds the ghost of a B hadron, else c (D hadron), else tau (hadronic tau), else of the nearest hard parton
    within deltaR 0.4, else 0. Partons of tops are matched one-to-one to jets within deltaR 0.4, the closest pair first.
    Arguments and errors as `cluster_jets`.
    """
    event_N = np.asarray(event, np.int64)
    momenta = _momenta(px, py, pz, energy)
    if sources is None:
        plain = _cluster(num_events, event_N, momenta)
        nothing = np.zeros(len(plain.event), np.int8)
        return GenJets(*plain.kinematics(), jet_of_particle=plain.jet_of_particle, flavour=nothing, top_role=nothing.copy())
    ghost = sources.is_ghost
    ghost_momenta = _momenta(sources.px[ghost], sources.py[ghost], sources.pz[ghost], sources.energy[ghost]) * GHOST_SCALE
    clustered = _cluster(num_events, np.concatenate([event_N, sources.event[ghost]]), np.concatenate([momenta, ghost_momenta], axis=1))
    jet_of_particle, jet_of_ghost = np.split(clustered.jet_of_particle, [len(event_N)])
    return GenJets(
        *clustered.kinematics(),
        jet_of_particle=jet_of_particle,
        flavour=_flavours(clustered, sources, jet_of_ghost, num_events),
        top_role=_top_roles(clustered, sources, num_events),
    )


@dataclass(frozen=True)
class _Clustered:
    """Jets as FastJet's momenta, grouped by event and in descending pt, and where each particle went."""

    event: NDArray[np.int64]
    momenta: Floats  # (4, num_jets): px, py, pz, energy
    jet_of_particle: NDArray[np.int32]

    def kinematics(self) -> tuple[NDArray[np.int64], Floats, Floats, Floats, Floats]:
        px, py, pz, energy = self.momenta
        return (self.event, *pt_eta_phi(px, py, pz), energy)


def _momenta(px: ArrayLike, py: ArrayLike, pz: ArrayLike, energy: ArrayLike) -> Floats:
    momenta = np.stack([np.asarray(a, np.float64) for a in (px, py, pz, energy)])
    if not np.isfinite(momenta).all():
        bad = int((~np.isfinite(momenta)).any(axis=0).sum())
        raise PfscaleError(
            f"{bad} of {momenta.shape[1]} momenta are not finite", where="jet clustering", hint="look at the model or file they come from"
        )
    return momenta


def _cluster(num_events: int, event_N: NDArray[np.int64], momenta: Floats) -> _Clustered:
    """All events' jets in one call of FastJet."""
    if not len(event_N):
        return _Clustered(np.zeros(0, np.int64), np.zeros((4, 0)), np.zeros(0, np.int32))
    order = np.argsort(event_N, kind="stable")
    counts = np.bincount(event_N, minlength=num_events)
    if len(counts) > num_events:
        raise ValueError(f"event index {len(counts) - 1} in a batch of {num_events} events")
    columns = {name: column[order] for name, column in zip(("px", "py", "pz", "E"), momenta, strict=True)}
    sequence = _fastjet().ClusterSequence(ak.unflatten(ak.zip(columns), counts), _jet_definition())
    jets = sequence.inclusive_jets(min_pt=MIN_JET_PT)
    constituents = sequence.constituent_index(min_pt=MIN_JET_PT)

    jet_event = np.repeat(np.arange(num_events), ak.to_numpy(ak.num(jets)))
    flat = ak.flatten(jets)
    jet_momenta = np.stack([ak.to_numpy(flat[name]).astype(np.float64) for name in ("px", "py", "pz", "E")])
    by_pt = np.lexsort((-np.hypot(jet_momenta[0], jet_momenta[1]), jet_event))
    rank = np.empty(len(by_pt), np.int32)
    rank[by_pt] = index_within_event(jet_event)

    sizes = ak.to_numpy(ak.flatten(ak.num(constituents, axis=2)))
    first_row = np.concatenate([[0], np.cumsum(counts)])[:-1]
    rows = ak.to_numpy(ak.flatten(constituents, axis=None)).astype(np.int64) + np.repeat(first_row[jet_event], sizes)
    jet_of_particle = np.full(len(event_N), -1, np.int32)
    jet_of_particle[order[rows]] = np.repeat(rank, sizes)
    return _Clustered(jet_event[by_pt], jet_momenta[:, by_pt], jet_of_particle)


def _flavours(jets: _Clustered, sources: FlavourSources, jet_of_ghost: NDArray[np.int32], num_events: int) -> NDArray[np.int8]:
    """The flavour of every jet: ghosts first (b, c, tau), then the nearest hard parton within deltaR 0.4."""
    flavour = np.zeros(len(jets.event), np.int8)
    first_jet = np.searchsorted(jets.event, np.arange(num_events))
    parton = ~sources.is_ghost
    _, jet_eta, jet_phi = pt_eta_phi(*jets.momenta[:3])
    _, parton_eta, parton_phi = pt_eta_phi(sources.px[parton], sources.py[parton], sources.pz[parton])
    jet, near = pairs_within_events(jets.event, sources.event[parton], num_events=num_events)
    distance = deltaR(jet_eta[jet], jet_phi[jet], parton_eta[near], parton_phi[near])
    close = np.flatnonzero(distance < PARTON_MAX_DELTA_R)
    farthest_first = close[np.argsort(-distance[close], kind="stable")]  # the last assignment, the nearest, stays
    flavour[jet[farthest_first]] = sources.flavour[parton][near[farthest_first]]

    ghost_flavour, ghost_event = sources.flavour[sources.is_ghost], sources.event[sources.is_ghost]
    for wanted in (TAU, D_HADRON, B_HADRON):  # the last one wins
        held = (ghost_flavour == wanted) & (jet_of_ghost >= 0)
        flavour[first_jet[ghost_event[held]] + jet_of_ghost[held]] = wanted
    return flavour


def _top_roles(jets: _Clustered, sources: FlavourSources, num_events: int) -> NDArray[np.int8]:
    """The role of every jet in the decay of a top, from the parton that it is matched to; 0: none."""
    role = np.zeros(len(jets.event), np.int8)
    of_top = np.flatnonzero(sources.top_role)
    if not len(of_top):  # nothing is compiled for events without tops
        return role
    _, jet_eta, jet_phi = pt_eta_phi(*jets.momenta[:3])
    _, parton_eta, parton_phi = pt_eta_phi(sources.px[of_top], sources.py[of_top], sources.pz[of_top])
    matches = match_jets(
        num_events=num_events,
        reco_event=sources.event[of_top],
        reco_eta=parton_eta,
        reco_phi=parton_phi,
        gen_event=jets.event,
        gen_eta=jet_eta,
        gen_phi=jet_phi,
        max_delta_r=PARTON_MAX_DELTA_R,
    )
    role[matches.gen] = sources.top_role[of_top][matches.reco]
    return role


@lru_cache(maxsize=1)
def _fastjet() -> Any:
    """The fastjet module, imported when the first jet is needed, its banner on standard output off (README.md has the citation)."""
    import fastjet
    import fastjet._swig

    fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)
    return fastjet


@lru_cache(maxsize=1)
def _jet_definition() -> Any:
    return _fastjet().JetDefinition(_fastjet().ee_genkt_algorithm, JET_RADIUS, JET_POWER)
