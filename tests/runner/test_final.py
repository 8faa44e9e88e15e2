"""`final/` has the best weights, and evaluations without a number end in order.

Run alone: python -m pytest tests/runner/test_final.py
"""

import json
import math
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.__main__ import main
from runner.checkpoints.folders import newest_checkpoint, step_of
from runner.checkpoints.pointers import resolve_pointer
from runner.checkpoints.state import State
from runner.checkpoints.tensors import read_tensors
from runner.evaluation import numbers_of
from runner.loop import note_best, out_of_patience
from runner.settings import RunSettings
from runner.trials import Interruption, steps_of_a_stop
from tests.launching import interrupted, metrics, output, same_bits, train, weights

# The error falls, so the highest one is that of the first evaluation: best and last differ.
FIRST_IS_BEST = ("--greater_is_better", "true", "--final", "best")


def a_run(metric: str = "accuracy", patience: int | None = None) -> Any:
    lines: list[str] = []
    return SimpleNamespace(
        state=State(),
        best_metric=metric,
        settings=RunSettings(early_stopping_patience=patience),
        progress=SimpleNamespace(print_line=lines.append, lines=lines),
        lacks_best_metric=False,
    )


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.6, 1.0), (0.4, 1.0)], 2),
        # Equal scores: the lower loss, then the later step.
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 1.1)], 2),
        ([(0.5, 1.0), (0.5, 1.0)], 2),
        ([(0.5, 1.0), (0.5, math.nan)], 2),
        ([(0.5, math.nan), (0.5, 1.0)], 2),
        # What is no number is never the best, also where it comes first.
        ([(math.nan, 1.0), (0.1, 1.0)], 2),
        ([(0.1, 1.0), (math.nan, 0.5)], 1),
        ([(math.nan, 1.0), (math.nan, 1.0)], None),
        ([(math.inf, 1.0)], None),
    ],
)
def test_which_evaluation_is_the_best(scores: list[tuple[float, float]], best: int | None) -> None:
    run = a_run()
    for step, (score, loss) in enumerate(scores, start=1):
        run.state.step = step
        # The loop saves a checkpoint where this is true, and final/ is read from it.
        assert note_best(run, {"accuracy": score, "loss": loss}) == (run.state.best_step == step)
    assert run.state.best_step == best


def test_a_lower_loss_at_an_equal_score_does_not_renew_the_patience() -> None:
    run = a_run(patience=2)
    for loss in (1.0, 0.9, 0.8):
        note_best(run, {"accuracy": 1.0, "loss": loss})
    assert out_of_patience(run)


@pytest.mark.parametrize("metric", ["eval_losss", "f1"])
def test_a_metric_that_is_not_there_is_named_once_and_does_not_use_up_the_patience(metric: str) -> None:
    run = a_run(metric, patience=1)
    assert not any(note_best(run, {"accuracy": 1.0, "loss": 0.5}) for _ in range(3))
    assert not out_of_patience(run)
    (line,) = run.progress.lines
    assert f"no metric {metric}; it has accuracy, loss" in line


def test_scores_that_are_no_numbers_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = numbers_of({"accuracy": 1, "f1": "0.5", "note": "fine", "worst": [1, 2], "roc": None})
    assert found.pop("roc") != found.get("roc")
    assert found == {"accuracy": 1.0, "f1": 0.5}
    printed = capsys.readouterr().err
    assert "metric note is a str" in printed and "metric worst is a list" in printed


def test_patience_with_a_metric_that_is_never_a_number_ends_in_order(tmp_path: Path) -> None:
    # The rows of the toy have a target that is no number, so its mean error has none either.
    run = tmp_path / "run"
    train(run, "--nan_from_row", "0", "--eval_steps", "4", "--early_stopping_patience", "2", "--final", "best")
    assert "stopping early: mae has not improved for 2 evaluations; it was never a number." in output(run)
    assert [line["mae"] for line in metrics(run, "eval")] == [None, None]
    assert json.loads((run / "final" / "origin.json").read_text())["step"] == 8


@pytest.mark.parametrize("limit", [(), ("--save_total_limit", "1")])
def test_final_has_the_best_weights_and_everything_says_so(
    tmp_path: Path, limit: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(run, *FIRST_IS_BEST, *limit)
    best = read_tensors(resolve_pointer(run / "checkpoint-best") / "model.safetensors")
    assert same_bits(weights(run), dict(best))
    assert not same_bits(weights(run), dict(read_tensors(run / "checkpoint-24" / "model.safetensors")))
    score = metrics(run, "eval")[0]["mae"]
    said = f"step 10 of 24, mae {score:.4f} (the best)"
    assert f"final/ has the weights of {said}" in output(run)
    card = (run / "final" / "README.md").read_text(encoding="utf-8")
    assert (
        said in card and f"| mae | {score:.4f} |" in card and "31 examples of the validation split, at step 10" in card
    )
    assert "final/ has the weights of step 10, the best" in (run / "report.html").read_text(encoding="utf-8")
    assert "final: best" in (run / "config.yaml").read_text(encoding="utf-8")
    for words in (["evaluate", "--checkpoint", str(run)], ["export", "--checkpoint", str(run), "--output", f"{run}-x"]):
        assert main(words) == 0
        assert said in capsys.readouterr().err
    # A copy of the model does not carry the line about another one's weights into its assets.
    assert main(["evaluate", "--checkpoint", str(run / "checkpoint-24")]) == 0
    assert "checkpoint-24, step 24" in capsys.readouterr().err


def test_the_start_can_be_the_best_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # The training destroys the weights: no later evaluation is better.
    words = ("--eval_on_start", "true", "--save_steps", "0", "--eval_steps", "6", "--max_steps", "12")
    train(run, *words, "--final", "best", "--learning_rate", "10")
    assert [line["step"] for line in metrics(run, "eval")] == [0, 6, 12]
    assert json.loads((run / "final" / "origin.json").read_text())["step"] == 0
    assert resolve_pointer(run / "checkpoint-best").name == "checkpoint-0"
    assert same_bits(weights(run), dict(read_tensors(run / "checkpoint-0" / "model.safetensors")))
    # A run that goes on does not evaluate its start again.
    interrupted(tmp_path / "other", Interruption("fetch", 4, signal=signal.SIGTERM), *words)
    train(tmp_path / "other", *words, "--resume_from_checkpoint", "auto")
    assert [line["step"] for line in metrics(tmp_path / "other", "eval")] == [0, 6, 12]


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        (("--final", "last", "--greater_is_better", "true"), 24),
        (("--final", "best"), 24),
        # No evaluation has a number, or there is no example to evaluate.
        (("--final", "best", "--nan_from_row", "0"), 24),
    ],
)
def test_where_the_last_weights_are_wanted_or_the_best_they_are_those_of_the_run(
    tmp_path: Path, flags: tuple[str, ...], step: int
) -> None:
    run = tmp_path / "run"
    train(run, *flags)
    assert same_bits(weights(run), dict(read_tensors(run / "checkpoint-24" / "model.safetensors")))
    assert json.loads((run / "final" / "origin.json").read_text())["step"] == step


def test_a_resumed_run_goes_on_from_the_latest_and_ends_with_the_best(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, *FIRST_IS_BEST, processes=2)
    interrupted(run, Interruption("forward", 14, signal=signal.SIGTERM), *FIRST_IS_BEST, processes=2)
    latest, _ = newest_checkpoint(run)
    assert latest is not None and step_of(latest) in steps_of_a_stop(output(run), 2)
    train(run, *FIRST_IS_BEST, "--resume_from_checkpoint", "auto", processes=2)
    assert f"at step {step_of(latest)}" in output(run)
    assert same_bits(weights(run), weights(whole))
    last = "checkpoint-24/model.safetensors"
    assert same_bits(dict(read_tensors(run / last)), dict(read_tensors(whole / last)))


def test_the_best_checkpoint_comes_back_from_the_bucket_or_a_line_says_that_it_is_lost(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    flags = (*FIRST_IS_BEST, "--save_total_limit", "1", "--resume_from_checkpoint", "auto")
    upload = ("--upload_to", bucket.as_uri())
    for name, more in (("there", upload), ("lost", ())):
        run = tmp_path / name
        interrupted(run, Interruption("fetch", 14, signal=signal.SIGTERM), *flags, *more)
        shutil.rmtree(run / "checkpoint-10")
        train(run, *flags, *more)
        origin = json.loads((run / "final" / "origin.json").read_text())
        assert origin["step"] == (10 if name == "there" else 24)
        assert resolve_pointer(run / "checkpoint-latest").name == "checkpoint-24"
    assert "warning: the best checkpoint" in output(tmp_path / "lost")
