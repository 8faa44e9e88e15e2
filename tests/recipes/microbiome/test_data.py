"""Reading a study as the field has it: what cannot be used is counted and said, and nothing leaks between splits."""

import dataclasses
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.microbiome import examples, fitting, unifrac
from recipes.microbiome import study as studies
from recipes.microbiome.recipe import Recipe
from recipes.microbiome.sequences import tokenize
from recipes.microbiome.settings import DataSettings
from recipes.microbiome.splits import leaking_groups, likely_groups, partition
from recipes.microbiome.study import Study
from runner.errors import ConfigError, DataError
from tests.launching import SHARED

REAL = SHARED / "microbiome"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real studies are not here")

SEQUENCES = ["ACGTACGTAC", "ACGTACGTAA", "TTGTACGCAC", "GGGTACGTCC"]
COUNTS = np.array([[5, 3, 0, 2], [0, 7, 1, 0], [4, 4, 4, 4], [9, 0, 0, 1], [0, 0, 0, 0]], float)
SAMPLES = ["s1", "s2", "s3", "s4", "empty"]


def opened(
    table: str, sequences: str | None = None, tree: str | None = None, metadata: str | None = None, **settings: Any
) -> Study:
    """The study of these files, as a training reads it."""
    return studies.open_study(DataSettings(table=table, sequences=sequences, tree=tree, metadata=metadata, **settings))


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    """Paths of a small study: an HDF5 and a JSON table, FASTA, tree, metadata, and artifacts of each."""
    biom = pytest.importorskip("biom")
    h5py = pytest.importorskip("h5py")
    table = biom.Table(COUNTS.T, SEQUENCES, SAMPLES)
    with h5py.File(tmp_path / "table.biom", "w") as file:
        table.to_hdf5(file, "test")
    (tmp_path / "json.biom").write_text(table.to_json("test"))
    hashed = biom.Table(COUNTS.T, ["md5a", "md5b", "md5c", "md5d"], SAMPLES)
    with h5py.File(tmp_path / "hashed.biom", "w") as file:
        hashed.to_hdf5(file, "test")
    records = zip(["md5a", "md5b", "md5c", "md5d"], SEQUENCES, strict=True)
    (tmp_path / "rep-seqs.fasta").write_text("".join(f">{name} some words\n{s[:4]}\n{s[4:]}\n" for name, s in records))
    one, two, three, four = SEQUENCES
    (tmp_path / "tree.nwk").write_text(f"(({one}:1,{two}:2):3,({three}:4,{four}:5):6);")
    (tmp_path / "metadata.tsv").write_text(
        "sample-id\tph\tbody\tsubject\n#q2:types\tnumeric\tcategorical\tcategorical\n"
        "s1\t5.5\tgut\ta\ns2\t6.0\tskin\ta\ns3\tNA\tgut\tb\ns4\t7.25\tskin\tb\nempty\t4\tgut\tc\nelsewhere\t1\tgut\td\n"
    )
    for artifact, member, file in [
        ("table.qza", "feature-table.biom", "table.biom"),
        ("tree.qza", "tree.nwk", "tree.nwk"),
        ("rep-seqs.qza", "dna-sequences.fasta", "rep-seqs.fasta"),
    ]:
        with zipfile.ZipFile(tmp_path / artifact, "w") as archive:
            archive.writestr("8c2e/metadata.yaml", "uuid: 8c2e\n")
            archive.writestr(f"8c2e/data/{member}", (tmp_path / file).read_bytes())
    return {path.name: str(path) for path in tmp_path.iterdir()}


def test_hdf5_json_and_artifacts_are_the_same_study(study: dict[str, str]) -> None:
    for table, sequences, tree in [
        ("table.biom", None, "tree.nwk"),
        ("json.biom", None, "tree.nwk"),
        ("table.qza", None, "tree.qza"),
    ]:
        read = opened(study[table], sequences, study[tree], study["metadata.tsv"])
        assert read.sample_ids == ("s1", "s2", "s3", "s4")
        assert read.sequences == tuple(SEQUENCES)
        assert (read.counts.toarray() == COUNTS[:4]).all()
        assert read.phylogeny is not None and read.phylogeny.names == tuple(SEQUENCES)
        assert read.metadata["ph"] == ("5.5", "6.0", "NA", "7.25")
    for sequences in ("rep-seqs.fasta", "rep-seqs.qza"):
        read = opened(study["hashed.biom"], study[sequences])
        assert read.sequences == tuple(SEQUENCES) and read.phylogeny is None


def test_what_is_left_out_is_counted_and_said(study: dict[str, str], tmp_path: Path) -> None:
    one, two, three, _ = SEQUENCES
    (tmp_path / "small.nwk").write_text(f"(({one}:1,{two}:2):3,{three}:1);")
    read = opened(study["table.biom"], None, str(tmp_path / "small.nwk"), study["metadata.tsv"], target="ph")
    said = " ".join(read.notes)
    assert "1 of 4 ASVs are no tips" in said
    assert "1 of 5 samples have no ph" in said
    assert "1 of 4 samples have no reads" in said
    assert read.sample_ids == ("s1", "s2", "s4") and read.sequences == (one, two, three)

    (tmp_path / "odd.fasta").write_text(f">md5a\n{one}\n>md5b\nACGNACGTAA\n>md5c\n{three.lower().replace('t', 'u')}\n")
    read = opened(study["hashed.biom"], str(tmp_path / "odd.fasta"))
    assert read.sequences == (one, three)
    said = " ".join(read.notes)
    assert "1 of 4 ASVs have no sequence" in said and "1 of 3 ASVs have letters other than A, C, G and T" in said

    (tmp_path / "few.tsv").write_text("id\tph\ns1\t5\ns4\t6\n")
    read = opened(study["table.biom"], metadata=str(tmp_path / "few.tsv"))
    assert read.sample_ids == ("s1", "s4") and "3 of 5 samples are not in" in read.notes[0]


def test_where_nothing_is_left_it_is_an_error_that_says_what_to_type(study: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other.nwk").write_text("(AAAA:1,CCCC:2);")
    (tmp_path / "other.tsv").write_text("id\tph\nx1\t5\n")
    (tmp_path / "nothing.tsv").write_text("id\tph\ns1\tNA\ns2\t\n")
    (tmp_path / "twice.tsv").write_text("id\tph\ns1\t1\ns1\t2\n")
    (tmp_path / "no.biom").write_text("hello")
    (tmp_path / "twice.fasta").write_text(">md5a\nACGT\n>md5a\nACGA\n")
    (tmp_path / "commas.tsv").write_text("id,ph\ns1,5\n")
    biom: Any = pytest.importorskip("biom")
    h5py = pytest.importorskip("h5py")
    for name, factor in (("shares", 0.1), ("nothing", 0.0)):
        with h5py.File(tmp_path / f"{name}.biom", "w") as file:
            biom.Table(COUNTS.T * factor, SEQUENCES, SAMPLES).to_hdf5(file, "test")
    for arguments, said in [
        ({"table": study["hashed.biom"]}, "rep-seqs.fasta"),
        ({"table": study["table.biom"], "tree": str(tmp_path / "other.nwk")}, "AAAA"),
        ({"table": study["table.biom"], "metadata": str(tmp_path / "other.tsv")}, "x1"),
        ({"table": study["table.biom"], "metadata": str(tmp_path / "nothing.tsv"), "target": "ph"}, "'ph'"),
        ({"table": study["table.biom"], "metadata": str(tmp_path / "twice.tsv")}, "twice"),
        ({"table": study["table.biom"], "min_reads": 100}, "rarefy_depth"),
        ({"table": str(tmp_path / "no.biom")}, "hello"),
        ({"table": str(tmp_path / "missing.biom")}, "no file"),
        ({"table": study["tree.qza"]}, "tree.nwk"),
        ({"table": study["table.biom"], "sequences": study["tree.nwk"]}, "FASTA"),
        ({"table": study["table.biom"], "sequences": str(tmp_path / "twice.fasta")}, "'md5a' twice"),
        ({"table": study["table.biom"], "metadata": str(tmp_path / "missing.tsv")}, "no file"),
        ({"table": study["table.biom"], "metadata": str(tmp_path / "commas.tsv")}, "tab-separated"),
        ({"table": str(tmp_path / "shares.biom")}, "counts of reads"),
        ({"table": str(tmp_path / "nothing.biom")}, "no reads"),
    ]:
        with pytest.raises(DataError, match=said) as raised:
            opened(**arguments)
        assert len(str(raised.value).splitlines()) <= 3
    with pytest.raises(ConfigError, match="pH"):
        opened(study["table.biom"], metadata=study["metadata.tsv"], target="pH")
    with pytest.raises(ConfigError, match="--data.table"):
        studies.read_study(DataSettings(tree=study["tree.nwk"]))


def test_what_limits_cut_off_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.microbiome.settings import ModelSettings

    Recipe(data_settings=demo(max_bp=50), model_settings=ModelSettings(token_limit=12)).prepare(tmp_path)
    said = capsys.readouterr().out
    assert "60 of 60 ASVs are longer than max_bp 50" in said
    assert re.search(r"\d+ of 120 samples have more ASVs than token_limit 12", said)
    (tmp_path / "whole").mkdir()
    Recipe(data_settings=demo()).prepare(tmp_path / "whole")
    assert capsys.readouterr().out == ""


def test_letters_become_tokens_and_long_asvs_are_cut() -> None:
    assert tokenize(["ACGT", "TT"], 10).tolist() == [[1, 2, 3, 4], [4, 4, 0, 0]]
    assert tokenize(["ACGTA"], 3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("most", [0, studies.MOST_LETTERS])
@pytest.mark.parametrize("max_bp", [3, 100])
def test_tokens_come_from_a_table_or_are_made_anew(most: int, max_bp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "MOST_LETTERS", most)
    letters = ("ACGTACGT", "TT", "GGGGG")
    study = Study(("s",), letters, unifrac.as_rows(np.ones((1, 3))), None, {})
    for asvs in ([0, 1, 2], [2, 1], [1]):
        wanted = tokenize([letters[asv] for asv in asvs], max_bp)
        assert np.array_equal(study.tokens_of(np.array(asvs), max_bp), wanted) and wanted.dtype == np.int8
    assert (study.tokens is None) == (most == 0)


# Splits -----------------------------------------------------------------------------------------------


def demo(**settings: Any) -> DataSettings:
    return DataSettings(demo_samples=120, demo_asvs=60, **settings)


def test_splits_cover_every_sample_once_and_the_seed_decides() -> None:
    settings = demo(test_fraction=0.1)
    study = studies.read_study(settings)
    splits = partition(study, settings)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [84, 24, 12]
    assert sorted(np.concatenate(list(splits.values()))) == list(range(120))
    other = partition(study, demo(test_fraction=0.1, split_seed=1))
    assert other["validation"].tolist() != splits["validation"].tolist()
    folds = [partition(study, demo(num_folds=5, fold=fold))["validation"] for fold in range(5)]
    assert sorted(np.concatenate(folds)) == list(range(120))


def test_groups_stay_together_and_leaking_ones_are_counted() -> None:
    settings = demo(group="site")
    study = studies.read_study(settings)
    for fold in range(4):
        settings = demo(group="site", num_folds=4, fold=fold)
        assert leaking_groups(study, settings, partition(study, settings)) == 0
    settings = demo(group="site", split="random")
    assert leaking_groups(study, settings, partition(study, settings)) > 5


def test_the_user_is_warned_when_groups_leak(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Recipe(data_settings=demo(group="site", split="random")).prepare(tmp_path)
    assert "warning" in capsys.readouterr().out
    (tmp_path / "grouped").mkdir()
    Recipe(data_settings=demo(group="site")).prepare(tmp_path / "grouped")
    assert "warning" not in capsys.readouterr().out


def with_column(name: str, cells: list[str]) -> Study:
    """The embedded study with two columns: its classes, and one of this name."""
    study = studies.read_study(demo())
    return dataclasses.replace(study, metadata={"half": study.metadata["half"], name: tuple(cells)})


def of_columns(study: Study, **settings: Any) -> list[str]:
    """The columns that a split of the study may leak through."""
    own = demo(target="half", **settings)
    return likely_groups(study, own, partition(study, own))


@pytest.mark.parametrize(
    "name",
    [
        "subject", "SubjectID", "host_subject_id", "Subject Number", "anonymized_name", "patient", "Patient_no",
        "host-id", "participant.id", "individuals", "donor", "mouse_id", "cage", "family_id", "qiita_study_id",
        "study", "BioProject", "host", "site", "collection_site", "Station", "plot_number", "pit", "sampling_location",
    ],
)  # fmt: skip
def test_columns_of_repeated_subjects_studies_and_sites_are_found(name: str) -> None:
    study = with_column(name, [f"a{row // 4}" for row in range(120)])
    assert of_columns(study) == [name]
    # A group is given: nothing more is said. A value for each sample, or one for all: nothing can be on two sides.
    assert of_columns(study, group=name) == []
    for cells in ([f"a{row}" for row in range(120)], ["a"] * 120, ["not collected"] * 60 + ["NA"] * 60):
        assert of_columns(with_column(name, cells)) == []


@pytest.mark.parametrize(
    "name",
    [
        "sex", "host_sex", "subject_age", "body_site", "sample_type", "diagnosis", "study_group", "treatment", "ph",
        "individual_weight", "site_type", "env_material", "host_common_name", "subject_is_affected", "plate", "day",
    ],
)  # fmt: skip
def test_columns_of_properties_are_no_groups(name: str) -> None:
    assert of_columns(with_column(name, [f"a{row % 6}" for row in range(120)])) == []


def test_a_column_is_no_group_where_grouping_by_it_would_not_help(tmp_path: Path) -> None:
    # "site" with few values: where on a body.
    assert of_columns(with_column("site", ["gut", "skin", "tongue", "gut"] * 30)) == []
    study = with_column("subject", [f"a{row // 4}" for row in range(120)])
    # A study for each class is the class. A file that keeps subjects together does not leak.
    assert of_columns(dataclasses.replace(study, metadata={**study.metadata, "cohort": study.metadata["half"]})) == [
        "subject"
    ]
    (tmp_path / "split.json").write_text(json.dumps({"test_ids": study.sample_ids[:40]}))
    assert of_columns(study, split_file=str(tmp_path / "split.json")) == []


def test_the_user_is_told_once_which_column_may_leak(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def printed(**settings: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        Recipe(stage="predict", data_settings=demo(target="half", **settings)).prepare(folder)
        return capsys.readouterr().out

    said = "warning: samples with the same site are both in training and held out. Where they are alike, the scores are"
    assert printed().count(f"{said} too good: type --data.group site to keep them together.") == 1
    assert "warning" not in printed(group="site")
    text = "type --group site to keep them together."
    recipe = Recipe(data_settings=demo(target="half"))
    recipe.score_files(Recipe.Files(folds=3))
    assert capsys.readouterr().out.count(text) == 1
    recipe.score_files(Recipe.Files(folds=3, group="site"))
    assert text not in capsys.readouterr().out
    # Stage 1 predicts no target.
    Recipe(data_settings=demo()).prepare(tmp_path)
    assert "warning" not in capsys.readouterr().out


def test_a_split_can_come_from_a_file(tmp_path: Path) -> None:
    study = studies.read_study(demo())
    names = list(study.sample_ids)
    (tmp_path / "two.json").write_text(json.dumps({"test_ids": names[:10]}))
    (tmp_path / "three.json").write_text(json.dumps({"validation_ids": names[:10], "test_ids": names[10:15]}))
    (tmp_path / "folds.json").write_text(json.dumps({"folds": [names[:60], names[60:]]}))
    sizes = {}
    for name in ("two", "three", "folds"):
        splits = partition(study, demo(split_file=str(tmp_path / f"{name}.json"), fold=1))
        sizes[name] = [len(splits[split]) for split in ("train", "validation", "test")]
    assert sizes == {"two": [110, 10, 0], "three": [105, 10, 5], "folds": [60, 60, 0]}
    (tmp_path / "wrong.json").write_text(json.dumps({"test_ids": ["nobody"]}))
    with pytest.raises(DataError, match="nobody"):
        partition(study, demo(split_file=str(tmp_path / "wrong.json")))
    with pytest.raises(ConfigError, match="fold"):
        partition(study, demo(split_file=str(tmp_path / "folds.json"), fold=2))


def test_what_is_fitted_and_what_training_sees_come_from_the_training_samples_alone() -> None:
    recipe = Recipe(stage="predict", data_settings=demo(target="target"))
    study, rows = recipe.study, recipe.splits["train"]
    values = np.array([float(cell) for cell in study.metadata["target"]])
    assert np.isclose(recipe.fitted.mean, values[rows].mean()) and not np.isclose(recipe.fitted.mean, values.mean())
    assert np.isclose(recipe.fitted.deviation, values[rows].std())
    place, matrix = Recipe(data_settings=demo()).distance_table or (None, None)
    assert place is not None and matrix is not None
    assert matrix.shape == (len(rows), len(rows))
    assert (place[recipe.splits["validation"]] == -1).all()
    # A column in which held-out ASVs outvote the training ones keeps the training's letter.
    seen = np.unique(study.counts[rows].indices)
    tokens = tokenize([study.sequences[asv] for asv in seen], 150)
    for column in (0, 20, 63):
        letters, votes = np.unique(tokens[:, column], return_counts=True)
        assert votes[letters == recipe.fitted.majority[column]] == votes.max()


def test_a_class_is_told_from_a_number(study: dict[str, str]) -> None:
    settings = DataSettings(table=study["table.biom"], metadata=study["metadata.tsv"], target="body")
    read = studies.read_study(settings)
    fitted = fitting.fit(read, settings, np.arange(4), True)
    assert fitted.classes == ("gut", "skin")
    values = fitting.target_values(read, settings, fitting.fit(read, settings, np.array([0, 1]), True))
    assert values is not None and values.tolist() == [0, 1, 0, 1]
    settings = DataSettings(table=study["table.biom"], metadata=study["metadata.tsv"], target="ph")
    read = studies.read_study(settings)
    assert fitting.fit(read, settings, np.arange(3), True).classes == ()
    wrong = DataSettings(table=study["table.biom"], metadata=study["metadata.tsv"], target="body", task="regression")
    with pytest.raises(DataError, match="gut"):
        fitting.fit(studies.read_study(wrong), wrong, np.arange(4), True)


# Rarefaction and micro-batches ------------------------------------------------------------------------


def test_rarefaction_draws_without_replacement_and_by_seed() -> None:
    counts = np.array([50.0, 30, 0, 20])
    drawn = examples.rarefy(counts, 40, np.random.default_rng(0))
    assert drawn.sum() == 40 and (drawn <= counts).all()
    assert (drawn == examples.rarefy(counts, 40, np.random.default_rng(0))).all()
    means = np.mean([examples.rarefy(counts, 40, np.random.default_rng(seed)) for seed in range(500)], 0)
    assert np.allclose(means, [20, 12, 0, 8], atol=0.5)
    assert (examples.rarefy(counts, 0, np.random.default_rng(0)) == counts).all()


def test_training_rarefies_anew_at_every_visit_and_evaluation_never_does() -> None:
    recipe = Recipe(data_settings=demo(rarefy_depth=100))

    def visit(split: str, seed: int) -> np.ndarray:
        np.random.seed(seed)
        return examples.counts_of([recipe.data(split)[0]], len(recipe.study.sequences)).toarray()

    assert (visit("train", 1) == visit("train", 1)).all()
    assert (visit("train", 1) != visit("train", 2)).any()
    assert (visit("validation", 1) == visit("validation", 2)).all()
    assert visit("train", 1).sum() == 100


def test_distances_come_from_the_reads_that_the_model_sees() -> None:
    """Pitfall 14: a target from the full table beside a rarefied input is the wrong target."""
    recipe = Recipe(data_settings=demo(rarefy_depth=60))
    np.random.seed(5)
    visit = recipe.data("train").__getitem__
    chosen = [visit(number) for number in range(6)]
    assert recipe.distance_table is None
    batch = recipe.collate(chosen)
    table = examples.counts_of(chosen, len(recipe.study.sequences))
    assert recipe.study.phylogeny is not None
    rarefied = unifrac.distances(table, recipe.study.phylogeny)
    full = unifrac.distances(recipe.study.counts[[one.sample for one in chosen]], recipe.study.phylogeny)
    assert np.abs(batch["distances"].numpy() - rarefied).max() < 1e-6
    assert np.abs(batch["distances"].numpy() - full).max() > 1e-3


def test_one_matrix_or_one_product_per_batch_give_the_same() -> None:
    chosen = [Recipe(data_settings=demo()).data("train")[number] for number in (3, 1, 8)]
    by_matrix = Recipe(data_settings=demo(distance_from="matrix")).collate(chosen)["distances"].numpy()
    by_batch = Recipe(data_settings=demo(distance_from="batch")).collate(chosen)["distances"].numpy()
    assert np.abs(by_matrix - by_batch).max() < 1e-6


def test_each_distinct_asv_is_there_once_and_the_most_abundant_are_kept() -> None:
    recipe = Recipe(data_settings=demo())
    chosen = [recipe.data("train")[number] for number in range(16)]
    distinct, rows, reads = examples.distinct_asvs(chosen, 1000)
    assert len(set(distinct.tolist())) == len(distinct) < sum(len(one.asvs) for one in chosen)
    assert rows.shape[1] == max(len(one.asvs) for one in chosen)
    for number, one in enumerate(chosen):
        there = reads[number] > 0
        assert (distinct[rows[number][there]] == one.asvs).all() and (reads[number][there] == one.counts).all()
        assert (np.diff(one.counts) <= 0).all()
    distinct, rows, reads = examples.distinct_asvs(chosen, 5)
    assert rows.shape == (16, 5)
    for number, one in enumerate(chosen):
        assert reads[number].min() == np.sort(one.counts)[-5]


def test_only_letters_are_masked_and_at_least_one_of_each_asv() -> None:
    tokens = np.array([[1, 2, 3, 4, 0, 0], [4, 0, 0, 0, 0, 0], *[[1, 2, 3, 4, 1, 2]] * 500])
    mask = examples.mask_letters(tokens, 0.15, np.random.default_rng(0))
    assert not mask[tokens == 0].any() and mask.any(1).all()
    assert 0.15 < mask[2:].mean() < 0.25


def test_the_mask_of_evaluation_never_changes_and_each_asv_is_scored_once() -> None:
    recipe = Recipe(data_settings=demo())
    chosen = [recipe.data("validation")[number] for number in range(24)]
    masks = []
    for seed, order in [(1, chosen), (2, chosen[::-1])]:
        np.random.seed(seed)
        batch = recipe.collate(order)
        masks.append(
            {tuple(t): tuple(m) for t, m in zip(batch["tokens"].tolist(), batch["mask"].tolist(), strict=True)}
        )
    assert masks[0] == masks[1]
    scored = np.concatenate([one.scored for one in chosen if one.scored is not None])
    assert sorted(scored) == sorted({asv for one in chosen for asv in one.asvs})


def test_masks_of_training_follow_the_seed_and_the_share_of_asvs() -> None:
    from recipes.microbiome.settings import ModelSettings

    recipe = Recipe(data_settings=demo(), model_settings=ModelSettings(masked_asvs=0.5))
    chosen = [recipe.data("train")[number] for number in range(24)]
    masks = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        masks.append(recipe.collate(chosen)["mask"].numpy())
    assert (masks[0] == masks[1]).all() and (masks[0] != masks[2]).any()
    assert 0.2 < masks[0].any(1).mean() < 0.8


@needs_data
def test_the_real_study_is_read_whole() -> None:
    pytest.importorskip("biom")
    settings = DataSettings(
        table=str(REAL / "tiny" / "table.biom"), tree=str(REAL / "tiny" / "tree.nwk"),
        metadata=str(REAL / "tiny" / "metadata.tsv"), target="age", group="study",
    )  # fmt: skip
    study = studies.read_study(settings)
    assert study.counts.shape == (24, 307) and study.notes == ()
    reference = np.load(REAL / "tiny" / "reference_skbio_0.7.4.npz")
    assert study.phylogeny is not None
    order = [study.sample_ids.index(name) for name in reference["ids"]]
    assert np.abs(unifrac.distances(study.counts[order], study.phylogeny) - reference["unweighted"]).max() < 1e-6
