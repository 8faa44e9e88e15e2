"""relay new writes a recipe that keeps the contract and trains. Run alone: python -m pytest tests/runner/test_new.py"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.__main__ import main
from tests.launching import REPOSITORY


@pytest.mark.parametrize("name", ["points", "my_task2"])
def test_a_new_recipe_passes_its_own_tests(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", name]) == 0
    printed = capsys.readouterr().out
    assert f"relay check --recipe {name}.py" in printed and f"relay train --recipe {name}.py" in printed
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.py", f"test_{name}.py"}
    assert "NAME" not in (tmp_path / f"{name}.py").read_text(encoding="utf-8")
    if name != "points":
        return
    # Its tests check the recipe by relay check and train it.
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_{name}.py"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert finished.returncode == 0 and "2 passed" in finished.stdout, finished.stdout


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("my-task", "small letters"), ("2tasks", "small letters"), ("class", "small letters"), ("a/b", "small letters"),
        ("Task", "small letters"), ("tâche", "small letters"), ("", "small letters"), ("torch", "Python package"),
        ("json", "Python package"), ("text2sql", "recipe of Relay"),
    ],
)  # fmt: skip
def test_a_name_that_would_be_in_the_way_is_refused(
    name: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", name]) == 2
    message = capsys.readouterr().err
    assert wanted in message and "relay new" in message
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_points.py").write_text("mine", encoding="utf-8")
    assert main(["new", "points", "--folder", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err and not (tmp_path / "points.py").exists()
    assert (tmp_path / "test_points.py").read_text(encoding="utf-8") == "mine"
    assert main(["new", "points", "--folder", str(tmp_path / "test_points.py" / "x")]) == 2
    assert main(["new"]) == 2


def test_the_templates_are_well_formed(tmp_path: Path) -> None:
    """They are no .py files, so that ruff does not see them where they lie."""
    assert main(["new", "points", "--folder", str(tmp_path)]) == 0
    settings = ["--config", str(REPOSITORY / "pyproject.toml")]
    for words in (["check", *settings], ["format", "--check", *settings]):
        finished = subprocess.run(
            [sys.executable, "-m", "ruff", *words, str(tmp_path)], capture_output=True, text=True, timeout=60
        )
        assert finished.returncode == 0, finished.stdout
