"""`make demo` trains, reports and answers. Run alone: python -m pytest tests/test_makefile.py"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_trains_reports_and_answers(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "DB", "QUESTION")}
    # The stamp of the installation counts as new: nothing is installed into the environment of this test.
    made = subprocess.run(
        ["make", "demo", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed", f"DEMO={tmp_path / 'demo'}",
         "FLAGS=--max_steps 2 --max_eval_examples 4 --batch_size 8", "QUESTION=how many crime books are there ?"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    assert (tmp_path / "demo" / "final").is_dir()
    assert "scores on the validation split" in made.stdout
    assert "execution_accuracy" in made.stdout
    assert "question: how many crime books are there ?" in made.stdout and "\nSQL:" in made.stdout
