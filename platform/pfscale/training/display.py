"""One event of a ROOT file or of shards as a picture: what the detector saw, beside what a model and others make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.models.bundle import Bundle
from pfscale.physics.evaluation import MLPF, RULE_BASED, TRUTH_TARGETS, Candidates, GenReference
from pfscale.physics.kinematics import pt_eta_phi
from pfscale.report.event_display import EventParticles, EventView, event_display
from pfscale.report.style import Drawn
from pfscale.shards.dataset import EventIndex, read_events
from pfscale.shards.events import extract_events
from pfscale.shards.ragged import RaggedEvents, from_arrow, list_leaves
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.inference import run_model
from pfscale.training.lookup import load_model
from pfscale.training.reconstructions import evaluation_columns, reconstructions_of


def show_event(model: str, path: str | Path, *, detector: str | None = None, entry: int = 0, tracking_uri: str, title: str = "") -> Drawn:
    """The figure and its numbers; truth is not read.

    Args:
        model: `models:/name@alias`, `models:/name/version`, or a folder with a model bundle.
        detector: whose tables name the collections; None: the model's own.

    Raises:
        ModelNotFoundError, InputFileError, UnknownNameError.
    """
    bundle = load_model(model, tracking_uri=tracking_uri)
    with open_source(path) as source:
        table = extract_events(source, find_detector(detector or bundle.card["detector"]), entry, entry + 1, with_truth=False).table
    events = from_arrow(table)
    particles = {MLPF: _particles(run_model(bundle.model, events, ReconstructionConfig(**bundle.card["task"])).candidates)}
    offsets, baseline = list_leaves(table, "baseline")
    if offsets[-1]:
        four = {name: baseline[name] for name in ("px", "py", "pz", "energy", "pdg", "charge")}
        particles = {RULE_BASED: _particles(Candidates(event=np.zeros(offsets[-1], np.int64), **four)), **particles}
    return event_display(_view(events, particles), title=title)


def show_shard_events(bundle: Bundle, index: EventIndex, positions: Sequence[int], *, titles: Sequence[str]) -> list[Drawn]:
    """Figures of events of shards: inputs, truth targets, the model's candidates and, where there is one, the baseline; with gen jets.

    Args:
        positions: of the events in the index.
    """
    columns = evaluation_columns(has_baseline=index.manifest.has_baseline)
    drawn = []
    for position, title in zip(positions, titles, strict=True):
        events = read_events(index, np.array([position]), columns)
        predicted = run_model(bundle.model, events, ReconstructionConfig(**bundle.card["task"])).candidates
        found = reconstructions_of(events, predicted, has_baseline=index.manifest.has_baseline)
        shown = {key: _particles(found.candidates[key]) for key in (TRUTH_TARGETS, MLPF, RULE_BASED) if key in found.candidates}
        drawn.append(event_display(_view(events, shown, gen=found.gen), title=title, columns=2))
    return drawn


def _view(events: RaggedEvents, particles: Mapping[str, EventParticles], *, gen: GenReference | None = None) -> EventView:
    """What is drawn of one event."""
    pt, eta, sin_phi, cos_phi, energy = events.features[:, :5].T
    phi = np.arctan2(sin_phi, cos_phi)
    tracks, clusters = events.is_track, ~events.is_track
    inputs = (eta[tracks], phi[tracks], pt[tracks], eta[clusters], phi[clusters], energy[clusters])
    return EventView(*inputs, particles) if gen is None else EventView(*inputs, particles, gen.jet_eta, gen.jet_phi)


def _particles(found: Candidates) -> EventParticles:
    _, eta, phi = pt_eta_phi(found.px, found.py, found.pz)
    return EventParticles(eta, phi, np.asarray(found.energy, np.float64), found.pdg, found.charge)
