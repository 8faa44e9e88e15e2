"""Law 1, law 4 and the exit statuses of a stopped run.

Run alone: python -m pytest tests/runner/checkpoints/test_resume.py
"""

import json
import pickle  # noqa: TID251
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner import registry
from runner.checkpoints.folders import newest_checkpoint, step_of
from runner.checkpoints.manifest import write_manifest
from runner.checkpoints.pointers import DRAFT
from runner.fetching import MapReader
from runner.lanes import Lanes
from runner.trials import PHASES, Interruption, Trial, steps_of_a_stop
from tests.launching import REPOSITORY, TOY, interrupted, metrics, mistaken, output, same_bits, train, weights

KINDS = {"map": (), "stream": ("--streamed", "True")}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Final weights and metrics of runs that nobody disturbed, by (kind of data, processes)."""
    folder = tmp_path_factory.mktemp("unbroken")
    found = {}
    for kind, flags in KINDS.items():
        for processes in (1, 2):
            train(folder / f"{kind}{processes}", *flags, processes=processes)
            found[kind, processes] = folder / f"{kind}{processes}"
    return found


def equals(folder: Path, whole: Path) -> None:
    assert same_bits(weights(folder), weights(whole))
    mine, theirs = metrics(folder), metrics(whole)
    assert [line["step"] for line in mine] == list(range(1, 25))
    assert [line["loss"] for line in mine] == [line["loss"] for line in theirs]
    assert [line["grad_norm"] for line in mine] == [line["grad_norm"] for line in theirs]
    scores = [(line["step"], line["loss"], line["mae"]) for line in metrics(folder, "eval")]
    assert scores == [(line["step"], line["loss"], line["mae"]) for line in metrics(whole, "eval")]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_twice_and_resumed_equals_uninterrupted(
    tmp_path: Path, unbroken: Any, kind: str, processes: int
) -> None:
    folder = tmp_path / "run"
    for phase, step in (("backward", 7), ("fetch", 18)):
        kill = Interruption(phase, step, process=processes - 1)
        statuses = interrupted(folder, kill, *KINDS[kind], processes=processes)
        assert statuses[processes - 1] == -signal.SIGKILL
    train(folder, *KINDS[kind], "--resume_from_checkpoint", "auto", processes=processes)
    assert "going on from" in output(folder)
    equals(folder, unbroken[kind, processes])


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.006, 0.01, 0.02])
def test_killed_while_saving_loses_at_most_one_interval(tmp_path: Path, unbroken: Any, delay: float) -> None:
    folder = tmp_path / "run"
    statuses = interrupted(
        folder, Interruption("save", 10, delay_seconds=delay), "--save_total_limit", "1", "--empty_cache_steps", "0"
    )
    if statuses == [0]:
        pytest.skip("the run was over before the kill came")
    found, skipped = newest_checkpoint(folder)
    assert found is not None and step_of(found) >= 5
    assert not skipped
    train(folder, "--save_total_limit", "1", "--resume_from_checkpoint", "auto")
    equals(folder, unbroken["map", 1])
    assert not list(folder.glob(f"{DRAFT}*"))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_to_any_process_saves_and_leaves_with_75(
    tmp_path: Path, unbroken: Any, phase: str, processes: int
) -> None:
    folder = tmp_path / "run"
    number = {"fetch": signal.SIGTERM, "forward": signal.SIGINT}.get(phase, signal.SIGUSR1)
    stop = Interruption(phase, 9, process=processes - 1 if phase != "save" else 0, signal=number)
    statuses = interrupted(folder, stop, processes=processes)
    assert statuses == [75] * processes, output(folder)
    assert "--resume_from_checkpoint auto" in output(folder)
    found, skipped = newest_checkpoint(folder)
    assert found is not None and step_of(found) in steps_of_a_stop(output(folder), processes) and not skipped
    train(folder, "--resume_from_checkpoint", "auto", processes=processes)
    equals(folder, unbroken["map", processes])


def test_a_second_signal_leaves_at_once() -> None:
    program = "import os, runner.signals, signal; from runner.signals import Signals; Signals(); me = os.getpid(); "
    # Within some seconds it would be the same request.
    program += "runner.signals.REPEAT_SECONDS = 0; "
    program += "os.kill(me, signal.SIGTERM); print('once', flush=True); os.kill(me, signal.SIGTERM); print('twice')"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "once\n"
    assert "another signal after" in done.stderr


def test_flipped_bits_are_found_named_and_passed_over(tmp_path: Path, unbroken: Any) -> None:
    folder = tmp_path / "run"
    interrupted(folder, Interruption("fetch", 17, signal=signal.SIGTERM))
    found, _ = newest_checkpoint(folder)
    assert found is not None and step_of(found) == 17
    path = found / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    train(folder, "--resume_from_checkpoint", "auto")
    assert "optimizer.safetensors is damaged" in output(folder)
    assert "checkpoint-15 at step 15" in output(folder)
    equals(folder, unbroken["map", 1])


def test_a_finished_run_is_finished_again_without_a_step(tmp_path: Path, unbroken: Any) -> None:
    folder = tmp_path / "run"
    train(folder)
    train(folder, "--resume_from_checkpoint", "auto")
    equals(folder, unbroken["map", 1])


def test_patience_counts_on_over_a_restart(tmp_path: Path) -> None:
    flags = ("--eval_steps", "2", "--early_stopping_patience", "3", "--learning_rate", "0", "--save_steps", "1")
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train(whole, *flags)
    interrupted(folder, Interruption("fetch", 5), *flags)
    train(folder, *flags, "--resume_from_checkpoint", "auto")
    assert [line["step"] for line in metrics(folder, "eval")] == [line["step"] for line in metrics(whole, "eval")]
    assert metrics(folder, "eval")[-1]["step"] == 8


@pytest.mark.parametrize("workers", ["2"])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_read_ahead_change_nothing(tmp_path: Path, unbroken: Any, kind: str, workers: str) -> None:
    folder = tmp_path / "run"
    flags = (*KINDS[kind], "--num_workers", workers)
    interrupted(folder, Interruption("backward", 13), *flags)
    train(folder, *flags, "--resume_from_checkpoint", "auto")
    equals(folder, unbroken[kind, 1])


def test_a_recipe_that_is_a_file_is_found_again_in_a_process_that_starts_from_nothing(tmp_path: Path) -> None:
    # What worker processes do on macOS and Windows, and from Python 3.14 on everywhere.
    recipe = registry.find(TOY)()
    reader = MapReader(recipe, recipe.data("train"), Lanes(203, 8, 4, seed=0))
    (tmp_path / "reader").write_bytes(pickle.dumps(reader))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))[3, 1].consumed)"
    words = [sys.executable, "-c", program, str(tmp_path / "reader")]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(reader[3, 1].consumed), done.stderr


@pytest.mark.parametrize(("flag", "value"), [("--seed", "3"), ("--batch_size", "32")])
def test_what_makes_another_run_is_refused_at_a_restart(tmp_path: Path, flag: str, value: str) -> None:
    folder = tmp_path / "run"
    interrupted(folder, Interruption("fetch", 6, signal=signal.SIGTERM))
    assert interrupted(folder, Interruption("fetch", 99), flag, value) == [2]
    assert "the run to go on with has" in output(folder) and "--init_from" in output(folder)


def test_seed_and_batch_are_remembered_where_they_are_not_named(tmp_path: Path) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    named = ("--seed", "5", "--batch_size", "8", "--micro_batch_size", "2")
    words = ["--recipe", TOY, "--max_steps", "8", "--eval_steps", "0", "--mixed_precision", "no"]
    words += ["--resume_from_checkpoint", "auto", "--output_dir"]
    stop = Interruption("fetch", 4, signal=signal.SIGTERM)
    assert Trial([*words, str(folder), *named], 1, tmp_path / "log", None, stop).wait(120) == [75]
    assert Trial([*words, str(folder)], 1, tmp_path / "log").wait(120) == [0]
    assert Trial([*words, str(whole), *named], 1, tmp_path / "log").wait(120) == [0]
    assert same_bits(weights(folder), weights(whole))


def test_a_stream_is_not_cut_into_other_lanes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(folder, Interruption("fetch", 6, signal=signal.SIGTERM), "--streamed", "True")
    again = interrupted(folder, Interruption("fetch", 99), "--streamed", "True", "--micro_batch_size", "8")
    assert again == [2] and "reads a stream in lanes of 4" in output(folder)


def test_a_cursor_that_the_stream_cannot_read_from_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, "--streamed", "True", "--max_steps", "5")
    newest = folder / "checkpoint-5"
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    state["cursors"]["2"] = "far"
    (newest / "state.json").write_text(json.dumps(state), encoding="utf-8")
    write_manifest(newest)
    printed = mistaken(folder, "--streamed", "True", "--resume_from_checkpoint", "auto")
    assert 'cannot be read from the checkpoint\'s cursor of lane 2, "far"' in printed and "Traceback" not in printed
