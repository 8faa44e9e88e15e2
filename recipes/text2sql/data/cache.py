"""Questions made ready once: read, checked, linked and spelled by many processes, kept in Arrow, streamed from there.

The cache lies in $RELAY_CACHE or ~/.cache/relay, under a hash of what the questions were made of: the entries, their
databases and this recipe's code. A database counts by its content up to 16 MB; a larger one by its size and by its
first and last 64 KB, in which SQLite counts the changes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.text2sql.data import sources
from recipes.text2sql.data.mixing import interleaved
from recipes.text2sql.data.questions import WEIGHTED, Prepared, Question, Reading, read_demo, read_questions
from recipes.text2sql.data.sources import Entry
from recipes.text2sql.prompts import prompt
from recipes.text2sql.prompts.prompt import Link
from recipes.text2sql.settings import DataSettings
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError
from runner.parts.cache import cache_folder

# The folders of the recipe whose code decides what is read.
READING = ("data", "prompts", "sql")
CACHED_FROM = 500
"""A split with fewer entries is made ready in memory: faster than opening a cache."""
WHOLE_BYTES, END_BYTES = 16 * 2**20, 64 * 2**10


def load_questions(settings: DataSettings, split: str) -> Sequence[Question]:
    """The questions of a split, of one source or of several. Raises DataError where something is missing or broken."""
    if settings.source == "demo":
        return read_demo(split)
    if not set(settings.sources) <= WEIGHTED.keys():
        return read_questions(settings.source, settings.dir, split)
    return gather(settings.sources, settings.dir, split, settings.evidence, settings.preprocessing_num_workers)


def gather(names: Sequence[str], folder: str | None, split: str, evidence: bool, processes: int) -> Mixture:
    """The questions of one source or of several. Raises DataError where something is missing or broken."""
    parts: dict[str, Sequence[Question]] = {}
    for name in names:
        try:
            found = sources.entries(name, folder, split, evidence)
        except DataError as error:
            if split == "train":
                weight = f"data.{WEIGHTED[name]}_weight"
                raise DataError(f"{error}" + (f"\nWithout {name}: --{weight} 0." if len(names) > 1 else "")) from None
            if len(names) == 1:
                raise
            _say(f"{name} has no {split} split: {error}")
            continue
        parts[name] = prepare(name, split, found, processes)
    if not parts:
        raise DataError(f"None of {', '.join(names)} has a {split} split in {folder}.")
    if len(names) == 1:
        return Mixture(parts)
    # Scored apart, and mixed in evaluation too, so that the first rows are of all.
    return Mixture(parts, None if split == "train" else interleaved([len(part) for part in parts.values()]))


@dataclasses.dataclass(frozen=True)
class Mixture(Sequence[Question]):
    """The questions of some sources, counted through one source after another, or in a given order."""

    parts: dict[str, Sequence[Question]]
    order: list[int] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Questions of each source."""
        return tuple(map(len, self.parts.values()))

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: Any) -> Any:
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


def prepare(name: str, split: str, found: list[Entry], processes: int) -> Sequence[Question]:
    """The questions of the entries of a split; says what it left out. Raises DataError where nothing is left."""
    folder = cache_folder() / "text2sql"
    if len(found) < CACHED_FROM:
        rows = [row_of(entry, folder) for entry in found]
        questions = [_question(row) for row in rows if not row["left_out"]]
        reading = Reading(questions, Counter(row["left_out"] for row in rows if row["left_out"]))
    else:
        reading = _cached(name, split, found, processes, folder)
    if reading.left_out:
        _say(reading.told(f"{name} ({split})"))
    if not len(reading.questions):
        examples = ", ".join(dict.fromkeys(entry["db_id"] for entry in found[:3] if entry["db_id"]))
        raise DataError(f"{reading.told(f'{name} ({split})')}.\nNothing is left: check data.dir {examples}".rstrip())
    return reading.questions


def row_of(entry: Entry, made: Path) -> dict[str, Any]:
    """An entry as a row of the cache; `left_out` says why it is no question, where it is none."""
    result = sources.question(entry, made)
    if isinstance(result, str):
        return {**_row("", "", "", None, "", [], ""), "left_out": result}
    schema = json.dumps(result.schema.to_json())
    text, links = prompt.link(result.text, result.database)
    spelled = canonical(result.query, result.schema)
    found = [[link.value, list(link.columns)] for link in links]
    return _row(result.text, result.query, schema, result.database, text, found, spelled)


def _row(text: str, query: str, schema: str, database: str | None, linked: str, links: Any, canonical: str) -> Any:
    return {
        "text": text, "query": query, "schema": schema, "database": database or "", "linked": linked,
        "links": json.dumps(links), "canonical": canonical, "left_out": "",
    }  # fmt: skip


def _question(row: dict[str, Any]) -> Question:
    links = tuple(Link(value, tuple(columns)) for value, columns in json.loads(row["links"]))
    text, query, database = row["text"], row["query"], row["database"] or None
    ready = Prepared((text, query, database), row["linked"], links, row["canonical"])
    return Question(text, query, _schema(row["schema"]), database, prepared=ready)


@functools.lru_cache(maxsize=2048)
def _schema(text: str) -> Schema:
    return Schema.from_json(json.loads(text))


@dataclasses.dataclass(frozen=True)
class CachedQuestions(Sequence[Question]):
    """Questions in an Arrow file, read from it when asked for."""

    table: Any
    """A `datasets.Dataset` with the rows of `row_of`."""

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return _question(self.table[index])


def _cached(name: str, split: str, found: list[Entry], processes: int, folder: Path) -> Reading:
    """Read the questions from the cache, after making it where it is not there."""
    from datasets import Dataset, load_from_disk

    place = folder / f"{name}-{split}-{content_key(found)}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
        try:
            _make(name, found, processes, folder, unfinished)
            try:
                unfinished.rename(place)
            except OSError:
                # Another process was faster, with the same.
                if not place.is_dir():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    left_out = json.loads((place / "left_out.json").read_text(encoding="utf-8"))
    table = load_from_disk(str(place / "kept"))
    assert isinstance(table, Dataset)
    return Reading(CachedQuestions(table), Counter(left_out))


def _make(name: str, found: list[Entry], processes: int, folder: Path, target: Path) -> None:
    from datasets import Dataset

    processes = processes or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(2))
    processes = max(1, min(processes, len(found) // 200))
    (target / "all").mkdir()
    table = Dataset.from_dict({key: [entry[key] for entry in found] for key in found[0]})
    made = table.map(
        functools.partial(_rows, folder),
        batched=True,
        batch_size=50,
        num_proc=processes if processes > 1 else None,
        remove_columns=table.column_names,
        cache_file_name=str(target / "all" / "rows.arrow"),
        new_fingerprint=hashlib.blake2b(target.name.encode(), digest_size=12).hexdigest(),
        desc=f"preparing {name}",
    )
    reasons = made["left_out"][:]
    kept = made.select([number for number, reason in enumerate(reasons) if not reason])
    kept.save_to_disk(str(target / "kept"), max_shard_size="500MB")
    shutil.rmtree(target / "all")
    counted = Counter(reason for reason in reasons if reason)
    (target / "left_out.json").write_text(json.dumps(counted), encoding="utf-8")


def _rows(folder: Path, columns: dict[str, list[str]]) -> dict[str, list[Any]]:
    entries = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [row_of(entry, folder) for entry in entries]
    return {key: [row[key] for row in rows] for key in rows[0]}


def content_key(found: Sequence[Entry]) -> str:
    """A hash of the entries, the databases that they name, and the code that reads them."""
    whole = hashlib.blake2b(digest_size=12)
    recipe = Path(__file__).parent.parent
    for path in (path for part in READING for path in sorted((recipe / part).glob("*.py"))):
        whole.update(path.read_bytes())
    for entry in found:
        whole.update(json.dumps(entry).encode())
    for database in sorted({entry["database"] for entry in found if entry["database"]}):
        whole.update(_digest(Path(database)))
    return whole.hexdigest()


def _digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(END_BYTES))
            file.seek(-END_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.digest()


@functools.cache
def _say(line: str) -> None:
    # Once in a process: a run asks for its questions more than once.
    print(line, file=sys.stderr, flush=True)
