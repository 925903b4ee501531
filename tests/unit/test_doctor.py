"""The doctor: what is told of nodes that differ, of tokens, and of what is missing on one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfscale.errors import ResourceError
from pfscale.training import doctor
from pfscale.training.doctor import PACKAGES, Check, NodeFacts
from pfscale.training.probe import Findings

FINE = NodeFacts(
    node="node1",
    versions=dict.fromkeys(PACKAGES, "1.0"),
    python="3.11.7",
    cpus=8,
    accelerators=0,
    driver="",
    findings=Findings("node1", 64e9, 100e9, 100e9, None),
    asked=100.0,
    answered=100.1,
    ops="",
    returned=100.2,
)


def verdicts(checks: object) -> dict[str, Check]:
    """By name."""
    return {check.name: check for check in checks}  # type: ignore[attr-defined]


def test_equal_nodes_are_fine() -> None:
    """Catches complaints about nothing."""
    found = [*doctor._compared(FINE, [FINE, replace(FINE, node="node2")]), *doctor._each([FINE]), doctor._nodes([FINE], [])]
    assert {check.verdict for check in found} == {"ok"}
    assert all(not check.mend for check in found)


def test_what_differs_is_named_with_its_node_and_a_mend() -> None:
    """Catches versions, interpreters and clocks that differ without a word."""
    other = replace(FINE, node="node2", versions={**FINE.versions, "ray": "2.0"}, python="3.12.1", answered=107.0)
    found = verdicts(doctor._compared(FINE, [FINE, other]))
    assert found["versions"].verdict == "failed"
    assert "node2: ray 2.0 (here 1.0)" in found["versions"].found
    assert "node2: Python 3.12.1" in found["versions"].found
    assert "node1" not in found["versions"].found
    assert found["clocks"].found == "differ: node2: 6.8 s"
    assert all(check.mend for check in found.values())


def test_a_slow_answer_is_no_skewed_clock() -> None:
    """Catches the time that a question takes, counted as a difference of clocks."""
    assert replace(FINE, answered=150.0, returned=200.0).skew == 0
    assert replace(FINE, answered=90.0).skew == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("changed", "name", "told"),
    [
        ({"findings": Findings("n", 64e9, 1e9, 100e9, None)}, "disk", "1.0 GB free"),
        ({"findings": Findings("n", 1e9, 99e9, 99e9, None)}, "memory", "1.0 GB"),
        (
            {"findings": Findings("n", 64e9, 99e9, 99e9, ResourceError("cannot write there", where="/x"))},
            "storage",
            "/x: cannot write there",
        ),
        ({"driver": "torch 2.9 is built for CPUs only"}, "accelerators", "CPUs only"),
        ({"ops": "ImportError: no"}, "DeepSpeed", "ImportError: no"),
    ],
)
def test_what_a_node_lacks_is_told(changed: dict, name: str, told: str) -> None:
    """Catches a fault of one node that drowns among the others."""
    found = verdicts(doctor._each([FINE, replace(FINE, node="bad", **changed)]))[name]
    assert found.verdict in ("warning", "failed")
    assert told in found.found
    assert "bad: " in found.found
    assert "node1" not in found.found
    assert found.mend


def test_a_node_without_an_answer_is_told() -> None:
    """Catches a node that is left out of all other checks in silence."""
    assert doctor._nodes([FINE], ["node3"]).verdict == "failed"


def test_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a cluster without a token, a token that others can read, a short one, and none where one is announced."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert doctor._token().verdict == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert doctor._token().verdict == "warning"
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert "is not there" in doctor._token().found
    token.write_text("f" * 64)
    token.chmod(0o644)
    assert doctor._token().mend == f"chmod 600 {token}"
    token.chmod(0o600)
    assert doctor._token().verdict == "ok"
    token.write_text("f")
    assert "fewer than 64" in doctor._token().found
