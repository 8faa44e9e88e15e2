"""The settings of text2sql, by group: data, model, adapters, tokenizer, generation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from runner.errors import ConfigError
from runner.parts import adapters
from runner.parts.dimensions import check_attention, check_experts
from runner.parts.pretrained import LoadIn
from runner.parts.setting_types import (
    AtLeast0,
    AtLeast1,
    AtLeast2,
    Commas,
    NotNegative,
    Positive,
    PositiveShare,
    Share,
    ShareBelow1,
    check_ranges,
)

if TYPE_CHECKING:
    from recipes.text2sql.prompts.schema_text import Style


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What to train on."""

    source: Commas = "demo"
    """Where the questions are from: demo (made by Relay), spider, bird, wikisql, gretel, geography or atis; several of
    spider,bird,wikisql,gretel, separated by commas; or mix for those four."""
    dir: str | None = None
    """Folder that contains spider/, bird/, wikisql/, gretel/, geography/ or atis/."""
    spider_weight: NotNegative = 0.4
    """Weight of Spider in a mixture, relative to the other weights; 0 leaves it out."""
    bird_sql_weight: NotNegative = 0.3
    """Weight of BIRD in a mixture."""
    wiki_sql_weight: NotNegative = 0.2
    """Weight of WikiSQL in a mixture."""
    gretel_synthetic_weight: NotNegative = 0.1
    """Weight of Gretel's synthetic questions in a mixture."""
    max_source_epochs: NotNegative = 16.0
    """Maximum epochs over one source of a mixture; then the other sources take its share. 0: no limit. A warning says
    when a source exceeds this."""
    evidence: bool = True
    """Append BIRD's hint to its question."""
    bad_questions: Literal["auto", "stop", "skip"] = "auto"
    """Entries without question, SQL or database, and SQL that SQLite does not run: stop names them, skip leaves them
    out and counts them; auto: stop, but SQL that does not run is only reported where the data set is known to have it
    (less than 1 in 100 queries of spider, any number in bird, geography and atis)."""
    preprocessing_num_workers: AtLeast0 = 0
    """Processes that prepare a large source, once, for the cache; 0: one per core."""
    max_seq_length: AtLeast2 = 768
    """Maximum length of prompt and SQL, in tokens; a longer prompt drops the columns that match the question least."""
    schema_in_prompt: bool = True
    """Include the schema in the prompt; without it, a model can answer only about databases it was trained on."""
    prompt: Literal["auto", "tokens", "plain"] = "auto"
    """tokens: Relay's format, with tokens of its own for the parts of the prompt and for values of the question;
    plain: CREATE TABLE statements and the question, with the chat template of an instruct model and no added token;
    auto: plain with model.pretrained, unless that model knows Relay's tokens from a training."""
    schema_style: Literal["auto", "names", "full"] = "auto"
    """Schema in the prompt: names only, or full (with types and keys); auto: full except for demo, geography and
    atis."""
    schema_samples: AtLeast0 | None = None
    """Sample values per column in the prompt; none: 2 in plain prompts, otherwise 0."""
    schema_descriptions: bool = False
    """Include BIRD's column descriptions (database_description/) in the prompt."""
    schema_tokens: bool = False
    """Write tables and columns as tokens (<t0>, <c0>, ...) that the prompt explains; needed for databases not seen in
    training."""
    question_repeats: AtLeast1 = 1
    """Copies of the question in the prompt; in the second copy, each word can attend to the whole question."""
    word_dropout: Share = 0.0
    """Fraction of question words masked in training; above 0, words that occur in one question only are always
    masked."""
    recombination_prob: Share = 0.0
    """Fraction of training examples replaced by new pairs that exchange phrases between two pairs."""
    value_swap_prob: Share = 0.0
    """Fraction of training examples whose values are replaced by others of the same column."""
    augmentation_prob: Share = 0.0
    """Fraction of training examples whose question is paraphrased; half of these also get equivalent SQL."""
    schema_perturbation_prob: Share = 0.0
    """Fraction of training examples whose tables and columns are renamed, in schema and SQL."""

    def __post_init__(self) -> None:
        from recipes.text2sql.data.questions import SOURCES, WEIGHTED

        check_ranges(self, "data.")
        names = self.source.split(",")
        if self.source != "mix" and names != [n for n in SOURCES if n == self.source] and not set(names) <= {*WEIGHTED}:
            raise ConfigError(
                f"data.source is {self.source!r}: type --data.source with one of {', '.join(SOURCES)}, with several of "
                f"{', '.join(WEIGHTED)} (commas between them), or with mix."
            )
        if not self.sources:
            raise ConfigError(f"The weights of {self.source} are all 0: type a larger --data.spider_weight, for one.")

    @functools.cached_property
    def style(self) -> Style:
        """How the prompt writes schemas."""
        from recipes.text2sql.data.questions import WEIGHTED
        from recipes.text2sql.prompts.schema_text import Style

        is_full = self.schema_style == "full" or (self.schema_style == "auto" and {*self.sources} <= WEIGHTED.keys())
        return Style(self.schema_tokens, is_full, self.schema_samples or 0, self.schema_descriptions)

    @property
    def plain_style(self) -> Style:
        """How a plain prompt writes schemas: as CREATE TABLE."""
        from recipes.text2sql.prompts.schema_text import Style

        samples = 2 if self.schema_samples is None else self.schema_samples
        return Style(False, True, samples, self.schema_descriptions, statements=True)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources to read; of several, those that have a weight."""
        from recipes.text2sql.data.questions import WEIGHTED

        names = tuple(WEIGHTED) if self.source == "mix" else tuple(dict.fromkeys(self.source.split(",")))
        if len(names) == 1:
            return names
        return tuple(name for name in names if getattr(self, f"{WEIGHTED[name]}_weight"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The decoder, a mixture of experts."""

    family: Literal["mixtral", "qwen3_moe"] = "mixtral"
    """Architecture of a fresh model; qwen3_moe also normalises queries and keys."""
    pretrained: str | None = None
    """Folder, .gguf file or hub id of a trained decoder, whose dimensions, dropout and tokenizer are used; none: train
    a fresh model."""
    load_in: LoadIn | None = None
    """Format of the frozen weights of model.pretrained in memory: 4bit (NF4 of bitsandbytes, for adapters on CUDA);
    none: fp32, or bf16 where products are computed in it."""
    hidden_size: AtLeast1 = 128
    """Width of the residual stream."""
    num_hidden_layers: AtLeast1 = 2
    """Number of decoder layers."""
    num_attention_heads: AtLeast1 = 4
    """Number of query heads."""
    num_key_value_heads: AtLeast1 = 2
    """Number of key and value heads."""
    intermediate_size: AtLeast1 = 128
    """Hidden width of each expert."""
    num_local_experts: AtLeast1 | None = None
    """Number of experts per layer; none: 4 in a fresh model. With model.pretrained and a dense decoder of the kinds
    llama, mistral, qwen2 or qwen3: make each feed-forward block so many experts (upcycling); none: it stays dense."""
    num_experts_per_tok: AtLeast1 = 2
    """Number of experts that process each token (top k)."""
    upcycling_noise: NotNegative = 0.0
    """Upcycling: noise on each expert's weights, as a share of their standard deviation; 0: all experts begin as exact
    copies, and the model computes what the dense one does."""
    upcycling_drop: Share = 0.0
    """Upcycling: share of each expert's hidden units that begin with random weights, other units in each expert
    (drop-upcycling; its authors use 0.5); 0: none."""
    dropout: ShareBelow1 = 0.1
    """Dropout rate of embeddings and attention."""
    expert_dropout: ShareBelow1 = 0.0
    """Dropout rate inside the experts, between their two matrices."""
    expert_capacity: Positive | None = None
    """Capacity factor in training: an expert takes at most this many times its equal share of a micro-batch; none: no
    limit."""
    router_jitter_noise: ShareBelow1 = 0.0
    """In training, multiply the router's input by random numbers between 1 - this and 1 + this."""
    balance: Literal["aux", "bias"] = "aux"
    """Load balancing of experts: aux, by a loss (router_aux_loss_coef); bias, by a bias per expert that follows its
    load."""
    balance_scope: Literal["micro", "global"] = "micro"
    """With balance aux: balance each micro-batch (micro) or the whole step (global, about a third slower)."""
    balance_bias_rate: NotNegative = 0.001
    """With balance bias: change of the bias per step."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.")
        if self.pretrained is None:
            check_attention(self.hidden_size, self.num_attention_heads, self.num_key_value_heads, rotary=True)
        experts = self.num_local_experts if self.pretrained else self.num_fresh_experts
        if experts is not None:
            check_experts(self.num_experts_per_tok, experts)

    @property
    def num_fresh_experts(self) -> int:
        """Experts per layer of a model from random weights."""
        return 4 if self.num_local_experts is None else self.num_local_experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings(adapters.LoraSettings):
    """Low-rank adapters on the frozen weights of model.pretrained or init_from. With experts, dropout must be 0."""

    experts: bool = True
    """Also adapt the experts' matrices, where the model has experts."""
    router: bool = False
    """Also adapt the routers; those of an upcycled model always are, as they are new."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The byte-level BPE tokenizer, trained on the training split."""

    vocab_size: AtLeast1 = 2048
    """Vocabulary size in tokens, including special tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How the model generates SQL."""

    max_new_tokens: AtLeast1 = 128
    """Maximum length of the SQL, in tokens."""
    num_beams: AtLeast1 = 1
    """Beams of the beam search; 1: greedy decoding."""
    temperature: NotNegative = 0.0
    """0: greedy decoding or beam search; above 0: sampling. Values below 1 sharpen the distribution."""
    top_p: PositiveShare = 1.0
    """Sample from the smallest set of tokens whose total probability is at least this (nucleus sampling)."""
    num_candidates: AtLeast1 = 1
    """Candidates to generate when sampling; the first of several is decoded greedily."""
    execution_guided: bool = False
    """Choose the most likely candidate that runs and returns a value."""
    voting: bool = False
    """Choose the result that most candidates return."""
    constrained: bool = False
    """Constrained decoding: allow only names of the schema and SQL that can still be completed."""
    seed: AtLeast0 = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        check_ranges(self, "generation.")
        if self.temperature > 0 and self.num_beams > 1:
            raise ConfigError(
                "Sampling and beam search exclude each other: type --generation.temperature 0 or "
                "--generation.num_beams 1."
            )
        if self.voting and (self.num_candidates if self.temperature > 0 else self.num_beams) == 1:
            raise ConfigError(
                "One candidate cannot vote: type --generation.num_beams 4, or --generation.temperature 0.8 "
                "--generation.num_candidates 8."
            )
        if self.voting and self.execution_guided:
            raise ConfigError("Type --generation.voting true or --generation.execution_guided true, not both.")


DIMENSIONS = ("family", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
              "intermediate_size", "dropout")  # fmt: skip
"""Settings of a fresh model, which a pretrained one brings itself."""


def settings_without_effect(
    data: DataSettings,
    model: ModelSettings,
    generation: GenerationSettings,
    lora: LoraSettings,
    router_aux_loss_coef: float,
) -> Iterator[tuple[str, str]]:
    """(setting, why it has no effect) for each setting that another setting switches off."""
    yield from _data_without_effect(data)
    if model.pretrained:
        reason = "beside model.pretrained: the trained model brings its own"
        yield from ((name, reason) for name in (*(f"model.{name}" for name in DIMENSIONS), "tokenizer.vocab_size"))
        if model.num_local_experts is None:
            yield "model.num_experts_per_tok", reason
        if data.prompt != "tokens":
            names = ("schema_tokens", "word_dropout", "question_repeats")
            yield from ((f"data.{name}", "in plain prompts: type --data.prompt tokens") for name in names)
    elif data.prompt == "plain":
        yield "data.prompt", "without model.pretrained: a model from random weights uses Relay's tokens"
    if not model.pretrained:
        yield "model.load_in", "without model.pretrained"
    if not model.pretrained or model.num_local_experts is None:
        reason = "without upcycling: type --model.pretrained with a dense decoder and --model.num_local_experts 4"
        yield from ((f"model.{name}", reason) for name in ("upcycling_noise", "upcycling_drop"))
    if model.balance == "bias":
        yield "model.balance_scope", "with model.balance bias"
        yield "router_aux_loss_coef", "with model.balance bias"
    else:
        yield "model.balance_bias_rate", "with model.balance aux"
    if model.balance == "aux" and router_aux_loss_coef == 0:
        yield "model.balance_scope", "with router_aux_loss_coef 0"
    if lora.rank == 0:
        names = [field.name for field in dataclasses.fields(lora) if field.name != "rank"]
        yield from ((f"lora.{name}", "with lora.rank 0: type --lora.rank 8 to train adapters") for name in names)
    if generation.temperature == 0:
        for name in ("top_p", "num_candidates", "seed"):
            yield f"generation.{name}", "at generation.temperature 0: nothing is sampled"
    if (generation.num_candidates if generation.temperature > 0 else generation.num_beams) == 1:
        yield "generation.execution_guided", "with one candidate: raise generation.num_beams"


def _data_without_effect(data: DataSettings) -> Iterator[tuple[str, str]]:
    from recipes.text2sql.data.questions import WEIGHTED

    if data.source == "demo":
        yield "data.dir", "with data.source demo, which Relay makes itself"
    names = [*WEIGHTED] if data.source == "mix" else data.source.split(",")
    for name, weight in WEIGHTED.items():
        if len(names) == 1 or name not in names:
            yield f"data.{weight}_weight", f"with data.source {data.source}"
    if not {*data.sources} & {*WEIGHTED}:
        yield "data.max_source_epochs", f"with data.source {data.source}"
    if data.source == "demo":
        yield "data.preprocessing_num_workers", "with data.source demo"
        yield "data.bad_questions", "with data.source demo"
    if "bird" not in data.sources:
        yield "data.evidence", "without the source bird"
    if not data.schema_in_prompt:
        for name in ("schema_style", "schema_samples", "schema_descriptions"):
            yield f"data.{name}", "with data.schema_in_prompt false"
