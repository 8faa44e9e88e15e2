"""What relay doctor measures, starts and looks up. Run alone: python -m pytest tests/runner/test_doctor.py"""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from runner.__main__ import main
from runner.commands import doctor
from runner.parts.installation import pip_line
from tests.launching import REPOSITORY


def test_everything_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    labels = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert {"python", "torch", "device", "memory", "disk", "precision", "processes", "extras"} <= {*labels}


def test_two_processes_really_start_or_the_reason_is_printed() -> None:
    assert doctor.wrong_processes() is None
    wrong = doctor.wrong_processes(program="raise SystemExit('no network here')")
    assert wrong and wrong.splitlines()[0] == "no network here" and "GLOO_SOCKET_IFNAME" in wrong
    wrong = doctor.wrong_processes(limit_seconds=1.0, program="import time; time.sleep(60)")
    assert wrong and wrong.startswith("no answer within 1 s")
    # One of them alone is no pair.
    assert doctor.wrong_processes(program="import os, sys; sys.exit(int(os.environ['RANK']))")


def test_processes_that_do_not_find_each_other_are_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "wrong_processes", lambda: "the reason\nthe remedy")
    assert main(["doctor"]) == 2
    printed = capsys.readouterr().out
    assert re.search(r"processes +WRONG.*\n +the reason\n +the remedy\n", printed)


@pytest.mark.parametrize(
    ("timed", "precision", "advice"),
    [
        ({"no": 1.0, "bf16": 3.0}, "bf16", "fp32 is 3.0 times as fast: --mixed_precision no"),
        ({"no": 3.0, "bf16": 1.0}, "no", "bf16 is 3.0 times as fast: --mixed_precision bf16"),
        ({"no": 1.0, "bf16": 3.0}, "no", None),
        ({"no": 1.0, "bf16": 1.1}, "bf16", None),
    ],
)
def test_the_faster_number_format_is_named(timed: dict[str, float], precision: str, advice: str | None) -> None:
    words = doctor.speed_in_words(timed, precision, 128, "a model")
    assert words.startswith("measured: fp32 ")
    assert words.endswith(advice) if advice else "--mixed_precision" not in words


def test_a_product_takes_some_time() -> None:
    found = doctor.seconds_of_products(torch.device("cpu"), {"no": torch.float32, "bf16": torch.bfloat16}, 64, 0.01)
    assert found.keys() == {"no", "bf16"} and all(0 < seconds < 60 for seconds in found.values())


def test_every_extra_is_known_and_a_missing_one_has_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    declared = dict(re.findall(r"^([\w-]+) = \[(.*?)\]", text.partition("\n[")[0], re.MULTILINE | re.DOTALL))
    own = {name: packages for name, packages in declared.items() if "relay-train[" not in packages}
    # What builds the pages is of no use for a training.
    own.pop("docs", None)
    assert doctor.EXTRAS.keys() == own.keys()
    for name, packages in own.items():
        listed = {package.replace("-", "_") for package in re.findall(r'"([\w-]+)', packages)}
        brought = {doctor.DISTRIBUTIONS.get(each, each).replace("-", "_") for each in doctor.EXTRAS[name]}
        assert brought == listed, name
    monkeypatch.setattr(doctor, "is_installed", lambda name: name not in ("s3fs", "skbio"))
    assert doctor.missing_extras() == {"s3": ["s3fs"], "microbiome": ["scikit-bio"]}
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert (
        "not installed: s3, microbiome" in printed and pip_line("s3") in printed and pip_line("microbiome") in printed
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--batch_size", "10", "--micro_batch_size", "4"], "batch"),
        (["--mixed_precision", "fp16"], "mixed_precision fp16"),
        (["--init_from", "nowhere"], "init_from nowhere"),
    ],
)
def test_the_checks_of_a_training_find_what_is_wrong(
    words: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "fp16" in words and torch.cuda.is_available():
        pytest.skip("a GPU trains in fp16")
    assert doctor.check_training(["language_model", "--output_dir", str(tmp_path / "run"), *words]) == 2
    assert re.search(rf"WRONG   .*{wanted}", capsys.readouterr().out)


def test_text2sql_has_more_than_a_few_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.check_training(["text2sql", "--output_dir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("\n  ok ") >= 7


def test_a_disk_without_space_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.wrong_space(tmp_path, 0.0) is None
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**8))
    wrong = doctor.wrong_space(tmp_path / "not" / "there")
    assert wrong and "0.10 GB free" in wrong and "--output_dir" in wrong
