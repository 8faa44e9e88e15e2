"""Spider's exact set match: two queries in the grammar of the official script, and its ten comparisons.

The official program is the definition, so this module has the same quirks. Words are split as in English text
(`a=1` is one word). A query may only use the tables' own names and `AS`. A query that the grammar cannot read scores 0.
Literals, DISTINCT, the number after LIMIT and join conditions are not compared; inside a
nested query of WHERE, HAVING or FROM some of them are. Columns that foreign keys link are one column.

Source: Yu et al. 2018 (Spider), arXiv 1809.08887; the grammar and the comparisons of github.com/taoyds/spider
(evaluation.py and process_sql.py at b7b5b8c), against which this module was tried pair by pair.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypedDict, cast

HARDNESS = ("easy", "medium", "hard", "extra")
COMPONENTS = (
    "select", "select(no AGG)", "where", "where(no OP)", "group(no Having)",
    "group", "order", "and/or", "IUEN", "keywords",
)  # fmt: skip

_CLAUSES = ("select", "from", "where", "group", "order", "limit", "intersect", "union", "except")
_JOINING = ("join", "on", "as")
_OPERATORS = ("not", "between", "=", ">", "<", ">=", "<=", "!=", "in", "like", "is", "exists")
_ARITHMETIC = ("none", "-", "+", "*", "/")
_AGGREGATES = ("none", "max", "min", "count", "sum", "avg")
_IN, _LIKE = _OPERATORS.index("in"), _OPERATORS.index("like")

# The shapes that are compared, all plain tuples:
#   column     (aggregate, "__table.column__", is distinct)
#   expression (arithmetic operator, column, column or None)
#   condition  (has NOT, operator, expression, value, second value of BETWEEN)
#   value      number, quoted string, column or Query
Column = tuple[int, str, bool | None]
Expression = tuple[int, Column, Column | None]
Value: TypeAlias = "float | str | Column | Query | None"
Condition = tuple[bool, int, Expression, Value, Value]
Conditions = list[Condition | str]
"""Conditions at even places, and the "and" or "or" between them. A query without such a word breaks this order."""


class Unparsable(Exception):
    """The official grammar has no such query."""


@dataclasses.dataclass
class Query:
    """One SELECT with what UNION, INTERSECT or EXCEPT hangs on it."""

    distinct: bool | None = False
    select: list[tuple[int, Expression]] = dataclasses.field(default_factory=list)
    tables: list[tuple[str, str | Query]] = dataclasses.field(default_factory=list)
    """("table_unit", "__table__") or ("sql", Query)."""
    joined_on: Conditions = dataclasses.field(default_factory=list)
    where: Conditions = dataclasses.field(default_factory=list)
    group: list[Column] = dataclasses.field(default_factory=list)
    having: Conditions = dataclasses.field(default_factory=list)
    order: tuple[str, list[Expression]] | None = None
    limit: int | None = None
    intersect: Query | None = None
    union: Query | None = None
    without: Query | None = None
    """EXCEPT."""


# Reading -----------------------------------------------------------------------------------------------

Schema = Mapping[str, Sequence[str]]
"""Table -> columns, in lower case, as the SQLite file has them."""


def parse(sql: str, schema: Schema) -> Query:
    """The query in the official grammar. Raises Unparsable; text after the query is ignored, as it is there."""
    try:
        words = split(sql)
        names = {words[place + 1]: words[place - 1] for place, word in enumerate(words) if word == "as"}
        for table in schema:
            if table in names:
                raise Unparsable(f"the alias {table} is also a table")
            names[table] = table
        return _Reader(words, names, schema).query()
    except Unparsable:
        raise
    except IndexError as error:
        raise Unparsable("it ends too early") from error
    except (LookupError, ValueError, RecursionError) as error:
        raise Unparsable(f"{type(error).__name__} {error}") from error


# In this order, since each sees what the one before it left. The words are those of the Penn Treebank, for
# text in which there are no straight quotes.
_SPLITS = [
    (re.compile(r"([«“‘„]|`+)"), r" \1 "),
    (re.compile(r"([^.])(\.)([\])}>»”’ ]*)\s*$"), r"\1 \2 \3 "),
    (re.compile(r"([:,])([^\d])"), r" \1 \2"),
    (re.compile(r"([:,])$"), r" \1 "),
    (re.compile(r"(\.{2,})"), r" \1 "),
    (re.compile(r"([;@#$%&\u2012-\u2015])"), r" \1 "),
    (re.compile(r"([^.])(\.)([\])}>]*)\s*$"), r"\1 \2\3 "),
    (re.compile(r"([?!*])"), r" \1 "),
    (re.compile(r"([\]\[(){}<>])"), r" \1 "),
    (re.compile(r"(--)"), r" \1 "),
    (re.compile(r"([»”’])"), r" \1 "),
    (re.compile(r"(?i)\b(can)(not)\b"), r" \1 \2 "),
    (re.compile(r"(?i)\b(gim|lem)(me)\b"), r" \1 \2 "),
    (re.compile(r"(?i)\b(gon)(na)\b"), r" \1 \2 "),
    (re.compile(r"(?i)\b(got)(ta)\b"), r" \1 \2 "),
    (re.compile(r"(?i)\b(wan)(na)(?=\s|$)"), r" \1 \2 "),
]


def split(sql: str) -> list[str]:
    """The words of a query in lower case; a quoted string is one word, in double quotes and its own case."""
    sql = sql.replace("'", '"')
    parts = sql.split('"')
    if len(parts) % 2 == 0:
        raise Unparsable("a quote is not closed")
    strings: dict[str, str] = {}
    start = 0
    for number, part in enumerate(parts):
        if number % 2:
            end = start + len(part) + 1
            name = f"__val_{start}_{end}__"
            strings[name] = f'"{part}"'
            parts[number] = name
            start = end + 1
        else:
            start += len(part)
    text = "".join(parts)
    for pattern, replacement in _SPLITS:
        text = pattern.sub(replacement, text)
    words = [strings.get(word.lower(), word.lower()) for word in text.split()]
    for place in reversed([place for place, word in enumerate(words) if word == "="]):
        before = words[place - 1]
        if before in ("!", ">", "<"):
            words = [*words[: place - 1], before + "=", *words[place + 1 :]]
    return words


class _Reader:
    """Recursive descent over the words; what the language has and this grammar has not ends in an exception."""

    def __init__(self, words: list[str], names: Mapping[str, str], schema: Schema) -> None:
        self.words, self.names, self.schema = words, names, schema
        self.place = 0

    @property
    def word(self) -> str:
        return self.words[self.place]

    def sees(self, *words: str) -> bool:
        """Whether one of the words comes next; False at the end."""
        return self.place < len(self.words) and self.words[self.place] in words

    def skips(self, *words: str) -> bool:
        """Go past one of the words, if one comes next."""
        seen = self.sees(*words)
        self.place += seen
        return seen

    def wants(self, word: str) -> None:
        if self.word != word:
            raise Unparsable(f"{word} was expected where {self.word} stands")
        self.place += 1

    def query(self) -> Query:
        start = self.place
        in_parentheses = self.skips("(")
        select = self.place
        # FROM is read first, since it says where bare columns belong; it is the first one in sight, even where
        # that is another query's.
        self.place = start
        query = Query()
        near = self._from(query)
        after = self.place
        self.place = select
        self._select(query, near)
        self.place = after
        if self.skips("where"):
            query.where = self._conditions(near)
        if self.skips("group"):
            self.wants("by")
            while self.place < len(self.words) and not self._at_boundary():
                query.group.append(self._column(near))
                if not self.skips(","):
                    break
        if self.skips("having"):
            query.having = self._conditions(near)
        if self.skips("order"):
            query.order = self._order(near)
        if self.skips("limit"):
            query.limit = int(self.word)
            self.place += 1
        self._skip_semicolons()
        if in_parentheses:
            self.wants(")")
        self._skip_semicolons()
        if self.skips("intersect"):
            query.intersect = self.query()
        elif self.skips("union"):
            query.union = self.query()
        elif self.skips("except"):
            query.without = self.query()
        return query

    def _skip_semicolons(self) -> None:
        while self.skips(";"):
            pass

    def _at_boundary(self) -> bool:
        return self.sees(*_CLAUSES, ")", ";")

    def _from(self, query: Query) -> list[str]:
        """Fill in the tables and join conditions; returns the tables that bare columns may belong to."""
        if "from" not in self.words[self.place :]:
            raise Unparsable("there is no FROM")
        self.place = self.words.index("from", self.place) + 1
        near: list[str] = []
        while self.place < len(self.words):
            in_parentheses = self.skips("(")
            if self.word == "select":
                query.tables.append(("sql", self.query()))
            else:
                self.skips("join")
                table = self.names[self.word]
                self.place += 3 if self.words[self.place + 1 : self.place + 2] == ["as"] else 1
                query.tables.append(("table_unit", self._identity(table)))
                near.append(table)
            if self.skips("on"):
                conditions = self._conditions(near)
                query.joined_on += ["and", *conditions] if query.joined_on else conditions
            if in_parentheses:
                self.wants(")")
            if self._at_boundary():
                break
        return near

    def _select(self, query: Query, near: list[str]) -> None:
        self.wants("select")
        query.distinct = self.skips("distinct")
        while self.place < len(self.words) and not self.sees(*_CLAUSES):
            aggregate = self._aggregate()
            query.select.append((aggregate, self._expression(near)))
            self.skips(",")

    def _order(self, near: list[str]) -> tuple[str, list[Expression]]:
        """The last direction counts for all expressions."""
        self.wants("by")
        direction, expressions = "asc", []
        while self.place < len(self.words) and not self._at_boundary():
            expressions.append(self._expression(near))
            if self.sees("asc", "desc"):
                direction = self.word
                self.place += 1
            if not self.skips(","):
                break
        return direction, expressions

    def _conditions(self, near: list[str]) -> Conditions:
        conditions: Conditions = []
        while self.place < len(self.words):
            expression = self._expression(near)
            # A word must follow: an expression alone is no condition.
            negated = self.word == "not"
            self.place += negated
            operator = _OPERATORS.index(self.word)
            self.place += 1
            value, second = self._value(near), None
            if _OPERATORS[operator] == "between":
                self.wants("and")
                second = self._value(near)
            conditions.append((negated, operator, expression, value, second))
            if self._at_boundary() or self.sees(*_JOINING):
                break
            if self.sees("and", "or"):
                conditions.append(self.word)
                self.place += 1
        return conditions

    def _value(self, near: list[str]) -> Value:
        start = self.place
        in_parentheses = self.skips("(")
        if self.word == "select":
            value: Value = self.query()
        elif '"' in self.word:
            value = self.word
            self.place += 1
        else:
            try:
                value = float(self.word)
                self.place += 1
            except ValueError:
                # A column: its words end where something else begins, and OR is not among what does.
                while not (self.place >= len(self.words) or self.sees(",", ")", "and", *_CLAUSES, *_JOINING)):
                    self.place += 1
                value = _Reader(self.words[start : self.place], self.names, self.schema)._column(near)
        if in_parentheses:
            self.wants(")")
        return value

    def _expression(self, near: list[str]) -> Expression:
        in_parentheses = self.skips("(")
        first, second, operator = self._column(near), None, 0
        if self.sees(*_ARITHMETIC):
            operator = _ARITHMETIC.index(self.word)
            self.place += 1
            second = self._column(near)
        if in_parentheses:
            self.wants(")")
        return operator, first, second

    def _column(self, near: list[str]) -> Column:
        in_parentheses = self.skips("(")
        if self.word in _AGGREGATES:
            aggregate = self._aggregate()
            self.wants("(")
            distinct = self.skips("distinct")
            name = self._column_name(near)
            self.wants(")")
            # A parenthesis before an aggregate is left open here: what is around it may close it.
            return aggregate, name, distinct
        distinct = self.skips("distinct")
        name = self._column_name(near)
        if in_parentheses:
            self.wants(")")
        return 0, name, distinct

    def _aggregate(self) -> int:
        aggregate = _AGGREGATES.index(self.word) if self.word in _AGGREGATES else None
        self.place += aggregate is not None
        return aggregate or 0

    def _column_name(self, near: list[str]) -> str:
        word = self.word
        self.place += 1
        if word == "*":
            return self._identity(word)
        if "." in word:
            owner, column = word.split(".")
            return self._identity(f"{self.names[owner]}.{column}")
        for table in near:
            if word in self.schema[table]:
                return self._identity(f"{table}.{word}")
        raise Unparsable(f"{word} is no column here")

    def _identity(self, name: str) -> str:
        if name == "*":
            return "__all__"
        if name not in self.schema:
            table, _, column = name.partition(".")
            if column not in self.schema[table]:
                raise Unparsable(f"{table} has no column {column}")
        return f"__{name}__"


# What is ignored ---------------------------------------------------------------------------------------


class SpiderTables(TypedDict):
    """What is read here of an entry of Spider's tables.json."""

    table_names_original: Sequence[str]
    column_names_original: Sequence[tuple[int, str]]
    """Number of the table (-1 for "*") and name."""
    foreign_keys: Sequence[tuple[int, int]]
    """Numbers of two columns."""


def foreign_key_map(entry: SpiderTables) -> dict[str, str]:
    """Column -> the first column that foreign keys link it with, from an entry of Spider's tables.json.

    A key joins the first group that has one of its two columns; groups that turn out to share a column later
    are not united.
    """
    tables = entry["table_names_original"]
    columns = [
        f"__{tables[table].lower()}.{column.lower()}__" if table >= 0 else "__all__"
        for table, column in entry["column_names_original"]
    ]
    groups: list[set[int]] = []
    for key in entry["foreign_keys"]:
        group = next((group for group in groups if not group.isdisjoint(key)), None)
        if group is None:
            groups.append(group := set())
        group.update(key)
    linked = {}
    for group in groups:
        linked |= {columns[place]: columns[min(group)] for place in sorted(group)}
    return linked


def comparable(query: Query, schema: Schema, foreign_keys: Mapping[str, str]) -> Query:
    """The query without what is not compared: literals, DISTINCT, and which of two linked columns it is.

    Only columns of tables in the outermost FROM are linked. Queries in FROM stay as they are; those in
    conditions lose only their literals.
    """
    own = {identity[2:-2] for _, identity in query.tables if isinstance(identity, str)}
    visible = {f"__{table}.{column}__" for table in own for column in schema.get(table, ())}
    links = {column: first for column, first in foreign_keys.items() if column in visible}
    return _linked(_without_values(query), links)


def _without_values(query: Query) -> Query:
    def condition(unit: Condition) -> Condition:
        negated, operator, expression, *values = unit
        nested = (_without_values(value) if isinstance(value, Query) else None for value in values)
        # A word at the place of a condition has another number of parts.
        return (negated, operator, expression, *nested)  # type: ignore[return-value]

    return dataclasses.replace(
        query,
        joined_on=_each_condition(condition, query.joined_on),
        where=_each_condition(condition, query.where),
        having=_each_condition(condition, query.having),
        intersect=query.intersect and _without_values(query.intersect),
        union=query.union and _without_values(query.union),
        without=query.without and _without_values(query.without),
    )


def _linked(query: Query, links: Mapping[str, str]) -> Query:
    def column(unit: Column) -> Column:
        aggregate, name, _ = unit
        return aggregate, links.get(name, name), None

    def expression(unit: Expression) -> Expression:
        operator, first, second = unit
        return operator, column(first), second and column(second)

    def condition(unit: Condition) -> Condition:
        negated, operator, left, value, second = unit
        return negated, operator, expression(left), value, second

    return dataclasses.replace(
        query,
        distinct=None,
        select=[(aggregate, expression(unit)) for aggregate, unit in query.select],
        joined_on=_each_condition(condition, query.joined_on),
        where=_each_condition(condition, query.where),
        group=[column(unit) for unit in query.group],
        having=_each_condition(condition, query.having),
        order=query.order and (query.order[0], [expression(unit) for unit in query.order[1]]),
        intersect=query.intersect and _linked(query.intersect, links),
        union=query.union and _linked(query.union, links),
        without=query.without and _linked(query.without, links),
    )


def _each_condition(change: Callable[[Condition], Condition], conditions: Conditions) -> Conditions:
    # By place and not by type: the official script does so too, and stops where a word stands at a condition's place.
    return [unit if number % 2 else change(cast(Condition, unit)) for number, unit in enumerate(conditions)]


# Comparing ---------------------------------------------------------------------------------------------


def exact_match(predicted: Query, gold: Query) -> tuple[bool, dict[str, bool]]:
    """Whether all ten components and the tables agree, and each component by its official name.

    Both must have been through `comparable`.
    """
    ours, theirs = predicted.where[::2], gold.where[::2]
    agree = {
        "select": _same_members(predicted.select, gold.select),
        "select(no AGG)": _same_members([unit[1] for unit in predicted.select], [unit[1] for unit in gold.select]),
        "where": _same_members(ours, theirs),
        "where(no OP)": _same_members([unit[2] for unit in ours], [unit[2] for unit in theirs]),
        "group(no Having)": Counter(map(_bare_name, predicted.group)) == Counter(map(_bare_name, gold.group)),
        "group": _same_groups(predicted, gold),
        "order": _same_order(predicted, gold),
        "and/or": set(predicted.where[1::2]) == set(gold.where[1::2]),
        "IUEN": _same_compounds(predicted, gold),
        "keywords": _keywords(predicted) == _keywords(gold),
    }
    # Where gold has no table, any will do; but its grammar has none without.
    return all(agree.values()) and (not gold.tables or _same_members(predicted.tables, gold.tables)), agree


def _same_members(left: Sequence[object], right: Sequence[object]) -> bool:
    """Equality as multisets, of things that cannot all be hashed."""
    rest = list(right)
    for member in left:
        if member not in rest:
            return False
        rest.remove(member)
    return not rest


def _bare_name(column: Column) -> str:
    return column[1].split(".")[1] if "." in column[1] else column[1]


def _same_groups(predicted: Query, gold: Query) -> bool:
    if not predicted.group or not gold.group:
        # Neither groups: HAVING does not count.
        return not predicted.group and not gold.group
    names = [column[1] for column in predicted.group] == [column[1] for column in gold.group]
    return names and predicted.having == gold.having


def _same_order(predicted: Query, gold: Query) -> bool:
    if predicted.order is None or gold.order is None:
        # Neither orders: LIMIT does not count here.
        return predicted.order is None and gold.order is None
    return predicted.order == gold.order and (predicted.limit is None) == (gold.limit is None)


def _same_compounds(predicted: Query, gold: Query) -> bool:
    pairs = [
        (predicted.intersect, gold.intersect),
        (predicted.without, gold.without),
        (predicted.union, gold.union),
    ]
    counts = [sum(query is not None for query in side) for side in zip(*pairs, strict=True)]
    # One is counted for each that matches; of a query that has only one of the three, this is equality.
    agreeing = sum(exact_match(ours, theirs)[0] for ours, theirs in pairs if ours and theirs)
    return counts[0] == counts[1] == agreeing


def _keywords(query: Query) -> set[str]:
    conditions, connectors = _all_conditions(query)
    present: dict[str, object] = {
        "where": query.where,
        "group": query.group,
        "having": query.having,
        "order": query.order,
        "limit": query.limit is not None,
        "except": query.without,
        "union": query.union,
        "intersect": query.intersect,
        "or": "or" in connectors,
        "not": any(unit[0] for unit in conditions),
        "in": any(unit[1] == _IN for unit in conditions),
        "like": any(unit[1] == _LIKE for unit in conditions),
        query.order[0] if query.order else "": query.order,
    }
    return {word for word, there in present.items() if there}


def _all_conditions(query: Query) -> tuple[Conditions, Conditions]:
    """The conditions of joins, WHERE and HAVING, and the words between them."""
    lists = (query.joined_on, query.where, query.having)
    return [unit for part in lists for unit in part[::2]], [word for part in lists for word in part[1::2]]


# Hardness ----------------------------------------------------------------------------------------------


def hardness(query: Query) -> str:
    """One of `HARDNESS`, of a query as it was read."""
    conditions, connectors = _all_conditions(query)
    clauses = sum(map(bool, (query.where, query.group, query.order))) + (query.limit is not None)
    clauses += max(len(query.tables) - 1, 0)
    clauses += connectors.count("or") + sum(unit[1] == _LIKE for unit in conditions)
    nested = sum(isinstance(value, Query) for unit in conditions for value in unit[3:5])
    nested += sum(part is not None for part in (query.intersect, query.without, query.union))
    ordered = query.order[1] if query.order else []
    # Anything whose first part is not zero is taken for an aggregate: a NOT and a word between two conditions
    # of HAVING, too.
    aggregates = _count_first(query.select) + _count_first(query.where[::2]) + _count_first(query.group)
    aggregates += _count_first(column for unit in ordered for column in unit[1:] if column) + _count_first(query.having)
    others = (aggregates > 1) + (len(query.select) > 1) + (len(query.where) > 1) + (len(query.group) > 1)
    if clauses <= 1 and others == 0 and nested == 0:
        return "easy"
    if nested == 0 and ((others <= 2 and clauses <= 1) or (clauses <= 2 and others < 2)):
        return "medium"
    if (
        (others > 2 and clauses <= 2 and nested == 0)
        or (2 < clauses <= 3 and others <= 2 and nested == 0)
        or (clauses <= 1 and others == 0 and nested <= 1)
    ):
        return "hard"
    return "extra"


def _count_first(units: Iterable[Sequence[object]]) -> int:
    return sum(unit[0] != 0 for unit in units)
