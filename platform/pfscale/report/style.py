"""How figures look: one colour, marker and name per reconstruction or transfer mode, the same in every figure.

Colours are those of Okabe and Ito (told apart by colour-blind readers); line and marker differ too, for print in grey.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal, ParamSpec

import matplotlib
import mplhep
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pfscale.tracking.runs import jsonable

Drawn = tuple[Figure, dict[str, Any]]  # a figure and its numbers, ready for JSON
P = ParamSpec("P")

_RC: dict[str, Any] = {
    "font.size": 11,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "legend.fontsize": 9.5,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "axes.linewidth": 1.0,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "mathtext.fontset": "dejavusans",  # the style's own mathtext asks for a cursive font and warns on machines that have none
}


@dataclass(frozen=True)
class Look:
    """Name in legends, colour, marker (hollow or not) and line of one curve."""

    label: str
    colour: str
    marker: str
    line: str
    fill: Literal["full", "none"] = "full"


_LOOKS = {
    "mlpf": Look("MLPF", "#0072B2", "o", "-"),
    "rule-based": Look("rule-based (baseline)", "#D55E00", "s", "--"),
    "truth targets": Look("truth targets (ceiling)", "#000000", "^", ":"),
    "calorimeter only": Look("calorimeter only", "#009E73", "v", "-."),
    "full": Look("fine-tuned, full", "#0072B2", "o", "-"),
    "heads": Look("fine-tuned, heads only", "#CC79A7", "D", "-."),
    "scratch": Look("from scratch", "#E69F00", "s", "-"),
    "zero-shot": Look("zero-shot", "#009E73", "v", ":"),
    "train": Look("training", "#56B4E9", "", "-"),
    "validation": Look("validation", "#0072B2", "o", "-"),
    "kinematics": Look("kinematics", "#000000", "s", "-"),
    "kinematics+tracks": Look("kinematics+tracks", "#009E73", "^", "-"),
    "kinematics+latents": Look("kinematics+latents", "#0072B2", "o", "-"),
    "kinematics+tracks+latents": Look("kinematics+tracks+latents", "#CC79A7", "D", "-"),
    "latents-linear": Look("latents-linear", "#D55E00", "v", "-"),
    "as reconstructed": Look("as reconstructed", "#999999", "P", ":"),
    "plain sum": Look("plain sum", "#999999", "P", ":"),
}
_STATES = {" (random-frozen)": "--", " (finetuned)": "-."}  # of a backbone: the arm's colour, another line and hollow markers
_SPARE_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#0072B2", "#000000", "#F0E442")
_SPARE_MARKERS = ("P", "X", "D", "<", ">", "o", "s", "v")


def look(key: str, *, among: Sequence[str] = ()) -> Look:
    """The look of a curve: by role where `key` has one, else a spare one by its place among the other unknown keys."""
    if key in _LOOKS:
        return _LOOKS[key]
    for state, line in _STATES.items():
        if key.endswith(state) and key.removesuffix(state) in _LOOKS:
            return replace(_LOOKS[key.removesuffix(state)], label=key, line=line, fill="none")
    unknown = [k for k in among if k not in _LOOKS]
    i = unknown.index(key) if key in unknown else 0
    return Look(key, _SPARE_COLOURS[i % len(_SPARE_COLOURS)], _SPARE_MARKERS[i % len(_SPARE_MARKERS)], "-")


def styled(draw: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """`draw` in mplhep's ROOT style with our sizes; the caller's matplotlib settings are left as they were."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        with matplotlib.rc_context():
            mplhep.style.use(mplhep.style.ROOT)
            matplotlib.rcParams.update(_RC)
            figure, numbers = draw(*args, **kwargs)
            return figure, jsonable(numbers)

    return in_style


def new_figure(*, width: float, height: float) -> Figure:
    """An empty figure in inches that belongs to no window: it works without a display and is freed when dropped."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axis_label(variable: str, unit: str) -> str:
    """`variable [unit]`, without brackets where there is no unit."""
    return f"{variable} [{unit}]" if unit else variable


def say_empty(axes: Axes, text: str) -> None:
    """Writes why nothing is drawn into the middle of `axes`."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
