"""What trials cost in floating-point operations: the same number of elements costs more in a larger model."""

from __future__ import annotations

from functools import lru_cache

from pfscale.studies.config import Draw
from pfscale.studies.plan import SweepPlan, flops_per_element
from pfscale.studies.rows import Row
from pfscale.training.verbs import find_verb


def flops_of(plan: SweepPlan, row: Row) -> float:
    """Of all its steps, by formula."""
    return row.elements * _per_element(_Trial(plan, Draw(tuple(row.settings.items()))))


def flops_of_draw(plan: SweepPlan, draw: Draw) -> float:
    """If it ran to its end."""
    config = find_verb(plan.question.sweep.verb).launch(plan.question.config(draw))[0].config
    return float(_per_element(_Trial(plan, draw)) * config.optimisation.num_steps * config.data.tokens_per_step)


class _Trial:
    """A draw that is equal to another of the same settings."""

    def __init__(self, plan: SweepPlan, draw: Draw) -> None:
        self.plan, self.draw = plan, draw

    def __hash__(self) -> int:
        return hash((self.plan.name, str(self.draw.settings)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trial) and (self.plan.name, self.draw) == (other.plan.name, other.draw)


@lru_cache(maxsize=1024)
def _per_element(trial: _Trial) -> float:
    question = trial.plan.question
    return flops_per_element(find_verb(question.sweep.verb).launch(question.config(trial.draw))[0])
