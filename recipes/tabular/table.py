"""A table as the model reads it: what each column is, and its cells as strings and numbers.

Everything that is fitted is fitted on training rows, and is small JSON. A cell never depends on other rows of the same
call. Sources: TabSTAR, arXiv 2505.18125, section 3, for the wording and the quantile bins; `tabstar` 1.2.2 (v1.1) for
the six numbers of a numeric cell.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from recipes.tabular import number_formats
from recipes.tabular.column_kinds import (
    KINDS,
    MISSING,
    MOST_CATEGORIES,
    NOTHING_MISSING,
    NUMBER_SHARE,
    TRUTH,
    Kind,
    as_dates,
    as_numbers,
    as_text,
    came_as_text,
    date_part,
    kind_of,
    odd_cells,
    same_truth,
    shown_cell,
    truth_words,
)
from recipes.tabular.number_formats import FORMS, Evidence, Form
from runner.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

CHANNELS = 6
DATE_PARTS = ("year", "month", "day", "weekday", "hour", "seconds")
FEW_CLASSES, MOST_CLASSES = 10, 500
"""A target of more classes than the second is refused, and of more than the first where most of them have one row."""
FARTHEST_TARGET = 10.0
"""Targets beyond so many standard deviations have no larger gradient (tabstar v1.1; v1.0's 3 limits predictions)."""


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
    """The decimal mark, or whether the day comes first, where a cell can be read both ways."""
    doubt: str = ""
    """A warning about what the cells were read as, where they leave it open."""
    came_as_text: bool = False
    """Whether the training cells were text. Those of later files are then read as text too, such as "01234"."""
    truth: tuple[str, str] | None = None
    """How the training rows write false and true; later cells are put into these words. Of a number: 0 and 1."""

    @property
    def is_number(self) -> bool:
        """Whether the model reads the cells as numbers."""
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
    """Number of training rows."""
    form: Form = ""
    """The decimal mark of the target."""
    doubt: str = ""
    """A warning about what the target was read as, where its cells leave it open."""
    came_as_text: bool = False
    """Whether the target was text."""

    @property
    def used(self) -> list[Column]:
        """The columns that the model reads."""
        return [column for column in self.columns if column.kind not in ("id", "constant")]

    @property
    def unread(self) -> set[str]:
        """The columns of a later file to read as text, because those of the training were."""
        parts = [(column.source, column.came_as_text, column.form) for column in self.columns]
        parts.append((self.target, self.came_as_text, self.form))
        return {source for source, is_text, form in parts if is_text or form == "decimal_comma"}

    def to_json(self) -> dict[str, object]:
        """The table as plain JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Table:
        """The table that `to_json` wrote."""

        def column_of(column: Mapping[str, Any]) -> Column:
            truth = column.get("truth")
            lists = {"quantiles": tuple(column["quantiles"]), "truth": truth if truth is None else tuple(truth)}
            return Column(**{**column, **lists})

        columns = tuple(column_of(column) for column in content["columns"])
        return Table(**{**content, "columns": columns, "classes": tuple(content["classes"])})


@dataclasses.dataclass(frozen=True)
class Cells:
    """Rows of one table as the model reads them."""

    strings: np.ndarray
    """(rows, columns): places in `texts`, int64."""
    texts: list[str]
    values: list[str]
    """The cell's own part of each text; empty for a number."""
    numbers: np.ndarray
    """(rows, columns, 6), float32: clipped z, range, quantile, outlier, missing, 1; all 0 for a cell of text."""


def target_form(series: pd.Series, named: str | None) -> Form:
    """The decimal mark of a target, by `data.kinds` or by its own cells."""
    if named is not None and named in FORMS:
        return cast("Form", named)
    return number_formats.decided(evidence_of(series, "numeric"), Evidence(), "numeric")[0]


def class_names(series: pd.Series, all_words: bool = False) -> pd.Series:
    """The classes of a target (object), None where it is missing.

    "None" or "NA" beside other words is a class. Beside numbers it is a missing cell, unless `all_words`.
    """
    import pandas as pd

    texts = as_text(series, NOTHING_MISSING)
    if all_words:
        return texts
    usual = texts.map(lambda text: text is None or text.lower() in MISSING).astype(bool)
    others = pd.unique(texts[~usual]).tolist()
    are_numbers = bool(others) and bool(np.isfinite(number_formats.numbers(others, "decimal_comma")).all())
    return texts.mask(usual, None) if are_numbers or not others else texts


def target_task(series: pd.Series, form: Form = "") -> Literal["classification", "regression"]:
    """A regression where the target is numbers of more than ten different values."""
    values = as_numbers(series, form)
    there = as_text(series).dropna()
    if len(there) and np.isfinite(values).sum() == len(there) and len(np.unique(values[np.isfinite(values)])) > 10:
        return "regression"
    return "classification"


def check_target(name: str, series: pd.Series, task: str, form: Form) -> None:
    """Raises DataError where a target is dates, row numbers, names or free text, or numbers with words among them.

    Call it only where the user set no `data.task`.
    """
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
                f"{named} holds row numbers or ids, such as {shown_cell(str(counts.index[0]))}, which nothing "
                "foretells.\n"
                "Type --data.target with another column, or --data.task regression to learn them all the same."
            )
        return
    single = int((counts == 1).sum())
    count, _, odd = odd_cells(texts, form)
    if count > FEW_CLASSES and count >= len(odd):
        left_out = f"{texts.isin(odd).sum():,} rows such as {shown_cell(odd[0])} are left out" if odd else ""
        raise DataError(
            f"{named} would be {len(counts):,} classes, {single:,} of one row each; {count:,} of them are numbers"
            f"{f', and {shown_cell(odd[0])} is none' if odd else ''}.\nType --data.task regression to take it for a "
            f"number{f' ({left_out})' if odd else ''}, or {insist} to learn each number as a class."
        )
    if len(counts) <= MOST_CLASSES and (len(counts) <= FEW_CLASSES or single <= len(counts) / 2):
        return
    raise DataError(
        f"{named} would be {len(counts):,} classes, {single:,} of one row each, such as "
        f"{shown_cell(str(counts.index[-1]))}.\n"
        f"Type --data.target with a column of fewer classes, {insist} to learn them all the same."
    )


def evidence_of(series: pd.Series, kind: str) -> Evidence:
    """What the cells of a numeric or date column show about its form; nothing unless they are text."""
    import pandas as pd

    if kind == "numeric" and pd.api.types.is_float_dtype(series.dtype):
        return Evidence(second=1) if np.any(as_numbers(series) % 1 > 0) else Evidence()
    if kind not in ("numeric", "date") or not pd.api.types.is_string_dtype(series.dtype):
        return Evidence()
    texts = as_text(series).dropna().unique().tolist()
    return number_formats.number_evidence(texts) if kind == "numeric" else number_formats.date_evidence(texts)


def forms_of(frame: pd.DataFrame, kinds: dict[str, str], named: dict[str, str]) -> dict[str, tuple[Form, str]]:
    """The form of each numeric or date column, and a warning where its cells leave it open."""
    shown = {source: evidence_of(frame[source], kind) for source, kind in kinds.items() if source not in named}
    found: dict[str, tuple[Form, str]] = {}
    for kind in ("numeric", "date"):
        own = {source: evidence for source, evidence in shown.items() if kinds[source] == kind}
        habit = Evidence(sum(each.first > each.second for each in own.values()),
                         sum(each.second > each.first for each in own.values()))  # fmt: skip
        found |= {source: number_formats.decided(evidence, habit, kind, source) for source, evidence in own.items()}
    for source, form in named.items():
        if form in FORMS:
            found[source] = cast("Form", form), ""
    return found


def _columns_of(
    frame: pd.DataFrame, source: str, kind: Kind, form: Form, doubt: str, named: dict[str, str]
) -> list[Column]:
    """The features that one column of a frame becomes. Raises DataError where it cannot be what the user named it."""
    made: list[Column] = []
    truth: tuple[str, str] | None = None
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
        truth = ("0", "1") if set(values[np.isfinite(values)].tolist()) == {0.0, 1.0} else None
    else:
        made.append(Column(clean(source), source, kind))
        is_read = True
        truth = truth_words(as_text(frame[source])) if kind == "boolean" else None
    if source in named and not is_read:
        raise DataError(
            f"data.kinds says {source}={named[source]}, and no training cell of it can be read so: "
            f"{_some(as_text(frame[source]).dropna().unique()[:3]) or 'all are empty'}."
        )
    if not is_read:
        # It looks like numbers or dates, and none of its cells is one: they are words.
        few = as_text(frame[source]).nunique() <= MOST_CATEGORIES
        form, doubt, made = "", "", [Column(clean(source), source, "categorical" if few else "text")]
    is_text = came_as_text(frame[source])
    if is_text and source not in named and not doubt:
        doubt = _odd_cells_doubt(frame[source], source, made[0].kind if made else kind, form)
    return [dataclasses.replace(column, form=form, doubt=doubt, came_as_text=is_text, truth=truth) for column in made]


def _odd_cells_doubt(series: pd.Series, source: str, kind: Kind, form: Form) -> str:
    """A warning where most different cells of a column of text are numbers, and some are not."""
    texts = as_text(series)
    if kind not in ("numeric", "categorical", "text"):
        return ""
    count, all_cells, odd = odd_cells(texts, form)
    if not odd or count < 5 or count < (0.7 if kind != "numeric" else NUMBER_SHARE) * all_cells:
        return ""
    rows, example = int(texts.isin(odd).sum()), odd[0]
    if kind == "numeric":
        typed = shlex.quote(f"{source}=categorical")
        return (
            f"{rows:,} cells of {source} are no numbers, such as {shown_cell(example)}: they count as missing; if they "
            f"mean something, type --data.kinds {typed}"
        )
    typed = shlex.quote(f"{source}=numeric")
    return (
        f"{count:,} of the {all_cells:,} different cells of {source} are numbers, and {shown_cell(example)} is none, "
        f"so it is read as {kind}; if it is a number, type --data.kinds {typed}"
    )


def _with_names_of_their_own(columns: list[Column]) -> list[Column]:
    """Features whose names would be equal ("a_b" and "a b") are called as in the file."""
    names = [column.name for column in columns]
    taken: set[str] = set()
    found = []
    for column in columns:
        name = column.name
        if names.count(name) > 1:
            name = column.source + (f" {column.part}" if column.part else "")
            while name in taken or (name != column.name and name in names):
                name += "'"
        taken.add(name)
        found.append(dataclasses.replace(column, name=name))
    return found


def fit(
    name: str,
    frame: pd.DataFrame,
    target: str,
    task: Literal["auto", "classification", "regression"] = "auto",
    kinds: dict[str, str] | None = None,
    max_features: int = 200,
    seed: int = 0,
    all_words: bool = False,
) -> Table:
    """Fit a table on its training rows. Raises DataError where there is nothing to learn from.

    `seed` chooses the columns of a table with more than `max_features`. `all_words`: see `class_names`.
    """
    check_frame(name, frame, target)
    labels = frame[target]
    named = kinds or {}
    task = target_task(labels, target_form(labels, named.get(target))) if task == "auto" else task
    unknown = sorted(set(named) - set(frame.columns))
    if unknown:
        raise DataError(f"data.kinds names {', '.join(unknown)}, which {name} has not: it has {_some(frame.columns)}.")
    if target in named and FORMS.get(named[target]) != "numeric":
        raise DataError(f"data.kinds names the target {target!r}: type --data.task classification or regression.")
    of_source: dict[str, Kind] = {
        source: cast("Kind", FORMS.get(named[source], named[source])) if source in named else kind_of(frame[source])
        for source in frame.columns
        if source != target
    }
    found_forms = forms_of(frame, {**of_source, target: "numeric" if task == "regression" else "target"}, named)
    columns: list[Column] = []
    for source, kind in of_source.items():
        columns += _columns_of(frame, source, kind, *found_forms.get(source, ("", "")), named)
    columns = _with_names_of_their_own(columns)
    used = [column for column in columns if column.kind not in ("id", "constant")]
    if len(used) > max_features:
        # Sampled once per table, by its name: the same for every epoch and process.
        random = np.random.default_rng([seed, *name.encode()])
        chosen = set(random.choice(len(used), max_features, replace=False).tolist())
        left_out = {column.name for place, column in enumerate(used) if place not in chosen}
        columns = [column for column in columns if column.name not in left_out]
        used = [column for column in used if column.name not in left_out]
    if not used:
        raise DataError(f"{name} has no column to learn from beside {target!r}: all are empty, constant or ids.")
    # Text first, then numbers, as the model's sequence is.
    ordered = tuple(sorted(columns, key=lambda column: column.is_number))
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
        return Table(name, target, task, ordered, (), float(values.mean()), std, len(frame), form, doubt, is_text)
    classes = tuple(sorted(class_names(labels, all_words).dropna().unique(), key=_class_key))
    if len(classes) < 2:
        raise DataError(
            f"{name}: the target {target!r} has one class in the training rows ({_some(classes)}); wanted: two or more."
        )
    return Table(name, target, task, ordered, classes, rows=len(frame), came_as_text=is_text)


def _class_key(text: str) -> tuple[int, float, str]:
    """Numbers in their order, then words in theirs."""
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    return (0, number, text) if np.isfinite(number) else (1, 0.0, text)


def _some(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def check_frame(name: str, frame: pd.DataFrame, target: str) -> None:
    """Raises DataError where two columns have one name, or the target or all rows are missing."""
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
    known = values[np.isfinite(values)]
    distinct = np.unique(known)
    if not len(distinct) or (len(distinct) == 1 and len(known) == len(values)):
        return Column(name, source, "constant", part)
    std = float(known.std())
    quantiles = np.quantile(known, np.linspace(0, 1, 101))
    return Column(
        name, source, kind, part, float(known.mean()), std if std > 0 else 1.0, tuple(float(q) for q in quantiles)
    )


def clean(name: object) -> str:
    """A column's name as text: underscores, hyphens, points and colons become spaces."""
    return " ".join(re.sub(r"[\s_\-.:]+", " ", str(name)).split()) or "column"


def channels(values: np.ndarray, column: Column) -> np.ndarray:
    """(rows, 6) float32 of a numeric column, by the training rows' statistics alone."""
    missing = ~np.isfinite(values)
    filled = np.where(missing, column.mean, values)
    z = (filled - column.mean) / column.std
    low, high = column.quantiles[0], column.quantiles[-1]
    steps = np.linspace(0, 1, 101)
    # The middle of equal quantiles: interpolate from both sides.
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
    """(rows,) the bin of each number, and the texts of the bins: TabSTAR v1.0's ten quantile bins in words."""
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
    """Put rows into strings and numbers. Raises DataError where a column of the training is missing."""
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
        own: list[str] | None = None
        if column.is_number:
            if column.part and column.source not in dates:
                dates = {column.source: as_dates(series, column.form)}
            if column.part:
                values = date_part(dates[column.source], column.part)
            else:
                values = as_numbers(series, column.form, has_truth=column.truth is not None)
            numbers[:, place] = channels(values, column)
            if wording.numbers_as_text:
                codes, names = number_texts(values, column)
                words = [wording.cell(column.name, name) for name in names]
            else:
                codes, words = np.zeros(len(frame), np.int64), [wording.number(column.name)]
        else:
            codes, distinct = pd.factorize(as_text(series), use_na_sentinel=True)
            own = [*distinct, "Unknown Value"]
            if column.truth is not None:
                own = [same_truth(text, column.truth) for text in own]
            words = [wording.cell(column.name, value) for value in own]
            codes = np.where(codes < 0, len(distinct), codes)
        present = np.unique(codes)
        ids = np.zeros(len(words), np.int64)
        for code in present.tolist():
            ids[code] = texts.setdefault(words[code], len(texts))
            if len(texts) > len(values_of):
                values_of.append("" if own is None else own[code])
        strings[:, place] = ids[codes]
    return Cells(strings, list(texts), values_of, numbers)


def labels(table: Table, frame: pd.DataFrame) -> np.ndarray:
    """(rows,) float64: places among the classes (-1: missing, or not in the training rows), or z of the target."""
    if table.target not in frame.columns:
        return np.full(len(frame), -1.0 if table.task == "classification" else np.nan)
    if table.task == "regression":
        return (as_numbers(frame[table.target], table.form) - table.mean) / table.std
    texts = in_class_words(frame[table.target], table.classes)
    place = {label: number for number, label in enumerate(table.classes)}
    return texts.map(lambda text: place.get(text, -1)).to_numpy(np.float64)


def in_class_words(series: pd.Series, classes: Iterable[str]) -> pd.Series:
    """The cells of a later target as the training's classes are written: 1 is "yes" where those are "no" and "yes"."""
    known = list(classes)
    texts = as_text(series, NOTHING_MISSING)
    truth = [TRUTH.get(label.lower()) for label in known]
    if sorted(truth, key=str) != [False, True]:
        return texts
    words = known[truth.index(False)], known[truth.index(True)]
    return texts.map(lambda text: None if text is None else same_truth(text, words))


def describe(table: Table) -> str:
    """Lines for the terminal: the kind of each column, and warnings."""
    by_kind: dict[str, list[str]] = {}
    for column in table.columns:
        names = by_kind.setdefault(column.kind, [])
        if column.source not in names:
            names.append(column.source)
    goal = f"{len(table.classes)} classes" if table.task == "classification" else "a number"
    shown = "; ".join(f"{kind} {_some(by_kind[kind])}" for kind in KINDS if kind in by_kind)
    by_form: dict[str, list[str]] = {}
    doubts: list[str] = []
    parts = [(column.source, column.form, column.doubt) for column in table.columns]
    for source, form, doubt in (*parts, (table.target, table.form, table.doubt)):
        if form in ("decimal_comma", "day_first", "month_first") and source not in by_form.setdefault(form, []):
            by_form[form].append(source)
        doubts += [doubt] if doubt and doubt not in doubts else []
    shown += "".join(f"; {form.replace('_', ' ')} in {_some(names)}" for form, names in sorted(by_form.items()))
    shown += "".join(f"\nwarning: {doubt}" for doubt in doubts)
    return f"table {table.name}: {table.rows:,} rows, {table.target!r} is {goal}; {shown}"
