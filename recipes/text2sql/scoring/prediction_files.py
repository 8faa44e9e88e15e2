"""Files of gold queries and of predictions, in the formats that the official programs read, paired line by line.

The official programs stop at the end of the shorter file without a message. Here a different number of predictions is
an error that names both numbers. What was guessed, or looks wrong, becomes a note beside the scores.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import DataError

BETWEEN = "\t----- bird -----\t"
"""Stands between query and database in BIRD's predictions."""
SPIDER = "one query on each line (Spider's format)"
BIRD = 'a JSON object {"0": "SQL\\t----- bird -----\\tdb_id", ...} or a JSON list of queries (BIRD\'s format)'
WIKISQL = '{"query": {"sel", "agg", "conds"}} on each line (WikiSQL\'s format)'
WIKISQL_GOLD = '{"table_id", "sql": {"sel", "agg", "conds"}} on each line (WikiSQL\'s dev.jsonl)'
METRICS = {SPIDER: "spider_em, spider_exec or test_suite", BIRD: "bird_ex or bird_ves", WIKISQL: "wikisql_lf"}

_LINE_ENDS = re.compile(r"\s*[\r\n\t]\s*")


@dataclasses.dataclass
class Pairs:
    """(predicted, gold, database) of each pair; for WikiSQL, two JSON objects and the table's name. And notes."""

    pairs: list[tuple[Any, Any, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


# One file ----------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a file, with or without a byte order mark. Raises DataError if it is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    if data.startswith(b"SQLite format 3\0"):
        raise DataError(f"{path} is a SQLite database: --gold and --pred are files of queries, --data.dir a folder.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        byte, line = data[error.start], data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is {'UTF-16' if wide else 'not UTF-8'}: line {line} has the "
            f"byte 0x{byte:02x}.\n"
            f"Save it as UTF-8; on a shell: iconv -f {'UTF-16' if wide else 'LATIN1'} -t UTF-8 FILE > NEW."
        ) from None


def lines_of(text: str) -> list[str]:
    """The lines of a text as the official programs read them: without the blanks around each line."""
    parts = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [part.strip() for part in (parts if parts[-1] else parts[:-1])]


def read_json(path: Path) -> Any:
    """The content of a JSON file, with or without a byte order mark."""
    try:
        return json.loads(read_text(path).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error


def _read(path: Path, flag: str) -> tuple[str, list[str]]:
    text = read_text(path)
    lines = lines_of(text)
    if not any(line.removeprefix("\ufeff") for line in lines):
        raise DataError(f"{path} is empty: type {flag} with a file that has {_HOLDS[flag]} in it.")
    return text, lines


_HOLDS = {"--gold": "the right queries", "--pred": "predictions"}


def _objects(lines: Sequence[str]) -> list[dict[str, Any]] | None:
    """The objects of a file of JSON lines; None if a line is not an object."""
    found = []
    for line in lines:
        if line:
            try:
                found.append(json.loads(line.removeprefix("\ufeff")))
            except ValueError:
                return None
            if not isinstance(found[-1], dict):
                return None
    return found


def _kind(text: str, lines: Sequence[str]) -> str:
    """What a file looks like, in words."""
    objects = _objects(lines)
    if objects is not None and not (len(objects) == 1 and all(key.isdigit() for key in objects[0])):
        return WIKISQL if "query" in objects[0] else f"JSON lines with {', '.join(list(objects[0])[:4]) or 'nothing'}"
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except ValueError:
        written = [line.removeprefix("\ufeff") for line in lines if line]
        # One query that begins so is a bad query.
        broken = sum(line.startswith(("{", "}", "[", "]", '"')) for line in written) > len(written) / 2
        return "broken JSON" if broken and written[0].startswith(("{", "[")) else SPIDER
    if isinstance(value, Mapping) or isinstance(value, list) and all(isinstance(part, str) for part in value):
        return BIRD
    return "a JSON list of objects" if isinstance(value, list) else SPIDER


def _other_format(path: Path, text: str, lines: Sequence[str], wanted: str) -> DataError:
    kind = _kind(text, lines)
    known = f"; type --metric {METRICS[kind]} if that is what it is for" if kind in METRICS and kind != wanted else ""
    return DataError(f"{path} is not in the format of this metric: it looks like {kind}.\nWanted is {wanted}{known}.")


def _own_rows(path: Path, lines: Sequence[str]) -> list[tuple[str, str | None]] | None:
    """(query, database) of a file that `relay evaluate --output` wrote; None for another kind of file."""
    objects = _objects(lines)
    if not objects or "predicted" not in objects[0]:
        return None
    try:
        return [(_LINE_ENDS.sub(" ", row["predicted"]).strip(), row.get("db_id")) for row in objects]
    except (KeyError, TypeError) as error:
        raise DataError(
            f'{path} has a line without "predicted": give the rows that relay evaluate wrote, or one query a line.'
        ) from error


def _questions(path: Path, text: str) -> list[tuple[str, str]]:
    """(query, database) of a JSON list of questions, as Spider and BIRD have them."""
    try:
        entries = json.loads(text.removeprefix("\ufeff"))
        return [(entry["query"] if "query" in entry else entry["SQL"], entry["db_id"]) for entry in entries]
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no list of questions with query (or SQL) and db_id.") from error


def _is_json(path: Path, text: str) -> bool:
    # No query begins with a bracket.
    return path.suffix == ".json" or text.removeprefix("\ufeff").lstrip().startswith("[")


def _no_database(path: Path, number: int, line: str) -> DataError:
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return DataError(
        f"Line {number} of {path} has no database: {shown!r}.\n"
        "Wanted is SQL, a tab and the db_id on each line of --gold. Are --gold and --pred in each other's place?"
    )


def _counts(pred: Path, predictions: int, gold: Path, queries: int, advice: str) -> DataError:
    return DataError(
        f"{pred} has {predictions:,} predictions, and {gold} has {queries:,} queries.\n"
        f"The official program would score the first {min(predictions, queries):,} and say nothing. {advice}"
    )


def _named_otherwise(names: Sequence[tuple[str | None, str]]) -> list[str]:
    """A note if predictions name another database than the gold queries at the same places."""
    wrong = [index for index, (named, name) in enumerate(names) if named and named != name]
    if not wrong:
        return []
    named, name = names[wrong[0]]
    return [
        f"{len(wrong):,} predictions name another database than their gold query, first pair {wrong[0]} ({named}, not "
        f"{name}): are the files in one order?"
    ]


# Spider ------------------------------------------------------------------------------------------------


def spider(gold: Path, pred: Path) -> Pairs:
    """The pairs of two files of lines; a blank line of gold stands between two dialogues.

    Raises DataError where the numbers differ; but the programs leave blank lines out, so where that makes the
    numbers equal, it is done.
    """
    found = Pairs()
    queries = _spider_gold(gold)
    text, lines = _read(pred, "--pred")
    own = _own_rows(pred, lines)
    if own is not None:
        if len(own) != sum(map(bool, queries)):
            advice = "Give the rows of all of them: relay evaluate without --max_eval_examples."
            raise _counts(pred, len(own), gold, sum(map(bool, queries)), advice)
        queries = [query for query in queries if query]
        predictions = [f"{query}\t{name or ''}" for query, name in own]
    elif _kind(text, lines) != SPIDER:
        raise _other_format(pred, text, lines, SPIDER)
    else:
        if text.startswith("\ufeff"):
            # The programs do not stop at it, and it spoils the first prediction.
            found.notes.append("the predictions begin with a byte order mark, which spoils the first, as officially")
        queries, predictions = _of_one_length(gold, queries, pred, text, lines, found.notes)
    names = []
    for number, (line, query) in enumerate(zip(predictions, queries, strict=True), 1):
        if query:
            parts = query.split("\t")
            if len(parts) < 2:
                raise _no_database(gold, number, query)
            written, _, named = line.partition("\t")
            names.append((named.strip() or None, parts[1]))
            found.pairs.append((written, parts[0], parts[1]))
    found.notes += _named_otherwise(names)
    return found


def _spider_gold(path: Path) -> list[str]:
    text, lines = _read(path, "--gold")
    if _is_json(path, text):
        return [f"{_LINE_ENDS.sub(' ', query).strip()}\t{name}" for query, name in _questions(path, text)]
    queries = [line.removeprefix("\ufeff") for line in lines]
    while not queries[-1]:
        queries.pop()
    return queries


def _of_one_length(
    gold: Path, queries: list[str], pred: Path, text: str, predictions: list[str], notes: list[str]
) -> tuple[list[str], list[str]]:
    while len(predictions) > len(queries) and not predictions[-1]:
        # A blank line is an empty prediction, but not at the end of the file.
        predictions.pop()
    given = len(predictions), len(queries)
    if given[0] != given[1]:
        written, asked = ([line for line in side if line] for side in (predictions, queries))
        if len(written) == len(asked):
            notes.append(f"blank lines left out ({given[0]:,} predictions, {given[1]:,} lines of gold), as officially")
            predictions, queries = written, asked
        elif given[0] == given[1] - 1 and text.endswith(("\n", "\r")):
            # Lines that were joined, of which the last is empty, end so.
            notes.append(
                f"{pred.name} has one line less than there are queries: the last prediction is taken for empty"
            )
            predictions.append("")
    if len(predictions) != len(queries):
        advice = "Give one prediction\nfor each query, in their order; an empty line is an empty prediction."
        raise _counts(pred, given[0], gold, given[1], advice)
    return queries, predictions


# BIRD --------------------------------------------------------------------------------------------------


def bird(gold: Path, pred: Path) -> Pairs:
    """The pairs of a file of gold queries and of a JSON object, or list, of predictions, each by its place.

    As in the program, the object's keys do not matter, and what is no text is an empty query.
    """
    found = Pairs()
    queries = _bird_gold(gold)
    text, lines = _read(pred, "--pred")
    own = _own_rows(pred, lines)
    if own is None:
        own = _bird_predictions(pred, text, lines, found.notes)
    if len(own) != len(queries):
        advice = "Give one prediction\nfor each query, in their order; an empty text is an empty prediction."
        raise _counts(pred, len(own), gold, len(queries), advice)
    found.pairs = [(written, query, name) for (written, _), (query, name) in zip(own, queries, strict=True)]
    found.notes += _named_otherwise([(named, name) for (_, named), (_, name) in zip(own, queries, strict=True)])
    return found


def _bird_gold(path: Path) -> list[tuple[str, str]]:
    text, lines = _read(path, "--gold")
    if _is_json(path, text):
        return _questions(path, text)
    queries = []
    for number, line in enumerate(lines, 1):
        sql, tab, name = line.removeprefix("\ufeff").rpartition("\t")
        if line and not tab:
            raise _no_database(path, number, line)
        if line:
            queries.append((sql, name))
    return queries


def _bird_predictions(path: Path, text: str, lines: Sequence[str], notes: list[str]) -> list[tuple[str, str | None]]:
    try:
        values = json.loads(text.removeprefix("\ufeff"))
    except ValueError:
        raise _other_format(path, text, lines, BIRD) from None
    if isinstance(values, Mapping):
        if list(values) != [str(number) for number in range(len(values))]:
            notes.append("the keys of the predictions are not 0, 1, 2, ...: they count by their place, as officially")
        values = list(values.values())
    elif not isinstance(values, list) or not all(isinstance(value, str | None) for value in values):
        raise _other_format(path, text, lines, BIRD)
    if not values:
        raise DataError(f"{path} has no predictions: wanted is {BIRD}.")
    found: list[tuple[str, str | None]] = []
    for value in values:
        parts = value.split(BETWEEN) if isinstance(value, str) else [" "]
        both = len(parts) == 2
        found.append((parts[0], parts[1].strip()) if both else (value.strip() if isinstance(value, str) else " ", None))
    others = sum(not isinstance(value, str) for value in values)
    if others:
        notes.append(f"{others:,} predictions are no text: each is an empty query")
    return found


# WikiSQL -----------------------------------------------------------------------------------------------


def wikisql(gold: Path, pred: Path) -> Pairs:
    """The pairs of two files of JSON lines: what was predicted, the structured gold query, the table."""
    questions = _wikisql_lines(gold, "--gold", WIKISQL_GOLD, _is_question)
    answers = _wikisql_lines(pred, "--pred", WIKISQL, lambda _: True)
    if not any("query" in answer or answer.get("error") for answer in answers):
        # One line without them is a bad prediction, and all of them are of another file.
        raise _no_wikisql(pred, "No line", WIKISQL)
    if len(questions) != len(answers):
        raise _counts(pred, len(answers), gold, len(questions), "Give one line for each.")
    return Pairs([(answer, ask["sql"], ask["table_id"]) for ask, answer in zip(questions, answers, strict=True)])


def _wikisql_lines(path: Path, flag: str, wanted: str, fits: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(_read(path, flag)[1], 1):
        if line:
            try:
                found.append(json.loads(line.removeprefix("\ufeff")))
            except ValueError:
                raise _no_wikisql(path, f"Line {number}", wanted) from None
            if not (isinstance(found[-1], dict) and fits(found[-1])):
                raise _no_wikisql(path, f"Line {number}", wanted)
    return found


def _no_wikisql(path: Path, which: str, wanted: str) -> DataError:
    text = read_text(path)
    kind = _kind(text, lines_of(text))
    known = f"; type --metric {METRICS[kind]} if that is what it is for" if kind in (SPIDER, BIRD) else ""
    has = "is" if which == "No line" else "is not"
    return DataError(f"{which} of {path} {has} in the format of this metric.\nWanted is {wanted}{known}.")


def _is_question(entry: Mapping[str, Any]) -> bool:
    query = entry.get("sql")
    conditions = query.get("conds") if isinstance(query, Mapping) and {"sel", "agg"} <= query.keys() else None
    return (
        isinstance(entry.get("table_id"), str)
        and isinstance(conditions, list)
        and all(isinstance(condition, list) and len(condition) == 3 for condition in conditions)
    )
