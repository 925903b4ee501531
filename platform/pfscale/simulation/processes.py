"""The processes of the built-in source: Pythia 8 settings, and the choices of Higgs and Z decay.

Process and setting names are Pythia's own (https://pythia.org/latest-manual/).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from pfscale.errors import UnknownNameError, unknown_name

HIGGS_DECAYS: MappingProxyType[str, str] = MappingProxyType(
    {"bb": "5 -5", "cc": "4 -4", "ss": "3 -3", "gg": "21 21", "tautau": "15 -15", "WW": "24 -24", "ZZ": "23 23", "aa": "22 22", "all": ""}
)
Z_DECAYS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "nunu": ("12", "14", "16"),
        "qq": ("1", "2", "3", "4", "5"),
        "bb": ("5",),
        "ll": ("11", "13"),
        "tautau": ("15",),
        "all": (),
    }
)


@dataclass(frozen=True)
class Process:
    """A hard process: its Pythia settings, and the decays chosen where the caller says nothing."""

    name: str
    settings: tuple[str, ...]
    higgs_decay: str | None = None
    z_decay: str | None = None


PROCESSES: MappingProxyType[str, Process] = MappingProxyType(
    {
        p.name: p
        for p in (
            Process("ttbar", ("Top:ffbar2ttbar(s:gmZ) = on",)),
            Process("qq", ("WeakSingleBoson:ffbar2gmZ = on", "23:onMode = off", "23:onIfAny = 1 2 3 4 5")),
            Process("WW", ("WeakDoubleBoson:ffbar2WW = on",)),
            Process("ZH", ("HiggsSM:ffbar2HZ = on",), higgs_decay="all", z_decay="all"),
        )
    }
)


def find_process(name: str) -> Process:
    """The table entry of process `name`.

    Raises:
        UnknownNameError: no such process.
    """
    if name not in PROCESSES:
        raise unknown_name("process", name, tuple(PROCESSES))
    return PROCESSES[name]


def decay_settings(process: Process, higgs_decay: str | None, z_decay: str | None) -> tuple[str, ...]:
    """The Pythia settings that force the chosen decays (none for `all`).

    Raises:
        UnknownNameError: an unknown decay, or a decay of a boson that the process does not make.
    """
    lines: list[str] = []
    for kind, chosen, default, table in (
        ("Higgs decay", higgs_decay, process.higgs_decay, tuple(HIGGS_DECAYS)),
        ("Z decay", z_decay, process.z_decay, tuple(Z_DECAYS)),
    ):
        if chosen is not None and chosen not in table:
            raise unknown_name(kind, chosen, table)
        if chosen is not None and default is None:
            makers = [p.name for p in PROCESSES.values() if p.higgs_decay or p.z_decay]
            raise UnknownNameError(f"process '{process.name}' has no {kind} to choose", hint=f"processes that have: {', '.join(makers)}")
    if process.higgs_decay is not None and HIGGS_DECAYS[higgs_decay or process.higgs_decay]:
        lines += ["25:onMode = off", f"25:onIfMatch = {HIGGS_DECAYS[higgs_decay or process.higgs_decay]}"]
    if process.z_decay is not None and Z_DECAYS[z_decay or process.z_decay]:
        # Pythia knows one Z: with `higgs_decay=ZZ` the chosen Z decay holds for all three.
        lines += ["23:onMode = off", f"23:onIfAny = {' '.join(Z_DECAYS[z_decay or process.z_decay])}"]
    return tuple(lines)
