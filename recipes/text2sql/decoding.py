"""Writing SQL with a trained model: the likeliest, beams, draws, votes, and only what the schema's grammar allows.

A batch writes what its questions write one by one: whatever is drawn depends on the seed, the prompt and the number
of the candidate, never on the neighbours.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from recipes.text2sql import grammar
from recipes.text2sql.grammar import Grammar, Spelling, Spot, State, is_bare
from recipes.text2sql.prompt import PLACEHOLDERS, names_of, reveal, reveal_names
from recipes.text2sql.sql import Execution, canonical, execute, first_that_finds, is_ordered, keywords, same_result

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.text2sql.recipe import Example, Recipe
    from recipes.text2sql.sql import Schema


def write(recipe: Recipe, model: Any, examples: Sequence[Example]) -> list[str]:
    """One query for each example, with the database's own values and names in the placeholders' places."""
    settings = recipe.generation_settings
    chosen = []
    for example, candidates in zip(examples, write_candidates(recipe, model, examples), strict=True):
        database = example.question.database
        if settings.voting:
            chosen.append(most_voted(candidates, database, example.question.schema))
        elif settings.execution_guided and database is not None:
            chosen.append(first_that_finds(candidates, database))
        else:
            chosen.append(candidates[0])
    return chosen


def write_candidates(recipe: Recipe, model: Any, examples: Sequence[Example]) -> list[list[str]]:
    """The candidates for each example: beams, the likeliest first, or draws, the first of several not drawn."""
    settings, tokenizer = recipe.generation_settings, recipe.tokenizer
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    drawn = settings.temperature > 0
    count = settings.num_candidates if drawn else settings.num_beams
    longest = max(len(example.prompt) for example in examples)
    padding = [longest - len(example.prompt) for example in examples]
    ids = torch.tensor([[pad] * more + e.prompt for more, e in zip(padding, examples, strict=True)])
    mask = torch.tensor([[0] * more + [1] * len(e.prompt) for more, e in zip(padding, examples, strict=True)])
    processors = LogitsProcessorList()
    if settings.constrained:
        writers = [writer_of(recipe, example) for example in examples]
        processors.append(OnlyGrammatical(writers, count, longest, settings.max_new_tokens))
    if drawn:
        ids, mask = ids.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)
        processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
        processors.append(Draw(uniforms(examples, count, settings.max_new_tokens, settings.seed), longest))
    written = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=1 if drawn else count,
        num_return_sequences=1 if drawn else count,
        logits_processor=processors,
    )  # (batch * candidates, time)
    texts = [tokenizer.decode([t for t in row if t not in (pad, end)]) for row in written[:, longest:].tolist()]
    return [
        [as_sql(recipe, text, example) for text in texts[number * count : (number + 1) * count]]
        for number, example in enumerate(examples)
    ]


def as_sql(recipe: Recipe, text: str, example: Example) -> str:
    """What the model wrote as the SQL that it stands for."""
    if recipe.data_settings.schema_tokens:
        text = reveal_names(text, example.question.schema)
    return reveal(text, example.links)


def uniforms(examples: Sequence[Example], count: int, steps: int, seed: int) -> Tensor:
    """(examples * count, steps) numbers in [0, 1): the dice of each candidate. Those of the first of several are 2."""
    rows = []
    for example in examples:
        for number in range(count):
            key = hashlib.sha256(repr((seed, number, example.prompt)).encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
            rows.append(torch.rand(steps, generator=generator) if number or count == 1 else torch.full((steps,), 2.0))
    return torch.stack(rows)


class Draw(LogitsProcessor):
    """Leaves one token for each row: the one that its number picks from the distribution, or the likeliest for a 2.

    `dice` is (rows, steps). Greedy search then takes what is left; so a row's draw does not depend on other rows, as
    it does where `generate` draws for the whole batch from one generator.
    """

    def __init__(self, dice: Tensor, prompt_length: int) -> None:
        self.dice, self.prompt_length = dice, prompt_length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(rows, time), (rows, vocabulary) -> (rows, vocabulary): minus infinity but for one token of each row."""
        dice = self.dice[:, input_ids.shape[1] - self.prompt_length].to(scores.device)
        shares, order = scores.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
        place = (shares.double().cumsum(-1) < dice.double()[:, None]).sum(-1)
        # Rounding may leave the sum below the number: then the last token that has a share.
        place = torch.minimum(place, (shares > 0).sum(-1) - 1)
        place[dice == 2.0] = 0
        drawn = order.gather(-1, place[:, None])
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, scores.gather(-1, drawn))


def most_voted(candidates: Sequence[str], database: str | None, schema: Schema) -> str:
    """The first candidate of those whose rows most candidates give; without a database, whose spelling most have.

    Queries that fail have no vote, and those that find nothing only where none finds anything. The earlier wins a
    tie. Source: Shi et al. 2022 (execution-based minimum Bayes risk), arXiv 2204.11454.
    """
    if database is None:
        spellings = [canonical(candidate, schema) for candidate in candidates]
        return candidates[max(range(len(candidates)), key=lambda place: (spellings.count(spellings[place]), -place))]
    runs = {query: execute(database, query, timeout_seconds=2.0) for query in dict.fromkeys(candidates)}
    for counts in (_finds, lambda run: run.error is None):
        voters = [query for query in candidates if counts(runs[query])]
        if voters:
            groups: list[list[str]] = []
            for query in voters:
                for group in groups:
                    both = is_ordered(query) and is_ordered(group[0])
                    if query in group or same_result(runs[query], runs[group[0]], both):
                        group.append(query)
                        break
                else:
                    groups.append([query])
            return max(groups, key=len)[0]
    return candidates[0]


def _finds(run: Execution) -> bool:
    return run.error is None and any(value is not None for row in run.rows for value in row)


# Only what the grammar allows -----------------------------------------------------------------------------


class OnlyGrammatical(LogitsProcessor):
    """Leaves the tokens with which a query of the example's grammar goes on, and ends in the room that there is.

    Rows are the examples in their order, `candidates` of each.
    """

    def __init__(self, writers: Sequence[Writer], candidates: int, prompt_length: int, room: int) -> None:
        self.writers, self.candidates, self.prompt_length, self.room = writers, candidates, prompt_length, room

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(rows, time), (rows, vocabulary) -> (rows, vocabulary), minus infinity for what must not come."""
        written = input_ids[:, self.prompt_length :].tolist()
        masks = torch.stack(
            [
                self.writers[row // self.candidates].mask(tuple(ids), self.room - len(ids))
                for row, ids in enumerate(written)
            ]
        ).to(scores.device)
        masks = torch.nn.functional.pad(masks, (0, scores.shape[-1] - masks.shape[-1]))
        return scores.masked_fill(~masks, -torch.inf)


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

    def __init__(self, tokenizer: Any) -> None:
        self.end: int = tokenizer.eos_token_id
        self.special: dict[str, int] = {text: 256 + token for text, token in tokenizer.get_added_vocab().items()}
        self.size = len(tokenizer)
        self.symbols: dict[int, tuple[int, ...]] = {}
        self.whole, self.in_strings = Trie(), Trie()
        self.harmless = torch.zeros(self.size, dtype=torch.bool)
        """Tokens after which a text in quotes still goes on."""
        for text, token in tokenizer.get_vocab().items():
            symbols = (self.special[text],) if text in self.special else _bytes_of(text)
            if not symbols or token == self.end:
                continue
            self.symbols[token] = symbols
            self.whole.add(symbols, token)
            if {grammar.QUOTE, grammar.LESS, 0, ord("v")}.isdisjoint(symbols) and max(symbols) < 256:
                self.harmless[token] = True
            else:
                self.in_strings.add(symbols, token)


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
    """Which tokens may come next in a query of one spelling."""

    def __init__(self, spelling: Spelling, vocabulary: Vocabulary) -> None:
        self.spelling, self.vocabulary = spelling, vocabulary
        self._states: dict[tuple[int, ...], State | None] = {(): State()}
        self._masks: dict[State, Tensor] = {}
        self._endings: dict[State, list[int]] = {}
        self._needs: dict[State, Tensor] = {}
        """(vocabulary,): how many tokens a short end takes after each token."""

    def state(self, tokens: tuple[int, ...]) -> State | None:
        """Where the tokens lead; None where no query begins so."""
        if tokens not in self._states:
            if len(self._states) > 200_000:
                self._states, self._masks, self._endings, self._needs = {(): State()}, {}, {}, {}
            state = self.state(tokens[:-1])
            self._states[tokens] = state and self._after(state, tokens[-1])
        return self._states[tokens]

    def _after(self, state: State, token: int) -> State | None:
        symbols, following = self.vocabulary.symbols.get(token, ()), state
        for symbol in symbols:
            following = following and self.spelling.step(following, symbol)
        return following if symbols else None

    def mask(self, tokens: tuple[int, ...], room: int) -> Tensor:
        """(vocabulary,): what may come after the tokens, where `room` more tokens fit, the end included."""
        state = self.state(tokens)
        if state is None:
            # It has ended; beams that nothing was left for have no share, whatever comes.
            return torch.ones(self.vocabulary.size, dtype=torch.bool)
        if state not in self._masks:
            self._masks[state] = self._mask(state)
        mask = self._masks[state]
        if len(self.ending(state)) + SPARE < room:
            return mask
        if state not in self._needs:
            self._needs[state] = torch.zeros(len(mask), dtype=torch.int64)
            for token in mask.nonzero().flatten().tolist():
                if token != self.vocabulary.end:
                    self._needs[state][token] = len(self.ending(self._after(state, token)))
        needs = self._needs[state]
        for spare in (8, 0):  # The way to the end that is looked for is short, not always the shortest.
            fitting = mask & (needs + spare < room)
            if fitting.any():
                return fitting
        return mask & (needs == needs[mask].min())

    def _mask(self, state: State) -> Tensor:
        mask, trie = torch.zeros(self.vocabulary.size, dtype=torch.bool), self.vocabulary.whole
        if state.at == "body":
            mask, trie = self.vocabulary.harmless.clone(), self.vocabulary.in_strings
        found, open_ = [], [(trie, state)]
        while open_:
            node, at = open_.pop()
            children = node.children
            if isinstance(at.at, Spot) and at.at.lexeme is None and len(at.at.children) < len(children):
                symbols = [symbol for symbol in at.at.children if symbol in children]
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

    def ending(self, state: State | None) -> list[int]:
        """Tokens of a short way to end the query, the end included."""
        assert state is not None
        if state not in self._endings:
            symbols, tokens = self.spelling.ending(state), []
            while symbols:
                node, length, token = self.vocabulary.whole, 0, None
                for place, symbol in enumerate(symbols, 1):
                    node = node.children.get(symbol)
                    if node is None:
                        break
                    if node.tokens:
                        length, token = place, node.tokens[0]
                if token is None:
                    raise AssertionError("every byte is a token")
                tokens.append(token)
                symbols = symbols[length:]
            self._endings[state] = [*tokens, self.vocabulary.end]
        return self._endings[state]


SPARE = 64
"""One token makes the shortest end longer by less: tables that it asks for, a query in parentheses."""


def writer_of(recipe: Recipe, example: Example) -> Writer:
    """The writer for an example: its schema, and how many values its question has, of which kind."""
    kinds = tuple(link.value.isdecimal() and link.value.isascii() for link in example.links)
    return _writer(_vocabulary(recipe.tokenizer), example.question.schema, kinds, recipe.data_settings.schema_tokens)


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer)


@functools.lru_cache(maxsize=256)
def _grammar(schema: Schema) -> Grammar:
    return Grammar(schema)


@functools.lru_cache(maxsize=256)
def _writer(vocabulary: Vocabulary, schema: Schema, kinds: tuple[bool, ...], with_tokens: bool) -> Writer:
    def symbols(text: str) -> tuple[int, ...]:
        return (vocabulary.special[text],) if text in vocabulary.special else tuple(text.encode())

    tokens, rules, forms = names_of(schema) if with_tokens else {}, _grammar(schema), {}
    for key in {*rules.tables, *rules.columns}:
        forms[key] = [symbols(text) for text in _forms(key[1:], tokens.get(key[1:]))]
    values = [(symbols(PLACEHOLDERS[number]), whole) for number, whole in enumerate(kinds)]
    return Writer(Spelling(rules, forms, values), vocabulary)


def _forms(name: str, token: str | None) -> list[str]:
    """How a name is written: as its token, as it is, or in quotes, as `canonical` and `hide_names` have it."""
    is_plain, bare = re.fullmatch(r"[a-z_][a-z0-9_]*", name) is not None, is_bare(name)
    quoted = '"' + name.replace('"', '""') + '"'
    if is_plain and bare and name.upper() not in keywords():
        return [token or name]
    return [
        text
        for text, fits in ((token, bare or not is_plain), (name, is_plain and bare), (quoted, True))
        if text and fits
    ]
