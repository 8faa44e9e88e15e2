"""TensorBoard and Weights & Biases, the latter offline. Run alone: python -m pytest tests/runner/test_tracking.py"""

import signal
from pathlib import Path

import pytest

from runner.checkpoints.folders import newest_checkpoint
from runner.checkpoints.state import read_state
from runner.trials import Interruption
from tests.launching import interrupted, output, train, weights


def test_tensorboard_has_every_number_once_over_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    flags = ("--report_to", "tensorboard", "--wandb_project", "mine")
    interrupted(run, Interruption("fetch", 13, signal=signal.SIGTERM), *flags)
    train(run, *flags, "--resume_from_checkpoint", "auto")
    steps: list[int] = []
    histograms: dict[str, list[int]] = {}
    for folder in sorted({path.parent for path in run.rglob("events.out.tfevents*")}):
        events = EventAccumulator(str(folder), {"histograms": 0})
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            steps += [event.step for event in events.Scalars("train/loss")]
        for name in events.Tags()["histograms"]:
            histograms.setdefault(name, []).extend(event.step for event in events.Histograms(name))
    assert sorted(steps) == list(range(1, 25))
    # The project of W&B names nothing of TensorBoard's.
    assert (run / "tensorboard").is_dir() and not (run / "mine").exists()
    # Wherever an evaluation follows; of every weight, and of its gradient.
    names = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in weights(run)}
    assert histograms == dict.fromkeys(names, [10, 20, 24])


def test_wandb_works_offline_and_goes_on_under_its_id(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--report_to", "wandb", "--wandb_run_name", "a name")
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    interrupted(run, Interruption("fetch", 13, signal=signal.SIGTERM), *flags, environment=environment)
    found, _ = newest_checkpoint(run)
    assert found is not None
    identity = read_state(found).trackers["wandb"]
    train(run, *flags, "--resume_from_checkpoint", "auto", environment=environment)
    last, _ = newest_checkpoint(run)
    assert last is not None and read_state(last).trackers["wandb"] == identity
    folders = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and all(name.endswith(identity) for name in folders)


def test_wandb_without_a_key_says_that_it_writes_offline(tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {"WANDB_SILENT": "true", "WANDB_API_KEY": ""}
    # The variable that the tests set for everything else is taken away in the process itself.
    train(run, "--report_to", "wandb", environment={**environment, "WANDB_MODE": ""})
    assert "writes offline" in output(run)
