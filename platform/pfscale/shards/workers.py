"""Work spread over a cluster by Ray Data: results as they come, and a worker that dies costs a repetition, not the ingest."""

from __future__ import annotations

import importlib
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pfscale.errors import PfscaleError, ResourceError
from pfscale.remote import no_room

ITEMS_PER_TASK = 32  # at most: a task of Ray Data costs 10 ms, as much as opening a small file
DEATHS_PER_TASK = 2  # Ray Data's own choice is to repeat for ever a task that kills its workers
SECONDS_OF_IMPORTS = 10.0  # at most: a cluster may be busy with other work
TASKS_PER_WORKER = 16  # at least, where there is enough to do: so that all workers end together; Ray Data takes 0.2 s to hand out a task


def count_workers(asked: int | None) -> tuple[int, float]:
    """(number of workers, CPUs that each reserves). One whole CPU is left unreserved: else Ray Data's own tasks wait for ever, silently.

    Raises:
        ResourceError: more workers than the cluster has CPUs.
    """
    import ray

    cpus = float(ray.cluster_resources().get("CPU", 0))
    if asked and asked > cpus:
        raise ResourceError(f"{asked} workers, but the cluster has {cpus:g} CPUs", hint=f"use at most --workers {int(cpus)}")
    workers = asked or max(1, int(cpus))
    return workers, min(1.0, (cpus - 1) / workers) if cpus > 1 else 0.5


class ImportAhead:
    """As many of Ray's processes as there will be workers begin to import `modules`, while this one does something else."""

    def __init__(self, modules: Sequence[str], workers: int, cpus_each: float) -> None:
        import ray

        load = ray.remote(num_cpus=cpus_each, max_retries=0)(_import_all)
        self._modules = tuple(modules)
        self._loading = [load.remote(self._modules) for _ in range(workers)]

    def wait(self) -> None:
        """Returns when they are ready, and this process too: for tasks that come earlier Ray would start further processes.

        Only a help: it does not wait for long, and what fails here fails again, and is told, where it matters.
        """
        import ray

        _import_all(self._modules)
        with suppress(ray.exceptions.RayError):
            ray.get(self._loading, timeout=SECONDS_OF_IMPORTS)
        self._loading = []


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def map_unordered(
    items: Sequence[Any],
    function: Callable[[Any], Any],
    *,
    on_death: Callable[[Any], Any],
    workers: int,
    cpus_each: float,
    tasks_per_worker: int = TASKS_PER_WORKER,
) -> Iterator[tuple[int, Any]]:
    """(number, function(item)) as they come, each once; neighbouring items share a task where there are many.

    Ray repeats a task whose worker died. Items of tasks that killed every worker are tried once more on their own, so that the guilty one
    is found; its result is `on_death(item)`.

    Args:
        on_death: what to say of an item that kills every process that takes it.
        workers, cpus_each: tasks at a time, and CPUs that each reserves.
        tasks_per_worker: at least, before items share one; few where an item is the work of a moment.

    Raises:
        PfscaleError: as `function` does, and ResourceError where Ray has no room on its disk.
        RuntimeError: `function` raised something else: a bug.
    """
    size = max(1, min(ITEMS_PER_TASK, len(items) // (workers * tasks_per_worker)))
    missing = set(range(len(items)))
    for at_once in (size, 1):
        left = sorted(missing)
        tasks = [left[start : start + at_once] for start in range(0, len(left), at_once)]
        for task, results in _run_tasks(items, tasks, function, workers, cpus_each) if tasks else ():
            missing.difference_update(task)
            yield from zip(task, results, strict=True)
    for number in sorted(missing):
        yield number, on_death(items[number])


def _run_tasks(
    items: Sequence[Any], tasks: Sequence[list[int]], function: Callable[[Any], Any], workers: int, cpus_each: float
) -> Iterator[tuple[list[int], list[Any]]]:
    """(numbers of the items, results) of every task that some worker survived.

    Raises:
        As `map_unordered`.
    """
    import ray

    def apply(batch: dict[str, Any]) -> dict[str, Any]:
        try:
            outcome: Any = [function(item) for item in pickle.loads(batch["items"][0])]
        except Exception as error:  # handed over as a value: Ray Data is told to go on after errors, which are then dead workers only
            outcome = _handed_over(error)
        return {"task": batch["task"], "outcome": [pickle.dumps(outcome)]}

    # pickled, because Ray would guess an Arrow type for our objects and warn of its failure
    rows = [{"task": number, "items": pickle.dumps([items[i] for i in task])} for number, task in enumerate(tasks)]
    with _quiet_ray_data():
        pool = ray.data.TaskPoolStrategy(size=min(workers, len(rows)))
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray wants to name all options itself one day, but has no name for this one yet
            mapped = data.map_batches(apply, batch_size=1, num_cpus=cpus_each, compute=pool, max_retries=DEATHS_PER_TASK)
        try:
            for row in mapped.iter_rows():
                outcome = pickle.loads(row["outcome"])
                if isinstance(outcome, Exception):
                    raise outcome
                yield tasks[int(row["task"])], outcome
        except ray.exceptions.RayError as error:
            raise no_room(error, "Ray's folder for temporary files") or error from None


def _handed_over(error: Exception) -> Exception:
    """The error in a form that crosses to another process."""
    if isinstance(error, PfscaleError):
        return error
    import traceback

    return no_room(error, "the node that ran this") or RuntimeError("".join(traceback.format_exception(error)))


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data without its progress bars and its notes on every execution, and going on after a task that killed its workers."""
    import ray

    # Ray Data's budgets know of no CPU in the first second, and so let one worker only begin; the size of the pool is limit enough for us.
    ours = {"enable_progress_bars": False, "max_errored_blocks": -1, "op_resource_reservation_enabled": False}
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before, level = {name: getattr(context, name) for name in ours}, logger.level
    logger.setLevel(logging.CRITICAL)
    for name, value in ours.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)
