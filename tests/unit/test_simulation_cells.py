"""What the compiled loops of the simulation rest on: cells, sums of spots in a hash table, neighbours in a grid; against plain numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.simulation.cells import CELL_BITS, add_shower, cell_of, cell_position, cell_section, empty_deposits, geometry, with_room
from pfscale.simulation.detectors import DETECTORS
from pfscale.simulation.neighbours import close_pairs, make_grid, nearest_point, points_in_box

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("detector", ["clic", "cld"])
def test_centre_of_a_cell_lies_in_it(detector: str) -> None:
    """Catches: cells that are numbered and placed with different radii, so that showers are shifted or turned."""
    geo = geometry(DETECTORS[detector])
    rng = np.random.default_rng(1)
    points = rng.uniform(-4500, 4500, (20_000, 3))
    cells = np.array([cell_of(geo, *point) for point in points])
    inside = cells >= 0
    assert 0.2 < inside.mean() < 0.8
    centres = cell_position(geo, cells[inside])
    again = np.array([cell_of(geo, *centre) for centre in centres])
    # a cell at a border between calorimeters has its centre on the other side now and then
    assert (again == cells[inside]).mean() > 0.98
    distance = np.linalg.norm(centres - points[inside], axis=1)
    assert distance.max() < np.sqrt(3) * 60.0
    assert cell_section(cells[inside]).max() < 32


def test_cells_that_a_number_cannot_hold_are_refused() -> None:
    """Catches: a third detector with finer cells whose numbers collide without a word."""
    for change in ({"ecal_cell": 1.0}, {"hcal_cell": 2.0}, {"ecal_sections": 40}):
        with pytest.raises(AssertionError):
            geometry(replace(DETECTORS["clic"], **change))


@given(seed=seeds, num_events=st.integers(1, 4), num_showers=st.integers(1, 6), num_cells=st.integers(1, 3000))
@settings(max_examples=30, deadline=None)
def test_deposits_are_the_sums_of_their_spots(seed: int, num_events: int, num_showers: int, num_cells: int) -> None:
    """Catches: spots lost or given to another cell, shower or event when the table fills up, grows, or goes on to the next event."""
    rng = np.random.default_rng(seed)
    deposits = empty_deposits(8)
    expected: dict[tuple[int, int, int], float] = {}
    first: dict[tuple[int, int], float] = {}
    for shower in range(num_events * num_showers):
        event, start = shower // num_showers, rng.uniform(0, 10)
        num = int(rng.integers(0, 4000))
        spots = np.stack([rng.integers(0, num_cells, num) * 4097, rng.uniform(0.1, 1, num), rng.uniform(0, 3000, num)], axis=1)
        deposits = with_room(deposits, num)
        add_shower(deposits, spots, num, event, shower, start)
        for cell, energy, path in spots:
            key = (event, int(cell), shower)
            expected[key] = expected.get(key, 0.0) + energy
            first[key[:2]] = min(first.get(key[:2], np.inf), start + path / 299.792458)
    hits, parts = deposits.used[:2]
    key = deposits.hit_key[:hits]
    place = list(zip((key >> CELL_BITS).tolist(), (key & ((1 << CELL_BITS) - 1)).tolist(), strict=True))
    assert sorted(place) == sorted(first)
    np.testing.assert_allclose(deposits.hit_time[:hits], [first[at] for at in place])
    shower, energy = deposits.part_shower[:parts].tolist(), deposits.part_energy[:parts].tolist()
    of_hit = deposits.part_hit[:parts].tolist()
    found = {(*place[hit], owner): value for hit, owner, value in zip(of_hit, shower, energy, strict=True)}
    assert len(found) == parts
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[at] for at in expected], list(expected.values()))
    np.testing.assert_allclose(np.bincount(of_hit, weights=energy, minlength=hits), deposits.hit_energy[:hits])


@given(seed=seeds, num=st.integers(0, 200), radius=st.floats(5.0, 300.0))
@settings(max_examples=50, deadline=None)
def test_pairs_are_those_of_a_full_search(seed: int, num: int, radius: float) -> None:
    """Catches: pairs across a cube's border that are missed or come twice; an unwanted pair that is kept."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-400, 400, (num, 3))
    chosen = np.flatnonzero(rng.random(num) < 0.8)
    wanted = (rng.random(num) < 0.5).astype(np.int64)
    first, second, squared = close_pairs(xyz, chosen, wanted, radius)
    distance = np.linalg.norm(xyz[chosen][:, None] - xyz[chosen], axis=2)
    i, j = np.nonzero(np.triu(distance < radius, k=1))
    expected = {(a, b) for a, b in zip(chosen[i].tolist(), chosen[j].tolist(), strict=True) if wanted[a] or wanted[b]}
    found = [tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    np.testing.assert_allclose(squared, ((xyz[first] - xyz[second]) ** 2).sum(axis=1), rtol=1e-5)


@given(seed=seeds, num=st.integers(1, 100), size=st.floats(20.0, 200.0))
@settings(max_examples=50, deadline=None)
def test_nearest_and_boxed_points(seed: int, num: int, size: float) -> None:
    """Catches: a neighbour in the next cube that is overlooked."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-300, 300, (num, 3))
    grid = make_grid(xyz, np.arange(num), size)
    for point in rng.uniform(-300, 300, (10, 3)):
        distance = np.linalg.norm(xyz - point, axis=1)
        nearest = nearest_point(grid, *point)
        assert nearest == (int(np.argmin(distance)) if distance.min() < size else -1)
        low, high = point - rng.uniform(0, 150, 3), point + rng.uniform(0, 150, 3)
        found = np.empty(num, np.int64)
        in_cubes = set(found[: points_in_box(grid, low, high, found)].tolist())
        in_box = set(np.flatnonzero(((xyz >= low) & (xyz <= high)).all(axis=1)).tolist())
        assert in_box <= in_cubes
