"""The model card: made from the run alone, with uncertainties, limits and lineage."""

from __future__ import annotations

from typing import Any

import pytest

from pfscale.errors import InputFileError
from pfscale.tracking.card import MAX_DESCRIPTION, as_description, card_markdown, metrics_of_note
from pfscale.tracking.lineage import Ancestor


def a_card(**changes: Any) -> dict[str, Any]:
    metrics = {
        "validation_loss": 0.25,
        "mlpf/jet_response_iqr_over_median": 0.1234,
        "mlpf/jet_response_iqr_over_median_error": 0.0021,
        "mlpf/met_resolution": 9.87,
        "mlpf/met_resolution_error": 0.12,
        "rule_based/met_resolution": 10.5,
        "rule_based/met_resolution_error": 0.13,
        "truth_targets/met_resolution": 4.0,
        "truth_targets/met_resolution_error": 0.1,
    }
    card = {
        "kind": "mlpf",
        "detector": "cld",
        "simulation": "builtin",
        "process": "ttbar",
        "data": "d" * 40,
        "parent": "",
        "fingerprint": "abc",
        "verb": "pretrain",
        "best_step": 300,
        "elements_seen": 123456,
        "num_train_events": 800,
        "splits": {"test": 100, "train": 800, "validation": 100},
        "num_parameters": 123456,
        "training": {"num_steps": 300, "learning_rate": 1e-3, "tokens_per_step": 8192, "seed": 1},
        "metrics": metrics,
        "measured_on": "100 validation events",
        "run": "r1",
        "pfscale": "0.1.0",
    }
    return {**card, **changes}


def test_numbers_stand_beside_baseline_and_ceiling_with_their_errors() -> None:
    """Would catch a card that says how good a model is without saying how sure that is, or compared with what."""
    text = card_markdown(a_card(), name="mlpf-cld")
    (line,) = [line for line in text.splitlines() if "missing momentum, resolution" in line]
    assert [cell.strip() for cell in line.strip("|").split("|")][1:] == ["9.87 ± 0.12", "10.50 ± 0.13", "4.00 ± 0.10"]
    assert "100 validation events" in text
    assert "800 train, 100 validation, 100 test" in text
    assert str(metrics_of_note(a_card())["met_resolution"]) == "9.87 ± 0.12"


def test_no_baseline_is_said() -> None:
    """Would catch an empty column, or nothing said, where the data have no rule-based candidates."""
    metrics = {key: value for key, value in a_card()["metrics"].items() if not key.startswith("rule_based")}
    text = card_markdown(a_card(metrics=metrics), name="mlpf-cld")
    assert "no rule-based candidates" in text
    assert "| rule-based" not in text


def test_limits_depend_on_what_it_learned_from() -> None:
    """Would catch figures of the built-in simulation that are compared with published ones."""
    assert "cannot be compared with published" in card_markdown(a_card(), name="mlpf-cld")
    full = card_markdown(a_card(simulation="geant4"), name="mlpf-cld")
    assert "cannot be compared with published" not in full
    assert "full simulation of cld only" in full


def test_the_lineage_is_the_whole_chain() -> None:
    """Would catch a transferred model whose origin is not told."""
    chain = (Ancestor("models:/mlpf-clic/3", "pretrain", "clic", "builtin", "e" * 40, "9000"), Ancestor("models:/gone/1"))
    text = card_markdown(a_card(parent="models:/mlpf-clic/3"), name="mlpf-cld", ancestors=chain)
    assert "models:/mlpf-clic/3: pretrain, 9000 events of clic" in text
    assert "models:/gone/1 (not in this registry)" in text
    assert "random weights" in card_markdown(a_card(), name="mlpf-cld")


def test_a_description_fits_into_the_store() -> None:
    """Would catch a registration that a PostgreSQL store refuses for the length of the card."""
    text = card_markdown(a_card(), name="mlpf-cld")
    assert as_description(text) == text
    chain = tuple(Ancestor(f"models:/mlpf-clic/{i}", "finetune", "clic", "builtin", "e" * 40, "9000") for i in range(100))
    cut = as_description(card_markdown(a_card(parent="models:/mlpf-clic/0"), name="mlpf-cld", ancestors=chain))
    assert len(cut) <= MAX_DESCRIPTION
    assert "the rest is in MODEL_CARD.md" in cut


def test_a_card_that_lacks_something_is_refused_by_name() -> None:
    """Would catch a KeyError from a model that another version of the package wrote."""
    card = a_card()
    del card["splits"]
    with pytest.raises(InputFileError, match="lacks splits"):
        card_markdown(card, name="mlpf-cld")
