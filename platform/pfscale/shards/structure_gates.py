"""Gates on what must hold exactly in every event: numbers, indices, identities, splits, sums. Expected are zero violations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import chisquare

from pfscale.edm4hep.elements import MAY_BE_MISSING
from pfscale.edm4hep.extraction import MAX_CLOSURE_ERROR
from pfscale.edm4hep.origin import ORIGINS
from pfscale.physics.bootstrap import Estimate
from pfscale.physics.flavour import TOP_ROLES
from pfscale.physics.kinematics import sum_per_event
from pfscale.shards.gate import EventBatch, Gate, GateResult, Mask, Rule, ViolationGate
from pfscale.shards.manifest import Manifest
from pfscale.shards.measurement import Measurement, Status, at_most, count_violations
from pfscale.shards.schema import CLASSES, COLUMNS, SPLITS
from pfscale.shards.splits import TRAIN_FRACTION, VALIDATION_FRACTION, splits_of

MAX_DROPPED_FRACTION = 0.05  # of the visible energy; full simulation and the built-in source lose 0.2 to 0.4%
MIN_SPLIT_PROBABILITY = 1e-4  # of split counts at least so uneven, by chance
MIN_EXPECTED_IN_SPLIT = 5.0  # events in the smallest split for the chi-square test to mean anything


class FiniteGate(ViolationGate):
    """No NaN or infinity but where the schema allows a missing number."""

    name = "finite"
    title = "numbers are finite"
    definition = f"No number is NaN or infinite; {', '.join(MAY_BE_MISSING)} of a track may be NaN, which means not measured."
    needs_usable_events = False
    is_guard = True

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._missing: Counter[str] = Counter()
        self._entries: Counter[str] = Counter()

    def rules(self, batch: EventBatch) -> Iterator[Rule]:
        for name, values, event in _floats(batch):
            is_missing = ~np.isfinite(values)
            self._entries[name] += len(values)
            self._missing[name] += int(is_missing.sum())
            if _may_be_missing(name):  # nothing else is computed from these
                yield Rule(f"{name} infinite", np.isinf(values), event, spoils_event=False)
            else:
                yield Rule(name, is_missing, event)

    def result(self) -> GateResult:
        missing = {name: self._missing[name] / max(self._entries[name], 1) for name in self._entries}
        allowed = [name for name in missing if _may_be_missing(name)]
        numbers = {"missing_fraction": missing, "may_be_missing": allowed, "entries": dict(self._entries)}
        return self._result(*self.counted(), numbers=numbers, examples=self.examples())


def _may_be_missing(name: str) -> bool:
    column, _, leaf = name.partition(".")
    return column == "track" and leaf in MAY_BE_MISSING


def _floats(batch: EventBatch) -> list[tuple[str, NDArray[Any], NDArray[np.int64]]]:
    """(column.field, values, event of each) of every floating-point field."""
    found = []
    for column, (is_list, fields) in COLUMNS.items():
        for field in fields:
            if not field.dtype.startswith("float32"):
                continue
            if is_list:
                rows = batch.lists[column]
                values, event = rows[field.name], rows.event
                if isinstance(values, pa.Array):  # a fixed number of values in each row
                    values = values.flatten().to_numpy(zero_copy_only=False)
                    event = np.repeat(event, len(values) // max(len(event), 1))
            else:
                values, event = batch.of_event(field.name, column), np.arange(batch.num_events)
            found.append((f"{column}.{field.name}", values, event))
    return found


class IndexGate(ViolationGate):
    """Every index points to something."""

    name = "indices"
    title = "indices in range"
    definition = (
        "One target per element; every particle_number, jet_idx, owner, baseline index, class, origin, top_role and split names something"
        " that exists."
    )
    needs_usable_events = False
    is_guard = True

    def rules(self, batch: EventBatch) -> Iterator[Rule]:
        counts = {column: rows.counts for column, rows in batch.lists.items()}
        every, num_elements = np.arange(batch.num_events), counts["track"] + counts["cluster"]
        particles, targets = batch.lists["gen_particle"], batch.targets
        number, num_particles = targets["particle_number"], counts["gen_particle"][targets.event]
        is_bad_number = np.where(targets["class"] > 0, _outside(number, 0, num_particles), number != -1)
        yield Rule("one target per track", counts["track"] != counts["track_target"], every)
        yield Rule("one target per cluster", counts["cluster"] != counts["cluster_target"], every)
        yield Rule("class", _outside(targets["class"], 0, len(CLASSES)), targets.event)
        yield Rule("particle_number", is_bad_number, targets.event)
        yield Rule("jet_idx of targets", _outside(targets["jet_idx"], -1, counts["gen_jet"][targets.event]), targets.event)
        yield Rule("jet_idx of particles", _outside(particles["jet_idx"], -1, counts["gen_jet"][particles.event]), particles.event)
        yield Rule("owner", _outside(particles["owner"], -1, num_elements[particles.event]), particles.event)
        yield Rule("origin", _outside(particles["origin"], 0, len(ORIGINS)), particles.event)
        yield Rule("top_role", ~np.isin(batch.lists["gen_jet"]["top_role"], TOP_ROLES), batch.lists["gen_jet"].event)
        yield Rule("split", ~np.isin(batch.of_event("split").astype(str), SPLITS), every)
        for leaf, column in (("track_index", "track"), ("cluster_index", "cluster")):
            rows, lists = batch.lists["baseline"], batch.lists["baseline"][leaf]
            index = lists.flatten().to_numpy(zero_copy_only=False)
            event = np.repeat(rows.event, lists.value_lengths().to_numpy(zero_copy_only=False))
            yield Rule(f"baseline {leaf}", _outside(index, 0, counts[column][event]), event)


def _outside(values: NDArray[Any], low: int, high: NDArray[Any] | int) -> Mask:
    return (values < low) | (values >= high)


class LinkGate(ViolationGate):
    """Targets, the particles they carry, and those particles' owners say the same."""

    name = "links"
    title = "targets match particles"
    definition = (
        "A particle is carried by one element at most, and that element is its owner; jet_idx, charge and status of a target are its"
        " particle's; every owner carries a particle; a target has energy."
    )

    def rules(self, batch: EventBatch) -> Iterator[Rule]:
        targets, particles = batch.targets, batch.lists["gen_particle"]
        carrying = np.flatnonzero(targets["gen"] >= 0)
        gen, event = targets["gen"][carrying], targets.event[carrying]
        yield Rule("particle carried twice", np.bincount(gen, minlength=len(particles)) > 1, particles.event)
        yield Rule("owner is not the carrier", particles["owner"][gen] != targets["element"][carrying], event)
        for name in ("jet_idx", "charge", "status"):
            yield Rule(f"{name} differs", particles[name][gen] != targets[name][carrying], event)
        yield Rule("target without energy", ~(targets["energy"][carrying] > 0), event)
        num_elements = batch.lists["track"].counts + batch.lists["cluster"].counts
        first = np.concatenate([[0], np.cumsum(num_elements)])
        is_carrier = np.zeros(first[-1], bool)
        is_carrier[first[event] + targets["element"][carrying]] = True
        owned = np.flatnonzero(particles["owner"] >= 0)
        owner = first[particles.event[owned]] + particles["owner"][owned]
        yield Rule("owner carries nothing", ~is_carrier[owner], particles.event[owned])


class UniqueGate(Gate):
    """No event is there twice."""

    name = "unique"
    title = "events are unique"
    definition = "No uid occurs twice in the data set."
    needs_usable_events = False

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._uids: list[NDArray[np.uint64]] = []

    def add(self, batch: EventBatch) -> None:
        self._uids.append(batch.of_event("uid"))

    def result(self) -> GateResult:
        uids = np.concatenate([*self._uids, np.zeros(0, np.uint64)])
        unique, times = np.unique(uids, return_counts=True)
        examples = tuple(f"uid {uid} is there {number} times" for uid, number in zip(unique[times > 1][:3], times[times > 1], strict=False))
        found = count_violations("events there again", len(uids) - len(unique), len(uids))
        return self._result(found, examples=examples, numbers={"times": np.bincount(times, minlength=3).tolist()})


class ManifestGate(Gate):
    """The manifest says what the shards hold."""

    name = "manifest"
    title = "manifest matches shards"
    definition = "Events, splits, particles and class counts in manifest.json are those of the shards."
    needs_usable_events = False

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._counted: Counter[str] = Counter()

    def add(self, batch: EventBatch) -> None:
        self._counted["events"] += batch.num_events
        self._counted.update(f"split {name}" for name in batch.of_event("split"))
        for column in ("track", "cluster"):
            codes, numbers = np.unique(batch.lists[f"{column}_target"]["class"], return_counts=True)
            for code, number in zip(codes, numbers, strict=True):
                self._counted[f"{column} class {CLASSES[code] if 0 <= code < len(CLASSES) else code}"] += int(number)
        self._counted["particles"] += len(batch.lists["gen_particle"])

    def result(self) -> GateResult:
        said: dict[str, float] = {"events": self.manifest.num_events, "particles": self.manifest.num_particles}
        said |= {f"split {name}": number for name, number in self.manifest.splits.items()}
        for column, classes in (("track", self.manifest.track_classes), ("cluster", self.manifest.cluster_classes)):
            said |= {f"{column} class {name}": number for name, number in classes.items()}
        wrong = {name for name in said.keys() | self._counted.keys() if said.get(name, 0) != self._counted[name]}
        examples = tuple(f"{name}: {said.get(name, 0)} in manifest.json, {self._counted[name]} in the shards" for name in sorted(wrong))
        measurement = count_violations("counts that differ", len(wrong), len(said))
        numbers = {"manifest": said, "shards": dict(self._counted)}
        return self._result(measurement, numbers=numbers, examples=examples[:10])


class SplitGate(ViolationGate):
    """Splits follow from the hash and have the sizes that chance gives."""

    name = "splits"
    title = "splits are 80/10/10"
    definition = (
        "Each event's split is the one of its split_hash, and the numbers are as uneven as chance makes them: probability of a chi-square"
        " test against 80/10/10."
    )
    needs_usable_events = False

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._counts: Counter[str] = Counter()

    def rules(self, batch: EventBatch) -> Iterator[Rule]:
        split = batch.of_event("split").astype(str)
        self._counts.update(split.tolist())
        yield Rule("split is not of the hash", split != np.array(splits_of(batch.of_event("split_hash"))), np.arange(batch.num_events))

    def result(self) -> GateResult:
        counts = np.array([self._counts[name] for name in SPLITS])
        total = int(counts.sum())
        fractions = np.array([TRAIN_FRACTION, VALIDATION_FRACTION, 1 - TRAIN_FRACTION - VALIDATION_FRACTION])
        probability, status = math.nan, Status.TOO_FEW
        if total * fractions.min() >= MIN_EXPECTED_IN_SPLIT:
            probability = float(chisquare(counts, total * fractions).pvalue)
            status = Status.PASS if probability >= MIN_SPLIT_PROBABILITY else Status.FAIL
        evenness = Measurement("chi-square probability", MIN_SPLIT_PROBABILITY, math.inf, Estimate(probability, math.nan), total, status)
        numbers = {"splits": list(SPLITS), "counts": counts.tolist(), "expected": (total * fractions).tolist()}
        return self._result(*self.counted(), evenness, numbers=numbers, examples=self.examples())


class ClosureGate(Gate):
    """Energy is neither lost nor made."""

    name = "energy_closure"
    title = "energy closure"
    definition = (
        "Of the energies in the shards: |visible - targets - dropped| / visible, where visible is the sum of gen_particle, targets that of"
        " the target energies, dropped that of particles without owner; the largest of any event and of any shard, and the manifest's sums"
        " against the shards'."
    )

    needs_usable_events = False

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._errors: list[NDArray[np.float32]] = []
        self._dropped: list[NDArray[np.float32]] = []
        self._shards: dict[str, NDArray[np.float64]] = {}
        self._examples: list[str] = []

    def add(self, batch: EventBatch) -> None:
        particles, targets, num = batch.lists["gen_particle"], batch.targets, batch.num_events
        energy = np.asarray(particles["energy"], np.float64)
        visible = sum_per_event(particles.event, energy, num_events=num)
        dropped = sum_per_event(particles.event, energy * (particles["owner"] < 0), num_events=num)
        carried = sum_per_event(targets.event, targets["energy"] * (targets["class"] > 0), num_events=num)
        error = _relative(np.abs(visible - carried - dropped), visible)
        self._errors.append(error.astype(np.float32))
        self._dropped.append(_relative(dropped, visible).astype(np.float32))
        sums = np.array([visible.sum(), carried.sum(), dropped.sum()])
        self._shards[batch.shard] = self._shards.get(batch.shard, np.zeros(3)) + sums
        open_events = np.flatnonzero(error > MAX_CLOSURE_ERROR)[: max(0, 3 - len(self._examples))]
        self._examples += [f"{error[event]:.1e} of the visible energy: {batch.name_event(event)}" for event in open_events]

    def result(self) -> GateResult:
        errors, shards = np.concatenate([*self._errors, np.zeros(0, np.float32)]), list(self._shards.values())
        total = np.sum(shards, axis=0) if shards else np.zeros(3)
        said = self.manifest.energy
        of_manifest = np.abs(total - [said.visible, said.targets, said.dropped]) / max(total[0], 1e-30)
        of_shards = [abs(visible - targets - dropped) / max(visible, 1e-30) for visible, targets, dropped in shards]
        fraction = float(total[2] / total[0]) if total[0] else math.nan
        measurements = (
            at_most("largest of an event", float(errors.max(initial=0)), MAX_CLOSURE_ERROR, len(errors)),
            at_most("largest of a shard", max(of_shards, default=0.0), MAX_CLOSURE_ERROR, len(shards)),
            at_most("manifest against shards", float(of_manifest.max()), MAX_CLOSURE_ERROR, 3),
            at_most("fraction dropped", fraction, MAX_DROPPED_FRACTION, len(errors) if total[0] else 0),
        )
        distributions = {"closure": errors, "dropped": np.concatenate([*self._dropped, np.zeros(0, np.float32)])}
        numbers = dict(zip(("visible", "targets", "dropped"), total.tolist(), strict=True))
        return self._result(*measurements, distributions=distributions, numbers=numbers, examples=tuple(self._examples))


def _relative(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
