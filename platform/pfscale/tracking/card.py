"""The model card: what a model is, what it was made from, how good it is and what it must not be used for, as Markdown for people.

It is made from the bundle's `model_card.json`, so nothing in it is written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfscale.errors import InputFileError
from pfscale.physics.bootstrap import Estimate
from pfscale.shards.schema import SPLITS
from pfscale.tracking.lineage import Ancestor

CARD_FILE = "MODEL_CARD.md"
MAX_DESCRIPTION = 5000  # characters: what MLflow's SQL stores have room for
_NEEDED = ("splits", "num_parameters", "training", "measured_on", "run", "metrics")
METRICS_OF_NOTE = ("jet_response_iqr_over_median", "met_resolution")
_RECONSTRUCTIONS = {"mlpf": "this model", "rule_based": "rule-based", "truth_targets": "ceiling"}
_ROWS = {
    "jet_response_median": "jet response, median",
    "jet_response_iqr_over_median": "jet response, IQR / median",
    "jet_matched_fraction": "gen jets matched",
    "jet_spurious_fraction": "jets spurious",
    "met_response": "missing momentum, response",
    "met_resolution": "missing momentum, resolution [GeV]",
    "visible_energy_ratio_median": "visible energy / true",
}


def write_card(bundle: Path, card: Mapping[str, Any], *, name: str, ancestors: Sequence[Ancestor]) -> str:
    """The Markdown of a model card, which is also written into the model folder.

    Args:
        name: of the registered model; empty: it is not registered.
    """
    text = card_markdown(card, name=name, ancestors=ancestors)
    (bundle / CARD_FILE).write_text(text)
    return text


def as_description(markdown: str) -> str:
    """The card as a model version's description: whole where it fits, otherwise cut at a line, and that said."""
    if len(markdown) <= MAX_DESCRIPTION:
        return markdown
    end = f"\n\n(the rest is in {CARD_FILE} beside the weights)\n"
    return markdown[: markdown.rfind("\n", 0, MAX_DESCRIPTION - len(end))] + end


def card_markdown(card: Mapping[str, Any], *, name: str, ancestors: Sequence[Ancestor] = ()) -> str:
    """The model card of a particle-flow model as Markdown.

    Raises:
        InputFileError: the bundle's card lacks what is told here.
    """
    absent = [key for key in _NEEDED if key not in card]
    if absent:
        hint = "train it again, which registers it anew"
        raise InputFileError(f"the model's card lacks {', '.join(absent)}: another version of pfscale wrote it", where=name, hint=hint)
    sections = (
        _what(card, name),
        ("## Data", _data(card)),
        ("## Training", _training(card)),
        ("## Metrics", metrics_table(card)),
        ("## Limits", _limits(card)),
        ("## Use", _use(card, name)),
        ("## Lineage", _lineage(card, ancestors)),
    )
    return "\n\n".join(part for section in sections for part in section) + "\n"


def metrics_table(card: Mapping[str, Any]) -> str:
    """The main metrics with their uncertainties beside the rule-based candidates and the truth targets, as a Markdown table."""
    metrics = card["metrics"]
    known = [key for key in _RECONSTRUCTIONS if any(name.startswith(f"{key}/") for name in metrics)]
    rows = [["", *(_RECONSTRUCTIONS[key] for key in known)]]
    rows += [[label, *(str(estimate_of(metrics, f"{key}/{name}")) for key in known)] for name, label in _ROWS.items()]
    baseline = "" if "rule_based" in known else " The data hold no rule-based candidates."
    note = f"On {card['measured_on']} of the data above; errors: bootstrap over events. Ceiling: candidates made from the truth targets."
    return f"{_table(rows)}\n\n{note}{baseline}"


def metrics_of_note(card: Mapping[str, Any]) -> dict[str, Estimate]:
    """The few metrics of the model by which a list of models is read."""
    return {name: estimate_of(card["metrics"], f"mlpf/{name}") for name in METRICS_OF_NOTE}


def estimate_of(metrics: Mapping[str, float], key: str) -> Estimate:
    """A metric of a card with its error; NaN where it was not measured."""
    return Estimate(metrics.get(key, math.nan), metrics.get(f"{key}_error", math.nan))


def _what(card: Mapping[str, Any], name: str) -> tuple[str, str]:
    title = f"# {name or 'Particle-flow model'}: machine-learned particle flow for {card['detector']}"
    text = (
        "Finds the particles of an event (class, charge, four-momentum) from its tracks and calorimeter clusters, "
        f"and gives a latent vector for each of these. {card['num_parameters']:,} parameters, pfscale {card['pfscale']}."
    )
    return title, text


def _data(card: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{card['splits'].get(split, 0):,} {split}" for split in SPLITS)
    lines = [
        f"detector: {card['detector']}",
        f"simulation: {card['simulation']}",
        f"process: {card['process']}",
        f"events: {splits}",
        f"hash: `{card['data']}`",
    ]
    return _list(lines)


def _training(card: Mapping[str, Any]) -> str:
    settings = card["training"]
    rate = f"peak learning rate {settings['learning_rate']:.3g}, " if settings["learning_rate"] else ""
    lines = [
        f"{card['verb']} on {card['num_train_events']:,} events" + (f", started from {card['parent']}" if card["parent"] else ""),
        f"{settings['num_steps']:,} steps of up to {settings['tokens_per_step']:,} elements, {rate}{card['elements_seen']:,} elements seen",
        f"best step: {card['best_step']:,}, validation loss {card['metrics'].get('validation_loss', math.nan):.4g}",
        f"seed {settings['seed']}, fingerprint `{card['fingerprint']}`, run `{card['run']}`",
    ]
    return _list(lines)


def _limits(card: Mapping[str, Any]) -> str:
    detector, simulation = card["detector"], card["simulation"]
    kinds = {"builtin": "the built-in simulation (parametrised, no Geant4)", "geant4": "full simulation", "fast": "fast simulation"}
    lines = [
        f"Learned from {kinds.get(simulation, simulation)} of {detector}{_and_before(card)}: not for other detectors, other simulation or "
        "recorded data without measuring it there (`pfscale evaluate`) or transferring it (`pfscale finetune`).",
        f"The metrics are of {card['process']} events; jets and particles of other processes, energies or polar angles may be worse.",
        "Scores are the network's probabilities and are not calibrated.",
    ]
    if simulation == "builtin":
        lines.append("Its figures say nothing about a real detector and cannot be compared with published ones.")
    return _list(lines)


def _and_before(card: Mapping[str, Any]) -> str:
    return f", starting from {card['parent']}" if card["parent"] else " only"


def _use(card: Mapping[str, Any], name: str) -> str:
    reference = f"models:/{name}@champion" if name else "FOLDER"
    python = [
        "import mlflow",
        "from pfscale.shards.elements import element_table",
        'table = element_table("SHARDS", num_events=10)  # or your own: one row per track or cluster',
        f'candidates = mlflow.pyfunc.load_model("{reference}").predict(table)',
    ]
    shell = f"pfscale reconstruct {reference} FILE.root --detector {card['detector']} --output DIR"
    which = f"`@champion` is the model that was promoted last; `models:/{name}/VERSION` is this one, for ever.\n\n" if name else ""
    return f"{which}```sh\n{shell}\n```\n\n```python\n" + "\n".join(python) + "\n```"


def _lineage(card: Mapping[str, Any], ancestors: Sequence[Ancestor]) -> str:
    if not card["parent"]:
        return "Trained from random weights."
    return _list([str(ancestor) for ancestor in ancestors] or [card["parent"]])


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, so that its source is readable too; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
