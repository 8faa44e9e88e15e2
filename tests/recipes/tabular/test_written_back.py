"""Predictions beside the cells that came in: every cell goes out character by character, whatever it holds."""

import csv
import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from recipes.tabular.files import exact_cells, read_frame, write_predictions
from runner.errors import DataError

CELLS = (
    "00123", "1e5", "1E5", "NA", "nan", "None", "null", "", "TRUE", "False", "1.10", "+5", "-0", "0x1F", "1_000",
    "12345678901234567890", "0.1234567890123456789", "1,5", "1.234,50", "2024-01-05", "05/01/24", "12:30", "größe",
    "東京", "😀", "a;b", "a,b", "a\tb", "it's", 'say "hi"', '"', "a|b", "=1+2", "@x", "#5", "two\nlines", "a\r\nb",
    " blank in front", "and behind ", "\u00a0", "\\N", "\\", "%", "$5", "inf", "1/2", "é", "e\u0301",
)  # fmt: skip
NAMES = ["id", "name, long", 'the "other"', "größe", " note"]
ADDED = {"prediction": ["yes", "no"] * 10, "probability yes": [0.25, 1e-05] * 10}


def table(seed: int, without: Iterable[str] = ()) -> list[list[str]]:
    """Twenty rows of arbitrary cells; the first of each row is not empty, so that no row is blank."""
    chosen = random.Random(seed)
    cells = [cell for cell in CELLS if not any(mark in cell for mark in without)]
    return [[f"{row:05d}", *(chosen.choice(cells) for _ in NAMES[1:])] for row in range(20)]


def written(file: Path) -> list[list[str]]:
    """The records of a CSV or TSV file, as any reader of the standard finds them."""
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True))


def check(source: Path, rows: list[list[str]], names: list[str] | None = None) -> None:
    """Predictions beside a file's rows, as CSV and as TSV."""
    names = [name.strip() for name in names or NAMES]
    for ending in ("csv", "tsv"):
        output = source.parent / f"out.{ending}"
        write_predictions(source, output, ADDED)
        found = written(output)
        assert found[0] == [*names, *ADDED]
        assert [cells[: len(names)] for cells in found[1:]] == rows
        assert [cells[len(names) :] for cells in found[1:]] == [
            [str(one), str(two)] for one, two in zip(*ADDED.values(), strict=True)
        ]
    assert read_frame(source).shape == (len(rows), len(names))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_any_separator_and_encoding(seed: int, separator: str, encoding: str, tmp_path: Path) -> None:
    rows = table(seed)
    source = tmp_path / ("own.tsv" if separator == "\t" else "own.csv")
    with source.open("w", newline="", encoding=encoding) as file:
        quoting = csv.QUOTE_ALL if seed % 2 else csv.QUOTE_MINIMAL
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([NAMES, *rows])
    check(source, rows)


@pytest.mark.parametrize("seed", range(4))
def test_latin_text_old_line_ends_and_compression(seed: int, tmp_path: Path) -> None:
    rows = table(seed, without=("東", "😀", "\u0301", "\n", "\r"))
    text = "\r".join(",".join('"' + cell.replace('"', '""') + '"' for cell in cells) for cells in [NAMES, *rows])
    (tmp_path / "own.csv").write_bytes(text.encode("cp1252"))
    check(tmp_path / "own.csv", rows)
    (tmp_path / "own.csv.gz").write_bytes(gzip.compress(text.encode()))
    check(tmp_path / "own.csv.gz", rows)
    (tmp_path / "bare.tsv").write_text("\n".join("\t".join(cells) for cells in [["a", "b"], ['"Big" Joe', "007"]] * 20))
    write_predictions(tmp_path / "bare.tsv", tmp_path / "out.csv", {"prediction": [1] * 39})
    assert written(tmp_path / "out.csv")[1] == ['"Big" Joe', "007", "1"]


@pytest.mark.parametrize("seed", range(6))
def test_workbooks(seed: int, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    # A workbook takes "=1+2" for a formula, and writes "\r" as a line end.
    rows = table(seed, without=("=", "\r"))
    book = openpyxl.Workbook()
    for place, cells in enumerate([NAMES, *rows], 1):
        for column, cell in enumerate(cells, 1):
            book.active.cell(place, column).value = cell
            book.active.cell(place, column).data_type = "s"
    book.save(tmp_path / "own.xlsx")
    check(tmp_path / "own.xlsx", rows)
    write_predictions(tmp_path / "own.xlsx", tmp_path / "out.xlsx", ADDED)
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").worksheets[0]
    found = [["" if cell is None else cell for cell in cells] for cells in sheet.iter_rows(values_only=True)]
    assert [cells[:5] for cells in found[1:]] == rows and found[1][5:] == ["yes", 0.25]


def test_numbers_and_dates_of_a_workbook(tmp_path: Path) -> None:
    import datetime

    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for cells in (["id", "n", "when", "flag"], ["00123", 5, datetime.date(2024, 1, 5), True], ["NA", 1.5, None, False]):
        book.active.append(cells)
    book.save(tmp_path / "own.xlsx")
    write_predictions(tmp_path / "own.xlsx", tmp_path / "out.csv", {"prediction": ["a", "b"]})
    assert written(tmp_path / "out.csv")[1:] == [
        ["00123", "5", "2024-01-05", "True", "a"],
        ["NA", "1.5", "", "False", "b"],
    ]


@pytest.mark.parametrize("seed", range(6))
def test_parquet_keeps_its_types(seed: int, tmp_path: Path) -> None:
    rows = table(seed)
    frame = pd.DataFrame(rows, columns=NAMES)
    frame.to_parquet(tmp_path / "own.parquet")
    check(tmp_path / "own.parquet", rows)
    typed = frame.assign(
        whole=pd.array([2**60 + 1, None] * 10, dtype="Int64"), flag=pd.array([True, None] * 10, dtype="boolean"),
        real=[0.1, 1e300] * 10, when=pd.date_range("2024-01-01", periods=20), tags=[["a", "b"]] * 20,
    )  # fmt: skip
    typed.to_parquet(tmp_path / "typed.parquet")
    write_predictions(tmp_path / "typed.parquet", tmp_path / "out.parquet", ADDED)
    found = pd.read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(found[typed.columns], pd.read_parquet(tmp_path / "typed.parquet"))
    assert found["prediction"].tolist() == ADDED["prediction"]
    write_predictions(tmp_path / "typed.parquet", tmp_path / "out.csv", ADDED)
    first, second = written(tmp_path / "out.csv")[1:3]
    assert first[5:10] == [str(2**60 + 1), "True", "0.1", "2024-01-01", '["a", "b"]']
    assert second[5:9] == ["", "", "1e+300", "2024-01-02"]


@pytest.mark.parametrize("seed", range(6))
def test_json_lines_keep_every_literal(seed: int, tmp_path: Path) -> None:
    rows = table(seed)
    lines = [json.dumps(dict(zip(NAMES, cells, strict=True)), ensure_ascii=bool(seed % 2)) for cells in rows]
    (tmp_path / "own.jsonl").write_text("\n".join(lines), encoding="utf-8")
    check(tmp_path / "own.jsonl", rows)
    literal = '{"id": 00, "n": 1.10, "big": 12345678901234567890, "tags": ["a"]}'.replace("00", "7")
    (tmp_path / "own.jsonl").write_text(f"{literal}\n" * 20, encoding="utf-8")
    write_predictions(tmp_path / "own.jsonl", tmp_path / "out.jsonl", ADDED)
    found = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert found[0] == literal[:-1] + ', "prediction": "yes", "probability yes": 0.25}' and json.loads(found[1])
    cells = exact_cells(tmp_path / "own.jsonl").iloc[0].tolist()
    assert cells == ["7", "1.10", "12345678901234567890", '["a"]']


def test_json_lines_that_are_none(tmp_path: Path) -> None:
    for content, wanted in (("{}\n[1]\n", "line 2 holds no object"), ('{"a": 1}\n{"a":\n', "line 2 is not JSON")):
        (tmp_path / "own.jsonl").write_text(content)
        with pytest.raises(DataError, match=wanted):
            read_frame(tmp_path / "own.jsonl")
