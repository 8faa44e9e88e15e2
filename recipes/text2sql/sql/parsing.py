"""SQL text as a tree of sqlglot, only where sqlglot reads it as SQLite does."""

from __future__ import annotations

import functools
import logging
import re
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlglot import exp


def parsed(sql: str) -> exp.Query | None:
    """The tree of one query, or None. Callers change trees, so they are never cached."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    if not is_grammatical(sql):
        return None
    try:
        statements = sqlglot.parse(sql.strip().removesuffix(";"), dialect="sqlite")
    except (SqlglotError, RecursionError):
        return None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        return None
    tree = statements[0]
    # sqlglot reads two things differently from SQLite: `SELECT 'a' 'b'`, where 'b' is an alias, and comparisons in
    # a row without parentheses (`a = b NOT IN (...)`), which SQLite reads from left to right.
    if tree.find(exp.Concat) and "concat" not in sql.lower():
        return None
    for join in tree.find_all(exp.Join):
        # sqlglot prints VALUES without an alias in a JOIN without its parentheses.
        if isinstance(join.this, exp.Values) and not join.this.alias:
            join.set("this", exp.Subquery(this=join.this.copy()))
    if "cross" not in sql.lower():
        # sqlglot turns a comma into CROSS JOIN, with which SQLite must not reorder the tables.
        for join in tree.find_all(exp.Join):
            if join.kind == "CROSS":
                join.set("kind", None)
    comparisons = (exp.EQ, exp.NEQ, exp.Is, exp.In, exp.Like, exp.Glob, exp.Between, exp.Not)
    for node in tree.find_all(*comparisons):
        above = node.parent
        is_operand = isinstance(above, exp.Binary | exp.Predicate) and not isinstance(above, exp.Connector | exp.Escape)
        if is_operand and node.arg_key in ("this", "expression"):
            return None
    return tree


def is_grammatical(sql: str) -> bool:
    """Whether SQLite's grammar accepts the text. sqlglot silently repairs some mistakes, such as `SELECT , name`."""
    try:
        _empty_database().execute(f"EXPLAIN {sql}").close()
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        # The tables are missing here, so only errors about the text itself count.
        return _UNGRAMMATICAL.search(str(error)) is None
    return True


_UNGRAMMATICAL = re.compile(
    "syntax error|incomplete input|unrecognized token|stack overflow|one statement|null character|codec|too large"
)


@functools.cache
def _empty_database() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)
