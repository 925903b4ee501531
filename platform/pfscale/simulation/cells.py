"""Cells of the calorimeters and muon chambers, and the energy that showers leave in them, added up as it falls (numba).

A cell number holds, from its lowest bit: j (12), i (12), section (5), side (1), endcap (1), system (2: ECAL, HCAL, muon chambers).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfscale.simulation.compiled import compiled, longer
from pfscale.simulation.detectors import DetectorModel
from pfscale.simulation.generator import C_LIGHT, FloatArray, IntArray

CELL_BITS = 33
AXIS_CELLS = 4096
CELL_OFFSET = AXIS_CELLS // 2  # index of the cell at the origin of a signed axis
MAX_SECTIONS = 32
MUON_SYSTEM = 2
MUON_COLLECTION = 4


class Geometry(NamedTuple):
    """The numbers of a detector that the shower code needs (a named tuple, because compiled code takes no dataclass)."""

    radius: float
    z: float
    inner_radius: float
    outer_radius: float
    ecal_thickness: float
    ecal_pitch: float
    ecal_cell: float
    ecal_x0: float
    ecal_lambda: float
    ecal_mip: float
    ecal_stochastic: float
    ecal_constant: float
    gap: float
    hcal_thickness: float
    hcal_pitch: float
    hcal_cell: float
    hcal_x0: float
    hcal_lambda: float
    hcal_mip: float
    hcal_stochastic: float
    hcal_uncompensated: float
    hcal_constant: float
    muon_layers: int
    muon_radius: float
    muon_pitch: float
    muon_z: float
    muon_pitch_z: float
    muon_inner_radius: float
    muon_outer_radius: float
    muon_cell: float
    muon_hit: float
    muon_efficiency: float
    muon_loss: float


def geometry(detector: DetectorModel) -> Geometry:
    """The numbers of `detector`'s calorimeters and muon chambers."""
    outermost = max(detector.calorimeter_outer_radius, detector.ecal_z)
    deepest = max(detector.ecal_sections, detector.hcal_sections, detector.muon_layers)
    assert deepest <= MAX_SECTIONS, "more sections than a cell number holds"
    assert 2 * np.pi * detector.ecal_radius * 1.2 / detector.ecal_cell < AXIS_CELLS, "ECAL cells too small for a cell number"
    assert 2 * np.pi * outermost / detector.hcal_cell < AXIS_CELLS, "HCAL cells too small for a cell number"
    between = max(detector.muon_layers - 1, 1)
    return Geometry(
        radius=detector.ecal_radius,
        z=detector.ecal_z,
        inner_radius=detector.endcap_inner_radius,
        outer_radius=detector.calorimeter_outer_radius,
        ecal_thickness=detector.ecal_thickness,
        ecal_pitch=detector.ecal_thickness / detector.ecal_sections,
        ecal_cell=detector.ecal_cell,
        ecal_x0=detector.ecal_x0,
        ecal_lambda=detector.ecal_lambda,
        ecal_mip=detector.ecal_mip,
        ecal_stochastic=detector.ecal_stochastic,
        ecal_constant=detector.ecal_constant,
        gap=detector.hcal_gap,
        hcal_thickness=detector.hcal_thickness,
        hcal_pitch=detector.hcal_thickness / detector.hcal_sections,
        hcal_cell=detector.hcal_cell,
        hcal_x0=detector.hcal_x0,
        hcal_lambda=detector.hcal_lambda,
        hcal_mip=detector.hcal_mip,
        hcal_stochastic=detector.hcal_stochastic,
        hcal_uncompensated=detector.hcal_uncompensated,
        hcal_constant=detector.hcal_constant,
        muon_layers=detector.muon_layers,
        muon_radius=detector.muon_radius[0],
        muon_pitch=(detector.muon_radius[1] - detector.muon_radius[0]) / between,
        muon_z=detector.muon_z[0],
        muon_pitch_z=(detector.muon_z[1] - detector.muon_z[0]) / between,
        muon_inner_radius=detector.muon_inner_radius,
        muon_outer_radius=detector.muon_radius[1],
        muon_cell=detector.muon_cell,
        muon_hit=detector.muon_hit,
        muon_efficiency=detector.muon_efficiency,
        muon_loss=detector.muon_loss,
    )


class Deposits(NamedTuple):
    """Growing columns of hits and of their parts by shower, and a hash table that finds the hit of a cell in the present event.

    `hit_key`: event << CELL_BITS | cell; `hit_part`: its newest part. `used`: hits, parts, first hit of the present event, present event.
    """

    hit_key: IntArray
    hit_energy: FloatArray
    hit_time: FloatArray
    hit_part: IntArray
    part_hit: IntArray
    part_shower: IntArray
    part_energy: FloatArray
    table: IntArray
    used: IntArray


@compiled
def empty_deposits(capacity: int) -> Deposits:
    """Room for `capacity` hits."""
    return Deposits(
        np.empty(capacity, np.int64), np.empty(capacity), np.empty(capacity), np.empty(capacity, np.int64),
        np.empty(capacity, np.int64), np.empty(capacity, np.int64), np.empty(capacity),
        np.full(1 << 14, -1, np.int64), np.array([0, 0, 0, -1]),
    )  # fmt: skip


@compiled
def with_room(old: Deposits, spots: int) -> Deposits:
    """The deposits with room for `spots` more, and a table that is at most half full then."""
    need = old.used[1] + spots
    table = old.table
    in_event = old.used[0] - old.used[2] + spots
    if in_event * 2 > len(table):
        size = len(table)
        while in_event * 2 > size:
            size *= 2
        table = np.full(size, -1, np.int64)
        for hit in range(old.used[2], old.used[0]):
            slot = _slot(old.hit_key[hit], size)
            while table[slot] >= 0:
                slot = (slot + 1) & (size - 1)
            table[slot] = hit
    if need <= len(old.part_hit):
        if len(table) == len(old.table):
            return old
        length = len(old.part_hit)
    else:
        length = max(2 * len(old.part_hit), need)
    return Deposits(
        longer(old.hit_key, length), longer(old.hit_energy, length), longer(old.hit_time, length), longer(old.hit_part, length),
        longer(old.part_hit, length), longer(old.part_shower, length), longer(old.part_energy, length), table, old.used,
    )  # fmt: skip


@compiled(forceinline=True)
def _slot(key: int, size: int) -> int:
    """Where in a hash table of `size` (a power of 2) the search for a key begins."""
    mixed = key * -7046029254386353131  # 2^64 / golden ratio: neighbouring cells fall far apart
    return ((mixed >> 32) ^ mixed) & (size - 1)


@compiled
def add_shower(deposits: Deposits, spots: FloatArray, num_spots: int, event: int, shower: int, start: float) -> None:
    """Adds the spots of one shower, which enters the calorimeter at the time `start` (ns); showers come in the order of their events."""
    used = deposits.used
    if event != used[3]:
        used[2], used[3] = used[0], event
    _add_spots(
        deposits.hit_key, deposits.hit_energy, deposits.hit_time, deposits.hit_part, deposits.part_hit, deposits.part_shower,
        deposits.part_energy, deposits.table, used, spots, num_spots, shower, start,
    )  # fmt: skip


# Plain arrays here: in compiled code every look at an array in a named tuple costs as much as ten additions.
@compiled
def _add_spots(
    hit_key: IntArray, hit_energy: FloatArray, hit_time: FloatArray, hit_part: IntArray, part_hit: IntArray, part_shower: IntArray,
    part_energy: FloatArray, table: IntArray, used: IntArray, spots: FloatArray, num_spots: int, shower: int, start: float,
) -> None:  # fmt: skip
    """`add_shower` on single arrays; the columns are those of `Deposits`."""
    num_hits, num_parts, first = used[0], used[1], used[2]
    base, size = used[3] << CELL_BITS, len(table)
    for n in range(num_spots):
        key, energy, time = base | int(spots[n, 0]), spots[n, 1], start + spots[n, 2] / C_LIGHT
        slot = _slot(key, size)
        # Hits of earlier events are as good as empty places, so the table needs no clearing.
        while table[slot] >= first and hit_key[table[slot]] != key:
            slot = (slot + 1) & (size - 1)
        hit = table[slot]
        if hit >= first:
            hit_energy[hit] += energy
            hit_time[hit] = min(hit_time[hit], time)
            part = hit_part[hit]
            if part_shower[part] == shower:
                part_energy[part] += energy
                continue
        else:
            hit = num_hits
            num_hits += 1
            table[slot], hit_key[hit], hit_energy[hit], hit_time[hit] = hit, key, energy, time
        hit_part[hit], part_hit[num_parts], part_shower[num_parts], part_energy[num_parts] = num_parts, hit, shower, energy
        num_parts += 1
    used[0], used[1] = num_hits, num_parts


@compiled(forceinline=True)
def cell_of(geo: Geometry, x: float, y: float, z: float) -> int:
    """The calorimeter cell that contains a point; -1 outside."""
    r = np.sqrt(x * x + y * y)
    endcap = 1 if abs(z) > geo.z else 0
    if r > geo.outer_radius or (endcap == 1 and r < geo.inner_radius):
        return -1
    depth = abs(z) - geo.z if endcap == 1 else r - geo.radius
    if depth < -geo.ecal_pitch:
        return -1
    system = 0
    size = geo.ecal_cell
    pitch = geo.ecal_pitch
    front = geo.radius
    if depth >= geo.ecal_thickness:
        system, size, pitch = 1, geo.hcal_cell, geo.hcal_pitch
        front = geo.radius + geo.ecal_thickness + geo.gap
        depth -= geo.ecal_thickness + geo.gap
        if depth >= geo.hcal_thickness:
            return -1
    section = int(max(depth, 0.0) / pitch)
    return _number(system, endcap, section, front + (section + 0.5) * pitch, size, x, y, z)


@compiled(forceinline=True)
def muon_cell(geo: Geometry, endcap: int, layer: int, x: float, y: float, z: float) -> int:
    """The cell of a muon chamber at a point on it."""
    return _number(MUON_SYSTEM, endcap, layer, geo.muon_radius + layer * geo.muon_pitch, geo.muon_cell, x, y, z)


@compiled(forceinline=True)
def _number(system: int, endcap: int, section: int, radius: float, size: float, x: float, y: float, z: float) -> int:
    """The number of the cell at a point, in a section whose middle has this radius, of this size (mm)."""
    if endcap == 1:
        i = int(np.floor(x / size)) + CELL_OFFSET
        j = int(np.floor(y / size)) + CELL_OFFSET
    else:
        num_phi = int(2.0 * np.pi * radius / size)
        i = min(int((np.arctan2(y, x) + np.pi) / (2.0 * np.pi) * num_phi), num_phi - 1)
        j = int(np.floor(z / size)) + CELL_OFFSET
    side = 1 if z > 0 else 0
    return ((((system * 2 + endcap) * 2 + side) * MAX_SECTIONS + section) * AXIS_CELLS + i) * AXIS_CELLS + j


def cell_section(cell: IntArray) -> IntArray:
    """Longitudinal section (n,) of cells, counted from the front of their calorimeter."""
    return (cell >> 24) & (MAX_SECTIONS - 1)


def cell_collection(cell: IntArray) -> IntArray:
    """Collection (n,) of cells: 0 ECAL barrel, 1 ECAL endcap, 2 HCAL barrel, 3 HCAL endcap, 4 muon chambers."""
    return np.minimum(cell >> 30, MUON_COLLECTION)


@compiled
def cell_position(geo: Geometry, cell: IntArray) -> FloatArray:
    """Centres (n, 3) of cells, mm."""
    position = np.empty((len(cell), 3))
    for n in range(len(cell)):
        number = cell[n]
        j, i = number & (AXIS_CELLS - 1), (number >> 12) & (AXIS_CELLS - 1)
        section = (number >> 24) & (MAX_SECTIONS - 1)
        side, endcap, system = (number >> 29) & 1, (number >> 30) & 1, number >> 31
        if system == MUON_SYSTEM:
            size, radius = geo.muon_cell, geo.muon_radius + section * geo.muon_pitch
            z = geo.muon_z + section * geo.muon_pitch_z
        else:
            depth = (section + 0.5) * geo.ecal_pitch
            size = geo.ecal_cell
            if system == 1:
                depth = geo.ecal_thickness + geo.gap + (section + 0.5) * geo.hcal_pitch
                size = geo.hcal_cell
            radius, z = geo.radius + depth, geo.z + depth
        if endcap == 1:
            position[n, 0] = (i - CELL_OFFSET + 0.5) * size
            position[n, 1] = (j - CELL_OFFSET + 0.5) * size
            position[n, 2] = z if side == 1 else -z
        else:
            phi = (i + 0.5) / int(2.0 * np.pi * radius / size) * 2.0 * np.pi - np.pi
            position[n, 0], position[n, 1] = radius * np.cos(phi), radius * np.sin(phi)
            position[n, 2] = (j - CELL_OFFSET + 0.5) * size
    return position
