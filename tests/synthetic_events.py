"""Small, physically plausible events in the shard schema, made from a seed: tests of learning need no simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pfscale.shards.manifest import Manifest, ShardRecord
from pfscale.shards.schema import SPLITS, arrow_schema, field_names


def synthetic_table(num_events: int, *, seed: int = 1, max_particles: int = 20, smear: float = 0.05) -> pa.Table:
    """Events in which charged hadrons give a track (and some a cluster), photons and neutral hadrons a cluster; some clusters are noise."""
    rng = np.random.default_rng(seed)
    rows = [_event(rng, number, max_particles, smear) for number in range(num_events)]
    return pa.Table.from_pylist(rows, schema=arrow_schema())


def synthetic_manifest(name: str, detector: str, shards: Sequence[ShardRecord], splits: Mapping[str, int]) -> Manifest:
    """Of a data set of such events; `name` stands for its hash."""
    return Manifest(
        extraction_version=1,
        hash=name,
        request="synthetic",
        detector=detector,
        process="synthetic",
        simulation="builtin",
        has_baseline=False,
        num_events=sum(splits.values()),
        splits=dict(splits),
        track_classes={},
        cluster_classes={},
        num_particles=0,
        num_surrogates=0,
        energy={},
        sources=(),
        shards=tuple(shards),
    )


def _event(rng: np.random.Generator, number: int, max_particles: int, smear: float) -> dict[str, Any]:
    tracks, clusters, track_targets, cluster_targets, particles = [], [], [], [], []
    for _ in range(int(rng.integers(1, max_particles))):
        pt, eta, phi = rng.exponential(5) + 0.3, rng.uniform(-2, 2), rng.uniform(-np.pi, np.pi)
        pdg = int(rng.choice([211, 22, 130]))
        charge = int(rng.choice([-1, 1])) if pdg == 211 else 0
        mass = {211: 0.14, 22: 0.0, 130: 0.5}[pdg]
        energy = float(np.hypot(pt * np.cosh(eta), mass))
        target = {
            "class": {211: 1, 130: 2, 22: 3}[pdg],
            "charge": charge,
            "pt": pt,
            "eta": eta,
            "sin_phi": np.sin(phi),
            "cos_phi": np.cos(phi),
            "energy": energy,
            "status": 1,
            "particle_number": len(particles),
            "jet_idx": -1,
            "gp_to_track": float(pdg == 211),
            "gp_to_cluster": energy * (pdg != 211),
        }
        if pdg == 211:
            tracks.append(_track(rng, pt * rng.normal(1, 0.002), eta, phi, charge))
            track_targets.append(target)
            if rng.random() < 0.7:
                clusters.append(_cluster(rng, energy * rng.normal(1, 5 * smear), eta, phi, ecal=0.2))
                cluster_targets.append(_no_target())
        else:
            clusters.append(_cluster(rng, energy * rng.normal(1, smear), eta, phi, ecal=1.0 if pdg == 22 else 0.1))
            cluster_targets.append(target)
        signed = pdg if charge >= 0 else -pdg
        particles.append(
            {
                "pdg": signed,
                "charge": charge,
                "pt": pt,
                "eta": eta,
                "phi": phi,
                "energy": energy,
                "status": 1,
                "is_gen_level": True,
                "jet_idx": -1,
                "owner": -1,
                "origin": 0,
            }
        )
    split_hash = int(rng.integers(0, 2**63))
    met = [-sum(p["pt"] * f(p["phi"]) for p in particles) for f in (np.cos, np.sin)]
    jets = [{name: p[name] for name in ("pt", "eta", "phi", "energy")} | {"flavour": 1, "top_role": 0} for p in particles if p["pt"] > 5]
    event = {
        "uid": number,
        "run": 1,
        "number": number,
        "file": "synthetic",
        "entry": number,
        "weight": 1.0,
        "split": SPLITS[0 if number % 10 < 8 else number % 10 - 7],
        "split_hash": split_hash,
    }
    return {
        "event": event,
        "track": tracks,
        "cluster": clusters,
        "track_target": track_targets,
        "cluster_target": cluster_targets,
        "baseline": [],
        "gen_particle": particles,
        "gen_jet": jets,
        "gen_met": {"px": met[0], "py": met[1], "neutrino_px": 0.0, "neutrino_py": 0.0, "boost_px": 0.0},
    }


def _track(rng: np.random.Generator, pt: float, eta: float, phi: float, charge: int) -> dict[str, Any]:
    values = dict.fromkeys(field_names("track"), 0.0)
    omega = 3e-4 * 4.0 / pt * charge
    direction = {"pt": pt, "eta": eta, "sin_phi": np.sin(phi), "cos_phi": np.cos(phi), "p": pt * np.cosh(eta), "tan_lambda": np.sinh(eta)}
    quality = {"chi2": rng.chisquare(8), "ndf": 8.0, "omega": omega, "d0": rng.normal(0, 0.01), "z0": rng.normal(0, 0.05)}
    missing = {"dedx": np.nan, "dedx_error": np.nan, "time": np.nan, "radius_of_innermost_hit": 31.0}
    return values | direction | quality | missing | {"cov": [1e-4] * 15}


def _cluster(rng: np.random.Generator, energy: float, eta: float, phi: float, ecal: float) -> dict[str, Any]:
    energy = max(float(energy), 0.05)
    radius = 1700.0
    shape = {name: abs(rng.normal(20, 3)) for name in ("sigma_x", "sigma_y", "sigma_z")}
    position = {"position_x": radius * np.cos(phi), "position_y": radius * np.sin(phi), "position_z": radius * np.sinh(eta)}
    direction = {
        "et": energy / np.cosh(eta),
        "eta": eta,
        "sin_phi": np.sin(phi),
        "cos_phi": np.cos(phi),
        "itheta": 2 * np.arctan(np.exp(-eta)),
    }
    energies = {"energy": energy, "energy_ecal": ecal * energy, "energy_hcal": (1 - ecal) * energy, "energy_other": 0.0}
    return direction | position | energies | shape | {"num_hits": float(rng.integers(5, 100))}


def _no_target() -> dict[str, Any]:
    return {**dict.fromkeys(field_names("cluster_target"), 0), "particle_number": -1, "jet_idx": -1}
