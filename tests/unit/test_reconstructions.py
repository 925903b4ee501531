"""What an evaluation compares: rule-based candidates by element, bare clusters, the truth of whole events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.reader import open_source
from pfscale.physics.bootstrap import event_bootstrap
from pfscale.physics.evaluation import CALORIMETER_ONLY, MLPF, RULE_BASED, TRUTH_TARGETS
from pfscale.physics.rates import rate
from pfscale.shards.events import extract_events
from pfscale.shards.ragged import RaggedEvents, from_arrow
from pfscale.shards.schema import CLASSES
from pfscale.training.reconstructions import joined, reconstructions_of, truth_candidates

REAL = Path(__file__).parents[1] / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"


@pytest.fixture(scope="module")
def events() -> RaggedEvents:
    """A real CLD event, full simulation, twice."""
    with open_source(REAL) as source:
        table = extract_events(source, find_detector("cld"), 0, 1, with_truth=True).table
    import pyarrow as pa

    return from_arrow(pa.concat_tables([table, table]))


def test_rule_based_candidates_are_found_at_their_elements(events: RaggedEvents) -> None:
    """Would catch indices that count from the wrong element (clusters come after tracks), and a candidate at two elements."""
    found = reconstructions_of(events, truth_candidates(events), has_baseline=True).elements[RULE_BASED]
    for number, row in enumerate(events.table.to_pylist()):
        wanted: dict[int, dict] = {}
        for candidate in row["baseline"]:
            tracks, clusters = candidate["track_index"], candidate["cluster_index"]
            if tracks:
                element = max(tracks, key=lambda i: row["track"][i]["p"])
            elif clusters:
                element = len(row["track"]) + max(clusters, key=lambda i: row["cluster"][i]["energy"])
            else:
                continue
            if element not in wanted or candidate["energy"] > wanted[element]["energy"]:
                wanted[element] = candidate
        first = events.offsets[number]
        energies = found.pred_energy[first : events.offsets[number + 1]]
        assert dict(zip(np.flatnonzero(energies).tolist(), energies[energies > 0].tolist(), strict=True)) == pytest.approx(
            {element: candidate["energy"] for element, candidate in sorted(wanted.items())}
        )
        for element, candidate in wanted.items():
            name = CLASSES[found.pred_class[first + element]]
            is_track = element < len(row["track"])
            kinds = {22: "211" if is_track else "22", 11: "11" if is_track else "22", 13: "13" if is_track else "130"}
            assert name == kinds.get(abs(candidate["pdg"]), "211" if is_track else "130")


def test_perfect_candidates_have_no_particle_error(events: RaggedEvents) -> None:
    """Would catch predictions put at the wrong element: the targets given as a prediction must be found again, every one."""
    found = reconstructions_of(events, truth_candidates(events), has_baseline=True)
    elements = found.elements[MLPF]
    assert np.array_equal(elements.pred_class, elements.target_class)
    carried = elements.target_class > 0
    assert np.allclose(elements.pred_energy[carried], elements.target_energy[carried], rtol=1e-5)
    assert np.allclose(elements.pred_pt[carried], elements.target_pt[carried], rtol=1e-5)


def test_bare_clusters_are_massless_and_keep_the_energy(events: RaggedEvents) -> None:
    """Would catch the calorimeter-only reference made of tracks, or of transverse energies."""
    clusters = reconstructions_of(events, truth_candidates(events), has_baseline=False).candidates[CALORIMETER_ONLY]
    wanted = [c["energy"] for row in events.table.to_pylist() for c in row["cluster"]]
    assert np.allclose(clusters.energy, wanted)
    assert np.allclose(np.sqrt(clusters.px**2 + clusters.py**2 + clusters.pz**2), wanted, rtol=1e-5)


def test_chunks_joined_are_the_whole(events: RaggedEvents) -> None:
    """Would catch events of a second chunk that are counted with those of the first."""
    one = from_arrow(events.table.slice(0, 1))
    parts = [reconstructions_of(one, truth_candidates(one), has_baseline=True) for _ in range(2)]
    whole, both = reconstructions_of(events, truth_candidates(events), has_baseline=True), joined(parts)
    for key in (MLPF, TRUTH_TARGETS, RULE_BASED, CALORIMETER_ONLY):
        assert np.array_equal(whole.candidates[key].event, both.candidates[key].event)
        assert np.array_equal(whole.candidates[key].energy, both.candidates[key].energy)
    assert np.array_equal(whole.gen.jet_event, both.gen.jet_event)
    assert np.allclose(whole.gen.visible_energy, both.gen.visible_energy)
    assert np.array_equal(whole.elements[RULE_BASED].event, both.elements[RULE_BASED].event)


def test_visible_energy_is_that_of_gen_level_particles(events: RaggedEvents) -> None:
    """Would catch particles that decayed on their way counted beside what they decayed to."""
    gen = reconstructions_of(events, truth_candidates(events), has_baseline=False).gen
    wanted = [sum(p["energy"] for p in row["gen_particle"] if p["is_gen_level"]) for row in events.table.to_pylist()]
    assert np.allclose(gen.visible_energy, wanted)


def test_a_rate_of_zero_or_one_has_an_error() -> None:
    """Would catch the bootstrap's word for nothing seen in ten trials: 0 +- 0."""
    event, everything = np.arange(10), np.ones(10, bool)
    bootstrap = event_bootstrap(10, seed=1)
    assert rate(event, ~everything, everything, bootstrap).error == pytest.approx(1 / 11)
    assert rate(event, everything, everything, bootstrap).value == 1.0
    half = rate(event, event < 5, everything, bootstrap)
    assert half.error == pytest.approx(np.sqrt(0.25 / 10), rel=0.2)
    assert np.isnan(rate(event, everything, ~everything, bootstrap).value)


def test_an_element_without_features_of_its_own_stays_empty(events: RaggedEvents) -> None:
    """An event without any element has no candidates of any kind, and does not shift those of its neighbours."""
    one = from_arrow(events.table.slice(0, 1))
    offsets = np.array([0, 0, len(one.is_track)])
    empty_first = replace(one, offsets=offsets, uid=np.array([1, 2], np.uint64))
    targets = truth_candidates(empty_first)
    assert set(targets.event.tolist()) == {1}
