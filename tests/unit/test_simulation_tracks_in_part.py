"""Tracks that are not whole: decays in flight, wrong hits of close neighbours, short lever arms."""

from __future__ import annotations

import numpy as np
import pytest

from pfscale.simulation.decays import LENGTHS, MASSES, decay_in_flight
from pfscale.simulation.detectors import DETECTORS
from pfscale.simulation.response import detector_response
from pfscale.simulation.samples import particle_gun, sample
from pfscale.simulation.secondaries import undisturbed

pytest.importorskip("pythia8mc")


@pytest.mark.parametrize("pdg", [211, 321])
def test_mesons_decay_at_the_rate_of_their_lifetime(pdg: int) -> None:
    """Catches: a decay length in another unit, without the boost, or along the wrong path; products that do not add up to the meson."""
    momentum, num = 2.0, 20000
    gun = particle_gun(pdg, MASSES[pdg], 1.0, np.full(num, np.hypot(momentum, MASSES[pdg])))
    straight = np.array([momentum, 0.0, 0.0]) + np.zeros((num, 3))
    gun = type(gun)(**{**vars(gun), "momentum": straight})
    detector = DETECTORS["cld"]
    made, flight = decay_in_flight(gun, undisturbed(gun), detector, np.random.default_rng(1))
    path = detector.ecal_radius  # nearly straight at this momentum: 1% longer
    expected = 1.0 - np.exp(-path * MASSES[pdg] / (momentum * LENGTHS[pdg]))
    assert flight.has_decayed.sum() / num == pytest.approx(expected, rel=0.08)
    energy = np.zeros(num)
    np.add.at(energy, made.event[made.status == 0], made.energy[made.status == 0])
    np.testing.assert_allclose(energy[energy > 0], np.hypot(momentum, MASSES[pdg]), rtol=1e-6)
    assert (made.pdg[flight.has_decayed] == pdg).all()
    assert made.charge[made.status == 0].sum() == flight.has_decayed.sum(), "charge is not kept"


def test_a_short_track_has_a_larger_error() -> None:
    """Catches: a momentum as precise as that of a whole track from four hits in the vertex detector."""
    tracks = sample(DETECTORS["cld"], "ttbar", None, None, 40).tracks
    error = np.sqrt(tracks.covariance[:, 5]) / np.abs(tracks.parameters[:, 2])
    radius = np.hypot(tracks.first_hit[:, 0], tracks.first_hit[:, 1])
    inner_only = (tracks.confused_with >= 0) & (tracks.num_hits <= 6) & (radius < 60.0)
    assert inner_only.sum() > 10
    assert np.median(error[inner_only]) > 10 * np.median(error[tracks.num_hits >= 12])


def test_neighbours_spoil_tracks() -> None:
    """Catches: wrong hits that do not show in chi2, in lone tracks as well, or whose owner is the track's own particle."""
    tracks = sample(DETECTORS["cld"], "ttbar", None, None, 40).tracks
    spoilt = tracks.confused_with >= 0
    assert 0.02 < spoilt.mean() < 0.3
    assert np.median((tracks.chi2 / tracks.ndf)[spoilt]) > 5.0
    assert (tracks.chi2 / tracks.ndf)[~spoilt].mean() == pytest.approx(1.0, abs=0.1)
    assert (tracks.confused_with[spoilt] != tracks.particle[spoilt]).all()
    alone = detector_response(particle_gun(13, 0.1057, -1, np.full(500, 10.0)), DETECTORS["cld"], np.random.default_rng(1)).tracks
    assert (alone.confused_with < 0).all()
