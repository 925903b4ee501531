"""Candidates, jets and latents made from a seed, in which what a task asks for is known by construction."""

from __future__ import annotations

import numpy as np

from pfscale.physics.kinematics import cartesian
from pfscale.shards.objects import EventObjects

WIDTH = 6


def synthetic_objects(num_events: int, *, seed: int = 1, jets_per_event: int = 3, num_flavours: int = 3) -> EventObjects:
    """Events of jets of a few candidates; the first latent tells the jet's flavour, the second its energy scale.

    The last event has no candidates; every fourth jet has no gen jet.
    """
    rng = np.random.default_rng(seed)
    candidate: dict[str, list[float]] = {name: [] for name in _CANDIDATE}
    jet: dict[str, list[float]] = {name: [] for name in _JET}
    latents: list[np.ndarray] = []
    candidates_of, jets_of = [], []
    for event in range(num_events):
        num_jets = jets_per_event if event < num_events - 1 else 0
        count = 0
        for number in range(num_jets):
            flavour = (5, 4, 1, 21)[int(rng.integers(num_flavours))]
            scale = rng.normal(1.0, 0.1)
            total, members = _jet(rng, flavour, scale, number, candidate, latents)
            count += members
            matched = number % 4 != 3
            for name, value in zip(_JET, (*total, total[3] * scale if matched else np.nan, 50.0 if matched else np.nan), strict=False):
                jet[name].append(float(value))
            jet["flavour"].append(flavour if matched else -1)
            jet["top_role"].append(0)
        candidates_of.append(count)
        jets_of.append(num_jets)
    kinds = {"element_index": np.int32, "pdg": np.int32, "charge": np.int8, "jet_idx": np.int32, "origin": np.int8}
    offsets = np.concatenate([[0], np.cumsum(candidates_of)])
    return EventObjects(
        event={
            "uid": np.arange(num_events, dtype=np.uint64),
            "split": np.where(np.arange(num_events) % 10 < 8, 0, np.arange(num_events) % 10 - 7).astype(np.int8),
            "split_hash": rng.permutation(num_events).astype(np.uint64),
        },
        candidate_offsets=offsets,
        candidate={name: np.array(values, kinds.get(name, np.float32)) for name, values in candidate.items()},
        jet_offsets=np.concatenate([[0], np.cumsum(jets_of)]),
        jet={name: np.array(values, np.int8 if name in ("flavour", "top_role") else np.float32) for name, values in jet.items()},
        gen_met={name: rng.normal(0, 20, num_events).astype(np.float32) for name in ("px", "py")},
        latents=np.array(latents, np.float16).reshape(-1, WIDTH),
    )


_CANDIDATE = (
    *("element_index", "pdg", "charge", "px", "py", "pz", "energy", "jet_idx"),
    *("d0", "z0", "d0_error", "z0_error", "phi", "origin"),
)
_JET = ("px", "py", "pz", "energy", "gen_energy", "gen_pt", "flavour", "top_role")


def _jet(
    rng: np.random.Generator, flavour: int, scale: float, number: int, candidate: dict[str, list[float]], latents: list[np.ndarray]
) -> tuple[np.ndarray, int]:
    """(momentum of the jet, how many candidates it has), which are appended."""
    eta, phi = rng.uniform(-1.5, 1.5), rng.uniform(-np.pi, np.pi)
    members = int(rng.integers(2, 9))
    total = np.zeros(4)
    for _ in range(members):
        pt, own_eta, own_phi = rng.exponential(5) + 0.5, eta + rng.normal(0, 0.1), phi + rng.normal(0, 0.1)
        px, py, pz = (float(x) for x in cartesian(pt, own_eta, own_phi))
        energy = float(np.sqrt(px**2 + py**2 + pz**2 + 0.02))
        total += (px, py, pz, energy)
        has_track = rng.random() < 0.6
        displaced = has_track and flavour in (5, 4) and rng.random() < 0.5
        d0 = rng.normal(0, 0.5 if displaced else 0.01) if has_track else np.nan
        track = (d0, rng.normal(0, 0.02), 0.01, 0.02, own_phi) if has_track else (np.nan,) * 5
        values = (
            *(len(candidate["pdg"]), 211 if has_track else 22, int(has_track), px, py, pz, energy, number),
            *(*track, (1 if flavour == 5 else 3) if displaced else 0),
        )
        for name, value in zip(_CANDIDATE, values, strict=True):
            candidate[name].append(float(value))
        latents.append(np.array([{5: 1.0, 4: 0.3, 1: -0.5, 21: -1.0}[flavour], 10 * (scale - 1), *rng.normal(size=WIDTH - 2)]))
    return total, members
