"""Rule-based particle flow: candidates from tracks and clusters, with nothing but what was measured. The line that a model has to beat.

1. A track goes on behind the calorimeter's face as a straight line, and enters the cluster with most hits on that line (association.py).
2. A track whose momentum is hardly measured is no particle of its own where another one enters the same cluster (found twice), or where it
   enters none. Errors count by the root of chi2 / ndf.
3. Hits on the line all through the calorimeters and in the chambers, with little energy: a muon. An electromagnetic cluster of the track's
   energy: an electron. All others are charged hadrons.
4. Groups of tracks in one cluster take up fragments while energy and momentum agree better, or not much worse (association.py).
5. A group with significantly more energy than momentum hides a neutral particle in its largest cluster, which gets the difference, less
   what groups whose tracks cross the cluster lack: a photon if the ECAL holds more than the tracks explain, else a neutral hadron.
6. Clusters of no group are photons if their shape is electromagnetic (shower_shapes.py), else neutral hadrons, with their fragments.

Charged candidates have the momentum of their track; one that is measured worse than the energy of its group is averaged with it. Neutral
ones have the energy of their cluster (hadrons with `association.HADRON_WEIGHTS`, photons without, and so do groups of electrons), along
its middle. Neutral hadrons are called neutrons and have equal energy and momentum, as PandoraPFA writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from particle.pdgid import literals as pid

from pfscale.simulation.association import (
    HADRON_WEIGHTS,
    Groups,
    Lines,
    OnLine,
    Rules,
    count_bits,
    distance_to_hits,
    entered_cluster,
    hadronic_energy,
    hadronic_variance,
    make_groups,
    on_line,
    rules,
    take_fragments,
)
from pfscale.simulation.compiled import compiled
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import FloatArray, IntArray
from pfscale.simulation.helix import CURVATURE, to_calorimeter
from pfscale.simulation.material import MASS_ELECTRON, MASS_NEUTRON, MASS_PION
from pfscale.simulation.shower_shapes import ClusterHits, Shapes, cluster_shapes
from pfscale.simulation.tracks import Tracks

PION, ELECTRON, MUON = int(pid.pi_plus), int(pid.e_minus), int(pid.mu_minus)
PHOTON, NEUTRAL_HADRON = int(pid.gamma), int(pid.n)
MASSES = {PION: MASS_PION, ELECTRON: MASS_ELECTRON, MUON: 0.10566, PHOTON: 0.0, NEUTRAL_HADRON: MASS_NEUTRON}  # GeV
EXCESS_SIGMA = 2.3  # energy over momentum that makes a neutral particle, in standard deviations ...
LEAST_EXCESS = 0.5  # ... and in GeV
LACKING_SIGMA = 1.0  # momentum over energy of another group that explains an excess on its tracks' lines
HADRON_ECAL_SHARE = 0.4  # mean part of a charged hadron's energy in the ECAL
PHOTON_EXCESS = 0.9  # part of an excess that must be in the ECAL to call it a photon
FRAGMENT = (150.0, 350.0)  # mm to a larger free cluster of which one that begins in ECAL or HCAL is then a fragment
MUON_DEPTH = 0.95  # least path to the last hit on the line, in the depth of the calorimeters
MUON_HITS = 0.6  # least number of hits on the line, per section
MUON_ENERGY = 2.5  # most energy on the line, in that of a minimum-ionising particle at normal incidence
MUON_CHAMBERS = 2  # least hits in chambers on the line, where there are chambers ...
LEAST_CHAMBERS = 3.5  # ... above this momentum, GeV, ...
MUON_SECTIONS = 0.85  # ... and for lines with hits in at least this part of the HCAL's sections
ELECTRON_SIGMA = 2.5  # most between energy and momentum
POOR = 0.15  # error of a momentum, in parts of it, from which on it is hardly measured
ELECTRON_CORE = 0.7  # least core of its shower
LEAST_ELECTRON = 0.5  # GeV


@dataclass(frozen=True)
class Candidates:
    """Particle-flow candidates of several events, ordered by event, charged ones first, in the order of their tracks and clusters.

    Every track is in one candidate, or in none if its momentum is hardly measured and it enters no cluster; every cluster is in one, and
    in a second one where a neutral particle was split off.
    Units: GeV.

    Attributes:
        momentum: (P, 3).
        track_of: pairs (2, R): candidate, track, both as indices into the flat arrays, ordered by candidate.
        cluster_of: pairs (2, R): candidate, cluster, same.
    """

    event: IntArray
    pdg: IntArray
    charge: FloatArray
    mass: FloatArray
    energy: FloatArray
    momentum: FloatArray
    track_of: IntArray
    cluster_of: IntArray

    def __len__(self) -> int:
        return len(self.event)


class Found(NamedTuple):
    """What the compiled part finds: per track, per cluster, and per cluster from which a neutral particle was split."""

    track_kind: IntArray  # (T,) PDG number without sign
    track_momentum: FloatArray  # (T,) absolute value
    track_owner: IntArray  # (T,) the track whose candidate it is part of, as a rule itself, -1: none
    cluster_track: IntArray  # (C,) the track that the cluster goes to, -1: none
    cluster_kind: IntArray  # (C,) of free clusters
    cluster_owner: IntArray  # (C,) the free cluster whose candidate a free cluster is part of, as a rule itself
    excess: FloatArray  # (C,) GeV, 0: none
    excess_kind: IntArray  # (C,)


def find_candidates(tracks: Tracks, hits: ClusterHits, cluster_event: IntArray, detector: DetectorModel, num_events: int) -> Candidates:
    """The candidates of all events. `hits`: of the clusters, whose events are `cluster_event` (C,), in order."""
    lines, momentum, charge = _lines(tracks, detector)
    numbers = rules(detector)
    shapes = cluster_shapes(hits, numbers.layers)
    events = np.arange(num_events + 1)
    of_tracks, of_clusters = np.searchsorted(tracks.event, events), np.searchsorted(cluster_event, events)
    found = _all_events(numbers, lines, of_tracks, hits, shapes, of_clusters)
    neutral = _neutral(found, shapes)
    own = np.flatnonzero(found.track_owner == np.arange(len(tracks)))
    scale = found.track_momentum / lines.momentum
    kind = np.concatenate([found.track_kind[own], neutral.kind])
    mass = np.array([MASSES[code] for code in kind.tolist()])
    flat = np.concatenate([(momentum * scale[:, None])[own], neutral.momentum])
    energy = np.concatenate([np.hypot(found.track_momentum[own], mass[: len(own)]), neutral.energy])
    event = np.concatenate([tracks.event[own], cluster_event[neutral.largest]])
    charges = np.concatenate([charge[own], np.zeros(len(neutral.kind))])
    order = np.argsort(event, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    of_track = np.full(len(tracks), -1)
    of_track[own] = number[: len(own)]
    used, taken = np.flatnonzero(found.track_owner >= 0), np.flatnonzero(found.cluster_track >= 0)
    track_pairs = np.stack([of_track[found.track_owner[used]], used])
    charged_pairs = np.stack([of_track[found.cluster_track[taken]], taken])
    cluster_pairs = np.concatenate([charged_pairs, np.stack([number[len(own) :][neutral.cluster_of[0]], neutral.cluster_of[1]])], axis=1)
    is_lepton = (kind == ELECTRON) | (kind == MUON)
    return Candidates(
        event=event[order],
        pdg=(kind * np.where(charges == 0, 1, np.where(is_lepton, -charges, charges)).astype(np.int64))[order],
        charge=charges[order],
        mass=mass[order],
        energy=energy[order],
        momentum=flat[order],
        track_of=track_pairs[:, np.lexsort(track_pairs[::-1])],
        cluster_of=cluster_pairs[:, np.lexsort(cluster_pairs[::-1])],
    )


class Neutral(NamedTuple):
    """Neutral candidates of all events, (N,) or (N, 3): from free clusters, then those split off."""

    largest: IntArray  # of their clusters
    kind: IntArray  # PDG number
    energy: FloatArray
    momentum: FloatArray
    cluster_of: IntArray  # pairs (2, R): candidate, cluster


def _neutral(found: Found, shapes: Shapes) -> Neutral:
    """The neutral candidates, along the middle of their clusters."""
    free, split = np.flatnonzero(found.cluster_track < 0), np.flatnonzero(found.excess > 0.0)
    largest = free[found.cluster_owner[free] == free]
    of_free = np.searchsorted(largest, found.cluster_owner[free])
    weighted = np.where(found.cluster_kind == PHOTON, shapes.energy, hadronic_energy(shapes.ecal, shapes.energy))[free]
    sums = [np.bincount(of_free, weighted * factor, len(largest)) for factor in (1.0, *shapes.centre[free].T)]
    middle = np.concatenate([np.stack(sums[1:], axis=1), shapes.centre[split]])
    energy = np.concatenate([sums[0], found.excess[split]])
    direction = middle / np.maximum(np.sqrt((middle**2).sum(axis=1, keepdims=True)), 1e-12)
    candidate = np.concatenate([of_free, len(largest) + np.arange(len(split))])
    return Neutral(
        largest=np.concatenate([largest, split]),
        kind=np.concatenate([found.cluster_kind[largest], found.excess_kind[split]]),
        energy=energy,
        momentum=direction * energy[:, None],
        cluster_of=np.stack([candidate, np.concatenate([free, split])]),
    )


def _lines(tracks: Tracks, detector: DetectorModel) -> tuple[Lines, FloatArray, FloatArray]:
    """The measured helices behind the calorimeter's face, the momenta (T, 3) and charges (T,) at the origin."""
    d0, phi, omega, z0, tan_lambda = tracks.parameters.T
    pt = CURVATURE * detector.b_field / np.abs(omega)
    momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * tan_lambda], axis=1)
    charge = np.sign(omega)
    origin = np.stack([-d0 * np.sin(phi), d0 * np.cos(phi), z0], axis=1)
    point, direction, arc, _ = to_calorimeter(origin, momentum, charge, detector.b_field, detector.ecal_radius, detector.ecal_z)
    absolute = pt * np.hypot(1.0, tan_lambda)
    fit = np.maximum(tracks.chi2 / tracks.ndf, 1.0)
    sigma = absolute * np.sqrt(tracks.covariance[:, 5] * fit) / np.abs(omega)  # the angle's error does not count beside it
    return Lines(arc >= 0, point, direction, absolute, sigma), momentum, charge


@compiled
def _all_events(rules: Rules, lines: Lines, of_tracks: IntArray, hits: ClusterHits, shapes: Shapes, of_clusters: IntArray) -> Found:
    """What is found in events whose tracks and clusters begin at `of_tracks` and `of_clusters` (E + 1,)."""
    num_tracks, num_clusters = len(lines.momentum), len(shapes.energy)
    found = Found(
        np.full(num_tracks, PION),
        lines.momentum.copy(),
        np.arange(num_tracks),
        np.full(num_clusters, -1),
        np.where(shapes.is_electromagnetic == 1, PHOTON, NEUTRAL_HADRON),
        np.arange(num_clusters),
        np.zeros(num_clusters),
        np.full(num_clusters, NEUTRAL_HADRON),
    )
    for k in range(len(of_tracks) - 1):
        _one_event(rules, lines, of_tracks[k], of_tracks[k + 1], hits, shapes, of_clusters[k], of_clusters[k + 1], found)
    return found


@compiled
def _one_event(rules: Rules, lines: Lines, t0: int, t1: int, hits: ClusterHits, shapes: Shapes, c0: int, c1: int, found: Found) -> None:
    """Fills `found` for the event with tracks t0:t1 and clusters c0:c1."""
    entered = np.full(t1 - t0, -1)
    expected, variance = np.empty(t1 - t0), np.empty(t1 - t0)
    for t in range(t0, t1):
        line = OnLine(0, 0, 0.0, 0.0)
        if lines.reaches[t]:
            entered[t - t0], line = entered_cluster(rules, lines, t, hits, shapes, c0, c1)
        kind, expected[t - t0], variance[t - t0] = _identify(rules, lines, t, shapes, entered[t - t0], line)
        found.track_kind[t] = kind
    _join_poor_tracks(lines, t0, t1, entered, expected, variance, found.track_owner)
    groups = make_groups(entered, expected, variance, found.track_kind[t0:t1] == ELECTRON, shapes, c0, c1)
    take_fragments(lines, t0, hits, shapes, c0, groups, rules)
    leading = np.full(len(groups.found), -1)
    members = np.zeros(len(groups.found), dtype=np.int64)
    for t in range(t0, t1):
        g = groups.of_track[t - t0]
        if found.track_owner[t] != t:
            continue
        members[g] += 1
        if leading[g] < 0 or lines.momentum[t] > lines.momentum[leading[g]]:
            leading[g] = t
    largest = np.full(len(groups.found), -1)
    for c in range(c0, c1):
        g = groups.of_cluster[c - c0]
        if g >= 0:
            found.cluster_track[c] = leading[g]
            if largest[g] < 0 or shapes.energy[c] > shapes.energy[largest[g]]:
                largest[g] = c
    for g in range(len(groups.found)):
        if members[g] == 1 and groups.found[g] > 0.0:
            _average(rules, lines, leading[g], g, groups, found)
    for g in range(len(groups.found)):
        if largest[g] >= 0:
            _split_excess(rules, lines, t0, hits, shapes, g, largest[g], groups, found)
    _join_fragments(rules, hits, shapes, c0, c1, found)


@compiled
def _join_poor_tracks(
    lines: Lines, t0: int, t1: int, entered: IntArray, expected: FloatArray, variance: FloatArray, owner: IntArray
) -> None:
    """Tracks t0:t1 whose momenta are hardly measured become parts of the best one that enters the same cluster, or of nothing."""
    for t in range(t0, t1):
        if lines.sigma[t] < POOR * lines.momentum[t]:
            continue
        if entered[t - t0] < 0:
            owner[t] = -1
            lines.reaches[t] = False
        else:
            best = t
            for other in range(t0, t1):
                is_better = lines.sigma[other] * lines.momentum[best] < lines.sigma[best] * lines.momentum[other]
                if entered[other - t0] == entered[t - t0] and is_better:
                    best = other
            owner[t] = best
        if owner[t] != t:
            expected[t - t0], variance[t - t0] = 0.0, 0.0


@compiled
def _identify(rules: Rules, lines: Lines, t: int, shapes: Shapes, cluster: int, line: OnLine) -> tuple[int, float, float]:
    """(PDG number of track `t`, energy that it should leave, its variance), from the cluster it enters and the hits on its line."""
    momentum, error = lines.momentum[t], lines.sigma[t]
    if _is_muon(rules, momentum, line):
        return MUON, line.energy, hadronic_variance(rules, line.energy)
    if cluster >= 0 and shapes.is_electromagnetic[cluster] and shapes.core[cluster] > ELECTRON_CORE and momentum > LEAST_ELECTRON:
        variance = rules.em_stochastic**2 * momentum + (2.0 * rules.em_constant * momentum) ** 2 + error**2
        if abs(shapes.energy[cluster] - momentum) < ELECTRON_SIGMA * np.sqrt(variance):
            return ELECTRON, momentum, variance
    return PION, momentum, hadronic_variance(rules, momentum) + error**2


@compiled
def _is_muon(rules: Rules, momentum: float, line: OnLine) -> bool:
    """Whether the hits on a track's line are those of a muon: as deep as the calorimeters, many, in the chambers, with little energy.

    Between barrel and endcaps a line leaves the sections of the one for those of the other and misses chambers: none are asked for there.
    """
    num_ecal, num_hcal = rules.layers.ecal, rules.layers.both - rules.layers.ecal
    ionisation = rules.ecal_mip * num_ecal + rules.hcal_mip * num_hcal
    is_deep = line.depth > MUON_DEPTH * rules.depth and line.number >= MUON_HITS * rules.layers.both
    if not is_deep or line.energy > MUON_ENERGY * ionisation:
        return False
    in_hcal = count_bits((line.sections & ((1 << rules.layers.both) - 1)) >> num_ecal)
    if not rules.has_chambers or momentum < LEAST_CHAMBERS or in_hcal < MUON_SECTIONS * num_hcal:
        return True
    return count_bits(line.sections >> rules.layers.both) >= MUON_CHAMBERS


@compiled
def _average(rules: Rules, lines: Lines, t: int, g: int, groups: Groups, found: Found) -> None:
    """Replaces the momentum of a hadron's track by its mean with the energy of its group, where that is measured better."""
    of_track, of_energy = lines.sigma[t] ** 2, hadronic_variance(rules, groups.found[g])
    if found.track_kind[t] != PION or of_track < of_energy:
        return
    mean = (lines.momentum[t] * of_energy + groups.found[g] * of_track) / (of_energy + of_track)
    found.track_momentum[t] = mean
    groups.expected[g] = mean


@compiled
def _split_excess(
    rules: Rules, lines: Lines, t0: int, hits: ClusterHits, shapes: Shapes, g: int, c: int, groups: Groups, found: Found
) -> None:
    """Gives the largest cluster `c` of group `g` a neutral particle if the group has too much energy.

    Also to a group that enters no cluster: what such a track takes as a fragment may be a photon whose halo it grazes.
    """
    excess = groups.found[g] - groups.expected[g]
    if excess < EXCESS_SIGMA * np.sqrt(groups.variance[g]) or excess < LEAST_EXCESS:
        return
    for k in range(len(groups.of_track)):
        other = groups.of_track[k]
        lacking = groups.expected[other] - groups.found[other]
        if other == g or not lines.reaches[t0 + k] or lacking < LACKING_SIGMA * np.sqrt(groups.variance[other]):
            continue
        if on_line(rules, lines, t0 + k, hits, shapes, c)[0].number:
            moved = min(lacking, excess)
            excess -= moved
            groups.found[other] += moved
            groups.found[g] -= moved
    if excess < EXCESS_SIGMA * np.sqrt(groups.variance[g]) or excess < LEAST_EXCESS:
        return
    of_photon = excess if groups.is_electron[g] else excess / HADRON_WEIGHTS[0]
    unexplained = shapes.ecal[c] - (1.0 if groups.is_electron[g] else HADRON_ECAL_SHARE) * groups.expected[g]
    is_photon = unexplained > PHOTON_EXCESS * of_photon
    found.excess[c] = of_photon if is_photon else excess
    if is_photon:
        found.excess_kind[c] = PHOTON


@compiled
def _join_fragments(rules: Rules, hits: ClusterHits, shapes: Shapes, c0: int, c1: int, found: Found) -> None:
    """Makes free clusters of hadrons parts of larger ones near them: a neutral hadron's shower, too, falls into fragments."""
    order = c0 + np.argsort(-shapes.energy[c0:c1])
    for k in range(len(order)):
        c = order[k]
        if found.cluster_track[c] >= 0 or found.cluster_kind[c] == PHOTON:
            continue
        nearest = FRAGMENT[0] if shapes.front[c] < rules.layers.ecal else FRAGMENT[1]
        for larger in order[:k]:
            if found.cluster_track[larger] < 0 and found.cluster_kind[larger] != PHOTON:
                distance = distance_to_hits(hits, shapes, larger, shapes.inner[c], nearest)
                if distance < nearest:
                    nearest, found.cluster_owner[c] = distance, found.cluster_owner[larger]
