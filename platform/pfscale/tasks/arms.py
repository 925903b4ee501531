"""What a downstream network sees of each constituent: kinematics, tracks, latents, by arm (arXiv:2606.14373 and its controls)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pfscale.physics.kinematics import delta_phi, pt_eta_phi
from pfscale.shards.objects import EventObjects
from pfscale.shards.schema import CLASSES
from pfscale.tasks.sets import Examples, SetData, momenta_of

Arm = Literal["kinematics", "kinematics+tracks", "kinematics+latents", "kinematics+tracks+latents", "latents-linear"]
ARMS: tuple[Arm, ...] = ("kinematics", "kinematics+tracks", "kinematics+latents", "kinematics+tracks+latents", "latents-linear")
_PARTICLES = tuple(int(name) for name in CLASSES[1:])
_MIN = 1e-6  # GeV, of arguments of logarithms
_D0_SCALE, _Z0_SCALE = 0.02, 0.05  # mm: impact parameters are counted in units of these before arcsinh
_TRACK_SUMMARIES = 3  # of a jet: its candidates with the largest impact parameter significances
Floats = NDArray[np.float64]


def has_latents(arm: Arm) -> bool:
    """Whether an arm sees latents."""
    return "latents" in arm


def set_data(arm: Arm, objects: EventObjects, examples: Examples) -> tuple[SetData, tuple[str, ...]]:
    """The examples with the arm's inputs, and the names of its features (latents not named)."""
    columns: dict[str, Floats] = {}
    momenta = momenta_of(objects, examples)
    if "kinematics" in arm:
        columns |= _kinematics(objects, examples, momenta.astype(np.float64))
    if "tracks" in arm:
        columns |= _tracks(objects, examples) if examples.constituents == "candidates" else _tracks_of_jets(objects, examples)
    features = np.stack(list(columns.values()), 1) if columns else np.zeros((len(examples.rows), 0))
    latents = _latents(objects, examples) if has_latents(arm) else None
    return SetData(examples, features.astype(np.float32), latents, momenta), tuple(columns)


def _kinematics(objects: EventObjects, examples: Examples, momenta: Floats) -> dict[str, Floats]:
    pt, eta, phi = pt_eta_phi(*momenta.T[:3])
    energy = momenta[:, 3]
    found = {"ln pt": _ln(pt), "ln energy": _ln(energy)}
    if (examples.jet >= 0).all() and len(examples):
        of_jet = examples.jet[examples.example_of_row]
        jet_pt, jet_eta, jet_phi = pt_eta_phi(*(objects.jet[name].astype(np.float64) for name in ("px", "py", "pz")))
        jet_energy = objects.jet["energy"].astype(np.float64)
        deta, dphi = (eta - jet_eta[of_jet]) * np.sign(jet_eta[of_jet] + _MIN), delta_phi(phi, jet_phi[of_jet])
        found |= {"ln pt / pt jet": _ln(pt) - _ln(jet_pt[of_jet]), "ln energy / energy jet": _ln(energy) - _ln(jet_energy[of_jet])}
        found |= {"delta eta": deta, "delta phi": dphi, "delta R": np.hypot(deta, dphi)}
        found |= {"ln pt jet": _ln(jet_pt[of_jet]), "|eta jet|": np.abs(jet_eta[of_jet])}
    else:
        found |= {"eta": eta, "sin phi": np.sin(phi), "cos phi": np.cos(phi)}
    if examples.constituents == "jets":
        mass2 = energy**2 - np.square(momenta[:, :3]).sum(1)
        return found | {"ln mass": 0.5 * np.log(np.maximum(mass2, 1e-2))}
    pdg = np.abs(objects.candidate["pdg"][examples.rows])
    found |= {f"is {code}": (pdg == code).astype(np.float64) for code in _PARTICLES}
    return found | {"charge": objects.candidate["charge"][examples.rows].astype(np.float64)}


def _tracks(objects: EventObjects, examples: Examples) -> dict[str, Floats]:
    """Impact parameters and their significances; in a jet, d0 has the sign of the lifetime: positive ahead of its axis."""
    d0, z0, d0_error, z0_error, phi = (
        objects.candidate[name][examples.rows].astype(np.float64) for name in ("d0", "z0", "d0_error", "z0_error", "phi")
    )
    if (examples.jet >= 0).all() and len(examples):
        jet = examples.jet[examples.example_of_row]
        jet_phi = np.arctan2(objects.jet["py"][jet], objects.jet["px"][jet])
        d0 = np.abs(d0) * np.sign(d0 * np.sin(jet_phi - phi))
    has_track = np.isfinite(d0)
    values = {
        "d0": np.arcsinh(d0 / _D0_SCALE),
        "z0": np.arcsinh(z0 / _Z0_SCALE),
        "d0 significance": np.arcsinh(d0 / d0_error),
        "z0 significance": np.arcsinh(z0 / z0_error),
        "ln d0 error": _ln(d0_error),
    }
    known = {name: np.nan_to_num(column, nan=0.0, posinf=0.0, neginf=0.0) for name, column in values.items()}
    return {"has track": has_track.astype(np.float64), **known}


def _tracks_of_jets(objects: EventObjects, examples: Examples) -> dict[str, Floats]:
    """The largest transverse impact parameter significances among each jet's candidates."""
    with np.errstate(invalid="ignore", divide="ignore"):
        significance = np.nan_to_num(np.abs(objects.candidate["d0"] / objects.candidate["d0_error"]), nan=0.0, posinf=0.0)
    jet = objects.jet_of_candidate
    order = np.lexsort((-significance, jet))
    order = order[jet[order] >= 0]
    sorted_jet = jet[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_jet, sorted_jet)
    table = np.zeros((len(objects.event_of_jet), _TRACK_SUMMARIES))
    kept = rank < _TRACK_SUMMARIES
    table[sorted_jet[kept], rank[kept]] = np.arcsinh(significance[order[kept]])
    return {f"d0 significance {number + 1}": table[examples.rows, number] for number in range(_TRACK_SUMMARIES)}


def _latents(objects: EventObjects, examples: Examples) -> NDArray[np.float16]:
    """Of the candidates, or of the jets."""
    found = objects.latents if examples.constituents == "candidates" else jet_latents(objects).astype(np.float16)
    return found[examples.rows]


def jet_latents(objects: EventObjects) -> Floats:
    """(m, K) mean latents of each jet's candidates, weighted by pt; zero of a jet without any."""
    jet = objects.jet_of_candidate
    inside = jet >= 0
    weight = np.hypot(objects.candidate["px"], objects.candidate["py"])[inside].astype(np.float64)
    total = np.zeros((len(objects.event_of_jet), objects.latents.shape[1]))
    np.add.at(total, jet[inside], weight[:, None] * objects.latents[inside])
    mean: Floats = total / np.maximum(np.bincount(jet[inside], weight, len(total)), _MIN)[:, None]
    return mean


def _ln(values: Floats) -> Floats:
    return np.log(np.maximum(values, _MIN))
