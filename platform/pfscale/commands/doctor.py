"""`pfscale doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pfscale.commands.terminal import Overrides, out

if TYPE_CHECKING:
    from pfscale.training.doctor import Check

_SIGNS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


def doctor(overrides: Overrides = None) -> None:
    """What is wrong with this machine or cluster, and the command that mends it; exit code 2 where something is.

    KEY=VALUE: what a training would be given, run.storage, run.tracking_uri, run.num_workers and the like.
    """
    from rich.table import Table

    from pfscale.config import Config, RunConfig, load_config
    from pfscale.training.doctor import examine

    class Asked(Config):
        run: RunConfig = RunConfig()

    table = Table("", "", "found", "mend it", show_edge=False)
    checks: list[Check] = []
    for check in examine(load_config(Asked, None, overrides or ()).run):
        checks.append(check)
        table.add_row(check.name, _SIGNS[check.verdict], check.found, check.mend)
    out.print(table)
    failed = sum(check.verdict == "failed" for check in checks)
    out.print(f"{failed} of {len(checks)} checks failed" if failed else f"nothing is wrong ({len(checks)} checks)")
    if failed:
        raise typer.Exit(2)
