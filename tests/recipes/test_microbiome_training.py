"""The guide's checklist, through the command line: stages, stopping, resuming, logs, and any number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import metrics, same_bits, weights

from recipes.microbiome import use
from recipes.microbiome.recipe import Recipe
from runner.errors import ConfigError
from runner.trained import find_recipe, load

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    "--recipe", "microbiome", "--data.demo_samples", "60", "--data.demo_asvs", "60", "--mixed_precision", "no",
    "--model.hidden_size", "16", "--model.num_attention_heads", "2", "--model.embedding_size", "16",
    "--batch_size", "16", "--micro_batch_size", "4", "--logging_steps", "1", "--eval_steps", "0", "--save_steps", "0",
)  # fmt: skip


def start(*arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    """Start a training as users do."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "runner", "train", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*arguments: str, processes: int = 1) -> str:
    """A training to its good end; what it printed."""
    process = start(*arguments, processes=processes)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert ("1 process," if processes == 1 else f"{processes} processes,") in output
    return output


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short stage 1 with dropout, rarefaction and a checkpoint in its middle; lanes are summed in a fixed tree."""
    folder = tmp_path_factory.mktemp("microbiome") / "stage-1"
    train(*SMALL, "--max_steps", "8", "--save_steps", "4", "--eval_steps", "4", "--deterministic", "--output_dir",
          str(folder), "--model.dropout", "0.1", "--data.rarefy_depth", "300",
          "--report_to", "tensorboard")  # fmt: skip
    return folder


def test_the_losses_fall_and_evaluation_scores_both_tasks(stage_1: Path) -> None:
    events = metrics(stage_1)
    assert [event["step"] for event in events] == list(range(1, 9))
    assert events[-1]["loss"] < events[0]["loss"]
    for name in ("unifrac_loss", "asv_loss", "nucleotide_loss", "nucleotide_accuracy", "learning_rate"):
        assert all(isinstance(event[name], float) for event in events), name
    scores = metrics(stage_1, "eval")
    assert [event["step"] for event in scores] == [4, 8]
    wanted = {"loss", "unifrac_r2", "unifrac_spearman", "mantel_r", "mantel_p", "nucleotide_accuracy"}
    assert wanted | {"nucleotide_majority"} <= scores[-1].keys()


def test_tensorboard_has_every_loss_and_metric(stage_1: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    names: set[str] = set()
    for file in stage_1.rglob("events.out.tfevents.*"):
        events = accumulator.EventAccumulator(str(file.parent))
        events.Reload()
        names |= set(events.Tags()["scalars"])
    assert {"train/unifrac_loss", "train/nucleotide_loss", "train/loss", "eval/unifrac_r2", "eval/loss"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_stage_1_goes_on_with_another_number_of_processes_as_if_nothing_had_been(
    stage_1: Path, tmp_path: Path, processes: int
) -> None:
    """Every lane holds the same pairs on any hardware: the same bits, where four lanes run on 1, 2 or 4 processes."""
    shutil.copytree(stage_1 / "checkpoint-4", tmp_path / "checkpoint-4")
    train("--config", str(stage_1 / "config.yaml"), "--output_dir", str(tmp_path), "--resume_from_checkpoint", "auto",
          "--report_to", "none", processes=processes)  # fmt: skip
    assert same_bits(weights(stage_1), weights(tmp_path))
    whole = {event["step"]: event for event in metrics(stage_1)}
    for event in metrics(tmp_path):
        for name in ("loss", "unifrac_loss", "nucleotide_loss"):
            assert event[name] == pytest.approx(whole[event["step"]][name], rel=1e-5)


def test_stage_2_starts_from_stage_1_frozen_and_stops_early(stage_1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage-2"
    output = train(
        *SMALL, "--stage", "predict", "--init_from", str(stage_1), "--model.freeze_base", "--max_steps", "40",
        "--learning_rate", "0.3", "--eval_steps", "2", "--early_stopping_patience", "2", "--data.group", "site",
        "--data.rarefy_depth", "300", "--output_dir", str(folder),
    )  # fmt: skip
    assert "of them trained" in output and "stopping early" in output
    scores = metrics(folder, "eval")
    best = min(event["loss"] for event in scores)
    assert scores[-3]["loss"] == best and scores[-1]["step"] < 40
    assert {"target_mae", "target_r2", "target_mae/by_group"} <= scores[-1].keys()
    assert all("target_loss" in event and "count_loss" in event for event in metrics(folder))
    assert all("unifrac_loss" not in event for event in metrics(folder))
    # The encoder is stage 1's, to the bit, and the best checkpoint is there to be used.
    first, second = weights(stage_1), weights(folder)
    assert all(second[name].equal(value) for name, value in first.items())
    assert (folder / "checkpoint-best").exists()

    # And it is used: on the study it was trained on, and from files.
    recipe, model = load(folder, find_recipe(folder))
    said = recipe.answer(model, recipe.Request(into=tmp_path / "own"))
    assert "60 samples" in said and "target_mae" in said
    lines = (tmp_path / "own" / "predictions.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["sample-id", "predicted_target", "target", "split"] and len(lines) == 61
    assert (tmp_path / "own" / "report.html").read_text().count("<svg") == 3
    with pytest.raises(ConfigError, match="color_by"):
        recipe.answer(model, recipe.Request(into=tmp_path, color_by="colour"))


def test_a_run_of_stage_1_stopped_by_a_signal_goes_on(tmp_path: Path) -> None:
    import signal
    import time

    folder = tmp_path / "run"
    process = start(*SMALL, "--max_steps", "4000", "--output_dir", str(folder))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "metrics.jsonl").exists():
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    (checkpoint,) = folder.glob("checkpoint-*[0-9]")
    done = int(checkpoint.name.rpartition("-")[2])
    train("--config", str(folder / "config.yaml"), "--resume_from_checkpoint", "auto", "--max_steps", str(done + 2))
    assert [event["step"] for event in metrics(folder)] == list(range(1, done + 3))


def test_predictions_and_embeddings_of_a_study_from_files(stage_1: Path, tmp_path: Path) -> None:
    biom = pytest.importorskip("biom")
    recipe, model = load(stage_1, find_recipe(stage_1))
    study = recipe.study
    table = biom.Table(study.counts.T, study.sequences, study.sample_ids)
    (tmp_path / "table.biom").write_text(table.to_json("test"))
    rows = "".join(f"{name}\t{cell}\n" for name, cell in zip(study.sample_ids, study.metadata["half"], strict=True))
    (tmp_path / "metadata.tsv").write_text("sample-id\thalf\n" + rows)
    request = recipe.Request(
        table=str(tmp_path / "table.biom"),
        metadata=str(tmp_path / "metadata.tsv"),
        color_by="half",
        into=tmp_path / "o",
    )
    assert "60 samples" in recipe.answer(model, request)
    written = [line.split("\t") for line in (tmp_path / "o" / "embeddings.tsv").read_text().splitlines()]
    assert [line[0] for line in written[1:]] == list(study.sample_ids)
    expected = use.encode(model, recipe, study).embeddings
    assert np.allclose(np.array([line[1:] for line in written[1:]], float), expected, rtol=1e-4, atol=1e-6)
    assert "high" in (tmp_path / "o" / "report.html").read_text()
    # Without a tree there is no UniFrac to learn: said, not passed over.
    output = train(*SMALL, "--stage", "predict", "--data.table", request.table, "--data.metadata", request.metadata,
                   "--data.target", "half", "--max_steps", "2", "--output_dir", str(tmp_path / "run"))  # fmt: skip
    assert "note: without --data.tree" in output
    assert {"target_accuracy", "target_auroc"} <= metrics(tmp_path / "run", "eval")[-1].keys()
    # An unseen table may hold longer ASVs than the model was trained for.
    longer = biom.Table(study.counts.T, [f"{sequence}ACGTACGT" for sequence in study.sequences], study.sample_ids)
    (tmp_path / "longer.biom").write_text(longer.to_json("test"))
    with pytest.raises(ConfigError, match="72 nucleotides"):
        recipe.answer(model, recipe.Request(table=str(tmp_path / "longer.biom"), into=tmp_path / "l"))


def test_the_ordination_is_principal_coordinates_and_scikit_bio_reads_it() -> None:
    points = np.random.default_rng(0).normal(size=(12, 3))
    apart = np.sqrt(np.square(points[:, None] - points[None]).sum(-1))
    coordinates, values, shares = use.principal_coordinates(apart, 5)
    again = np.sqrt(np.square(coordinates[:, None] - coordinates[None]).sum(-1))
    assert np.allclose(again, apart) and np.isclose(shares[:3].sum(), 1)
    text = use.ordination_text([f"s{number}" for number in range(12)], coordinates, values, shares)
    skbio: Any = pytest.importorskip("skbio")
    read = skbio.OrdinationResults.read([text])
    assert np.allclose(read.samples.to_numpy(), coordinates) and np.allclose(read.eigvals, values)


def test_the_guides_preset_is_the_guides() -> None:
    guide = Recipe.presets()["guide"]
    assert guide["learning_rate"] == 1e-4 and guide["weight_decay"] == 0.01
    assert guide["early_stopping_patience"] == 50 and guide["report_to"] == "tensorboard"
    assert guide["model.distance"] == "tanh" and guide["model.hidden_size"] == 128
    # Pitfall 7: a warm-up of 10,000 steps would outlast most runs.
    assert all(preset["warmup_ratio"] <= 0.1 for preset in Recipe.presets().values())


def test_metrics_files_are_json(stage_1: Path) -> None:
    for line in (stage_1 / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        assert "NaN" not in line and json.loads(line)


def test_figures_colour_numbers_along_a_scale_and_kinds_apart() -> None:
    from recipes.microbiome.figure import page, scatter

    places = np.arange(6.0)
    drawn = scatter(places, places, ["1", "2", "3", "4", "5", "6"], "one", "two")
    assert drawn.count("<circle") == 6 + 5 and drawn.count('fill="#440154"') == 2  # the lowest, and its legend
    drawn = scatter(places, places, ["a<b", "a<b", "c", "c", "c", "d"], "one", "two")
    assert drawn.count("<circle") == 6 + 3 and "a&lt;b" in drawn and "a<b" not in drawn
    assert scatter(places, np.zeros(6), None, "one", "two").count("nan") == 0
    assert page("Title", [("Heading", drawn)]).count("<svg") == 1


def test_a_cross_validation_scores_the_folds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.microbiome import cross_validation

    parts = {
        Path("one"): (["1", "3"], np.array([1.5, 2.5]), np.zeros((0, 0))),
        Path("two"): (["10", "12"], np.array([10.0, 13.0]), np.zeros((0, 0))),
    }
    monkeypatch.setattr(cross_validation, "held_out", parts.__getitem__)
    scores = cross_validation.pooled(list(parts))
    assert scores["target_mae"] == pytest.approx(0.5)
    # Each fold alone explains little of itself; together they are told apart.
    assert scores["target_r2"] == pytest.approx(1 - 0.375 / np.var([1, 3, 10, 12]))
