"""Language models: any text becomes a tokenizer, a decoder of any size, and text again."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict, cast

from tyro.conf import Suppress

import runner.recipe
from recipes.language_model.settings import DataSettings, GenerationRequest, ModelSettings, TokenizerSettings
from runner.errors import ConfigError, DataError
from runner.parts.adapters import (
    BASE,
    LoraSettings,
    find_base,
    hold_base_in_bf16,
    linear_names,
    merged,
    record_base,
    with_adapters,
)
from runner.parts.cache import cache_folder
from runner.parts.chunked_loss import let_score
from runner.parts.pretrained import check_adapted, check_load_in, find_pretrained, read_config
from runner.parts.setting_types import AtLeast0
from runner.parts.upcycling import is_to_be_upcycled, upcycled
from runner.recipe import Batch, Loss

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from recipes.language_model.answering import Generator
    from recipes.language_model.data import PackedRow, PackedStream
    from recipes.language_model.text import Corpus

HELD_AT_ONCE = 64_000_000
"""Bytes of data that are tokenised before the first step. Larger data are read as a stream."""


class Score(TypedDict):
    """What `predict` makes of a row."""

    nats: float
    tokens: int
    bytes: float


class Continued(Score, total=False):
    """The same, and for a few rows text that the model wrote."""

    prompt: str
    model: str
    data: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(runner.recipe.Recipe):
    """Settings and methods of language_model."""

    data_settings: DataSettings = DataSettings()
    tokenizer_settings: TokenizerSettings = TokenizerSettings()
    model_settings: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    sample_tokens: AtLeast0 = 40
    """Tokens that an evaluation lets the model write for each of three validation texts, for the report; 0: none."""
    Request: ClassVar[type[GenerationRequest]] = GenerationRequest
    assets: Suppress[Path | None] = None
    """Folder of the tokenizer; the runner sets it."""

    best_metric: ClassVar[str] = "bits_per_byte"
    evaluates_in_shards: ClassVar[bool] = True
    first_settings: ClassVar[Sequence[str]] = (
        "data.source", "data.max_seq_length", "tokenizer.kind", "model.pretrained", "model.hidden_size"
    )  # fmt: skip
    renamed_settings: ClassVar[Mapping[str, str]] = {"data.validation_split": "data.validation_fraction"}
    changeable_settings: ClassVar[frozenset[str]] = frozenset(
        {"data.source", "data.validation_source", "data.isolate_documents", "tokenizer.path", "tokenizer.retrain"}
        | {"model.pretrained", "model.load_in", "model.chunked_loss"}
    )
    memory_advice: ClassVar[str] = (
        "Lower --micro_batch_size or --data.max_seq_length, or set --gradient_checkpointing true."
    )

    def __post_init__(self) -> None:
        if self.lora.rank and not self.model_settings.pretrained:
            raise ConfigError("lora.rank needs a model to adapt: type --model.pretrained with a model's folder.")

    def fresh_start(self) -> None:
        """Raise ConfigError where weights that are held in 4 bits are to train."""
        check_adapted(self.model_settings.load_in, self.lora.rank)

    @property
    def has_trained_weights(self) -> bool:
        """Whether the model begins with those of model.pretrained."""
        return self.model_settings.pretrained is not None

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, object]]:
        """Named settings."""
        from recipes.language_model.presets import presets

        return presets()

    def setting_notes(self, changed: frozenset[str]) -> list[str]:
        """One line for each setting of the user that has no effect beside the others."""
        from recipes.language_model.setting_notes import setting_notes

        return setting_notes(self.data_settings, self.tokenizer_settings, self.model_settings, self.lora, changed)

    def prepare(self, folder: Path) -> Recipe:
        """Fit the tokenizer on the training split, or take the one that is there."""
        from recipes.language_model import tokens

        bound = dataclasses.replace(self, assets=folder)
        check_load_in(self.model_settings.load_in, self.model_settings.num_local_experts)
        exists = (folder / "tokenizer.json").is_file()
        # The tokenizer is fitted once per run: the other processes and a resumed run read what the first one wrote.
        must_retrain = self.tokenizer_settings.retrain and not (folder / "fitted.json").is_file()
        if exists and not must_retrain:
            return bound
        # Not for a run that goes on: its base may be gone.
        self._check_upcycling()
        for corpus in (self._corpus(), self._validation_corpus()):
            if corpus is not None:
                corpus.check()
        tokenizer = bound._fit_tokenizer()
        if self.data_settings.chat_template:
            tokens.check_chat_template(tokenizer)
        tokenizer.save_pretrained(folder)
        bound._check_validation()
        (folder / "fitted.json").write_text(json.dumps({"kind": self.tokenizer_settings.kind}) + "\n", encoding="utf-8")
        if self.model_settings.pretrained:
            bound._record_base(self.model_settings.pretrained, folder)
        return bound

    def _check_upcycling(self) -> None:
        """Raise ConfigError where model.pretrained cannot become a mixture of experts."""
        settings = self.model_settings
        if settings.pretrained and settings.num_local_experts is not None:
            is_to_be_upcycled(read_config(find_pretrained(settings.pretrained)), settings.num_local_experts)

    def _record_base(self, pretrained: str, assets: Path) -> None:
        """Describe the base in the assets: its architecture, or, of a run with adapters, where its weights are."""
        if self.lora.rank:
            record_base(pretrained, assets)
            return
        config = read_config(find_pretrained(pretrained))
        (assets / "base_config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")

    def _check_validation(self) -> None:
        """Print a note where validation has characters that the tokenizer does not know, or no text at all."""
        from recipes.language_model import answering

        own = self._validation_corpus()
        corpus = own or self._corpus()
        first = next(iter(corpus.passages("train" if own else "validation")), None)
        if first is not None:
            answering.report_unknown(self.tokenizer, first.text, set())
        elif corpus.validation:
            print(
                "note: the validation split is empty: the source has too few documents for a share of "
                f"{corpus.validation:g}.\n"
                "Type --data.validation_source with other text, or a larger --data.validation_fraction.",
                file=sys.stderr,
                flush=True,
            )

    def _fit_tokenizer(self) -> PreTrainedTokenizerFast:
        from recipes.language_model import tokens
        from recipes.language_model.model import other_parameters

        model = self.model_settings
        if model.pretrained and self.tokenizer_settings.kind != "path":
            # A pretrained model keeps its own tokenizer.
            return tokens.from_pretrained(find_pretrained(model.pretrained))
        corpus = self._corpus()
        is_auto = self.tokenizer_settings.kind == "bpe" and self.tokenizer_settings.vocab_size == "auto"
        others = other_parameters(model) if is_auto else 0
        return tokens.fit(self.tokenizer_settings, corpus, others, model.hidden_size, model.tie_embeddings)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that `prepare` wrote."""
        from recipes.language_model import tokens

        assert self.assets is not None
        return tokens.load(self.assets)

    @functools.cached_property
    def token_bytes(self) -> Tensor:
        """(vocabulary,): bytes of text that each token stands for."""
        import torch

        from recipes.language_model import tokens

        return torch.from_numpy(tokens.bytes_of_tokens(self.tokenizer))

    def data(self, split: str) -> Sequence[PackedRow] | PackedStream:
        """Rows of tokens: a sequence, or a stream where the data are large."""
        from recipes.language_model import data

        settings = self.data_settings
        packer = data.Packer(self.tokenizer, settings)
        if split == "test":
            return []
        if split == "validation":
            corpus = self._validation_corpus()
            whole = corpus is not None
            corpus = corpus or self._corpus()
            return data.validation_rows(corpus, packer, whole) if whole or corpus.validation else []
        corpus = self._corpus()
        streaming = settings.streaming if settings.streaming is not None else corpus.size > HELD_AT_ONCE
        if not streaming:
            return data.training_rows(corpus, packer)
        return data.PackedStream(corpus, packer, data.estimated_rows(corpus, packer))

    def metrics(self) -> list[str]:
        """What `score` returns."""
        return ["bits_per_byte", "perplexity"]

    def data_files(self, split: str) -> list[str]:
        """The files of the source, or for validation those of validation_source."""
        corpus = (self._validation_corpus() if split == "validation" else None) or self._corpus()
        return [file.path for file in corpus.files]

    def _corpus(self) -> Corpus:
        from recipes.language_model import demo, text
        from recipes.language_model.files import list_files

        settings = self.data_settings
        if settings.source is None:
            files = list_files(str(demo.write(cache_folder() / "language_model")))
        else:
            files = list_files(settings.source)
        if settings.val_split is not None and not all(file.is_dataset for file in files):
            raise DataError(
                f"data.val_split {settings.val_split!r} needs a `datasets` id, but data.source names files.\n"
                "Type --data.validation_fraction 0.1 for a share of them, or --data.validation_source with other files."
            )
        has_own = settings.validation_source is not None or settings.val_split is not None
        return text.Corpus(files, settings, 0.0 if has_own else settings.validation_fraction)

    def _validation_corpus(self) -> Corpus | None:
        """The text that the settings name for validation; None where it is a share of the source."""
        from recipes.language_model import text
        from recipes.language_model.files import list_files

        settings = self.data_settings
        if settings.validation_source is not None:
            files = list_files(settings.validation_source, "data.validation_source")
            return text.Corpus(files, settings, 0.0)
        if settings.val_split is not None and settings.source is not None:
            self._corpus()
            other = dataclasses.replace(settings, split=settings.val_split)
            return text.Corpus(list_files(settings.source), other, 0.0)
        return None

    def collate(self, examples: list[PackedRow]) -> Batch:
        """Input tokens and their next tokens, padded on the right."""
        import torch

        from recipes.language_model import model

        time = max(len(row.ids) for row in examples) - 1
        ids = torch.zeros((len(examples), time), dtype=torch.int64)
        labels = torch.full((len(examples), time), -100)
        documents = torch.full((len(examples), time), -1)
        for number, row in enumerate(examples):
            length = len(row.ids) - 1
            whole = torch.from_numpy(row.ids.astype("int64"))
            ids[number, :length], labels[number, :length] = whole[:-1], whole[1:]
            if self.data_settings.isolate_documents:
                numbers = torch.from_numpy(row.documents.astype("int64"))
                documents[number, :length] = numbers[:-1]
                # Nothing predicts the first token of a document.
                labels[number, :length][numbers[1:] != numbers[:-1]] = -100
        sizes = (self.token_bytes[labels.clamp(min=0)] * (labels != -100)).sum(1)
        tensors = {"input_ids": ids, "labels": labels, "bytes": sizes}
        if self.data_settings.isolate_documents:
            tensors["position_ids"] = model.places(documents)
        lengths = [len(row.ids) - 1 for row in examples]
        return Batch(tensors, weight=int((labels != -100).sum()), tokens=sum(lengths), extra={"lengths": lengths})

    def model(self) -> nn.Module:
        """A fresh decoder, or the one of model.pretrained; with adapters where lora.rank is above 0."""
        from recipes.language_model import model

        settings, tokenizer = self.model_settings, self.tokenizer if self.assets is not None else None
        if settings.pretrained:
            built = self._pretrained()
            known = cast("Tensor", built.get_input_embeddings().weight).shape[0]
            if tokenizer is not None and len(tokenizer) > known:
                raise DataError(
                    f"The tokenizer has {len(tokenizer)} tokens, model.pretrained has {known}: use the tokenizer of "
                    "that model, or leave --tokenizer.kind out."
                )
            model.check_length(built, self.data_settings.max_seq_length)
        else:
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            special: dict[str, int | None] = {name: getattr(tokenizer, name, None) for name in names}
            # Without a tokenizer the model only shows its shapes.
            vocab_size = len(tokenizer) if tokenizer is not None else 16_000
            built = model.build(settings, vocab_size, self.data_settings.max_seq_length, special)
        # Runs of version 0.1 have no record of their base: their checkpoints hold it.
        is_elsewhere = self.assets is not None and (self.assets / BASE).is_file()
        adapted = self._adapted(built, is_elsewhere) if self.lora.rank else built
        # PEFT has put the adapters into `built`.
        let_score(built)
        return adapted

    def _adapted(self, built: PreTrainedModel, is_elsewhere: bool) -> nn.Module:
        if self.model_settings.num_local_experts is None:
            return with_adapters(built, self.lora, base_is_elsewhere=is_elsewhere)
        if self.lora.dropout:
            raise ConfigError(
                f"lora.dropout is {self.lora.dropout}, which adapters of experts and routers cannot have: "
                "type --lora.dropout 0."
            )
        # The routers are new.
        parameters = ("experts.gate_up_proj", "experts.down_proj", "gate.weight")
        return with_adapters(built, self.lora, linear_names(built), parameters, base_is_elsewhere=is_elsewhere)

    def _pretrained(self) -> PreTrainedModel:
        return upcycled(self._read_pretrained(), self.model_settings)

    def _read_pretrained(self) -> PreTrainedModel:
        from transformers import AutoConfig, AutoModelForCausalLM

        from recipes.language_model import model

        requested, assets = self.model_settings.pretrained or "", self.assets or Path("nowhere")
        if self.lora.rank and (assets / BASE).is_file():
            return model.pretrained(find_base(requested, assets), self.model_settings.load_in)
        kept = assets / "base_config.json"
        if not Path(requested).exists() and kept.is_file():
            # The pretrained folder is gone, but the checkpoint holds its weights.
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(kept))
        return model.pretrained(find_pretrained(requested), self.model_settings.load_in)

    def while_evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Adapters are merged into the weights."""
        return merged(model)

    def use_precision(self, model: nn.Module, precision: str) -> None:
        """Hold a frozen base in bf16, where products are computed in it."""
        hold_base_in_bf16(model, precision)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy of the next tokens in nats, summed."""
        from recipes.language_model.model import nats_of_rows

        # With a cache or a mask, transformers would let packed documents see each other.
        places = batch.tensors.get("position_ids")
        inputs = {"input_ids": batch["input_ids"], "position_ids": places, "use_cache": False}
        is_upcycled = self.model_settings.num_local_experts is not None and self.model_settings.pretrained is not None
        if is_upcycled:
            inputs["output_router_logits"] = True
        sums, balance = nats_of_rows(model, inputs, batch["labels"], self.model_settings.chunked_loss)
        total = sums.detach().sum()
        logs = {
            "bits_per_byte": total / math.log(2) / batch["bytes"].sum().clamp(min=1),
            "perplexity": (total / max(1.0, batch.weight)).clamp(max=80).exp(),
        }
        if not is_upcycled or balance is None:
            return Loss(sums.sum(), logs=logs, outputs={"nats": sums.detach()})
        logs["router/balance_loss"] = balance.detach()
        auxiliary = self.model_settings.router_aux_loss_coef * balance
        return Loss(sums.sum(), logs=logs, auxiliary=auxiliary, outputs={"nats": sums.detach()})

    def predict(self, model: nn.Module, batch: Batch) -> list[Continued]:
        """For each row its loss in nats, its scored tokens, and the bytes of text that these stand for; for the first
        rows of an evaluation also a continuation."""
        from recipes.language_model.answering import SAMPLES, continuations

        outputs = batch.outputs or self.loss(model, batch).outputs
        assert outputs is not None
        counts = (batch["labels"] != -100).sum(1)
        columns = (outputs["nats"], counts, batch["bytes"])
        rows: list[Continued] = [
            {"nats": nats, "tokens": count, "bytes": size}
            for nats, count, size in zip(*(column.tolist() for column in columns), strict=True)
        ]
        shown = [number for number, place in enumerate(batch.places) if place < SAMPLES]
        if shown and self.sample_tokens:
            ids = [batch["input_ids"][number, : batch.extra["lengths"][number]].tolist() for number in shown]
            found = continuations(self.generator(model), ids, self.sample_tokens)
            for number, texts in zip(shown, found, strict=True):
                rows[number] = cast("Continued", {**rows[number], **texts})
        return rows

    def samples(self, rows: list[Continued]) -> list[dict[str, object]]:
        """The beginnings of validation texts, with what the model and what the data go on with."""
        return [{name: row.get(name, "") for name in ("prompt", "model", "data")} for row in rows if row.get("prompt")]

    def score(self, rows: Sequence[Score]) -> dict[str, float]:
        """Bits per byte, which is comparable between vocabularies, and perplexity per token."""
        nats, tokens, size = (sum(row[name] for row in rows) for name in ("nats", "tokens", "bytes"))
        return {
            "bits_per_byte": nats / math.log(2) / max(size, 1),
            "perplexity": math.exp(min(nats / max(tokens, 1), 700)),
        }

    def answer(self, model: nn.Module, request: GenerationRequest) -> str:
        """The prompts, each with its generated continuation."""
        from recipes.language_model import answering

        return answering.answer(self.generator(model), request)

    def generator(self, model: nn.Module) -> Generator:
        """The model with its tokenizer and window, for generation."""
        from recipes.language_model.answering import Generator

        settings = self.data_settings
        return Generator(
            cast("PreTrainedModel", model), self.tokenizer, settings.max_seq_length, bool(settings.add_bos)
        )

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model for `from_pretrained`; the runner has merged the adapters into its weights."""
        # These files would make transformers look for adapters.
        for name in ("adapter_config.json", "base_config.json", BASE):
            (folder / name).unlink(missing_ok=True)
        super().export(model, folder)
