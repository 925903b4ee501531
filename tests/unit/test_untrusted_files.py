"""Files from elsewhere that try to run code, or to lead out of their folder."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pfscale.config import load_config
from pfscale.errors import ConfigError, PfscaleError, ShardError
from pfscale.models.bundle import CARD, CONFIG, MLPF_KIND, WEIGHTS, load_bundle, save_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.manifest import MANIFEST_FILE, load_manifest
from pfscale.training.downstream import HEAD_KIND, load_head
from pfscale.training.pretrain import PretrainConfig


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.path,))


def test_the_trap_works(tmp_path: Path) -> None:
    """Would catch a trap that never springs, so that every test below passes."""
    pickle.loads(pickle.dumps(Touch(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("text", ["!!python/object/apply:pathlib.Path.touch [{}]", "!!python/object/new:os.system ['touch {}']"])
@pytest.mark.parametrize("place", ["model: {}", "{}", "run: {{name: {}}}"])
def test_a_config_runs_no_code(text: str, place: str, tmp_path: Path) -> None:
    """Would catch a YAML loader that builds any Python object."""
    (tmp_path / "c.yaml").write_text(place.format(text.format(tmp_path / "sprung")))
    with pytest.raises(ConfigError):
        load_config(PretrainConfig, tmp_path / "c.yaml")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("load", "kind"), [(load_bundle, MLPF_KIND), (load_head, HEAD_KIND)])
@pytest.mark.parametrize("name", [WEIGHTS, CARD, CONFIG])
def test_a_model_runs_no_code(load: Callable[[Path], object], kind: str, name: str, tmp_path: Path) -> None:
    """Would catch weights that are read by torch.load, whatever they are called, and a config or card that is more than text."""
    model = Mlpf(MlpfConfig(width=8, num_layers=1, num_heads=1))
    folder = save_bundle(tmp_path / "model", model.config, dict(model.state_dict()), {"kind": kind, "classes": []})
    torch.save(Touch(tmp_path / "sprung"), folder / name)
    with pytest.raises(PfscaleError):
        load(folder)
    (folder / name).write_bytes(pickle.dumps(Touch(tmp_path / "sprung")))
    with pytest.raises(PfscaleError):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("storage", [pa.binary(), pa.list_(pa.uint8()), pa.large_list(pa.uint8())])
@pytest.mark.parametrize(
    "extension", ["arrow.py_extension_type", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_pickled_object"]
)
def test_a_shard_runs_no_code(extension: str, storage: pa.DataType, make_shards: Callable[..., Path], tmp_path: Path) -> None:
    """Would catch a reader that unpickles a column's metadata (as PyArrow did before 14.0.1, and Ray's types before 2.55) or values."""
    pytest.importorskip("ray.data")  # registers its types with Arrow
    folder = tmp_path / "shards"
    shutil.copytree(make_shards(), folder)
    trap = pickle.dumps(Touch(tmp_path / "sprung"))
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        planted = pa.field("planted", storage, metadata={"ARROW:extension:name": extension, "ARROW:extension:metadata": trap})
        schema = pa.schema([*table.schema, planted], metadata={**(table.schema.metadata or {}), b"pandas": trap})
        values = pa.array([trap if storage == pa.binary() else list(trap)] * len(table), storage)
        pq.write_table(pa.Table.from_arrays([*table.columns, values], schema=schema), path, row_group_size=32)
    with contextlib.suppress(ShardError):  # read or refused
        read_events(load_index(folder), np.array([0, 1]))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["../outside.parquet", "/etc/passwd", "..", "", "a/b.parquet", "..\\outside.parquet", "x\0.parquet"])
def test_a_manifest_stays_in_its_folder(name: str, make_shards: Callable[..., Path], tmp_path: Path) -> None:
    """Would catch a manifest that makes a cluster read, or an ingest delete, files elsewhere."""
    folder = tmp_path / "shards"
    shutil.copytree(make_shards(), folder)
    values = json.loads((folder / MANIFEST_FILE).read_text())
    values["shards"][0]["file"] = name
    (folder / MANIFEST_FILE).write_text(json.dumps(values))
    with pytest.raises(ShardError, match=r"shards\.0\.file"):
        load_manifest(folder)
