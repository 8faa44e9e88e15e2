"""Augmentation by rewriting: paraphrased questions, equivalent queries, renamed schemas.

Every rewritten query is checked twice: sqlglot must read back the same tree, and SQLite must find the same rows on the
question's database (without one, SQLite must prepare the query). Renaming changes names in schema, query and linked
values alike, and SQLite must prepare the query on the renamed schema. Anything else is not used.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from recipes.text2sql.augmentation.recombination import Chance
from recipes.text2sql.prompts import prompt
from recipes.text2sql.prompts.prompt import Link
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.names import fold, keywords, pieces, unquoted
from recipes.text2sql.sql.parsing import parsed
from recipes.text2sql.sql.results import is_ordered, is_valid, same_result
from recipes.text2sql.sql.schema import Schema

if TYPE_CHECKING:
    from sqlglot import exp

# The question ----------------------------------------------------------------------------------------------

OPENINGS = [
    (r"^(?:what|which) (?:is|are) (the .+?)( [?.])?$",
     ["show \\1", "give me \\1", "find \\1", "tell me \\1", "list \\1"]),
    (r"^(?:show|give|tell|find|return|list|display)(?: me)? (the .+?)( [?.])?$",
     ["show \\1", "give me \\1", "find \\1", "return \\1", "what are \\1 ?", "list \\1", "please show \\1"]),
    (r"^(?:show|give|find|return|list|display)(?: me)? (all .+?)( [?.])?$",
     ["show \\1", "give me \\1", "find \\1", "return \\1", "list \\1", "display \\1"]),
    (r"^how many (.+?) are there( (?![?.]).*?)?( [?.])?$",
     ["count the \\1\\2", "what is the number of \\1\\2 ?", "find the number of \\1\\2", "number of \\1\\2"]),
    (r"^(?:count|find the number of|what is the number of) (?:the )?(.+?)( [?.])?$",
     ["count the \\1", "what is the number of \\1 ?", "find the number of \\1"]),
    (r"^which (.+)$", ["what \\1"]),
]  # fmt: skip
"""Beginnings of questions, and other words for them; \\1 is what they are about."""
PHRASES = [
    ("more than", "greater than", "over"),
    ("less than", "smaller than", "under"),
    ("at least", "no less than"),
    ("at most", "no more than"),
    ("average", "mean"),
    ("the number of", "the count of", "how many"),
    ("different", "distinct"),
    ("for each", "for every", "of each"),
    ("sorted by", "ordered by"),
    ("in descending order", "from highest to lowest"),
    ("in ascending order", "from lowest to highest"),
    ("in alphabetical order", "alphabetically"),
    ("do not have any", "have no"),
    ("along with", "together with", "and also"),
    ("whose", "with a"),
]
"""Phrases that can stand for each other inside of a question; each may become any of those behind it, and back."""
ONE_WAY = {"how many", "over", "under", "with a", "of each", "and also"}
"""These are written instead of others, but mean too much to be replaced themselves."""


def paraphrase(text: str, schema: Schema, chance: Chance) -> str:
    """The question in other words; the words of the schema's names and the placeholders stay.

    text: lower-case words between single spaces, with placeholders, as `prompt.link` gives it.
    """
    protected = _name_words(schema)

    def may_go(words: str) -> bool:
        return not protected & {prompt.stem(word) for word in words.split()}

    for pattern, others in chance.sample(OPENINGS, len(OPENINGS)):
        match = re.match(pattern, text)
        if match:
            taken = re.match(r"\w+(?: \w+)?", text)
            if taken and may_go(taken[0].split()[0]):
                text = " ".join(match.expand(chance.choice(others)).split())
            break
    for group in PHRASES:
        for phrase in group:
            if phrase in ONE_WAY or not may_go(phrase) or f" {phrase} " not in f" {text} ":
                continue
            others = [other for other in group if other != phrase and may_go(other)]
            if phrase == "the number of" and text.startswith(phrase):
                others = [other for other in others if other != "how many"]
            if others and chance.random() < 0.5:
                text = f" {text} ".replace(f" {phrase} ", f" {chance.choice(others)} ", 1).strip()
            break
    return text


@functools.lru_cache(maxsize=512)
def _name_words(schema: Schema) -> frozenset[str]:
    return frozenset(prompt.stem(part) for name in prompt.names_of(schema) for part in re.split(r"[\W_]+", name))


# The query -------------------------------------------------------------------------------------------------


def rewrite(query: str, schema: Schema, database: str | None, chance: Chance) -> str:
    """Another canonical query with the same rows, or the query itself where none was found.

    query: canonical, without placeholders.
    """
    rewritten = _rewritings(query, schema, database)
    return chance.choice(rewritten) if rewritten else query


@functools.lru_cache(maxsize=20_000)
def _rewritings(query: str, schema: Schema, database: str | None) -> tuple[str, ...]:
    """Every confirmed query that one rule makes of it."""
    found = dict.fromkeys(canonical(text, schema) for text in _candidates(query))
    return tuple(other for other in found if other != query and _is_confirmed(other, query, schema, database))


def _is_confirmed(other: str, query: str, schema: Schema, database: str | None) -> bool:
    tree = parsed(other)
    if tree is None or tree.sql(dialect="sqlite") != other:
        return False
    if database is None:
        return is_valid(schema, other)
    rows = execute(database, query, timeout_seconds=1.0)
    return same_result(execute(database, other, timeout_seconds=1.0), rows, is_ordered(query))


def _candidates(query: str) -> Iterator[str]:
    """The query with one rule applied at one place, as SQL."""
    tree = parsed(query)
    if tree is None:
        return
    for number, node in enumerate(tree.walk()):
        for rule in RULES:
            if rule(node.copy()) is None:
                continue
            copied = tree.copy()
            place = next(each for at, each in enumerate(copied.walk()) if at == number)
            changed = rule(place)
            if changed is None:
                continue
            if place is copied:
                copied = changed
            elif changed is not place:
                place.replace(changed)
            yield copied.sql(dialect="sqlite")


def _between(node: exp.Expr) -> exp.Expr | None:
    """x BETWEEN a AND b: x >= a AND x <= b."""
    from sqlglot import exp

    if not isinstance(node, exp.Between) or isinstance(node.parent, exp.Not):
        return None
    low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
    high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
    both = exp.And(this=low, expression=high)
    return both if isinstance(node.parent, exp.Where | exp.And | None) else exp.Paren(this=both)


def _either(node: exp.Expr) -> exp.Expr | None:
    """x IN (a, b): x = a OR x = b."""
    from sqlglot import exp

    values = node.expressions if isinstance(node, exp.In) else []
    if not 2 <= len(values) <= 4 or not all(isinstance(value, exp.Literal) for value in values):
        return None
    if isinstance(node.parent, exp.Not) or not isinstance(node.this, exp.Column):
        return None
    one_of = exp.or_(*(exp.EQ(this=node.this.copy(), expression=value.copy()) for value in values), copy=False)
    return one_of if isinstance(node.parent, exp.Where | None) else exp.Paren(this=one_of)


def _swapped(node: exp.Expr) -> exp.Expr | None:
    """a AND b: b AND a; so for OR, for the two columns of a join, for INTERSECT and UNION."""
    from sqlglot import exp

    is_join = isinstance(node, exp.EQ) and isinstance(node.this, exp.Column) and isinstance(node.expression, exp.Column)
    is_set = isinstance(node, exp.Intersect | exp.Union)
    if is_set and (node.args.get("order") or node.args.get("limit") or isinstance(node.this, exp.SetOperation)):
        return None
    if not is_join and not is_set and not isinstance(node, exp.And | exp.Or):
        return None
    left, right = node.this, node.expression
    node.set("this", right.copy())
    node.set("expression", left.copy())
    return node


def _grouped(node: exp.Expr) -> exp.Expr | None:
    """SELECT DISTINCT a: SELECT a ... GROUP BY a."""
    from sqlglot import exp

    if not isinstance(node, exp.Select) or not node.args.get("distinct"):
        return None
    if any(node.args.get(part) for part in ("group", "having", "order", "limit", "windows")):
        return None
    if not all(isinstance(each, exp.Column) and not each.is_star for each in node.expressions):
        return None
    node.set("distinct", None)
    node.set("group", exp.Group(expressions=[each.copy() for each in node.expressions]))
    return node


def _joined_from_the_other_end(node: exp.Expr) -> exp.Expr | None:
    """FROM a JOIN b: FROM b JOIN a."""
    from sqlglot import exp

    joins = node.args.get("joins") or [] if isinstance(node, exp.Select) else []
    if len(joins) != 1 or joins[0].args.get("side") or joins[0].args.get("kind") or not joins[0].args.get("on"):
        return None
    first, second = node.args["from_"].this, joins[0].this
    if not isinstance(first, exp.Table) or not isinstance(second, exp.Table):
        return None
    node.args["from_"].set("this", second.copy())
    joins[0].set("this", first.copy())
    return node


RULES: Sequence[Callable[[exp.Expr], exp.Expr | None]] = (
    _between,
    _either,
    _swapped,
    _grouped,
    _joined_from_the_other_end,
)

# The schema ------------------------------------------------------------------------------------------------

SYNONYMS = {
    "id": ("code", "key", "no"), "name": ("title", "label", "designation"), "title": ("name", "heading"),
    "country": ("nation", "land"), "city": ("town", "municipality"), "state": ("province", "region"),
    "year": ("yr",), "date": ("day", "when"), "age": ("years",), "price": ("cost", "amount"), "cost": ("price",),
    "student": ("pupil", "learner"), "teacher": ("instructor", "tutor"), "employee": ("worker", "staff_member"),
    "salary": ("pay", "wage"), "department": ("dept", "division"), "customer": ("client", "buyer"),
    "address": ("place", "location"), "location": ("place", "site"), "phone": ("telephone",), "email": ("mail",),
    "type": ("kind", "category"), "category": ("type", "class"), "description": ("details", "note"),
    "details": ("description", "info"), "number": ("num", "no"), "population": ("inhabitants",), "area": ("surface",),
    "first": ("given",), "last": ("family",), "gender": ("sex",), "sex": ("gender",), "film": ("movie",),
    "movie": ("film",), "book": ("volume",), "author": ("writer",), "song": ("track",), "singer": ("vocalist",),
    "school": ("college",), "course": ("class", "subject"), "company": ("firm", "business"), "product": ("item",),
    "order": ("purchase",), "status": ("state", "condition"), "team": ("club", "side"), "player": ("athlete",),
    "game": ("match",), "score": ("points",), "rank": ("position",), "weight": ("mass",), "height": ("size",),
    "start": ("begin",), "end": ("finish",), "from": ("since",), "to": ("until",), "total": ("overall",),
    "code": ("id", "key"), "level": ("grade",), "result": ("outcome",), "member": ("participant",),
}  # fmt: skip


def renamed(
    schema: Schema, links: Sequence[Link], query: str, chance: Chance
) -> tuple[Schema, list[Link], str] | None:  # fmt: skip
    """Schema, linked values and query with other names for about half of tables and columns; None where it failed.

    query: canonical, with or without placeholders. A name is renamed alike wherever it stands.
    """
    names = new_names(schema, query, chance)
    other = rename_schema(schema, names)
    found = [
        dataclasses.replace(link, columns=tuple(names.get(column, column) for column in link.columns)) for link in links
    ]
    written = rename_query(query, names)
    if not is_valid(other, prompt.reveal(written, found)):
        return None
    return other, found, written


def new_names(schema: Schema, query: str, chance: Chance) -> dict[str, str]:
    """Old name -> new name, both in lower case, for about half of the names; no two get the same."""
    old = list(prompt.names_of(schema))
    # Aliases of the query are not to become names.
    taken = {*old, *re.findall(r"\w+", query.lower()), *(name.lower() for name in keywords())}
    names: dict[str, str] = {}
    for name in old:
        if chance.random() < 0.5:
            continue
        for _ in range(3):
            new = _another_name(name, chance)
            if new not in taken and re.fullmatch(r"[a-z_]\w*", new) and not re.fullmatch(r"t\d+", new):
                names[name] = new
                taken.add(new)
                break
    return names


def _another_name(name: str, chance: Chance) -> str:
    words = [word for word in re.split(r"[\W_]+", name) if word]
    way = chance.randrange(6)
    if way < 3 and any(word in SYNONYMS for word in words):
        return "_".join(chance.choice(SYNONYMS[word]) if word in SYNONYMS else word for word in words)
    if way == 3:
        # customer_number: cstmr_nmbr.
        return "_".join(word[:1] + re.sub("[aeiou]", "", word[1:]) for word in words)
    if way == 4:
        return "_".join(word[:4] for word in words)
    return "_".join([chance.choice(("the", "my", "a", "x")), *words]) if len(words) < 2 else "".join(words)


def rename_schema(schema: Schema, names: dict[str, str]) -> Schema:
    """The schema with other names; those not among `names` stay."""

    def new(name: str) -> str:
        return names.get(fold(name), name)

    return Schema(
        schema.db_id,
        {new(table): {new(column): kind for column, kind in columns.items()}
         for table, columns in schema.tables.items()},
        tuple((new(table), new(column)) for table, column in schema.primary_keys),
        tuple((new(a), new(b), new(c), new(d)) for a, b, c, d in schema.foreign_keys),
    )  # fmt: skip


def rename_query(query: str, names: dict[str, str]) -> str:
    """The canonical query with other names; texts in quotes and placeholders stay."""

    # The canonical spelling has functions and keywords in upper case, names in lower.
    return "".join(
        names.get(unquoted(piece), piece) if kind in ("name", "word") else piece for kind, piece in pieces(query)
    )
