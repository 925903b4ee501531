"""One measurement of training in a process of its own; the result is JSON in the last line of its output. Called by `train_speed.py`."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from padded_reference import PaddedBatch, PaddedMlpf

from pfscale.config import RunConfig
from pfscale.models.batch import Batch, collate
from pfscale.models.flops import measure_matrix_rate, training_flops
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.shards.dataset import cut_evenly, load_index, read_events, select_events
from pfscale.shards.ragged import RaggedEvents
from pfscale.tasks.reconstruction import ReconstructionConfig, loss_terms
from pfscale.training.batches import LEARNING_COLUMNS, Place, training_steps
from pfscale.training.config import DataConfig, DeepSpeedEngineConfig, OptimisationConfig
from pfscale.training.engine import make_engine
from pfscale.training.memory import peak_memory_mb
from pfscale.training.module import TaskModule
from pfscale.training.pretrain import PretrainConfig, pretrain
from pfscale.training.session import Alone

TASK, TOKENS, ROUNDS = ReconstructionConfig(), 8192, 7
TIMED_FROM = 30  # steps; before, Ray starts processes and the first windows are read
CPU = torch.device("cpu")


def read(shards: str, num_events: int) -> RaggedEvents:
    index = load_index(shards)
    members = select_events(index, "train")
    return read_events(index, np.random.default_rng(1).permutation(members)[:num_events], LEARNING_COLUMNS)


def rates(shards: str, lengths: str, width: str, heads: str) -> dict[str, Any]:
    """Elements/s of the same network on packed, padded and dense batches, measured in turn; best of the rounds.

    Args:
        lengths: `own`, or `broad` for events of other lengths (`broad_lengths`).
    """
    torch.manual_seed(1)
    events = read(shards, 1280)
    if lengths == "broad":
        events = with_lengths(events, broad_lengths(1280))
    model = Mlpf(MlpfConfig(width=int(width), num_layers=3, num_heads=int(heads)))
    model.encoder.standardise.fit(events.features, events.is_track)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    padded, dense = PaddedMlpf(model), PaddedMlpf(model, has_mask=False)

    def ours_loss(batch: Batch) -> torch.Tensor:
        return torch.stack(list(loss_terms(model(batch), batch, TASK).values())).sum()

    packed = [collate(events, np.sort(rows)[np.argsort(events.lengths[rows])]) for rows in cut_evenly(events.lengths, TOKENS)]
    of_64 = [PaddedBatch(events, np.arange(64 * i, 64 * i + 64)) for i in range(10)]
    mean = round(float(events.lengths.mean()))
    equal = PaddedBatch(with_lengths(events, np.full(TOKENS // mean, mean)), np.arange(TOKENS // mean))
    losses: dict[str, list[tuple[Callable[[], torch.Tensor], int]]] = {
        "ours": [(lambda b=b: ours_loss(b), b.num_elements) for b in packed],
        "padded": [(lambda b=b: b.loss(padded, TASK), b.num_elements) for b in of_64],
        "dense": [(lambda: equal.loss(dense, TASK), equal.num_elements)],
    }
    best: dict[str, float] = {}
    rate = 0.0
    for number in range(ROUNDS):
        rate = max(rate, measure_matrix_rate(CPU))
        for name, choices in losses.items():
            # all batches of the kind, one a round: ratios hold for the sample, not for one lucky batch
            chosen = choices[:3] if name == "padded" else choices[:4]
            begin = time.perf_counter()
            for loss, _ in chosen:
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            speed = sum(count for _, count in chosen) / (time.perf_counter() - begin)
            best[name] = max(best.get(name, 0.0), speed) if number else 0.0
    measured = [n for b in packed[:4] for n in b.lengths]
    flops_per_element = training_flops(model, measured) / sum(measured)
    longest = [events.lengths[64 * i : 64 * i + 64].max() for i in range(10)]
    return {
        **best,
        "matrix_gflops": rate / 1e9,
        "mfu": best["ours"] * flops_per_element / rate,
        "mean_length": float(events.lengths.mean()),
        "longest_of_64": float(np.mean(longest)),
    }


def with_lengths(events: RaggedEvents, lengths: NDArray[np.int64]) -> RaggedEvents:
    """The same elements cut into events of other lengths; as many events as there are elements for."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    offsets = offsets[offsets <= len(events.is_track)]
    total = int(offsets[-1])
    targets = {name: values[:total] for name, values in events.targets.items()}
    return RaggedEvents(offsets, events.features[:total], events.is_track[:total], targets, events.uid[: len(offsets) - 1], events.table)


def broad_lengths(count: int) -> NDArray[np.int64]:
    """20 to 400 elements, 100 on average: few as in two jets, many as in six with beam background."""
    drawn = np.random.default_rng(1).lognormal(np.log(85), 0.6, count)
    return np.clip(np.rint(drawn), 20, 400).astype(np.int64)


def bare(shards: str, size: str, num_steps: str) -> dict[str, Any]:
    """A plain torch loop over the platform's own batches, those between the points that `platform` is timed at, in memory beforehand."""
    index = load_index(shards)
    steps = training_steps(index, select_events(index, "train"), DataConfig(shards=shards), Alone(), seed=1, start=Place())
    batches = [next(steps).passes[0] for _ in range(int(num_steps))][TIMED_FROM:]
    steps.close()
    torch.manual_seed(1)
    model = Mlpf(MlpfConfig(size=int(size)))
    model.encoder.standardise.fit(batches[0].features_TF.numpy(), batches[0].is_track_T.numpy())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        (torch.stack(list(loss_terms(model(batch), batch, TASK).values())).sum() / batch.num_elements).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for batch in batches[:3]:
        step(batch)
    begin = time.perf_counter()
    for batch in batches:
        step(batch)
    return {"rate": sum(b.num_elements for b in batches) / (time.perf_counter() - begin)}


def platform(shards: str, folder: str, size: str, workers: str, threads: str, num_steps: str) -> dict[str, Any]:
    """A pre-training by Ray Train and DeepSpeed with MLflow and checkpoints; its rate between two steps, by the clock, all in.

    No evaluation lies between the two; what evaluations take of all time is a figure of its own.
    """
    shutil.rmtree(folder, ignore_errors=True)
    Path(folder).mkdir(parents=True)
    last = int(num_steps)
    run = pretrain(
        PretrainConfig(
            model=MlpfConfig(size=int(size)),
            data=DataConfig(shards=shards, num_validation_events=200),
            optimisation=OptimisationConfig(num_steps=last, learning_rate=1e-4, evaluate_every=last),
            checkpoint_every=TIMED_FROM,
            run=RunConfig(
                storage=folder,
                tracking_uri=f"sqlite:///{folder}/mlflow.db",
                num_workers=int(workers),
                cpus_per_worker=0.5,
                threads_per_worker=int(threads),
                log_every=10,
            ),
        )
    )
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    logged = client.get_run(run.run_id).data.metrics
    stamps = {point.step: point.timestamp / 1000 for point in client.get_metric_history(run.run_id, "train_loss")}
    index = load_index(shards)
    steps = training_steps(index, select_events(index, "train"), DataConfig(shards=shards), Alone(), seed=1, start=Place())
    lengths = [next(steps).num_elements for _ in range(last)][TIMED_FROM : last - 10]
    steps.close()
    rate = sum(lengths) / (stamps[last - 10] - stamps[TIMED_FROM])
    shares = {name: logged[name] for name in ("data_share", "evaluation_share", "logging_share", "checkpoint_share")}
    return {**shares, "rate": rate, "mfu": logged["mfu"]}


def zero(stage: str, folder: str) -> dict[str, Any]:
    """Memory that each of two workers holds for a model of size 6, after a step on a few elements."""
    store = Path(folder) / f"store-{stage}-{time.time_ns()}"
    command = [sys.executable, __file__, "zero_worker", stage, str(store)]
    workers = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    found = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
    return max(found, key=lambda f: f["held_mb"])


def zero_worker(stage: str, store: str, rank: str) -> dict[str, Any]:
    """One of the two."""
    import torch.distributed as dist

    from pfscale.training.engine import _import_deepspeed

    os.environ["LOCAL_RANK"] = rank
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    _import_deepspeed()
    before = resident_mb()
    module = TaskModule(Mlpf(MlpfConfig(size=6)), TASK, trainable="all")
    count = sum(p.numel() for p in module.parameters())
    engine = make_engine(DeepSpeedEngineConfig(zero_stage=int(stage)), module, OptimisationConfig(learning_rate=1e-4), CPU)
    batch = synthetic_batch(64)
    for _ in range(2):
        engine.accumulate(batch, num_elements=128, is_last=True)
        engine.apply(learning_rate=1e-4)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is not held, but stays resident
    held = resident_mb() - before
    per_parameter = {0: 16, 1: 8 + 8 / 2, 2: 4 + 12 / 2, 3: 16 / 2}[int(stage)]
    return {"held_mb": held, "peak_mb": peak_memory_mb(CPU) - before, "formula_mb": per_parameter * count / 1e6}


def activations(shards: str, recomputes: str) -> dict[str, Any]:
    """Peak memory of a forward and backward pass above what the model holds."""
    events = read(shards, 400)
    model = Mlpf(MlpfConfig(size=5))
    model.encoder.recomputes = recomputes == "1"
    (rows, *_) = cut_evenly(events.lengths, TOKENS)
    batch, small = collate(events, rows), collate(events, rows[:1])

    def run(b: Batch) -> None:
        torch.stack(list(loss_terms(model(b), b, TASK).values())).sum().backward()

    run(small)
    before = resident_mb()
    begin = time.perf_counter()
    run(batch)
    return {"seconds": time.perf_counter() - begin, "activations_mb": peak_memory_mb(CPU) - before}


def dataset(shards: str, copies: str, folder: str) -> dict[str, Any]:
    """Peak memory of a short training on a data set that is there once or ten times."""
    target = Path(folder) / f"copies-{copies}"
    replicate_shards(Path(shards), target, int(copies))
    runs = Path(folder) / f"dataset-{copies}"
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir()
    pretrain(
        PretrainConfig(
            data=DataConfig(shards=str(target), num_validation_events=200, window_events=1000),
            optimisation=OptimisationConfig(num_steps=200, learning_rate=1e-4),
            register_as="",
            run=RunConfig(storage=str(runs), tracking_uri=f"sqlite:///{runs}/mlflow.db", num_workers=0),
        )
    )
    return {"peak_mb": peak_memory_mb(CPU), "num_events": load_index(target).num_events}


def replicate_shards(shards: Path, target: Path, copies: int) -> None:
    """The same shards several times, under other names, as one data set."""
    if (target / "manifest.json").exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((shards / "manifest.json").read_text())
    listed = []
    for number in range(copies):
        for shard in manifest["shards"]:
            name = f"copy{number:02d}-{shard['file']}"
            shutil.copy(shards / shard["file"], target / name)
            listed.append({**shard, "file": name})
    (target / "manifest.json").write_text(json.dumps({**manifest, "shards": listed}))


def synthetic_batch(num_elements: int) -> Batch:
    """Elements of no meaning."""
    from pfscale.shards.ragged import NUM_FEATURES, TARGET_FIELDS

    features = torch.rand(num_elements, NUM_FEATURES)
    targets = {name: torch.zeros(num_elements) for name in TARGET_FIELDS}
    offsets = torch.tensor([0, num_elements], dtype=torch.int32)
    return Batch(features, torch.zeros(num_elements, dtype=torch.bool), (num_elements,), offsets, targets, np.zeros(1, np.int64))


def resident_mb() -> float:
    """Resident memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    what, *arguments = sys.argv[1:]
    print(json.dumps(globals()[what](*arguments)))
