"""What must hold for the model whatever its weights: invariances, physical outputs, losses that do not depend on padding."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pfscale.errors import ConfigError, InputFileError
from pfscale.models import attention
from pfscale.models.attention import attend, attend_by_length, attend_varlen, has_varlen
from pfscale.models.batch import Batch, collate
from pfscale.models.bundle import MLPF_KIND, load_bundle, save_bundle
from pfscale.models.flops import forward_flops
from pfscale.models.mlpf import SIZES, LatentConfig, Mlpf, MlpfConfig, MlpfOutputs, count_parameters
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
        return model(batch)


def fields(outputs: MlpfOutputs) -> dict[str, torch.Tensor]:
    return dict(vars(outputs))


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True))
def test_prediction_does_not_depend_on_the_rest_of_the_batch(events: RaggedEvents, model: Mlpf, rows: list[int]) -> None:
    """Catches attention across events, events taken for longer or shorter than they are, batch statistics."""
    batch = collate(events, np.array(rows))
    alone = [fields(run(model, collate(events, np.array([row])))) for row in rows]
    for name, values in fields(run(model, batch)).items():
        for part, expected in zip(values.split(batch.lengths), alone, strict=True):
            torch.testing.assert_close(part, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@settings(deadline=None, max_examples=20)
@given(row=st.integers(0, 39), seed=st.integers(0, 1000))
def test_permuting_elements_permutes_predictions(events: RaggedEvents, model: Mlpf, row: int, seed: int) -> None:
    """Catches positional information that sneaks in."""
    batch = collate(events, np.array([row]))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(batch.num_elements))
    shuffled = replace(batch, features_TF=batch.features_TF[order], is_track_T=batch.is_track_T[order])
    for (name, expected), got in zip(fields(run(model, batch)).items(), fields(run(model, shuffled)).values(), strict=True):
        torch.testing.assert_close(got, expected[order], atol=1e-5, rtol=1e-5, msg=name)


def test_energy_is_never_below_momentum(events: RaggedEvents, model: Mlpf) -> None:
    """Catches an energy head that may predict tachyons."""
    batch = collate(events, np.arange(events.num_events))
    batch.features_TF[0, 1] = 20.0  # an element on the beam axis
    four = momentum(run(model, batch), batch)
    p = torch.hypot(four.pt, four.pt * torch.sinh(four.eta))
    assert bool((four.energy >= p * (1 - 1e-6)).all())
    norm = torch.hypot(four.sin_phi, four.cos_phi)
    torch.testing.assert_close(norm, torch.ones_like(norm))


def test_mass_head_has_a_gradient_everywhere(events: RaggedEvents, model: Mlpf) -> None:
    """Catches a dead ReLU in front of the energy: no element may be without gradient for its mass."""
    batch = collate(events, np.arange(8))
    outputs = model(batch)
    outputs.mass_T.retain_grad()
    momentum(outputs, batch).energy.sum().backward()
    assert bool((outputs.mass_T.grad > 0).all())


def test_loss_of_a_batch_is_the_sum_of_its_events(events: RaggedEvents, model: Mlpf) -> None:
    """Catches means that depend on what an event is batched with."""
    rows = np.arange(12)
    task = ReconstructionConfig()

    def total(rows: np.ndarray) -> torch.Tensor:
        batch = collate(events, rows)
        terms = loss_terms(run(model, batch), batch, task)
        return torch.stack([terms[name] for name in LOSS_TERMS])

    torch.testing.assert_close(total(rows), sum(total(np.array([row])) for row in rows), rtol=1e-4, atol=1e-3)


def test_events_without_elements_and_no_events_give_nothing(model: Mlpf, events: RaggedEvents) -> None:
    """Catches NaN from attention over no key, and a worker without events that cannot take part in a step."""
    batch = collate(events, np.array([7]))
    offsets = torch.tensor([0, 0, *batch.lengths, *batch.lengths])
    padded = replace(batch, lengths=(0, *batch.lengths, 0), offsets_E1=offsets, rows=np.arange(3))
    assert torch.equal(run(model, padded).latents_TW, run(model, batch).latents_TW)
    assert set(predict(run(model, padded), padded, ReconstructionConfig(threshold=1e-9)).event) == {1}
    nothing = collate(events, np.array([], int))
    model.zero_grad()
    terms = loss_terms(model(nothing), nothing, ReconstructionConfig())
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert float(total.detach()) == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


@pytest.mark.parametrize("lengths", [(5, 5, 5), (1, 7, 7, 2), (3,), ()])
def test_attention_by_length_is_softmax_attention_within_each_event(lengths: tuple[int, ...]) -> None:
    """Catches runs of equal lengths that are cut or put together in another order, heads that are mixed up, a wrong scale."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(sum(lengths), 3, 2, 4, generator=generator)
    batch = Batch(
        torch.zeros(sum(lengths), 1), torch.zeros(sum(lengths), dtype=torch.bool), lengths, torch.zeros(1), {}, np.zeros(0, np.int64)
    )
    expected = []
    for event in qkv.split(lengths):
        for head in range(2):
            q, k, v = event[:, :, head].unbind(1)
            expected.append(torch.softmax(q @ k.T / 2, -1) @ v)
    stacked = [torch.stack(expected[i : i + 2], 1) for i in range(0, len(expected), 2)]
    torch.testing.assert_close(attend(qkv, batch), torch.cat(stacked) if stacked else qkv[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_for_all_events_is_the_same_attention(monkeypatch: pytest.MonkeyPatch, events: RaggedEvents, dtype: torch.dtype) -> None:
    """Catches arguments in another order, and limits of events that are not theirs: the call itself runs on accelerators only."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def plainly(q: Tensor, k: Tensor, v: Tensor, begins_q: Tensor, begins_k: Tensor, longest_q: int, longest_k: int) -> Tensor:
        assert begins_q.dtype == begins_k.dtype == torch.int32
        lengths = begins_q.diff().tolist()
        assert longest_q == longest_k == max(lengths)
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        weighted = [torch.einsum("qhd,khd->hqk", a, b).mul(a.shape[-1] ** -0.5).softmax(-1) @ c.transpose(0, 1) for a, b, c in parts]
        return torch.cat([part.transpose(0, 1) for part in weighted])

    monkeypatch.setattr(varlen, "varlen_attn", plainly)
    batch = collate(events, np.array([3, 0, 7, 7, 12]))
    qkv = torch.randn(batch.num_elements, 3, 2, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(attend_varlen(qkv, batch), attend_by_length(qkv, batch), **tolerance)


def test_one_call_is_for_accelerators_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a call that a device, a dtype or a width of heads cannot take, or a device that is never asked."""

    class There(Tensor):
        """Says that it lives on an accelerator."""

        is_cuda = True  # type: ignore[assignment]

    def made(dtype: torch.dtype = torch.bfloat16, width: int = 16, count: int = 3) -> Tensor:
        return torch.zeros(count, 3, 2, width, dtype=dtype).as_subclass(There)

    monkeypatch.setattr(attention, "_device_has_varlen", lambda _: True)
    assert has_varlen(made())
    refused = (torch.zeros(3, 3, 2, 16, dtype=torch.bfloat16), made(torch.float32), made(width=12), made(count=0))
    assert not any(has_varlen(qkv) for qkv in refused)
    monkeypatch.undo()
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        attention._device_has_varlen.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert attention._device_has_varlen(0) is expected
    attention._device_has_varlen.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_flash_attention_is_the_same_attention(events: RaggedEvents) -> None:
    """Catches an accelerator whose kernel gives other numbers."""
    batch = collate(events, np.array([3, 0, 7, 7, 12])).to(torch.device("cuda"))
    qkv = torch.randn(batch.num_elements, 3, 2, 16, device="cuda", dtype=torch.bfloat16)
    assert has_varlen(qkv)
    torch.testing.assert_close(attend_varlen(qkv, batch), attend_by_length(qkv, batch), atol=2e-2, rtol=2e-2)


def test_recomputing_activations_changes_no_gradient(events: RaggedEvents, model: Mlpf) -> None:
    """Catches blocks that are left out of the backward pass, or dropout drawn anew in it."""
    batch = collate(events, np.arange(8))
    dropping = Mlpf(CONFIG.model_copy(update={"dropout": 0.2}))
    dropping.load_state_dict(model.state_dict())
    found = []
    for recomputes in (False, True):
        dropping.encoder.recomputes = recomputes
        torch.manual_seed(2)
        dropping.zero_grad()
        sum(loss_terms(dropping(batch), batch, ReconstructionConfig()).values()).backward()
        found.append([p.grad.clone() for p in dropping.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_half_precision_stays_close_and_returns_float32(events: RaggedEvents) -> None:
    """Catches momenta, inputs or losses that are rounded to three digits along with the attention blocks."""
    torch.manual_seed(3)
    fresh = Mlpf(CONFIG).eval()
    fresh.encoder.standardise.fit(events.features, events.is_track)
    batch = collate(events, np.arange(8))
    exact = fields(run(fresh, batch))
    fresh.encoder.block_dtype = torch.bfloat16
    for name, value in fields(run(fresh, batch)).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], atol=0.05, rtol=0.05, msg=name)


def test_latents_are_those_of_the_layer_and_head_asked_for(events: RaggedEvents, model: Mlpf) -> None:
    """Catches a choice that changes nothing, or that is off by one layer."""
    batch = collate(events, np.arange(4))
    with torch.no_grad():
        layers = [model.encode(batch, LatentConfig(layer=n)) for n in (0, 1, 2)]
        torch.testing.assert_close(model.encoder.blocks[1](layers[1], batch), layers[2])
        torch.testing.assert_close(model.encoder.norm(layers[2]), model.encode(batch))
        parts = [model.encode(batch, LatentConfig(part=name)) for name in ("identification", "regression", "concatenation")]
    torch.testing.assert_close(torch.cat(parts[:2], -1), parts[2])
    torch.testing.assert_close(model.heads["class"][-1](parts[0]), run(model, batch).class_TC)
    with pytest.raises(ConfigError, match="layer 3"):
        model.encode(batch, LatentConfig(layer=3))
    with pytest.raises(ValidationError, match="leave layer at -1"):
        LatentConfig(layer=1, part="regression")


def test_sizes_grow_as_documented_and_every_part_can_be_overridden() -> None:
    """Catches a dial that skips a size, leaves the documented range, or wins over what was asked for."""
    with torch.device("meta"):  # sizes without memory
        counts = [count_parameters(Mlpf(MlpfConfig(size=size))) for size in SIZES]
    ratios = [b / a for a, b in itertools.pairwise(counts)]
    assert 1e5 < counts[0] < 2e5
    assert 4.5e7 < counts[-1] < 6e7
    assert all(2 < ratio < 5 for ratio in ratios)
    assert MlpfConfig(size=3, num_layers=2).model_dump() == MlpfConfig(width=256, num_layers=2, num_heads=16, size=3).model_dump()
    with pytest.raises(ValidationError, match="size"):
        MlpfConfig(size=7)


def test_flops_by_formula_are_those_that_torch_counts(events: RaggedEvents, model: Mlpf) -> None:
    """Catches a share of the hardware's rate that is wrong because layers, embeddings or attention are left out or counted twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    batch = collate(events, np.arange(10))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # it does not count fused kernels
        model(batch)
    assert forward_flops(model, batch.lengths) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_missing_features_do_not_spread(events: RaggedEvents, model: Mlpf) -> None:
    """Catches NaN features that reach the loss or the gradient."""
    assert np.isnan(events.features[events.is_track]).any()
    batch = collate(events, np.arange(8))
    outputs = model(batch)
    sum(loss_terms(outputs, batch, ReconstructionConfig()).values()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_a_feature_that_only_other_data_lack_does_no_harm(events: RaggedEvents) -> None:
    """Catches untrained weights of a missing flag: dE/dx is in built-in files, and not in some real ones."""
    fresh = Mlpf(CONFIG).eval()
    complete = collate(events, np.arange(4))
    at_mean = torch.where(complete.features_TF.isnan(), 0.0, complete.features_TF)
    fresh.encoder.standardise.fit(at_mean.numpy(), complete.is_track_T.numpy())
    flags_up = fresh.encoder.standardise(complete.features_TF, complete.is_track_T)[1]
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
    element_pt = batch.features_TF[:, 0]
    p = t["pt"] * torch.cosh(t["eta"])
    classes = torch.nn.functional.one_hot(t["class"].long(), 6).float()
    outputs = MlpfOutputs(
        presence_T=torch.where(t["class"] > 0, 20.0, -20.0),
        class_TC=40 * classes[..., 1:],
        charge_T3=40 * torch.nn.functional.one_hot((t["charge"] + 1).long(), 3).float(),
        log_pt_T=torch.log(t["pt"].clamp_min(1e-6) / element_pt.clamp_min(1e-3)),
        eta_T=t["eta"] - batch.features_TF[:, 1],
        phi_T2=torch.stack([t["sin_phi"], t["cos_phi"]], -1),
        mass_T=(t["energy"] ** 2 - p**2).clamp_min(0).sqrt(),
        latents_TW=torch.zeros(batch.num_elements, 1),
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


def test_a_size_as_text_is_a_size_and_a_wrong_one_is_what_is_complained_about() -> None:
    """Catches a model of width zero, and a complaint about widths that nobody gave."""
    assert MlpfConfig(size="2") == MlpfConfig(size=2)  # type: ignore[arg-type]
    for wrong in ("large", 0, 7, 1.5):
        with pytest.raises(ValidationError) as told:
            MlpfConfig(size=wrong)  # type: ignore[arg-type]
        assert [error["loc"] for error in told.value.errors()] == [("size",)]
