"""Text to SQL: questions about a database become SQL, by a mixture-of-experts decoder."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Suppress

from runner.errors import ConfigError
from runner.recipe import Batch, Loss, Source

if TYPE_CHECKING:
    from recipes.text2sql.data import Question
    from recipes.text2sql.mixing import MixedOrder
    from recipes.text2sql.prompt import Link
    from recipes.text2sql.schema_text import Style


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
        from recipes.text2sql.data import SOURCES, WEIGHTED

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
        from recipes.text2sql.data import WEIGHTED
        from recipes.text2sql.schema_text import Style

        is_full = self.schema_style == "full" or (self.schema_style == "auto" and {*self.sources} <= WEIGHTED.keys())
        return Style(self.schema_tokens, is_full, self.schema_samples, self.schema_descriptions)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources to read; of several, those that have a weight."""
        from recipes.text2sql.data import WEIGHTED

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
class LoraSettings:
    """Low-rank adapters on frozen weights: those of model.pretrained, or of init_from."""

    rank: int = 0
    """Rank of the adapters; 0: all weights train."""
    alpha: float = 16.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout of the adapters' input, as a share; experts cannot have it."""
    target_modules: str | None = None
    """Names of the matrices that get adapters, with commas between them; none: every one but the output."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings and verbs of text2sql."""

    data_settings: DataSettings = DataSettings()
    model_settings: ModelSettings = ModelSettings()
    tokenizer_settings: TokenizerSettings = TokenizerSettings()
    generation_settings: GenerationSettings = GenerationSettings()
    lora: LoraSettings = LoraSettings()
    router_aux_loss_coef: float = 0.01
    """Weight of the router's balance loss: mean over layers, 1 when balanced."""
    router_z_loss_coef: float = 0.001
    """Weight of the router's z-loss: mean over layers."""
    assets: Suppress[Path | None] = None
    """Folder of the tokenizer; the runner's to set."""

    best_metric: ClassVar[str] = "execution_accuracy"

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, Any]]:
        """Named settings."""
        from recipes.text2sql.presets import presets

        return presets()

    @staticmethod
    def downloads() -> Mapping[str, Source]:
        """Where Spider, BIRD, WikiSQL and Gretel's questions are."""
        from recipes.text2sql.downloads import downloads

        return downloads()

    def prepare(self, folder: Path) -> Recipe:
        """Train the tokenizer on the training split, or take the one that is there, or the pretrained model's."""
        bound, source = dataclasses.replace(self, assets=folder), self.model_settings.pretrained
        if not (folder / "tokenizer.json").is_file():
            if source:
                from recipes.text2sql.model import keep_base

                keep_base(source, folder, self._more_tokens)
            else:
                bound._train_tokenizer().save_pretrained(folder)
            (folder / "words.txt").write_text("\n".join(bound._repeated_words()), encoding="utf-8")
        return bound

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of `prepare`."""
        from transformers import PreTrainedTokenizerFast

        assert self.assets is not None
        return PreTrainedTokenizerFast.from_pretrained(self.assets)

    @functools.cached_property
    def known_words(self) -> frozenset[str]:
        """The words that `prepare` found more than once in the training questions."""
        assert self.assets is not None
        return frozenset((self.assets / "words.txt").read_text(encoding="utf-8").split("\n"))

    def data(self, split: str) -> Examples:
        """Questions as prompts and targets."""
        questions = self._questions(split)
        if split != "train":
            return Examples(self, questions)
        return (
            MixedExamples(self, questions) if len(self.data_settings.sources) > 1 else TrainingExamples(self, questions)
        )

    def collate(self, examples: list[Example]) -> Batch:
        """Right-padded prompts with their SQL; only the SQL is scored."""
        import torch

        longest = max(len(example.prompt) + len(example.target) for example in examples)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(examples), longest), pad)
        labels = torch.full((len(examples), longest), -100)
        mask = torch.zeros((len(examples), longest), dtype=torch.int64)
        for row, example in enumerate(examples):
            whole = example.prompt + example.target
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
            labels[row, len(example.prompt) : len(whole)] = torch.tensor(example.target)
        tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        weight = sum(len(example.target) for example in examples)
        extra = {"examples": examples, "prompts": min(len(example.prompt) for example in examples)}
        return Batch(tensors, weight=weight, tokens=int(mask.sum()), extra=extra)

    def model(self) -> Any:
        """A fresh or pretrained decoder, whose tokens are routed as the settings say, with adapters where asked for."""
        from recipes.text2sql import model as parts

        settings, tokenizer = self.model_settings, self.tokenizer if self.assets is not None else None
        added = []
        if settings.pretrained:
            model, added = parts.pretrained(settings.pretrained, tokenizer, self.assets)
        else:
            model = parts.build(
                settings,
                self.tokenizer_settings.vocab_size,
                self.data_settings.max_seq_length,
                tokenizer.pad_token_id if tokenizer else None,
                tokenizer.eos_token_id if tokenizer else None,
            )
            parts.drop_embeddings(model, settings.dropout)
        parts.route(model, settings)
        return parts.with_adapters(model, self.lora, added) if self.lora.rank else model

    def inherit(self, model: Any, tensors: dict[str, Any]) -> None:
        """The weights of another stage; adapters, and the bias that balances, start fresh where it has none."""
        from recipes.text2sql.model import inherit

        inherit(model, tensors)

    def export(self, model: Any, folder: Path) -> None:
        """Write the model as `from_pretrained` reads it; adapters are in its weights by now."""
        # Beside whole weights it would make transformers look for adapters.
        for name in ("adapter_config.json", "base_config.json"):
            (folder / name).unlink(missing_ok=True)
        model.save_pretrained(folder)

    @property
    def tallies_first(self) -> bool:
        """Whether the loss needs the choices of the whole step."""
        settings = self.model_settings
        return settings.balance == "aux" and settings.balance_scope == "global" and self.router_aux_loss_coef > 0

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy of the SQL's tokens, and the router's losses as means over the layers."""
        import torch

        from recipes.text2sql import model as parts

        settings, mask = self.model_settings, batch["attention_mask"].reshape(-1)
        routers = parts.routers_of(model)
        for router in routers:
            router.mask = mask
        config = parts.config_of(model)
        asked = {"output_router_logits": True} if hasattr(config, "output_router_logits") else {}
        # Of prompts nothing is scored, and their logits would be most of the memory: kept are the last places.
        ids, kept = batch["input_ids"], batch["input_ids"].shape[1] - batch.extra.get("prompts", 1) + 1
        output = model(
            input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=kept, **asked
        )
        # At least fp32, whatever the model computes in.
        logits = output.logits[:, :-1]  # (batch, kept - 1, vocab)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), batch["labels"][:, 1 - kept :].reshape(-1), ignore_index=-100,
            reduction="sum",
        )  # fmt: skip
        if not asked:
            # A dense model has no experts to balance.
            return Loss(total, batch.weight)
        top_k = config.num_experts_per_tok
        layers = [layer.reshape(-1, layer.shape[-1]) for layer in output.router_logits]
        biases = [router.balance_bias for router in routers] or [None] * len(layers)
        counts = torch.stack([parts.expert_counts(*each, bias=bias) for each, bias in
                              zip(((layer, mask, top_k) for layer in layers), biases, strict=True)])  # fmt: skip
        of_step = counts if batch.step is None else batch.step[:, :-1]
        balance = torch.stack(
            [parts.balance_loss(layer, mask, top_k, own) for layer, own in zip(layers, of_step, strict=True)]
        ).mean()
        z = torch.stack([parts.z_loss(layer, mask) for layer in layers]).mean()
        logs: dict[str, Any] = {"router/balance_loss": balance.detach(), "router/z_loss": z.detach()}
        logs |= parts.expert_logs(counts.cpu())
        capacity = settings.expert_capacity if model.training else None
        logs["expert/dropped"] = parts.dropped(layers, mask, top_k, biases, capacity)
        auxiliary = self.router_z_loss_coef * z
        if settings.balance == "aux":
            auxiliary = self.router_aux_loss_coef * balance + auxiliary
        if batch.step is not None:
            # This micro-batch's share of the step's auxiliary loss. The loop divides by the weight of the step, and
            # shows the sum: so it gets the gradient and not the value.
            share = auxiliary * (mask.sum() * top_k / of_step[0].sum() * batch.step[0, -1])
            return Loss(total + share - share.detach(), batch.weight, logs)
        tally = None
        if settings.balance == "bias" or self.tallies_first:
            weight = torch.full_like(counts[:, :1], batch.weight)
            tally = torch.cat([counts, weight], dim=1)
        return Loss(total, batch.weight, logs, auxiliary, tally)

    def end_step(self, model: Any, tally: Any) -> None:
        """Move the bias that balances the experts."""
        from recipes.text2sql.model import move_bias

        if self.model_settings.balance == "bias":
            move_bias(model, tally[:, :-1], self.model_settings.balance_bias_rate)

    def remark(self, step: int, values: Mapping[str, Any]) -> str | None:
        """That experts collapse, where they do; in the first steps, it is nothing yet."""
        from recipes.text2sql.model import collapse

        counts = values.get("expert/tokens_per_expert")
        return collapse(counts, self.model_settings.balance) if counts and step >= 20 else None

    def predict(self, model: Any, batch: Batch) -> list[Any]:
        """SQL for each question, written as `generation` says, with what scoring needs."""
        from recipes.text2sql.sql import plain

        examples: list[Example] = batch.extra["examples"]
        return [
            {
                "predicted": plain(predicted),
                "gold": example.question.query,
                "db_id": example.question.schema.db_id,
                "database": example.question.database,
                "schema": example.question.schema.to_json(),
                "group": example.question.group,
            }
            for predicted, example in zip(self.write(model, examples), examples, strict=True)
        ]

    def score(self, rows: list[Any]) -> dict[str, float]:
        """Exact match of the text, validity and execution accuracy."""
        from recipes.text2sql.score import score

        return score(rows)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Request:
        """Questions to answer."""

        db: str = "demo:bookshop"
        """SQLite file to ask, or a folder of them; demo:NAME is one of the embedded databases."""
        question: str = "which author has the most books ?"
        """The question, in English."""
        questions: str | None = None
        """A file instead of question: one on each line (QUESTION<TAB>NAME for a folder), or .json(l) as Spider's."""
        output: str | None = None
        """File for the answers, .jsonl or .csv, instead of printing them."""
        interactive: bool = False
        """Ask for questions until the input ends; /num_beams 4 and the like change what stands below."""
        batch_size: int = 16
        """Questions that are answered at a time."""
        constrained: bool | None = None
        """generation.constrained; what was trained with when not given, as with those below."""
        num_beams: int | None = None
        """generation.num_beams"""
        temperature: float | None = None
        """generation.temperature"""
        top_p: float | None = None
        """generation.top_p"""
        num_candidates: int | None = None
        """generation.num_candidates"""
        execution_guided: bool | None = None
        """generation.execution_guided"""
        voting: bool | None = None
        """generation.voting"""
        seed: int | None = None
        """generation.seed"""

        def __post_init__(self) -> None:
            if self.batch_size < 1:
                raise ConfigError("Wanted: batch_size of at least 1.")
            if self.output is not None and self.questions is None:
                raise ConfigError("--output is for the answers to a file: type --questions FILE as well.")

    def answer(self, model: Any, request: Request) -> str:
        """The SQL for each question, and its rows as a table."""
        from recipes.text2sql import use

        return use.answer(self, model, request)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Files:
        """Prediction files to score, without a model; --data.dir names the folder with the databases."""

        metric: Literal["spider_em", "spider_exec", "test_suite", "bird_ex", "bird_ves", "wikisql_lf"]
        """The official definition to score by."""
        gold: str
        """File of the right queries: SQL<TAB>db_id on each line; WikiSQL: jsonl."""
        pred: str
        """File of the predictions: one on each line; BIRD: a JSON object or list; WikiSQL: jsonl."""
        output: str | None = None
        """File for the rows, one JSON object per pair."""
        keep_distinct: bool = False
        """test_suite: compare DISTINCT as well; the official default takes it out of both queries."""
        repeats: int = 100
        """bird_ves: how often both queries are timed."""

    def score_files(self, files: Files) -> tuple[str, list[Any]]:
        """The table by hardness, and a row per pair."""
        from recipes.text2sql.official import score_files

        return score_files(
            files.metric, files.gold, files.pred, self.data_settings.dir, files.keep_distinct, files.repeats
        )

    def example(self, question: Question) -> Example:
        """A question as token ids."""
        text, links = question.link()
        return self.encode(question, text, links, question.target(links))

    def encode(
        self, question: Question, text: str, links: list[Link], target: str, word_dropout: float = 0.0
    ) -> Example:
        """The token ids of a question and a target that have placeholders for the linked values.

        Words of the question are hidden by chance, a share of `word_dropout`.
        """
        from recipes.text2sql import prompt, schema_text

        settings = self.data_settings
        tokens = settings.schema_tokens
        asked = prompt.mark(text, question.schema) if tokens else text
        if settings.word_dropout:
            asked = prompt.hide_words(asked, self.known_words, word_dropout)
        target = prompt.hide_names(target, question.schema) if tokens else target
        # A pretrained model's tokenizer may begin a text with a token of its own: once, and not in the middle.
        target_ids = self.tokenizer(target, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id]
        asked = prompt.prompt(asked, links, question.schema, settings.question_repeats, tokens)
        asked_ids = self.tokenizer(asked, add_special_tokens=False)["input_ids"]
        # Room for as much SQL as may be written, not for the gold one: its length is part of the answer.
        room = settings.max_seq_length - self.generation_settings.max_new_tokens - len(asked_ids)

        def schema_ids(described: str) -> list[int]:
            return self.tokenizer(f"<schema>{described}")["input_ids"]

        described = ""
        if settings.schema_in_prompt:
            described = schema_text.fitting(
                question.schema,
                settings.style,
                question.database,
                text,
                links,
                lambda text: len(schema_ids(text)) - room,
                lambda texts: list(map(len, self.tokenizer(texts)["input_ids"])),
            )
        prompt_ids = schema_ids(described) + asked_ids
        return Example(question, prompt_ids, target_ids, links)

    def _questions(self, split: str) -> Sequence[Question]:
        from recipes.text2sql.data import WEIGHTED, read, read_demo

        settings = self.data_settings
        if settings.source == "demo":
            return read_demo(split)
        if not set(settings.sources) <= WEIGHTED.keys():
            return read(settings.source, settings.dir, split)
        from recipes.text2sql.prepared import gather

        return gather(settings.sources, settings.dir, split, settings.evidence, settings.preprocessing_num_workers)

    def write(self, model: Any, examples: list[Example]) -> list[str]:
        """One query for each example."""
        from recipes.text2sql.decoding import write

        return write(self, model, examples)

    @property
    def _more_tokens(self) -> tuple[str, ...]:
        from recipes.text2sql import prompt

        settings = self.data_settings
        names = prompt.NAME_TOKENS if settings.schema_tokens else ()
        return (*names, prompt.UNKNOWN) if settings.word_dropout else names

    def _repeated_words(self) -> list[str]:
        counts: Counter[str] = Counter()
        for question in self._questions("train"):
            counts.update(set(question.link()[0].split()))
        return sorted(word for word, count in counts.items() if count > 1)

    def _train_tokenizer(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        from recipes.text2sql import prompt, schema_text

        tokens, texts = self.data_settings.schema_tokens, []
        for question in self._questions("train"):
            text, links = question.link()
            target = question.target(links)
            described = schema_text.describe(question.schema, self.data_settings.style, question.database)
            asked = prompt.mark(text, question.schema) if tokens else text
            asked = prompt.prompt(asked, links, question.schema, 1, tokens)
            texts += [
                f"<schema>{described}{asked}",
                prompt.hide_names(target, question.schema) if tokens else target,
            ]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.tokenizer_settings.vocab_size,
            special_tokens=[*prompt.SPECIAL_TOKENS, *self._more_tokens],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
        )


@dataclasses.dataclass(frozen=True)
class Example:
    """A question as the model sees it."""

    question: Question
    prompt: list[int]
    target: list[int]
    links: list[Link]


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split: made into token ids when asked for."""

    recipe: Recipe
    questions: Sequence[Question]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        return self.recipe.example(self.questions[index])


@dataclasses.dataclass(frozen=True)
class TrainingExamples(Examples):
    """The training split, with the augmentations that the settings ask for."""

    def __getitem__(self, index: int) -> Example:
        from recipes.text2sql import augment, prompt, variation

        settings, question = self.recipe.data_settings, self.questions[index]
        text, links = question.link()
        target = question.target(links)
        if settings.augmentation_prob and random.random() < settings.augmentation_prob:
            text = variation.paraphrase(text, question.schema, random)
            if random.random() < 0.5:
                canonical = question.canonical
                other = variation.rewrite(canonical, question.schema, question.database, random)
                target = prompt.hide(other, links)
        if random.random() < settings.recombination_prob:
            text, target = random.choice(self.recombined[index] or [(text, target)])
        if question.database and random.random() < settings.value_swap_prob:
            links = augment.swap_values(links, target, question.database, random)
        if settings.schema_perturbation_prob and random.random() < settings.schema_perturbation_prob:
            renamed = variation.renamed(question.schema, links, target, random)
            if renamed is not None:
                schema, links, target = renamed
                question = dataclasses.replace(question, schema=schema)
        return self.recipe.encode(question, text, links, target, settings.word_dropout)

    @functools.cached_property
    def recombined(self) -> list[list[tuple[str, str]]]:
        """New pairs for each question, the same on every process."""
        from recipes.text2sql.augment import recombine_questions

        return recombine_questions(self.questions)

    def warnings(self, examples: int) -> list[str]:
        """What to tell before a run of so many examples: a source that is repeated too often."""
        from recipes.text2sql.data import WEIGHTED

        source, most = self.recipe.data_settings.source, self.recipe.data_settings.max_source_epochs
        passes = examples / len(self)
        if source not in WEIGHTED or not most or passes <= most:
            return []
        return [
            f"{examples:,} examples repeat {source} {passes:.1f} times, and data.max_source_epochs is {most:g}: "
            "lower --max_steps, or mix other sources in."
        ]


@dataclasses.dataclass(frozen=True)
class MixedExamples(TrainingExamples):
    """Several sources, each with its share."""

    def order(self, batch_size: int, micro_batch_size: int, seed: int) -> MixedOrder:
        """Which examples a lane holds."""
        from recipes.text2sql.data import WEIGHTED
        from recipes.text2sql.mixing import MixedOrder
        from recipes.text2sql.prepared import Mixture

        assert isinstance(self.questions, Mixture)
        settings, names = self.recipe.data_settings, tuple(self.questions.parts)
        weights = tuple(getattr(settings, f"{WEIGHTED[name]}_weight") for name in names)
        most = settings.max_source_epochs
        return MixedOrder(names, self.questions.sizes, weights, batch_size, micro_batch_size, seed, most)

    def warnings(self, examples: int) -> list[str]:
        """What to tell before a run of so many examples."""
        return self.order(1, 1, 0).warnings(examples)
