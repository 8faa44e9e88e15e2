"""The settings of language_model, by group: data, tokenizer, model, adapters."""

from __future__ import annotations

import dataclasses
from typing import Literal

from runner.errors import ConfigError

# Byte pairs begin with every byte and three special tokens.
LEAST_VOCABULARY, MOST_VOCABULARY = 259, 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The text, and how it is cut into rows."""

    source: str | None = None
    """Files, folders, globs or URLs (.txt, .jsonl, .json, .csv, .tsv, .parquet, compressed), or a `datasets` id; none:
    made stories."""
    validation_source: str | None = None
    """Text to judge by; none: the part of the source that validation_split names."""
    validation_split: float = 0.1
    """Share of the source that is kept from training: the end of each file; at most 1 MB."""
    config: str | None = None
    """Of a `datasets` id: the configuration."""
    split: str = "train"
    """Of a `datasets` id: the split to train on."""
    val_split: str | None = None
    """Of a `datasets` id: the split to judge by, instead of a share of the other."""
    text_column: str = "text"
    """The column of .jsonl, .json, .csv, .tsv, .parquet and `datasets` that holds the text."""
    document_separator: str | None = None
    """What stands between two documents of a text file, such as "\\n\\n"; none: a file is one document."""
    streaming: bool | None = None
    """Read while training, so that memory does not grow with the data; none: where they hold more than 64 MB."""
    shuffle_window: int = 2_000_000
    """Streams: bytes that the lanes together read and shuffle at a time; 0: nothing is shuffled."""
    max_seq_length: int = 256
    """Tokens that the model sees at a time."""
    stride: int | None = None
    """Tokens between the beginnings of two rows, of packing concat; none: max_seq_length, without overlap."""
    packing: Literal["concat", "best_fit", "document"] = "concat"
    """How documents become rows: one after another and cut, put together so that few are cut, or one per row."""
    isolate_documents: bool = False
    """Whether the documents of a row cannot see each other."""
    add_bos: bool = True
    """Put a token in front of every document."""
    add_eos: bool = True
    """Put a token behind every document, so that the model learns to end."""

    def __post_init__(self) -> None:
        if self.max_seq_length < 2:
            raise ConfigError(f"data.max_seq_length is {self.max_seq_length}: type a number of at least 2.")
        if self.stride is not None and not 1 <= self.stride <= self.max_seq_length:
            raise ConfigError(f"data.stride is {self.stride}: type a number from 1 to data.max_seq_length.")
        if not 0 <= self.validation_split < 1:
            raise ConfigError(f"data.validation_split is {self.validation_split}: type a number from 0 to below 1.")
        if self.shuffle_window < 0:
            raise ConfigError(f"data.shuffle_window is {self.shuffle_window}: type a number of at least 0.")
        if self.document_separator == "":
            raise ConfigError('data.document_separator is empty: type what stands between documents, such as "\\n\\n".')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What the text is cut into."""

    kind: Literal["char", "bpe", "path"] = "bpe"
    """Characters, byte pairs learnt from the training data, or a tokenizer that is there."""
    path: str | None = None
    """Of kind path: a tokenizer.json, or a folder that holds one (or vocab.json and merges.txt)."""
    vocab_size: str = "auto"
    """Of kind bpe: tokens, or auto: the learnable size with the least compute per byte of text."""
    min_vocab_size: int = 512
    """The least of an automatic choice."""
    max_vocab_size: int = 50_000
    """The most of an automatic choice."""
    train_examples: int = 10_000
    """Documents to learn from, at most 4 MB of text."""
    retrain: bool = False
    """Fit the tokenizer anew where the output folder has one."""

    def __post_init__(self) -> None:
        wanted = f"type a number from {LEAST_VOCABULARY} to {MOST_VOCABULARY:,}"
        for name, number in (("vocab_size", self.vocab_size), ("max_vocab_size", str(self.max_vocab_size))):
            if name == "vocab_size" and number == "auto":
                continue
            if not number.isdecimal() or not LEAST_VOCABULARY <= int(number) <= MOST_VOCABULARY:
                raise ConfigError(f"tokenizer.{name} is {number}: {wanted}{', or auto' * (name == 'vocab_size')}.")
        if self.train_examples < 1:
            raise ConfigError(f"tokenizer.train_examples is {self.train_examples}: type a number of at least 1.")
        if self.path is not None and self.kind != "path":
            raise ConfigError(f"tokenizer.path came with kind {self.kind}: type --tokenizer.kind path, too.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The decoder."""

    pretrained: str | None = None
    """Folder of a trained model to start from, with its dimensions; none: the ones below, and fresh weights."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_hidden_layers: int = 6
    """Layers."""
    num_attention_heads: int = 4
    """Query heads."""
    num_key_value_heads: int | None = None
    """Key and value heads; none: as many as query heads."""
    intermediate_size: int = 512
    """Width of the feed-forward blocks."""
    max_position_embeddings: int = 2048
    """Longest text that the finished model accepts; at least data.max_seq_length."""
    dropout: float = 0.0
    """Dropout of embeddings, attention and what each block adds, as a share."""
    activation: Literal["relu", "gelu", "silu"] = "silu"
    """Function of the feed-forward blocks."""
    norm: Literal["rms", "layer"] = "rms"
    """Kind of normalisation."""
    swiglu: bool = True
    """Gate the feed-forward blocks."""
    rope: bool = True
    """Rotary positions; without them they are learnt (as in GPT-2)."""
    tie_embeddings: bool = True
    """One matrix for input and output tokens."""
    initializer_range: float | None = None
    """Standard deviation of fresh weights; none: sqrt(2 / (5 hidden_size)), 0.056 at 128 and 0.02 at 1000."""
    chunked_loss: bool | None = None
    """Never hold all logits of a micro-batch at once; none: where they are more than 256 MB."""
