"""What the defaults of training rest on: `python tests/benchmarks/optimisation_study.py SHARDS FOLDER`.

Short trainings of small models, one knob at a time; prints the tables of README.md and writes them as JSON. Run again, it goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pfscale.config import RunConfig
from pfscale.models.mlpf import MlpfConfig
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.config import DataConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.pretrain import PretrainConfig, pretrain

NUM_STEPS = 400
RATES = {1: (1e-3, 2e-3, 4e-3, 8e-3), 2: (5e-4, 1e-3, 2e-3, 4e-3), 3: (5e-4, 1e-3, 2e-3)}  # size -> peak learning rates
BALANCES: dict[str, dict[str, float]] = {
    "default": {},
    "presence / 10": {"presence_weight": 1.0},
    "pt and energy x 10": {"pt_weight": 10.0, "energy_weight": 10.0},
    "pt and energy x 30": {"pt_weight": 30.0, "energy_weight": 30.0},
    "pt and energy x 10, angles x 4": {"pt_weight": 10.0, "energy_weight": 10.0, "eta_weight": 0.2, "phi_weight": 0.2},
}
METRICS = {  # name -> (heading, digits)
    "mlpf/jet_response_iqr_over_median": ("jet IQR / median", 4),
    "mlpf/met_resolution": ("MET σ [GeV]", 2),
}


def train(shards: Path, folder: Path, *, size: int, learning_rate: float | None, seed: int, **task: float) -> dict[str, Any]:
    """The figures of one training."""
    run = pretrain(
        PretrainConfig(
            model=MlpfConfig(size=size),
            seed=seed,
            data=DataConfig(shards=str(shards), num_validation_events=500),
            task=ReconstructionConfig(**task),
            optimisation=OptimisationConfig(num_steps=NUM_STEPS, learning_rate=learning_rate),
            engine=TorchEngineConfig(),
            register_as="",
            run=RunConfig(storage=str(folder / "runs"), tracking_uri=f"sqlite:///{folder}/mlflow.db", num_workers=0),
        )
    )
    wanted = ["validation_loss", *METRICS, *(f"{name}_error" for name in METRICS)]
    return {"size": size, "learning_rate": learning_rate, "seed": seed, **task, **{name: run.metrics[name] for name in wanted}}


def cells(found: list[dict[str, Any]]) -> str:
    """Loss and physics of some seeds of one setting, as means; errors are those of the bootstrap over events of the first."""
    loss = ", ".join(f"{f['validation_loss']:.3f}" for f in found)
    physics = []
    for name, (_, digits) in METRICS.items():
        mean = sum(f[name] for f in found) / len(found)
        physics.append(f"{mean:.{digits}f} ± {found[0][f'{name}_error']:.{digits}f}")
    return " | ".join([loss, *physics])


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=sorted(RATES), help="whose learning rates are varied")
    parser.add_argument("--seeds", type=int, nargs="*", default=(1, 2), help="of the weights of the loss")
    given = parser.parse_args()
    shards, folder = given.shards.resolve(), given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    headings = " | ".join(heading for heading, _ in METRICS.values())
    results: dict[str, Any] = {"num_steps": NUM_STEPS, "rates": [], "balances": []}

    print(f"| size | learning rate | validation loss | {headings} |\n|---|---|---|---|---|", flush=True)
    for size in given.sizes:
        for rate in RATES[size]:
            found = [train(shards, folder, size=size, learning_rate=rate, seed=1)]
            results["rates"] += found
            print(f"| {size} | {rate:g} | {cells(found)} |", flush=True)

    print(f"\n| weights of the loss | validation loss (seeds; not comparable) | {headings} |\n|---|---|---|---|", flush=True)
    for name, weights in BALANCES.items():
        found = [train(shards, folder, size=1, learning_rate=None, seed=seed, **weights) for seed in given.seeds]
        results["balances"].append({"name": name, "runs": found})
        print(f"| {name} | {cells(found)} |", flush=True)
    (folder / "optimisation.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
