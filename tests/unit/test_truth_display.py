"""The event display in the colours of the true particles, on real and on simulated events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.errors import InputFileError
from pfscale.report.truth_display import TruthView, curls, forward_ends, main, read_truth_view, truth_display

DATA = Path(__file__).parent.parent / "data"
CLD = DATA / "cld_zh_nunubb_240_1ev_podio1.2.root"


@pytest.fixture(scope="module")
def view() -> TruthView:
    with open_source(CLD) as source:
        return read_truth_view(source, find_detector("cld"), 0)


def test_real_event_is_drawn_whole(view: TruthView) -> None:
    """Catches: elements lost on the way to the figure, or numbers that are not those of the event."""
    figure, numbers = truth_display(view, title="CLD", detector="cld")
    assert (numbers["tracks"], numbers["clusters"], numbers["clusters_of_nobody"]) == (24, 48, 0)
    assert numbers["cluster_energy"] == pytest.approx(112.5, abs=0.1)
    assert len(figure.axes) == 2


def test_colours_follow_the_particles(view: TruthView) -> None:
    """Catches: particles numbered in another order than their energies, or elements given to the wrong ones."""
    assert (np.diff(view.particle_energy) <= 0).all()
    assert (view.track_particle >= 0).all()
    assert (view.particle_charge[view.track_particle] != 0).mean() > 0.85  # the others are electrons of converted photons
    eta = np.arcsinh(view.cluster_position[:, 2] / np.hypot(view.cluster_position[:, 0], view.cluster_position[:, 1]))
    hardest = view.track_particle[np.argmax(view.track_pt)]
    of_hardest = view.cluster_particle == hardest
    assert of_hardest.any()
    assert np.abs(eta[of_hardest] - np.arcsinh(view.track_parameters[np.argmax(view.track_pt), 4])).min() < 0.1


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a traceback for an entry that is not there; a command that draws nothing."""
    assert main([str(CLD), "--detector", "cld", "--output", str(tmp_path / "event.png")]) == 0
    assert (tmp_path / "event.png").stat().st_size > 20_000
    assert main([str(CLD), "--detector", "cld", "--entry", "7", "--output", str(tmp_path / "no.png")]) == 2
    assert "no entry 7" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["event.foo", "event", "missing/event.png", "."])
def test_an_output_that_cannot_be_written_is_a_mistake(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a traceback after the event has been read and drawn."""
    assert main([str(CLD), "--detector", "cld", "--output", str(tmp_path / output)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_tracks_end_where_their_helices_go(view: TruthView) -> None:
    """Catches: states that a file has extrapolated against the track's direction, drawn as they are: across the event."""
    assert np.isfinite(view.track_end).all(axis=1).sum() >= 20
    backwards = np.array([[0.0, 0.1, 3e-5, 0.0, 0.02]])  # omega of 20 GeV at 2 T: hardly bent
    np.testing.assert_allclose(forward_ends(backwards, np.array([[-2136.0, -240.0, -43.0]]))[0], [2141.0, 193.0, 43.0], atol=60.0)
    as_it_is = np.array([[2139.0, 145.0, 43.0]])
    np.testing.assert_array_equal(forward_ends(backwards, as_it_is), as_it_is)


def test_entry_must_be_there() -> None:
    """Catches: the last event drawn for entry -1."""
    with open_source(CLD) as source, pytest.raises(InputFileError, match="no entry -1"):
        read_truth_view(source, find_detector("cld"), -1)


@pytest.mark.parametrize(
    ("name", "detector"), [("clic_photon_gun_3ev_legacy.root", "clic"), ("idea_delphes_ww_240_10ev_no_metadata.root", "idea")]
)
def test_other_layouts(name: str, detector: str) -> None:
    """Catches: a display that needs tracks, hits, states at the calorimeter or a detector whose outline is known."""
    with open_source(DATA / name) as source:
        view = read_truth_view(source, find_detector(detector), 1)
    assert truth_display(view, detector=detector)[1]["clusters"] > 0


def test_curling_tracks_have_no_straight_line(view: TruthView) -> None:
    """Catches: a soft track that turns several times joined with where it ends up as if it had flown there."""
    is_curling = curls(view)
    assert 0 < is_curling.sum() < 5
    assert view.track_pt[is_curling].max() < 0.7  # GeV: in 2 T harder tracks reach the barrel
