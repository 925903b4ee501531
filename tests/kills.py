"""Killing what a test started, and nothing else."""

from __future__ import annotations

import subprocess
from typing import Any

import psutil


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """kill -9 of a process that a test started and of all that it has started."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)


def children_named(pid: int, start: str) -> list[psutil.Process]:
    """The processes below `pid` whose command line begins so."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if child.cmdline()[0].startswith(start):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
    return found
