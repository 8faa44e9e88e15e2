"""Every recipe has a notebook, which runs from its first cell to its last.

Run alone: python -m pytest tests/test_notebooks.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner import registry
from tests.launching import REPOSITORY

NOTEBOOKS = REPOSITORY / "docs" / "notebooks"
# Recipe -> a package of its extra.
NEEDS = {"tabular": "pandas", "microbiome": "skbio"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", registry.names())
def test_the_notebook_of_a_recipe_runs(recipe: str, tmp_path: Path) -> None:
    if recipe in NEEDS:
        pytest.importorskip(NEEDS[recipe])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(NOTEBOOKS / f"{recipe}.py")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished at step" in done.stdout


@pytest.mark.parametrize("script", sorted(NOTEBOOKS.glob("*.py")), ids=lambda script: script.stem)
def test_a_notebook_has_cells_of_text_and_code(script: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    kinds = [cell.cell_type for cell in jupytext.read(script, fmt="py:percent").cells]
    assert kinds[0] == "markdown" and kinds.count("code") >= 3 and kinds.count("markdown") >= 3
    assert script.stem in registry.names()
