"""What people see of a training: two lines that fit a terminal, plain lines in a log, evaluations in plain words."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runner.assembly import plan_steps
from runner.checkpoints.state import State
from runner.errors import ConfigError
from runner.loop import note_best, out_of_patience
from runner.progress import Progress, fitting, short, two_lines
from runner.run import Run
from runner.settings import RunSettings
from runner.tracking import flops_per_token, peak_flops
from tests.launching import REPOSITORY, SHORT, metrics, output, train

VALUES = {
    "loss": 0.5,
    "learning_rate": 1e-3,
    "grad_norm": 1.25,
    "examples_per_second": 219.6,
    "tokens_per_second": 14063.2,
    "memory_gb": 1.94,
    "flops_utilisation": 0.314,
    "epoch": 0.3,
}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("max_steps", [7, 1030, 123456789])
def test_two_lines_fit_the_width_and_begin_with_what_matters(width: int, max_steps: int) -> None:
    progress = Progress(False, max_steps, 100)
    progress.is_main, progress.done, progress.logged = True, max_steps // 2, {**VALUES, "mean_loss": 0.4321}
    progress.score = "exact_match 0.5921"
    progress.best(0.6, 100)
    lines = two_lines(progress._first(), progress._second(), width).plain.splitlines()
    assert len(lines) == 2 and all(len(line) <= width for line in lines)
    assert "train loss 0.4321" in lines[1]
    assert re.search(r"4\d%|50%", lines[0])
    if width >= 80:
        assert f"step {max_steps // 2:,}/{max_steps:,}" in lines[0] and "left" in lines[0]
        assert "exact_match 0.5921 (best 0.6000 at 100)" in lines[1] and "220 examples/s" in lines[1]
    if width >= 120:
        assert "14k tokens/s" in lines[1] and "memory 1.9 GB" in lines[1] and "MFU 31%" in lines[1]


def test_words_that_do_not_fit_are_left_out_as_a_whole() -> None:
    assert fitting(["abc", "defghij", "kl"], 7) == "abc  kl"
    assert [short(number) for number in (0.25, 7.25, 640.4, 9999, 14063, 1.234e6)] == [
        "0.25", "7.2", "640", "9,999", "14k", "1.23M",
    ]  # fmt: skip


def test_a_log_has_plain_lines_and_evaluations_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(True, 1030, 100)
    progress.step(50, VALUES, mean_loss=0.7, steps=30)
    progress.step(60, VALUES, mean_loss=0.3, steps=10)
    progress.evaluation(60, {"loss": 0.61, "mae": 2.0}, "mae", "new best score: saved", 0.31)
    lines = capsys.readouterr().out.splitlines()
    expected = (
        r"epoch 0\.30  step 50/1030  loss 0\.5000  lr 1\.00e-03  grad 1\.25  220 examples/s  14,063 tokens/s  left "
    )
    assert re.match(expected, lines[0])
    assert lines[2] == "evaluation at step 60:  loss 0.6100  mae 2.0000"
    assert lines[3] == "epoch 0.31  train loss 0.6000  validation loss 0.6100  score mae 2.0000  new best score: saved"


@pytest.mark.parametrize(
    ("least", "scores", "stops_after"),
    [
        (0.0, [3.0, 2.0, 1.999, 1.998, 1.997], None),
        (0.01, [3.0, 2.0, 1.999, 1.998, 1.997], 4),
        # Small improvements that add up to the least one count.
        (0.01, [3.0, 2.994, 2.988, 2.982, 2.976, 2.97], None),
        (0.5, [3.0, 2.6, 2.4, 2.2, 2.1], 5),
        (0.0, [3.0, 3.0, 3.0], 3),
        (1e-9, [3.0, math.nan, math.nan], 3),
    ],
)
def test_patience_counts_improvements_of_at_least_the_given_size(
    least: float, scores: list[float], stops_after: int | None
) -> None:
    settings = RunSettings(early_stopping_patience=2, early_stopping_min_delta=least)
    run = SimpleNamespace(state=State(), settings=settings, best_metric="mae", lacks_best_metric=False)
    stopped = None
    for number, score in enumerate(scores, 1):
        note_best(run, {"mae": score, "loss": score})  # type: ignore[arg-type]
        if stopped is None and out_of_patience(run):  # type: ignore[arg-type]
            stopped = number
    assert stopped == stops_after
    # The best checkpoint is the best one, by however little.
    assert run.state.best_score == min(score for score in scores if not math.isnan(score))


@pytest.mark.parametrize(("batch", "per_epoch"), [(16, 203), (16, 16), (7, 21), (32, 10)])
def test_an_epoch_ends_in_the_step_that_takes_its_last_example(batch: int, per_epoch: int) -> None:
    run = SimpleNamespace(progress=SimpleNamespace(examples_per_epoch=per_epoch))
    steps = [step for step in range(1, 60) if Run.ends_epoch(run, step * batch, batch)]  # type: ignore[arg-type]
    assert steps == sorted({-(-epoch * per_epoch // batch) for epoch in range(1, 6000)} & set(range(1, 60)))


@pytest.mark.parametrize("name", ["eval_every", "save_every"])
def test_epochs_of_a_stream_of_unknown_length_are_a_mistake(name: str) -> None:
    stream = SimpleNamespace(read=lambda *arguments: iter(()))
    settings = RunSettings(batch_size=8, micro_batch_size=8, max_steps=3, **{name: "epoch"})
    with pytest.raises(ConfigError, match=f"--{name.replace('every', 'steps')} N"):
        plan_steps(settings, stream, State())  # type: ignore[arg-type]


def test_every_epoch_is_evaluated_and_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, "--eval_every", "epoch", "--save_every", "epoch")
    # 203 rows in steps of 16: the first epoch ends in step 13.
    assert [event["step"] for event in metrics(folder, "eval")] == [13, 24]
    assert {path.name for path in folder.glob("checkpoint-[0-9]*")} >= {"checkpoint-13", "checkpoint-24"}
    printed = output(folder)
    assert re.search(
        r"\nepoch 1\.0\d  train loss \d+\.\d{4}  validation loss \d+\.\d{4}  score mae \d+\.\d{4}  "
        r"new best score: saved\n",
        printed,
    ), printed
    assert "warning: save_steps has no effect: save_every is epoch." in printed


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize("into_file", [False, True])
def test_on_a_terminal_two_lines_stay_and_the_others_stand_above(tmp_path: Path, into_file: bool) -> None:
    import fcntl
    import struct
    import termios

    main, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = [sys.executable, "-m", "runner", "train", *SHORT, "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(REPOSITORY)}
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file if into_file else terminal, stderr=terminal, env=environment)
    os.close(terminal)
    printed = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        printed += part
    assert process.wait() == 0, printed
    text = " ".join(printed.decode().split())
    assert "━" in text and "step 24/24" in text and "train loss" in text and "new best score: saved" in text
    # The cursor is never left hidden, even where the program is killed.
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    lines = log.read_text(encoding="utf-8")
    assert ("step 24/24  loss" in lines and "evaluation at step 24:  loss" in lines and "━" not in lines) == into_file


def test_operations_per_token_count_experts_that_are_visited_and_no_tables() -> None:
    model = torch.nn.Module()
    model.table = torch.nn.Embedding(100, 4)
    model.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(8))
    model.layer = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(4, 8)])})
    model.head = torch.nn.Linear(4, 10).requires_grad_(False)
    assert flops_per_token(model) == 6 * (8 * 16 + 32) + 4 * 40
    model.config = SimpleNamespace(num_local_experts=8, num_experts_per_tok=2)
    assert flops_per_token(model) == 6 * (8 * 16 + 32 / 4) + 4 * 40


def test_a_peak_is_known_for_16_bits_alone() -> None:
    assert peak_flops("NVIDIA H200", "bf16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp16") == 312e12
    assert peak_flops("NVIDIA L4", "bf16") == 121e12 and peak_flops("NVIDIA L40S", "bf16") == 362e12
    assert peak_flops("NVIDIA H200", "no") is None and peak_flops("Something new", "bf16") is None
