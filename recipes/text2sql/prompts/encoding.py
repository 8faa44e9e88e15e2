"""A question as token ids, and the tokenizer that makes them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recipes.text2sql.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from recipes.text2sql.data.questions import Question
    from recipes.text2sql.prompts.prompt import Link

WORDS_FILE = "words.txt"
"""The words that come more than once in the training questions: those that `data.word_dropout` does not always hide."""

MOST_SCHEMAS = 512
MOST_TARGETS = 1 << 14
"""Texts of schemas, and of SQL, whose tokens are kept. Then the next ones begin anew."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A question as the model sees it."""

    question: Question
    prompt: list[int]
    target: list[int]
    links: list[Link]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Makes prompts and targets of questions, as the settings say."""

    settings: DataSettings
    max_new_tokens: int
    """Tokens that each prompt leaves free for the SQL."""
    folder: Path | None
    """Where the tokenizer and the known words are, once the recipe is prepared."""

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the recipe's `prepare`."""
        from transformers import PreTrainedTokenizerFast

        assert self.folder is not None
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder)
        # A call of transformers turns off what tokenizer.json may ask for; `ids` goes around it.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return tokenizer

    @property
    def pad(self) -> int:
        """The token behind a shorter sequence."""
        return cast(int, self.tokenizer.pad_token_id)

    @functools.cached_property
    def end(self) -> int:
        """The token that ends the SQL."""
        return cast(int, self.tokenizer.eos_token_id)

    def ids(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of a text. transformers' own call takes twice as long for a short one."""
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    @functools.cached_property
    def known_schemas(self) -> dict[str, list[int]]:
        """The token ids of the schemas' texts so far; many questions have the same."""
        return {}

    @functools.cached_property
    def known_targets(self) -> dict[str, list[int]]:
        """The token ids of the SQL so far, which comes again in each epoch."""
        return {}

    def schema_ids(self, text: str) -> list[int]:
        """The token ids of a schema's text, which are not to be changed."""
        return self._known_ids(text, True, self.known_schemas, MOST_SCHEMAS)

    def _known_ids(self, text: str, add_special_tokens: bool, known: dict[str, list[int]], most: int) -> list[int]:
        if text not in known:
            if len(known) >= most:
                known.clear()
            known[text] = self.ids(text, add_special_tokens)
        return known[text]

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether prompts are plain: the tokenizer has not been given the tokens of Relay's prompts."""
        return "<query>" not in self.tokenizer.get_added_vocab()

    @functools.cached_property
    def known_words(self) -> frozenset[str]:
        """The words that come more than once in the training questions."""
        assert self.folder is not None
        return frozenset((self.folder / WORDS_FILE).read_text(encoding="utf-8").split("\n"))

    def example(self, question: Question) -> Example:
        """A question as token ids."""
        text, links = question.link()
        return self.encode(question, text, links, question.target(links))

    def encode(
        self, question: Question, text: str, links: list[Link], target: str, word_dropout: float = 0.0
    ) -> Example:
        """The token ids of a question and a target that have placeholders for the linked values.

        A share of `word_dropout` of the question's words is hidden at random.
        """
        from recipes.text2sql.prompts import prompt, schema_text

        if self.is_plain:
            return self._plain(question, text, links, target)
        settings, tokenizer = self.settings, self.tokenizer
        tokens = settings.schema_tokens
        asked = prompt.mark(text, question.schema) if tokens else text
        if settings.word_dropout:
            asked = prompt.hide_words(asked, self.known_words, word_dropout)
        target = prompt.hide_names(target, question.schema) if tokens else target
        # A pretrained model's tokenizer may begin a text with a token of its own: once, and not in the middle.
        target_ids = [*self._known_ids(target, False, self.known_targets, MOST_TARGETS), self.end]
        asked = prompt.prompt(asked, links, question.schema, settings.question_repeats, tokens)
        asked_ids = self.ids(asked, False)
        # The schema leaves max_new_tokens free, not the length of the gold SQL: that length is part of the answer.
        schema_length = settings.max_seq_length - self.max_new_tokens - len(asked_ids)

        def schema_ids(described: str) -> list[int]:
            return self.schema_ids(f"<schema>{described}")

        described = ""
        if settings.schema_in_prompt:
            described = schema_text.fitting(
                question.schema,
                settings.style,
                question.database,
                text,
                links,
                lambda text: len(schema_ids(text)) - schema_length,
                lambda texts: list(map(len, tokenizer(texts)["input_ids"])),
            )
        prompt_ids = schema_ids(described) + asked_ids
        return Example(question, prompt_ids, target_ids, links)

    def _plain(self, question: Question, text: str, links: list[Link], target: str) -> Example:
        """The token ids of a plain prompt: values stand where their placeholders were."""
        from recipes.text2sql.prompts import plain, prompt, schema_text

        settings, tokenizer = self.settings, self.tokenizer
        linked_text, linked = question.link()
        # Augmentation changes texts with placeholders; a question that it left alone is shown as it was written.
        is_own = text == linked_text and links == linked
        asked = question.text if is_own else prompt.with_values(text, links)
        answered = plain.answer(tokenizer, prompt.reveal(target, links))
        target_ids = tokenizer(answered, add_special_tokens=False)["input_ids"] + [self.end]
        room = settings.max_seq_length - self.max_new_tokens
        described = ""
        if settings.schema_in_prompt:
            described = schema_text.fitting(
                question.schema,
                settings.plain_style,
                question.database,
                asked,
                links,
                lambda schema: len(plain.prompt_ids(tokenizer, schema, asked)) - room,
                lambda texts: list(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])),
            )
        return Example(question, plain.prompt_ids(tokenizer, described, asked), target_ids, [])

    def query_of(self, text: str) -> str:
        """The query in what the model wrote, with the placeholders of Relay's prompts."""
        from recipes.text2sql.prompts import plain

        return plain.query_of(text) if self.is_plain else text


def added_tokens(settings: DataSettings) -> tuple[str, ...]:
    """The tokens that the settings need beside the tokenizer's own special ones."""
    from recipes.text2sql.prompts import prompt

    names = prompt.NAME_TOKENS if settings.schema_tokens else ()
    return (*names, prompt.UNKNOWN) if settings.word_dropout else names


def smallest_vocabulary(settings: DataSettings) -> int:
    """How many tokens a tokenizer of ours has at least: one for each byte, and the special ones."""
    from recipes.text2sql.prompts import prompt

    return 256 + len(prompt.SPECIAL_TOKENS) + len(added_tokens(settings))


def repeated_words(questions: Iterable[Question]) -> list[str]:
    """The words that stand in more than one question, in order."""
    counts: Counter[str] = Counter()
    for question in questions:
        counts.update(set(question.link()[0].split()))
    return sorted(word for word, count in counts.items() if count > 1)


def train_tokenizer(questions: Iterable[Question], settings: DataSettings, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of prompts and targets."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from recipes.text2sql.prompts import prompt, schema_text

    tokens, texts = settings.schema_tokens, []
    for question in questions:
        text, links = question.link()
        target = question.target(links)
        described = schema_text.describe(question.schema, settings.style, question.database)
        asked = prompt.mark(text, question.schema) if tokens else text
        asked = prompt.prompt(asked, links, question.schema, 1, tokens)
        texts += [f"<schema>{described}{asked}", prompt.hide_names(target, question.schema) if tokens else target]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*prompt.SPECIAL_TOKENS, *added_tokens(settings)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
