"""The words and letter groups of a cell, or the place of its number, as buckets: what a linear model would read.

Each gram of a text counts twice, alone and together with its column, so that tables share what they have in common
and keep what they have not. Sources: Weinberger et al. 2009, arXiv 0902.2206 (hashing); Bojanowski et al. 2017,
arXiv 1607.04606 (words as bags of their letters' groups).
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

WORD = re.compile(r"\w+|[^\w\s]")
CODE_SIZE = 32
LETTERS = (3, 4, 5)
BINS, MISSING = 20, 20
MOST_WORDS, MOST_SPELT_WORDS = 512, 48
# A gram of fewer training cells says nothing about other rows, and tells the training rows apart.
FEWEST_CELLS = 3


def grams(column: str, value: str) -> list[str]:
    """The distinct grams of a cell: words, pairs of words, groups of letters, and the whole value."""
    words = WORD.findall(value.lower())[:MOST_WORDS]
    found = [f"w {word}" for word in words]
    found += [f"p {first} {second}" for first, second in zip(words, words[1:], strict=False)]
    for word in words[:MOST_SPELT_WORDS]:
        spelt = f"<{word}>"
        found += [spelt[place : place + size] for size in LETTERS for place in range(len(spelt) - size + 1)]
    found = list(dict.fromkeys(found))
    return [*found, *(f"{column}\0{gram}" for gram in found), f"{column}\0={value}"]


def number_grams(column: str, place: int) -> list[str]:
    """The grams of a number in the given twentieth of its column, coarse to fine; of a missing one, that it is."""
    if place == MISSING:
        return [f"{column}\0missing"]
    return [f"{column}\0{parts} {place * parts // BINS}" for parts in (4, 10, 20)]


def places(numbers: np.ndarray) -> np.ndarray:
    """(...,) int64: the twentieth of each number by its channels (..., 6), or MISSING."""
    twentieth = np.clip((numbers[..., 2] * BINS).astype(np.int64), 0, BINS - 1)
    return np.where(numbers[..., 4] > 0, MISSING, twentieth)


@functools.lru_cache(maxsize=65536)
def buckets(column: str, value: str | int, count: int) -> np.ndarray:
    """(grams,) int64: the bucket of each gram of a text, or of a number by its place."""
    found = grams(column, value) if isinstance(value, str) else number_grams(column, value)
    return np.array([zlib.crc32(gram.encode()) % count for gram in found], dtype=np.int64)


def code(target: str) -> np.ndarray:
    """(32,) float32: the direction of a target token, drawn from its text, so that no two classes share one."""
    seed = np.frombuffer(blake2b(target.encode(), digest_size=16).digest(), np.uint32)
    return np.random.default_rng(seed).normal(scale=0.3, size=CODE_SIZE).astype(np.float32)


def frequent(grams_of: Sequence[np.ndarray], cells: np.ndarray, count: int) -> np.ndarray:
    """(count,) booleans: the buckets that are in enough training cells; set i of grams is in `cells[i]` of them."""
    found = np.zeros(count, np.int64)
    for own, number in zip(grams_of, cells.tolist(), strict=True):
        found[np.unique(own)] += number
    return found >= FEWEST_CELLS


def write(file: Path, kept: np.ndarray) -> None:
    """One bit per bucket."""
    file.write_bytes(np.packbits(kept).tobytes())


def read(file: Path) -> np.ndarray:
    """The booleans of `write`."""
    return np.unpackbits(np.frombuffer(file.read_bytes(), np.uint8)).astype(bool)
