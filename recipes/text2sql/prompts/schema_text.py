"""The schema in words: tables, columns, types, keys, sample values, descriptions; cut to what fits.

When not all fits, sample values and descriptions stay only with columns that match the question, and then columns go:
first those that share no word with the question and hold none of its values. Only question, schema and database are
looked at, never the answer.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from recipes.text2sql.prompts import prompt
from recipes.text2sql.prompts.prompt import Link
from recipes.text2sql.prompts.values import samples_of
from recipes.text2sql.sql.names import fold, spelled
from recipes.text2sql.sql.schema import Schema

DESCRIPTION_WORDS = 12
TYPES = {"number": "NUMERIC", "text": "TEXT", "time": "TEXT", "boolean": "BOOLEAN"}
"""Spider's words for types -> those of CREATE TABLE."""


@dataclasses.dataclass(frozen=True)
class Style:
    """What is written of a schema, beside the names of tables and columns."""

    tokens: bool = False
    """The token of each name, before it."""
    details: bool = False
    """Types other than text, primary and foreign keys."""
    samples: int = 0
    """Values of each column."""
    descriptions: bool = False
    """What BIRD says of each column."""
    statements: bool = False
    """CREATE TABLE, with names in the database's own spelling, keys and types."""


@dataclasses.dataclass(frozen=True)
class _Column:
    """One column as it may be written."""

    table: str
    words: frozenset[str]
    name: str
    text: str
    """With its type and keys."""
    extra: str
    """Sample values and description."""
    is_key: bool


@functools.lru_cache(maxsize=2048)
def describe(schema: Schema, style: Style, database: str | None) -> str:
    """All of the schema: table : column , column | table : ..."""
    if style == Style(tokens=style.tokens):
        return prompt.describe(schema, style.tokens)
    return _written(schema, style, {(c.table, c.name): c.text + c.extra for c in _columns(schema, style, database)})


def fitting(
    schema: Schema,
    style: Style,
    database: str | None,
    question: str,
    links: Sequence[Link],
    surplus: Callable[[str], int],
    sizes: Callable[[list[str]], list[int]],
) -> str:
    """The part of the schema that fits, the columns that match the question first, in the schema's order.

    surplus(text) says how many tokens too long the prompt is with this text for the schema, sizes(texts) how many
    tokens each text has.
    """
    whole = describe(schema, style, database)
    if surplus(whole) <= 0:
        return whole
    columns = _columns(schema, style, database)
    scores = _scores(columns, _words(question), {name for link in links for name in link.columns})
    texts = [column.text + (column.extra if score > 0 else "") for column, score in zip(columns, scores, strict=True)]
    named = _named(schema, style.tokens)
    heads = [f"CREATE TABLE {spelled(t)} (" if style.statements else f"{named(t)} :" for t in schema.tables]
    headers = dict(zip(schema.tables, sizes(heads), strict=True))
    # Each column and table is followed by a separator, but for the last.
    costs = [cost + 1 for cost in sizes(texts)]
    room = sizes([whole])[0] - surplus(whole) + 1
    kept: list[int] = []
    shown: set[str] = set()
    for number in sorted(range(len(columns)), key=lambda number: (-scores[number], number)):
        table = columns[number].table
        cost = costs[number] + (0 if table in shown else headers[table])
        if cost <= room:
            kept.append(number)
            shown.add(table)
            room -= cost
    while True:
        text = _written(schema, style, {(columns[n].table, columns[n].name): texts[n] for n in kept})
        # A tokenizer may need more for all of it than for its parts.
        if not kept or surplus(text) <= 0:
            return text
        kept.pop()


def _scores(columns: Sequence[_Column], asked: frozenset[str], with_values: set[str]) -> list[float]:
    """How well each column matches the question."""
    own = []
    for column in columns:
        score = 2 * len(column.words & asked) / max(1, len(column.words))
        own.append(score + (3 if fold(column.name) in with_values else 0))
    best: dict[str, float] = {}
    for column, score in zip(columns, own, strict=True):
        words = _words(column.table)
        named = len(words & asked) / max(1, len(words))
        best[column.table] = max(best.get(column.table, 0), score, named)
    # A table that matters is joined by its keys; its other columns matter more than those of other tables.
    return [
        score + best[column.table] * (0.5 if column.is_key else 0.25)
        for column, score in zip(columns, own, strict=True)
    ]


def _words(text: str) -> frozenset[str]:
    # author_id, AuthorID and "Author ID" are the same two words.
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+", text)
    return frozenset(prompt.stem(part.lower()) for part in parts)


def _written(schema: Schema, style: Style, texts: dict[tuple[str, str], str]) -> str:
    named = _named(schema, style.tokens)
    parts = []
    if style.statements:
        return "\n".join(_statements(schema, texts))
    for table, columns in schema.tables.items():
        own = [texts[table, column] for column in columns if (table, column) in texts]
        if own:
            parts.append(f"{named(table)} : {' , '.join(own)}")
    return " | ".join(parts)


def _statements(schema: Schema, texts: dict[tuple[str, str], str]) -> Iterator[str]:
    for table, columns in schema.tables.items():
        own = [texts[table, column] for column in columns if (table, column) in texts]
        keys = [column for owner, column in schema.primary_keys if owner == table]
        if len(keys) > 1 and all((table, key) in texts for key in keys):
            own.append(f"PRIMARY KEY ({', '.join(map(spelled, keys))})")
        if own:
            yield f"CREATE TABLE {spelled(table)} ({', '.join(own)});"


def _literal(value: str, kind: str) -> str:
    return value if kind == "number" else "'" + value.replace("'", "''") + "'"


def _declared(schema: Schema, place: tuple[str, str], kind: str) -> str:
    """A column of a CREATE TABLE statement."""
    text = f"{spelled(place[1])} {TYPES.get(kind, '')}".rstrip()
    if [key for key in schema.primary_keys if key[0] == place[0]] == [place]:
        text += " PRIMARY KEY"
    for key in schema.foreign_keys:
        if key[:2] == place:
            return f"{text} REFERENCES {spelled(key[2])} ({spelled(key[3])})"
    return text


def _named(schema: Schema, tokens: bool) -> Callable[[str], str]:
    names = prompt.names_of(schema) if tokens else {}

    def named(name: str) -> str:
        name = fold(name)
        return f"{names[name]} {name}" if name in names else spelled(name)

    return named


def _columns(schema: Schema, style: Style, database: str | None) -> list[_Column]:
    named, short = _named(schema, style.tokens), prompt.names_of(schema) if style.tokens else {}
    samples = samples_of(database, style.samples) if database and style.samples else {}
    descriptions = descriptions_of(database) if database and style.descriptions else {}
    primary, foreign = set(schema.primary_keys), {key[:2]: key[2:] for key in schema.foreign_keys}
    found = []
    for table, columns in schema.tables.items():
        for column, kind in columns.items():
            place = (table, column)
            text = named(column)
            if style.details:
                text += f" {kind}" if kind != "text" else ""
                text += " key" if place in primary else ""
                if place in foreign:
                    other = [short.get(fold(name)) or spelled(fold(name)) for name in foreign[place]]
                    text += f" -> {other[0]} . {other[1]}"
            folded = (table.lower(), column.lower())
            extra = f" ( {' ; '.join(samples[place])} )" if samples.get(place) else ""
            extra += f' " {descriptions[folded]} "' if descriptions.get(folded) else ""
            if style.statements:
                text = _declared(schema, place, kind)
                notes = [_literal(value, kind) for value in samples.get(place, ())]
                notes += [descriptions[folded]] if descriptions.get(folded) else []
                extra = f" /* {', '.join(notes)} */" if notes and "*/" not in "".join(notes) else ""
            # What a description says of a column can match the question as its name does.
            words = _words(column) | _words(descriptions.get(folded, ""))
            found.append(_Column(table, words, column, text, extra, place in primary or place in foreign))
    return found


@functools.lru_cache(maxsize=512)
def descriptions_of(database: str) -> dict[tuple[str, str], str]:
    """(table, column) in lower case -> its description in BIRD's database_description/, cut to a few words."""
    found: dict[tuple[str, str], str] = {}
    for file in sorted((Path(database).parent / "database_description").glob("*.csv")):
        text = file.read_bytes().decode("utf-8-sig", errors="replace")
        for row in _rows(text):
            fields = {(name or "").strip().lower(): (row[name] or "") for name in row if isinstance(name, str)}
            column = fields.get("original_column_name", "").strip()
            description = fields.get("column_description", "").strip() or fields.get("column_name", "").strip()
            words = re.sub(r"[<>\"|]", " ", description).split()[:DESCRIPTION_WORDS]
            if column and words and " ".join(words).lower() != column.lower():
                found[file.stem.lower(), column.lower()] = " ".join(words)
    return found


def _rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of a table, up to one that is none."""
    with contextlib.suppress(csv.Error):
        yield from csv.DictReader(io.StringIO(text))
