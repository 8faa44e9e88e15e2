"""Asking databases with a trained model: one question, a file of them, or a conversation in the terminal."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.text2sql.data.questions import Question
from recipes.text2sql.sql.execution import Execution, execute
from recipes.text2sql.sql.schema import Schema
from runner.errors import ConfigError, DataError

OVERRIDES = (
    "constrained", "num_beams", "temperature", "top_p", "num_candidates", "execution_guided", "voting", "seed",
)  # fmt: skip
"""Settings of `generation` that a request may change."""
ENDINGS = (".sqlite", ".sqlite3", ".db")
ROWS_SHOWN, ROWS_WRITTEN = 20, 100


def answer(recipe: Any, model: Any, request: Any) -> str:
    """What `relay predict` prints."""
    recipe = changed(recipe, **{name: getattr(request, name) for name in OVERRIDES})
    if request.interactive:
        return converse(recipe, model, request)
    if request.questions is None:
        (question,) = resolve(request.db, [(request.question, None)], "--question")
        return shown(question, *answers(recipe, model, [question])[0])
    path = Path(request.questions)
    questions = resolve(request.db, read_questions(path), str(path))
    pairs: list[tuple[str, Execution]] = []
    for first in range(0, len(questions), request.batch_size):
        pairs += answers(recipe, model, questions[first : first + request.batch_size])
    if request.output is None:
        return "\n\n".join(shown(question, *pair) for question, pair in zip(questions, pairs, strict=True))
    write(Path(request.output), questions, pairs)
    run = sum(result.error is None for _, result in pairs)
    databases = len({question.database for question in questions})
    return f"{len(questions)} questions about {databases} databases -> {request.output}: the SQL of {run} runs"


def changed(recipe: Any, **settings: Any) -> Any:
    """The recipe with other settings of `generation`; None leaves one as it was trained."""
    given = {name: value for name, value in settings.items() if value is not None}
    generation = dataclasses.replace(recipe.generation_settings, **given)
    return dataclasses.replace(recipe, generation_settings=generation)


def answers(recipe: Any, model: Any, questions: list[Question]) -> list[tuple[str, Execution]]:
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


def resolve(place: str, asked: Iterable[tuple[str, str | None]], source: str) -> list[Question]:
    """Questions with the databases that they are about: all about the file `place`, or each about one of its folder."""
    found: dict[str | None, Question] = {}
    questions = []
    for number, (text, db_id) in enumerate(asked, 1):
        if not text.strip():
            raise DataError(f"{source}: question {number} is empty: write a question, in English.")
        if db_id not in found:
            path = database(place, db_id, f"{source}: question {number}")
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


def read_questions(path: Path) -> list[tuple[str, str | None]]:
    """(question, db_id or None) of a file: JSON as Spider's, JSON lines, or a question, perhaps a tab and a db_id, on
    each line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Type --questions with a file.") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} holds no question: write one on each line.")
    if path.suffix not in (".json", ".jsonl"):
        parts = [line.split("\t") for _, line in lines]
        return [(part[0].strip(), part[1].strip() if len(part) > 1 else None) for part in parts]
    try:
        entries = json.loads(text) if path.suffix == ".json" else [json.loads(line) for _, line in lines]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} holds no questions: wanted a JSON list of objects with question and db_id.")
    found = []
    for number, entry in enumerate(entries, 1):
        known = entry if isinstance(entry, dict) else {}
        question, db_id = known.get("question"), known.get("db_id")
        if not isinstance(question, str) or not isinstance(db_id, str | None):
            raise DataError(f'{path}: entry {number} is not an object with the texts "question" and "db_id".')
        found.append((question, db_id))
    return found


def write(path: Path, questions: list[Question], pairs: list[tuple[str, Execution]]) -> None:
    """One row per question: a table where the name ends in .csv, else JSON lines with the first rows of each result."""
    rows = [
        {
            "question": question.text,
            "db_id": question.schema.db_id,
            "sql": query,
            "error": result.error,
            "row_count": len(result.rows),
            "columns": list(result.columns),
            "rows": [list(row) for row in result.rows[:ROWS_WRITTEN]],
        }
        for question, (query, result) in zip(questions, pairs, strict=True)
    ]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                table = csv.DictWriter(file, list(rows[0])[:5], extrasaction="ignore")
                table.writeheader()
                table.writerows(rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Type --output with another file.") from None


# Conversation ------------------------------------------------------------------------------------------


def converse(recipe: Any, model: Any, request: Any) -> str:
    """Read questions and commands until the input ends."""
    place = request.db
    resolve(place, [("?", None)], "--db")
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
                resolve(line[4:].strip(), [("?", None)], "/db")
                place = line[4:].strip()
            elif line.startswith("/"):
                recipe = _told(recipe, line[1:].split())
            elif line:
                (question,) = resolve(place, [(line, None)], "the question")
                print(shown(question, *answers(recipe, model, [question])[0]))
        except (ConfigError, DataError) as error:
            print(error)


def _told(recipe: Any, words: list[str]) -> Any:
    """The recipe with what a line like `/num_beams 4` says. Raises ConfigError where that cannot be."""
    try:
        name, text = words
        kind = type(getattr(recipe.generation_settings, name)) if name in OVERRIDES else None
        value = {"true": True, "false": False}[text] if kind is bool else kind(text)  # type: ignore[misc]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"Wanted: /db FILE, or /{' N, /'.join(OVERRIDES)} N.") from None
    print(f"{name} = {value}")
    return changed(recipe, **{name: value})
