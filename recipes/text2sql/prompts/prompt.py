"""The text a model sees and writes: schema, question with linked values, SQL with placeholders.

Small data cannot teach a model to copy strange names letter by letter. So words of the question that stand in the
database become placeholders, <v0>, <v1> ..., in question and SQL alike; what the model writes gets the database's
own values back. Linking looks at question and database only, never at the answer.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Container

from recipes.text2sql.prompts.values import file_state, texts_of
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.names import fold, pieces, spelled, unquoted
from recipes.text2sql.sql.schema import Schema

MAX_VALUES = 10
PLACEHOLDERS = tuple(f"<v{number}>" for number in range(MAX_VALUES))
SPECIAL_TOKENS = ("<pad>", "<eos>", "<schema>", "<query>", "<sql>", *PLACEHOLDERS)
UNKNOWN = "<unk>"
MAX_TABLES, MAX_COLUMNS = 30, 120
NAME_TOKENS = tuple(
    f"<{kind}{number}>" for kind, most in (("t", MAX_TABLES), ("c", MAX_COLUMNS)) for number in range(most)
)
LONGEST_VALUE_WORDS = 6
MAX_COLUMNS_SHOWN = 6
WORD = re.compile(r"\d+(?:\.\d+)?|\w+|[^\w\s]")
LITERAL = re.compile(r"'((?:[^']|'')*)'|(?<![\w.'])(\d+(?:\.\d+)?)(?![\w.'])" + r'|"(?:[^"]|"")*"')
"""A text in quotes, a number, or a name in quotes."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")
COMMON = frozenset(
    "a all an and any are as at by do for from has have in is it no not of on or the to was with".split()
)


@dataclasses.dataclass(frozen=True)
class Link:
    """A value that the question mentions."""

    value: str
    """As the database spells it; a number as the question spells it."""
    columns: tuple[str, ...]
    """Columns that hold it; empty for a number."""

    @property
    def literal(self) -> str:
        """The value as SQL text: a number stands bare, also where some column holds it as text."""
        return self.value if NUMBER.fullmatch(self.value) else "'" + self.value.replace("'", "''") + "'"


def values_of(database: str) -> dict[tuple[str, ...], Link]:
    """Every distinct text value of a database, by its lower-cased words; none of columns that hold only one."""
    return _values_of(database, file_state(database))


@functools.lru_cache(maxsize=512)
def _values_of(database: str, state: tuple[int, int]) -> dict[tuple[str, ...], Link]:
    found: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for (_, column), texts in texts_of(database).items():
        for value in texts:
            words = tuple(WORD.findall(value.lower()))
            if 0 < len(words) <= LONGEST_VALUE_WORDS:
                found.setdefault(words, (value, []))[1].append(fold(column))
    return {words: Link(value, tuple(dict.fromkeys(columns))) for words, (value, columns) in found.items()}


def link(question: str, database: str | None) -> tuple[str, list[Link]]:
    """The question with placeholders for the values it mentions, longest first, and those values in order."""
    values = values_of(database) if database else {}
    spans = list(WORD.finditer(question))
    lowered = [span.group().lower() for span in spans]
    parts: list[str] = []
    links: list[Link] = []
    place = 0
    while place < len(spans):
        found, length, skipped = None, 1, 0
        for length in range(min(LONGEST_VALUE_WORDS, len(spans) - place), 0, -1):
            words = tuple(lowered[place : place + length])
            if length == 1 and (words[0] in COMMON or len(words[0]) < 2 and not words[0].isdigit()):
                continue
            found = values.get(words)
            if found:
                found, length, skipped = _without_name(words, found, values)
                break
        if found is None and lowered[place][0].isdigit():
            found, length = Link(lowered[place], ()), 1
        if found is None or (found not in links and len(links) == MAX_VALUES):
            parts.append(lowered[place])
            place += 1
            continue
        if found not in links:
            links.append(found)
        parts += [*lowered[place : place + skipped], PLACEHOLDERS[links.index(found)]]
        place += skipped + length
    return " ".join(parts), links


def _without_name(words: tuple[str, ...], found: Link, values: dict[tuple[str, ...], Link]) -> tuple[Link, int, int]:
    """The value, its words and the words before it: "ohio river" is the value "ohio" of a column river_name.

    Where some column holds the longer text, too, the word that names the column stays in the question.
    """
    for kept, name, skipped in ((words[:-1], words[-1], 0), (words[1:], words[0], 1)):
        shorter = values.get(kept)
        if shorter and any(part.startswith(name) for column in shorter.columns for part in column.split("_")):
            return shorter, len(kept), skipped
    return found, len(words), 0


def hide_words(text: str, known: Container[str], share: float) -> str:
    """The question with <unk> for words that are not known, and by chance for a share of the others.

    Pieces of a word that training never had would say anything. Having met <unk>, a model goes by the other words.
    """
    return " ".join(
        word if word[0] == "<" or (word in known and random.random() >= share) else UNKNOWN for word in text.split()
    )


def hide(query: str, links: list[Link]) -> str:
    """The query with placeholders where a literal is a linked value."""
    numbers = {found.value.lower(): number for number, found in reversed(list(enumerate(links)))}

    def placeholder(match: re.Match[str]) -> str:
        if match[0][0] == '"':
            return match[0]  # A name in quotes.
        text = match[1].replace("''", "'") if match[1] is not None else match[2]
        bare = text.strip("%")
        number = numbers.get(bare.lower())
        if number is None:
            return match[0]
        if match[1] is not None and (bare != text or NUMBER.fullmatch(text)):
            return "'" + text.replace(bare, PLACEHOLDERS[number]) + "'"
        return PLACEHOLDERS[number]

    return LITERAL.sub(placeholder, query)


def reveal(text: str, links: list[Link]) -> str:
    """The SQL that a model wrote, with the values in the placeholders' places."""

    def value(match: re.Match[str]) -> str:
        return links[int(match[1])].literal if int(match[1]) < len(links) else match[0]

    def inside(match: re.Match[str]) -> str:
        return links[int(match[1])].value.replace("'", "''") if int(match[1]) < len(links) else match[0]

    revealed = []
    for kind, piece in pieces(text):
        if kind == "text":
            # A placeholder alone in its quotes, or between signs for LIKE, may have spaces beside it.
            piece = re.sub(r"^('%?)\s*(<v\d>)\s*(%?')$", r"\1\2\3", piece)
            piece = re.sub(r"<v(\d)>", inside, piece)
        revealed.append(re.sub(r"<v(\d)>", value, piece) if kind == "token" else piece)
    return "".join(revealed).strip()


def with_values(text: str, links: list[Link]) -> str:
    """A question with the linked values in the places of their placeholders."""
    return re.sub(
        r"<v(\d)>", lambda match: links[int(match[1])].value if int(match[1]) < len(links) else match[0], text
    )


@functools.lru_cache(maxsize=512)
def names_of(schema: Schema) -> dict[str, str]:
    """Every name of the schema in lower case -> its token: tables <t0> ..., columns <c0> ... A name has one token."""
    names = {fold(table): f"<t{number}>" for number, table in enumerate(list(schema.tables)[:MAX_TABLES])}
    columns = dict.fromkeys(fold(column) for columns in schema.tables.values() for column in columns)
    new = [column for column in columns if column not in names][:MAX_COLUMNS]
    return names | {column: f"<c{number}>" for number, column in enumerate(new)}


@functools.lru_cache(maxsize=1 << 15)
def stem(word: str) -> str:
    """The word without the ending of its plural."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("ss", "ss")):
        if word.endswith(ending):
            return word[: -len(ending)] + instead
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


MOST_TEXTS = 1 << 14
"""Questions and queries whose names are replaced once, and not in each epoch."""


@functools.lru_cache(maxsize=512)
def _stems_of(schema: Schema) -> dict[tuple[str, ...], str]:
    return {tuple(map(stem, re.split(r"[\W_]+", name.lower()))): token for name, token in names_of(schema).items()}


@functools.lru_cache(maxsize=MOST_TEXTS)
def mark(text: str, schema: Schema) -> str:
    """The question with the token of a table or column behind the words that are its name, longest first."""
    stems = _stems_of(schema)
    words = text.split()
    stems_of_words = list(map(stem, words))
    parts: list[str] = []
    place = 0
    while place < len(words):
        for length in range(min(4, len(words) - place), 0, -1):
            token = stems.get(tuple(stems_of_words[place : place + length]))
            if token:
                parts += [*words[place : place + length], token]
                break
        else:
            length = 1
            parts.append(words[place])
        place += length
    return " ".join(parts)


@functools.lru_cache(maxsize=MOST_TEXTS)
def hide_names(query: str, schema: Schema) -> str:
    """The canonical query with tokens for the schema's names, in quotes or not, and no white space beside them."""
    names = names_of(schema)
    hidden: list[str] = []
    after_name = False
    for kind, piece in pieces(query):
        token = names.get(unquoted(piece)) if kind in ("name", "word") else None
        if kind == "space" and after_name:
            continue
        if token and hidden and hidden[-1].isspace():
            hidden.pop()
        hidden.append(token or piece)
        after_name = token is not None
    return "".join(hidden)


def reveal_names(text: str, schema: Schema) -> str:
    """The query that a model wrote, with names in the tokens' places, in quotes where SQLite needs them."""
    tokens = {token: name for name, token in names_of(schema).items()}
    spaced = []
    for kind, piece in pieces(text):
        if kind == "token" and piece[1] != "v":
            # Quotes around a token without a name would make it a text for SQLite, and hide the mistake.
            piece = f" {spelled(tokens[piece]) if piece in tokens else piece} "
        spaced.append(piece)
    revealed: list[str] = []
    for kind, piece in pieces("".join(spaced)):
        if kind != "space":
            revealed.append(piece)
        elif not revealed or revealed[-1] != ".":
            revealed.append(" ")
    return "".join(revealed).strip()


def describe(schema: Schema, with_tokens: bool = False) -> str:
    """The schema in words: table : column , column | table : ...

    Names are spelled as in SQL, in quotes where they need them. With tokens, each stands before its plain name.
    """
    names = names_of(schema) if with_tokens else {}

    def shown(name: str) -> str:
        name = fold(name)
        return f"{names[name]} {name}" if name in names else spelled(name)

    return " | ".join(f"{shown(table)} : {' , '.join(map(shown, columns))}" for table, columns in schema.tables.items())


def mentioned(links: list[Link], schema: Schema | None = None) -> str:
    """Which columns hold the linked values, for the prompt; with a schema, by their tokens."""
    names = names_of(schema) if schema is not None else {}
    parts = []
    for number, found in enumerate(links):
        columns = [names.get(column) or spelled(column) for column in found.columns[:MAX_COLUMNS_SHOWN]]
        parts.append(f"{PLACEHOLDERS[number]} {' , '.join(columns) or 'number'}")
    return " ".join(parts)


def prompt(question: str, links: list[Link], schema: Schema, repeats: int = 1, with_tokens: bool = False) -> str:
    """What the model is given behind the schema: the question, `repeats` times, and what its values are.

    With tokens for the schema's names: `mark` has put them into the question.
    """
    values = mentioned(links, schema if with_tokens else None)
    return f"<query>{question} ; {values}" * repeats + "<sql>"


def target(query: str, links: list[Link], schema: Schema) -> str:
    """What the model is to write."""
    return hide(canonical(query, schema), links)
