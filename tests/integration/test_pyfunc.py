"""A registered model in plain MLflow: the same candidates, in a process without Ray, and mistakes in the table that are told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pfscale.errors import InputTableError
from pfscale.shards.dataset import load_index, read_events, select_events
from pfscale.shards.elements import element_table
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.tracking.registry import PICKLE_SUFFIXES, download, resolve
from pfscale.training.inference import run_model
from pfscale.training.lookup import load_model
from pfscale.training.pyfunc import SCORES, PyfuncModel, _load_pyfunc
from registry_models import trained

REFERENCE = "models:/mlpf-cld@candidate"
IN_ANOTHER_PROCESS = """
import sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
table = pandas.read_parquet(sys.argv[2])
model.predict(table).to_parquet(sys.argv[3])
model.predict(table, params={"latents": True}).to_parquet(sys.argv[4])
assert not {"ray", "deepspeed", "uproot"} & set(sys.modules), sorted(set(sys.modules) & {"ray", "deepspeed", "uproot"})
inputs = model.metadata.signature.inputs
assert {"event", "elemtype", "pt", "energy_ecal"} <= set(inputs.input_names()), inputs
assert "latents" in str(model.metadata.signature.params)
"""


@pytest.fixture(scope="module")
def shards(make_shards: Callable[..., Path]) -> Path:
    return make_shards(detector="cld")


@pytest.fixture(scope="module")
def registry(shards: Path, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("registry")
    trained(shards, folder, migrated_database)
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def model(registry: str) -> PyfuncModel:
    return _load_pyfunc(str(download(resolve(registry, REFERENCE))))


@pytest.fixture
def table(shards: Path) -> pd.DataFrame:
    return element_table(shards)


def test_plain_mlflow_without_ray_predicts_what_run_model_does(registry: str, shards: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    """Would catch a flavour that MLflow cannot load, one that needs Ray, features in wrong columns, rounding on the way."""
    table.to_parquet(tmp_path / "in.parquet")
    paths = [str(tmp_path / name) for name in ("in.parquet", "candidates.parquet", "latents.parquet")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry}
    done = subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS, REFERENCE, *paths], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    got, latents = (pd.read_parquet(path) for path in paths[1:])

    bundle, index = load_model(REFERENCE, tracking_uri=registry), load_index(shards)
    events = read_events(index, select_events(index, "test"))
    expected = run_model(bundle.model, events, ReconstructionConfig(**bundle.card["task"]), with_latents=True)
    found = expected.candidates
    assert len(got) == len(found.event) > 100
    assert (got["event"].to_numpy() == events.uid[found.event]).all()
    for name in ("element_index", "is_track", "pdg", "charge", "px", "py", "pz", "energy"):
        assert (got[name].to_numpy() == getattr(found, name)).all(), name
    assert (got[list(SCORES)].to_numpy() == found.scores).all()
    assert expected.latents is not None
    assert (latents.filter(like="latent_").to_numpy() == expected.latents).all()
    assert (latents["event"].to_numpy() == np.repeat(events.uid, events.lengths)).all()


def test_nothing_registered_is_a_pickle(registry: str) -> None:
    """Would catch a flavour that pickles the model, which runs whatever code is in it."""
    files = [path for path in download(resolve(registry, REFERENCE)).rglob("*") if path.is_file()]
    assert {"MLmodel", "model.safetensors"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in PICKLE_SUFFIXES]


def test_rows_may_come_in_any_order(model: PyfuncModel, table: pd.DataFrame) -> None:
    """Would catch candidates that belong to other rows than they say where elements are mixed, and events that change their order."""
    few = table[table["event"].isin(table["event"].unique()[:6])].reset_index(drop=True)
    mixed = few.sample(frac=1.0, random_state=3)  # with an index that is not 0, 1, 2, ...
    named = mixed.assign(event=[f"event {uid}" for uid in mixed["event"]])
    got = model.predict(named)
    assert list(got["event"].unique()) == list(named["event"].unique())
    rows = named.assign(element_index=named.groupby("event").cumcount(), source=named.index)
    got = got.merge(rows[["event", "element_index", "source", "elemtype"]], on=["event", "element_index"], validate="one_to_one")
    assert (got["is_track"] == (got["elemtype"] == 1)).all()
    plain = model.predict(few)
    plain["source"] = (
        few.reset_index()
        .set_index(["event", few.groupby("event").cumcount()])["index"]
        .loc[list(zip(plain["event"], plain["element_index"], strict=True))]
        .to_numpy()
    )
    both = got.merge(plain, on="source", validate="one_to_one", suffixes=("", "_plain"))
    assert len(both) == len(plain) == len(got)
    np.testing.assert_allclose(both["energy"], both["energy_plain"], rtol=1e-4)


def test_events_of_one_element_and_no_rows(model: PyfuncModel, table: pd.DataFrame) -> None:
    """Would catch a crash, or an answer that depends on the other events, where there is next to nothing to see."""
    single = table.groupby("event", sort=False).head(1)
    together = model.predict(single)
    assert (together["element_index"] == 0).all()
    label = together["event"].iloc[0]
    alone = model.predict(single[single["event"] == label])
    np.testing.assert_allclose(alone["energy"], together.loc[together["event"] == label, "energy"], rtol=1e-5)
    for params in (None, {"latents": True}):
        empty = model.predict(table.iloc[:0], params)
        assert len(empty) == 0
        assert list(empty) == list(model.predict(table, params))


def test_a_table_of_one_kind_needs_the_features_of_that_kind_only(model: PyfuncModel, table: pd.DataFrame) -> None:
    """Would catch track columns asked for of somebody who has clusters only."""
    clusters = table[table["elemtype"] == 2].dropna(axis="columns", how="all")
    assert "pt" not in clusters
    assert not model.predict(clusters)["is_track"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="event"), "no column event"),
        (lambda t: t.rename(columns={"energy_ecal": "energy_Ecal"}), "is 'energy_Ecal' meant for 'energy_ecal'"),
        (lambda t: t.drop(columns=["pt", "d0"]), "no column pt, d0"),
        (lambda t: t.assign(event=t["event"].astype("float64").where(t.index != 5)), "1 rows have no event \\(first: row 5"),
        (lambda t: t.assign(elemtype=t["elemtype"].where(t.index != 7, 3)), "'3' in row 7 is no kind of element"),
        (lambda t: t.assign(pt=t["pt"].where(t["elemtype"] == 2)), "column 'pt': .* no finite value"),
        (lambda t: t.assign(energy="high"), "column 'energy': not numbers"),
        (lambda t: t.to_dict(), "not a pandas DataFrame"),
    ],
)
def test_wrong_tables_are_refused(model: PyfuncModel, table: pd.DataFrame, change: Callable[[pd.DataFrame], object], message: str) -> None:
    """Would catch candidates with NaN momenta, or of features that were guessed, where a table lacks something."""
    with pytest.raises(InputTableError, match=message):
        model.predict(change(table))  # type: ignore[arg-type]


def test_what_mlflow_itself_refuses_is_told_by_name(registry: str, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a signature that lets a table without events through, or a parameter with a typo that is ignored."""
    import mlflow
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    loaded = mlflow.pyfunc.load_model(REFERENCE)
    with pytest.raises(MlflowException, match="event"):
        loaded.predict(table.drop(columns="event"))
    with pytest.raises(MlflowException, match="num_hits"):
        loaded.predict(table.assign(num_hits="many"))
    with pytest.raises(InputTableError, match="no column pt"):
        loaded.predict(table.drop(columns="pt"))
    expected = loaded.predict(table)
    narrow = table.assign(elemtype=table["elemtype"].astype("uint8"), pt=table["pt"].astype("float64"))
    narrow = narrow.assign(event=pd.factorize(table["event"])[0].astype("int32"), mine="not asked for")
    got = loaded.predict(narrow)
    assert (got.drop(columns="event") == expected.drop(columns="event")).all(axis=None)
