"""A registry with a small trained model, for tests that need one."""

from __future__ import annotations

import shutil
from pathlib import Path

from pfscale.config import RunConfig
from pfscale.models.mlpf import MlpfConfig
from pfscale.training.config import DataConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.pretrain import PretrainConfig, pretrain
from pfscale.training.run import Run


def trained(shards: Path, folder: Path, database: Path, *, seed: int = 1, num_steps: int = 30) -> Run:
    """A tiny model of the shards, registered in `folder`/mlflow.db (a copy of `database` where there is none)."""
    if not (folder / "mlflow.db").exists():
        shutil.copy(database, folder / "mlflow.db")
    config = PretrainConfig(
        seed=seed,
        model=MlpfConfig(width=16, num_layers=1, num_heads=2),
        engine=TorchEngineConfig(),
        optimisation=OptimisationConfig(num_steps=num_steps, learning_rate=3e-3, evaluate_every=num_steps),
        data=DataConfig(shards=str(shards), tokens_per_step=512),
        run=RunConfig(storage=str(folder / "runs"), tracking_uri=f"sqlite:///{folder}/mlflow.db", num_workers=0),
    )
    return pretrain(config)
