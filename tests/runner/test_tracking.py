"""TensorBoard, trackio, and Weights & Biases offline. Run alone: python -m pytest tests/runner/test_tracking.py"""

import contextlib
import json
import signal
import sqlite3
import sys
from pathlib import Path

import psutil
import pytest
import torch

from runner import trials
from runner.checkpoints.folders import newest_checkpoint
from runner.checkpoints.state import read_state
from runner.tracking import memory_bytes
from runner.trials import Interruption
from tests.launching import SHORT, interrupted, output, train, weights


def test_tensorboard_has_every_number_once_over_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    flags = ("--report_to", "tensorboard", "--wandb_project", "mine", "--shows_answers", "true")
    interrupted(run, Interruption("fetch", 13, signal=signal.SIGTERM), *flags)
    train(run, *flags, "--resume_from_checkpoint", "auto")
    steps: list[int] = []
    texts: list[str] = []
    histograms: dict[str, list[int]] = {}
    for folder in sorted({path.parent for path in run.rglob("events.out.tfevents*")}):
        events = EventAccumulator(str(folder), {"histograms": 0, "tensors": 0})
        events.Reload()
        if "samples/text_summary" in events.Tags()["tensors"]:
            for event in events.Tensors("samples/text_summary"):
                texts += [text.decode() for text in event.tensor_proto.string_val]
        if "train/loss" in events.Tags()["scalars"]:
            steps += [event.step for event in events.Scalars("train/loss")]
        for name in events.Tags()["histograms"]:
            histograms.setdefault(name, []).extend(event.step for event in events.Histograms(name))
    assert sorted(steps) == list(range(1, 25))
    # Answers as a table, whose cells are whole.
    assert texts and all(text.startswith("| error | right |\n| --- | --- |\n| ") for text in texts)
    assert all(text.count("\n") == 3 and text.count(" &#124; a<br>b |") == 2 for text in texts)
    # The project of W&B names nothing of TensorBoard's.
    assert (run / "tensorboard").is_dir() and not (run / "mine").exists()
    # Wherever an evaluation follows; of every weight, and of its gradient.
    names = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in weights(run)}
    assert histograms == dict.fromkeys(names, [10, 20, 24])


def test_wandb_works_offline_and_goes_on_under_its_id(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--report_to", "wandb", "--wandb_run_name", "a name", "--shows_answers", "true")
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
    tables = [*(run / "wandb").glob("offline-run-*/files/media/table/samples_*.table.json")]
    assert tables
    for file in tables:
        table = json.loads(file.read_text(encoding="utf-8"))
        assert table["columns"] == ["error", "right"] and len(table["data"]) == 2


def test_trackio_has_the_run_under_its_name_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    run = tmp_path / "run"
    flags = ("--report_to", "trackio", "--shows_answers", "true")
    interrupted(run, Interruption("fetch", 13, signal=signal.SIGTERM), *flags)
    train(run, *flags, "--resume_from_checkpoint", "auto")
    (file,) = (run / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        rows = [(name, step, json.loads(text)) for name, step, text in
                database.execute("select run_name, step, metrics from metrics")]  # fmt: skip
    assert {name for name, _, _ in rows} == {"run"}
    assert sorted(step for _, step, values in rows if "train/loss" in values) == list(range(1, 25))
    for name in ("samples", "weights/0.weight", "gradients/0.weight"):
        assert any(name in values for _, _, values in rows), name


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_dry_run_touches_no_tracker(tmp_path: Path, tracker: str) -> None:
    pytest.importorskip(tracker)
    run = tmp_path / "run"
    environment = {"WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    words = [*SHORT, "--output_dir", str(run), "--report_to", tracker, "--dry_run"]
    trials.train(words, 1, tmp_path / "dry.log", environment)
    assert [path.name for path in tmp_path.iterdir()] == ["dry.log"]


def test_wandb_without_a_key_says_that_it_writes_offline(tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {"WANDB_SILENT": "true", "WANDB_API_KEY": ""}
    # The variable that the tests set for everything else is taken away in the process itself.
    train(run, "--report_to", "wandb", environment={**environment, "WANDB_MODE": ""})
    assert "writes offline" in output(run)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS tells no peak")
def test_the_memory_of_a_cpu_is_the_most_that_the_process_had() -> None:
    """A lane's activations are gone when the step is logged."""
    held = torch.ones(50_000_000)
    most = psutil.Process().memory_info().rss
    del held
    assert memory_bytes(torch.device("cpu")) > most - 1e6
