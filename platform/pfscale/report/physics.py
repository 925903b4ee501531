"""All figures of an evaluation, by name."""

from __future__ import annotations

from collections.abc import Mapping

from pfscale.physics.evaluation import EvaluationResult, flat_key
from pfscale.physics.particles import ParticleResult
from pfscale.report.event_figures import (
    jet_matching,
    jet_resolution_vs_eta,
    jet_resolution_vs_pt,
    jet_response,
    met_resolution,
    visible_energy,
)
from pfscale.report.particle_figures import confusion_matrix, particle_energies, particle_rates
from pfscale.report.style import Drawn, look

_OF_EVENTS = {
    "jet_response": jet_response,
    "jet_resolution_vs_pt": jet_resolution_vs_pt,
    "jet_resolution_vs_eta": jet_resolution_vs_eta,
    "jet_matching": jet_matching,
    "met_resolution": met_resolution,
    "visible_energy": visible_energy,
}


def main_figures(result: EvaluationResult) -> dict[str, Drawn]:
    """Name -> (figure, its numbers) of what is looked at first; all of them take seconds to draw."""
    return {name: _OF_EVENTS[name](result) for name in ("jet_response", "jet_resolution_vs_pt", "met_resolution")}


def physics_figures(result: EvaluationResult, particles: Mapping[str, ParticleResult]) -> dict[str, Drawn]:
    """Name -> (figure, its numbers): jets, missing momentum and visible energy, then particles where there are any."""
    drawn = {name: draw(result) for name, draw in _OF_EVENTS.items()}
    if particles:
        drawn |= {f"particle_rates_vs_{variable}": particle_rates(particles, variable) for variable in ("pt", "eta")}
        drawn |= {f"particle_energies_vs_{variable}": particle_energies(particles, variable) for variable in ("pt", "eta")}
    for key, found in particles.items():
        drawn[f"confusion_{flat_key(key)}"] = confusion_matrix(found.confusion, found.class_names, title=look(key).label)
    return drawn
