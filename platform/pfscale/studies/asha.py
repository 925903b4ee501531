"""Successive halving that says whom it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from pfscale.studies.trial import stop_mark


class MarkingAsha(AsyncHyperBandScheduler):
    """Ray's asynchronous successive halving; it leaves a mark for every trial that it stops.

    Args:
        folder: of the sweep.
        further: as Ray's.
    """

    def __init__(self, folder: Path, **further: Any) -> None:
        super().__init__(**further)
        self.folder = folder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = str(super().on_trial_result(tune_controller, trial, result))
        if decision == self.STOP and not result.get("done"):
            mark = stop_mark(self.folder, trial.trial_id)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return decision
