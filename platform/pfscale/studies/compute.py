"""What trials cost in floating-point operations: the same number of elements costs more in a larger model."""

from __future__ import annotations

from pfscale.studies.config import Draw
from pfscale.studies.plan import SweepPlan, flops_per_element
from pfscale.studies.rows import Row, key_of
from pfscale.training.verbs import find_verb

_PER_ELEMENT: dict[tuple[str, str], float] = {}  # by sweep and settings


def flops_of(plan: SweepPlan, row: Row) -> float:
    """Of all its steps, by formula."""
    if not row.elements:
        return 0.0
    return row.elements * _per_element(plan, Draw(tuple(row.settings.items())))


def flops_of_draw(plan: SweepPlan, draw: Draw) -> float:
    """If it ran to its end."""
    config = find_verb(plan.question.sweep.verb).launch(plan.question.config(draw))[0].config
    return float(_per_element(plan, draw) * config.optimisation.num_steps * config.data.tokens_per_step)


def _per_element(plan: SweepPlan, draw: Draw) -> float:
    key = (plan.name, key_of(draw.values))
    if key not in _PER_ELEMENT:
        _PER_ELEMENT[key] = flops_per_element(find_verb(plan.question.sweep.verb).launch(plan.question.config(draw))[0])
    return _PER_ELEMENT[key]
