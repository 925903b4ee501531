"""An MLflow store for each unit test: a copy of a database that was migrated once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def empty_store(migrated_database: Path, tmp_path: Path) -> str:
    """The tracking address of a store of this test's own; its artifacts go beside it."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"
