"""Names of tables and columns in SQL: how SQLite compares them, and which of them need quotes."""

from __future__ import annotations

import functools
import re
import sqlite3
import string
from collections.abc import Iterator

from recipes.text2sql.sql.parsing import parsed

_PIECE = re.compile(
    r"""(?P<text>'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*")|(?P<token><[vtc]\d+>)"""
    r"""|(?P<space>\s+)|(?P<word>[\w$\x80-\U0010ffff]+)|(?P<sign>.)""",
    re.DOTALL,
)


def pieces(sql: str) -> Iterator[tuple[str, str]]:
    """(kind, piece) for each piece of any text; joined, the pieces are the text.

    Kinds: "text" ('...'), "name" ("..."), "token" (<v0>, <t0> or <c0>), "space", "word" (as SQLite reads words) and
    "sign" (any other character).
    """
    for match in _PIECE.finditer(sql):
        yield match.lastgroup or "sign", match[0]


def fold(name: str) -> str:
    """Lower case as SQLite compares names: ASCII letters only."""
    return name.translate(_ASCII_LOWER)


_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def quoted(name: str) -> str:
    """The name in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def unquoted(piece: str) -> str:
    """The name that a piece of SQL stands for, with or without double quotes."""
    return piece[1:-1].replace('""', '"') if piece[:1] == '"' else piece


def spelled(name: str) -> str:
    """The name as SQL, in quotes only where it needs them."""
    return name if is_bare(name) else quoted(name)


@functools.lru_cache(maxsize=50_000)
def is_bare(name: str) -> bool:
    """Whether SQLite and sqlglot read the name without quotes, wherever a table or a column may stand."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return name.upper() not in keywords() or _is_read(name)
    return re.fullmatch(r"[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*", name) is not None and _is_read(name)


_PLACES = (
    "SELECT {0}, a, {0} FROM {0}",
    "SELECT DISTINCT {0} FROM {0} WHERE {0} = 'text' AND NOT {0} IN ('') AND {0} BETWEEN 'a' AND 'z' AND {0} LIKE {0} "
    "AND 'a' < {0} GROUP BY {0}, a HAVING MAX({0}) > '' ORDER BY {0} DESC, {0} LIMIT 1",
    "SELECT t1.{0} FROM {0} AS t1 JOIN {0} AS t2 ON t1.{0} = t2.{0} LEFT JOIN {0} AS t3 ON t1.{0} = t3.{0}",
    "SELECT {0} FROM {0} WHERE {0} IS NULL OR NOT {0} IS NULL UNION SELECT {0} FROM {0} ORDER BY {0}",
    "SELECT a FROM {0} WHERE a IN (SELECT {0} FROM {0}) AND EXISTS(SELECT {0} FROM {0} ORDER BY {0})",
    "SELECT {0}.{0} FROM {0} GROUP BY {0}.a ORDER BY a",
    "SELECT t1.a FROM {0} AS t1, {0} AS t2 WHERE '1' < -t1.{0} OR t1.{0} - t2.{0} = 2 * t1.{0} / t2.{0}",
    "SELECT a FROM {0} WHERE '1' < -{0} OR ({0}) - {0} = 2 * {0} / {0} LIMIT 1",
    "SELECT a FROM {0} GROUP BY a HAVING COUNT(DISTINCT {0}) > SUM({0}) + AVG({0} + 1) ORDER BY MIN({0}) LIMIT 1",
    "SELECT {0} AS a FROM (SELECT {0} FROM {0} LIMIT 1)",
)
"""Queries with a name in every place where a table or a column may stand."""


def _is_read(name: str) -> bool:
    """Whether SQLite and sqlglot read the name without quotes as the one with quotes."""
    from sqlglot import exp

    with_ = f"WITH {quoted(name)}(a, {quoted(name)}) AS (SELECT 'text', 'text') "
    connection = sqlite3.connect(":memory:")
    try:
        for place in _PLACES:
            rows = connection.execute(with_ + place.format(name)).fetchall()
            # A word such as TRUE is a constant, not the column's value.
            if any(value != "text" for row in rows for value in row):
                return False
    except sqlite3.Error:
        return False
    finally:
        connection.close()
    for place in _PLACES:
        bare, meant = parsed(place.format(name)), parsed(place.format(quoted(name)))
        if bare is None or meant is None:
            return False
        for identifier in meant.find_all(exp.Identifier):
            identifier.set("quoted", False)
        printed = bare.sql(dialect="sqlite")
        if printed != meant.sql(dialect="sqlite") or quoted(name) in printed:
            return False
    return True


@functools.cache
def keywords() -> frozenset[str]:
    """What SQLite or sqlglot may read as a keyword, a constant or a function, in upper case."""
    from sqlglot.dialects.sqlite import SQLite

    sqlite = """ABORT ACTION ADD AFTER ALL ALTER ALWAYS ANALYZE AND AS ASC ATTACH AUTOINCREMENT BEFORE BEGIN
    BETWEEN BY CASCADE CASE CAST CHECK COLLATE COLUMN COMMIT CONFLICT CONSTRAINT CREATE CROSS CURRENT
    CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DATABASE DEFAULT DEFERRABLE DEFERRED DELETE DESC DETACH
    DISTINCT DO DROP EACH ELSE END ESCAPE EXCEPT EXCLUDE EXCLUSIVE EXISTS EXPLAIN FAIL FALSE FILTER FIRST
    FOLLOWING FOR FOREIGN FROM FULL GENERATED GLOB GROUP GROUPS HAVING IF IGNORE IMMEDIATE IN INDEX INDEXED
    INITIALLY INNER INSERT INSTEAD INTERSECT INTERVAL INTO IS ISNULL JOIN KEY LAST LEFT LIKE LIMIT MATCH
    MATERIALIZED NATURAL NO NOT NOTHING NOTNULL NULL NULLS OF OFFSET ON OR ORDER OTHERS OUTER OVER PARTITION
    PLAN PRAGMA PRECEDING PRIMARY QUERY RAISE RANGE RECURSIVE REFERENCES REGEXP REINDEX RELEASE RENAME REPLACE
    RESTRICT RETURNING RIGHT ROLLBACK ROW ROWS SAVEPOINT SELECT SET TABLE TEMP TEMPORARY THEN TIES TO
    TRANSACTION TRIGGER TRUE UNBOUNDED UNION UNIQUE UPDATE USING VACUUM VALUES VIEW VIRTUAL WHEN WHERE WINDOW
    WITH WITHIN WITHOUT"""
    reader = SQLite.Parser
    words = {*SQLite.Tokenizer.KEYWORDS, *reader.FUNCTIONS, *reader.FUNCTION_PARSERS, *reader.NO_PAREN_FUNCTION_PARSERS}
    return frozenset(sqlite.split()) | frozenset(map(str.upper, words))
