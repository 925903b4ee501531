"""What a ladder's curves are drawn beside: the rule-based reconstruction and the ceiling, on the same test events."""

from __future__ import annotations

import math

from pfscale.models.bundle import load_bundle
from pfscale.physics.evaluation import RULE_BASED, TRUTH_TARGETS
from pfscale.studies.measure import PREFIX, measured_sample
from pfscale.studies.plan import SweepPlan
from pfscale.training.evaluate import evaluate_bundle
from pfscale.training.launch import Launch


def references_on_test(plan: SweepPlan) -> dict[str, dict[str, tuple[float, float]]]:
    """Reconstruction -> metric -> (value, error); nothing where the sweep has no test events.

    Raises:
        ShardError, NotEnoughDataError.
    """
    test = plan.question.sweep.test
    launches = [trial.launch for trial in plan.trials if isinstance(trial.launch, Launch)]
    backbone = next((launch.backbone_folder for launch in launches if launch.backbone_folder is not None), None)
    if test is None or backbone is None:
        return {}
    index, members = measured_sample(test, plan.trials[0].launch.config.data.shards)
    metrics = evaluate_bundle(load_bundle(backbone), index, members, title="").metrics
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for key, prefix in ((RULE_BASED, "rule_based/"), (TRUTH_TARGETS, "truth_targets/")):
        names = [name for name in metrics if name.startswith(prefix) and not name.endswith("_error") and math.isfinite(metrics[name])]
        if names:
            found[key] = {PREFIX + n.removeprefix(prefix): (metrics[n], metrics.get(f"{n}_error", math.nan)) for n in names}
    return found
