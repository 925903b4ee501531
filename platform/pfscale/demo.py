"""The whole chain on a laptop: two simulated detectors, pre-training, transfer, a downstream head, registered models, a real event."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pfscale.config import RunConfig
from pfscale.errors import OutputExistsError
from pfscale.ray_cluster import ray_cluster
from pfscale.training.run import Run

if TYPE_CHECKING:
    from pfscale.training.finetune import Mode

MARKER = ".pfscale-demo"
TOKENS_PER_STEP = 4096


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does; the defaults take six to twelve minutes on two cores.

    Attributes:
        small, large: CLD training events of the two transfers.
        pretrain_steps, transfer_steps: optimizer steps.
    """

    clic_events: int = 3000
    cld_events: int = 2000
    small: int = 150
    large: int = 1200
    pretrain_steps: int = 900
    transfer_steps: int = 200


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        transfers: (mode, CLD training events) -> run; zero-shot has 0 events.
        seconds: wall time by stage.
    """

    output: Path
    pretraining: Run
    transfers: dict[tuple[Mode, int], Run]
    missing_momentum: Run
    num_candidates: int | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Run:
        """The transfer that was registered."""
        return next(run for run in self.transfers.values() if run.model is not None)


def run_demo(output: str | Path = "pfscale-demo", *, size: DemoSize | None = None, console: Console | None = None) -> DemoResult:
    """Runs the whole chain below `output` and prints its table; started again, it goes on where it stopped.

    Raises:
        OutputExistsError: the folder holds something else.
        ResourceError: pythia8mc is not installed.
    """
    console, size = console or Console(), size or DemoSize()
    output = Path(output).resolve()
    _claim(output)
    run = RunConfig(storage=str(output / "runs"), tracking_uri=f"sqlite:///{output}/mlflow.db", experiment="demo", num_workers=0)
    stages = _Stages(console)
    with ray_cluster():  # one for all stages: to start it takes as long as a short one
        shards = _make_data(output, size, stages)
        result = _learn(output, size, shards, run, stages)
        with stages.stage("report on the CLD model"):
            _figures(result)
            _report(result, run, shards["cld"])
    _show(result, console)
    return result


class _Stages:
    """Progress bars, one per stage, and the time that each took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar for the stage; yields what to call with each amount of progress."""
        columns = (SpinnerColumn(), TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        begin = time.perf_counter()
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(name, total=total)  # without a total the bar pulses
            yield lambda amount: progress.advance(task, amount)
            progress.update(task, total=total or 1, completed=total or 1)
        self.seconds[name] = time.perf_counter() - begin
        if not self.console.is_terminal:
            self.console.print(f"{name:<48} {self.seconds[name]:6.1f} s")


def _claim(output: Path) -> None:
    if output.is_dir() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise OutputExistsError("the folder holds other files", where=str(output), hint="pfscale demo --output ANOTHER_FOLDER")
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text("made by pfscale demo; delete the folder to start afresh\n")


def _make_data(output: Path, size: DemoSize, stages: _Stages) -> dict[str, Path]:
    """Folder of shards by detector."""
    from pfscale.shards.ingest import ingest
    from pfscale.simulation.simulate import simulate

    files: dict[str, list[Path]] = {}
    num_events_of = {"clic": size.clic_events, "cld": size.cld_events}
    for detector, num_events in num_events_of.items():
        with stages.stage(f"simulate {num_events} ttbar events in {detector}", total=num_events) as progress:
            files[detector] = simulate(
                detector=detector,
                process="ttbar",
                num_events=num_events,
                seed=1,
                output=output / "root",
                num_workers=2,
                events_per_file=500,
                progress=progress,
            )
    shards = {detector: output / "shards" / detector for detector in files}
    for detector, folder in shards.items():
        with stages.stage(f"ingest {detector}: ROOT to shards", total=num_events_of[detector]) as progress:
            ingest([str(f) for f in files[detector]], detector=detector, output=folder, progress=progress)
    return shards


def _learn(output: Path, size: DemoSize, shards: dict[str, Path], run: RunConfig, stages: _Stages) -> DemoResult:
    from pfscale.training.downstream import DownstreamConfig, HeadDataConfig, downstream
    from pfscale.training.reconstruct import reconstruct

    with stages.stage("pre-train on CLIC (Ray Train, DeepSpeed ZeRO-1)"):
        pretraining = _pretrain(shards["clic"], run, num_steps=size.pretrain_steps)
    transfers: dict[tuple[Mode, int], Run] = {}
    plan: list[tuple[Mode, int]] = [
        ("zero-shot", 0),
        ("scratch", size.small),
        ("full", size.small),
        ("scratch", size.large),
        ("full", size.large),
    ]
    for mode, num_events in plan:
        label = f"transfer to CLD: {mode}" + (f", {num_events} events" if num_events else "")
        with stages.stage(label):
            is_best = (mode, num_events) == ("full", size.large)
            transfers[mode, num_events] = _transfer(shards["cld"], run, mode, num_events, num_steps=size.transfer_steps, register=is_best)
    with stages.stage("missing momentum: one linear layer on latents"):
        head = downstream(DownstreamConfig(data=HeadDataConfig(shards=str(shards["cld"])), arm="latents-linear", run=run))
    num_candidates = None
    event = real_event()
    if event is not None:
        with stages.stage("reconstruct a real CLD event"):
            summary = reconstruct(
                "models:/mlpf-cld@candidate",
                [str(event)],
                output=output / "reconstructed",
                detector="cld",
                latents=True,
                tracking_uri=run.tracking_uri,
            )
            num_candidates = summary.num_candidates
    return DemoResult(output, pretraining, transfers, head, num_candidates, stages.seconds)


def _pretrain(shards: Path, run: RunConfig, *, num_steps: int) -> Run:
    from pfscale.training.config import DataConfig, OptimisationConfig
    from pfscale.training.pretrain import PretrainConfig, pretrain

    return pretrain(
        PretrainConfig(
            data=DataConfig(shards=str(shards), num_validation_events=300, tokens_per_step=TOKENS_PER_STEP),
            optimisation=OptimisationConfig(num_steps=num_steps, evaluate_every=100),
            checkpoint_every=200,
            run=run.model_copy(update={"num_workers": 1, "cpus_per_worker": 1.0, "threads_per_worker": 2}),
        )
    )


def _transfer(shards: Path, run: RunConfig, mode: Mode, num_events: int, *, num_steps: int, register: bool) -> Run:
    from pfscale.training.config import DataConfig, OptimisationConfig, TorchEngineConfig
    from pfscale.training.finetune import FinetuneConfig, finetune

    return finetune(
        FinetuneConfig(
            mode=mode,
            data=DataConfig(shards=str(shards), num_events=num_events or None, num_validation_events=None, tokens_per_step=TOKENS_PER_STEP),
            optimisation=OptimisationConfig(num_steps=num_steps, learning_rate=1e-3, evaluate_every=50),
            engine=TorchEngineConfig(),
            register_as="auto" if register else "",
            run=run,
        )
    )


def real_event() -> Path | None:
    """The real CLD event that comes with the project, None where the package was installed without it."""
    path = Path(__file__).parents[2] / "tests" / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"
    return path if path.is_file() else None


def _figures(result: DemoResult) -> None:
    """Writes the demo's figures, and their numbers, to <output>/figures."""
    from pfscale.report.figures import TransferPoint, learning_curves, transfer_curves
    from pfscale.training.display import show_event
    from pfscale.training.launch import references

    folder = result.output / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {
        "pretraining.png": learning_curves(
            result.pretraining.history, references=references(result.pretraining.metrics), title="pre-training on CLIC-like ttbar, 380 GeV"
        )
    }
    for metric, label, unit in (
        ("validation_loss", "validation loss", ""),
        ("mlpf/jet_response_iqr_over_median", "jet response IQR / median", ""),
        ("mlpf/met_resolution", "missing-momentum resolution", "GeV"),
    ):
        points = [
            TransferPoint(mode=mode, num_events=num_events, value=run.metrics[metric], error=run.metrics.get(f"{metric}_error", math.nan))
            for (mode, num_events), run in result.transfers.items()
            if metric in run.metrics
        ]
        drawn[f"transfer_{metric.rpartition('/')[2]}.png"] = transfer_curves(points, metric=label, unit=unit)
    event = real_event()
    if event is not None and result.best.checkpoint is not None:
        folder_of_model = str(result.best.checkpoint)
        drawn["real_cld_event.png"] = show_event(
            folder_of_model, event, tracking_uri="", title="CLD full simulation, Z(νν)H(bb) at 240 GeV"
        )
    for name, (figure, numbers) in drawn.items():
        figure.savefig(folder / name, dpi=150)
        (folder / name).with_suffix(".json").write_text(json.dumps(numbers, indent=1))


def _report(result: DemoResult, run: RunConfig, shards: Path) -> None:
    """Writes the report of the registered CLD model to <output>/report.html."""
    from pfscale.training.report import report

    model = result.best.model
    assert model is not None
    report(model.uri, result.output / "report.html", shards=shards, tracking_uri=run.tracking_uri)


def _show(result: DemoResult, console: Console) -> None:
    """The closing table and where to go from here."""
    title = "Validation events (which also chose each model's best step); ± from the bootstrap over events"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in ("model", "events", "loss", "jet response", "IQR / median", "MET σ [GeV]"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    _add_rows(table, "CLIC pre-trained", result.pretraining)
    table.add_section()
    for (mode, _), run in result.transfers.items():
        _add_rows(table, f"CLD {mode}", run, has_references=run.model is not None)
    console.print(table)
    head = result.missing_momentum.metrics
    numbers = ", ".join(
        f"{label} {head[f'test/{key}met_resolution']:.2f} ± {head[f'test/{key}met_resolution_error']:.2f}"
        for key, label in (("baseline/", "plain sum"), ("", "linear layer on latents"))
    )
    lines = [f"missing-momentum head on CLD test events, σ in GeV: {numbers}"]
    if result.num_candidates is not None:
        lines.append(f"real CLD event (full simulation, a model of built-in simulation): {result.num_candidates} candidates")
    models = [run.model for run in (result.pretraining, *result.transfers.values(), result.missing_momentum) if run.model]
    lines += [
        f"registered: {', '.join(m.uri for m in models)}, each with alias @candidate",
        f"report:     {result.output / 'report.html'}",
        f"figures:    {result.output / 'figures'}",
        f"MLflow:     {result.pretraining.link}",
        f"time:       {sum(result.seconds.values()):.0f} s",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _add_rows(table: Table, name: str, run: Run, *, has_references: bool = True) -> None:
    m = run.metrics

    def cell(metric: str, digits: int) -> str:
        value, error = m.get(metric, math.nan), m.get(f"{metric}_error", math.nan)
        return "-" if math.isnan(value) else f"{value:.{digits}f} ± {error:.{digits}f}"

    figures = (("jet_response_median", 3), ("jet_response_iqr_over_median", 3), ("met_resolution", 2))
    events = f"{m['num_train_events']:.0f}" if "num_train_events" in m else "-"
    table.add_row(name, events, f"{m['validation_loss']:.3f}", *(cell(f"mlpf/{metric}", digits) for metric, digits in figures))
    for key, label in (("rule_based", "  rule-based PF"), ("truth_targets", "  truth targets")) if has_references else ():
        table.add_row(label, "", "", *(cell(f"{key}/{metric}", digits) for metric, digits in figures), style="dim")
