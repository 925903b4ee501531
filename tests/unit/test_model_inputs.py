"""What a model does with events and files that nobody promised to be right: a clear error or the right answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfscale.errors import ConfigError, InputFileError
from pfscale.models.bundle import CARD, CONFIG, MLPF_KIND, WEIGHTS, load_bundle, save_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.shards.ragged import NUM_MOMENTUM_FEATURES, RaggedEvents, from_arrow
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.training.inference import run_model
from synthetic_events import synthetic_table

SMALL = MlpfConfig(width=16, num_layers=1, num_heads=2)
ANY = ReconstructionConfig(threshold=1e-6)  # every element becomes a candidate


@pytest.fixture(scope="module")
def events() -> RaggedEvents:
    return from_arrow(synthetic_table(12, seed=3))


@pytest.fixture(scope="module")
def model(events: RaggedEvents) -> Mlpf:
    torch.manual_seed(1)
    model = Mlpf(SMALL)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.encoder.standardise.fit(events.features, events.is_track)
    return model.eval()


def with_lengths(events: RaggedEvents, lengths: list[int]) -> RaggedEvents:
    """Events of these numbers of elements, made of the given ones' elements over and over."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(offsets[-1]) % len(events.is_track)
    uid = np.arange(len(lengths), dtype=np.uint64)
    return RaggedEvents(offsets, events.features[rows], events.is_track[rows], {}, uid, events.table)


def with_feature(events: RaggedEvents, column: int, value: float, element: int) -> RaggedEvents:
    features = events.features.copy()
    features[element, column] = value
    return replace(events, features=features)


def test_events_with_none_one_and_5000_elements(events: RaggedEvents, model: Mlpf) -> None:
    """Catches an empty event that shifts those after it, softmax over nothing, and one event above the budget of a batch that is cut."""
    lengths = [0, 1, 5000, 0, 17_000, 1, 0]  # the budget is 16,384
    found = run_model(model, with_lengths(events, lengths), ANY, with_latents=True)
    assert np.bincount(found.candidates.event, minlength=len(lengths)).tolist() == lengths
    assert found.latents is not None
    assert np.isfinite(found.latents).all()
    assert np.isfinite(found.candidates.energy).all()
    alone = run_model(model, with_lengths(events, [0, 1]), ANY).candidates
    np.testing.assert_allclose(found.candidates.energy[0], alone.energy[0], rtol=1e-5)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_gives_no_candidates(events: RaggedEvents, model: Mlpf, lengths: list[int]) -> None:
    """Catches an error where a file has events without elements only, or no event."""
    found = run_model(model, with_lengths(events, lengths), ANY, with_latents=True)
    assert len(found.candidates) == 0
    assert found.latents is not None
    assert found.latents.shape == (0, 16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(NUM_MOMENTUM_FEATURES))
def test_a_momentum_that_is_not_finite_is_an_error_with_its_event(events: RaggedEvents, model: Mlpf, column: int, value: float) -> None:
    """Catches candidates of NaN GeV, which jets and sums would carry on; the error names event, element and feature."""
    bad = with_feature(events, column, value, element=int(events.offsets[4]) + 2)
    with pytest.raises(InputFileError, match="element 2") as told:
        run_model(model, bad, ANY)
    assert told.value.where == f"event uid:{events.uid[4]}"
    assert ("pt or et", "eta", "sin_phi", "cos_phi", "p or energy")[column] in str(told.value)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38])
def test_other_features_may_be_anything(events: RaggedEvents, model: Mlpf, value: float) -> None:
    """Catches an infinite fit quality or time that makes its whole event NaN; infinite counts as missing, huge as an outlier."""
    for column in range(NUM_MOMENTUM_FEATURES, 16):
        got = run_model(model, with_feature(events, column, value, element=1), ANY).candidates
        assert np.isfinite(got.energy).all()
        assert np.isfinite(got.scores).all()
        if np.isinf(value):
            missing = run_model(model, with_feature(events, column, np.nan, element=1), ANY).candidates
            np.testing.assert_array_equal(got.energy, missing.energy)


def test_a_model_whose_normalisation_was_never_fitted_is_refused(tmp_path: Path, events: RaggedEvents) -> None:
    """Catches a model that takes logarithms of GeV for standardised numbers, and predicts nonsense without a word."""
    fresh = Mlpf(SMALL)
    save_bundle(tmp_path / "fresh", SMALL, fresh.state_dict(), {"kind": MLPF_KIND})
    with pytest.raises(InputFileError, match="no input normalisation"):
        load_bundle(tmp_path / "fresh")
    fresh.encoder.standardise.fit(events.features, events.is_track)
    load_bundle(save_bundle(tmp_path / "fitted", SMALL, fresh.state_dict(), {"kind": MLPF_KIND}))
    without = {name: values for name, values in fresh.state_dict().items() if "standardise" not in name}
    save_bundle(tmp_path / "without", SMALL, without, {"kind": MLPF_KIND})
    with pytest.raises(InputFileError, match=r"do not fit[\s\S]*mean_2F"):
        load_bundle(tmp_path / "without")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1.0])
def test_a_damaged_normalisation_is_refused(tmp_path: Path, events: RaggedEvents, value: float) -> None:
    """Catches a division by a width of zero, or NaN in every element of a type."""
    damaged = Mlpf(SMALL)
    damaged.encoder.standardise.fit(events.features, events.is_track)
    damaged.encoder.standardise.std_2F[1, 3] = value
    with pytest.raises(InputFileError, match="normalisation of the model is damaged"):
        load_bundle(save_bundle(tmp_path / "model", SMALL, damaged.state_dict(), {"kind": MLPF_KIND}))


@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        (lambda folder: (folder / CONFIG).unlink(), InputFileError, CONFIG),
        (lambda folder: (folder / CARD).unlink(), InputFileError, CARD),
        (lambda folder: (folder / CARD).write_text("{"), InputFileError, "damaged"),
        (lambda folder: (folder / CARD).write_text(json.dumps([MLPF_KIND])), InputFileError, "damaged"),
        (lambda folder: (folder / CARD).write_bytes(b"\xff\xfe"), InputFileError, "damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10]), InputFileError, "damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), InputFileError, "damaged"),
        (lambda folder: (folder / CONFIG).write_text("width: [16"), ConfigError, CONFIG),
        (lambda folder: (folder / CONFIG).write_text("widht: 16"), ConfigError, "widht"),
    ],
)
def test_a_damaged_bundle_is_said_to_be_so(
    tmp_path: Path, model: Mlpf, damage: Callable[[Path], object], error: type[Exception], told: str
) -> None:
    """Catches a KeyError, or half a model, where a copy was cut short or edited."""
    folder = save_bundle(tmp_path / "model", SMALL, model.state_dict(), {"kind": MLPF_KIND})
    damage(folder)
    with pytest.raises(error, match=told):
        load_bundle(folder)
