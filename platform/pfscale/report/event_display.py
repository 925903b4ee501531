"""One event in the plane of pseudorapidity and azimuth: what the detector saw beside what was reconstructed of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from particle.pdgid import literals as pid

from pfscale.physics.jets import JET_RADIUS
from pfscale.physics.kinematics import Floats, cartesian, pt_eta_phi
from pfscale.report.style import Drawn, look, new_figure, styled

MAX_ETA = 3.2
# kind of a candidate -> (colour, marker); what is neither photon nor lepton is a hadron by its charge
KINDS = {
    "charged hadron": ("#0072B2", "o"),
    "neutral hadron": ("#D55E00", "s"),
    "photon": ("#E69F00", "D"),
    "electron": ("#009E73", "^"),
    "muon": ("#CC79A7", "P"),
}
_KIND_OF_PDG = {int(pid.gamma): "photon", int(pid.e_minus): "electron", int(pid.mu_minus): "muon"}


@dataclass(frozen=True)
class EventParticles:
    """Candidates or targets of one event: directions in rad, energies in GeV, PDG numbers and charges."""

    eta: Floats
    phi: Floats
    energy: Floats
    pdg: NDArray[np.integer]
    charge: NDArray[np.number]


@dataclass(frozen=True)
class EventView:
    """Flat arrays of one event: tracks (pt), clusters (energy), in GeV and rad, particles by name of their reconstruction, and gen jets."""

    track_eta: Floats
    track_phi: Floats
    track_pt: Floats
    cluster_eta: Floats
    cluster_phi: Floats
    cluster_energy: Floats
    particles: Mapping[str, EventParticles] = field(default_factory=dict)
    jet_eta: Floats = field(default_factory=lambda: np.zeros(0))
    jet_phi: Floats = field(default_factory=lambda: np.zeros(0))


@styled
def event_display(event: EventView, *, title: str = "", columns: int | None = None) -> Drawn:
    """Tracks and clusters (first panel) and each reconstruction's particles (one panel each); marker areas grow with energy or pt.

    `columns`: panels side by side; None: all of them.
    """
    panels = 1 + len(event.particles)
    columns = min(columns or panels, panels)
    rows = -(-panels // columns)
    figure = new_figure(width=4.9 * columns + 0.4, height=5.9 * rows)
    axes_list = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in axes_list[panels:]:
        axes.remove()
    axes_list = axes_list[:panels]
    figure.suptitle(title, fontsize=12)
    _draw_elements(axes_list[0], event)
    numbers: dict[str, Any] = {
        "tracks": len(event.track_pt),
        "track_pt_sum": float(np.sum(event.track_pt)),
        "clusters": len(event.cluster_energy),
        "cluster_energy_sum": float(np.sum(event.cluster_energy)),
    }
    for axes, (key, particles) in zip(axes_list[1:], event.particles.items(), strict=True):
        _draw_particles(axes, particles)
        total = float(np.sum(particles.energy))
        axes.set_title(f"{look(key).label}: {len(particles.energy)} particles, {total:.1f} GeV", fontsize=11)
        numbers[key] = {"particles": len(particles.energy), "energy_sum": total}
    for axes in axes_list:
        for eta, phi in zip(event.jet_eta, event.jet_phi, strict=True):
            axes.plot(*_cone(float(eta), float(phi), JET_RADIUS), color="0.55", linewidth=1, zorder=0)
        axes.set(xlabel=r"Pseudorapidity $\eta$", xlim=(-MAX_ETA, MAX_ETA), ylim=(-np.pi, np.pi))
        axes.set_yticks(np.pi * np.array([-1, -0.5, 0, 0.5, 1]), [r"$-\pi$", r"$-\pi/2$", "0", r"$\pi/2$", r"$\pi$"])
    for axes in axes_list[::columns]:
        axes.set_ylabel(r"Azimuth $\phi$ [rad]")
    return figure, numbers


def _draw_elements(axes: Axes, event: EventView) -> None:
    clusters, tracks = f"{len(event.cluster_energy)} clusters (area ~ energy)", f"{len(event.track_pt)} tracks (area ~ $p_T$)"
    axes.scatter(
        event.cluster_eta,
        event.cluster_phi,
        marker_area(event.cluster_energy),
        marker="s",
        facecolor="#E69F00",
        alpha=0.45,
        edgecolor="#8a5f00",
    )
    axes.scatter(event.track_eta, event.track_phi, marker_area(event.track_pt), marker="+", color="#0072B2", linewidth=1.4)
    axes.set_title(f"Inputs: {float(np.sum(event.cluster_energy)):.1f} GeV in clusters", fontsize=11)
    handles = [
        Line2D([], [], marker="+", linestyle="", color="#0072B2", markeredgewidth=1.4, label=tracks),
        Line2D([], [], marker="s", linestyle="", color="#E69F00", markeredgecolor="#8a5f00", alpha=0.6, label=clusters),
    ]
    if len(event.jet_eta):
        handles.append(Line2D([], [], color="0.55", linewidth=1, label=f"{len(event.jet_eta)} gen jets, cone of {JET_RADIUS} rad"))
    _legend_below(axes, handles)


def _draw_particles(axes: Axes, particles: EventParticles) -> None:
    kinds = np.array([kind_of(int(pdg), float(charge)) for pdg, charge in zip(particles.pdg, particles.charge, strict=True)])
    handles = []
    for kind, (colour, marker) in KINDS.items():
        rows = np.flatnonzero(kinds == kind)
        if len(rows):
            eta, phi, area = particles.eta[rows], particles.phi[rows], marker_area(particles.energy[rows])
            axes.scatter(eta, phi, area, marker=marker, facecolor="none", edgecolor=colour, linewidth=1.3)
            label = f"{len(rows)} {kind}{'s' if len(rows) > 1 else ''}"
            handles.append(Line2D([], [], marker=marker, linestyle="", color=colour, markerfacecolor="none", label=label))
    _legend_below(axes, handles)


def kind_of(pdg: int, charge: float) -> str:
    return _KIND_OF_PDG.get(abs(pdg), "charged hadron" if charge else "neutral hadron")


def _legend_below(axes: Axes, handles: list[Line2D]) -> None:
    if handles:
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)


def marker_area(energy: ArrayLike) -> Floats:
    """Marker areas in points squared: proportional to energy, but never too small to be seen nor larger than a jet."""
    return np.clip(12.0 * np.asarray(energy, np.float64), 10.0, 900.0)


def _cone(eta: float, phi: float, angle: float) -> tuple[Floats, Floats]:
    """(eta, phi) of the directions at `angle` from an axis: the ee_genkt radius is an angle, which is no circle in eta and phi."""
    axis = np.array(cartesian(1.0, eta, phi)).ravel()
    axis /= np.linalg.norm(axis)
    side = np.cross(axis, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side)
    turn = np.linspace(0, 2 * np.pi, 121)[:, None]
    rim = np.cos(angle) * axis + np.sin(angle) * (np.cos(turn) * side + np.sin(turn) * np.cross(axis, side))
    _, rim_eta, rim_phi = pt_eta_phi(*rim.T)
    rim_eta[1:][np.abs(np.diff(rim_phi)) > np.pi] = np.nan  # no line across the whole panel where phi wraps
    return rim_eta, rim_phi
