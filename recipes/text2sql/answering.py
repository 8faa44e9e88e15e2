"""Asking databases with a trained model: one question, a file of them, or a conversation in the terminal."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from recipes.text2sql.data import question_files
from recipes.text2sql.data.question_files import IDS, Fault, read_entries, read_text, repeated_ids, texts_of
from recipes.text2sql.data.questions import Question
from recipes.text2sql.requests import Request
from recipes.text2sql.sql.execution import Execution, execute
from recipes.text2sql.sql.schema import Schema
from runner.errors import ConfigError, DataError
from runner.parts.counting import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from recipes.text2sql.prompts.encoding import Encoder, Example
    from recipes.text2sql.settings import GenerationSettings

OVERRIDES = (
    "constrained", "num_beams", "temperature", "top_p", "num_candidates", "execution_guided", "voting", "seed",
)  # fmt: skip
"""Settings of `generation` that a request may change."""
ENDINGS = (".sqlite", ".sqlite3", ".db")
ROWS_SHOWN, ROWS_WRITTEN = 20, 100
LISTS = ("columns", "rows")
"""What a row of answers has in JSON, and not in a table."""


class Answering(Protocol):
    """What is needed of the recipe."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]

    @property
    def generation_settings(self) -> GenerationSettings:
        """How to write."""
        ...

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Makes prompts of questions."""
        ...

    def write(self, model: PreTrainedModel, examples: list[Example]) -> list[str]:
        """One query for each example."""
        ...


def answer(recipe: Answering, model: PreTrainedModel, request: Request) -> str:
    """What `relay predict` prints."""
    recipe = changed(recipe, **{name: getattr(request, name) for name in OVERRIDES})
    if request.interactive:
        return converse(recipe, model, request)
    if request.questions is None:
        (question,) = resolve(request.db, [Asked(request.question, None, "--question")])
        return shown(question, *answers(recipe, model, [question])[0])
    path = Path(request.questions)
    asked = read_questions(path)
    questions = resolve(request.db, asked)
    pairs: list[tuple[str, Execution]] = []
    starts = range(0, len(questions), request.batch_size)
    for first in counted(starts, len(starts), "questions", "batches"):
        pairs += answers(recipe, model, questions[first : first + request.batch_size])
    if request.output is None:
        return "\n\n".join(shown(question, *pair) for question, pair in zip(questions, pairs, strict=True))
    write(Path(request.output), asked, questions, pairs)
    run = sum(result.error is None for _, result in pairs)
    databases = len({question.database for question in questions})
    return f"{len(questions)} questions about {databases} databases -> {request.output}: the SQL of {run} runs"


def changed(recipe: Answering, **settings: object) -> Answering:
    """The recipe with other settings of `generation`; None leaves one as it was trained."""
    given = {name: value for name, value in settings.items() if value is not None}
    generation = dataclasses.replace(recipe.generation_settings, **given)
    return dataclasses.replace(recipe, generation_settings=generation)


def answers(recipe: Answering, model: PreTrainedModel, questions: list[Question]) -> list[tuple[str, Execution]]:
    """The SQL of each question, and what it finds."""
    queries = recipe.write(model, [recipe.encoder.example(question) for question in questions])
    return [(query, execute(str(question.database), query)) for question, query in zip(questions, queries, strict=True)]


def shown(question: Question, query: str, result: Execution) -> str:
    """A question, its SQL and its rows as a table."""
    lines = [f"question: {question.text}", f"SQL:      {query}"]
    if result.error is not None:
        return "\n".join([*lines, f"error:    {result.error}"])
    table = [tuple(result.columns), *(tuple(map(str, row)) for row in result.rows[:ROWS_SHOWN])]
    widths = [max(len(row[place]) for row in table) for place in range(len(result.columns))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    more = len(result.rows) - ROWS_SHOWN
    return "\n".join(lines + ([f"... and {more} more rows"] if more > 0 else []))


# Databases ---------------------------------------------------------------------------------------------


def resolve(place: str, asked: Iterable[Asked]) -> list[Question]:
    """Questions with the databases that they are about: all about the file `place`, or each about one of its folder."""
    found: dict[str | None, Question] = {}
    questions = []
    for text, db_id, source, _ in asked:
        if not text.strip():
            raise DataError(f"{source}: the question is empty: write a question, in English.")
        if db_id not in found:
            path = database(place, db_id, source)
            found[db_id] = Question(text, "", Schema.from_database(path), str(path))
        questions.append(dataclasses.replace(found[db_id], text=text))
    return questions


def database(place: str, db_id: str | None, source: str) -> Path:
    """The SQLite file `place`, or demo:NAME, or the one called `db_id` in the folder `place`."""
    if place.startswith("demo:"):
        return _of_demo(place)
    folder = Path(place)
    if not folder.is_dir():
        return folder
    known = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix in ENDINGS}
    known |= {path.stem: path for path in sorted(folder.glob("*/*")) if path.suffix in ENDINGS and _names_it(path)}
    listed = ", ".join(sorted(known)[:8]) + (", ..." if len(known) > 8 else "")
    if not known:
        raise DataError(f"The folder {place} holds no database: wanted NAME.sqlite or NAME/NAME.sqlite in it.")
    if db_id is None:
        raise DataError(
            f"{source} does not say which database of the folder {place} it is about ({listed}).\n"
            "Type --db with a file, or write QUESTION<TAB>NAME on each line of a file for --questions."
        )
    if db_id not in known:
        raise DataError(f"{source} is about {db_id!r}, which is not in the folder {place}: it holds {listed}.")
    return known[db_id]


def _names_it(path: Path) -> bool:
    return path.parent.name == path.stem


def _of_demo(name: str) -> Path:
    from recipes.text2sql.data.demo import build

    made = build()
    known = {pair.db_id: pair.database for pair in made.train + made.held_out}
    if name.removeprefix("demo:") not in known:
        raise DataError(f"There is no embedded database {name!r}: type --db demo:NAME with one of {', '.join(known)}.")
    return Path(known[name.removeprefix("demo:")])


# Files -------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A question of a file."""

    text: str
    db_id: str | None
    place: str
    """The file and the line, for messages."""
    ids: Mapping[str, object] = {}
    """The entry's own number or name, which goes into the row of its answer."""


def read_questions(path: Path) -> list[Asked]:
    """The questions of a file: JSON as Spider's, JSON lines, a table with a header, or a question, perhaps a tab and a
    db_id, on each line. Raises DataError, with the line, for what is no question."""
    if path.suffix.lower() not in question_files.ENDINGS:
        lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
        if not lines:
            raise DataError(f"{path} holds no question: write one on each line.")
        parts = [(number, line.partition("\t")) for number, line in lines]
        return [
            Asked(text.strip(), db_id.strip() if tab else None, f"{path}, line {number}")
            for number, (text, tab, db_id) in parts
        ]
    found = []
    entries = read_entries(path)
    repeated = repeated_ids(entries)
    for number, entry in enumerate(entries):
        place, values = f"{path}, line {entry.line}", entry.values
        names = ["question", "db_id"] if values.get("db_id") not in (None, "") else ["question"]
        texts = repeated.get(number) or texts_of(entry, names)
        if isinstance(texts, Fault):
            raise DataError(f"{place}: {texts.detail}.\nMend the file, or remove the entry.")
        ids = {name: values[name] for name in IDS if name in values}
        found.append(Asked(texts["question"], texts.get("db_id"), place, ids))
    return found


def write(
    path: Path, asked: Sequence[Asked], questions: Sequence[Question], pairs: Sequence[tuple[str, Execution]]
) -> None:
    """One row per question: a table where the name ends in .csv, else JSON lines with the first rows of each result."""
    rows = [
        {
            **each.ids,
            "question": question.text,
            "db_id": question.schema.db_id,
            "sql": query,
            "error": result.error,
            "row_count": len(result.rows),
            "columns": list(result.columns),
            "rows": [list(row) for row in result.rows[:ROWS_WRITTEN]],
        }
        for each, question, (query, result) in zip(asked, questions, pairs, strict=True)
    ]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in LISTS]
                table = csv.DictWriter(file, names, extrasaction="ignore")
                table.writeheader()
                table.writerows(rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Type --output with another file.") from None


# Conversation ------------------------------------------------------------------------------------------


def converse(recipe: Answering, model: PreTrainedModel, request: Request) -> str:
    """Read questions and commands until the input ends."""
    place = request.db
    resolve(place, [Asked("?", None, "--db")])
    print(f"Ask {place}, or type /db FILE, /{' N, /'.join(OVERRIDES)} N, or /quit.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return ""
        if line in ("/quit", "/exit"):
            return ""
        try:
            if line.startswith("/db "):
                resolve(line[4:].strip(), [Asked("?", None, "/db")])
                place = line[4:].strip()
            elif line.startswith("/"):
                recipe = _with_setting(recipe, line[1:].split())
            elif line:
                (question,) = resolve(place, [Asked(line, None, "the question")])
                print(shown(question, *answers(recipe, model, [question])[0]))
        except (ConfigError, DataError) as error:
            print(error)


def _with_setting(recipe: Answering, words: list[str]) -> Answering:
    """The recipe with the setting of a line like `/num_beams 4`. Raises ConfigError if the line is not one."""
    try:
        name, text = words
        kind = type(getattr(recipe.generation_settings, name)) if name in OVERRIDES else None
        value = {"true": True, "false": False}[text] if kind is bool else kind(text)  # type: ignore[misc]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"Wanted: /db FILE, or /{' N, /'.join(OVERRIDES)} N.") from None
    print(f"{name} = {value}")
    return changed(recipe, **{name: value})
