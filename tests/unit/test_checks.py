"""The gates on a data set: good data pass, and data spoiled in one way fail exactly the gate that is there for it."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from pfscale.cli import run
from pfscale.commands.terminal import GATES_FAILED
from pfscale.edm4hep.detectors import find_detector
from pfscale.edm4hep.origin import ORIGINS
from pfscale.edm4hep.reader import open_source
from pfscale.errors import ShardError
from pfscale.physics.bootstrap import Estimate
from pfscale.physics.jets import cluster_jets
from pfscale.physics.kinematics import cartesian
from pfscale.report import data_checks
from pfscale.report.data_checks import Panel, draw_classes, draw_gate, sentence, write_checks
from pfscale.shards import checks as checks_module
from pfscale.shards.checks import GATES, check_data
from pfscale.shards.events import extract_events
from pfscale.shards.gate import EventBatch, Median, Most, RatioGate, Rule, ViolationGate
from pfscale.shards.manifest import EnergySums, Manifest, QuarantinedSource, ShardRecord, write_manifest
from pfscale.shards.measurement import MIN_ENTRIES, SIGNIFICANCE, Entries, Fraction, Status, errors_of, judge
from pfscale.shards.schema import CLASSES, SPLITS, arrow_schema
from pfscale.shards.splits import event_uids, split_hashes, splits_of
from synthetic_events import synthetic_table

NUM_EVENTS, BOOST = 120, 3.8
CLD = Path(__file__).parent.parent / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"
Rows = list[dict[str, Any]]
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a machine with other work


def good_rows(num_events: int = NUM_EVENTS) -> Rows:
    """Synthetic events completed to what ingest would write: identities, owners, jets, all classes, neutrinos that balance."""
    rows = synthetic_table(num_events, seed=3, max_particles=30).to_pylist()
    identity = ("synthetic", list(range(num_events)), [1] * num_events, list(range(num_events)))
    hashes = split_hashes(*identity)
    for row, uid, split_hash, split in zip(rows, event_uids(*identity), hashes, splits_of(hashes), strict=True):
        row["event"] |= {"uid": int(uid), "split_hash": int(split_hash), "split": split}
        add_leptons(row)
        element = 0
        for kind in ("track", "cluster"):
            for target in row[f"{kind}_target"]:
                if target["class"]:
                    row["gen_particle"][target["particle_number"]]["owner"] = element
                element += 1
        add_jets(row)
        met = row["gen_met"]
        row["gen_met"] = met | {"neutrino_px": met["px"] + BOOST, "neutrino_py": met["py"], "boost_px": BOOST}
    return rows


def add_leptons(row: dict[str, Any]) -> None:
    """Makes one track in ten an electron and one a muon."""
    for number, target in enumerate(row["track_target"]):
        if number % 10 in (3, 7):
            code, name = (11, "11") if number % 10 == 3 else (13, "13")
            target["class"] = CLASSES.index(name)
            row["gen_particle"][target["particle_number"]]["pdg"] = -code * target["charge"]


def add_jets(row: dict[str, Any]) -> None:
    particles = row["gen_particle"]
    px, py, pz = cartesian(*([p[name] for p in particles] for name in ("pt", "eta", "phi")))
    event = np.zeros(len(particles), np.int64)
    jets = cluster_jets(num_events=1, event=event, px=px, py=py, pz=pz, energy=[p["energy"] for p in particles])
    fields = ("pt", "eta", "phi", "energy")
    momenta = [dict(zip(fields, values, strict=True)) for values in zip(*(getattr(jets, f) for f in fields), strict=True)]
    row["gen_jet"] = [momentum | {"flavour": 1, "top_role": 0} for momentum in momenta]
    for particle, jet in zip(particles, jets.jet_of_particle, strict=True):
        particle["jet_idx"] = int(jet)
    for target in row["track_target"] + row["cluster_target"]:
        if target["class"]:
            target["jet_idx"] = particles[target["particle_number"]]["jet_idx"]


def write_data(rows: Rows, folder: Path, **changes: Any) -> Path:
    """Two shards and a manifest that says what is in them, but for `changes`."""
    folder.mkdir()
    records, start = [], 0
    for part in (rows[: len(rows) // 3], rows[len(rows) // 3 :]):
        if part:
            name = f"events_{start:06d}.parquet"
            pq.write_table(pa.Table.from_pylist(part, schema=arrow_schema()), folder / name, row_group_size=50)
            records.append(ShardRecord(file=name, source="synthetic", start=start, stop=start + len(part), num_events=len(part)))
            start += len(part)
    write_manifest(folder, manifest_of(rows, records).model_copy(update=changes))
    return folder


def manifest_of(rows: Rows, records: list[ShardRecord]) -> Manifest:
    targets = {kind: [t["class"] for row in rows for t in row[f"{kind}_target"]] for kind in ("track", "cluster")}
    counts = {kind: {name: codes.count(i) for i, name in enumerate(CLASSES)} for kind, codes in targets.items()}
    particles = [p for row in rows for p in row["gen_particle"]]
    carried = [t["energy"] for row in rows for kind in ("track", "cluster") for t in row[f"{kind}_target"] if t["class"]]
    return Manifest(
        extraction_version=1,
        hash="good",
        request="good",
        detector="clic",
        process="synthetic",
        simulation="builtin",
        has_baseline=False,
        num_events=len(rows),
        splits={name: sum(row["event"]["split"] == name for row in rows) for name in SPLITS},
        track_classes=counts["track"],
        cluster_classes=counts["cluster"],
        num_particles=len(particles),
        num_surrogates=0,
        energy=EnergySums(
            visible=sum(p["energy"] for p in particles),
            targets=sum(carried),
            dropped=sum(p["energy"] for p in particles if p["owner"] < 0),
        ),
        sources=(),
        shards=tuple(records),
    )


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Good events; to be copied before they are spoiled."""
    return good_rows()


@pytest.fixture(scope="module")
def good(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good data set."""
    return write_data(rows, tmp_path_factory.mktemp("checks") / "good")


def failed(folder: Path) -> set[str]:
    return {gate.name for gate in check_data(folder).failed}


def test_good_data_pass(good: Path) -> None:
    """Catches gates that fail, or have nothing to say, on data that are as they should be."""
    found = check_data(good)
    assert {gate.name: gate.status for gate in found.gates} == dict.fromkeys([kind.name for kind in GATES], Status.PASS)
    assert (found.num_events, found.num_usable, found.num_physics) == (NUM_EVENTS,) * 3


def scale(column: str, *names: str, by: float) -> Callable[[Rows], None]:
    """Multiplies fields of all elements of a column."""

    def spoil(rows: Rows) -> None:
        for row in rows:
            for item in row[column] if isinstance(row[column], list) else [row[column]]:
                for name in names:
                    item[name] *= by

    return spoil


def drop_half_of_the_hits(rows: Rows) -> None:
    scale("cluster", "energy_ecal", "energy_hcal", "energy_other", by=0.5)(rows)
    scale("cluster_target", "gp_to_cluster", by=0.5)(rows)


def lose_electrons(rows: Rows) -> None:
    for row in rows:
        for target in row["track_target"]:
            if target["class"] == CLASSES.index("11"):
                target["class"] = CLASSES.index("211")


def shift_jets_of_targets(rows: Rows) -> None:
    for row in rows:
        for target in row["track_target"] + row["cluster_target"]:
            if target["jet_idx"] >= 0:
                target["jet_idx"] = (target["jet_idx"] + 1) % len(row["gen_jet"])


def shift_jets_of_all(rows: Rows) -> None:
    shift_jets_of_targets(rows)
    for row in rows:
        for particle in row["gen_particle"]:
            if particle["jet_idx"] >= 0:
                particle["jet_idx"] = (particle["jet_idx"] + 1) % len(row["gen_jet"])


def repeat_an_event(rows: Rows) -> None:
    rows[-1] = copy.deepcopy(rows[0])


def break_closure_of_one_event(rows: Rows) -> None:
    rows[-7]["cluster_target"] = [target | {"energy": target["energy"] * 1.0001} for target in rows[-7]["cluster_target"]]
    assert any(target["class"] for target in rows[-7]["cluster_target"])


def swap_splits(rows: Rows) -> None:
    for row in rows:
        row["event"]["split"] = {"train": "test", "test": "train"}.get(row["event"]["split"], row["event"]["split"])


def put_all_into_training(rows: Rows) -> None:
    for row in rows:
        row["event"] |= {"split": "train", "split_hash": row["event"]["split_hash"] // 2}


def put_nan_into_one_cluster(rows: Rows) -> None:
    next(row for row in rows if row["cluster"])["cluster"][0]["sigma_x"] = float("nan")


def point_beyond_the_particles(rows: Rows) -> None:
    row = next(row for row in rows if row["track_target"])
    row["track_target"][0]["particle_number"] = len(row["gen_particle"])


def point_beyond_the_tracks(rows: Rows) -> None:
    candidate = {"pdg": 211, "charge": 1, "px": 1.0, "py": 0.0, "pz": 0.0, "energy": 1.0, "cluster_index": []}
    rows[5]["baseline"] = [candidate | {"track_index": [len(rows[5]["track"])]}]


def name_an_origin_that_does_not_exist(rows: Rows) -> None:
    rows[4]["gen_particle"][0]["origin"] = len(ORIGINS)


def name_a_role_that_does_not_exist(rows: Rows) -> None:
    next(row for row in rows if row["gen_jet"])["gen_jet"][0]["top_role"] = -3


def lose_a_target_row(rows: Rows) -> None:
    row = next(row for row in rows if any(not target["class"] for target in row["cluster_target"]))
    row["cluster_target"].remove(next(target for target in row["cluster_target"] if not target["class"]))


def carry_a_particle_twice(rows: Rows) -> None:
    """One photon shared by two clusters, its energy by halves, so that sums do not notice."""
    for row in rows:
        carrying = [t for t in row["cluster_target"] if t["class"]]
        free = [i for i, t in enumerate(row["cluster_target"]) if not t["class"]]
        if carrying and free:
            for name in ("pt", "energy", "gp_to_cluster"):
                carrying[0][name] /= 2
            row["cluster_target"][free[0]] = dict(carrying[0])
            return
    raise AssertionError("no event fits")


def shift_owners(rows: Rows) -> None:
    for particle in rows[3]["gen_particle"]:
        particle["owner"] = (particle["owner"] + 1) % (len(rows[3]["track"]) + len(rows[3]["cluster"]))


def mix_up_tracks(rows: Rows) -> None:
    """Every track gets the pt of its neighbour: the median ratio stays 1."""
    for row in rows:
        pts = [track["pt"] for track in row["track"]]
        for track, pt in zip(row["track"], pts[1:] + pts[:1], strict=True):
            track["pt"] = pt


def bend_the_tracks_of_some_events(rows: Rows) -> None:
    """A file with another magnetic field among good ones: the median stays within its range."""
    scale("track", "pt", by=1.5)(rows[: len(rows) // 3])


def turn_gen_jets(rows: Rows) -> None:
    for row in rows:
        for jet in row["gen_jet"]:
            jet["phi"] = jet["phi"] - np.pi if jet["phi"] > 0 else jet["phi"] + np.pi


@pytest.mark.parametrize(
    ("spoil", "caught_by"),
    [
        (scale("track", "pt", by=1.5), {"track_pt"}),
        (drop_half_of_the_hits, {"hit_energy"}),
        (scale("cluster", "energy", by=0.5), {"cluster_energy"}),
        (lose_electrons, {"classes"}),
        (shift_jets_of_targets, {"links"}),
        (shift_jets_of_all, {"jet_members"}),
        (repeat_an_event, {"unique"}),
        (break_closure_of_one_event, {"energy_closure"}),
        (swap_splits, {"splits"}),
        (put_all_into_training, {"splits"}),
        (put_nan_into_one_cluster, {"finite"}),
        (point_beyond_the_particles, {"indices"}),
        (point_beyond_the_tracks, {"indices"}),
        (name_an_origin_that_does_not_exist, {"indices"}),
        (name_a_role_that_does_not_exist, {"indices"}),
        (lose_a_target_row, {"indices"}),
        (carry_a_particle_twice, {"links"}),
        (shift_owners, {"links"}),
        (scale("gen_jet", "pt", by=1.3), {"target_jets"}),
        (turn_gen_jets, {"target_jets"}),
        (scale("gen_met", "boost_px", by=-1.0), {"missing_momentum"}),
        (scale("gen_met", "neutrino_py", by=-1.0), {"missing_momentum"}),  # the median stays
        (mix_up_tracks, {"track_pt"}),
        (bend_the_tracks_of_some_events, {"track_pt"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", None) or ",".join(value) or "nothing",
)
def test_each_gate_catches_what_it_is_for(spoil: Callable[[Rows], None], caught_by: set[str], rows: Rows, tmp_path: Path) -> None:
    """Catches a gate that sleeps, and gates that all shout at once so that nobody can tell what is wrong."""
    spoiled = copy.deepcopy(rows)
    spoil(spoiled)
    assert failed(write_data(spoiled, tmp_path / "bad")) == caught_by


def test_a_wrong_manifest_is_noticed(rows: Rows, tmp_path: Path) -> None:
    """Catches shards that were exchanged under a manifest, and energies that only the manifest has right."""
    assert failed(write_data(rows, tmp_path / "counts", num_particles=7)) == {"manifest"}
    assert failed(write_data(rows, tmp_path / "energy", energy=EnergySums(visible=2.0, targets=1.0, dropped=1.0))) == {"energy_closure"}


def test_violations_name_their_event(rows: Rows, tmp_path: Path) -> None:
    """Catches a failure that nobody can look at because it does not say in which event it is."""
    spoiled = copy.deepcopy(rows)
    break_closure_of_one_event(spoiled)
    (gate,) = check_data(write_data(spoiled, tmp_path / "bad")).failed
    (example,) = gate.examples
    assert f"synthetic:{NUM_EVENTS - 7} " in example


def test_events_with_broken_indices_are_kept_from_other_gates(rows: Rows, tmp_path: Path) -> None:
    """Catches a crash, or nonsense in other gates, on the very data that the gates are for."""
    spoiled = copy.deepcopy(rows)
    for row in spoiled[:30]:
        for target in row["track_target"]:
            target["particle_number"], target["class"] = 10_000, 99
    found = check_data(write_data(spoiled, tmp_path / "bad", track_classes={}, cluster_classes={}, energy=EnergySums()))
    assert {gate.name for gate in found.failed} >= {"indices", "manifest"}
    assert found.num_usable < NUM_EVENTS


def test_fast_simulation_has_no_gate_on_hits(rows: Rows, tmp_path: Path) -> None:
    """Catches a fast-simulation data set that can never pass because it has no hits."""
    spoiled = copy.deepcopy(rows)
    drop_half_of_the_hits(spoiled)
    found = check_data(write_data(spoiled, tmp_path / "fast", simulation="fast"))
    assert not found.failed
    assert {gate.name for gate in found.gates if gate.status is Status.NOT_APPLICABLE} == {"hit_energy"}


def test_few_events_are_neither_pass_nor_fail(tmp_path: Path) -> None:
    """Catches a verdict on two jets, and one event for which nothing is said at all: the real CLD event."""
    with open_source(str(CLD)) as source:
        table = extract_events(source, find_detector("cld"), 0, 1, with_truth=True).table
    found = check_data(write_data(table.to_pylist(), tmp_path / "cld", detector="cld", simulation="geant4"))
    status = {gate.name: gate.status for gate in found.gates}
    assert not found.failed
    assert all(
        status[name] is Status.PASS for name in ("links", "indices", "finite", "energy_closure", "classes", "track_pt", "cluster_energy")
    )
    assert all(status[name] is Status.TOO_FEW for name in ("splits", "target_jets", "jet_members", "missing_momentum"))
    assert "too few" in rendered(found)


def test_nothing_to_look_at(tmp_path: Path) -> None:
    """Catches a division by zero, or figures that cannot be drawn, where events hold no element at all."""
    rows = good_rows(12)
    for row in rows:
        row |= {column: [] for column in ("track", "cluster", "track_target", "cluster_target", "gen_particle", "gen_jet", "baseline")}
    found, _ = write_checks(write_data(rows, tmp_path / "empty"))
    assert not found.failed


def test_large_data_sets_are_sampled_by_uid(rows: Rows, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a sample that depends on the order of the events, and one that is taken without a word."""
    monkeypatch.setattr(checks_module, "MAX_PHYSICS_EVENTS", 60)
    found = check_data(good)
    assert 40 < found.num_physics < 80
    assert str(found.num_physics) in rendered(found)
    turned = check_data(write_data(rows[::-1], tmp_path / "turned"))
    medians = [[m.value.value for gate in some.gates for m in gate.measurements if "median" in m.what] for some in (found, turned)]
    assert medians[0] == pytest.approx(medians[1], nan_ok=True)


def test_a_torn_shard_is_an_error(rows: Rows, tmp_path: Path) -> None:
    """Catches a traceback of Arrow where a shard was cut."""
    folder = write_data(rows[:20], tmp_path / "torn")
    shard = folder / "events_000000.parquet"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(ShardError):
        check_data(folder)


@patient
@given(value=st.floats(-10, 10), error=st.floats(0, 5), num_entries=st.integers(0, 1000))
def test_verdicts(value: float, error: float, num_entries: int) -> None:
    """Catches a failure that a fluctuation explains, a pass outside the range, and a verdict on a handful of entries."""
    status = judge(Estimate(value, error), num_entries, -1.0, 2.0)
    if num_entries < MIN_ENTRIES:
        assert status is Status.TOO_FEW
    elif -1.0 <= value <= 2.0:
        assert status is Status.PASS
    else:
        assert status is (Status.FAIL if max(-1.0 - value, value - 2.0) > 3 * error else Status.TOO_FEW)


@patient
@given(found=st.integers(0, 60), others=st.integers(0, 60), at_least=st.floats(0.01, 0.99))
def test_fractions_are_judged_by_the_error_of_what_is_expected(found: int, others: int, at_least: float) -> None:
    """Catches errors of zero for 0 of N and N of N, and a table or figure whose errors are others than those that decide."""
    num = found + others
    fraction = Fraction(found, num, num)
    if not num:
        assert str(fraction) == "-"
        assert judge(fraction, num, at_least, math.inf) is Status.TOO_FEW
        return
    assert fraction.interval() == pytest.approx(tuple(binomtest(found, num).proportion_ci(math.erf(math.sqrt(0.5)), "wilson")), abs=1e-9)
    down, up = errors_of(fraction)
    assert (down > 0) is (found > 0)
    assert (up > 0) is (others > 0)
    distance, error = at_least - fraction.value, math.sqrt(at_least * (1 - at_least) / num)
    if num >= MIN_ENTRIES and abs(distance - SIGNIFICANCE * error) > 1e-9:
        far = Status.FAIL if distance > SIGNIFICANCE * error else Status.TOO_FEW
        assert judge(fraction, num, at_least, math.inf) is (Status.PASS if distance <= 0 else far)


def test_entries_of_one_event_are_not_independent() -> None:
    """Catches a failure on two bad events among twelve, each with a hundred tracks, as if they were 1200 measurements."""
    together, apart = Entries(), Entries()
    ratios = np.where(np.arange(1200) % 12 < 2, 1.5, 1.0)
    together.add(ratios, np.arange(1200) % 12, 12)
    apart.add(np.sort(ratios), np.arange(1200) % 12, 12)
    few, many = (entries.fraction_within("good", 0.8, 1.2, at_least=0.9).value for entries in (together, apart))
    assert isinstance(few, Fraction)
    assert isinstance(many, Fraction)
    assert few.value == many.value
    assert 6 < few.num_independent < 24
    assert many.num_independent == 1200
    assert together.fraction_within("good", 0.8, 1.2, at_least=0.9).status is Status.TOO_FEW
    assert apart.fraction_within("good", 0.8, 1.2, at_least=0.9).status is Status.FAIL


def test_fractions_say_how_many_of_how_many(good: Path) -> None:
    """Catches "0.944 of 18" and "1 of 2" for a fraction of 1: a fraction that reads as a count."""
    entries = Entries()
    entries.add([1.0] * 17 + [3.0], np.zeros(18, int), 1)
    measurement = entries.fraction_within("tracks in 0.8 to 1.2", 0.8, 1.2, at_least=0.85)
    assert "0.944 +0.034 −0.081 (17 of 18)" in sentence(measurement)
    assert measurement.entries == "17/18"
    numbers = data_checks._measurement_numbers(measurement)
    assert (numbers["found"], numbers["entries"]) == (17, 18)
    assert numbers["interval"][0] < numbers["value"] < numbers["interval"][1]
    for gate in check_data(good).gates:
        figure, _ = draw_gate(gate)
        texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
        for m in gate.measurements:
            assert not any(f"{m.observed} of" in text for text in texts if isinstance(m.value, Fraction))
            assert not isinstance(m.value, Fraction) or any(f"({m.value.num_found} of {m.num_entries})" in text for text in texts)


PANELS = [panel for panels in data_checks.PANELS.values() for panel in panels]


@patient
@given(panel=st.sampled_from(PANELS), num_entries=st.sampled_from([1, 10_000]), median=st.floats(-50, 50))
def test_no_bin_edge_at_the_expected_value(panel: Panel, num_entries: int, median: float) -> None:
    """Catches a peak at ratio 1 that is split into two bins, and a wrong field that is off the axis and so not seen."""
    axis = panel.reaching(median).axis(num_entries)
    assert np.abs(axis.centers - panel.centre).min() < 1e-6
    assert axis.edges[0] <= min(panel.low, median) + 1e-6
    assert axis.edges[-1] >= max(panel.high, median) - 1e-6
    assert len(axis) < 200


def error_bars(axes: Axes) -> Iterator[tuple[float, float]]:
    for container in axes.containers:
        for lines in container.lines[2] if hasattr(container, "lines") else ():
            yield from (tuple(segment[:, 1]) for segment in lines.get_segments())


@pytest.mark.parametrize("num_events", [2, 12, NUM_EVENTS])
def test_error_bars_are_within_the_frame(num_events: int, rows: Rows, tmp_path: Path) -> None:
    """Catches error bars cut by the frame, and logarithmic axes of four decades for two entries."""
    found = check_data(write_data(rows[:num_events], tmp_path / "some"))
    num_bars = 0
    for gate in found.gates:
        for axes in draw_gate(gate)[0].axes:
            bottom, top = axes.get_ylim()
            bars = list(error_bars(axes))
            num_bars += len(bars)
            assert all(bottom <= low < high <= top for low, high in bars)
            if bars and num_events < NUM_EVENTS:
                assert axes.get_yscale() == "linear" or max(high for _, high in bars) > 50
    assert num_bars > 10


def test_no_bar_where_there_is_nothing(good: Path) -> None:
    """Catches a count of 0 drawn as a bar, and one that is not written at all."""
    (gate,) = (gate for gate in check_data(good).gates if gate.name == "classes")
    counts = gate.numbers["track"] + gate.numbers["cluster"]
    assert 0 in counts
    figure, _ = draw_classes(gate)
    (axes,) = figure.axes
    assert sorted(bar.get_height() for bar in axes.patches if bar.get_height() > 0) == sorted(number for number in counts if number)
    assert [text.get_text() for text in axes.texts].count("0") == counts.count(0)


def test_exact_closure_is_not_counted_in_the_legend(good: Path) -> None:
    """Catches a legend that says "0 in the first bin" above a first bin that holds all events."""
    (gate,) = (gate for gate in check_data(good).gates if gate.name == "energy_closure")
    figure, numbers = draw_gate(gate)
    assert numbers["closure_counts"][0] > 0
    assert sum(numbers["closure_counts"]) == NUM_EVENTS
    assert "exact closure drawn in the first bin" in figure.axes[0].get_legend().get_texts()[-1].get_text()


class GenJetEnergyGate(RatioGate):
    name = "jet_energy"
    title = "gen jet pt / energy"
    definition = "Transverse momentum over energy."
    expectations = (Median("jets", 0.0, 1.2), Most("jets", 0.0, 1.0, at_least=0.5))

    def ratios(self, batch: EventBatch) -> Mapping[str, Any]:
        jets = batch.lists["gen_jet"]
        return {"jets": (jets["pt"] / jets["energy"], jets.event)}


class WeightGate(ViolationGate):
    name = "weights"
    title = "weights are positive"
    definition = "Event weights are positive."

    def rules(self, batch: EventBatch) -> Iterator[Rule]:
        yield Rule("weight not positive", ~(batch.of_event("weight") > 0), np.arange(batch.num_events))


def test_a_new_gate_is_one_class_and_one_table_line(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a gate that also needs an entry among the figures, without which it is drawn as something else or not at all."""
    monkeypatch.setattr(checks_module, "GATES", (GenJetEnergyGate, WeightGate))
    found, written = write_checks(write_data(rows, tmp_path / "good"))
    assert [gate.status for gate in found.gates] == [Status.PASS] * 2
    assert [m.num_entries for m in found.gates[1].measurements] == [NUM_EVENTS]
    assert {path.stem for path in Path(written).glob("*.png")} == {"jet_energy", "weights"}
    assert len(draw_gate(found.gates[0])[1]["jets"]["counts"]) > 20


def test_rows_are_counted_once(rows: Rows, good: Path) -> None:
    """Catches gates that look at a batch twice, once for the events to hide and once for their own result."""
    (indices,) = (gate for gate in check_data(good).gates if gate.name == "indices")
    checked = {m.what: m.num_entries for m in indices.measurements}
    assert checked["one target per track"] == NUM_EVENTS
    assert checked["owner"] == sum(len(row["gen_particle"]) for row in rows)


def test_a_figure_for_each_gate_and_the_numbers(good: Path) -> None:
    """Catches a gate without its figure, a figure that is empty, and numbers that strict JSON readers refuse."""
    found, written = write_checks(good)
    folder = Path(written)
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(gate.name for gate in found.gates)
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors(256) or ()) > 5
    numbers = json.loads((folder / "checks.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert numbers["failed"] == []
    assert numbers["gates"]["track_pt"]["measurements"][0]["entries"] > 500


def test_checks_of_a_data_set_behind_a_url(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches paths where addresses are meant: data sets in a bucket that cannot be checked."""
    monkeypatch.setattr(data_checks, "draw_gate", data_checks.draw_note)  # drawing takes seconds
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in good.glob("*.*"):
        memory.pipe_file(f"/bucket/good/{path.name}", path.read_bytes())
    found, written = write_checks("memory://bucket/good")
    assert not found.failed
    assert written == "memory://bucket/good/checks"
    assert memory.exists("/bucket/good/checks/checks.json")


def test_the_exit_code_says_whether_the_data_passed(
    rows: Rows, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a production script that trains on data that failed, and a failed gate hidden by a file that was set aside."""
    from pfscale.shards import ingest as module

    monkeypatch.setattr(data_checks, "write_checks", lambda folder, progress: (check_data(folder, progress=progress), "checks"))
    assert run(["ingest", "--check", "--output", str(good)]) == 0
    spoiled = copy.deepcopy(rows)
    scale("track", "pt", by=1.5)(spoiled)
    bad = write_data(spoiled, tmp_path / "bad")
    capsys.readouterr()
    assert run(["ingest", "--check", "--output", str(bad)]) == GATES_FAILED
    assert "1 failed" in capsys.readouterr().out
    aside = manifest_of(rows, []).model_copy(
        update={"quarantined": (QuarantinedSource(path="x.root", reason="broken", error="InputFileError", exit_code=2),)}
    )
    monkeypatch.setattr(module, "ingest", lambda *_, **__: aside)
    for folder, code in ((bad, GATES_FAILED), (good, 3)):
        assert run(["ingest", "x.root", "--detector", "cld", "--check", "--output", str(folder)]) == code
    assert run(["ingest", "--output", str(good)]) == 2
    assert run(["ingest", "x.root", "--output", str(good)]) == 2


def rendered(found: checks_module.DataChecks) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(found.table())
    return capture.get()
