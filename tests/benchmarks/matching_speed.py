"""Matching of jets and bootstrap of their response beside per-event Python loops of the same algorithms, on real jets.

    OMP_NUM_THREADS=1 python tests/benchmarks/matching_speed.py SHARDS [--events 10000] [--rounds 7]

SHARDS: any with truth; jets of their truth targets (and rule-based candidates, if there are) with gen jets. All ways are timed in turn
in every round, in CPU time of this process, so that a busy machine slows all of them and counts for none. Matches must be identical,
quantiles equal to rounding; otherwise the program ends with an error.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfscale.physics.bootstrap import NUM_REPLICAS, EventBootstrap, event_bootstrap, quantiles
from pfscale.physics.jets import cluster_jets
from pfscale.physics.matching import MATCH_MAX_DELTA_R, match_jets
from pfscale.shards.dataset import load_index, read_events
from pfscale.shards.ragged import GEN_COLUMNS, INPUT_COLUMNS, TARGET_COLUMNS, RaggedEvents, list_leaves
from pfscale.tasks.reconstruction import target_candidates

PROBABILITIES = (0.25, 0.5, 0.75)
MOMENTA = ("px", "py", "pz", "energy")
BASELINE_COLUMNS = tuple(f"baseline.list.element.{name}" for name in MOMENTA)
Pairs = set[tuple[int, int]]


@dataclass(frozen=True)
class JetSample:
    """What is matched, by the names of `match_jets`, and the pt of both sides, GeV."""

    name: str
    arguments: dict[str, Any]
    reco_pt: np.ndarray
    gen_pt: np.ndarray


def real_jets(shards: str, num_events: int) -> Iterator[JetSample]:
    """Jets of each reconstruction in the shards, clustered here, with the gen jets of the same events."""
    index = load_index(shards)
    extra = BASELINE_COLUMNS if index.manifest.has_baseline else ()
    events = read_events(index, np.arange(num_events), (*INPUT_COLUMNS, *TARGET_COLUMNS, *GEN_COLUMNS, *extra))
    particles = {"truth targets": truth_targets(events)}
    if extra:
        offsets, leaves = list_leaves(events.table, "baseline")
        particles["rule-based"] = {"event": np.repeat(np.arange(num_events), np.diff(offsets)), **leaves}
    offsets, gen = list_leaves(events.table, "gen_jet")
    gen = {name: values.astype(np.float64) for name, values in gen.items()}
    for name, columns in particles.items():
        jets = cluster_jets(num_events=num_events, **columns)
        arguments = {
            "num_events": num_events, "reco_event": jets.event, "reco_eta": jets.eta, "reco_phi": jets.phi,
            "gen_event": np.repeat(np.arange(num_events), np.diff(offsets)), "gen_eta": gen["eta"], "gen_phi": gen["phi"],
        }  # fmt: skip
        yield JetSample(name, arguments, jets.pt, gen["pt"])


def truth_targets(events: RaggedEvents) -> dict[str, np.ndarray]:
    """Event and momenta of the particles that a perfect model would find."""
    element = np.arange(len(events.is_track)) - np.repeat(events.offsets[:-1], events.lengths)
    found = target_candidates(event=events.event, element_index=element, is_track=events.is_track, targets=events.targets)
    return {name: getattr(found, name) for name in ("event", *MOMENTA)}


def loop_match(
    *, num_events: int, reco_event: list, reco_eta: list, reco_phi: list, gen_event: list, gen_eta: list, gen_phi: list
) -> Pairs:
    """The matches in plain Python on lists: an event's pairs within the distance, sorted, the closest taken first."""
    reco_of: list[list[int]] = [[] for _ in range(num_events)]
    gen_of: list[list[int]] = [[] for _ in range(num_events)]
    for rows, of in ((reco_event, reco_of), (gen_event, gen_of)):
        for row, event in enumerate(rows):
            of[event].append(row)
    matches = set()
    for event in range(num_events):
        pairs = []
        for i in reco_of[event]:
            for j in gen_of[event]:
                delta_phi = (reco_phi[i] - gen_phi[j] + math.pi) % (2 * math.pi) - math.pi
                distance = math.hypot(reco_eta[i] - gen_eta[j], delta_phi)
                if distance < MATCH_MAX_DELTA_R:
                    pairs.append((distance, i, j))
        used_reco, used_gen = set(), set()
        for _, i, j in sorted(pairs):
            if i not in used_reco and j not in used_gen:
                used_reco.add(i)
                used_gen.add(j)
                matches.add((i, j))
    return matches


def numpy_loop_match(
    *,
    num_events: int,
    reco_event: np.ndarray,
    reco_eta: np.ndarray,
    reco_phi: np.ndarray,
    gen_event: np.ndarray,
    gen_eta: np.ndarray,
    gen_phi: np.ndarray,
) -> Pairs:
    """The matches with numpy inside each event: distances as a matrix, the smallest taken until none is left."""
    reco_start, gen_start = (np.searchsorted(event, np.arange(num_events + 1)) for event in (reco_event, gen_event))
    matches = set()
    for event in range(num_events):
        r, g = slice(reco_start[event], reco_start[event + 1]), slice(gen_start[event], gen_start[event + 1])
        delta_phi = (reco_phi[r, None] - gen_phi[None, g] + np.pi) % (2 * np.pi) - np.pi
        distance = np.hypot(reco_eta[r, None] - gen_eta[None, g], delta_phi)
        while distance.size and distance.min() < MATCH_MAX_DELTA_R:
            i, j = np.unravel_index(distance.argmin(), distance.shape)
            matches.add((int(r.start + i), int(g.start + j)))
            distance[i, :] = distance[:, j] = np.inf
    return matches


def loop_bootstrap(values: np.ndarray, event: np.ndarray, bootstrap: EventBootstrap) -> np.ndarray:
    """Quantiles of every replica, its sample put together event by event."""
    starts = np.searchsorted(event, np.arange(bootstrap.num_events + 1))
    of_event = [values[begin:end] for begin, end in itertools.pairwise(starts)]
    replicas = []
    for counts in bootstrap.counts:
        sample = [of_event[number] for number, count in enumerate(counts) for _ in range(count)]
        replicas.append(np.quantile(np.concatenate(sample), PROBABILITIES))
    return np.array(replicas)


def replica_loop_bootstrap(values: np.ndarray, event: np.ndarray, bootstrap: EventBootstrap) -> np.ndarray:
    """Quantiles of every replica, its sample made by one call of numpy."""
    return np.array([np.quantile(np.repeat(values, counts[event]), PROBABILITIES) for counts in bootstrap.counts])


def timed(seconds: list[float], work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What `work` returns; its CPU time is added to `seconds`."""
    begin = time.process_time()
    result = work(*arguments, **named)
    seconds.append(time.process_time() - begin)
    return result


def show(title: str, seconds: dict[str, list[float]]) -> None:
    """Best time of each way; how many times slower than the first it is, best over best and in each round."""
    print(title)
    ours = next(iter(seconds.values()))
    for way, times in seconds.items():
        ratios = ", ".join(f"{theirs / mine:.1f}" for mine, theirs in zip(ours, times, strict=True))
        print(
            f"  {way:32} {min(times) * 1e3:8.1f} ms" + (f"   {min(times) / min(ours):6.1f} (rounds: {ratios})" if times is not ours else "")
        )


def compare_matching(sample: JetSample, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """(response, event) of the matches, after printing the times."""
    arrays = sample.arguments
    lists = {name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in arrays.items()}
    seconds: dict[str, list[float]] = {"match_jets": [], "loop over events": [], "loop over events, numpy inside": []}
    ours, plain, numpy_inside = seconds.values()
    for _ in range(rounds):
        found = timed(ours, match_jets, **arrays)
        expected = timed(plain, loop_match, **lists)
        also = timed(numpy_inside, numpy_loop_match, **arrays)
        if not set(zip(found.reco.tolist(), found.gen.tolist(), strict=True)) == expected == also:
            raise SystemExit("the matches differ")
    show(f"matching, {sample.name}: {len(sample.reco_pt)} and {len(sample.gen_pt)} jets, {len(found)} matches", seconds)
    return sample.reco_pt[found.reco] / sample.gen_pt[found.gen], arrays["gen_event"][found.gen]


def compare_bootstrap(sample: JetSample, values: np.ndarray, event: np.ndarray, rounds: int) -> None:
    bootstrap = event_bootstrap(sample.arguments["num_events"], seed=1)
    seconds: dict[str, list[float]] = {"quantiles": [], "loop over events": [], "loop over replicas, numpy inside": []}
    ours, plain, numpy_inside = seconds.values()
    for _ in range(rounds):
        _, found = timed(ours, quantiles, values, event, PROBABILITIES, bootstrap)
        for way, loop in ((plain, loop_bootstrap), (numpy_inside, replica_loop_bootstrap)):
            np.testing.assert_allclose(found, timed(way, loop, values, event, bootstrap), rtol=1e-12)
    show(f"bootstrap, {sample.name}: quartiles of {len(values)} responses in {NUM_REPLICAS} replicas", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    match_jets(num_events=1, reco_event=[], reco_eta=[], reco_phi=[], gen_event=[], gen_eta=[], gen_phi=[])
    print(f"first call of match_jets (compiled, or loaded from disk): {time.perf_counter() - begin:.2f} s")
    for sample in real_jets(arguments.shards, arguments.events):
        values, event = compare_matching(sample, arguments.rounds)
        compare_bootstrap(sample, values, event, min(arguments.rounds, 3))


if __name__ == "__main__":
    main()
