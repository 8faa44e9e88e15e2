"""Language models: any text becomes a tokenizer, a decoder of any size, and text again."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import Suppress

import runner.recipe
from recipes.language_model.settings import DataSettings, ModelSettings, TokenizerSettings
from runner.errors import ConfigError, DataError
from runner.parts.adapters import LoraSettings, with_adapters
from runner.parts.cache import cache_folder
from runner.recipe import Batch, Loss

if TYPE_CHECKING:
    from recipes.language_model.data import PackedRow
    from recipes.language_model.text import Corpus

# Bytes up to which everything is tokenised before the first step.
HELD_AT_ONCE = 64_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(runner.recipe.Recipe):
    """Settings and verbs of language_model."""

    data_settings: DataSettings = DataSettings()
    tokenizer_settings: TokenizerSettings = TokenizerSettings()
    model_settings: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    assets: Suppress[Path | None] = None
    """Folder of the tokenizer; the runner's to set."""

    best_metric: ClassVar[str] = "bits_per_byte"
    memory_advice: ClassVar[str] = (
        "Lower --micro_batch_size or --data.max_seq_length, or set --gradient_checkpointing true."
    )

    def __post_init__(self) -> None:
        if self.lora.rank and not self.model_settings.pretrained:
            raise ConfigError("lora.rank came without a model to adapt: type --model.pretrained with a model's folder.")

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, Any]]:
        """Named settings."""
        from recipes.language_model.presets import presets

        return presets()

    # Data -------------------------------------------------------------------------------------------

    def prepare(self, folder: Path) -> Recipe:
        """Fit the tokenizer on the training split, or take the one that is there."""
        from recipes.language_model import tokens

        bound = dataclasses.replace(self, assets=folder)
        is_there = (folder / "tokenizer.json").is_file()
        # Once per run: the other processes, and a resumed run, take what the first one has written.
        wants_another = self.tokenizer_settings.retrain and not (folder / "fitted.json").is_file()
        if is_there and not wants_another:
            return bound
        bound._fit_tokenizer(tokens).save_pretrained(folder)
        bound._tell_of_validation()
        (folder / "fitted.json").write_text(json.dumps({"kind": self.tokenizer_settings.kind}) + "\n", encoding="utf-8")
        if self.model_settings.pretrained:
            # So that a run's folder says by itself what its model is.
            from transformers import AutoConfig

            config: Any = AutoConfig.from_pretrained(self.model_settings.pretrained)
            (folder / "base_config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")
        return bound

    def _tell_of_validation(self) -> None:
        """Say where a share was asked for, and there is too little to have one; and what the tokenizer cannot read."""
        from recipes.language_model import answering

        own = self._validation_corpus()
        corpus = own or self._corpus()
        first = next(iter(corpus.passages("train" if own else "validation")), None)
        if first is not None:
            answering.tell_unknown(self.tokenizer, first.text, set())
        elif corpus.validation:
            print(
                "note: there is nothing to judge by: the source has too few documents, or parts, for a share of "
                f"{corpus.validation:g}.\n"
                "Type --data.validation_source with other text, or a larger --data.validation_split.",
                file=sys.stderr,
                flush=True,
            )

    def _fit_tokenizer(self, tokens: Any) -> Any:
        from recipes.language_model.model import other_parameters

        model = self.model_settings
        if model.pretrained and self.tokenizer_settings.kind != "path":
            # Its tokens are the ones that it knows.
            return tokens.from_path(Path(model.pretrained))
        corpus = self._corpus()
        wants_choice = self.tokenizer_settings.kind == "bpe" and self.tokenizer_settings.vocab_size == "auto"
        others = other_parameters(model) if wants_choice else 0
        return tokens.fit(self.tokenizer_settings, corpus, others, model.hidden_size, model.tie_embeddings)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of `prepare`."""
        from recipes.language_model import tokens

        assert self.assets is not None
        return tokens.load(self.assets)

    @functools.cached_property
    def token_bytes(self) -> Any:
        """(vocabulary,): bytes of text that each token stands for."""
        import torch

        from recipes.language_model import tokens

        return torch.from_numpy(tokens.bytes_of_tokens(self.tokenizer))

    def data(self, split: str) -> Any:
        """Rows of tokens: by index, or, of large data, as a stream."""
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

    def _corpus(self) -> Corpus:
        from recipes.language_model import demo, text

        settings = self.data_settings
        source = settings.source
        if source is None:
            source = str(demo.write(cache_folder() / "language_model"))
        files = text.list_files(source)
        if settings.val_split is not None and not all(file.path.startswith("datasets://") for file in files):
            raise DataError(
                f"data.val_split {settings.val_split!r} is for a `datasets` id, and data.source names files.\n"
                "Type --data.validation_split 0.1 for a share of them, or --data.validation_source with other files."
            )
        has_own = settings.validation_source is not None or settings.val_split is not None
        return text.Corpus(files, settings, 0.0 if has_own else settings.validation_split)

    def _validation_corpus(self) -> Corpus | None:
        """The text that was named for validation; None where it is a share of the source."""
        from recipes.language_model import text

        settings = self.data_settings
        if settings.validation_source is not None:
            return text.Corpus(text.list_files(settings.validation_source), settings, 0.0)
        if settings.val_split is not None and settings.source is not None:
            self._corpus()
            other = dataclasses.replace(settings, split=settings.val_split)
            return text.Corpus(text.list_files(settings.source), other, 0.0)
        return None

    def collate(self, examples: list[PackedRow]) -> Batch:
        """Inputs and the tokens that follow them, padded on the right; padding comes after all that is scored."""
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
                # The first token of a document follows from nothing.
                labels[number, :length][numbers[1:] != numbers[:-1]] = -100
        sizes = (self.token_bytes[labels.clamp(min=0)] * (labels != -100)).sum(1)
        tensors = {"input_ids": ids, "labels": labels, "bytes": sizes}
        if self.data_settings.isolate_documents:
            tensors["position_ids"] = model.places(documents)
        return Batch(tensors, weight=int((labels != -100).sum()), tokens=sum(len(row.ids) - 1 for row in examples))

    # Model ------------------------------------------------------------------------------------------

    def model(self) -> Any:
        """A fresh decoder, or the one of model.pretrained, with adapters where lora.rank says so."""
        from recipes.language_model import model

        settings, tokenizer = self.model_settings, self.tokenizer if self.assets is not None else None
        if settings.pretrained:
            built = self._pretrained()
            known = built.get_input_embeddings().weight.shape[0]
            if tokenizer is not None and len(tokenizer) > known:
                raise DataError(
                    f"The tokenizer has {len(tokenizer)} tokens, model.pretrained {known}: give the tokenizer of that "
                    "model, or leave --tokenizer.kind out."
                )
        else:
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            special: dict[str, int | None] = {name: getattr(tokenizer, name, None) for name in names}
            # A table of shapes alone, before there is a tokenizer.
            vocab_size = len(tokenizer) if tokenizer is not None else 16_000
            built = model.build(settings, vocab_size, self.data_settings.max_seq_length, special)
        if self.lora.rank:
            built = with_adapters(built, self.lora)
        model.let_score(built.get_base_model() if self.lora.rank else built)
        return built

    def _pretrained(self) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        from recipes.language_model import model

        folder, kept = Path(self.model_settings.pretrained or ""), self.assets and self.assets / "base_config.json"
        if not folder.exists() and kept and kept.is_file():
            # The base has been moved away; its weights are in the checkpoint as well.
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(kept))
        return model.pretrained(str(folder))

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy of the tokens that follow, in nats."""
        from recipes.language_model.model import nats_of_rows

        # Without a cache and without a mask, or else transformers lets packed documents see each other.
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch.tensors.get("position_ids")}
        inputs["use_cache"] = False
        sums = nats_of_rows(model, inputs, batch["labels"], self.model_settings.chunked_loss)
        if not model.training:
            # `predict` is asked for the same batch next.
            batch.extra["nats"] = sums.detach()
        total = sums.detach().sum()
        logs = {
            "bits_per_byte": total / math.log(2) / batch["bytes"].sum().clamp(min=1),
            "perplexity": (total / max(1.0, batch.weight)).clamp(max=80).exp(),
        }
        return Loss(sums.sum(), logs=logs)

    def predict(self, model: Any, batch: Batch) -> list[Any]:
        """What each row costs: nats, tokens, and the bytes that these stand for."""
        if "nats" not in batch.extra:
            self.loss(model, batch)
        counts = (batch["labels"] != -100).sum(1)
        columns = (batch.extra.pop("nats"), counts, batch["bytes"])
        return [
            {"nats": nats, "tokens": count, "bytes": size}
            for nats, count, size in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def score(self, rows: list[Any]) -> dict[str, float]:
        """Bits per byte, which vocabularies can be compared by, and perplexity per token."""
        nats, tokens, size = (sum(row[name] for row in rows) for name in ("nats", "tokens", "bytes"))
        return {
            "bits_per_byte": nats / math.log(2) / max(size, 1),
            "perplexity": math.exp(min(nats / max(tokens, 1), 700)),
        }

    # Use --------------------------------------------------------------------------------------------

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Request:
        """Text to go on with."""

        prompt: str = ""
        """The beginning; empty: a new document."""
        prompts: str | None = None
        """A file with one beginning per line, instead of prompt."""
        interactive: bool = False
        """Ask for beginnings until the input ends; /temperature 0.8 and the like change what stands below."""
        max_new_tokens: int = 200
        """Longest text to write, in tokens."""
        temperature: float = 0.8
        """Below 1 the likely becomes likelier; 0: always the likeliest."""
        top_k: int = 50
        """Draw from this many likeliest tokens only; 0: from all."""
        top_p: float = 1.0
        """Draw from the likeliest tokens that have this share of the probability together."""
        repetition_penalty: float = 1.0
        """Above 1, what has been written becomes less likely."""
        seed: int = 0
        """The same seed and the same settings write the same text."""
        samples: int = 1
        """Texts for each beginning."""
        batch_size: int = 8
        """Texts that are written at a time."""
        stream: bool = True
        """Show a single text while it is written."""
        begin: bool = True
        """The prompt begins a document."""
        stop: bool = True
        """Stop where the model ends the document."""

        def __post_init__(self) -> None:
            # Written so that nan is refused too.
            if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.repetition_penalty > 0 and self.top_k >= 0):
                raise ConfigError(
                    "Wanted: temperature of at least 0, top_k of at least 0, top_p above 0 up to 1, and "
                    "repetition_penalty above 0."
                )
            if min(self.max_new_tokens, self.samples, self.batch_size) < 1:
                raise ConfigError("Wanted: max_new_tokens, samples and batch_size of at least 1.")

    def answer(self, model: Any, request: Request) -> str:
        """The prompts, each with what follows."""
        from recipes.language_model import answering

        return answering.answer(self, model, request)

    def export(self, model: Any, folder: Path) -> None:
        """Write the model as `from_pretrained` reads it; adapters are in its weights by now."""
        # Beside whole weights it would make transformers look for adapters.
        for name in ("adapter_config.json", "base_config.json"):
            (folder / name).unlink(missing_ok=True)
        model.save_pretrained(folder)
