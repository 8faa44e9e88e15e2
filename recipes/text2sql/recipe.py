"""Text to SQL: questions about a database become SQL, by a mixture-of-experts decoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Suppress

import runner.recipe
from recipes.text2sql.data.examples import Examples, MixedExamples, TrainingExamples
from recipes.text2sql.prompts.encoding import (
    WORDS_FILE,
    Encoder,
    Example,
    added_tokens,
    repeated_words,
    smallest_vocabulary,
    train_tokenizer,
)
from recipes.text2sql.requests import Request
from recipes.text2sql.settings import (
    DataSettings,
    GenerationSettings,
    LoraSettings,
    ModelSettings,
    TokenizerSettings,
    settings_without_effect,
)
from runner.errors import ConfigError
from runner.parts.adapters import BASE, hold_base_in_bf16, merged
from runner.parts.chunked_loss import let_score, scored_in_chunks, wide
from runner.parts.pretrained import check_adapted, check_load_in
from runner.parts.setting_types import NotNegative
from runner.recipe import Batch, Loss, Source

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(runner.recipe.Recipe):
    """The text2sql recipe: its settings and methods."""

    data_settings: DataSettings = DataSettings()
    model_settings: ModelSettings = ModelSettings()
    tokenizer_settings: TokenizerSettings = TokenizerSettings()
    generation_settings: GenerationSettings = GenerationSettings()
    lora: LoraSettings = LoraSettings()
    router_aux_loss_coef: NotNegative = 0.01
    """Coefficient of the router's load-balancing loss: a mean over layers, 1 when balanced."""
    router_z_loss_coef: NotNegative = 0.001
    """Coefficient of the router's z-loss: a mean over layers."""
    assets: Suppress[Path | None] = None
    """Folder of the tokenizer; the runner sets it."""

    Request: ClassVar[type] = Request
    best_metric: ClassVar[str] = "execution_accuracy"
    evaluates_in_shards: ClassVar[bool] = True
    changeable_settings: ClassVar[frozenset[str]] = frozenset(
        f"data.{name}"
        for name in (
            "dir",
            "preprocessing_num_workers",
            "word_dropout",
            "recombination_prob",
            "value_swap_prob",
            "augmentation_prob",
            "schema_perturbation_prob",
        )
    ) | {"model.pretrained", "model.load_in", "model.balance", "model.balance_scope"}
    first_settings: ClassVar[Sequence[str]] = ("data.source", "data.dir", "model.pretrained", "model.hidden_size")

    @classmethod
    def unmeant_settings(cls, given: Set[str], of_preset: bool) -> Set[str]:
        """The number of experts beside model.pretrained: of a preset, and of a run before there was upcycling."""
        # A run writes all settings into its config.yaml.
        is_old_file = "model.balance_bias_rate" in given and "model.upcycling_noise" not in given
        is_meant = "model.pretrained" not in given or not (of_preset or is_old_file)
        return frozenset() if is_meant else frozenset({"model.num_local_experts"})

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, Any]]:
        """Named settings."""
        from recipes.text2sql.presets import presets

        return presets()

    @staticmethod
    def downloads() -> Mapping[str, Source]:
        """The downloads of Spider, BIRD, WikiSQL and Gretel's questions."""
        from recipes.text2sql.data.downloads import downloads

        return downloads()

    def setting_notes(self, changed: frozenset[str]) -> list[str]:
        """One line for each setting that the user gave and another setting switches off."""
        found = settings_without_effect(
            self.data_settings, self.model_settings, self.generation_settings, self.lora, self.router_aux_loss_coef
        )
        return [f"{name} has no effect {reason}." for name, reason in found if name in changed]

    def fresh_start(self) -> str | None:
        """No line. Raises ConfigError where the prompt's length leaves no token for the schema, or where there is
        nothing to adapt."""
        if self.lora.rank and not self.model_settings.pretrained:
            raise ConfigError(
                f"lora.rank is {self.lora.rank}, and adapters train on a frozen model: type --model.pretrained FOLDER "
                "with a trained decoder, or --init_from RUN."
            )
        check_adapted(self.model_settings.load_in, self.lora.rank)
        longest, written = self.data_settings.max_seq_length, self.generation_settings.max_new_tokens
        if self.data_settings.schema_in_prompt and longest <= written:
            raise ConfigError(
                f"data.max_seq_length is {longest}, of which generation.max_new_tokens reserves {written} for the SQL: "
                "no schema fits.\nType a larger --data.max_seq_length, or --data.schema_in_prompt false."
            )
        return None

    def metrics(self) -> list[str]:
        """What `score` returns: over all questions, by hardness, and by group of questions."""
        names = ["execution_accuracy", "exact_match", "exact_set_match", "valid_sql", "without_database", "gold_errors"]
        return [*names, *(f"{name}/*" for name in names[:4])]

    def prepare(self, folder: Path) -> Recipe:
        """Train the tokenizer on the training split, unless the folder has one or model.pretrained brings its own."""
        bound = dataclasses.replace(self, assets=folder)
        check_load_in(self.model_settings.load_in, self.model_settings.num_local_experts)
        least, size = smallest_vocabulary(self.data_settings), self.tokenizer_settings.vocab_size
        if size < least and not self.model_settings.pretrained:
            raise ConfigError(f"tokenizer.vocab_size is {size}: these data settings need at least {least} tokens.")
        if not (folder / "tokenizer.json").is_file():
            from recipes.text2sql.data.cache import load_questions

            data, questions = self.data_settings, None
            if self.model_settings.pretrained:
                from recipes.text2sql.model import keep_base

                is_plain, has_adapters = data.prompt != "tokens", self.lora.rank > 0
                keep_base(self.model_settings, folder, added_tokens(data), is_plain, has_adapters)
            else:
                vocab_size = self.tokenizer_settings.vocab_size
                questions = load_questions(data, "train")
                train_tokenizer(questions, data, vocab_size).save_pretrained(folder)
            if not bound.encoder.is_plain:
                words = repeated_words(load_questions(data, "train") if questions is None else questions)
                (folder / WORDS_FILE).write_text("\n".join(words), encoding="utf-8")
        return bound

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder of questions, with the tokenizer of `prepare`."""
        encoder = Encoder(self.data_settings, self.generation_settings.max_new_tokens, self.assets)
        if self.assets is None or not encoder.is_plain:
            return encoder
        plain = dataclasses.replace(self.data_settings, schema_tokens=False, word_dropout=0.0, question_repeats=1)
        return dataclasses.replace(encoder, settings=plain)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of `prepare`."""
        return self.encoder.tokenizer

    def data_files(self, split: str) -> list[Path]:
        """The files of the questions and the databases."""
        from recipes.text2sql.data.sources import files

        return files(self.data_settings.sources, self.data_settings.dir, split)

    def data(self, split: str) -> Examples:
        """Questions as prompts and targets."""
        from recipes.text2sql.data.cache import load_questions

        questions = load_questions(self.data_settings, split)
        if split != "train":
            return Examples(self.encoder, questions)
        is_mixed = len(self.data_settings.sources) > 1
        return (MixedExamples if is_mixed else TrainingExamples)(self.encoder, questions)

    def collate(self, examples: list[Example]) -> Batch:
        """Right-pad prompts and SQL; the loss counts the tokens of the SQL only."""
        import torch

        longest = max(len(example.prompt) + len(example.target) for example in examples)
        ids = torch.full((len(examples), longest), self.encoder.pad)
        labels = torch.full((len(examples), longest), -100)
        mask = torch.zeros((len(examples), longest), dtype=torch.int64)
        for row, example in enumerate(examples):
            whole = example.prompt + example.target
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
            labels[row, len(example.prompt) : len(whole)] = ids[row, len(example.prompt) : len(whole)]
        tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        weight = sum(len(example.target) for example in examples)
        extra = {"examples": examples, "prompts": min(len(example.prompt) for example in examples)}
        return Batch(tensors, weight=weight, tokens=int(mask.sum()), extra=extra)

    def model(self) -> PreTrainedModel:
        """A fresh or pretrained decoder with the routers, experts and adapters of the settings."""
        from recipes.text2sql import experts
        from recipes.text2sql import model as parts

        settings, tokenizer = self.model_settings, self.tokenizer if self.assets is not None else None
        added, has_new_routers = [], False
        if settings.pretrained:
            model, added, has_new_routers = parts.pretrained(settings, tokenizer, self.assets, self.lora.rank > 0)
        else:
            model = parts.build(
                settings,
                self.tokenizer_settings.vocab_size,
                self.data_settings.max_seq_length,
                self.encoder.pad if tokenizer else None,
                self.encoder.end if tokenizer else None,
            )
            parts.drop_embeddings(model, settings.dropout)
        experts.route(model, settings)
        if not self.lora.rank:
            if settings.pretrained:
                let_score(model)
            return model
        # Runs of version 0.1 have no record of their base: their checkpoints hold it.
        is_elsewhere = self.assets is not None and (self.assets / BASE).is_file()
        lora = dataclasses.replace(self.lora, router=True) if has_new_routers else self.lora
        adapted = parts.with_adapters(model, lora, added, is_elsewhere)
        if settings.pretrained:
            # PEFT has put the adapters into `model`; an output matrix that has some computes all logits.
            let_score(model)
        return adapted

    def while_evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Adapters are merged into the weights."""
        return merged(model)

    def use_precision(self, model: nn.Module, precision: str) -> None:
        """Hold a frozen base in bf16, where products are computed in it."""
        hold_base_in_bf16(model, precision)

    def inherit(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of another stage; adapters and the balance bias start fresh where it has none."""
        from recipes.text2sql.model import inherit

        inherit(model, tensors)

    def export(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the model for `from_pretrained`; the runner has merged adapters into its weights."""
        # Beside merged weights, it would make transformers look for adapters.
        for name in ("adapter_config.json", "base_config.json", BASE):
            (folder / name).unlink(missing_ok=True)
        model.save_pretrained(folder)

    @property
    def has_trained_weights(self) -> bool:
        """Whether the model begins with those of model.pretrained."""
        return self.model_settings.pretrained is not None

    @property
    def needs_step_statistics(self) -> bool:
        """Whether the balance loss needs the expert counts of the whole step."""
        settings = self.model_settings
        return settings.balance == "aux" and settings.balance_scope == "global" and self.router_aux_loss_coef > 0

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over the SQL's tokens, and the router losses averaged over the layers."""
        import torch

        from recipes.text2sql import experts
        from recipes.text2sql import model as parts

        settings, mask = self.model_settings, batch["attention_mask"]
        routers = experts.routers_of(model)
        config = parts.config_of(model)
        asked: dict[str, Any] = {"output_router_logits": True} if hasattr(config, "output_router_logits") else {}
        # Prompts are not scored, and their logits would take most of the memory.
        ids, labels = batch["input_ids"], batch["labels"]
        if settings.pretrained:
            # Rows that end together have their scored tokens in the same columns, so that few columns get logits.
            mask, ids, labels = parts.ended_together(mask, ids, labels)
            asked |= parts.positions(model, mask)
            labels = labels[:, 1:]
            # (kept,): positions before a token that some row is scored on.
            kept = (labels != -100).any(0).nonzero().flatten()
            labels = labels[:, kept]
        else:
            kept = ids.shape[1] - batch.extra.get("prompts", 1) + 1
            labels = labels[:, 1:][:, 1 - kept :]
        with scored_in_chunks(model, labels) as is_scored:
            output = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept, **asked)
        mask = mask.reshape(-1)
        if is_scored:
            total = output.logits.sum()
        else:
            # At least fp32, whatever the model computes in.
            logits = wide(output.logits[:, : labels.shape[1]])  # (batch, kept, vocab)
            total = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100,
                reduction="sum",
            )  # fmt: skip
        if "output_router_logits" not in asked:
            # A dense model has no experts to balance.
            return Loss(total)
        top_k = config.num_experts_per_tok
        layers = [layer.reshape(-1, layer.shape[-1]) for layer in output.router_logits]
        biases = [router.balance_bias for router in routers] or [None] * len(layers)
        counts = torch.stack([experts.expert_counts(*each, bias=bias) for each, bias in
                              zip(((layer, mask, top_k) for layer in layers), biases, strict=True)])  # fmt: skip
        step_counts = counts if batch.step_statistics is None else batch.step_statistics
        balance = torch.stack(
            [experts.balance_loss(layer, mask, top_k, own) for layer, own in zip(layers, step_counts, strict=True)]
        ).mean()
        z = torch.stack([experts.z_loss(layer, mask) for layer in layers]).mean()
        logs: dict[str, Any] = {"router/balance_loss": balance.detach(), "router/z_loss": z.detach()}
        logs |= experts.expert_logs(counts)
        capacity = settings.expert_capacity if model.training else None
        logs["expert/dropped"] = experts.dropped(layers, mask, top_k, biases, capacity)
        auxiliary = self.router_z_loss_coef * z
        if settings.balance == "aux":
            auxiliary = self.router_aux_loss_coef * balance + auxiliary
        if batch.step_statistics is not None:
            # This micro-batch's share of the step's auxiliary loss: its share of the tokens.
            share = auxiliary * (mask.sum() * top_k / step_counts[0].sum())
            return Loss(total, logs=logs, step_auxiliary=share)
        is_counted = settings.balance == "bias" or self.needs_step_statistics
        return Loss(total, logs=logs, auxiliary=auxiliary, statistics=counts if is_counted else None)

    def end_step(self, model: nn.Module, statistics: Tensor) -> None:
        """Update the balance bias of the routers."""
        from recipes.text2sql.experts import move_bias

        if self.model_settings.balance == "bias":
            move_bias(model, statistics, self.model_settings.balance_bias_rate)

    def remark(self, step: int, values: Mapping[str, Any]) -> str | None:
        """Warn of collapsed experts, from step 20 on."""
        from recipes.text2sql.experts import collapse

        counts = values.get("expert/tokens_per_expert")
        return collapse(counts, self.model_settings.balance) if counts and step >= 20 else None

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, object]]:
        """Generate SQL for each question; each row also holds the question, whether the SQL is right by each metric,
        and what `score` needs."""
        from recipes.text2sql.scoring.metrics import verdicts
        from recipes.text2sql.sql.canonical import plain

        examples: list[Example] = batch.extra["examples"]
        rows: list[dict[str, object]] = [
            {
                "question": example.question.text,
                "predicted": plain(predicted),
                "gold": example.question.query,
                "db_id": example.question.schema.db_id,
                "database": example.question.database,
                "schema": example.question.schema.to_json(),
                "group": example.question.group,
            }
            for predicted, example in zip(self.write(model, examples), examples, strict=True)
        ]
        return [row | verdicts(row) for row in rows]

    def score(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Exact match of the text, validity and execution accuracy."""
        from recipes.text2sql.scoring.metrics import score

        return score(rows)

    def samples(self, rows: list[dict[str, Any]]) -> list[dict[str, object]]:
        """Three right and three wrong answers, with the gold query and the rows of both."""
        from recipes.text2sql.scoring.samples import samples

        return samples(rows)

    def answer(self, model: PreTrainedModel, request: Request) -> str:
        """The SQL for each question, and its rows as a table."""
        from recipes.text2sql import answering

        return answering.answer(self, model, request)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Files:
        """Prediction files to score, without a model; --data.dir names the folder with the databases."""

        metric: Literal["spider_em", "spider_exec", "test_suite", "bird_ex", "bird_ves", "wikisql_lf"]
        """Official metric to compute."""
        gold: str
        """File of the gold queries: SQL<TAB>db_id per line; WikiSQL: jsonl."""
        pred: str
        """File of the predictions: one per line; BIRD: a JSON object or list; WikiSQL: jsonl."""
        output: str | None = None
        """Write one JSON object per pair to this file."""
        keep_distinct: bool = False
        """test_suite: also compare DISTINCT; the official default removes it from both queries."""
        repeats: int = 100
        """bird_ves: number of timings of each query."""

    def score_files(self, files: Files) -> tuple[str, list[Any]]:
        """The table of scores by hardness, and one row per pair."""
        from recipes.text2sql.scoring.official import score_files

        return score_files(
            files.metric, files.gold, files.pred, self.data_settings.dir, files.keep_distinct, files.repeats
        )

    def write(self, model: PreTrainedModel, examples: list[Example]) -> list[str]:
        """One query for each example."""
        from recipes.text2sql.decoding.candidates import write

        return write(self.encoder, self.generation_settings, model, examples)
