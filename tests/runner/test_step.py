"""Parts of one step: logs of a lane in parts, and a part of the loss that belongs to the whole step.

Run alone: python -m pytest tests/runner/test_step.py
"""

from pathlib import Path

import pytest
import torch

from runner.step import mean_logs
from tests.launching import TOY, difference, metrics, output, train, weights


def test_the_logs_of_a_split_lane_are_those_of_all_its_parts() -> None:
    nan = float("nan")
    parts = [
        (0.5, {"a": 1.0, "b": torch.tensor([2.0, nan]), "never": nan}),
        (0.25, {"a": torch.tensor(3.0), "b": torch.tensor([nan, nan]), "never": nan}),
        (0.25, {"a": 5.0, "b": torch.tensor([5.0, 7.0]), "never": nan}),
    ]
    means = mean_logs(parts)
    assert means["a"] == pytest.approx(0.5 * 1 + 0.25 * 3 + 0.25 * 5)
    assert means["b"].tolist() == pytest.approx([(0.5 * 2 + 0.25 * 5) / 0.75, 7.0])
    assert means["never"].isnan()
    # One part is the lane itself, untouched.
    assert mean_logs([(1.0, parts[0][1])]) == parts[0][1]


def test_a_run_that_splits_its_lanes_logs_what_one_that_does_not_logs(tmp_path: Path) -> None:
    steady = ("--max_steps", "2", "--model.dropout", "0", "--logging_steps", "1")
    train(tmp_path / "whole", *steady)
    train(tmp_path / "split", *steady, "--most_rows", "2")
    assert "computed in 2 parts" in output(tmp_path / "split")
    for whole, split in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "split"), strict=True):
        assert split["toy"] == pytest.approx(whole["toy"], rel=1e-5)


OVER_THE_STEP = """
    needs_step_statistics = True

    def loss(self, model, batch):
        outputs = model(batch["inputs"])[:, 0]
        counts = torch.stack([outputs.detach().sum(), torch.tensor(float(len(outputs)))])
        errors = ((outputs - batch["targets"]) ** 2 * batch["counts"]).sum()
        if batch.step_statistics is None:
            return Loss(errors, statistics=counts)
        # The square of the step's mean output: its gradient is that of the outputs times twice the mean.
        mean = batch.step_statistics[0] / batch.step_statistics[1]
        return Loss(errors, step_auxiliary=3 * 2 * mean * outputs.sum() / batch.step_statistics[1])
"""


def test_an_auxiliary_loss_of_the_whole_step_does_not_know_lanes_nor_processes(tmp_path: Path) -> None:
    text = Path(TOY).read_text(encoding="utf-8")
    head, _, rest = text.partition("    def loss(")
    recipe = tmp_path / "over_the_step.py"
    recipe.write_text(head + OVER_THE_STEP.lstrip("\n") + "\n    def predict(" + rest.partition("    def predict(")[2])
    words = ("--recipe", str(recipe), "--model.dropout", "0", "--max_steps", "6")
    found = {}
    for name, micro, processes in (("one", 16, 1), ("lanes", 2, 1), ("two", 4, 2)):
        train(tmp_path / name, *words, "--micro_batch_size", str(micro), processes=processes)
        found[name] = weights(tmp_path / name)
    assert difference(found["lanes"], found["one"]) < 1e-5 and difference(found["two"], found["one"]) < 1e-5
    # And it does something.
    recipe.write_text(recipe.read_text().replace("3 * 2 * mean", "0 * mean"))
    train(tmp_path / "without", *words, "--micro_batch_size", "16")
    assert difference(weights(tmp_path / "without"), found["one"]) > 1e-3
