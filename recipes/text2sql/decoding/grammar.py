"""The grammar of constrained decoding: which lexemes may follow a prefix, so that it can become valid SQL on a schema.

The language is the canonical SQL of `recipes.text2sql.sql.canonical` with the placeholders of
`recipes.text2sql.prompts.prompt`, as far as SQLite prepares it on the schema. Exactly one table of a query has each
bare column. The tables of a FROM have the columns that the SELECT before it names. The arms of a UNION have equally
many columns. Every prefix can be completed.
Source: Scholak et al. 2021 (PICARD), arXiv 2109.05093, where a parser rejects tokens that the model proposes. Here a
reader lists all lexemes that may follow. It reads the prefix again for every lexeme, and caches the answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from recipes.text2sql.sql.names import fold
from recipes.text2sql.sql.schema import Schema

END = "END"
"""The lexeme after the last one."""
NUMBER, INTEGER, STRING, VALUE, WHOLE_VALUE = "NUMBER", "INTEGER", "STRING", "VALUE", "WHOLE VALUE"
"""Classes of lexemes: literals; placeholders of values, and those of them that are whole numbers."""
LITERALS = frozenset((NUMBER, STRING, VALUE))
AGGREGATES = frozenset(("COUNT", "AVG", "SUM", "MIN", "MAX"))
ARITHMETIC = frozenset("+-*/")
COMPARISONS = frozenset(("=", "<>", "<", ">", "<=", ">="))
PREDICATES = COMPARISONS | {"LIKE", "IN", "BETWEEN", "IS"}
SET_OPERATIONS = frozenset(("UNION", "INTERSECT", "EXCEPT"))
RESULT_NAMES = frozenset(f'"derived_fieldalias{number}' for number in range(3))
"""What a query in a FROM may call its results: the names that the corpora around GeoQuery use."""
MAX_SOURCES, MAX_QUERIES, MAX_PARENTHESES = 6, 7, 2

_NOTHING: frozenset[str] = frozenset()


class _Stop(Exception):
    """All lexemes are read, or the next one is not allowed."""


class Source:
    """A table or query in a FROM."""

    __slots__ = ("alias", "columns", "width")

    def __init__(self, alias: str | None, columns: frozenset[str], width: int) -> None:
        self.alias, self.columns, self.width = alias, columns, width


class Scope:
    """One SELECT: the sources of its FROM, and the columns that they must have."""

    def __init__(self, parent: Scope | None, first_alias: int) -> None:
        self.parent, self.next_alias = parent, first_alias
        self.sources: list[Source] = []
        self.is_open = True
        """The FROM is not complete."""
        self.bare: set[str] = set()
        self.prefixed: dict[int, set[str]] = {}
        self.is_derived, self.needed = False, _NOTHING
        """It stands in a FROM; the columns that the query around it needs of its results."""
        self.made: set[str] = set()
        """Names of results that a query in the FROM has to bring."""
        self.in_on = False
        """Its FROM is open, and a condition of a JOIN is being read."""
        self.has_left = self.refers_ahead = False
        self.is_aggregate = False
        """It has an aggregate or GROUP BY, so its ORDER BY may have aggregates."""
        self.order_by: list[tuple[str, ...]] = []
        """Results that the ORDER BY of a compound may name."""

    def visible(self) -> dict[str, frozenset[str]]:
        """Alias -> columns, of this query and those around it."""
        found: dict[str, frozenset[str]] = self.parent.visible() if self.parent else {}
        return found | {source.alias: source.columns for source in self.sources if source.alias}

    def bare_columns(self) -> frozenset[str]:
        """The columns that exactly one source has."""
        once: set[str] = set()
        more: set[str] = set()
        for source in self.sources:
            more |= once & source.columns
            once |= source.columns
        return frozenset(once - more)


class Grammar:
    """The language of one schema.

    Lexemes are keywords and signs as they are written, aliases (t1), names after a quote ("name), and the classes
    above. Names are folded as SQLite folds them.
    """

    def __init__(self, schema: Schema) -> None:
        rows = {"rowid", "oid", "_rowid_"}
        self.tables = {
            f'"{table}': frozenset(f'"{column}' for column in columns - (rows - own))
            for (table, columns), own in zip(
                schema.folded.items(), (set(map(fold, columns)) for columns in schema.tables.values()), strict=True
            )
        }
        self.columns = frozenset().union(*self.tables.values())
        taken = self.tables.keys() | self.columns
        self.aliases = [f"t{number}" for number in range(1, 60) if f'"t{number}' not in taken]
        self._options: dict[tuple[str, ...], frozenset[str]] = {}

    def options(self, lexemes: tuple[str, ...]) -> frozenset[str]:
        """The lexemes that may follow; END where the query may end here."""
        found = self._options.get(lexemes)
        if found is None:
            if len(self._options) > 50_000:
                self._options.clear()
            found = self._options[lexemes] = _Reader(self, lexemes).follow()
        return found

    @functools.lru_cache(maxsize=100_000)  # noqa: B019  Grammars are few and live long.
    def coverable(
        self,
        bare: frozenset[str],
        covered: frozenset[str],
        slots: tuple[frozenset[str], ...],
        room: int,
        bringing: int = 2,
    ) -> bool:
        """Whether tables can follow that have each bare column exactly once, the first of them what the slots demand.

        Two of them at most may bring a bare column: canonical SQL has hardly any beside prefixed ones, and the search
        stays short.
        """
        if room < len(slots):
            return False
        if slots:
            candidates = {columns & bare for columns in self.tables.values() if slots[0] <= columns}
        else:
            missing = bare - covered
            if not missing:
                return True
            wanted = min(missing)
            candidates = {columns & bare for columns in self.tables.values() if room and wanted in columns}
        return any(
            self.coverable(bare, covered | brought, slots[1:], room - 1, bringing - bool(brought))
            for brought in sorted(candidates, key=len)
            if not brought & covered and (bringing or not brought)
        )

    @functools.lru_cache(maxsize=1_000)  # noqa: B019
    def is_width(self, width: int) -> bool:
        """Whether tables beside each other can have so many columns together."""
        widths = {len(columns) for columns in self.tables.values()}
        return width == 0 or any(size and size <= width and self.is_width(width - size) for size in widths)


class _Reader:
    """Reads lexemes by recursive descent, and collects the lexemes that may follow their end."""

    def __init__(self, grammar: Grammar, lexemes: tuple[str, ...]) -> None:
        self.grammar, self.lexemes, self.place = grammar, lexemes, 0
        self.open: set[str] = set()
        self.used = 0
        """Aliases used so far, as a number into `Grammar.aliases`."""
        self.depth = self.inside = 0
        """How many queries, and how many parentheses of this one, are open."""

    def follow(self) -> frozenset[str]:
        try:
            self.query(None)
            self.need((END,))
        except _Stop:
            pass
        return frozenset(self.open)

    # What comes next: `take` leaves it where it does not fit, `need` stops. At the end both note what would fit.

    def take(self, options: Iterable[str]) -> str | None:
        if self.at_end:
            self.open.update(options)
            return None
        lexeme = self.lexemes[self.place]
        if lexeme not in options:
            return None
        self.place += 1
        return lexeme

    def need(self, options: Iterable[str]) -> str:
        found = self.take(options)
        if found is None:
            raise _Stop
        return found

    def any_of(self, options: Callable[[], Iterable[str]]) -> str:
        """The next lexeme, which was among the options when it was chosen: they are worked out at the end only."""
        if self.at_end:
            self.open.update(options())
            raise _Stop
        self.place += 1
        return self.lexemes[self.place - 1]

    @property
    def at_end(self) -> bool:
        return self.place == len(self.lexemes)

    def comes(self, lexeme: str) -> bool:
        """Whether the lexeme is the next one, which is left there; at the end it is noted as what would fit."""
        if self.at_end:
            self.open.add(lexeme)
            return False
        return self.lexemes[self.place] == lexeme

    # Queries

    def query(
        self, parent: Scope | None, width: int | None = None, made: frozenset[str] = _NOTHING, derived: bool = False
    ) -> tuple[int, frozenset[str]]:
        """SELECT ... with its arms, ORDER BY and LIMIT -> the number of its columns, and the names they have."""
        self.depth += 1
        outside, self.inside = self.inside, 0
        scope, width, names = self.core(parent, width, made, derived)
        terms, is_compound = list(scope.order_by), False
        while self.take(SET_OPERATIONS):
            is_compound = True
            if self.lexemes[self.place - 1] == "UNION":
                self.take(("ALL",))
            arm, *_ = self.core(parent, width)
            terms += arm.order_by
        if (terms or not is_compound) and self.take(("ORDER",)):
            self.need(("BY",))
            while True:
                if is_compound:
                    self.one_of(terms)
                else:
                    self.value(scope, aggregates=scope.is_aggregate)
                    if self.take(COMPARISONS):
                        self.value(scope, aggregates=scope.is_aggregate, literals=True)
                self.take(("ASC", "DESC"))
                if not self.take((",",)):
                    break
        if self.take(("LIMIT",)):
            self.need((INTEGER, WHOLE_VALUE))
            if self.take(("OFFSET",)):
                self.need((INTEGER, WHOLE_VALUE))
        self.depth -= 1
        self.inside = outside
        return width, names

    def one_of(self, sequences: Iterable[tuple[str, ...]]) -> None:
        """Read one of the sequences."""
        left, place = set(sequences), 0
        while True:
            going_on = {sequence[place] for sequence in left if len(sequence) > place}
            is_end = any(len(sequence) == place for sequence in left)
            if not going_on:
                return
            found = self.take(going_on) if is_end else self.need(going_on)
            if found is None:
                return
            left = {sequence for sequence in left if len(sequence) > place and sequence[place] == found}
            place += 1

    def core(
        self, parent: Scope | None, width: int | None = None, made: frozenset[str] = _NOTHING, derived: bool = False
    ) -> tuple[Scope, int, frozenset[str]]:
        """SELECT ... HAVING."""
        self.need(("SELECT",))
        scope = Scope(parent, self.used)
        scope.is_derived, scope.needed = derived, made - RESULT_NAMES
        self.take(("DISTINCT",))
        items, names, stars, full = 0, set(), [], 0
        while True:
            start, missing = self.place, made - names
            only = missing if missing and items + len(missing) >= len(made) + 2 else None
            star = not made and (width is None or (items == 0 and (not self.at_end or self.grammar.is_width(width))))
            if star and self.take(("*",)):
                full += 1
            else:
                found = self.value(scope, aggregates=True, star=width is None and not made, only=only)
                if found and found[-1] == "*":
                    stars.append(found[0])
                else:
                    items += 1
                    if not LITERALS.intersection(self.lexemes[start : self.place]):
                        scope.order_by.append(self.lexemes[start : self.place])
                    if derived and not found and (name := self._name_result(only or RESULT_NAMES - names, bool(only))):
                        names.add(name)
                    elif found:
                        names.add(found[-1])
            missing = made - names
            if items == width or (full and width is not None):
                break
            must = (width is not None and items < width) or bool(missing)
            if must:
                self.need((",",))
            elif not self.take((",",)):
                break
        self.from_(scope, width if full else None)
        if full:
            items += full * sum(source.width for source in scope.sources)
            names.update(*(source.columns for source in scope.sources))
        for alias in stars:
            columns = scope.visible()[alias]
            items += len(columns)
            names |= columns
        if self.take(("WHERE",)):
            self.condition(scope)
        if self.take(("GROUP",) if not self.at_end or self.starts(scope, own=True) else ()):
            self.need(("BY",))
            scope.is_aggregate = True
            while True:
                is_inside = self.take(("(",))
                self.column(scope, own=True)
                if is_inside:
                    self.need((")",))
                if not self.take((",",)):
                    break
            if self.take(("HAVING",)):
                self.condition(scope, aggregates=True)
        return scope, items, frozenset(names)

    def _name_result(self, free: frozenset[str], must: bool) -> str | None:
        """AS and a name for a result."""
        free = free & RESULT_NAMES
        if (self.need if must else self.take)(("AS",) if free else ()):
            return self.need(free)
        return None

    # FROM

    def from_(self, scope: Scope, width: int | None) -> None:
        """FROM and its tables; with a width, they have so many columns together."""
        self.need(("FROM",))
        tables, grammar = self.grammar.tables, self.grammar
        scope.next_alias, is_listed = self.used, False
        while True:
            found = self.any_of(lambda: self._tables(scope, width))
            if found == "(":
                count, names = self.query(scope.parent, made=frozenset(scope.made | scope.bare), derived=True)
                self.need((")",))
                scope.sources.append(Source(None, names, count))
                break
            if self.at_end:
                alone = not scope.sources and self._is_enough(scope, tables[found], width)
                if self._can_join(scope, tables[found], width):
                    (self.take if alone else self.need)(("AS",))
                named = False
            else:
                named = self.take(("AS",)) is not None
            alias = self.need((grammar.aliases[scope.next_alias],)) if named else None
            scope.sources.append(Source(alias, tables[found], len(tables[found])))
            if alias is None:
                break
            scope.next_alias += 1
            self.used = max(self.used, scope.next_alias)
            if len(scope.sources) > 1 and not is_listed:
                self.need(("ON",))
                if not self.take(() if '"true' in grammar.columns else ("TRUE",)):
                    scope.in_on = True
                    self.condition(scope)
                    scope.in_on = False
            if self.at_end:
                more = any(self._can_join(scope, columns, width) for columns in tables.values())
                ways = () if not more else ("JOIN", ",") if scope.refers_ahead else ("JOIN", ",", "LEFT")
                (self.take if self._is_complete(scope, width) else self.need)(ways)
                break
            how = self.take(("JOIN", ",", "LEFT"))
            if how is None:
                break
            is_listed = how == ","
            if how == "LEFT":
                scope.has_left = True
                self.take(("OUTER",))
                self.need(("JOIN",))
        scope.is_open = False

    def _tables(self, scope: Scope, width: int | None) -> set[str]:
        """What may stand next in a FROM."""
        nothing = not scope.sources and not scope.prefixed and not scope.is_derived and width is None
        found = {"("} if nothing and self.depth < MAX_QUERIES and self._mates(scope.bare) else set()
        if scope.made:
            return found
        return found | {
            table
            for table, columns in self.grammar.tables.items()
            if (not scope.sources and self._is_enough(scope, columns, width)) or self._can_join(scope, columns, width)
        }

    def _slots(self, scope: Scope) -> tuple[frozenset[str], ...]:
        """What the tables still to come have to have, in their order."""
        last = max(scope.prefixed, default=-1)
        return tuple(frozenset(scope.prefixed.get(number, ())) for number in range(scope.next_alias, last + 1))

    def _is_enough(self, scope: Scope, columns: frozenset[str], width: int | None) -> bool:
        """Whether the table alone, without an alias, is what the columns before the FROM demand."""
        return not scope.prefixed and scope.bare <= columns and width in (None, len(columns))

    def _can_join(self, scope: Scope, columns: frozenset[str], width: int | None) -> bool:
        slots = self._slots(scope)
        if slots and not slots[0] <= columns:
            return False
        if width is not None:
            so_far = sum(source.width for source in scope.sources) + len(columns)
            if so_far > width or not self.grammar.is_width(width - so_far):
                return False
        return self._can_finish(scope, frozenset(scope.bare), slots[1:], columns)

    def _can_finish(
        self, scope: Scope, bare: frozenset[str], slots: tuple[frozenset[str], ...], *table: frozenset[str]
    ) -> bool:
        """Whether tables can still come that have what is demanded, beside those that are there (and `table`)."""
        sources = [*(source.columns for source in scope.sources), *table]
        if len(sources) > MAX_SOURCES or scope.next_alias + len(slots) + 1 >= len(self.grammar.aliases):
            return False
        brought = [bare & columns for columns in sources]
        covered, bringing = frozenset().union(*brought), 2 - sum(map(bool, brought))
        if bringing < 0 or sum(map(len, brought)) > len(covered):
            return False
        return self.grammar.coverable(bare, covered, slots, MAX_SOURCES - len(sources), bringing)

    def _is_complete(self, scope: Scope, width: int | None) -> bool:
        if self._slots(scope) or (width is not None and width != sum(source.width for source in scope.sources)):
            return False
        return scope.bare <= frozenset().union(*(source.columns for source in scope.sources))

    # Columns

    def column(self, scope: Scope, own: bool = False) -> tuple[str, ...]:
        """A column; `own`: of this query, not of one around it."""
        return self.rest(scope, self.any_of(lambda: self.starts(scope, own)))

    def starts(self, scope: Scope, own: bool = False) -> set[str]:
        """What a column may begin with: its name, or an alias."""
        around = {} if own or scope.parent is None else scope.parent.visible()
        found = {*around, *(source.alias for source in scope.sources if source.alias)}
        if not scope.is_open:
            return found | scope.bare_columns()
        bare, slots = frozenset(scope.bare), self._slots(scope)
        if scope.in_on:
            # What is joined may compare with the table after it, where no LEFT JOIN stands.
            found |= {column for column in scope.bare_columns() if self._can_finish(scope, bare | {column}, slots)}
            return found | self._ahead(scope, 0 if scope.has_left else 1)
        if scope.made or scope.needed:
            # What one query takes from another's results is of one table, or all of it has prefixes: easy to promise.
            if not scope.prefixed:
                found |= self._mates(bare | scope.needed)
            return found | (RESULT_NAMES if scope.made else set() if bare else self._ahead(scope, MAX_SOURCES - 2))
        found |= {column for column in self.grammar.columns if self._can_finish(scope, bare | {column}, slots)}
        can_derive = not scope.prefixed and not scope.is_derived and self.depth < MAX_QUERIES and self._mates(bare)
        return found | self._ahead(scope, MAX_SOURCES) | (RESULT_NAMES if can_derive else set())

    def _mates(self, columns: Iterable[str]) -> set[str]:
        """The columns of the tables that have all of these."""
        demanded = frozenset(columns)
        return set().union(*(table for table in self.grammar.tables.values() if demanded <= table))

    def _ahead(self, scope: Scope, most: int) -> set[str]:
        """Aliases of tables that are still to come."""
        found, slots = set(), self._slots(scope)
        for place in range(most):
            if not self._can_finish(scope, frozenset(scope.bare), slots + (_NOTHING,) * (place + 1 - len(slots))):
                break
            found.add(self.grammar.aliases[scope.next_alias + place])
        return found

    def _aliases_of(self, scope: Scope, columns: frozenset[str]) -> set[str]:
        """Aliases before the FROM that one of the columns can have."""
        numbers = {alias: self.grammar.aliases.index(alias) for alias in self._ahead(scope, MAX_SOURCES - 1)}
        found = set()
        for alias, number in numbers.items():
            is_new, wanted = number not in scope.prefixed, scope.prefixed.setdefault(number, set())
            if self._fitting(scope, wanted) & columns:
                found.add(alias)
            if is_new:
                del scope.prefixed[number]
        return found

    def rest(self, scope: Scope, found: str, star: bool = False, only: frozenset[str] | None = None) -> tuple[str, ...]:
        """What follows the begin of a column."""
        if found[0] == '"':
            if scope.is_open:
                (scope.made if found in RESULT_NAMES - self.grammar.columns else scope.bare).add(found)
            return (found,)
        self.need((".",))
        ending = {"*"} if star else set()
        known = scope.visible()
        if found in known:
            return found, self.any_of(lambda: known[found])
        scope.refers_ahead |= scope.in_on
        wanted = scope.prefixed.setdefault(self.grammar.aliases.index(found), set())
        name = self.any_of(lambda: (self._fitting(scope, wanted) & (only or self.grammar.columns)) | ending)
        if name != "*":
            wanted.add(name)
        return found, name

    def _fitting(self, scope: Scope, wanted: set[str]) -> set[str]:
        """The columns that the alias with the `wanted` ones can have as well."""
        bare, fitting = frozenset(scope.bare), set(wanted)
        for column in self.grammar.columns - wanted:
            wanted.add(column)
            if self._can_finish(scope, bare, self._slots(scope)):
                fitting.add(column)
            wanted.discard(column)
        return fitting

    # Expressions

    def value(
        self,
        scope: Scope,
        aggregates: bool = False,
        star: bool = False,
        literals: bool = False,
        queries: bool = False,
        only: frozenset[str] | None = None,
    ) -> tuple[str, ...] | None:
        """Terms with + - * / between them -> the lexemes of the column, where it is nothing else.

        `only`: a column of these, or an aggregate.
        """
        found = self.term(scope, aggregates, star, literals, queries, only=only)
        if found and (only or found[-1] == "*"):
            return found
        while self.take(ARITHMETIC):
            self.term(scope, aggregates, literals=True, queries=queries)
            found = None
        return found

    def term(
        self,
        scope: Scope,
        aggregates: bool = False,
        star: bool = False,
        literals: bool = False,
        queries: bool = False,
        own: bool = False,
        only: frozenset[str] | None = None,
    ) -> tuple[str, ...] | None:
        """A column, an aggregate, a literal, a query in parentheses."""

        def options() -> set[str]:
            if only:
                if only & RESULT_NAMES:
                    return {"COUNT"}
                return self.starts(scope) & only or self._aliases_of(scope, only)
            found = self.starts(scope, own)
            if aggregates:
                found |= AGGREGATES if self.starts(scope, own=True) else {"COUNT"}
            if literals:
                found |= LITERALS | {"-"}
            can_nest = self.inside < MAX_PARENTHESES or (queries and self.depth < MAX_QUERIES)
            return found | {"("} if can_nest else found

        found = self.any_of(options)
        if found[0] == '"' or found[0] == "t":
            return self.rest(scope, found, star, only)
        if found in AGGREGATES:
            scope.is_aggregate = True
            self.need(("(",))
            if found == "COUNT" and self.take(("*",)):
                self.need((")",))
                return None
            self.take(("DISTINCT",))
            self.term(scope, literals=found == "COUNT", own=True)
            while self.take(ARITHMETIC):
                self.term(scope, literals=True, own=True)
            self.need((")",))
        elif found == "-":
            self.need((NUMBER, VALUE))
        elif found == "(":
            if queries and self.depth < MAX_QUERIES and self.comes("SELECT"):
                self.query(scope, width=1)
            elif self.inside == MAX_PARENTHESES:
                raise _Stop
            else:
                self.inside += 1
                self.value(scope, aggregates)
                self.inside -= 1
            self.need((")",))
        return None

    # Conditions

    def condition(self, scope: Scope, aggregates: bool = False) -> None:
        while True:
            self.take(("NOT",))
            self.predicate(scope, aggregates)
            if not self.take(("AND", "OR")):
                return

    def predicate(self, scope: Scope, aggregates: bool) -> None:
        queries = not scope.in_on and self.depth < MAX_QUERIES
        deeper = {"("} if queries or self.inside < MAX_PARENTHESES else set()
        if queries:
            deeper.add("EXISTS")
        found = self.take(deeper)
        if found == "EXISTS":
            self.need(("(",))
            self.query(scope)
            self.need((")",))
            return
        if found == "(":
            if queries and self.comes("SELECT"):
                self.query(scope, width=1)
                self.need((")",))
            elif self.inside == MAX_PARENTHESES:
                raise _Stop
            else:
                self.inside += 1
                self.condition(scope, aggregates)
                self.inside -= 1
                self.need((")",))
                return
        else:
            self.value(scope, aggregates)
        operator = self.need({"LIKE", "IN", "BETWEEN"} if self.take(("NOT",)) else PREDICATES)
        if operator in COMPARISONS:
            self.value(scope, aggregates, literals=True, queries=queries)
        elif operator == "LIKE":
            self.need((STRING, VALUE))
        elif operator == "IS":
            self.take(("NOT",))
            self.need(("NULL",))
        elif operator == "BETWEEN":
            self.value(scope, aggregates, literals=True, queries=queries)
            self.need(("AND",))
            self.value(scope, aggregates, literals=True, queries=queries)
        else:
            self.need(("(",))
            if queries and self.comes("SELECT"):
                self.query(scope, width=1)
            else:
                while True:
                    self.need(LITERALS)
                    if not self.take((",",)):
                        break
            self.need((")",))


# Spelling ----------------------------------------------------------------------------------------------
