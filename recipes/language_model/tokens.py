"""Tokenizers: characters, byte-level BPE, or an existing one; and a vocabulary size that fits model and data.

Decoding gives back the encoded text exactly, except for characters that a character tokenizer has not seen. All are
saved as `tokenizers` files, which `AutoTokenizer.from_pretrained` reads.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from recipes.language_model.settings import TokenizerSettings
    from recipes.language_model.text import Corpus

SPECIAL = ("<pad>", "<bos>", "<eos>")
UNKNOWN = "<unk>"
LEAST_SEEN = 20
"""A model hardly learns a token that occurs fewer times in the training data."""


def characters(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for every character of the texts."""
    from tokenizers import Tokenizer, decoders, models

    seen = sorted({character for text in texts for character in text})
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, UNKNOWN, *seen))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIAL, UNKNOWN])
    return _wrapped(tokenizer, UNKNOWN)


MOST_CHARACTERS = 512
"""Characters of a word that BPE training looks at together. Its work grows with the square of the longest word."""
UNBROKEN = re.compile(rf"([^\W\d_]{{{MOST_CHARACTERS}}}|\d{{{MOST_CHARACTERS}}}|(?:[^\w\s]|_){{{MOST_CHARACTERS}}}"
                      rf"|\s{{{MOST_CHARACTERS}}})")  # fmt: skip
"""As many letters, digits, signs or spaces in a row: byte-level BPE does not cut between two of one kind."""


def without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut where a word is longer than MOST_CHARACTERS: DNA, a line without end. Others stay as they are."""
    for text in texts:
        yield from (part for part in UNBROKEN.split(text) if part)


def byte_pairs(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: it has no unknown characters, and white space is text like any other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(without_long_words(texts), trainer)
    return _wrapped(tokenizer)


@dataclasses.dataclass(frozen=True)
class _Merges:
    """The vocabulary and the merges of a byte-level BPE, in the order of learning: the first n make a smaller one."""

    vocabulary: list[str]
    pairs: list[tuple[str, str]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> _Merges:
        content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in content["merges"]]
        return cls(sorted(content["vocab"], key=content["vocab"].__getitem__), [(left, right) for left, right in pairs])

    def model(self, vocab_size: int) -> models.BPE:
        """The BPE model that the same training would have given for a smaller vocabulary."""
        from tokenizers import models

        vocabulary = {token: number for number, token in enumerate(self.vocabulary[:vocab_size])}
        return models.BPE(vocab=vocabulary, merges=[pair for pair in self.pairs if "".join(pair) in vocabulary])


def truncated(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer with its first merges alone."""
    from tokenizers import Tokenizer

    smaller = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    smaller.model = _Merges.of(tokenizer).model(vocab_size)
    return _wrapped(smaller)


def from_path(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or a tokenizer.json. Raises DataError where it is missing or damaged."""
    try:
        return _from_path(path)
    except DataError:
        raise
    # `tokenizers` raises a plain Exception, transformers several kinds.
    except Exception as error:
        raise _unreadable(path, error) from None


def from_pretrained(place: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a trained model: of its folder, or of its .gguf file. Raises DataError where it has none."""
    if place.suffix != ".gguf":
        return from_path(place)
    from transformers import AutoTokenizer

    try:
        return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(place.parent, gguf_file=place.name))
    except ImportError:
        raise DataError(f"{place} needs the package gguf: type pip install gguf.") from None
    except Exception as error:
        raise _unreadable(place, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"The tokenizer at {path} cannot be read: {reason if len(reason) <= 160 else f'{reason[:157]}...'}\n"
        "Wanted is an undamaged tokenizer.json, or vocab.json and merges.txt."
    )


def _from_path(path: Path) -> PreTrainedTokenizerFast:
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import AutoTokenizer

    if path.is_file():
        return _wrapped(Tokenizer.from_file(str(path)))
    if (path / "tokenizer_config.json").is_file():
        return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(path))
    if (path / "tokenizer.json").is_file():
        return _wrapped(Tokenizer.from_file(str(path / "tokenizer.json")))
    if (path / "merges.txt").is_file() and (path / "vocab.json").is_file():
        own = ByteLevelBPETokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
        return _wrapped(Tokenizer.from_str(own.to_str()))
    raise DataError(f"There is no tokenizer at {path}: wanted a tokenizer.json, or vocab.json and merges.txt.")


def _wrapped(tokenizer: Tokenizer, unknown: str | None = None) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    names = tokenizer.get_vocab()
    # GPT-2 has a single token that separates documents.
    border = "<|endoftext|>" if "<|endoftext|>" in names else None
    if border is None and not all(name in names for name in SPECIAL):
        tokenizer.add_special_tokens([name for name in SPECIAL if name not in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=border or "<pad>",
        bos_token=border or "<bos>",
        eos_token=border or "<eos>",
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
    )


def load(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that `Recipe.prepare` wrote."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:
        raise _unreadable(folder, error) from None
    # Text that happens to spell a special token is text.
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Token ids of each text, without start and end tokens. int32."""
    tokenizer.backend_tokenizer.encode_special_tokens = True
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(each.ids, dtype=np.int32) for each in encoded]


def encode_conversations(tokenizer: PreTrainedTokenizerFast, conversations: list[str]) -> list[np.ndarray]:
    """Token ids of conversations (JSON lists of messages) as the tokenizer's chat template writes them. int32.

    Raises DataError where the template refuses one.
    """
    found: list[str] = []
    for conversation in conversations:
        messages = json.loads(conversation)
        try:
            found.append(str(tokenizer.apply_chat_template(messages, tokenize=False)))
        # Templates raise errors of their own, of several kinds.
        except Exception as error:
            raise DataError(
                f"The chat template of the tokenizer refuses a conversation: {' '.join(str(error).split())[:200]}\n"
                f"It is: {conversation[:160]}"
            ) from None
    # The template's own marks, such as <|im_start|>, are single tokens.
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = False
    try:
        encoded = backend.encode_batch_fast(found, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = True
    return [np.array(each.ids, dtype=np.int32) for each in encoded]


def check_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ConfigError where data.chat_template is set and the tokenizer has no template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "data.chat_template needs a tokenizer with a chat template, and this one has none:\n"
            "type --model.pretrained with the folder of an instruct model, or --tokenizer.path with its tokenizer."
        )


def bytes_of_tokens(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """(vocabulary,): bytes of text that each token stands for; 0 for special tokens. float32."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    is_byte_level = "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    names: dict[str, int] = tokenizer.get_vocab()
    special = {token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token}
    lengths = np.zeros(max(names.values()) + 1, dtype=np.float32)
    for name, number in names.items():
        if name in special:
            continue
        # A byte-level token is written with one printable character per byte; an unknown one is at least a byte.
        is_unknown = name == tokenizer.unk_token
        lengths[number] = 1 if is_unknown else len(name) if is_byte_level else len(name.encode())
    return lengths


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One vocabulary size, and its costs."""

    vocab_size: int
    bytes_per_token: float
    parameters: int
    compute_per_byte: float
    """Parameters times tokens, per byte of text. A training step costs about six times as many operations."""
    rare: float
    """Share of the token types that occur fewer than LEAST_SEEN times in the training data."""

    @property
    def is_learnable(self) -> bool:
        """Whether nine of ten token types occur often enough."""
        return self.rare <= 0.1


def candidates(
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    corpus_bytes: int,
    other_parameters: int,
    hidden_size: int,
    tied: bool,
    most: int,
) -> list[Candidate]:
    """The vocabulary sizes to choose from: each twice the one before, measured on texts that BPE was not trained on.

    A larger vocabulary needs fewer tokens per byte and more parameters per token. The size with the least compute per
    byte is within a factor of 1.5 of the scaling law of Tao et al. 2024, arXiv 2407.13623.
    """
    kept = texts[::10]
    kept_bytes = sum(len(text.encode()) for text in kept)
    scale = max(1.0, corpus_bytes / max(1, sum(len(text.encode()) for text in texts)))
    kept_words = _words(tokenizer, kept)
    words = kept_words + _words(tokenizer, [text for number, text in enumerate(texts) if number % 10])
    whole = _Merges.of(tokenizer)
    largest = min(most, len(tokenizer))
    sizes = {320 * 2**power for power in range(12)}
    found = []
    for size in sorted({size for size in sizes if size < largest} | {largest}):
        model = whole.model(size)
        # Each distinct word is tokenised once and counted as often as it occurs.
        counts, tokens = np.zeros(size, np.int64), 0
        for word, times in words.items():
            ids = [token.id for token in model.tokenize(word)]
            for each in ids:
                counts[each] += times
            tokens += kept_words[word] * len(ids)
        ordinary = counts[len(SPECIAL) + 256 :] * scale
        rare = float((ordinary < LEAST_SEEN).mean()) if len(ordinary) else 0.0
        ratio = kept_bytes / max(1, tokens)
        parameters = other_parameters + size * hidden_size * (1 if tied else 2)
        cost = (other_parameters + size * hidden_size) / ratio
        found.append(Candidate(size, ratio, parameters, cost, rare))
    return found


WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
"""Splits text nearly as byte-level BPE does, and much faster. The tokenizer then splits the parts further."""


def _words(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Counter[str]:
    """How often each word occurs. BPE joins bytes within words alone."""
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    coarse: Counter[str] = Counter()
    for text in texts:
        coarse.update(WORD.findall(text))
    words: Counter[str] = Counter()
    for piece, times in coarse.items():
        for word, _ in cut(piece):
            words[word] += times
    return words


def choose(found: list[Candidate], least: int) -> Candidate:
    """The learnable candidate with the least compute per byte, not below `least` where the data allow that."""
    learnable = [candidate for candidate in found if candidate.is_learnable] or found[:1]
    large = [candidate for candidate in learnable if candidate.vocab_size >= least] or learnable[-1:]
    return min(large, key=lambda candidate: candidate.compute_per_byte)


def table(found: list[Candidate], chosen: Candidate, least: int) -> str:
    """The candidates as a table of text that marks the chosen one."""
    lines = ["vocabulary  bytes/token  parameters  compute/byte  types seen < 20 times"]
    for each in found:
        mark = "  <- chosen" if each is chosen else "" if each.is_learnable else "  too rare"
        lines.append(
            f"{each.vocab_size:>10,}  {each.bytes_per_token:>11.3f}  {each.parameters / 1e6:>9.2f}M  "
            f"{each.compute_per_byte / 1e6:>11.2f}M  {each.rare:>20.0%}{mark}"
        )
    if chosen.vocab_size < least:
        lines.append(f"min_vocab_size {least:,} is more than these data can teach: Relay takes {chosen.vocab_size:,}.")
    return "\n".join(lines)


def fit(
    settings: TokenizerSettings, corpus: Corpus, other_parameters: int, hidden_size: int, tied: bool
) -> PreTrainedTokenizerFast:
    """The tokenizer that the settings ask for, trained on the training split. Prints how `auto` chose its size."""
    if settings.kind == "path":
        if settings.path is None:
            raise ConfigError(
                "tokenizer.kind is path, but there is no path: type --tokenizer.path with a tokenizer's folder."
            )
        return from_path(Path(settings.path))
    texts = corpus.sample(settings.train_examples)
    if not texts:
        raise DataError("The training split holds no text: check --data.source and --data.validation_fraction.")
    if settings.kind == "char":
        return characters(texts)
    if settings.vocab_size != "auto":
        tokenizer = byte_pairs(texts, int(settings.vocab_size))
        if len(tokenizer) < int(settings.vocab_size):
            print(f"tokenizer.vocab_size {settings.vocab_size} is more than the text has: {len(tokenizer):,} tokens.")
        return tokenizer
    # Candidates are measured on every tenth part, so that they are measured on more than one document.
    parts = [text[at : at + 2000] for text in texts for at in range(0, len(text), 2000)]
    whole = byte_pairs([part for number, part in enumerate(parts) if number % 10], settings.max_vocab_size)
    found = candidates(whole, parts, corpus.size, other_parameters, hidden_size, tied, settings.max_vocab_size)
    chosen = choose(found, settings.min_vocab_size)
    print(table(found, chosen, settings.min_vocab_size))
    return truncated(whole, chosen.vocab_size)
