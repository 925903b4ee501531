"""One event of a file with what the detector saw in the colours of the true particles: in pseudorapidity and azimuth, and along the beam.

    python -m pfscale.report.truth_display FILE --detector cld --entry 0 --output event.png

Works on simulated and on real files. A row of the shards would not do: it tells which element carries a particle, but not whose the other
clusters are, those of charged particles first of all, and has no hits.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pfscale.edm4hep.ancestry import descendant_pairs
from pfscale.edm4hep.chunk import EventChunk, read_chunk, read_particles
from pfscale.edm4hep.deposits import read_deposits
from pfscale.edm4hep.detectors import DETECTORS, Detector, find_detector
from pfscale.edm4hep.elements import AT_CALORIMETER, AT_INTERACTION_POINT, PT_PER_RADIUS, pseudorapidity, state_at, take
from pfscale.edm4hep.reader import EventSource, open_source
from pfscale.edm4hep.truth import Deposits, Particles, associate
from pfscale.errors import ConfigError, InputFileError, PfscaleError
from pfscale.physics.kinematics import Floats
from pfscale.report.event_display import KINDS, MAX_ETA, kind_of, marker_area
from pfscale.report.style import Drawn, new_figure, say_empty, styled
from pfscale.simulation.detectors import DETECTORS as MODELS
from pfscale.simulation.helix import arc_to_radius, move

Indices = NDArray[np.int64]
NUM_NAMED = 8  # particles in the legend
NEAR_END = 0.2  # most between a track's helix and its state at the calorimeter, in parts of its distance
NOBODY = "0.65"  # colour of what no visible particle made
# told apart by most eyes; neighbours in energy get different ones
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B2D8B", "#8C564B", "#17BECF", "#BCBD22", "#1F3B73", "#E7298A",
    "#66A61E", "#A6761D", "#6A51A3", "#E31A1C", "#33A02C", "#FB9A99",
)  # fmt: skip


@dataclass(frozen=True)
class TruthView:
    """One event: what the detector saw, and the visible particle (index; -1: none) that each of it comes from. Units: GeV, mm, rad.

    Attributes:
        track_parameters: (T, 5) D0, phi, omega, Z0, tanLambda at the interaction point.
        track_end: (T, 3) where the track enters the calorimeter; NaN where neither the file nor the helix say.
        hit_position: (H, 3) of calorimeter hits, `hit_cluster` their cluster or -1.
        particle_*: of the visible particles, in descending energy.
    """

    track_parameters: Floats
    track_pt: Floats
    track_end: Floats
    track_particle: Indices
    cluster_position: Floats
    cluster_energy: Floats
    cluster_particle: Indices
    hit_position: Floats
    hit_particle: Indices
    particle_pdg: Indices
    particle_charge: Floats
    particle_energy: Floats


def read_truth_view(source: EventSource, detector: Detector, entry: int) -> TruthView:
    """One entry of an open file.

    Raises:
        InputFileError: no such entry, no MC particles, or the event cannot be used.
    """
    if not 0 <= entry < source.num_entries:
        raise InputFileError(f"no entry {entry}: the file has {source.num_entries}", where=source.path)
    chunk = read_chunk(source, detector, entry, entry + 1)
    particles = read_particles(chunk)
    deposits = read_deposits(chunk, np.array([0, len(particles)], np.int64), particles.energy)
    if chunk.problems.reasons:
        raise InputFileError(f"entry {entry} cannot be used: {chunk.problems.reasons[0]}", where=source.path)
    visible = associate(particles, deposits, num_events=1).visible
    visible = visible[np.argsort(-particles.energy[visible], kind="stable")]
    root = np.full(len(particles), -1, np.int64)  # visible particle that each comes from
    position, member = descendant_pairs(particles.ancestry, visible)
    root[member] = position
    return _view(chunk, particles, deposits, visible, root)


def _view(chunk: EventChunk, particles: Particles, deposits: Deposits, visible: Indices, root: Indices) -> TruthView:
    """The view of the one event of a chunk; `root`: the visible particle (number or -1) that each particle comes from."""
    states, tracks = chunk.states, chunk.tracks
    start, end = (state_at(chunk, location, or_only=True) for location in (AT_INTERACTION_POINT, AT_CALORIMETER))
    end = np.where(end == start, -1, end)  # a track with a single state does not say where it ends
    parameters = np.stack([take(states[name], start) for name in ("D0", "phi", "omega", "Z0", "tanLambda")], axis=1)
    in_cluster = np.full(len(chunk.hit_event), -1, np.int64)
    in_cluster[chunk.hit_of_member] = chunk.cluster_of_member
    position = np.stack([chunk.hits[f"position_{axis}"] for axis in "xyz"], axis=1)
    cluster_particle = _largest(deposits.hit_cluster, root[deposits.hit_particle], deposits.hit_energy, len(chunk.clusters), len(visible))
    return TruthView(
        track_parameters=parameters,
        track_pt=PT_PER_RADIUS * chunk.detector.magnetic_field / np.abs(parameters[:, 2]),
        track_end=forward_ends(parameters, np.stack([take(states[f"referencePoint_{axis}"], end) for axis in "xyz"], axis=1)),
        track_particle=_largest(deposits.link_track, root[deposits.link_particle], deposits.link_weight, len(tracks), len(visible)),
        cluster_position=np.stack([chunk.clusters[f"position_{axis}"] for axis in "xyz"], axis=1),
        cluster_energy=chunk.clusters["energy"],
        cluster_particle=cluster_particle,
        hit_position=position,
        hit_particle=np.where(in_cluster >= 0, np.append(cluster_particle, -1)[in_cluster], -1),
        particle_pdg=particles.pdg[visible],
        particle_charge=particles.charge[visible],
        particle_energy=particles.energy[visible],
    )


def forward_ends(parameters: Floats, end: Floats) -> Floats:
    """Ends (T, 3) of tracks at the calorimeter: what the file says where the track gets there, else where it first reaches that radius.

    Real files have states that were extrapolated against the track's direction, or after more than a turn.
    """
    forward = end.copy()
    for track in np.flatnonzero(np.isfinite(end).all(axis=1)):
        d0, phi, omega, z0, tan_lambda = parameters[track]
        x, y = -d0 * np.sin(phi), d0 * np.cos(phi)
        arc = arc_to_radius(x, y, phi, omega, np.hypot(end[track, 0], end[track, 1]))
        to_plane = (end[track, 2] - z0) / tan_lambda if tan_lambda else -1.0
        reached = [np.array(move(x, y, z0, phi, omega, tan_lambda, path)[:3]) for path in (arc, to_plane) if path >= 0.0]
        distances = [np.linalg.norm(point - end[track]) for point in reached]
        if not distances or min(distances) > NEAR_END * np.linalg.norm(end[track]):
            forward[track] = reached[0] if arc >= 0.0 else np.nan
    return forward


def _largest(element: Indices, particle: Indices, weight: Floats, num_elements: int, num_particles: int) -> Indices:
    """The particle with the largest sum of weights in each element; -1: none."""
    usable = (element >= 0) & (particle >= 0)
    sums = np.zeros((num_elements, max(num_particles, 1)))
    np.add.at(sums, (element[usable], particle[usable]), weight[usable])
    return np.where(sums.max(axis=1, initial=0.0) > 0, sums.argmax(axis=1), -1)


@styled
def truth_display(view: TruthView, *, title: str = "", detector: str = "") -> Drawn:
    """Tracks, clusters and hits of one event, each particle in a colour; the outline of the calorimeters where the detector's are known."""
    figure = new_figure(width=14.5, height=7.2)
    plane, beam = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    figure.suptitle(title, fontsize=12)
    _draw_plane(plane, view)
    _draw_beam(beam, view, detector)
    if not len(view.particle_pdg):
        say_empty(plane, "no visible particle")
    figure.legend(handles=_legend(view), loc="outside lower center", ncols=4, frameon=False)
    return figure, {
        "tracks": len(view.track_pt),
        "clusters": len(view.cluster_energy),
        "particles": len(view.particle_pdg),
        "cluster_energy": float(view.cluster_energy.sum()),
        "particle_energy": float(view.particle_energy.sum()),
        "clusters_of_nobody": int((view.cluster_particle < 0).sum()),
    }


def _colours(particle: Indices) -> list[str]:
    return [COLOURS[p % len(COLOURS)] if p >= 0 else NOBODY for p in particle]


def _kinds(view: TruthView) -> NDArray[Any]:
    kinds = [kind_of(int(pdg), float(charge)) for pdg, charge in zip(view.particle_pdg, view.particle_charge, strict=True)]
    return np.array(kinds, dtype=object)


def _draw_plane(axes: Axes, view: TruthView) -> None:
    """Clusters where they are; a track from its direction at the beam (cross) along a line to where it enters the calorimeter."""
    kinds, particle = _kinds(view), view.cluster_particle
    eta, phi = _eta_phi(view.cluster_position)
    for kind in (None, *KINDS):
        marker = "X" if kind is None else KINDS[kind][1]
        rows = np.flatnonzero(particle < 0) if kind is None else np.flatnonzero((particle >= 0) & (np.append(kinds, "")[particle] == kind))
        if len(rows):
            colours = _colours(particle[rows])
            area = marker_area(view.cluster_energy[rows])
            axes.scatter(eta[rows], phi[rows], area, marker=marker, facecolors="none", edgecolors=colours, linewidth=1.5)
    end_eta, end_phi = _eta_phi(view.track_end)
    is_curling = curls(view)
    for track, colour in enumerate(_colours(view.track_particle)):
        start_phi, start_eta = view.track_parameters[track, 1], np.arcsinh(view.track_parameters[track, 4])
        axes.plot(start_eta, start_phi, "+", color=colour, markersize=9, markeredgewidth=1.8)
        turn = np.remainder(end_phi[track] - start_phi + np.pi, 2 * np.pi) - np.pi
        if np.isfinite(turn) and not is_curling[track]:
            for shift in (0.0, -2 * np.pi, 2 * np.pi):  # a line across the edge of the panel is drawn on both sides
                axes.plot([start_eta, end_eta[track]], [start_phi + shift, start_phi + turn + shift], color=colour, linewidth=0.9)
    axes.set(xlabel=r"Pseudorapidity $\eta$", ylabel=r"Azimuth $\phi$ [rad]", xlim=(-MAX_ETA, MAX_ETA), ylim=(-np.pi, np.pi))
    axes.set_yticks(np.pi * np.array([-1, -0.5, 0, 0.5, 1]), [r"$-\pi$", r"$-\pi/2$", "0", r"$\pi/2$", r"$\pi$"])
    axes.set_title("Cross: track at the beam; line: to where it enters the calorimeter, if it does so before half a turn", fontsize=9)


def curls(view: TruthView) -> NDArray[np.bool_]:
    """Which tracks turn by more than half a circle on their way to the calorimeter: a straight line would not show theirs."""
    _, _, omega, z0, tan_lambda = view.track_parameters.T
    with np.errstate(divide="ignore", invalid="ignore"):
        turned = np.abs(omega * (view.track_end[:, 2] - z0) / tan_lambda)
    return np.asarray(turned > np.pi)  # False where the end is not known


def _eta_phi(position: Floats) -> tuple[Floats, Floats]:
    x, y, z = position.T
    return pseudorapidity(np.hypot(x, y), z), np.arctan2(y, x)


def _draw_beam(axes: Axes, view: TruthView, detector: str) -> None:
    """Radius, up where y > 0 and down where y < 0, against z: hits as dots, tracks as their measured helices."""
    x, y, z = view.hit_position.T
    axes.scatter(z / 1000, _signed_radius(x, y) / 1000, s=2.0, c=_colours(view.hit_particle), linewidths=0)
    x, y, z = view.cluster_position.T
    axes.scatter(
        z / 1000, _signed_radius(x, y) / 1000, marker_area(view.cluster_energy), facecolors="none",
        edgecolors=_colours(view.cluster_particle), linewidth=1.0,
    )  # fmt: skip
    model = MODELS.get(detector)
    for track, colour in enumerate(_colours(view.track_particle)):
        z_track, r_track = _helix(view.track_parameters[track], view.track_end[track], model.ecal_radius if model else 2000.0)
        axes.plot(z_track / 1000, r_track / 1000, color=colour, linewidth=1.0)
    if model is not None:
        ecal, hcal = model.ecal_thickness, model.ecal_thickness + model.hcal_gap + model.hcal_thickness
        for depth in (0.0, ecal, ecal + model.hcal_gap, hcal):
            corner_z, corner_r = (model.ecal_z + depth) / 1000, (model.ecal_radius + depth) / 1000
            box_z, box_r = [-corner_z, corner_z, corner_z, -corner_z, -corner_z], [corner_r, corner_r, -corner_r, -corner_r, corner_r]
            axes.plot(box_z, box_r, color="0.8", linewidth=1, zorder=0)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel="z [m]", ylabel="r [m] (negative for y < 0)")
    axes.set_title("Dots: calorimeter hits, as their cluster (grey: in none); circles: clusters; tracks up to half a turn", fontsize=9)


def _signed_radius(x: Floats, y: Floats) -> Floats:
    return np.where(y < 0, -1.0, 1.0) * np.hypot(x, y)


def _helix(parameters: Floats, end: Floats, radius: float) -> tuple[Floats, Floats]:
    """(z, signed radius) along a measured track from the beam to `end`, or half a turn, or to `radius`.

    The sign is that of y at its end: where the track arrives its hits are, and a track that crosses y = 0 on its way stays one line.
    """
    d0, phi, omega, z0, tan_lambda = parameters
    length = np.pi / max(abs(omega), 1e-9)
    if np.isfinite(end).all() and abs(tan_lambda) > 1e-3:
        length = min(length, max((end[2] - z0) / tan_lambda, 0.0))
    path = np.linspace(0.0, min(length, 3.0 * radius), 400)
    angle = phi - omega * path
    x = -d0 * np.sin(phi) + (np.sin(phi) - np.sin(angle)) / omega
    y = d0 * np.cos(phi) + (np.cos(angle) - np.cos(phi)) / omega
    inside = np.cumprod(np.hypot(x, y) <= radius * 1.001).astype(bool)
    x, y, z = x[inside], y[inside], (z0 + path * tan_lambda)[inside]
    return z, np.hypot(x, y) * (-1.0 if len(y) and y[-1] < 0 else 1.0)


def _legend(view: TruthView) -> list[Line2D]:
    """Kinds of particles with their markers in the first panel, and the most energetic particles with their colours."""
    kinds = _kinds(view)
    handles = [
        Line2D(
            [], [], marker=marker, linestyle="", color="0.2", markerfacecolor="none", label=f"clusters of {count} {kind}{'s' * (count > 1)}"
        )
        for kind, (_, marker) in KINDS.items()
        if (count := int((kinds == kind).sum()))
    ]
    for number in range(min(NUM_NAMED, len(kinds))):
        label = f"{view.particle_energy[number]:.1f} GeV {kinds[number]}"
        handles.append(Line2D([], [], marker="s", linestyle="", color=COLOURS[number], label=label))
    if len(kinds) > len(COLOURS):
        handles.append(Line2D([], [], linestyle="", label=f"softer than {view.particle_energy[len(COLOURS) - 1]:.1f} GeV: colours again"))
    return handles


def _require_writable(output: Path) -> None:
    """Nothing, if a figure can be written to `output`.

    Raises:
        ConfigError: its folder is not there, or figures have no such format.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    suffix, known = output.suffix.removeprefix(".").lower(), ", ".join(sorted(formats))
    if suffix not in formats:
        raise ConfigError(f"figures have no format '{suffix}'", where=str(output), hint=f"end --output in one of: {known}")
    if not output.parent.is_dir() or output.is_dir():
        raise ConfigError("no such folder for the figure", where=str(output), hint="make the folder, or choose another --output")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m pfscale.report.truth_display", description="one event in the colours of its particles")
    parser.add_argument("file")
    parser.add_argument("--detector", required=True, help=", ".join(DETECTORS))
    parser.add_argument("--entry", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("event.png"))
    chosen = parser.parse_args(arguments)
    try:
        _require_writable(chosen.output)
        with open_source(chosen.file) as source:
            view = read_truth_view(source, find_detector(chosen.detector), chosen.entry)
    except PfscaleError as error:
        print(f"pfscale: {error}", file=sys.stderr)
        return error.exit_code
    figure, numbers = truth_display(view, title=f"{Path(chosen.file).name}, entry {chosen.entry}", detector=chosen.detector)
    figure.savefig(chosen.output)
    print(f"{chosen.output}: " + ", ".join(f"{key.replace('_', ' ')} {value:.5g}" for key, value in numbers.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
