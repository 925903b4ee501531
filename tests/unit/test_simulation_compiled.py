"""The kept results of numba: thrown away when a file changes whose functions are called, and nobody else's business."""

from __future__ import annotations

from pathlib import Path

import numba
import pytest

from pfscale.simulation import compiled as module
from pfscale.simulation.compiled import compiled


def test_other_code_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a function that goes on with the old code of one that it calls from another file: other events for the same seed."""
    monkeypatch.setattr(module, "__file__", str(tmp_path / "compiled.py"))
    caller, callee, other = (tmp_path / name for name in ("caller.py", "callee.py", "other.py"))
    caller.write_text("@compiled\ndef f(): return g()\n")
    callee.write_text("@compiled\ndef g(): return 1\n")
    other.write_text("a = 1\n")
    folder = module._cache_folder.__wrapped__
    before = folder()
    other.write_text("a = 2\n")
    assert folder() == before
    callee.write_text("@compiled\ndef g(): return 2\n")
    assert folder() != before


def test_other_users_of_numba_keep_their_folder() -> None:
    """Catches: a setting of numba that leaks out of here."""
    before = numba.config.CACHE_DIR

    @compiled
    def twice(x: float) -> float:
        return 2.0 * x

    @compiled(forceinline=True)
    def thrice(x: float) -> float:
        return 3.0 * x

    assert before == numba.config.CACHE_DIR
    assert (twice(2.0), thrice(2.0)) == (4.0, 6.0)
    assert "numba_" in twice.stats.cache_path
