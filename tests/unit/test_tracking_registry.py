"""The registry: a bundle in, the same bundle out, by version or alias; mistakes list what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfscale.errors import ModelNotFoundError, TrackingError
from pfscale.tracking.registry import download, list_models, register_model, resolve
from pfscale.tracking.runs import Tracker, connect


def make_bundle(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.yaml").write_text("width: 8\n")
    (folder / "model_card.json").write_text("{}")
    return folder


@pytest.fixture
def tracker(empty_store: str) -> Tracker:
    return connect(empty_store, "e")


def new_run(tracker: Tracker, fingerprint: str) -> str:
    return tracker.start_run("train", fingerprint=fingerprint).run_id


def test_a_bundle_comes_back_as_it_went_in(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch a version that points at nothing, at a copy without the config, or at files that can change."""
    bundle = make_bundle(tmp_path / "b")
    made = register_model(tracker, run_id=new_run(tracker, "a"), bundle=bundle, name="mlpf-clic", tags={"detector": "clic"})
    (bundle / "model.safetensors").write_bytes(b"changed later")
    for reference in ("models:/mlpf-clic@candidate", "mlpf-clic@candidate", "models:/mlpf-clic/1", "mlpf-clic/latest"):
        assert resolve(tracker.uri, reference) == made
    folder = download(made)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "config.yaml").read_text() == "width: 8\n"
    assert made.tags["detector"] == "clic"
    assert made.version == 1


def test_plain_mlflow_finds_the_same_folder(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a private layout that `mlflow.artifacts.download_artifacts("models:/...")` cannot follow."""
    import mlflow

    made = register_model(tracker, run_id=new_run(tracker, "a"), bundle=make_bundle(tmp_path / "b"), name="mlpf-clic")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    found = Path(mlflow.artifacts.download_artifacts("models:/mlpf-clic@candidate", registry_uri=tracker.uri, tracking_uri=tracker.uri))
    assert (found / "model.safetensors").read_bytes() == (download(made) / "model.safetensors").read_bytes()


def test_registering_again_on_resume_makes_no_second_version(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch a run killed after registration that registers its model twice."""
    run_id = new_run(tracker, "a")
    bundle = make_bundle(tmp_path / "b")
    first = register_model(tracker, run_id=run_id, bundle=bundle, name="mlpf-clic")
    (bundle / "model_card.json").write_text('{"written": "later"}')
    assert register_model(tracker, run_id=run_id, bundle=bundle, name="mlpf-clic") == first
    assert len(list_models(tracker.uri)) == 1


def test_a_better_checkpoint_of_the_same_run_leaves_the_old_version_alone(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch version 1 silently changing because both versions share a folder."""
    run_id = new_run(tracker, "a")
    first = register_model(tracker, run_id=run_id, bundle=make_bundle(tmp_path / "b", b"old"), name="mlpf-clic")
    second = register_model(tracker, run_id=run_id, bundle=make_bundle(tmp_path / "b", b"new"), name="mlpf-clic")
    assert (second.version, second.aliases) == (2, ("candidate",))
    assert (download(resolve(tracker.uri, first.uri)) / "model.safetensors").read_bytes() == b"old"
    assert resolve(tracker.uri, first.uri).aliases == ()


def test_an_old_run_repeated_takes_the_alias_from_no_newer_version(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch `candidate` jumping back when an old command is run once more."""
    old_run = new_run(tracker, "a")
    old = make_bundle(tmp_path / "old", b"old")
    register_model(tracker, run_id=old_run, bundle=old, name="mlpf-clic")
    newer = register_model(tracker, run_id=new_run(tracker, "b"), bundle=make_bundle(tmp_path / "new", b"new"), name="mlpf-clic")
    register_model(tracker, run_id=old_run, bundle=old, name="mlpf-clic")
    assert resolve(tracker.uri, "mlpf-clic@candidate").version == newer.version


def test_a_wrong_name_lists_what_exists_nearest_first(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch `RESOURCE_DOES_NOT_EXIST` as the only answer to a typo."""
    for name in ("jet-flavour-clic", "mlpf-cld", "mlpf-clic"):
        register_model(tracker, run_id=new_run(tracker, name), bundle=make_bundle(tmp_path / name, name.encode()), name=name)
    with pytest.raises(ModelNotFoundError) as error:
        resolve(tracker.uri, "models:/mlfp-cld@candidate")
    assert error.value.hint is not None
    assert error.value.hint.index("mlpf-cld@candidate") < error.value.hint.index("jet-flavour-clic@candidate")
    for reference, known in (("mlpf-cld@champion", "mlpf-cld@candidate"), ("mlpf-cld/7", "mlpf-cld/1"), ("mlpf-cld", "mlpf-cld@candidate")):
        with pytest.raises(ModelNotFoundError) as error:
            resolve(tracker.uri, reference)
        assert known in str(error.value)


def test_an_empty_registry_says_so(tracker: Tracker) -> None:
    """Would catch an empty list of alternatives."""
    with pytest.raises(ModelNotFoundError, match="no model is registered"):
        resolve(tracker.uri, "mlpf-cld@candidate")
    assert list_models(tracker.uri) == []


def test_files_that_are_gone_are_said_to_be_gone(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch a FileNotFoundError from deep inside the loader after somebody tidied up."""
    import shutil

    made = register_model(tracker, run_id=new_run(tracker, "a"), bundle=make_bundle(tmp_path / "b"), name="mlpf-clic")
    shutil.rmtree(download(made))
    with pytest.raises(ModelNotFoundError, match="gone"):
        download(made)


@pytest.mark.parametrize("name", ["optimizer.pt", "nested/model.pkl", "weights.BIN"])
def test_a_pickle_is_refused_both_ways(tracker: Tracker, tmp_path: Path, name: str) -> None:
    """Would catch a model folder that runs code when it is loaded."""
    bundle = make_bundle(tmp_path / "b")
    run_id = new_run(tracker, "a")
    made = register_model(tracker, run_id=run_id, bundle=bundle, name="mlpf-clic")
    for folder in (bundle, download(made)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(TrackingError, match="pickle"):
        register_model(tracker, run_id=run_id, bundle=bundle, name="mlpf-other")
    with pytest.raises(TrackingError, match="pickle"):
        download(made)


def test_an_empty_bundle_is_refused(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch a registered version without weights."""
    (tmp_path / "b").mkdir()
    with pytest.raises(TrackingError):
        register_model(tracker, run_id=new_run(tracker, "a"), bundle=tmp_path / "b", name="mlpf-clic")
    assert list_models(tracker.uri) == []
