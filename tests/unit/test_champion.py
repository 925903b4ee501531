"""Champions: moved once for one reason, with every promotion on record; and the chain of a model's parents."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfscale.errors import ModelNotFoundError, TrackingError
from pfscale.tracking.champion import PromotionRecord, champion_history, champion_of, make_champion
from pfscale.tracking.describe import describe
from pfscale.tracking.lineage import ancestors
from pfscale.tracking.registry import ModelVersion, register_model, resolve
from pfscale.tracking.runs import Tracker, connect


@pytest.fixture
def tracker(empty_store: str) -> Tracker:
    return connect(empty_store, "e")


def registered(tracker: Tracker, folder: Path, name: str = "mlpf-cld", **tags: str) -> ModelVersion:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(folder.name.encode())
    (folder / "model_card.json").write_text('{"metrics": {"met_resolution": 3.0, "met_resolution_error": 0.1}}')
    run_id = tracker.start_run("train", fingerprint=folder.name).run_id
    return register_model(tracker, run_id=run_id, bundle=folder, name=name, tags=tags)


def test_every_promotion_stays_on_record(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch a version that is champion for the second time and forgets why it was the first time."""
    one, two = registered(tracker, tmp_path / "a"), registered(tracker, tmp_path / "b")
    assert champion_of(tracker.uri, "mlpf-cld") is None
    make_champion(one, PromotionRecord(before=None))
    make_champion(two, PromotionRecord(before=1, metric="met_resolution", improvement=0.5, error=0.1, measured_on="10 events"))
    make_champion(one, PromotionRecord(before=2, is_forced=True, reason="the second one was trained on the wrong data"))
    history = champion_history(tracker.uri, "mlpf-cld")
    assert [(record.version, record.before) for record in history] == [(1, None), (2, 1), (1, 2)]
    assert "met_resolution better by 0.50 ± 0.10 (10 events)" in str(history[1])
    assert "forced: the second one was trained on the wrong data" in str(history[2])
    assert resolve(tracker.uri, "mlpf-cld@champion").version == 1
    assert resolve(tracker.uri, "mlpf-cld@candidate").version == 2  # promotion leaves the other alias alone


def test_a_champion_that_moved_meanwhile_is_not_overwritten(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch the better of two candidates losing to one that was compared with the champion before it."""
    one, two, three = (registered(tracker, tmp_path / name) for name in "abc")
    make_champion(one, PromotionRecord(before=None))
    make_champion(two, PromotionRecord(before=1))
    with pytest.raises(TrackingError, match="moved meanwhile"):
        make_champion(three, PromotionRecord(before=1))
    assert resolve(tracker.uri, "mlpf-cld@champion").version == 2
    assert len(champion_history(tracker.uri, "mlpf-cld")) == 2


def test_parents_are_followed_as_far_as_the_registry_goes(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch a lineage of one generation, one that loops for ever, and a deleted grandparent that breaks it."""
    oldest = registered(tracker, tmp_path / "a", "mlpf-clic", verb="pretrain", parent="/models/mine", detector="clic", events="9000")
    middle = registered(tracker, tmp_path / "b", "mlpf-cld", verb="finetune", parent=oldest.uri, detector="cld", events="100")
    chain = ancestors(tracker.uri, middle.uri)
    assert [known.address for known in chain] == [middle.uri, oldest.uri, "/models/mine"]
    assert "not in this registry" in str(chain[-1])
    assert ancestors(tracker.uri, "") == ()
    loop = registered(tracker, tmp_path / "c", "mlpf-x", verb="finetune", parent="models:/mlpf-x/1")
    assert len(ancestors(tracker.uri, loop.uri)) == 1


def test_a_version_without_a_card_is_described_by_its_tags(tracker: Tracker, tmp_path: Path) -> None:
    """Would catch `models show` that fails on a downstream head, which has no card of its own."""
    registered(tracker, tmp_path / "a", "missing-momentum-cld", verb="downstream", parent="models:/mlpf-cld/1", detector="cld")
    text = describe(tracker.uri, "missing-momentum-cld@candidate")
    assert "met_resolution: 3.00 ± 0.10" in text
    assert "models:/mlpf-cld/1 (not in this registry)" in text
    assert "none yet" in text
    with pytest.raises(ModelNotFoundError, match="missing-momentum-cld"):
        champion_of(tracker.uri, "missing-momentum-clic")
