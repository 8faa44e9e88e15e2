"""Where tables are from: the demo, a manifest of files and ids, or a CSV file of yours; and their splits."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from recipes.tabular.forms import Form, number_evidence, numbers
from recipes.tabular.table import (
    as_numbers,
    as_text,
    came_as_text,
    check_frame,
    check_target,
    named_kinds,
    target_form,
    target_task,
)
from runner.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from recipes.tabular.recipe import DataSettings

MOST_VALIDATION_ROWS = 1000
TASKS = ("auto", "classification", "regression")
KINDS = ("file", "dataset", "openml")
"""Where a manifest's table may be: beside it, under an id of `datasets`, under a number of OpenML."""
TEXTS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": ","}
"""Endings of text in columns, with the usual separator."""
WORKBOOKS = {".xlsx": "openpyxl", ".xls": "xlrd"}
"""Endings of Excel's files, with the package that reads them."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
HEAD = 65536
"""Bytes of a file that are looked at first."""
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks."""
NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a parquet file",
    b"\x1f\x8b": "compressed by gzip",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
}
"""How files begin that are often called .csv by mistake."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One table with its splits, before anything is fitted."""

    name: str
    target: str
    task: Any
    splits: dict[str, pd.DataFrame]
    said: tuple[str, ...] = ()
    """What was made of the file and its rows, for people."""


def read(settings: DataSettings) -> list[Source]:
    """Every table that the settings name. Raises DataError for what is missing or broken."""
    if settings.train is not None:
        return [_own(settings)]
    if settings.corpus is not None:
        sources = _corpus(settings)
    else:
        from recipes.tabular.demo import tables

        sources = []
        for name, target, frame in tables(settings.demo_rows, settings.split_seed):
            held_out = np.arange(len(frame)) % 5 == 4
            sources.append(_cut(name, target, settings.task, frame.loc[~held_out], frame.loc[held_out], settings))
    return sources


def read_frame(path: Path, unread: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV, TSV, parquet or Excel file; `attrs["said"]` tells what was guessed. Raises DataError where it is none.

    In a text file, the columns `unread` are not taken for numbers yet: "1.234" may be 1234 there.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError(f"There is no file {path}: check the path.")
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    ending = endings[-1] if endings else ""
    said: list[str] = []
    try:
        if ending in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
            if not isinstance(frame.index, pd.RangeIndex):
                # An index with a name is a column like others.
                frame = frame.reset_index(drop=frame.index.names == [None])
        elif ending in WORKBOOKS:
            frame = _workbook(path, WORKBOOKS[ending], said)
        elif ending in TEXTS:
            frame = _text(path, TEXTS[ending], set(unread), said)
        else:
            raise DataError(
                f"{path} has {f'the unknown ending {ending}' if ending else 'no ending'}; wanted: "
                f"{', '.join((*TEXTS, '.parquet', *WORKBOOKS))}.\n"
                "Rename it where it is text in columns; save it as CSV or parquet where it is not."
            )
    except (ValueError, OSError, EOFError, ImportError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        hint = (
            "Check that line: cells that hold the separator need quotes."
            if "Expected" in lines[0]
            else "Check the file."
        )
        raise DataError(f"{path} cannot be read as a table: {lines[0]}\n{hint}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise _twice(path, twice[0])
    if not len(frame):
        raise DataError(
            f"{path} has a header ({', '.join(frame.columns[:6])}) and no rows.\n"
            "Check that it is the file you meant, and that it was written to its end."
        )
    frame.attrs["said"] = tuple(f"{path}: {line}" for line in said)
    return frame


def _twice(path: Path, name: str) -> DataError:
    return DataError(f"{path} has two columns of the name {name!r}: rename one.")


def _workbook(path: Path, package: str, said: list[str]) -> pd.DataFrame:
    """The first sheet, where the package that reads it is there."""
    import importlib.util

    import pandas as pd

    if importlib.util.find_spec(package) is None:
        raise DataError(
            f"{path} is a workbook, and the package {package}, which reads it, is not here.\n"
            f"Type pip install {package}, or save the sheet as CSV."
        )
    try:
        with pd.ExcelFile(path) as book:
            sheets = book.sheet_names
            frame = pd.read_excel(book, sheet_name=sheets[0])
    except Exception as error:  # these packages raise what they like
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{path} cannot be read as a workbook: {lines[0]}\nSave the sheet as CSV.") from error
    if len(sheets) > 1:
        said.append(f"the first of its {len(sheets)} sheets was read, {sheets[0]}")
    return frame


def _text(path: Path, usual: str, unread: set[str], said: list[str]) -> pd.DataFrame:
    """Columns as text, in UTF-8, UTF-16 or Windows-1252, with the separator that divides the first lines evenly."""
    import fsspec

    with fsspec.open(str(path), "rb", compression="infer") as file:
        # Whole lines: a header may be longer.
        head: bytes = file.read(HEAD) + file.readline()  # type: ignore[union-attr]
    encodings = _encodings(path, head)
    for encoding in encodings:
        try:
            frame, example = _decoded(path, head, encoding, usual, unread)
        except UnicodeError:
            continue
        if encoding == "cp1252":
            said.append(
                f"it is not UTF-8, so it was read as Windows-1252 (Latin-1){example}; if that is wrong, type "
                f"iconv -f ENCODING -t UTF-8 {path.name} > new.csv"
            )
        return frame
    raise DataError(
        f"{path} is text of an unknown encoding; wanted: UTF-8 ({', '.join(encodings)} failed).\n"
        f"Type iconv -f ENCODING -t UTF-8 {path.name} > new.csv with the encoding that it has."
    )


def _encodings(path: Path, head: bytes) -> tuple[str, ...]:
    """What to try. Raises DataError for what is empty or no text."""
    if not head.strip():
        raise DataError(f"{path} is empty; wanted: a line of column names, and rows.")
    for start, what in NOT_TEXT.items():
        if head.startswith(start):
            raise DataError(
                f"{path} is {what}; wanted: text in columns.\nRename it to its own ending, or save it as CSV."
            )
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return (encoding,)
    if b"\0" in head:
        # Of Latin letters in UTF-16, every other byte is zero.
        zeros = np.frombuffer(head, np.uint8) == 0
        for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if zeros[first::2].mean() > 0.5 and not zeros[1 - first :: 2].any():
                return (encoding,)
        raise DataError(
            f"{path} is binary, no text; wanted: text in columns.\nSave it as CSV, or rename it to its own ending."
        )
    return ("utf-8", "cp1252")


def _decoded(path: Path, head: bytes, encoding: str, usual: str, unread: set[str]) -> tuple[pd.DataFrame, str]:
    """The table in an encoding, and the first word of it that is not ASCII. Raises UnicodeError where it is another."""
    import re

    import pandas as pd

    is_whole = len(head) < HEAD
    text = head.decode(encoding, errors="strict" if is_whole else "ignore")
    separator, skipped = usual, 0
    if (found := re.match(r"sep=(.)\r?\n", text)) is not None:
        # What Excel writes in front of the header for itself.
        separator, skipped = found[1], 1
        text = text[found.end() :]
    else:
        separator = _separator(text, usual, is_whole)
    records = _records(text, separator)
    names = records[0] if records else []
    twice = [name for place, name in enumerate(names) if name.strip() and name in names[:place]]
    if twice:
        # pandas renames the second silently.
        raise _twice(path, twice[0])
    options: dict[str, Any] = {"sep": separator, "encoding": encoding, "skiprows": skipped, "skipinitialspace": True}
    kinds = {name: str for name in names if name.strip() in unread}
    frame = pd.read_csv(path, low_memory=False, dtype=kinds, **options)  # type: ignore[arg-type]
    # pandas takes the first cells of rows wider than the header for an index, whose type does not tell.
    width = next((len(cells) for cells in records[1:] if len(cells) > 1 or cells[0].strip()), 0)
    if width > len(names):
        if width > len(names) + 1 or not frame.iloc[:, -1].isna().all():
            raise DataError(f"{path} has {len(names)} column names, and {width} cells in a row: name every column.")
        # A separator behind the last cell of each row.
        options["index_col"] = False
        frame = pd.read_csv(path, low_memory=False, dtype=kinds, **options)  # type: ignore[arg-type]
    words = [column for column in frame if came_as_text(frame[column])]
    fractions = [
        column for column in frame if pd.api.types.is_float_dtype(frame[column].dtype) and np.any(frame[column] % 1 > 0)
    ]
    if fractions and any(_has_decimal_commas(frame[column]) for column in words):
        # Beside decimal commas, 1.234 may be 1234: the column is looked at as text.
        again = pd.read_csv(path, dtype=str, **options)
        frame[fractions] = again[fractions]
    example = re.search(r"\w*[^\x00-\x7f]\w*", text)
    return frame, f", with {example[0]!r} in it" if example is not None else ""


def _has_decimal_commas(series: pd.Series) -> bool:
    distinct = as_text(series.iloc[:: max(1, len(series) // 2000)]).dropna().unique().tolist()
    evidence = number_evidence(distinct)
    return evidence.first > evidence.second and bool(np.isfinite(numbers(distinct, "decimal_comma")).mean() >= 0.95)


def _records(text: str, separator: str) -> list[list[str]]:
    try:
        return [
            cells
            for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
            if cells
        ]
    except csv.Error:
        return []


def _separator(text: str, usual: str, is_whole: bool) -> str:
    """The usual one where it divides the first lines evenly, else the one that does, into the most cells."""
    cells: dict[str, int] = {}
    for separator in (usual, ";", "\t", ",", "|"):
        records = _records(text, separator)
        records = records if is_whole or len(records) == 1 else records[:-1]
        # A row may have one more, empty: a separator behind its last cell.
        even = sum(len(record) - len(records[0]) in ((0,) if record[-1].strip() else (0, 1)) for record in records)
        if records and len(records[0]) > 1 and even >= 0.9 * len(records):
            cells.setdefault(separator, len(records[0]))
    return usual if usual in cells or not cells else max(cells, key=cells.__getitem__)


def _own(settings: DataSettings) -> Source:
    path = Path(settings.train or "")
    if settings.target is None:
        names = ", ".join(read_frame(path).columns[:12])
        raise DataError(f"{path} came without a target: type --data.target with the column to predict ({names}).")
    train, test = read_frame(path), None
    if settings.test:
        # What is text in training is text in the test, so that both are read the same.
        test = read_frame(Path(settings.test), [str(name) for name in train if came_as_text(train[name])])
        if settings.target in train and settings.target not in test:
            raise DataError(
                f"{settings.test} has no column {settings.target!r} to score by.\n"
                "Leave --data.test out; relay predict --input takes rows without it."
            )
    return _cut(path.stem, settings.target, settings.task, train, test, settings)


def _corpus(settings: DataSettings) -> list[Source]:
    folder = Path(settings.corpus or "")
    file = folder / "manifest.json"
    if not file.is_file():
        raise DataError(
            f"{folder} has no manifest.json: tables with name, file (or dataset, or openml), target, task.\n"
            "Type --data.train FILE.csv --data.target COLUMN for a single table."
        )
    entries = _json(file)
    if not isinstance(entries, list):
        raise DataError(f"{file} holds no list; wanted: tables, each with name, file, target and task.")
    for place, entry in enumerate(entries):
        lacks = [key for key in ("name", "target") if not isinstance(entry, dict) or key not in entry]
        if lacks:
            raise DataError(f"{file}: table {place} has no {lacks[0]!r}; wanted: name, file, target, task.")
        if sum(kind in entry for kind in KINDS) != 1:
            raise DataError(f"{file}: {entry['name']} has not one of {', '.join(KINDS)}: say where its rows are.")
        if entry.get("task", "auto") not in TASKS:
            raise DataError(f"{file}: {entry['name']} has task {entry['task']!r}; wanted: {' or '.join(TASKS)}.")
    names = [entry["name"] for entry in entries]
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise DataError(f"{file} has two tables of the name {twice[0]!r}: rename one.")
    wanted = _names(settings.tables) or names
    unknown = sorted({*wanted, *_names(settings.exclude_tables)} - set(names))
    if unknown:
        raise DataError(f"{file} has no table {unknown[0]!r}; it has {', '.join(names)}.")
    held_out: dict[str, list[int]] = {}
    for splits in sorted(folder.glob("splits*_test_indices.json")):
        held_out = _json(splits)
    found = []
    for entry in entries:
        if entry["name"] not in wanted or entry["name"] in _names(settings.exclude_tables):
            continue
        frame = _rows(entry, folder)
        is_test = np.zeros(len(frame), bool)
        places = held_out.get(entry["name"], [])
        if places and not 0 <= min(places) <= max(places) < len(frame):
            raise DataError(f"{entry['name']} has {len(frame)} rows, and test rows beyond them are named in {folder}.")
        is_test[places] = True
        task = entry.get("task", "auto") if settings.task == "auto" else settings.task
        found.append(_cut(entry["name"], entry["target"], task, frame.loc[~is_test], frame.loc[is_test], settings))
    if not found:
        raise DataError(f"No table of {file} is left: check it, --data.tables and --data.exclude_tables.")
    return found


def _rows(entry: dict[str, Any], folder: Path) -> pd.DataFrame:
    """The table of a manifest's entry: a file beside the manifest, or what `datasets` or OpenML has under an id."""
    if "file" in entry:
        return read_frame(folder / entry["file"])
    kind = "dataset" if "dataset" in entry else "openml"
    try:
        if kind == "dataset":
            from datasets import Dataset, load_dataset

            table = load_dataset(entry["dataset"], entry.get("config"), split=entry.get("split", "train"))
            assert isinstance(table, Dataset)
            frame = cast("pd.DataFrame", table.to_pandas())
        else:
            from sklearn.datasets import fetch_openml

            fetched: Any = fetch_openml(data_id=int(entry["openml"]), as_frame=True, parser="auto")
            frame = fetched.frame
    except Exception as error:  # what a hub, a network or a script may say is without end
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{entry['name']}: {kind} {entry[kind]!r} was not read: {lines[0]}\n"
            "Check the id and the network, or put the table beside the manifest and name it as its file."
        ) from error
    frame.columns = [str(name) for name in frame.columns]
    return frame


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}.") from None


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _cut(
    name: str, target: str, task: Any, train: pd.DataFrame, test: pd.DataFrame | None, settings: DataSettings
) -> Source:
    """Set aside validation rows (seeded, by class where there are classes); rows without a target are left out."""
    check_frame(name, train, target)
    form = target_form(train[target], named_kinds(settings.kinds).get(target))
    asked, task = task, target_task(train[target], form) if task == "auto" else task
    if asked == "auto":
        check_target(name, train[target], task, form)
    said = [*train.attrs.get("said", ()), *(test.attrs.get("said", ()) if test is not None else ())]
    own, train = train, _labelled(train, target, task, form)
    if task == "regression" and not len(train) and as_text(own[target]).notna().any():
        cell = as_text(own[target]).dropna().iloc[0]
        raise DataError(
            f"{name}: no value of the target {target!r} is a number, such as {cell[:40]!r}.\n"
            "Type --data.task classification, or make a column of numbers of it and --data.target with its name."
        )
    check_frame(name, train, target)
    said += [f"{name}: {note}" for note in _notes(own[target], train[target], test, task, form)]
    count = min(round(len(train) * settings.validation_fraction), MOST_VALIDATION_ROWS)
    random = np.random.default_rng([settings.split_seed, *name.encode()])
    order = random.permutation(len(train))
    if task == "classification" and count:
        # Rows of a class, spread evenly over the places: the first `count` have each class by its share.
        labels = as_text(train[target]).to_numpy()[order]
        rank = np.zeros(len(order))
        for label in set(labels):
            places = np.flatnonzero(labels == label)
            rank[places] = (np.arange(len(places)) + 0.5) / len(places)
        order = order[np.argsort(rank, kind="stable")]
    held = np.zeros(len(train), bool)
    held[order[:count]] = True
    rest = train.loc[~held] if count < len(train) else train
    splits = {"train": rest, "validation": train.loc[held], "test": train.iloc[:0] if test is None else test}
    splits = {split: frame.reset_index(drop=True) for split, frame in splits.items()}
    return Source(name, target, task, splits, tuple(said))


def _notes(own: pd.Series, learned: pd.Series, test: pd.DataFrame | None, task: str, form: Form) -> list[str]:
    """What people should know of a target: rows left out, classes of one row, test rows that cannot be scored."""
    said = []
    if len(learned) < len(own):
        odd = as_text(own.loc[own.index.difference(learned.index)]).dropna()
        what = f"without a number as target, such as {odd.iloc[0][:40]!r}" if len(odd) else "without a target"
        said.append(f"{len(own) - len(learned):,} of {len(own):,} rows are left out, {what}")
    counts = as_text(learned).value_counts()
    single = int((counts == 1).sum()) if task == "classification" else 0
    if single:
        said.append(f"{single:,} of {len(counts):,} classes have one row, so they are learned or judged, not both")
    if test is not None and own.name in test:
        truth = test[own.name]
        is_known = np.isfinite(as_numbers(truth, form)) if task == "regression" else as_text(truth).isin(counts.index)
        if not is_known.all():
            why = "no number" if task == "regression" else "missing, or a class that training has not"
            said.append(f"{int((~is_known).sum()):,} of {len(truth):,} test rows are not scored: their target is {why}")
    return said


def _labelled(frame: pd.DataFrame, target: str, task: str, form: Form) -> pd.DataFrame:
    if task == "regression":
        return frame.loc[np.isfinite(as_numbers(frame[target], form))]
    return frame.loc[as_text(frame[target]).notna().to_numpy()]
