"""`relay verify` and `relay checkpoints`, on the toy recipe with few trials.

Run alone: python -m pytest tests/runner/test_verify.py
"""

import json
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.checkpoints.folders import newest_checkpoint
from runner.commands import verify
from runner.trials import Interruption
from tests.launching import TOY, interrupted, train

PROOFS = {
    "invariance": ("--world", "1,2"),
    "elastic": ("--trials", "1"),
    "torture": ("--kills", "4"),
    "bitrot": ("--flips", "30"),
    "preempt": ("--trials", "6", "--world", "1,2"),
    "reshard": (),
    "grads": ("--world", "1,2"),
}


@pytest.mark.parametrize("proof", PROOFS)
def test_the_proof_holds_for_the_toy(proof: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", proof, "--recipe", TOY, *PROOFS[proof]]) == 0
    printed = capsys.readouterr().out
    assert " hold." in printed.splitlines()[-1] and "FAILED" not in printed


@pytest.mark.parametrize("kind", ["map", "stream", "grouped"])
def test_the_ledger_of_a_killed_run_is_clean_and_a_changed_one_is_not(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ("--streamed", "True" if kind == "stream" else "False", "--max_steps", "30")
    for step, processes in ((8, 1), (17, 2)):
        interrupted(run, Interruption("backward", step), *flags, processes=processes)
        # A run may begin to sort its examples at any start: a step has the same ones.
        flags += ("--group_by_length", "True") if kind == "grouped" else ()
    train(run, *flags, "--resume_from_checkpoint", "auto", processes=4)
    assert main(["verify", "ledger", str(run)]) == 0
    assert "30 steps over" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = next(line for line in lines if "steps" in line)
    steps["steps"] = ("0" if steps["steps"][0] != "0" else "1") + steps["steps"][1:]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert main(["verify", "ledger", str(run)]) == 1
    assert "1 steps consumed other examples" in capsys.readouterr().out


def test_a_proof_that_does_not_hold_fails_loudly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "hash_of", lambda tensors: str(id(tensors)))
    assert main(["verify", "invariance", "--recipe", TOY, "--world", "1,2"]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out and "relay verify invariance failed" in captured.err


def test_checkpoints_are_listed_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(run, "--save_steps", "12")
    assert main(["checkpoints", str(run)]) == 0
    assert "checkpoint-24" in capsys.readouterr().out
    state = run / "checkpoint-12" / "state.json"
    state.write_text(state.read_text(encoding="utf-8").replace("12", "13", 1), encoding="utf-8")
    assert main(["checkpoints", str(run)]) == 1
    assert "state.json is damaged" in capsys.readouterr().out
    assert newest_checkpoint(run)[0] is not None


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["verify", "nothing"], "type relay verify with one of"),
        (["verify", "ledger"], "takes the folder of a run"),
        (["verify", "elastic", "--recipe", TOY, "--world", "3"], "type another --world"),
        (["checkpoints"], "takes the folder of a run"),
        (["checkpoints", "nowhere"], "There is no checkpoint in nowhere"),
    ],
)
def test_mistakes_say_what_to_type(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert wanted in error and len(error.splitlines()) <= 3
