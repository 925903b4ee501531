"""Downstream tasks without models or a cluster: networks on sets, what arms see, losses and figures of merit of the tasks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import vector
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.errors import NotEnoughDataError
from pfscale.models.networks import build_network
from pfscale.models.particle_transformer import PUBLISHED, ParticleTransformerConfig, pair_features
from pfscale.models.set_networks import CandidateWeightsConfig, LinearConfig, SetTransformerConfig
from pfscale.models.sets import SetBatch, SetOutputs, Widths
from pfscale.physics.bootstrap import event_bootstrap
from pfscale.physics.classification import auc, rejections, roc
from pfscale.shards.objects import EventObjects, joined_objects, object_schema, objects_from_arrow, objects_to_arrow
from pfscale.tasks.arms import ARMS, set_data
from pfscale.tasks.event_assignment import EventAssignment, EventAssignmentConfig, by_mass
from pfscale.tasks.jet_energy import JetEnergy, JetEnergyConfig
from pfscale.tasks.jet_flavour import JetFlavour, JetFlavourConfig
from pfscale.tasks.missing_momentum import MissingMomentum, MissingMomentumConfig
from pfscale.tasks.sets import TargetBatch, epoch_batches
from synthetic_objects import WIDTH, synthetic_objects

NETWORKS = [
    ParticleTransformerConfig(),
    ParticleTransformerConfig(width=16, num_layers=1, num_pair_layers=2, pair_width=4),
    SetTransformerConfig(),
    CandidateWeightsConfig(width=8, num_layers=2),
    *(LinearConfig(pooling=pooling) for pooling in ("sum", "mean", "pt")),
]


@pytest.fixture(scope="module")
def objects() -> EventObjects:
    return synthetic_objects(60)


def some_sets(lengths: list[int], *, padding: int = 0, seed: int = 1) -> SetBatch:
    """Sets of random constituents."""
    rng = np.random.default_rng(seed)
    longest = max(lengths) + padding
    mask = np.arange(longest) < np.array(lengths)[:, None]
    features, momenta = np.zeros((len(lengths), longest, 5), np.float32), np.zeros((len(lengths), longest, 4), np.float32)
    for i, length in enumerate(lengths):
        p = rng.normal(0, 5, (length, 3))
        features[i, :length] = rng.normal(size=(length, 5))
        momenta[i, :length] = np.concatenate([p, np.sqrt(np.square(p).sum(1, keepdims=True) + 0.02)], 1)
    return SetBatch(torch.from_numpy(features), torch.from_numpy(momenta), torch.from_numpy(mask))


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.kind)
def test_networks_see_sets(config) -> None:
    """Catches outputs that depend on padding, on the order of constituents or on other sets of the batch, and sets of nothing as NaN."""
    torch.manual_seed(1)
    network = build_network(config, Widths(5, 3, 2)).eval()
    batch = some_sets([4, 1, 6, 0])
    with torch.no_grad():
        found = network(batch)
        padded = network(some_sets([4, 1, 6, 0], padding=3))
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        shuffled = SetBatch(*(values[2:3, order] for values in (batch.features_BNF, batch.momenta_BN4, batch.mask_BN)))
        other = network(shuffled)
    assert torch.isfinite(found.of_set_BO).all()
    torch.testing.assert_close(padded.of_set_BO, found.of_set_BO, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.of_constituent_BNO[2, :6], found.of_constituent_BNO[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.of_set_BO[0], found.of_set_BO[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.of_constituent_BNO[0], found.of_constituent_BNO[2][order], rtol=1e-4, atol=1e-5)


def test_the_published_particle_transformer_has_its_size() -> None:
    """Catches an architecture that only bears the name: the paper counts 2.14 million parameters, of 17 inputs and 10 classes."""
    network = build_network(ParticleTransformerConfig(size="published"), Widths(17, 10, 0))
    count = sum(p.numel() for p in network.parameters())
    assert PUBLISHED["num_layers"] == 8
    assert abs(count / 2.14e6 - 1) < 0.05


def test_pair_features_are_those_of_the_paper() -> None:
    """Catches kT without the smaller momentum, deltaR without the turn of phi, or masses of the wrong sum."""
    batch = some_sets([5])
    found = pair_features(batch.momenta_BN4)[0]
    px, py, pz, energy = batch.momenta_BN4[0].double().numpy().T
    p = vector.array({"px": px, "py": py, "pz": pz, "E": energy})
    for a, b in itertools.permutations(range(5), 2):
        delta_r, smaller = p[a].deltaR(p[b]), min(p[a].pt, p[b].pt)
        expected = [delta_r, smaller * delta_r, smaller / (p[a].pt + p[b].pt), (p[a] + p[b]).mass2]
        np.testing.assert_allclose(found[a, b].numpy(), np.log(expected), rtol=1e-3, atol=1e-3)


def test_objects_survive_the_disk(objects: EventObjects) -> None:
    """Catches offsets of a slice taken as its own, latents in another order, or a column forgotten."""
    table = objects_to_arrow(objects)
    assert table.schema.equals(object_schema(WIDTH))
    read = joined_objects([objects_from_arrow(table.slice(0, 17)), objects_from_arrow(table.slice(17))])
    some = np.array([5, 59, 3])
    for one, other in ((read, objects), (read.select(some), objects.select(some))):
        for name in ("event", "candidate", "jet", "gen_met"):
            for field, values in getattr(other, name).items():
                np.testing.assert_array_equal(getattr(one, name)[field], values, err_msg=f"{name}.{field}")
        np.testing.assert_array_equal(one.latents, other.latents)
        np.testing.assert_array_equal(one.candidate_offsets, other.candidate_offsets)
        np.testing.assert_array_equal(one.jet_of_candidate, other.jet_of_candidate)


@pytest.mark.parametrize("arm", ARMS)
def test_arms_see_what_they_should(arm: str, objects: EventObjects) -> None:
    """Catches an arm that sees tracks or latents that it should not, or sees of another candidate."""
    examples = JetEnergy.fitted(JetEnergyConfig(), objects).examples(objects)
    found, names = set_data(arm, objects, examples)
    assert (found.latents is not None) == ("latents" in arm)
    assert any("d0" in name for name in names) == ("tracks" in arm)
    assert ("ln pt" in names) == ("kinematics" in arm)
    assert np.isfinite(found.features).all()
    for number, jet in enumerate(examples.jet[:5]):
        rows = examples.rows[examples.offsets[number] : examples.offsets[number + 1]]
        assert set(rows) == set(np.flatnonzero(objects.jet_of_candidate == jet))
        if found.latents is not None:
            np.testing.assert_array_equal(found.latents[examples.offsets[number] : examples.offsets[number + 1]], objects.latents[rows])


def test_a_batch_holds_what_its_examples_are(objects: EventObjects) -> None:
    """Catches constituents of a neighbour in the padding, targets of other examples, or examples without constituents that break."""
    task = MissingMomentum.fitted(MissingMomentumConfig(), objects)
    examples = task.examples(objects)
    data, _ = set_data("kinematics+latents", objects, examples)
    members = np.array([59, 0, 7])  # 59: an event without candidates
    sets, targets = data.batch(members)
    assert sets.mask_BN.sum(1).tolist() == [examples.lengths[m] for m in members]
    assert (sets.features_BNF[~sets.mask_BN] == 0).all()
    np.testing.assert_array_equal(targets.of_set["met"].numpy(), examples.targets["met"][members])
    assert set_data("kinematics", objects, examples)[0].batch(np.array([59]))[0].features_BNF.shape[:2] == (1, 1)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 50), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_an_epoch_shows_every_example_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    """Catches examples that are left out or doubled, or another order after a resume."""
    found = list(epoch_batches(np.array(lengths), batch_size, seed=1, epoch=epoch))
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert max(map(len, found)) <= batch_size
    rest = list(epoch_batches(np.array(lengths), batch_size, seed=1, epoch=epoch, skip=len(found) // 2))
    assert [list(b) for b in rest] == [list(b) for b in found[len(found) // 2 :]]


def outputs(of_set: np.ndarray | None = None, of_constituent: np.ndarray | None = None) -> SetOutputs:
    """A network's, as given."""
    empty = torch.zeros(1, 0)
    return SetOutputs(
        *(empty if values is None else torch.from_numpy(np.asarray(values, np.float32)) for values in (of_set, of_constituent))
    )


def test_flavour_takes_the_classes_that_are_there(objects: EventObjects) -> None:
    """Catches classes without examples, which would be learned as impossible, and jets without truth among the examples."""
    task = JetFlavour.fitted(JetFlavourConfig(), objects)
    assert task.classes == ("b", "c", "ud")
    examples = task.examples(objects)
    assert (objects.jet["flavour"][examples.jet] > 0).all()
    codes = np.array([5, 4, 1])
    np.testing.assert_array_equal(codes[examples.targets["class"]], objects.jet["flavour"][examples.jet])
    with pytest.raises(NotEnoughDataError, match=r"class tau.*\n.*b \d+, c \d+"):
        JetFlavour.fitted(JetFlavourConfig(classes=("b", "tau")), objects)
    with pytest.raises(NotEnoughDataError, match="two classes"):
        JetFlavour.fitted(JetFlavourConfig(), synthetic_objects(30, num_flavours=1))


@pytest.mark.parametrize("balance", ["fixed", "geometric_mean"])
def test_origins_of_tracks_are_learned_from_tracks_only(balance: str, objects: EventObjects) -> None:
    """Catches an auxiliary loss over padding or neutrals, and a balance whose gradient forgets one of the two."""
    task = JetFlavour.fitted(JetFlavourConfig(origin_weight=0.5, loss_balance=balance), objects)
    examples = task.examples(objects)
    data, _ = set_data("kinematics", objects, examples)
    _, targets = data.batch(np.arange(8))
    origin = targets.of_constituent["origin"].numpy()
    has_track = np.isfinite(objects.candidate["d0"])
    assert (origin >= 0).sum() == sum(has_track[objects.jet_of_candidate == jet].sum() for jet in examples.jet[:8])
    of_set, of_constituent = torch.randn(8, 3, requires_grad=True), torch.randn(*origin.shape, 4, requires_grad=True)
    task.loss(SetOutputs(of_set, of_constituent), targets).sum().backward()
    assert of_set.grad is not None
    assert of_constituent.grad is not None
    assert (of_constituent.grad.abs().sum(-1) > 0).numpy().tolist() == (origin >= 0).tolist()
    assert of_set.grad.abs().sum() > 0


def test_flavour_is_measured(objects: EventObjects) -> None:
    """Catches signal and background exchanged, and classes in another order."""
    task = JetFlavour.fitted(JetFlavourConfig(), objects)
    examples = task.examples(objects)
    label = examples.targets["class"]
    right = np.eye(3, dtype=np.float32)[label] * 0.8 + 0.1
    found = task.metrics(right, examples, objects, event_bootstrap(objects.num_events, seed=1))
    assert found["auc_b_vs_c"].value == found["accuracy"].value == 1.0
    assert found["cross_entropy"].value == pytest.approx(-np.log(0.9), rel=1e-5)
    same = task.metrics(np.full_like(right, 1 / 3), examples, objects, event_bootstrap(objects.num_events, seed=1))
    assert same["auc_b_vs_ud"].value == pytest.approx(0.5)


def test_energy_of_jets(objects: EventObjects) -> None:
    """Catches the inverse of the correction, and jets without a gen jet among the examples."""
    for loss in ("huber", "quantile"):
        task = JetEnergy.fitted(JetEnergyConfig(loss=loss), objects)
        examples = task.examples(objects)
        assert np.isfinite(examples.targets["log_ratio"]).all()
        perfect = np.exp(examples.targets["log_ratio"])[:, None].repeat(task.of_set, 1)
        found = task.metrics(perfect, examples, objects, event_bootstrap(objects.num_events, seed=1))
        assert found["energy_response_iqr_over_median"].value < 1e-5 < found["baseline/energy_response_iqr_over_median"].value
        assert found["energy_response_median"].value == pytest.approx(1, abs=1e-5)
        data, _ = set_data("kinematics", objects, examples)
        _, targets = data.batch(np.arange(len(examples)))
        zero = task.predict(outputs(np.zeros((len(examples), task.of_set))), targets)
        assert (zero == 1).all()
        wanted = torch.atanh(targets.of_set["log_ratio"] / 2) * 20
        best = task.loss(outputs(wanted[:, None].repeat(1, task.of_set).numpy()), targets).sum()
        assert best < task.loss(outputs(np.zeros((len(examples), task.of_set))), targets).sum()


def test_missing_momentum_begins_at_the_plain_sum(objects: EventObjects) -> None:
    """Catches weights of padding, and a sign: a network that says nothing must give minus the sum."""
    task = MissingMomentum.fitted(MissingMomentumConfig(), objects)
    examples = task.examples(objects)
    data, _ = set_data("kinematics", objects, examples)
    _, targets = data.batch(np.arange(len(examples)))
    zero = task.predict(outputs(None, np.zeros((*targets.mask_BN.shape, 1))), targets).numpy()
    found = task.metrics(zero, examples, objects, event_bootstrap(objects.num_events, seed=1))
    assert found["met_resolution"].value == pytest.approx(found["baseline/met_resolution"].value, rel=1e-4)
    first = slice(0, objects.candidate_offsets[1])
    np.testing.assert_allclose(zero[0], [-objects.candidate[n][first].sum() for n in ("px", "py")], rtol=1e-4)


def test_nan_labels_are_left_out() -> None:
    """Catches a loss that becomes NaN by one label."""
    spoiled = synthetic_objects(60)
    spoiled.gen_met["px"][3] = np.nan  # type: ignore[index]
    spoiled.jet["gen_energy"][0] = np.nan  # type: ignore[index]
    assert 3 not in MissingMomentum.fitted(MissingMomentumConfig(), spoiled).examples(spoiled).event
    assert 0 not in JetEnergy.fitted(JetEnergyConfig(), spoiled).examples(spoiled).jet


def tops(num_events: int, *, num_jets: int = 7, seed: int = 1) -> EventObjects:
    """Events whose first six jets are of two tops, in a random order."""
    found = synthetic_objects(num_events + 1, jets_per_event=num_jets, seed=seed)
    rng = np.random.default_rng(seed)
    for event in range(num_events):
        rows = np.arange(found.jet_offsets[event], found.jet_offsets[event + 1])
        found.jet["top_role"][rng.permutation(rows)[:6]] = (1, 2, 2, -1, -2, -2)  # type: ignore[index]
    return found


def test_assignment_is_the_best_of_all_by_brute_force() -> None:
    """Catches a loss that is not symmetric in the tops or in the jets of a W, and a prediction that takes a jet twice."""
    found = tops(5)
    config = EventAssignmentConfig(max_jets=7, vector_width=3)
    task = EventAssignment.fitted(config, found)
    examples = task.examples(found)
    data, _ = set_data("kinematics", found, examples)
    _, targets = data.batch(np.arange(len(examples)))
    torch.manual_seed(3)
    said = torch.randn(*targets.mask_BN.shape, task.of_constituent)
    vectors = said.unflatten(-1, (2, 2, 3)).numpy()
    predicted = task.predict(SetOutputs(torch.zeros(1, 0), said), targets).numpy()
    loss = 0.0
    for event in range(len(examples)):
        jets = range(int(targets.mask_BN[event].sum()))
        triplets = [(i, j, k) for i in jets for j, k in itertools.combinations(jets, 2) if i not in (j, k)]
        score = np.array(
            [[(vectors[event, i, t, 0] * vectors[event, j, t, 1] * vectors[event, k, t, 1]).sum() for i, j, k in triplets] for t in (0, 1)]
        )
        log_p = score - np.log(np.exp(score).sum(1, keepdims=True))
        true = [tuple(t) for t in targets.of_set["jets"][event].tolist()]
        place = [triplets.index(t if t in triplets else (t[0], t[2], t[1])) for t in true]
        loss += min(-log_p[0, place[0]] - log_p[1, place[1]], -log_p[0, place[1]] - log_p[1, place[0]])
        best = max(
            (
                (log_p[0, a] + log_p[1, b], a, b)
                for a in range(len(triplets))
                for b in range(len(triplets))
                if not set(triplets[a]) & set(triplets[b])
            ),
        )
        assert [tuple(t) for t in predicted[event].tolist()] == [triplets[best[1]], triplets[best[2]]]
    assert float(task.loss(SetOutputs(torch.zeros(1, 0), said), targets)) == pytest.approx(loss, rel=1e-4)
    swapped = TargetBatch({"jets": targets.of_set["jets"].flip(1)[..., [0, 2, 1]]}, {}, targets.momenta_BN4, targets.mask_BN)
    assert float(task.loss(SetOutputs(torch.zeros(1, 0), said), swapped)) == pytest.approx(loss, rel=1e-4)


def test_assignments_are_counted_up_to_their_symmetries() -> None:
    """Catches right assignments that count as wrong because the tops or the light jets are named the other way."""
    found = tops(6)
    task = EventAssignment.fitted(EventAssignmentConfig(max_jets=7), found)
    examples = task.examples(found)
    true = examples.targets["jets"]
    chosen = true[:, ::-1][:, :, [0, 2, 1]].copy()
    chosen[0, 0] = chosen[0, 0][[1, 0, 2]]  # one top of the first event: another jet is called its b
    metrics = task.metrics(chosen, examples, found, event_bootstrap(found.num_events, seed=1))
    assert metrics["event_efficiency"].value == pytest.approx(5 / 6)
    assert metrics["top_efficiency"].value == pytest.approx(11 / 12)
    assert by_mass(found, examples).shape == (6, 2, 3)


def test_an_event_with_a_lost_jet_is_no_example() -> None:
    """Catches events that are counted although a jet of theirs is not among those considered."""
    found = tops(6)
    found.jet["top_role"][np.flatnonzero(found.jet["top_role"] == 2)[0]] = 0  # type: ignore[index]
    task = EventAssignment.fitted(EventAssignmentConfig(max_jets=7), found)
    assert 0 not in task.examples(found).event
    with pytest.raises(NotEnoughDataError, match="ttbar"):
        EventAssignment.fitted(EventAssignmentConfig(), synthetic_objects(20, jets_per_event=7))


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_auc_is_the_share_of_ordered_pairs(seed: int) -> None:
    """Catches ties counted as right, or signal and background exchanged."""
    rng = np.random.default_rng(seed)
    score, is_signal, event = rng.integers(0, 6, 40), rng.random(40) < 0.5, np.arange(40)
    if not 0 < is_signal.sum() < 40:
        return
    pairs = [(s > b) + 0.5 * (s == b) for s in score[is_signal] for b in score[~is_signal]]
    assert auc(score, is_signal, event, event_bootstrap(40, seed=1, num_replicas=4)).value == pytest.approx(np.mean(pairs))


def test_rejection_and_roc_agree() -> None:
    """Catches rejections at the efficiency of the background, and errors that are not those of events."""
    rng = np.random.default_rng(1)
    is_signal = rng.random(4000) < 0.5
    score, event = rng.normal(is_signal * 1.5, 1), np.arange(4000) // 2
    bootstrap = event_bootstrap(2000, seed=1)
    found = rejections(score, is_signal, event, bootstrap, (0.5, 0.9))
    passing = roc(score, is_signal, [0.5, 0.9])
    for rejection, fraction in zip(found, passing, strict=True):
        assert 1 / rejection.value == pytest.approx(fraction, rel=0.05)
        assert 0 < rejection.error < 0.2 * rejection.value
    assert np.isnan(auc(score, np.ones(4000, bool), event, bootstrap).value)
