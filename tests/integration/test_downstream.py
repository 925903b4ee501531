"""Downstream heads on a registered model: latents once, every task and state, controls, resume, and many of them in a sweep."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pfscale.config import RunConfig, dump_yaml
from pfscale.errors import ConfigError, InputFileError, NotEnoughDataError, OutputExistsError, ShardError, StoppedError
from pfscale.models.bundle import load_bundle
from pfscale.models.mlpf import LatentConfig
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.ragged import INPUT_COLUMNS
from pfscale.studies.config import load_question
from pfscale.studies.plan import plan_sweep
from pfscale.studies.rows import FINISHED
from pfscale.studies.sweep import run_sweep
from pfscale.tasks.arms import set_data
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training import heads
from pfscale.training.downstream import DownstreamConfig, HeadDataConfig, HeadOptimisationConfig, downstream, heading, load_head
from pfscale.training.head_chain import chain_of
from pfscale.training.inference import run_encoder, run_model
from pfscale.training.latents import MANIFEST, cache_latents, load_objects, plan_latents, select_objects
from pfscale.training.pretrain import pretrain
from pfscale.training.progress import read_evaluations
from pfscale.training.reconstruct import reconstruct
from pfscale.training.session import STOP, Wish
from training_runs import MODEL, Shards, config

REAL_EVENT = Path(__file__).parents[1] / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"
SHORT = HeadOptimisationConfig(num_epochs=1, min_steps=12, batch_size=32, evaluations=3)


@pytest.fixture(scope="module")
def made(make_shards: Shards, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig, Path]:
    """(shards, run config, folder of a registered model of them)."""
    shards, folder = make_shards(120), tmp_path_factory.mktemp("downstream")
    shutil.copy(migrated_database, folder / "mlflow.db")
    settings = RunConfig(storage=str(folder / "runs"), tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment="tests", num_workers=0)
    run = pretrain(config(shards, settings))
    assert run.checkpoint is not None
    return shards, settings, run.checkpoint


def head(made: tuple[Path, RunConfig, Path], **changes: object) -> DownstreamConfig:
    """A short training of a head."""
    shards, run, _ = made
    values: dict[str, object] = {
        "backbone": "mlpf-clic@candidate",
        "data": HeadDataConfig(shards=str(shards)),
        "optimisation": SHORT,
        "register_as": "",
        "run": run,
    }
    return DownstreamConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_latents_are_those_of_the_candidates(made: tuple[Path, RunConfig, Path], tmp_path: Path) -> None:
    """Catches latents of other elements, of another layer, events in another order, or a cache that is made again."""
    shards, run, model = made
    for choice in (LatentConfig(), LatentConfig(layer=0), LatentConfig(part="concatenation")):
        plan = plan_latents(str(model), shards, latents=choice, tracking_uri=run.tracking_uri)
        folder = plan.folder(tmp_path)
        manifest = cache_latents(plan, folder, num_workers=1)
        _, objects = load_objects(folder)
        index = load_index(shards)
        events = read_events(index, np.arange(index.num_events), INPUT_COLUMNS)
        np.testing.assert_array_equal(objects.event["uid"], events.uid)
        found = run_model(plan.bundle.model, events, ReconstructionConfig(**plan.bundle.card["task"])).candidates
        np.testing.assert_array_equal(objects.event_of_candidate, found.event)
        np.testing.assert_allclose(objects.candidate["px"], found.px, rtol=1e-5)
        latents = run_encoder(plan.bundle.model, events, choice)
        element = events.offsets[found.event] + found.element_index
        np.testing.assert_allclose(objects.latents, latents[element], atol=2e-3)
        assert manifest.width == latents.shape[1]
        stamp = (folder / manifest.files[0]).stat().st_mtime_ns
        assert cache_latents(plan, folder) == manifest
        assert (folder / manifest.files[0]).stat().st_mtime_ns == stamp
        (folder / MANIFEST).unlink()  # as after a kill before the end
        assert cache_latents(plan, folder, num_workers=1) == manifest
        assert (folder / manifest.files[0]).stat().st_mtime_ns == stamp
    with pytest.raises(OutputExistsError, match="holds latents of"):
        cache_latents(plan_latents(str(model), shards, tracking_uri=run.tracking_uri), folder)


def test_only_the_latents_differ_between_encoders(made: tuple[Path, RunConfig, Path], tmp_path: Path) -> None:
    """Catches a control whose candidates or jets are those of the untrained model: it would then measure the candidates."""
    shards, run, model = made
    found = {}
    for encoder in ("same", "random:1", "random:2"):
        plan = plan_latents(str(model), shards, encoder=encoder, tracking_uri=run.tracking_uri)
        cache_latents(plan, plan.folder(tmp_path), num_workers=1)
        found[encoder] = load_objects(plan.folder(tmp_path))[1]
    for encoder in ("random:1", "random:2"):
        for name in ("candidate", "jet"):
            for field, values in getattr(found["same"], name).items():
                np.testing.assert_array_equal(getattr(found[encoder], name)[field], values)
    assert not np.array_equal(found["same"].latents, found["random:1"].latents)
    assert not np.array_equal(found["random:2"].latents, found["random:1"].latents)
    with pytest.raises(InputFileError, match="no encoder"):
        plan_latents(str(model), shards, encoder="random:x", tracking_uri=run.tracking_uri)


def test_labels_are_nested(made: tuple[Path, RunConfig, Path]) -> None:
    """Catches label budgets whose smaller ones hold events that larger ones do not."""
    launch, _ = heading(head(made))
    launch.prepare()
    _, objects = load_objects(launch.cache)
    few, more = select_objects(objects, "train", 20), select_objects(objects, "train", 60)
    assert set(few) < set(more)
    index = load_index(made[0])
    assert set(few) == set(np.argsort(index.split_hash)[np.isin(np.argsort(index.split_hash), np.flatnonzero(index.split == 0))][:20])


@pytest.mark.parametrize(
    ("arm", "state"),
    [
        ("kinematics", "pretrained-frozen"),
        ("kinematics+tracks", "pretrained-frozen"),
        ("kinematics+latents", "random-frozen"),
        ("kinematics+tracks+latents", "pretrained-finetuned"),
        ("latents-linear", "pretrained-frozen"),
    ],
)
@pytest.mark.parametrize("kind", ["missing_momentum", "jet_energy"])
def test_every_arm_trains_and_is_measured(kind: str, arm: str, state: str, made: tuple[Path, RunConfig, Path]) -> None:
    """Catches an arm or state that cannot be trained, measured, loaded or found finished."""
    wanted = head(made, task={"kind": kind}, arm=arm, state=state)
    run = downstream(wanted)
    metric = {"missing_momentum": "met_resolution", "jet_energy": "energy_response_iqr_over_median"}[kind]
    assert run.metrics[f"test/{metric}"] > 0
    assert run.metrics[f"test/baseline/{metric}"] > 0
    assert run.checkpoint is not None
    loaded = load_head(run.checkpoint)
    assert loaded.card["arm"] == arm
    assert downstream(wanted).resumed
    steps = [values["step"] for values in read_evaluations(run.checkpoint.parent)]
    assert steps[0] == 0
    assert steps[-1] == max(steps) >= 12
    if arm == "latents-linear":
        assert run.metrics["num_parameters"] == MODEL.width + 1


def test_an_encoder_that_is_trained_along_moves_and_one_that_is_frozen_does_not(made: tuple[Path, RunConfig, Path]) -> None:
    """Catches fine-tuning that leaves the encoder as it was, or begins with other outputs than the frozen one."""
    frozen = downstream(head(made, state="pretrained-frozen", seed=5))
    tuned = downstream(head(made, state="pretrained-finetuned", seed=5))
    assert frozen.checkpoint is not None
    assert tuned.checkpoint is not None
    before, after = load_head(frozen.checkpoint).module, load_head(tuned.checkpoint).module
    assert before.encoder is None
    assert after.encoder is not None
    model = plan_latents("mlpf-clic@candidate", made[0], tracking_uri=made[1].tracking_uri).bundle.model
    own = dict(model.encoder.named_parameters())
    moved = [name for name, value in after.encoder.encoder.named_parameters() if not torch.equal(value, own[name])]
    assert any("blocks" in name for name in moved)
    first = [read_evaluations(run.checkpoint.parent)[0]["validation_loss"] for run in (frozen, tuned) if run.checkpoint is not None]
    assert first[0] == pytest.approx(first[1], rel=1e-2)  # latents on disk have half precision


def test_a_stopped_head_ends_where_an_unbroken_one_does(
    made: tuple[Path, RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an order of batches or a schedule that does not survive a resume."""
    elsewhere = made[1].model_copy(update={"storage": str(tmp_path / "runs"), "experiment": "other"})
    wanted = head(made, arm="kinematics", run=elsewhere, checkpoint_every=5)
    launch, _ = heading(wanted)
    whole = downstream(head(made, arm="kinematics"))
    step = heads._step

    def stops_once(*arguments: object) -> float:
        if arguments[2] == 7:
            (launch.folder / STOP).touch()
        return step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(heads, "_step", stops_once)
        patched.setattr(Wish, "SECONDS", 0.0)
        with pytest.raises(StoppedError, match="checkpoint at step 8"):
            downstream(wanted)
    resumed = downstream(wanted)
    assert resumed.metrics["validation_loss"] == whole.metrics["validation_loss"]
    assert resumed.checkpoint is not None
    assert whole.checkpoint is not None
    for name, value in load_head(whole.checkpoint).module.state_dict().items():
        assert torch.equal(load_head(resumed.checkpoint).module.state_dict()[name], value), name


def test_a_head_that_a_sweep_has_trained_is_registered_when_asked_for(made: tuple[Path, RunConfig, Path]) -> None:
    """Catches a winner that has no way into the registry, because it is found finished."""
    wanted = head(made, task={"kind": "missing_momentum"}, arm="latents-linear", seed=7)
    first = downstream(wanted)
    assert first.model is None
    again = downstream(wanted.model_copy(update={"register_as": "auto"}))
    assert again.resumed
    assert again.model is not None
    assert (again.model.name, again.model.tags["headline"].split()[0]) == ("missing-momentum-clic", "met_resolution")


def test_mistakes_are_told(made: tuple[Path, RunConfig, Path], make_shards: Shards) -> None:
    """Catches mistakes that are found late, or turned into something that was not asked for."""
    with pytest.raises(ShardError, match="trained on clic"):
        heading(head(made, data=HeadDataConfig(shards=str(make_shards(detector="cld")))))
    with pytest.raises(NotEnoughDataError, match="5000 train events"):
        downstream(head(made, data=HeadDataConfig(shards=str(made[0]), num_events=5000)))
    with pytest.raises(NotEnoughDataError, match="two classes"):  # the synthetic jets are all of one flavour
        downstream(head(made, task={"kind": "jet_flavour"}))
    with pytest.raises(ConfigError, match="layer 7 of a model with 1"):
        heading(head(made, latents=LatentConfig(layer=7)))
    for wrong, message in (
        ({"arm": "kinematics", "state": "pretrained-finetuned"}, "no latents"),
        ({"arm": "latents-linear", "network": {"kind": "set_transformer"}}, "one linear layer"),
        ({"encoder": "mlpf-clic/1", "state": "random-frozen"}, "goes with"),
        ({"run": RunConfig(num_workers=2)}, "in one process"),
    ):
        with pytest.raises(ValueError, match=message):
            head(made, **wrong)
    with pytest.raises(InputFileError, match="of kind 'mlpf'"):
        load_head(made[2])


def test_heads_follow_the_model_on_a_real_event(made: tuple[Path, RunConfig, Path], tmp_path: Path) -> None:
    """Catches heads that see other inputs without truth than they were trained on, or are of another model."""
    shards, run, model = made
    heads = [
        downstream(head(made, task={"kind": "missing_momentum"}, arm="kinematics+tracks+latents")),
        downstream(head(made, task={"kind": "jet_energy"}, arm="kinematics+latents", latents=LatentConfig(layer=0))),
    ]
    places = [str(found.checkpoint) for found in heads]
    asked = {"detector": "cld", "accept_mismatch": True, "tracking_uri": run.tracking_uri}
    found = reconstruct(str(model), [str(REAL_EVENT)], output=tmp_path / "candidates", heads=places, **asked)
    (row,) = pq.read_table(found.files[0]).to_pylist()
    candidates, jets = row["candidate"], row["jet"]
    assert jets
    assert all(0.1 < jet["energy_corrected"] / jet["energy"] < 10 for jet in jets)
    plain = np.array([-sum(c[axis] for c in candidates) for axis in ("px", "py")])
    said = np.array([row["met"][axis] for axis in ("px", "py")])
    assert np.isfinite(said).all()
    assert np.hypot(*(said - plain)) < 0.5 * sum(np.hypot(c["px"], c["py"]) for c in candidates)
    # with truth, on the events that it was trained for: the same numbers by the other way
    cached = load_objects(heading(head(made))[0].cache)[1]
    events = read_events(load_index(shards), np.arange(20), ("track.list.element.cov.list.element", *INPUT_COLUMNS))
    bundle = load_bundle(model)
    prediction = run_model(bundle.model, events, ReconstructionConfig(**bundle.card["task"]), with_latents=True)
    chain = chain_of(places[:1], model="it", model_hash=heading(head(made))[0].plan.model_hash, tracking_uri=run.tracking_uri)
    known = cached.select(np.arange(20))
    examples = chain.heads[0].head.module.task.everything(known)
    expected = chain.heads[0].head.predict(set_data("kinematics+tracks+latents", known, examples)[0])
    np.testing.assert_allclose(chain.apply(bundle, events, prediction).met, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputFileError, match="second head"):
        chain_of([places[0], places[0]], model="it", model_hash=chain.heads[0].head.card["parent_hash"], tracking_uri=run.tracking_uri)
    with pytest.raises(InputFileError, match="not of it"):
        chain_of(places, model="it", model_hash="another", tracking_uri=run.tracking_uri)
    with pytest.raises(InputFileError, match="written to Parquet"):
        reconstruct(str(model), [str(REAL_EVENT)], output=tmp_path / "root", heads=places, file_format="root", **asked)


@pytest.mark.usefixtures("cluster")
def test_many_heads_answer_a_question(made: tuple[Path, RunConfig, Path], tmp_path: Path) -> None:
    """Catches heads that are no trials: latents made twice, arms without effect, no table, runs without a parent."""
    base = head(made, run=made[1].model_copy(update={"num_workers": 0}))
    (tmp_path / "base.yaml").write_text(dump_yaml(base))
    space = [
        {"arm": {"grid_search": ["kinematics", "kinematics+tracks"]}, "seed": {"grid_search": [1, 2]}},
        {"arm": "kinematics+latents", "state": {"grid_search": ["pretrained-frozen", "random-frozen"]}, "seed": {"grid_search": [1, 2]}},
    ]
    sweep = {"question": "do latents help?", "verb": "downstream", "base": "base.yaml", "answer": "downstream", "space": space}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(sweep))
    plan = plan_sweep(load_question(tmp_path / "arms.yaml"))
    assert set(plan.varied) == {"arm", "seed", "state"}
    result = run_sweep(plan)
    assert [row.status for row in result.rows] == [FINISHED] * 8
    assert all(row.elements > 0 for row in result.rows)
    cells = result.numbers["cells"]
    assert {(cell["arm"], cell["state"]) for cell in cells} == {
        ("kinematics", "pretrained-frozen"),
        ("kinematics+tracks", "pretrained-frozen"),
        ("kinematics+latents", "pretrained-frozen"),
        ("kinematics+latents", "random-frozen"),
    }
    assert "missing_momentum_met_resolution" in result.figures
    assert any("kinematics+latents against kinematics+latents (random-frozen)" in line for line in result.answer)
    assert json.loads((result.folder / "answer.json").read_text())["sentences"] == list(result.answer)
    with pytest.raises(ConfigError, match="does not report"):
        plan_sweep(load_question(tmp_path / "arms.yaml", ["metric=validation_pt"]))
    with pytest.raises(ConfigError, match="better where it is larger"):
        plan_sweep(load_question(tmp_path / "arms.yaml", ["metric=test/auc_b_vs_c"]))
    arms, states = ["kinematics", "kinematics+latents"], ["random-frozen", "pretrained-frozen"]
    sweep["space"] = {"arm": {"grid_search": arms}, "state": {"grid_search": states}}
    (tmp_path / "product.yaml").write_text(yaml.safe_dump(sweep))
    plan = plan_sweep(load_question(tmp_path / "product.yaml"))
    assert len(plan.trials) == 3, "without latents all states are one training"
    assert set(plan.varied) == {"arm", "state"}
    assert os.path.isdir(result.folder)
