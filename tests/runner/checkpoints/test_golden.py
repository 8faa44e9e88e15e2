"""Checkpoints that released versions wrote keep loading.

Run alone: python -m pytest tests/runner/checkpoints/test_golden.py

A release adds the folder that this program makes, and never changes one:

    python -m tests.runner.checkpoints.test_golden
"""

import shutil
from pathlib import Path

import pytest

from runner import __version__
from runner.checkpoints.manifest import find_damage
from runner.checkpoints.state import read_state
from runner.checkpoints.tensors import read_tensors
from runner.commands.verify import hash_of
from tests.launching import REPOSITORY, metrics, output, train

GOLDEN = REPOSITORY / "tests" / "golden"
# The hash of the weights of checkpoint-10, by the version that wrote it.
HASHES = {"0.1.0": "d599593f48762720"}


@pytest.mark.parametrize("release", HASHES)
def test_a_run_of_a_released_version_goes_on(tmp_path: Path, release: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / release, run)
    assert find_damage(run / "checkpoint-10") is None
    assert hash_of(read_tensors(run / "checkpoint-10" / "model.safetensors")) == HASHES[release]
    state = read_state(run / "checkpoint-10")
    assert (state.step, state.batch_size, state.num_examples) == (10, 16, 203)
    train(run, "--resume_from_checkpoint", "auto")
    assert "at step 10" in output(run)
    assert [line["step"] for line in metrics(run)] == list(range(11, 25))


def test_every_folder_is_tested() -> None:
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == set(HASHES)


def test_a_checkpoint_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "0.1.0", run)
    manifest = run / "checkpoint-10" / "manifest.json"
    text = manifest.read_text(encoding="utf-8").replace('"schema_version": 1', '"schema_version": 2', 1)
    manifest.write_text(text, encoding="utf-8")
    assert find_damage(run / "checkpoint-10") == ("manifest.json is of schema version 2; this Relay reads version 1")


if __name__ == "__main__":
    folder = Path("golden-run")
    # The relative path, because config.yaml names the recipe.
    train(folder, "--max_steps", "10", "--eval_steps", "0", "--recipe", "tests/toy_recipe.py")
    target = GOLDEN / __version__
    target.mkdir(parents=True)
    shutil.copytree(folder / "checkpoint-10", target / "checkpoint-10")
    print(target, hash_of(read_tensors(target / "checkpoint-10" / "model.safetensors")))
