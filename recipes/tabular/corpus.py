"""Read the tables that the settings name (the demo, a corpus, or a file of the user), and split their rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import numpy as np

from recipes.tabular.column_kinds import (
    MISSING,
    as_numbers,
    as_text,
    came_as_text,
    check_lists,
    named_kinds,
    odd_cells,
    without_missing,
)
from recipes.tabular.files import read_frame
from recipes.tabular.number_formats import Form
from recipes.tabular.table import (
    check_frame,
    check_target,
    class_names,
    in_class_words,
    target_form,
    target_task,
)
from runner.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.utils import Bunch

    from recipes.tabular.settings import DataSettings

MOST_VALIDATION_ROWS = 1000
Task = Literal["auto", "classification", "regression"]
TASKS = ("auto", "classification", "regression")
PLACES = ("file", "dataset", "openml")
"""Where a manifest's table may be: beside it, under an id of `datasets`, under a number of OpenML."""


class Named(TypedDict):
    """What every table of a manifest has."""

    name: str
    target: str


class Entry(Named, total=False):
    """One table of a manifest: its place is one of `PLACES`."""

    task: Task
    file: str
    dataset: str
    config: str
    split: str
    openml: int


@dataclasses.dataclass(frozen=True)
class Source:
    """One table with its splits, before anything is fitted."""

    name: str
    target: str
    task: Task
    splits: dict[str, pd.DataFrame]
    notes: tuple[str, ...] = ()
    """What the user should know about the file and its rows."""


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


def files(settings: DataSettings) -> list[Path]:
    """The files that training rows are read from."""
    if settings.train is not None:
        return [Path(settings.train)]
    if settings.corpus is None:
        return []
    folder = Path(settings.corpus)
    try:
        entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        named = [folder / entry["file"] for entry in entries if "file" in entry]
    except (OSError, ValueError, TypeError, KeyError):
        # `read` reports what is wrong with it.
        named = []
    return [folder / "manifest.json", *sorted(folder.glob("splits*_test_indices.json")), *named]


def _own(settings: DataSettings) -> Source:
    path = Path(settings.train or "")
    if settings.target is None:
        names = ", ".join(read_frame(path).columns[:12])
        raise DataError(f"{path} came without a target: type --data.target with the column to predict ({names}).")
    train, test = read_frame(path, target=settings.target), None
    if settings.test:
        # A column that is text in the training file is read as text in the test file.
        texts = [str(name) for name in train if came_as_text(train[name])]
        test = read_frame(Path(settings.test), texts, settings.target)
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
        if sum(kind in entry for kind in PLACES) != 1:
            raise DataError(f"{file}: {entry['name']} has not one of {', '.join(PLACES)}: say where its rows are.")
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


def _rows(entry: Entry, folder: Path) -> pd.DataFrame:
    """The table of a manifest's entry, from a file beside the manifest, from `datasets` or from OpenML."""
    if "file" in entry:
        return read_frame(folder / entry["file"], target=entry["target"])
    place, name = ("dataset", entry["dataset"]) if "dataset" in entry else ("openml", str(entry.get("openml")))
    try:
        if place == "dataset":
            from datasets import Dataset, load_dataset

            table = load_dataset(name, entry.get("config"), split=entry.get("split", "train"))
            assert isinstance(table, Dataset)
            frame = cast("pd.DataFrame", table.to_pandas())
        else:
            from sklearn.datasets import fetch_openml

            fetched = cast("Bunch", fetch_openml(data_id=int(name), as_frame=True, parser="auto"))
            frame = cast("pd.DataFrame", fetched["frame"])
    except Exception as error:  # a hub, a network or a script may raise any error
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{entry['name']}: {place} {name!r} was not read: {lines[0]}\n"
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
    name: str, target: str, task: Task, train: pd.DataFrame, test: pd.DataFrame | None, settings: DataSettings
) -> Source:
    """Set aside validation rows (seeded, by class where there are classes), and leave out rows without a target."""
    check_frame(name, train, target)
    words, all_words = (settings.missing_values or "").split(","), settings.missing_values is not None
    for frame in (train, test):
        if frame is not None:
            check_lists(name, frame, named_kinds(settings.kinds))
    attrs = train.attrs, test.attrs if test is not None else {}
    train, test = without_missing(train, words), test if test is None else without_missing(test, words)
    form = target_form(train[target], named_kinds(settings.kinds).get(target))
    asked, task = task, target_task(train[target], form) if task == "auto" else task
    if asked == "auto":
        check_target(name, train[target], task, form)
    notes = [note for own_attrs in attrs for note in own_attrs.get("notes", ())]
    own, train = train, _labelled(train, target, task, form, all_words)
    if task == "regression" and not len(train) and as_text(own[target]).notna().any():
        cell = as_text(own[target]).dropna().iloc[0]
        raise DataError(
            f"{name}: no value of the target {target!r} is a number, such as {cell[:40]!r}.\n"
            "Type --data.task classification, or make a column of numbers of it and --data.target with its name."
        )
    check_frame(name, train, target)
    notes += [f"{name}: {note}" for note in _notes(own[target], train[target], test, task, form, all_words)]
    count = min(round(len(train) * settings.validation_fraction), MOST_VALIDATION_ROWS)
    random = np.random.default_rng([settings.split_seed, *name.encode()])
    order = random.permutation(len(train))
    if task == "classification" and count:
        # Rows of a class, spread evenly over the places: the first `count` have each class by its share.
        labels = class_names(train[target], all_words).to_numpy()[order]
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
    return Source(name, target, task, splits, tuple(notes))


def _notes(
    own: pd.Series, learned: pd.Series, test: pd.DataFrame | None, task: Task, form: Form, all_words: bool
) -> list[str]:
    """Notes on a target: rows left out, classes of one row, doubtful classes, test rows that cannot be scored."""
    notes = []
    if len(learned) < len(own):
        odd = as_text(own.loc[own.index.difference(learned.index)]).dropna()
        what = f"without a number as target, such as {odd.iloc[0][:40]!r}" if len(odd) else "without a target"
        notes.append(f"{len(own) - len(learned):,} of {len(own):,} rows are left out, {what}")
    classes = class_names(learned, all_words)
    counts = classes.value_counts()
    if task == "classification":
        single = int((counts == 1).sum())
        if single:
            notes.append(f"{single:,} of {len(counts):,} classes have one row, so they are learned or judged, not both")
        notes += _class_notes(counts, form)
    if test is not None and own.name in test:
        truth = test[own.name]
        words = in_class_words(truth, map(str, counts.index))
        is_known = np.isfinite(as_numbers(truth, form)) if task == "regression" else words.isin(counts.index)
        if not is_known.all():
            why = "no number" if task == "regression" else "missing, or a class that training has not"
            notes.append(
                f"{int((~is_known).sum()):,} of {len(truth):,} test rows are not scored: their target is {why}"
            )
    return notes


def _class_notes(counts: pd.Series, form: Form) -> list[str]:
    """Notes on classes that may be none: a word for a missing cell, a word among numbers, a second spelling."""
    notes = []
    names = [str(name) for name in counts.index]
    for name in names:
        if name.lower() in MISSING:
            notes.append(
                f"{counts[name]:,} rows have the class {name!r}; if that means a missing target, type "
                f"--data.missing_values {name or repr(name)}"
            )
    import pandas as pd

    usual, _, odd = odd_cells(pd.Series([name for name in names if name.lower() not in MISSING], dtype=object), form)
    if odd and usual > 2 and usual >= len(odd):
        notes.append(
            f"the class {odd[0]!r} stands beside {usual:,} classes that are numbers; if it means a missing target, "
            f"type --data.missing_values {odd[0]!r}"
        )
    spellings: dict[str, str] = {}
    for name in names:
        other = spellings.setdefault(name.casefold(), name)
        if other != name:
            notes.append(f"{other!r} and {name!r} are two classes; if they are one, write them the same way")
    return notes


def _labelled(frame: pd.DataFrame, target: str, task: Task, form: Form, all_words: bool) -> pd.DataFrame:
    if task == "regression":
        return frame.loc[np.isfinite(as_numbers(frame[target], form))]
    return frame.loc[class_names(frame[target], all_words).notna().to_numpy()]
