"""The settings of language_model by group (data, tokenizer, model), and the flags of `relay predict`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from runner.errors import ConfigError

# Byte-level BPE starts with 256 bytes and three special tokens.
LEAST_VOCABULARY, MOST_VOCABULARY = 259, 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The training text, and how it becomes rows of tokens."""

    source: str | None = None
    """Files, folders, globs or URLs (.txt, .jsonl, .json, .csv, .tsv, .parquet, compressed), or a `datasets` id; none:
    generated stories."""
    validation_source: str | None = None
    """Text for validation, in the same forms; none: a share of the source (validation_fraction)."""
    validation_fraction: float = 0.1
    """Share of the source held out for validation, taken from the end of each file; at most 1 MB."""
    config: str | None = None
    """Configuration of the `datasets` id."""
    split: str = "train"
    """Split of the `datasets` id to train on."""
    val_split: str | None = None
    """Split of the `datasets` id for validation; none: a share of the training split."""
    text_column: str = "text"
    """Column that holds the text in .jsonl, .json, .csv, .tsv, .parquet and `datasets`."""
    chat_template: bool = False
    """text_column holds conversations, lists of {role, content}: write each by the tokenizer's chat template."""
    document_separator: str | None = None
    """Text that separates documents in a text file, such as "\\n\\n"; none: each file is one document."""
    streaming: bool | None = None
    """Read the data during training instead of loading them into memory; none: if they are larger than 64 MB."""
    shuffle_window: int = 2_000_000
    """Streaming: bytes that all lanes together read and shuffle at a time; 0: do not shuffle."""
    max_seq_length: int = 256
    """Context length of training, in tokens."""
    stride: int | None = None
    """packing concat: tokens between the starts of two rows; none: max_seq_length, so that rows do not overlap."""
    packing: Literal["concat", "best_fit", "document"] = "concat"
    """concat: join all documents and cut them into rows; best_fit: fill rows so that few documents are cut; document:
    one document per row."""
    isolate_documents: bool = False
    """Prevent attention between the documents of one row."""
    add_bos: bool = True
    """Put a beginning-of-document token in front of every document."""
    add_eos: bool = True
    """Put an end-of-document token after every document, so that the model learns to stop."""

    def __post_init__(self) -> None:
        if self.max_seq_length < 2:
            raise ConfigError(f"data.max_seq_length is {self.max_seq_length}: type a number of at least 2.")
        if self.stride is not None and not 1 <= self.stride <= self.max_seq_length:
            raise ConfigError(f"data.stride is {self.stride}: type a number from 1 to data.max_seq_length.")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}: type a number from 0 to below 1."
            )
        if self.shuffle_window < 0:
            raise ConfigError(f"data.shuffle_window is {self.shuffle_window}: type a number of at least 0.")
        if self.document_separator == "":
            raise ConfigError(
                'data.document_separator is empty: type the text between two documents, such as "\\n\\n".'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """How text becomes tokens."""

    kind: Literal["char", "bpe", "path"] = "bpe"
    """char: one token per character; bpe: byte-level BPE trained on the training data; path: an existing tokenizer."""
    path: str | None = None
    """kind path: a tokenizer.json, or a folder that holds one (or vocab.json and merges.txt)."""
    vocab_size: str = "auto"
    """kind bpe: number of tokens; auto: the learnable size with the least compute per byte of text."""
    min_vocab_size: int = 512
    """vocab_size auto: smallest size to choose."""
    max_vocab_size: int = 50_000
    """vocab_size auto: largest size to choose."""
    train_examples: int = 10_000
    """Documents to train the tokenizer on; at most 4 MB of text."""
    retrain: bool = False
    """Train the tokenizer again if the output folder has one already."""

    def __post_init__(self) -> None:
        hint = f"type a number from {LEAST_VOCABULARY} to {MOST_VOCABULARY:,}"
        for name, number in (("vocab_size", self.vocab_size), ("max_vocab_size", str(self.max_vocab_size))):
            if name == "vocab_size" and number == "auto":
                continue
            if not number.isdecimal() or not LEAST_VOCABULARY <= int(number) <= MOST_VOCABULARY:
                raise ConfigError(f"tokenizer.{name} is {number}: {hint}{', or auto' * (name == 'vocab_size')}.")
        # The default gives way to a small max_vocab_size.
        if self.max_vocab_size < self.min_vocab_size != TokenizerSettings.min_vocab_size:
            raise ConfigError(
                f"tokenizer.min_vocab_size {self.min_vocab_size} is above tokenizer.max_vocab_size "
                f"{self.max_vocab_size}: lower the one or raise the other."
            )
        if self.train_examples < 1:
            raise ConfigError(f"tokenizer.train_examples is {self.train_examples}: type a number of at least 1.")
        if self.path is not None and self.kind != "path":
            raise ConfigError(
                f"tokenizer.path needs kind path, but tokenizer.kind is {self.kind}: add --tokenizer.kind path."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The decoder network."""

    pretrained: str | None = None
    """Folder, .gguf file or hub id of a trained model to start from; its dimensions replace those below. None: a new
    model."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_hidden_layers: int = 6
    """Transformer layers."""
    num_attention_heads: int = 4
    """Attention (query) heads."""
    num_key_value_heads: int | None = None
    """Key and value heads (grouped-query attention); none: as many as query heads."""
    intermediate_size: int = 512
    """Width of the feed-forward blocks."""
    max_position_embeddings: int = 2048
    """Longest input of the finished model, in tokens; at least data.max_seq_length."""
    dropout: float = 0.0
    """Dropout rate of embeddings, attention and the residual branches."""
    activation: Literal["relu", "gelu", "silu"] = "silu"
    """Activation function of the feed-forward blocks."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    swiglu: bool = True
    """Use gated feed-forward blocks."""
    rope: bool = True
    """Use rotary position embeddings; false: learned position embeddings, as in GPT-2."""
    tie_embeddings: bool = True
    """Use one matrix for the input and the output embeddings."""
    initializer_range: float | None = None
    """Standard deviation of the initial weights; none: sqrt(2 / (5 hidden_size)), 0.056 at 128 and 0.02 at 1000."""
    chunked_loss: bool | None = None
    """Compute the loss in chunks, without holding all logits in memory; none: if they are larger than 256 MB."""

    def __post_init__(self) -> None:
        if self.pretrained is None:
            self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise ConfigError where no model has these dimensions."""
        positive = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for name in (*positive, "intermediate_size", "max_position_embeddings"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"model.{name} is {value}: type a number of at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}: type a number from 0 to below 1.")
        if self.initializer_range is not None and not 0 < self.initializer_range <= 1:
            raise ConfigError(f"model.initializer_range is {self.initializer_range}: type a number above 0, at most 1.")
        width, heads = self.hidden_size, self.num_attention_heads
        key_value_heads = self.num_key_value_heads or heads
        if width % heads or heads % key_value_heads:
            raise ConfigError(
                f"model.hidden_size {width} has to be a multiple of model.num_attention_heads {heads}, and that of "
                f"model.num_key_value_heads {key_value_heads}."
            )
        if self.rope and width // heads % 2:
            raise ConfigError(
                f"model.hidden_size {width} gives each of {heads} heads {width // heads} dimensions, and rotary\n"
                "positions need an even number: type another width or number of heads, or --model.rope false."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Prompts, and how to sample the text that continues them."""

    prompt: str = ""
    """Text to continue; empty: start a new document."""
    prompts: str | None = None
    """File with one prompt per line, used instead of prompt."""
    interactive: bool = False
    """Ask for prompts until the input ends; commands such as /temperature 0.8 change the settings below."""
    max_new_tokens: int = 200
    """Maximum number of tokens to generate."""
    temperature: float = 0.8
    """Sampling temperature: values below 1 sharpen the distribution; 0: greedy decoding."""
    top_k: int = 50
    """Sample from the k most probable tokens; 0: from all tokens."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the most probable tokens whose probabilities add up to this share."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens that are already in the text less probable."""
    seed: int = 0
    """Seed of sampling: the same seed and settings generate the same text."""
    samples: int = 1
    """Texts to generate for each prompt."""
    batch_size: int = 8
    """Texts to generate at a time."""
    stream: bool = True
    """Print a single text while it is generated."""
    begin: bool = True
    """Put the beginning-of-document token in front of each prompt."""
    stop: bool = True
    """Stop at the end-of-document token."""

    def __post_init__(self) -> None:
        # These comparisons refuse NaN as well.
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.repetition_penalty > 0 and self.top_k >= 0):
            raise ConfigError(
                "temperature and top_k must be at least 0, top_p above 0 and at most 1, and repetition_penalty above 0."
            )
        if min(self.max_new_tokens, self.samples, self.batch_size) < 1:
            raise ConfigError("max_new_tokens, samples and batch_size must be at least 1.")
