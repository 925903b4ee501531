"""Exported models: the graph says what the model says, for any number of elements and events; mistakes are told in our words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfscale.cli import run
from pfscale.errors import InputFileError, NotEnoughDataError, OutputExistsError, PfscaleError, ResourceError, TrackingError
from pfscale.models.attention import attend, attend_masked
from pfscale.models.batch import Batch, collate, traced_batch
from pfscale.models.bundle import MLPF_KIND, Bundle, load_bundle, save_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.models.onnx_model import INPUTS, OnnxModel, OnnxParticles
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.ragged import NUM_MOMENTUM_FEATURES, RaggedEvents
from pfscale.shards.schema import CLASSES
from pfscale.tasks.reconstruction import ReconstructionConfig, describe, predict
from pfscale.tracking.attachments import attach_files
from pfscale.tracking.registry import download, register_model, resolve, weights_digest
from pfscale.tracking.runs import connect
from pfscale.training import export as exporting
from pfscale.training.export import agreement_of, export_model

CONFIG = MlpfConfig(width=16, num_layers=2, num_heads=2)
CARD = {"kind": MLPF_KIND, "detector": "clic", "simulation": "builtin", "task": {"threshold": 0.9}}
Inputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def shards(make_shards: Callable[..., Path]) -> Path:
    return make_shards()


@pytest.fixture(scope="module")
def events(shards: Path) -> RaggedEvents:
    return read_events(load_index(shards), np.arange(120))


@pytest.fixture(scope="module")
def folder(events: RaggedEvents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights that predict most classes: with the zeros at the start, many a mistake would not show."""
    torch.manual_seed(3)
    model = Mlpf(CONFIG)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for name in ("presence", "class", "charge"):
        torch.nn.init.normal_(model.heads[name][0].weight)  # type: ignore[index, arg-type]
        torch.nn.init.normal_(model.heads[name][2].weight, std=3.0)  # type: ignore[index, arg-type]
    model.encoder.standardise.fit(events.features, events.is_track)
    with torch.no_grad():  # half of the elements become candidates
        middle = model.eval()(collate(events, np.arange(events.num_events))).presence_T.median()
        model.heads["presence"][2].bias += torch.logit(torch.tensor(0.9)) - middle  # type: ignore[index, operator]
    return save_bundle(tmp_path_factory.mktemp("bundle"), CONFIG, model.state_dict(), CARD)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture(scope="module")
def file(folder: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model, as the command line writes it."""
    path = tmp_path_factory.mktemp("onnx") / "clic.onnx"
    assert run(["export", str(folder), str(shards), "-o", str(path), "--num-events", "120"]) == 0
    return path


@pytest.fixture(scope="module")
def onnx_model(file: Path) -> OnnxModel:
    return OnnxModel(file, num_threads=1)


def inputs_of(events: RaggedEvents, num_elements: int) -> Inputs:
    """So many elements as one event, those of the given events over and over."""
    rows = np.arange(num_elements) % len(events.is_track)
    return {"features": events.features[rows], "is_track": events.is_track[rows], "event": np.zeros(num_elements, np.int64)}


def one_event(inputs: Inputs) -> Batch:
    """The same elements as a batch that is not traced."""
    length = len(inputs["is_track"])
    offsets = torch.tensor([0, length], dtype=torch.int32)
    features, is_track = torch.from_numpy(inputs["features"]), torch.from_numpy(inputs["is_track"])
    return Batch(features, is_track, (length,), offsets, {}, np.zeros(1, np.int64))


def test_the_masked_path_is_the_same_attention(events: RaggedEvents, bundle: Bundle) -> None:
    """Catches a graph in which elements see other events, or that embeds tracks as clusters."""
    batch = collate(events, np.array([3, 0, 7, 7, 12]))
    event = torch.from_numpy(np.repeat(np.arange(5), batch.lengths))
    qkv = torch.randn(batch.num_elements, 3, 2, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(attend_masked(qkv, event), attend(qkv, batch), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        plain, traced = bundle.model(batch), bundle.model(traced_batch(batch.features_TF, batch.is_track_T, event))
    for name, values in vars(plain).items():
        torch.testing.assert_close(getattr(traced, name), values, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("num_elements", [0, 1, 2, 300, 5000])
def test_an_event_of_any_size_gives_what_the_model_gives(
    events: RaggedEvents, bundle: Bundle, onnx_model: OnnxModel, num_elements: int
) -> None:
    """Catches a graph that remembers the number of elements it was traced with, and fails for none, one or very many."""
    inputs = inputs_of(events, num_elements)
    got = onnx_model.run(inputs)
    assert len(got) == num_elements
    with torch.no_grad():
        batch = one_event(inputs)
        expected = describe(bundle.model(batch), batch, ReconstructionConfig(threshold=0.9))
    assert np.sum(got.pdg != expected.pdg.numpy()) <= 1e-3 * num_elements
    np.testing.assert_allclose(got.scores, expected.scores.numpy(), atol=1e-4)
    for name, values in vars(expected.momentum).items():
        np.testing.assert_allclose(getattr(got, name), values.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_candidates_of_the_graph_are_those_of_predict(events: RaggedEvents, bundle: Bundle, onnx_model: OnnxModel) -> None:
    """Catches a working point, class order or sign of charge that a C++ user would get differently, and events that see each other."""
    rows = np.arange(events.num_events)
    batch = collate(events, rows)
    with torch.no_grad():
        expected = predict(bundle.model(batch), batch, ReconstructionConfig(threshold=0.9))
    got = onnx_model.run({"features": events.features, "is_track": events.is_track, "event": events.event})
    kept = np.flatnonzero(got.is_candidate)
    assert 0.2 < len(kept) / len(got) < 0.8
    assert kept.tolist() == (events.offsets[expected.event] + expected.element_index).tolist()
    assert got.pdg[kept].tolist() == expected.pdg.tolist()
    assert got.charge[kept].tolist() == expected.charge.tolist()
    assert len(set(got.pdg.tolist())) > 3
    np.testing.assert_allclose(got.pt[kept] * got.cos_phi[kept], expected.px, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.pt[kept] * np.sinh(got.eta[kept]), expected.pz, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.energy[kept], expected.energy, rtol=1e-4)


def test_events_need_not_be_in_order(events: RaggedEvents, onnx_model: OnnxModel) -> None:
    """Catches events that are taken for runs of rows."""
    inputs = {"features": events.features[:200], "is_track": events.is_track[:200], "event": events.event[:200]}
    order = np.random.default_rng(1).permutation(200)
    plain, shuffled = onnx_model.run(inputs), onnx_model.run({name: values[order] for name, values in inputs.items()})
    np.testing.assert_allclose(shuffled.energy, plain.energy[order], rtol=1e-4)


def test_the_comparison_is_written_and_the_file_says_what_it_is(file: Path, folder: Path, onnx_model: OnnxModel) -> None:
    """Catches a file that somebody without pfscale cannot use, and a comparison that nobody can find."""
    check = json.loads(file.with_name("clic.onnx.check.json").read_text())
    assert check["num_events"] == 120
    assert check["num_elements"] > 1000
    assert set(check["differences"]) == {"scores", "pt", "eta", "sin_phi", "cos_phi", "energy"}
    assert max(difference["relative"] for difference in check["differences"].values()) < check["tolerance"]
    metadata = onnx_model.metadata
    assert (onnx_model.detector, metadata["schema_version"], metadata["threshold"]) == ("clic", "2", "0.9")
    assert metadata["weights"] == weights_digest(folder)
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["track_features"])[0] == {"name": "pt", "unit": "GeV"}
    assert json.loads(metadata["cluster_features"])[5] == {"name": "position_x", "unit": "mm"}
    assert [port["name"] for port in json.loads(metadata["outputs"])] == list(OnnxParticles.__dataclass_fields__)
    assert sorted(path.name for path in file.parent.iterdir()) == ["clic.onnx", "clic.onnx.check.json"]


def changed(inputs: Inputs, **changes: np.ndarray | None) -> Inputs:
    return {name: values for name, values in {**inputs, **changes}.items() if values is not None}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda i: changed(i, is_track=None), "input 'is_track' is missing"),
        (lambda i: changed(i, event=None, events=i["event"]), "did you mean 'event'"),
        (lambda i: changed(i, features=i["features"][:, :15]), r"\(9, 15\), not \(elements, 16\)"),
        (lambda i: changed(i, features=i["features"].astype(np.float64)), r"float64, not float32: use \.astype\(np\.float32\)"),
        (lambda i: changed(i, is_track=i["is_track"].astype(np.int64)), r"use \.astype\(np\.bool_\)"),
        (lambda i: changed(i, event=i["event"][:, None]), r"shape \(9, 1\), not \(elements,\)"),
        (lambda i: changed(i, event=i["event"][:5]), "different lengths: features 9, is_track 9, event 5"),
        (lambda i: changed(i, features=np.where(np.arange(16) == 1, np.inf, i["features"])), "eta of element 0 is inf"),
    ],
)
def test_wrong_inputs_are_named(events: RaggedEvents, onnx_model: OnnxModel, change: Callable[[Inputs], Inputs], told: str) -> None:
    """Catches onnxruntime's own words for it, or, worse, numbers."""
    with pytest.raises(InputFileError, match=told):
        onnx_model.run(change(inputs_of(events, 9)))


def test_missing_features_are_missing_in_the_graph_too(events: RaggedEvents, onnx_model: OnnxModel) -> None:
    """Catches a NaN that spreads in onnxruntime where it does not in torch; infinite counts as missing."""
    inputs = inputs_of(events, 50)
    may_be_missing = np.arange(16) >= NUM_MOMENTUM_FEATURES
    nan, inf = (
        changed(inputs, features=np.where(may_be_missing, value, inputs["features"]).astype(np.float32)) for value in (np.nan, np.inf)
    )
    assert all(np.isfinite(values).all() for values in vars(onnx_model.run(nan)).values())
    np.testing.assert_array_equal(onnx_model.run(nan).scores, onnx_model.run(inf).scores)


def test_files_that_are_no_exported_model_are_refused(tmp_path: Path, file: Path) -> None:
    """Catches another program's graph, or one of another schema, that is fed our features."""
    import onnx

    with pytest.raises(InputFileError, match="no such file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(InputFileError, match="not a model that onnxruntime can load"):
        OnnxModel(tmp_path / "text.onnx")
    proto = onnx.load(file)
    for entry in proto.metadata_props:
        entry.value = "99" if entry.key == "schema_version" else entry.value
    onnx.save(proto, tmp_path / "newer.onnx")
    with pytest.raises(InputFileError, match="other schema_version"):
        OnnxModel(tmp_path / "newer.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(InputFileError, match="did not export"):
        OnnxModel(tmp_path / "foreign.onnx")


def test_a_graph_that_disagrees_is_not_given_away(
    folder: Path, shards: Path, file: Path, events: RaggedEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a comparison that cannot fail: the file of one model beside the weights of another, or with a loss of NaN."""
    other = load_bundle(folder)
    with torch.no_grad():
        other.model.heads["momentum"][2].bias += 0.01  # type: ignore[operator, index]
    comparison = agreement_of(other, OnnxModel(file), events)
    assert not comparison.is_good
    worst = comparison.differences["energy"]
    nans = {**comparison.differences, "energy": replace(worst, relative=float("nan"))}
    assert not replace(comparison, differences=nans, tolerance=1.0, changed_tolerance=1.0).is_good
    monkeypatch.setattr(exporting, "write_onnx", lambda _bundle, path, **_: path.write_bytes(file.read_bytes()))
    moved = save_bundle(tmp_path / "bundle", CONFIG, other.model.state_dict(), CARD)
    with pytest.raises(PfscaleError, match="does not agree"):
        export_model(str(moved), shards, output=tmp_path / "out" / "model.onnx", num_events=100)
    assert not list((tmp_path / "out").iterdir())


def test_a_registered_model_gets_file_and_comparison(
    folder: Path, file: Path, shards: Path, empty_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an export that the registry knows nothing of, or one that makes another version of the model."""
    tracker = connect(empty_store, "e")
    run_id = tracker.start_run("pretrain", fingerprint="a").run_id
    made = register_model(tracker, run_id=run_id, bundle=folder, name="mlpf-clic")
    monkeypatch.setattr(exporting, "write_onnx", lambda _bundle, path, **_: path.write_bytes(file.read_bytes()))
    for _ in range(2):  # again, it replaces both
        result = export_model("mlpf-clic@candidate", shards, output=tmp_path / "mine.onnx", num_events=100, tracking_uri=empty_store)
    assert result.version == made.uri
    found = resolve(empty_store, "mlpf-clic/latest")
    assert (found.version, found.tags["onnx"], found.tags["onnx_events"]) == (made.version, "model.onnx", "100")
    assert (download(found) / "model.onnx").read_bytes() == (tmp_path / "mine.onnx").read_bytes() == file.read_bytes()
    assert json.loads((download(found) / "model.onnx.check.json").read_text())["num_events"] == 100
    assert weights_digest(download(found)) == weights_digest(folder)
    with pytest.raises(TrackingError, match="not artifacts of its run"):
        attach_files(replace(found, source="/elsewhere"), [file], tags={})


def test_mistakes_are_told_before_anything_is_written(
    folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a minute of work before a mistake is told, somebody's file that is overwritten, an ImportError as the answer."""
    mine = tmp_path / "mine.onnx"
    mine.write_text("x")
    with pytest.raises(OutputExistsError, match="no earlier export"):
        export_model(str(folder), shards, output=mine)
    with pytest.raises(OutputExistsError, match="a folder"):
        export_model(str(folder), shards, output=tmp_path)
    for few, told in ((99, "too few"), (301, "has 300")):
        with pytest.raises(NotEnoughDataError, match=told):
            export_model(str(folder), shards, output=tmp_path / "m.onnx", num_events=few)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(["export", str(folder), str(shards), "-o", str(tmp_path / "m.onnx")]) == ResourceError.exit_code
    assert "pip install 'pfscale[onnx]'" in capsys.readouterr().err
    with pytest.raises(ResourceError, match="onnxruntime"):
        OnnxModel(mine)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]
    assert [port.name for port in INPUTS] == ["features", "is_track", "event"]
