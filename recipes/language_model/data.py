"""Packing: the tokens of documents become rows, by index or as a stream that can continue from any cursor."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from recipes.language_model import text, tokens
from recipes.language_model.repeated_words import RepeatedWords
from runner.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from recipes.language_model.settings import DataSettings
    from recipes.language_model.text import Corpus, Passage


Cursor = list[int]
"""[epoch, window, row]: how far a lane has read."""


@dataclasses.dataclass(frozen=True)
class PackedRow:
    """Up to max_seq_length + 1 tokens: all but the last are inputs, all but the first are targets."""

    ids: np.ndarray
    """int32."""
    documents: np.ndarray
    """The number of the document that each token belongs to. int32."""


@dataclasses.dataclass(frozen=True)
class Packer:
    """Turns passages into rows."""

    tokenizer: PreTrainedTokenizerFast
    settings: DataSettings

    @functools.cached_property
    def words(self) -> RepeatedWords | None:
        """The words that were tokenised; None where the tokenizer does not cut text at words."""
        return RepeatedWords.of(self.tokenizer.backend_tokenizer)

    def tokenize(self, passages: list[Passage]) -> list[np.ndarray]:
        """Token ids of each passage, with BOS and EOS where documents begin and end.

        Some trained models have no such token, as Qwen2.5 has no BOS: none is added then.
        """
        if self.settings.chat_template:
            # The template marks where a conversation begins and ends.
            return tokens.encode_conversations(self.tokenizer, [passage.text for passage in passages])
        found = []
        bos = self.tokenizer.bos_token_id if self.settings.add_bos else None
        eos = self.tokenizer.eos_token_id if self.settings.add_eos else None
        texts = [passage.text for passage in passages]
        encoded = tokens.encode(self.tokenizer, texts) if self.words is None else self.words.encode(texts)
        for passage, ids in zip(passages, encoded, strict=True):
            parts = [ids]
            if passage.starts and bos is not None:
                parts.insert(0, np.array([bos], np.int32))
            if passage.ends and eos is not None:
                parts.append(np.array([eos], np.int32))
            found.append(np.concatenate(parts))
        return found

    def rows(self, passages: list[Passage]) -> Sequence[PackedRow]:
        """All tokens of the passages, in rows. Takes time linear in the tokens."""
        ids = self.tokenize(passages)
        if self.settings.packing == "concat":
            return Concatenated.of(ids, self.settings.max_seq_length, self.settings.stride)
        chunks = self._chunks(ids)
        if self.settings.packing == "document":
            return [PackedRow(chunk, np.full(len(chunk), number, np.int32)) for number, chunk in enumerate(chunks)]
        return best_fit(chunks, self.settings.max_seq_length + 1)

    def _chunks(self, ids: list[np.ndarray]) -> list[np.ndarray]:
        """Passages in parts that fit into a row. Each part starts with the last token of the part before."""
        length = self.settings.max_seq_length
        # A single token has no target.
        return [each[at : at + length + 1] for each in ids for at in range(0, max(1, len(each) - 1), length)]


@dataclasses.dataclass(frozen=True)
class Concatenated(Sequence[PackedRow]):
    """Documents joined and cut into rows, which are views of one array.

    Neighbouring rows share a token: where the stride is the length, every token but the first is a target once.
    """

    ids: np.ndarray
    documents: np.ndarray
    length: int
    stride: int

    @classmethod
    def of(cls, ids: list[np.ndarray], length: int, stride: int | None) -> Concatenated:
        """Join the tokens of passages."""
        # Parts of a long document that were shuffled are separate documents.
        numbers = np.arange(1, len(ids) + 1, dtype=np.int32)
        sizes = [len(each) for each in ids]
        joined = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return cls(joined, np.repeat(numbers, sizes).astype(np.int32), length, stride or length)

    def __len__(self) -> int:
        targets = len(self.ids) - 1
        return 0 if targets < 1 else 1 + max(0, -(-(targets - self.length) // self.stride))

    @overload
    def __getitem__(self, index: int) -> PackedRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[PackedRow]: ...

    def __getitem__(self, index: int | slice) -> PackedRow | list[PackedRow]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.stride
        return PackedRow(self.ids[first : first + self.length + 1], self.documents[first : first + self.length + 1])


def best_fit(chunks: list[np.ndarray], capacity: int) -> list[PackedRow]:
    """Chunks in rows of at most `capacity` tokens: the longest chunk first, each into the row that it fills best.

    O(n log n). Source: best-fit decreasing, as in Ding et al. 2024, arXiv 2404.10830.
    """
    # Free tokens of the rows that are not full, in ascending order, and the numbers of these rows.
    free: list[int] = []
    open_rows: list[int] = []
    rows: list[list[int]] = []
    for number in sorted(range(len(chunks)), key=lambda each: -len(chunks[each])):
        size = len(chunks[number])
        place = bisect.bisect_left(free, size)
        if place == len(free):
            left, row = capacity - size, len(rows)
            rows.append([number])
        else:
            left, row = free.pop(place) - size, open_rows.pop(place)
            rows[row].append(number)
        if left > 1:
            place = bisect.bisect_left(free, left)
            free.insert(place, left)
            open_rows.insert(place, row)
    return [
        PackedRow(
            np.concatenate([chunks[number] for number in row]),
            np.concatenate([np.full(len(chunks[number]), number, np.int32) for number in row]),
        )
        for row in rows
    ]


def _places(cursor: Cursor | None) -> list[int]:
    """Epoch, window and offset of a cursor; zeros for none. Raises ValueError for a cursor of another form."""
    if cursor is None:
        return [0, 0, 0]
    if not isinstance(cursor, list) or len(cursor) != 3 or any(type(part) is not int or part < 0 for part in cursor):
        raise ValueError("it is not an epoch, a window and an offset, three whole numbers")
    return cursor


@dataclasses.dataclass(frozen=True)
class PackedStream:
    """Rows that are read, tokenised and packed during training.

    A lane reads windows of its share of the source. Documents and rows are shuffled within a window. If reading can
    start anywhere in the source, its pieces are shuffled too. The content of a window depends on the seed and the
    cursor alone, so a resumed run makes the window again.
    """

    corpus: Corpus
    packer: Packer
    examples_per_epoch: int | None
    """Number of rows, estimated from a sample; None where the size of the source is not known."""

    def read(self, lane: int, num_lanes: int, seed: int, cursor: Cursor | None) -> Iterator[tuple[PackedRow, Cursor]]:
        """The rows of a lane, epoch after epoch, each with the cursor that follows it."""
        epoch, window, offset = _places(cursor)
        while True:
            is_empty, is_beyond = True, True
            for number, passages in self._windows(lane, num_lanes, seed, epoch, window):
                rows = self._rows(passages, f"{seed}/rows/{lane}/{epoch}/{number}")
                if number == window:
                    is_beyond = offset > len(rows)
                for place in range(offset if number == window else 0, len(rows)):
                    is_empty = False
                    yield rows[place], [epoch, number, place + 1]
            if is_empty and window == 0 and offset == 0:
                return
            if is_beyond:
                place = f"row {offset} of window {window}"
                print(
                    f"warning: lane {lane} was at {place}, after the end of the data: it begins its next epoch.",
                    flush=True,
                )
            epoch, window, offset = epoch + 1, 0, 0

    def _rows(self, passages: list[Passage], name: str) -> list[PackedRow]:
        packed = self.packer.rows(passages)
        rows = [packed[place] for place in range(len(packed))]
        if self.packer.settings.shuffle_window:
            random.Random(name).shuffle(rows)
        return [row for row in rows if len(row.ids) > 1]

    def _windows(
        self, lane: int, num_lanes: int, seed: int, epoch: int, first: int
    ) -> Iterator[tuple[int, list[Passage]]]:
        """(number, passages) of a lane's windows in an epoch, starting with window `first`."""
        settings = self.packer.settings
        if not self.corpus.can_seek:
            yield from self._sequential(lane, num_lanes, seed, epoch, first)
            return
        # A small source needs small pieces, so that each lane gets some. With many lanes, each lane reads less.
        share = settings.shuffle_window // num_lanes
        size = min(text.PIECE, max(1024, self.corpus.size // (8 * num_lanes)), max(1 << 16, share))
        pieces = self.corpus.pieces("train", size)[lane::num_lanes]
        if settings.shuffle_window:
            random.Random(f"{seed}/pieces/{lane}/{epoch}").shuffle(pieces)
        together = max(1, share // size)
        for number in range(first, -(-len(pieces) // together)):
            mine = pieces[number * together : (number + 1) * together]
            passages = [self.corpus.read_piece("train", piece) for piece in mine]
            yield number, self._shuffled(passages, f"{seed}/documents/{lane}/{epoch}/{number}")

    def _sequential(
        self, lane: int, num_lanes: int, seed: int, epoch: int, first: int
    ) -> Iterator[tuple[int, list[Passage]]]:
        """A window is a fixed number of documents. Of each, the lane takes every num_lanes-th."""
        # Parts of a long text are as large as many documents.
        span = (16 if self.corpus.is_long_text else 1024) * num_lanes
        number, mine = first, []
        for place, passage in self.corpus.sequence("train", first * span):
            while place // span > number:
                yield number, self._shuffled([[each] for each in mine], f"{seed}/documents/{lane}/{epoch}/{number}")
                number, mine = number + 1, []
            # Each group of num_lanes passages starts with another lane, because every tenth passage may be validation.
            if (place + place // num_lanes) % num_lanes == lane:
                mine.append(passage)
        yield number, self._shuffled([[each] for each in mine], f"{seed}/documents/{lane}/{epoch}/{number}")

    def _shuffled(self, groups: list[list[Passage]], name: str) -> list[Passage]:
        """The passages in another order, if all of them are complete documents."""
        flat = [passage for group in groups for passage in group]
        if not self.packer.settings.shuffle_window or not all(each.starts and each.ends for each in flat):
            return flat
        random.Random(name).shuffle(flat)
        return flat


def estimated_rows(corpus: Corpus, packer: Packer) -> int | None:
    """Rows of an epoch, estimated from eight pieces of the training split; None where its size is not known."""
    if not corpus.can_seek:
        return None
    pieces = corpus.pieces("train", 1 << 16)
    chosen = pieces[:: max(1, len(pieces) // 8)][:8]
    rows = sum(len(packer.rows(corpus.read_piece("train", piece))) for piece in chosen)
    size = sum(end - first for _, first, end in chosen)
    total = sum(end - first for _, first, end in pieces)
    return max(1, round(rows * total / max(1, size)))


def validation_rows(corpus: Corpus, packer: Packer, whole: bool) -> list[PackedRow]:
    """The rows of the validation split. They are the same for any packing of the training split."""
    plain = dataclasses.replace(packer, settings=dataclasses.replace(packer.settings, packing="concat", stride=None))
    chosen: list[Passage] = []
    size = 0
    for passage in corpus.passages("train" if whole else "validation"):
        chosen.append(passage)
        size += len(passage.text)
        if size >= text.MOST_VALIDATION:
            break
    rows = plain.rows(chosen)
    return [rows[place] for place in range(len(rows))]


def training_rows(corpus: Corpus, packer: Packer) -> Sequence[PackedRow]:
    """Every row of the training split, by index. Raises DataError where there is none."""
    rows = packer.rows(list(corpus.passages("train")))
    if not isinstance(rows, Concatenated):
        # A single token has no target.
        rows = [row for row in rows if len(row.ids) > 1]
    if not len(rows):
        raise DataError("The training split holds no two tokens: check --data.source and --data.validation_fraction.")
    return rows
