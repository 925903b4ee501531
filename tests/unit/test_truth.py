"""The truth definition against a slow, obvious implementation that follows physics-spec 3 sentence by sentence, on random event graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfscale.edm4hep.ancestry import ancestry, descendant_pairs
from pfscale.edm4hep.origin import FROM_B, PRIMARY
from pfscale.edm4hep.targets import TARGET_CLASSES, energy_account, gen_particles, target_class
from pfscale.edm4hep.truth import Deposits, Particles, Truth, assign, associate
from pfscale.shards.schema import CLASSES

BIT_STOPPED = 1 << 24


@dataclass
class Event:
    """One event as plain Python objects; particles, tracks and clusters are numbers."""

    pdg: list[int]
    status: list[int]
    bits: list[int]
    charge: list[float]
    momentum: list[tuple[float, float, float, float]]
    daughters: list[set[int]]
    hits: list[tuple[int, float, int | None]] = field(default_factory=list)  # particle, GeV, cluster
    links: list[tuple[int, int, float]] = field(default_factory=list)  # particle, track, weight
    num_tracks: int = 0
    num_clusters: int = 0

    def strict_descendants(self, particle: int) -> set[int]:
        found: set[int] = set()
        waiting = list(self.daughters[particle])
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting += self.daughters[current]
        return found

    def family(self, particle: int) -> set[int]:
        return self.strict_descendants(particle) | {particle}

    def parents(self, particle: int) -> set[int]:
        return {p for p in range(len(self.pdg)) if particle in self.daughters[p]}

    def energy(self, particle: int) -> float:
        return self.momentum[particle][3]

    def is_stable(self, particle: int) -> bool:
        return self.status[particle] == 1 and abs(self.pdg[particle]) not in (12, 14, 16)

    def hit_energy(self, particle: int) -> float:
        return sum(energy for owner, energy, _ in self.hits if owner in self.family(particle))

    def in_clusters(self, particle: int) -> dict[int, float]:
        sums: dict[int, float] = {}
        for owner, energy, cluster in self.hits:
            if cluster is not None and owner in self.family(particle):
                sums[cluster] = sums.get(cluster, 0.0) + energy
        return {cluster: energy for cluster, energy in sums.items() if energy > 0}

    def in_tracks(self, particle: int) -> dict[int, float]:
        weights: dict[int, float] = {}
        for owner, track, weight in self.links:
            if owner in self.family(particle):
                weights[track] = max(weights.get(track, 0.0), weight)
        return {track: weight for track, weight in weights.items() if weight > 0}

    def is_seen(self, particle: int) -> bool:
        return self.hit_energy(particle) > 0 or bool(self.in_tracks(particle))

    def surrogate_for(self, particle: int) -> int | None:
        level = {particle}
        for _ in range(8):
            level = set().union(*[self.parents(p) for p in level])
            seen = [p for p in sorted(level) if self.is_seen(p)]
            if seen:
                for candidate in seen:
                    others = [p for p in self.strict_descendants(candidate) if self.status[p] == 1 and self.is_seen(p)]
                    if self.status[candidate] != 1 and not others:
                        return candidate
                return None
        return None

    def surrogates(self) -> set[int]:
        candidates = set()
        for particle in range(len(self.pdg)):
            if self.is_stable(particle) and not self.is_seen(particle):
                found = self.surrogate_for(particle)
                if found is not None:
                    candidates.add(found)
        return {c for c in candidates if not (self.strict_descendants(c) & candidates)}


@dataclass
class SlowTruth:
    visible: list[int]
    surrogates: set[int]
    gen_level: list[int]
    carrier: dict[int, tuple[str, int]]  # particle -> element that it was given
    owner: dict[int, tuple[str, int] | None]


def slow_truth(event: Event) -> SlowTruth:
    surrogates = event.surrogates()
    visible = []
    for particle in range(len(event.pdg)):
        if not (event.is_stable(particle) or particle in surrogates):
            continue
        hits, energy = event.hit_energy(particle), event.energy(particle)
        weights = event.in_tracks(particle).values()
        if (
            hits > 0.10 * energy
            or (hits > 0.5 and event.charge[particle] != 0)
            or max(weights, default=0.0) >= 0.2
            or particle in surrogates
        ):
            visible.append(particle)
    carrier: dict[int, tuple[str, int]] = {}
    for particle in sorted(visible, key=lambda p: (-event.energy(p), p)):
        wishes = [("track", t) for t, _ in sorted(event.in_tracks(particle).items(), key=lambda item: (-item[1], item[0]))]
        wishes += [("cluster", c) for c, _ in sorted(event.in_clusters(particle).items(), key=lambda item: (-item[1], item[0]))]
        free = [wish for wish in wishes if wish not in carrier.values()]
        if free:
            carrier[particle] = free[0]
    owner: dict[int, tuple[str, int] | None] = {}
    for particle in visible:
        owner[particle] = carrier.get(particle)
        if particle not in carrier:
            sums = event.in_clusters(particle)
            if sums:
                best = ("cluster", min(sums, key=lambda c: (-sums[c], c)))
                owner[particle] = best if best in carrier.values() else None
    replaced = set().union(*[event.strict_descendants(s) for s in surrogates])
    has_bits = any(bits & 0x0F000000 for bits in event.bits)
    gen_level = [
        p
        for p in range(len(event.pdg))
        if p in surrogates or (event.is_stable(p) and p not in replaced and (not has_bits or event.bits[p] & 0x0F000000))
    ]
    return SlowTruth(visible, surrogates, gen_level, carrier, owner)


def fast_truth(events: list[Event]) -> tuple[Particles, Truth, np.ndarray, list[int], list[int], list[int]]:
    """The package's truth of all events at once, with the first particle, track and cluster of each."""
    first = np.concatenate([[0], np.cumsum([len(e.pdg) for e in events])])
    track = np.concatenate([[0], np.cumsum([e.num_tracks for e in events])])
    cluster = np.concatenate([[0], np.cumsum([e.num_clusters for e in events])])
    edges = [(first[i] + p, first[i] + d) for i, e in enumerate(events) for p, below in enumerate(e.daughters) for d in below]
    parent, daughter = np.array(edges, np.int64).reshape(-1, 2).T
    momenta = np.array([m for e in events for m in e.momentum], float).reshape(-1, 4)
    particles = Particles(
        event=np.repeat(np.arange(len(events)), [len(e.pdg) for e in events]),
        pdg=np.array([x for e in events for x in e.pdg], np.int64),
        generator_status=np.array([x for e in events for x in e.status], np.int64),
        simulator_status=np.array([x for e in events for x in e.bits], np.int64),
        charge=np.array([x for e in events for x in e.charge], float),
        px=momenta[:, 0],
        py=momenta[:, 1],
        pz=momenta[:, 2],
        energy=momenta[:, 3],
        ancestry=ancestry(parent, daughter, num_particles=int(first[-1])),
    )
    hits = [(first[i] + p, e, -1 if c is None else cluster[i] + c) for i, ev in enumerate(events) for p, e, c in ev.hits]
    links = [(first[i] + p, track[i] + t, w) for i, ev in enumerate(events) for p, t, w in ev.links]
    deposits = Deposits(
        hit_particle=np.array([h[0] for h in hits], np.int64),
        hit_energy=np.array([h[1] for h in hits], float),
        hit_cluster=np.array([h[2] for h in hits], np.int64),
        link_particle=np.array([k[0] for k in links], np.int64),
        link_track=np.array([k[1] for k in links], np.int64),
        link_weight=np.array([k[2] for k in links], float),
        num_tracks=int(track[-1]),
        num_clusters=int(cluster[-1]),
    )
    event_of_element = np.concatenate(
        [
            np.repeat(np.arange(len(events)), [e.num_tracks for e in events]),
            np.repeat(np.arange(len(events)), [e.num_clusters for e in events]),
        ]
    )
    truth = associate(particles, deposits, num_events=len(events))
    return particles, truth, event_of_element, first.tolist(), track.tolist(), cluster.tolist()


def random_event(rng: np.random.Generator) -> Event:
    """A small event in which everything that the definition distinguishes happens often."""
    num = int(rng.integers(0, 14))
    event = Event([], [], [], [], [], [set() for _ in range(num)])
    has_bits = rng.random() < 0.7
    for number in range(num):
        event.pdg.append(int(rng.choice([22, 211, -211, 130, 11, -13, 12, 310, 321])))
        event.status.append(int(rng.choice([0, 1, 1, 2])))
        event.bits.append(BIT_STOPPED if has_bits and rng.random() < 0.7 else 0)
        event.charge.append(float(event.pdg[-1] in (211, 321, -13)) - float(event.pdg[-1] in (-211, 11)))
        energy = float(rng.choice([0.3, 1.0, 1.0, 4.0, 20.0]))  # equal energies: the order must be defined
        direction = rng.normal(size=3)
        px, py, pz = energy * direction / np.linalg.norm(direction)
        event.momentum.append((px, py, pz, energy))
        for parent in range(number):
            if rng.random() < 1.3 / (number + 1):
                event.daughters[parent].add(number)
    event.num_tracks, event.num_clusters = int(rng.integers(0, 5)), int(rng.integers(0, 5))
    if num:
        for _ in range(int(rng.integers(0, 12))):
            inside = event.num_clusters and rng.random() < 0.8
            place = int(rng.integers(event.num_clusters)) if inside else None
            event.hits.append((int(rng.integers(num)), float(rng.choice([1e-5, 0.4, 1.0, 3.0]) * rng.random()), place))
        for _ in range(int(rng.integers(0, 6)) if event.num_tracks else 0):
            event.links.append((int(rng.integers(num)), int(rng.integers(event.num_tracks)), float(rng.choice([0.1, 0.2, 0.5, 1.0]))))
    return event


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_truth_equals_the_slow_definition(seed: int, num_events: int) -> None:
    """Catches every slip of the vectorised truth: descendants, surrogates, visibility, assignment, merging, mixing of events."""
    rng = np.random.default_rng(seed)
    events = [random_event(rng) for _ in range(num_events)]
    particles, truth, event_of_element, first, track, cluster = fast_truth(events)
    position = {int(row): number for number, row in enumerate(truth.visible)}
    assert len(position) == sum(len(slow_truth(e).visible) for e in events)
    for i, event in enumerate(events):
        slow = slow_truth(event)

        def element(name: tuple[str, int] | None, i: int = i) -> int:
            if name is None:
                return -1
            return track[i] + name[1] if name[0] == "track" else track[-1] + cluster[i] + name[1]

        rows = [first[i] + p for p in slow.visible]
        assert [r in position for r in rows] == [True] * len(rows)
        assert [bool(truth.is_surrogate[position[first[i] + p]]) for p in slow.visible] == [p in slow.surrogates for p in slow.visible]
        assert np.flatnonzero(truth.is_gen_level[first[i] : first[i + 1]]).tolist() == slow.gen_level
        for p in slow.visible:
            number = position[first[i] + p]
            assert truth.owner[number] == element(slow.owner[p])
            given_to = element(slow.carrier.get(p))
            if given_to >= 0:
                assert truth.carried[given_to] == number
                merged = [event.momentum[q] for q in slow.visible if slow.owner[q] == slow.owner[p]]
                np.testing.assert_allclose(truth.four_momentum[given_to], np.sum(merged, axis=0), atol=1e-12)
                on_track = event.in_tracks(p).get(slow.carrier[p][1], 0.0) if slow.carrier[p][0] == "track" else 0.0
                in_cluster = event.in_clusters(p).get(slow.carrier[p][1], 0.0) if slow.carrier[p][0] == "cluster" else 0.0
                assert truth.track_weight[given_to] == on_track
                assert math.isclose(truth.cluster_energy[given_to], in_cluster, rel_tol=1e-12)
        assert int((truth.carried[event_of_element == i] >= 0).sum()) == len(slow.carrier)
    account = energy_account(particles, truth, event_of_element, num_events=num_events)
    assert np.all(account.closure < 1e-6)
    np.testing.assert_allclose(account.visible, [sum(e.energy(p) for p in slow_truth(e).visible) for e in events])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_assignment_in_rounds_is_one_after_the_other(seed: int) -> None:
    """Catches an assignment in rounds that lets a particle of lower energy keep what a higher one would have taken."""
    rng = np.random.default_rng(seed)
    num, num_elements = int(rng.integers(0, 12)), int(rng.integers(1, 8))
    wishes = [rng.permutation(num_elements)[: rng.integers(0, num_elements + 1)] for _ in range(num)]
    priority = rng.permutation(num)
    offsets = np.concatenate([[0], np.cumsum([len(w) for w in wishes])]).astype(np.int64)
    chosen = assign(
        offsets, np.concatenate([np.zeros(0, np.int64), *wishes]).astype(np.int64), priority=priority, num_elements=num_elements
    )
    used: set[int] = set()
    for particle in np.argsort(priority):
        free = [w for w in wishes[particle] if w not in used]
        assert chosen[particle] == (free[0] if free else -1)
        used |= set(free[:1])


def chain(*, klong_hits: bool) -> Event:
    """A beam particle -> K_L (generator decayed it) -> two pions that the simulation never saw, and a photon with hits beside it."""
    event = Event(
        pdg=[11, 310, 211, -211, 22],
        status=[2, 2, 1, 1, 1],
        bits=[0, BIT_STOPPED, 0, 0, BIT_STOPPED],
        charge=[-1.0, 0.0, 1.0, -1.0, 0.0],
        momentum=[(0, 0, 50, 50.0), (10, 0, 0, 10.1), (6, 0, 0, 6.1), (4, 0, 0, 4.0), (0, 5, 0, 5.0)],
        daughters=[{1, 4}, {2, 3}, set(), set(), set()],
        num_clusters=2,
    )
    event.hits = [(4, 4.5, 1)] + ([(1, 7.0, 0)] if klong_hits else [])
    return event


def test_kaon_stands_in_for_its_unseen_decay() -> None:
    """Catches a kaon that showered but has no target because its generator had already decayed it, and pions counted twice."""
    _, truth, *_ = fast_truth([chain(klong_hits=True)])
    assert truth.visible.tolist() == [1, 4]
    assert truth.is_surrogate.tolist() == [True, False]
    assert np.flatnonzero(truth.is_gen_level).tolist() == [1, 4]
    assert truth.carried.tolist() == [0, 1]
    assert truth.is_replaced.tolist() == [False, False, True, True, False]


def test_a_surrogate_has_its_own_origin() -> None:
    """Catches a kaon with the origin of the decay that did not happen, and origins read in another order than the particles."""
    event = chain(klong_hits=True)
    elements = (np.zeros(2, np.int64), np.array([0, 2]))
    for beam, expected in ((11, [PRIMARY, PRIMARY]), (511, [FROM_B, FROM_B])):
        event.pdg[0] = beam
        particles, truth, *_ = fast_truth([event])
        fields = gen_particles(particles, truth, np.full(2, -1), elements)[1]
        assert (fields["pdg"].tolist(), fields["origin"].tolist()) == ([310, 22], expected)


def test_no_surrogate_above_something_seen() -> None:
    """Catches a beam particle that becomes the surrogate of everything lost, while its other daughters are seen."""
    _, truth, *_ = fast_truth([chain(klong_hits=False)])
    assert truth.visible.tolist() == [4]
    assert not truth.is_surrogate.any()


def test_loops_in_the_ancestry_end() -> None:
    """Catches an endless walk where a damaged file makes a particle its own grandmother."""
    graph = ancestry(np.array([0, 1, 2]), np.array([1, 2, 0]), num_particles=3)
    root, member = descendant_pairs(graph, np.array([1]))
    assert sorted(member.tolist()) == [0, 1, 2]
    assert root.tolist() == [0, 0, 0]


def test_fast_simulation_without_status_bits_keeps_all_stable() -> None:
    """Catches an empty gen-level reference in samples whose simulation sets no status bits."""
    event = chain(klong_hits=False)
    event.bits = [0] * 5
    _, truth, *_ = fast_truth([event, chain(klong_hits=False)])
    assert np.flatnonzero(truth.is_gen_level).tolist() == [2, 3, 4, 9]


@pytest.mark.parametrize(
    ("pdg", "charge", "on_track", "on_cluster"),
    [
        (22, 0, "211", "22"),
        (11, -1, "11", "22"),
        (-11, 1, "11", "22"),
        (13, -1, "13", "130"),
        (321, 1, "211", "130"),
        (2112, 0, "211", "130"),
    ],
)
def test_class_follows_what_carries_the_particle(pdg: int, charge: int, on_track: str, on_cluster: str) -> None:
    """Catches a photon class on a track, or a muon class on a cluster, which no model could tell apart."""
    both = target_class(np.array([pdg, pdg]), np.array([charge, charge], float), on_track=np.array([True, False]))
    assert [CLASSES[code] for code in both] == [on_track, on_cluster]


def test_class_order_is_the_schema_s() -> None:
    """Catches class indices that mean something else to the shards than to the truth."""
    assert [str(code) if code else "none" for code in TARGET_CLASSES] == list(CLASSES)
