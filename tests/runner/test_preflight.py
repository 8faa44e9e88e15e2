"""What would fail after hours is found before the data are read, and by relay doctor.

Run alone: python -m pytest tests/runner/test_preflight.py
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from runner import preflight
from runner.__main__ import main
from runner.commands import check_output_file, check_output_folder
from runner.config import parse
from runner.errors import ConfigError
from runner.parts.installation import pip_line
from runner.trials import Trial
from tests.launching import SHORT, TOY


def fails(words: list[str], tmp_path: Path, *wanted: str, environment: dict[str, str] | None = None) -> None:
    """Asserts status 2 and the message, before anything of the data was read."""
    # A recipe that has no rows says so as soon as its data are read.
    trial = Trial([*words, "--num_rows", "0"], 1, tmp_path / "mistake.log", environment)
    assert trial.wait(120) == [2], trial.output()
    message = trial.output()[trial.output().index("error: ") :]
    assert len(message.strip().splitlines()) <= 3 and "Traceback" not in trial.output(), trial.output()
    assert "num_rows is 0" not in message
    for part in wanted:
        assert part in message, message


@pytest.mark.parametrize("how", ["not there", "broken"])
@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_tracker_without_its_package(
    tracker: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, tmp_path, how, tracker, "tensorboardX")
    words = ["--recipe", TOY, "--report_to", tracker, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ConfigError) as caught:
        preflight.check_settings(parse(words))
    assert f"type {pip_line(tracker)}" in str(caught.value) and "\n" not in str(caught.value)
    assert main(["train", *words]) == 2
    assert pip_line(tracker) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def hide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, *names: str) -> None:
    """Let packages be missing, or be there and fail when they are imported."""
    for name in names:
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        if how == "not there":
            monkeypatch.setitem(sys.modules, name, None)
        else:
            (tmp_path / f"{name}.py").write_text("raise ImportError('broken')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (["--recipe", "microbiome", "--stage", "predict"], "sklearn", "microbiome"),
        (["--recipe", "microbiome"], "scipy", "microbiome"),
        (["--recipe", "microbiome", "--data.table", "x.biom", "--data.tree", "x.nwk"], "biom", "microbiome"),
        (["--recipe", "microbiome", "--data.table", "x.biom", "--data.tree", "x.nwk"], "skbio", "microbiome"),
        (["--recipe", "tabular"], "pandas", "tabular"),
        (["--recipe", "tabular", "--data.train", "sales.xlsx"], "openpyxl", "tabular"),
    ],
)
def test_a_package_of_the_recipe(words: list[str], missing: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(words)
    assert preflight.check_settings(config) is not None
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError) as caught:
        preflight.check_settings(config)
    assert preflight.DISTRIBUTIONS.get(missing, missing) in str(caught.value)
    assert pip_line(extra) in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "given", "name"),
    [
        ("language_model", "eval_loss", "loss"),
        ("language_model", "bits_per_byte", "bits_per_byte"),
        ("text2sql", "eval_exact_match", "exact_match"),
        ("text2sql", "exact_set_match/easy", "exact_set_match/easy"),
        ("tabular", "auroc/adult", "auroc/adult"),
        ("microbiome", "eval_unifrac_r2", "unifrac_r2"),
        (TOY, "eval_loss", "loss"),
        # What a recipe does not name beforehand is for the first evaluation to find.
        (TOY, "anything", "anything"),
    ],
)
def test_a_metric_is_found_with_the_prefix_of_transformers(recipe: str, given: str, name: str) -> None:
    config = parse(["--recipe", recipe, "--metric_for_best_model", given])
    assert preflight.check_settings(config).run.metric_for_best_model == name


@pytest.mark.parametrize(
    ("words", "metric", "wanted"),
    [
        (["--recipe", "language_model"], "eval_accuracy", "bits_per_byte, perplexity"),
        (["--recipe", "text2sql"], "accuracy", "execution_accuracy"),
        (["--recipe", "tabular"], "f1", "auroc"),
        (["--recipe", "microbiome"], "target_mae", "unifrac_r2"),
        (["--recipe", "microbiome", "--stage", "predict", "--target_penalty", "0"], "target_mae", "unifrac_r2"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(
    words: list[str], metric: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--metric_for_best_model", metric]) == 2
    message = capsys.readouterr().err
    assert f"metric_for_best_model is '{metric}'" in message and wanted in message and message.count("\n") <= 3


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["language_model", "--model.hidden_size", "100", "--model.num_attention_heads", "3"], "model.hidden_size"),
        (
            ["language_model", "--model.num_attention_heads", "4", "--model.num_key_value_heads", "3"],
            "model.num_key_value_heads",
        ),
        (["language_model", "--model.hidden_size", "12", "--model.num_attention_heads", "4"], "model.hidden_size"),
        (["language_model", "--model.num_attention_heads", "0"], "at least 1"),
        (["language_model", "--model.num_hidden_layers", "-1"], "at least 1"),
        (["text2sql", "--model.hidden_size", "130"], "multiple of 8"),
        (["text2sql", "--model.num_key_value_heads", "3"], "num_key_value_heads"),
        (["text2sql", "--model.num_local_experts", "0"], "at least 1"),
        (["tabular", "--model.hidden_size", "126"], "124 or 128"),
        (["tabular", "--model.text_hidden_size", "100"], "96 or 128"),
        (["tabular", "--model.num_attention_heads", "0"], "at least 1"),
        (["microbiome", "--model.hidden_size", "126"], "124 or 128"),
    ],
)
def test_dimensions_that_do_not_divide(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", *words]) == 2
    message = capsys.readouterr().err
    assert wanted in message and message.count("\n") <= 2 and "model." in message


@pytest.mark.parametrize("place", ["a file", "below a file", "not writable"])
def test_a_folder_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    # /proc takes no folder from anybody, also not from root.
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file/x", "not writable": Path("/proc/run")}
    fails([*SHORT, "--output_dir", str(folder[place])], tmp_path, "output_dir", "type" if place == "a file" else "Type")


@pytest.mark.parametrize("kind", ["no driver", "no server", "no folder"])
def test_a_bucket_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    words = [*SHORT, "--output_dir", str(tmp_path / "run"), "--upload_to"]
    (tmp_path / "file").write_text("", encoding="utf-8")
    if kind == "no driver":
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "gcsfs", None)
            wrong = preflight.wrong_bucket("gs://bucket/run")
        assert wrong is not None and f"type {pip_line('gcs')}" in wrong
    elif kind == "no server":
        keys = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
        fails([*words, "s3://bucket/run"], tmp_path, "cannot be written", "credentials", environment=keys)
    else:
        fails([*words, f"file://{tmp_path}/file/run"], tmp_path, "cannot be written")


def test_nothing_is_left_in_the_bucket(tmp_path: Path) -> None:
    assert preflight.wrong_bucket(f"file://{tmp_path}/there") is None
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("check", "name", "is_good"),
    [
        (check_output_file, "rows.jsonl", True),
        (check_output_file, "nowhere/rows.jsonl", False),
        (check_output_file, ".", False),
        (check_output_folder, "new/deep", True),
        (check_output_folder, "file/deep", False),
    ],
)
def test_an_output_that_cannot_be_written(check: Any, name: str, is_good: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    if is_good:
        check(tmp_path / name)
    else:
        with pytest.raises(ConfigError, match="mkdir -p" if name.startswith("nowhere") else "type --output"):
            check(tmp_path / name)


def test_doctor_makes_the_checks_of_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    assert main(["doctor"]) == 0
    assert main(["doctor", "language_model", "--output_dir", folder]) == 0
    assert "All 7 checks passed." in capsys.readouterr().out
    words = ["--metric_for_best_model", "f1", "--upload_to", f"file://{tmp_path}/bucket"]
    assert main(["doctor", "language_model", "--output_dir", folder, *words]) == 2
    printed = capsys.readouterr().out
    assert "WRONG   metric_for_best_model" in printed and "ok      upload_to" in printed
    assert "1 of 8 checks failed." in printed


def test_three_lines_are_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [preflight.Check(str(number), f"wrong {number}") for number in range(5)]
    with pytest.raises(ConfigError) as caught:
        preflight.raise_first(checks)
    assert str(caught.value).splitlines()[:2] == ["wrong 0", "wrong 1"] and "relay doctor" in str(caught.value)
    preflight.raise_first([preflight.Check("good", None)])
