"""Preparing questions once: many processes read, check and link them and write an Arrow file, which runs then read.

The cache lies in $RELAY_CACHE or ~/.cache/relay. A folder in it is named by a hash of what its questions were made of:
the entries, the content of their databases, this recipe's code and the versions of sqlglot and SQLite. Paths and times
do not count, so moved and copied data find their cache, and changed data do not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypedDict, cast, overload

from recipes.text2sql.data import sources
from recipes.text2sql.data.arrow_rows import ArrowRows
from recipes.text2sql.data.mixing import interleaved
from recipes.text2sql.data.questions import WEIGHTED, Prepared, Question, Reading, read_demo
from recipes.text2sql.data.sources import Entry
from recipes.text2sql.prompts import prompt
from recipes.text2sql.prompts.prompt import Link
from recipes.text2sql.settings import DataSettings
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.schema import Schema, note
from runner.errors import DataError
from runner.parts.cache import cache_folder, made_once
from runner.parts.fingerprints import digest

# The folders of the recipe whose code decides what is read.
READING = ("data", "prompts", "sql")
CACHED_FROM = 500
"""A split with fewer entries is made ready in memory: faster than opening a cache."""
FEW = 0.01
"""Fewer queries of Spider's format that do not run are those of the published files; more are a user's mistake."""
DOES_NOT_RUN = "with a query that SQLite does not run"
ADVICE = "or type --data.bad_questions skip to leave such questions out."


class Row(TypedDict):
    """A question as the cache holds it."""

    number: int
    """Of its entry, which has the path of the database."""
    text: str
    query: str
    schema: str
    made: str
    """The database that was made of the entry, below the folder of made databases; "" where it made none."""
    linked: str
    links: str
    canonical: str
    fault: str
    """Why SQLite does not run the query; "" where it does."""
    left_out: str
    """Why the entry is no question; "" where it is one."""


def load_questions(settings: DataSettings, split: str) -> Sequence[Question]:
    """The questions of a split, of one source or of several. Raises DataError where something is missing or broken."""
    if settings.source == "demo":
        return read_demo(split)
    parts: dict[str, Sequence[Question]] = {}
    names = settings.sources
    for name in names:
        try:
            found = sources.entries(name, settings.dir, split, settings.evidence)
        except DataError as error:
            if split == "train" or len(names) == 1:
                raise _with_advice(error, name, names) from None
            note(f"{name} has no {split} split: {error}")
            continue
        try:
            parts[name] = prepare(name, split, found, settings)
        except DataError as error:
            raise _with_advice(error, name, names) from None
    if not parts:
        raise DataError(f"None of {', '.join(names)} has a {split} split in {settings.dir}.")
    if len(names) == 1:
        return Mixture(parts)
    # Scored apart, and mixed in evaluation too, so that the first rows are of all.
    return Mixture(parts, None if split == "train" else interleaved([len(part) for part in parts.values()]))


def _with_advice(error: DataError, name: str, names: Sequence[str]) -> DataError:
    """The error, and in a mixture how to do without the source."""
    return DataError(f"{error}" + (f"\nWithout {name}: --data.{WEIGHTED[name]}_weight 0." if len(names) > 1 else ""))


@dataclasses.dataclass(frozen=True)
class Mixture(Sequence[Question]):
    """The questions of several sources, one source after another, or in a given order."""

    parts: dict[str, Sequence[Question]]
    order: list[int] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Questions of each source."""
        return tuple(map(len, self.parts.values()))

    def __len__(self) -> int:
        return sum(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> list[Question]: ...

    def __getitem__(self, index: int | slice) -> Question | list[Question]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        index = index if self.order is None else self.order[index]
        for name, part in self.parts.items():
            if index < len(part):
                found = part[index]
                return found if self.order is None else dataclasses.replace(found, group=name)
            index -= len(part)
        raise IndexError(index)


def prepare(name: str, split: str, found: list[Entry], settings: DataSettings) -> Sequence[Question]:
    """The questions of the entries of a split; prints what it left out.

    Raises DataError where nothing is left, and at entries that are no questions unless data.bad_questions is skip.
    """
    folder, title = cache_folder() / "text2sql", f"{name} ({split})"
    usable = [entry for entry in found if not entry["fault"]]
    wrong = [(entry["place"], entry["fault"]) for entry in found if entry["fault"]]
    skips = settings.bad_questions == "skip"
    if wrong and not skips:
        raise DataError(listed(wrong) + f"\nMend the file, {ADVICE}")
    if len(usable) < CACHED_FROM:
        reading = _read(usable, folder)
    else:
        reading = _cached(name, split, usable, settings.preprocessing_num_workers, folder)
    reading.left_out.update(entry["kind"] for entry in found if entry["fault"])
    if reading.failing and skips:
        reading.left_out[DOES_NOT_RUN] += len(reading.failing)
        reading = dataclasses.replace(reading, questions=_without(reading.questions, reading.failing), failing={})
    if reading.failing:
        _check_failing(name, title, usable, reading, stops=settings.bad_questions == "stop")
    if reading.left_out:
        note(reading.report(title))
    if not len(reading.questions):
        examples = ", ".join(dict.fromkeys(entry["db_id"] for entry in found[:3] if entry["db_id"]))
        raise DataError(f"{reading.report(title)}.\nNothing is left: check data.dir {examples}".rstrip())
    return reading.questions


def _check_failing(name: str, title: str, entries: list[Entry], reading: Reading, stops: bool) -> None:
    """Name the queries that SQLite does not run. Raises DataError where these are more than published files have."""
    wrong = [(entries[number]["place"], f"SQLite does not run the query: {why}")
             for number, why in reading.failing.values()]  # fmt: skip
    if stops or (name == "spider" and len(wrong) >= FEW * len(reading.questions)):
        raise DataError(listed(wrong) + f"\nMend the query, {ADVICE}")
    note(
        f"{title}: SQLite does not run {len(wrong)} of {len(reading.questions):,} queries; they are not left out.\n"
        f"{listed(wrong)}\nTo leave them out, type --data.bad_questions skip."
    )


def listed(wrong: Sequence[tuple[str, str]]) -> str:
    """(place, what is wrong) of some entries, as at most two lines."""
    (place, first), *others = wrong
    file = place.rpartition(",")[0]
    more = [f"{other.removeprefix(f'{file}, ')}: {detail}" for other, detail in others]
    lines = [f"{place}: {' '.join(first.split())[:300].rstrip('.')}."]
    if more:
        shown = "; ".join(" ".join(each.split())[:90] for each in more[:2]) + ("; ..." if len(more) > 2 else "")
        lines.append(f"{len(more)} more: {shown}.")
    return "\n".join(lines)


def _without(questions: Sequence[Question], places: Collection[int]) -> Sequence[Question]:
    kept = [place for place in range(len(questions)) if place not in places]
    if isinstance(questions, CachedQuestions):
        return dataclasses.replace(questions, table=questions.table.select(kept))
    return [questions[place] for place in kept]


def _read(entries: list[Entry], folder: Path) -> Reading:
    """The questions of a few entries, in memory."""
    rows = [row_of(number, entry, folder) for number, entry in enumerate(entries)]
    kept = [row for row in rows if not row["left_out"]]
    questions = [_question(row, entries[row["number"]]["database"], folder) for row in kept]
    failing = {place: (row["number"], row["fault"]) for place, row in enumerate(kept) if row["fault"]}
    return Reading(questions, Counter(row["left_out"] for row in rows if row["left_out"]), failing)


def row_of(number: int, entry: Entry, made: Path) -> Row:
    """An entry as a row of the cache; `left_out` says why it is no question, where it is none."""
    result = sources.question(entry, made)
    if isinstance(result, str):
        return _row(number, left_out=result)
    text, links = prompt.link(result.text, result.database)
    is_made = result.database is not None and not entry["database"]
    return _row(
        number,
        text=result.text,
        query=result.query,
        schema=json.dumps(result.schema.to_json()),
        made=Path(result.database).relative_to(made).as_posix() if is_made and result.database else "",
        linked=text,
        links=json.dumps([[link.value, list(link.columns)] for link in links]),
        canonical=canonical(result.query, result.schema),
        fault="" if is_made else sources.wrong_query(result, entry),
    )


def _row(number: int, **texts: str) -> Row:
    names = ("text", "query", "schema", "made", "linked", "links", "canonical", "fault", "left_out")
    return cast(Row, {"number": number, **dict.fromkeys(names, ""), **texts})


def _question(row: Row, database: str, folder: Path) -> Question:
    links = tuple(Link(value, tuple(columns)) for value, columns in json.loads(row["links"]))
    text, query = row["text"], row["query"]
    place = database or (str(folder / row["made"]) if row["made"] else None)
    ready = Prepared((text, query, place), row["linked"], links, row["canonical"])
    return Question(text, query, _schema(row["schema"]), place, prepared=ready)


@functools.lru_cache(maxsize=2048)
def _schema(text: str) -> Schema:
    return Schema.from_json(json.loads(text))


@dataclasses.dataclass(frozen=True)
class CachedQuestions(Sequence[Question]):
    """Questions in an Arrow file. Each is read when it is needed."""

    table: ArrowRows
    """Each is a `Row`."""
    databases: list[str]
    """The path of each entry's database; "" where the database was made, or is not there."""
    folder: Path
    """Where made databases are."""

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> list[Question]: ...

    def __getitem__(self, index: int | slice) -> Question | list[Question]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = cast(Row, self.table[index])
        return _question(row, self.databases[row["number"]], self.folder)


def _cached(name: str, split: str, found: list[Entry], processes: int, folder: Path) -> Reading:
    """Read the questions from the cache, after making it where it is not there."""
    place = made_once(
        folder / f"{name}-{split}-{content_key(found)}",
        lambda target: _make(name, found, processes, folder, target),
    )
    if place is None:
        return _read(found, folder)
    about = json.loads((place / "about.json").read_text(encoding="utf-8"))
    table = ArrowRows(place / "kept")
    failing = {place: (number, why) for place, number, why in about["failing"]}
    questions = CachedQuestions(table, [entry["database"] for entry in found], folder)
    return Reading(questions, Counter(about["left_out"]), failing)


def _make(name: str, found: list[Entry], processes: int, folder: Path, target: Path) -> None:
    from datasets import Dataset

    processes = processes or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(2))
    processes = max(1, min(processes, len(found) // 200))
    (target / "all").mkdir()
    table = Dataset.from_dict({key: [entry[key] for entry in found] for key in found[0]})
    made = table.map(
        functools.partial(_rows, folder),
        with_indices=True,
        batched=True,
        batch_size=50,
        num_proc=processes if processes > 1 else None,
        remove_columns=table.column_names,
        cache_file_name=str(target / "all" / "rows.arrow"),
        new_fingerprint=hashlib.blake2b(target.name.encode(), digest_size=12).hexdigest(),
        desc=f"preparing {name}",
    )
    reasons, faults = made["left_out"][:], made["fault"][:]
    kept = [number for number, reason in enumerate(reasons) if not reason]
    made.select(kept).save_to_disk(str(target / "kept"), max_shard_size="500MB")
    shutil.rmtree(target / "all")
    about = {
        "left_out": Counter(reason for reason in reasons if reason),
        "failing": [(place, number, faults[number]) for place, number in enumerate(kept) if faults[number]],
    }
    (target / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _rows(folder: Path, columns: dict[str, list[str]], numbers: list[int]) -> dict[str, list[object]]:
    entries = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [row_of(number, entry, folder) for number, entry in zip(numbers, entries, strict=True)]
    return {key: [row[key] for row in rows] for key in rows[0]}  # type: ignore[literal-required]


def content_key(found: Sequence[Entry]) -> str:
    """A hash of the entries, the databases that they name, and the code that reads them."""
    import sqlglot

    whole = hashlib.blake2b(f"{sqlglot.__version__} {sqlite3.sqlite_version}".encode(), digest_size=12)
    recipe = Path(__file__).parent.parent
    for path in (path for part in READING for path in sorted((recipe / part).glob("*.py"))):
        whole.update(path.read_bytes())
    contents = {path: _content(path) for path in {entry["database"] for entry in found}}
    for entry in found:
        whole.update(json.dumps({**entry, "place": "", "database": contents[entry["database"]]}).encode())
    return whole.hexdigest()


def _content(database: str) -> str:
    """A digest of a database, with what its log has and the file not yet."""
    return "" if not database else f"{digest(Path(database))} {digest(Path(database + '-wal'))}"
