"""Tables as people have them: read as meant, or refused by line and name. Nothing changes silently."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.tabular.column_kinds import as_numbers, as_text, kind_of
from recipes.tabular.corpus import read
from recipes.tabular.files import read_frame
from recipes.tabular.number_formats import number, units
from recipes.tabular.settings import DataSettings
from recipes.tabular.table import Wording, cells, describe, fit, labels
from runner.errors import DataError

HEAD = "id,site,dose\n"
ROWS = "".join(f"{place},{'ab'[place % 2]},{place}.5\n" for place in range(1, 30))


def frame_of(folder: Path, content: str | bytes, name: str = "own.csv") -> pd.DataFrame:
    """Write a file and read it as a table."""
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_frame(file)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        # A quotation mark that is not closed: to the end, to another quoted cell, to another stray mark.
        (HEAD + '1,"a,2.5\n' + ROWS, "lines 2 to 31: a quotation mark opens a cell and is not closed"),
        (HEAD + '1,"a,2.5\n' + ROWS + '9,"b",1\n', "line"),
        (HEAD + '1,"a,2.5\n2,b",3.5\n' + ROWS, "lines 2 to 3: a quotation mark opens"),
        (HEAD + ROWS + '1,"a,2.5\n2,c,1\n3,b",3.5\n' + ROWS, "lines 31 to 33: a quotation mark opens"),
        (HEAD + ROWS + '1,"a,2.5\n2,b",3.5\n', "lines 31 to 32: a quotation mark opens"),
        ("id;site;kind\n" + 'x;"a;u\ny;b";v\n' + "z;c;w\n" * 9, "lines 2 to 3: a quotation mark opens"),
        # Rows of other widths.
        (HEAD + ROWS + "30,a\n", "line 31 has 2 cells, and the header names 3"),
        (HEAD + ROWS + "# end of data\n", "delete the line where it is no row"),
        (HEAD + ROWS + "30,a,b,4\n" + ROWS, "line 31 has 4 cells, and the header names 3"),
        ("# note\n\n" + HEAD + ROWS + "30,a\n", "line 33 has 2 cells"),
        # Headers.
        ("Report of 2024,,\n" + HEAD + ROWS, "2 of 3 columns have no name (2, 3)"),
        ("id,dose,dose\n" + ROWS, "two columns of the name 'dose'"),
        ("id,dose, dose \n" + ROWS, "two columns of the name 'dose'"),
        # Bytes.
        ((HEAD + ROWS + "30,a\0b,1\n").encode(), "line 31: a NUL byte"),
        ((HEAD + "1,größe,1\n" * 9).encode() + "2,größe,2\n".encode("cp1252") * 9, "is in two encodings: line 2"),
        (b"\xff\xfe" + HEAD.encode("utf-16-le") + b"1", "begins like UTF-16"),
    ],
)
def test_tables_that_cannot_be_read_as_meant(content: str | bytes, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        frame_of(tmp_path, content)
    assert wanted in str(caught.value) and "own.csv" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        # Cells of several lines are no rows.
        (HEAD + '1,"first\nsecond, and more\n\nlast",2.5\n' + ROWS, 30),
        (HEAD + '1,"Dear, all\nhello, you",2.5\n' + ROWS, 30),
        (HEAD + '1,"2, b\n3, c",2.5\n' + ROWS, 30),
        ("id,text\n" + "".join(f'{place},"Dear sir\nhello, you"\n' for place in range(30)), 30),
        (HEAD + '1,3" pipe,2.5\n' + ROWS, 30),
        (HEAD + '1,"a ""b"" c",2.5\n' + ROWS, 30),
        # Lines above the header, blank lines, the end.
        ("# made by a tool\n# 2024\n" + HEAD + ROWS, 29),
        ("\n\n" + HEAD + ROWS, 29),
        (HEAD + ROWS.replace("\n", "\n\n"), 29),
        (HEAD + ROWS.replace("\n", "\r\n").rstrip(), 29),
        (HEAD + ROWS.replace("\n7,", "\n\n   \n7,"), 29),
        (HEAD.replace("\n", ",\n") + ROWS.replace("\n", ",\n"), 29),
        ("\ufeff" + HEAD + ROWS, 29),
    ],
)
def test_tables_that_are_read(content: str, rows: int, tmp_path: Path) -> None:
    frame = frame_of(tmp_path, content)
    assert len(frame) == rows and list(frame.columns)[0] == "id"
    assert frame["id"].dtype == np.int64


def test_the_header_may_begin_with_a_hash(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, "# comment\n#SampleID\tsite\tdose\n" + ROWS.replace(",", "\t"), "own.tsv")
    assert list(frame.columns) == ["#SampleID", "site", "dose"] and len(frame) == 29


def test_quotation_marks_of_a_tab_separated_file_may_be_part_of_its_cells(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, "id\tname\n" + '1\t"Big" Joe\n2\t"Ann\n' + "3\tx\n" * 9, "own.tsv")
    assert frame["name"].tolist()[:2] == ['"Big" Joe', '"Ann'] and len(frame) == 11
    assert "quotation marks are part of the cells, as on line 2" in frame.attrs["notes"][0]


@pytest.mark.parametrize("encoding", ["cp1251", "shift-jis", "gb18030", "big5"])
def test_another_script_is_found_and_told(encoding: str, tmp_path: Path) -> None:
    words = {
        "cp1251": "Москва зелёный",
        "shift-jis": "東京 表示 データ",
        "gb18030": "北京 红色",
        "big5": "臺北 紅色 高雄",
    }
    content = HEAD + "".join(f"{place},{words[encoding]},1\n" for place in range(60))
    frame = frame_of(tmp_path, content.encode(encoding))
    assert set(frame["site"]) == {words[encoding]} and "it is not UTF-8, so it was read as" in frame.attrs["notes"][0]


def test_workbooks_with_a_title_or_several_sheets(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    table = pd.read_csv(io.StringIO(HEAD + ROWS))
    for name, place in (("title.xlsx", 2), ("plain.xlsx", 0)):
        with pd.ExcelWriter(tmp_path / name) as book:
            table.to_excel(book, sheet_name="doses", index=False, startrow=place)
            if place:
                book.sheets["doses"]["A1"] = "Report"
            table.to_excel(book, sheet_name="old", index=False)
    with pytest.raises(DataError, match="have no name"):
        read_frame(tmp_path / "title.xlsx")
    frame = read_frame(tmp_path / "plain.xlsx")
    assert "the first of its 2 sheets was read, doses (not old)" in frame.attrs["notes"][0]
    table.columns = ["id", "dose", "dose "]
    table.to_excel(tmp_path / "twice.xlsx", index=False)
    with pytest.raises(DataError, match="two columns of the name 'dose'"):
        read_frame(tmp_path / "twice.xlsx")


# Numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$5", 5), ("$1,234.50", 1234.5), ("€ 3,50", 3.5), ("12 EUR", 12), ("USD 7.25", 7.25), ("-$3.5", -3.5),
        ("45%", 0.45), ("4,5 %", 0.045), ("($1,200)", -1200), ("\u22125.5", -5.5), ("£.5", 0.5), ("1.5e3 €", 1500),
    ],
)  # fmt: skip
def test_numbers_with_a_currency_or_a_percent_sign(text: str, value: float) -> None:
    assert number(text.replace("\u2212", "-") if text.startswith("\u2212") else text, "") == pytest.approx(value)
    assert as_numbers(pd.Series([text, "x"]))[0] == pytest.approx(value)


def test_what_is_no_number_stays_text() -> None:
    for text in ("$", "%", "EUR", "a$5", "$5$", "5 apples", "(5)", "$1.2.3", "n.d."):
        assert np.isnan(as_numbers(pd.Series([text, "x"]))[0]), text
    prices = pd.Series([f"${place}.5" for place in range(20)])
    assert kind_of(prices) == "numeric" and units(prices) == {"$"}
    # Amounts of two currencies are not comparable.
    assert kind_of(pd.concat([prices, prices.str.replace("$", "€")], ignore_index=True)) != "numeric"


@pytest.mark.parametrize("odd", ["n.d.", "<0.5", "unknown", "3,5;4"])
def test_words_among_numbers_are_told_or_asked_about(odd: str, tmp_path: Path) -> None:
    dose = [f"{place % 21}.5" for place in range(60)]
    dose[3] = dose[30] = odd
    # As the target: 22 classes that nobody means.
    pd.DataFrame({"a": range(60), "y": dose}).to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(DataError) as caught:
        read(DataSettings(train=str(tmp_path / "own.csv"), target="y"))
    assert f"21 of them are numbers, and {odd!r} is none" in str(caught.value)
    assert "--data.task regression" in str(caught.value) and "--data.task classification" in str(caught.value)
    (source,) = read(DataSettings(train=str(tmp_path / "own.csv"), target="y", task="regression"))
    assert "2 of 60 rows are left out" in "".join(source.notes)
    # As a feature, with many and with few different numbers.
    table = fit("t", pd.DataFrame({"dose": dose, "y": ["p", "q"] * 30}), "y")
    assert table.columns[0].kind == "numeric"
    assert f"2 cells of dose are no numbers, such as {odd!r}: they count as missing" in describe(table)
    few = [cell if cell == odd else f"{float(cell) % 7}" for cell in dose]
    table = fit("t", pd.DataFrame({"dose": few, "y": ["p", "q"] * 30}), "y")
    assert table.columns[0].kind == "categorical"
    assert f"and {odd!r} is none, so it is read as categorical; if it is a number, type" in describe(table)


def test_decimal_commas_of_a_target_are_numbers(tmp_path: Path) -> None:
    values = [f"{place},{place % 10}" for place in range(22)] * 3
    pd.DataFrame({"a": ["x", "y"] * 33, "y": values}).to_csv(tmp_path / "own.csv", index=False, sep=";")
    (source,) = read(DataSettings(train=str(tmp_path / "own.csv"), target="y"))
    assert source.task == "regression"


# Columns of one name ------------------------------------------------------------------------------------


def test_columns_whose_names_differ_in_punctuation_stay_two() -> None:
    frame = pd.DataFrame({"a_b": ["u", "v"] * 20, "a b": ["u", "w"] * 20, "a.b": ["v", "v", "u", "u"] * 10})
    table = fit("t", frame.assign(y=["p", "q"] * 20), "y")
    assert len({column.name for column in table.columns}) == 3
    assert len(set(cells(table, frame.iloc[:1], Wording()).texts)) == 3


def test_two_columns_of_one_name_in_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([[1, 2], [3, 4]], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet(.|\n)*'?a'?"):
        read_frame(tmp_path / "twice.parquet")


# Lists --------------------------------------------------------------------------------------------------

LISTS = [["red", "round"], {"role": "user", "content": "hello"}, [{"role": "user"}], np.array([1.5, 2.0]), (1, 2)]


@pytest.mark.parametrize("cell", LISTS, ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_lists_are_refused_by_name_or_read_as_asked(cell: object, ending: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"tags": [cell] * 40, "a": range(40), "colour": ["red", "blue"] * 20, "y": ["p", "q"] * 20})
    file = tmp_path / f"own.{ending}"
    frame.to_parquet(file) if ending == "parquet" else frame.to_json(file, orient="records", lines=True)
    settings = DataSettings(train=str(file), target="y")
    with pytest.raises(DataError) as caught:
        read(settings)
    assert "column 'tags' holds" in str(caught.value) and "--data.kinds tags=text" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    for kind in ("text", "id"):
        (source,) = read(DataSettings(train=str(file), target="y", kinds=f"tags={kind}"))
        table = fit("t", source.splits["train"], "y", kinds={"tags": kind})
        texts = cells(table, source.splits["train"], Wording()).texts
        assert not any("['" in text or "{'" in text or "array(" in text or "(1, 2)" in text for text in texts)
        assert any("tags" in text for text in texts) == (kind == "text")


# Truth values -------------------------------------------------------------------------------------------

SPELLINGS: dict[str, list[object]] = {
    "true": ["true", "false"], "True": [True, False], "TRUE": ["TRUE", "FALSE"], "yes": ["yes", "No"],
    "t": ["t", "f"], "y": ["Y", "N"], "1": [1, 0], "1.0": [1.0, 0.0], "text 1": ["1", "0"], "text 1.0": ["1.0", "0.0"],
}  # fmt: skip


@pytest.mark.parametrize("later", SPELLINGS)
@pytest.mark.parametrize("first", SPELLINGS)
@pytest.mark.parametrize("has_gaps", [False, True])
def test_truth_values_of_a_later_file_mean_what_they_meant(first: str, later: str, has_gaps: bool) -> None:
    def frame(spelling: str) -> pd.DataFrame:
        column = pd.Series([SPELLINGS[spelling][place % 2] for place in range(40)], dtype=None)
        if has_gaps:
            column = column.astype(object)
            column[7] = None
        return pd.DataFrame({"known": column, "a": range(40), "y": pd.Series(SPELLINGS[spelling] * 20)})

    table = fit("t", frame(first), "y", task="classification")
    left, right = cells(table, frame(first), Wording()), cells(table, frame(later), Wording())
    assert [left.texts[place] for place in left.strings.ravel()] == [
        right.texts[place] for place in right.strings.ravel()
    ]
    assert np.array_equal(left.numbers, right.numbers)
    assert labels(table, frame(later)).tolist() == labels(table, frame(first)).tolist()
    assert set(labels(table, frame(first))) == {0.0, 1.0}


def test_one_column_that_writes_truth_in_several_ways_has_two_values() -> None:
    column = pd.Series(["yes", "No", "TRUE", "y", "NO", "false", "yes", "No"] * 5)
    assert kind_of(column) == "boolean"
    table = fit("t", pd.DataFrame({"known": column, "y": ["p", "q"] * 20}), "y")
    assert set(cells(table, pd.DataFrame({"known": column}), Wording()).texts) == {"known: yes", "known: No"}
    for words in (["t", "n", "f"], ["yes", "maybe"], ["1", "2", "0"], ["y", "yes", "Y"]):
        assert kind_of(pd.Series(words * 20)) != "boolean", words


# Classes and missing values -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["None", "NA", "nan", "null", "n/a", "?"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl", "xlsx"])
def test_a_word_for_missing_is_a_class_of_a_target(word: str, ending: str, tmp_path: Path) -> None:
    if ending == "xlsx":
        pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"a": range(60), "b": ["u", "v", "w"] * 20, "y": [word, "mild", "severe"] * 20})
    frame.loc[5, "y"] = None
    file = tmp_path / f"own.{ending}"
    if ending == "parquet":
        frame.to_parquet(file)
    elif ending == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    elif ending == "xlsx":
        frame.to_excel(file, index=False)
    else:
        frame.to_csv(file, index=False, sep="\t" if ending == "tsv" else ",")
    settings = DataSettings(train=str(file), target="y", test=str(file))
    (source,) = read(settings)
    table = fit("t", source.splits["train"], "y")
    assert table.classes == tuple(sorted([word, "mild", "severe"]))
    assert labels(table, source.splits["test"]).tolist() == [
        -1 if place == 5 else table.classes.index(str(cell)) for place, cell in enumerate(frame["y"])
    ]
    assert f"20 rows have the class {word!r}; if that means a missing target, type --data.missing_values {word}" in (
        "".join(source.notes)
    )
    (source,) = read(DataSettings(train=str(file), target="y", missing_values=f"x,{word}"))
    assert fit("t", source.splits["train"], "y", all_words=True).classes == ("mild", "severe")
    assert "21 of 60 rows are left out" in "".join(source.notes)


def test_missing_values_hold_in_every_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [-999, 5, 7] * 20, "d": ["n.d.", "1.5", "2.5"] * 20, "y": ["unknown", "p", "q"] * 20})
    frame.to_csv(tmp_path / "own.csv", index=False)
    (source,) = read(DataSettings(train=str(tmp_path / "own.csv"), target="y", missing_values="-999, n.d.,UNKNOWN"))
    table = fit("t", source.splits["train"], "y", all_words=True)
    assert {column.source: (column.kind, column.mean) for column in table.columns}["n"][0] == "numeric"
    assert table.classes == ("p", "q") and min(as_numbers(source.splits["train"]["n"])) == 5
    assert {column.source: column.kind for column in table.columns}["d"] == "numeric"


def test_classes_in_two_spellings_are_told(tmp_path: Path) -> None:
    pd.DataFrame({"a": range(60), "y": ["Yes", "yes", "no"] * 20}).to_csv(tmp_path / "own.csv", index=False)
    (source,) = read(DataSettings(train=str(tmp_path / "own.csv"), target="y"))
    assert "are two classes; if they are one, write them the same way" in "".join(source.notes)
    assert set(as_text(source.splits["train"]["y"])) == {"Yes", "yes", "no"}
