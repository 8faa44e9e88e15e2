"""Words whose tokens are looked up: the tokens of a text stay those of the tokenizer itself."""

import random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from recipes.language_model import data, demo, repeated_words, tokens
from recipes.language_model.repeated_words import SPACE, RepeatedWords
from recipes.language_model.settings import DataSettings
from recipes.language_model.text import Passage

PARTS = [
    "don't", "I'll", "'s", "'", '"', "won", "12", "3", "é", "naïve", "你好", "🌍", "e\u0301", "ſ", "²", "<eos>", "--",
    *"\t\n\x0b\x0c\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff\0",
    ".", "  ", "\n\n", "\r\n", " \n", "\n ", "_", "x" * 90,
]  # fmt: skip


def nasty(seed: int, length: int = 60) -> str:
    """Words, signs and every kind of white space, one after another at random."""
    choose = random.Random(seed)
    return "".join(choose.choice(PARTS) for _ in range(length))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    # Trained on such text, so that it has learned tokens of white space and of signs.
    return tokens.byte_pairs([nasty(seed) for seed in range(200)] + [demo.stories(100)], 900)


def test_the_tokens_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    words = RepeatedWords.of(tokenizer.backend_tokenizer)
    assert words is not None
    texts = [nasty(seed) for seed in range(1000, 1300)] + ["", "\n", " ", "\n \n", demo.stories(20)]
    for _ in range(2):  # The second time, all words are known.
        for text, own, found in zip(texts, tokens.encode(tokenizer, texts), words.encode(texts), strict=True):
            assert found.dtype == np.int32
            assert own.tolist() == found.tolist(), repr(text)


def test_every_kind_of_white_space_between_two_words(tokenizer: Any) -> None:
    words = RepeatedWords.of(tokenizer.backend_tokenizer)
    assert words is not None
    texts = [f"a{one}{other}b" for one in [*SPACE, "\x1c", "\u200b", "."] for other in ["", *" \n\t\u2003x"]]
    own = [each.tolist() for each in tokens.encode(tokenizer, texts)]
    assert own == [each.tolist() for each in words.encode(texts)]


def test_the_words_that_are_kept_are_limited(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_words, "MOST_WORDS", 50)
    monkeypatch.setattr(repeated_words, "TOGETHER", 100)
    words = RepeatedWords.of(tokenizer.backend_tokenizer)
    assert words is not None
    texts = [nasty(seed, 30) for seed in range(100)]
    for text, own in zip(texts, tokens.encode(tokenizer, texts), strict=True):
        assert words.encode([text])[0].tolist() == own.tolist()
        assert len(words.tokens) <= 50
        assert max(map(len, words.tokens), default=0) <= repeated_words.MOST_CHARACTERS


def changed(tokenizer: Any, change: str) -> Tokenizer:
    """The tokenizer with something that makes a word's tokens depend on more than the word."""
    other = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if change == "added":
        other.add_tokens(["of the"])
    elif change == "normalizer":
        other.normalizer = normalizers.Lowercase()
    elif change == "whole text":
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif change == "prefix":
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "other rule":
        other.pre_tokenizer = pre_tokenizers.Whitespace()
    elif change == "truncation":
        other.enable_truncation(5)
    elif change == "dropout":
        other.model.dropout = 0.5  # type: ignore[attr-defined]
    return other


@pytest.mark.parametrize(
    "change", ["added", "normalizer", "whole text", "prefix", "other rule", "truncation", "dropout", "characters"]
)
def test_other_tokenizers_encode_for_themselves(tokenizer: Any, change: str) -> None:
    assert RepeatedWords.of(changed(tokenizer, "")) is not None
    other = tokens.characters(["abc"]).backend_tokenizer if change == "characters" else changed(tokenizer, change)
    assert RepeatedWords.of(other) is None


def test_packing_looks_words_up(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(max_seq_length=16)
    passages = [Passage(nasty(seed)) for seed in range(20)]
    packer = data.Packer(tokenizer, settings)
    found = packer.tokenize(passages)
    monkeypatch.setattr(RepeatedWords, "of", classmethod(lambda *_: None))
    own = data.Packer(tokenizer, settings).tokenize(passages)
    assert packer.words is not None and len(packer.words.tokens) > 20
    assert [each.tolist() for each in found] == [each.tolist() for each in own]
