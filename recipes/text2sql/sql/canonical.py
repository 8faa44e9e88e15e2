"""Spellings of SQL with the same result: normalised, canonical (the target of training), and Spider's keywords.

Literals never change: lower-casing them changes the result of one query in five.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from recipes.text2sql.sql.names import fold, is_bare, pieces, quoted
from recipes.text2sql.sql.parsing import parsed
from recipes.text2sql.sql.schema import Schema

if TYPE_CHECKING:
    from sqlglot import exp
    from sqlglot.dialects.sqlite import SQLite


@functools.lru_cache(maxsize=20_000)
def normalise(sql: str, schema: Schema) -> str:
    """The query in one spelling, with the same result.

    Names are in lower case. A name in double quotes that no visible table or column has becomes a string, as SQLite
    reads it. Text that does not parse as one query only has its white space normalised, outside of quotes.
    """
    resolved = _resolve(sql, schema)
    return resolved[0].sql(dialect="sqlite", comments=False) if resolved else _folded(sql)


@functools.lru_cache(maxsize=20_000)
def canonical(sql: str, schema: Schema) -> str:
    """The normalised query with the fewest aliases, prefixes and quotes: the target of training, and what is compared.

    A table that is alone in its FROM loses its alias, and its columns lose their prefix, except where the bare name
    would mean something else. Other tables, and those whose columns an inner query uses, are called t1, t2, ... in
    their order, outer queries first. Names are in quotes only where they need them. There is no semicolon.
    """
    resolved = _resolve(sql, schema)
    if resolved is None:
        return _folded(sql).rstrip("; ")
    tree, scopes = resolved
    _shorten(scopes, schema)
    _quote(tree)
    return tree.sql(dialect="sqlite", comments=False)


def _folded(sql: str) -> str:
    """The text with one space for all white space outside of quotes."""
    return "".join(" " if kind == "space" else piece for kind, piece in pieces(sql)).strip()


@functools.lru_cache(maxsize=20_000)
def plain(sql: str) -> str:
    """The query with the operators that Spider's grammar has; text that does not parse is returned as it is.

    `a != b` and `a NOT IN (...)` replace `a <> b` and `NOT a IN (...)` of the canonical spelling. `ON TRUE` goes.
    """
    from sqlglot.dialects.sqlite import SQLite

    tree = parsed(sql)
    return sql if tree is None else _plain_generator()(dialect=SQLite(), comments=False).generate(tree)


@functools.cache
def _plain_generator() -> type[SQLite.Generator]:
    from sqlglot import exp
    from sqlglot.dialects.sqlite import SQLite

    class Generator(SQLite.Generator):
        def neq_sql(self, expression: exp.NEQ) -> str:
            return self.binary(expression, "!=")

        def not_sql(self, expression: exp.Not) -> str:
            inner = expression.this
            left = self.sql(inner, "this")
            text = self.sql(inner)
            if not isinstance(inner, exp.In | exp.Like | exp.Between) or not text.startswith(f"{left} "):
                return super().not_sql(expression)
            return f"{left} NOT{text.removeprefix(left)}"

        def join_sql(self, expression: exp.Join) -> str:
            return super().join_sql(expression).removesuffix(" ON TRUE")

    return Generator


@dataclasses.dataclass
class _Source:
    """One entry of a FROM."""

    name: str
    """The name that a prefix uses, folded; empty if there is none."""
    node: exp.Expr
    columns: frozenset[str] | None
    """Folded; None if they are not known."""
    inner_use: bool = False
    prefix: str | None = None
    """The new alias; None: no alias."""


@dataclasses.dataclass
class _Use:
    """A use of a column, and the clause it is in."""

    column: exp.Column
    clause: str
    source: _Source | None = None
    scope: _Scope | None = None
    """The SELECT whose FROM has the source."""


@dataclasses.dataclass
class _Scope:
    """A SELECT, its tables and the uses of columns in it."""

    parent: _Scope | None
    clause_in_parent: str
    known_tables: Mapping[str, frozenset[str] | None]
    """Names of the queries of WITH -> their columns."""
    sources: list[_Source] = dataclasses.field(default_factory=list)
    aliases: dict[str, list[exp.Expr | None]] = dataclasses.field(default_factory=dict)
    """Aliases of result columns -> their expressions; None for those of a compound's other arms."""
    uses: list[_Use] = dataclasses.field(default_factory=list)
    other_arms: frozenset[str] | None = frozenset()
    """Result columns of a compound's other arms, which only its ORDER BY can name; None if they are not known."""
    odd: bool = False
    """This SELECT has syntax that is not analysed, so no alias of the query is changed."""


def _resolve(sql: str, schema: Schema) -> tuple[exp.Query, list[_Scope]] | None:
    """The normalised tree and its scopes, outer before inner; None if the text is not one query."""
    from sqlglot import exp

    tree = parsed(sql)
    if tree is None:
        return None
    scopes: list[_Scope] = []
    try:
        _enter_query(tree, None, "", {}, schema, scopes)
    except RecursionError:
        return None
    untouched = set()
    for scope in scopes:
        for use in scope.uses:
            name = use.column.this
            if use.column.table or not isinstance(name, exp.Identifier) or not name.quoted:
                continue
            visible = _is_visible(fold(name.name), use.clause, scope)
            if visible is None:
                untouched.add(id(name))
            elif not visible and quoted(name.name) not in sql:
                return None  # In brackets or backticks it is no string, but an error.
            elif not visible:
                use.column.replace(exp.Literal.string(name.name))
    for identifier in tree.find_all(exp.Identifier):
        if id(identifier) not in untouched:
            identifier.set("this", fold(identifier.name))
    for scope in scopes:  # Columns that became strings are no columns any more.
        scope.uses = [use for use in scope.uses if use.column.parent is not None]
    return tree, scopes


def _is_visible(name: str, clause: str, scope: _Scope) -> bool | None:
    """Whether a name without a prefix is a column or an alias of a result here; None if that is not known."""
    at: _Scope | None = scope
    unknown = False
    while at is not None:
        if any(source.columns is not None and name in source.columns for source in at.sources):
            return True
        # A SELECT list does not see its own aliases; every other clause does.
        if clause != "select" and name in at.aliases:
            return True
        if clause == "compound" and at.other_arms is not None and name in at.other_arms:
            return True
        unknown = unknown or any(source.columns is None for source in at.sources)
        unknown = unknown or (clause == "compound" and at.other_arms is None)
        clause, at = at.clause_in_parent, at.parent
    return None if unknown else False


def _enter_query(
    node: exp.Expr,
    parent: _Scope | None,
    clause: str,
    known: Mapping[str, frozenset[str] | None],
    schema: Schema,
    scopes: list[_Scope],
) -> tuple[frozenset[str] | None, _Scope | None]:
    """Append the scopes of a query; returns the names of its result columns and its leftmost SELECT."""
    from sqlglot import exp

    with_ = node.args.get("with_")
    if with_ is not None:
        known = dict(known)
        for table in with_.expressions:
            name, listed = fold(table.alias), [fold(column.name) for column in table.args["alias"].columns]
            if with_.args.get("recursive"):
                known[name] = frozenset(listed) if listed else None
            columns, _ = _enter_query(table.this, parent, clause, dict(known), schema, scopes)
            known[name] = frozenset(listed) if listed else columns
    if isinstance(node, exp.SetOperation):
        columns, scope = _enter_query(node.left, parent, clause, known, schema, scopes)
        others, other = _enter_query(node.right, parent, clause, known, schema, scopes)
        if scope is not None:
            for name, meanings in (other.aliases if other else {}).items():
                # The ORDER BY of a compound sees the aliases of all its arms.
                scope.aliases.setdefault(name, []).extend([*meanings, None])
            scope.other_arms = None if others is None or scope.other_arms is None else scope.other_arms | others
            for part in ("order", "limit", "offset"):
                if node.args.get(part) is not None:
                    _enter(node.args[part], scope, "compound", schema, scopes)
        return columns, scope
    if isinstance(node, exp.Subquery):
        return _enter_query(node.this, parent, clause, known, schema, scopes)
    scope = _Scope(parent, clause, known)
    scopes.append(scope)
    if not isinstance(node, exp.Select):
        scope.odd = True
        for child in node.iter_expressions():
            _enter(child, scope, "where", schema, scopes)
        return None, scope
    for expression in node.expressions:
        if isinstance(expression, exp.Alias):
            scope.aliases.setdefault(fold(expression.alias), []).append(expression.this)
    from_ = node.args.get("from_")
    tables = [from_.this] if from_ is not None else []
    joins = node.args.get("joins") or []
    for table in [*tables, *(join.this for join in joins)]:
        _add_source(table, scope, schema, scopes)
    for expression in node.expressions:
        _enter(expression, scope, "select", schema, scopes)
    for join in joins:
        if join.args.get("on") is not None:
            _enter(join.args["on"], scope, "where", schema, scopes)
    clauses = {"where": "where", "group": "group", "having": "group", "order": "order"}
    done = {"with_", "expressions", "from_", "joins"}
    for part in [*clauses, *(part for part in node.args if part not in clauses and part not in done)]:
        value = node.args.get(part)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, exp.Expression):
                _enter(item, scope, clauses.get(part, "where"), schema, scopes)
    return _result_columns(node, scope), scope


def _enter(node: exp.Expr, scope: _Scope, clause: str, schema: Schema, scopes: list[_Scope]) -> None:
    from sqlglot import exp

    if isinstance(node, exp.Column):
        scope.uses.append(_Use(node, clause))
        scope.odd = scope.odd or node.args.get("db") is not None
    elif isinstance(node, exp.Query) and not isinstance(node, exp.Subquery):
        _enter_query(node, scope, clause, scope.known_tables, schema, scopes)
    else:
        for child in node.iter_expressions():
            _enter(child, scope, clause, schema, scopes)


def _add_source(node: exp.Expr, scope: _Scope, schema: Schema, scopes: list[_Scope]) -> None:
    from sqlglot import exp

    columns = None
    if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
        name = fold(node.name)
        scope.odd = scope.odd or node.args.get("db") is not None
        columns = scope.known_tables[name] if name in scope.known_tables else schema.folded.get(name)
        scope.sources.append(_Source(fold(node.alias) or name, node, columns))
    elif isinstance(node, exp.Subquery) and isinstance(node.this, exp.Table):
        scope.odd = scope.odd or bool(node.alias)
        _add_source(node.this, scope, schema, scopes)
    elif isinstance(node, exp.Subquery):
        # A query in FROM sees what surrounds this SELECT, not its neighbours.
        columns, _ = _enter_query(node.this, scope.parent, scope.clause_in_parent, scope.known_tables, schema, scopes)
        scope.sources.append(_Source(fold(node.alias), node, columns))
    else:  # A function that makes a table, VALUES, ...
        scope.odd = True
        scope.sources.append(_Source(fold(node.alias), node, None))
        for child in node.iter_expressions():
            if not isinstance(child, exp.TableAlias):
                _enter(child, scope, "where", schema, scopes)
    for join in node.args.get("joins") or []:
        _add_source(join.this, scope, schema, scopes)
        if join.args.get("on") is not None:
            _enter(join.args["on"], scope, "where", schema, scopes)


def _result_columns(select: exp.Expr, scope: _Scope) -> frozenset[str] | None:
    from sqlglot import exp

    columns: set[str] = set()
    for expression in select.expressions:
        if expression.is_star:
            prefix = fold(expression.table) if isinstance(expression, exp.Column) else ""
            for source in scope.sources:
                if prefix in ("", source.name):
                    if source.columns is None:
                        return None
                    columns |= source.columns
        elif isinstance(expression, exp.Alias | exp.Column):
            columns.add(fold(expression.alias_or_name))
        else:
            columns.add(fold(expression.sql(dialect="sqlite")))
    return frozenset(columns)


def _shorten(scopes: list[_Scope], schema: Schema) -> None:
    """Set the canonical aliases, or change none if a scope is `odd` or a column's table is not known."""
    from sqlglot import exp

    taken = set(schema.folded).union(*schema.folded.values(), *(scope.known_tables for scope in scopes))
    for scope in scopes:
        names = [source.name for source in scope.sources if source.name]
        if scope.odd or len(set(names)) < len(names):
            return
        for use in scope.uses:
            if not use.column.table:
                # A bare table's name as a value is a full-text search: it needs the name as it is.
                if use.column.name in names and _is_visible(use.column.name, use.clause, scope) is not True:
                    return
                continue
            at: _Scope | None = scope
            while at is not None and use.source is None:
                # An inner alias hides an outer one of the same name only for the columns that it has.
                use.source = next((source for source in at.sources if _has(source, use.column)), None)
                use.scope, at = at, at.parent
            if use.source is None:
                return
            if use.scope is not scope:
                use.source.inner_use = True
    number = 0
    for scope in scopes:
        alone = len(scope.sources) == 1
        for source in scope.sources:
            bound = [use for use in scope.uses if use.source is source and not _can_be_bare(use, scope)]
            if not alone or source.inner_use or (bound and isinstance(source.node, exp.Subquery)):
                number += 1
                while f"t{number}" in taken:
                    number += 1
                source.prefix = f"t{number}"
    for scope in scopes:
        for use in scope.uses:
            source = use.source
            if source is None:
                continue
            if use.scope is scope and len(scope.sources) == 1 and _can_be_bare(use, scope):
                prefix = None
            elif source.prefix is not None:
                prefix = exp.to_identifier(source.prefix)
            else:
                prefix = source.node.this.copy()
            use.column.set("table", prefix)
            if prefix is None and isinstance(use.column.this, exp.Star):
                use.column.replace(exp.Star())
    for scope in scopes:
        for source in scope.sources:
            alias = exp.TableAlias(this=exp.to_identifier(source.prefix)) if source.prefix else None
            source.node.set("alias", alias)


def _has(source: _Source, column: exp.Column) -> bool:
    from sqlglot import exp

    known = source.columns is None or isinstance(column.this, exp.Star) or column.name in source.columns
    return source.name == column.table and known


def _can_be_bare(use: _Use, scope: _Scope) -> bool:
    """Whether the column of a table that is alone in its FROM means the same without a prefix."""
    from sqlglot import exp

    if isinstance(use.column.this, exp.Star):
        return True
    name = use.column.name
    if use.source is None or use.source.columns is None or name not in use.source.columns:
        return False  # The bare name of a column that is not there could find another, further out.
    if use.clause in ("group", "order", "compound"):
        # Here a result's alias hides the column of the same name.
        return all(
            isinstance(meaning, exp.Column) and meaning.name == name and use.clause != "compound"
            for meaning in scope.aliases.get(name, [])
        )
    return True


def _quote(tree: exp.Expr) -> None:
    """Quote the names that need it, and no others."""
    from sqlglot import exp

    for identifier in tree.find_all(exp.Identifier):
        identifier.set("quoted", not is_bare(identifier.name))
