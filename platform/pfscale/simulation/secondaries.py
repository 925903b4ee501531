"""Particles made in the detector, and how those that they come from fly on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pfscale.simulation.generator import FloatArray, IntArray, Particles
from pfscale.simulation.tracker_hits import NEVER


@dataclass(frozen=True)
class Flight:
    """How each particle flies on after the tracker's material. Shapes (N,) or (N, 3); units: mm, GeV, ns.

    `is_destroyed`: it interacted, converted or, `has_decayed`, decayed in flight. `vertex`, `momentum`, `time`: at the start of its last
    leg, which is where it was made unless it has radiated; `arc`: transverse path up to there, `end`: up to where it is destroyed, else
    NEVER. `radiated`: part of its energy that it has lost to a photon.
    """

    is_destroyed: npt.NDArray[np.bool_]
    has_decayed: npt.NDArray[np.bool_]
    vertex: FloatArray
    momentum: FloatArray
    time: FloatArray
    arc: FloatArray
    end: FloatArray
    radiated: FloatArray


def undisturbed(particles: Particles) -> Flight:
    """The flight of particles that meet no material."""
    num = len(particles)
    no = np.zeros(num, dtype=bool)
    start = particles.vertex.copy(), particles.momentum.copy(), particles.time.copy()
    return Flight(no, no.copy(), *start, arc=np.zeros(num), end=np.full(num, NEVER), radiated=np.zeros(num))


@dataclass(frozen=True)
class Secondaries:
    """New particles: index into those that made them, PDG, mass, charge, momentum (M, 3)."""

    source: IntArray
    pdg: IntArray
    mass: FloatArray
    charge: FloatArray
    momentum: FloatArray


def append_secondaries(
    old: Particles, flight: Flight, chosen: IntArray, point: FloatArray, time: FloatArray, new: Secondaries
) -> tuple[Particles, Flight]:
    """`old` with the secondaries behind the other particles of their events, and the flight of all."""
    num, source = len(old), new.source
    event = np.concatenate([old.event, old.event[chosen][source]])
    order = np.argsort(event, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    endpoint, has_decay = old.endpoint.copy(), old.has_decay.copy()
    ends = flight.is_destroyed[chosen]
    endpoint[chosen[ends]], has_decay[chosen[ends]] = point[ends], True
    child = position[np.concatenate([old.child, num + np.arange(len(source))])]
    parent = position[np.concatenate([old.parent, chosen[source]])]
    pairs = np.lexsort((parent, child))

    def joined(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([first, second])[order]

    none, vertex, start = np.zeros(len(source)), point[source], time[source]
    merged = replace(
        old,
        event=event[order],
        pdg=joined(old.pdg, new.pdg),
        status=joined(old.status, np.zeros(len(source), dtype=np.int64)),
        charge=joined(old.charge, new.charge),
        mass=joined(old.mass, new.mass),
        momentum=joined(old.momentum, new.momentum),
        vertex=joined(old.vertex, vertex),
        time=joined(old.time, start),
        endpoint=joined(endpoint, vertex),
        has_decay=joined(has_decay, none > 0),
        parent=parent[pairs],
        child=child[pairs],
    )
    return merged, Flight(
        is_destroyed=joined(flight.is_destroyed, none > 0),
        has_decayed=joined(flight.has_decayed, none > 0),
        vertex=joined(flight.vertex, vertex),
        momentum=joined(flight.momentum, new.momentum),
        time=joined(flight.time, start),
        arc=joined(flight.arc, none),
        end=joined(flight.end, none + NEVER),
        radiated=joined(flight.radiated, none),
    )
