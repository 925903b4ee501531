"""Kinematics, index arithmetic and one-to-one matching."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.physics.kinematics import cartesian, delta_phi, deltaR, invariant_mass, pt_eta_phi
from pfscale.physics.matching import match_jets
from pfscale.physics.ragged import index_within_event, pairs_within_events

jets = st.lists(st.tuples(st.integers(0, 3), st.integers(-4, 4), st.integers(-4, 4)), max_size=14)


def brute_force(reco: np.ndarray, gen: np.ndarray, max_delta_r: float) -> set[tuple[int, int]]:
    """Greedy by distance, one event and one pair at a time."""
    pairs = [
        (math.hypot(r[1] - g[1], math.remainder(r[2] - g[2], math.tau)), i, j)
        for i, r in enumerate(reco)
        for j, g in enumerate(gen)
        if r[0] == g[0]
    ]
    used_reco: set[int] = set()
    used_gen: set[int] = set()
    matched = set()
    for distance, i, j in sorted(pairs):
        if distance < max_delta_r and i not in used_reco and j not in used_gen:
            matched.add((i, j))
            used_reco.add(i)
            used_gen.add(j)
    return matched


@settings(max_examples=200, deadline=None)
@given(reco=jets, gen=jets)
def test_matching_is_the_greedy_one_to_one_matching(reco: list, gen: list) -> None:
    """Would catch a jet used twice, matches across events, and ties decided by chance (the grid makes many)."""
    r = np.array(reco, float).reshape(-1, 3) * [1, 1 / 32, 1 / 32]  # distances without rounding: ties are ties
    g = np.array(gen, float).reshape(-1, 3) * [1, 1 / 32, 1 / 32]
    found = match_jets(
        num_events=4,
        reco_event=r[:, 0].astype(int), reco_eta=r[:, 1], reco_phi=r[:, 2],
        gen_event=g[:, 0].astype(int), gen_eta=g[:, 1], gen_phi=g[:, 2],
    )  # fmt: skip
    assert set(zip(found.reco.tolist(), found.gen.tolist(), strict=True)) == brute_force(r, g, 0.1)
    assert len(set(found.reco)) == len(set(found.gen)) == len(found)
    assert (np.diff(found.gen) > 0).all()
    assert (found.delta_r < 0.1).all()
    np.testing.assert_allclose(found.delta_r, deltaR(r[found.reco, 1], r[found.reco, 2], g[found.gen, 1], g[found.gen, 2]), atol=1e-14)


def test_matching_across_the_seam_in_phi() -> None:
    """Would catch a difference of phi that is not wrapped."""
    found = match_jets(num_events=1, reco_event=[0], reco_eta=[0.0], reco_phi=[3.13], gen_event=[0], gen_eta=[0.0], gen_phi=[-3.13])
    assert len(found) == 1


def test_directions_that_are_not_finite_match_nothing_and_an_unknown_event_is_refused() -> None:
    """Would catch a candidate on the beam axis that takes a jet, and rows read beyond the last event."""
    directions = {"reco_eta": [np.inf, np.nan, 0.0], "reco_phi": [0.0, 0.0, np.nan], "gen_eta": [np.inf, 0.0], "gen_phi": [0.0, 0.0]}
    assert len(match_jets(num_events=1, reco_event=[0, 0, 0], gen_event=[0, 0], **directions)) == 0
    with pytest.raises(ValueError, match="event index 1"):
        match_jets(num_events=1, reco_event=[0, 0, 1], gen_event=[0, 0], **directions)


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(-100, 100))
def test_momentum_round_trip(px: float, py: float, pz: float) -> None:
    """Would catch a wrong convention of eta or phi."""
    if np.hypot(px, py) < 1e-3:
        return
    np.testing.assert_allclose(cartesian(*pt_eta_phi(px, py, pz)), (px, py, pz), rtol=1e-9, atol=1e-9)


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_delta_phi_is_the_short_way_round(a: float, b: float) -> None:
    difference = float(delta_phi(a, b))
    assert -np.pi <= difference < np.pi
    np.testing.assert_allclose(np.exp(1j * difference), np.exp(1j * (a - b)), atol=1e-9)


def test_kinematics_agree_with_vector() -> None:
    """Would catch a wrong formula: the library is the reference."""
    import vector

    rng = np.random.default_rng(1)
    p = rng.normal(size=(3, 50)) * 20
    q = rng.normal(size=(3, 50)) * 20
    energy = np.linalg.norm(p, axis=0) + 1
    v = vector.array({"px": p[0], "py": p[1], "pz": p[2], "E": energy})
    w = vector.array({"px": q[0], "py": q[1], "pz": q[2], "E": np.linalg.norm(q, axis=0)})
    pt, eta, phi = pt_eta_phi(*p)
    np.testing.assert_allclose((pt, eta, phi), (v.pt, v.eta, v.phi))
    np.testing.assert_allclose(invariant_mass(energy, *p), v.mass)
    _, eta2, phi2 = pt_eta_phi(*q)
    np.testing.assert_allclose(deltaR(eta, phi, eta2, phi2), v.deltaR(w))


def test_null_and_beam_momenta_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, eta, _ = pt_eta_phi([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 5.0, -5.0])
    assert eta.tolist() == [0.0, np.inf, -np.inf]


@given(a=st.lists(st.integers(0, 4), max_size=10), b=st.lists(st.integers(0, 4), max_size=10))
def test_pairs_within_events_are_all_pairs(a: list[int], b: list[int]) -> None:
    """Would catch offsets that assume sorted or non-empty events."""
    rows_a, rows_b = pairs_within_events(np.array(a, int), np.array(b, int), num_events=5)
    expected = [(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if x == y]
    assert sorted(zip(rows_a.tolist(), rows_b.tolist(), strict=True)) == expected


def test_index_within_event_restarts_in_each_event() -> None:
    assert index_within_event(np.array([0, 0, 2, 2, 2, 5])).tolist() == [0, 1, 0, 1, 2, 0]
