"""The settings of tabular, by group: data, model, adapters."""

from __future__ import annotations

import dataclasses
from typing import Literal

from runner.parts.setting_types import AtLeast0, AtLeast1, Commas, Positive, ShareBelow1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The tables, and how they are put into words."""

    train: str | None = None
    """CSV, TSV, parquet or Excel file of your own; none: the corpus, or the embedded demo."""
    target: str | None = None
    """Column of that file to predict."""
    test: str | None = None
    """File with the same columns, for the test split."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """What the target is; auto: a regression where it is more than ten different numbers."""
    kinds: Commas | None = None
    """Columns that are taken for the wrong thing: "zip=categorical,comment=text" (numeric, boolean, date, categorical,
    text, id; ids are left out; decimal_comma, decimal_point, day_first, month_first)."""
    missing_values: str | None = None
    """Cells that are missing in every column, the target too, with commas between them: "n.d.,-999". Features miss the
    usual ones anyway (empty, NA, n/a, None, ?); in a target of words, these are classes unless listed here."""
    corpus: str | None = None
    """Folder with a manifest.json (name, file, target, task) and the tables it names."""
    tables: Commas | None = None
    """Names of the corpus's tables to use, with commas between them; none: all."""
    exclude_tables: Commas | None = None
    """Names of the corpus's tables to leave out."""
    validation_fraction: ShareBelow1 = 0.1
    """Share of each table's training rows that training is judged by (at most 1000 rows)."""
    max_rows_per_table_per_epoch: AtLeast1 = 2048
    """Rows of one table in an epoch; a larger table goes on in the next one."""
    max_features: AtLeast1 = 200
    """Columns of a table that are used; of more, so many are drawn once and kept."""
    max_text_tokens: AtLeast1 = 128
    """Longest text of a cell, in tokens; longer ones are cut."""
    wording: Literal["short", "tabstar"] = "short"
    """How a cell is put into words: "column: value", or TabSTAR's "Predictive Feature: column ..."."""
    numbers_as_text: bool = False
    """Write a number's quantile range into its text (TabSTAR v1.0); without, its text is the column's name alone."""
    split_seed: AtLeast0 = 0
    """Seed of the validation rows, of the features drawn, and of the demo."""
    demo_rows: AtLeast1 = 500
    """Embedded demo: rows of each of its three tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network."""

    text_encoder: str | None = None
    """Folder (or hub id) of a BERT, such as intfloat/e5-small-v2; none: a small one of ours, from nothing."""
    unfrozen_layers: AtLeast0 | None = None
    """Upper layers of the text encoder that learn; none: all of ours, and of a given one none."""
    text_learning_rate_scale: Positive = 0.05
    """The learning rate of the unfrozen layers of a given text encoder, as a share of learning_rate: they are trained
    already, and the rest begins from nothing."""
    text_layers: AtLeast1 = 2
    """Layers of our own text encoder."""
    text_hidden_size: AtLeast1 = 128
    """Width of our own text encoder."""
    vocab_size: AtLeast1 = 8192
    """Tokens of our own text encoder."""
    text_pooling: Literal["auto", "cls", "mean"] = "auto"
    """How a text becomes one vector; auto: as the given encoder's 1_Pooling/config.json says, else its
    first token; the mean with ours."""
    text_chunk_size: AtLeast1 = 64
    """Texts encoded at a time; they are sorted by length, so that few are padded; with a given encoder on a CPU,
    none."""
    text_cache: str | None = None
    """Folder that keeps what the frozen layers make of each text, for later runs; none: in memory, for this run,
    2 GiB at most."""
    hidden_size: AtLeast1 = 128
    """Width of fusion and interaction."""
    num_attention_heads: AtLeast1 = 4
    """Heads of the interaction."""
    interaction_layers: AtLeast1 = 3
    """Layers in which the targets and cells of a row see each other."""
    numerical_fusion: Literal["sum", "transformer"] = "sum"
    """How a number joins its text: a sum (TabSTAR v1.1), or a layer over the two (v1.0; slower)."""
    final_norm: bool = True
    """Normalise what the heads read; TabSTAR does not, and from nothing learns much slower so."""
    dropout: ShareBelow1 = 0.1
    """Share dropped in every part."""
    cell_dropout: ShareBelow1 | None = None
    """Share of a row's cells that the interaction does not see in training; none: 0.2, and 0 where every target is a
    number."""
    linear_part: bool = True
    """Fit a linear model on n-grams and numbers before the first step; the transformer learns what it does not know."""
    trees: bool = True
    """Grow boosted trees on the numbers and on what the linear part makes of each cell, and mix them with it by the
    share that does best on rows that neither has seen."""
    target_transform: Literal["auto", "none"] = "auto"
    """auto: of a skewed number, fit its logarithm or its ranks too, and mix the two fits by the share that does best
    on rows that neither has seen; none: its own scale alone."""
    refit: bool = True
    """Fit linear part and trees again, as they were chosen, to training and validation rows: for predictions and test
    rows. Validation scores stay those of the fit to training rows."""
    gram_buckets: AtLeast0 = 0
    """Buckets of words, letter groups and bins of numbers that are scored directly, beside the transformer; 0: none, as
    in TabSTAR."""
    gram_dropout: ShareBelow1 | None = None
    """Share of them that is dropped in training; none: 0.7, and 0.3 where every target is a number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters of stage finetune."""

    rank: AtLeast1 = 32
    """Rank of the adapters."""
    alpha: Positive = 64.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: ShareBelow1 = 0.1
    """Dropout of the adapters' input, as a share."""
