"""What the defaults of training rest on: `python tests/benchmarks/optimisation_study.py SHARDS FOLDER`.

Short trainings of small models, one knob at a time; prints the tables of README.md and writes them as JSON. Run again, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfscale.config import RunConfig
from pfscale.models.mlpf import MlpfConfig
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.config import DataConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.pretrain import PretrainConfig, pretrain

RATES = {1: (2e-3, 4e-3, 8e-3), 2: (1e-3, 2e-3, 4e-3), 3: (5e-4, 1e-3, 2e-3)}  # size -> peak learning rates
BALANCES: dict[str, dict[str, float]] = {
    "default": {},
    "presence / 10": {"presence_weight": 1.0},
    "pt and energy x 10": {"pt_weight": 10.0, "energy_weight": 10.0},
    "pt and energy x 30": {"pt_weight": 30.0, "energy_weight": 30.0},
    "pt and energy x 10, angles x 4": {"pt_weight": 10.0, "energy_weight": 10.0, "eta_weight": 0.2, "phi_weight": 0.2},
}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "default": {},
    "clipped to norm 10": {"clip_norm": 10.0},
    "beta2 0.99": {"beta2": 0.99},
    "weight decay 0.1": {"weight_decay": 0.1},
    "averaged, 0.99": {"ema_decay": 0.99},
}
METRICS = {  # name -> (heading, digits)
    "mlpf/jet_response_iqr_over_median": ("jet IQR / median", 4),
    "mlpf/met_resolution": ("MET σ [GeV]", 2),
}


@dataclass(frozen=True)
class Study:
    """Where the data are, where runs go, how long each is, and with which seeds."""

    shards: Path
    folder: Path
    num_steps: int
    seeds: tuple[int, ...]


def train(study: Study, *, size: int, seed: int, task: Mapping[str, Any], optimisation: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one training."""
    shards, folder = study.shards, study.folder
    run = pretrain(
        PretrainConfig(
            model=MlpfConfig(size=size),
            seed=seed,
            data=DataConfig(shards=str(shards), num_validation_events=500),
            task=ReconstructionConfig(**task),
            optimisation=OptimisationConfig(num_steps=study.num_steps, **optimisation),
            engine=TorchEngineConfig(),
            register_as="",
            run=RunConfig(storage=str(folder / "runs"), tracking_uri=f"sqlite:///{folder}/mlflow.db", num_workers=0),
        )
    )
    wanted = ["validation_loss", *METRICS, *(f"{name}_error" for name in METRICS)]
    return {"size": size, "seed": seed, **task, **optimisation, **{name: run.metrics[name] for name in wanted}}


def cells(found: list[dict[str, Any]]) -> str:
    """Loss and physics of some seeds of one setting, as means; errors are those of the bootstrap over events of the first."""
    loss = ", ".join(f"{f['validation_loss']:.3f}" for f in found)
    physics = []
    for name, (_, digits) in METRICS.items():
        mean = sum(f[name] for f in found) / len(found)
        physics.append(f"{mean:.{digits}f} ± {found[0][f'{name}_error']:.{digits}f}")
    return " | ".join([loss, *physics])


def table(study: Study, heading: str, settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Trains each setting with every seed, printing a row as soon as it is known."""
    headings = " | ".join(heading for heading, _ in METRICS.values())
    print(f"\n| {heading} | validation loss (seeds) | {headings} |\n|---|---|---|---|", flush=True)
    results = []
    for name, setting in settings.items():
        found = [train(study, seed=seed, **setting) for seed in study.seeds]
        results += [{"name": name, **figures} for figures in found]
        print(f"| {name} | {cells(found)} |", flush=True)
    return results


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("balances", "optimisers", "rates"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="*", default=sorted(RATES), help="whose learning rates are varied")
    parser.add_argument("--seeds", type=int, nargs="*", default=(1,))
    given = parser.parse_args()
    study = Study(given.shards.resolve(), given.folder.resolve(), given.steps, tuple(given.seeds))
    study.folder.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Any] = {"size": 1, "task": {}, "optimisation": {}}
    tables: dict[str, tuple[str, dict[str, Any]]] = {
        "balances": ("weights of the loss (losses are not comparable)", {name: {**plain, "task": w} for name, w in BALANCES.items()}),
        "optimisers": ("optimizer", {name: {**plain, "optimisation": o} for name, o in OPTIMISERS.items()}),
        "rates": (
            "size, peak learning rate",
            {
                f"{size}, {r:g}": {"size": size, "task": {}, "optimisation": {"learning_rate": r}}
                for size in given.sizes
                for r in RATES[size]
            },
        ),
    }
    for name, (heading, settings) in tables.items():
        if given.only in (None, name):
            results = table(study, heading, settings)
            (study.folder / f"{name}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
