"""The layout of the checkout: what must not be there, what must stay light, what jobs look like."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def python(program: str) -> str:
    """What `program` prints when it is started in the checkout's top folder, as jobs, pytest and users do."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_folder_platform_is_no_package() -> None:
    """Would catch platform/__init__.py, which shadows the standard library: `import torch` dies, a submitted job hangs."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert python("import platform; print(platform.system(), platform.__file__.endswith('platform.py'))").endswith("True")


def test_importing_the_package_is_light() -> None:
    """Would catch a notebook that waits ten seconds for `import pfscale`."""
    heavy = "{'torch', 'ray', 'mlflow', 'deepspeed', 'numpy', 'pyarrow'}"
    assert python(f"import sys, pfscale; print(*({heavy} & set(sys.modules)))") == ""


def test_no_test_folder_is_a_package() -> None:
    """Would catch two test files of one name hiding each other, or tests that import each other by package."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_is_thin(path: Path) -> None:
    """Would catch logic in a job script that the command line does not have."""
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) < 40
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    line = "ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/" + path.name
    assert line in (ast.get_docstring(tree) or "")


def test_every_job_is_a_verb_and_is_in_the_table() -> None:
    """Would catch a job whose verb was renamed, and one that nobody is told of."""
    from pfscale.cli import app

    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    table = (ROOT / "jobs" / "README.md").read_text()
    assert JOBS
    for path in JOBS:
        assert path.stem in verbs
        assert f"jobs/{path.name}" in table


def test_the_runtime_environment_brings_the_package_and_no_secret() -> None:
    """Would catch a job that cannot import pfscale, or a cluster token that travels with the working folder."""
    environment = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert environment["working_dir"] == "."
    assert environment["py_modules"] == ["platform/pfscale"]
    assert "cluster/.local" in environment["excludes"]
    ignored = subprocess.run(["git", "check-ignore", "-q", "cluster/.local/token"], cwd=ROOT, check=False).returncode
    assert ignored in (0, 128)  # 128: not a git checkout


@pytest.mark.parametrize("folder", ["jobs", "cluster", "search_spaces", "tests"])
def test_every_top_folder_explains_itself(folder: str) -> None:
    """Would catch a folder that a newcomer has to guess at."""
    assert (ROOT / folder / "README.md").is_file()
