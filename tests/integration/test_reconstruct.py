"""A registered model on ROOT files and on shards: what is written, what is warned of, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from rich.console import Console

from candidate_runs import small_model
from pfscale.config import RunConfig
from pfscale.errors import InputFileError, ModelNotFoundError, OutputExistsError, UnknownNameError
from pfscale.models.mlpf import MlpfConfig
from pfscale.training.config import DataConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.display import show_event
from pfscale.training.evaluate import evaluate
from pfscale.training.pretrain import PretrainConfig, pretrain
from pfscale.training.reconstruct import reconstruct

DATA = Path(__file__).parents[1] / "data"
REAL_EVENT = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"
PHOTONS = DATA / "clic_photon_gun_3ev_legacy.root"
TRUTH_COLLECTIONS = ("MC", "HitsRelation", "HitRelation", "Collection_particle")


@pytest.fixture(scope="module")
def registry(make_shards: Callable[..., Path], migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking address of a registry that holds one small model of synthetic CLD events."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(migrated_database, folder / "mlflow.db")
    run = RunConfig(storage=str(folder / "runs"), tracking_uri=f"sqlite:///{folder}/mlflow.db", num_workers=0)
    pretrain(
        PretrainConfig(
            model=MlpfConfig(width=16, num_layers=1, num_heads=2),
            engine=TorchEngineConfig(),
            optimisation=OptimisationConfig(num_steps=30, learning_rate=3e-3, evaluate_every=15),
            data=DataConfig(shards=str(make_shards(detector="cld")), tokens_per_step=512),
            run=run,
        )
    )
    return run.tracking_uri


def without_truth(source: Path, target: Path) -> Path:
    """A copy of an EDM4hep file that has no collection of MC truth left."""
    with uproot.open(source) as file:
        branches = {}
        for name, branch in file["events"].items(recursive=True, filter_typename="/.*/"):
            leaf = name.rpartition("/")[2]
            if (
                branch.branches
                or any(part in leaf for part in TRUTH_COLLECTIONS)
                or not leaf.startswith(("_", "SiTracks", "Pandora", "ECAL", "HCAL", "MUON"))
            ):
                continue
            values = branch.array()
            if values.ndim == 3:  # the covariance; uproot writes no lists of fixed arrays
                branches[leaf.partition("[")[0]] = ak.flatten(values, axis=2)
            elif values.ndim == 2 and not values.fields:
                branches[leaf] = values
        metadata = file["podio_metadata"]
        names, ids = (metadata[f"events___idTable/{key}"].array()[0].to_list() for key in ("m_names", "m_collectionIDs"))
    with uproot.recreate(target) as file:
        file.mktree("events", {name: values.type.content for name, values in branches.items()}).extend(branches)
        kinds = {"events___CollectionTypeInfo.name": "string", "events___CollectionTypeInfo.collectionID": np.uint32}
        table = (ak.Array(names), np.array(ids, np.uint32))
        file.mktree("podio_metadata", kinds).extend(dict(zip(kinds, table, strict=True)))
    return target


def saying(path: Path, **values: str) -> Path:
    """The file, which now says so of itself."""
    with uproot.update(path) as file:
        content = {"key": ak.Array(list(values)), "value": ak.Array(list(values.values()))}
        file.mktree("pfscale_metadata", {"key": "string", "value": "string"}).extend(content)
    return path


def test_a_real_event_becomes_candidates_with_latents(registry: str, tmp_path: Path) -> None:
    """Catches a model that works on built-in shards only, and outputs whose rows do not belong to their elements."""
    result = reconstruct("models:/mlpf-cld@candidate", [str(REAL_EVENT)], output=tmp_path / "out", latents=True, tracking_uri=registry)
    table = pq.read_table(result.files[0])
    (row,) = table.to_pylist()
    assert result.num_candidates == len(row["candidate"]) > 0
    assert len(row["latent"]) == 24 + 48
    assert len(row["latent"][0]) == 16
    for candidate in row["candidate"]:
        assert candidate["is_track"] == (candidate["element_index"] < 24)
        assert candidate["energy"] >= np.linalg.norm([candidate["px"], candidate["py"], candidate["pz"]]) * (1 - 1e-5)
        assert sum(candidate["scores"]) == pytest.approx(1, abs=1e-5)
    assert any("geant4" in note and "builtin" in note for note in result.warnings)


def test_truth_is_never_read(registry: str, tmp_path: Path) -> None:
    """Catches a reconstruction that needs, or peeks at, the MC truth of a file."""
    bare = without_truth(REAL_EVENT, tmp_path / "bare.root")
    with uproot.open(bare) as file:
        assert not any("MC" in name for name in file["events"].keys())  # noqa: SIM118  (a TTree's keys are its branches)
    whole, stripped = (
        pq.read_table(reconstruct("mlpf-cld@candidate", [str(path)], output=tmp_path / path.stem, tracking_uri=registry).files[0])
        for path in (REAL_EVENT, bare)
    )
    assert whole.column("candidate").to_pylist() == stripped.column("candidate").to_pylist()


def test_another_detectors_files_are_refused_unless_accepted(registry: str, tmp_path: Path) -> None:
    """Catches CLIC files given to CLD's model without a word, by option or by what the file says, and a refusal that cannot be lifted."""
    for name, detector in (("option", "clic"), ("unsaid", None)):
        if detector:
            with pytest.raises(InputFileError, match=r"'clic'.*trained on 'cld'"):
                reconstruct("mlpf-cld@candidate", [str(PHOTONS)], output=tmp_path / name, detector=detector, tracking_uri=registry)
        options = {"detector": detector, "accept_mismatch": True, "tracking_uri": registry}
        result = reconstruct("mlpf-cld@candidate", [str(PHOTONS)], output=tmp_path / name, **options)  # type: ignore[arg-type]
        assert result.num_events == 3
        wanted = "trained on cld" if detector else "tells its detector: taken as cld"
        assert any(wanted in note for note in result.warnings)
    path = saying(without_truth(REAL_EVENT, tmp_path / "clic.root"), detector="clic")
    with pytest.raises(InputFileError, match=r"'clic'.*trained on 'cld'"):
        reconstruct("mlpf-cld@candidate", [str(path)], output=tmp_path / "out", tracking_uri=registry)
    with pytest.raises(InputFileError, match="says that it is from 'clic'"):  # the option contradicts the file: nothing to accept
        reconstruct("mlpf-cld@candidate", [str(path)], output=tmp_path / "out", detector="cld", accept_mismatch=True, tracking_uri=registry)
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_say_their_detector_are_told_by_their_momenta(tmp_path: Path) -> None:
    """Catches a CLD file given to CLIC's model: the collections have the same names, and the field is twice as strong."""
    with pytest.raises(InputFileError, match=r"2\.00 times the momenta"):
        reconstruct(str(small_model(tmp_path / "model", detector="clic")), [str(REAL_EVENT)], output=tmp_path / "out")


def test_mistakes_leave_nothing_behind(registry: str, tmp_path: Path) -> None:
    """Catches half-written outputs, and folders of other data that are written into."""
    (tmp_path / "text.root").write_text("not a ROOT file")
    with pytest.raises(InputFileError):
        reconstruct("mlpf-cld@candidate", [str(tmp_path / "text.root")], output=tmp_path / "out", tracking_uri=registry)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(OutputExistsError):
        reconstruct("mlpf-cld@candidate", [str(REAL_EVENT)], output=tmp_path / "mine", tracking_uri=registry)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(ModelNotFoundError, match="mlpf-cld@candidate"):
        reconstruct("mlpf-clic@candidate", [str(REAL_EVENT)], output=tmp_path / "none", tracking_uri=registry)
    with pytest.raises(UnknownNameError, match="parquet"):
        reconstruct("mlpf-cld@candidate", [str(REAL_EVENT)], output=tmp_path / "none", file_format="csv", tracking_uri=registry)


def test_a_model_without_normalisation_is_refused(tmp_path: Path) -> None:
    """Catches features that go raw into a network that was never shown their scale: candidates that look like an answer."""
    with pytest.raises(InputFileError, match="no input normalisation"):
        reconstruct(str(small_model(tmp_path / "model", fitted=False)), [str(REAL_EVENT)], output=tmp_path / "out")


def test_evaluate_shows_the_model_beside_the_ceiling(registry: str, make_shards: Callable[..., Path], tmp_path: Path) -> None:
    """Catches metrics of the wrong split, a ceiling that is not perfect, figures that are not written."""
    shards = make_shards(detector="cld")
    result = evaluate("mlpf-cld@candidate", shards, split="test", output=tmp_path / "out", tracking_uri=registry)
    assert result.result.num_events == 30
    assert result.metrics["truth_targets/jet_response_median"] == pytest.approx(1, abs=1e-4)
    assert {"metrics.json", "jet_response.png", "met_resolution.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["metrics"]["mlpf/jet_response_median"] == result.metrics["mlpf/jet_response_median"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputExistsError):
        evaluate("mlpf-cld@candidate", shards, output=tmp_path / "mine", tracking_uri=registry)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    assert "truth targets" in console.export_text()


def test_a_picture_shows_what_the_file_and_the_model_found(registry: str) -> None:
    """Catches panels of another event, or a baseline drawn as the model's."""
    figure, numbers = show_event("mlpf-cld@candidate", REAL_EVENT, tracking_uri=registry)
    assert (numbers["tracks"], numbers["clusters"], numbers["rule-based"]["particles"]) == (24, 48, 52)
    assert numbers["rule-based"]["energy_sum"] == pytest.approx(114.14, abs=0.01)
    assert len(figure.axes) == 3
