"""The command line and the scikit-learn face, end to end: stages, processes, resuming, predictions."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from recipes.tabular.demo import tables
from recipes.tabular.estimator import TabularClassifier, TabularRegressor, _class_names
from runner import trials
from tests.launching import REPOSITORY, metrics, same_bits, weights
from tests.recipes.tabular.test_model import pretrained_folder

SMALL = (
    "--recipe", "tabular", "--mixed_precision", "no", "--data.demo_rows", "60", "--model.hidden_size", "16",
    "--model.num_attention_heads", "2", "--model.interaction_layers", "1", "--model.text_layers", "1",
    "--model.text_hidden_size", "32", "--model.vocab_size", "300", "--model.gram_buckets", "1024",
    "--batch_size", "16", "--micro_batch_size", "4",
    "--logging_steps", "1", "--eval_steps", "0", "--save_steps", "0", "--max_steps", "6",
)  # fmt: skip


def train(folder: Path, *arguments: str, processes: int = 1) -> str:
    """A short training to its good end."""
    return trials.train([*SMALL, "--output_dir", str(folder), *arguments], processes, folder.with_suffix(".log"))


def relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Another verb of the command line."""
    return subprocess.run(
        [sys.executable, "-m", "runner", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


def test_pretrain_then_finetune_on_a_table_of_ones_own_then_predict(tmp_path: Path) -> None:
    train(tmp_path / "first")
    rows = next(frame for name, _, frame in tables(60, seed=7) if name == "repairs")
    rows[:50].to_csv(tmp_path / "own.csv", index=False)
    rows[50:].to_csv(tmp_path / "rest.csv", index=False)
    train(
        tmp_path / "second", "--stage", "finetune", "--init_from", str(tmp_path / "first" / "checkpoint-latest"),
        "--data.train", str(tmp_path / "own.csv"), "--data.target", "outcome", "--max_steps", "3",
    )  # fmt: skip
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert after["blocks.0.linear1.layer.weight"].equal(before["blocks.0.linear1.weight"])
    assert after["blocks.0.linear1.lora_b"].abs().sum() > 0
    kept = ("first/final/text_encoder/tokenizer.json", "second/final/text_encoder/tokenizer.json")
    assert len({(tmp_path / name).read_bytes() for name in kept}) == 1
    # The training's file is not needed any more.
    (tmp_path / "own.csv").unlink()
    ended = relay(
        "predict", "--checkpoint", str(tmp_path / "second"), "--input", str(tmp_path / "rest.csv"),
        "--output", str(tmp_path / "out.csv"),
    )  # fmt: skip
    assert ended.returncode == 0 and "10 rows" in ended.stdout, ended.stderr
    assert set(pd.read_csv(tmp_path / "out.csv")["prediction"]) <= {"as new", "repaired", "scrapped"}


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    train(tmp_path / "whole", "--save_steps", "2")
    train(tmp_path / "cut", "--save_steps", "2")
    # As if the machine had died after the second checkpoint, in the second epoch: 10 steps are one.
    for folder in (tmp_path / "cut").glob("*"):
        if folder.name == "final" or folder.name.startswith("checkpoint-") and folder.resolve().name.endswith("6"):
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    train(tmp_path / "cut", "--save_steps", "2", "--resume_from_checkpoint", "auto")
    assert "going on from" in (tmp_path / "cut.log").read_text()
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_the_mean_of_the_best_checkpoints_is_a_model_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "--save_steps", "2", "--eval_steps", "2")
    scores = {event["step"]: event["score"] for event in metrics(run, "eval")}
    best = sorted(scores, key=lambda step: (scores[step], step), reverse=True)[:2]
    ended = relay("average", "--checkpoint", str(run), "--best", "2", "--output", str(tmp_path / "mean"))
    assert ended.returncode == 0, ended.stderr
    assert all(f"checkpoint-{step} ({scores[step]:.4f})" in ended.stdout for step in best)
    found, parts = (
        weights(tmp_path / "mean"),
        [load_file(run / f"checkpoint-{step}/model.safetensors") for step in best],
    )
    assert found["vocabulary"].equal(parts[0]["vocabulary"])
    name = "blocks.0.linear1.weight"
    assert not parts[0][name].equal(parts[1][name])
    assert (found[name] - (parts[0][name] + parts[1][name]) / 2).abs().max() < 1e-7
    ended = relay("evaluate", "--checkpoint", str(tmp_path / "mean"), "--mixed_precision", "no")
    assert ended.returncode == 0 and "score" in ended.stdout, ended.stderr
    (run / "metrics.jsonl").write_text("")
    ended = relay("average", "--checkpoint", str(run), "--output", str(tmp_path / "other"))
    assert ended.returncode == 2 and "--eval_steps" in ended.stderr and len(ended.stderr.splitlines()) <= 3


def test_a_given_encoder_on_the_command_line_and_a_cache_that_is_deleted_in_between(tmp_path: Path) -> None:
    given = pretrained_folder(tmp_path / "bert")
    cache = tmp_path / "cache"
    flags = (
        "--model.text_encoder",
        str(given),
        "--model.unfrozen_layers",
        "2",
        "--save_steps",
        "2",
        "--max_steps",
        "4",
    )
    train(tmp_path / "whole", *flags)
    train(tmp_path / "cut", *flags, "--model.text_cache", str(cache))
    for folder in (tmp_path / "cut").glob("*"):
        if folder.name == "final" or folder.name.startswith("checkpoint-") and folder.resolve().name.endswith("4"):
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    assert list(cache.glob("*.bin"))
    shutil.rmtree(cache)
    train(tmp_path / "cut", *flags, "--model.text_cache", str(cache), "--resume_from_checkpoint", "auto")
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    before, after = load_file(given / "model.safetensors"), weights(tmp_path / "cut")
    kept, learned = "encoder.layer.0.output.dense.weight", "encoder.layer.3.output.dense.weight"
    assert after[f"texts.bert.{kept}"].equal(before[kept]) and not after[f"texts.bert.{learned}"].equal(before[learned])


@pytest.mark.slow
def test_the_same_to_the_bit_on_one_two_and_four_processes(tmp_path: Path) -> None:
    for processes in (1, 2, 4):
        train(tmp_path / str(processes), "--deterministic", "True", "--max_steps", "4", processes=processes)
    first = weights(tmp_path / "1")
    assert same_bits(first, weights(tmp_path / "2")) and same_bits(first, weights(tmp_path / "4"))
    losses = [[event["loss"] for event in metrics(tmp_path / str(count))] for count in (1, 2, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] == pytest.approx(losses[2], rel=1e-6)
    scores = [metrics(tmp_path / str(count), "eval")[-1]["score"] for count in (1, 2, 4)]
    assert scores[0] == pytest.approx(scores[1]) and scores[0] == pytest.approx(scores[2])
    shown = json.loads((tmp_path / "2" / "final" / "tables.json").read_text())
    assert [table["name"] for table in shown["tables"]] == ["reviews", "repairs", "prices"]


SETTINGS = {
    word.removeprefix("--"): value
    for word, value in zip(SMALL[2::2], SMALL[3::2], strict=True)
    if word not in ("--data.demo_rows", "--recipe")
}


def test_estimators() -> None:
    import pickle  # noqa: TID251

    name, target, frame = tables(60)[0]
    assert name == "reviews"
    classifier = TabularClassifier({**SETTINGS, "max_steps": 2}).fit(frame.drop(columns=target), frame[target])
    chances = classifier.predict_proba(frame.drop(columns=target)[:5])
    assert classifier.classes_.tolist() == ["no", "yes"] and np.allclose(chances.sum(1), 1)
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(frame.drop(columns=target)[:5]), chances)
    assert set(classifier.predict(frame.drop(columns=target))) <= {"no", "yes"}
    with pytest.raises(ValueError, match="expecting 3"):
        classifier.predict(frame[["review"]])

    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 3))
    regressor = TabularRegressor({**SETTINGS, "max_steps": 120, "learning_rate": 3e-3}).fit(rows, rows[:, 0] * 10 + 50)
    assert regressor.score(rows, rows[:, 0] * 10 + 50) > 0.5
    assert regressor.predict(rows[:2]).shape == (2,)
    assert regressor.feature_importances_.argmax() == 0 and regressor.feature_importances_[0] > 0.3


ONE_STEP = {**SETTINGS, "max_steps": 1}


def test_an_estimator_reads_the_names_of_classes_and_target(
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = np.array(["None", "NA", "nan", "", "very good"], dtype=object)
    frame = pd.DataFrame(
        {"a": [3.5, 1.0, 2.5, 9.0] * 15, "colour": ["red", "blue", "green"] * 20, "noise": [0.5, 1.5] * 30}
    )
    target = pd.Series(names[np.arange(60) % 5], name="verdict")
    model = TabularClassifier(ONE_STEP, verbose=True).fit(frame, target)
    assert set(model.recipe_.tables[0].classes) == set(names) == set(model.classes_)
    assert set(model.recipe_.wording.targets(model.recipe_.tables[0])) == {f"target verdict: {name}" for name in names}
    assert "'verdict' is 5 classes" in capfd.readouterr().out
    assert set(model.predict(frame)) <= set(names)
    importances = model.feature_importances_
    assert importances.shape == (3,) and np.isfinite(importances).all()
    assert np.array_equal(importances, model.feature_importances_)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1], ["0", "1"]), ([False, True], ["False", "True"]), ([1.0, 2.5], ["1", "2.5"]),
        (["a ", "a"], ["a", "a (2)"]), (["None", "x"], ["None", "x"]),
    ],
)  # fmt: skip
def test_the_names_of_classes(labels: list[Any], names: list[str]) -> None:
    assert _class_names(np.unique(np.array(labels))) == names


def test_an_estimator_says_what_is_wrong_in_a_line() -> None:
    frame = pd.DataFrame({"a": range(40), "b": ["u", "v"] * 20})
    target = ["p", "q"] * 20
    doubled = frame.set_axis(["a", "a"], axis=1)
    for rows, settings, wanted in [
        (doubled, {}, "two columns of the name 'a'"),
        (frame.assign(c=[["x"]] * 40), {}, "the column 'c' holds lists"),
        (frame, {"model.hidden_size": 30, "model.num_attention_heads": 4}, "model.hidden_size is 30"),
        (frame, {"model.hiden_size": 30}, "hidden_size"),
    ]:
        with pytest.raises(ValueError, match=wanted) as caught:
            TabularClassifier({**ONE_STEP, **settings}).fit(rows, target)
        assert len(str(caught.value).splitlines()) <= 3 and "Traceback" not in str(caught.value)
    with pytest.raises(ValueError, match="expecting 2"):
        TabularClassifier(ONE_STEP).fit(frame, target).predict(frame[["a"]])


@pytest.mark.slow
def test_estimators_in_a_pipeline_and_a_cross_validation() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    name, target, frame = tables(60)[1]
    pipeline = make_pipeline(FunctionTransformer(), TabularClassifier({**SETTINGS, "max_steps": 2}))
    found = cross_val_score(pipeline, frame.drop(columns=target), frame[target], cv=2)
    assert found.shape == (2,) and np.isfinite(found).all()
    last: TabularClassifier = TabularClassifier({**SETTINGS, "max_steps": 2})
    again: Any = clone(last)
    assert again.get_params() == last.get_params()


# The part of scikit-learn's check_estimator that needs no good fit and few of them: hundreds of fits take too long.
CHECKS = """estimator_cloneable estimator_tags_renamed valid_tag_types estimator_repr no_attributes_set_in_init
fit_score_takes_y estimators_overwrite_params dont_overwrite_parameters estimators_fit_returns_self estimators_unfitted
readonly_memmap_input do_not_raise_errors_in_init_or_set_params mixin_order complex_data dtype_object estimators_dtypes
estimators_empty_data_messages pipeline_consistency estimator_sparse_tag estimator_sparse_array estimator_sparse_matrix
estimators_pickle f_contiguous_array_estimator estimators_partial_fit_n_features parameters_default_constructible
classifiers_one_label regressors_int regressors_no_decision_function supervised_y_no_nan""".split()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [TabularClassifier, TabularRegressor])
def test_the_applicable_part_of_check_estimator(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.utils.estimator_checks import estimator_checks_generator

    from runner.__main__ import main

    def in_this_process(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            status = main(words[3:])
        return subprocess.CompletedProcess(words, status, "", said.getvalue())

    # The same command, without a process each.
    monkeypatch.setattr("recipes.tabular.estimator.subprocess.run", in_this_process)
    small = {**SETTINGS, "micro_batch_size": 16, "max_steps": 2, "data.validation_fraction": 0.0}
    done = 0
    for estimator, check in estimator_checks_generator(kind(small)):
        if check.func.__name__.removeprefix("check_") in CHECKS:
            check(estimator)
            done += 1
    assert done >= 24


def test_a_given_encoder_can_be_sharded(tmp_path: Path) -> None:
    given = str(pretrained_folder(tmp_path / "bert"))
    words = [
        *SMALL,
        "--model.text_encoder",
        given,
        "--model.unfrozen_layers",
        "1",
        "--max_steps",
        "3",
        "--save_steps",
        "0",
    ]
    folders = [tmp_path / "alone", tmp_path / "sharded"]
    trials.train([*words, "--output_dir", str(folders[0])], 1, tmp_path / "alone.log")
    sharded = {"ACCELERATE_USE_FSDP": "true"}
    said = trials.train([*words, "--output_dir", str(folders[1])], 2, tmp_path / "sharded.log", sharded)
    assert "FSDP2" in said
    losses = [[event["loss"] for event in metrics(folder) if event["split"] == "train"] for folder in folders]
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_gradient_is_the_same_whoever_computes_a_lane() -> None:
    proved = relay("verify", "grads", "--recipe", "tabular", "--world", "1,2")
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert (
        proved.stdout.splitlines()[-1] == "grads: 4 of 4 hold." and "float64, full batch, 2 processes" in proved.stdout
    )
