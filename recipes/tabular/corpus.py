"""Where tables are from: the demo, a manifest of files and ids, or a CSV file of yours; and their splits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from recipes.tabular.files import read_frame
from recipes.tabular.number_formats import Form
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

    from recipes.tabular.settings import DataSettings

MOST_VALIDATION_ROWS = 1000
TASKS = ("auto", "classification", "regression")
KINDS = ("file", "dataset", "openml")
"""Where a manifest's table may be: beside it, under an id of `datasets`, under a number of OpenML."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One table with its splits, before anything is fitted."""

    name: str
    target: str
    task: Any
    splits: dict[str, pd.DataFrame]
    notes: tuple[str, ...] = ()
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
    notes = [*train.attrs.get("notes", ()), *(test.attrs.get("notes", ()) if test is not None else ())]
    own, train = train, _labelled(train, target, task, form)
    if task == "regression" and not len(train) and as_text(own[target]).notna().any():
        cell = as_text(own[target]).dropna().iloc[0]
        raise DataError(
            f"{name}: no value of the target {target!r} is a number, such as {cell[:40]!r}.\n"
            "Type --data.task classification, or make a column of numbers of it and --data.target with its name."
        )
    check_frame(name, train, target)
    notes += [f"{name}: {note}" for note in _notes(own[target], train[target], test, task, form)]
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
    return Source(name, target, task, splits, tuple(notes))


def _notes(own: pd.Series, learned: pd.Series, test: pd.DataFrame | None, task: str, form: Form) -> list[str]:
    """What people should know of a target: rows left out, classes of one row, test rows that cannot be scored."""
    notes = []
    if len(learned) < len(own):
        odd = as_text(own.loc[own.index.difference(learned.index)]).dropna()
        what = f"without a number as target, such as {odd.iloc[0][:40]!r}" if len(odd) else "without a target"
        notes.append(f"{len(own) - len(learned):,} of {len(own):,} rows are left out, {what}")
    counts = as_text(learned).value_counts()
    single = int((counts == 1).sum()) if task == "classification" else 0
    if single:
        notes.append(f"{single:,} of {len(counts):,} classes have one row, so they are learned or judged, not both")
    if test is not None and own.name in test:
        truth = test[own.name]
        is_known = np.isfinite(as_numbers(truth, form)) if task == "regression" else as_text(truth).isin(counts.index)
        if not is_known.all():
            why = "no number" if task == "regression" else "missing, or a class that training has not"
            notes.append(
                f"{int((~is_known).sum()):,} of {len(truth):,} test rows are not scored: their target is {why}"
            )
    return notes


def _labelled(frame: pd.DataFrame, target: str, task: str, form: Form) -> pd.DataFrame:
    if task == "regression":
        return frame.loc[np.isfinite(as_numbers(frame[target], form))]
    return frame.loc[as_text(frame[target]).notna().to_numpy()]
