"""A table as the model reads it: what each column is, and its cells as strings and numbers.

Everything that is fitted is fitted on training rows, and is small JSON. A cell never depends on other rows of the same
call. Sources: TabSTAR, arXiv 2505.18125, section 3, for the wording and the quantile bins; `tabstar` 1.2.2 (v1.1) for
the six numbers of a numeric cell.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runner.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "boolean", "date", "categorical", "text", "id", "constant"]
KINDS = ("numeric", "boolean", "date", "categorical", "text", "id", "constant")
CHANNELS = 6
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "<na>", "nat", "?", "#n/a"))
BOOLEAN = frozenset(("true", "false", "yes", "no", "t", "f", "y", "n"))
CLOCK = r"[ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?Z|[+-]\d{2}:?\d{2})?"
DATE = re.compile(rf"\d{{4}}-\d{{1,2}}-\d{{1,2}}({CLOCK})?|\d{{1,2}}/\d{{1,2}}/\d{{4}}")
CODE = re.compile(r"[0-9a-fA-F]{8,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[A-Za-z]{0,4}[-_]?\d{4,}")
DATE_PARTS = ("year", "month", "day", "weekday", "hour", "seconds")
MOST_CATEGORIES = 30
# Targets beyond this many standard deviations pull no further (tabstar v1.1; v1.0's 3 caps what can be predicted).
FARTHEST_TARGET = 10.0


@dataclasses.dataclass(frozen=True)
class Column:
    """One feature of the model: a column of the file, or a part of a date."""

    name: str
    source: str
    kind: Kind
    part: str | None = None
    mean: float = 0.0
    std: float = 1.0
    quantiles: tuple[float, ...] = ()
    """101 percentiles of the training rows, for numbers."""

    @property
    def is_number(self) -> bool:
        """Whether the cells have a value side."""
        return self.kind in ("numeric", "date")


@dataclasses.dataclass(frozen=True)
class Table:
    """What was fitted on the training rows of one table."""

    name: str
    target: str
    task: Literal["classification", "regression"]
    columns: tuple[Column, ...]
    classes: tuple[str, ...] = ()
    """Classes as text, sorted; none for a regression."""
    mean: float = 0.0
    std: float = 1.0
    rows: int = 0
    """Training rows it was fitted on."""

    @property
    def used(self) -> list[Column]:
        """The columns that the model reads."""
        return [column for column in self.columns if column.kind not in ("id", "constant")]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> Table:
        """The table of `to_json`."""
        columns = tuple(Column(**{**column, "quantiles": tuple(column["quantiles"])}) for column in content["columns"])
        return Table(**{**content, "columns": columns, "classes": tuple(content["classes"])})


@dataclasses.dataclass(frozen=True)
class Cells:
    """Rows of one table as the model reads them."""

    strings: np.ndarray
    """(rows, columns): places in `texts`, int64."""
    texts: list[str]
    values: list[str]
    """What of each text is the cell's own; empty where that is a number."""
    numbers: np.ndarray
    """(rows, columns, 6), float32: clipped z, range, quantile, outlier, missing, 1; all 0 for a cell of text."""


def as_text(series: pd.Series) -> pd.Series:
    """The cells as stripped strings (object), None where one is missing, however that was written."""
    import pandas as pd

    values = series.astype(object)
    try:
        codes, distinct = pd.factorize(values, use_na_sentinel=True)
    except TypeError:
        # Lists and the like, from parquet.
        values = values.map(lambda cell: cell if pd.api.types.is_hashable(cell) else str(cell))
        codes, distinct = pd.factorize(values, use_na_sentinel=True)
    words = np.array([_word(value) for value in distinct] + [None], dtype=object)
    return pd.Series(words[codes], index=series.index, dtype=object)


def _word(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = " ".join(str(value).split())
    return None if text.lower() in MISSING else text


def as_numbers(series: pd.Series) -> np.ndarray:
    """(rows,) float64; what is no number is missing (NaN), and infinity is too."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(series.dtype):
        series = series.astype(object)
    if not pd.api.types.is_numeric_dtype(series.dtype):
        series = as_text(series).map(lambda text: text.replace(",", "") if isinstance(text, str) else text)
    converted: Any = pd.to_numeric(series, errors="coerce")
    values = converted.to_numpy(dtype=np.float64, na_value=np.nan).copy()
    values[~np.isfinite(values)] = np.nan
    return values


def as_dates(series: pd.Series, part: str) -> np.ndarray:
    """(rows,) float64: one part of each date; NaN where there is none."""
    import pandas as pd

    if not pd.api.types.is_datetime64_any_dtype(series.dtype):
        series = as_text(series)
    dates = pd.to_datetime(series, errors="coerce", utc=True, format="mixed")
    if part == "seconds":
        # In microseconds: nanoseconds hold no year 9999, which stands in many tables for "no end".
        values = (dates.dt.as_unit("us") - pd.Timestamp(0, tz="UTC").as_unit("us")).dt.total_seconds()
    else:
        values = dates.dt.day_of_week if part == "weekday" else getattr(dates.dt, part)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def kind_of(series: pd.Series) -> Kind:
    """What a column is, by its training rows."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return "date" if series.nunique(dropna=False) > 1 else "constant"
    if pd.api.types.is_bool_dtype(series.dtype):
        return "boolean" if series.nunique(dropna=False) > 1 else "constant"
    if pd.api.types.is_numeric_dtype(series.dtype):
        values = as_numbers(series)
        there = values[np.isfinite(values)]
        distinct = np.unique(there)
        if not len(there) or (len(distinct) == 1 and len(there) == len(values)):
            return "constant"
        # Row numbers: every integer once, in order.
        if len(there) == len(values) > 20 and np.all(np.diff(there) == 1):
            return "id"
        return "numeric"
    texts = as_text(series)
    there = texts.dropna()
    distinct = there.unique()
    if not len(there) or (len(distinct) == 1 and len(there) == len(texts)):
        return "constant"
    if {text.lower() for text in distinct[:10]} <= BOOLEAN and len(distinct) <= 2:
        return "boolean"
    if np.isfinite(as_numbers(pd.Series(distinct))).mean() >= 0.95:
        return "numeric"
    sample = distinct[:1000]
    if np.mean([DATE.fullmatch(text) is not None for text in sample]) >= 0.95:
        return "date"
    if len(distinct) == len(texts) > 20 and np.mean([CODE.fullmatch(text) is not None for text in sample]) >= 0.95:
        return "id"
    return "categorical" if len(distinct) <= MOST_CATEGORIES else "text"


def target_task(series: pd.Series) -> Literal["classification", "regression"]:
    """A regression where the target is numbers of more than ten different values."""
    values = as_numbers(series)
    there = as_text(series).dropna()
    if len(there) and np.isfinite(values).sum() == len(there) and len(np.unique(values[np.isfinite(values)])) > 10:
        return "regression"
    return "classification"


def fit(
    name: str,
    frame: pd.DataFrame,
    target: str,
    task: Literal["auto", "classification", "regression"] = "auto",
    kinds: dict[str, str] | None = None,
    max_features: int = 200,
    seed: int = 0,
) -> Table:
    """Fit a table on its training rows. Raises DataError where there is nothing to learn from."""
    check_frame(name, frame, target)
    labels = frame[target]
    task = target_task(labels) if task == "auto" else task
    kinds = kinds or {}
    unknown = sorted(set(kinds) - set(frame.columns))
    if unknown:
        raise DataError(f"data.kinds names {', '.join(unknown)}, which {name} has not: it has {_some(frame.columns)}.")
    if target in kinds:
        raise DataError(f"data.kinds names the target {target!r}: type --data.task classification or regression.")
    columns: list[Column] = []
    for source in frame.columns:
        if source == target:
            continue
        kind: Any = kinds.get(source) or kind_of(frame[source])
        if kind == "date":
            for part in DATE_PARTS:
                column = _numeric(f"{clean(source)} {part}", source, "date", part, as_dates(frame[source], part))
                columns += [column] if column.kind != "constant" else []
        elif kind == "numeric":
            columns.append(_numeric(clean(source), source, "numeric", None, as_numbers(frame[source])))
        else:
            columns.append(Column(clean(source), source, kind))
    used = [column for column in columns if column.kind not in ("id", "constant")]
    if len(used) > max_features:
        # Drawn once per table, by its name, and kept: the same for every epoch and process.
        random = np.random.default_rng([seed, *name.encode()])
        kept = set(random.choice(len(used), max_features, replace=False).tolist())
        left_out = {column.name for place, column in enumerate(used) if place not in kept}
        columns = [column for column in columns if column.name not in left_out]
        used = [column for column in used if column.name not in left_out]
    if not used:
        raise DataError(f"{name} has no column to learn from beside {target!r}: all are empty, constant or ids.")
    # Text first, then numbers, as the model's sequence is.
    kept_columns = tuple(sorted(columns, key=lambda column: column.is_number))
    if task == "regression":
        values = as_numbers(labels)
        values = values[np.isfinite(values)]
        if not len(values):
            raise DataError(
                f"{name}: no value of the target {target!r} is a number; for classes, type task classification."
            )
        std = float(values.std())
        return Table(name, target, task, kept_columns, (), float(values.mean()), std if std > 0 else 1.0, len(frame))
    classes = tuple(sorted(as_text(labels).dropna().unique(), key=_class_key))
    if len(classes) < 2:
        raise DataError(
            f"{name}: the target {target!r} has one class in the training rows ({_some(classes)}); wanted: two or more."
        )
    return Table(name, target, task, kept_columns, classes, rows=len(frame))


def _class_key(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _some(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def check_frame(name: str, frame: pd.DataFrame, target: str) -> None:
    """Raises DataError where a table cannot be trained on, whatever its columns."""
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{name} has two columns of the name {twice[0]!r}: rename one.")
    if target not in frame.columns:
        raise DataError(
            f"{name} has no column {target!r}; it has {_some(frame.columns)}.\nType --data.target with one of them."
        )
    if not len(frame):
        raise DataError(f"{name} has no training row with a target: check the file and --data.target.")


def _numeric(name: str, source: str, kind: Kind, part: str | None, values: np.ndarray) -> Column:
    there = values[np.isfinite(values)]
    distinct = np.unique(there)
    if not len(distinct) or (len(distinct) == 1 and len(there) == len(values)):
        return Column(name, source, "constant", part)
    std = float(there.std())
    quantiles = np.quantile(there, np.linspace(0, 1, 101))
    return Column(
        name, source, kind, part, float(there.mean()), std if std > 0 else 1.0, tuple(float(q) for q in quantiles)
    )


def clean(name: Any) -> str:
    """A column's name as text: underscores and the like become spaces."""
    return " ".join(re.sub(r"[\s_\-.:]+", " ", str(name)).split()) or "column"


def channels(values: np.ndarray, column: Column) -> np.ndarray:
    """(rows, 6) float32 of a numeric column, by the training rows' statistics alone."""
    missing = ~np.isfinite(values)
    filled = np.where(missing, column.mean, values)
    z = (filled - column.mean) / column.std
    low, high = column.quantiles[0], column.quantiles[-1]
    steps = np.linspace(0, 1, 101)
    # Of equal quantiles, the middle: interpolation from both sides.
    grid = np.asarray(column.quantiles)
    left = np.interp(filled, grid, steps)
    right = 1 - np.interp(-filled, -grid[::-1], steps)
    out = np.stack(
        [
            np.clip(z, -3, 3),
            np.clip((filled - low) / (high - low) if high > low else np.zeros_like(filled), -5, 6),
            (left + right) / 2,
            np.abs(z) > 3,
            missing,
            np.ones_like(filled),
        ],
        axis=1,
    ).astype(np.float32)
    out[missing, :4] = (0.0, 0.0, 0.5, 0.0)
    return out


def number_texts(values: np.ndarray, column: Column) -> tuple[np.ndarray, list[str]]:
    """(rows,) places and their texts: v1.0's ten quantile bins in words."""
    edges = np.asarray(column.quantiles)[::10]
    names = [f"Lower than {_short(edges[0])} (Quantile 0%)"]
    names += [
        f"{_short(edges[place])} to {_short(edges[place + 1])} (Quantile {10 * place} - {10 * place + 10}%)"
        for place in range(10)
    ]
    names += [f"Higher than {_short(edges[-1])} (Quantile 100%)", "Unknown Value"]
    missing = ~np.isfinite(values)
    filled = np.where(missing, 0.0, values)
    places = np.clip(np.digitize(filled, edges), 0, 11)
    places[filled == edges[-1]] = 10
    places[missing] = 12
    return places, names


def _short(number: float) -> str:
    return f"{number:.4f}".rstrip("0").rstrip(".") or "0"


@dataclasses.dataclass(frozen=True)
class Wording:
    """How cells are put into words."""

    style: Literal["short", "tabstar"] = "short"
    numbers_as_text: bool = False

    def cell(self, column: str, value: str) -> str:
        """A cell of text."""
        return (
            f"{column}: {value}" if self.style == "short" else f"Predictive Feature: {column}\nFeature Value: {value}"
        )

    def number(self, column: str) -> str:
        """The text of a numeric column, the same for every value."""
        return f"number {column}" if self.style == "short" else f"Numerical Feature: {column}"

    def targets(self, table: Table) -> list[str]:
        """The target tokens: one per class, or one."""
        name = clean(table.target)
        if table.task == "regression":
            return [f"target number {name}" if self.style == "short" else f"Numerical Target Feature: {name}"]
        if self.style == "short":
            return [f"target {name}: {label}" for label in table.classes]
        return [f"Target Feature: {name}\nFeature Value: {label}" for label in table.classes]


def cells(table: Table, frame: pd.DataFrame, wording: Wording) -> Cells:
    """Put rows into strings and numbers. Raises DataError where a column of the training is not there."""
    import pandas as pd

    used = table.used
    absent = sorted({column.source for column in used} - set(frame.columns))
    if absent:
        raise DataError(
            f"The rows have no column {_some(absent)}, which {table.name} was trained with; they have "
            f"{_some(frame.columns)}."
        )
    texts: dict[str, int] = {}
    values_of: list[str] = []
    strings = np.zeros((len(frame), len(used)), np.int64)
    numbers = np.zeros((len(frame), len(used), CHANNELS), np.float32)
    for place, column in enumerate(used):
        series = frame[column.source]
        said: list[str] | None = None
        if column.is_number:
            values = as_dates(series, column.part) if column.part else as_numbers(series)
            numbers[:, place] = channels(values, column)
            if wording.numbers_as_text:
                codes, names = number_texts(values, column)
                words = [wording.cell(column.name, name) for name in names]
            else:
                codes, words = np.zeros(len(frame), np.int64), [wording.number(column.name)]
        else:
            codes, distinct = pd.factorize(as_text(series), use_na_sentinel=True)
            said = [*distinct, "Unknown Value"]
            words = [wording.cell(column.name, value) for value in said]
            codes = np.where(codes < 0, len(distinct), codes)
        present = np.unique(codes)
        ids = np.zeros(len(words), np.int64)
        for code in present.tolist():
            ids[code] = texts.setdefault(words[code], len(texts))
            if len(texts) > len(values_of):
                values_of.append("" if said is None else said[code])
        strings[:, place] = ids[codes]
    return Cells(strings, list(texts), values_of, numbers)


def labels(table: Table, frame: pd.DataFrame) -> np.ndarray:
    """(rows,) float64: places among the classes (-1: a class that training had not), or z of the target."""
    if table.target not in frame.columns:
        return np.full(len(frame), -1.0 if table.task == "classification" else np.nan)
    if table.task == "regression":
        return (as_numbers(frame[table.target]) - table.mean) / table.std
    place = {label: number for number, label in enumerate(table.classes)}
    return as_text(frame[table.target]).map(lambda text: place.get(text, -1)).to_numpy(np.float64)


def describe(table: Table) -> str:
    """One line for the terminal: what the table's columns were taken for."""
    by_kind: dict[str, list[str]] = {}
    for column in table.columns:
        names = by_kind.setdefault(column.kind, [])
        if column.source not in names:
            names.append(column.source)
    goal = f"{len(table.classes)} classes" if table.task == "classification" else "a number"
    said = "; ".join(f"{kind} {_some(by_kind[kind])}" for kind in KINDS if kind in by_kind)
    return f"table {table.name}: {table.rows:,} rows, {table.target!r} is {goal}; {said}"
