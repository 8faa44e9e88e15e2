"""What `relay sweep` tries, stops and goes on with. Run alone: python -m pytest tests/runner/test_sweep.py

Most tests put a script of a few lines in the place of the training, so that forty trials take seconds.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runner.__main__ import main
from runner.commands import sweep
from runner.config import parse, settings_of
from runner.errors import ConfigError
from runner.parts.search_space import combinations, read_variations
from runner.settings import RunSettings
from tests.launching import TOY

pytest.importorskip("optuna")

TRAINER = """
import json, os, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, rate = flags["output_dir"], float(flags.get("learning_rate", 0.01))
os.makedirs(folder, exist_ok=True)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
if os.environ.get("DIVERGES") and rate > 0.5:
    sys.exit(3)
if os.environ.get("FAILS"):
    print("error: batch_size is 3, which micro_batch_size does not divide.")
    sys.exit(2)
precision = flags.get("mixed_precision", "auto")
with open(folder + "/config.yaml", "w") as file:
    file.write(f"mixed_precision: {'bf16' if precision == 'auto' else precision}")
best = abs(rate - 0.05)
path = folder + "/metrics.jsonl"
done = len(open(path).readlines()) if os.path.exists(path) else 0
for turn in range(done, 4):
    name = os.environ.get("MEASURES", "mae")
    with open(path, "a") as file:
        file.write(json.dumps({"step": 10 * turn + 10, "split": "eval", name: best + 1 / (turn + 1)}) + "\\n")
    for _ in range(60 if os.environ.get("WAITS") or turn > 0 else 1):
        if stop:
            sys.exit(75)
        time.sleep(0.005)
"""
WORDS = ["sweep", "--recipe", TOY, "--max_steps", "40"]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the training; returns the command lines of the trials."""
    started: list[list[str]] = []
    start = sweep.Started.start

    def instead(self: Any, command: list[str], environment: dict[str, str], log: object) -> Any:
        started.append(command)
        return start(self, [sys.executable, "-S", "-c", TRAINER, *command[4:]], environment, log)

    monkeypatch.setattr(sweep.Started, "start", instead)
    return started


def trials(folder: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["trial"]: line for line in lines}


KNOWN = {each.flag: each for each in [*settings_of(RunSettings), *settings_of(type(parse(["--recipe", TOY]).recipe))]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("learning_rate=1e-5..1e-3:log", "1e-05 to 0.001, over the logarithm"),
        ("--learning-rate=1e-5..1e-3", "1e-05 to 0.001"),
        ("warmup_steps=0..200", "whole numbers 0 to 200"),
        ("batch_size=8..64:log", "whole numbers 8 to 64, over the logarithm"),
        ("model.dropout=0,0.1,0.1", "0, 0.1"),
        ("optim=adamw,muon", "adamw, muon"),
        ("streamed=true,false", "true, false"),
        ("exclude_examples=1,2|3", "1,2, 3"),
    ],
)
def test_what_to_try_is_read_from_short_words(text: str, shown: str) -> None:
    (variation,) = read_variations([text], KNOWN)
    assert str(variation) == shown


@pytest.mark.parametrize(
    ("texts", "wrong", "typed"),
    [
        ([], "nothing to try", "--vary learning_rate=1e-4..1e-2:log"),
        (["learning_rate"], "without a setting and its values", "--vary"),
        (["learning_rate="], "without a setting and its values", "--vary"),
        (["learning_rat=1..2"], "There is no setting --learning_rat", "--learning_rate"),
        (["dropout=0,1"], "There is no setting --dropout", "--model.dropout"),
        (["learning_rate=2..1"], "not below", "swap"),
        (["learning_rate=0..1:log"], "no 0", "above 0"),
        (["learning_rate=1..2:lin"], "only log", ":log"),
        (["learning_rate=1..fast"], "--learning_rate is 'fast'", "type a number"),
        (["learning_rate=-1..1"], "--learning_rate is -1", "at least 0"),
        (["warmup_steps=0..2.5"], "--warmup_steps is '2.5'", "whole number"),
        (["optim=1..2"], "no range", "adamw, muon"),
        (["optim=adamw,sgd"], "--optim is 'sgd'", "adamw, muon"),
        (["streamed=1..2"], "no range", "true or false"),
        (["learning_rate=0.1"], "one value", "--learning_rate 0.1"),
        (["learning_rate=1,2", "learning_rate=3,4"], "twice", "leave one out"),
        (["output_dir=a,b"], "cannot be varied", "where a run writes"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_a_line(texts: list[str], wrong: str, typed: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_variations(texts, KNOWN)
    assert wrong in str(error.value) and typed in str(error.value) and len(str(error.value).splitlines()) < 4


def test_typed_values_stay_in_their_range() -> None:
    (variation,) = read_variations(["learning_rate=0.123456..0.234567"], KNOWN)
    for value in (0.123456, 0.2, 0.234567):
        assert variation.low <= float(variation.typed(value)) <= variation.high
    assert combinations([variation]) is None


def test_a_sweep_finds_the_best_values_and_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, trainer: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = ["--vary", "learning_rate=1e-3..1:log", "--vary=warmup_steps=0..10"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*WORDS, *vary, "--trials", "9", "--prune", "none", "--output_dir", str(whole)]) == 0
    shown = capsys.readouterr().out
    found = trials(whole)
    assert len(found) == 9 and {trial["state"] for trial in found.values()} == {"finished"}
    best = min(found.values(), key=lambda trial: trial["score"])
    rate = best["values"]["learning_rate"]
    assert f"--learning_rate {rate} --warmup_steps {best['values']['warmup_steps']}" in shown
    table = [line for line in shown.splitlines() if line.strip().startswith("trial-") and " of " not in line]
    assert len(table) == 9 and f"trial-{best['trial']:03d}" in table[0]
    page = (whole / "sweep.html").read_text(encoding="utf-8")
    charts = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["charts"]
    assert [chart["title"] for chart in charts] == ["learning_rate", "warmup_steps", "mae"]
    assert sum(len(series["x"]) for series in charts[0]["series"]) == 9

    # Interrupted in the third trial: it goes on in its folder, and what comes after it is the same.
    real = sweep.Sweep._train

    def interrupt(self: Any, trial: Any, asked: Any, started: Any) -> int:
        if trial.trial == 3 and not (parts / "trial-003").exists():
            monkeypatch.setenv("WAITS", "1")
            start = started.start

            def then_stop(*words: Any) -> Any:
                process = start(*words)
                while not (parts / "trial-003" / "metrics.jsonl").exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
                return process

            monkeypatch.setattr(started, "start", then_stop)
        return real(self, trial, asked, started)

    monkeypatch.setattr(sweep.Sweep, "_train", interrupt)
    command = [*WORDS, *vary, "--prune", "none", "--output_dir", str(parts)]
    assert main([*command, "--trials", "6"]) == 75
    assert trials(parts)[3]["state"] == "running"
    assert str(parts) in capsys.readouterr().err
    monkeypatch.delenv("WAITS")
    assert main([*command, "--trials", "6"]) == 0
    assert "trial-003 of 6" in capsys.readouterr().out
    # And a higher number adds trials.
    assert main([*command, "--trials", "9"]) == 0
    keys = ("values", "score", "step", "state")
    assert [[trials(parts)[n][key] for key in keys] for n in range(1, 10)] == [
        [found[n][key] for key in keys] for n in range(1, 10)
    ]


def test_each_combination_of_lists_is_trained_once(tmp_path: Path, trainer: list[list[str]]) -> None:
    words = [*WORDS, "--vary", "learning_rate=0.01,0.1", "model.dropout=0,0.2", "--output_dir", str(tmp_path / "s")]
    assert main([*words, "--save_steps", "7"]) == 0
    tried = [tuple(trial["values"].values()) for trial in trials(tmp_path / "s").values()]
    assert tried == [("0.01", "0"), ("0.01", "0.2"), ("0.1", "0"), ("0.1", "0.2")]
    # A trial is a training with what was typed, in a folder of its own.
    for number, command in enumerate(trainer, 1):
        assert f"--output_dir={tmp_path}/s/trial-00{number}" in command and "--resume_from_checkpoint=auto" in command
        assert command[command.index("--save_steps") + 1] == "7" and str(tmp_path / "s") not in command
        config = parse(command[4:])
        assert config.values()["model.dropout"] == float(tried[number - 1][1])


def test_all_trials_compute_in_the_format_that_the_first_one_chose(tmp_path: Path, trainer: list[list[str]]) -> None:
    words = [*WORDS, "--vary", "learning_rate=0.01,0.1,0.2", "--output_dir"]
    assert main([*words, str(tmp_path / "auto")]) == 0
    assert [parse(command[4:]).run.mixed_precision for command in trainer] == ["auto", "bf16", "bf16"]
    trainer.clear()
    assert main([*words, str(tmp_path / "named"), "--mixed_precision", "no"]) == 0
    assert [parse(command[4:]).run.mixed_precision for command in trainer] == ["no"] * 3


def test_values_are_not_tried_twice(tmp_path: Path, trainer: list[list[str]]) -> None:
    words = [*WORDS, "--vary", "learning_rate=0.01,0.02,0.03,0.04,0.05,0.06", "--trials", "5", "--prune", "none"]
    assert main([*words, "--output_dir", str(tmp_path / "s")]) == 0
    tried = [trial["values"]["learning_rate"] for trial in trials(tmp_path / "s").values()]
    assert len(set(tried)) == 5


def test_a_trial_that_falls_behind_is_stopped_early(
    tmp_path: Path, trainer: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAITS", "1")
    words = [*WORDS, "--vary", "learning_rate=0.05,0.051,0.052,0.053,0.9", "--output_dir", str(tmp_path / "s")]
    assert main(words) == 0
    found = trials(tmp_path / "s")
    assert [trial["state"] for trial in found.values()] == ["finished"] * 4 + ["stopped early"]
    assert len(found[5]["scores"]) < 4
    assert "stopped early" in capsys.readouterr().out


def test_trials_that_diverge_are_recorded_and_the_others_go_on(
    tmp_path: Path, trainer: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIVERGES", "1")
    words = [*WORDS, "--vary", "learning_rate=0.9,0.05", "--output_dir", str(tmp_path / "s")]
    assert main(words) == 0
    assert [trial["state"] for trial in trials(tmp_path / "s").values()] == ["diverged", "finished"]
    assert "--learning_rate 0.05" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "wrong"),
    [
        ({"FAILS": "1"}, "micro_batch_size does not divide"),
        ({"MEASURES": "accuracy"}, "without a number for mae: its evaluations have accuracy"),
    ],
)
def test_a_sweep_without_a_score_ends_with_the_reason(
    variables: dict[str, str],
    wrong: str,
    tmp_path: Path,
    trainer: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = [*WORDS, "--vary", "learning_rate=0.01..0.1", "--output_dir", str(tmp_path / "s")]
    assert main(words) == 2
    assert wrong in capsys.readouterr().err and len(trainer) <= 3


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--learning_rate", "1"], "learning_rate is varied, and --learning_rate has a value"),
        (["--trials", "0"], "trials is 0"),
        (["--cloud_provider", "aws", "--cloud_bucket", "b"], "--upload_to URL"),
    ],
)
def test_mistakes_end_before_the_first_trial(
    words: list[str], wrong: str, tmp_path: Path, trainer: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--vary", "learning_rate=0.01..0.1", "--output_dir", str(tmp_path / "s"), *words]) == 2
    assert wrong in capsys.readouterr().err and not trainer


def test_a_sweep_with_other_settings_is_not_gone_on_with(
    tmp_path: Path, trainer: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--vary", "learning_rate=0.01,0.1", "--output_dir", str(tmp_path / "s")]
    assert main(words) == 0
    for other, named in ((["--batch_size", "16"], "batch_size"), (["--vary", "warmup_steps=0,5"], "vary ")):
        assert main([*words, *other]) == 2
        assert f"other settings: {named}" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    assert main([*words[:-1], str(tmp_path / "run")]) == 2
    assert "folder of a run" in capsys.readouterr().err
    assert len(trainer) == 2


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_folder_has_one_sweep_where_it_has_locks(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import run_folder

    def no_locks(path: Path) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    with sweep._locked(tmp_path):
        if not has_locks:
            monkeypatch.setattr(run_folder, "is_locked", no_locks)
        with contextlib.nullcontext() if not has_locks else pytest.raises(ConfigError, match="at work"):
            with sweep._locked(tmp_path):
                pass


def test_without_optuna_a_line_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.parts import installation

    monkeypatch.setattr(installation, "is_installed", lambda name: False)
    assert main([*WORDS, "--vary", "learning_rate=0.01,0.1", "--output_dir", str(tmp_path / "s")]) == 2
    error = capsys.readouterr().err
    assert "needs the package optuna" in error and "[sweep]" in error and not (tmp_path / "s").exists()


@pytest.mark.slow
def test_trials_are_runs_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    own = ["--batch_size", "16", "--micro_batch_size", "4", "--mixed_precision", "no", "--eval_steps", "5"]
    words = ["--recipe", TOY, "--max_steps", "10", *own, "--vary", "learning_rate=0.001,0.01"]
    command = [sys.executable, "-m", "runner", "sweep", *words, "--output_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for number, rate in ((1, "0.001"), (2, "0.01")):
        run = folder / f"trial-00{number}"
        assert (run / "final" / "model.safetensors").is_file() and (run / "report.html").is_file()
        assert f"learning_rate: {rate}" in (run / "config.yaml").read_text(encoding="utf-8")
        assert trials(folder)[number]["state"] == "finished" and len(trials(folder)[number]["scores"]) == 2
