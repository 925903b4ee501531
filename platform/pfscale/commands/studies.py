"""Verbs that run many trainings to answer one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfscale.commands.terminal import DEFAULT_TRACKING_URI, Output, Overrides, TrackingUri, out, say_progress


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


def scaling(
    source: Annotated[str, typer.Argument(metavar="EXPERIMENT|SWEEP|FILE", help="MLflow experiment, a sweep's run, or records (.parquet)")],
    metric: Annotated[
        str, typer.Option(help="validation_loss or another metric that trainings end with, less is better")
    ] = "validation_loss",
    budget: Annotated[list[float] | None, typer.Option(help="operations of training to be divided between N and D; repeatable")] = None,
    money: Annotated[float, typer.Option(min=0, help="to be spent on simulation, training and inference, at the prices below")] = 0.0,
    event_price: Annotated[float, typer.Option(min=0, help="of one simulated event")] = 0.0,
    flop_price: Annotated[float, typer.Option(min=0, help="of one operation of training")] = 0.0,
    inference_flop_price: Annotated[float, typer.Option(min=0, help="of one operation of inference")] = 0.0,
    inference_events: Annotated[float, typer.Option(min=0, help="that the model will be used on")] = 0.0,
    output: Output = Path("scaling"),
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
) -> None:
    """The law that an experiment's trainings follow in model size and events, what it advises, and what it cannot say.

    Writes scaling.html, answer.json, records.parquet and the figures.
    """
    from pfscale.studies.scaling import Prices
    from pfscale.studies.scaling_files import scaling as find_laws

    prices = Prices(event=event_price, flop=flop_price, inference_flop=inference_flop_price, inference_events=inference_events)
    answer = find_laws(source, output, metric=metric, budgets=budget or (), prices=prices, money=money, tracking_uri=tracking_uri)
    for sentence in answer.sentences:
        out.print(sentence, markup=False)
    for doubt in answer.doubts:
        out.print(f"doubt: {doubt}", markup=False)
    for run in answer.left_out:
        out.print(f"left out: {run.name} ({run.run_id}): {run.reason}", markup=False)
    out.print(f"report, numbers and figures: {output}", markup=False)


def plan(
    size: Annotated[int, typer.Option(min=1, max=6, help="of the model: 0.1 to 50 million parameters")] = 2,
    events: Annotated[float, typer.Option(min=1, help="unique training events, 1e6 or so")] = 1e6,
    passes: Annotated[float, typer.Option(min=0.001, help="over the events")] = 1.0,
    accelerator: Annotated[str, typer.Option(help="a100, h100, or here: this machine's processor")] = "a100",
    workers: Annotated[list[int] | None, typer.Option("--workers", min=1, help="accelerators; repeatable: a table")] = None,
    elements: Annotated[float, typer.Option(min=1, help="tracks and clusters of an event")] = 150.0,
    tokens: Annotated[int, typer.Option(min=64, help="elements that a worker takes in one step")] = 65_536,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="of DeepSpeed")] = 1,
    efficiency: Annotated[float | None, typer.Option(min=0.001, max=1.0, help="share of the peak that a step reaches")] = None,
) -> None:
    """What a training takes, on paper: memory, time, network, data, with the formulae."""
    from rich.table import Table

    from pfscale.models.mlpf import MlpfConfig
    from pfscale.studies.planner import Target, find_accelerator, plan_training

    found = find_accelerator(accelerator, efficiency=efficiency)
    counts = workers or [1]
    model = MlpfConfig(size=size)
    plans = [
        plan_training(Target(model, events, count, passes, elements, tokens, zero_stage), found)  # type: ignore[arg-type]
        for count in counts
    ]
    table = Table("", *(f"{count} x {found.name}" for count in counts), "formula")
    for i, line in enumerate(plans[0].lines):
        table.add_row(line.name, *(str(one.lines[i]) for one in plans), line.formula)
    out.print(table)
    out.print(f"{found.name}: {found.flops:.3g} FLOPs/s, {found.efficiency:.0%} of it reached ({found.source})", markup=False)
    for count, one in zip(counts, plans, strict=True):
        if not one.fits:
            out.print(f"{count} workers: a worker's memory does not hold it; fewer --tokens or a higher --zero-stage", markup=False)
