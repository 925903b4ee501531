"""What an evaluation compares on shard events: a model's candidates, the truth targets, the file's own candidates, bare clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from particle.pdgid import literals as pid

from pfscale.physics.evaluation import CALORIMETER_ONLY, MLPF, RULE_BASED, TRUTH_TARGETS, GenReference, calorimeter_only
from pfscale.physics.evaluation import Candidates as Particles
from pfscale.physics.kinematics import cartesian, invariant_mass, pt_eta_phi, sum_per_event
from pfscale.physics.particles import ElementPredictions
from pfscale.shards.ragged import GEN_COLUMNS, INPUT_COLUMNS, TARGET_COLUMNS, RaggedEvents, list_leaves, struct_leaf
from pfscale.shards.schema import CLASSES
from pfscale.tasks.reconstruction import Candidates, target_candidates

_BASELINE_FIELDS = ("pdg", "charge", "px", "py", "pz", "energy", "track_index.list.element", "cluster_index.list.element")
BASELINE_COLUMNS = tuple(f"baseline.list.element.{name}" for name in _BASELINE_FIELDS)
_VISIBLE_COLUMNS = tuple(f"gen_particle.list.element.{name}" for name in ("pt", "eta", "phi", "energy", "is_gen_level"))
_CHARGED_HADRON, _NEUTRAL_HADRON = CLASSES.index("211"), CLASSES.index("130")
_PHOTON, _ELECTRON, _MUON = (CLASSES.index(name) for name in ("22", "11", "13"))


@dataclass(frozen=True)
class Reconstructions:
    """What several reconstructions make of the same events.

    Attributes:
        candidates: reconstruction -> its particles.
        elements: reconstruction that assigns particles to elements -> prediction beside target of every element.
        gen: the truth.
    """

    candidates: Mapping[str, Particles]
    elements: Mapping[str, ElementPredictions]
    gen: GenReference


def evaluation_columns(*, has_baseline: bool) -> tuple[str, ...]:
    """The columns of shards that `reconstructions_of` looks at."""
    return (*INPUT_COLUMNS, *TARGET_COLUMNS, *GEN_COLUMNS, *_VISIBLE_COLUMNS, *(BASELINE_COLUMNS if has_baseline else ()))


def model_columns(*, with_particles: bool) -> tuple[str, ...]:
    """The columns of shards that `model_alone` looks at."""
    return (*INPUT_COLUMNS, *GEN_COLUMNS, *_VISIBLE_COLUMNS, *(TARGET_COLUMNS if with_particles else ()))


def model_alone(events: RaggedEvents, predicted: Candidates, *, with_particles: bool) -> Reconstructions:
    """The model's candidates with the truth of whole events, and of particles where they are asked for; nothing beside them."""
    elements = {MLPF: _model_elements(events, predicted)} if with_particles else {}
    return Reconstructions({MLPF: predicted}, elements, gen_reference(events))


def reconstructions_of(events: RaggedEvents, predicted: Candidates, *, has_baseline: bool) -> Reconstructions:
    """The model's candidates beside truth targets, bare clusters and, where the file has one, the rule-based reconstruction."""
    found: dict[str, Particles] = {MLPF: predicted, TRUTH_TARGETS: truth_candidates(events)}
    elements = {MLPF: _model_elements(events, predicted)}
    if has_baseline:
        found[RULE_BASED], carriers, classes = _baseline(events)
        kept = _one_per_element(carriers, found[RULE_BASED].energy)
        elements[RULE_BASED] = element_predictions(events, carriers[kept], classes[kept], _rows_of(found[RULE_BASED], kept))
    found[CALORIMETER_ONLY] = _clusters(events)
    return Reconstructions(found, elements, gen_reference(events))


def _model_elements(events: RaggedEvents, predicted: Candidates) -> ElementPredictions:
    rows = events.offsets[predicted.event] + predicted.element_index
    return element_predictions(events, rows, _classes_of_scores(predicted), predicted)


def truth_candidates(events: RaggedEvents) -> Candidates:
    """The ceiling: the candidates that a model without any error would give."""
    element = np.arange(len(events.is_track)) - np.repeat(events.offsets[:-1], events.lengths)
    return target_candidates(event=events.event, element_index=element, is_track=events.is_track, targets=events.targets)


def gen_reference(events: RaggedEvents) -> GenReference:
    """Gen jets, missing momentum, and energy and mass of the gen-level particles of every event."""
    offsets, jets = list_leaves(events.table, "gen_jet")
    energy, mass = _visible(events)
    return GenReference(
        num_events=events.num_events,
        jet_event=_event_of(offsets),
        jet_pt=jets["pt"],
        jet_eta=jets["eta"],
        jet_phi=jets["phi"],
        jet_energy=jets["energy"],
        met_px=struct_leaf(events.table, "gen_met", "px"),
        met_py=struct_leaf(events.table, "gen_met", "py"),
        visible_energy=energy,
        visible_mass=mass,
    )


def element_predictions(
    events: RaggedEvents, rows: NDArray[np.int64], classes: NDArray[np.int64], particles: Particles
) -> ElementPredictions:
    """Target and prediction of every element.

    Args:
        rows: (k,) element of `events` (all events in one row) that carries each particle; none twice.
        classes: (k,) index into CLASSES of each.
    """

    def of_elements(values: ArrayLike, dtype: type) -> NDArray:
        spread: NDArray = np.zeros(len(events.is_track), dtype)
        spread[rows] = values
        return spread

    pt, eta, _ = pt_eta_phi(particles.px, particles.py, particles.pz)
    return ElementPredictions(
        event=events.event,
        target_class=events.targets["class"].astype(np.int8),
        target_pt=events.targets["pt"],
        target_eta=events.targets["eta"],
        target_energy=events.targets["energy"],
        pred_class=of_elements(classes, np.int8),
        pred_pt=of_elements(pt, np.float32),
        pred_eta=of_elements(eta, np.float32),
        pred_energy=of_elements(particles.energy, np.float32),
    )


def joined(parts: Sequence[Reconstructions]) -> Reconstructions:
    """The events of all parts as one sample, numbered through."""
    starts = np.cumsum([0, *(part.gen.num_events for part in parts[:-1])])
    sizes = [part.gen.num_events for part in parts]
    candidates = {key: joined_particles([part.candidates[key] for part in parts], sizes) for key in parts[0].candidates}
    elements = {
        key: ElementPredictions(
            event=np.concatenate([part.elements[key].event + start for part, start in zip(parts, starts, strict=True)]),
            **{
                field.name: np.concatenate([getattr(part.elements[key], field.name) for part in parts])
                for field in fields(ElementPredictions)
                if field.name != "event"
            },
        )
        for key in parts[0].elements
    }
    gens = [part.gen for part in parts]
    jet_event = np.concatenate([gen.jet_event + start for gen, start in zip(gens, starts, strict=True)])
    arrays = {
        name: np.concatenate([getattr(gen, name) for gen in gens])
        for name in ("jet_pt", "jet_eta", "jet_phi", "jet_energy", "met_px", "met_py", "visible_energy", "visible_mass")
    }
    gen = GenReference(num_events=sum(gen.num_events for gen in gens), jet_event=jet_event, **arrays)
    return Reconstructions(candidates, elements, gen)


def joined_particles(parts: Sequence[Particles], sizes: Sequence[int]) -> Particles:
    """The particles of all parts, of `sizes` events each, numbered through; only the fields that every reconstruction has."""
    starts = np.cumsum([0, *sizes[:-1]])
    names = ("px", "py", "pz", "energy", "pdg", "charge")
    event = np.concatenate([part.event + start for part, start in zip(parts, starts, strict=True)])
    return Particles(event=event, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _baseline(events: RaggedEvents) -> tuple[Particles, NDArray[np.int64], NDArray[np.int64]]:
    """Rule-based candidates, the element that carries each (-1: none), and its class.

    A candidate is carried by its track of largest momentum, else by its cluster of largest energy; the class is that which a target
    carried by such an element would have, so that it can be compared.
    """
    offsets, leaves = list_leaves(events.table, "baseline")
    event = _event_of(offsets)
    particles = Particles(event=event, **{name: leaves[name] for name in ("px", "py", "pz", "energy", "pdg", "charge")})
    num_tracks = np.bincount(events.event[events.is_track], minlength=events.num_events)
    size = events.features[:, 4]  # momentum of a track, energy of a cluster
    tracks = _largest(leaves["track_index"], events.offsets[event], size)
    clusters = _largest(leaves["cluster_index"], events.offsets[event] + num_tracks[event], size)
    carriers = np.where(tracks >= 0, tracks, clusters)
    return particles, carriers, _classes(np.abs(leaves["pdg"]), np.asarray(leaves["charge"]) != 0, tracks >= 0)


def _largest(lists: pa.ListArray, first: NDArray[np.int64], size: NDArray[np.float32]) -> NDArray[np.int64]:
    """The element of largest `size` in each list of indices that count from `first`; -1 where a list is empty."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    flat = lists.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    owner = _event_of(offsets - offsets[0])
    found = np.full(len(first), -1, np.int64)
    element = flat + first[owner]
    order = np.argsort(size[element], kind="stable")
    found[owner[order]] = element[order]  # the last assignment, of the largest, stays
    return found


def _classes(pdg: NDArray[np.int64], is_charged: NDArray[np.bool_], has_track: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Class of a candidate by what it is and what carries it, as for targets: physics specification, 3.7."""
    classes = np.where(is_charged, _CHARGED_HADRON, _NEUTRAL_HADRON)
    for code, index in ((int(pid.gamma), _PHOTON), (int(pid.e_minus), _ELECTRON), (int(pid.mu_minus), _MUON)):
        classes[pdg == code] = index
    with_track = np.where(np.isin(classes, (_NEUTRAL_HADRON, _PHOTON)), _CHARGED_HADRON, classes)
    without = np.where(np.isin(classes, (_ELECTRON, _PHOTON)), _PHOTON, _NEUTRAL_HADRON)
    return np.where(has_track, with_track, without)


def _one_per_element(carriers: NDArray[np.int64], energy: NDArray[np.floating]) -> NDArray[np.int64]:
    """Rows of the candidates that have an element, for each element that of largest energy."""
    order = np.argsort(energy, kind="stable")[::-1]
    order = order[carriers[order] >= 0]
    return order[np.unique(carriers[order], return_index=True)[1]]


def _rows_of(particles: Particles, rows: NDArray[np.int64]) -> Particles:
    return replace(particles, **{field.name: np.asarray(getattr(particles, field.name))[rows] for field in fields(Particles)})


def _classes_of_scores(predicted: Candidates) -> NDArray[np.int64]:
    return 1 + predicted.scores[:, 1:].argmax(axis=1) if len(predicted) else np.zeros(0, np.int64)


def _clusters(events: RaggedEvents) -> Particles:
    rows = ~events.is_track
    _, eta, sin_phi, cos_phi, energy = events.features[rows, :5].T.astype(np.float64)
    return calorimeter_only(event=events.event[rows], energy=energy, eta=eta, phi=np.arctan2(sin_phi, cos_phi))


def _visible(events: RaggedEvents) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    offsets, gen = list_leaves(events.table, "gen_particle")
    kept = gen["is_gen_level"].astype(bool)
    event = _event_of(offsets)[kept]
    momenta = (gen["energy"][kept], *cartesian(gen["pt"][kept], gen["eta"][kept], gen["phi"][kept]))
    energy, px, py, pz = (sum_per_event(event, component, num_events=events.num_events) for component in momenta)
    return energy, invariant_mass(energy, px, py, pz)


def _event_of(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
