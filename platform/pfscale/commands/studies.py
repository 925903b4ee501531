"""Verbs that run many trainings to answer one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfscale.commands.terminal import Overrides, out, say_progress


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with the question: search_spaces/")],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check it and print the plan only")] = False,
) -> None:
    """Many trainings that answer one question, on all of the cluster; killed and repeated, it goes on.

    KEY=VALUE changes the sweep where it is one of its keys, else the config of all its trials.
    """
    from pfscale.studies.config import load_question
    from pfscale.studies.plan import plan_sweep
    from pfscale.studies.sweep import run_sweep

    plan = plan_sweep(load_question(file, overrides or ()))
    out.print(plan.table())
    if dry_run:
        return
    say_progress()
    result = run_sweep(plan)
    out.print(result.table())
    for sentence in result.answer:
        out.print(sentence, markup=False)
    out.print(f"{result.link}\nnumbers and figures: {result.folder}", markup=False)
