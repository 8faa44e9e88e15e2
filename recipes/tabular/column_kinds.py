"""What the cells of a column hold: text, numbers, dates, truth values, and which cells are missing."""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from recipes.tabular import number_formats
from recipes.tabular.number_formats import FORMS, Evidence, Form
from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "boolean", "date", "categorical", "text", "id", "constant"]
KINDS: tuple[Kind, ...] = ("numeric", "boolean", "date", "categorical", "text", "id", "constant")
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "<na>", "nat", "?", "#n/a"))
"""Words, in lower case, that mean a missing cell in a feature."""
NOTHING_MISSING: frozenset[str] = frozenset()
TRUTH = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
"""Ways to write a truth value, in lower case."""
DIGITS = frozenset(("1", "1.0", "0", "0.0"))
CODE = re.compile(r"[0-9a-fA-F]{8,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[A-Za-z]{0,4}[-_]?\d{4,}")
LONG_CODE = re.compile(r"\d{16,}")
MOST_CATEGORIES = 30
LARGEST_NUMBER = 1e100
"""Squares of larger numbers overflow. Such cells mark missing values, as the largest float does."""
LARGEST_INTEGER = 2**53
"""A float holds only the first digits of a larger whole number, so that such a number is a name."""
NUMBER_SHARE = 0.95
"""A column of text is numeric where so many of its different cells are numbers."""


# Cells -----------------------------------------------------------------------------------------------


def as_text(series: pd.Series, missing: frozenset[str] = MISSING) -> pd.Series:
    """The cells as strings (object) with single blanks, None where one is missing or among `missing`."""
    import pandas as pd

    values = series.astype(object)
    try:
        codes, distinct = pd.factorize(values, use_na_sentinel=True)
    except TypeError:
        # Lists and the like, from Parquet and JSON.
        values = values.map(lambda cell: list_as_text(cell) if is_list(cell) else cell)
        codes, distinct = pd.factorize(values, use_na_sentinel=True)
    words = np.array([_word(value, missing) for value in distinct] + [None], dtype=object)
    return pd.Series(words[codes], index=series.index, dtype=object)


def _word(value: object, missing: frozenset[str]) -> str | None:
    if isinstance(value, (float, np.floating, decimal.Decimal)) and value == value // 1:
        return str(int(value))
    text = " ".join(str(value).split())
    return None if text.lower() in missing else text


def as_numbers(series: pd.Series, form: Form = "", has_truth: bool = False) -> np.ndarray:
    """(rows,) float64: NaN for a cell that is no number, and for infinity.

    With `has_truth`, words such as "yes" and "false" are 1 and 0.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype):
        values = series.to_numpy(dtype=np.float64, na_value=np.nan).copy()
    else:
        codes, distinct = pd.factorize(as_text(series), use_na_sentinel=True)
        found = number_formats.numbers(list(distinct), form)
        if has_truth:
            for place, text in enumerate(distinct):
                truth = TRUTH.get(text.lower())
                found[place] = found[place] if truth is None else float(truth)
        values = np.append(found, np.nan)[codes]
    with np.errstate(invalid="ignore"):
        values[~(np.abs(values) < LARGEST_NUMBER)] = np.nan
    return values


def as_dates(series: pd.Series, form: Form = "") -> pd.Series:
    """(rows,) timestamps in UTC; NaT where a cell is no date."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return pd.to_datetime(series, utc=True)
    codes, distinct = pd.factorize(as_text(series), use_na_sentinel=True)
    found = number_formats.dates([*distinct, ""], form)
    return found.iloc[codes]


def date_part(dates: pd.Series, part: str) -> np.ndarray:
    """(rows,) float64: one part of each date, such as its year; NaN where there is no date."""
    import pandas as pd

    if part == "seconds":
        # In microseconds: nanoseconds cannot hold the year 9999, which stands in many tables for "no end".
        values = (dates.dt.as_unit("us") - pd.Timestamp(0, tz="UTC").as_unit("us")).dt.total_seconds()
    else:
        values = dates.dt.day_of_week if part == "weekday" else getattr(dates.dt, part)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def came_as_text(series: pd.Series) -> bool:
    """Whether a column holds strings. A column of booleans with gaps has the same dtype, and holds none."""
    import pandas as pd

    return pd.api.types.is_string_dtype(series.dropna())


def without_missing(frame: pd.DataFrame, words: Iterable[str]) -> pd.DataFrame:
    """The frame with None for every cell that is one of the words of `data.missing_values`, numbers among them."""
    import pandas as pd

    wanted = frozenset(" ".join(word.split()).lower() for word in words) - {""}
    if not wanted:
        return frame
    frame = frame.copy()
    for name in frame.columns:
        series = frame[name]
        if pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype):
            numbers = number_formats.numbers(sorted(wanted), "")
            is_missing = series.isin(numbers[np.isfinite(numbers)].tolist())
        else:
            texts = as_text(series, NOTHING_MISSING)
            is_missing = texts.map(lambda text: text is not None and text.lower() in wanted).astype(bool)
        if is_missing.any():
            frame[name] = series.mask(is_missing)
    return frame


# Lists -----------------------------------------------------------------------------------------------


def is_list(cell: object) -> bool:
    """Whether a cell holds several values."""
    return isinstance(cell, (list, tuple, set, frozenset, dict, np.ndarray))


def list_as_text(cell: object) -> str:
    """A cell with several values as text: simple values with commas between them, others as JSON."""
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, (set, frozenset)):
        cell = sorted(cell, key=str)
    if isinstance(cell, (list, tuple)) and not any(is_list(value) for value in cell):
        return ", ".join("" if value is None else str(value) for value in cell)
    return json.dumps(cell, ensure_ascii=False, default=lambda value: value.tolist() if is_list(value) else str(value))


def check_lists(name: str, frame: pd.DataFrame, kinds: Mapping[str, str]) -> None:
    """Raises DataError where a column holds lists or objects, unless `kinds` says that it is text or an id."""
    for column in frame.columns:
        if frame[column].dtype != object or kinds.get(str(column)) in ("text", "categorical", "id"):
            continue
        cell = next((cell for cell in frame[column] if is_list(cell)), None)
        if cell is None:
            continue
        what = "objects" if isinstance(cell, dict) else "lists"
        shown = list_as_text(cell)
        raise DataError(
            f"{name}: the column {str(column)!r} holds {what}, such as {shown_cell(shown)}; wanted: one value a cell.\n"
            f"Type --data.kinds {column}=text to read it as that text, {column}=id to leave it out, or make a column "
            "of each value."
        )


# Truth values ----------------------------------------------------------------------------------------


def truth_words(texts: pd.Series) -> tuple[str, str] | None:
    """How a column of text writes false and true: its most frequent word for each, "" for one that is not there.

    None where a cell is no truth value, and where single letters of two habits (t, f and y, n) are mixed.
    """
    counts = texts.dropna().value_counts()
    words: dict[bool, str] = {}
    for word in map(str, counts.index):
        truth = TRUTH.get(word.lower())
        if truth is None:
            return None
        words.setdefault(truth, word)
    letters = {str(word).lower() for word in counts.index} & set("tfyn")
    if letters & set("tf") and letters & set("yn"):
        return None
    return words.get(False, ""), words.get(True, "")


def same_truth(text: str, words: tuple[str, str]) -> str:
    """A later cell in the words of the training: "yes" is "TRUE" where the training wrote "TRUE"."""
    truth = TRUTH.get(text.lower())
    return text if text in words or truth is None else (words[truth] or text)


# Kinds -----------------------------------------------------------------------------------------------


def kind_of(series: pd.Series) -> Kind:
    """What a column holds, by its training rows."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return "date" if series.nunique(dropna=False) > 1 else "constant"
    if pd.api.types.is_bool_dtype(series.dtype):
        return "boolean" if series.nunique(dropna=False) > 1 else "constant"
    if pd.api.types.is_numeric_dtype(series.dtype):
        return _kind_of_numbers(series)
    texts = as_text(series)
    known = texts.dropna()
    distinct = known.unique()
    if not len(known) or (len(distinct) == 1 and len(known) == len(texts)):
        return "constant"
    if _are_truth(known, distinct.tolist()):
        return "boolean"
    # Over all of them, because a table may be sorted.
    sample = distinct[:: max(1, len(distinct) // 1000)].tolist()
    if np.isfinite(number_formats.numbers(sample, "decimal_comma")).mean() >= 0.5:
        form, _ = number_formats.decided(number_formats.number_evidence(distinct), Evidence(), "numeric")
        values = as_numbers(pd.Series(distinct), form)
        if np.isfinite(values).mean() >= NUMBER_SHARE and len(number_formats.units(distinct)) <= 1:
            are_names = len(distinct) == len(texts) > 20 and all(LONG_CODE.fullmatch(text) for text in distinct)
            return "id" if are_names else "numeric"
    if number_formats.are_dates(sample):
        return "date"
    if len(distinct) == len(texts) > 20 and np.mean([CODE.fullmatch(text) is not None for text in sample]) >= 0.95:
        return "id"
    return "categorical" if len(distinct) <= MOST_CATEGORIES else "text"


def _kind_of_numbers(series: pd.Series) -> Kind:
    import pandas as pd

    values = as_numbers(series)
    known = values[np.isfinite(values)]
    distinct = np.unique(known)
    if not len(known) or (len(distinct) == 1 and len(known) == len(values)):
        return "constant"
    # Row numbers: whole numbers from near 0 on, in order. Validation and test rows have taken some out.
    are_steps = len(known) == len(values) > 20 and np.all(np.diff(known) >= 1) and np.all(known % 1 == 0)
    if are_steps and 0 <= known[0] and known[-1] <= 1.5 * len(known) + 1:
        return "id"
    is_name = len(distinct) == len(values) and np.abs(known).max() > LARGEST_INTEGER
    return "id" if is_name and pd.api.types.is_integer_dtype(series.dtype) else "numeric"


def _are_truth(texts: pd.Series, distinct: list[str]) -> bool:
    lower = {text.lower() for text in distinct[:20]}
    if not lower <= TRUTH.keys() or len(distinct) > 20 or lower <= DIGITS:
        return False
    if len(distinct) <= 2 and not lower & DIGITS:
        return True
    words = truth_words(texts)
    return words is not None and all(words)


def odd_cells(texts: pd.Series, form: Form) -> tuple[int, int, list[str]]:
    """(different cells that are numbers, different cells, those that are none) of a column of text."""
    distinct = texts.dropna().unique()
    is_number = np.isfinite(number_formats.numbers(distinct.tolist(), form))
    return int(is_number.sum()), len(distinct), distinct[~is_number].tolist()


def shown_cell(text: str) -> str:
    """A cell in a message."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def named_kinds(text: str | None) -> dict[str, str]:
    """The kinds of columns, or how they write numbers and dates, of `data.kinds`. Raises ConfigError."""
    found: dict[str, str] = {}
    # A name may hold commas: it goes on up to the next sign of equality.
    for pair in re.findall(r"[^=]*=[^,]*|[^=]+", (text or "").strip().strip(",")):
        column, _, kind = pair.strip(", ").rpartition("=")
        if kind not in (*KINDS, *FORMS) or not column:
            raise ConfigError(
                f"data.kinds holds {pair!r}: type COLUMN=KIND, where KIND is one of {', '.join((*KINDS, *FORMS))}."
            )
        found[column] = kind
    return found
