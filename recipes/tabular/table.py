"""A table as the model reads it: what each column is, and its cells as strings and numbers.

Everything that is fitted is fitted on training rows, and is small JSON. A cell never depends on other rows of the same
call. Sources: TabSTAR, arXiv 2505.18125, section 3, for the wording and the quantile bins; `tabstar` 1.2.2 (v1.1) for
the six numbers of a numeric cell.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from recipes.tabular import number_formats
from recipes.tabular.number_formats import FORMS, Evidence, Form
from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "boolean", "date", "categorical", "text", "id", "constant"]
KINDS = ("numeric", "boolean", "date", "categorical", "text", "id", "constant")
CHANNELS = 6
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "<na>", "nat", "?", "#n/a"))
BOOLEAN = frozenset(("true", "false", "yes", "no", "t", "f", "y", "n"))
CODE = re.compile(r"[0-9a-fA-F]{8,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[A-Za-z]{0,4}[-_]?\d{4,}")
LONG_CODE = re.compile(r"\d{16,}")
DATE_PARTS = ("year", "month", "day", "weekday", "hour", "seconds")
MOST_CATEGORIES = 30
# A target of more classes is asked after, and of more than the few where most of them have one row.
FEW_CLASSES, MOST_CLASSES = 10, 500
# Targets beyond this many standard deviations pull no further (tabstar v1.1; v1.0's 3 caps what can be predicted).
FARTHEST_TARGET = 10.0
# Beyond, squares overflow; such cells are a mark for "missing", as the largest float is.
LARGEST_NUMBER = 1e100
# Of a whole number beyond, a float holds no more than the first digits: it is a name, not a number.
LARGEST_INTEGER = 2**53


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
    form: Form = ""
    """Which mark is the decimal one, or whether the day is first, where the cells can be read both ways."""
    doubt: str = ""
    """What was taken where no cell decides."""
    came_as_text: bool = False
    """Whether the training cells came as text, which later files' are then read as, "01234" among them."""

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
    form: Form = ""
    """Which mark is the target's decimal one."""
    doubt: str = ""
    """What was taken where no cell of the target decides."""
    came_as_text: bool = False
    """Whether the target came as text."""

    @property
    def used(self) -> list[Column]:
        """The columns that the model reads."""
        return [column for column in self.columns if column.kind not in ("id", "constant")]

    @property
    def unread(self) -> set[str]:
        """Columns of a file that are to be read as text, as the training was."""
        parts = [(column.source, column.came_as_text, column.form) for column in self.columns]
        parts.append((self.target, self.came_as_text, self.form))
        return {source for source, is_text, form in parts if is_text or form == "decimal_comma"}

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


def as_numbers(series: pd.Series, form: Form = "") -> np.ndarray:
    """(rows,) float64; what is no number is missing (NaN), and infinity is too."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(series.dtype):
        series = series.astype(object)
    if pd.api.types.is_numeric_dtype(series.dtype):
        values = series.to_numpy(dtype=np.float64, na_value=np.nan).copy()
    else:
        codes, distinct = pd.factorize(as_text(series), use_na_sentinel=True)
        values = np.append(number_formats.numbers(list(distinct), form), np.nan)[codes]
    with np.errstate(invalid="ignore"):
        values[~(np.abs(values) < LARGEST_NUMBER)] = np.nan
    return values


def as_dates(series: pd.Series, form: Form = "") -> pd.Series:
    """(rows,) timestamps in UTC; NaT where there is none."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return pd.to_datetime(series, utc=True)
    codes, distinct = pd.factorize(as_text(series), use_na_sentinel=True)
    found = number_formats.dates([*distinct, ""], form)
    return found.iloc[codes]


def date_part(dates: pd.Series, part: str) -> np.ndarray:
    """(rows,) float64: one part of each date; NaN where there is none."""
    import pandas as pd

    if part == "seconds":
        # In microseconds: nanoseconds hold no year 9999, which stands in many tables for "no end".
        values = (dates.dt.as_unit("us") - pd.Timestamp(0, tz="UTC").as_unit("us")).dt.total_seconds()
    else:
        values = dates.dt.day_of_week if part == "weekday" else getattr(dates.dt, part)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def came_as_text(series: pd.Series) -> bool:
    """Whether a column came as text; what has booleans and gaps is of the same dtype, and did not."""
    import pandas as pd

    return pd.api.types.is_string_dtype(series.dropna())


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
        # Row numbers: integers from near 0 on, in order, of which validation and test rows have taken some out.
        are_steps = len(there) == len(values) > 20 and np.all(np.diff(there) >= 1) and np.all(there % 1 == 0)
        if are_steps and 0 <= there[0] and there[-1] <= 1.5 * len(there) + 1:
            return "id"
        is_name = len(distinct) == len(values) and np.abs(there).max() > LARGEST_INTEGER
        return "id" if is_name and pd.api.types.is_integer_dtype(series.dtype) else "numeric"
    texts = as_text(series)
    there = texts.dropna()
    distinct = there.unique()
    if not len(there) or (len(distinct) == 1 and len(there) == len(texts)):
        return "constant"
    if {text.lower() for text in distinct[:10]} <= BOOLEAN and len(distinct) <= 2:
        return "boolean"
    # Over all of them, as a table may be sorted.
    sample = distinct[:: max(1, len(distinct) // 1000)].tolist()
    if np.isfinite(number_formats.numbers(sample, "decimal_comma")).mean() >= 0.5:
        form, _ = number_formats.decided(number_formats.number_evidence(distinct), Evidence(), "numeric")
        values = as_numbers(pd.Series(distinct), form)
        if np.isfinite(values).mean() >= 0.95:
            are_names = len(distinct) == len(texts) > 20 and all(LONG_CODE.fullmatch(text) for text in distinct)
            return "id" if are_names else "numeric"
    if number_formats.are_dates(sample):
        return "date"
    if len(distinct) == len(texts) > 20 and np.mean([CODE.fullmatch(text) is not None for text in sample]) >= 0.95:
        return "id"
    return "categorical" if len(distinct) <= MOST_CATEGORIES else "text"


def target_form(series: pd.Series, named: str | None) -> Form:
    """The decimal mark of a target, by `data.kinds` or by its own cells."""
    if named is not None and named in FORMS:
        return cast("Form", named)
    return number_formats.decided(evidence_of(series, "numeric"), Evidence(), "numeric")[0]


def target_task(series: pd.Series, form: Form = "") -> Literal["classification", "regression"]:
    """A regression where the target is numbers of more than ten different values."""
    values = as_numbers(series, form)
    there = as_text(series).dropna()
    if len(there) and np.isfinite(values).sum() == len(there) and len(np.unique(values[np.isfinite(values)])) > 10:
        return "regression"
    return "classification"


def check_target(name: str, series: pd.Series, task: str, form: Form) -> None:
    """Raises DataError where a target is dates, row numbers, names or free text, unless `task` was asked for."""
    texts = as_text(series).dropna()
    counts = texts.value_counts()
    kind = kind_of(series)
    named = f"{name}: the target {str(series.name)!r}"
    insist = "--data.task classification"
    if kind == "date" and len(counts) > FEW_CLASSES:
        raise DataError(
            f"{named} is dates, such as {counts.index[0]}; wanted: classes or numbers.\n"
            f"Type --data.target with another column, such as its year, or {insist} to take each date for a class."
        )
    if task == "regression":
        if kind == "id":
            raise DataError(
                f"{named} holds row numbers or ids, such as {_shown(str(counts.index[0]))}, which nothing foretells.\n"
                "Type --data.target with another column, or --data.task regression to learn them all the same."
            )
        return
    single = int((counts == 1).sum())
    if len(counts) <= MOST_CLASSES and (len(counts) <= FEW_CLASSES or single <= len(counts) / 2):
        return
    rare, numbers = str(counts.index[-1]), float(np.isfinite(as_numbers(texts, form)).mean())
    hint = f"{insist} to learn them all the same"
    if numbers >= 0.5:
        odd = texts.loc[~np.isfinite(as_numbers(texts, form))]
        also = f" (rows such as {_shown(odd.iloc[0])} are left out)" if len(odd) else ""
        hint = f"--data.task regression to take it for a number{also}, or {insist}"
    raise DataError(
        f"{named} would be {len(counts):,} classes, {single:,} of one row each, such as {_shown(rare)}.\n"
        f"Type --data.target with a column of fewer classes, {hint}."
    )


def _shown(text: str) -> str:
    """A cell in a message."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def named_kinds(text: str | None) -> dict[str, str]:
    """The kinds of columns, or how they write numbers and dates, of `data.kinds`. Raises ConfigError."""
    found = {}
    # A name may hold commas: up to the next sign of equality, it goes on.
    for pair in re.findall(r"[^=]*=[^,]*|[^=]+", (text or "").strip().strip(",")):
        column, _, kind = pair.strip(", ").rpartition("=")
        if kind not in (*KINDS, *FORMS) or not column:
            raise ConfigError(
                f"data.kinds holds {pair!r}: type COLUMN=KIND, where KIND is one of {', '.join((*KINDS, *FORMS))}."
            )
        found[column] = kind
    return found


def evidence_of(series: pd.Series, kind: str) -> Evidence:
    """What the cells of a numeric or date column say about its form; nothing where they are no text."""
    import pandas as pd

    if kind == "numeric" and pd.api.types.is_float_dtype(series.dtype):
        return Evidence(second=1) if np.any(as_numbers(series) % 1 > 0) else Evidence()
    if kind not in ("numeric", "date") or not pd.api.types.is_string_dtype(series.dtype):
        return Evidence()
    texts = as_text(series).dropna().unique().tolist()
    return number_formats.number_evidence(texts) if kind == "numeric" else number_formats.date_evidence(texts)


def forms_of(frame: pd.DataFrame, kinds: dict[str, str], named: dict[str, str]) -> dict[str, tuple[Form, str]]:
    """The form of each numeric or date column, and what was taken where its cells leave it open."""
    said = {source: evidence_of(frame[source], kind) for source, kind in kinds.items() if source not in named}
    found: dict[str, tuple[Form, str]] = {}
    for kind in ("numeric", "date"):
        own = {source: evidence for source, evidence in said.items() if kinds[source] == kind}
        habit = Evidence(sum(each.first > each.second for each in own.values()),
                         sum(each.second > each.first for each in own.values()))  # fmt: skip
        found |= {source: number_formats.decided(evidence, habit, kind, source) for source, evidence in own.items()}
    for source, form in named.items():
        if form in FORMS:
            found[source] = cast("Form", form), ""
    return found


def _columns_of(
    frame: pd.DataFrame, source: str, kind: Any, form: Form, doubt: str, named: dict[str, str]
) -> list[Column]:
    """The columns that one column of a frame becomes. Raises DataError where it cannot be what the user says it is."""
    made: list[Column] = []
    if kind == "date":
        dates = as_dates(frame[source], form)
        for part in DATE_PARTS:
            made.append(_numeric(f"{clean(source)} {part}", source, "date", part, date_part(dates, part)))
        is_read = bool(dates.notna().any())
        made = [column for column in made if column.kind != "constant"]
    elif kind == "numeric":
        values = as_numbers(frame[source], form)
        made.append(_numeric(clean(source), source, "numeric", None, values))
        is_read = bool(np.isfinite(values).any())
    else:
        made.append(Column(clean(source), source, kind))
        is_read = True
    if source in named and not is_read:
        raise DataError(
            f"data.kinds says {source}={named[source]}, and no training cell of it can be read so: "
            f"{_some(as_text(frame[source]).dropna().unique()[:3]) or 'all are empty'}."
        )
    if not is_read:
        # It looks like numbers or dates, and none of its cells is one: words, then.
        few = as_text(frame[source]).nunique() <= MOST_CATEGORIES
        form, doubt, made = "", "", [Column(clean(source), source, "categorical" if few else "text")]
    is_text = came_as_text(frame[source])
    return [dataclasses.replace(column, form=form, doubt=doubt, came_as_text=is_text) for column in made]


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
    named = kinds or {}
    task = target_task(labels, target_form(labels, named.get(target))) if task == "auto" else task
    unknown = sorted(set(named) - set(frame.columns))
    if unknown:
        raise DataError(f"data.kinds names {', '.join(unknown)}, which {name} has not: it has {_some(frame.columns)}.")
    if target in named and FORMS.get(named[target]) != "numeric":
        raise DataError(f"data.kinds names the target {target!r}: type --data.task classification or regression.")
    of_source: dict[str, Any] = {
        source: FORMS.get(named[source], named[source]) if source in named else kind_of(frame[source])
        for source in frame.columns
        if source != target
    }
    found_forms = forms_of(frame, {**of_source, target: "numeric" if task == "regression" else "target"}, named)
    columns: list[Column] = []
    for source, kind in of_source.items():
        columns += _columns_of(frame, source, kind, *found_forms.get(source, ("", "")), named)
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
    form, doubt = found_forms.get(target, ("", ""))
    is_text = came_as_text(labels)
    if task == "regression":
        values = as_numbers(labels, form)
        values = values[np.isfinite(values)]
        if not len(values):
            raise DataError(
                f"{name}: no value of the target {target!r} is a number; for classes, type task classification."
            )
        std = float(values.std())
        std = std if std > 0 else 1.0
        return Table(name, target, task, kept_columns, (), float(values.mean()), std, len(frame), form, doubt, is_text)
    classes = tuple(sorted(as_text(labels).dropna().unique(), key=_class_key))
    if len(classes) < 2:
        raise DataError(
            f"{name}: the target {target!r} has one class in the training rows ({_some(classes)}); wanted: two or more."
        )
    return Table(name, target, task, kept_columns, classes, rows=len(frame), came_as_text=is_text)


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
        hint = "Type --data.target with one of them."
        if np.isfinite(number_formats.numbers([str(column) for column in frame.columns], "")).mean() > 0.5:
            hint = "That looks like a row: write a line with the columns' names above it."
        raise DataError(f"{name} has no column {target!r}; it has {_some(frame.columns)}.\n{hint}")
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
            f"{_some(frame.columns)}.\nRename the one that is meant, or add it, empty where nothing is known."
        )
    texts: dict[str, int] = {}
    values_of: list[str] = []
    strings = np.zeros((len(frame), len(used)), np.int64)
    numbers = np.zeros((len(frame), len(used), CHANNELS), np.float32)
    dates: dict[str, pd.Series] = {}
    for place, column in enumerate(used):
        series = frame[column.source]
        said: list[str] | None = None
        if column.is_number:
            if column.part and column.source not in dates:
                dates = {column.source: as_dates(series, column.form)}
            values = date_part(dates[column.source], column.part) if column.part else as_numbers(series, column.form)
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
        return (as_numbers(frame[table.target], table.form) - table.mean) / table.std
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
    by_form: dict[str, list[str]] = {}
    doubts: list[str] = []
    parts = [(column.source, column.form, column.doubt) for column in table.columns]
    for source, form, doubt in (*parts, (table.target, table.form, table.doubt)):
        if form in ("decimal_comma", "day_first", "month_first") and source not in by_form.setdefault(form, []):
            by_form[form].append(source)
        doubts += [doubt] if doubt and doubt not in doubts else []
    said += "".join(f"; {form.replace('_', ' ')} in {_some(names)}" for form, names in sorted(by_form.items()))
    said += "".join(f"\nwarning: {doubt}" for doubt in doubts)
    return f"table {table.name}: {table.rows:,} rows, {table.target!r} is {goal}; {said}"
