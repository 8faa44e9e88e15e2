"""More training pairs: phrases of questions are exchanged for each other, together with their SQL.

Two pairs that differ in one phrase of the question ("largest" / "smallest") and in one piece of SQL ("MAX" / "MIN")
show that the two phrases are exchangeable, and which SQL belongs to each. Where the first phrase and its SQL occur in
another pair, the second replaces it. A pair whose query does not run, or finds no rows, is dropped. Source: Andreas
2020 (good-enough compositional data augmentation), arXiv 1904.09545; the exchange over pairs and the check by running
are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.text2sql.prompts import prompt
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.names import fold, unquoted

if TYPE_CHECKING:
    from recipes.text2sql.data.questions import Question
    from recipes.text2sql.prompts.prompt import Link

import difflib
import functools
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

LONGEST_PHRASE_WORDS = 6
"""No exchanged phrase of a question is longer."""
MAX_PIECES = 2
"""An exchange changes at most as many different pieces of SQL."""
NAME = r'(?:\w+|"(?:[^"]|"")*")'
SQL_TOKEN = re.compile(rf"<v\d>|'(?:[^']|'')*'|{NAME}(?:\.{NAME})?|<=|>=|<>|[^\w\s]")
PLACEHOLDER = re.compile(r"<v(\d)>")
AGGREGATES = ("COUNT", "SUM", "AVG", "MIN", "MAX")
COMPARED = re.compile(rf"(?:{NAME}\.)?({NAME}) (?:=|<>|LIKE) <v(\d)>")

T = TypeVar("T")


class Chance(Protocol):
    """A source of random numbers: a `random.Random`, or the module `random`."""

    def random(self) -> float: ...
    def choice(self, seq: Sequence[T], /) -> T: ...
    def sample(self, population: Sequence[T], k: int, /) -> list[T]: ...
    def randrange(self, start: int, /) -> int: ...


Tokens = tuple[str, ...]
Pieces = tuple[tuple[Tokens, Tokens], ...]
"""What is written instead of what."""
Exchange = tuple[Tokens, Tokens, Pieces, set[str]]
"""A phrase, what can stand for it, what then changes in SQL, the words that may follow."""


def tokens_of(query: str) -> Tokens:
    """The tokens of a query: words, numbers, quoted texts and signs."""
    return tuple(SQL_TOKEN.findall(query))


def exchanges_of(pairs: Sequence[tuple[str, str]]) -> dict[tuple[Tokens, Tokens], dict[Pieces, set[str]]]:
    """(phrase, other phrase) -> what then changes in SQL -> the words that followed the phrases ("" at the end).

    pairs: question with words between single spaces, query.
    """
    known = [(tuple(question.split()), tokens_of(query)) for question, query in dict.fromkeys(pairs)]
    # Pairs that agree in their beginning or their end are the only ones that can differ in one phrase.
    places: defaultdict[tuple[str, Tokens], list[int]] = defaultdict(list)
    for number, (words, _) in enumerate(known):
        places["start", words[:2]].append(number)
        places["end", words[-2:]].append(number)
    candidates = {pair for numbers in places.values() for pair in itertools.combinations(numbers, 2)}
    found: dict[tuple[Tokens, Tokens], dict[Pieces, set[str]]] = {}
    for one, other in sorted(candidates):
        difference = _difference(known[one][0], known[other][0])
        if difference is None:
            continue
        *phrases, after = difference
        pieces = _pieces(known[one][1], known[other][1])
        if pieces is None:
            continue
        back = tuple(sorted((new, old) for old, new in pieces))
        found.setdefault((phrases[0], phrases[1]), {}).setdefault(pieces, set()).add(after)
        found.setdefault((phrases[1], phrases[0]), {}).setdefault(back, set()).add(after)
    return found


def recombine(
    pairs: Sequence[tuple[str, str]],
    is_good: Callable[[int, str], bool],
    seed: int = 0,
    max_per_pair: int = 24,
) -> list[list[tuple[str, str]]]:
    """New pairs for each of `pairs`, by one exchange or two, sorted as the pairs are.

    is_good(number of the pair, new query) says whether a new query runs and finds something. A new question that is
    one of `pairs` is left out, and so is one for which two exchanges give two queries.
    """
    chance = random.Random(seed)
    exchanges = exchanges_of(pairs)
    by_first: defaultdict[str, list[Exchange]] = defaultdict(list)
    for (phrase, other), options in exchanges.items():
        for pieces, after in options.items():
            by_first[phrase[0]].append((phrase, other, pieces, after))
    asked = {question for question, _ in pairs}
    bigrams = {pair for question in asked for pair in _bigrams(tuple(question.split()))}
    made: list[dict[str, str]] = []
    meanings: defaultdict[str, set[str]] = defaultdict(set)
    for number, (question, query) in enumerate(pairs):
        own: dict[str, str] = {}
        edge = [(tuple(question.split()), tokens_of(query))]
        for _ in range(2):
            reached: list[tuple[Tokens, Tokens]] = []
            for words, tokens in edge:
                reached += _apply(words, tokens, by_first)
            chance.shuffle(reached)
            edge = []
            for words, tokens in reached:
                text, sql = " ".join(words), spell(tokens)
                # Words that were never neighbours make no English.
                if not _bigrams(words) <= bigrams:
                    continue
                if text in asked or text in own or len(own) >= max_per_pair or not is_good(number, sql):
                    continue
                own[text] = sql
                meanings[text].add(sql)
                edge.append((words, tokens))
        made.append(own)
    return [[(text, sql) for text, sql in own.items() if len(meanings[text]) == 1] for own in made]


def spell(tokens: Sequence[str]) -> str:
    """A query from its tokens, spaced as `recipes.text2sql.sql.canonical` spaces it."""
    text, before = "", "("
    for token in tokens:
        is_tight = token in (",", ")") or before == "(" or (token == "(" and before in AGGREGATES)
        text += token if is_tight else f" {token}"
        before = token
    return text


def recombine_questions(questions: Sequence[Question]) -> list[list[tuple[str, str]]]:
    """New (question, query) with placeholders for each question; each runs on that one's database and finds rows."""
    by_database: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        if question.database:
            by_database.setdefault(question.database, []).append(number)
    result: list[list[tuple[str, str]]] = [[] for _ in questions]
    for database, numbers in by_database.items():
        pairs, links = [], []
        for number in numbers:
            text, found = prompt.link(questions[number].text, database)
            # A placeholder is worth what its value is: a country is not exchanged for a state.
            text = PLACEHOLDER.sub(lambda match, found=found: f"{match[0]}|{_column(found[int(match[1])])}", text)
            pairs.append((text, prompt.target(questions[number].query, found, questions[number].schema)))
            links.append(found)
        tried: dict[str, bool] = {}

        def is_good(place: int, query: str, links=links, tried=tried, database=database) -> bool:
            shown = prompt.reveal(query, links[place])
            if shown not in tried:
                result = execute(database, shown, timeout_seconds=1.0)
                tried[shown] = result.error is None and any(value is not None for row in result.rows for value in row)
            return tried[shown]

        for number, made in zip(numbers, recombine(pairs, is_good), strict=True):
            result[number] = [(re.sub(r"(<v\d>)\|\S+", r"\1", text), query) for text, query in made]
    return result


def _column(found: Link) -> str:
    return found.columns[0].replace(" ", "_") if found.columns else "number"


def swap_values(links: Sequence[Link], target: str, database: str, chance: Chance) -> list[Link]:
    """The links with other values of the columns that the target compares them with.

    Question and target stay: they hold placeholders. What changes is what the prompt says of the values.
    """
    swapped = list(links)
    for match in COMPARED.finditer(target):
        number, column = int(match[2]), fold(unquoted(match[1]))
        others = _by_column(database).get(column, ())
        if number < len(links) and links[number].columns and others:
            other = chance.choice(others)
            if other not in swapped:
                swapped[number] = other
    return swapped


@functools.lru_cache(maxsize=512)
def _by_column(database: str) -> dict[str, list[Link]]:
    found: dict[str, list[Link]] = {}
    for value in prompt.values_of(database).values():
        for column in value.columns:
            found.setdefault(column, []).append(value)
    return found


def _bigrams(words: Tokens) -> set[tuple[str, str]]:
    return set(zip(("", *words), (*words, ""), strict=True))


def _difference(one: Tokens, other: Tokens) -> tuple[Tokens, Tokens, str] | None:
    """The phrases in which two questions differ, and the word after them; None if they are missing or too long."""
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    end = 0
    while end < min(len(one), len(other)) - start and one[-1 - end] == other[-1 - end]:
        end += 1
    phrases = one[start : len(one) - end], other[start : len(other) - end]
    if start + end == 0 or not all(0 < len(phrase) <= LONGEST_PHRASE_WORDS for phrase in phrases):
        return None
    # Placeholders are numbered in their order: a phrase with one may not move to where it would mean another.
    if any(word.startswith("<v") for phrase in phrases for word in phrase):
        return None
    return *phrases, one[len(one) - end] if end else ""


def _pieces(one: Tokens, other: Tokens) -> Pieces | None:
    """The pieces in which two queries differ; empty for equal queries, None if they differ too much."""
    changes: dict[Tokens, Tokens] = {}
    for tag, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        if tag != "replace" or changes.setdefault(one[a:b], other[c:d]) != other[c:d]:
            return None
    return tuple(sorted(changes.items())) if len(changes) <= MAX_PIECES else None


def _apply(words: Tokens, tokens: Tokens, by_first: dict[str, list[Exchange]]) -> list[tuple[Tokens, Tokens]]:
    reached = []
    for place, first in enumerate(words):
        for phrase, other, pieces, after in by_first.get(first, ()):
            end = place + len(phrase)
            # "most populous" is "largest" before "city", which is not so before "state".
            if words[place:end] != phrase or (words[end] if end < len(words) else "") not in after:
                continue
            changed: Tokens | None = tokens
            for old, new in pieces:
                changed = _replaced(changed, old, new) if changed is not None else None
            if changed is not None:
                reached.append((words[:place] + other + words[end:], changed))
    return reached


def _replaced(tokens: Tokens, old: Tokens, new: Tokens) -> Tokens | None:
    """The tokens with each `old` replaced by `new`; None if `old` does not occur."""
    result: list[str] = []
    place, hits = 0, 0
    while place < len(tokens):
        if tokens[place : place + len(old)] == old:
            result += new
            place += len(old)
            hits += 1
        else:
            result.append(tokens[place])
            place += 1
    return tuple(result) if hits else None
