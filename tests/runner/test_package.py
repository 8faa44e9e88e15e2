"""Relay as a package and on an old Python: the wheel works outside of a checkout, and Python 3.9 is told in a line.

Run alone: python -m pytest tests/runner/test_package.py
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.launching import REPOSITORY

PARTS = ("runner", "recipes", "accelerate_configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files that it is made of."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        place = REPOSITORY / name
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(place, folder / name, ignore=skipped) if place.is_dir() else shutil.copy(place, folder)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "-w", "dist", "."], cwd=folder, check=True, capture_output=True, timeout=120)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel, and with the libraries of this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    library = next((folder / "lib").glob("python*")) / "site-packages"
    (library / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return folder / "bin"


def relay(programs: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed console command in a folder that is no checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(programs / "relay"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_the_wheel_holds_what_is_found_by_name_and_bears_our_own_name(wheel: Path) -> None:
    assert wheel.name.startswith("relay_train-")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (REPOSITORY / "accelerate_configs").glob("*.yaml"):
        assert f"accelerate_configs/{path.name}" in names
    assert "runner/commands/evaluate.py" in names and "recipes/text2sql/README.md" in names
    assert not [name for name in names if name.startswith(("tests", "docs"))]


@pytest.mark.slow
def test_an_installed_wheel_trains_evaluates_and_names_its_files(installed: Path, tmp_path: Path) -> None:
    train = ["train", "--recipe", "text2sql", "--preset", "nano", "--max_steps", "2", "--max_eval_examples", "4"]
    done = relay(installed, tmp_path, *train, "--max_train_examples", "64", "--output_dir", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/final/model.safetensors").is_file()
    done = relay(installed, tmp_path, "evaluate", "run", "--max_eval_examples", "2")
    assert done.returncode == 0 and "exact_match" in done.stdout, done.stderr
    # Where an extra is missing, the message has the name on the package index.
    ask = "from runner.parts.installation import pip_line, launch_line\n"
    ask += "print(pip_line('s3'))\nprint(launch_line('cpu_2'))"
    shown = subprocess.run([installed / "python", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})  # fmt: skip
    pip, launch = shown.stdout.splitlines()
    assert pip == "pip install 'relay-train[s3]'"
    assert Path(launch.split()[3]).is_file() and launch.endswith("-m runner.train")


def old_pythons() -> Sequence[Path]:
    """Interpreters that are too old for Relay, where this machine has some."""
    places = [*Path("~/.pyenv/versions").expanduser().glob("3.[89].*/bin/python"), *map(Path, ("/usr/bin/python3.9",))]
    return [place for place in places if place.is_file()]


@pytest.mark.parametrize(
    "words", [["-m", "runner"], ["-m", "runner", "train"], ["runner/train.py", "--help"], ["-m", "runner.train"]]
)
def test_an_old_python_is_told_in_one_line(words: list[str]) -> None:
    if not old_pythons():
        pytest.skip("no Python before 3.10 here")
    done = subprocess.run([old_pythons()[0], *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "3.10 or newer" in done.stderr, done.stderr


def test_make_refuses_an_old_python_in_one_line(tmp_path: Path) -> None:
    if not old_pythons():
        pytest.skip("no Python before 3.10 here")
    words = ["make", "--no-print-directory", "test", f"PYTHON={old_pythons()[0]}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and len(lines) == 1 and "3.10 or newer" in lines[0], done.stderr
    assert not (tmp_path / "venv/bin/python").exists()
    # The same where the environment is of an old Python.
    subprocess.run([old_pythons()[0], "-m", "venv", "--without-pip", tmp_path / "old"], check=True, timeout=60)
    words = ["make", "--no-print-directory", "check", f"VENV={tmp_path / 'old'}"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and len(lines) == 1 and "3.10 or newer" in lines[0], done.stderr
