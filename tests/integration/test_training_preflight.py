"""The checks before a training, as a node of a Ray cluster answers them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfscale.config import RunConfig
from pfscale.errors import ResourceError, TrackingError
from pfscale.training.preflight import preflight
from training_runs import MODEL, Shards, config


@pytest.mark.usefixtures("cluster")
def test_a_worker_is_asked_before_the_training_starts(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a check in the driver's place, whose folders and network are not those of the workers."""
    wanted = config(make_shards(), run_config.model_copy(update={"num_workers": 1, "cpus_per_worker": 0.5}))
    preflight(wanted, MODEL, tmp_path, run_config.tracking_uri, np.array([100]))
    with pytest.raises(ResourceError, match="cannot write"):
        preflight(wanted, MODEL, Path("/proc"), run_config.tracking_uri, np.array([100]))
    with pytest.raises(TrackingError, match="a worker on"):
        preflight(wanted, MODEL, tmp_path, "http://127.0.0.1:9", np.array([100]))
    many = wanted.model_copy(update={"run": wanted.run.model_copy(update={"num_workers": 3})})
    with pytest.raises(ResourceError, match="3 workers"):
        preflight(many, MODEL.model_copy(update={"width": 32768, "num_layers": 4}), tmp_path, run_config.tracking_uri, np.array([100]))
