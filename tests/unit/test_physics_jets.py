"""Jets, ghosts and flavours: invariants of the clustering and of the ancestry rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.errors import PfscaleError
from pfscale.physics.flavour import FlavourSources, flavour_sources
from pfscale.physics.jets import cluster_jets, gen_jets


def jetty_events(num_events: int, *, seed: int = 0, mean: int = 40) -> dict[str, np.ndarray]:
    """Massless particles around four axes per event; every fifth event is empty."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(mean, num_events)
    counts[::5] = 0
    event = np.repeat(np.arange(num_events), counts)
    axes = rng.normal(size=(num_events, 4, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    direction = axes[event, rng.integers(0, 4, len(event))] + 0.15 * rng.normal(size=(len(event), 3))
    energy = rng.exponential(4.0, len(event))
    p = direction / np.linalg.norm(direction, axis=-1, keepdims=True) * energy[:, None]
    return {"event": event, "px": p[:, 0], "py": p[:, 1], "pz": p[:, 2], "energy": energy}


def sources_of(rows: list[tuple[int, float, float, float, float, int, bool]], top_role: list[int] | None = None) -> FlavourSources:
    event, px, py, pz, energy, flavour, is_ghost = (np.array(c) for c in zip(*rows, strict=True))
    roles = np.array(top_role or [0] * len(rows), np.int8)
    return FlavourSources(event, px, py, pz, energy, flavour.astype(np.int8), is_ghost, roles)


def test_rotation_about_the_beam_leaves_jets() -> None:
    """Would catch swapped momentum components or a seam at phi = pi."""
    particles = jetty_events(20)
    before = cluster_jets(num_events=20, **particles)
    angle = 2.1
    cos, sin = np.cos(angle), np.sin(angle)
    turned = particles | {"px": cos * particles["px"] - sin * particles["py"], "py": sin * particles["px"] + cos * particles["py"]}
    after = cluster_jets(num_events=20, **turned)
    assert len(before) > 20
    np.testing.assert_array_equal(before.event, after.event)
    np.testing.assert_allclose(before.pt, after.pt, rtol=1e-10)
    np.testing.assert_allclose(before.eta, after.eta, atol=1e-10)
    np.testing.assert_array_equal(before.jet_of_particle, after.jet_of_particle)


def test_jets_do_not_depend_on_the_batch_or_its_order() -> None:
    """Would catch constituents assigned to the wrong event, or rows assumed to be sorted by event."""
    particles = jetty_events(15, seed=3)
    together = cluster_jets(num_events=15, **particles)
    order = np.random.default_rng(0).permutation(len(particles["event"]))
    shuffled = cluster_jets(num_events=15, **{name: column[order] for name, column in particles.items()})
    np.testing.assert_allclose(shuffled.pt, together.pt, rtol=1e-10)
    np.testing.assert_array_equal(shuffled.jet_of_particle, together.jet_of_particle[order])
    for e in range(15):
        rows = particles["event"] == e
        alone = cluster_jets(num_events=1, **{n: c[rows] if n != "event" else np.zeros(rows.sum(), int) for n, c in particles.items()})
        np.testing.assert_allclose(alone.pt, together.pt[together.event == e], rtol=1e-12)
        np.testing.assert_array_equal(alone.jet_of_particle, together.jet_of_particle[rows])


def test_jets_are_the_sums_of_their_particles_in_descending_pt() -> None:
    """Would catch `jet_of_particle` following FastJet's order instead of the sorted one."""
    particles = jetty_events(12, seed=5)
    jets = cluster_jets(num_events=12, **particles)
    for j in range(len(jets)):
        index = j - np.searchsorted(jets.event, jets.event[j])
        mine = (particles["event"] == jets.event[j]) & (jets.jet_of_particle == index)
        assert np.hypot(particles["px"][mine].sum(), particles["py"][mine].sum()) == pytest.approx(jets.pt[j])
        assert particles["energy"][mine].sum() == pytest.approx(jets.energy[j])
    same_event = jets.event[1:] == jets.event[:-1]
    assert (np.diff(jets.pt)[same_event] <= 0).all()
    assert (jets.pt > 5).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), num_ghosts=st.integers(1, 30))
def test_ghosts_do_not_change_jets(seed: int, num_ghosts: int) -> None:
    """Would catch a ghost scale that moves jets, or ghosts counted as particles."""
    particles = jetty_events(6, seed=seed, mean=25)
    rng = np.random.default_rng(seed)
    p = rng.normal(size=(3, num_ghosts)) * 50
    p[:, 0] = 0  # a ghost at rest
    event, energy, flavour = rng.integers(0, 6, num_ghosts), np.linalg.norm(p, axis=0) + 5, np.full(num_ghosts, 5, np.int8)
    ghosts = FlavourSources(event, *p, energy, flavour, np.ones(num_ghosts, bool), np.zeros(num_ghosts, np.int8))
    plain, ghosted = cluster_jets(num_events=6, **particles), gen_jets(num_events=6, **particles, sources=ghosts)
    np.testing.assert_allclose(ghosted.pt, plain.pt, rtol=1e-12)
    np.testing.assert_allclose(ghosted.energy, plain.energy, rtol=1e-12)
    np.testing.assert_array_equal(ghosted.jet_of_particle, plain.jet_of_particle)


def test_flavour_priority_b_c_tau_parton() -> None:
    """Would catch a wrong priority, a parton beyond 0.4, the farther of two partons, or another event's ghosts."""
    axes = [(20.0, 0.0, 0.0), (0.0, 20.0, 0.0), (-20.0, 0.0, 0.0), (0.0, -20.0, 0.0)]
    rows = [(e, *axis, 20.0) for e in (0, 1) for axis in axes]
    columns = dict(zip(("event", "px", "py", "pz", "energy"), (np.array(c) for c in zip(*rows, strict=True)), strict=True))
    sources = sources_of(
        [
            (0, 19.0, 1.0, 0.0, 20.0, 4, True),  # D and B in one jet: b
            (0, 9.0, 1.0, 0.0, 10.0, 5, True),
            (0, 19.0, 1.0, 0.0, 20.0, 15, True),
            (0, 0.0, 9.0, 1.0, 10.0, 15, True),  # tau before parton
            (0, 0.0, 9.0, 1.0, 10.0, 3, False),
            (0, -9.0, 2.0, 0.0, 10.0, 1, False),  # the nearer parton: 21
            (0, -9.0, 1.0, 0.0, 10.0, 21, False),
            (0, 3.0, -5.0, 0.0, 10.0, 2, False),  # too far from (0, -1): none
            (1, 9.0, 1.0, 0.0, 10.0, 4, True),
        ]
    )
    jets = gen_jets(num_events=2, **columns, sources=sources)
    by_axis = {(int(e), round(float(phi), 1)): int(f) for e, phi, f in zip(jets.event, jets.phi, jets.flavour, strict=True)}
    assert [by_axis[0, phi] for phi in (0.0, 1.6, -1.6)] == [5, 15, 0]
    assert by_axis.get((0, 3.1), by_axis.get((0, -3.1))) == 21
    assert by_axis[1, 0.0] == 4
    assert by_axis[1, 1.6] == 0


def test_empty_inputs_give_empty_results() -> None:
    """Would catch a crash of FastJet or awkward on a batch without particles, jets or ghosts."""
    nothing = {name: np.zeros(0) for name in ("event", "px", "py", "pz", "energy")}
    assert len(cluster_jets(num_events=3, **nothing)) == 0
    assert len(cluster_jets(num_events=0, **nothing)) == 0
    only_ghosts = sources_of([(1, 9.0, 1.0, 0.0, 10.0, 5, True), (1, 9.0, 1.0, 0.0, 10.0, 5, False)])
    jets = gen_jets(num_events=3, **nothing, sources=only_ghosts)
    assert len(jets) == len(jets.flavour) == len(jets.jet_of_particle) == 0
    soft = cluster_jets(num_events=2, event=[1, 1], px=[1, 0], py=[0, 0], pz=[0, 0], energy=[1, 0])
    assert len(soft) == 0
    assert soft.jet_of_particle.tolist() == [-1, -1]


def test_momenta_that_are_not_finite_are_refused() -> None:
    """FastJet returns jets of infinite energy without a word."""
    with pytest.raises(PfscaleError, match="1 of 2"):
        cluster_jets(num_events=1, event=[0, 0], px=[np.nan, 10], py=[0, 0], pz=[0, 0], energy=[1, 10])


def record(*particles: tuple[int, int, list[int]]) -> FlavourSources:
    """Flavour sources of one event of (pdg, generator status, parents); daughters follow from the parents."""
    n = len(particles)
    daughters: list[list[int]] = [[] for _ in particles]
    for child, (_, _, parents) in enumerate(particles):
        for parent in parents:
            daughters[parent].append(child)
    lists = [p[2] for p in particles]
    return flavour_sources(
        event=np.zeros(n, int),
        pdg=[p[0] for p in particles],
        generator_status=[p[1] for p in particles],
        px=np.arange(n),
        py=np.zeros(n),
        pz=np.zeros(n),
        energy=np.arange(n),
        parent_offsets=np.cumsum([0, *map(len, lists)]),
        parent_index=np.array([i for each in lists for i in each], int),
        daughter_offsets=np.cumsum([0, *map(len, daughters)]),
        daughter_index=np.array([i for each in daughters for i in each], int),
    )


def test_weakly_decaying_hadrons_only() -> None:
    """Would catch B* or the unmixed B0 counted beside their daughter, quarkonia counted as hadrons with b or c, and B_c as c."""
    found = record(
        (513, 2, []),  # B*0
        (511, 2, [0]),  # B0, oscillates
        (-511, 2, [1]),  # weakly decaying
        (413, 2, [2]),
        (421, 2, [3]),  # weakly decaying
        (443, 2, [2]),  # J/psi
        (553, 2, []),  # Upsilon
        (541, 2, []),  # B_c: b
        (5122, 2, []),  # Lambda_b
        (411, 0, []),  # made by the simulation
        (211, 1, [4]),
    )
    assert found.px.tolist() == [2, 4, 7, 8]
    assert found.flavour.tolist() == [5, 4, 5, 5]
    assert found.is_ghost.all()


def test_hadronic_taus_only() -> None:
    """Would catch leptonic taus, tau -> tau gamma copies, and taus that never decayed."""
    found = record(
        (15, 2, []),
        (15, 2, [0]),
        (22, 1, [0]),
        (-211, 1, [1]),
        (16, 1, [1]),
        (-15, 2, []),
        (-11, 1, [5]),
        (12, 1, [5]),
        (-16, 1, [5]),
        (15, 1, []),
    )
    assert found.px.tolist() == [1]
    assert found.flavour.tolist() == [15]


def test_hard_partons_are_those_without_coloured_parents() -> None:
    """Would catch shower partons counted as hard, the b of a top missed, or the top itself counted."""
    found = record(
        (11, 2, []),
        (6, 2, [0]),  # top
        (5, 2, [1]),  # b of the top
        (24, 2, [1]),
        (-3, 2, [3]),
        (4, 2, [3]),
        (21, 2, [5]),  # radiated
        (4, 0, [5]),  # copy
        (25, 2, [0]),
        (21, 2, [8]),
    )
    assert found.px.tolist() == [2, 4, 5, 9]
    assert found.flavour.tolist() == [5, 3, 4, 21]
    assert not found.is_ghost.any()


def test_roles_in_the_decays_of_tops_and_their_copies() -> None:
    """Catches partons that are lost behind copies of tops and W, copies and radiation that count again, and signs exchanged."""
    found = record(
        (23, 2, []),
        (6, 2, [0]),
        (6, 2, [1]),  # copy
        (5, 2, [2]),  # b of the top: 1
        (24, 2, [2]),
        (24, 2, [4]),  # copy
        (24, 2, [5]),  # copy
        (2, 2, [6]),  # 2
        (-1, 2, [6]),  # 2
        (21, 2, [8]),
        (-1, 2, [8]),  # copy
        (5, 2, [3]),  # copy
        (-6, 2, [0]),
        (-3, 2, [12]),  # strange instead of b: -1
        (-24, 2, [12]),
        (-4, 2, [14]),  # -2
        (5, 2, [14]),  # -2
        (21, 2, [2]),  # radiated by the top: no quark
        (5, 2, [17]),
    )
    assert found.px.tolist() == [3, 7, 8, 13, 15, 16, 17]
    assert found.top_role.tolist() == [1, 2, 2, -1, -2, -2, 0]


def test_no_roles_without_a_top_above() -> None:
    """Catches every W taken for a top's, every b for a top's b, leptons of a W counted as quarks, and ghosts with a role."""
    found = record(
        (6, 2, []), (5, 2, [0]), (24, 2, [0]), (-11, 1, [2]), (12, 1, [2]),  # leptonic
        (511, 2, [1]),
        (24, 2, []), (2, 2, [6]), (-1, 2, [6]),
        (25, 2, []), (24, 2, [9]), (-24, 2, [9]), (4, 2, [10]), (-3, 2, [10]), (1, 2, [11]), (-2, 2, [11]), (5, 2, [9]),
        (6, 2, []), (25, 2, [17]), (5, 2, [18]), (-5, 2, [18]),  # a Higgs radiated by a top
        (5, 2, [17]), (2, 2, [17]), (-1, 2, [17]),  # its W was not written
    )  # fmt: skip
    with_role = found.px[found.top_role != 0]
    assert found.px.tolist() == [1, 5, 7, 8, 12, 13, 14, 15, 16, 19, 20, 21, 22, 23]
    assert with_role.tolist() == [1, 21]


def test_loops_of_tops_and_w_end() -> None:
    """Catches an endless walk where a damaged file makes a W its own mother, and roles that a loop without top makes up."""
    found = record((24, 2, [1]), (24, 2, [0]), (2, 2, [1]), (6, 2, [4]), (24, 2, [3, 5]), (24, 2, [4]), (4, 2, [5]))
    assert found.px.tolist() == [2, 6]
    assert found.top_role.tolist() == [0, 2]


def test_partons_of_tops_are_matched_one_to_one() -> None:
    """Catches a jet near two partons that goes to the first of them, a parton with two jets, another event's, and one beyond 0.4."""
    axes = [(20.0, 0.0, 0.0), (0.0, 20.0, 0.0), (0.0, -20.0, 0.0)]
    rows = [(e, *axis, 20.0) for e in (0, 1) for axis in axes] + [(0, 10.0, 7.0, 0.0, 12.3)]  # 0.61 from the first
    columns = dict(zip(("event", "px", "py", "pz", "energy"), (np.array(c) for c in zip(*rows, strict=True)), strict=True))
    partons = [
        (0, 20.0, 5.0, 0.0, 21.0, 5, False),  # 0.245 from the first jet, 0.366 from the one beside it: gets that
        (0, 20.0, 2.0, 0.0, 21.0, 2, False),  # 0.1 from the first jet
        (0, 3.0, 20.0, 0.0, 21.0, 1, False),  # 0.15 from the second jet
        (0, -1.0, 20.0, 0.0, 21.0, 5, False),  # 0.05 from the second jet; no other near
        (0, 10.0, -20.0, 0.0, 23.0, 3, False),  # 0.46 from the third
        (1, 20.0, 1.0, 0.0, 21.0, 2, False),
        (1, 1.0, 20.0, 0.0, 21.0, 2, False),  # no parton of a top
    ]
    jets = gen_jets(num_events=2, **columns, sources=sources_of(partons, top_role=[1, 2, 2, -1, -2, -2, 0]))
    by_axis = {(int(e), round(float(phi), 1)): int(role) for e, phi, role in zip(jets.event, jets.phi, jets.top_role, strict=True)}
    assert by_axis == {(0, 0.0): 2, (0, 0.6): 1, (0, 1.6): -1, (0, -1.6): 0, (1, 0.0): -2, (1, 1.6): 0, (1, -1.6): 0}
    plain = gen_jets(num_events=2, **columns, sources=None)
    assert plain.top_role.tolist() == [0] * 7


def test_relations_that_point_nowhere_are_ignored() -> None:
    """Would catch -1 (a pruned parent) read as the last particle of the batch."""
    found = flavour_sources(
        event=[0, 0], pdg=[2, 21], generator_status=[2, 2], px=[1, 2], py=[0, 0], pz=[0, 0], energy=[1, 2],
        parent_offsets=[0, 1, 1], parent_index=[-1], daughter_offsets=[0, 0, 0], daughter_index=[],
    )  # fmt: skip
    assert found.flavour.tolist() == [2, 21]
    assert len(flavour_sources(
        event=[], pdg=[], generator_status=[], px=[], py=[], pz=[], energy=[],
        parent_offsets=[0], parent_index=[], daughter_offsets=[0], daughter_index=[],
    )) == 0  # fmt: skip
