"""The demo as a newcomer runs it, at a size that tests can afford."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pfscale.demo import DemoSize, run_demo
from pfscale.errors import OutputExistsError
from pfscale.tracking.registry import list_models

TINY = DemoSize(clic_events=160, cld_events=120, small=20, large=60, pretrain_steps=20, transfer_steps=10)


def test_the_demo_runs_the_whole_chain_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """Catches any break between the parts, a model that is not registered, and a rerun that does everything twice."""
    pytest.importorskip("pythia8mc", reason="the built-in event source needs the extra [sim]")
    printed = io.StringIO()
    result = run_demo(tmp_path / "demo", size=TINY, console=Console(file=printed, width=140))
    text = printed.getvalue()
    names = {version.name for version in list_models(f"sqlite:///{tmp_path}/demo/mlflow.db")}
    assert names == {"mlpf-clic", "mlpf-cld", "missing-momentum-cld"}
    for row in (
        "CLIC pre-trained",
        "CLD zero-shot",
        "CLD scratch",
        "CLD full",
        "truth targets",
        "missing-momentum head",
        "mlflow ui",
    ):
        assert row in text
    assert result.num_candidates is not None
    assert {p.suffix for p in (tmp_path / "demo" / "figures").iterdir()} == {".png", ".json"}
    json.loads((tmp_path / "demo" / "figures" / "pretraining.json").read_text())

    again = run_demo(tmp_path / "demo", size=TINY, console=Console(file=io.StringIO()))
    assert again.pretraining.resumed
    assert again.missing_momentum.resumed
    assert again.pretraining.run_id == result.pretraining.run_id
    assert len(list_models(f"sqlite:///{tmp_path}/demo/mlflow.db")) == 3


def test_the_demo_leaves_other_peoples_folders_alone(tmp_path: Path) -> None:
    """Catches a demo that writes into a folder with somebody's data."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
