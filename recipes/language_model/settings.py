"""The settings of language_model by group (data, tokenizer, model), and the flags of `relay predict`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from runner.errors import ConfigError
from runner.parts.dimensions import check_attention, check_experts
from runner.parts.pretrained import LoadIn
from runner.parts.setting_types import (
    LEAST_VOCABULARY,
    MOST_VOCABULARY,
    AtLeast0,
    AtLeast1,
    AtLeast2,
    NotNegative,
    Positive,
    PositiveShare,
    Share,
    ShareBelow1,
    VocabularySize,
    check_ranges,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The training text, and how it becomes rows of tokens."""

    source: str | None = None
    """Files, folders, globs or URLs (.txt, .jsonl, .json, .csv, .tsv, .parquet, compressed), or a `datasets` id; none:
    generated stories."""
    validation_source: str | None = None
    """Text for validation, in the same forms; none: a share of the source (validation_fraction)."""
    validation_fraction: ShareBelow1 = 0.1
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
    shuffle_window: AtLeast0 = 2_000_000
    """Streaming: bytes that all lanes together read and shuffle at a time; 0: do not shuffle."""
    max_seq_length: AtLeast2 = 256
    """Context length of training, in tokens."""
    stride: AtLeast1 | None = None
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
        check_ranges(self, "data.")
        if self.stride is not None and self.stride > self.max_seq_length:
            raise ConfigError(f"data.stride is {self.stride}: type a number from 1 to data.max_seq_length.")
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
    min_vocab_size: AtLeast1 = 512
    """vocab_size auto: smallest size to choose."""
    max_vocab_size: VocabularySize = 50_000
    """vocab_size auto: largest size to choose."""
    train_examples: AtLeast1 = 10_000
    """Documents to train the tokenizer on; at most 4 MB of text."""
    retrain: bool = False
    """Train the tokenizer again if the output folder has one already."""

    def __post_init__(self) -> None:
        check_ranges(self, "tokenizer.")
        size, limits = self.vocab_size, f"from {LEAST_VOCABULARY} to {MOST_VOCABULARY}"
        if size != "auto" and not (size.isdecimal() and LEAST_VOCABULARY <= int(size) <= MOST_VOCABULARY):
            raise ConfigError(
                f"tokenizer.vocab_size is {size}: type --tokenizer.vocab_size with a whole number {limits}, or auto."
            )
        # The default gives way to a small max_vocab_size.
        if self.max_vocab_size < self.min_vocab_size != TokenizerSettings.min_vocab_size:
            raise ConfigError(
                f"tokenizer.min_vocab_size {self.min_vocab_size} is above tokenizer.max_vocab_size "
                f"{self.max_vocab_size}: lower the one or raise the other."
            )
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
    load_in: LoadIn | None = None
    """Format of the frozen weights of model.pretrained in memory: 4bit (NF4 of bitsandbytes, for adapters on CUDA);
    none: fp32, or bf16 where products are computed in it."""
    hidden_size: AtLeast1 = 128
    """Width of the residual stream."""
    num_hidden_layers: AtLeast1 = 6
    """Transformer layers."""
    num_attention_heads: AtLeast1 = 4
    """Attention (query) heads."""
    num_key_value_heads: AtLeast1 | None = None
    """Key and value heads (grouped-query attention); none: as many as query heads."""
    intermediate_size: AtLeast1 = 512
    """Width of the feed-forward blocks."""
    max_position_embeddings: AtLeast1 = 2048
    """Longest input of the finished model, in tokens; at least data.max_seq_length."""
    dropout: ShareBelow1 = 0.0
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
    initializer_range: PositiveShare | None = None
    """Standard deviation of the initial weights; none: sqrt(2 / (5 hidden_size)), 0.056 at 128 and 0.02 at 1000."""
    num_local_experts: AtLeast1 | None = None
    """With a dense model.pretrained of the kinds llama, mistral, qwen2 or qwen3: make each feed-forward block so many
    experts (upcycling); none: it stays dense."""
    num_experts_per_tok: AtLeast1 = 2
    """Upcycling: number of experts that process each token (top k)."""
    upcycling_noise: NotNegative = 0.0
    """Upcycling: noise on each expert's weights, as a share of their standard deviation; 0: all experts begin as exact
    copies, and the model computes what the dense one does."""
    upcycling_drop: Share = 0.0
    """Upcycling: share of each expert's hidden units that begin with random weights, other units in each expert
    (drop-upcycling; its authors use 0.5); 0: none."""
    router_aux_loss_coef: NotNegative = 0.01
    """Upcycling: coefficient of the load-balancing loss of the routers."""
    chunked_loss: bool | None = None
    """Compute the loss in chunks, without holding all logits in memory; none: if they are larger than 256 MB."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.")
        if self.num_local_experts is not None:
            check_experts(self.num_experts_per_tok, self.num_local_experts)
        if self.pretrained is None:
            names = (self.hidden_size, self.num_attention_heads, self.num_key_value_heads)
            check_attention(*names, rotary=self.rope)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Prompts, and how to sample the text that continues them."""

    prompt: str = ""
    """Text to continue; empty: start a new document."""
    prompts: str | None = None
    """File with one prompt per line, used instead of prompt."""
    interactive: bool = False
    """Ask for prompts until the input ends; commands such as /temperature 0.8 change the settings below."""
    max_new_tokens: AtLeast1 = 200
    """Maximum number of tokens to generate."""
    temperature: NotNegative = 0.8
    """Sampling temperature: values below 1 sharpen the distribution; 0: greedy decoding."""
    top_k: AtLeast0 = 50
    """Sample from the k most probable tokens; 0: from all tokens."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling: sample from the most probable tokens whose probabilities add up to this share."""
    repetition_penalty: Positive = 1.0
    """Values above 1 make tokens that are already in the text less probable."""
    seed: AtLeast0 = 0
    """Seed of sampling: the same seed and settings generate the same text."""
    samples: AtLeast1 = 1
    """Texts to generate for each prompt."""
    batch_size: AtLeast1 = 8
    """Texts to generate at a time."""
    stream: bool = True
    """Print a single text while it is generated."""
    begin: bool = True
    """Put the beginning-of-document token in front of each prompt."""
    stop: bool = True
    """Stop at the end-of-document token."""

    def __post_init__(self) -> None:
        check_ranges(self)
