"""The settings of text2sql, by group: data, model, adapters, tokenizer, generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.errors import ConfigError
from runner.parts import adapters

if TYPE_CHECKING:
    from recipes.text2sql.prompts.schema_text import Style

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What to train on."""

    source: str = "demo"
    """Where the questions are from: demo (made here), spider, bird, wikisql, gretel, geography, atis; or several of
    spider,bird,wikisql,gretel with commas, or mix for those four."""
    dir: str | None = None
    """Folder that holds spider/, bird/, wikisql/, gretel/, geography/ or atis/."""
    spider_weight: float = 0.4
    """Share of Spider among mixed sources, in proportion to the other weights; 0 leaves it out."""
    bird_sql_weight: float = 0.3
    """Share of BIRD among mixed sources."""
    wiki_sql_weight: float = 0.2
    """Share of WikiSQL among mixed sources."""
    gretel_synthetic_weight: float = 0.1
    """Share of Gretel's synthetic questions among mixed sources."""
    max_source_epochs: float = 16.0
    """Passes over a mixed source after which its share goes to the others; 0: no limit. More are warned of."""
    evidence: bool = True
    """Put BIRD's hint behind its question."""
    preprocessing_num_workers: int = 0
    """Processes that prepare a large source once; 0: one per core."""
    max_seq_length: int = 768
    """Longest prompt with its SQL, in tokens; longer prompts lose the columns that match the question least."""
    schema_in_prompt: bool = True
    """Show the schema to the model; without it, a model knows only the databases it was trained on."""
    schema_style: Literal["auto", "names", "full"] = "auto"
    """What the prompt says of a schema: names alone, or with types and keys; auto: full for all but demo, geography
    and atis."""
    schema_samples: int = 0
    """Values of each column that the prompt shows."""
    schema_descriptions: bool = False
    """Show what BIRD's database_description/ says of the columns."""
    schema_tokens: bool = False
    """Write tables and columns as tokens, <t0> <c0> ..., that the prompt explains: databases never seen need it."""
    question_repeats: int = 1
    """How often the prompt says the question: at its second reading, each word sees all others."""
    word_dropout: float = 0.0
    """Share of the question's words that training hides; above 0, words that it has only once are always hidden."""
    recombination_prob: float = 0.0
    """Share of the training examples that are new pairs, made by exchanging phrases between pairs."""
    value_swap_prob: float = 0.0
    """Share of the training examples whose values are exchanged for others of the same column."""

    augmentation_prob: float = 0.0
    """Share of the training examples whose question is put in other words; half of those get other SQL, too."""
    schema_perturbation_prob: float = 0.0
    """Share of the training examples whose tables and columns get other names, in schema and SQL alike."""

    def __post_init__(self) -> None:
        from recipes.text2sql.data.questions import SOURCES, WEIGHTED

        names = self.source.split(",")
        if self.source != "mix" and names != [n for n in SOURCES if n == self.source] and not set(names) <= {*WEIGHTED}:
            raise ConfigError(
                f"data.source is {self.source!r}: type --data.source with one of {', '.join(SOURCES)}, with several of "
                f"{', '.join(WEIGHTED)} (commas between them), or with mix."
            )
        weights = {name: getattr(self, f"{weight}_weight") for name, weight in WEIGHTED.items()}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"data.{WEIGHTED[name]}_weight is {weight}: type a number of at least 0.")
        if not self.sources:
            raise ConfigError(f"The weights of {self.source} are all 0: type a larger --data.spider_weight, for one.")
        if not self.max_source_epochs >= 0:
            raise ConfigError(f"data.max_source_epochs is {self.max_source_epochs}: type a number of at least 0.")

    @property
    def style(self) -> Style:
        """How schemas are written."""
        from recipes.text2sql.data.questions import WEIGHTED
        from recipes.text2sql.prompts.schema_text import Style

        is_full = self.schema_style == "full" or (self.schema_style == "auto" and {*self.sources} <= WEIGHTED.keys())
        return Style(self.schema_tokens, is_full, self.schema_samples, self.schema_descriptions)

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
    """Architecture of a fresh model; Qwen3's normalises queries and keys as well."""
    pretrained: str | None = None
    """Folder of a trained decoder of any class, with its dimensions, dropout and tokenizer; none: fresh weights."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_hidden_layers: int = 2
    """Decoder layers."""
    num_attention_heads: int = 4
    """Query heads."""
    num_key_value_heads: int = 2
    """Key and value heads."""
    intermediate_size: int = 128
    """Width of an expert."""
    num_local_experts: int = 4
    """Experts per layer."""
    num_experts_per_tok: int = 2
    """Experts that each token is sent to."""
    dropout: float = 0.1
    """Dropout of embeddings and of attention, as a share."""
    expert_dropout: float = 0.0
    """Dropout inside the experts, between their matrices, as a share."""
    expert_capacity: float | None = None
    """In training, what an expert takes at most, as a factor of its fair share of a micro-batch; none: everything."""
    router_jitter_noise: float = 0.0
    """In training, the router's input is multiplied by numbers from 1 - this to 1 + this."""
    balance: Literal["aux", "bias"] = "aux"
    """Balance the experts by router_aux_loss_coef, or without a loss, by a bias that follows their load."""
    balance_scope: Literal["micro", "global"] = "micro"
    """Of balance aux: each micro-batch is to be balanced, or the whole step, for a third more time."""
    balance_bias_rate: float = 0.001
    """Of balance bias: how far the bias moves at each step."""

    def __post_init__(self) -> None:
        if self.expert_capacity is not None and self.expert_capacity <= 0:
            raise ConfigError(f"model.expert_capacity is {self.expert_capacity}: type a number above 0, such as 1.25.")
        if not 0 <= self.expert_dropout < 1 or not 0 <= self.router_jitter_noise < 1:
            raise ConfigError("model.expert_dropout and model.router_jitter_noise are numbers from 0 to below 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings(adapters.LoraSettings):
    """Low-rank adapters on frozen weights: those of model.pretrained, or of init_from. Experts take no dropout."""

    experts: bool = True
    """Adapt the experts' matrices as well, where there are experts."""
    router: bool = False
    """Adapt the routers as well."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The byte-level BPE tokenizer, trained on the training split."""

    vocab_size: int = 2048
    """Tokens, the special ones included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Writing SQL."""

    max_new_tokens: int = 128
    """Longest SQL, in tokens."""
    num_beams: int = 1
    """Candidates that beam search follows; 1 writes greedily."""
    temperature: float = 0.0
    """Above 0, candidates are drawn instead: below 1 the likely becomes likelier."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this share of the probability together."""
    num_candidates: int = 1
    """Candidates to draw; the first of several is not drawn, but the likeliest."""
    execution_guided: bool = False
    """Of the candidates, take the likeliest that runs and finds something."""
    voting: bool = False
    """Of the candidates, take one whose rows most of them give."""
    constrained: bool = False
    """Write only names of the schema, and only SQL that can still be completed."""
    seed: int = 0
    """The same seed draws the same candidates."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or min(self.num_beams, self.num_candidates) < 1:
            raise ConfigError(
                "Wanted: generation.temperature of at least 0, generation.top_p above 0 up to 1, and "
                "generation.num_beams and generation.num_candidates of at least 1."
            )
        if self.temperature > 0 and self.num_beams > 1:
            raise ConfigError(
                "Candidates are drawn or searched by beams, not both: type --generation.temperature 0 or "
                "--generation.num_beams 1."
            )
        if self.voting and (self.num_candidates if self.temperature > 0 else self.num_beams) == 1:
            raise ConfigError(
                "One candidate cannot vote: type --generation.num_beams 4, or --generation.temperature 0.8 "
                "--generation.num_candidates 8."
            )
        if self.voting and self.execution_guided:
            raise ConfigError("Type --generation.voting true or --generation.execution_guided true, not both.")
