"""Tables as the model reads them: kinds of column, awkward tables, the order of micro-batches, and the scores."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from recipes.tabular import ngram_hashing
from recipes.tabular.column_kinds import kind_of, named_kinds
from recipes.tabular.corpus import read
from recipes.tabular.order import TableOrder
from recipes.tabular.recipe import Recipe
from recipes.tabular.rows import readings
from recipes.tabular.score import auroc, macro_auroc, r2, score
from recipes.tabular.settings import DataSettings, ModelSettings
from recipes.tabular.table import Table, Wording, cells, fit, labels
from runner.errors import ConfigError, DataError
from tests.launching import SHARED

CORPUS = SHARED / "tabular"
RANDOM = np.random.default_rng(0)
WORDS = ["red fox", "blue whale", "green frog", "grey wolf"]


def column(kind: str) -> pd.Series:
    """Forty cells of a kind."""
    made: dict[str, Any] = {
        "numeric": np.random.default_rng(0).normal(size=40),
        "mostly numbers": [*(str(number) for number in range(39)), "SONGFACTS.COM"],
        "boolean": [True, False] * 20,
        "yes": ["yes", "No"] * 20,
        "date": [f"2024-01-{1 + day % 28:02d}" for day in range(40)],
        "stamp": pd.date_range("2024-01-01", periods=40),
        "categorical": ["red", "blue"] * 20,
        "text": [f"{WORDS[place % 4]} number {place}" for place in range(40)],
        "id": [f"A-{10000 + 7 * place}" for place in range(40)],
        "row number": range(40),
        "constant": ["x"] * 40,
        "empty": [None] * 40,
        "one number": [3.0] * 40,
    }
    return pd.Series(made[kind])


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("numeric", "numeric"), ("mostly numbers", "numeric"), ("boolean", "boolean"), ("yes", "boolean"),
        ("date", "date"), ("stamp", "date"), ("categorical", "categorical"), ("text", "text"), ("id", "id"),
        ("row number", "id"), ("constant", "constant"), ("empty", "constant"), ("one number", "constant"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["object", "string", "as it is"])
def test_kinds(made: str, kind: str, dtype: str) -> None:
    series = column(made)
    if dtype != "as it is" and pd.api.types.is_string_dtype(series.dtype):
        series = series.astype(dtype)
    assert kind_of(series) == kind


def frame(rows: int = 40) -> pd.DataFrame:
    """A table of every kind, with a target."""
    made = {name: column(name) for name in ("numeric", "yes", "date", "categorical", "text", "id", "empty")}
    return pd.DataFrame({**made, "target": ["a", "b"] * 20}).iloc[:rows]


def test_a_table_survives_json_and_reads_the_same() -> None:
    table = fit("every", frame(), "target")
    again = Table.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    left, right = cells(table, frame(), Wording()), cells(again, frame(), Wording())
    assert left.texts == right.texts and np.array_equal(left.numbers, right.numbers)


@pytest.mark.parametrize("numbers_as_text", [False, True])
def test_a_cell_never_depends_on_the_other_rows(numbers_as_text: bool) -> None:
    table, wording = fit("every", frame(), "target"), Wording(numbers_as_text=numbers_as_text)
    data = frame()
    data.loc[3, ["numeric", "text"]] = None
    whole = cells(table, data, wording)
    for place in (0, 3, 39):
        alone = cells(table, data.iloc[[place]], wording)
        assert [alone.texts[text] for text in alone.strings[0]] == [whole.texts[text] for text in whole.strings[place]]
        assert np.array_equal(alone.numbers[0], whole.numbers[place])


def test_nothing_is_fitted_on_other_rows() -> None:
    before = fit("t", frame().iloc[:30], "target")
    data = frame()
    data.loc[30:, "numeric"] = 1e9
    assert fit("t", data.iloc[:30], "target") == before
    far = cells(before, data.iloc[30:], Wording()).numbers
    assert far[..., 0].max() == 3 and far[..., 1].max() == 6 and far[..., 3].max() == 1


def test_two_kinds_of_missing_value_are_one() -> None:
    data = pd.DataFrame({"n": ["1", None, "n/a", "4", np.nan, "6.5"] * 10, "target": ["a", "b"] * 30})
    table = fit("t", data, "target", kinds={"n": "numeric"})
    numbers = cells(table, data, Wording()).numbers
    assert numbers[:6, 0, 4].tolist() == [0, 1, 1, 0, 1, 0]
    assert np.array_equal(numbers[1], numbers[2]) and np.array_equal(numbers[1], numbers[4])


def test_unseen_categories_and_classes() -> None:
    table = fit("t", frame(), "target")
    other = frame(2).assign(categorical=["violet", None], target=["c", "a"])
    read_cells = cells(table, other, Wording())
    assert "categorical: violet" in read_cells.texts and "categorical: Unknown Value" in read_cells.texts
    assert labels(table, other).tolist() == [-1, 0]


def test_v1_0_writes_quantiles_into_the_text() -> None:
    data = pd.DataFrame({"n": np.arange(101.0), "target": ["a", "b"] * 50 + ["a"]}).sample(frac=1, random_state=0)
    table = fit("t", data, "target")
    other = pd.DataFrame({"n": [-1, 0, 15, 100, 200, None]})
    own = cells(table, other, Wording("tabstar", numbers_as_text=True))
    said = [own.texts[place].rpartition(": ")[2] for place in own.strings[:, 0]]
    assert said == [
        "Lower than 0 (Quantile 0%)", "0 to 10 (Quantile 0 - 10%)", "10 to 20 (Quantile 10 - 20%)",
        "90 to 100 (Quantile 90 - 100%)", "Higher than 100 (Quantile 100%)", "Unknown Value",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pd.DataFrame({"a": [1.0], "target": ["x"]}), "no column to learn from"),
        (pd.DataFrame({"a": [1.0, 2.0], "target": ["x", "x"]}), "one class"),
        (pd.DataFrame({"a": [None, None], "target": ["x", "y"]}), "no column to learn from"),
        (pd.DataFrame({"a": [1.0, 2.0]}), "no column 'target'"),
        (pd.DataFrame({"a": [1.0, 2.0], "target": [None, None]}), "no training row"),
        (pd.DataFrame([[1, 2, "x"], [1, 3, "y"]], columns=["a", "a", "target"]), "two columns of the name"),
    ],
)
def test_a_table_that_cannot_be_learned_from_says_why(data: pd.DataFrame, said: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    data.to_csv(file, index=False)
    settings = DataSettings(train=str(file), target="target")
    with pytest.raises(DataError, match=said) as raised:
        (source,) = read(settings)
        fit(source.name, source.splits["train"], source.target, source.task)
    assert len(str(raised.value).splitlines()) <= 3


def test_no_target_no_file_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for settings, said in [
        (DataSettings(train=str(tmp_path / "t.csv")), "--data.target"),
        (DataSettings(train=str(tmp_path / "none.csv"), target="b"), "no file"),
        (DataSettings(corpus=str(tmp_path)), "manifest.json"),
    ]:
        with pytest.raises(DataError, match=said):
            read(settings)
    with pytest.raises(ConfigError, match=r"data\.kinds"):
        named_kinds("zip=number")


def test_two_thousand_columns_are_drawn_once() -> None:
    data = pd.DataFrame(RANDOM.normal(size=(50, 2000)), columns=[f"c{place}" for place in range(2000)])
    data["target"] = ["a", "b"] * 25
    first = fit("wide", data, "target", max_features=200)
    assert len(first.columns) == 200
    assert first == fit("wide", data, "target", max_features=200)
    assert first.columns != fit("other", data, "target", max_features=200).columns


@pytest.mark.slow
def test_a_million_rows() -> None:
    rows = 1_000_000
    random = np.random.default_rng(0)
    data = pd.DataFrame({"n": random.normal(size=rows), "c": random.choice(WORDS, rows), "target": random.random(rows)})
    table = fit("large", data, "target")
    own = cells(table, data, Wording())
    assert own.strings.shape == (rows, 2) and len(own.texts) == 5
    assert len(readings(table, own)[0]) == 4 + 20


def test_the_grams_of_a_cell() -> None:
    found = ngram_hashing.grams("name", "Mrs. Fox")
    assert {"w mrs", "p mrs .", "<fox>", "<mrs", "name\0w fox", "name\0=Mrs. Fox"} <= set(found)
    assert len(set(found)) == len(found)
    assert ngram_hashing.number_grams("age", 19) == ["age\0004 3", "age\00010 9", "age\00020 19"]
    assert ngram_hashing.number_grams("age", ngram_hashing.MISSING) == ["age\0missing"]
    assert np.array_equal(ngram_hashing.code("target a"), ngram_hashing.code("target a"))
    assert not np.array_equal(ngram_hashing.code("target a"), ngram_hashing.code("target b"))


def test_grams_that_are_rare_in_the_training_rows_are_not_read(tmp_path: Path) -> None:
    table = fit("t", frame(), "target")
    sets, reads = readings(table, cells(table, frame(), Wording()))
    assert [sets[place][0] for place in reads[7]] == [column.name for column in table.used]
    by_column = dict(sets[place] for place in reads[7])
    assert by_column["text"] == "grey wolf number 7" and 0 <= by_column["numeric"] < 20
    count = 4096
    own = [ngram_hashing.buckets(*each, count) for each in sets]
    kept = ngram_hashing.frequent(own, np.bincount(reads.ravel()), count)
    assert kept[zlib.crc32(b"text\0w wolf") % count]
    assert not kept[zlib.crc32(b"text\0=grey wolf number 7") % count]
    ngram_hashing.write(tmp_path / "grams.bin", kept)
    assert np.array_equal(ngram_hashing.read(tmp_path / "grams.bin"), kept)


# Order ------------------------------------------------------------------------------------------------


def test_a_lane_holds_rows_of_one_table_and_an_epoch_takes_each_row_once() -> None:
    sizes = (50, 7, 33)
    order = TableOrder(sizes, batch_size=16, micro_batch_size=8, seed=1)
    starts = np.cumsum([0, *sizes])
    lanes = [order.indices(step, lane) for step in range(7) for lane in range(2)][: 7 + 1 + 5]
    for lane in lanes:
        assert 1 <= len(lane) <= 8
        assert len(set(np.searchsorted(starts, lane, side="right").tolist())) == 1
    assert sorted(index for lane in lanes for index in lane) == list(range(90))
    tables = [int(np.searchsorted(starts, lane[0], side="right")) for lane in lanes]
    assert tables != sorted(tables)


def test_the_order_is_a_function_of_step_and_lane_and_seed() -> None:
    one, two = (TableOrder((50, 7, 33), 16, 8, seed=1) for _ in range(2))
    asked = [(9, 1), (0, 0), (30, 1), (9, 1)]
    assert [one.indices(*place) for place in asked] == [two.indices(*place) for place in reversed(asked)][::-1]
    other = TableOrder((50, 7, 33), 16, 8, seed=2)
    assert [other.indices(*place) for place in asked] != [one.indices(*place) for place in asked]


def test_a_large_table_goes_on_where_it_stopped() -> None:
    order = TableOrder((100,), batch_size=10, micro_batch_size=10, seed=0, most_rows=30)
    assert order.examples_per_epoch == 30
    taken = [index for step in range(10) for index in order.indices(step, 0)]
    # Three epochs of thirty and ten rows of the fourth, shuffled within an epoch's own thirty.
    assert len(set(taken[:90])) == 90


# Scores -----------------------------------------------------------------------------------------------


def test_scores_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth, said = random.integers(3, size=200), random.dirichlet([1, 1, 1], 200).round(1)
    said = said / said.sum(1, keepdims=True)
    assert macro_auroc(truth, said) == pytest.approx(roc_auc_score(truth, said, multi_class="ovr"))
    assert auroc(truth == 1, said[:, 1]) == pytest.approx(roc_auc_score(truth == 1, said[:, 1]))
    numbers = random.normal(size=(2, 100))
    assert r2(numbers[0], numbers[1]) == pytest.approx(r2_score(numbers[0], numbers[1]))


def test_the_score_is_the_mean_over_tables() -> None:
    rows = [{"table": "c", "probabilities": [1 - p, p], "target": t} for p, t in ((0.1, 0), (0.4, 1), (0.3, 0))]
    rows += [{"table": "n", "predicted": p, "target": t} for p, t in ((1.0, 1.0), (2.0, 3.0), (3.0, 5.0))]
    # A class that training had not, and a missing number, do not count.
    rows += [{"table": "c", "probabilities": [0.5, 0.5], "target": None}]
    found = score(rows)
    assert found["auroc/c"] == 1 and found["r2/n"] == pytest.approx(1 - 5 / 8)
    assert found["score"] == pytest.approx((1 + 3 / 8) / 2)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared tables are not here")
def test_the_shared_corpus_keeps_its_fixed_test_rows() -> None:
    sources = read(DataSettings(corpus=str(CORPUS), tables="penguins,classic_rock_plays"))
    assert [source.name for source in sources] == ["penguins", "classic_rock_plays"]
    for source in sources:
        held = json.loads((CORPUS / "splits_seed0_test_indices.json").read_text())[source.name]
        whole = pd.read_csv(CORPUS / f"{source.name}.csv")
        assert source.splits["test"].equals(whole.iloc[sorted(held)].reset_index(drop=True))
        assert sum(len(part) for part in source.splits.values()) == len(whole)
        fit(source.name, source.splits["train"], source.target, source.task)


# Settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (
            {},
            {"adapt", "lora.rank", "model.gram_dropout", "data.target", "data.test", "data.tables",
             "data.exclude_tables"},
        ),
        (
            {"data_settings": DataSettings(train="x.csv", target="y")},
            {"adapt", "lora.rank", "model.gram_dropout", "data.tables", "data.exclude_tables", "data.demo_rows"},
        ),
        (
            {"stage": "finetune", "adapt": "frozen_text", "data_settings": DataSettings(corpus="x")},
            {"lora.rank", "model.unfrozen_layers", "model.gram_dropout", "data.target", "data.test", "data.demo_rows"},
        ),
        (
            {"stage": "finetune", "model_settings": ModelSettings(text_encoder="x", gram_buckets=0)},
            {"model.text_layers", "model.vocab_size", "model.gram_dropout", "data.target", "data.test", "data.tables",
             "data.exclude_tables"},
        ),
    ],
)  # fmt: skip
def test_settings_without_effect_are_named(settings: dict[str, Any], names: set[str]) -> None:
    every = frozenset({
        "adapt", "lora.rank", "model.unfrozen_layers", "model.text_layers", "model.vocab_size", "model.gram_dropout",
        "data.target", "data.test", "data.tables", "data.exclude_tables", "data.demo_rows", "data.kinds",
    })  # fmt: skip
    recipe = Recipe(**settings)
    assert {line.split()[0] for line in recipe.setting_notes(every)} == names
    assert recipe.setting_notes(frozenset()) == []


def test_tables_of_a_run_that_did_not_know_the_newest_settings_are_still_read(tmp_path: Path) -> None:
    recipe = Recipe(data_settings=DataSettings(demo_rows=40)).prepare(tmp_path)
    content = json.loads((tmp_path / "tables.json").read_text())
    del content["settings"]["missing_values"]
    for table in content["tables"]:
        for column in table["columns"]:
            del column["truth"]
    (tmp_path / "tables.json").write_text(json.dumps(content))
    before = (tmp_path / "tables.json").read_bytes()
    assert [table.name for table in recipe.prepare(tmp_path).tables] == ["reviews", "repairs", "prices"]
    assert (tmp_path / "tables.json").read_bytes() == before
    Recipe(data_settings=DataSettings(demo_rows=40, missing_values="scrapped")).prepare(tmp_path)
    assert (tmp_path / "tables.json").read_bytes() != before
