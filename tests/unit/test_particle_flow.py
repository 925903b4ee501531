"""Rule-based particle flow and what it needs of the clustering: single particles, overlaps, invariances, the written collection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfscale.edm4hep.candidates import baseline_collection
from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.shards.events import extract_events
from pfscale.simulation import cells
from pfscale.simulation.association import HADRON_WEIGHTS
from pfscale.simulation.calibration import hadron_weights
from pfscale.simulation.detectors import DETECTORS, DetectorModel, MomentumResolution
from pfscale.simulation.generator import Particles
from pfscale.simulation.helix import to_calorimeter
from pfscale.simulation.particle_flow import Candidates, find_candidates
from pfscale.simulation.response import DetectorEvents, detector_response
from pfscale.simulation.samples import particle_gun, sample
from pfscale.simulation.shower_shapes import ClusterHits
from pfscale.simulation.writer import EventFile

MASS = {22: 0.0, 211: 0.13957, -11: 0.000511, -13: 0.10566, 130: 0.49761}
CHARGE = {22: 0.0, 211: 1.0, -11: 1.0, -13: 1.0, 130: 0.0}
THIRD = replace(
    DETECTORS["clic"], name="third", b_field=3.0, ecal_radius=1800.0, ecal_z=2400.0, ecal_sections=15, ecal_mip=0.016, hcal_sections=25,
    hcal_thickness=1300.0, hcal_lambda=6.2, hcal_x0=57.0, hcal_cell=40.0, muon_layers=0,
)  # fmt: skip
MODELS = (*DETECTORS.values(), THIRD)
by_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)


def without_material(model: DetectorModel) -> DetectorModel:
    return replace(model, tracker_x0=0.0, tracker_lambda=0.0)


def gun(model: DetectorModel, pdg: int, energy: float, num: int = 150, seed: int = 1) -> DetectorEvents:
    """One particle per event."""
    particles = particle_gun(pdg, MASS[pdg], CHARGE[pdg], np.full(num, energy), seed=seed)
    return detector_response(particles, without_material(model), np.random.default_rng(seed))


def pion_and_photon(model: DetectorModel, pion: float, photon: float, distance: float, num: int = 150) -> DetectorEvents:
    """A pion and a photon per event, `distance` mm apart where they enter the barrel."""
    rng = np.random.default_rng(4)
    pions = particle_gun(211, MASS[211], 1.0, np.full(num, pion), seed=4)
    phi = rng.uniform(-np.pi, np.pi, num)
    z = rng.uniform(-0.5, 0.5, num)
    momentum = np.sqrt(pion**2 - MASS[211] ** 2) * np.stack([np.cos(phi), np.sin(phi), z], axis=1) / np.hypot(1, z)[:, None]
    pions = replace(pions, momentum=momentum)
    point = to_calorimeter(pions.vertex, momentum, pions.charge, model.b_field, model.ecal_radius, model.ecal_z)[0]
    direction = point + distance * np.array([0.0, 0.0, 1.0])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    photons = replace(pions, pdg=np.full(num, 22), charge=np.zeros(num), mass=np.zeros(num), momentum=photon * direction)
    names = ("event", "pdg", "status", "charge", "mass", "momentum", "vertex", "time", "endpoint", "has_decay")
    both = {n: np.stack([getattr(pions, n), getattr(photons, n)], axis=1).reshape(2 * num, *getattr(pions, n).shape[1:]) for n in names}
    none = np.zeros(0, dtype=np.int64)
    particles = Particles(num_events=num, parent=none, child=none, **both)
    return detector_response(particles, without_material(model), np.random.default_rng(5))


def per_event(events: DetectorEvents, chosen: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Number, or sum of `values`, of the chosen candidates in each event."""
    weights = None if values is None else values[chosen]
    return np.bincount(events.candidates.event[chosen], weights=weights, minlength=events.particles.num_events)


def in_coverage(events: DetectorEvents) -> np.ndarray:
    """Events in which something was left in the calorimeter."""
    return np.bincount(events.clusters.event, minlength=events.particles.num_events) > 0


@by_model
@pytest.mark.parametrize("energy", [2.0, 20.0, 60.0, 150.0])
def test_photon_alone(model: DetectorModel, energy: float) -> None:
    """Catches: photons taken for hadrons or split in two, a calibration of photons that is off, cuts in sections of one detector or of
    one energy: the mean depth grows with the logarithm of the energy."""
    events = gun(model, 22, energy)
    found = events.candidates
    seen = in_coverage(events)
    assert seen.mean() > 0.95
    assert np.mean(per_event(events, found.energy > 0.02 * energy)[seen] == 1) > 0.95
    assert np.mean(per_event(events, (found.pdg == 22) & (found.energy > 0.9 * energy - 0.5))[seen] == 1) > 0.95
    assert per_event(events, found.pdg != 22, found.energy)[seen].mean() < 0.03 * energy
    assert per_event(events, found.pdg == 22, found.energy)[seen].mean() == pytest.approx(energy, rel=0.03)


@by_model
@pytest.mark.parametrize("energy", [3.0, 20.0])
def test_charged_pion_alone(model: DetectorModel, energy: float) -> None:
    """Catches: fragments of a hadron's shower counted on top of its track: the momentum twice."""
    events = gun(model, 211, energy, 400)
    found = events.candidates
    charged = found.charge != 0
    assert charged.sum() == len(events.tracks)
    np.testing.assert_allclose(np.linalg.norm(found.momentum[charged], axis=1), np.sqrt(energy**2 - MASS[211] ** 2), rtol=0.35)
    assert np.mean(found.pdg[charged] == 211) > 0.95
    tracked = np.bincount(events.tracks.event, minlength=400) == 1
    extra = per_event(events, ~charged, found.energy)[tracked]
    assert np.mean(extra < 0.05 * energy) > 0.85
    assert extra.mean() < 0.06 * energy


def test_pion_and_photon_apart() -> None:
    """Catches: a photon swallowed by a charged hadron that is not near."""
    for model in DETECTORS.values():
        events = pion_and_photon(model, 10.0, 5.0, 400.0, num=600)
        found = events.candidates
        assert np.mean(per_event(events, found.pdg == 22) == 1) > 0.85
        assert per_event(events, found.pdg == 22, found.energy).mean() == pytest.approx(5.0, rel=0.05)
        assert per_event(events, found.charge == 0, found.energy).mean() == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize("distance", [0.0, 30.0, 60.0])
def test_photon_on_top_of_a_pion(distance: float) -> None:
    """Catches: the energy above a track's momentum lost, or the whole cluster added to the track."""
    for model in DETECTORS.values():
        events = pion_and_photon(model, 8.0, 15.0, distance)
        found = events.candidates
        tracked = np.bincount(events.tracks.event, minlength=150) == 1
        neutral = per_event(events, found.charge == 0, found.energy)[tracked]
        assert neutral.mean() == pytest.approx(15.0, rel=0.08)
        assert np.median(np.abs(neutral - 15.0)) < 1.6
        if distance > 0:
            assert np.mean(per_event(events, found.pdg == 22)[tracked] >= 1) > 0.6


def test_photon_beside_a_pion_has_its_own_cluster() -> None:
    """Catches: clusters that merge photons with hadrons six cells away, which nothing after them can take apart as well."""
    events = pion_and_photon(DETECTORS["clic"], 8.0, 15.0, 60.0)
    nearly_all = np.zeros(150)
    np.maximum.at(nearly_all, events.clusters.event, np.where(np.abs(events.clusters.energy - 15.0) < 2.0, 1.0, 0.0))
    assert nearly_all.mean() > 0.7


@by_model
def test_muon(model: DetectorModel) -> None:
    """Catches: a muon's ionisation taken for a neutral hadron's, a table's layers in the code, chambers asked of a detector without."""
    events = gun(model, -13, 20.0)
    found = events.candidates
    central = np.abs(found.momentum[:, 2]) < 0.8 * np.linalg.norm(found.momentum, axis=1)
    assert np.mean(found.pdg[(found.charge != 0) & central] == -13) > 0.9
    assert per_event(events, found.charge == 0, found.energy).mean() < 0.15


def test_pions_are_not_muons() -> None:
    """Catches: a muon rule that needs no depth."""
    for model in DETECTORS.values():
        assert np.mean(np.abs(gun(model, 211, 10.0, 400).candidates.pdg) == 13) < 0.02  # 0.4% decay to one on their way


@pytest.mark.parametrize("distance", [0.0, 20.0])
def test_photon_that_a_soft_pion_grazes(distance: float) -> None:
    """Catches: a photon taken as a fragment by a track that enters no cluster, and lost with it."""
    for model in DETECTORS.values():
        events = pion_and_photon(model, 3.0, 10.0, distance, 300)
        found = events.candidates
        tracked = np.bincount(events.tracks.event, minlength=300) == 1
        neutral = per_event(events, found.charge == 0, found.energy)[tracked]
        assert neutral.mean() == pytest.approx(10.0, rel=0.07)
        assert np.mean(neutral < 3.0) < 0.01


def test_photon_on_top_of_a_pion_has_its_own_scale() -> None:
    """Catches: the hadrons' weights on the energy of a photon that a hadron's cluster hides."""
    for model in DETECTORS.values():
        events = pion_and_photon(model, 10.0, 60.0, 0.0, 300)
        found = events.candidates
        tracked = np.bincount(events.tracks.event, minlength=300) == 1
        neutral = per_event(events, found.charge == 0, found.energy)[tracked]
        assert np.median(neutral) == pytest.approx(60.0, rel=0.01)


@pytest.mark.parametrize("energy", [2.0, 10.0, 50.0])
def test_hadrons_are_not_photons(energy: float) -> None:
    """Catches: a cut that lets energetic photons pass, and hadrons with them."""
    for model in DETECTORS.values():
        for pdg in (211, 130):
            events = gun(model, pdg, energy, 600)
            photons = per_event(events, events.candidates.pdg == 22, events.candidates.energy)
            assert np.mean(photons > 0.5 * energy) < 0.05
            assert np.mean(np.abs(events.candidates.pdg) == 11) < 0.02


@by_model
@pytest.mark.parametrize("energy", [20.0, 60.0, 150.0])
def test_electron(model: DetectorModel, energy: float) -> None:
    """Catches: electrons called hadrons, or their shower counted again as a photon."""
    events = gun(model, -11, energy)
    found = events.candidates
    assert np.mean(found.pdg[found.charge != 0] == -11) > 0.93
    tracked = np.bincount(events.tracks.event, minlength=150) == 1
    assert per_event(events, found.charge == 0, found.energy)[tracked].mean() < 0.02 * energy


@by_model
def test_neutral_hadron(model: DetectorModel) -> None:
    """Catches: hadronic energies without calibration, neutral hadrons taken for photons."""
    events = gun(model, 130, 15.0)
    found = events.candidates
    assert per_event(events, found.pdg == 2112, found.energy).mean() > 0.8 * per_event(events, found.pdg > 0, found.energy).mean()
    assert per_event(events, found.pdg > 0, found.energy)[in_coverage(events)].mean() == pytest.approx(15.0, rel=0.06)
    assert (found.charge == 0).all()


@pytest.fixture(scope="module")
def ttbar() -> DetectorEvents:
    pytest.importorskip("pythia8mc")
    return sample(DETECTORS["clic"], "ttbar", None, None, 25)


def test_every_track_and_cluster_is_used_once(ttbar: DetectorEvents) -> None:
    """Catches: double counting, lost tracks; more than a neutral particle split off a cluster; relations across events."""
    found = ttbar.candidates
    unused = np.setdiff1d(np.arange(len(ttbar.tracks)), found.track_of[1])
    assert len(np.unique(found.track_of[1])) == len(found.track_of[1])
    assert len(unused) < 0.03 * len(ttbar.tracks)
    error = np.sqrt(ttbar.tracks.covariance[:, 5] * np.maximum(ttbar.tracks.chi2 / ttbar.tracks.ndf, 1.0)) / np.abs(
        ttbar.tracks.parameters[:, 2]
    )
    assert (error[unused] > 0.1).all(), "tracks that are good were lost"
    uses = np.bincount(found.cluster_of[1], minlength=len(ttbar.clusters.energy))
    assert (uses >= 1).all()
    twice = np.flatnonzero(uses == 2)
    assert (uses <= 2).all()
    assert 0 < len(twice) < 0.2 * len(uses)
    for cluster in twice:
        owners = found.cluster_of[0][found.cluster_of[1] == cluster]
        assert sorted((found.charge[owners] == 0).tolist()) == [False, True]
    np.testing.assert_array_equal(found.event[found.track_of[0]], ttbar.tracks.event[found.track_of[1]])
    np.testing.assert_array_equal(found.event[found.cluster_of[0]], ttbar.clusters.event[found.cluster_of[1]])
    assert (np.diff(found.event) >= 0).all()
    charged = np.bincount(found.track_of[0], minlength=len(found))
    np.testing.assert_array_equal(charged >= 1, found.charge != 0)


def test_energy_is_counted_once(ttbar: DetectorEvents) -> None:
    """Catches: an excess larger than what the calorimeter has beyond the tracks, energies that are not those of masses and momenta."""
    found = ttbar.candidates
    neutral = found.charge == 0
    num = ttbar.particles.num_events
    of_neutrals = np.bincount(found.event[neutral], weights=found.energy[neutral], minlength=num)
    of_clusters = np.bincount(ttbar.clusters.event, weights=ttbar.clusters.energy, minlength=num)
    assert (of_neutrals < max(HADRON_WEIGHTS) * of_clusters).all()
    free = np.bincount(found.cluster_of[0], weights=ttbar.clusters.energy[found.cluster_of[1]], minlength=len(found))
    assert (found.energy[neutral] <= max(HADRON_WEIGHTS) * free[neutral] + 1e-9 + 100.0 * _is_split(found)[neutral]).all()
    momentum = np.linalg.norm(found.momentum, axis=1)
    np.testing.assert_allclose(found.energy[~neutral], np.hypot(momentum, found.mass)[~neutral])
    np.testing.assert_allclose(found.energy[neutral], momentum[neutral])
    truth = ttbar.particles.energy[(ttbar.particles.status == 1) & ~np.isin(np.abs(ttbar.particles.pdg), (12, 14, 16))].sum()
    assert found.energy.sum() / truth == pytest.approx(1.0, abs=0.08)


def _is_split(found: Candidates) -> np.ndarray:
    twice = np.bincount(found.cluster_of[1])[found.cluster_of[1]] == 2
    return np.isin(np.arange(len(found)), found.cluster_of[0][twice])


def _inputs(events: DetectorEvents, model: DetectorModel) -> tuple[ClusterHits, np.ndarray]:
    """Hits of clusters with their sections, and the event of each cluster."""
    hits, member = events.hits, events.clusters.member
    front = np.array([0, 0, model.ecal_sections, model.ecal_sections, model.ecal_sections + model.hcal_sections])[hits.collection]
    section = (cells.cell_section(hits.cell) + front)[member]
    first = np.concatenate([[0], np.cumsum(events.clusters.num_hits)])
    return ClusterHits(first, hits.position[member], hits.energy[member], section), events.clusters.event


def _same(a: Candidates, b: Candidates, *, event_of_a: np.ndarray | None = None) -> None:
    """Asserts that both are the same candidates in any order; `event_of_a`: new number of each of a's events."""
    event = a.event if event_of_a is None else event_of_a[a.event]
    rows = [
        np.column_stack([e, np.round(c.energy, 9), c.pdg, np.round(c.momentum, 9), np.bincount(c.cluster_of[0], minlength=len(c))])
        for c, e in ((a, event), (b, b.event))
    ]
    np.testing.assert_allclose(*[r[np.lexsort(r.T[::-1])] for r in rows], atol=1e-6)


def test_nothing_depends_on_truth(ttbar: DetectorEvents) -> None:
    """Catches: particle numbers, true parameters or the truth of where a track reaches the calorimeter in the rules."""
    rng = np.random.default_rng(1)
    tracks = ttbar.tracks
    blind = replace(
        tracks,
        particle=rng.permutation(tracks.particle),
        true_parameters=np.full_like(tracks.true_parameters, np.nan),
        calorimeter=np.full_like(tracks.calorimeter, np.nan),
        calorimeter_phi=np.full_like(tracks.calorimeter_phi, np.nan),
        dedx=np.zeros_like(tracks.dedx),
        confused_with=np.full_like(tracks.confused_with, -1),
    )
    model = DETECTORS["clic"]
    _same(ttbar.candidates, find_candidates(blind, *_inputs(ttbar, model), model, 25))


def test_order_of_elements_changes_nothing(ttbar: DetectorEvents) -> None:
    """Catches: rules that depend on which track or cluster comes first (as the order of a collection may tell the truth)."""
    rng = np.random.default_rng(2)
    model = DETECTORS["clic"]
    hits, event = _inputs(ttbar, model)
    track_order = np.lexsort((rng.random(len(ttbar.tracks)), ttbar.tracks.event))
    tracks = replace(ttbar.tracks, **{name: getattr(ttbar.tracks, name)[track_order] for name in vars(ttbar.tracks)})
    order = np.lexsort((rng.random(len(event)), event))
    rows = np.concatenate([rng.permutation(np.arange(hits.first[c], hits.first[c + 1])) for c in order])
    first = np.concatenate([[0], np.cumsum(np.diff(hits.first)[order])])
    shuffled = ClusterHits(first, hits.position[rows], hits.energy[rows], hits.section[rows])
    _same(ttbar.candidates, find_candidates(tracks, shuffled, event[order], model, 25))


def test_order_of_events_changes_nothing(ttbar: DetectorEvents) -> None:
    """Catches: something kept from one event to the next."""
    model = DETECTORS["clic"]
    hits, event = _inputs(ttbar, model)
    new = 24 - np.arange(25)
    track_order = np.argsort(new[ttbar.tracks.event], kind="stable")
    tracks = replace(ttbar.tracks, **{name: getattr(ttbar.tracks, name)[track_order] for name in vars(ttbar.tracks)})
    tracks = replace(tracks, event=new[tracks.event])
    order = np.argsort(new[event], kind="stable")
    rows = np.concatenate([np.arange(hits.first[c], hits.first[c + 1]) for c in order])
    reordered = ClusterHits(
        np.concatenate([[0], np.cumsum(np.diff(hits.first)[order])]), hits.position[rows], hits.energy[rows], hits.section[rows]
    )
    _same(ttbar.candidates, find_candidates(tracks, reordered, new[event][order], model, 25), event_of_a=new)


def test_events_without_tracks_clusters_or_anything() -> None:
    """Catches: empty arrays that nobody thought of."""
    model = without_material(DETECTORS["clic"])
    only_neutrino = replace(particle_gun(12, 0.0, 0.0, np.full(3, 10.0)))
    assert len(detector_response(only_neutrino, model, np.random.default_rng(1)).candidates) == 0
    soft = detector_response(particle_gun(211, MASS[211], 1.0, np.full(20, 0.2)), model, np.random.default_rng(1))
    assert len(soft.candidates) >= len(soft.tracks) > 0


def test_bad_momentum_is_averaged_with_the_energy() -> None:
    """Catches: a track whose momentum means nothing (or has no end) overrides a calorimeter that knows better."""
    poor = (MomentumResolution(9.0, 0.0, 0.6, 0.6),)
    events = gun(replace(DETECTORS["clic"], momentum_resolution=poor), 211, 40.0, 300)
    found = events.candidates
    charged = found.charge != 0
    p = np.linalg.norm(found.momentum[charged], axis=1)
    of_track = 2.99792458e-4 * 4.0 / np.abs(events.tracks.parameters[:, 2]) * np.hypot(1.0, events.tracks.parameters[:, 4])
    assert np.median(np.abs(p - 40.0)) < 0.5 * np.median(np.abs(of_track - 40.0))


def test_hadron_weights_are_those_of_the_detectors() -> None:
    """Catches: weights that were not found again after the showers or the clustering changed."""
    for model in DETECTORS.values():
        np.testing.assert_allclose(hadron_weights(model, 200), HADRON_WEIGHTS, atol=0.03)


def test_hits_are_in_clusters(ttbar: DetectorEvents) -> None:
    """Catches: a halo that belongs to no cluster (real files have next to none), or one cluster per particle."""
    assert ttbar.clusters.energy.sum() / ttbar.hits.energy.sum() > 0.97
    assert 70 < len(ttbar.clusters.energy) / 25 < 120


def test_the_file_holds_the_candidates(ttbar: DetectorEvents, tmp_path: Path) -> None:
    """Catches: relations shifted by an event, a baseline that the table of detectors does not name, signs of PDG codes."""
    path = tmp_path / "clic_ttbar_1_00000.edm4hep.root"
    with EventFile(path, {"simulation": "builtin", "detector": "clic", "process": "ttbar"}) as file:
        file.extend(ttbar, first_number=0, run_number=0)
    detector = find_detector("clic")
    with open_source(str(path)) as source:
        assert baseline_collection(source, detector) == "RuleBasedPFOs"
        rows = extract_events(source, detector, 0, 25, with_truth=True).table.to_pylist()
    found = ttbar.candidates
    first_track, first_cluster = (np.searchsorted(e, np.arange(25)) for e in (ttbar.tracks.event, ttbar.clusters.event))
    number = 0
    for event, row in enumerate(rows):
        for candidate in row["baseline"]:
            assert candidate["pdg"] == found.pdg[number]
            assert candidate["energy"] == pytest.approx(found.energy[number], rel=1e-5)
            assert (candidate["px"], candidate["pz"]) == pytest.approx(tuple(found.momentum[number, [0, 2]]), abs=1e-3)
            for name, pairs, first in (("track_index", found.track_of, first_track), ("cluster_index", found.cluster_of, first_cluster)):
                assert sorted(candidate[name]) == sorted((pairs[1][pairs[0] == number] - first[event]).tolist())
            for index in candidate["track_index"]:
                track = row["track"][index]
                if np.sqrt(track["cov"][5] * max(track["chi2"] / track["ndf"], 1.0)) < 0.01 * abs(track["omega"]):  # others are averaged
                    assert np.hypot(candidate["px"], candidate["py"]) == pytest.approx(track["pt"], rel=2e-3)
                    assert candidate["charge"] == np.sign(track["omega"])
            number += 1
    assert number == len(found)


def test_a_neutral_hadron_is_few_candidates() -> None:
    """Catches: each fragment of a neutral hadron's shower as a particle of its own, or its energy lost with them."""
    for model in DETECTORS.values():
        events = gun(model, 130, 20.0, 300)
        found, seen = events.candidates, in_coverage(events)
        assert per_event(events, found.pdg == 2112)[seen].mean() < 1.3
        assert per_event(events, found.charge == 0, found.energy)[seen].mean() == pytest.approx(20.0, rel=0.05)
