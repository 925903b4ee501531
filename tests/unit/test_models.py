"""What must hold for the model whatever its weights: invariances, physical outputs, losses that do not depend on padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.errors import InputFileError
from pfscale.models.batch import Batch, collate
from pfscale.models.bundle import MLPF_KIND, load_bundle, save_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig, MlpfOutputs
from pfscale.shards.ragged import RaggedEvents, from_arrow
from pfscale.tasks.reconstruction import LOSS_TERMS, ReconstructionConfig, loss_terms, momentum, predict, target_candidates
from synthetic_events import synthetic_table

CONFIG = MlpfConfig(width=32, num_layers=2, num_heads=4)


@pytest.fixture(scope="module")
def events() -> RaggedEvents:
    return from_arrow(synthetic_table(40, seed=3))


@pytest.fixture(scope="module")
def model(events: RaggedEvents) -> Mlpf:
    """A model whose zero-initialised heads were given random weights: with zeros, many a mistake would not show."""
    torch.manual_seed(1)
    model = Mlpf(CONFIG)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.encoder.standardise.fit(events.features, events.is_track)
    return model.eval()


def run(model: Mlpf, batch: Batch) -> MlpfOutputs:
    with torch.no_grad():
        return model(batch.features_BNF, batch.is_track_BN, batch.mask_BN)


def fields(outputs: MlpfOutputs) -> dict[str, torch.Tensor]:
    return dict(vars(outputs))


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True))
def test_prediction_does_not_depend_on_the_rest_of_the_batch(events: RaggedEvents, model: Mlpf, rows: list[int]) -> None:
    """Catches a missing key mask, batch statistics, or padding that leaks into an event."""
    together = fields(run(model, collate(events, np.array(rows))))
    for i, row in enumerate(rows):
        alone = fields(run(model, collate(events, np.array([row]))))
        length = events.lengths[row]
        for name, values in alone.items():
            torch.testing.assert_close(together[name][i, :length], values[0, :length], atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(row=st.integers(0, 39), seed=st.integers(0, 1000))
def test_permuting_elements_permutes_predictions(events: RaggedEvents, model: Mlpf, row: int, seed: int) -> None:
    """Catches positional information that sneaks in."""
    batch = collate(events, np.array([row]))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(batch.mask_BN.shape[1]))
    shuffled = Batch(batch.features_BNF[:, order], batch.is_track_BN[:, order], batch.mask_BN[:, order], {}, batch.rows_B)
    for (name, expected), got in zip(fields(run(model, batch)).items(), fields(run(model, shuffled)).values(), strict=True):
        torch.testing.assert_close(got, expected[:, order], atol=1e-5, rtol=1e-5, msg=name)


def test_energy_is_never_below_momentum(events: RaggedEvents, model: Mlpf) -> None:
    """Catches an energy head that may predict tachyons."""
    batch = collate(events, np.arange(events.num_events))
    batch.features_BNF[0, 0, 1] = 20.0  # an element on the beam axis
    four = momentum(run(model, batch), batch)
    p = torch.hypot(four.pt, four.pt * torch.sinh(four.eta))
    assert bool((four.energy[batch.mask_BN] >= p[batch.mask_BN] * (1 - 1e-6)).all())
    norm = torch.hypot(four.sin_phi, four.cos_phi)[batch.mask_BN]
    torch.testing.assert_close(norm, torch.ones_like(norm))


def test_mass_head_has_a_gradient_everywhere(events: RaggedEvents, model: Mlpf) -> None:
    """Catches a dead ReLU in front of the energy: no element may be without gradient for its mass."""
    batch = collate(events, np.arange(8))
    outputs = model(batch.features_BNF, batch.is_track_BN, batch.mask_BN)
    outputs.mass_BN.retain_grad()
    momentum(outputs, batch).energy.sum().backward()
    assert bool((outputs.mass_BN.grad[batch.mask_BN] > 0).all())


def test_loss_of_a_batch_is_the_sum_of_its_events(events: RaggedEvents, model: Mlpf) -> None:
    """Catches means over padded elements, or a padding that counts."""
    rows = np.arange(12)
    task = ReconstructionConfig()

    def total(rows: np.ndarray) -> torch.Tensor:
        batch = collate(events, rows)
        terms = loss_terms(run(model, batch), batch, task)
        return torch.stack([terms[name] for name in LOSS_TERMS])

    torch.testing.assert_close(total(rows), sum(total(np.array([row])) for row in rows), rtol=1e-4, atol=1e-3)


def test_an_event_without_elements_gives_nothing(model: Mlpf, events: RaggedEvents) -> None:
    """Catches NaN from attention over no key."""
    empty = from_arrow(events.table.slice(0, 0))
    assert empty.num_events == 0
    features = torch.zeros(2, 3, 16)
    mask = torch.tensor([[False] * 3, [True] * 3])
    batch = Batch(features, torch.zeros(2, 3, dtype=torch.bool), mask, {}, torch.tensor([0, 1]))
    outputs = run(model, batch)
    assert all(bool(torch.isfinite(value).all()) for value in fields(outputs).values())
    assert set(predict(outputs, batch, ReconstructionConfig(threshold=1e-9)).event) == {1}


def test_missing_features_do_not_spread(events: RaggedEvents, model: Mlpf) -> None:
    """Catches NaN features that reach the loss or the gradient."""
    assert np.isnan(events.features[events.is_track]).any()
    batch = collate(events, np.arange(8))
    outputs = model(batch.features_BNF, batch.is_track_BN, batch.mask_BN)
    sum(loss_terms(outputs, batch, ReconstructionConfig()).values()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_a_feature_that_only_other_data_lack_does_no_harm(events: RaggedEvents) -> None:
    """Catches untrained weights of a missing flag: dE/dx is in built-in files, and not in some real ones."""
    fresh = Mlpf(CONFIG).eval()
    complete = collate(events, np.arange(4))
    at_mean = torch.where(complete.features_BNF.isnan(), 0.0, complete.features_BNF)
    fresh.encoder.standardise.fit(at_mean[complete.mask_BN].numpy(), complete.is_track_BN[complete.mask_BN].numpy())
    flags_up = fresh.encoder.standardise(complete.features_BNF, complete.is_track_BN)[1]
    assert bool(flags_up.any())
    first = fresh.encoder.embed_track[0]
    assert not first.weight[:, flags_up.shape[-1] :].any()  # type: ignore[operator, index]


def test_a_charged_particle_without_its_track_is_a_neutral_candidate(events: RaggedEvents) -> None:
    """Catches candidates such as a charged K0_L: class and charge of a target must agree."""
    targets = {name: values.copy() for name, values in events.targets.items()}
    targets["charge"][targets["class"] == 2] = -1
    element = np.arange(len(events.is_track)) - np.repeat(events.offsets[:-1], events.lengths)
    found = target_candidates(event=events.event, element_index=element, is_track=events.is_track, targets=targets)
    assert (found.charge[found.pdg == 130] == 0).all()
    assert not (found.pdg == -130).any()


def test_standardised_training_features_have_mean_0_and_width_1(events: RaggedEvents, model: Mlpf) -> None:
    """Catches constants of one element type applied to the other."""
    values, missing = model.encoder.standardise(torch.from_numpy(events.features), torch.from_numpy(events.is_track))
    for is_track in (True, False):
        members = events.is_track == is_track
        known = ~missing[members].bool().all(0)
        columns = values[members][:, known]
        spread = columns.std(0, correction=0)
        assert bool((columns.mean(0).abs() < 0.2).all())  # values beyond the clip pull a little
        assert bool(((spread > 0.7) & (spread < 1.01) | (spread < 1e-3)).all())


def test_candidates_of_perfect_logits_are_the_targets(events: RaggedEvents) -> None:
    """Catches a shifted class index, a wrong charge sign, or candidates attached to the wrong element."""
    rows = np.arange(10)
    batch = collate(events, rows)
    t = batch.targets
    element_pt = batch.features_BNF[..., 0]
    p = t["pt"] * torch.cosh(t["eta"])
    classes = torch.nn.functional.one_hot(t["class"].long(), 6).float()
    outputs = MlpfOutputs(
        presence_BN=torch.where(t["class"] > 0, 20.0, -20.0),
        class_BNC=40 * classes[..., 1:],
        charge_BN3=40 * torch.nn.functional.one_hot((t["charge"] + 1).long(), 3).float(),
        log_pt_BN=torch.log(t["pt"].clamp_min(1e-6) / element_pt.clamp_min(1e-3)),
        eta_BN=t["eta"] - batch.features_BNF[..., 1],
        phi_BN2=torch.stack([t["sin_phi"], t["cos_phi"]], -1),
        mass_BN=(t["energy"] ** 2 - p**2).clamp_min(0).sqrt(),
        latents_BNW=torch.zeros(*batch.mask_BN.shape, 1),
    )
    got = predict(outputs, batch, ReconstructionConfig())
    stop = events.offsets[10]
    element = np.arange(stop) - np.repeat(events.offsets[:10], events.lengths[:10])
    expected = target_candidates(
        event=events.event[:stop],
        element_index=element,
        is_track=events.is_track[:stop],
        targets={k: v[:stop] for k, v in events.targets.items()},
    )
    for name in ("event", "element_index", "is_track", "pdg", "charge"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    for name in ("px", "py", "pz", "energy", "scores"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=2e-3, atol=2e-3, err_msg=name)


def test_a_bundle_gives_the_same_model_back(tmp_path, events: RaggedEvents, model: Mlpf) -> None:
    """Catches a bundle that leaves out a part of the state, the normalisation above all."""
    save_bundle(tmp_path / "model", CONFIG, model.state_dict(), {"kind": MLPF_KIND, "detector": "clic"})
    loaded = load_bundle(tmp_path / "model")
    batch = collate(events, np.arange(5))
    assert loaded.card["detector"] == "clic"
    for name, value in fields(run(loaded.model, batch)).items():
        torch.testing.assert_close(value, fields(run(model, batch))[name], rtol=0, atol=0, msg=name)


def test_a_bundle_that_does_not_fit_is_refused(tmp_path, model: Mlpf) -> None:
    """Catches weights of another size loaded in part."""
    save_bundle(tmp_path / "model", MlpfConfig(width=64, num_layers=2), model.state_dict(), {"kind": MLPF_KIND})
    with pytest.raises(InputFileError, match="do not fit"):
        load_bundle(tmp_path / "model")
    save_bundle(tmp_path / "head", CONFIG, model.state_dict(), {"kind": "missing_momentum"})
    with pytest.raises(InputFileError, match="missing_momentum"):
        load_bundle(tmp_path / "head")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputFileError, match="damaged"):
        load_bundle(tmp_path / "model")
    with pytest.raises(InputFileError, match=r"model\.safetensors"):
        load_bundle(tmp_path)
