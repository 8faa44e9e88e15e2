"""The guide's checklist, through the command line: stages, stopping, resuming, logs, and any number of processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.microbiome import answering
from recipes.microbiome.recipe import Recipe
from recipes.microbiome.settings import DataSettings
from runner import trials
from runner.__main__ import main
from runner.checkpoints.trained import find_recipe, load_trained
from runner.errors import ConfigError
from tests.launching import REPOSITORY, metrics, same_bits, weights

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
    output = train(*SMALL, "--max_steps", "8", "--save_steps", "4", "--eval_steps", "4", "--deterministic",
                   "--output_dir", str(folder), "--model.dropout", "0.1", "--data.rarefy_depth", "300",
                   "--warmup_steps", "10000", "--report_to", "tensorboard")  # fmt: skip
    (folder / "output.txt").write_text(output, encoding="utf-8")
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


def test_tensorboard_has_every_loss_and_metric_and_how_weights_are_distributed(stage_1: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    names: dict[str, set[str]] = {"scalars": set(), "histograms": set()}
    for file in stage_1.rglob("events.out.tfevents.*"):
        events = accumulator.EventAccumulator(str(file.parent))
        events.Reload()
        for kind, found in names.items():
            found |= set(events.Tags()[kind])
    written = [(split, name) for split in ("train", "eval") for name in metrics(stage_1, split)[-1]]
    assert {f"{split}/{name}" for split, name in written if name not in ("step", "split")} <= names["scalars"]
    assert {"train/unifrac_loss", "train/nucleotide_loss", "train/learning_rate", "eval/loss"} <= names["scalars"]
    kinds = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in weights(stage_1)}
    # What is fixed, or reached by no loss, has no gradient.
    assert names["histograms"] <= kinds and len(names["histograms"]) > 0.9 * len(kinds)


def test_progress_says_epoch_step_loss_and_learning_rate(stage_1: Path) -> None:
    output = (stage_1 / "output.txt").read_text(encoding="utf-8")
    assert re.search(r"epoch \d+\.\d\d  step 8/8  loss \d+\.\d{4}  lr \d\.\d\de-\d\d", output)
    assert "evaluation at step 8:  loss" in output and "unifrac_r2" in output


def test_a_warm_up_that_would_never_end_is_cut_and_said(stage_1: Path) -> None:
    """Pitfall 7: the guide's 10,000 steps outlast most runs."""
    assert "warm-up: 1 steps, 10% of all, instead of 10,000" in (stage_1 / "output.txt").read_text(encoding="utf-8")
    rates = [event["learning_rate"] for event in metrics(stage_1)]
    assert rates[1] == max(rates) == pytest.approx(2e-3) and rates[0] == pytest.approx(1e-3) and rates[-1] < 2e-4


@pytest.mark.slow
def test_loss_and_gradient_are_the_same_for_1_2_and_4_processes(tmp_path: Path) -> None:
    """Every lane holds the same pairs, hidden letters and dropout on any hardware. Adam's moment is the gradient's."""
    from runner.checkpoints.tensors import read_tensors
    from runner.commands.verify import gap

    flags = [*SMALL, "--max_steps", "1", "--max_grad_norm", "0", "--model.dropout", "0.1", "--data.rarefy_depth", "300"]
    found = {}
    for processes in (1, 2, 4):
        run = tmp_path / f"{processes}"
        trials.train([*flags, "--output_dir", str(run)], processes, run.with_suffix(".log"))
        moments = read_tensors(run / "checkpoint-1" / "optimizer.safetensors")
        gradient = {name: moment for name, moment in moments.items() if name.endswith("/exp_avg")}
        found[processes] = (metrics(run)[0], gradient)
    losses, gradient = found[1]
    assert sum(float(moment.abs().sum()) for moment in gradient.values()) > 0
    for processes in (2, 4):
        others, other = found[processes]
        for name in ("loss", "unifrac_loss", "asv_loss", "nucleotide_loss", "grad_norm"):
            assert others[name] == pytest.approx(losses[name], rel=1e-5), name
        assert gap(other, gradient) < 1e-5


@pytest.mark.slow
def test_stage_1_killed_goes_on_with_another_number_of_processes_as_if_nothing_had_been(
    stage_1: Path, tmp_path: Path
) -> None:
    """Killed on 2 processes after step 4, and again on 4 in its last step; ended on 1: the unbroken run's bits."""
    run = tmp_path / "run"
    flags = ["--config", str(stage_1 / "config.yaml"), "--output_dir", str(run), "--resume_from_checkpoint", "auto",
             "--report_to", "none", "--save_steps", "1"]  # fmt: skip
    for processes, step in ((2, 5), (4, 7)):
        kill = trials.Interruption("backward", step, process=processes - 1)
        assert -signal.SIGKILL in trials.Trial(flags, processes, run.with_suffix(".log"), None, kill).wait(300)
    trials.train(flags, 1, run.with_suffix(".log"))
    assert same_bits(weights(stage_1), weights(run))
    whole = {event["step"]: event for event in metrics(stage_1)}
    events = metrics(run)
    assert [event["step"] for event in events] == list(range(1, 9))
    for event in events:
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
    recipe, model = load_trained(folder, find_recipe(folder))
    said = recipe.answer(model, recipe.Request(output=tmp_path / "own"))
    assert "60 samples" in said and "target_mae" in said
    lines = (tmp_path / "own" / "predictions.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["sample-id", "predicted_target", "target", "split"] and len(lines) == 61
    assert (tmp_path / "own" / "report.html").read_text().count("<svg") == 3
    with pytest.raises(ConfigError, match="color_by"):
        recipe.answer(model, recipe.Request(output=tmp_path, color_by="colour"))


def test_a_stage_2_that_no_step_improved_says_what_its_embeddings_are(
    stage_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The training destroys the weights: no later evaluation is better.
    flags = (*SMALL, "--stage", "predict", "--data.target", "target", "--data.group", "site", "--learning_rate", "10",
             "--max_steps", "2", "--eval_steps", "2", "--unifrac_penalty", "0", "--nuc_penalty", "0",
             "--count_penalty", "0")  # fmt: skip
    nothing = "the embeddings are those of an encoder that learned nothing. For embeddings, train with --stage pretrain"
    begun = f"the weights are those of {stage_1}, with the linear readout of this training beside them."
    for name, more, said in (
        ("random", (), nothing),
        ("begun", ("--init_from", str(stage_1), "--data.rarefy_depth", "300"), begun),
    ):
        run = tmp_path / name
        printed = train(*flags, *more, "--output_dir", str(run))
        (line,) = [each for each in printed.splitlines() if each.startswith("final/ has the weights of step 0 of 2")]
        for text in (line, (run / "final" / "README.md").read_text(), (run / "report.html").read_text()):
            assert said.rstrip(".") in text and "No evaluation after step 0 was better" in text
        assert main(["evaluate", "--checkpoint", str(run), "--mixed_precision", "no"]) == 0
        assert said in capsys.readouterr().err
    # The last weights are others.
    assert main(["evaluate", "--checkpoint", str(run / "checkpoint-2"), "--mixed_precision", "no"]) == 0
    assert "No evaluation" not in capsys.readouterr().err


def test_a_run_of_stage_1_stopped_by_a_signal_goes_on(tmp_path: Path) -> None:
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
    recipe, model = load_trained(stage_1, find_recipe(stage_1))
    study = recipe.study
    table = biom.Table(study.counts.T, study.sequences, study.sample_ids)
    (tmp_path / "table.biom").write_text(table.to_json("test"))
    rows = "".join(f"{name}\t{cell}\n" for name, cell in zip(study.sample_ids, study.metadata["half"], strict=True))
    (tmp_path / "metadata.tsv").write_text("sample-id\thalf\n" + rows)
    request = recipe.Request(
        table=str(tmp_path / "table.biom"),
        metadata=str(tmp_path / "metadata.tsv"),
        color_by="half",
        output=tmp_path / "o",
    )
    assert "60 samples" in recipe.answer(model, request)
    written = [line.split("\t") for line in (tmp_path / "o" / "embeddings.tsv").read_text().splitlines()]
    assert [line[0] for line in written[1:]] == list(study.sample_ids)
    expected = answering.encode(model, recipe, study, recipe.fitted).embeddings
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
        recipe.answer(model, recipe.Request(table=str(tmp_path / "longer.biom"), output=tmp_path / "l"))


def test_the_ordination_is_principal_coordinates_and_scikit_bio_reads_it() -> None:
    points = np.random.default_rng(0).normal(size=(12, 3))
    apart = np.sqrt(np.square(points[:, None] - points[None]).sum(-1))
    coordinates, values, shares = answering.principal_coordinates(apart, 5)
    again = np.sqrt(np.square(coordinates[:, None] - coordinates[None]).sum(-1))
    assert np.allclose(again, apart) and np.isclose(shares[:3].sum(), 1)
    text = answering.ordination_text([f"s{number}" for number in range(12)], coordinates, values, shares)
    skbio: Any = pytest.importorskip("skbio")
    read = skbio.OrdinationResults.read([text])
    assert np.allclose(read.samples.to_numpy(), coordinates) and np.allclose(read.eigvals, values)


def test_the_guides_preset_is_the_guides() -> None:
    guide = Recipe.presets()["guide"]
    assert guide["learning_rate"] == 1e-4 and guide["weight_decay"] == 0.01
    assert guide["early_stopping_patience"] == 50 and guide["report_to"] == "tensorboard"
    assert guide["model.distance"] == "tanh" and guide["model.hidden_size"] == 128
    assert guide["lr_scheduler_type"] == "cosine" and guide["warmup_steps"] == 10_000
    assert all(preset["max_warmup_ratio"] == 0.1 for preset in Recipe.presets().values())


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


@pytest.mark.parametrize("low", [0.0, -0.3, 5.6, 18.0, 5000.0])
@pytest.mark.parametrize("width", [0.0013, 0.65, 1.1, 1.9, 4.9, 67.0, 1e5])
def test_an_axis_has_four_to_ten_round_marks(low: float, width: float) -> None:
    from recipes.microbiome.figure import _marks

    marks = np.array(_marks(low, low + width))
    assert 4 <= len(marks) <= 10 and low - 1e-9 <= marks[0] and marks[-1] <= low + width + 1e-9
    step = np.diff(marks).mean()
    assert np.allclose(np.diff(marks), step)
    assert min(abs(step / 10 ** np.floor(np.log10(step) + 1e-6) - round_one) for round_one in (1, 2, 5)) < 1e-6


def test_figures_compare_on_equal_axes_with_round_marks() -> None:
    from recipes.microbiome.figure import confusion, roc, scatter

    true = np.array([4.83, 5.5, 6.9, 7.31])
    drawn = scatter(true, true + 0.3, None, "measured", "predicted", is_comparison=True)
    marks = re.findall(r'text-anchor="(middle|end)">([0-9.]+)<', drawn)
    across, down = ([mark for side, mark in marks if side == kind] for kind in ("middle", "end"))
    assert across == down == ["5", "5.5", "6", "6.5", "7", "7.5"]
    assert drawn.count("<line") == 1 and scatter(true, true, None, "a", "b").count("<line") == 0
    table = confusion(["a", "b", "b", "new"], ["a", "a", "b", "a"], ["a", "b"])
    assert "<th>a</th><td><b>1</b></td><td>0</td>" in table and "<th>b</th><td>1</td><td><b>1</b></td>" in table
    assert "<th>new</th><td>1</td><td>0</td>" in table
    # A perfect order goes up, then across; equal scores are one straight line.
    found = roc(np.array([True, True, False]), np.array([0.9, 0.8, 0.1]), "sick")
    assert 'points="56.0,404.0 56.0,230.0 56.0,56.0 584.0,56.0"' in found
    found = roc(np.array([True, False]), np.array([0.5, 0.5]), "sick")
    assert 'points="56.0,404.0 584.0,56.0"' in found and "share of sick" in found


def test_a_cross_validation_scores_the_folds_together(tmp_path: Path) -> None:
    from recipes.microbiome import cross_validation

    for name, pairs in {"one": [(1, 1.5), (3, 2.5)], "two": [(10, 10.0), (12, 13.0)]}.items():
        (tmp_path / name).mkdir()
        rows = (json.dumps({"target": true, "predicted": guess}) for true, guess in pairs)
        (tmp_path / name / "validation.jsonl").write_text("\n".join(rows))
    scores = cross_validation.pooled([tmp_path / "one", tmp_path / "two"])
    assert scores["target_mae"] == pytest.approx(0.5)
    # Each fold alone explains little of itself; together they are told apart.
    assert scores["target_r2"] == pytest.approx(1 - 0.375 / np.var([1, 3, 10, 12]))


def test_a_cross_validation_trains_every_fold_of_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from recipes.microbiome import cross_validation
    from runner.__main__ import main

    # In this process: four starts of Python would be most of the time.
    monkeypatch.setattr(cross_validation, "relay", lambda *words: main(list(words)) and pytest.fail(str(words)))
    flags = [*SMALL[2:], "--stage", "predict", "--max_steps", "2", "--data.num_folds", "2", "--data.group", "site"]
    flags += ["--unifrac_penalty", "0", "--nuc_penalty", "0", "--count_penalty", "0"]
    cross_validation.main(["--folds", "2", "--seeds", "1", "--output", str(tmp_path), "--", *flags])
    seen = [row["sample"] for fold in (0, 1) for row in cross_validation.held_out(tmp_path / f"seed-0-fold-{fold}")]
    assert len(seen) == len(set(seen)) == 60
    assert "target_mae/by_group" in capsys.readouterr().out


DATA = REPOSITORY.parent / "shared" / "data" / "microbiome"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the real studies are not here")
def test_artifacts_of_a_real_study_train_both_stages_and_are_described(tmp_path: Path) -> None:
    """As QIIME 2 exports them: a table with hashed ids, sequences, a tree, metadata with types; some of it unusable."""
    biom: Any = pytest.importorskip("biom")
    h5py = pytest.importorskip("h5py")
    table = biom.load_table(str(DATA / "tiny" / "table.biom"))
    sequences = list(table.ids("observation"))
    names = {sequence: f"asv{number}" for number, sequence in enumerate(sequences)}
    table.update_ids(names, axis="observation")
    with h5py.File(tmp_path / "feature-table.biom", "w") as file:
        table.to_hdf5(file, "test")
    # The first ASV has no sequence, the second an N.
    records = [(name, f"N{s[1:]}" if number == 1 else s) for number, (s, name) in enumerate(names.items()) if number]
    (tmp_path / "dna-sequences.fasta").write_text("".join(f">{name}\n{s}\n" for name, s in records))
    tree = re.sub(r"[ACGT]{40,}", lambda found: names[found[0]], (DATA / "tiny" / "tree.nwk").read_text())
    (tmp_path / "tree.nwk").write_text(tree)
    for artifact, member in (("table", "feature-table.biom"), ("seqs", "dna-sequences.fasta"), ("tree", "tree.nwk")):
        with zipfile.ZipFile(tmp_path / f"{artifact}.qza", "w") as archive:
            archive.write(tmp_path / member, f"8c2e/data/{member}")
    lines = (DATA / "tiny" / "metadata.tsv").read_text().splitlines()
    types = "#q2:types\tnumeric\tcategorical"
    # The last sample is in no metadata.
    (tmp_path / "metadata.tsv").write_text("\n".join([lines[0], types, *lines[1:-1]]) + "\n")

    files = ["--data.table", "table.qza", "--data.sequences", "seqs.qza", "--data.tree", "tree.qza"]
    files = [str(tmp_path / word) if word.endswith(".qza") else word for word in files]
    flags = [*SMALL, *files, "--data.metadata", str(tmp_path / "metadata.tsv"), "--max_steps", "2"]
    output = train(*flags, "--output_dir", str(tmp_path / "one"))
    assert "1 of 307 ASVs have no sequence" in output and "1 of 306 ASVs have letters other than" in output
    assert "1 of 24 samples are not in" in output
    flags += ["--stage", "predict", "--data.target", "age", "--data.group", "study", "--data.split", "random"]
    output = train(*flags, "--init_from", str(tmp_path / "one"), "--output_dir", str(tmp_path / "two"))
    assert "warning" in output and "the scores are too good" in output
    assert {"target_mae", "unifrac_r2", "nucleotide_accuracy"} <= metrics(tmp_path / "two", "eval")[-1].keys()
    assert {"target_loss", "count_loss", "unifrac_loss"} <= metrics(tmp_path / "two")[-1].keys()

    recipe, model = load_trained(tmp_path / "two", find_recipe(tmp_path / "two"))
    said = recipe.answer(model, recipe.Request(color_by="study", output=tmp_path / "report"))
    assert "23 samples" in said and "1 of 24 samples" in said
    skbio: Any = pytest.importorskip("skbio")
    ordination = skbio.OrdinationResults.read(str(tmp_path / "report" / "ordination.txt"))
    assert ordination.samples.shape == (23, 10)
    page = (tmp_path / "report" / "report.html").read_text()
    for heading in ("Embedding, coloured by study", "UniFrac and the embedding", "Prediction of age"):
        assert heading in page


# Memory ------------------------------------------------------------------------------------------------


def test_out_of_memory_names_what_to_lower() -> None:
    """Pairs are taken within a micro-batch, so it is never computed in parts behind the user's back."""
    from runner.errors import OutOfMemory
    from runner.memory import check_splittable

    with pytest.raises(OutOfMemory) as raised:
        check_splittable(Recipe(), [], 1, RuntimeError("out of memory"))
    said = str(raised.value)
    assert all(name in said for name in ("--micro_batch_size", "--model.token_limit", "--model.asv_chunk_size"))
    assert "compares the examples" in said and len(said.splitlines()) <= 3


def test_memory_settings_reach_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner import hardware
    from runner.settings import RunSettings

    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    hardware.set_allocator(RunSettings(use_expandable_segments=True), "cpu")
    hardware.set_allocator(RunSettings(), "cuda")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
    hardware.set_allocator(RunSettings(use_expandable_segments=True), "cuda")
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_a_plan_says_parameters_memory_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    from runner.__main__ import main

    guide = ("--preset", "guide", "--data.demo_samples", "20", "--data.demo_asvs", "40", "--micro_batch_size", "2")
    needs = []
    for chunk in ("0", "8"):
        assert main(["plan", "--recipe", "microbiome", *guide, "--model.asv_chunk_size", chunk]) == 0
        printed = capsys.readouterr().out
        assert (
            "parameters   2.4 M (2,401,412)" in printed
            and "lane         2 examples" in printed
            and "passes over 16" in printed
        )
        needs.append(float(re.search(r"activations +([\d.]+) MB", printed)[1]))  # type: ignore[index]
    # Chunks are computed again in the backward pass, and planned so.
    assert needs[1] < 0.5 * needs[0]


# The pages ---------------------------------------------------------------------------------------------

README = REPOSITORY / "recipes" / "microbiome" / "README.md"
PAGE = REPOSITORY / "docs" / "recipes" / "microbiome.md"


def test_every_test_that_the_readme_names_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30 and named <= there, named - there
    # Eighteen pitfalls, each with a test or a sentence.
    pitfalls = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    assert pitfalls == [str(number) for number in range(1, 19)]


def test_the_page_has_every_setting() -> None:
    from runner.config import settings_of

    page = PAGE.read_text(encoding="utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([a-z0-9_.]+)` \| ([^|]*) \| [^|]* \|$", page, re.MULTILINE)
    default = Recipe()
    wanted = [(each.flag, each.get(default)) for each in settings_of(Recipe)]
    shown = [(name, "none" if value is None else str(value).lower()) for name, value in wanted]
    assert documented == shown


def test_ids_and_cells_go_out_as_they_came(tmp_path: Path) -> None:
    """Predictions are written for other programs: nothing in them may become a number, a date or another row."""
    import csv

    from recipes.microbiome.study import Study
    from recipes.microbiome.target import Fitted

    names = ["00123", "1e5", "TRUE", "NA", " padded ", "2024-01-02", "tab\there", 'quote"d', "1.10", "=1+1", "é"]
    model, recipe = Recipe(stage="predict").model().eval(), Recipe(stage="predict")
    study = recipe.study
    cells = [f"{number}.50" for number in range(len(names))]
    study = Study(tuple(names), study.sequences, study.counts[: len(names)], None, {"target": tuple(cells)})
    answering.write(model, recipe, study, Fitted(6.0, 1.0), None, tmp_path, None, ["split"] * len(names))
    for file in ("predictions.tsv", "embeddings.tsv"):
        with (tmp_path / file).open(encoding="utf-8", newline="") as opened:
            rows = list(csv.reader(opened, "excel-tab", strict=True))
        assert [row[0] for row in rows] == ["sample-id", *names]
        if file == "predictions.tsv":
            assert [row[2] for row in rows[1:]] == cells and rows[0] == [
                "sample-id", "predicted_target", "target", "split",
            ]  # fmt: skip


def test_unknown_classes_and_words_in_a_later_study_are_counted(tmp_path: Path) -> None:
    from recipes.microbiome.study import Study
    from recipes.microbiome.target import Fitted

    recipe = Recipe(stage="predict")
    model, demo = recipe.model().eval(), recipe.study
    for cells, counted in [(["5.1", "n.d.", "6,2", "NA", "7"], "2 of 5 samples have in target no number")]:
        study = Study(tuple("abcde"), demo.sequences, demo.counts[:5], None, {"target": tuple(cells)})
        assert counted in answering.write(model, recipe, study, Fitted(6.0, 1.0), None, tmp_path, None, [])


def test_what_was_fitted_on_other_content_is_fitted_anew_unless_a_model_depends_on_it(tmp_path: Path) -> None:
    pytest.importorskip("biom")
    sequences = ["ACGTACGTACGTACGTACGTAC", "TCGTACGTACGTACGTACGTAC"]
    table = "#OTU ID\t" + "\t".join(f"s{n}" for n in range(20)) + "\n"
    table += "".join(f"{sequence}\t" + "\t".join("3" * 20) + "\n" for sequence in sequences)
    (tmp_path / "t.tsv").write_text(table)

    def classes(words: str, folder: Path) -> tuple[str, ...]:
        rows = "".join(f"s{n}\t{words[n % len(words)]}\n" for n in range(20))
        (tmp_path / "m.tsv").write_text(f"sample-id\tsite\n{rows}")
        flags = {"table": str(tmp_path / "t.tsv"), "metadata": str(tmp_path / "m.tsv"), "target": "site"}
        recipe = Recipe(stage="predict", data_settings=DataSettings(**flags))
        folder.mkdir(parents=True, exist_ok=True)
        return recipe.prepare(folder).fitted.classes

    assets = tmp_path / "run" / "assets"
    assert classes("xy", assets) == ("x", "y")
    assert classes("xyz", assets) == ("x", "y", "z")
    # With a checkpoint there, the runner decides whether the run goes on; what it learned are the old classes.
    (tmp_path / "run" / "checkpoint-4").mkdir()
    assert classes("uvw", assets) == ("x", "y", "z")
    trained = tmp_path / "final"
    assert classes("xyz", trained) == ("x", "y", "z")
    (trained / "model.safetensors").write_bytes(b"")
    assert classes("uvw", trained) == ("x", "y", "z")


def test_heads_are_inherited_for_the_same_target_alone(tmp_path: Path) -> None:
    from recipes.microbiome.fitting import has_same_target

    def prepared(target: str) -> Recipe:
        settings = DataSettings(demo_samples=40, demo_asvs=40, target=target)
        return Recipe(stage="predict", data_settings=settings).prepare(tmp_path)

    first = prepared("target")
    assert has_same_target(first.assets, first, first.fitted)
    trained = first.model()
    with torch.no_grad():
        trained.target_head.weight.fill_(7.0)
    again = prepared("target")
    model = again.model()
    again.inherit(model, trained.state_dict())
    assert (model.target_head.weight == 7).all()
    # The assets of a run are copied into one that begins from its weights: here for another target of one output.
    file = tmp_path / "microbiome.json"
    file.write_text(file.read_text().replace('"target": "target"', '"target": "ph"'))
    other = prepared("target")
    model = other.model()
    other.inherit(model, trained.state_dict())
    assert (model.target_head.weight == 0).all()
