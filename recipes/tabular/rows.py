"""Rows of many tables as the model reads them, and their micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recipes.tabular import ngram_hashing
from recipes.tabular.baselines import Guesses
from recipes.tabular.linear import Linear, log_softmax, readings
from recipes.tabular.order import TableOrder
from recipes.tabular.table import CHANNELS, Cells, Table, Wording, cells, labels
from runner.recipe import Batch

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of one table."""

    table: Table
    targets: np.ndarray
    """(C,) the texts of the target tokens, as places among all texts."""
    codes: np.ndarray
    """(C, 32) directions of the target tokens, float32."""
    strings: np.ndarray
    """(rows, columns) the texts of the cells, as places among all texts."""
    reads: np.ndarray
    """(rows, columns) the sets of n-grams of the cells, as places among all sets."""
    numbers: np.ndarray
    """(rows, columns, 6), float32."""
    labels: np.ndarray
    """(rows,) the class, or z of a number."""
    linear: np.ndarray
    """(rows, C) scores of the linear part, float32; zeros where there is none."""
    baselines: Guesses = dataclasses.field(default_factory=dict)
    """What the baselines say of these rows, by their names."""
    alone: Guesses = dataclasses.field(default_factory=dict)
    """What parts of the linear part say of these rows, by their names: "linear_part" and "trees_part"."""

    def guesses(self, place: int) -> dict[str, float | list[float]]:
        """What each baseline and each part says of a row: probabilities of the classes, or z."""
        return {name: own[place].tolist() for name, own in {**self.alone, **self.baselines}.items()}


@dataclasses.dataclass(frozen=True)
class Example:
    """One row: a place in the rows."""

    rows: Rows
    part: int
    place: int


@dataclasses.dataclass(frozen=True)
class Rows(Sequence):
    """All rows of a split, table after table."""

    parts: list[Part]
    tokens: list[np.ndarray]
    """Token ids of each distinct text."""
    grams: list[np.ndarray]
    """Buckets of each distinct set of n-grams, int64; the first set is empty."""
    most_rows: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each table."""
        return tuple(len(part.labels) for part in self.parts)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Several rows at once."""
        starts = np.cumsum([0, *self.sizes])
        parts = np.searchsorted(starts, indices, side="right") - 1
        return [Example(self, int(part), int(index - starts[part])) for part, index in zip(parts, indices, strict=True)]

    def order(self, batch_size: int, micro_batch_size: int, seed: int) -> TableOrder:
        """Rows of one table in each lane, the micro-batches of all tables shuffled together."""
        return TableOrder(self.sizes, batch_size, micro_batch_size, seed, self.most_rows)


def encode(
    tables: Sequence[Table],
    frames: Sequence[pd.DataFrame],
    wording: Wording,
    tokenizer: PreTrainedTokenizerFast,
    most_tokens: int,
    most_rows: int,
    read_buckets: np.ndarray | None,
    linear: Sequence[Linear] | None = None,
    split: str | None = None,
    vectors_of: Callable[[Table, Cells], np.ndarray | None] = lambda table, cells: None,
) -> Rows:
    """Put frames into token ids and numbers; every distinct text is tokenized once.

    `read_buckets` (buckets,) holds which buckets of n-grams the model reads; None: it reads none.
    `linear` holds the linear part of each table, `vectors_of` gives it the vectors of the cells' texts. Rows of the
    splits "train" and "validation" have scores of fits that did not see them.
    """
    places: dict[str, int] = {}
    sets: dict[tuple[str, str | int] | None, int] = {None: 0}
    parts = []
    for place, (table, frame) in enumerate(zip(tables, frames, strict=True)):
        own = cells(table, frame, wording)
        ids = np.array([places.setdefault(text, len(places)) for text in own.texts], dtype=np.int64)
        texts = wording.targets(table)
        targets = [places.setdefault(text, len(places)) for text in texts]
        strings = ids[own.strings] if len(frame) else own.strings
        codes = np.stack([ngram_hashing.code(text) for text in texts])
        reads = np.zeros_like(strings)
        if read_buckets is not None:
            own_sets, cell_sets = readings(table, own)
            new = np.array([sets.setdefault(each, len(sets)) for each in own_sets], dtype=np.int64)
            reads = new[cell_sets] if len(frame) else reads
        scores, alone = np.zeros((len(frame), len(targets)), np.float32), {}
        if linear is not None and len(frame):
            fitted = linear[place]
            # Where the rows are not those of the fit, nothing was held out for them.
            if split == "train" and len(fitted.held_out) == len(frame):
                scores = fitted.held_out
            else:
                fitted = fitted if split == "validation" or fitted.again is None else fitted.again
                each = fitted.parts(table, own, vectors_of(table, own) if fitted.reads_vectors(table) else None)
                scores = each["all"]
                alone["linear_part"] = as_guess(table, each["linear"])
                if any(other.has_trees for other in linear):
                    alone["trees_part"] = as_guess(table, each.get("trees", each["linear"]))
        parts.append(
            Part(
                table, np.array(targets), codes, strings, reads, own.numbers, labels(table, frame), scores, alone=alone
            )
        )  # fmt: skip
    encoded = tokenizer(list(places), truncation=True, max_length=most_tokens)["input_ids"] if places else []
    read: list[np.ndarray] = [np.zeros(0, np.int64)]
    for each in list(sets)[1:]:
        assert each is not None and read_buckets is not None
        found = ngram_hashing.buckets(*each, len(read_buckets))
        read.append(found[read_buckets[found]])
    return Rows(parts, [np.asarray(ids, dtype=np.int32) for ids in encoded], read, most_rows)


def as_guess(table: Table, scores: np.ndarray) -> np.ndarray:
    """(rows, classes) probabilities, or (rows,) z, of (rows, outputs) scores."""
    return np.exp(log_softmax(scores)) if table.task == "classification" else scores[:, 0]


def collate(examples: list[Example], pad: int) -> Batch:
    """A micro-batch of rows; where they are of several tables, the shorter rows are padded and masked."""
    import torch

    rows = examples[0].rows
    parts = [rows.parts[example.part] for example in examples]
    length = max(len(part.targets) + part.strings.shape[1] for part in parts)
    most_targets = max(len(part.targets) for part in parts)
    ids = np.full((len(examples), length), -1, np.int64)
    reads = np.zeros((len(examples), length), np.int64)
    numbers = np.zeros((len(examples), length, CHANNELS), np.float32)
    linear = np.zeros((len(examples), most_targets), np.float32)
    codes = np.zeros((len(examples), most_targets, ngram_hashing.CODE_SIZE), np.float32)
    classes = np.full(len(examples), -100, np.int64)
    targets = np.full(len(examples), np.nan, np.float32)
    counts = np.zeros(len(examples), np.int64)
    for row, (example, part) in enumerate(zip(examples, parts, strict=True)):
        first, last = len(part.targets), len(part.targets) + part.strings.shape[1]
        ids[row, :first], ids[row, first:last] = part.targets, part.strings[example.place]
        numbers[row, first:last] = part.numbers[example.place]
        reads[row, first:last] = part.reads[example.place]
        codes[row, :first] = part.codes
        linear[row, :first] = part.linear[example.place]
        label = part.labels[example.place]
        if part.table.task == "classification":
            counts[row] = first
            classes[row] = int(label) if label >= 0 else -100
        else:
            targets[row] = label
    mask = ids >= 0
    distinct = np.unique(ids[mask])
    distinct = distinct[np.argsort([len(rows.tokens[place]) for place in distinct], kind="stable")]
    lengths = np.array([len(rows.tokens[place]) for place in distinct])
    tokens = np.full((len(distinct), lengths.max()), pad, np.int64)
    for row, place in enumerate(distinct):
        tokens[row, : lengths[row]] = rows.tokens[place]
    local = np.zeros(int(distinct.max()) + 1, np.int64)
    local[distinct] = np.arange(len(distinct))
    sets, of_tokens = np.unique(reads, return_inverse=True)
    own = [rows.grams[place] for place in sets]
    tensors = {
        "cells": torch.from_numpy(np.where(mask, local[np.where(mask, ids, distinct[0])], 0)),
        "numbers": torch.from_numpy(numbers),
        "mask": torch.from_numpy(mask),
        "reads": torch.from_numpy(of_tokens.reshape(reads.shape)),
        "codes": torch.from_numpy(codes),
        "linear": torch.from_numpy(linear),
        "labels": torch.from_numpy(classes),
        "targets": torch.from_numpy(targets),
        "num_classes": torch.from_numpy(counts),
    }
    sets, places = np.unique(reads, return_inverse=True)
    own = [rows.grams[place] for place in sets]
    extra = {
        "grams": torch.from_numpy(np.concatenate(own)),
        "num_grams": torch.tensor([len(each) for each in own]),
        "tokens": tokens,
        "lengths": lengths,
        "num_targets": most_targets,
        "tables": [(part.table.name, len(part.table.classes), part.table.mean, part.table.std) for part in parts],
        "baselines": [part.guesses(example.place) for part, example in zip(parts, examples, strict=True)],
    }
    weight = float((classes >= 0).sum() + np.isfinite(targets).sum())
    return Batch(tensors, weight=weight, tokens=int(lengths.sum()), extra=extra)
