"""Read one table from a file, and write its rows with predictions beside them: text, workbooks, Parquet, JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from recipes.tabular.number_formats import number_evidence, numbers
from recipes.tabular.table import as_text, came_as_text
from recipes.tabular.text_files import COMPRESSED, TEXTS, TextTable, read_text, two_columns, unnamed_columns
from runner.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

WORKBOOKS = {".xlsx": "openpyxl", ".xls": "xlrd"}
"""Endings of Excel's files, with the package that reads them."""

PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson")


def read_frame(path: Path, unread: Iterable[str] = (), target: str | None = None) -> pd.DataFrame:
    """Read a table with numbers as numbers; `attrs["notes"]` holds what was guessed about the file.

    In a text file, the columns `unread` are read as text: "1.234" may be 1234 there. In the column `target`, words such
    as "NA" stay beside other words, because they may be classes. Raises DataError where the file is no table.
    """
    notes: list[str] = []
    ending = _ending(path)
    try:
        if ending in TEXTS:
            frame = _typed(read_text(path, TEXTS[ending]), set(unread), target, notes)
        else:
            frame = _other_frame(path, ending, target, notes)
    except (ValueError, OSError, EOFError, ImportError) as error:
        raise _unreadable(path, error) from error
    names = [str(name).strip() for name in frame.columns]
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise two_columns(path, twice[0])
    frame.columns = names
    if not len(frame):
        raise DataError(
            f"{path} has a header ({', '.join(frame.columns[:6])}) and no rows.\n"
            "Check that it is the file you meant, and that it was written to its end."
        )
    frame.attrs["notes"] = tuple(f"{path}: {line}" for line in notes)
    return frame


def _ending(path: Path) -> str:
    """The ending that says the format of a file. Raises DataError where it says none, or there is no such file."""
    if not path.is_file():
        raise DataError(f"There is no file {path}: check the path.")
    ending = _last_ending(path)
    if ending not in (*TEXTS, *PARQUET, *WORKBOOKS, *JSON_LINES):
        raise DataError(
            f"{path} has {f'the unknown ending {ending}' if ending else 'no ending'}; wanted: "
            f"{', '.join((*TEXTS, '.parquet', *JSON_LINES[:1], *WORKBOOKS))}.\n"
            "Rename it where it is text in columns; save it as CSV or parquet where it is not."
        )
    return ending


def _last_ending(path: Path) -> str:
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    return endings[-1] if endings else ""


def _unreadable(path: Path, error: Exception) -> DataError:
    lines = str(error).splitlines() or [type(error).__name__]
    return DataError(f"{path} cannot be read as a table: {lines[0]}\nCheck the file.")


def _other_frame(path: Path, ending: str, target: str | None, notes: list[str]) -> pd.DataFrame:
    """A table that is not text in columns."""
    import pandas as pd

    if ending in JSON_LINES:
        frame = pd.DataFrame(_json_lines(path))
        for name in frame:
            kinds = {type(cell) for cell in frame[name] if cell is not None}
            if kinds == {bool} and frame[name].isna().any():
                frame[name] = frame[name].astype(object)
        return frame
    if ending in PARQUET:
        return _without_index(pd.read_parquet(path))
    frame = _workbook(path, WORKBOOKS[ending], notes)
    if target is not None:
        exact = _workbook(path, WORKBOOKS[ending], [], is_exact=True)
        place = [str(name).strip() for name in frame.columns].index(target) if target in frame.columns else None
        if place is not None:
            cells = [cell if isinstance(cell, str) else "" for cell in exact.iloc[:, place]]
            frame[frame.columns[place]] = _with_words(frame.iloc[:, place], cells)
    return frame


def _without_index(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    if isinstance(frame.index, pd.RangeIndex):
        return frame
    # An index with a name is a column like others.
    return frame.reset_index(drop=frame.index.names == [None])


def _json_lines(path: Path, as_written: bool = False) -> list[dict[str, object]]:
    """One object per line; with `as_written`, numbers are text as they stand in the file. Raises DataError."""
    import fsspec

    rows = []
    with fsspec.open(str(path), "rt", encoding="utf-8-sig", compression="infer") as file:
        for place, line in enumerate(cast(Iterable[str], file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_float=str, parse_int=str) if as_written else json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {place} is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {place} holds no object; wanted: one object a line, with a key per column."
                )
            rows.append(row)
    return rows


def _workbook(path: Path, package: str, notes: list[str], is_exact: bool = False) -> pd.DataFrame:
    """The first sheet; with `is_exact`, its cells as they are. Raises DataError."""
    import importlib.util

    import pandas as pd

    if importlib.util.find_spec(package) is None:
        raise DataError(
            f"{path} is a workbook, and the package {package}, which reads it, is not here.\n"
            f"Type pip install {package}, or save the sheet as CSV."
        )
    options = {"dtype": object, "keep_default_na": False, "na_filter": False} if is_exact else {}
    try:
        with pd.ExcelFile(path) as book:
            sheets = [str(name) for name in book.sheet_names]
            frame = pd.read_excel(book, sheet_name=sheets[0], **options)  # type: ignore[call-overload]
            header = pd.read_excel(book, sheet_name=sheets[0], header=None, nrows=1, dtype=object)
    except Exception as error:  # these packages raise many kinds of error
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{path} cannot be read as a workbook: {lines[0]}\nSave the sheet as CSV.") from error
    if len(sheets) > 1:
        others = ", ".join(sheets[1:6]) + (" ..." if len(sheets) > 6 else "")
        notes.append(f"the first of its {len(sheets)} sheets was read, {sheets[0]} (not {others})")
    names = header.iloc[0].tolist() if len(header) else []
    given = [str(name).strip() for name in names if isinstance(name, str) and name.strip()]
    twice = [name for place, name in enumerate(given) if name in given[:place]]
    if twice:
        # pandas renames the second silently.
        raise two_columns(path, twice[0])
    unnamed = [
        place + 1
        for place in range(frame.shape[1])
        if (place >= len(names) or pd.isna(names[place])) and frame.iloc[:, place].notna().any()
    ]
    if len(unnamed) > 1:
        raise unnamed_columns(path, unnamed, frame.shape[1], "The first row")
    return frame


def _typed(table: TextTable, unread: set[str], target: str | None, notes: list[str]) -> pd.DataFrame:
    """The columns of a text file as pandas reads them, except for those that later decide otherwise."""
    import pandas as pd

    notes += table.notes
    names = [name or f"Unnamed: {place}" for place, name in enumerate(table.names)]

    def read(kinds: dict[str, type]) -> pd.DataFrame:
        return pd.read_csv(
            io.StringIO(table.text), sep=table.separator, quoting=table.quoting, names=names, header=0,
            usecols=list(range(len(names))), skipinitialspace=True, low_memory=False, dtype=kinds,
        )  # type: ignore[call-overload]  # fmt: skip

    frame = read({name: str for name in names if name in unread})
    words = [column for column in frame if came_as_text(frame[column])]
    fractions = [
        column for column in frame if pd.api.types.is_float_dtype(frame[column].dtype) and np.any(frame[column] % 1 > 0)
    ]
    if fractions and any(_has_decimal_commas(frame[column]) for column in words):
        # Beside decimal commas, 1.234 may be 1234: the column is read as text.
        frame[fractions] = read(dict.fromkeys(names, str))[fractions]
    if len(frame) != len(table.records):
        raise ValueError(f"{len(table.records)} rows were counted, and {len(frame)} read")
    if target in names:
        place = names.index(target)
        frame[target] = _with_words(frame[target], [cells[place] for cells in table.records])
    empty = [name for name, given in zip(names, table.names, strict=True) if not given and frame[name].isna().all()]
    return frame.drop(columns=empty)


def _with_words(target: pd.Series, cells: Sequence[str]) -> pd.Series:
    """The target with words such as "NA", which pandas took for missing cells, beside its other words."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target.dtype) and not pd.api.types.is_bool_dtype(target.dtype):
        return target
    words = pd.Series([" ".join(cell.split()) for cell in cells], index=target.index, dtype=object)
    is_word = target.isna() & (words != "")
    return target.astype(object).where(~is_word, words) if is_word.any() else target


def _has_decimal_commas(series: pd.Series) -> bool:
    distinct = as_text(series.iloc[:: max(1, len(series) // 2000)]).dropna().unique().tolist()
    evidence = number_evidence(distinct)
    return evidence.first > evidence.second and bool(np.isfinite(numbers(distinct, "decimal_comma")).mean() >= 0.95)


# Predictions -----------------------------------------------------------------------------------------


def check_output(path: Path) -> None:
    """Raises DataError where predictions cannot be written to a path."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise DataError(f"{path} cannot be written: type --output with a file in a folder that exists.")
    ending = _last_ending(path)
    if ending not in (*TEXTS, *PARQUET, *JSON_LINES, ".xlsx", ""):
        raise DataError(f"{path} would be a CSV file by another name: type --output with a name in .csv.")


def exact_cells(path: Path) -> pd.DataFrame:
    """Every cell of a table as text, as it stands in the file; the columns are those of `read_frame`."""
    import pandas as pd

    ending = _ending(path)
    if ending in TEXTS:
        table = read_text(path, TEXTS[ending])
        names = [name or f"Unnamed: {place}" for place, name in enumerate(table.names)]
        return pd.DataFrame(table.exact_records(), columns=names, dtype=object)
    if ending in JSON_LINES:
        frame = pd.DataFrame(_json_lines(path, as_written=True), dtype=object)
    elif ending in PARQUET:
        frame = _without_index(_arrow_types(path))
    else:
        frame = _workbook(path, WORKBOOKS[ending], [], is_exact=True)
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame.map(_cell_text)


def _arrow_types(path: Path) -> pd.DataFrame:
    """A Parquet file with its own types: large integers, decimals and booleans stay what they are beside nulls."""
    import pandas as pd

    return pd.read_parquet(path, dtype_backend="pyarrow").astype(object)


def _cell_text(cell: object) -> str:
    """A cell as text: empty for a missing one, JSON for a list."""
    import datetime

    import pandas as pd

    if isinstance(cell, str):
        return cell
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, (list, dict, tuple)):
        return json.dumps(cell, ensure_ascii=False, default=str)
    if pd.isna(cell):  # type: ignore[arg-type]
        return ""
    if isinstance(cell, datetime.datetime):
        is_day = (cell.hour, cell.minute, cell.second, cell.microsecond, cell.tzinfo) == (0, 0, 0, 0, None)
        return str(cell.date()) if is_day else cell.isoformat(sep=" ")
    return str(cell)


def write_predictions(source: Path, output: Path, added: Mapping[str, Sequence[object]]) -> None:
    """Write the cells of `source` unchanged, with the columns `added` beside them.

    A workbook, a Parquet file or JSON lines keep their types where the output is of the same format. Text is UTF-8.
    """
    import pandas as pd

    ending, own = _last_ending(output), _last_ending(source)
    columns = pd.DataFrame(dict(added))
    if ending in PARQUET and own in PARQUET:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(source)
        for name, values in added.items():
            table = table.append_column(name, pa.array(list(values)))
        pq.write_table(table, output)
        return
    if ending == ".xlsx" and own == ".xlsx":
        _add_to_workbook(source, output, added)
        return
    if ending in JSON_LINES and own in JSON_LINES:
        _add_to_json_lines(source, output, columns)
        return
    frame = pd.concat([exact_cells(source), columns], axis=1)
    if ending in PARQUET:
        frame.to_parquet(output, index=False)
    elif ending == ".xlsx":
        frame.to_excel(output, index=False)
    elif ending in JSON_LINES:
        frame.to_json(output, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(output, index=False, sep="\t" if ending in (".tsv", ".tab") else ",")


def _add_to_workbook(source: Path, output: Path, added: Mapping[str, Sequence[object]]) -> None:
    from openpyxl import load_workbook

    book = load_workbook(source)
    sheet = book.worksheets[0]
    for place, (name, values) in enumerate(added.items(), sheet.max_column + 1):
        for row, value in enumerate([name, *values], 1):
            sheet.cell(row, place, value)  # type: ignore[arg-type]
    book.save(output)


def _add_to_json_lines(source: Path, output: Path, columns: pd.DataFrame) -> None:
    import fsspec

    with (
        fsspec.open(str(source), "rt", encoding="utf-8-sig", compression="infer") as read,
        fsspec.open(str(output), "wt", encoding="utf-8", compression="infer") as written,
    ):
        lines = (line.strip() for line in cast(Iterable[str], read) if line.strip())
        for line, values in zip(lines, columns.to_dict("records"), strict=True):
            new = json.dumps(values, ensure_ascii=False)[1:]
            written.write(f"{line[:-1].rstrip()}{', ' if len(line.split()) > 1 or ':' in line else ''}{new}\n")  # type: ignore[union-attr]
