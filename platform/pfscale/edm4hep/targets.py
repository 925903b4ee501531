"""What each element should become: fields of the target columns and of the gen-level columns (physics-spec 3: points 7, 8, gen level)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from particle.pdgid import literals as pid

from pfscale.edm4hep.elements import pseudorapidity
from pfscale.edm4hep.origin import origins
from pfscale.edm4hep.truth import Floats, Indices, Particles, Truth
from pfscale.physics.flavour import flavour_sources
from pfscale.physics.jets import GenJets, gen_jets
from pfscale.physics.kinematics import sum_per_event

CHARGED_HADRON, NEUTRAL_HADRON = int(pid.pi_plus), int(pid.K_L_0)
PHOTON, ELECTRON, MUON = int(pid.photon), int(pid.e_minus), int(pid.mu_minus)
TARGET_CLASSES = (0, CHARGED_HADRON, NEUTRAL_HADRON, PHOTON, ELECTRON, MUON)  # class index -> PDG code; 0: no target
_INDEX = {code: index for index, code in enumerate(TARGET_CLASSES)}


@dataclass(frozen=True)
class EnergyAccount:
    """Where the energy of an event's visible particles went, GeV, (num_events,) each: visible = targets + dropped."""

    visible: Floats
    targets: Floats
    dropped: Floats

    @property
    def closure(self) -> Floats:
        """|visible - targets - dropped| / visible; 0 where nothing is visible."""
        difference = np.abs(self.visible - self.targets - self.dropped)
        return np.divide(difference, self.visible, out=np.zeros_like(difference), where=self.visible > 0)


def target_class(pdg: Indices, charge: Floats, *, on_track: NDArray[np.bool_]) -> NDArray[np.int8]:
    """The class index of particles carried by a track (`on_track`) or by a cluster: what such an element can tell apart."""
    code = np.abs(pdg)
    is_kept = np.isin(code, (PHOTON, ELECTRON, MUON))
    code = np.where(is_kept, code, np.where(charge != 0, CHARGED_HADRON, NEUTRAL_HADRON))
    as_track = np.where(np.isin(code, (NEUTRAL_HADRON, PHOTON)), CHARGED_HADRON, code)
    as_cluster = np.where(np.isin(code, (ELECTRON, PHOTON)), PHOTON, NEUTRAL_HADRON)
    final = np.where(on_track, as_track, as_cluster)
    lookup = np.zeros(max(TARGET_CLASSES) + 1, np.int8)
    lookup[list(_INDEX)] = list(_INDEX.values())
    return lookup[final]


def element_targets(
    particles: Particles, truth: Truth, jet_of_visible: Indices, event_of_element: Indices, num_tracks: int
) -> dict[str, NDArray]:
    """Fields of `track_target` and `cluster_target` over all elements, tracks first; zeros where there is no target."""
    has_target = truth.carried >= 0
    position = truth.carried[has_target]
    particle = truth.visible[position]
    px, py, pz, energy = truth.four_momentum[has_target].T
    pt = np.hypot(px, py)
    first_visible = _first_of_event(particles.event[truth.visible], event_of_element)
    direction = np.divide([py, px], pt, out=np.stack([np.zeros_like(pt), np.ones_like(pt)]), where=pt > 0)
    values = {
        "class": target_class(particles.pdg[particle], particles.charge[particle], on_track=np.flatnonzero(has_target) < num_tracks),
        "charge": np.rint(particles.charge[particle]),
        "pt": pt,
        "eta": pseudorapidity(pt, pz),
        "sin_phi": direction[0],
        "cos_phi": direction[1],
        "energy": energy,
        "status": particles.generator_status[particle],
        "particle_number": position - first_visible[has_target],
        "jet_idx": jet_of_visible[position],
        "gp_to_track": truth.track_weight[has_target],
        "gp_to_cluster": truth.cluster_energy[has_target],
    }
    nothing = {"particle_number": -1, "jet_idx": -1}
    fields = {}
    for name, carried in values.items():
        fields[name] = np.full(len(has_target), nothing.get(name, 0), carried.dtype)
        fields[name][has_target] = carried
    return fields


def gen_particles(
    particles: Particles, truth: Truth, jet_of_visible: Indices, element_offsets: tuple[Indices, Indices]
) -> tuple[Indices, dict[str, NDArray]]:
    """(event of each, fields of `gen_particle`) of the visible particles, in the order of the MC collection."""
    rows = truth.visible
    event = particles.event[rows]
    px, py, pz = particles.px[rows], particles.py[rows], particles.pz[rows]
    pt = np.hypot(px, py)
    return event, {
        "pdg": particles.pdg[rows],
        "charge": np.rint(particles.charge[rows]),
        "pt": pt,
        "eta": pseudorapidity(pt, pz),
        "phi": np.arctan2(py, px),
        "energy": particles.energy[rows],
        "status": particles.generator_status[rows],
        "is_gen_level": truth.is_gen_level[rows],
        "jet_idx": jet_of_visible,
        "owner": _element_in_event(truth.owner, event, *element_offsets),
        "origin": origins(particles.ancestry, pdg=particles.pdg, generator_status=particles.generator_status)[rows],
    }


def jets_of_gen_level(particles: Particles, truth: Truth, *, num_events: int, good: NDArray[np.bool_]) -> tuple[GenJets, Indices]:
    """(gen jets with flavour, jet index of each visible particle within its event or -1)."""
    graph = particles.ancestry
    sources = flavour_sources(
        event=particles.event,
        pdg=particles.pdg,
        generator_status=particles.generator_status,
        px=particles.px,
        py=particles.py,
        pz=particles.pz,
        energy=particles.energy,
        parent_offsets=graph.parents.offsets,
        parent_index=graph.parents.index,
        daughter_offsets=graph.daughters.offsets,
        daughter_index=graph.daughters.index,
    )
    rows = np.flatnonzero(truth.is_gen_level & good[particles.event])
    jets = gen_jets(
        num_events=num_events,
        event=particles.event[rows],
        px=particles.px[rows],
        py=particles.py[rows],
        pz=particles.pz[rows],
        energy=particles.energy[rows],
        sources=sources,
    )
    jet_of_particle = np.full(len(particles), -1, np.int64)
    jet_of_particle[rows] = jets.jet_of_particle
    return jets, jet_of_particle[truth.visible]


def gen_missing_momentum(particles: Particles, truth: Truth, *, num_events: int) -> dict[str, Floats]:
    """Fields of `gen_met`, (num_events,) each, GeV.

    `boost_px` is the px of all particles with generatorStatus 1, neutrinos included: by momentum conservation that is the boost
    sqrt(s) sin(crossing angle / 2) of this event with its beam energies, and it is 0 in files that were made without the crossing angle,
    which no detector table can know. (The CLD test event gives 3.59 GeV; the nominal value is 3.60.)
    """

    def total(values: Floats, of: NDArray[np.bool_]) -> Floats:
        return sum_per_event(particles.event[of], values[of], num_events=num_events)

    stable = particles.generator_status == 1
    neutrinos = stable & particles.is_neutrino & ~truth.is_replaced
    return {
        "px": -total(particles.px, truth.is_gen_level),
        "py": -total(particles.py, truth.is_gen_level),
        "neutrino_px": total(particles.px, neutrinos),
        "neutrino_py": total(particles.py, neutrinos),
        "boost_px": total(particles.px, stable),
    }


def energy_account(particles: Particles, truth: Truth, event_of_element: Indices, *, num_events: int) -> EnergyAccount:
    """Energies of visible particles, of the targets and of what was dropped, per event."""
    event, energy = particles.event[truth.visible], particles.energy[truth.visible]
    is_dropped = truth.owner < 0
    carried = truth.carried >= 0
    return EnergyAccount(
        visible=sum_per_event(event, energy, num_events=num_events),
        targets=sum_per_event(event_of_element[carried], truth.four_momentum[carried, 3], num_events=num_events),
        dropped=sum_per_event(event[is_dropped], energy[is_dropped], num_events=num_events),
    )


def _first_of_event(event_of_visible: Indices, event: Indices) -> Indices:
    """Position of the first visible particle of each given event."""
    return np.searchsorted(event_of_visible, event, side="left")


def _element_in_event(owner: Indices, event: Indices, track_offsets: Indices, cluster_offsets: Indices) -> Indices:
    """Element number within its event (tracks, then clusters) from chunk-wide element numbers; -1 stays."""
    num_tracks = track_offsets[-1]
    as_track = owner - track_offsets[event]
    as_cluster = owner - num_tracks - cluster_offsets[event] + (track_offsets[event + 1] - track_offsets[event])
    return np.where(owner < 0, -1, np.where(owner < num_tracks, as_track, as_cluster))
