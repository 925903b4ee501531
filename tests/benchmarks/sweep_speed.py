"""How much of a sweep's time is training: 40 trials of about 20 s each, and what is lost between them.

    python tests/benchmarks/sweep_speed.py SHARDS FOLDER [--trials 40] [--seconds 20]      about 7 minutes on two cores

SHARDS: 2,000 training events or more. What is no optimizer step, nor waiting for its data, counts as lost: the start of Ray and Tune, the
first import of torch in each process, evaluations, checkpoints, MLflow.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import yaml

from pfscale.studies.config import draws, load_question
from pfscale.studies.effects import step_seconds
from pfscale.studies.plan import plan_sweep
from pfscale.studies.sweep import run_sweep
from pfscale.training.verbs import VERBS

BASE = {
    "data": {"num_events": 2000, "num_validation_events": 100, "tokens_per_step": 4096},
    "optimisation": {"num_steps": 100, "evaluate_every": 1000},
    "engine": {"kind": "torch"},
    "physics_events": 0,
    "register_as": "",
    "run": {"num_workers": 0, "threads_per_worker": 1},
}


def main() -> None:
    """Prints the share, and where the rest went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base = {**BASE, "data": {**BASE["data"], "shards": str(arguments.shards.resolve())}}  # type: ignore[dict-item]
    base["run"] = {**BASE["run"], "storage": str(folder / "runs"), "tracking_uri": f"sqlite:///{folder}/mlflow.db"}  # type: ignore[dict-item]
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    space = {"seed": {"grid_search": list(range(1, arguments.trials + 1))}}
    question = {"question": "how much of the time is training?", "verb": "pretrain", "base": "base.yaml", "space": space}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(question))
    asked = load_question(folder / "sweep.yaml")
    one = step_seconds(*VERBS["pretrain"].launch(asked.config(draws(asked.sweep)[0])))[0]
    steps = max(2, round(arguments.seconds / one))
    begin = time.perf_counter()
    plan = plan_sweep(load_question(folder / "sweep.yaml", [f"optimisation.num_steps={steps}"]))
    planned = time.perf_counter()
    result = run_sweep(plan)
    end = time.perf_counter()
    training = sum(row.training_seconds for row in result.rows)
    inside = sum(row.seconds for row in result.rows)
    room = result.plan.concurrency * (end - begin)
    print(f"{len(result.rows)} trials of {steps} steps, {training / len(result.rows):.1f} s each, {result.plan.concurrency} at once")
    print(f"wall {end - begin:.0f} s, of it the plan {planned - begin:.1f} s")
    print(f"share of training in wall time x {result.plan.concurrency}: {training / room:.3f}")
    print(f"share of trials, evaluations and checkpoints included: {inside / room:.3f}")


if __name__ == "__main__":
    main()
