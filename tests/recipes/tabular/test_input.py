"""Awkward input by the real command: each works and says what it made of it, or is refused in three lines."""

import contextlib
import dataclasses
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recipes.tabular import number_formats
from recipes.tabular.column_kinds import as_dates, as_numbers, as_text, kind_of, named_kinds
from recipes.tabular.corpus import read
from recipes.tabular.files import read_frame
from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings
from recipes.tabular.table import Wording, cells, describe, fit, target_form, target_task
from runner.__main__ import main
from runner.errors import ConfigError, DataError
from tests.recipes.tabular.test_training import SMALL

ROWS = 60


def own_table(**columns: Any) -> pd.DataFrame:
    """Sixty rows with a number, a category and a target of two classes."""
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": random.integers(20, 80, ROWS),
            "colour": random.choice(["red", "blue", "green"], ROWS),
            **columns,
            "y": random.choice(["no", "yes"], ROWS),
        }
    )


def train(folder: Path, *words: str, status: int = 0) -> str:
    """What a training of two steps says; refused, at most three lines."""
    arguments = ("train", *SMALL, "--max_steps", "2", "--output_dir", str(folder / "run"), *words)
    return said_by(*arguments, status=status)


def said_by(*arguments: str, status: int = 0) -> str:
    """Run a verb in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as wrong:
        ended = main(list(arguments))
    said = out.getvalue() + wrong.getvalue()
    assert ended == status, said
    assert "Traceback" not in said
    if status:
        assert len(said[said.index("error: ") :].strip().splitlines()) <= 3, said
    return said


# Stages ------------------------------------------------------------------------------------------------


def test_adapters_need_a_trained_model(tmp_path: Path) -> None:
    own_table().to_csv(tmp_path / "own.csv", index=False)
    words = ("--data.train", str(tmp_path / "own.csv"), "--data.target", "y")
    for adapt in ("lora", "full", "frozen_text"):
        said = train(tmp_path, *words, "--stage", "finetune", "--adapt", adapt, status=2)
        assert "--init_from RUN/checkpoint-latest" in said and "leave out --stage finetune" in said
    assert not list((tmp_path / "run").glob("checkpoint*"))
    train(tmp_path, *words)
    adapted = ("--stage", "finetune", "--init_from", str(tmp_path / "run"), "--output_dir", str(tmp_path / "adapted"))
    # Another vocabulary than a new one would be: a dry run, too, takes that of the trained model.
    own_table(word=[f"word{place % 9} more" for place in range(ROWS)]).to_csv(tmp_path / "own.csv", index=False)
    assert "dry run: one step" in train(tmp_path, *words, *adapted, "--dry_run", "True")
    train(tmp_path, *words, *adapted)
    # Going on needs no other weights than the checkpoint's, nor does using it.
    again = [word for word in adapted if word not in ("--init_from", str(tmp_path / "run"))]
    said = train(tmp_path, *words, *again, "--resume_from_checkpoint", "auto", "--max_steps", "3")
    assert "going on from" in said
    said_by("evaluate", "--checkpoint", str(tmp_path / "adapted"), "--mixed_precision", "no")


def test_adapters_on_a_given_encoder_alone_are_told_what_is_random(tmp_path: Path) -> None:
    from tests.recipes.tabular.test_model import pretrained_folder

    own_table().to_csv(tmp_path / "own.csv", index=False)
    said = train(
        tmp_path, "--data.train", str(tmp_path / "own.csv"), "--data.target", "y", "--stage", "finetune",
        "--model.text_encoder", str(pretrained_folder(tmp_path / "bert")),
    )  # fmt: skip
    assert "warning: stage finetune without --init_from: only the text encoder" in said


# Numbers and dates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "form", "values"),
    [
        (["3,5", "10,25", "7"], "decimal_comma", [3.5, 10.25, 7]),
        (["1.234,56", "7,5", "2.345"], "decimal_comma", [1234.56, 7.5, 2345]),
        (["1,234.56", "7.5", "2,345"], "decimal_point", [1234.56, 7.5, 2345]),
        (["1,234", "12,345,678", "9"], "decimal_point", [1234, 12345678, 9]),
        (["1,234", "9,5"], "decimal_comma", [1.234, 9.5]),
        (["1.234.567", "2.345", "8"], "decimal_comma", [1234567, 2345, 8]),
        (["1 234,5", "2 345", "8,0"], "decimal_comma", [1234.5, 2345, 8]),
        (["1'234.5", "2'345", "8.0"], "decimal_point", [1234.5, 2345, 8]),
        (["0,125", "0,250", "x"], "decimal_comma", [0.125, 0.25, np.nan]),
        (["-3,5e2", "+1,5", "1e400"], "decimal_comma", [-350, 1.5, np.nan]),
        (["1,23,456", "12,34,567.5", "7.5"], "decimal_point", [123456, 1234567.5, 7.5]),
        (["1.234.567", "3,5"], "decimal_comma", [1234567, 3.5]),
        (["12 345", "6\u202f789", "1\xa0234\xa0567"], "", [12345, 6789, 1234567]),
        (["12 345", "7.5"], "decimal_point", [12345, 7.5]),
        (["1.2.3", "1,2,3", "1.5,2.5"], "", [np.nan] * 3),
    ],
)
def test_the_decimal_mark_of_a_column(cells: list[str], form: Any, values: list[float]) -> None:
    series = pd.Series(cells)
    found = number_formats.decided(number_formats.number_evidence(cells), number_formats.Evidence(), "numeric")
    assert found == (form, "")
    assert as_numbers(series, form).tolist() == pytest.approx(values, nan_ok=True)


def test_a_column_that_can_be_read_in_two_ways_follows_the_others_or_is_told() -> None:
    base = {"y": ["a", "b"] * 20, "both": ["1,234", "2,500"] * 20}
    alone = fit("t", pd.DataFrame(base), "y")
    assert alone.columns[0].mean == (1234 + 2500) / 2
    assert (
        "warning: 1,234 of both was taken for 1234; if that is wrong, type --data.kinds both=decimal_comma"
        in describe(alone)
    )
    beside = fit("t", pd.DataFrame({**base, "sure": ["3,5", "4,5"] * 20}), "y")
    both = next(column for column in beside.columns if column.source == "both")
    assert both.mean == pytest.approx((1.234 + 2.5) / 2)
    assert "decimal comma in both, sure" in describe(beside)
    # One column of lists ("1,2") among others would decide for all: told, as well.
    assert (
        "warning: 1,234 of both was taken for 1.234, as the other columns are written; if that is wrong, type "
        "--data.kinds both=decimal_point" in describe(beside)
    )
    grouped = describe(
        fit("t", pd.DataFrame({**base, "both": ["1.234"] * 20 + ["2.5"] * 20, "sure": ["3,5", "4,5"] * 20}), "y")
    )
    assert "warning" not in grouped and "decimal comma in sure" in grouped
    grouped = describe(
        fit("t", pd.DataFrame({**base, "both": ["1.234", "2.500"] * 20, "sure": ["3,5", "4,5"] * 20}), "y")
    )
    assert "warning: 1.234 of both was taken for 1234, as the other columns are written; if that is wrong" in grouped
    told = fit("t", pd.DataFrame(base), "y", kinds={"both": "decimal_comma"})
    assert told.columns[0].mean == both.mean and "warning" not in describe(told)
    # What was decided in training is kept: a later row that stands alone is read the same.
    later = cells(beside, pd.DataFrame({"both": ["1,234"], "sure": ["3.5"]}), Wording()).numbers[0]
    assert np.array_equal(later, cells(beside, pd.DataFrame({"both": [1.234], "sure": [3.5]}), Wording()).numbers[0])


@pytest.mark.parametrize(
    ("cells", "form", "days"),
    [
        (["31.12.2024", "01.02.2024"], "day_first", ["2024-12-31", "2024-02-01"]),
        (["31/12/2024", "01/02/2024"], "day_first", ["2024-12-31", "2024-02-01"]),
        (["12/31/2024", "01/02/2024"], "month_first", ["2024-12-31", "2024-01-02"]),
        (["31.12.24", "01.02.99"], "day_first", ["2024-12-31", "1999-02-01"]),
        (["2024-12", "2023-01"], "", ["2024-12-01", "2023-01-01"]),
        (["2024/12/31", "2024.1.2"], "", ["2024-12-31", "2024-01-02"]),
        (["Mar 2024", "December 2023"], "", ["2024-03-01", "2023-12-01"]),
        (["5 March 2024", "Mar 6, 2024"], "", ["2024-03-05", "2024-03-06"]),
        (["05-Mar-24", "Sat, 09 Mar 2024"], "", ["2024-03-05", "2024-03-09"]),
        (["03/2024", "12/1999"], "", ["2024-03-01", "1999-12-01"]),
        (["12/31/2024 3:45 PM", "1/2/2024 12:00 AM"], "month_first", ["2024-12-31 15:45", "2024-01-02"]),
    ],
)  # fmt: skip
def test_dates_as_people_write_them(cells: list[str], form: Any, days: list[str]) -> None:
    assert kind_of(pd.Series(cells * 10)) == "date"
    found = number_formats.decided(number_formats.date_evidence(cells), number_formats.Evidence(), "date")
    assert found == (form, "")
    assert as_dates(pd.Series(cells), form).tolist() == [pd.Timestamp(day, tz="UTC") for day in days]


def test_dates_in_iso_with_half_days() -> None:
    cells = ["2024-01-05 3:05 PM", "2024/01/06 12:30 am", "2024-1-7 15:00"]
    assert kind_of(pd.Series(cells * 10)) == "date"
    found = [pd.Timestamp(day, tz="UTC") for day in ("2024-01-05 15:05", "2024-01-06 00:30", "2024-01-07 15:00")]
    assert as_dates(pd.Series(cells)).tolist() == found


def test_a_column_of_which_no_cell_can_be_read_is_no_constant() -> None:
    data = pd.DataFrame({"when": ["2024-02-30", "2024-02-31", "2023-04-31", None] * 10, "y": ["a", "b"] * 20})
    assert kind_of(data["when"]) == "date"
    assert [(column.source, column.kind) for column in fit("t", data, "y").columns] == [("when", "categorical")]


def test_what_is_no_date() -> None:
    for words in (["January", "May"], ["1.2.3", "1.10.2"], ["1998-99", "2001-02"], ["3/4", "1/2"], ["32.01.2024", "x"]):
        assert kind_of(pd.Series(words * 10)) == "categorical", words
    assert as_dates(pd.Series(["31.02.2024", "13/13/2024", "1/2/3"])).isna().all()


@pytest.mark.parametrize(
    "words",
    [
        [f"192.168.100.{200 + place}" for place in range(12)],
        [f"555.123.{456 + place}" for place in range(12)],
        ["10.11.12", "10.11.11", "09.02.30"],
        ["24-01-05", "24-01-06", "23-12-31"],
        ["2001/02", "2002/03", "2003/04"],
        ["1/1000", "2/1000", "5/1000"],
    ],
)
def test_addresses_versions_seasons_and_shares_are_neither_numbers_nor_dates(words: list[str]) -> None:
    series = pd.Series(words * 10)
    assert kind_of(series) == "categorical"
    assert target_task(series.iloc[:20], target_form(series, None)) == "classification"


def test_months_and_short_dates_are_still_dates() -> None:
    for words in (["2001/02", "2002/05"], ["2001-02", "2001-03"], ["24.01.05", "10.11.12"], ["01/2001", "05/1999"]):
        assert kind_of(pd.Series(words * 10)) == "date", words
    data = pd.DataFrame({"when": ["05-01-24", "06-02-24"] * 20, "y": ["a", "b"] * 20})
    assert fit("t", data, "y").columns[0].kind == "categorical"
    assert fit("t", data, "y", kinds={"when": "day_first"}).columns[0].kind == "date"


def test_dates_that_can_be_read_in_two_ways_are_told() -> None:
    data = pd.DataFrame({"y": ["a", "b"] * 20, "when": ["03/04/2024", "05/06/2023"] * 20})
    said = describe(fit("t", data, "y"))
    assert (
        "warning: 03/04/2024 of when was taken for 2024-03-04; if that is wrong, type --data.kinds when=day_first"
        in said
    )
    beside = describe(fit("t", data.assign(other=["31/01/2024", "01/02/2024"] * 20), "y"))
    assert "warning: 03/04/2024 of when was taken for 2024-04-03, as the other columns are written; if" in beside
    mixed = data.assign(when=["31/12/2024", "12/31/2024", "30/12/2024", "29/12/2024"] * 10)
    assert (
        "warning: 1 of the different cells of when can only be month_first; what can be both was taken for day_first"
        in describe(fit("t", mixed, "y"))
    )


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["53,547", "12,34", "64,001"], "53,547 of n was taken for 53.547, by 1 of its different cells; if that"),
        (["1.234", "3,5", "2.345"], "1.234 of n was taken for 1234, by 1 of its different cells; if that"),
        (["53,547", "12.34", "64,001"], "53,547 of n was taken for 53547, by 1 of its different cells; if that"),
        (["1.234", "3.5", "2.345", "x"], ""),
        (["03/04/2024", "31/12/2024", "05/06/2024"], "03/04/2024 of n was taken for 2024-04-03, by 1 of its"),
    ],
)
def test_few_cells_that_decide_for_many_are_told(cells: list[str], said: str) -> None:
    kind = "date" if "/" in cells[0] else "numeric"
    evidence = number_formats.date_evidence(cells) if kind == "date" else number_formats.number_evidence(cells)
    assert number_formats.decided(evidence, number_formats.Evidence(), kind, "n")[1].startswith(
        said or "nothing"
    ) == bool(said)


def test_the_advised_command_works_for_a_name_with_a_comma() -> None:
    assert named_kinds("amount, total=decimal_comma, zip=text") == {"amount, total": "decimal_comma", "zip": "text"}
    for words in ("zip", "zip=text,other", "zip=word,other=text", "=text"):
        with pytest.raises(ConfigError, match="data.kinds holds"):
            named_kinds(words)


def test_a_european_file_by_the_command(tmp_path: Path) -> None:
    prices = [f"{1000 + 37 * place:,}".replace(",", ".") + ",5" for place in range(ROWS)]
    thousands = [f"{1000 + 37 * place:,}".replace(",", ".") for place in range(ROWS)]
    days = [f"{1 + place % 28:02d}.{1 + place % 12:02d}.2024" for place in range(ROWS)]
    frame = own_table(price=prices, sold=thousands, day=days)
    frame["y"] = [f"{place},5" for place in range(ROWS)]
    frame.to_csv(tmp_path / "own.csv", index=False, sep=";", encoding="utf-8")
    frame.iloc[:1].drop(columns="y").to_csv(tmp_path / "later.csv", index=False, sep=";")
    said = train(tmp_path, "--data.train", str(tmp_path / "own.csv"), "--data.target", "y")
    assert "'y' is a number; numeric age, price, sold; date day" in said
    assert "; day first in day; decimal comma in price, sold, y" in said
    assert [line[:45] for line in said.splitlines() if "was taken for" in line] == [
        "warning: 1.000 of sold was taken for 1000, as"
    ]
    fitted = json.loads((tmp_path / "run" / "final" / "tables.json").read_text())["tables"][0]
    means = {column["name"]: column["mean"] for column in fitted["columns"]}
    assert 1000 < means["sold"] < 3200 and means["price"] == pytest.approx(means["sold"] + 0.5, abs=1e-6)
    assert 20 < fitted["mean"] < 40
    # Of the later file's one row, nothing says that 1.000 is a thousand: the training does.
    for name, output in (("later.csv", "one.csv"), ("own.csv", "all.csv")):
        said_by(
            "predict", "--checkpoint", str(tmp_path / "run"), "--input", str(tmp_path / name),
            "--output", str(tmp_path / output),
        )  # fmt: skip
    one, many = (pd.read_csv(tmp_path / name)["prediction"][0] for name in ("one.csv", "all.csv"))
    assert one == pytest.approx(many, abs=1e-5)


# Files -------------------------------------------------------------------------------------------------

CSV = own_table().to_csv(index=False)


@pytest.mark.parametrize(
    ("name", "content", "noted"),
    [
        ("latin.csv", CSV.replace("red", "größe").encode("latin-1"), "Windows-1252 (Latin-1), with 'größe' in it"),
        ("kanji.csv", CSV.replace("red", "表示データ").encode("shift-jis"), "cp932, with '表示データ' in it"),
        ("sixteen.csv", CSV.encode("utf-16"), ""),
        ("markless.csv", CSV.encode("utf-16-le"), ""),
        ("mark.csv", ("\ufeff" + CSV).encode(), ""),
        ("semicolons.csv", CSV.replace(",", ";").encode(), ""),
        ("excel.csv", ("sep=;\n" + CSV.replace(",", ";")).encode(), ""),
        ("bars.txt", CSV.replace(",", "|").encode(), ""),
        ("tabs.csv", CSV.replace(",", "\t").encode(), ""),
        ("blanks.csv", CSV.replace("age,colour,y", " age , colour, y ").replace(",", ", ").encode(), ""),
        ("trailing.csv", CSV.replace("\n", ",\n").replace("y,\n", "y\n").encode(), ""),
        ("quoted.csv", CSV.replace("red", '"re\nd"').replace("colour", '"colour"').encode(), ""),
        ("old mac.csv", CSV.replace("\n", "\r").encode(), ""),
        ("small.csv.gz", gzip.compress(CSV.encode()), ""),
        ("COPY.CSV", CSV.encode(), ""),
    ],
)
def test_files_that_are_read(name: str, content: bytes, noted: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    frame = read_frame(tmp_path / name)
    assert list(frame.columns) == ["age", "colour", "y"] and len(frame) == ROWS
    assert frame["age"].tolist() == own_table()["age"].tolist()
    assert set(as_text(frame["colour"])) <= {"red", "re d", "größe", "表示データ", "blue", "green"}
    assert noted in "".join(frame.attrs["notes"]) and bool(noted) == bool(frame.attrs["notes"])


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("table.json", b"[]", "unknown ending .json; wanted: .csv"),
        ("table", CSV.encode(), "has no ending; wanted: .csv"),
        ("two.csv", (CSV.replace("red", "größe") + CSV).encode() + "1,größe,no\n".encode("cp1252"), "two encodings"),
        ("noise.csv", bytes(range(256)) * 8, "binary, no text"),
        ("parquet.csv", b"PAR1" + bytes(40), "is a parquet file"),
        ("book.csv", b"PK\x03\x04" + bytes(40), "an Excel workbook"),
        ("page.csv", b"<!DOCTYPE html>", "a web page"),
        ("pointer.csv", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("empty.csv", b"", "is empty"),
        ("blank.csv", b"\n \n", "is empty"),
        ("header.csv", b"age,colour,y\n", "a header (age, colour, y) and no rows"),
        ("twice.csv", b"age,age,y\n1,2,a\n", "two columns of the name 'age'"),
        ("blank twice.csv", b"age, age,y\n1,2,a\n", "two columns of the name 'age'"),
        ("ragged.csv", CSV.encode() + b"1,2,3,4\n", "cells that hold the separator need quotes"),
        ("row names.csv", b"age,y\nr1,1,a\nr2,2,b\n", "2 column names, and 3 cells in a row"),
        ("broken.csv.gz", b"\x1f\x8b123", "cannot be read as a table"),
        ("broken.xlsx", b"nothing", "cannot be read as a workbook"),
        ("broken.csv.zst", b"nothing", "cannot be read as a table"),
    ],
)
def test_files_that_are_refused(name: str, content: bytes, wanted: str, tmp_path: Path) -> None:
    if name.endswith(".xlsx"):
        pytest.importorskip("openpyxl")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_frame(tmp_path / name)
    assert wanted in str(caught.value) and len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("first", ["1", "5"])
def test_a_separator_behind_the_last_cell_shifts_no_column(first: str, tmp_path: Path) -> None:
    # pandas takes equally stepped numbers in front for an index of its own kind.
    rows = "".join(f"{int(first) + place},{place % 2},{place}.5,{place},\n" for place in range(9))
    (tmp_path / "own.csv").write_text("id,y,z,w\n" + rows)
    frame = read_frame(tmp_path / "own.csv")
    assert list(frame.columns) == ["id", "y", "z", "w"]
    assert frame["id"].tolist() == [int(first) + place for place in range(9)]
    assert frame["z"].tolist() == [place + 0.5 for place in range(9)]
    (tmp_path / "named.csv").write_text("y,z,w\n" + rows.replace(",\n", "\n"))
    with pytest.raises(DataError, match="3 column names, and 4 cells in a row"):
        read_frame(tmp_path / "named.csv")
    (tmp_path / "two.csv").write_text("y,z\n" + rows.replace(",\n", "\n"))
    with pytest.raises(DataError, match="2 column names, and 4 cells in a row"):
        read_frame(tmp_path / "two.csv")


def test_a_separator_behind_the_last_cell_beside_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "own.tsv").write_text("a\tb\tc\n" + "1,5\t1.234\t2.75\t\n2,5\t2.345\t3.75\t\n" * 20)
    frame = read_frame(tmp_path / "own.tsv")
    assert frame["b"].tolist() == ["1.234", "2.345"] * 20 and frame["c"].tolist() == ["2.75", "3.75"] * 20
    (tmp_path / "own.csv").write_text("a;b;c\n" + "1,5;2;3;\n2,5;4;6;\n" * 20)
    frame = read_frame(tmp_path / "own.csv")
    assert list(frame.columns) == ["a", "b", "c"] and frame["c"].tolist() == [3, 6] * 20


def test_a_workbook_is_read_where_its_package_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    pytest.importorskip("openpyxl")
    file = tmp_path / "book.xlsx"
    with pd.ExcelWriter(file) as book:
        own_table().to_excel(book, sheet_name="claims", index=False)
        own_table().to_excel(book, sheet_name="notes", index=False)
    said = train(tmp_path, "--data.train", str(file), "--data.target", "y")
    assert "numeric age; categorical colour" in said and "the first of its 2 sheets was read, claims" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install openpyxl"):
        read_frame(file)


# Targets and columns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ([f"2024-{1 + place % 12:02d}-{1 + place % 28:02d}" for place in range(ROWS)], "is dates, such as"),
        ([f"{1 + place % 28}.{1 + place % 12}.2024" for place in range(ROWS)], "is dates, such as"),
        (list(range(1, ROWS + 1)), "row numbers or ids"),
        ([f"A-{7 * place}" for place in range(ROWS)], "60 classes, 60 of one row each"),
        ([f"a remark of {place} words " * 9 for place in range(ROWS)], "of one row each, such as 'a remark of"),
        ([str(place) if place % 9 else "unknown" for place in range(ROWS)], "--data.task regression to take it"),
    ],
)
def test_targets_that_nobody_means(cells: list[Any], wanted: str, tmp_path: Path) -> None:
    own_table().assign(y=cells).to_csv(tmp_path / "own.csv", index=False)
    settings = DataSettings(train=str(tmp_path / "own.csv"), target="y")
    with pytest.raises(DataError) as caught:
        read(settings)
    message = str(caught.value)
    assert wanted in message and "--data.t" in message and len(message.splitlines()) <= 3
    assert all(len(line) < 220 for line in message.splitlines())
    (insisted,) = read(dataclasses.replace(settings, task="classification"))
    assert insisted.task == "classification"


def test_the_commands_say_what_was_left_out(tmp_path: Path) -> None:
    data = own_table(number=[f"{place}" for place in range(ROWS)])
    data["y"] = ["none" if place % 9 == 0 else str(place * place) for place in range(ROWS)]
    data.loc[5, "y"] = "about 7"
    data.to_csv(tmp_path / "own.csv", index=False)
    words = ("--data.train", str(tmp_path / "own.csv"), "--data.target", "y")
    said = train(tmp_path, *words, "--data.task", "regression")
    assert "note: own: 8 of 60 rows are left out, without a number as target, such as 'about 7'" in said
    # The row number, of which the validation has taken every tenth row.
    assert "id number" in said
    data.drop(columns="y").to_csv(tmp_path / "test.csv", index=False)
    again = (
        "--data.task",
        "regression",
        "--data.test",
        str(tmp_path / "test.csv"),
        "--output_dir",
        str(tmp_path / "2"),
    )
    assert "relay predict --input" in train(tmp_path, *words, *again, status=2)


def test_test_rows_that_cannot_be_scored_are_counted(tmp_path: Path) -> None:
    own_table().to_csv(tmp_path / "own.csv", index=False)
    own_table().assign(y=["no"] * 50 + ["perhaps"] * 9 + [None]).to_csv(tmp_path / "test.csv", index=False)
    settings = DataSettings(train=str(tmp_path / "own.csv"), target="y", test=str(tmp_path / "test.csv"))
    (source,) = read(settings)
    assert source.notes == (
        "own: 10 of 60 test rows are not scored: their target is missing, or a class that training has not",
    )


def test_booleans_with_blanks_are_read_in_the_test_as_in_training(tmp_path: Path) -> None:
    answers = ["TRUE", "FALSE", None] * (ROWS // 3)
    own_table(known=answers).assign(y=answers).to_csv(tmp_path / "own.csv", index=False)
    settings = DataSettings(train=str(tmp_path / "own.csv"), target="y", test=str(tmp_path / "own.csv"))
    (source,) = read(settings)
    assert [note for note in source.notes if "not scored" in note] == [
        "own: 20 of 60 test rows are not scored: their target is missing, or a class that training has not"
    ]
    assert set(as_text(source.splits["test"]["known"]).dropna()) == {"True", "False"}


def test_a_later_file_is_read_as_the_training_was(tmp_path: Path) -> None:
    half = ROWS // 2
    frame = own_table(
        zip=["01234", "K1A"] * half, sure=["TRUE", "MAYBE"] * half, flag=["TRUE", "FALSE"] * half,
        ward=[7, 8] * half,
    ).assign(y=["01", "x"] * half)  # fmt: skip
    frame.to_csv(tmp_path / "own.csv", index=False)
    frame.iloc[::2].to_csv(tmp_path / "later.csv", index=False)
    train(tmp_path, "--data.train", str(tmp_path / "own.csv"), "--data.target", "y", "--data.kinds", "ward=categorical")
    for name, output in (("later.csv", "some.csv"), ("own.csv", "all.csv")):
        said = said_by(
            "predict", "--checkpoint", str(tmp_path / "run"), "--input", str(tmp_path / name),
            "--output", str(tmp_path / output),
        )  # fmt: skip
        assert "accuracy" in said
    some, many = (pd.read_csv(tmp_path / name, dtype=str) for name in ("some.csv", "all.csv"))
    assert set(some["zip"]) == {"01234"} and set(some["sure"]) == {"TRUE"}
    several = pd.to_numeric(some["probability x"]).tolist()
    assert several == pytest.approx(pd.to_numeric(many["probability x"][::2]).tolist(), abs=1e-5)


def test_a_kind_is_given_to_the_table_that_has_the_column(tmp_path: Path) -> None:
    for name, column in (("one", "price"), ("two", "cost")):
        own_table(**{column: ["1,234", "2,500"] * (ROWS // 2)}).to_csv(tmp_path / f"{name}.csv", index=False)
    entries = [{"name": name, "file": f"{name}.csv", "target": "y"} for name in ("one", "two")]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    data = DataSettings(corpus=str(tmp_path), kinds="cost=decimal_comma")
    one, two = Recipe(data_settings=data).tables
    assert [c.mean > 1000 for table in (one, two) for c in table.columns if c.source in ("price", "cost")] == [
        True,
        False,
    ]
    with pytest.raises(DataError, match="which no table has"):
        _ = Recipe(data_settings=dataclasses.replace(data, kinds="sum=decimal_comma")).tables


def test_a_header_as_long_as_it_likes_and_a_parquet_with_an_index(tmp_path: Path) -> None:
    wide = pd.DataFrame(np.arange(40000.0).reshape(2, 20000), columns=[f"column {place}" for place in range(20000)])
    wide.to_csv(tmp_path / "wide.csv", sep=";", index=False)
    assert read_frame(tmp_path / "wide.csv").shape == (2, 20000)
    own_table().set_index("colour").to_parquet(tmp_path / "indexed.parquet")
    assert read_frame(tmp_path / "indexed.parquet").columns.tolist() == ["colour", "age", "y"]
    own_table().iloc[::2].to_parquet(tmp_path / "gaps.parquet")
    assert read_frame(tmp_path / "gaps.parquet").columns.tolist() == ["age", "colour", "y"]
    (tmp_path / "no header.csv").write_text(
        CSV.partition("\n")[2].replace("blue", "7").replace("red", "8").replace("green", "9")
    )
    with pytest.raises(DataError, match="write a line with the columns' names above it"):
        read(DataSettings(train=str(tmp_path / "no header.csv"), target="y"))


def test_rows_without_a_column_of_the_training() -> None:
    table = fit("t", own_table(), "y")
    with pytest.raises(DataError, match="no column age(.|\\n)*or add it, empty"):
        cells(table, own_table().drop(columns="age"), Wording())


def test_a_files_own_prediction_is_kept(tmp_path: Path) -> None:
    own_table(prediction=["u", "v"] * (ROWS // 2)).to_csv(tmp_path / "own.csv", index=False)
    train(tmp_path, "--data.train", str(tmp_path / "own.csv"), "--data.target", "y")
    said = said_by(
        "predict", "--checkpoint", str(tmp_path / "run"), "--input", str(tmp_path / "own.csv"),
        "--output", str(tmp_path / "out.csv"),
    )  # fmt: skip
    assert "the columns added end with (new)" in said
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["prediction"].tolist() == ["u", "v"] * (ROWS // 2)
    assert set(found["prediction (new)"]) <= {"no", "yes"} and "probability yes (new)" in found
    said_by(
        "predict", "--checkpoint", str(tmp_path / "run"), "--input", str(tmp_path / "out.csv"),
        "--output", str(tmp_path / "third.csv"),
    )  # fmt: skip
    third = pd.read_csv(tmp_path / "third.csv")
    assert third[found.columns].equals(found) and "prediction (new 2)" in third
    for name, status in (("out.pdf", 2), ("out.tsv", 0)):
        said_by(
            "predict", "--checkpoint", str(tmp_path / "run"), "--input", str(tmp_path / "own.csv"),
            "--output", str(tmp_path / name), status=status,
        )  # fmt: skip
    assert read_frame(tmp_path / "out.tsv").equals(found)


def test_numbers_that_are_none() -> None:
    data = pd.DataFrame({"n": ["inf", "1e400", "1e308", "-1e308", *map(str, range(36))], "y": ["a", "b"] * 20})
    table = fit("t", data, "y", kinds={"n": "numeric"})
    assert table.columns[0].mean == pytest.approx(17.5)
    assert np.isfinite(cells(table, data, Wording()).numbers).all()
    for ids in ([str(10**22 + 10**15 * place) for place in range(40)], [2**60 + 7919 * place for place in range(40)]):
        assert kind_of(pd.Series(ids)) == "id"
    assert kind_of(pd.Series([1900 + place for place in range(100)])) == "numeric"
    with pytest.raises(DataError, match="no training cell of it can be read so: green"):
        fit("t", own_table(), "y", kinds={"colour": "numeric"})
