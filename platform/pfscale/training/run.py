"""What a training returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pfscale.tracking.registry import ModelVersion


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        metrics: final figures by name.
        checkpoint: folder of the model bundle (None where nothing was trained).
        model: the registered version, if one was registered.
        link: how to open the run in MLflow.
        resumed: it was finished before, and only looked up.
        notes: what to keep in mind: a model and data that were not made for each other, a candidate that was replaced.
        history: "train" and "validation" -> (step, loss).
    """

    run_id: str
    name: str
    fingerprint: str
    metrics: dict[str, float]
    checkpoint: Path | None
    model: ModelVersion | None
    link: str
    resumed: bool = False
    notes: tuple[str, ...] = ()
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def summary(self) -> str:
        """Three lines for the terminal (and one per note): what ran, how it ended, where to look."""
        shown = (
            *("validation_loss", "mlpf/jet_response_median", "mlpf/jet_response_iqr_over_median", "mlpf/met_resolution"),
            *("truth_targets/met_resolution", "test/met_resolution", "test/baseline/met_resolution"),
            *("test/energy_response_iqr_over_median", "test/baseline/energy_response_iqr_over_median"),
            *("test/auc_b_vs_c", "test/auc_b_vs_ud", "test/auc_c_vs_ud", "test/accuracy"),
            *("test/event_efficiency", "test/baseline/event_efficiency"),
        )
        figures = ", ".join(self._with_error(name) for name in shown if name in self.metrics)
        model = f"registered as {self.model.uri}" if self.model else "not registered"
        note = " (was already finished)" if self.resumed else ""
        warnings = [f"note: {text}" for text in self.notes]
        return "\n".join([f"{self.name}{note}: {model}", figures or "no metrics", self.link, *warnings])

    def _with_error(self, name: str) -> str:
        error = self.metrics.get(f"{name}_error")
        return f"{name} {self.metrics[name]:.4g}" + (f" ± {error:.2g}" if error is not None else "")
