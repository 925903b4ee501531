"""Which points of an event lie close to one another: a grid of cubes that is found by hashing, without a sort (numba).

Points are numbered by cube, so that those of one cube lie side by side in memory; that is most of the speed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pfscale.simulation.compiled import compiled, longer
from pfscale.simulation.generator import FloatArray, IntArray

ShortArray = npt.NDArray[np.int32]
SingleArray = npt.NDArray[np.float32]
HALF_AXIS = 512  # cubes on each side of the origin


class Grid(NamedTuple):
    """Points in cubes: those of cube c are `starts[c]:starts[c + 1]` of `point` (numbers of the points) and of `x`, `y`, `z`."""

    size: float
    point: IntArray
    x: FloatArray
    y: FloatArray
    z: FloatArray
    starts: IntArray
    code: IntArray
    table: IntArray  # hash table: cube or -1


@compiled(forceinline=True)
def _axis(value: float, size: float) -> int:
    """The number of the cube along one axis."""
    return int(np.floor(value / size)) + HALF_AXIS


@compiled(forceinline=True)
def _code(i: int, j: int, k: int) -> int:
    """The number of the cube with these numbers along the axes; differences of codes are codes of differences."""
    return (i * 2 * HALF_AXIS + j) * 2 * HALF_AXIS + k


@compiled(forceinline=True)
def _slot(code: int, mask: int) -> int:
    """Where in a hash table of `mask` + 1 places the search for a code begins."""
    mixed = code * -7046029254386353131  # 2^64 / golden ratio
    return ((mixed >> 32) ^ mixed) & mask


@compiled(forceinline=True)
def _find(table: IntArray, codes: IntArray, code: int) -> int:
    """The cube of this code; -1: empty."""
    mask = len(table) - 1
    slot = _slot(code, mask)
    while table[slot] >= 0 and codes[table[slot]] != code:
        slot = (slot + 1) & mask
    return table[slot]


@compiled
def make_grid(xyz: FloatArray, chosen: IntArray, size: float) -> Grid:
    """The `chosen` of the points xyz (n, 3) in cubes of `size`; at most HALF_AXIS cubes from the origin."""
    num = len(chosen)
    slots = 16
    while slots < 2 * num:
        slots *= 2
    table = np.full(slots, -1, dtype=np.int64)
    codes = np.empty(num, dtype=np.int64)
    cube = np.empty(num, dtype=np.int64)
    count = 0
    for n in range(num):
        i = chosen[n]
        code = _code(_axis(xyz[i, 0], size), _axis(xyz[i, 1], size), _axis(xyz[i, 2], size))
        slot = _slot(code, slots - 1)
        while table[slot] >= 0 and codes[table[slot]] != code:
            slot = (slot + 1) & (slots - 1)
        if table[slot] < 0:
            table[slot], codes[count] = count, code
            count += 1
        cube[n] = table[slot]
    starts = np.zeros(count + 1, dtype=np.int64)
    for n in range(num):
        starts[cube[n] + 1] += 1
    for c in range(count):
        starts[c + 1] += starts[c]
    place = starts[:-1].copy()
    point = np.empty(num, dtype=np.int64)
    x, y, z = np.empty(num), np.empty(num), np.empty(num)
    for n in range(num):
        at, i = place[cube[n]], chosen[n]
        place[cube[n]] = at + 1
        point[at], x[at], y[at], z[at] = i, xyz[i, 0], xyz[i, 1], xyz[i, 2]
    return Grid(size, point, x, y, z, starts, codes[:count], table)


@compiled
def close_pairs(xyz: FloatArray, chosen: IntArray, is_wanted: IntArray, radius: float) -> tuple[ShortArray, ShortArray, SingleArray]:
    """All pairs of `chosen` points closer than `radius`, each once, of which one at least is wanted (n,), with squared distances.

    Half as wide numbers as elsewhere: there are ten times as many pairs as points, and writing them is what takes the time.
    """
    grid = make_grid(xyz, chosen, radius)
    x, y, z, starts, codes, table = grid.x, grid.y, grid.z, grid.starts, grid.code, grid.table
    point, wanted = grid.point.astype(np.int32), is_wanted[grid.point].astype(np.int32)
    any_wanted = np.zeros(len(codes), np.int32)
    for c in range(len(codes)):
        for a in range(starts[c], starts[c + 1]):
            any_wanted[c] |= wanted[a]
    square = radius * radius
    room = 24 * len(chosen) + 1024
    first, second, distance = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32)
    count = 0
    for c in range(len(codes)):
        for shift in range(13, 27):
            other = _find(table, codes, codes[c] + _code(shift // 9 - 1, shift // 3 % 3 - 1, shift % 3 - 1))
            if other < 0 or any_wanted[c] + any_wanted[other] == 0:
                continue
            end = starts[other + 1]
            if count + (starts[c + 1] - starts[c]) * (end - starts[other]) > room:
                room = 2 * room + (starts[c + 1] - starts[c]) * (end - starts[other])
                first, second, distance = longer(first, room), longer(second, room), longer(distance, room)
            for a in range(starts[c], starts[c + 1]):
                for b in range(a + 1 if other == c else starts[other], end):
                    d2 = (x[a] - x[b]) ** 2 + (y[a] - y[b]) ** 2 + (z[a] - z[b]) ** 2
                    # Written always, kept if it counts: a branch that nobody can predict costs more.
                    first[count], second[count], distance[count] = point[a], point[b], d2
                    count += (d2 < square) & (wanted[a] + wanted[b] > 0)
    return first[:count], second[:count], distance[:count]


@compiled
def nearest_point(grid: Grid, x: float, y: float, z: float) -> int:
    """The number of the nearest point of the grid within one cube's size; -1: none."""
    best, nearest = grid.size * grid.size, -1
    i, j, k = _axis(x, grid.size), _axis(y, grid.size), _axis(z, grid.size)
    for shift in range(27):
        c = _find(grid.table, grid.code, _code(i + shift // 9 - 1, j + shift // 3 % 3 - 1, k + shift % 3 - 1))
        if c < 0:
            continue
        for n in range(grid.starts[c], grid.starts[c + 1]):
            d2 = (x - grid.x[n]) ** 2 + (y - grid.y[n]) ** 2 + (z - grid.z[n]) ** 2
            if d2 < best:
                best, nearest = d2, grid.point[n]
    return nearest


@compiled
def points_in_box(grid: Grid, low: FloatArray, high: FloatArray, found: IntArray) -> int:
    """How many points lie in the cubes that touch the box from `low` (3,) to `high` (3,); their numbers are written into `found`."""
    count = 0
    for i in range(_axis(low[0], grid.size), _axis(high[0], grid.size) + 1):
        for j in range(_axis(low[1], grid.size), _axis(high[1], grid.size) + 1):
            for k in range(_axis(low[2], grid.size), _axis(high[2], grid.size) + 1):
                c = _find(grid.table, grid.code, _code(i, j, k))
                if c >= 0:
                    for n in range(grid.starts[c], grid.starts[c + 1]):
                        found[count] = grid.point[n]
                        count += 1
    return count
