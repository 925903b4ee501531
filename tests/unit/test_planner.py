"""The planner: numbers that follow from one another, and that other parts of the package measure."""

from __future__ import annotations

import pytest
import torch

from pfscale.errors import ConfigError
from pfscale.models.memory import count_from
from pfscale.models.mlpf import MlpfConfig
from pfscale.studies.planner import ACCELERATORS, Accelerator, Line, Target, event_lengths, find_accelerator, plan_training

SOME = Accelerator("some", 1e14, 16e9, 1e10, 0.5, "made up")


def target(**changed: object) -> Target:
    """Size 2 on a million events."""
    return Target(MlpfConfig(size=2), 1e6, **{"workers": 1, **changed})  # type: ignore[arg-type]


def test_the_numbers_follow_from_one_another() -> None:
    """Catches a factor that is lost between steps, time and hours, and elements that are counted per worker only."""
    one, eight = plan_training(target(), SOME), plan_training(target(workers=8), SOME)
    assert one["parameters"] == count_from(MlpfConfig(size=2))
    assert one["total work"] == pytest.approx(one["work per element"] * 150e6)
    assert one["time"] * 3600 == pytest.approx(one["total work"] / 0.5e14, rel=1e-3)
    assert eight["steps"] == pytest.approx(one["steps"] / 8, abs=1)
    assert eight["accelerator hours"] == pytest.approx(8 * eight["time"])
    assert one["network per step and worker"] == 0
    assert eight["network per step and worker"] == pytest.approx(2 * 4 * one["parameters"] * 7 / 8 / 1e9)
    assert plan_training(target(workers=8, zero_stage=3), SOME)["network time per step"] == pytest.approx(
        1.5 * eight["network time per step"]
    )
    assert one["shards"] == 245
    assert one["read rate of all workers"] == pytest.approx(65536 / 150 * 15_000 / one["step"] / 1e6)


def test_work_per_element_is_six_times_the_weights_and_attention() -> None:
    """Catches events taken as equal, whose attention would cost less."""
    found = plan_training(target(), SOME)["work per element"]
    weights = 6 * count_from(MlpfConfig(size=2))
    assert weights * 0.9 < found < weights * 1.5
    lengths = event_lengths(150)
    assert sum(lengths) / len(lengths) == pytest.approx(150, rel=0.01)
    assert sum(n * n for n in lengths) / len(lengths) > 1.08 * 150**2


def test_what_does_not_fit_is_known() -> None:
    """Catches memory that does not grow with the elements of a step, and stages that hold the same."""
    assert plan_training(target(), SOME).fits
    assert not plan_training(target(tokens=10_000_000), SOME).fits
    memory = plan_training(Target(MlpfConfig(size=6), 1e6, workers=8), ACCELERATORS["a100"]).memory
    assert memory[0] > memory[1] > memory[2] > memory[3]
    parameters = count_from(MlpfConfig(size=6))
    assert memory[0] - memory[1] == pytest.approx(12 * parameters * 7 / 8)


def test_accelerators_by_name() -> None:
    """Catches an efficiency that is not taken, and a name that is guessed."""
    assert find_accelerator("a100") == ACCELERATORS["a100"]
    assert find_accelerator("h100", efficiency=0.1).efficiency == 0.1
    here = find_accelerator("here")
    assert here.flops > 1e9
    assert torch.get_num_threads() >= 1
    with pytest.raises(ConfigError, match="unknown accelerator"):
        find_accelerator("a1000")


@pytest.mark.parametrize(("hours", "said"), [(0.002, "7.2 s"), (0.5, "30 min"), (1.0, "1 h"), (36.0, "36 h")])
def test_times_are_told_in_units_that_one_can_read(hours: float, said: str) -> None:
    """Catches a training of seconds that takes 0.002 hours."""
    assert str(Line("time", hours, "h", "")) == said
