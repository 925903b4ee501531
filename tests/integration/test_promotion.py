"""Comparing and promoting trained models: on the same events, by their cards, by force; and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pfscale import cli
from pfscale.config import RunConfig
from pfscale.errors import InputFileError, NotBetterError, PfscaleError, ShardError
from pfscale.physics.comparable import find_metric
from pfscale.tracking.card import CARD_FILE
from pfscale.tracking.champion import champion_history
from pfscale.tracking.describe import describe
from pfscale.tracking.registry import download, resolve
from pfscale.training.comparison import compare
from pfscale.training.config import DataConfig, OptimisationConfig, TorchEngineConfig
from pfscale.training.evaluate import evaluate
from pfscale.training.finetune import FinetuneConfig, finetune
from pfscale.training.promotion import promote
from registry_models import trained

WEAK, GOOD, OTHER_DATA = "mlpf-cld/1", "mlpf-cld/2", "mlpf-cld/3"
METRIC = "met_resolution"


@pytest.fixture(scope="module")
def shards(make_shards: Callable[..., Path]) -> Path:
    return make_shards(600, detector="cld")


@pytest.fixture(scope="module")
def models(shards: Path, make_shards: Callable[..., Path], migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registry with three versions: hardly trained, trained, hardly trained on other data."""
    folder = tmp_path_factory.mktemp("models")
    for data, steps in ((shards, 2), (shards, 120), (make_shards(600, seed=2, detector="cld"), 2)):
        trained(data, folder, migrated_database, num_steps=steps)
    return folder


@pytest.fixture
def registry(models: Path, tmp_path: Path) -> str:
    """A copy, which a test may change; the models' files are where they were."""
    shutil.copy(models / "mlflow.db", tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def champion(registry: str) -> int:
    return resolve(registry, "mlpf-cld@champion").version


def test_the_first_champion_needs_no_comparison_and_the_same_again_is_fine(registry: str) -> None:
    """Would catch a registry that can never have a first champion, and a repeated command that fails or is recorded twice."""
    assert "is the first mlpf-cld@champion" in promote(WEAK, tracking_uri=registry).summary()
    assert "already" in promote(WEAK, tracking_uri=registry).summary()
    assert champion(registry) == 1
    assert len(champion_history(registry, "mlpf-cld")) == 1


def test_a_better_candidate_replaces_the_champion_and_a_worse_one_does_not(registry: str, shards: Path) -> None:
    """Would catch a promotion without a comparison, or one the wrong way round."""
    promote(WEAK, tracking_uri=registry)
    done = promote(GOOD, shards=shards, metric=METRIC, tracking_uri=registry)
    assert champion(registry) == 2
    assert done.record is not None
    assert (done.record.before, done.record.is_forced) == (1, False)
    assert done.record.improvement is not None
    assert done.record.error is not None
    assert done.record.improvement > done.record.error > 0
    with pytest.raises(NotBetterError, match=r"not better than the champion by met_resolution.* ± .* against .* ± ") as error:
        promote(WEAK, shards=shards, metric=METRIC, tracking_uri=registry)
    assert error.value.exit_code == 2
    assert champion(registry) == 2


def test_force_needs_a_reason_which_is_kept(registry: str, shards: Path) -> None:
    """Would catch a champion that nobody can say the reason of."""
    promote(GOOD, tracking_uri=registry)
    with pytest.raises(PfscaleError, match="needs a reason"):
        promote(WEAK, force=True, reason="  ", tracking_uri=registry)
    promote(WEAK, shards=shards, force=True, reason="for a test of the chain", metric=METRIC, tracking_uri=registry)
    last = champion_history(registry, "mlpf-cld")[-1]
    assert (last.version, last.before, last.is_forced, last.reason) == (1, 2, True, "for a test of the chain")
    assert last.improvement is not None
    assert last.improvement < 0  # what it costs is kept as well


def test_both_models_see_the_same_events_as_an_evaluation(registry: str, shards: Path) -> None:
    """Would catch a comparison on other events, or with other definitions, than `pfscale evaluate`."""
    found = compare(WEAK, GOOD, shards=shards, tracking_uri=registry)
    for number, reference in enumerate((WEAK, GOOD)):
        flat = evaluate(reference, shards, tracking_uri=registry).metrics
        for difference in found.differences:
            estimate = (difference.a, difference.b)[number]
            key = difference.metric.key
            assert estimate.value == pytest.approx(flat[key]), key
            assert estimate.error == pytest.approx(flat[f"{key}_error"], nan_ok=True), key
    same = compare(GOOD, GOOD, shards=shards, tracking_uri=registry)
    assert all(
        d.difference.value == 0 and d.verdict() in ("no difference beyond the uncertainty", "uncertainty not known")
        for d in same.differences
    )


def test_cards_are_compared_only_where_they_are_of_the_same_data(registry: str) -> None:
    """Would catch a model that wins because its validation events were easier."""
    found = compare(WEAK, GOOD, tracking_uri=registry)
    difference = found.by(find_metric(METRIC))
    assert difference is not None
    assert difference.difference.error == pytest.approx(math.hypot(difference.a.error, difference.b.error))
    assert "quadrature" in " ".join(found.notes)
    loss = found.by(find_metric("validation_loss"))
    assert loss is not None
    assert loss.verdict() == "uncertainty not known"
    with pytest.raises(InputFileError, match="different data sets") as error:
        compare(OTHER_DATA, GOOD, tracking_uri=registry)
    assert "--shards" in str(error.value.hint)


def test_what_cannot_be_compared_is_promoted_by_force_only(registry: str, shards: Path) -> None:
    """Would catch a difference without an error that is believed, and a forced promotion that fails for want of a comparison."""
    promote(WEAK, tracking_uri=registry)
    with pytest.raises(NotBetterError, match="uncertainty of validation_loss is not known"):
        promote(GOOD, metric="validation_loss", tracking_uri=registry)
    with pytest.raises(InputFileError, match="different data sets"):
        promote(OTHER_DATA, tracking_uri=registry)
    with pytest.raises(NotBetterError, match="validation_loss was not measured"):
        promote(GOOD, metric="validation_loss", shards=shards, tracking_uri=registry)
    assert champion(registry) == 1
    done = promote(OTHER_DATA, force=True, reason="new data", tracking_uri=registry)
    assert champion(registry) == 3
    assert "not compared: the two models were measured on different data sets" in done.summary()


def test_another_detectors_shards_are_refused(registry: str, make_shards: Callable[..., Path]) -> None:
    """Would catch a champion of one detector chosen by another one's events, even if it is the first."""
    clic = make_shards(detector="clic")
    for call in (
        lambda: promote(GOOD, shards=clic, tracking_uri=registry),
        lambda: compare(WEAK, GOOD, shards=clic, tracking_uri=registry),
    ):
        with pytest.raises(ShardError, match="shards of clic"):
            call()


def test_the_card_is_in_the_folder_and_on_mlflows_page(registry: str) -> None:
    """Would catch a card that nobody finds: not beside the weights, or not in the registry."""
    version = resolve(registry, GOOD)
    text = (download(version) / CARD_FILE).read_text()
    assert version.description == text
    assert "# mlpf-cld" in text
    assert "Trained from random weights" in text


def test_a_transferred_model_tells_its_whole_origin(registry: str, shards: Path, tmp_path: Path) -> None:
    """Would catch a card of a transfer that names its parent only, or `models show` that forgets it."""
    config = FinetuneConfig(
        backbone=GOOD,
        mode="heads",
        engine=TorchEngineConfig(),
        optimisation=OptimisationConfig(num_steps=2, evaluate_every=2),
        data=DataConfig(shards=str(shards), num_events=64, tokens_per_step=512),
        register_as="mlpf-transferred",
        run=RunConfig(storage=str(tmp_path / "runs"), tracking_uri=registry, num_workers=0),
    )
    version = finetune(config).model
    assert version is not None
    lineage = version.description.partition("## Lineage")[2]
    assert "models:/mlpf-cld/2: pretrain, 480 events of cld" in lineage
    shown = describe(registry, version.uri)
    assert "mlpf-transferred/1: finetune from models:/mlpf-cld/2, 64 events of cld" in shown
    assert "models:/mlpf-cld/2: pretrain" in shown.partition("lineage, newest first")[2]


def test_the_commands_say_it_in_words(registry: str, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch wrong exit codes, and tables without uncertainties or verdicts."""

    def said(*argv: str, code: int = 0) -> str:
        assert cli.run(["models", *argv, "--tracking-uri", registry]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert "first mlpf-cld@champion" in said("promote", GOOD)
    assert "already" in said("promote", "mlpf-cld@champion")
    refused = said("promote", WEAK, "--shards", str(shards), "--metric", "mlpf/met_resolution", code=2)
    assert "not better" in refused
    assert "--force" in refused
    assert "needs a reason" in said("promote", WEAK, "--force", code=2)
    assert "did you mean 'met_resolution'" in said("promote", WEAK, "--metric", "met_resolutoin", code=2)
    table = said("compare", WEAK, GOOD, "--shards", str(shards))
    assert "B better" in table
    assert "±" in table
    listed = said("list")
    assert "champion" in listed
    assert "±" in listed
    shown = said("show", "mlpf-cld@champion")
    for words in ("## Limits", "lineage, newest first", "champions:", "version 2, the first"):
        assert words in shown
