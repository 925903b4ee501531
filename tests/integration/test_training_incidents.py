"""A training that stops itself says which events did it, and the incident can be looked into."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pfscale.config import RunConfig
from pfscale.errors import InputFileError, ShardError, TrainingError
from pfscale.shards.dataset import load_index, select_events
from pfscale.shards.inspect import inspect
from pfscale.training.config import GuardConfig
from pfscale.training.pretrain import PretrainConfig, pretrain
from pfscale.training.replay import main, replay
from training_runs import Shards, config

GUILTY = 40  # of the synthetic events; a training event


def damaged(shards: Path, folder: Path, change: Callable[[dict[str, Any]], None], *, guilty: int = GUILTY, split: str = "train") -> Path:
    """A copy of a data set in which one event was changed."""
    shutil.copytree(shards, folder)
    index = load_index(folder)
    path = index.files[index.shard[guilty]]
    table = pq.read_table(path)
    rows = table.to_pylist()
    (row,) = [row for row in rows if row["event"]["uid"] == guilty]
    assert row["event"]["split"] == split
    change(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, row_group_size=32)
    return folder


def wild_target(row: dict[str, Any]) -> None:
    row["cluster_target"][0] |= {"class": 2, "pt": 1e4, "energy": 1e30, "eta": 0.0, "sin_phi": 0.0, "cos_phi": 1.0}


def infinite_feature(row: dict[str, Any]) -> None:
    row["cluster"][0]["et"] = float("inf")


def missing_target(row: dict[str, Any]) -> None:
    row["cluster_target"][0] |= {"class": 2, "pt": float("nan")}


def test_validation_events_without_a_finite_loss_are_named(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches an evaluation that ends a training and leaves nothing to look into."""
    validation = int(select_events(load_index(make_shards()), "validation")[3])
    shards = damaged(make_shards(), tmp_path / "shards", missing_target, guilty=validation, split="validation")
    with pytest.raises(TrainingError, match=r"validation loss is not finite at step 8"):
        pretrain(training_on(shards, run_config))
    (folder,) = (tmp_path / "runs").glob("*/incident-*")
    assert replay(folder).events[0].uid == validation


def training_on(shards: Path, run: RunConfig) -> PretrainConfig:
    return config(shards, run, num_steps=60, guard=GuardConfig(spike_factor=3.0, window=5))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_element_without_momentum_stops_the_training(make_shards: Shards, run_config: RunConfig, tmp_path: Path, split: str) -> None:
    """Catches an event that no model can take ending as a worker that died, tried again, or without its name."""
    guilty = int(select_events(load_index(make_shards()), split).min())
    shards = damaged(make_shards(), tmp_path / "shards", infinite_feature, guilty=guilty, split=split)
    with pytest.raises(TrainingError, match=f"uid:{guilty}: .* et of element") as stopped:
        pretrain(training_on(shards, run_config))
    command = str(stopped.value.hint).removeprefix("look at it: pfscale inspect ")
    assert inspect(*command.split(" --event "))


@pytest.mark.usefixtures("cluster")
def test_a_bad_event_of_one_worker_stops_all(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches workers that wait half an hour for one that has met a bad event, and its name lost on the way to the driver."""
    index = load_index(make_shards(600))
    guilty = int(select_events(index, "train").max())  # of the last lane, so of the last worker
    shards = damaged(make_shards(600), tmp_path / "shards", infinite_feature, guilty=guilty, split="train")
    two = run_config.model_copy(update={"num_workers": 2, "cpus_per_worker": 0.5})
    wanted = training_on(shards, two)
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"lanes": 2})})
    with pytest.raises(TrainingError, match=f"uid:{guilty}: .* et of element"):
        pretrain(wanted)


@pytest.mark.parametrize(("change", "text"), [(wild_target, "jumps"), (missing_target, "not finite")])
def test_the_guilty_event_is_found(
    make_shards: Shards,
    run_config: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    text: str,
) -> None:
    """Catches a training that goes through a wild event, an incident that cannot be replayed, and the wrong event on top."""
    shards = damaged(make_shards(), tmp_path / "shards", change)
    with pytest.raises(TrainingError, match=text) as stopped:
        pretrain(training_on(shards, run_config))
    (folder,) = (tmp_path / "runs").glob("*/incident-*")
    assert str(folder) in str(stopped.value.hint)
    incident = replay(folder)
    assert incident.events[0].uid == GUILTY
    assert len(incident.events) == len(json.loads((folder / "incident.json").read_text())["events"])
    capsys.readouterr()
    assert main([str(folder), "--count", "1"]) == 0
    said = capsys.readouterr().out
    command = next(line for line in said.splitlines() if "pfscale inspect" in line)
    assert f"synthetic:{GUILTY}" in said
    assert inspect(command.split("pfscale inspect ")[1].split(" --event ")[0], command.split(" --event ")[1].strip())


def test_an_incident_is_not_replayed_on_other_data(
    make_shards: Shards, run_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches the losses of events that the training never saw."""
    shards = damaged(make_shards(), tmp_path / "shards", missing_target)
    with pytest.raises(TrainingError):
        pretrain(training_on(shards, run_config))
    (folder,) = (tmp_path / "runs").glob("*/incident-*")
    with pytest.raises(ShardError, match="another data set"):
        replay(folder, shards=str(make_shards(seed=9)))
    (folder / "incident.json").write_text('{"what": ')
    with pytest.raises(InputFileError, match="no complete incident"):
        replay(folder)
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "incident" in capsys.readouterr().err


@pytest.mark.slow
def test_an_incident_in_a_worker_is_not_tried_again(make_shards: Shards, run_config: RunConfig, tmp_path: Path) -> None:
    """Catches a training that stops itself three times, because Ray takes it for a worker that died."""
    shards = damaged(make_shards(), tmp_path / "shards", missing_target)
    with pytest.raises(TrainingError, match="not finite"):
        pretrain(training_on(shards, run_config.model_copy(update={"num_workers": 1, "cpus_per_worker": 0.5})))
