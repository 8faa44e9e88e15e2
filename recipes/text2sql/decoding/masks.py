"""Masks of constrained decoding: which tokens of a vocabulary may come next under the grammar of a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.text2sql.decoding.grammar import (
    _NOTHING,
    AGGREGATES,
    END,
    INTEGER,
    NUMBER,
    RESULT_NAMES,
    STRING,
    VALUE,
    WHOLE_VALUE,
    Grammar,
)
from recipes.text2sql.prompts.prompt import PLACEHOLDERS, names_of
from recipes.text2sql.sql.names import spelled

if TYPE_CHECKING:
    from recipes.text2sql.prompts.encoding import Encoder, Example
    from recipes.text2sql.sql.schema import Schema

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


LOOKED_AT = 64
"""The best tokens of a row that are looked at one by one before the mask of all tokens is worked out."""


class OnlyGrammatical(LogitsProcessor):
    """Allows only tokens that continue a valid query that can end within `budget` tokens.

    Rows are the examples in their order, with `candidates` rows of each. `needed`: how many of the best tokens of a
    row can be chosen, as in greedy decoding and beam search; of the allowed tokens, only those and their equals then
    keep their score. A trained model's best tokens are mostly allowed, and the mask of a large vocabulary takes longer
    than the model. None: all allowed tokens count, as in sampling.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        candidates: int,
        prompt_length: int,
        budget: int,
        needed: int | None = None,
    ) -> None:
        self.writers, self.candidates, self.prompt_length, self.budget = writers, candidates, prompt_length, budget
        self.needed = needed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, time), (rows, vocabulary) -> (rows, vocabulary), minus infinity for tokens that are not allowed."""
        written = [tuple(ids) for ids in input_ids[:, self.prompt_length :].tolist()]
        best: list[list[tuple[int, float]]] = [[] for _ in written]
        if self.needed is not None:
            found = scores.topk(min(LOOKED_AT, scores.shape[-1]))
            pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
            best = [list(zip(*each, strict=True)) for each in pairs]
        allowed = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(written):
            writer, budget = self.writers[row // self.candidates], self.budget - len(ids)
            few = writer.best_allowed(ids, best[row], self.needed or 0, budget)
            if few is None:
                mask = writer.mask(ids, budget).to(scores.device)
                allowed[row, : len(mask)] = scores[row, : len(mask)].masked_fill(~mask, -torch.inf)
            else:
                allowed[row, few] = scores[row, few]
        return allowed


class Trie:
    """Tokens by their symbols."""

    __slots__ = ("children", "tokens")

    def __init__(self) -> None:
        self.children: dict[int, Trie] = {}
        self.tokens: list[int] = []

    def add(self, symbols: Iterable[int], token: int) -> None:
        node = self
        for symbol in symbols:
            node = node.children.setdefault(symbol, Trie())
        node.tokens.append(token)


class Vocabulary:
    """A tokenizer's tokens as symbols: bytes, and 256 + id for those that stand for themselves."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        end = tokenizer.eos_token_id
        assert isinstance(end, int)
        self.end = end
        self.special: dict[str, int] = {text: 256 + token for text, token in tokenizer.get_added_vocab().items()}
        self.size = len(tokenizer)
        self.symbols: dict[int, tuple[int, ...]] = {}
        for text, token in tokenizer.get_vocab().items():
            symbols = (self.special[text],) if text in self.special else _bytes_of(text)
            if symbols and token != self.end:
                self.symbols[token] = symbols

    @functools.cached_property
    def _by_symbols(self) -> dict[tuple[int, ...], int]:
        found: dict[tuple[int, ...], int] = {}
        for token, symbols in self.symbols.items():
            found.setdefault(symbols, token)
        return found

    @functools.cached_property
    def _lengths(self) -> list[int]:
        """The numbers of symbols that tokens have, the largest first."""
        return sorted({len(symbols) for symbols in self._by_symbols}, reverse=True)

    def longest(self, symbols: Sequence[int]) -> tuple[int, int]:
        """The longest token that the symbols begin with, and its length."""
        for length in self._lengths:
            token = self._by_symbols.get(tuple(symbols[:length])) if length <= len(symbols) else None
            if token is not None:
                return token, length
        raise AssertionError("every byte is a token")

    @functools.cached_property
    def whole(self) -> Trie:
        """All tokens."""
        return _trie(self.symbols.items())

    @functools.cached_property
    def harmless(self) -> Tensor:
        """(vocabulary,): tokens after which a text in quotes still goes on, wherever in it they stand."""
        harmless = torch.zeros(self.size, dtype=torch.bool)
        odd = {QUOTE, LESS, 0}
        harmless[[token for token, each in self.symbols.items() if odd.isdisjoint(each) and max(each) < 256]] = True
        return harmless

    @functools.cached_property
    def in_strings(self) -> Trie:
        """The tokens that are not harmless."""
        return _trie((token, each) for token, each in self.symbols.items() if not self.harmless[token])

    @functools.cached_property
    def begins_with_v(self) -> Tensor:
        """(vocabulary,): what must not follow a "<" in a text, which would be read as a placeholder."""
        found = torch.zeros(self.size, dtype=torch.bool)
        found[[token for token, each in self.symbols.items() if each[0] == ord("v")]] = True
        return found


def _trie(tokens: Iterable[tuple[int, tuple[int, ...]]]) -> Trie:
    trie = Trie()
    for token, symbols in tokens:
        trie.add(symbols, token)
    return trie


def _bytes_of(token: str) -> tuple[int, ...]:
    """The bytes that a token of a byte-level BPE stands for, or one of SentencePiece with its sign for a space."""
    known = _byte_level()
    if all(character in known for character in token):
        return tuple(known[character] for character in token)
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return (int(token[3:5], 16),)
    return tuple(token.replace("\u2581", " ").encode())


@functools.cache
def _byte_level() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level BPE: printable bytes stand for themselves, the others follow 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Writer:
    """The tokens that may come next in a query of one schema."""

    def __init__(self, spelling: Spelling, vocabulary: Vocabulary) -> None:
        self.spelling, self.vocabulary = spelling, vocabulary
        self._states: dict[tuple[int, ...], State | None] = {(): State()}
        self._masks: dict[State, Tensor] = {}
        self._completions: dict[State, list[int]] = {}
        self._needs: dict[State, Tensor] = {}
        """(vocabulary,): how many tokens a short end takes after each token."""

    def state(self, tokens: tuple[int, ...]) -> State | None:
        """Where the tokens lead; None where no query begins so."""
        if tokens not in self._states:
            if len(self._states) > 200_000:
                self._states, self._masks, self._completions, self._needs = {(): State()}, {}, {}, {}
            state = self.state(tokens[:-1])
            self._states[tokens] = state and self._after(state, tokens[-1])
        return self._states[tokens]

    def _after(self, state: State, token: int) -> State | None:
        symbols, following = self.vocabulary.symbols.get(token, ()), state
        for symbol in symbols:
            following = following and self.spelling.step(following, symbol)
        return following if symbols else None

    def best_allowed(
        self, tokens: tuple[int, ...], best: Sequence[tuple[int, float]], needed: int, budget: int
    ) -> list[int] | None:
        """The first `needed` of the best tokens that `mask` allows, and those with the score of the last of them.

        `best`: tokens with their scores, the highest first. None where the mask has to be worked out.
        """
        state = self.state(tokens)
        if state is None or not best:
            return None
        least = budget if self._is_tight(state, budget) else None
        allowed: list[int] = []
        worst = -math.inf
        for token, score in best:
            if len(allowed) >= needed and score < worst:
                return allowed
            if self._fits(state, token, least):
                allowed.append(token)
                worst = score
        return None

    def _is_tight(self, state: State, budget: int) -> bool:
        """Whether a token may be allowed by the grammar and leave too few for the end of the query."""
        return len(self.short_completion(state)) + SPARE >= budget

    def _fits(self, state: State, token: int, budget: int | None) -> bool:
        """Whether a token may come, and an end within a budget that is tight."""
        if token == self.vocabulary.end:
            return self.spelling.can_end(state) and (budget is None or budget > MARGIN)
        following = self._after(state, token)
        return following is not None and (budget is None or len(self.short_completion(following)) + MARGIN < budget)

    def mask(self, tokens: tuple[int, ...], budget: int) -> Tensor:
        """(vocabulary,): what may come after the tokens, where `budget` more tokens fit, the end included."""
        state = self.state(tokens)
        if state is None:
            # It has ended; beams that nothing was left for have no share, whatever comes.
            return torch.ones(self.vocabulary.size, dtype=torch.bool)
        if state not in self._masks:
            self._masks[state] = self._mask(state)
        mask = self._masks[state]
        if not self._is_tight(state, budget):
            return mask
        if state not in self._needs:
            needs, single = torch.zeros(len(mask), dtype=torch.int64), mask.clone()
            if state.at in IN_TEXT:
                # They all leave the query in the text, whose end is the same.
                harmless = mask & self.vocabulary.harmless
                needs[harmless] = len(self.short_completion(State(state.lexemes, "body")))
                single &= ~harmless
            for token in single.nonzero().flatten().tolist():
                if token != self.vocabulary.end:
                    needs[token] = len(self.short_completion(self._after(state, token)))
            self._needs[state] = needs
        needs = self._needs[state]
        for spare in (MARGIN, 0):
            fitting = mask & (needs + spare < budget)
            if fitting.any():
                return fitting
        return mask & (needs == needs[mask].min())

    def _mask(self, state: State) -> Tensor:
        vocabulary = self.vocabulary
        if state.at in IN_TEXT:
            mask, trie = vocabulary.harmless.clone(), vocabulary.in_strings
            if state.at == "less":
                mask &= ~vocabulary.begins_with_v
        else:
            mask, trie = torch.zeros(vocabulary.size, dtype=torch.bool), vocabulary.whole
        found, open_ = [], [(trie, state)]
        while open_:
            node, at = open_.pop()
            children = node.children
            if isinstance(at.at, Spot) and at.at.lexeme is None and len(at.at.children) < len(children):
                cases = (self.spelling.cases(symbol) for symbol in at.at.children)
                symbols = [symbol for symbol in itertools.chain.from_iterable(cases) if symbol in children]
            else:
                symbols = list(children)
            for symbol in symbols:
                following = self.spelling.step(at, symbol)
                if following is not None:
                    found += children[symbol].tokens
                    if children[symbol].children:
                        open_.append((children[symbol], following))
        mask[found] = True
        mask[self.vocabulary.end] = self.spelling.can_end(state)
        return mask

    def short_completion(self, state: State | None) -> list[int]:
        """Tokens of a short way to end the query, the end included."""
        assert state is not None
        if state not in self._completions:
            symbols, tokens = self.spelling.short_completion(state), []
            while symbols:
                token, length = self.vocabulary.longest(symbols)
                tokens.append(token)
                symbols = symbols[length:]
            self._completions[state] = [*tokens, self.vocabulary.end]
        return self._completions[state]


SPARE = 64
"""One token makes the shortest end longer by less: tables that it asks for, a query in parentheses."""
MARGIN = 8
"""The way to the end that is looked for is short, not always the shortest."""
IN_TEXT = ("open", "percent", "blank", "less", "body")
"""Places within a text in quotes, but beside a placeholder."""


def writer_of(encoder: Encoder, example: Example) -> Writer:
    """The writer for an example: its schema, and how many values its question has, of which kind."""
    kinds = tuple(link.value.isdecimal() and link.value.isascii() for link in example.links)
    vocabulary, with_tokens = _vocabulary(encoder.tokenizer), encoder.settings.schema_tokens
    return _writer(vocabulary, example.question.schema, kinds, with_tokens, encoder.is_plain)


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary(tokenizer)


@functools.lru_cache(maxsize=256)
def _grammar(schema: Schema) -> Grammar:
    return Grammar(schema)


@functools.lru_cache(maxsize=256)
def _writer(
    vocabulary: Vocabulary, schema: Schema, kinds: tuple[bool, ...], with_tokens: bool, is_plain: bool
) -> Writer:
    def symbols(text: str) -> tuple[int, ...]:
        return (vocabulary.special[text],) if text in vocabulary.special else tuple(text.encode())

    tokens, rules, forms = names_of(schema) if with_tokens else {}, _grammar(schema), {}
    for key in {*rules.tables, *rules.columns}:
        # As `hide_names` and `canonical` write them.
        name = tokens.get(key[1:]) or spelled(key[1:])
        # In a plain answer, case does not tell the column count from the function.
        forms[key] = [symbols(f'"{name}"' if is_plain and name.upper() in AGGREGATES else name)]
    values = [(symbols(PLACEHOLDERS[number]), whole) for number, whole in enumerate(kinds)]
    return Writer(Spelling(rules, forms, values, is_plain), vocabulary)


SPACE, QUOTE, LESS, POINT, PERCENT, MINUS, NEWLINE, FENCE = b" '<.%-\n`"
CLOSING = frozenset(b";`")
"""What a plain answer writes behind a query: its semicolon, or the end of its block, three times the sign."""
LINE, MAX_INDENT = "line space", 8
"""The gap after the end of a line, and how many spaces may follow it."""
_LOWER = {letter: letter + 32 for letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_UPPER = {lower: upper for upper, lower in _LOWER.items()}


_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$") | frozenset(range(128, 256))


_DIGITS, _SIGNS = frozenset(b"0123456789"), frozenset(b"),.")


_SHORTEST = {lexeme: rank for rank, lexeme in enumerate((
    END, ")", "FROM", "AS", "ON", "TRUE", ".", "IS", "NULL", "BY", "ALL", INTEGER, NUMBER, "SELECT", "=", '"', "t",
    "(", "JOIN", ",", "AND",
))}  # fmt: skip
"""What leads to the end of a query soonest, first; names and aliases by their first letter."""


def _rank(lexeme: str) -> tuple[int, str]:
    kind = lexeme if lexeme in _SHORTEST else lexeme[0] if lexeme[0] in '"t' else ""
    return _SHORTEST.get(kind, len(_SHORTEST)), lexeme


class Spot:
    """A place within the spellings of the lexemes that may come: a node of their trie."""

    __slots__ = ("children", "is_placeholder", "lexeme")

    def __init__(self, is_placeholder: bool = False) -> None:
        self.children: dict[int, Spot] = {}
        self.lexeme: str | None = None
        """The lexeme that ends here."""
        self.is_placeholder = is_placeholder


class State(NamedTuple):
    """What has been read of a query."""

    lexemes: tuple[str, ...] = ()
    at: Spot | str | None = None
    """The place within the next lexeme, or in what closes a plain answer; None: between two lexemes."""
    gap: str = "free"
    """Between two lexemes: "none", "space", or LINE behind a sign for each space after it; after a placeholder, beside
    which a space is free, with "free" before."""


class Spelling:
    """The texts of one grammar's queries, symbol by symbol.

    Symbols are bytes, and numbers from 256 on for tokens that stand for themselves (placeholders). Spaces stand where
    `canonical` writes them; beside placeholders, where the tokenizer puts one before any text, also elsewhere.

    A plain answer is that of a model that learned SQL elsewhere. It writes keywords and names in upper or lower case,
    and breaks lines. The model's best token would else often be forbidden, and a worse query be written: " count" of
    COUNT(*) would only be the beginning of the column countryid.
    """

    def __init__(
        self,
        grammar: Grammar,
        names: Mapping[str, Sequence[tuple[int, ...]]],
        values: Sequence[tuple[tuple[int, ...], bool]],
        is_plain: bool = False,
    ) -> None:
        """`names`: each name of the grammar, and how it may be written. `values`: each placeholder, and whether it is
        a whole number."""
        self.grammar, self.is_plain = grammar, is_plain
        self.forms: dict[str, Sequence[tuple[int, ...]]] = {
            **names,
            VALUE: [symbols for symbols, _ in values],
            WHOLE_VALUE: [symbols for symbols, is_whole in values if is_whole],
            **dict.fromkeys((END, NUMBER, INTEGER, STRING), ()),
            **{name: [tuple(name[1:].encode())] for name in RESULT_NAMES if name not in names},
        }
        # A placeholder becomes a text or a number: no word may touch it.
        self.placeholders = frozenset(symbols[0] for symbols, _ in values if len(symbols) == 1)
        self.words = _WORD | self.placeholders
        self._roots: dict[frozenset[str], Spot] = {}

    def root(self, lexemes: tuple[str, ...]) -> Spot:
        """The trie of what may come after the lexemes."""
        options = self.grammar.options(lexemes)
        found = self._roots.get(options)
        if found is None:
            found = self._roots[options] = Spot()
            for lexeme in options:
                for symbols in self.forms[lexeme] if lexeme in self.forms else [tuple(lexeme.encode())]:
                    spot = found
                    for symbol in symbols:
                        spot = spot.children.setdefault(self._folded(symbol), Spot(symbol >= 256))
                    spot.lexeme = lexeme
        return found

    def step(self, state: State, symbol: int) -> State | None:
        """The state after one more symbol; None where no query begins so."""
        lexemes, at, gap = state
        if at == "ended":
            return state if symbol in CLOSING or symbol == NEWLINE else None
        if at in ("`", "``"):
            return None if symbol != FENCE else State(lexemes, "``" if at == "`" else "ended")
        if self.is_plain and symbol in CLOSING and self.can_end(state):
            return State(lexemes, "`" if symbol == FENCE else "ended")
        if at is None:
            if symbol == SPACE and gap.endswith(LINE):
                return State(lexemes, None, f"+{gap}") if len(gap) < len(LINE) + MAX_INDENT else None
            if symbol == SPACE or (self.is_plain and symbol == NEWLINE):
                return self._space(state, symbol)
            last = lexemes[-1] if lexemes else ""
            tight = self.is_tight(last, symbol)
            if gap == "none" and not tight and last != "-" and (symbol < 256 or symbol in self.placeholders):
                return None
            if (gap == "space" and tight) or (gap == "free" and last in (VALUE, WHOLE_VALUE) and symbol in self.words):
                return None
            if last == "-" and symbol == MINUS and not gap.endswith("space"):
                return None  # Two of them begin a comment.
            child = self.root(lexemes).children.get(self._folded(symbol))
            if child is not None:
                return State(lexemes, child)
            options = self.grammar.options(lexemes)
            if symbol in _DIGITS and (NUMBER in options or INTEGER in options):
                return State(lexemes, "digits")
            return State(lexemes, "open") if symbol == QUOTE and STRING in options else None
        if isinstance(at, Spot):
            child = at.children.get(self._folded(symbol))
            if child is not None:
                return State(lexemes, child)
        elif at in ("digits", "fraction"):
            if symbol in _DIGITS:
                return state
            if at == "digits" and symbol == POINT and NUMBER in self.grammar.options(lexemes):
                return State(lexemes, "point")
        elif at == "point":
            return State(lexemes, "fraction") if symbol in _DIGITS else None
        elif at != "closed with a placeholder":
            following = self._in_string(at, symbol)
            if following is not None or at != "closed":
                return None if following is None else State(lexemes, following)
        done = self.finished(state)
        return None if done is None else self.step(done, symbol)

    def _folded(self, symbol: int) -> int:
        return _LOWER.get(symbol, symbol) if self.is_plain else symbol

    def cases(self, symbol: int) -> tuple[int, ...]:
        """The symbols that a symbol of the trie stands for."""
        return (symbol, _UPPER[symbol]) if self.is_plain and symbol in _UPPER else (symbol,)

    def is_tight(self, last: str, symbol: int) -> bool:
        """Whether no space stands between a lexeme and one that begins with the symbol."""
        return last in ("(", ".") or symbol in _SIGNS or (symbol == ord("(") and last in AGGREGATES)

    def _space(self, state: State, symbol: int) -> State | None:
        lexemes, _, gap = state
        last = lexemes[-1] if lexemes else ""
        # An answer may have spaces at its end if it is plain.
        others = self.grammar.options(lexemes) - ({END} if not self.is_plain else _NOTHING)
        if gap == "none" and last not in ("(", "."):
            if symbol == NEWLINE:
                # Once: an empty line would end the answer.
                return State(lexemes, None, LINE)
            others -= {")", ",", "."} | ({"("} if last in AGGREGATES else _NOTHING)
            return State(lexemes, None, "space") if others else None
        return State(lexemes, None, "free space") if gap == "free" and others else None

    def _in_string(self, at: str, symbol: int) -> str | None:
        """Where a symbol leads within quotes: any text, or one placeholder that may have % around it."""
        if symbol == QUOTE:
            return {"held": "closed with a placeholder", "held %": "closed with a placeholder", "closed": "body"}.get(
                at, "closed"
            )
        if at == "closed":
            return None
        if at in ("held", "held %"):
            return (
                "held %" if symbol == PERCENT and at == "held" else "held" if symbol == SPACE and at == "held" else None
            )
        if symbol in self.placeholders:
            return "held" if at in ("open", "percent", "blank") else None
        if symbol >= 256 or symbol == 0 or (at == "less" and symbol == ord("v")):
            return None  # "<v" would be read as a placeholder.
        if symbol == LESS:
            return "less"
        if at == "open" and symbol == PERCENT:
            return "percent"
        return "blank" if symbol == SPACE and at in ("open", "percent", "blank") else "body"

    def finished(self, state: State) -> State | None:
        """The state after the lexeme that it is in; None if that lexeme is not complete."""
        lexemes, at, _ = state
        if at is None:
            return state
        if isinstance(at, Spot):
            return (
                None
                if at.lexeme is None
                else State((*lexemes, at.lexeme), None, "free" if at.is_placeholder else "none")
            )
        if at in ("digits", "fraction"):
            kind = NUMBER if NUMBER in self.grammar.options(lexemes) else INTEGER
            return State((*lexemes, kind), None, "none")
        return (
            State((*lexemes, STRING), None, "free" if "placeholder" in at else "none")
            if at.startswith("closed")
            else None
        )

    def short_completion(self, state: State) -> list[int]:
        """The symbols of a short way to the end of the query."""
        symbols: list[int] = []
        lexemes, at, _ = state
        if at == "ended":
            return symbols
        if isinstance(at, str) and at in ("`", "``"):
            return [FENCE] * (3 - len(at))
        if isinstance(at, Spot):
            # To the nearest end of the lexeme, in as few symbols as can be.
            ways: list[tuple[Spot, list[int]]] = [(at, [])]
            for spot, way in ways:
                if spot.lexeme is not None:
                    symbols, lexemes = way, (*lexemes, spot.lexeme)
                    break
                ways += [(child, [*way, symbol]) for symbol, child in spot.children.items()]
        elif at is not None:
            done = self.finished(state)
            if done is None:
                symbols = [ord("0")] if at == "point" else [QUOTE]
                done = self.finished(State(lexemes, "fraction" if at == "point" else "closed"))
            lexemes = done.lexemes if done else lexemes
        spaced = at is None and state.gap.endswith("space")
        for _ in range(200):
            last = lexemes[-1] if lexemes else ""
            fitting = self.grammar.options(lexemes)
            if state.gap == "space" and spaced:
                fitting = fitting - ({*"),."} if self.is_plain else {*"),.", END})
            chosen = min(fitting, key=_rank)
            if chosen == END:
                break
            lexemes = (*lexemes, chosen)
            if chosen in (NUMBER, INTEGER, STRING):
                form: Sequence[int] = b"''" if chosen == STRING else b"1"
            else:
                form = min(self.forms[chosen], key=len) if chosen in self.forms else chosen.encode()
            symbols += [*([] if spaced or self.is_tight(last, form[0]) else [SPACE]), *form]
            spaced = False
        return symbols

    def can_end(self, state: State) -> bool:
        """Whether the query may end here."""
        if state.at == "ended":
            return True
        done = self.finished(state)
        if done is None or (done.gap.endswith("space") and not self.is_plain):
            return False
        return END in self.grammar.options(done.lexemes)
