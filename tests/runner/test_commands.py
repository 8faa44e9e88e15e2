"""The verbs of `relay` that look at a run or plan one. Run alone: python -m pytest tests/runner/test_commands.py"""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.__main__ import VERBS, main
from runner.commands import find_lr, plan
from runner.settings import RunSettings
from tests.benchmarks import loop_contenders
from tests.launching import REPOSITORY, SHORT, TOY, train

LLAMA = str(REPOSITORY / "tests" / "benchmarks" / "loop_contenders.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of the toy."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    train(folder)
    return folder


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main([verb, "--help"]) == 0
    except SystemExit as leaving:
        assert not leaving.code
    assert f"relay {verb}" in capsys.readouterr().out


MISTAKES = [
    (["evaluate"], "--checkpoint"),
    (["evaluate", "--checkpont", "x"], "Did you mean --checkpoint?"),
    (["evaluate", "--checkpoint", "no/such"], "There is no folder no/such"),
    (["evaluate", "--checkpoint", "RUN", "--split", "test2"], "test2"),
    (["evaluate", "--checkpoint", "RUN", "--nois", "3"], "Did you mean --noise?"),
    (["evaluate", "--checkpoint", "RUN", "--output", "RUN"], "cannot be written: type --output"),
    (["export", "--checkpoint", "RUN", "--output", "RUN"], "is there already"),
    (["report"], "relay report runs/NAME"),
    (["plan", "--recipe", TOY, "--batch_size", "12"], "--micro_batch_size"),
    (["plan", "--recipe", TOY, "--accelerate_config", "no.yaml"], "no.yaml"),
    (["plan", "--recipe", TOY, "--timed_steps", "-1"], "timed_steps"),
    (["find-lr", "--recipe", TOY, "--min", "1", "--max", "0.1"], "min must be below max"),
    (["find-lr", "--recipe", TOY, "--sweep", "fast,slow"], "--sweep"),
    (["find-lr", "--recipe", TOY, "--output", "picture.png"], ".svg"),
    (["check", "--recipe", TOY, "--exampels", "3"], "Did you mean"),
    (["find_lr"], "relay find-lr"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words)[:40] for words, _ in MISTAKES])
def test_a_mistake_ends_with_status_2_and_says_what_to_type(
    words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    message = capsys.readouterr().err
    assert said in message and message.startswith("error: ") and len(message.strip().splitlines()) <= 3


def test_evaluate_gives_the_scores_of_the_training_and_a_row_per_example(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["--micro-batch-size", "4", "--output", str(rows)]
    assert main(["evaluate", "--checkpoint", str(run / "final"), *words]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [event for event in events if event["split"] == "eval"][-1]
    for name in ("loss", "mae", "rows"):
        assert math.isclose(float(printed[name]), last[name], abs_tol=1e-4)
    assert len(rows.read_text(encoding="utf-8").splitlines()) == 31


def test_a_split_without_examples_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run, run / "final", run / "checkpoint-latest"):
        assert main(["evaluate", str(folder), "--split", "test", "--num_test_rows", "0"]) == 2
        message = capsys.readouterr().err
        assert f"The test split of {folder} has no examples" in message and "--split" in message
    assert main(["evaluate", str(run), "--split", "train", "--streamed", "true"]) == 2
    assert "is read as a stream, which has no end to score" in capsys.readouterr().err


@pytest.mark.parametrize("left", [0, 1])
def test_there_is_nothing_to_average_with_fewer_than_two_checkpoints(
    left: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    folders = sorted(copy.glob("checkpoint-[0-9]*"), key=lambda folder: int(folder.name.split("-")[1]))
    assert len(folders) > 1
    for folder in folders[: len(folders) - left]:
        shutil.rmtree(folder)
    assert main(["average", str(copy), "--best", "3", "--output", str(tmp_path / "mean")]) == 2
    message = capsys.readouterr().err
    wanted = "Only one checkpoint" if left else "There is no checkpoint"
    assert wanted in message and str(copy) in message and not (tmp_path / "mean").exists()


def test_a_reader_that_has_seen_enough_is_no_traceback(run: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -u -m runner evaluate --checkpoint {run} | true"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 141 and "Traceback" not in done.stderr


def test_predict_takes_the_recipe_that_the_checkpoint_is_of(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--recipe", "tabular", "--help"])
    assert ended.value.code == 0 and "--table" in capsys.readouterr().out
    assert main(["predict", "--recipe", "tabular", "--checkpoint", str(run), "--input", "x.csv"]) == 2
    assert f"of the recipe {TOY}, not of tabular" in capsys.readouterr().err
    # The toy has nothing to ask: so far it comes with its own name.
    assert main(["predict", f"--recipe={TOY}", "--checkpoint", str(run)]) == 2
    assert f"The recipe {TOY} has no Request" in capsys.readouterr().err


@pytest.mark.parametrize(("trained", "asked", "used"), [
    ("no", (), "no"), ("bf16", (), "bf16"), ("bf16", ("--mixed_precision", "no"), "no"),
])  # fmt: skip
def test_evaluate_computes_in_the_precision_of_the_run(
    tmp_path: Path, trained: str, asked: tuple[str, ...], used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import hardware

    train(tmp_path, "--max_steps", "1", "--eval_steps", "0", "--save_steps", "0", "--mixed_precision", trained)
    opened, found = hardware.open_hardware, []

    def spy(settings: RunSettings) -> hardware.Hardware:
        found.append(settings.mixed_precision)
        # One process has one accelerator state, which cannot be changed.
        return opened(dataclasses.replace(settings, mixed_precision="no"))

    monkeypatch.setattr(hardware, "open_hardware", spy)
    assert main(["evaluate", "--checkpoint", str(tmp_path), *asked]) == 0
    assert found == [used]


def test_a_long_evaluation_shows_a_bar_on_a_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        # A second at each look at the clock: long enough for a bar.
        times = iter(range(1_000_000))
        monkeypatch.setattr("tqdm.std.time", lambda times=times: float(next(times)))
        assert main(["evaluate", "--checkpoint", str(run), "--micro_batch_size", "4", "--mixed_precision", "no"]) == 0
        assert ("8/8" in capsys.readouterr().err) == terminal


def test_an_exported_model_is_loaded_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    words = ("--recipe", LLAMA, "--max_steps", "2", "--batch_size", "4", "--micro_batch_size", "4", "--layers", "1")
    train(tmp_path / "run", *words, "--width", "32", "--eval_steps", "0", "--save_steps", "0")
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "model")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").state_dict()
    assert exported.keys() == final.keys() and all(exported[name].equal(final[name]) for name in final)
    assert not any(path.name.startswith("optimizer") for path in (tmp_path / "model").iterdir())


def test_a_plan_of_two_billion_parameters_makes_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """The counts are those of research: 1.98 B, 0.53 B of them active."""
    assert main(["plan", "--recipe", "text2sql", "--preset", "small-2b", "--mixed_precision", "no"]) == 0
    printed = capsys.readouterr().out
    assert "1.98 B (1,979,025,408)" in printed and "526 M (525,699,072)" in printed
    assert "weights                 7.9 GB" in printed and "optimiser (AdamW)      15.8 GB" in printed
    assert "not known" not in printed


@pytest.mark.parametrize(("layers", "width"), [(2, 64), (3, 96)])
def test_planned_activations_are_those_that_a_forward_pass_leaves(layers: int, width: int) -> None:
    recipe = loop_contenders.Recipe(layers=layers, width=width)
    batch = recipe.collate(list(recipe.data("train")[:8]))
    planned = plan.measure(recipe, batch, RunSettings(mixed_precision="no"))
    model = recipe.model().train()
    recipe.loss(model, batch)
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = recipe.loss(model, batch)
    held = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    assert loss.sum.isfinite() and math.isclose(planned.activations, held, rel_tol=0.1)
    assert planned.total == sum(parameter.numel() for parameter in model.parameters())
    logits = 8 * loop_contenders.CONTEXT * loop_contenders.VOCABULARY * 4
    assert logits * 0.9 < planned.logits < logits * 3


def test_a_plan_says_how_long_the_steps_take(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--recipe", TOY, "--max_steps", "1000", "--mixed_precision", "no", "--timed_steps", "3"]
    started = time.monotonic()
    assert main(words) == 0
    spent = time.monotonic() - started
    found = re.search(r"^time +(\d+):(\d\d):(\d\d) at (\S+) s a step", capsys.readouterr().out, re.MULTILINE)
    assert found
    hours, minutes, seconds = map(int, found.groups()[:3])
    a_step = float(found[4])
    assert math.isclose(3600 * hours + 60 * minutes + seconds, 1000 * a_step, abs_tol=1 + 5 * a_step)
    assert 0 < 3 * a_step < spent


def test_a_loss_that_looks_at_its_numbers_is_planned_with_numbers() -> None:
    class Looking(loop_contenders.Recipe):
        def loss(self, model: Any, batch: Any) -> Any:
            found = super().loss(model, batch)
            assert float(found.sum.detach()) > 0
            return found

    plain, looking = loop_contenders.Recipe(layers=1, width=32), Looking(layers=1, width=32)
    batch = plain.collate(list(plain.data("train")[:4]))
    settings = RunSettings(mixed_precision="no")
    # Another kernel of attention is chosen for real numbers, which keeps a little less.
    one, other = plan.measure(plain, batch, settings), plan.measure(looking, batch, settings)
    assert math.isclose(one.activations, other.activations, rel_tol=0.1) and other.unknown is None


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_plan_in_bf16_computes_lanes_of_other_shapes(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their kernels take memory."""
    monkeypatch.setattr("runner.hardware.best_device_type", lambda: "cpu")
    seen: list[int] = []
    monkeypatch.setattr("runner.precision.compute_lane", lambda *given, **more: seen.append(1))
    recipe, run = loop_contenders.Recipe(layers=1, width=32), RunSettings(mixed_precision=precision)
    few = list(recipe.data("train")[:6])
    planned = plan.measure(recipe, recipe.collate(few[:2]), run)
    plan.with_process(planned, recipe, recipe.collate(few[:2]), run, [few[:3], few[3:]])
    assert len(seen) == (4 if precision == "bf16" else 2)


def test_shards_cut_weights_and_not_activations() -> None:
    found = plan.Measured(100, 100, 50, "bf16", activations=7.0, copies=3.0)
    assert found.memory(1)["weights"] == 400 and found.memory(4)["optimiser (AdamW)"] == 100
    assert found.memory(4)["activations"] == 7.0


def test_the_marks_of_a_range_test() -> None:
    rates = [10 ** (place / 10) for place in range(-60, 1)]
    # Flat, a fall that is steepest at 1e-3, flat, and an explosion from 1e-1 on.
    losses = [4 - 2 / (1 + math.exp(-4 * (math.log10(rate) + 3))) for rate in rates]
    losses = [
        loss + (100 * (math.log10(rate) + 1) if rate > 0.1 else 0) for rate, loss in zip(rates, losses, strict=True)
    ]
    assert math.isclose(math.log10(find_lr.steepest(rates, losses) or 1), -3, abs_tol=0.15)
    assert 1e-3 < (find_lr.valley(rates, losses) or 1) < 1e-1
    assert math.isclose(find_lr.divergence(rates, losses) or 0, 10**-0.9, rel_tol=0.01)
    rising = list(range(1, 62))
    assert find_lr.valley(rates, rising) is None and find_lr.steepest(rates, rising) is None
    assert find_lr.divergence(rates, losses[:40] + [2.0] * 21) is None
    marks = find_lr.marks_of(rates, losses, None)
    assert (marks["careful"] or 1) < (marks["steepest"] or 0) < (marks["divergence"] or 0)
    assert find_lr.smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])


def test_a_range_test_and_a_sweep_leave_a_picture_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["find-lr", *SHORT, "--steps", "30", "--output", "test.svg"]) == 0
    assert "valley" in capsys.readouterr().out
    assert main(["find-lr", *SHORT, "--sweep", "1e-5,0.03,1e30", "--steps", "40", "--output", "sweep.svg"]) == 0
    printed = capsys.readouterr().out
    assert "best mae: --learning_rate 0.03" in printed and "diverged" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"test.svg", "sweep.svg"}
    for path in tmp_path.iterdir():
        xml.etree.ElementTree.fromstring(path.read_text(encoding="utf-8"))


COUNTING = """
    def end_step(self, model, statistics):
        with open(os.environ["TOY_STEPS"], "a", encoding="utf-8") as file:
            file.write(f"{int(statistics)}\\n")

    def predict("""


def test_the_range_test_makes_the_updates_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(TOY).read_text(encoding="utf-8").replace("    def predict(", COUNTING.lstrip("\n"), 1)
    text = text.replace("auxiliary=0.01", "statistics=batch['counts'].sum().detach(), auxiliary=0.01")
    recipe = tmp_path / "counting.py"
    recipe.write_text(text, encoding="utf-8")
    monkeypatch.setenv("TOY_STEPS", str(tmp_path / "steps.txt"))
    words = ["--recipe", str(recipe), "--batch_size", "16", "--micro_batch_size", "4"]
    picture = ["--output", str(tmp_path / "rates.svg"), "--min", "1e-6", "--max", "1e-5"]
    assert main(["find-lr", *words, "--mixed_precision", "no", "--steps", "6", *picture]) == 0
    # end_step saw the statistics of every step; today's update calls it, and a copy of the update did not.
    assert len((tmp_path / "steps.txt").read_text().split()) == 6
