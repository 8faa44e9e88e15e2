"""Tabular: one transformer for many tables with text, pre-trained together and adapted to a table of yours."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from tyro.conf import Suppress

import runner.recipe
from recipes.tabular.settings import DataSettings, LoraSettings, ModelSettings
from runner.errors import CheckpointError, ConfigError, DataError
from runner.parts.dimensions import check_attention
from runner.parts.fingerprints import data_hash
from runner.parts.fingerprints import fingerprint as fingerprint_of_files
from runner.parts.installation import require
from runner.parts.sending import sent
from runner.recipe import Batch, Loss

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from recipes.tabular.corpus import Source
    from recipes.tabular.linear import Held, Linear
    from recipes.tabular.model import TabularModel, TextEncoder
    from recipes.tabular.rows import Example, Rows
    from recipes.tabular.score import Prediction
    from recipes.tabular.table import Cells, Table, Wording
    from runner.parts.figures import Figure


LINEAR = "linear.tensors"
"""Name of the linear parts among what is fitted. Files in .safetensors are for weights alone."""
POOLING = "relay.json"
"""Name of the file beside a given text encoder's tokenizer that says how a text becomes one vector."""
WEIGHTS = "model.safetensors"
BASELINES = "baselines.json"
IMPORTANCES = "importances.json"
REMARKS = "remarks.json"
PARTS = {"without_transformer": "without_transformer", "linear": "linear_part", "trees": "trees_part"}
"""Where a row has the prediction of each part that the setting `part` names."""
TEXTS_AT_A_TIME = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(runner.recipe.Recipe):
    """Settings and verbs of tabular."""

    stage: Literal["pretrain", "finetune"] = "pretrain"
    """pretrain: all weights, on many tables or one; finetune: adapt the model of --init_from to a table."""
    adapt: Literal["lora", "full", "frozen_text"] = "lora"
    """Stage finetune: what learns; adapters, everything, or everything but the text encoder."""
    data_settings: DataSettings = DataSettings()
    model_settings: ModelSettings = ModelSettings()
    lora_settings: LoraSettings = LoraSettings()
    part: Literal["all", "without_transformer", "linear", "trees"] = "all"
    """What relay evaluate scores and relay predict answers with: the model, or one of its parts alone."""
    baseline: bool = False
    """Fit a linear model and gradient boosting of scikit-learn too, and show their scores on the same rows."""
    assets: Suppress[Path | None] = None
    """Folder of what was fitted; the runner's to set."""

    best_metric: ClassVar[str] = "score"
    changeable_settings: ClassVar[frozenset[str]] = frozenset(
        {
            "baseline",
            "part",
            "data.train",
            "data.test",
            "data.corpus",
            "model.text_encoder",
            "model.text_chunk_size",
            "model.text_cache",
        }
    )
    first_settings: ClassVar[Sequence[str]] = (
        "data.train",
        "data.target",
        "data.test",
        "data.task",
        "stage",
        "baseline",
    )
    renamed_settings: ClassVar[Mapping[str, str]] = {"lora.r": "lora.rank"}

    def __post_init__(self) -> None:
        sizes, data = self.model_settings, self.data_settings
        check_attention(sizes.hidden_size, sizes.num_attention_heads)
        if sizes.hidden_size % 2:
            raise ConfigError(
                f"model.hidden_size is {sizes.hidden_size}: type --model.hidden_size with an even number."
            )
        if sizes.text_encoder is None and sizes.text_hidden_size % max(1, sizes.text_hidden_size // 32):
            # Our own text encoder has heads of 32 numbers.
            lower = sizes.text_hidden_size // 32 * 32
            raise ConfigError(
                f"model.text_hidden_size is {sizes.text_hidden_size}, which its heads of 32 numbers do not divide: "
                f"type --model.text_hidden_size {lower} or {lower + 32}."
            )
        if sizes.gram_buckets % 8 or sizes.gram_buckets < 0:
            raise ConfigError(f"model.gram_buckets is {sizes.gram_buckets}: type a multiple of 8, or 0.")
        if data.train is not None and data.corpus is not None:
            raise ConfigError("Both data.train and data.corpus were given: leave one out.")

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, object]]:
        """Named settings."""
        from recipes.tabular.presets import presets

        return presets()

    def learning_rate_scale(self, name: str) -> float:
        """A given text encoder is trained already. Adapters inside it are new."""
        sizes = self.model_settings
        has_adapters = self.stage == "finetune" and self.adapt == "lora"
        is_trained = name.startswith("texts.bert.") and sizes.text_encoder is not None and not has_adapters
        return sizes.text_learning_rate_scale if is_trained else 1.0

    def setting_notes(self, changed: frozenset[str]) -> list[str]:
        """One line for each setting that the user gave and another setting switches off."""
        data, sizes = self.data_settings, self.model_settings
        is_tuned = self.stage == "finetune"
        rules: list[tuple[bool, str, tuple[str, ...]]] = [
            (not is_tuned, "without --stage finetune.", ("adapt",)),
            (
                not is_tuned or self.adapt != "lora",
                "without --stage finetune --adapt lora.",
                ("lora.rank", "lora.alpha", "lora.dropout"),
            ),
            (is_tuned and self.adapt == "frozen_text", "with --adapt frozen_text.", ("model.unfrozen_layers",)),
            (
                sizes.text_encoder is not None,
                "with model.text_encoder, which brings its own.",
                ("model.text_layers", "model.text_hidden_size", "model.vocab_size"),
            ),
            (sizes.text_encoder is None, "without model.text_encoder.", ("model.text_learning_rate_scale",)),
            (sizes.gram_buckets == 0, "with model.gram_buckets 0.", ("model.gram_dropout",)),
            (
                not sizes.linear_part,
                "with model.linear_part false.",
                ("model.trees", "model.target_transform", "model.refit"),
            ),
            (
                data.train is None,
                "without data.train: type --data.train with the file.",
                ("data.target", "data.test"),
            ),
            (data.corpus is None, "without data.corpus.", ("data.tables", "data.exclude_tables")),
            (data.train is not None or data.corpus is not None, "on tables of your own.", ("data.demo_rows",)),
        ]
        return [f"{name} has no effect {why}" for applies, why, names in rules if applies for name in names
                if name in changed]  # fmt: skip

    # Data ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def sources(self) -> list[Source]:
        """The tables with their splits; read once."""
        from recipes.tabular.corpus import read

        return read(self.data_settings)

    def metrics(self) -> list[str]:
        """What `score` returns: means over the tables, and each table's own where there are several."""
        names = ["auroc", "accuracy", "log_loss", "calibration_error", "r2", "rmse"]
        from recipes.tabular.score import OTHERS

        return ["score", *OTHERS.values(), *names, *(f"{name}/*" for name in names)]

    def packages(self) -> dict[str, str | None]:
        """What reads and fits tables, and what reads the table's kind of file."""
        from recipes.tabular.files import WORKBOOKS

        needed: dict[str, str | None] = dict.fromkeys(("pandas", "scipy", "sklearn"), "tabular")
        for file in (self.data_settings.train, self.data_settings.test):
            ending = Path(file).suffix.lower() if file is not None else ""
            if ending in WORKBOOKS:
                package = WORKBOOKS[ending]
                needed[package] = "tabular" if package == "openpyxl" else None
            elif ending == ".parquet":
                needed["pyarrow"] = "tabular"
        return needed

    def data_files(self, split: str) -> list[Path]:
        """The table, or the corpus with its manifest; validation rows are taken from the training rows."""
        from recipes.tabular.corpus import files

        return files(self.data_settings)

    @property
    def fingerprint(self) -> dict[str, object]:
        """The settings that what is fitted depends on, but for where the files lie: their content counts."""
        settings = dataclasses.asdict(self.data_settings)
        del settings["train"], settings["corpus"], settings["test"], settings["max_rows_per_table_per_epoch"]
        return {"stage": self.stage, **settings}

    def prepare(self, folder: Path) -> Recipe:
        """Fit the tables on their training rows, and our tokenizer on their texts, or take what is there.

        The tokenizer of `--init_from` is kept; the tables of another stage are not ours.
        """
        require([name for name, extra in self.packages().items() if extra], "The recipe tabular", "tabular")
        bound = dataclasses.replace(self, assets=folder)
        content_hash = data_hash({"train": fingerprint_of_files(self.data_files("train"))})
        is_new = self._read_tables(folder) is None or not self._is_fitted_on(content_hash, folder)
        if is_new:
            tables = [table.to_json() for table in bound._fit()]
            content = {"settings": self.fingerprint, "content": content_hash, "tables": tables}
            (folder / "tables.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        if self.model_settings.gram_buckets and (is_new or not (folder / "grams.bin").is_file()):
            bound._write_grams(folder / "grams.bin")
        if not (folder / "text_encoder" / "config.json").is_file():
            bound._write_text_encoder(folder / "text_encoder")
        if is_new and self.model_settings.text_encoder is not None:
            bound._print_cut_texts()
        if self.model_settings.linear_part and is_new:
            bound._write_linear(folder)
        if self.baseline and (is_new or not (folder / BASELINES).is_file()):
            bound._write_baselines(folder / BASELINES)
        return bound

    def prepare_trained(self, folder: Path) -> Recipe:
        """Take the tables that the weights were trained on, whatever the files hold now."""
        has_tables = self._read_tables(folder) is not None
        return dataclasses.replace(self, assets=folder) if has_tables else self.prepare(folder)

    def _is_fitted_on(self, content_hash: str | None, folder: Path) -> bool:
        """Whether the tables of a folder were fitted on these files."""
        content = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
        if "content" in content:
            return content["content"] == content_hash
        # A file of an older version has only the paths.
        data, saved = self.data_settings, content["settings"]
        return (data.train, data.corpus) == (saved.get("train"), saved.get("corpus"))

    def _read_tables(self, folder: Path) -> list[Table] | None:
        from recipes.tabular.table import Table

        file = folder / "tables.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        # A run of an older version did not know the newest settings, and had what are their defaults.
        saved = {**dataclasses.asdict(DataSettings()), **content["settings"]}
        wanted = json.loads(json.dumps(self.fingerprint))
        if {name: saved[name] for name in wanted} != wanted:
            return None
        return [Table.from_json(table) for table in content["tables"]]

    def _fit(self) -> list[Table]:
        from recipes.tabular.column_kinds import named_kinds
        from recipes.tabular.table import describe, fit

        settings = self.data_settings
        tables = []
        named = named_kinds(settings.kinds)
        known = {name for source in self.sources for name in source.splits["train"]}
        if not named.keys() <= known:
            raise DataError(f"data.kinds names {', '.join(sorted(named.keys() - known))}, which no table has.")
        for source in self.sources:
            own = {name: kind for name, kind in named.items() if name in source.splits["train"]}
            table = fit(
                source.name, source.splits["train"], source.target, source.task, own, settings.max_features,
                settings.split_seed, settings.missing_values is not None,
            )  # fmt: skip
            tables.append(table)
            print(*(f"note: {line}" for line in source.notes), describe(table), sep="\n", flush=True)
        return tables

    def _write_text_encoder(self, folder: Path) -> None:
        from recipes.tabular.text import given_pooling, load_encoder, load_tokenizer, small_config, train_tokenizer

        sizes = self.model_settings
        if sizes.text_encoder is not None:
            load_tokenizer(sizes.text_encoder).save_pretrained(folder)
            load_encoder(sizes.text_encoder).config.save_pretrained(folder)
            pooling = sizes.text_pooling if sizes.text_pooling != "auto" else given_pooling(sizes.text_encoder)
            (folder / POOLING).write_text(json.dumps({"pooling": pooling}), encoding="utf-8")
            return
        print(
            "text encoder: a small one of ours, from nothing; --model.text_encoder DIR takes a pre-trained BERT.",
            flush=True,
        )
        texts = [text for source, table in zip(self.sources, self.tables, strict=True)
                 for text in self._texts(table, source.splits["train"])]  # fmt: skip
        tokenizer = train_tokenizer(texts, sizes.vocab_size)
        tokenizer.save_pretrained(folder)
        small_config(
            sizes.text_hidden_size, sizes.text_layers, sizes.vocab_size, self.data_settings.max_text_tokens,
            sizes.dropout,
        ).save_pretrained(folder)  # fmt: skip

    def _write_grams(self, file: Path) -> None:
        import numpy as np

        from recipes.tabular import ngram_hashing
        from recipes.tabular.rows import readings
        from recipes.tabular.table import cells

        count = self.model_settings.gram_buckets
        found, times = [], []
        for source, table in zip(self.sources, self.tables, strict=True):
            sets, reads = readings(table, cells(table, source.splits["train"], self.wording))
            found += [ngram_hashing.buckets(*each, count) for each in sets]
            times += np.bincount(reads.ravel(), minlength=len(sets)).tolist()
        ngram_hashing.write(file, ngram_hashing.frequent(found, np.array(times, np.int64), count))

    def _write_linear(self, folder: Path) -> None:
        """Fit the linear parts, or take them from a run that has fitted them to the same rows; print what they show."""
        from recipes.tabular.fitted_before import fitted
        from recipes.tabular.linear import Held
        from recipes.tabular.table import cells, labels

        sizes, seed, rows, inputs = self.model_settings, self.data_settings.split_seed, [], []
        for source, table in zip(self.sources, self.tables, strict=True):
            seen, held_out = (cells(table, source.splits[split], self.wording) for split in ("train", "validation"))
            held = Held(held_out, labels(table, source.splits["validation"]), self._vectors_of(table, held_out))
            own = seen, labels(table, source.splits["train"]), held, self._vectors_of(table, seen)
            rows.append(own)
            inputs += [table.to_json(), *own]
        settings = sizes.trees, sizes.target_transform == "auto", sizes.refit
        fitted(folder, [*inputs, seed, settings], lambda target: self._fit_linear(target, rows, seed, settings))
        for line in json.loads((folder / REMARKS).read_text(encoding="utf-8")):
            print(f"note: {line}", flush=True)
        (folder / REMARKS).unlink()

    def _fit_linear(
        self,
        folder: Path,
        rows: list[tuple[Cells, np.ndarray, Held, np.ndarray | None]],
        seed: int,
        settings: tuple[bool, bool, bool],
    ) -> None:
        """Write the linear part of each table, how much each column matters, and remarks."""
        from recipes.tabular import importance, linear

        found, falls = [], {}
        for table, (seen, targets, held, vectors) in zip(self.tables, rows, strict=True):
            found.append(linear.fit(table, seen, targets, held, seed, vectors, *settings))
            falls[table.name] = importance.falls(table, found[-1], held.cells, held.targets, held.vectors, seed)
        linear.write(folder / LINEAR, found)
        importance.write(folder / IMPORTANCES, falls)
        remarks = [linear.remark(table, own) for table, own in zip(self.tables, found, strict=True)]
        text = json.dumps([line for line in remarks if line is not None])
        (folder / REMARKS).write_text(text, encoding="utf-8")

    def _write_baselines(self, file: Path) -> None:
        from recipes.tabular import baselines
        from recipes.tabular.table import cells, labels

        found: dict[str, list[baselines.Guesses]] = {}
        for source, table in zip(self.sources, self.tables, strict=True):
            names = [name for name, rows in source.splits.items() if name != "train" and len(rows)]
            asked = [cells(table, source.splits[name], self.wording) for name in names]
            seen, truth = cells(table, source.splits["train"], self.wording), labels(table, source.splits["train"])
            answers = baselines.guesses(table, seen, truth, asked, self.data_settings.split_seed)
            for name, own in zip(names, answers, strict=True):
                found.setdefault(name, []).append(own)
        baselines.write(file, found)

    def _print_cut_texts(self) -> None:
        from transformers import AutoConfig

        from recipes.tabular.text import cut_note

        assert self.assets is not None
        texts = {text for source, table in zip(self.sources, self.tables, strict=True)
                 for text in self._texts(table, source.splits["train"])}  # fmt: skip
        lengths = [len(ids) for ids in self.tokenizer(sorted(texts), verbose=False)["input_ids"]]
        longest = AutoConfig.from_pretrained(self.assets / "text_encoder").max_position_embeddings
        line = cut_note(lengths, self.data_settings.max_text_tokens, longest)
        if line is not None:
            print(f"note: {line}", flush=True)

    @property
    def _unfrozen_layers(self) -> int | None:
        """Upper layers of the text encoder that learn; None: all."""
        sizes = self.model_settings
        if self.stage == "finetune" and self.adapt == "frozen_text":
            return 0
        if sizes.unfrozen_layers is not None or sizes.text_encoder is None:
            return sizes.unfrozen_layers
        # A run of an older version has no such file, and trains six layers.
        return 0 if self.assets is not None and (self.assets / "text_encoder" / POOLING).is_file() else 6

    def _pooling(self) -> str:
        """How a text becomes one vector. A run of an older version has no file with it."""
        sizes = self.model_settings
        if sizes.text_pooling != "auto" or sizes.text_encoder is None:
            return "mean" if sizes.text_pooling == "auto" else sizes.text_pooling
        assert self.assets is not None
        file = self.assets / "text_encoder" / POOLING
        return json.loads(file.read_text(encoding="utf-8"))["pooling"] if file.is_file() else "cls"

    @functools.cached_property
    def _linear_encoder(self) -> TextEncoder:
        """The frozen text encoder for the linear part: from its folder, or from the trained model's weights."""
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel

        from recipes.tabular.model import TextEncoder
        from recipes.tabular.text import load_encoder

        source, assets = self.model_settings.text_encoder, self.assets
        assert source is not None and assets is not None
        if Path(source).is_dir() or not _has_weights(assets):
            bert = load_encoder(source)
        else:
            bert = AutoModel.from_config(AutoConfig.from_pretrained(assets / "text_encoder"), add_pooling_layer=False)
            file = next(own / WEIGHTS for own in (assets, assets.parent) if (own / WEIGHTS).is_file())
            tensors = {name.removeprefix("texts.bert."): value for name, value in load_file(file).items()}
            bert.load_state_dict({name: tensors[name] for name in bert.state_dict()})
        size, layers = bert.config.hidden_size, bert.config.num_hidden_layers
        return TextEncoder(bert.requires_grad_(False), size, self._pooling(), layers, 64, packs=True).eval()

    def _vectors_of(self, table: Table, seen: Cells) -> np.ndarray | None:
        """(texts, size) float32, of length 1, of the texts that the linear part reads; 0 for the others.

        None without a frozen text encoder of the user's.
        """
        import numpy as np
        import torch

        from recipes.tabular.linear import text_columns

        if self.model_settings.text_encoder is None or self._unfrozen_layers != 0:
            return None
        encoder = self._linear_encoder
        found = np.zeros((len(seen.texts), encoder.bert.config.hidden_size), np.float32)
        places = np.unique(seen.strings[:, text_columns(table)]).tolist()
        if not places:
            return found
        texts = [seen.texts[place] for place in places]
        ids = self.tokenizer(texts, truncation=True, max_length=self.data_settings.max_text_tokens)["input_ids"]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        for first in range(0, len(order), TEXTS_AT_A_TIME):
            own = order[first : first + TEXTS_AT_A_TIME]
            lengths = torch.tensor([len(ids[place]) for place in own])
            tokens = torch.zeros(len(own), int(lengths.max()), dtype=torch.long)
            for row, place in enumerate(own):
                tokens[row, : len(ids[place])] = torch.tensor(ids[place])
            with torch.no_grad():
                vectors = torch.nn.functional.normalize(encoder(tokens, lengths), dim=-1)
            found[[places[place] for place in own]] = vectors.numpy()
        return found

    def _texts(self, table: Table, frame: pd.DataFrame) -> list[str]:
        from recipes.tabular.table import cells

        return [*self.wording.targets(table), *cells(table, frame, self.wording).texts]

    @property
    def wording(self) -> Wording:
        """How cells are put into words."""
        from recipes.tabular.table import Wording

        return Wording(self.data_settings.wording, self.data_settings.numbers_as_text)

    @functools.cached_property
    def tables(self) -> list[Table]:
        """What was fitted."""
        found = self._read_tables(self.assets) if self.assets is not None else None
        return found if found is not None else self._fit()

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of `prepare`."""
        from recipes.tabular.text import load_tokenizer

        assert self.assets is not None
        return load_tokenizer(self.assets / "text_encoder")

    @functools.cached_property
    def kept_grams(self) -> np.ndarray | None:
        """(gram_buckets,) booleans of the grams that are read, or None."""
        from recipes.tabular import ngram_hashing

        is_read = self.model_settings.gram_buckets and self.assets is not None
        return ngram_hashing.read(self.assets / "grams.bin") if is_read and self.assets is not None else None

    @functools.cached_property
    def linear(self) -> list[Linear] | None:
        """The linear part of each table, or None."""
        from recipes.tabular import linear

        file = self.assets / LINEAR if self.assets is not None and self.model_settings.linear_part else None
        return linear.read(file) if file is not None and file.is_file() else None

    def data(self, split: str) -> Rows:
        """The rows of all tables, table after table."""
        frames = [source.splits[split] if split in source.splits else source.splits["train"].iloc[:0]
                  for source in self.sources]  # fmt: skip
        rows = self.rows(self.tables, frames, split)
        return self._with_baselines(rows, split) if self.baseline and split != "train" else rows

    def _with_baselines(self, rows: Rows, split: str) -> Rows:
        """The rows, with what the baselines say of them. Another file's rows have none."""
        from recipes.tabular import baselines

        found = baselines.read(self.assets / BASELINES, split) if self.assets is not None else None
        parts = [
            dataclasses.replace(part, baselines=own)
            if all(len(each) == len(part.labels) for each in own.values())
            else part
            for part, own in zip(rows.parts, found or [{}] * len(rows.parts), strict=True)
        ]
        return dataclasses.replace(rows, parts=parts)

    def rows(self, tables: list[Table], frames: list[pd.DataFrame], split: str | None = None) -> Rows:
        """Frames as the model reads them; None: rows of no split.

        Raises ConfigError where the setting `part` names a part that the model has not.
        """
        from recipes.tabular.column_kinds import without_missing
        from recipes.tabular.rows import encode

        if self.part != "all":
            self._check_part()
        settings = self.data_settings
        frames = [without_missing(frame, (settings.missing_values or "").split(",")) for frame in frames]
        return encode(
            tables, frames, self.wording, self.tokenizer, settings.max_text_tokens,
            settings.max_rows_per_table_per_epoch, self.kept_grams, self._linear_of(tables), split,
            self._vectors_of,
        )  # fmt: skip

    def _check_part(self) -> None:
        if self.linear is None:
            raise ConfigError(f"--part {self.part} came, and this model has no linear part: leave --part out.")
        if self.part == "trees" and not any(own.has_trees for own in self.linear):
            raise ConfigError(
                "--part trees came, and this model has no trees: they did not help its validation rows, or were off.\n"
                "Leave --part out, or type --part linear."
            )

    def _linear_of(self, tables: list[Table]) -> list[Linear] | None:
        if self.linear is None:
            return None
        by_name = {table.name: own for table, own in zip(self.tables, self.linear, strict=True)}
        return [by_name[table.name] for table in tables]

    def collate(self, examples: list[Example]) -> Batch:
        """The distinct texts of the rows, once each, and the rows' tokens as places among them."""
        from recipes.tabular.rows import collate

        return collate(examples, cast("int", self.tokenizer.pad_token_id or 0))

    # Model --------------------------------------------------------------------------------------------

    def model(self) -> TabularModel:
        """Fresh weights; a given text encoder with its own."""
        import torch
        from transformers import AutoConfig, AutoModel

        from recipes.tabular.model import Readout, TabularModel, TextEncoder, adapt
        from recipes.tabular.text import load_encoder, vocabulary_digest

        sizes = self.model_settings
        assert self.assets is not None
        if sizes.text_encoder is not None and (Path(sizes.text_encoder).is_dir() or not _has_weights(self.assets)):
            bert = load_encoder(sizes.text_encoder)
        else:
            bert = AutoModel.from_config(
                AutoConfig.from_pretrained(self.assets / "text_encoder"), add_pooling_layer=False
            )
            with torch.no_grad():
                # As drawn, a word weighs as much as its place, and texts of the same words hardly differ.
                bert.embeddings.word_embeddings.weight.mul_(5.0)
        num_layers = bert.config.num_hidden_layers
        given = sizes.text_encoder is not None
        unfrozen = num_layers if self._unfrozen_layers is None else self._unfrozen_layers
        # With all of its layers unfrozen, our own encoder's embeddings learn as well.
        frozen = max(0, num_layers - unfrozen)
        cache = Path(sizes.text_cache) if sizes.text_cache is not None else None
        # Without padding, sums have other last bits, and dropout draws others; with our own encoder, runs keep theirs.
        texts = TextEncoder(bert, sizes.hidden_size, self._pooling(), frozen, sizes.text_chunk_size, cache, packs=given)
        if given and not frozen:
            bert.embeddings.requires_grad_(False)
        # Classes of a small table are soon learned by heart, numbers are not.
        has_classes = any(table.task == "classification" for table in self.tables)
        gram_dropout = (0.7 if has_classes else 0.3) if sizes.gram_dropout is None else sizes.gram_dropout
        cell_dropout = (0.2 if has_classes else 0.0) if sizes.cell_dropout is None else sizes.cell_dropout
        model = TabularModel(
            texts, sizes.hidden_size, sizes.num_attention_heads, sizes.interaction_layers, sizes.numerical_fusion,
            sizes.dropout, sizes.final_norm, vocabulary_digest(self.tokenizer),
            Readout(sizes.gram_buckets, gram_dropout) if sizes.gram_buckets else None, cell_dropout,
        )  # fmt: skip
        if self.linear is not None:
            # The first step begins near the linear part. At zero, the layers below the heads would have no gradient.
            with torch.no_grad():
                for head in (model.classification, model.regression):
                    head.down.weight.mul_(0.01)
                    head.down.bias.zero_()
        if self.stage == "finetune":
            if self.adapt == "lora":
                lora = self.lora_settings
                adapt(model, lora.rank, lora.alpha, lora.dropout, {table.task for table in self.tables})
            elif self.adapt == "frozen_text":
                model.texts.bert.requires_grad_(False)
        return model

    def fresh_start(self) -> str | None:
        """Stage finetune needs weights to adapt: refused without, or told what stays as it was drawn."""
        if self.stage != "finetune":
            return None
        if self.model_settings.text_encoder is None:
            raise ConfigError(
                "--stage finetune came without --init_from, so there is no trained model to adapt.\n"
                "Type --init_from RUN/checkpoint-latest, or leave out --stage finetune to train from nothing."
            )
        frozen = " and stay as they were drawn under their adapters" if self.adapt == "lora" else ""
        return (
            "stage finetune without --init_from: only the text encoder is trained; fusion, interaction and heads "
            f"are random{frozen}. --init_from RUN/checkpoint-latest brings trained ones."
        )

    def inherit(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """The weights of another stage: adapters start fresh, or are merged where this stage has none."""
        import torch

        from recipes.tabular.tabstar import is_tabstar, renamed

        lacking = []
        network = cast("TabularModel", model)
        if is_tabstar(tensors):
            tensors = {"vocabulary": network.vocabulary, **renamed(tensors)}
        if "vocabulary" in tensors and not tensors["vocabulary"].equal(network.vocabulary.cpu()):
            raise CheckpointError(
                "--init_from has the weights of another vocabulary, and this run could not take that over.\n"
                "Type --init_from RUN/checkpoint-latest (a checkpoint, not final), and an --output_dir of its own."
            )
        with torch.no_grad():
            for name, value in model.state_dict(keep_vars=True).items():
                plain = name.replace(".layer.weight", ".weight").replace(".layer.bias", ".bias")
                kept = name.removesuffix(".weight").removesuffix(".bias") + ".layer." + name.rpartition(".")[2]
                if name in tensors:
                    found = tensors[name]
                elif plain in tensors:
                    found = tensors[plain]
                elif kept in tensors:
                    owner = name.rpartition(".")[0]
                    found = tensors[kept]
                    if name.endswith(".weight"):
                        low, high = tensors[f"{owner}.lora_a"], tensors[f"{owner}.lora_b"]
                        found = found + high @ low * (self.lora_settings.alpha / self.lora_settings.rank)
                else:
                    lacking += [] if ".lora_" in name else [name]
                    continue
                if found.shape != value.shape:
                    lacking.append(f"{name} {tuple(value.shape)} (there: {tuple(found.shape)})")
                else:
                    value.copy_(found.to(value.dtype))
        if lacking:
            raise CheckpointError(
                f"--init_from is of another model: it lacks {', '.join(lacking[:3])}"
                f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}.\n"
                "Give the same --preset and model settings as the run that wrote it."
            )

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, C) class scores, -inf where a table has fewer classes, and (B,) z; both in at least float32."""
        import torch

        extra, device = batch.extra, batch["cells"].device
        scores, z = model(
            extra["tokens"], extra["lengths"], batch["cells"], batch["numbers"], batch["mask"],
            extra["num_targets"], sent(extra["grams"], device), sent(extra["num_grams"], device), batch["reads"],
            batch["codes"], has_padding=not batch.on_host("mask").all(),
        )  # fmt: skip
        kind = torch.promote_types(scores.dtype, torch.float32)
        linear = batch["linear"].to(kind)
        return scores.to(kind) + linear, z.to(kind) + linear[:, 0]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Summed over rows: cross-entropy over a row's classes in nats, or the squared error of z."""
        import torch

        from recipes.tabular.table import FARTHEST_TARGET

        scores, z = self._scores(model, batch)
        labels, targets = batch["labels"], batch["targets"]
        classes = torch.nn.functional.cross_entropy(
            _masked(scores, batch["num_classes"]), labels, ignore_index=-100, reduction="sum"
        )
        known = torch.isfinite(targets)
        errors = (z - torch.where(known, targets, 0.0).clamp(-FARTHEST_TARGET, FARTHEST_TARGET)) ** 2
        numbers = torch.where(known, errors, 0.0).sum()
        # Both heads are in every graph: processes may hold tables of different tasks in one step.
        return Loss(classes + numbers + 0.0 * (scores.sum() + z.sum()))

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Probabilities of the classes, or the number in the target's own unit, with the truth."""
        import math

        scores, z = self._scores(model, batch)
        probabilities = _masked(scores, batch["num_classes"]).softmax(-1).tolist()
        numbers = z.tolist()
        linear = batch["linear"].float()
        simple = _masked(linear, batch["num_classes"]).softmax(-1).tolist()
        rows: list[Prediction] = []
        for place, (name, count, mean, std) in enumerate(batch.extra["tables"]):
            if count:
                label = int(batch["labels"][place])
                target = label if label >= 0 else None
                rows.append({"table": name, "probabilities": probabilities[place][:count], "target": target})
            else:
                z = float(batch["targets"][place])
                target = z * std + mean if math.isfinite(z) else None
                rows.append({"table": name, "predicted": numbers[place] * std + mean, "target": target})
            if self.linear is not None:
                own = simple[place][:count] if count else float(linear[place, 0]) * std + mean
                rows[-1]["without_transformer"] = own
            for other, guess in batch.extra["baselines"][place].items():
                rows[-1][other] = guess if count else guess * std + mean
            if self.part in PARTS:
                rows[-1]["probabilities" if count else "predicted"] = rows[-1][PARTS[self.part]]
        return rows

    def score(self, rows: list[Prediction]) -> dict[str, float]:
        """AUROC, R2 and others per table, and `score`: the mean of AUROC or R2 over the tables.

        `score_without_transformer` is the same of the linear part, with its trees, alone; `score_linear_part` and
        `score_trees_part` are those of the two alone; `score_linear` and `score_boosting` are those of the baselines.
        """
        from recipes.tabular.score import score

        return score(rows)

    def remark(self, step: int, values: Mapping[str, float]) -> str | None:
        """With baselines, which of the models to use, after each evaluation."""
        from recipes.tabular.baselines import verdict

        return verdict(values)

    def figures(self, rows: list[Prediction]) -> list[Figure]:
        """What the columns are worth, calibration and confusion, predicted against true; of up to four tables each."""
        from recipes.tabular import importance
        from recipes.tabular.score import figures

        falls = importance.read(self.assets / IMPORTANCES) if self.assets is not None else {}
        asked = {row["table"]: falls.get(row["table"], {}) for row in rows}
        return figures(rows, {table.name: table.classes for table in self.tables}) + importance.tables(asked)

    # Use ----------------------------------------------------------------------------------------------

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Request:
        """Rows to predict."""

        input: Path
        """CSV, TSV, parquet, JSON lines or Excel file with the columns of the training; the target may be absent."""
        output: Path = Path("predictions.csv")
        """File to write (.csv, .tsv, .parquet, .jsonl, .xlsx): the same cells unchanged, with the predictions."""
        table: str | None = None
        """Which of the model's tables the rows are of, where it knows several."""

    def answer(self, model: nn.Module, request: Request) -> str:
        """Write the rows with their predictions; says what was written."""
        from recipes.tabular.files import check_output, read_frame, write_predictions

        check_output(request.output)
        by_name = {table.name: table for table in self.tables}
        name = request.table or (next(iter(by_name)) if len(by_name) == 1 else None)
        if name not in by_name:
            came = "no table was named" if name is None else f"there is no table {name!r}"
            raise DataError(
                f"The model knows several tables, and {came}: type --table with one of {', '.join(by_name)}."
            )
        table = by_name[name]
        frame = read_frame(request.input, table.unread, table.target)
        rows = self.predict_frame(model, table, frame, shows_progress=True)
        twice = [name for name in frame if name == "prediction" or name.startswith("probability ")]
        # What the file has under these names stays, and may be a feature of the model.
        new, times = " (new)" if twice else "", 1
        while new and any(name.endswith(new) for name in frame):
            times += 1
            new = f" (new {times})"
        added: dict[str, list[object]] = {}
        if table.task == "classification":
            chances = [row["probabilities"] for row in rows]
            added[f"prediction{new}"] = [table.classes[max(range(len(own)), key=own.__getitem__)] for own in chances]
            for place, label in enumerate(table.classes):
                added[f"probability {label}{new}"] = [round(own[place], 6) for own in chances]
        else:
            added[f"prediction{new}"] = [row["predicted"] for row in rows]
        write_predictions(request.input, request.output, added)
        known = {
            metric: value
            for metric, value in self.score(rows).items()
            if value == value and not metric.startswith("score")
        }
        scored = "; ".join(f"{metric} {value:.4f}" for metric, value in known.items())
        notes = [f"note: {line}" for line in frame.attrs["notes"]]
        if new:
            notes.append(f"note: the file has {twice[0]!r}, so the columns added end with{new}")
        return "\n".join(
            [*notes, f"{len(frame):,} rows with predictions: {request.output}", *([scored] if scored else [])]
        )

    def predict_frame(
        self, model: nn.Module, table: Table, frame: pd.DataFrame, shows_progress: bool = False,
        split: str | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """One row of `predict` for each row of the frame; with `split`, for rows of this split."""
        import torch

        from runner.parts.counting import counted

        data = self.rows([table], [frame], split)
        # Large, so that many texts are of one length, and bounded for a wide table.
        batch_size = max(1, min(1024, 16384 // (len(table.classes) + len(frame.columns))))
        device = next(model.parameters()).device
        rows: list[Prediction] = []
        with torch.no_grad(), cast("TabularModel", model).texts.keeping_nothing():
            starts = range(0, len(data), batch_size)
            for first in counted(starts, len(starts), "prediction", "batches", shows_progress):
                batch = self.collate(data.__getitems__(list(range(first, min(first + batch_size, len(data))))))
                batch.tensors = {name: tensor.to(device) for name, tensor in batch.tensors.items()}
                rows += self.predict(model, batch)
        return rows


def _has_weights(assets: Path) -> bool:
    """Whether a checkpoint's weights lie beside the assets: the encoder's own are then not asked for."""
    return any((folder / WEIGHTS).is_file() for folder in (assets, assets.parent))


def _masked(scores: Tensor, num_classes: Tensor) -> Tensor:
    """Scores with -inf where a row's table has fewer classes; a regression counts one, so that nothing is NaN."""
    import torch

    there = torch.arange(scores.shape[1], device=scores.device) < num_classes.clamp(min=1)[:, None]
    return scores.masked_fill(~there, float("-inf"))
