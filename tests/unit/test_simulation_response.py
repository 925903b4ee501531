"""The detector response in memory: pulls, photon calibration, merging and splitting, a third detector from one more table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.edm4hep.origin import FROM_B, FROM_D, FROM_D_OF_B, OTHER_SECONDARY, PRIMARY
from pfscale.physics.flavour import TOP_ROLES
from pfscale.simulation.detectors import DETECTORS
from pfscale.simulation.hadron_resolution import shower_variance
from pfscale.simulation.helix import CURVATURE, arc_to_radius, move
from pfscale.simulation.realism import efficiency, hadron_response, interaction_rates, measure, photon_response
from pfscale.simulation.realism_jets import FLAVOURS, extracted, impact_parameters
from pfscale.simulation.response import detector_response
from pfscale.simulation.samples import particle_gun, sample

pytest.importorskip("pythia8mc")


@pytest.fixture(scope="module")
def ttbar():
    return sample(DETECTORS["clic"], "ttbar", None, None, 60)


@given(
    pt=st.floats(0.2, 100), phi=st.floats(-3.1, 3.1), x=st.floats(-100, 100), y=st.floats(-100, 100), charge=st.sampled_from([-1, 1])
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_helix_reaches_the_radius_it_says(pt: float, phi: float, x: float, y: float, charge: int) -> None:
    """Catches: a wrong branch of the circle's crossing (a looper taken for a straight track)."""
    omega = charge * CURVATURE * 4.0 / pt
    arc = arc_to_radius(x, y, phi, omega, 1500.0)
    distance = np.hypot(x + np.sin(phi) / omega, y - np.cos(phi) / omega)
    if arc < 0:
        assert distance + 1 / abs(omega) <= 1500.0 * (1 + 1e-9)
        return
    end = move(x, y, 0.0, phi, omega, 0.0, arc)
    assert np.hypot(end[0], end[1]) == pytest.approx(1500.0, rel=1e-6)
    half = move(x, y, 0.0, phi, omega, 0.0, 0.5 * arc)
    assert np.hypot(half[0], half[1]) < 1500.0, "not the first crossing"


@pytest.mark.parametrize("detector", ["clic", "cld"])
def test_pulls_have_unit_width(detector: str) -> None:
    """Catches: a covariance that is not the one the parameters were drawn from."""
    rng = np.random.default_rng(1)
    events = detector_response(particle_gun(13, 0.1057, -1, rng.uniform(0.5, 50, 4000)), DETECTORS[detector], rng)
    tracks = events.tracks
    residual = tracks.parameters - tracks.true_parameters
    residual[:, 1] = (residual[:, 1] + np.pi) % (2 * np.pi) - np.pi
    pull = residual / np.sqrt(tracks.covariance[:, [0, 2, 5, 9, 14]])
    assert len(tracks) > 3000
    np.testing.assert_allclose(pull.std(axis=0), 1.0, atol=0.1)
    np.testing.assert_allclose(pull.mean(axis=0), 0.0, atol=0.1)
    correlation = np.mean(pull[:, 0] * pull[:, 1])
    expected = np.mean(tracks.covariance[:, 1] / np.sqrt(tracks.covariance[:, 0] * tracks.covariance[:, 2]))
    assert correlation == pytest.approx(expected, abs=0.05)
    assert (np.linalg.eigvalsh(_matrices(tracks.covariance)) > 0).all()


def _matrices(covariance: np.ndarray) -> np.ndarray:
    full = np.zeros((len(covariance), 5, 5))
    rows, columns = np.tril_indices(5)
    full[:, rows, columns] = full[:, columns, rows] = covariance
    return full / np.sqrt(np.einsum("ni,nj->nij", *(2 * [np.einsum("nii->ni", full)])))


def test_muon_curvature_has_the_sign_of_its_charge_and_the_right_pt() -> None:
    """Catches: the sign convention of omega turned round, or the wrong field."""
    rng = np.random.default_rng(1)
    for detector in DETECTORS.values():
        particles = particle_gun(-13, 0.1057, 1, np.full(200, 10.0))
        tracks = detector_response(particles, detector, rng).tracks
        true_pt = np.hypot(*particles.momentum[:, :2].T)[tracks.event]
        central = true_pt > 5
        np.testing.assert_allclose(3e-4 * detector.b_field / tracks.parameters[central, 2] / true_pt[central], 1.0, atol=0.05)


@pytest.mark.parametrize("detector", ["clic", "cld"])
@pytest.mark.parametrize("energy", [3.74, 9.98, 50.0])
def test_photons_keep_their_energy(detector: str, energy: float) -> None:
    """Catches: a calibration lost by thresholds, cells or clustering; photons that shatter."""
    photons = photon_response(DETECTORS[detector], energy, num_events=300)
    assert photons.mean == pytest.approx(1.0, abs=0.03)
    assert photons.width < 1.3 * np.hypot(0.156 / np.sqrt(energy), 0.01)
    assert 0.95 < photons.clusters < 1.15


def test_displaced_tracks_have_large_impact_parameters(ttbar) -> None:
    """Catches: vertices ignored in D0, without which no b jet can be told from a light one."""
    tracks, particles = ttbar.tracks, ttbar.particles
    flight = np.hypot(*particles.vertex[tracks.particle, :2].T)
    significance = np.abs(tracks.parameters[:, 0]) / np.sqrt(tracks.covariance[:, 0])
    is_vertex_track = np.hypot(*tracks.first_hit[:, :2].T) < 60
    assert np.median(significance[(flight > 2) & (flight < 20) & is_vertex_track]) > 5
    assert np.median(significance[(flight < 0.01) & is_vertex_track]) < 1


def test_events_look_like_full_simulation(ttbar) -> None:
    """Catches: clusters made one per particle, counts far from real files, tracks lost."""
    row = measure(ttbar, DETECTORS["clic"])
    assert row.tracks == pytest.approx(60, rel=0.3)
    assert row.clusters == pytest.approx(90, rel=0.3)
    assert row.merged > 0.03
    assert row.split > 0.03
    assert row.clustered / row.visible == pytest.approx(0.9, abs=0.1)


def test_particle_that_decays_in_the_calorimeter_is_seen_itself() -> None:
    """Catches: a K0S behind the face whose daughters shower although nothing entered there (or twice with it)."""
    gun = particle_gun(310, 0.4976, 0, np.full(2, 20.0))
    unit = gun.momentum / np.linalg.norm(gun.momentum, axis=1, keepdims=True)
    inside, behind = 300.0, 4000.0
    lengths = np.array([inside, behind])
    daughters = replace(
        gun,
        pdg=np.full(2, 111),
        momentum=0.999 * gun.momentum,
        mass=np.full(2, 0.135),
        vertex=unit * lengths[:, None],
        endpoint=unit * lengths[:, None],
    )
    both = _interleave(replace(gun, status=np.full(2, 2), endpoint=unit * lengths[:, None], has_decay=np.ones(2, dtype=bool)), daughters)
    both = replace(
        both, parent=np.array([0, 2]), child=np.array([1, 3]), pdg=np.array([310, 22, 310, 22]), mass=np.array([0.4976, 0, 0.4976, 0])
    )
    no_material = replace(DETECTORS["clic"], tracker_x0=0.0, tracker_lambda=0.0)
    hits = detector_response(both, no_material, np.random.default_rng(1)).hits
    assert set(hits.link_particle.tolist()) == {1, 2}


def _interleave(first, second):
    names = ("event", "pdg", "status", "charge", "mass", "momentum", "vertex", "time", "endpoint", "has_decay")
    columns = {n: np.stack([getattr(first, n), getattr(second, n)], axis=1).reshape(-1, *getattr(first, n).shape[1:]) for n in names}
    return replace(first, **columns)


def test_third_detector_is_one_more_table() -> None:
    """Catches: numbers of the two detectors hidden in the code."""
    small = replace(
        DETECTORS["clic"], name="small", b_field=5.0, ecal_radius=1200.0, ecal_z=1800.0, hcal_sections=20, hcal_thickness=1060.0
    )
    events = detector_response(particle_gun(22, 0.0, 0.0, np.full(200, 10.0)), small, np.random.default_rng(3))
    assert events.clusters.energy.sum() / 2000 == pytest.approx(1.0, abs=0.05)
    position = events.hits.position
    inside = (np.hypot(position[:, 0], position[:, 1]) > 1200.0) | (np.abs(position[:, 2]) > 1800.0)
    assert inside.all()


def test_shallower_calorimeter_leaks_more() -> None:
    """Catches: energy kept that should leave through the back."""
    response = []
    for sections in (30, 8):
        model = replace(DETECTORS["clic"], hcal_sections=sections, hcal_thickness=53.0 * sections, hcal_lambda=0.25 * sections)
        events = detector_response(particle_gun(130, 0.4976, 0, np.full(150, 80.0)), model, np.random.default_rng(3))
        response.append(events.hits.energy.sum() / (150 * 80.0))
    assert response[1] < response[0] - 0.1


def test_tracks_are_not_in_the_order_of_their_particles(ttbar) -> None:
    """Catches: truth in the order of a collection: siblings side by side, the hard process first."""
    tracks = ttbar.tracks
    same_event = np.diff(tracks.event) == 0
    assert (np.diff(np.abs(tracks.parameters[:, 2]))[same_event] >= 0).all()
    for owner in (tracks.particle, _largest_particle(ttbar)):
        event = ttbar.particles.event[owner]
        ascends = (np.diff(owner) > 0)[np.diff(event) == 0]
        assert ascends.mean() == pytest.approx(0.5, abs=0.05)


def _largest_particle(events) -> np.ndarray:
    """The particle that left most of each cluster's first hit."""
    first_hit = events.clusters.member[np.cumsum(events.clusters.num_hits) - events.clusters.num_hits]
    order = np.lexsort((events.hits.link_energy, events.hits.link_hit))
    owner = np.empty(len(events.hits.energy), np.int64)
    owner[events.hits.link_hit[order]] = events.hits.link_particle[order]
    return owner[first_hit]


def test_energies_do_not_spell_what_showered() -> None:
    """Catches: showers of equal deposits: photons' energies were multiples of one number, neutral hadrons' of another."""
    for pdg, mass in ((22, 0.0), (130, 0.4976)):
        rng = np.random.default_rng(4)
        energy = np.round(detector_response(particle_gun(pdg, mass, 0, np.full(400, 2.0)), DETECTORS["clic"], rng).clusters.energy, 6)
        assert len(energy) > 300
        assert len(np.unique(energy)) > 0.98 * len(energy)


def test_covariance_says_no_more_than_the_measurement() -> None:
    """Catches: errors computed from the true momentum, or with the truth about electrons: a network would read both off."""
    curvature, relative_error = [], []
    for pdg, mass in ((13, 0.1057), (11, 0.000511)):
        rng = np.random.default_rng(1)
        no_material = replace(DETECTORS["clic"], tracker_x0=0.0, tracker_lambda=0.0)
        tracks = detector_response(particle_gun(pdg, mass, -1, rng.uniform(0.5, 10, 2000)), no_material, rng).tracks
        central = np.abs(np.arcsinh(tracks.parameters[:, 4])) < 0.18  # one bin of the table of resolutions
        curvature.append(np.abs(tracks.parameters[central, 2]))
        relative_error.append(np.sqrt(tracks.covariance[central, 5]) / curvature[-1])
    order = np.argsort(np.concatenate(curvature))
    assert len(order) > 400
    assert (np.diff(np.concatenate(relative_error)[order]) <= 1e-12).all(), "not a function of the measured curvature alone"


def test_every_energy_has_its_luminous_region() -> None:
    """Catches: events at 365 GeV from the beam spot of 240 GeV, a third as wide; an energy that has none."""
    for detector in DETECTORS.values():
        assert set(detector.sqrt_s.values()) == set(detector.beam_sigma)
    for process, width in (("ttbar", 0.027), ("ZH", 0.010)):
        particles = sample(DETECTORS["cld"], process, None, None, 200).particles
        first = np.searchsorted(particles.event, np.arange(200))
        assert particles.vertex[first, 0].std() == pytest.approx(width, rel=0.2)


@pytest.mark.parametrize("detector", ["clic", "cld"])
def test_pulls_of_all_tracks_of_events(detector: str) -> None:
    """Catches: a covariance that holds for central muons only, and not for displaced, forward or slow hadrons."""
    events = sample(DETECTORS[detector], "ttbar", None, None, 60, seed=5)
    tracks = events.tracks
    residual = tracks.parameters - tracks.true_parameters
    residual[:, 1] = (residual[:, 1] + np.pi) % (2 * np.pi) - np.pi
    is_electron = np.abs(events.particles.pdg[tracks.particle]) == 11
    pull = (residual / np.sqrt(tracks.covariance[:, [0, 2, 5, 9, 14]]))[~is_electron & (tracks.confused_with < 0)]
    np.testing.assert_allclose(pull.std(axis=0), 1.0, atol=0.1)


def test_impact_parameter_resolution_depends_on_the_first_layer() -> None:
    """Catches: one resolution for all tracks: one that begins in the outer tracker is as good as one of the vertex detector."""
    gun = particle_gun(211, 0.13957, 1, np.full(600, 5.0))
    widths = []
    for radius in (0.0, 40.0, 150.0):
        moved = replace(gun, vertex=radius * gun.momentum / np.hypot(gun.momentum[:, :1], gun.momentum[:, 1:2]))
        tracks = detector_response(moved, DETECTORS["cld"], np.random.default_rng(1)).tracks
        assert len(tracks) > 200
        widths.append(np.median(np.sqrt(tracks.covariance[:, 0])))
    assert widths[0] < 0.5 * widths[1] < 0.25 * widths[2]


def test_efficiency_falls_where_it_should(ttbar) -> None:
    """Catches: an efficiency that is flat in pt, angle or displacement."""
    for name, (_, values) in efficiency(ttbar).items():
        if name.startswith("pt"):
            assert values[0] < 0.9 < 0.95 < min(values[2:])
        elif name.startswith("angle"):
            assert values[0] < 0.5 < 0.9 < min(values[2:])
        else:
            assert values[-1] < 0.7 < 0.95 < values[0]


def test_interactions_in_the_material_have_the_rates_of_the_table() -> None:
    """Catches: material counted twice, or lost at an angle. 10% X0 and 2.5% lambda at normal incidence, 1.5 times as much on average."""
    model = DETECTORS["clic"]
    converted, interacted, radiated = interaction_rates(model, 3000)
    rng = np.random.default_rng(0)
    path = 1.0 / np.sqrt(1.0 - rng.uniform(-0.95, 0.95, 100_000) ** 2)
    # not all: a layer that a particle would cross beyond the end of the tracker does nothing
    assert 0.8 < converted / np.mean(1.0 - np.exp(-7.0 / 9.0 * model.tracker_x0 * path)) < 1.18
    assert 0.75 < interacted / np.mean(1.0 - np.exp(-model.tracker_lambda * path)) < 1.25
    assert 0.3 < radiated < 0.5
    assert interaction_rates(replace(model, tracker_x0=0.0, tracker_lambda=0.0), 50) == (0.0, 0.0, 0.0)


def test_electrons_radiate() -> None:
    """Catches: photons that appear without their energy leaving the electron, whose track and shower are as if nothing had happened."""
    gun = particle_gun(11, 0.000511, -1, np.full(1500, 20.0))
    events = detector_response(gun, replace(DETECTORS["cld"], tracker_lambda=0.0), np.random.default_rng(1))
    particles, tracks = events.particles, events.tracks
    photon = np.flatnonzero(particles.pdg == 22)
    assert (particles.parent == np.flatnonzero(particles.status == 1)[particles.event[particles.child]]).all()
    assert (events.simulator_status[photon] & (1 << 28) != 0).all()
    lost = np.zeros(1500)
    lost[particles.event[photon]] = particles.energy[photon] / 20.0
    in_hits = np.bincount(particles.event[events.hits.link_particle], weights=events.hits.link_energy, minlength=1500)
    by_photon = np.isin(events.hits.link_particle, photon)
    of_photon = np.bincount(
        particles.event[events.hits.link_particle[by_photon]], weights=events.hits.link_energy[by_photon], minlength=1500
    )
    assert np.median(in_hits) == pytest.approx(20.0, rel=0.05)
    hard = (lost > 0.3) & (in_hits > 10)
    np.testing.assert_allclose((of_photon / in_hits)[hard].mean(), lost[hard].mean(), rtol=0.15)
    ratio = np.abs(tracks.true_parameters[:, 2] / tracks.parameters[:, 2])  # measured pt over true
    assert np.median(ratio[lost[tracks.event] > 0.3]) < 0.8
    assert np.median(ratio[lost[tracks.event] == 0]) == pytest.approx(1.0, abs=0.02)


def test_shallower_detector_leaks_at_high_energy() -> None:
    """Catches: showers whose length does not grow with energy, so that CLD's thinner HCAL makes no difference."""
    responses = {name: [hadron_response(model, energy, 600) for energy in (5.0, 150.0)] for name, model in DETECTORS.items()}
    low, high = ([responses[name][k] for name in ("clic", "cld")] for k in (0, 1))
    assert abs(low[0][0] - low[1][0]) < 0.03
    assert high[1][0] < high[0][0] - 0.005
    assert high[1][2] > high[0][2]


@pytest.mark.parametrize("detector", ["clic", "cld"])
def test_muons_leave_hits_in_the_chambers(detector: str) -> None:
    """Catches: chambers that nothing reaches, that slow muons and hadrons reach, or whose hits are in no cluster."""
    model = DETECTORS[detector]
    hits = {}
    for pdg, mass, energy in ((13, 0.1057, 20.0), (13, 0.1057, 2.0), (211, 0.1396, 20.0)):
        gun = particle_gun(pdg, mass, -1, np.full(200, energy))
        events = detector_response(gun, model, np.random.default_rng(1))
        in_chambers = events.hits.collection == 4
        hits[pdg, energy] = np.bincount(events.hits.event[in_chambers], minlength=200)
        if (pdg, energy) == (13, 20.0):
            assert (events.hits.cluster[in_chambers] >= 0).mean() > 0.9
            x, y, z = events.hits.position[in_chambers].T
            assert (np.hypot(x, y) > 4000).sum() + (np.abs(z) > 3700).sum() > 0
            assert ((np.hypot(x, y) > 4400) | (np.abs(z) > 3700)).all()
    assert 4.5 < hits[13, 20.0].mean() <= 6
    assert hits[13, 2.0].sum() == 0
    assert hits[211, 20.0].mean() < 0.1


def test_hits_come_in_time() -> None:
    """Catches: times with the flight of light left in, one hit earlier than light (back or sideways in a shower), or after the readout."""
    hits = {}
    for pdg, mass, charge, energy in ((22, 0.0, 0.0, 10.0), (130, 0.4976, 0.0, 10.0), (13, 0.1057, -1.0, 10.0), (2112, 0.93957, 0.0, 1.2)):
        gun = particle_gun(pdg, mass, charge, np.full(300, energy))
        hits[pdg] = detector_response(gun, DETECTORS["clic"], np.random.default_rng(1)).hits
        assert hits[pdg].time.min() > -1e-6
        assert hits[pdg].time.max() <= 10.0
    assert np.median(hits[22].time) == pytest.approx(0.0, abs=0.1)
    assert np.percentile(hits[13].time[hits[13].collection == 4], 90) < 1.0
    assert np.median(hits[2112].time) > 2.0


def test_hits_of_events_are_behind_light_from_their_vertex(ttbar) -> None:
    """Catches: times from a path that a shower's, a secondary's or a decay product's way is longer than."""
    assert ttbar.hits.time.min() > -4 * 0.050 / 299.8, "more than the luminous region allows"
    assert ttbar.hits.time.max() <= 10.0


def test_what_comes_late_is_little() -> None:
    """Catches: a readout window that takes energy from ordinary hadrons, not only from the slow."""
    gun = particle_gun(130, 0.4976, 0.0, np.full(300, 10.0))
    energy = detector_response(gun, DETECTORS["clic"], np.random.default_rng(1)).hits.energy.sum() / 3000.0
    assert energy == pytest.approx(1.0, abs=0.04)
    late = replace(gun, time=np.full(300, 12.0))
    assert len(detector_response(late, DETECTORS["clic"], np.random.default_rng(1)).hits.time) == 0


RESOLUTIONS = [  # detector, PDG, mass, charge, energy, bounds of abs(eta), sigma(pt)/pt: a pt (+) b of the table at the middle of the bin
    ("clic", 211, 0.13957, 1, 5.0, (0.0, 0.18), 2.1e-3),
    ("clic", 13, 0.1057, -1, 200.0, (0.0, 0.18), 3.4e-3),
    ("clic", 211, 0.13957, 1, 5.0, (0.45, 0.88), 2.6e-3),
    ("cld", 211, 0.13957, 1, 5.0, (0.0, 0.18), 2.9e-3),
    ("clic", 11, 0.000511, -1, 5.0, (0.0, 0.18), 2.9e-3),
    ("clic", 11, 0.000511, -1, 5.0, (0.88, 1.32), 6.6e-3),
    ("cld", 11, 0.000511, -1, 5.0, (0.0, 0.18), 3.65e-3),
]


@pytest.mark.parametrize(("detector", "pdg", "mass", "charge", "energy", "eta", "wanted"), RESOLUTIONS)
def test_momentum_resolution_has_the_size_of_the_cards(
    detector: str, pdg: int, mass: float, charge: int, energy: float, eta: tuple[float, float], wanted: float
) -> None:
    """Catches: a resolution that is wrong by a factor, which pulls do not show: their numbers are on both sides."""
    tracks = _central(detector, pdg, mass, charge, energy, np.tanh(eta))
    ratio = (tracks.true_parameters[:, 2] / tracks.parameters[:, 2])[tracks.num_hits >= np.median(tracks.num_hits)]
    assert ratio.std() == pytest.approx(wanted, rel=0.08)


@pytest.mark.parametrize(
    ("detector", "energy", "wanted"),
    [("clic", 1.0, 0.0151), ("clic", 100.0, 0.0020), ("cld", 1.0, 0.0141), ("cld", 10.0, 0.00244), ("cld", 100.0, 0.0020)],
)
def test_impact_parameter_resolution_has_the_size_of_the_table(detector: str, energy: float, wanted: float) -> None:
    """Catches: impact parameters that are too good or too bad by a factor. 2 um (+) 15 (clic) or 14 um GeV (cld) / (p sin^1.5)."""
    tracks = _central(detector, 13, 0.1057, -1, energy, (0.0, 0.1))
    assert (tracks.parameters[:, 0] - tracks.true_parameters[:, 0]).std() == pytest.approx(wanted, rel=0.08)
    if energy == 1.0:  # 30 degrees from the beam: 2.8 times as much
        tracks = _central(detector, 13, 0.1057, -1, energy, (0.865, 0.867))
        assert (tracks.parameters[:, 0] - tracks.true_parameters[:, 0]).std() == pytest.approx(2.83 * wanted, rel=0.1)


def _central(detector: str, pdg: int, mass: float, charge: int, energy: float, cosine: tuple[float, float]):
    """Tracks of 1500 particles between two abs(cos theta), without material."""
    gun = particle_gun(pdg, mass, charge, np.full(1500, energy))
    momentum = np.linalg.norm(gun.momentum, axis=1)
    z = momentum * np.random.default_rng(2).uniform(*cosine, 1500)
    transverse = gun.momentum[:, :2] / np.hypot(*gun.momentum[:, :2].T)[:, None] * np.sqrt(momentum**2 - z**2)[:, None]
    model = replace(DETECTORS[detector], tracker_x0=0.0, tracker_lambda=0.0)
    gun = replace(gun, momentum=np.column_stack([transverse, z]))
    tracks = detector_response(gun, model, np.random.default_rng(1)).tracks
    assert len(tracks) > 1300
    return tracks


@pytest.mark.parametrize("detector", ["clic", "cld"])
def test_material_lies_where_the_layers_have_it(detector: str) -> None:
    """Catches: all layers alike, with half of all conversions in a vertex detector of 1.2 of 10% X0; none on the way to the endcaps."""
    model = DETECTORS[detector]
    assert sum(model.material_shares) == pytest.approx(1.0)
    events = detector_response(particle_gun(22, 0.0, 0.0, np.full(8000, 10.0)), model, np.random.default_rng(1))
    particles = events.particles
    electrons = particles.pdg == 11
    radius = np.hypot(*particles.vertex[electrons, :2].T)
    assert len(radius) > 600
    assert (radius < 62).mean() == pytest.approx(0.15, abs=0.04)
    forward = np.abs(particles.vertex[electrons, 2]) > 1.6 * radius
    assert 0.1 < (forward & (radius > 62)).mean() < 0.5


@pytest.mark.parametrize("detector", ["clic", "cld"])
def test_states_of_tracks_do_not_tell_what_became_of_the_particle(detector: str) -> None:
    """Catches: a state at the calorimeter of those particles only that got there, or on the true path."""
    model = DETECTORS[detector]
    events = sample(model, "ttbar", None, None, 60, seed=7)
    tracks = events.tracks
    reaches = np.isfinite(tracks.calorimeter_phi)
    pt = CURVATURE * model.b_field / np.abs(tracks.parameters[:, 2])
    prompt = np.abs(tracks.parameters[:, 0]) < 1.0
    assert reaches[prompt & (pt > CURVATURE / 2 * model.b_field * model.ecal_radius * 1.02)].all()
    ended = (events.simulator_status[tracks.particle] & (1 << 27)) != 0
    assert ended[reaches].mean() > 0.01
    x, y, z = tracks.calorimeter[reaches].T
    on_face = np.isclose(np.hypot(x, y), model.ecal_radius, atol=1e-3) | np.isclose(np.abs(z), model.ecal_z, atol=1e-3)
    assert on_face.all()
    # both states follow from the measured parameters and the path along the beam
    for position, change in ((tracks.calorimeter, tracks.calorimeter_phi), (tracks.first_hit, tracks.first_phi)):
        _, _, omega, z0, tan_lambda = tracks.parameters.T
        usable = np.isfinite(change) & (np.abs(tan_lambda) > 0.1)
        expected = -omega * (position[:, 2] - z0) / tan_lambda
        np.testing.assert_allclose(change[usable], expected[usable], rtol=1e-4, atol=1e-6)


def test_flavours_differ_in_their_impact_parameters(ttbar) -> None:
    """Catches: impact parameters that no flavour tagging can use: as many displaced tracks in light jets as in b jets."""
    measured = impact_parameters(ttbar, extracted(ttbar, "clic"))
    assert measured.pull.std() == pytest.approx(1.0, abs=0.05)
    b, c, light = (np.mean(measured.significance[np.isin(measured.flavour, codes)] > 3) for codes in FLAVOURS.values())
    assert 0.5 < b < 0.75
    assert light < 0.1 < c < b


def test_jets_of_tops_and_origins_of_their_particles(ttbar) -> None:
    """Catches: labels that rest on what Pythia's records do not have: roles given twice or never, b jets without particles of B hadrons."""
    columns = extracted(ttbar, "clic")
    jets, particles = (columns[name] for name in ("gen_jet", "gen_particle"))
    event = np.repeat(np.arange(60), np.diff(jets.offsets))
    counts = {role: np.bincount(event[jets.fields["top_role"] == role], minlength=60) for role in TOP_ROLES}
    for sign in (1, -1):
        assert counts[sign].max() == 1
        assert counts[sign].mean() > 0.75
        assert counts[2 * sign].max() == 2
        assert 0.4 < (counts[2 * sign] > 0).mean() < 0.9  # two thirds of the W, less those whose jets are another parton's
    flavour = jets.fields["flavour"]
    assert (flavour[np.abs(jets.fields["top_role"]) == 1] == 5).mean() > 0.95
    jet = jets.offsets[:-1][np.repeat(np.arange(60), np.diff(particles.offsets))] + particles.fields["jet_idx"]
    is_charged = (particles.fields["charge"] != 0) & (particles.fields["jet_idx"] >= 0)
    origin = {name: particles.fields["origin"][is_charged & np.isin(flavour[jet], codes)] for name, codes in FLAVOURS.items()}
    assert np.isin(origin["b"], (FROM_B, FROM_D_OF_B)).mean() > 0.5
    assert (origin["c"] == FROM_D).mean() > 0.25
    assert np.isin(origin["light"], (PRIMARY, OTHER_SECONDARY)).mean() > 0.98


def test_detectors_differ_by_their_numbers_only() -> None:
    """Catches: code that asks for a detector's name, in the response, the clustering or the particle flow."""
    gun = particle_gun(211, 0.13957, 1, np.full(50, 5.0))
    models = (DETECTORS["cld"], replace(DETECTORS["cld"], name="clic"))
    first, second = (detector_response(gun, model, np.random.default_rng(1)) for model in models)
    np.testing.assert_array_equal(first.hits.energy, second.hits.energy)
    np.testing.assert_array_equal(first.tracks.parameters, second.tracks.parameters)
    np.testing.assert_array_equal(first.candidates.energy, second.candidates.energy)


@pytest.mark.parametrize("energy", [5.0, 20.0])
def test_hadrons_have_the_resolution_of_the_table(energy: float) -> None:
    """Catches: a resolution that the spots of a shower add to, or that particle flow assumes and showers do not have."""
    model = replace(DETECTORS["clic"], hcal_sections=31, hcal_thickness=4000.0, hcal_lambda=20.0)  # nothing leaks
    mean, width, _ = hadron_response(model, energy, 1500)
    wanted = np.sqrt(shower_variance(energy, model.hcal_stochastic, model.hcal_uncompensated, model.hcal_constant)) / energy
    assert mean == pytest.approx(1.0, abs=0.03)
    assert width == pytest.approx(wanted, rel=0.08)
    # CALICE's stack with software compensation, arXiv:1207.4210: 45% / sqrt(E), less good below 20 GeV; the card's constant term: 5%
    assert width == pytest.approx({5.0: 0.250, 20.0: 0.112}[energy], rel=0.1)
